import random
from collections import Counter
from pathlib import Path

import pytest

from tunesmith.config import DataConfig
from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.formats import read_conversations
from tunesmith.data.split import drop_duplicates, prompt_key, remove_overlap, split
from tunesmith.errors import BadInput

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real data are not here")


def pair(prompt: str, answer: str, line: int = 0) -> Conversation:
    return Conversation((Message("user", prompt, False), Message("assistant", answer, True)), f"t.jsonl:{line}")


def text(content: str, line: int = 0) -> Conversation:
    return Conversation((Message("text", content, True),), f"t.jsonl:{line}")


def rows_of(n: int, answer: str = "") -> list[Conversation]:
    return [pair(f"question {i}", answer or f"a long answer of its own, number {i}", i) for i in range(n)]


def sources(rows: list[Conversation]) -> list[str]:
    return [row.source for row in rows]


def test_every_row_is_in_exactly_one_split_and_keeps_its_order():
    rows = [pair(f"q {i % 700}", f"{i % 3}", i) for i in range(1000)]
    parts = split(rows, validation=0.1, test=0.2, seed=0, stratify=True)
    assert Counter(sources(parts.train) + sources(parts.validation) + sources(parts.test)) == Counter(sources(rows))
    for part in (parts.train, parts.validation, parts.test):
        assert sources(part) == sorted(sources(part), key=lambda source: int(source.split(":")[1]))
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (700, 100, 200)


def test_rows_that_ask_the_same_never_straddle_a_split():
    rows = [
        pair(random.Random(i).choice(["Hello  World", "hello world", "HELLO\nworld "]) + f" {i % 50}", f"answer {i}", i) for i in range(500)
    ]
    parts = split(rows, validation=0.2, test=0.2, seed=0, stratify=True)
    keys = [{prompt_key(row) for row in part} for part in (parts.train, parts.validation, parts.test)]
    assert all(keys) and not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
    assert "450 rows repeat the prompt of another row" in parts.said[1]


def test_raw_texts_are_told_apart_by_their_text():
    parts = split([text(f"text {i % 20}", i) for i in range(40)], validation=None, test=0.5, seed=0, stratify=True)
    assert len(parts.test) == 20 and not {r.messages for r in parts.test} & {r.messages for r in parts.train}


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_the_rows():
    rows = rows_of(200)
    shuffled = random.Random(1).sample(rows, len(rows))
    one, two = (split(r, validation=0.1, test=0.1, seed=3, stratify=True) for r in (rows, shuffled))
    assert set(sources(one.test)) == set(sources(two.test)) and set(sources(one.validation)) == set(sources(two.validation))
    assert set(sources(one.test)) != set(sources(split(rows, validation=0.1, test=0.1, seed=4, stratify=True).test))


def test_the_test_rows_do_not_depend_on_the_validation_share():
    rows = rows_of(200)
    tests = [split(rows, validation=v, test=0.2, seed=0, stratify=True).test for v in (None, 0.1, 0.5)]
    assert tests[0] == tests[1] == tests[2]


def test_a_few_more_rows_move_few_rows():
    rows = rows_of(1000)
    before, after = (set(sources(split(r, validation=None, test=0.2, seed=0, stratify=True).test)) for r in (rows[:990], rows))
    assert len(before & after) > 190


def test_labels_keep_their_proportions_and_a_rare_one_gets_its_share():
    rows = [pair(f"q{i}", "rare" if i % 20 == 0 else "common", i) for i in range(1000)]
    for stratify in (True, False):
        parts = split(rows, validation=0.1, test=0.2, seed=0, stratify=stratify)
        counts = [Counter(row.answer for row in part)["rare"] for part in (parts.train, parts.validation, parts.test)]
        assert (counts == [35, 5, 10]) == stratify
        assert ("proportions of common, rare" in parts.said[0]) == stratify


def test_many_small_labels_do_not_push_the_shares_off():
    rows = [pair(f"q{i}", f"label {i % 40}", i) for i in range(280)]  # 7 of each: 0.7 rows of each for a share of 0.1
    parts = split(rows, validation=0.1, test=0.1, seed=0, stratify=True)
    assert (len(parts.validation), len(parts.test)) == (28, 28)


def test_a_prompt_of_half_the_rows_goes_to_training_as_a_whole():
    rows = [pair("same" if i % 2 else f"q{i}", f"answer {i}", i) for i in range(200)]
    parts = split(rows, validation=0.1, test=0.1, seed=0, stratify=True)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (160, 20, 20)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (rows_of(3), "the test split would be empty"),
        (rows_of(1), "the test split would be empty"),
        ([], "the train split would be empty"),
        ([pair("same", str(i), i) for i in range(100)], "put a column that differs into data.prompt"),
    ],
)
def test_a_split_that_would_be_empty_is_refused_with_the_number_of_rows(rows, problem):
    with pytest.raises(BadInput) as caught:
        split(rows, validation=None, test=0.1, seed=0, stratify=True)
    assert problem in str(caught.value) and f"{len(rows)} row" in caught.value.where and "data.test: 0.1" in caught.value.where


def test_shares_that_leave_nothing_to_train_on_are_refused():
    with pytest.raises(BadInput, match="leave nothing to train on"):
        split(rows_of(100), validation=0.5, test=0.5, seed=0, stratify=True)


def test_without_shares_all_rows_are_training_rows():
    parts = split(rows_of(5), validation=None, test=None, seed=0, stratify=True)
    assert (parts.train, parts.validation, parts.test, parts.said) == (rows_of(5), [], [], [])


def test_the_rows_that_a_refusal_asks_for_are_enough():
    for share in (0.01, 0.1, 0.3, 0.9):
        needed = next(n for n in range(1, 999) if _splits(n, share))
        assert all(_splits(n, share) for n in range(needed, needed + 30))
        assert needed <= 1 / min(share, 1 - share) + 1


def _splits(n: int, share: float) -> bool:
    try:
        return bool(split(rows_of(n), validation=None, test=share, seed=0, stratify=True).test)
    except BadInput:
        return False


def test_duplicates_are_rows_equal_to_the_letter():
    rows = [pair("a", "x", 1), pair("a", "y", 2), pair("a", "x", 3), pair("A", "x", 4)]
    kept, dropped = drop_duplicates(rows)
    assert (sources(kept), sources(dropped)) == (["t.jsonl:1", "t.jsonl:2", "t.jsonl:4"], ["t.jsonl:3"])


def test_training_rows_that_ask_what_is_held_out_are_removed():
    kept, removed = remove_overlap([pair("a", "x", 1), pair("b", "x", 2), pair(" A ", "z", 3)], [pair("a", "y", 9)])
    assert (sources(kept), sources(removed)) == (["t.jsonl:2"], ["t.jsonl:1", "t.jsonl:3"])


@needs_shared
def test_the_sms_collection_splits_by_label_without_a_leak():
    file = {"train": str(SHARED / "sms_spam" / "SMSSpamCollection.tsv"), "columns": ["label", "text"], "header": False, "quoting": False}
    found = read_conversations(DataConfig(**file, prompt="Spam or ham?\n\n{text}", completion="{label}"))
    rows, dropped = drop_duplicates(found.conversations)
    assert (len(rows), len(dropped)) == (5171, 403)
    parts = split(rows, validation=0.1, test=0.2, seed=0, stratify=True)
    assert Counter(map(id, rows)) == Counter(map(id, [*parts.train, *parts.validation, *parts.test]))
    assert (len(parts.validation), len(parts.test)) == (517, 1034)
    share = sum(row.answer == "spam" for row in rows) / len(rows)
    assert all(
        abs(sum(row.answer == "spam" for row in part) - share * len(part)) <= 1 for part in (parts.train, parts.validation, parts.test)
    )
    assert not {prompt_key(row) for row in parts.test} & {prompt_key(row) for row in [*parts.train, *parts.validation]}


@needs_shared
def test_snips_sentences_of_the_validation_file_leave_the_training_file():
    options = {"prompt": "{text}", "completion": '{"intent": {intent:json}, "slots": {slots}}'}
    train, held_out = (
        read_conversations(DataConfig(train=str(SHARED / "snips_slots" / name), **options)).conversations
        for name in ("train.jsonl", "validate.jsonl")
    )
    kept, removed = remove_overlap(train, held_out)
    assert len(kept) + len(removed) == 13_784
    assert {row.fields["text"] for row in train} & {row.fields["text"] for row in held_out} <= {row.fields["text"] for row in removed}
