"""Rows that the readers and the formats refuse, by kind: each with its true line and their own words.

    refused(read.skipped, "error")      # BadRow("t.jsonl:7", "the answer is empty") → Finding("empty-answer", …)

The readers say in a sentence what is wrong with one row; a kind is told by that sentence. What no kind fits is still reported, as
"unusable-row", so that nothing is lost where a reader learns a new complaint.
"""

import re
from collections import defaultdict
from collections.abc import Iterable

from tunesmith.data.checks.finding import Finding, Hits, Severity, found
from tunesmith.data.formats import BadRow

# (kind, how its sentences look, reason, fix); the first that fits
_KINDS = tuple(
    (kind, re.compile(pattern), reason, fix)
    for kind, pattern, reason, fix in (
        (
            "not-json-row",
            r"not JSON(?!.*tool)|JSON document over several|nested too deeply|nested more than|thousands of digits|is not a value that JSON has",
            "the row cannot be read as JSON",
            "repair the line; the column where it breaks is named",
        ),
        ("repeated-key-row", r"is given twice$", "a key is given twice, and readers differ in which one they keep", "keep one of them"),
        (
            "wrong-cell-count",
            r"cells? where the .* columns",
            "the row has more or fewer cells than the header",
            "quote cells that hold the separator",
        ),
        (
            "stray-quote",
            r"cell goes on after its closing quote|carriage return in a cell",
            "a quote in a cell is not closed or not doubled",
            "data.quoting: false where quotes are mere characters",
        ),
        ("unusable-character", r"NUL character|surrogate pair", "a character that no tokenizer and no file can hold", "remove it"),
        ("not-a-number", r"^(?:nan|-?inf) in ", "NaN or infinity in a column", "leave the cell empty or give it a number"),
        (
            "empty-answer",
            r"(?:answer|completion) (?:of message \d+ )?is empty|has an empty answer|\"(?:output|completion|answer|response|label|target)\" is (?:null|empty)",
            "there is nothing to learn: the answer is empty or white space",
            "write the answer, or remove the row",
        ),
        (
            "empty-prompt",
            r"prompt is empty|message \d+ is empty|text is empty|has an empty question|\"(?:prompt|instruction|question|input|text)\" is (?:null|empty)",
            "there is nothing to answer: the prompt or the text is empty or white space",
            "write it, or remove the row",
        ),
        (
            "roles-out-of-order",
            r"should speak|only the first may be one|last message is by|is the result of|no call before",
            "the roles are out of order",
            "user and assistant in turn, the last turn the assistant's",
        ),
        (
            "unknown-role",
            r"the role of message|message \d+ is from|has the role",
            "a role that no template knows",
            "system, user, assistant or tool",
        ),
        (
            "nothing-trained",
            r"no answer is trained",
            "no token would be trained: every answer has weight 0",
            "give one answer weight 1, or remove the row",
        ),
        (
            "bad-weight",
            r"weight|to be trained, but|should be true or false",
            "what is to be trained is not said as the format has it",
            "weight 0 or 1, on assistant messages",
        ),
        (
            "missing-column",
            r"is missing; this row has|is null; this row has|is null|is missing",
            "a column that the prompt or the answer needs is missing",
            "fill it in, or remove the row",
        ),
        ("mixed-formats", r"mixed formats", "the row has another format than the file", "one format in a file; split it"),
        (
            "bad-tool-call",
            r"tool call|tool_call|\"tools\"|\"functions\"|function_call|calls tools|definitions|definition",
            "a tool call or a tool definition is not as the format has it",
            "see OpenAI's tools format",
        ),
        ("bad-message", r"message|content|history|conversations", "a message is not as the format has it", '{"role": …, "content": "…"}'),
        ("not-an-object", r"a row should be an object|which is not text", "the row holds something that is no row", "one object a row"),
    )
)


def refused(skipped: Iterable[BadRow], severity: Severity) -> list[Finding]:
    """One finding for each kind, in the order in which they first occur.

    severity   "error" where training would stop at such a row, "warning" where it is told to leave such rows out
    """
    by_kind: defaultdict[str, Hits] = defaultdict(Hits)
    for bad in skipped:
        by_kind[kind_of(bad.problem)].append((bad.source, bad.problem))
    words = {kind: (reason, fix) for kind, _, reason, fix in _KINDS}
    findings: list[Finding] = []
    for kind, hits in by_kind.items():
        reason, fix = words.get(kind, ("the row cannot be used", "see what is said of it"))
        if severity == "error":
            fix += "; data.on_bad_row: skip leaves such rows out"
        else:
            reason += " (left out: data.on_bad_row is skip)"
        findings += found(kind, severity, hits, reason, fix)
    return findings


def kind_of(problem: str) -> str:
    return next((kind for kind, pattern, _, _ in _KINDS if pattern.search(problem)), "unusable-row")
