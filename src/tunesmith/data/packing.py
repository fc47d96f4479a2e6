"""Whole examples side by side in one row, so that no computation goes to padding.

    for row in pack(examples, budget=8192): …     # every example in exactly one row
    #  ids        [a a a a | b b b | c c]
    #  positions  [0 1 2 3 | 0 1 2 | 0 1]     restart with each document
    #  document   [0 0 0 0 | 1 1 1 | 2 2]     attention never crosses from one to another (model/attention.py)

Best-fit decreasing: the longest example first, each into the fullest row that still has room for it; never more than 11/9 of the least
possible number of rows, plus one (Johnson et al. 1974, doi 10.1137/0203025). An example longer than the budget gets a row of its own:
nothing waits for room that never comes.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.data.template import Example


@dataclass(frozen=True)
class Row:
    """Documents side by side; ids, trained, positions and document all have one entry per token."""

    ids: np.ndarray
    trained: np.ndarray
    positions: np.ndarray
    document: np.ndarray
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)


def row_of(examples: Sequence[Example]) -> Row:
    """The examples in their order as one row."""
    lengths = [len(example) for example in examples]
    return Row(
        ids=np.concatenate([example.ids for example in examples]),
        trained=np.concatenate([example.trained for example in examples]),
        positions=np.concatenate([np.arange(n, dtype=np.int64) for n in lengths]),
        document=np.repeat(np.arange(len(lengths), dtype=np.int64), lengths),
        sources=tuple(example.source for example in examples),
    )


def pack(examples: Sequence[Example], budget: int) -> Iterator[Row]:
    """Rows of at most `budget` tokens (one long example may exceed it alone); the same examples in the same order give the same rows."""
    for members in best_fit([len(example) for example in examples], budget):
        yield row_of([examples[i] for i in members])


def best_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of `lengths` by row: best-fit decreasing in O(n log n)."""
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (tokens of room, row), the fullest first
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(open_rows, (lengths[i], -1))
        if at < len(open_rows):
            room, row = open_rows.pop(at)
            rows[row].append(i)
        else:
            room, row = budget, len(rows)
            rows.append([i])
        if room > lengths[i]:
            insort(open_rows, (room - lengths[i], row))
    return rows
