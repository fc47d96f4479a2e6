"""A conversation and where it was read: what every later stage works on, and what every complaint can name."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Message:
    """One turn. `trained`: the loss counts it (assistant turns, unless the data say weight 0)."""

    role: str
    content: str
    trained: bool


@dataclass(frozen=True)
class Conversation:
    """Turns in order; raw text is a single trained turn whose role is "text".

    source   "train.jsonl:418": file name and true line (or row) number, counted from 1
    fields   the columns the row had, for prompts made from them and for reports
    """

    messages: tuple[Message, ...]
    source: str
    fields: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def is_text(self) -> bool:
        """Raw text: one turn, no question and no answer."""
        return len(self.messages) == 1 and self.messages[0].role == "text"

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the last answer: what the model is given when it is evaluated."""
        return self.messages[: self._last_answer()]

    @property
    def answer(self) -> str | None:
        """The last trained turn, the reference in evaluation; None if nothing is trained."""
        last = self._last_answer()
        return self.messages[last].content if last < len(self.messages) else None

    def _last_answer(self) -> int:
        for index in reversed(range(len(self.messages))):
            if self.messages[index].trained:
                return index
        return len(self.messages)
