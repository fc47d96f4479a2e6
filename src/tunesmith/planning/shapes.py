"""The micro-batches of a run, as sizes: from its rows where they are known, otherwise all as long as they may be.

batches = of_rows(step_rows, n_steps)        # a Size for each micro-batch of some steps
fullest(batches.sizes)                       # the few among which the one is that takes the most memory
batch = example_of(size)                     # tensors of that size, to rehearse with
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.config import Run
from tunesmith.data.batches import LENGTH_STEP, Batch, StepRows, collate, collate_row, grouped, lengths_of
from tunesmith.data.packing import computed_tokens, families_of, row_of
from tunesmith.data.template import Example
from tunesmith.training.memory import largest_micro_batches

MOST_STEPS = 200  # whose micro-batches are looked at, spread evenly over the first epoch, besides those with the largest ones
MOST_SIZES = 4  # that are rehearsed


@dataclass(frozen=True)
class Size:
    """Of a micro-batch.

    lengths   of its examples
    families  of a packed row: how many of them share a beginning, and its tokens; 1, 0: an example by itself
    computed  tokens, padding included
    scored    trained positions
    later     whether others of its step came before it, and left gradients
    """

    lengths: tuple[int, ...]
    computed: int
    packed: bool
    scored: int
    later: bool
    families: tuple[tuple[int, int], ...] = ()

    @property
    def pairs(self) -> int:
        """Of tokens that attention compares."""
        if not self.packed:
            return self.computed * (self.computed // len(self.lengths))
        beginnings = sum((n - 1) * shared * shared for n, shared in self.families)  # which the others of a family do not compare again
        return sum(length * length for length in self.lengths) - beginnings


@dataclass(frozen=True)
class Batches:
    """sizes: of the micro-batches of `n_seen` steps; largest: of all, those that are tried before the first step; longest: tokens of an example."""

    sizes: list[Size]
    n_seen: int
    n_steps: int
    largest: list[Size]
    longest: int


def of_rows(rows: StepRows, n_steps: int) -> Batches:
    per_epoch = min(n_steps, rows.steps_of_epoch(0))
    looked = sorted({int(i) for i in np.linspace(0, per_epoch - 1, min(per_epoch, MOST_STEPS))})
    longest = int(lengths_of(rows.examples).max())

    sizes = [_size(group, rows.packing, n > 0, longest) for step in looked for n, group in enumerate(rows.groups(step))]
    # training/memory.py tries these with gradients in place, which their own steps may not have yet
    tried, several = largest_micro_batches(rows, range(n_steps), 1)
    largest = [_size(group, rows.packing, several or n > 0, longest) for n, group in enumerate(tried)]
    return Batches(sizes, len(looked), n_steps, [*sizes, *largest], longest)


def assumed(run: Run, length: int) -> Batches:
    """Every example has `length` tokens, all trained."""
    training = run.training
    n_examples = training.batch_size if training.batch_tokens is None else max(1, training.batch_tokens // length)
    groups = grouped(
        [_example(length, length - 1)] * n_examples, training.micro_batch_tokens, training.micro_batch_size, training.packing is True
    )
    sizes = [_size(group, training.packing is True, n > 0, length) for n, group in enumerate(groups)]
    return Batches(sizes, 1, training.steps or 1, sizes, length)


def of_validation(run: Run, examples: Sequence[Example], sharing: bool = False) -> list[Size]:
    """The micro-batches of validation, the largest first."""
    training = run.training
    groups = grouped(examples, training.micro_batch_tokens, None, training.packing is True, sharing)
    longest = max(map(len, examples))
    sizes = [_size(group, training.packing is True, False, longest) for group in groups]
    return sorted(sizes, key=lambda size: (size.computed, size.pairs), reverse=True)


def rows_of(n: int, length: int, scored_share: float, run: Run) -> Size:
    """`n` examples of one length side by side, as a question about what would fit."""
    return _size([_example(length, max(1, round(scored_share * (length - 1))))] * n, run.training.packing is True, True, length)


def fullest(sizes: Sequence[Size]) -> list[Size]:
    """Those that no other equals or exceeds in every respect, of which one takes the most memory; the one with most tokens first."""
    found: list[Size] = []
    for size in sorted(set(sizes), key=lambda s: (s.computed, s.pairs, s.scored, s.later), reverse=True):
        if not any(
            s.computed >= size.computed and s.pairs >= size.pairs and s.scored >= size.scored and s.later >= size.later for s in found
        ):
            found.append(size)
    return found[:MOST_SIZES]


def example_of(size: Size) -> Batch:
    """Tensors of this size."""
    family = [(number, shared) for number, (n, shared) in enumerate(size.families) for _ in range(n)] or [(0, 0)] * len(size.lengths)
    most = [length - 1 - shared for length, (_, shared) in zip(size.lengths, family, strict=True)]  # what is shared is not learned
    shares, left = dict[int, int](), size.scored
    by_length = sorted(range(len(most)), key=lambda i: most[i])
    for n, i in enumerate(by_length):
        shares[i] = min(most[i], left // (len(by_length) - n))
        left -= shares[i]
    examples = [_example(length, shares[i], *family[i]) for i, length in enumerate(size.lengths)]
    return collate_row(row_of(examples), size.computed) if size.packed else collate(examples, size.computed // len(examples))


def _example(length: int, n_trained: int, family: int = 0, shared: int = 0) -> Example:
    """shared: tokens at its beginning that it has in common with its family."""
    trained = np.zeros(length, dtype=bool)
    trained[max(length - n_trained, shared + 1) :] = True
    return Example(np.full(length, family % 2, dtype=np.int32), trained, "", shared)


def _size(group: Sequence[Example], packed: bool, later: bool, longest: int) -> Size:
    """Padded as `collated` pads."""
    lengths = tuple(map(len, group))
    families: tuple[tuple[int, int], ...] = ()
    if packed:
        computed = -(-computed_tokens(group) // LENGTH_STEP) * LENGTH_STEP
        families = tuple((len(family), family[0].shared if len(family) > 1 else 0) for family in families_of(group))
    else:
        computed = min(-(-max(lengths) // LENGTH_STEP) * LENGTH_STEP, longest) * len(lengths)
    return Size(lengths, computed, packed, sum(int(example.trained[1:].sum()) for example in group), later, families)
