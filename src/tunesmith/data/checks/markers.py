"""Marks of another template, blanks that nobody filled in: text that was made for a machine and stayed in a row.

foreign_marker("Paris.<|im_end|>")            # "Paris.<|im_end|>"
unfilled("Dear {{name}}, your order …")       # "Dear {{name}}, your…"
"""

import re

from tunesmith.data.checks.finding import TextCheck, around

_MARKER = re.compile(
    r"<\|(?:im_start|im_end|im_sep|endoftext|eot_id|begin_of_text|end_of_text|start_header_id|end_header_id|system|user|assistant|end|eom_id"
    r"|python_tag|endofprompt|return|channel|message|start|begin▁of▁sentence|end▁of▁sentence)\|>"
    r"|<｜[^｜\n]{2,30}｜>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|\[/?AVAILABLE_TOOLS\]|\[/?TOOL_(?:CALLS|RESULTS)\]"
    r"|<(?:bos|eos|pad|unk)>|\[(?:BOS|EOS|PAD|UNK|CLS|SEP|MASK)\]|(?:^|(?<=\n)|(?<=[.!?\w]))</?s>(?=$|\n)"
)
_HEADING = re.compile(
    r"(?:^|\n)#{2,3} ?(?:Response|Instruction|Input|Human|Assistant|User|System|Answer):?[ \t]*(?=\n|$)|(?:^|\n)#{2,3} ?Response:"
)
_SPEAKER = re.compile(r"\n(?:USER|ASSISTANT|Human|Assistant|User|AI|Bot|Q):[ \t]*\S")
_THINKING = re.compile(r"</?think(?:ing)?>|◁/?think▷")
_UNFILLED = re.compile(
    r"\{\{\s*[A-Za-z_][\w .-]{0,30}\s*\}\}|\$\{[A-Za-z_]\w{0,30}\}|(?<![\w$#{\\%])\{(?:name|first_?name|last_?name|text|input|question|query|context|prompt|"
    r"instruction|answer|output|response|label|title|date|user|username|company|company_name|product|document|passage|sentence|topic|language|"
    r"message|content|completion|url|email|city|item|order_?id|0|1)\}"
    r"|\[(?:INSERT|Insert|YOUR|Your|ENTER|Enter|ADD|Add)\b[^\]\n]{1,40}\]|<(?:insert|your|enter)\b[^<>\n]{1,40}>"
    r"|\[(?:Name|NAME|Date|DATE|Company Name|Recipient|Recipient's Name|Your Name|Customer Name|Phone Number|Email Address)\]"
)
_FILLER = re.compile(r"\b[Ll]orem [Ii]psum\b|\b(?:TODO|FIXME|TBD)\b(?=\s*(?:$|[:.\n(]))|\b(?:asdf(?:gh|jkl|asdf)|qwertyuiop)\w*")


def foreign_marker(text: str) -> str:
    if "<" in text or "[" in text:
        match = _MARKER.search(text)
        if match:
            return around(text, match.start(), match.end())
    match = _HEADING.search(text) if "##" in text else None
    return around(text, match.start(), match.end()).strip() if match else ""


def forged_turn(text: str) -> str:
    """A line inside an answer that begins as the next speaker's turn does."""
    match = _SPEAKER.search(text) if "\n" in text else None
    return around(text, match.start() + 1, match.end(), 10) if match else ""


def thinking(text: str) -> str:
    match = _THINKING.search(text) if "think" in text else None
    return around(text, match.start(), match.end()) if match else ""


def unfilled(text: str) -> str:
    if "{" not in text and "[" not in text and "<" not in text:
        return ""
    match = _UNFILLED.search(text)
    return around(text, match.start(), match.end()) if match else ""


def filler(text: str) -> str:
    match = _FILLER.search(text)
    return around(text, match.start(), match.end()) if match else ""


CHECKS = (
    TextCheck(
        "foreign-marker",
        "warning",
        foreign_marker,
        "marks of a chat template as text: to this model they are words, and it learns to write them",
        "remove them; the template adds its own",
        habit=True,
    ),
    TextCheck(
        "forged-turn",
        "warning",
        forged_turn,
        "an answer goes on with the next speaker's line: the model learns to speak for both",
        "split it into messages",
        "answer",
    ),
    TextCheck(
        "thinking-marks",
        "note",
        thinking,
        "an answer holds thinking marks: the model learns to write its thoughts",
        "keep, strip or leave them untrained on purpose",
        "answer",
        habit=True,
    ),
    TextCheck(
        "unfilled-placeholder", "warning", unfilled, "a placeholder that nobody filled in", "fill it in, or remove the row", habit=True
    ),
    TextCheck(
        "filler-text",
        "warning",
        filler,
        "filler where a text should be (lorem ipsum, TODO)",
        "write the text, or remove the row",
        habit=True,
    ),
)
