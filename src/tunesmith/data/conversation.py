"""A conversation and where it was read: what every later stage works on, and what every complaint can name."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

THINKING_MARKS = ("<think>", "</think>")
_THINKING = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)


@dataclass(frozen=True)
class ToolCall:
    """One call that an assistant turn makes. `arguments`: the JSON object, or its text where the row gave text that is no object."""

    name: str
    arguments: dict[str, Any] | str = field(hash=False)  # a dict has no hash, and turns are looked up in sets
    id: str | None = None


@dataclass(frozen=True)
class Message:
    """One turn. `trained`: the loss counts it (assistant turns, unless the data say weight 0).

    role        "system", "user", "assistant" or "tool" (the result of a call); "text" for raw text
    thinking    what an assistant turn thought before its content, without its marks
    tool_calls  what an assistant turn calls after its content
    name        the tool whose result a "tool" turn is
    call_id     and the id of the call it answers; without one, results answer the calls before them in order

    before_thinking and after_thinking are what stands around it in the text, for templates that know no thinking: where it stood
    inside the answer its own marks and white space.
    """

    role: str
    content: str
    trained: bool
    thinking: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    call_id: str | None = None
    before_thinking: str = f"{THINKING_MARKS[0]}\n"
    after_thinking: str = f"\n{THINKING_MARKS[1]}\n\n"


@dataclass(frozen=True)
class Conversation:
    """Turns in order; raw text is a single trained turn whose role is "text".

    source   "train.jsonl:418": file name and true line (or row) number, counted from 1
    fields   the columns the row had, for prompts made from them and for reports
    task     the name of the dataset it came from, when a run has several (data/mixture.py); else ""
    tools    the functions the model may call: JSON-schema definitions as OpenAI's `tools` has them

    Two are equal when their turns and their source are: the rest describes them.
    """

    messages: tuple[Message, ...]
    source: str
    fields: dict[str, Any] = field(default_factory=dict, compare=False)
    task: str = field(default="", compare=False)
    tools: tuple[dict[str, Any], ...] = field(default=(), compare=False)

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
        """The last trained turn, the reference in evaluation (of a turn that only calls tools: the calls as JSON); None if nothing is trained."""
        last = self._last_answer()
        if last == len(self.messages):
            return None
        message = self.messages[last]
        if message.content or not message.tool_calls:
            return message.content
        return json.dumps([{"name": call.name, "arguments": call.arguments} for call in message.tool_calls], ensure_ascii=False)

    def _last_answer(self) -> int:
        for index in reversed(range(len(self.messages))):
            if self.messages[index].trained:
                return index
        return len(self.messages)


def split_thinking(content: str) -> tuple[str | None, str]:
    """What an answer's text thinks first, between <think> and </think>, and the rest; (None, content) without such a beginning."""
    found = _THINKING.match(content) if "</think>" in content else None
    return (None, content) if found is None else (found[1], content[found.end() :])


def has_thinking(conversation: Conversation) -> bool:
    """Whether an answer comes with its thinking, apart from it or at its beginning."""
    answers = [message for message in conversation.messages if message.role == "assistant"]
    return any(message.thinking is not None or split_thinking(message.content)[0] is not None for message in answers)
