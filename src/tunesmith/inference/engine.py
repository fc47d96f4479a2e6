"""Answers for many prompts at once: over any transformers causal model, and several times faster where our own decoder knows it.

    answers = generate(model, prompts, max_new_tokens=32, stop_ids=frozenset({2}))
    answers[0].ids, answers[0].stopped                   # the stop token itself is left out

    for token in stream(model, prompt, max_new_tokens=200, stop_ids=frozenset({2})): ...

Prompts are sorted by length, and a row leaves its batch when it stops, so that the last long answer does not carry the finished ones along.
A batch is `Decoding` where that can be (decoding.py), otherwise `_Padded`: padding on the left, so that the newest token of every
row is in the last column, and positions that count from a row's own first token, so a row computes what it would alone.
Its cache is transformers' own, which knows each family's sliding windows. The model is called directly, not through
`model.generate`: no generation config of a checkpoint (its own temperature, stop ids or penalties) takes part unseen.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunesmith.errors import BadInput
from tunesmith.inference.decoding import decoding
from tunesmith.inference.sampling import check_sampling, row_generator, sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Generated:
    """One answer. `stopped`: it ended in a stop token (not in `ids`) rather than at a limit of length."""

    ids: list[int]
    stopped: bool


def generate(
    model: "PreTrainedModel",
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    pad_id: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    on_progress: Callable[[int], None] | None = None,
) -> list[Generated]:
    """Continue each prompt until a stop token, `max_new_tokens` or the end of the model's context.

    pad_id        any id of the vocabulary; padding is hidden by position, so it may be a meaningful token
    temperature   0 takes the most likely token; otherwise row i draws with numbers of its own, made from (seed, i)
    batch_size    prompts computed at once; changes speed and memory, not answers (but for rounding in near ties)
    on_progress   called with the number of prompts answered so far, each time it grows
    Returns answers in the order of `prompts`.
    Errors: BadInput for a prompt that is empty, holds unknown ids or fills the context, and for settings out of range.
    """
    check_sampling(temperature, top_p)
    if batch_size < 1:
        raise BadInput(f"batch_size is {batch_size}", where="batch_size", fix="use 1 or more")
    rooms = [_room(model, prompt, max_new_tokens, f"prompt {row + 1} of {len(prompts)}") for row, prompt in enumerate(prompts)]

    ids: list[list[int]] = [[] for _ in prompts]
    stopped = [False] * len(prompts)
    n_answered = 0
    longest_first = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))  # memory runs out at once or never
    for start in range(0, len(prompts), batch_size):
        rows = longest_first[start : start + batch_size]
        steps = _decode(model, [prompts[row] for row in rows], [rooms[row] for row in rows], [row_generator(seed, row) for row in rows],
                        stop_ids, pad_id, temperature, top_p)  # fmt: skip
        for tokens, n_writing in steps:
            for member, token in tokens:
                if token in stop_ids:
                    stopped[rows[member]] = True
                else:
                    ids[rows[member]].append(token)
            if on_progress is not None and start + len(rows) - n_writing > n_answered:
                n_answered = start + len(rows) - n_writing
                on_progress(n_answered)
    return [Generated(*answer) for answer in zip(ids, stopped, strict=True)]


def stream(
    model: "PreTrainedModel",
    prompt: list[int],
    *,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[int]:
    """The tokens that `generate` would give for this prompt alone, each as soon as it is known; ends before the stop token.

    Errors as `generate`, raised by the call itself and not at the first token.
    """
    check_sampling(temperature, top_p)
    room = _room(model, prompt, max_new_tokens, "the prompt")
    steps = _decode(model, [prompt], [room], [row_generator(seed, 0)], stop_ids, 0, temperature, top_p)
    return (token for tokens, _ in steps for _, token in tokens if token not in stop_ids)


def context_length(model: "PreTrainedModel") -> int | None:
    """Positions that the model was made for; None where it sets no limit (alibi)."""
    length = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(length) if length else None


def _room(model: "PreTrainedModel", prompt: list[int], max_new_tokens: int, where: str) -> int:
    """How many tokens this prompt's answer may have: `max_new_tokens`, or what is left of the context."""
    if max_new_tokens < 1:
        raise BadInput(f"max_new_tokens is {max_new_tokens}", where="max_new_tokens", fix="use 1 or more")
    if not prompt:
        raise BadInput("the prompt is empty", where=where, fix="give the model at least one token to continue from")
    vocabulary = model.get_input_embeddings().num_embeddings
    if not 0 <= min(prompt) <= max(prompt) < vocabulary:
        raise BadInput(
            f"the prompt holds ids from {min(prompt)} to {max(prompt)}; the model knows 0 to {vocabulary - 1}",
            where=where,
            fix="use the tokenizer that belongs to the model",
        )
    context = context_length(model)
    if context is None:
        return max_new_tokens
    if len(prompt) > context - 1:
        raise BadInput(
            f"the prompt has {len(prompt)} tokens and the model's context is {context}, which leaves no room for an answer",
            where=where,
            fix=f"shorten the prompt to {context - 1} tokens or fewer",
        )
    return min(max_new_tokens, context - len(prompt))


@torch.inference_mode()  # torch enters it anew for each step, so the caller's code between two steps is outside
def _decode(
    model: "PreTrainedModel",
    prompts: list[list[int]],
    rooms: list[int],
    generators: list[torch.Generator],
    stop_ids: frozenset[int],
    pad_id: int,
    temperature: float,
    top_p: float,
) -> Iterator[tuple[list[tuple[int, int]], int]]:
    """One batch, a step at a time: the (row, new token) pairs of the rows still writing, and how many will go on."""
    if model.training:
        raise ValueError("generation needs model.eval(): dropout would change the answers")
    rows = list(range(len(prompts)))  # rows[b] is the prompt that batch row b continues
    writing = [True] * len(prompts)
    n_made = 0

    def choose(logits_BV: Tensor) -> Tensor:
        return sample(logits_BV, temperature, top_p, [generators[row] for row in rows])

    batch = decoding(model, prompts, rooms) or _Padded(model, prompts, pad_id)
    greedy = temperature == 0
    next_B = batch.first(choose, greedy)
    while True:
        n_made += 1
        tokens = []
        for row, token in zip(rows, next_B.tolist(), strict=True):
            if writing[row]:
                tokens.append((row, token))
                writing[row] = token not in stop_ids and n_made < rooms[row]
        n_writing = sum(writing)
        yield tokens, n_writing
        if n_writing == 0:
            return

        if n_writing < len(rows) and n_writing <= batch.leaving_share * len(rows):
            kept = [b for b, row in enumerate(rows) if writing[row]]
            rows, next_B = [rows[b] for b in kept], next_B[kept]
            batch.keep(kept)
        newest = max(len(prompts[row]) + n_made - 1 for row in rows if writing[row])
        next_B = batch.next(next_B, newest, choose, greedy)


class _Padded:
    """Rows of any transformers model, padded on the left; the cache is transformers' own."""

    leaving_share = 0.75  # rows leave the cache when this share or less still writes; leaving copies the cache once

    def __init__(self, model: "PreTrainedModel", prompts: list[list[int]], pad_id: int) -> None:
        from transformers import DynamicCache

        self.model, self.cache = model, DynamicCache(config=model.config)
        self.takes = inspect.signature(model.forward).parameters
        self.ids_BT, self.attended_BT = _left_padded(prompts, pad_id, model.device)
        self.positions_BT = (self.attended_BT.cumsum(dim=-1) - 1).clamp(min=0)

    def first(self, choose: Callable[[Tensor], Tensor], greedy: bool) -> Tensor:
        inputs: dict[str, Any] = {
            "input_ids": self.ids_BT, "attention_mask": self.attended_BT, "past_key_values": self.cache, "use_cache": True,
        }  # fmt: skip
        if "position_ids" in self.takes:  # models with alibi have none and read the attention mask instead
            inputs["position_ids"] = self.positions_BT
        if "logits_to_keep" in self.takes:
            inputs["logits_to_keep"] = 1
        return choose(self.model(**inputs).logits[:, -1])

    def next(self, next_B: Tensor, newest: int, choose: Callable[[Tensor], Tensor], greedy: bool) -> Tensor:
        self.ids_BT = next_B[:, None]
        # finished rows that stay may be past the end of a learned position table: hold them at a valid position
        self.positions_BT = (self.positions_BT[:, -1:] + 1).clamp(max=newest)
        self.attended_BT = torch.cat([self.attended_BT, self.attended_BT.new_ones(len(next_B), 1)], dim=-1)
        return self.first(choose, greedy)

    def keep(self, kept: list[int]) -> None:
        kept_B = torch.tensor(kept, device=self.model.device)
        self.cache.reorder_cache(kept_B)
        self.attended_BT, self.positions_BT = self.attended_BT[kept_B], self.positions_BT[kept_B]


def _left_padded(prompts: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and, of the same shape, 1 where a prompt stands and 0 on the padding before it."""
    longest = max(map(len, prompts))
    ids = [[pad_id] * (longest - len(prompt)) + prompt for prompt in prompts]
    attended = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(attended, device=device)
