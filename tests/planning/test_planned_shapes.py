"""The sizes of a run's micro-batches."""

import numpy as np
import pytest

from tunesmith.config import validate
from tunesmith.data.batches import StepRows
from tunesmith.data.template import Example
from tunesmith.planning.shapes import Size, assumed, example_of, fullest, of_rows, of_validation, rows_of


def examples(lengths, n_trained=3):
    made = []
    for n in lengths:
        trained = np.zeros(n, dtype=bool)
        trained[-n_trained:] = True
        made.append(Example(np.ones(n, dtype=np.int32), trained, "rows"))
    return made


def run_of(**training):
    return validate({"model": "acorn", "data": {"train": "rows.jsonl"}, "training": training}, "the test")[0]


@pytest.mark.parametrize("packing", [False, True])
def test_sizes_are_those_of_the_batches_that_the_loop_computes(packing):
    draw = np.random.default_rng(0)
    rows = StepRows(examples(draw.integers(10, 90, size=50)), batch_size=8, seed=0, micro_batch_tokens=256, packing=packing)
    found = of_rows(rows, n_steps=7)
    batches = [batch for step in range(7) for batch in rows.micro_batches(step)]
    assert [size.computed for size in found.sizes] == [batch.ids_BT.numel() for batch in batches]
    assert [size.scored for size in found.sizes] == [batch.n_trained for batch in batches]
    assert max(size.computed for size in found.largest) == max(batch.ids_BT.numel() for batch in batches)
    assert [size.later for size in found.sizes] == [n > 0 for step in range(7) for n in range(len(rows.micro_batches(step)))]


@pytest.mark.parametrize("packing", [False, True])
def test_an_example_of_a_size_has_its_tokens_and_its_scored_positions(packing):
    size = Size((40, 30, 7), computed=96 if packing else 120, packed=packing, scored=31, later=False)
    batch = example_of(size)
    assert batch.ids_BT.numel() == size.computed
    assert batch.n_trained == 31
    assert (batch.document_BT is not None) == packing


def test_without_rows_every_example_is_as_long_as_it_may_be():
    found = assumed(run_of(batch_size=10, micro_batch_tokens=2048), 512)
    assert [(len(size.lengths), size.computed, size.later) for size in found.sizes] == [(4, 2048, False), (4, 2048, True), (2, 1024, True)]
    assert found.sizes[0].scored == 4 * 511


def test_validation_is_cut_by_tokens_alone():
    run = run_of(micro_batch_size=1, micro_batch_tokens=256)
    [size] = of_validation(run, examples([50, 40, 60, 20]))
    assert size.lengths == (60, 50, 40, 20)
    assert size.computed == 4 * 60  # no longer than the longest


def test_validation_comes_in_micro_batches_the_largest_first():
    run = run_of(micro_batch_tokens=256)
    assert [(size.lengths, size.computed) for size in of_validation(run, examples([100, 40, 90, 20, 10]))] == [
        ((100, 90), 200),
        ((40, 20, 10), 192),
    ]


def test_only_sizes_that_no_other_exceeds_in_every_respect_are_tried():
    run = run_of()
    small, large = rows_of(2, 64, 1.0, run), rows_of(4, 64, 1.0, run)
    long_few = Size((512,), 512, False, 3, False)
    assert fullest([small, large, long_few, small]) == [long_few, large]
