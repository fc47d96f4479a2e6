"""Rows on disk are the rows they were, and every result with them is the one with rows in memory."""

import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import byte_level_tokenizer

from tunesmith.config import DataConfig
from tunesmith.data import spool
from tunesmith.data.checks.check import check, open_files
from tunesmith.data.conversation import Conversation, Message, ToolCall
from tunesmith.data.formats import read_conversations
from tunesmith.data.rows import load_parts, load_rows
from tunesmith.data.spool import VARIABLE, Joined, Numbers, OnDisk, Picked, Scratch, Texts, joined, packed, picked, unpacked
from tunesmith.data.stored import StoredExamples
from tunesmith.data.template import Renderer
from tunesmith.errors import DiskRefused

ODD = [
    Conversation((Message("user", "Wie geht’s, 你好? \u2028 \x1f", False), Message("assistant", "gut\r\n", True)), "a.jsonl:1", {"n": 1, "x": None}),
    Conversation((Message("text", "", True),), "b/c.txt:12", {}, "task"),
    Conversation(
        (
            Message("user", "?", False),
            Message("assistant", "", True, "hm", (ToolCall("find", {"q": [1, 2.5, -0.0]}, "c1"), ToolCall("g", "no object")), None, None, "<t>", ""),
            Message("tool", "[]", False, name="find", call_id="c1"),
            Message("assistant", "yes", False),
        ),
        "d.csv:7", {"deep": {"a": [{"b": [True]}]}, "big": 10**400}, "", ({"type": "function"},),
    ),
]  # fmt: skip


def everything(row: Conversation) -> tuple[object, ...]:
    return row.messages, row.source, row.fields, row.task, row.tools


def test_a_row_comes_back_from_disk_as_it_was():
    for row in ODD:
        assert everything(unpacked(packed(row))) == everything(row)
        assert str(unpacked(packed(row)).fields) == str(row.fields)  # 1 stays 1, not 1.0 or True
    half = replace(ODD[1], messages=(Message("text", "half a character \ud800", True),))
    assert unpacked(packed(half)) == half


def test_rows_on_disk_are_a_sequence_in_any_order(monkeypatch):
    monkeypatch.setattr(spool, "IN_MEMORY_BYTES", 100)  # so that most of it is in the file, and some is not
    texts = [f"text {i} " + "é" * (i % 7) * (i % 50 == 0) + "x" * (i % 13) for i in range(1700)]
    stored = Texts(texts)
    assert list(stored) == texts and len(stored) == 1700 and stored[-1] == texts[-1] and list(stored[5:9]) == texts[5:9]
    with pytest.raises(IndexError):
        stored[1700]
    order = np.random.default_rng(0).permutation(1700)[:1000]
    assert list(picked(stored, order)) == [texts[i] for i in order]
    assert list(picked(picked(stored, order), [3, 3, 0])) == [texts[order[i]] for i in (3, 3, 0)]
    both = joined([stored, picked(stored, order)])
    assert list(both) == [*texts, *(texts[i] for i in order)] and both[1705] == texts[order[5]]
    mixed = [0, 1699, 1700, 2699, 5]
    assert isinstance(both, Joined) and list(picked(both, mixed)) == [both[i] for i in mixed]
    assert isinstance(picked(texts, [1, 0]), list) and picked(texts, [1, 0]) == texts[1::-1]
    assert isinstance(joined([texts, []]), list) and isinstance(both[2:4], Picked)


def test_pieces_of_a_long_array_are_read_where_they_are(monkeypatch):
    monkeypatch.setattr(spool, "IN_MEMORY_BYTES", 1000)
    numbers = Numbers(np.uint64)
    for start in range(0, 50_000, 7000):
        numbers.append(np.arange(start, min(start + 7000, 50_000), dtype=np.uint64))
    assert len(numbers) == 50_000 and numbers.read(6990, 7010).tolist() == list(range(6990, 7010))
    starts, lengths = np.array([0, 10, 10, 600, 49_990]), np.array([3, 0, 5, 2, 10])
    assert numbers.gathered(starts, lengths).tolist() == [0, 1, 2, *range(10, 15), 600, 601, *range(49_990, 50_000)]


SMS = {"columns": ["label", "text"], "header": False, "quoting": False, "prompt": "Spam or ham?\n\n{text}", "completion": "{label}"}
SLOTS = {"prompt": "{text}", "completion": '{"intent": {intent:json}, "slots": {slots:json}}'}


@pytest.mark.parametrize("name", ["sms_spam/SMSSpamCollection.tsv", "snips_slots/validate.jsonl"])
def test_real_data_give_the_same_parts_examples_and_findings_from_disk_as_from_memory(name, shared, monkeypatch):
    sms = name.startswith("sms")
    own = {**SMS, "duplicates": "drop"} if sms else {**SLOTS, "group_by": "intent", "near_duplicates": "off"}
    config = DataConfig(train=str(shared / "data" / name), validation=0.1, test=0.2, **own)
    renderer = Renderer(byte_level_tokenizer())

    def made():
        parts = load_parts(config)
        return parts, None if sms else load_rows(parts, config, 320, renderer), None if sms else check(open_files(config), config)

    monkeypatch.setattr(spool, "MANY_ROWS", 1 << 30)
    memory_parts, memory_rows, memory_report = made()
    monkeypatch.setattr(spool, "MANY_ROWS", 100)
    monkeypatch.setattr(spool, "IN_MEMORY_BYTES", 1 << 14)
    disk_parts, disk_rows, disk_report = made()

    assert isinstance(memory_parts.train, list) and isinstance(disk_parts.train, Picked) and isinstance(disk_parts.train.base, OnDisk)
    for part in ("train", "validation", "test"):
        one, other = getattr(memory_parts, part), getattr(disk_parts, part)
        assert len(one) == len(other) and all(everything(a) == everything(b) for a, b in zip(one, other, strict=True))
    assert (memory_parts.said, memory_parts.counts) == (disk_parts.said, disk_parts.counts)
    if not sms:
        assert {**memory_report.as_json(), "seconds": 0} == {**disk_report.as_json(), "seconds": 0}
        assert (memory_rows.said, memory_rows.counts) == (disk_rows.said, disk_rows.counts)
        assert isinstance(memory_rows.train, list) and isinstance(disk_rows.train, StoredExamples)
        for a, b in zip(memory_rows.train, disk_rows.train, strict=True):
            assert (a.source, a.ids.tolist(), a.trained.tolist()) == (b.source, b.ids.tolist(), b.trained.tolist())


def test_a_large_file_is_read_to_disk_and_a_small_one_to_a_list(tmp_path, monkeypatch):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"prompt": "What is {i}?", "completion": "{i}"}}\n' for i in range(300)))
    small = read_conversations(DataConfig(train=str(file))).conversations
    monkeypatch.setattr(spool, "MANY_ROWS", 200)
    large = read_conversations(DataConfig(train=str(file))).conversations
    monkeypatch.setattr(spool, "MANY_ROWS", 10_000)
    monkeypatch.setattr(spool, "MANY_CHARACTERS", 2000)
    long = read_conversations(DataConfig(train=str(file))).conversations
    assert isinstance(small, list) and isinstance(large, OnDisk) and isinstance(long, OnDisk)
    assert list(map(everything, small)) == list(map(everything, large)) == list(map(everything, long))


def test_a_file_that_may_not_grow_is_an_error_with_what_where_and_fix(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(spool, "IN_MEMORY_BYTES", 1 << 12)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    scratch = Scratch()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, before[1]))
    try:
        with pytest.raises(DiskRefused) as caught:
            for _ in range(10):
                scratch.append(b"x" * (1 << 12))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = caught.value
    assert "rows are put there while they are worked on" in error.what and "free)" in error.where
    assert str(tmp_path / "cache") in error.where and f"{VARIABLE}=FOLDER" in error.fix


KEEPS_ROWS = """
import sys, time
from tunesmith.data.spool import Texts
texts = Texts("x" * 1000 for _ in range(10_000))
print(len(texts), flush=True)
time.sleep(60)
"""


def test_nothing_is_left_of_rows_on_disk_when_the_process_is_killed(tmp_path: Path):
    command = [sys.executable, "-c", KEEPS_ROWS]
    with subprocess.Popen(command, env={**os.environ, VARIABLE: str(tmp_path)}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "10000\n"
        process.send_signal(signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_where_the_cache_is_off_or_cannot_be_written_the_usual_temporary_folder_is_used(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    for value in ("off", str(tmp_path / "file" / "cache")):
        monkeypatch.setenv(VARIABLE, value)
        file, folder = spool.unnamed_file()
        file.close()
        assert folder == Path(spool.tempfile.gettempdir())
