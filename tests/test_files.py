"""Files and folders that are whole or not there, whoever stops the process or the disk and when."""

import errno
import os
from pathlib import Path

import pytest

from tunesmith.errors import DiskRefused
from tunesmith.files import clear_leftovers, explain_disk, new_folder, remove_folder, write_text


def fill(beside: Path, text: str) -> None:
    beside.mkdir()
    (beside / "weights").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_folder_takes_the_place_of_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path):
    for text in ("old", "new"):
        with new_folder(tmp_path / "adapter") as beside:
            fill(beside, text)
    assert (tmp_path / "adapter" / "weights").read_text() == "new"
    assert names(tmp_path) == ["adapter"]


def test_a_block_that_fails_leaves_the_old_folder(tmp_path: Path):
    with new_folder(tmp_path / "adapter") as beside:
        fill(beside, "old")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "adapter") as beside:
        fill(beside, "half")
        raise RuntimeError
    assert (tmp_path / "adapter" / "weights").read_text() == "old"
    assert names(tmp_path) == ["adapter"]


def test_where_the_last_rename_fails_the_old_folder_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with new_folder(tmp_path / "adapter") as beside:
        fill(beside, "old")
    rename, calls = os.rename, []

    def second_fails(source: str, target: str) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr("os.rename", second_fails)
    with (
        pytest.raises(DiskRefused, match="Input/output error; what was saved before is untouched"),
        new_folder(tmp_path / "adapter") as beside,
    ):
        fill(beside, "new")
    assert len(calls) == 3
    assert (tmp_path / "adapter" / "weights").read_text() == "old"
    assert names(tmp_path) == ["adapter"]


def test_what_a_kill_left_is_cleared_and_what_it_had_moved_aside_is_put_back(tmp_path: Path):
    fill(tmp_path / "adapter.old-0123abcd", "old")
    fill(tmp_path / "adapter.tmp-4567cdef", "new")
    fill(tmp_path / "model", "new")
    fill(tmp_path / "model.old-0123abcd", "old")
    (tmp_path / ".status.json.0123abcd").write_text("{")
    kept = ["report.tmp-1", ".lock", "notes.old-", "x.0123abcd"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    clear_leftovers(tmp_path)
    assert names(tmp_path) == sorted([*kept, "adapter", "model"])
    assert (tmp_path / "adapter" / "weights").read_text() == "old"
    assert (tmp_path / "model" / "weights").read_text() == "new"


def test_a_folder_that_cannot_be_removed_stays_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(tmp_path / "step-1", "x")
    monkeypatch.setattr("os.rename", lambda source, target: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    remove_folder(tmp_path / "step-1")
    assert names(tmp_path) == ["step-1"]
    monkeypatch.undo()
    remove_folder(tmp_path / "step-1")
    assert names(tmp_path) == []


def test_of_several_around_one_write_the_outermost_that_knows_a_size_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(DiskRefused) as caught, explain_disk(tmp_path), explain_disk(tmp_path / "whole", 1_000_000):
        write_text(tmp_path / "part", "x" * 10)
    assert caught.value.where.startswith(f"{tmp_path / 'whole'} (1,000,000 bytes needed, ")
    assert caught.value.remedy == "free some space"


def test_a_disk_that_does_not_even_say_what_is_free_gives_the_same_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(DiskRefused) as caught, explain_disk(tmp_path / "x", 12):
        raise OSError(errno.EIO, "Input/output error")
    assert caught.value.where == f"{tmp_path / 'x'} (12 bytes needed, how many are free cannot be read)"
