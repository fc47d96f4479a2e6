"""From files to training rows: nothing leaks, everything left out is counted and said."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import byte_level_tokenizer

from tunesmith.config import DataConfig
from tunesmith.data.rows import Rows, load_parts, load_rows
from tunesmith.data.template import Renderer
from tunesmith.errors import BadInput


def rows_file(path: Path, prompts: list[str]) -> str:
    path.write_text("".join(json.dumps({"prompt": p, "completion": "spam" if "free" in p else "ham"}) + "\n" for p in prompts))
    return str(path)


def config(train: str, **more: Any) -> DataConfig:
    return DataConfig.model_validate({"train": train, **more})


def rows_of(data: DataConfig, max_length: int = 64) -> Rows:
    return load_rows(load_parts(data), data, max_length, Renderer(byte_level_tokenizer()))


def test_shares_split_the_file_and_copies_of_a_row_stay_together(tmp_path: Path):
    prompts = [f"free {i % 40}" if i % 2 else f"lunch {i % 40}" for i in range(160)]  # every row four times
    parts = load_parts(config(rows_file(tmp_path / "a.jsonl", prompts), validation=0.1, test=0.2))
    sets = [{c.prompt for c in part} for part in (parts.train, parts.validation, parts.test)]
    assert [len(p) for p in (parts.train, parts.validation, parts.test)] == [112, 16, 32]
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]


def test_rows_of_a_test_file_are_removed_from_training_and_counted(tmp_path: Path):
    train = rows_file(tmp_path / "a.jsonl", ["free a", "lunch b", "FREE  c", "d"])
    test = rows_file(tmp_path / "b.jsonl", ["free c", "e"])
    parts = load_parts(config(train, test=test))
    assert [c.source for c in parts.train] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:4"]
    assert parts.counts["overlap_removed"] == 1
    assert any("1 row of train removed" in line and "a.jsonl:3" in line for line in parts.said)


def test_dropped_duplicates_and_long_rows_are_counted_and_said(tmp_path: Path):
    train = rows_file(tmp_path / "a.jsonl", ["free", "free", "lunch", "call me " * 60])
    rows = rows_of(config(train, duplicates="drop", on_too_long="drop"))
    assert len(rows.train) == 2
    assert (rows.counts["duplicates_dropped"], rows.counts["too_long_dropped"]) == (1, 1)
    assert any("1 training examples longer than 64 tokens dropped; the first: a.jsonl:4" in line for line in rows.said)
    assert rows.counts["trained_tokens_per_epoch"] == sum(int(e.trained.sum()) for e in rows.train)


LETTER = "you have won a free prize of {} pounds in our weekly draw, to claim it call now and quote the number of your ticket"


def test_near_copies_of_held_out_rows_are_removed_from_training_unless_that_is_off(tmp_path: Path):
    train = rows_file(tmp_path / "a.jsonl", ["free a", LETTER.format(100), "lunch b", LETTER.format(300)])
    test = rows_file(tmp_path / "b.jsonl", [LETTER.format(200), "e"])
    parts = load_parts(config(train, test=test))
    assert [c.source for c in parts.train] == ["a.jsonl:1", "a.jsonl:3"]
    assert parts.counts["overlap_removed"] == 2
    [line] = [line for line in parts.said if "removed" in line]
    assert "the first: a.jsonl:2, see b.jsonl:1" in line
    assert "near copies of a prompt: 2" in line
    assert len(load_parts(config(train, test=test, near_duplicates="off")).train) == 4
    assert len(load_parts(config(train, test=test, near_duplicates=0.95)).train) == 4


def test_near_copies_stay_in_one_part_and_so_do_rows_of_one_author(tmp_path: Path):
    lines = [{"prompt": LETTER.format(i) if i < 40 else f"lunch {i}", "completion": "x", "author": f"a{i // 8}"} for i in range(400)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    parts = load_parts(config(str(tmp_path / "a.jsonl"), validation=0.1, test=0.2, group_by="author"))
    in_parts = [{c.fields["author"] for c in part} for part in (parts.train, parts.validation, parts.test)]
    assert not (in_parts[0] & in_parts[1] or in_parts[0] & in_parts[2] or in_parts[1] & in_parts[2])
    assert sum({"a0", "a1", "a2", "a3", "a4"} <= authors for authors in in_parts) == 1
    assert any("39 rows more with nearly the prompt of another" in line for line in parts.said)
    assert any("50 values of author" in line for line in parts.said)


def test_a_validation_file_is_kept_apart_from_a_test_share_and_a_test_file_from_a_validation_share(tmp_path: Path):
    prompts = [f"free {i} for {i * i}" for i in range(50)]
    train = rows_file(tmp_path / "a.jsonl", [*prompts, LETTER.format(1)])
    other = rows_file(tmp_path / "b.jsonl", [*prompts[:25], LETTER.format(2)])
    for kinds in ({"validation": other, "test": 0.2}, {"validation": 0.2, "test": other}, {"validation": other, "test": other}):
        parts = load_parts(config(train, **kinds))
        asked = [{c.prompt[0].content for c in part} for part in (parts.train, parts.validation, parts.test)]
        assert not (asked[0] & asked[1] or asked[0] & asked[2] or asked[1] & asked[2])
        assert LETTER.format(1) not in asked[0]


def test_without_rows_held_out_nothing_is_compared(tmp_path: Path):
    parts = load_parts(config(rows_file(tmp_path / "a.jsonl", [LETTER.format(i) for i in range(5)])))
    assert len(parts.train) == 5
    assert not any("nearly" in line for line in parts.said)


def test_removing_everything_is_an_error(tmp_path: Path):
    train = rows_file(tmp_path / "a.jsonl", ["free"])
    with pytest.raises(BadInput, match="every training row is also in"):
        load_parts(config(train, test=rows_file(tmp_path / "b.jsonl", ["free"])))


def test_sms_spam_splits_without_leaks_after_its_403_copies_are_dropped(shared: Path):
    parts = load_parts(
        config(
            str(shared / "data/sms_spam/SMSSpamCollection.tsv"), columns=["label", "text"], header=False, quoting=False,
            prompt="Is this message spam or ham?\n\n{text}", completion="{label}", validation=0.1, test=0.2, duplicates="drop",
        )
    )  # fmt: skip
    assert (parts.counts["read"], parts.counts["duplicates_dropped"]) == (5574, 403)
    assert abs(parts.counts["test"] - 0.2 * 5171) <= 1
    shares = [sum(c.answer == "spam" for c in part) / len(part) for part in (parts.train, parts.validation, parts.test)]
    assert max(shares) - min(shares) < 0.005


def test_a_limit_takes_that_many_training_rows_and_leaves_the_held_out_ones(tmp_path: Path):
    train = rows_file(tmp_path / "a.jsonl", [f"free {i}" if i % 4 == 0 else f"lunch {i}" for i in range(200)])
    whole = load_parts(config(train, validation=0.1, test=0.2))
    less = load_parts(config(train, validation=0.1, test=0.2, limit=40))
    assert len(less.train) == 40
    assert sum(c.answer == "spam" for c in less.train) == 10
    assert (less.validation, less.test) == (whole.validation, whole.test)
    assert {c.source for c in less.train} < {c.source for c in whole.train}


def test_a_row_of_many_megabytes_is_treated_before_it_is_tokenised(tmp_path: Path):
    train = rows_file(tmp_path / "a.jsonl", ["free", "call " * 1_000_000])
    with pytest.raises(BadInput, match="far longer than") as caught:
        rows_of(config(train))
    assert caught.value.where.startswith("a.jsonl:2: 5,000,003 characters, so more than ")
    assert rows_of(config(train, on_too_long="drop")).counts["too_long_dropped"] == 1
    with pytest.raises(BadInput, match="the prompt is"):  # truncated, nothing of its answer would be left
        rows_of(config(train, on_too_long="truncate"))


def test_rows_that_are_merely_too_long_are_counted_and_the_length_that_would_do_is_said(tmp_path: Path):
    prompts = ["free", *("lunch " * (100 * n) for n in (1, 2, 3))]  # none could fit: their characters say so before any token
    train = rows_file(tmp_path / "a.jsonl", prompts)
    with pytest.raises(BadInput, match=r"4 of 4 examples are longer than training.max_length = 8; the longest has [\d,]+ tokens") as caught:
        rows_of(config(train), max_length=8)
    longest = int(re.findall(r"training.max_length: (\d+)", caught.value.fix)[0])
    assert len(rows_of(config(train), max_length=longest).train) == 4


def test_what_a_limit_leaves_out_is_counted(tmp_path: Path):
    counts = load_parts(config(rows_file(tmp_path / "a.jsonl", [f"lunch {i}" for i in range(50)]), limit=20)).counts
    assert (counts["left_out_by_limit"], counts["train"]) == (30, 20)


def test_a_long_text_is_cut_into_windows_in_which_every_token_is_learned_once(tmp_path: Path):
    book = tmp_path / "book.txt"
    book.write_text("free lunch today " * 100)
    rows = rows_of(config(str(book)))
    [whole] = Renderer(byte_level_tokenizer()).render(load_parts(config(str(book))).train[0])
    assert max(len(e) for e in rows.train) == 64
    learned = [int(i) for e in rows.train for i, t in zip(e.ids[1:], e.trained[1:], strict=True) if t]
    assert learned == whole.ids[1:].tolist()
    assert any(f"1 training texts cut into {len(rows.train)} windows" in line for line in rows.said)


@pytest.mark.parametrize(
    ("policy", "words"), [("keep", "learned as the beginning"), ("strip", "left out"), ("untrained", "does not learn it")]
)
def test_what_is_done_with_thinking_is_said_when_rows_have_some(tmp_path: Path, policy: str, words: str):
    train = tmp_path / "a.jsonl"
    answers = ["<think>\nbecause\n</think>\n\nspam", "ham"]
    train.write_text("".join(json.dumps({"prompt": f"lunch {n}", "completion": answer}) + "\n" for n, answer in enumerate(answers)))
    data = config(str(train), thinking=policy)
    rows = load_rows(load_parts(data), data, 64, Renderer(byte_level_tokenizer(), thinking=policy))
    assert [
        line for line in rows.said if words in line and "1 training row with thinking: " in line and f"(data.thinking: {policy})" in line
    ]
    learned = [byte_level_tokenizer().decode(e.ids[e.trained]) for e in rows.train]
    assert any("because" in text for text in learned) == (policy == "keep")
    data = config(rows_file(tmp_path / "b.jsonl", ["lunch"]), thinking=policy)
    assert not any("thinking" in line for line in load_rows(load_parts(data), data, 64, Renderer(byte_level_tokenizer())).said)
