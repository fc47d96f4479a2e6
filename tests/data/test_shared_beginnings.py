"""What several examples of a row begin with stands there once: which, where each goes on, and that nothing learned is touched."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.batches import StepRows, collate, collate_row, padding_share, shared_share, tokens_of
from tunesmith.data.packing import FAMILY_COST, MOST_ALIKE, alike, computed_tokens, fill, pack, row_of
from tunesmith.data.template import Example

S, T = list(range(40, 60)), list(range(70, 95))  # two instructions, of 20 and 25 tokens


def example(ids: list[int], n_learned: int, source: str = "f:1", shared: int = 0) -> Example:
    trained = [0] * (len(ids) - n_learned) + [1] * n_learned
    return Example(np.array(ids, dtype=np.int32), np.array(trained, dtype=bool), source, shared)


def test_branches_go_on_where_the_shared_document_ends_and_repeat_its_last_token():
    #  shared   7  8  9          10 stands in each: there each one's first answer is predicted
    #  a        7  8  9 10 | 11 12
    #  b        7  8  9 10 | 21
    a, b, c = example([7, 8, 9, 10, 11, 12], 2, "f:a", 3), example([7, 8, 9, 10, 21], 1, "f:b", 3), example([31, 32], 1, "f:c")
    row = row_of([a, b, c])
    assert row.ids.tolist() == [7, 8, 9, 10, 11, 12, 10, 21, 31, 32]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 0, 1]
    assert row.document.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]
    assert row.parent.tolist() == [-1, 0, 0, -1]
    assert row.trained.tolist() == [0, 0, 0, 0, 1, 1, 0, 1, 0, 1]
    assert row.sources == ("f:a", "f:b", "f:c")
    batch = collate_row(row, 12)
    _ = -100
    assert batch.labels_BT.tolist() == [[_, _, _, 11, 12, _, 21, _, 32, _, _, _]]
    assert batch.parent_S is not None and batch.parent_S.tolist() == [-1, 0, 0, -1, -1]  # padding continues nothing
    assert collate_row(row_of([c])).parent_S is None


def test_the_first_learned_token_and_the_one_before_it_are_in_each_branch():
    first, second = example([*S, 1, 2], 2, "f:1"), example([*S, 1, 3], 2, "f:2")  # the same prompt; the same first word of the answer
    [family] = alike([first, second])
    assert [e.shared for e in family] == [len(S) - 1, len(S) - 1]
    assert computed_tokens(family) == 19 + 3 + 3


def test_several_instructions_in_one_row_are_families_of_their_own():
    examples = [example([*head, 100 + i, 200 + i], 1, f"f:{i}") for i, head in enumerate([S, T, S, [1, 2, 3], T, T])]
    [row] = pack(examples, 500, sharing=True)
    assert row.parent.tolist() == [-1, 0, 0, 0, -1, 4, 4, -1]  # T three times, S twice, one alone
    assert sorted(row.sources) == [f"f:{i}" for i in range(6)]
    assert len(row) == sum(map(len, examples)) - 2 * 24 - 19


def test_little_in_common_is_computed_twice():
    def two(n: int) -> list[Example]:
        return [example([*range(n + 1), 50 + i], 1) for i in range(2)]

    assert [e.shared for family in alike(two(FAMILY_COST)) for e in family] == [0, 0]
    assert [e.shared for family in alike(two(FAMILY_COST + 1)) for e in family] == [FAMILY_COST + 1] * 2


def test_families_are_cut_where_it_saves_most():
    """A short beginning of all against long ones of a few: whichever is fewer tokens."""
    short = [example([*range(30), 60 + i, 5], 1, f"s:{i}") for i in range(6)]
    long = [example([*range(30), *T, i, 5], 1, f"l:{i}") for i in range(4)]
    families = alike([*short, *long])
    assert sorted((len(family), family[0].shared) for family in families) == [(4, 54), (6, 29)]


def test_a_family_that_is_longer_than_a_row_begins_again_in_the_next():
    examples = [example([*S, 100 + i, 200 + i], 1, f"f:{i}") for i in range(10)]
    groups = fill(examples, 32, sharing=True)  # 19 and at most four branches of 3
    assert [computed_tokens(group) for group in groups] == [31, 31, 25]
    assert sorted(e.source for group in groups for e in group) == sorted(e.source for e in examples)
    [alone] = fill([examples[0]], 8, sharing=True)
    assert computed_tokens(alone) == 22  # one that is longer than a row stands alone


ANY = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30), st.integers(1, 6), st.integers(0, 2)), min_size=1, max_size=30)


def drawn(wanted: list[tuple[int, int, int, int]]) -> list[Example]:
    """Prompts that begin alike, are each other's beginnings, or are the same; answers too."""
    heads = [S, T, [*S, *T], [*S[:9], *T]]
    return [
        example([*heads[head][:n_head], *[5 + more] * (n_answer + more)], n_answer, f"f:{i}")
        for i, (head, n_head, n_answer, more) in enumerate(wanted)
    ]


@given(ANY, st.integers(1, 120))
@settings(max_examples=150, deadline=None)
def test_whatever_begins_alike_each_example_can_be_read_from_its_row(wanted: list[tuple[int, int, int, int]], budget: int):
    examples = {e.source: e for e in drawn(wanted)}
    groups = fill(list(examples.values()), budget, sharing=True)
    assert Counter(e.source for group in groups for e in group) == Counter(examples.keys())
    for group in groups:
        row = row_of(group)
        assert len(row) == computed_tokens(group) == tokens_of(group, packing=True)
        assert len(row) <= budget or len(group) == 1
        batch = collate_row(row, len(row) + 5)
        labels, sources = batch.labels_BT[0].numpy(), iter(row.sources)
        learned = 0
        for document, parent in enumerate(row.parent):
            own = np.flatnonzero(row.document == document)
            if document in row.parent:
                assert (labels[own] == -100).all()  # nothing is learned within what is shared
                continue
            read = np.concatenate([np.flatnonzero(row.document == parent), own]) if parent >= 0 else own
            whole = examples[next(sources)]
            assert row.ids[read].tolist() == whole.ids.tolist()
            assert row.positions[read].tolist() == list(range(len(whole)))
            assert labels[read].tolist() == collate([whole]).labels_BT[0].tolist()
            learned += int((labels[own] != -100).sum())
        assert learned == batch.n_trained == sum(collate([e]).n_trained for e in group)


@given(ANY)
@settings(max_examples=50, deadline=None)
def test_no_other_cut_into_families_saves_more(wanted: list[tuple[int, int, int, int]]):
    """Against every cut, tried one by one: of few examples."""
    examples = drawn(wanted)[:7]
    families = alike(examples)

    def saved(groups: list[list[Example]]) -> int:
        return sum((len(g) - 1) * max(0, shared(g)) - FAMILY_COST for g in groups if len(g) > 1)

    def shared(group: list[Example]) -> int:
        keys = [e.ids[: int(e.trained[1:].argmax()) + 1] for e in group]
        return next((n for n in range(min(map(len, keys))) if len({int(key[n]) for key in keys}) > 1), min(map(len, keys))) - 1

    ordered = [e for family in families for e in family]
    keys = sorted(ordered, key=lambda e: e.ids[: int(e.trained[1:].argmax()) + 1].tolist())
    every = [
        [keys[a:b] for a, b in zip([0, *cuts], [*cuts, len(keys)], strict=True)]
        for bits in range(2 ** (len(keys) - 1))
        if (cuts := [i + 1 for i in range(len(keys) - 1) if bits >> i & 1]) is not None
    ]
    ours = sum((len(f) - 1) * f[0].shared - FAMILY_COST for f in families if len(f) > 1 and f[0].shared)
    assert ours == max(0, *map(saved, every))


def test_more_examples_than_are_looked_at_at_once():
    examples = [example([*S, 1000 + i], 1, f"f:{i}") for i in range(MOST_ALIKE + 50)]
    assert [len(family) for family in alike(examples)] == [MOST_ALIKE, 50]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_steps_keep_their_examples_and_any_number_of_processes_takes_them(world: int):
    examples = [example([*(S if i % 3 else T), *[i] * (i % 7), 3, 4], 2, f"f:{i}") for i in range(41)]
    plain = StepRows(examples, batch_size=8, seed=5, micro_batch_tokens=96, packing=True)
    sharing = StepRows(examples, batch_size=8, seed=5, micro_batch_tokens=96, packing=True, sharing=True)
    for step in range(12):
        found, expected = ([batch for rank in range(world) for batch in rows.micro_batches(step, rank, world)] for rows in (sharing, plain))
        assert Counter(s for batch in found for s in batch.sources) == Counter(s for batch in expected for s in batch.sources)
        assert sum(batch.n_trained for batch in found) == sum(batch.n_trained for batch in expected)
        assert [b.ids_BT.tolist() for b in sharing.micro_batches(step)] == [b.ids_BT.tolist() for b in sharing.micro_batches(step)]


def test_shares_of_padding_and_of_what_is_saved():
    examples = [example([*S, i, 3], 1, f"f:{i}") for i in range(4)]  # 4 of 22 tokens; 19 + 4 of 3 = 31 of them are computed, in 32
    rows = StepRows(examples, batch_size=4, seed=0, packing=True, sharing=True)
    assert shared_share(rows, [0]) == pytest.approx(1 - 31 / 88)
    assert padding_share(rows, [0]) == pytest.approx(1 / 32)
