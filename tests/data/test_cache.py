"""Kept rows are the rows that would be made, for as long as nothing that decides them has changed."""

import json
import os
import time

import numpy as np
import pytest
from tests.conftest import byte_level_tokenizer

from tunesmith.config import DataConfig
from tunesmith.data import cache
from tunesmith.data.cache import FACTS, MANIFEST, RowsCache
from tunesmith.data.rows import load_parts, load_rows
from tunesmith.data.spool import VARIABLE
from tunesmith.data.stored import StoredExamples
from tunesmith.data.template import Renderer

LENGTH = 256


@pytest.fixture
def kept_in(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}.", "n": n}) + "\n" for n in range(40))
    )
    return DataConfig(train=str(file), validation=0.2, test=0.2)


def renderer():
    return Renderer(byte_level_tokenizer(), "plain")


def rows_of(config, length=LENGTH, counted=None):
    """As a run gets its rows; `counted` gets an entry each time that they are made anew."""

    def make():
        if counted is not None:
            counted.append(length)
        return load_rows(load_parts(config), config, length, renderer())

    return RowsCache(config, least_examples=1).rows(renderer(), length, make)


def test_the_second_start_finds_the_rows_of_the_first(kept_in, data):
    made = []
    first, second = rows_of(data, counted=made), rows_of(data, counted=made)
    assert made == [LENGTH]
    fresh = load_rows(load_parts(data), data, LENGTH, renderer())
    for rows in (first, second):
        assert isinstance(rows.train, StoredExamples)
        for name in ("train", "validation"):
            for found, expected in zip(getattr(rows, name), getattr(fresh, name), strict=True):
                assert found.source == expected.source
                assert np.array_equal(found.ids, expected.ids) and np.array_equal(found.trained, expected.trained)
        assert (rows.said, rows.counts, rows.files) == (fresh.said, fresh.counts, fresh.files)


def test_whatever_decides_the_rows_makes_them_anew(kept_in, data, tmp_path, monkeypatch):
    made = []
    rows_of(data, counted=made)
    rows_of(data, length=200, counted=made)
    rows_of(data.model_copy(update={"on_too_long": "drop"}), counted=made)
    file = tmp_path / "rows.jsonl"
    file.write_bytes(file.read_bytes().replace(b"What is 7 and", b"What is 8 and"))  # as long as before
    rows_of(data, counted=made)
    monkeypatch.setattr(cache, "_code", lambda: "another version")
    rows_of(data, counted=made)
    assert made == [LENGTH, 200, LENGTH, LENGTH, LENGTH]
    rows_of(data, counted=made)
    assert len(made) == 5


@pytest.mark.parametrize("file", ["train/ids.i32", "train/trained.u8", "train/sources.txt", FACTS, MANIFEST])
def test_one_changed_byte_is_noticed_and_the_rows_are_made_again(kept_in, data, file, capsys):
    made = []
    rows_of(data, counted=made)
    [place] = kept_in.glob(f"*/*/{file}")
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    place.write_bytes(content)
    again = rows_of(data, counted=made)
    assert len(made) == 2 and len(again.train) == 24
    assert "damaged" in capsys.readouterr().err
    rows_of(data, counted=made)
    assert len(made) == 2


def test_few_rows_are_not_kept_and_nothing_is_where_the_user_wants_nothing(tmp_path, data, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    RowsCache(data).rows(renderer(), LENGTH, lambda: load_rows(load_parts(data), data, LENGTH, renderer()))
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv(VARIABLE, "off")
    rows = rows_of(data)
    assert not (tmp_path / "cache").exists() and isinstance(rows.train, list)


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path, data, monkeypatch, capsys):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    assert len(rows_of(data).train) == 24
    assert "not kept" in capsys.readouterr().err


def test_the_entries_longest_unused_go_first(kept_in, data, monkeypatch):
    for length in (100, 120, 140):
        rows_of(data, length=length)
    size = sum(file.stat().st_size for file in kept_in.rglob("*") if file.is_file()) // 3
    monkeypatch.setattr(cache, "MOST_BYTES", int(2.5 * size))
    made = []
    rows_of(data, length=100, counted=made)  # used: now the newest
    rows_of(data, length=160, counted=made)  # 120 and 140 make room as needed
    rows_of(data, length=100, counted=made)
    assert made == [160]


def test_what_a_killed_process_left_half_written_is_no_entry_and_goes(kept_in, data):
    left = RowsCache(data).folder / "entry.tmp-12345678"
    left.mkdir(parents=True)
    (left / "ids.i32").write_bytes(b"half")
    assert RowsCache(data).is_empty
    rows_of(data)
    assert left.is_dir()  # another process may be writing it now
    hours_ago = time.time() - 2 * 3600
    os.utime(left, (hours_ago, hours_ago))
    rows_of(data, length=100)
    assert not left.exists() and not RowsCache(data).is_empty


def test_notes_are_found_under_their_key_only(kept_in, data):
    kept = RowsCache(data)
    assert kept.noted({"check": 1}) is None
    kept.note({"check": 1}, ["3 rows are odd"])
    assert RowsCache(data).noted({"check": 1}) == ["3 rows are odd"]
    assert kept.noted({"check": 2}) is None and kept.is_empty
