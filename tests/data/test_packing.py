"""Every example in exactly one row, whatever its length; positions and labels know where a document ends."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.batches import collate, collate_row
from tunesmith.data.packing import best_fit, pack, row_of
from tunesmith.data.template import Example

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=80)


def example(ids: list[int], trained: list[int], source: str = "f:1") -> Example:
    return Example(np.array(ids, dtype=np.int32), np.array(trained, dtype=bool), source)


def of_lengths(lengths: list[int]) -> list[Example]:
    return [example(list(range(100 * i, 100 * i + n)), [0] + [1] * (n - 1), f"f:{i}") for i, n in enumerate(lengths)]


def test_a_row_is_its_documents_side_by_side_with_positions_that_restart():
    row = row_of(
        [example([11, 12, 13, 14], [0, 0, 1, 1], "f:1"), example([21, 22], [0, 1], "f:2"), example([31, 32, 33], [0, 1, 0], "f:3")]
    )
    assert row.ids.tolist() == [11, 12, 13, 14, 21, 22, 31, 32, 33]
    assert row.trained.tolist() == [0, 0, 1, 1, 0, 1, 0, 1, 0]
    assert row.positions.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2]
    assert row.document.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    assert row.sources == ("f:1", "f:2", "f:3")


def test_the_label_of_a_documents_last_token_is_never_the_next_documents_first():
    #  ids        11   12   13 | 21   22   23 | pad  pad
    #  trained     1    1    1 |  1    0    1 |          first tokens too: nobody's next token in a row of its own
    row = row_of([example([11, 12, 13], [1, 1, 1]), example([21, 22, 23], [1, 0, 1])])
    batch = collate_row(row, 8)
    assert batch.labels_BT.tolist() == [[12, 13, -100, -100, 23, -100, -100, -100]]
    assert batch.n_trained == 3
    assert batch.ids_BT.tolist() == [[11, 12, 13, 21, 22, 23, 0, 0]]
    assert batch.positions_BT is not None and batch.positions_BT.tolist() == [[0, 1, 2, 0, 1, 2, 0, 1]]
    assert batch.document_BT is not None and batch.document_BT.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2]]  # padding: a document of its own


@given(LENGTHS, st.integers(1, 70))
def test_every_example_is_in_exactly_one_row_and_no_row_is_fuller_than_its_budget(lengths: list[int], budget: int):
    rows = list(pack(of_lengths(lengths), budget))
    assert Counter(source for row in rows for source in row.sources) == Counter(f"f:{i}" for i in range(len(lengths)))
    assert all(len(row) <= budget or len(row.sources) == 1 for row in rows)
    assert sum(len(row) for row in rows) == sum(lengths)


@given(LENGTHS)
def test_packed_rows_have_the_labels_of_their_examples_one_by_one(lengths: list[int]):
    examples = {e.source: e for e in of_lengths(lengths)}
    for row in pack(list(examples.values()), 64):
        alone = [collate([examples[source]]) for source in row.sources]
        packed = collate_row(row)
        assert packed.labels_BT[0].tolist() == [label for batch in alone for label in batch.labels_BT[0].tolist()]
        assert packed.n_trained == sum(batch.n_trained for batch in alone)


@given(LENGTHS, st.integers(60, 200))
@settings(max_examples=50)
def test_rows_are_few_and_repeatable(lengths: list[int], budget: int):
    rows = best_fit(lengths, budget)
    least = -(-sum(lengths) // budget)
    assert len(rows) <= max(1, 2 * least)  # any two rows together hold more than one budget
    assert rows == best_fit(lengths, budget)


def test_the_best_fit_is_the_fullest_row_that_still_has_room():
    #  budget 10:  8 | 6 3 | 5        3 goes beside 6, where it leaves 1, not beside 5, where it would leave 2
    assert best_fit([5, 8, 3, 6], 10) == [[1], [3, 2], [0]]


@pytest.mark.parametrize("budget", [1, 16, 100])
def test_examples_longer_than_a_row_get_rows_of_their_own_and_hold_nobody_up(budget: int):
    """The known bug of other packers: rows longer than their buffer clog it, and the run trains on nothing."""
    rows = best_fit([500, 3, 700, 4, 500], budget)
    assert [row for row in rows if row[0] in (0, 2, 4)] == [[2], [0], [4]]
    assert sorted(i for row in rows for i in row) == [0, 1, 2, 3, 4]


def test_a_hundred_thousand_examples_are_packed_in_a_moment():
    lengths = np.random.default_rng(0).integers(1, 500, 100_000).tolist()
    rows = best_fit(lengths, 4096)
    assert len(rows) * 4096 < 1.01 * sum(lengths)
