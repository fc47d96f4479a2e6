"""Labels, padding, lengths and order."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tunesmith.data.batches import StepRows, collate, cut, fit, next_token_labels, padding_share
from tunesmith.data.template import Example
from tunesmith.errors import BadInput

BOS, EOS = 1, 2


def example(ids: list[int], trained: list[int], source: str = "f:1") -> Example:
    return Example(np.array(ids, dtype=np.int32), np.array(trained, dtype=bool), source)


def of_length(n: int, n_prompt: int = 1, source: str = "f:1") -> Example:
    return example(list(range(10, 10 + n)), [0] * n_prompt + [1] * (n - n_prompt), source)


def test_labels_are_the_next_trained_token_and_padding_teaches_nothing():
    #  position   0    1    2    3    4   pad  pad
    ids = [BOS, 11, 12, 13, EOS]
    trained = [0, 0, 1, 1, 1]  # the answer starts at 12
    expected = [-100, 12, 13, EOS, -100, -100, -100]
    assert next_token_labels(ids, trained, length=7).tolist() == expected


def test_a_batch_is_padded_by_length_and_agrees_with_the_picture():
    one, two = example([BOS, 11, 12, EOS], [0, 0, 1, 1], "a:1"), example([BOS, EOS, EOS], [0, 1, 1], "a:2")
    batch = collate([one, two])
    assert batch.ids_BT.tolist() == [[BOS, 11, 12, EOS], [BOS, EOS, EOS, 0]]
    assert batch.labels_BT.tolist() == [[-100, 12, EOS, -100], [EOS, EOS, -100, -100]]
    assert batch.n_trained == 4  # 12 EOS, EOS EOS: a stop token counts whatever the padding is
    assert batch.sources == ("a:1", "a:2")


def test_every_example_comes_once_per_epoch_in_a_seeded_order():
    rows = StepRows([of_length(3, source=f"f:{i}") for i in range(23)], batch_size=5, seed=1)
    assert rows.steps_of_epoch(0) == 5

    def epoch(n: int, rows: StepRows = rows) -> list[str]:
        return [e.source for step in range(5 * n, 5 * n + 5) for e in rows.of_step(step)]

    assert Counter(epoch(0)) == Counter(epoch(1)) == Counter(f"f:{i}" for i in range(23))
    assert epoch(0) != epoch(1)
    assert epoch(0) == epoch(0, StepRows(rows.examples, 5, seed=1))
    assert epoch(0) != epoch(0, StepRows(rows.examples, 5, seed=2))


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_ranks_and_micro_batches_see_exactly_the_examples_of_the_step(world: int):
    rows = StepRows([of_length(3 + i % 9, source=f"f:{i}") for i in range(23)], batch_size=6, seed=0, micro_batch_tokens=20)
    for step in range(8):
        seen = [s for rank in range(world) for batch in rows.micro_batches(step, rank, world) for s in batch.sources]
        assert Counter(seen) == Counter(e.source for e in rows.of_step(step))


def test_micro_batches_keep_to_their_budget_of_padded_tokens():
    groups = cut([of_length(n) for n in (3, 9, 4, 8, 30, 2)], micro_batch_tokens=20)
    assert [[len(e) for e in group] for group in groups] == [[30], [9, 8], [4, 3, 2]]
    assert [len(group) for group in cut([of_length(4)] * 5, 1000, micro_batch_size=2)] == [2, 2, 1]


def test_a_long_example_is_refused_by_default_with_its_line_and_a_length_that_would_do():
    with pytest.raises(BadInput, match="1 of 2 examples are longer") as caught:
        fit([of_length(5), of_length(40, source="f:418")], max_length=16, on_too_long="error")
    assert caught.value.where == "f:418: 40 tokens"
    assert "training.max_length: 40" in caught.value.fix


def test_dropping_and_truncating_are_counted_by_source():
    rows = [of_length(5, source="f:1"), of_length(40, source="f:2")]
    dropped = fit(rows, 16, "drop")
    assert [len(e) for e in dropped.examples] == [5]
    assert dropped.dropped == ["f:2"]
    cut_off = fit(rows, 16, "truncate")
    assert [len(e) for e in cut_off.examples] == [5, 16]
    assert cut_off.truncated == ["f:2"]


@pytest.mark.parametrize("policy", ["error", "drop", "truncate"])
def test_an_example_with_nothing_to_learn_is_refused_whatever_the_policy(policy: str):
    with pytest.raises(BadInput, match="no token of this example would be trained"):
        fit([example([1, 2, 3], [0, 0, 0])], 16, policy)


def test_truncation_that_leaves_only_the_prompt_is_refused():
    with pytest.raises(BadInput, match="no token of this example would be trained") as caught:
        fit([of_length(300, n_prompt=270, source="train.jsonl:418")], 256, "truncate")
    assert caught.value.where == "train.jsonl:418: the prompt is longer than the 256 tokens that examples are cut at"


def test_rows_are_padded_to_a_round_length_but_never_beyond_the_longest_of_all():
    rows = StepRows([of_length(n) for n in (5, 33, 40)], batch_size=1, seed=0)
    found = {int(batch.ids_BT.shape[1]) for step in range(3) for batch in rows.micro_batches(step)}
    assert found == {32, 40}  # 5 → 32; 33 → 64, which would be beyond the longest, 40


# --- packed rows and batches by tokens --------------------------------------------------------------------------------------


def some(n: int = 23) -> list[Example]:
    return [of_length(3 + (7 * i) % 11, source=f"f:{i}") for i in range(n)]


def test_packing_changes_how_a_step_is_cut_and_nothing_else():
    plain = StepRows(some(), batch_size=6, seed=0, micro_batch_tokens=20)
    packed = StepRows(some(), batch_size=6, seed=0, micro_batch_tokens=20, packing=True)
    for step in range(8):
        assert [e.source for e in packed.of_step(step)] == [e.source for e in plain.of_step(step)]
        for rank in range(2):
            batches, expected = packed.micro_batches(step, rank, 2), plain.micro_batches(step, rank, 2)
            assert Counter(s for b in batches for s in b.sources) == Counter(s for b in expected for s in b.sources)
            assert sum(b.n_trained for b in batches) == sum(b.n_trained for b in expected)
    assert padding_share(packed, range(4)) != padding_share(plain, range(4))


def test_the_padding_share_counts_what_is_computed_and_is_no_token():
    #  5 5 · ·      padded to the longest, 40          5 + 40 = 45 tokens, 19 of padding up to 64
    rows = StepRows([of_length(5), of_length(40)], batch_size=2, seed=0)
    assert padding_share(rows, [0]) == pytest.approx(1 - 45 / 80)
    assert padding_share(replace(rows, packing=True), [0]) == pytest.approx(1 - 45 / 64)


def test_a_step_of_a_token_budget_takes_the_next_examples_of_the_same_order():
    by_rows, by_tokens = StepRows(some(), batch_size=1, seed=3), StepRows(some(), batch_size=1, seed=3, batch_tokens=30)
    order = [rows[0].source for step in range(23) if (rows := by_rows.of_step(step))]
    steps = [by_tokens.of_step(step) for step in range(by_tokens.steps_of_epoch(0))]
    assert [e.source for step in steps for e in step] == order
    for step, after in pairwise(steps):
        assert sum(map(len, step)) <= 30 < sum(map(len, [*step, after[0]]))


@pytest.mark.parametrize("budget", [1, 13, 30, 10_000])
def test_every_example_comes_once_per_epoch_whatever_the_token_budget(budget: int):
    rows = StepRows(some(), batch_size=1, seed=0, batch_tokens=budget)
    n = [rows.steps_of_epoch(epoch) for epoch in range(3)]
    seen = [e.source for step in range(sum(n)) for e in rows.of_step(step)]
    for epoch in range(3):
        assert Counter(seen[23 * epoch : 23 * (epoch + 1)]) == Counter(f"f:{i}" for i in range(23))
    assert rows.steps_of(3) == sum(n)
    assert rows.steps_of(1.5) == n[0] + -(-n[1] // 2)
    assert [e.source for e in replace(rows).of_step(n[0] + 1 if n[1] > 1 else n[0])] == [  # asked for directly, as after a resume
        e.source for e in rows.of_step(n[0] + 1 if n[1] > 1 else n[0])
    ]


def test_an_example_longer_than_the_token_budget_has_a_step_of_its_own():
    rows = StepRows([of_length(n, source=f"f:{n}") for n in (50, 3, 4, 60, 5)], batch_size=1, seed=0, batch_tokens=12)
    steps = [[len(e) for e in rows.of_step(step)] for step in range(rows.steps_of_epoch(0))]
    assert [50] in steps
    assert [60] in steps
    assert sorted(n for step in steps for n in step) == [3, 4, 5, 50, 60]


def test_epochs_with_a_batch_size_are_counted_as_ever():
    rows = StepRows(some(), batch_size=5, seed=0)
    assert (rows.steps_of(1), rows.steps_of(2.5), rows.steps_of(0.01)) == (5, 13, 1)


@pytest.mark.parametrize(("budget", "sizes"), [(29, [2, 2, 2, 1]), (30, [3, 3, 1]), (31, [3, 3, 1])])
def test_a_token_budget_may_be_reached_and_not_passed(budget: int, sizes: list[int]):
    rows = StepRows([of_length(10) for _ in range(7)], batch_size=1, seed=0, batch_tokens=budget)
    assert [len(rows.of_step(step)) for step in range(rows.steps_of_epoch(0))] == sizes
