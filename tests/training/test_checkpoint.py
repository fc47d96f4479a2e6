"""Whole or not there, and every changed bit is noticed."""

import json
from pathlib import Path

import pytest
import torch

from tunesmith.errors import MachineFailed
from tunesmith.training.checkpoint import MANIFEST, newest_valid, open_valid, problem_of, save, steps_of


def write(root: Path, step: int, keep: int = 10, best: int | None = None) -> Path:
    weights = {"a": torch.full((3, 5), float(step)), "b": torch.arange(7)}
    return save(root, step, {"model": weights, "optimizer": {"a.step": torch.tensor(float(step))}}, {"note": f"step {step}"}, keep, best)


def test_what_is_saved_comes_back(tmp_path: Path):
    write(tmp_path, 3)
    found, broken = newest_valid(tmp_path)
    assert found is not None
    assert (found.step, found.state["note"], broken) == (3, "step 3", [])
    assert torch.equal(found.tensors("model")["a"], torch.full((3, 5), 3.0))
    assert torch.equal(found.tensors("optimizer")["a.step"], torch.tensor(3.0))


def test_one_flipped_bit_anywhere_is_noticed_and_the_step_before_is_used(tmp_path: Path):
    write(tmp_path, 1)
    newest = write(tmp_path, 2)
    for file in sorted(newest.iterdir()):
        whole = file.read_bytes()
        for position in range(0, len(whole), max(1, len(whole) // 12)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << (position % 8)
            file.write_bytes(damaged)
            found, broken = newest_valid(tmp_path)
            assert found is not None, (file.name, position)
            assert found.step == 1, (file.name, position)
            assert "step 2 is not used" in broken[0]
        file.write_bytes(whole)
    assert problem_of(newest) is None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", MANIFEST])
def test_a_missing_or_shortened_file_is_noticed(tmp_path: Path, name: str):
    path = write(tmp_path, 1)
    (path / name).write_bytes((path / name).read_bytes()[:-1])
    assert open_valid(path) is None
    (path / name).unlink()
    assert open_valid(path) is None


def test_a_file_that_the_manifest_does_not_know_is_noticed(tmp_path: Path):
    path = write(tmp_path, 1)
    (path / "extra.json").write_text("{}")
    assert problem_of(path) == "its files are not those of the manifest"


def test_a_manifest_cannot_point_out_of_its_folder(tmp_path: Path):
    path = write(tmp_path, 1)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"]["../../secret"] = {"bytes": 1, "sha256": "0"}
    (path / MANIFEST).write_text(json.dumps(manifest))
    assert problem_of(path) is not None


def test_an_unfinished_save_is_never_listed_and_is_cleared_by_the_next(tmp_path: Path):
    write(tmp_path, 1)
    half = tmp_path / "step-00000002.tmp-deadbeef"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    found, _ = newest_valid(tmp_path)
    assert found is not None
    assert found.step == 1
    write(tmp_path, 3)
    assert not half.exists()


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path):
    for step in range(1, 7):
        write(tmp_path, step, keep=2, best=2 if step >= 2 else None)
    assert [step for step, _ in steps_of(tmp_path)] == [2, 5, 6]


def test_a_failed_write_leaves_the_older_checkpoint_and_says_how_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, 1)
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(MachineFailed, match="disk is full") as caught:
        write(tmp_path, 2)
    assert "bytes needed" in caught.value.where
    monkeypatch.undo()
    found, _ = newest_valid(tmp_path)
    assert found is not None
    assert found.step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
