"""The rows of one file as columns, made once: what most checks compare is the prompt, the answer, the system message.

    table = Table("train", "sms.tsv", conversations)
    table.prompts[417], table.answers[417], table.sources[417]      # "Spam or ham?\\n\\nCall now", "spam", "sms.tsv:418"
    table.own[417]                                                  # "Call now": less the lines that most rows share

Two rows of an instruction set are not near copies because both begin with the same long instruction; `own` is what tells them apart.
Columns of many rows lie on disk (spool.py): going through one costs 1 µs a row, and keeping what it gave costs memory.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

from tunesmith.data import spool
from tunesmith.data.checks.finding import Lines
from tunesmith.data.checks.label_set import labels_of
from tunesmith.data.conversation import Conversation, has_thinking
from tunesmith.data.digests import Digests, Places, as_numbers, digest, digests, first_equal
from tunesmith.data.split import all_that_is_said, prompt_text
from tunesmith.data.spool import Texts, column

PartName: TypeAlias = Literal["train", "validation", "test"]

COMPARED_CHARACTERS = 20_000
COMMON_ENDING = 200  # characters
BETWEEN = "\x1f\n"  # two messages; ends a line, so that what begins or ends a message still does
SHARED_LINE_ROWS, SHARED_LINE_SHARE = 8, 0.01  # a line in this many rows, and in this share of them, belongs to the form and not to the row
LINE_COUNTS = 1 << 22  # lines are counted by their hash first, and exactly only where that may be a shared one


def folded(text: str) -> str:
    """A text less case and spacing."""
    return " ".join(text.casefold().split())


@dataclass(frozen=True)
class Table:
    """Columns are lists of one length, in the order of the files; the answer is that of the last trained turn."""

    part: PartName
    name: str
    conversations: Sequence[Conversation]

    def __len__(self) -> int:
        return len(self.conversations)

    @property
    def is_text(self) -> bool:
        """Raw text: rows without question and answer."""
        return bool(self.conversations) and self.conversations[0].is_text

    @cached_property
    def _columns(self) -> "_Columns":
        columns = _Columns.of(len(self))
        for conversation in self.conversations:
            messages, is_text = conversation.messages, conversation.is_text
            columns.sources.append(conversation.source)
            columns.answers.append("" if is_text else conversation.answer or "")
            turns = messages if is_text else conversation.prompt
            columns.prompts.append("\n".join([message.content for message in turns if message.role != "system"]))
            columns.systems.append(messages[0].content if messages[0].role == "system" else "")
            columns.beginnings.append(prompt_text(conversation)[:COMPARED_CHARACTERS])
            columns.contents.append(BETWEEN.join([message.content for message in messages]))
            columns.turns.append(len(messages))
            columns.n_thinking += has_thinking(conversation)
            columns.said += digest(all_that_is_said(conversation))
        return columns

    @property
    def sources(self) -> Lines:
        return self._columns.sources

    @property
    def answers(self) -> Sequence[str]:
        return self._columns.answers

    @property
    def prompts(self) -> Sequence[str]:
        """The turns before the answer without the system message; of raw text the text."""
        return self._columns.prompts

    @property
    def systems(self) -> Sequence[str]:
        return self._columns.systems

    @property
    def turns(self) -> Sequence[int]:
        """Messages of each row."""
        return self._columns.turns

    @property
    def n_thinking(self) -> int:
        return self._columns.n_thinking

    @property
    def beginnings(self) -> Sequence[str]:
        """The prompts as splits compare them for near copies; of a book in one row its first pages."""
        return self._columns.beginnings

    @property
    def contents(self) -> Sequence[str]:
        """What all messages of a row say, with BETWEEN between them."""
        return self._columns.contents

    @cached_property
    def labels(self) -> Counter[str] | None:
        """Label → rows, if the answers are labels."""
        return labels_of(self.answers)

    @cached_property
    def asked(self) -> Digests:
        """What two rows have in common when they ask the same, as a digest: system message and prompt, less case and spacing."""
        return digests(folded(f"{system}\x1e{prompt}") for system, prompt in zip(self.systems, self.prompts))

    @cached_property
    def first_copies(self) -> Places:
        """For each row the first that equals it in all that is said."""
        return first_equal(as_numbers(self._columns.said))

    @cached_property
    def own(self) -> Sequence[str]:
        """The prompts without the lines that many rows share and without what all begin or end with; whole where nothing is left."""
        common = _shared_lines(self.prompts)
        rest = self.prompts
        if common:
            rest = column(len(self), (_without(prompt, common) if "\n" in prompt else prompt for prompt in self.prompts))
        start, end = _common_ends(rest) if len(rest) >= SHARED_LINE_ROWS else (0, 0)
        return column(len(self), (text[start : len(text) - end] or text for text in rest)) if start or end else rest


@dataclass
class _Columns:
    """What one pass over the conversations gives. said: digests of all that each row says."""

    answers: list[str] | Texts
    prompts: list[str] | Texts
    systems: list[str] | Texts
    beginnings: list[str] | Texts
    contents: list[str] | Texts
    sources: Lines = field(default_factory=Lines)
    said: bytearray = field(default_factory=bytearray)
    turns: "array[int]" = field(default_factory=lambda: array("i"))
    n_thinking: int = 0

    @staticmethod
    def of(n_rows: int) -> "_Columns":
        answers, prompts, systems, beginnings, contents = (column(n_rows) for _ in range(5))
        return _Columns(answers, prompts, systems, beginnings, contents)


def majority(texts: Iterable[str]) -> str:
    """The one text that more than half of them are, if there is one; else any. In constant memory (Boyer and Moore 1981)."""
    candidate, lead = "", 0
    for text in texts:
        if lead == 0:
            candidate = text
        lead += 1 if text == candidate else -1
    return candidate


def _shared_lines(prompts: Sequence[str]) -> set[str]:
    """Lines that many of the prompts have."""
    least = max(SHARED_LINE_ROWS, SHARED_LINE_SHARE * len(prompts))

    def lines_of_each() -> Iterator[set[str]]:
        return (set(prompt.split("\n")) for prompt in prompts if "\n" in prompt)

    n_counts = LINE_COUNTS if len(prompts) > spool.MANY_ROWS else 1
    counts = array("I", bytes(4 * n_counts))
    for lines in lines_of_each():
        for line in lines:
            counts[hash(line) % n_counts] += 1
    exact: Counter[str] = Counter()
    for lines in lines_of_each():
        exact.update(line for line in lines if counts[hash(line) % n_counts] >= least)
    return {line for line, n in exact.items() if n >= least}


def _without(prompt: str, common: set[str]) -> str:
    own = "\n".join(line for line in prompt.split("\n") if line not in common)
    return own if own.strip() else prompt


def _common_ends(texts: Sequence[str]) -> tuple[int, int]:
    """How many characters all texts begin and end with alike, in whole words."""
    shortest = min(map(len, texts))
    start = _alike(texts)
    start = texts[0].rfind(" ", 0, start) + 1 if start < shortest else 0
    end = _alike(text[: -COMMON_ENDING - 1 : -1] for text in texts)
    end = max(texts[0][::-1].rfind(" ", 0, end), 0) if end < shortest else 0
    return (start, end) if start + end < shortest else (start, 0)


def _alike(texts: Iterable[str]) -> int:
    """The length of the longest common beginning: that of the first and the last in the order of the alphabet."""
    every = iter(texts)
    first = last = next(every)
    for text in every:
        if text < first:
            first = text
        elif text > last:
            last = text
    return next((n for n, (a, b) in enumerate(zip(first, last)) if a != b), len(first))
