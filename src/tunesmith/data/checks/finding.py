"""What a check found: one kind of trouble, how often, where, why it matters and what to do about it.

    Finding("exact-duplicates", "warning", 403, ("sms.tsv:155", …), "rows equal to an earlier one: …", "data.duplicates: drop")
    found("echo", "warning", hits, "the answer repeats the prompt", "remove these rows")      # hits: (source, what stood there), one by one

An error is what training would refuse, or what breaks a rule that the user gave; a warning is something that most people
would mend; a note is good to know. Reasons are written once for all rows of a kind, so a report stays short however bad the data are. It names every row, in
12 bytes each (`Lines`), for a habit of two million rows is a finding of two million lines.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, overload

from tunesmith.data.readers import clip

Severity: TypeAlias = Literal["error", "warning", "note"]
Hit: TypeAlias = tuple[str, str]  # (source "file:line", what stood there)
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
MOST_SEEN, SEEN_CHARACTERS = 50, 90  # what stood there is kept for the first rows of a finding only


class Lines(Sequence[str]):
    """Many "file:line"; equal to any sequence of the same texts."""

    def __init__(self, sources: Iterable[str] = ()) -> None:
        self._files: dict[str, int] = {}
        self._names: list[str] = []
        self._file_of, self._lines = array("i"), array("q")  # a line of -1: the name is all there is
        for source in sources:
            self.append(source)

    def append(self, source: str) -> None:
        file, colon, number = source.rpartition(":")
        line = int(number) if colon and number.isdecimal() and number.isascii() and len(number) < 19 else -1
        if line < 0 or str(line) != number:
            file, line = source, -1
        place = self._files.setdefault(file, len(self._files))
        if place == len(self._names):
            self._names.append(file)
        self._file_of.append(place)
        self._lines.append(line)

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(len(self))[index])
        name, line = self._names[self._file_of[index]], self._lines[index]
        return name if line < 0 else f"{name}:{line}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Lines({list(self[:MOST_SEEN])}{'…' if len(self) > MOST_SEEN else ''})"


class Hits:
    """The rows that a check complains about, as they are found: every line, and what stood at the first of them."""

    def __init__(self, hits: Iterable[Hit] = ()) -> None:
        self.sources, self.seen = Lines(), list[str]()
        for hit in hits:
            self.append(hit)

    def append(self, hit: Hit) -> None:
        self.sources.append(hit[0])
        if len(self.seen) < MOST_SEEN:
            self.seen.append(clip(hit[1], SEEN_CHARACTERS))

    def __len__(self) -> int:
        return len(self.sources)


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
    sources: Sequence[str]
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


def found(check: str, severity: Severity, hits: Hits | Iterable[Hit], reason: str, fix: str) -> list[Finding]:
    """The finding that these hits make; none if there are none."""
    kept = hits if isinstance(hits, Hits) else Hits(hits)
    if not kept:
        return []
    return [Finding(check, severity, len(kept), kept.sources, reason, fix, tuple(kept.seen) if any(kept.seen) else ())]


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
