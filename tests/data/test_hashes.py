"""A remembered hash is the hash of the file as it is now."""

import os
import time
from pathlib import Path

import pytest

from tunesmith.data import hashes
from tunesmith.data.hashes import FOLDER, forget_gone, known_sha256
from tunesmith.data.spool import VARIABLE
from tunesmith.files import sha256_of


@pytest.fixture
def file(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "LARGE", 10)
    monkeypatch.setattr(hashes, "SETTLED_SECONDS", 0.05)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"0123456789" * 100)
    time.sleep(0.06)
    return path


def records(file: Path) -> list[Path]:
    return sorted((file.parent / "cache" / FOLDER).glob("*.json"))


def test_an_untouched_file_is_not_read_again(file):
    assert known_sha256(file) == sha256_of(file)
    [record] = records(file)
    record.write_text(record.read_text().replace(sha256_of(file), "a record that was read"))
    assert known_sha256(file) == "a record that was read"


def test_whatever_is_done_to_a_file_its_new_hash_is_found(file):
    before = known_sha256(file)
    times = file.stat()
    changed = file.read_bytes().replace(b"5", b"6", 1)

    file.write_bytes(changed)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as large and as old as before
    assert known_sha256(file) == sha256_of(file) != before

    other = file.with_name("other")  # another file in its place, made to look alike
    other.write_bytes(changed.replace(b"7", b"8", 1))
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(file)
    assert known_sha256(file) == sha256_of(file)


def test_a_file_that_has_just_changed_is_not_recorded_and_a_small_one_never(file, monkeypatch):
    file.write_bytes(b"another content")
    assert known_sha256(file) == sha256_of(file) and not records(file)
    time.sleep(0.06)
    monkeypatch.setattr(hashes, "LARGE", 1000)
    assert known_sha256(file) == sha256_of(file) and not records(file)


def test_a_damaged_record_and_one_of_a_file_that_is_gone_do_no_harm(file):
    known_sha256(file)
    [record] = records(file)
    record.write_text("{")
    assert known_sha256(file) == sha256_of(file)
    forget_gone(file.parent / "cache")
    assert records(file) == [record]
    file.unlink()
    forget_gone(file.parent / "cache")
    assert records(file) == []


def test_nothing_is_recorded_where_the_user_wants_no_cache(file, monkeypatch):
    monkeypatch.setenv(VARIABLE, "off")
    assert known_sha256(file) == sha256_of(file) and not (file.parent / "cache").exists()
