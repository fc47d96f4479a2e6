"""The rows of one file as columns, made once: what most checks compare is the prompt, the answer, the system message.

    table = Table("train", "sms.tsv", conversations)
    table.prompts[417], table.answers[417], table.sources[417]      # "Spam or ham?\\n\\nCall now", "spam", "sms.tsv:418"
    table.own[417]                                                  # "Call now": less the lines that most rows share

Two rows of an instruction set are not near copies because both begin with the same long instruction; `own` is what tells them apart.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from tunesmith.data.conversation import Conversation
from tunesmith.data.split import prompt_text

PartName: TypeAlias = Literal["train", "validation", "test"]

COMPARED_CHARACTERS = 20_000
COMMON_ENDING = 200  # characters
SHARED_LINE_ROWS, SHARED_LINE_SHARE = 8, 0.01  # a line in this many rows, and in this share of them, belongs to the form and not to the row


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
    def sources(self) -> list[str]:
        return [c.source for c in self.conversations]

    @cached_property
    def answers(self) -> list[str]:
        return ["" if c.is_text else c.answer or "" for c in self.conversations]

    @cached_property
    def prompts(self) -> list[str]:
        """The turns before the answer without the system message; of raw text the text."""
        return ["\n".join([m.content for m in (c.messages if c.is_text else c.prompt) if m.role != "system"]) for c in self.conversations]

    @cached_property
    def beginnings(self) -> list[str]:
        """The prompts as splits compare them for near copies; of a book in one row its first pages."""
        return [prompt_text(conversation)[:COMPARED_CHARACTERS] for conversation in self.conversations]

    @cached_property
    def systems(self) -> list[str]:
        return [c.messages[0].content if c.messages[0].role == "system" else "" for c in self.conversations]

    @cached_property
    def asked(self) -> list[str]:
        """What two rows have in common when they ask the same: system message and prompt, less case and spacing."""
        return [folded(f"{system}\x1e{prompt}") for system, prompt in zip(self.systems, self.prompts)]

    @cached_property
    def own(self) -> list[str]:
        """The prompts without the lines that many rows share and without what all begin or end with; whole where nothing is left."""
        lines = Counter(line for prompt in self.prompts if "\n" in prompt for line in set(prompt.split("\n")))
        least = max(SHARED_LINE_ROWS, SHARED_LINE_SHARE * len(self))
        common = {line for line, n in lines.items() if n >= least}
        rest = [_without(prompt, common) if "\n" in prompt else prompt for prompt in self.prompts] if common else self.prompts
        start, end = _common_ends(rest) if len(rest) >= SHARED_LINE_ROWS else (0, 0)
        return [text[start : len(text) - end] or text for text in rest] if start or end else rest


def _without(prompt: str, common: set[str]) -> str:
    own = "\n".join(line for line in prompt.split("\n") if line not in common)
    return own if own.strip() else prompt


def _common_ends(texts: Sequence[str]) -> tuple[int, int]:
    """How many characters all texts begin and end with alike, in whole words."""
    shortest = min(map(len, texts))
    start = _alike(texts)
    start = texts[0].rfind(" ", 0, start) + 1 if start < shortest else 0
    end = _alike([text[: -COMMON_ENDING - 1 : -1] for text in texts])
    end = max(texts[0][::-1].rfind(" ", 0, end), 0) if end < shortest else 0
    return (start, end) if start + end < shortest else (start, 0)


def _alike(texts: Sequence[str]) -> int:
    """The length of the longest common beginning: that of the first and the last in the order of the alphabet."""
    first, last = min(texts), max(texts)
    return next((n for n, (a, b) in enumerate(zip(first, last)) if a != b), len(first))
