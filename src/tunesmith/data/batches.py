"""Examples of the right length, in a seeded order, as batches of tensors.

    kept = fit(examples, max_length=512, on_too_long="error")
    rows = StepRows(kept.examples, batch_size=16, seed=0, micro_batch_tokens=8192)
    for batch in rows.micro_batches(step): ...

The order depends on (seed, step) alone: resuming needs no saved position, and any number of processes or micro-batches
sees the same examples in the same step.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.data.packing import Row, computed_tokens, fill, row_of
from tunesmith.data.stored import StoredExamples
from tunesmith.data.template import Example
from tunesmith.errors import BadInput
from tunesmith.hardware import sent

LENGTH_STEP = 32  # tokens; rows are padded to a multiple of it
IGNORED = -100  # the label that no loss counts
LENGTHS_SEEN = 2_000_000  # in the search for the largest micro-batch: a moment; later epochs mix the same lengths again


@dataclass(frozen=True)
class Batch:
    """ids_BT int64; labels_BT int64: the token *after* position t if it is trained, else -100; n_trained counts the others.

    positions_BT, document_BT   of a packed row (B = 1): positions restart with each document; None where each row is one example.
                                document_BT stays on the CPU, where the layout of attention is made from it
    parent_S                    of each document the one that it continues (data/packing.py), -1: none; None: no document continues another
    at_N                        int64: where labels are, in the flattened batch; noted on the way to a GPU, of which it would have to be asked
    """

    ids_BT: Tensor
    labels_BT: Tensor
    n_trained: int
    sources: tuple[str, ...]
    positions_BT: Tensor | None = None
    document_BT: Tensor | None = None
    parent_S: Tensor | None = None
    at_N: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        positions_BT = sent(self.positions_BT, device) if self.positions_BT is not None else None
        at_N = self.at_N if self.at_N is not None else labels_at(self.labels_BT)
        return replace(
            self,
            ids_BT=sent(self.ids_BT, device),
            labels_BT=sent(self.labels_BT, device),
            positions_BT=positions_BT,
            at_N=sent(at_N, device),
        )


def labels_at(labels_BT: Tensor) -> Tensor:
    return torch.nonzero(labels_BT.flatten() != IGNORED)[:, 0]


@dataclass(frozen=True)
class Fitted:
    """Examples that may be trained on, and the sources of those that were dropped or truncated for their length."""

    examples: list[Example]
    dropped: list[str]
    truncated: list[str]


def fit(examples: Sequence[Example], max_length: int, on_too_long: str) -> Fitted:
    """Apply the policy for long examples; an example with nothing to learn is refused whatever the policy.

    on_too_long   "error": refuse the first; "drop": leave out; "truncate": cut the end off
    """
    fitted = Fitted([], [], [])
    fitted.examples.extend(fitting(examples, max_length, on_too_long, fitted.dropped.append, fitted.truncated.append))
    return fitted


def fitting(
    examples: Iterable[Example],
    max_length: int,
    on_too_long: str,
    dropped: Callable[[str], None],
    truncated: Callable[[str], None],
) -> Iterator[Example]:
    """`fit` for examples that come one by one; `dropped` and `truncated` are told the sources.

    Where a long one is refused, the rest is only counted, so that the error can say the length that would do.
    """
    too_long: Example | None = None
    n_long = n_all = longest = 0
    for example in examples:
        n_all, longest = n_all + 1, max(longest, len(example))
        is_long = len(example) > max_length
        n_long += is_long
        if is_long and on_too_long == "error":
            too_long = too_long or example
        if too_long is not None:
            continue
        if is_long and on_too_long == "drop":
            dropped(example.source)
            continue
        if is_long:
            truncated(example.source)
            if not example.trained[1:max_length].any():
                raise BadInput(
                    "no token of this example would be trained",
                    where=f"{example.source}: the prompt is longer than the {max_length} tokens that examples are cut at",
                    fix='a higher training.max_length, or data.on_too_long: "drop"',
                )
            example = Example(example.ids[:max_length], example.trained[:max_length], example.source)
        if not example.trained[1:].any():
            raise BadInput("no token of this example would be trained", where=example.source, fix="it has no answer with weight 1")
        yield example
    if too_long is not None:
        raise BadInput(
            f"{n_long:,} of {n_all:,} examples are longer than training.max_length = {max_length}; the longest has {longest:,} tokens",
            where=f"{too_long.source}: {len(too_long):,} tokens",
            fix=f'training.max_length: {longest}, or data.on_too_long: "drop" or "truncate"',
        )


def windows(example: Example, max_length: int) -> list[Example]:
    """A long text in pieces of at most `max_length` tokens; neighbours share one token, so that every token but the first is a label once."""
    if len(example) <= max_length:
        return [example]
    starts = range(0, len(example) - 1, max_length - 1)
    return [Example(example.ids[s : s + max_length], example.trained[s : s + max_length], example.source) for s in starts]


def next_token_labels(ids: npt.ArrayLike, trained: npt.ArrayLike, length: int) -> npt.NDArray[np.int64]:
    """labels[t] = ids[t + 1] where that token is trained, else -100; padded to `length` with -100."""
    following = np.asarray(ids)[1:]
    labels = np.full(length, IGNORED, dtype=np.int64)
    labels[: len(following)] = np.where(np.asarray(trained, dtype=bool)[1:], following, IGNORED)
    return labels


def collate(examples: Sequence[Example], length: int | None = None) -> Batch:
    """Pad on the right, to the longest or to `length`. Padding is known by length, never by a token id: no label points there."""
    length = length or max(len(example) for example in examples)
    ids_BT = np.zeros((len(examples), length), dtype=np.int64)
    labels_BT = np.full((len(examples), length), IGNORED, dtype=np.int64)
    for row, example in enumerate(examples):
        n = len(example)
        ids_BT[row, :n] = example.ids
        labels_BT[row] = next_token_labels(example.ids, example.trained, length)
    n_trained = int((labels_BT != IGNORED).sum())
    return Batch(torch.from_numpy(ids_BT), torch.from_numpy(labels_BT), n_trained, tuple(example.source for example in examples))


def collate_row(row: Row, length: int | None = None) -> Batch:
    """A packed row as a batch of one; padding up to `length` is one more document, of which nothing is trained."""
    n, length = len(row), length or len(row)
    ids_T = np.zeros(length, dtype=np.int64)
    ids_T[:n] = row.ids
    # the token after a document's last one is another document's first, whatever is trained
    begins = np.diff(row.document, prepend=-1) > 0
    labels_T = next_token_labels(row.ids, row.trained & ~begins, length)
    positions_T = np.concatenate([row.positions, np.arange(length - n)])
    document_T = np.concatenate([row.document, np.full(length - n, row.document[-1] + 1)])
    ids_BT, labels_BT, positions_BT, document_BT = (torch.from_numpy(x_T)[None] for x_T in (ids_T, labels_T, positions_T, document_T))
    parents = [*row.parent.tolist(), *[-1] * (length > n)]
    parent_S = torch.tensor(parents) if max(parents) >= 0 else None
    return Batch(ids_BT, labels_BT, int((labels_T != IGNORED).sum()), row.sources, positions_BT, document_BT, parent_S)


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


def grouped(
    examples: Sequence[Example], micro_batch_tokens: int, micro_batch_size: int | None = None, packing: bool = False, sharing: bool = False
) -> list[list[Example]]:  # fmt: skip
    """The examples of each micro-batch: padded ones, the longest first (`cut`), or side by side in rows (data/packing.py).

    sharing   what examples of a row begin with is computed once
    """
    return fill(examples, micro_batch_tokens, sharing) if packing else cut(examples, micro_batch_tokens, micro_batch_size)


def tokens_of(group: Sequence[Example], packing: bool) -> int:
    """What is computed of a micro-batch, before its rows are rounded up."""
    return computed_tokens(group) if packing else len(group) * max(map(len, group))


@dataclass(frozen=True)
class StepRows:
    """The examples of every optimizer step, by step number.

    batch_size     examples of a step
    batch_tokens   instead: a step takes the next examples of the order while they are together no more tokens than this (at least one)
    packing        cut a step into rows of documents side by side instead of padded rows: the same examples, the same sums
    sharing        with packing: what examples of a row begin with is computed once, for a model that was tried (model/attention.py)
    """

    examples: Sequence[Example]
    batch_size: int
    seed: int
    micro_batch_tokens: int = 8192
    micro_batch_size: int | None = None
    packing: bool = False
    batch_tokens: int | None = None
    sharing: bool = False

    def steps_of_epoch(self, epoch: int) -> int:
        """With `batch_tokens` an epoch may have a step more or less than another, as its order differs."""
        if self.batch_tokens is None:
            return math.ceil(len(self.examples) / self.batch_size)
        if epoch not in self._n_steps:
            self._n_steps[epoch] = len(self._epoch(epoch)[1])
        return self._n_steps[epoch]

    def steps_of(self, epochs: float) -> int:
        """Optimizer steps of this many epochs, at least one."""
        if self.batch_tokens is None:
            return max(1, math.ceil(epochs * self.steps_of_epoch(0)))
        whole = int(epochs)
        part = math.ceil((epochs - whole) * self.steps_of_epoch(whole)) if epochs > whole else 0
        return max(1, sum(self.steps_of_epoch(epoch) for epoch in range(whole)) + part)

    def of_step(self, step: int) -> list[Example]:
        """Every example once per epoch; the last step of an epoch takes what is left."""
        epoch, within = 0, step
        if self.batch_tokens is None:
            epoch, within = divmod(step, self.steps_of_epoch(0))
        while within >= self.steps_of_epoch(epoch):
            epoch, within = epoch + 1, within - self.steps_of_epoch(epoch)
        order, starts = self._epoch(epoch)
        begin, end, *_ = [*starts[within : within + 2], len(order)]
        return [self.examples[i] for i in order[begin:end]]

    def groups(self, step: int, rank: int = 0, world: int = 1) -> list[list[Example]]:
        """This process's share of the step, cut to fit memory; empty if the step has fewer examples than processes."""
        return grouped(self.of_step(step)[rank::world], self.micro_batch_tokens, self.micro_batch_size, self.packing, self.sharing)

    def collated(self, group: Sequence[Example]) -> Batch:
        """A micro-batch as tensors."""
        return collated(group, self.packing, self._longest_of_all)

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> list[Batch]:
        """`groups` as tensors."""
        return [self.collated(group) for group in self.groups(step, rank, world)]

    def largest_steps(self, steps: range, world: int, n_examples: int) -> list[int]:
        """Those of `steps` whose lengths allow the largest micro-batches, as many as have about `n_examples` examples; in their order.

        No example is opened for it, so what a row's examples may share is not known: then their lengths are a bound that all steps are below
        by about as much. Of equal ones those with the longest example come first; of very many epochs the first are seen.
        """
        begin = epoch = n_seen = 0
        found: list[np.ndarray] = []
        while begin < steps.stop and n_seen < LENGTHS_SEEN:
            n_steps = self.steps_of_epoch(epoch)
            if begin + n_steps > steps.start:
                order, starts = self._epoch(epoch)
                lengths, n_of_step = self._lengths[order], np.diff([*starts, len(order)])
                longest, total = (how.reduceat(lengths, np.asarray(starts)) for how in (np.maximum, np.add))
                most = total if self.packing else -(-n_of_step // world) * longest
                bound = np.maximum(longest, np.minimum(most, self.micro_batch_tokens))
                step = np.arange(begin, begin + n_steps)
                found.append(np.stack([bound, longest, n_of_step, step])[:, (step >= steps.start) & (step < steps.stop)])
                n_seen += len(order)
            begin, epoch = begin + n_steps, epoch + 1
        bound, longest, n_of_step, step = np.concatenate(found, axis=1)
        ranked = np.lexsort((step, -longest, -bound))
        n_enough = int(np.searchsorted(np.cumsum(n_of_step[ranked]), n_examples)) + 1
        return sorted(step[ranked[:n_enough]].tolist())

    def _epoch(self, epoch: int) -> tuple[np.ndarray, Sequence[int]]:
        """Its order, and where each of its steps begins in it; the last one asked for is kept."""
        if epoch not in self._kept:
            self._kept.clear()
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.examples))
            self._kept[epoch] = (order, self._starts(order))
        return self._kept[epoch]

    def _starts(self, order: np.ndarray) -> Sequence[int]:
        if self.batch_tokens is None:
            return range(0, len(order), self.batch_size)
        ends = np.cumsum(self._lengths[order])
        starts = [0]
        while True:
            before = int(ends[starts[-1] - 1]) if starts[-1] else 0
            after = max(starts[-1] + 1, int(np.searchsorted(ends, before + self.batch_tokens, side="right")))
            if after >= len(order):
                return starts
            starts.append(after)

    @cached_property
    def _kept(self) -> dict[int, tuple[np.ndarray, Sequence[int]]]:
        return {}

    @cached_property
    def _n_steps(self) -> dict[int, int]:
        return {}

    @cached_property
    def _lengths(self) -> np.ndarray:
        return lengths_of(self.examples)

    @cached_property
    def _longest_of_all(self) -> int:
        return int(self._lengths.max())


def lengths_of(examples: Sequence[Example]) -> np.ndarray:
    """Tokens of each example, int64; those on disk need not be opened for it."""
    if isinstance(examples, StoredExamples):
        return examples.lengths
    return np.array([len(example) for example in examples], dtype=np.int64)


def padding_share(rows: StepRows, steps: Iterable[int]) -> float:
    """Share of what is computed in these steps that is no token of an example."""
    n_computed = n_tokens = 0
    for step in steps:
        for group in rows.groups(step):
            n_computed += rows.collated(group).ids_BT.numel()
            n_tokens += computed_tokens(group)
    return 1 - n_tokens / n_computed


def shared_share(rows: StepRows, steps: Iterable[int]) -> float:
    """Share of the tokens of these steps that need not be computed where examples of a row share their beginnings."""
    n_computed = n_tokens = 0
    for step in steps:
        n_computed += sum(map(computed_tokens, replace(rows, packing=True, sharing=True).groups(step)))
        n_tokens += sum(len(example) for example in rows.of_step(step))
    return 1 - n_computed / n_tokens


def collated(group: Sequence[Example], packing: bool, longest: int) -> Batch:
    """A micro-batch as tensors, its longest example first, padded to a multiple of LENGTH_STEP; padded rows are no longer than `longest`.

    Every new shape costs the CPU's matrix library a compilation, and memory that it keeps.
    """
    if packing:
        row = row_of(group)
        return collate_row(row, _round_up(len(row)))
    return collate(group, min(_round_up(len(group[0])), longest))


def _round_up(length: int) -> int:
    return -(-length // LENGTH_STEP) * LENGTH_STEP
