"""Whole examples side by side in one row, so that no computation goes to padding; what several begin with stands there once.

    for row in pack(examples, budget=8192): …     # every example in exactly one row
    #  ids        [a a a a | b b b | c c]
    #  positions  [0 1 2 3 | 0 1 2 | 0 1]     restart with each document
    #  document   [0 0 0 0 | 1 1 1 | 2 2]     attention never crosses from one to another (model/attention.py)

    for row in pack(examples, budget=8192, sharing=True): …
    #  ids        [s s s | s a a | s b | c c]     two examples that begin with s s s s
    #  positions  [0 1 2 | 3 4 5 | 3 4 | 0 1]     a branch goes on counting where what it continues ends
    #  parent     [ -1   |   0   |  0  | -1 ]     its tokens see all of that document, then their own
    #  trained    [0 0 0 | 0 1 1 | 0 1 | 0 1]     the last token that they share stands in each: there each one's first answer is predicted

Rows are filled best-fit decreasing: the longest item first, each into the fullest row that still has room for it; never more than 11/9 of
the least possible number of rows, plus one (Johnson et al. 1974, doi 10.1137/0203025). An example longer than the budget gets a row of its
own: nothing waits for room that never comes.

An item is an example, or a family of examples that begin alike. Nothing that is shared may be learned, as a label would then be predicted
once and not once for each. Families are runs of the examples in the order of their ids, cut so that most tokens are saved; a shared
document costs attention a task of its own, so it has to save more than FAMILY_COST tokens.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from tunesmith.data.template import Example

FAMILY_COST = 16  # tokens whose computation costs about as much as one more document
MOST_ALIKE = 1024  # examples among which families are looked for at once: the work grows with the square


@dataclass(frozen=True)
class Row:
    """Documents side by side; ids, trained, positions and document have one entry per token, parent one per document, sources one per example.

    parent   the earlier document that each continues, -1: none
    """

    ids: np.ndarray
    trained: np.ndarray
    positions: np.ndarray
    document: np.ndarray
    parent: np.ndarray
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)


def row_of(examples: Sequence[Example]) -> Row:
    """The examples in their order as one row; neighbours with the same shared beginning become branches of it."""
    parts: list[
        tuple[Example, int, int, int]
    ] = []  # of each document: an example, its first token in it, the one behind its last, its parent
    for family in families_of(examples):
        shared, parent = family[0].shared if len(family) > 1 else 0, -1
        if shared:
            parent = len(parts)
            parts.append((family[0], 0, shared, -1))
        parts += [(example, shared, len(example), parent) for example in family]
    return Row(
        ids=np.concatenate([example.ids[start:end] for example, start, end, _ in parts]),
        trained=np.concatenate([example.trained[start:end] for example, start, end, _ in parts]),
        positions=np.concatenate([np.arange(start, end, dtype=np.int64) for _, start, end, _ in parts]),
        document=np.repeat(np.arange(len(parts), dtype=np.int64), [end - start for _, start, end, _ in parts]),
        parent=np.array([parent for *_, parent in parts], dtype=np.int64),
        sources=tuple(example.source for example in examples),
    )


# --- what examples have in common -----------------------------------------------------------------------------------------


def families_of(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    """The examples in their order, neighbours that say that they share the same beginning together."""
    start = 0
    for i in range(1, len(examples) + 1):
        first = examples[start]
        if i == len(examples) or not first.shared or not _same_beginning(first, examples[i]):
            yield examples[start:i]
            start = i


def _same_beginning(one: Example, other: Example) -> bool:
    return one.shared == other.shared and np.array_equal(one.ids[: one.shared], other.ids[: one.shared])


def computed_tokens(examples: Sequence[Example]) -> int:
    """Tokens of `row_of(examples)`."""
    saved = sum((len(family) - 1) * family[0].shared for family in families_of(examples))
    return sum(map(len, examples)) - saved


def alike(examples: Sequence[Example]) -> list[list[Example]]:
    """Families, whose members have `shared` set and the longest comes first, and single examples: those that save most, in the order of ids."""
    keys = [_may_be_shared(example) for example in examples]
    order = sorted(range(len(examples)), key=lambda i: (keys[i].astype(">i4").tobytes(), i))
    families: list[list[Example]] = []
    for at in range(0, len(order), MOST_ALIKE):
        some = order[at : at + MOST_ALIKE]
        common = [_common(keys[i], keys[j]) for i, j in pairwise(some)]
        for start, end, shared in _cut_to_save_most(common):
            members = [_sharing(examples[i], shared) for i in some[start:end]]
            families.append(sorted(members, key=len, reverse=True))
    return families


def _sharing(example: Example, shared: int) -> Example:
    return example if example.shared == shared else replace(example, shared=shared)


def _may_be_shared(example: Example) -> np.ndarray:
    """Its ids before the first that is learned. The last of them stands in each branch, so one token less is shared at most."""
    learned = np.flatnonzero(example.trained[1:])
    return example.ids[: learned[0] + 1] if len(learned) else example.ids


def _common(one: np.ndarray, other: np.ndarray) -> int:
    n = min(len(one), len(other))
    differ = np.flatnonzero(one[:n] != other[:n])
    return int(differ[0]) if len(differ) else n


def _cut_to_save_most(common: Sequence[int]) -> list[tuple[int, int, int]]:
    """(first, behind the last, tokens shared) of the families of examples in a row, of which neighbours i, i + 1 have `common[i]` tokens in common.

    best[j]: what the first j examples save at most; the last family is then i … j - 1, for the best i.
    """
    n = len(common) + 1
    best, begin, shares = np.zeros(n + 1, dtype=np.int64), np.arange(-1, n), np.zeros(n + 1, dtype=np.int64)
    least = np.empty(n, dtype=np.int64)  # tokens that the examples i … j - 1 have in common but for the last
    for j in range(1, n + 1):
        if j > 1:
            least[j - 2] = max(0, common[j - 2] - 1)
            np.minimum(least[: j - 1], least[j - 2], out=least[: j - 1])
        best[j] = best[j - 1]
        if j > 1:
            saves = best[: j - 1] + least[: j - 1] * np.arange(j - 1, 0, -1) - FAMILY_COST
            i = int(saves.argmax())
            if saves[i] > best[j]:
                best[j], begin[j], shares[j] = saves[i], i, least[i]
    cuts: list[tuple[int, int, int]] = []
    j = n
    while j:
        cuts.append((int(begin[j]), j, int(shares[j])))
        j = int(begin[j])
    return cuts[::-1]


# --- rows of a budget -----------------------------------------------------------------------------------------------------


def pack(examples: Sequence[Example], budget: int, sharing: bool = False) -> Iterator[Row]:
    """Rows of at most `budget` tokens (one long example may exceed it alone); the same examples in the same order give the same rows."""
    for members in fill(examples, budget, sharing):
        yield row_of(members)


def fill(examples: Sequence[Example], budget: int, sharing: bool = False) -> list[list[Example]]:
    """The examples of each row, in their order there."""
    items = [[example] for example in examples]
    if sharing:
        items = [part for family in alike(examples) for part in _parts(family, budget)]
    return [[example for i in members for example in items[i]] for members in best_fit([computed_tokens(item) for item in items], budget)]


def _parts(family: Sequence[Example], budget: int) -> Iterator[list[Example]]:
    """A family in pieces that fit into rows; a piece of one shares nothing."""
    part: list[Example] = []
    n_tokens = 0
    for example in family:
        more = len(example) - example.shared if part else len(example)
        if part and n_tokens + more > budget:
            yield part
            part, n_tokens, more = [], 0, len(example)
        part.append(example)
        n_tokens += more
    yield part


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
