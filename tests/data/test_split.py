import random
from collections import Counter
from pathlib import Path

import pytest

from tunesmith.config import DataConfig
from tunesmith.data.conversation import Conversation, Message, ToolCall
from tunesmith.data.formats import read_conversations
from tunesmith.data.similar import plain, words
from tunesmith.data.split import Overlap, Splits, drop_duplicates, prompt_key, prompt_text, remove_overlap, split
from tunesmith.errors import BadInput

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real data are not here")


def pair(prompt: str, answer: str, line: int = 0) -> Conversation:
    return Conversation((Message("user", prompt, False), Message("assistant", answer, True)), f"t.jsonl:{line}")


def text(content: str, line: int = 0) -> Conversation:
    return Conversation((Message("text", content, True),), f"t.jsonl:{line}")


def by(author: str | None, line: int, answer: str = "") -> Conversation:
    turns = pair(f"question {line}", answer or f"a long answer of its own, number {line}").messages
    return Conversation(turns, f"t.jsonl:{line}", {"author": author})


def places(parts: Splits) -> dict[str, str]:
    return {row.source: name for name in ("train", "validation", "test") for row in getattr(parts, name)}


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
    assert "450 rows with the prompt of another row" in parts.said[1]


def test_near_copies_never_straddle_a_split_and_their_number_is_said():
    rng = random.Random(0)
    vocabulary = [f"word{i}" for i in range(900)]
    letters = [" ".join(rng.sample(vocabulary, 20)) for _ in range(200)]
    rows = [
        pair(f"{letter} {ending}", "x", 3 * i + k) for i, letter in enumerate(letters) for k, ending in enumerate(("", "bye", "thanks"))
    ]
    parts = split(rows, validation=0.2, test=0.2, seed=0, stratify=True, near=0.8)
    sets = [{" ".join(row.messages[0].content.split()[:20]) for row in part} for part in (parts.train, parts.validation, parts.test)]
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [360, 120, 120]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    assert parts.said[1] == (
        "split: 400 rows more with nearly the prompt of another (data.near_duplicates: 0.8), which stay with it: "
        "200 clusters, the largest of 3 rows, such as t.jsonl:0 and t.jsonl:1"
    )
    apart = split(rows, validation=0.2, test=0.2, seed=0, stratify=True)
    assert {r.messages[0].content.split()[0] for r in apart.test} & {r.messages[0].content.split()[0] for r in apart.train}
    assert len(apart.said) == 1


def test_rows_of_one_author_stay_together_and_rows_without_one_are_free():
    rows = [by(f"author {i % 40}" if i % 5 else [None, " "][i % 2], i) for i in range(500)]
    parts = split(rows, validation=0.1, test=0.2, seed=0, stratify=True, group_by="author")
    authors = [
        {row.fields["author"] for row in part if row.fields["author"]} - {" "} for part in (parts.train, parts.validation, parts.test)
    ]
    assert all(authors) and not (authors[0] & authors[1] or authors[0] & authors[2] or authors[1] & authors[2])
    assert all(any(row.fields["author"] is None for row in part) for part in (parts.train, parts.test))
    assert (
        parts.said[-1]
        == "split: 32 values of author; rows with the same one stay together; 100 rows without one, each by itself, the first: t.jsonl:0"
    )
    assert abs(len(parts.test) - 100) <= 8


def test_what_a_copy_joins_with_an_author_is_one_group():
    #  ann: 0, 1      bob: 2, 3      row 3 repeats row 0, so all four are one group; 96 others are alone
    rows = [by("ann", 0), by("ann", 1), by("bob", 2), by("bob", 0), *(by(f"author {i}", i) for i in range(10, 106))]
    rows = [Conversation(row.messages, f"t.jsonl:{n}", row.fields) for n, row in enumerate(rows)]
    for seed in range(20):
        where = places(split(rows, validation=None, test=0.5, seed=seed, stratify=True, group_by="author"))
        assert len({where[f"t.jsonl:{n}"] for n in range(4)}) == 1


def test_a_column_that_is_not_there_is_refused_with_the_nearest_name():
    with pytest.raises(BadInput) as caught:
        split([by("ann", i) for i in range(20)], validation=None, test=0.5, seed=0, stratify=True, group_by="autor")
    assert 'no row has the column "autor"' in str(caught.value) and "author" in caught.value.fix and "t.jsonl" in caught.value.where


def test_what_turns_call_and_what_tools_answer_is_part_of_the_question():
    def row(city: str, line: int) -> Conversation:
        call = Message("assistant", "", False, tool_calls=(ToolCall("weather", {"city": city}),))
        return Conversation((Message("user", "rain?", False), call, Message("assistant", "no", True)), f"t.jsonl:{line}")

    assert prompt_key(row("Rome", 1)) != prompt_key(row("Oslo", 2)) and "Rome" in prompt_text(row("Rome", 1))


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


def test_of_a_file_that_has_grown_by_a_tenth_hardly_a_row_moves():
    rng = random.Random(0)
    texts = [" ".join(f"word{rng.randrange(3000)}" for _ in range(15)) for _ in range(4400)]
    texts = [
        rng.choice(texts[:i]) + " bye" if i and rng.random() < 0.1 else text for i, text in enumerate(texts)
    ]  # a tenth are near copies
    rows = [pair(text, "spam" if rng.random() < 0.15 else "ham", i) for i, text in enumerate(texts)]
    before, after = (places(split(r, validation=0.1, test=0.2, seed=0, stratify=True, near=0.8)) for r in (rows[:4000], rows))
    moved = [source for source in before if before[source] != after[source]]
    assert len(moved) < 0.01 * 4000
    assert Counter(after.values()) == {"train": 3080, "validation": 440, "test": 880}


def test_small_files_have_their_shares_to_the_row():
    for n in (30, 50, 100):
        parts = split([pair(f"q{i}", "ab"[i % 5 == 0], i) for i in range(n)], validation=0.1, test=0.2, seed=0, stratify=True, near=0.8)
        assert (len(parts.validation), len(parts.test)) == (n // 10, n // 5)
        assert sum(row.answer == "b" for row in parts.test) == n // 25


def test_a_larger_draw_contains_the_smaller_one():
    rows = [pair(f"q{i}", "ab"[i % 5 == 0], i) for i in range(400)]
    draws = [set(sources(split(rows, validation=None, test=n / 400, seed=0, stratify=True).test)) for n in (20, 40, 80, 160)]
    assert draws[0] < draws[1] < draws[2] < draws[3]


def test_labels_that_groups_do_not_allow_in_equal_proportions_are_said_as_they_came_out():
    rows = [by(f"author {i // 20}", i, "spam" if (i // 20) % 3 == 0 and i % 20 < 12 else "ham") for i in range(200)]
    parts = split(rows, validation=None, test=0.3, seed=0, stratify=True, group_by="author")
    shares = [sum(row.answer == "spam" for row in part) / len(part) for part in (parts.train, parts.test)]
    assert f"spam is {shares[0]:.1%} of train, {shares[1]:.1%} of test" in parts.said[0]


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
        (
            [pair(f"one two three four five six seven eight nine ten{' end' * (i % 2)}", "x", i) for i in range(4)],
            "data.near_duplicates: off",
        ),
    ],
)
def test_a_split_that_would_be_empty_is_refused_with_the_number_of_rows(rows, problem):
    with pytest.raises(BadInput) as caught:
        split(rows, validation=None, test=0.1, seed=0, stratify=True, near=0.8)
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


def test_rows_that_differ_in_their_tools_or_thoughts_alone_are_no_duplicates_and_the_order_of_keys_is_no_difference():
    def row(line: int, thinking: str | None = None, **tool: str) -> Conversation:
        turns = (Message("user", "rain?", False), Message("assistant", "no", True, thinking))
        return Conversation(turns, f"t.jsonl:{line}", tools=(tool,) if tool else ())

    rows = [
        row(1),
        row(2, name="a", type="f"),
        row(3, name="b", type="f"),
        row(4, thinking="hm"),
        row(5, type="f", name="a"),
        row(6, thinking=""),
    ]
    kept, dropped = drop_duplicates(rows)
    assert (sources(kept), sources(dropped)) == ([f"t.jsonl:{n}" for n in (1, 2, 3, 4, 6)], ["t.jsonl:5"])


def test_no_two_conversations_pass_for_equal_because_their_texts_run_together():
    def row(line: int, *turns: tuple[str, str]) -> Conversation:
        return Conversation(tuple(Message(role, text, role == "assistant") for role, text in turns), f"t.jsonl:{line}")

    rows = [
        row(1, ("user", "a"), ("assistant", "b")),
        row(2, ("user", "aassistant+1:b")),
        row(3, ("user", "a-assistant+1:b"), ("assistant", "")),
    ]
    assert drop_duplicates(rows)[1] == []


def test_training_rows_that_ask_what_is_held_out_are_removed():
    found = remove_overlap([pair("a", "x", 1), pair("b", "x", 2), pair(" A ", "z", 3)], [pair("a", "y", 9)])
    assert (sources(found.kept), sources(found.removed)) == (["t.jsonl:2"], ["t.jsonl:1", "t.jsonl:3"])
    assert found.said.startswith("2 rows of train removed because the held-out rows contain them; the first: t.jsonl:1, see t.jsonl:9")


def test_training_rows_that_nearly_ask_what_is_held_out_are_removed_and_said_apart():
    letter = "you have won a prize of {} pounds in our weekly draw, to claim it call now and quote the number of your ticket"
    train = [pair("lunch?", "ham", 1), pair(letter.format(800), "spam", 2), pair("the same", "ham", 3), pair("my prize", "ham", 4)]
    held_out = [pair("The same", "ham", 8), pair(letter.format(2000), "spam", 9)]
    found = remove_overlap(train, held_out, name="validation", near=0.8)
    assert sources(found.kept) == ["t.jsonl:1", "t.jsonl:4"]
    assert found.said == (
        "2 rows of validation removed because the held-out rows contain them; the first: t.jsonl:2, see t.jsonl:9 (near copies of a prompt: 1)"
    )
    assert sources(remove_overlap(train, held_out).removed) == ["t.jsonl:3"]
    assert remove_overlap(train, []) == Overlap(train, [], "") and remove_overlap([], held_out, near=0.8) == Overlap([], [], "")


def test_training_rows_of_a_held_out_author_are_removed():
    train, held_out = [by("ann", 1), by("bob", 2), by(None, 3)], [by("bob", 8), by(None, 9)]
    found = remove_overlap(train, held_out, group_by="author")
    assert sources(found.removed) == ["t.jsonl:2"] and found.said.endswith("see t.jsonl:8 (of the same author: 1)")
    with pytest.raises(BadInput, match='no row has the column "author"'):
        remove_overlap(train, [pair("x", "y", 1)], group_by="author")


def sms_rows() -> list[Conversation]:
    file = {"train": str(SHARED / "sms_spam" / "SMSSpamCollection.tsv"), "columns": ["label", "text"], "header": False, "quoting": False}
    return read_conversations(DataConfig(**file, prompt="Is this message spam or ham?\n\n{text}", completion="{label}")).conversations


def leaks(train: list[Conversation], test: list[Conversation]) -> tuple[int, int]:
    """Test messages that are also in train, but for case and spacing, and further ones with a near copy there: every pair is looked at."""

    def shingles(text: str) -> frozenset[tuple[str, ...]]:
        tokens = words(text)
        return frozenset(tuple(tokens[place : place + size]) for size in (1, 2) for place in range(len(tokens)))

    equal = {plain(row.fields["text"]) for row in train}
    having: dict[tuple[str, ...], list[frozenset[tuple[str, ...]]]] = {}
    for shingle_set in {shingles(text) for text in equal}:
        for shingle in shingle_set:
            having.setdefault(shingle, []).append(shingle_set)
    copied = near = 0
    for row in test:
        own = shingles(row.fields["text"])
        n_shared = Counter(other for shingle in own for other in having.get(shingle, ()))
        if plain(row.fields["text"]) in equal:
            copied += 1
        elif any(n >= 0.8 * (len(own) + len(other) - n) for other, n in n_shared.items()):
            near += 1
    return copied, near


@needs_shared
def test_a_random_split_of_the_sms_collection_leaks_and_ours_does_not():
    rows = sms_rows()
    shuffled = random.Random(0).sample(rows, len(rows))
    n_copied, n_near = leaks(shuffled[1115:], shuffled[:1115])
    assert n_copied > 100 and n_near > 20  # 12 % of the test rows and 3 % more
    parts = split(rows, validation=0.1, test=0.2, seed=0, stratify=True, near=0.8)
    assert leaks([*parts.train, *parts.validation], parts.test) == (0, 0)
    assert leaks(parts.train, parts.validation) == (0, 0)
    assert (len(parts.train) + len(parts.validation) + len(parts.test), len(parts.test)) == (5574, 1115)
    copies_together = split(rows, validation=0.1, test=0.2, seed=0, stratify=True)  # equal prompts only
    n_copied, n_near = leaks([*copies_together.train, *copies_together.validation], copies_together.test)
    assert n_copied == 0 and n_near > 20


@needs_shared
def test_the_sms_collection_splits_by_label():
    rows, dropped = drop_duplicates(sms_rows())
    assert (len(rows), len(dropped)) == (5171, 403)
    parts = split(rows, validation=0.1, test=0.2, seed=0, stratify=True, near=0.8)
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
    equal, near = remove_overlap(train, held_out), remove_overlap(train, held_out, near=0.8)
    assert [len(found.kept) + len(found.removed) for found in (equal, near)] == [13_784, 13_784]
    assert {r.fields["text"] for r in train} & {r.fields["text"] for r in held_out} <= {r.fields["text"] for r in equal.removed}
    assert set(sources(equal.removed)) < set(sources(near.removed)) and (len(equal.removed), len(near.removed)) == (11, 32)
