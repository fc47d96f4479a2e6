"""Measure a model on test rows: loss over the reference answers, and the answers it writes itself.

    rows = test_rows(conversations, renderer)
    measured = measure(model, rows, renderer, adapter="sms", max_new_tokens=8)    # None: the base
    measured.metrics, measured.answers
    measured.values["exact_match"]                                                # one number per row, for pairing

Base and tuned model answer the same prompts with the same settings (greedy), so that the difference is the tuning.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tunesmith.data.batches import fit, windows
from tunesmith.data.conversation import THINKING_MARKS, Conversation
from tunesmith.data.template import Example, Renderer
from tunesmith.errors import BadInput
from tunesmith.evaluation.choice import choice_metrics
from tunesmith.evaluation.likelihood import log_likelihoods
from tunesmith.evaluation.metrics import Task, answer_metrics, language_metrics, row_metrics, task_of
from tunesmith.inference.engine import generate
from tunesmith.loss import Scored
from tunesmith.model.adapters import adapter_names, using
from tunesmith.progress import progress, upto

WRITTEN_MARKS = (THINKING_MARKS, ("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷"), ("<seed:think>", "</seed:think>"))


@dataclass(frozen=True)
class TestRows:
    """Rows ready to be measured on; prompts is empty for raw text, which has no question to answer.

    examples     of each conversation, in order; row_of names the conversation that each belongs to: a long text has many
    references   the answer that each row trains on; accepted: all answers that count as right, that one first
    n_bytes      UTF-8 bytes of each conversation's trained turns
    """

    __test__ = False  # not a test class, whatever its name

    conversations: list[Conversation]
    examples: list[Example]
    row_of: list[int]
    prompts: list[list[int]]
    references: list[str]
    accepted: list[tuple[str, ...]]
    n_bytes: list[int]

    @property
    def longest_answer_tokens(self) -> int:
        return max(int(example.trained.sum()) for example in self.examples)


@dataclass(frozen=True)
class Measured:
    """metrics: over all rows. values: of every metric that is a mean over rows, the row's own; weights: where that mean is weighted."""

    metrics: dict[str, float]
    answers: list[str]
    stopped: list[bool]
    values: dict[str, list[float]]
    weights: dict[str, list[float]]


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
        (number, window)
        for number, conversation in enumerate(conversations)
        for example in renderer.render(conversation)
        for window in (windows(example, context) if conversation.is_text and context is not None else [example])
    ]
    fitted = fit([example for _, example in rendered], context or 1 << 30, "error")
    examples_of: dict[int, list[Example]] = {}
    for number, example in rendered:
        examples_of.setdefault(number, []).append(example)
    answered = [c for c in conversations if not c.is_text]
    if answered and len(answered) != len(conversations):
        raise BadInput("some test rows are raw text and some have answers", where=answered[0].source, fix="test on one kind at a time")
    return TestRows(
        conversations=list(conversations),
        examples=fitted.examples,
        row_of=[number for number, _ in rendered],
        prompts=[renderer.prompt_ids(c.prompt, c.source, c.tools) for c in answered],
        references=[_without_thinking(c.answer or "", renderer) for c in answered],
        accepted=[tuple(_without_thinking(answer, renderer) for answer in accepted_answers(c)) for c in answered],
        n_bytes=[_n_bytes(c, examples_of[number], renderer) for number, c in enumerate(conversations)],
    )


def _n_bytes(conversation: Conversation, examples: Sequence[Example], renderer: Renderer) -> int:
    """UTF-8 bytes of the text that is predicted; thoughts and tool calls are spelled by the template, so there its tokens are read."""
    trained = [message for message in conversation.messages if message.trained]
    if not any(message.thinking or message.tool_calls for message in trained):
        return sum(len(message.content.encode("utf-8", "replace")) for message in trained)
    texts = [decode(renderer, [int(i) for i in example.ids[example.trained]]) for example in examples]
    return max(1, sum(len(text.encode("utf-8", "replace")) for text in texts))


def accepted_answers(conversation: Conversation) -> tuple[str, ...]:
    """All answers that count as right: the one that is trained, and what the column "references" lists besides."""
    listed = conversation.fields.get("references")
    others = [one for one in listed if isinstance(one, str)] if isinstance(listed, list | tuple) else []
    return tuple(dict.fromkeys([conversation.answer or "", *others]))


test_rows.__test__ = False  # type: ignore[attr-defined]


def max_new_tokens_for(rows: TestRows, given: int | None) -> int:
    """A little more than the longest reference, so that an answer that does not stop is seen and costs little."""
    return given if given is not None else min(512, int(rows.longest_answer_tokens * 1.25) + 4)


@torch.inference_mode()
def measure(
    model: Any, rows: TestRows, renderer: Renderer, *, adapter: str | None, title: str, task: Task | None = None, max_new_tokens: int | None = None,
    batch_size: int = 64, compute_dtype: torch.dtype | None = None, choices: Sequence[Sequence[str]] | None = None, context: int | None = None,
) -> Measured:  # fmt: skip
    """Loss, perplexity and bits per byte of the reference answers; and, if there are prompts, metrics of greedy answers.

    choices   possible answers of each row, to be compared by likelihood too (choice.py)
    """
    chosen = using(model, adapter) if adapter_names(model) else nullcontext()
    with chosen:
        scored = Scored(model, compute_dtype).eval()
        metrics, values, weights = _language(scored, rows)
        if not rows.prompts:
            return Measured(metrics, [], [], values, weights)
        picked = {} if choices is None else choice_metrics(scored, rows.conversations, choices, rows.accepted, renderer, context)
        with progress(f"answers of {title}", len(rows.prompts)) as bar:
            written = generate(
                model, rows.prompts, max_new_tokens=max_new_tokens_for(rows, max_new_tokens), stop_ids=renderer.stop_ids,
                batch_size=batch_size, on_progress=upto(bar),
            )  # fmt: skip
    answers = [spoken(renderer, answer.ids) for answer in written]
    stopped = [answer.stopped for answer in written]
    kind = task_of(rows.references) if task is None else task
    of_rows = {**picked, "stop_rate": [float(stop) for stop in stopped]}
    metrics |= answer_metrics(kind, answers, rows.accepted) | {name: math.fsum(each) / len(each) for name, each in of_rows.items()}
    return Measured(metrics, answers, stopped, values | row_metrics(kind, answers, rows.accepted) | of_rows, weights)


def _language(scored: Scored, rows: TestRows) -> tuple[dict[str, float], dict[str, list[float]], dict[str, list[float]]]:
    """Metrics of the reference answers' likelihood; of each row, and what a row weighs in their mean."""
    found = log_likelihoods(scored, rows.examples)
    n_rows = len(rows.conversations)
    nll, n_tokens = (np.bincount(rows.row_of, weights=x, minlength=n_rows) for x in (-found.sum, found.n_tokens))
    n_bytes = np.array(rows.n_bytes, dtype=np.float64)
    metrics = language_metrics(float(nll.sum()), int(n_tokens.sum()), int(n_bytes.sum()))
    values = {"loss": nll / n_tokens, "bits_per_byte": nll / math.log(2) / n_bytes}
    return metrics, {k: v.tolist() for k, v in values.items()}, {"loss": n_tokens.tolist(), "bits_per_byte": n_bytes.tolist()}


def spoken(renderer: Renderer, ids: Sequence[int]) -> str:
    """The words of an answer without its thinking, as references are; marks may be control tokens, which `decode` leaves out."""
    whole: str = renderer.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    rest = _without_thinking(whole, renderer, opened_before=True)
    if rest == whole:
        return decode(renderer, ids)
    for token in renderer.tokenizer.all_special_tokens:
        rest = rest.replace(token, "")
    return rest if renderer.mode == "chat" else rest.strip()


def _without_thinking(text: str, renderer: Renderer, opened_before: bool = False) -> str:
    """What follows a thought that `text` begins with; opened_before: or that the prompt began, so that only its end stands in the text."""
    for opening, closing in (renderer.thinking_marks, *WRITTEN_MARKS):
        begins = bool(opening) and text.lstrip().startswith(opening)
        if closing in text and (begins or (opened_before and (not opening or opening not in text))):
            return text.partition(closing)[2].lstrip()
    return text


def decode(renderer: Renderer, ids: Sequence[int]) -> str:
    """The words of an answer; control tokens inside it are left out, as a reader would never see them."""
    text: str = renderer.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text if renderer.mode == "chat" else text.strip()
