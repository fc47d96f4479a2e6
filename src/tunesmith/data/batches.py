"""Examples of the right length, in a seeded order, as batches of tensors.

    kept = fit(examples, max_length=512, on_too_long="error")
    rows = StepRows(kept.examples, batch_size=16, seed=0, micro_batch_tokens=8192)
    for batch in rows.micro_batches(step): ...

The order depends on (seed, step) alone: resuming needs no saved position, and any number of processes or micro-batches
sees the same examples in the same step.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tunesmith.data.conversation import Conversation
from tunesmith.data.template import Example, Renderer
from tunesmith.errors import BadInput

LENGTH_STEP = 32  # tokens; rows are padded to a multiple of it
IGNORED = -100  # the label that no loss counts


@dataclass(frozen=True)
class Batch:
    """ids_BT int64; labels_BT int64: the token *after* position t if it is trained, else -100; n_trained counts the others."""

    ids_BT: Tensor
    labels_BT: Tensor
    n_trained: int
    sources: tuple[str, ...]

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.ids_BT.to(device, non_blocking=True), self.labels_BT.to(device, non_blocking=True), self.n_trained, self.sources)


@dataclass(frozen=True)
class Fitted:
    """Examples that may be trained on, and the sources of those that were dropped or truncated for their length."""

    examples: list[Example]
    dropped: list[str]
    truncated: list[str]


def render_all(
    conversations: Iterable[Conversation], renderer: Renderer, on_progress: Callable[[int], None] | None = None
) -> list[Example]:
    examples: list[Example] = []
    for n, conversation in enumerate(conversations, 1):
        examples += renderer.render(conversation)
        if on_progress is not None and n % 256 == 0:
            on_progress(n)
    return examples


def fit(examples: Sequence[Example], max_length: int, on_too_long: str) -> Fitted:
    """Apply the policy for long examples; an example with nothing to learn is refused whatever the policy.

    on_too_long   "error": refuse the first; "drop": leave out; "truncate": cut the end off
    """
    kept, dropped, truncated = [], [], []
    longest = max((len(example) for example in examples), default=0)
    for example in examples:
        if len(example) > max_length:
            if on_too_long == "error":
                n_long = sum(len(e) > max_length for e in examples)
                raise BadInput(
                    f"{n_long:,} of {len(examples):,} examples are longer than training.max_length = {max_length}; the longest has {longest:,} tokens",
                    where=f"{example.source}: {len(example):,} tokens",
                    fix=f'training.max_length: {longest}, or data.on_too_long: "drop" or "truncate"',
                )
            if on_too_long == "drop":
                dropped.append(example.source)
                continue
            truncated.append(example.source)
            if not example.trained[1:max_length].any():
                raise BadInput(
                    "no token of this example would be trained",
                    where=f"{example.source}: the prompt is longer than the {max_length} tokens that examples are cut at",
                    fix='a higher training.max_length, or data.on_too_long: "drop"',
                )
            example = Example(example.ids[:max_length], example.trained[:max_length], example.source)
        if not example.trained[1:].any():
            raise BadInput("no token of this example would be trained", where=example.source, fix="it has no answer with weight 1")
        kept.append(example)
    return Fitted(kept, dropped, truncated)


def windows(example: Example, max_length: int) -> list[Example]:
    """A long text in pieces of at most `max_length` tokens; neighbours share one token, so that every token but the first is a label once."""
    if len(example) <= max_length:
        return [example]
    starts = range(0, len(example) - 1, max_length - 1)
    return [Example(example.ids[s : s + max_length], example.trained[s : s + max_length], example.source) for s in starts]


def next_token_labels(ids: Sequence[int], trained: Sequence[bool] | Sequence[int], length: int) -> list[int]:
    """labels[t] = ids[t + 1] where that token is trained, else -100; padded to `length` with -100."""
    labels = [int(i) if t else IGNORED for i, t in zip(ids[1:], trained[1:], strict=True)]
    return labels + [IGNORED] * (length - len(labels))


def collate(examples: Sequence[Example], length: int | None = None) -> Batch:
    """Pad on the right, to the longest or to `length`. Padding is known by length, never by a token id: no label points there."""
    length = length or max(len(example) for example in examples)
    ids_BT = np.zeros((len(examples), length), dtype=np.int64)
    labels_BT = np.full((len(examples), length), IGNORED, dtype=np.int64)
    for row, example in enumerate(examples):
        n = len(example)
        ids_BT[row, :n] = example.ids
        labels_BT[row, : n - 1] = np.where(example.trained[1:], example.ids[1:], IGNORED)
    n_trained = int((labels_BT != IGNORED).sum())
    return Batch(torch.from_numpy(ids_BT), torch.from_numpy(labels_BT), n_trained, tuple(example.source for example in examples))


def cut(examples: Sequence[Example], micro_batch_tokens: int, micro_batch_size: int | None = None) -> list[list[Example]]:
    """Groups of similar length whose padded size is at most `micro_batch_tokens` (one long example may exceed it alone)."""
    groups: list[list[Example]] = []
    for example in sorted(examples, key=len, reverse=True):
        group = groups[-1] if groups else None
        full = group is None or (len(group) + 1) * len(group[0]) > micro_batch_tokens
        if full or (micro_batch_size is not None and group is not None and len(group) >= micro_batch_size):
            groups.append([example])
        elif group is not None:
            group.append(example)
    return groups


@dataclass(frozen=True)
class StepRows:
    """The examples of every optimizer step, by step number."""

    examples: Sequence[Example]
    batch_size: int
    seed: int
    micro_batch_tokens: int = 8192
    micro_batch_size: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.examples) / self.batch_size)

    def of_step(self, step: int) -> list[Example]:
        """Every example once per epoch; the last step of an epoch takes what is left."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.examples))
        picked = order[within * self.batch_size : (within + 1) * self.batch_size]
        return [self.examples[i] for i in picked]

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> list[Batch]:
        """This process's share of the step, cut to fit memory; empty if the step has fewer examples than processes."""
        share = self.of_step(step)[rank::world]
        groups = cut(share, self.micro_batch_tokens, self.micro_batch_size)
        return [collate(group, self._length(len(group[0]))) for group in groups]

    def _length(self, longest: int) -> int:
        """Rounded up, as every new shape costs the CPU's matrix library a compilation; never beyond the longest example of all."""
        return min(-(-longest // LENGTH_STEP) * LENGTH_STEP, self._longest_of_all)

    @cached_property
    def _longest_of_all(self) -> int:
        return max(len(example) for example in self.examples)
