"""What a check found: one kind of trouble, how often, where, why it matters and what to do about it.

    Finding("exact-duplicates", "warning", 403, ("sms.tsv:155", …), "rows equal to an earlier one: …", "data.duplicates: drop")
    found("echo", "warning", hits, "the answer repeats the prompt", "remove these rows")      # hits: (source, what stood there)

An error is what training would refuse, or what breaks a rule that the user gave; a warning is something that most people
would mend; a note is good to know. Reasons are written once for all rows of a kind, so a report stays short however bad the data are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tunesmith.data.readers import clip

Severity: TypeAlias = Literal["error", "warning", "note"]
Hit: TypeAlias = tuple[str, str]  # (source "file:line", what stood there)
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
MOST_SEEN, SEEN_CHARACTERS = 50, 90  # what stood there is kept for the first rows of a finding only


@dataclass(frozen=True)
class Finding:
    """One kind of trouble.

    count     rows concerned
    sources   their lines, "file:line", in the order of the files; of a file as a whole its name
    seen      what stood at the first of them, shortened; a secret is masked
    """

    check: str
    severity: Severity
    count: int
    sources: tuple[str, ...]
    reason: str
    fix: str
    seen: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        fields = ("check", "severity", "count", "reason", "fix")
        return {name: getattr(self, name) for name in fields} | {"sources": list(self.sources), "seen": list(self.seen)}


@dataclass(frozen=True)
class TextCheck:
    """A check that needs no more than one text.

    find    the text → what is wrong in it, in a few characters; "" if nothing. Begins with a cheap test: it sees every message
    where   the messages it looks at: every one, those the model is given, or those it learns
    habit   what most rows have may be the task itself; then it is a note
    """

    name: str
    severity: Severity
    find: Callable[[str], str]
    reason: str
    fix: str
    where: Literal["any", "prompt", "answer"] = "any"
    habit: bool = False


def found(check: str, severity: Severity, hits: Sequence[Hit], reason: str, fix: str) -> list[Finding]:
    """The finding that these hits make; none if there are none."""
    if not hits:
        return []
    seen = tuple(clip(what, SEEN_CHARACTERS) for _, what in hits[:MOST_SEEN])
    return [Finding(check, severity, len(hits), tuple(source for source, _ in hits), reason, fix, seen if any(seen) else ())]


def around(text: str, start: int, end: int, margin: int = 20) -> str:
    """The place text[start:end] with a little of what stands beside it."""
    left, right = max(0, start - margin), min(len(text), end + margin)
    return ("…" if left else "") + text[left:right] + ("…" if right < len(text) else "")


def masked(secret: str, shown: int = 4) -> str:
    """A secret that can be found again in the file and not used: its first characters and its length."""
    return f"{secret[:shown]}… ({len(secret)} characters)"


def share(n: int, of: int) -> str:
    """ "12 %", "0.3 %", "< 0.1 %"."""
    percent = 100 * n / of if of else 0.0
    return "< 0.1 %" if 0 < percent < 0.1 else f"{percent:.1f} %" if percent < 10 else f"{percent:.0f} %"
