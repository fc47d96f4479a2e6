"""Answers that teach the wrong thing whatever the task: refusals, echoes, texts that break off, white space at their ends.

refusal("As an AI language model, I cannot …")        # "As an AI language model"
open_fence("```python\\nprint(1)")                     # "1 line of ``` and none that closes"
"""

import re
from array import array
from collections import Counter

from tunesmith.data.checks.finding import Finding, Hits, TextCheck, around, found, share
from tunesmith.data.checks.json_answers import are_json
from tunesmith.data.checks.table import Table, folded, majority
from tunesmith.data.readers import clip

_CANNOT = r"(?:can(?:not|['’]?t| not)|(?:am|['’]m) (?:not able|unable)|am not able|won['’]?t)"
_REFUSED = (
    r"(?:fulfil|fulfill|assist|help|comply|provide|answer|generate|create|write|process|access|browse|share|discuss|engage|offer|give)"
)
_REFUSAL = re.compile(
    r"\bas an? (?:(?:ai|artificial intelligence)(?: (?:language )?(?:model|assistant|system)|,| i\b)|large language model\b)"
    r"|\bi(?:['’]| a)m (?:just |only )?an? (?:ai|large) (?:language )?(?:model|assistant)|\bi(?:['’]| a)m (?:just |only )?an? ai\b"
    rf"|^\W*(?:(?:i(?:['’]| a)m sorry|sorry|i apologi[sz]e)[,.]? (?:but )?)?i ?{_CANNOT} (?:to )?{_REFUSED}\b"
    r"|\bmy knowledge cutoff\b|\bmy training data\b|\bregenerate response\b",
    re.I,
)
_REFUSAL_SIGN = re.compile(r"\bAI\b|\bai\b|sorry|apologi|cannot|can't|can’t|can not|language model|cutoff|training data|Regenerate", re.I)
_BLANKS = set(
    "n/a na nan none null nil - -- — – ? ?? ??? ... … . tbd todo undefined unknown [] {} \"\" '' #n/a #value! #ref! xxx test placeholder "
    "<noinput> <nooutput>".split()
)
_CLOSERS = {"(": ")", "[": "]", "{": "}"}
_ENDINGS = frozenset(".!?…。！？।:;)]}\"'”’`»」』*>~|")
_CLOSED_SHARE, _LEAST_LONG = 0.9, 20  # of long answers must end as sentences do before one that does not is a complaint
_LONG, _RARE = 60, 0.05
_SENTENCE_WORDS, _CLOSED_SENTENCES = 5, 0.95  # of answers of so many words, however short
_NEVER_LAST = frozenset("a an and because its my of or our than the their which your".split())  # English sentences do not end so
_REPEATED_WORDS, _LONGEST_UNIT = 20, 8  # words of a repetition, and of what is repeated
SHORT_ECHO = 8  # characters; "No." may be the translation of "No."


def refusal(text: str) -> str:
    if not _REFUSAL_SIGN.search(text):
        return ""
    match = _REFUSAL.search(text)
    return around(text, match.start(), match.end()) if match else ""


def open_fence(text: str) -> str:
    n = text.count("```")
    return f"{n} × ``` and none that closes the last" if n % 2 else ""


def repetition(text: str) -> str:
    """A few words that are said again and again through half of the text or more."""
    words = text.split()
    if len(words) < _REPEATED_WORDS or 2 * len(set(words)) > len(words) + 2 * _LONGEST_UNIT:
        return ""
    for unit in range(1, _LONGEST_UNIT + 1):
        run = 0
        for place in range(unit, len(words)):
            run = run + 1 if words[place] == words[place - unit] else 0
            if run + unit >= max(_REPEATED_WORDS, len(words) // 2, 5 * unit):
                said = " ".join(words[place - unit + 1 : place + 1])
                if any(map(str.isalpha, said)):
                    return f"{clip(said, 40)!r}, again and again in {len(words):,} words"
    return ""


CHECKS = (
    TextCheck(
        "repetition",
        "warning",
        repetition,
        "the answer says the same few words over and over: a model got into a loop, and this one learns to",
        "shorten or remove the rows, unless repeating is the task",
        "answer",
        habit=True,
    ),
    TextCheck(
        "refusal",
        "warning",
        refusal,
        "boilerplate of another assistant (“as an AI language model”): the model learns to refuse as it did",
        "rewrite or remove the rows, unless refusing is the task",
        "answer",
        habit=True,
    ),
    TextCheck(
        "open-code-fence",
        "warning",
        open_fence,
        "a code block is never closed: the answer was cut, or the model learns not to close",
        "close it, or remove the row",
        "answer",
    ),
)


def table_checks(table: Table) -> list[Finding]:
    if table.is_text:
        return []
    return [*echo(table), *blank(table), *same_for_all(table), *cut_short(table), *open_bracket(table), *white_space(table)]


def echo(table: Table) -> list[Finding]:
    """The answer is the prompt again: to the letter, or less case and spacing."""
    hits = Hits(
        (source, clip(answer, 60))
        for source, answer, prompt, own in zip(table.sources, table.answers, table.prompts, table.own)
        if len(answer) > SHORT_ECHO and (folded(answer) == folded(prompt) or folded(answer) == folded(own))
    )
    often = len(hits) > 0.5 * len(table)
    reason = "the answer repeats the prompt" + (" in most rows: the model learns to copy" if often else "")
    return found("echo", "warning", hits, reason, "give these rows a true answer, or remove them")


def blank(table: Table) -> list[Finding]:
    """Answers that say nothing ("N/A", "null", "…"), where that is rare; where it is frequent it is a label."""
    counts = Counter(said for answer in table.answers if (said := answer.strip().casefold()) in _BLANKS or not any(map(str.isalnum, said)))
    rare = {answer for answer, n in counts.items() if answer in _BLANKS and n <= max(2, _RARE * len(table))}
    rare |= {
        answer for answer, n in counts.items() if answer and n <= 2 and not any(map(str.isalnum, answer)) and answer not in _emoji(answer)
    }
    hits = ((source, answer) for source, answer in zip(table.sources, table.answers) if answer.strip().casefold() in rare)
    return found(
        "blank-answer", "warning", hits, "the answer says nothing: a gap in the table that became a text", "fill it in, or remove the row"
    )


def _emoji(answer: str) -> tuple[str, ...]:
    """The answer itself if it is made of symbols that mean something, such as + or an emoji."""
    return (
        (answer,)
        if all(not c.isascii() or c in "+*/=<>%$€&@#^" for c in answer if not c.isspace()) and answer not in ("—", "–", "…")
        else ()
    )


def same_for_all(table: Table) -> list[Finding]:
    """One answer to (nearly) every prompt. What labels are is checked in labels.py; this is for any text."""
    if len(table) < 10:
        return []
    answer = majority(table.answers)
    n = sum(given == answer for given in table.answers)
    if n < 0.95 * len(table):
        return []
    hits = ((source, clip(given, 60)) for source, given in zip(table.sources, table.answers) if given == answer)
    what = "every row has" if n == len(table) else f"{share(n, len(table))} of the rows have"
    return found(
        "same-answer",
        "warning",
        hits,
        f"{what} the answer {clip(answer, 40)!r}: there is nothing to tell apart, and the model learns to say it always",
        "add rows with other answers, or check which column the answer comes from",
    )


def cut_short(table: Table) -> list[Finding]:
    """Answers that break off: long ones, where nine in ten of them end as a sentence, a list or a block of code does; shorter ones, in a
    small letter, where nearly all do; and those whose last word ends no sentence.
    """
    if table.labels is not None or are_json(table):
        return []
    n_long = n_worded = n_open_worded = 0
    open_long, open_worded, cut = array("q"), array("q"), array("q")  # rows
    for n, given in enumerate(table.answers):
        answer = given.rstrip()
        is_open = bool(answer) and not _ends(answer)
        if len(answer) >= _LONG:
            n_long += 1
            if is_open:
                open_long.append(n)
        if answer.count(" ") >= _SENTENCE_WORDS - 1:
            n_worded += 1
            if is_open and _breaks_off(answer):
                cut.append(n)
            if is_open and _last_word(answer).islower():
                open_worded.append(n)
            n_open_worded += is_open
    told = "stops where no sentence does"
    pools = (
        (open_long, len(open_long), n_long, _CLOSED_SHARE, "of the long ones"),
        (open_worded, n_open_worded, n_worded, _CLOSED_SENTENCES, "of the others"),
    )
    for rows, n_open, n_all, least, words in pools:
        if n_all >= _LEAST_LONG and 0 < n_open <= (1 - least) * n_all:
            told = f"breaks off, where {share(n_all - n_open, n_all)} {words} end with a full stop or the like"
            cut += rows
            break
    hits = ((table.sources[n], f"…{table.answers[n].rstrip()[-50:]}") for n in sorted(set(cut)))
    fix = "complete them, or remove the rows: the model learns to stop in mid-sentence"
    return found("cut-short", "warning", hits, f"the answer {told}", fix)


def _breaks_off(answer: str) -> bool:
    """Whether the last word ends no sentence; as the last of a list ("x, y, a") it may be a letter."""
    last = _last_word(answer)
    return answer[-1] == "," or (last in _NEVER_LAST and answer[: -len(last)].rstrip()[-1].isalpha())


def _last_word(answer: str) -> str:
    return answer[answer.rfind(" ") + 1 :]


def _ends(answer: str) -> bool:
    """Whether an answer ends as one would; the last line of a list, of code or of a table may end in a word."""
    last = answer[answer.rfind("\n") + 1 :]
    in_list = "\n" in answer and len(last) < 80
    return answer[-1] in _ENDINGS or not (answer[-1].isascii() and (answer[-1].isalpha() or answer[-1] in ",-(")) or in_list


def open_bracket(table: Table) -> list[Finding]:
    """An answer that begins with a bracket, where others that begin so close it at their end."""
    hits = Hits()
    n_closed = 0
    for source, answer in zip(table.sources, table.answers):
        text = answer.strip()
        if text[:1] not in _CLOSERS or len(text) < 2:
            continue
        if text.count(text[0]) > text.count(_CLOSERS[text[0]]):
            hits.append((source, clip(f"…{text[-50:]}", 60)))
        else:
            n_closed += 1
    if n_closed < 3 * len(hits):
        return []
    return found(
        "open-bracket",
        "warning",
        hits,
        "the answer opens a bracket that nothing closes: it was cut, or the model learns to stop too early",
        "complete it, or remove the row",
    )


def white_space(table: Table) -> list[Finding]:
    """Spaces or line ends before or after the answer: in few rows a slip, in most a habit that the model takes over."""
    findings: list[Finding] = []
    for place, at in (("begins", 0), ("ends", -1)):
        hits = Hits(
            (source, repr(answer[:30] if at == 0 else answer[-30:]))
            for source, answer in zip(table.sources, table.answers)
            if answer and answer[at].isspace()
        )
        often = len(hits) > 0.5 * len(table)
        reason = f"the answer {place} with white space" + (
            f" in {share(len(hits), len(table))} of the rows: one more token to write, after what the template writes itself"
            if often
            else ", where most do not: the same answer becomes other tokens"
        )
        findings += found(f"answer-{place}-with-space", "note" if often else "warning", hits, reason, "strip it, unless it is meant")
    return findings
