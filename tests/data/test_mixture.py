"""The arithmetic of a mixture: shares, whole rows, which ones; and what load_parts makes of it."""

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tunesmith.config import DataConfig
from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.mixture import Dose, apportion, chosen, evenly, mix, repeated, table
from tunesmith.data.rows import Parts, load_parts
from tunesmith.errors import BadInput


def seen(doses: list[Dose]) -> dict[str, int]:
    return {dose.task: dose.n_seen for dose in doses}


def rows_of(task: str, n: int) -> list[Conversation]:
    return [
        Conversation((Message("user", f"{task} {i}", False), Message("assistant", "x", True)), f"{task}:{i}", task=task) for i in range(n)
    ]


# ---------------------------------------------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        #                                      of 600 rows of a, 300 of b, 100 of c
        ({"mixing": "proportional"}, {"a": 600, "b": 300, "c": 100}),
        ({"mixing": "equal"}, {"a": 334, "b": 333, "c": 333}),
        ({"mixing": "temperature", "temperature": 1}, {"a": 600, "b": 300, "c": 100}),
        ({"mixing": "temperature", "temperature": 2}, {"a": 473, "b": 334, "c": 193}),  # √600 : √300 : √100
        ({"mixing": "temperature", "temperature": 1e9}, {"a": 334, "b": 333, "c": 333}),
        ({"cap": 200}, {"a": 200, "b": 200, "c": 100}),
        ({"weights": {"c": 2}}, {"a": 545, "b": 273, "c": 182}),  # 600 : 300 : 200
        ({"mixing": "equal", "weights": {"a": 0.5}}, {"a": 200, "b": 400, "c": 400}),
        ({"n_epoch": 10}, {"a": 6, "b": 3, "c": 1}),
    ],
)
def test_shares_of_an_epoch(settings, expected):
    doses = mix({"a": 600, "b": 300, "c": 100}, **settings)
    assert seen(doses) == expected
    assert sum(dose.share for dose in doses) == 1


def test_the_largest_remainders_are_rounded_up_and_the_sum_is_exact():
    #   quotas      2.5   1.75   1.5   1.25    sum 7
    shares = {name: Fraction(part, 28) for name, part in (("a", 10), ("b", 7), ("c", 6), ("d", 5))}
    assert apportion(7, shares) == {"a": 3, "b": 2, "c": 1, "d": 1}
    for total in range(100):
        whole = apportion(total, shares)
        assert sum(whole.values()) == total
        assert all(abs(whole[name] - total * share) < 1 for name, share in shares.items())


def test_a_plain_mixture_takes_every_row_once_whatever_the_sizes():
    sizes = {f"task {i}": 1 + i * i % 97 for i in range(300)}
    assert seen(mix(sizes)) == sizes


def test_a_task_that_would_never_be_seen_is_refused():
    with pytest.raises(BadInput, match='"b" would never be trained on') as caught:
        mix({"a": 100_000, "b": 1}, n_epoch=50)
    assert "0.001%" in caught.value.where and "raise its weight" in caught.value.fix


def test_fewer_rows_are_the_same_ones_when_rows_are_added_or_shuffled():
    rows = rows_of("a", 200)
    half = chosen(rows, 100)
    assert half == [row for row in rows if row in half]  # in their own order
    assert {row.source for row in chosen(rows[::-1], 100)} == {row.source for row in half}
    more = chosen([*rows, *rows_of("b", 10)], 100)
    assert len({row.source for row in half} - {row.source for row in more}) <= 10


def test_more_rows_are_every_row_equally_often_or_once_more():
    rows = rows_of("a", 7)
    counts = Counter(row.source for row in repeated(rows, 24))
    assert sum(counts.values()) == 24 and set(counts.values()) == {3, 4}
    assert repeated(rows, 7) == rows and repeated(rows, 3) == chosen(rows, 3)


def test_a_limit_of_rows_is_spread_evenly_over_the_tasks():
    rows = [*rows_of("a", 50), *rows_of("b", 3), *rows_of("c", 50)]
    assert Counter(row.task for row in evenly(rows, 23)) == {"a": 10, "b": 3, "c": 10}
    assert [row.source for row in evenly(rows, 4)] == ["a:0", "a:1", "b:0", "c:0"]
    assert evenly(rows, None) == rows


def test_the_table_says_how_often_a_row_comes():
    lines = table(mix({"long": 300, "short": 60}, mixing="equal"))
    assert lines[1].split() == ["long", "300", "50.0%", "180"]
    assert lines[2].split() == ["short", "60", "50.0%", "180", "(3.00", "times", "each)"]


# ------------------------------------------------------------------------------------------------------- from files


@pytest.fixture
def tasks(tmp_path: Path):
    """tasks({"a": 6, "b": 2}) → a folder with a.jsonl and b.jsonl of so many rows"""

    def write(sizes: dict[str, int], folder: str = "tasks") -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        for task, n in sizes.items():
            rows = [{"prompt": f"{task} {i}?", "completion": f"answer {i}"} for i in range(n)]
            (tmp_path / folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / folder)

    return write


def load(train: Any, **more: Any) -> Parts:
    return load_parts(DataConfig.model_validate({"train": train, **more}))


def counted(rows: list[Conversation]) -> dict[str, int]:
    return dict(Counter(row.task for row in rows))


def test_a_folder_of_files_is_a_task_for_each_and_every_row_is_seen_once(tasks):
    parts = load(tasks({"a": 6, "b": 2}))
    assert [row.source for row in parts.train] == [*(f"a.jsonl:{i}" for i in range(1, 7)), "b.jsonl:1", "b.jsonl:2"]
    assert counted(parts.train) == {"a": 6, "b": 2}
    assert any("mixture of 2 tasks, proportional: 8 rows an epoch; every row once" in line for line in parts.said)
    assert len(parts.files) == 2 and all(len(facts["sha256"]) == 64 for facts in parts.files.values())


def test_mixing_weights_caps_and_limits_decide_how_many_rows_an_epoch_takes(tasks):
    folder = tasks({"a": 60, "b": 20})
    entries = [{"path": f"{folder}/a.jsonl", "task": "long"}, {"path": f"{folder}/b.jsonl", "weight": 3}]
    assert counted(load(folder, mixing="equal").train) == {"a": 40, "b": 40}
    assert counted(load(folder, cap=20).train) == {"a": 20, "b": 20}
    assert counted(load(folder, limit=8).train) == {"a": 6, "b": 2}
    assert counted(load(entries).train) == {"long": 40, "b": 40}
    parts = load(folder, mixing="equal")
    assert (parts.counts["left_out_by_mixing"], parts.counts["repeated_by_mixing"], parts.counts["train"]) == (20, 20, 80)
    assert max(Counter(row.source for row in parts.train if row.task == "b").values()) == 2
    assert load(folder, mixing="equal").train == parts.train


def test_an_entry_sets_what_is_otherwise_for_its_file(tasks, tmp_path):
    folder = tasks({"a": 4})
    (tmp_path / "spam.tsv").write_text('spam\twin "money\nham\thi\n')
    spam = {"path": str(tmp_path / "spam.tsv"), "columns": ["label", "text"], "header": False, "quoting": False, "system": "Sort."}
    parts = load([f"{folder}/a.jsonl", spam | {"prompt": "{text}", "completion": "{label}", "task": "sms"}])
    assert [[m.content for m in row.messages] for row in parts.train if row.task == "sms"] == [
        ["Sort.", 'win "money', "spam"],
        ["Sort.", "hi", "ham"],
    ]
    parts = load([{"path": f"{folder}/a.jsonl", "limit": 2}, spam | {"prompt": "{text}", "completion": "{label}"}])
    assert counted(parts.train) == {"a": 2, "spam": 2} and parts.counts["left_out_by_limit"] == 2
    assert any("a: 2 of 4 rows used (its limit)" in line for line in parts.said)


def test_held_out_tasks_are_never_trained_on_and_become_test_rows(tasks):
    folder = tasks({"a": 20, "b": 10, "c": 10})
    parts = load(folder, held_out=["b"], test=0.25)
    assert set(counted(parts.train)) == {"a", "c"}
    assert counted(parts.test)["b"] == 10 and len(parts.test) > 10
    assert counted(load(folder, held_out=["b"]).test) == {"b": 10}
    with pytest.raises(BadInput, match='no task "bb"') as caught:
        load(folder, held_out=["bb"])
    with pytest.raises(BadInput, match=r"every task of data\.train is held out") as all_of_them:
        load(folder, held_out=["a", "b", "c"])
    assert "data.held_out" in all_of_them.value.fix
    assert 'did you mean "b"?' in caught.value.fix


def test_a_share_for_the_test_is_a_share_of_every_task(tasks):
    folder = tasks({"a": 200, "b": 40, "c": 20})
    assert counted(load(folder, test=0.1, near_duplicates="off").test) == {"a": 20, "b": 4, "c": 2}


def test_training_rows_that_ask_what_a_held_out_task_asks_are_removed(tasks, tmp_path):
    folder = tasks({"a": 4, "b": 2})
    path = tmp_path / "tasks/a.jsonl"
    path.write_text(path.read_text() + json.dumps({"prompt": "B  0?", "completion": "leaked"}) + "\n")
    parts = load(folder, held_out=["b"])
    assert parts.counts["overlap_removed"] == 1 and all(row.answer != "leaked" for row in parts.train)


def test_each_training_row_takes_one_phrasing_and_test_rows_the_first(tmp_path):
    (tmp_path / "sms.csv").write_text("text,label\n" + "".join(f"message {i},{'spam' if i % 2 else 'ham'}\n" for i in range(200)))
    phrasings = ["Spam or ham? {text}", "{text}\n\nIs this spam?", "Classify: {text}"]
    data = {"prompt": phrasings, "completion": "{label}", "test": 0.2}
    parts = load(str(tmp_path / "sms.csv"), **data)
    assert all(row.messages[0].content == f"Spam or ham? {row.fields['text']}" for row in parts.test)
    asked = Counter(next(p for p in phrasings if p.format(text=row.fields["text"]) == row.messages[0].content) for row in parts.train)
    assert sum(asked.values()) == 160 and min(asked.values()) > 30
    assert any("training rows have each of the 3 phrasings" in line for line in parts.said)
    first = load(str(tmp_path / "sms.csv"), **data | {"prompt": phrasings[0]})
    assert [row.source for row in first.train] == [row.source for row in parts.train]  # phrasings change no split


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"mixing": "equal"}, "there is one dataset, so nothing is mixed"),
        ({"cap": 3}, "there is one dataset, so nothing is mixed"),
        ({"held_out": ["a"]}, "every training row|no row is left"),
    ],
)
def test_what_only_means_something_for_several_tasks_is_refused_for_one(tasks, settings, problem):
    folder = tasks({"a": 4})
    with pytest.raises(BadInput, match=problem):
        load([{"path": f"{folder}/a.jsonl", "task": "a"}], **settings)


def test_two_entries_may_be_one_task_but_not_with_two_weights(tasks):
    folder = tasks({"a": 4, "b": 4, "c": 4})
    pair = [{"path": f"{folder}/{name}.jsonl", "task": "ab", "weight": weight} for name, weight in (("a", 2), ("b", 2))]
    assert counted(load([*pair, f"{folder}/c.jsonl"]).train) == {"ab": 10, "c": 2}  # 8 rows of weight 2, 4 of weight 1
    with pytest.raises(BadInput, match='two weights of the task "ab"'):
        load([pair[0], pair[1] | {"weight": 3}, f"{folder}/c.jsonl"])


def test_the_40_tasks_of_super_natural_instructions_make_one_mixture(shared):
    folder = shared / "data/super_ni"
    parts = load(str(folder / "train"), test=str(folder / "heldout"), mixing="equal")
    assert len(counted(parts.train)) == 40 and len(counted(parts.test)) == 6
    assert set(counted(parts.train).values()) == {276, 277}  # 11,052 rows, less what the held-out rows contain
    assert parts.counts["train"] == parts.counts["read"] - parts.counts["overlap_removed"] - 1800
    assert all(row.fields["references"][0] == row.answer for row in parts.test)
