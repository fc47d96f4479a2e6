"""Measure a model on test rows: loss over the reference answers, and the answers it writes itself.

    rows = test_rows(conversations, renderer)
    measured = measure(model, rows, renderer, adapter="sms", max_new_tokens=8)    # None: the base
    measured.metrics, measured.answers

Base and tuned model answer the same prompts with the same settings (greedy), so that the difference is the tuning.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.data.batches import fit, windows
from tunesmith.data.conversation import Conversation
from tunesmith.data.template import Example, Renderer
from tunesmith.errors import BadInput
from tunesmith.evaluation.metrics import Task, answer_metrics, language_metrics, task_of
from tunesmith.inference.engine import generate
from tunesmith.loss import Scored, nll_of
from tunesmith.model.adapters import adapter_names, using
from tunesmith.progress import progress, upto


@dataclass(frozen=True)
class TestRows:
    """Rows ready to be measured on; prompts is empty for raw text, which has no question to answer."""

    __test__ = False  # not a test class, whatever its name

    conversations: list[Conversation]
    examples: list[Example]
    prompts: list[list[int]]
    references: list[str]
    n_answer_bytes: int

    @property
    def longest_answer_tokens(self) -> int:
        return max(int(example.trained.sum()) for example in self.examples)


@dataclass(frozen=True)
class Measured:
    metrics: dict[str, float]
    answers: list[str]
    stopped: list[bool]


def test_rows(conversations: Sequence[Conversation], renderer: Renderer, context: int | None) -> TestRows:
    """Render every conversation; a row too long for the model is refused, since leaving it out would change the figures."""
    if not conversations:
        raise BadInput("there are no test rows", where="data.test", fix="data.test: 0.1, or a file")
    for conversation in conversations:
        if context is not None and not conversation.is_text and (least := renderer.least_tokens(conversation)) > context:
            raise BadInput(
                f"a test row is longer than the model's {context:,} positions", where=f"{conversation.source}: more than {least:,} tokens",
                fix="leave the row out of the test rows",
            )  # fmt: skip
    rendered = [
        window
        for conversation in conversations
        for example in renderer.render(conversation)
        for window in (windows(example, context) if conversation.is_text and context is not None else [example])
    ]
    fitted = fit(rendered, context or 1 << 30, "error")
    answered = [c for c in conversations if not c.is_text]
    if answered and len(answered) != len(conversations):
        raise BadInput("some test rows are raw text and some have answers", where=answered[0].source, fix="test on one kind at a time")
    prompts = [renderer.prompt_ids(c.prompt, c.source) for c in answered]
    references = [c.answer or "" for c in answered]
    n_bytes = sum(len(m.content.encode("utf-8", "replace")) for c in conversations for m in c.messages if m.trained)
    return TestRows(list(conversations), fitted.examples, prompts, references, n_bytes)


test_rows.__test__ = False  # type: ignore[attr-defined]


def max_new_tokens_for(rows: TestRows, given: int | None) -> int:
    """A little more than the longest reference, so that an answer that does not stop is seen and costs little."""
    return given if given is not None else min(512, int(rows.longest_answer_tokens * 1.25) + 4)


@torch.inference_mode()
def measure(
    model: Any, rows: TestRows, renderer: Renderer, *, adapter: str | None, title: str, task: Task | None = None, max_new_tokens: int | None = None,
    batch_size: int = 64, compute_dtype: torch.dtype | None = None,
) -> Measured:  # fmt: skip
    """Loss, perplexity and bits per byte of the reference answers; and, if there are prompts, metrics of greedy answers."""
    chosen = using(model, adapter) if adapter_names(model) else nullcontext()
    with chosen:
        total, count = nll_of(Scored(model, compute_dtype).eval(), rows.examples, 8192)
        metrics = language_metrics(total, count, rows.n_answer_bytes)
        if not rows.prompts:
            return Measured(metrics, [], [])
        with progress(f"answers of {title}", len(rows.prompts)) as bar:
            written = generate(
                model, rows.prompts, max_new_tokens=max_new_tokens_for(rows, max_new_tokens), stop_ids=renderer.stop_ids,
                batch_size=batch_size, on_progress=upto(bar),
            )  # fmt: skip
    answers = [decode(renderer, answer.ids) for answer in written]
    stopped = [answer.stopped for answer in written]
    metrics |= answer_metrics(task_of(rows.references) if task is None else task, answers, rows.references)
    metrics["stop_rate"] = sum(stopped) / len(stopped)
    return Measured(metrics, answers, stopped)


def decode(renderer: Renderer, ids: Sequence[int]) -> str:
    """The words of an answer; control tokens inside it are left out, as a reader would never see them."""
    text: str = renderer.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text if renderer.mode == "chat" else text.strip()
