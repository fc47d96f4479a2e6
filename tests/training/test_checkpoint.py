"""Whole or not there, and every changed bit is noticed."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import MachineFailed
from tunesmith.runs import RunFolder
from tunesmith.training.checkpoint import MANIFEST, best_problem, newest_valid, open_valid, problem_of, save, steps_of


def write(root: Path, step: int, keep: int = 10, best: int | None = None) -> Path:
    weights = {"a": torch.full((3, 5), float(step)), "b": torch.arange(7)}
    return save(root, step, {"model": weights, "optimizer": {"a.step": torch.tensor(float(step))}}, {"note": f"step {step}"}, keep, best)


def newest_step(root: Path) -> int | None:
    found, _ = newest_valid(root)
    return found.step if found is not None else None


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


def test_an_unfinished_save_is_never_listed_and_is_cleared_by_the_next_process(tmp_path: Path):
    run = RunFolder(tmp_path)
    write(run.checkpoints, 1)
    half = run.checkpoints / "step-00000002.tmp-deadbeef"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert newest_step(run.checkpoints) == 1
    with run.only_process():
        assert not half.exists()
        assert newest_step(run.checkpoints) == 1


def test_a_kill_while_a_step_is_saved_again_leaves_the_first_save(tmp_path: Path):
    run = RunFolder(tmp_path)
    write(run.checkpoints, 1).rename(run.checkpoints / "step-00000001.old-deadbeef")
    with run.only_process():
        assert newest_step(run.checkpoints) == 1


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path):
    for step in range(1, 7):
        write(tmp_path, step, keep=2, best=2 if step >= 2 else None)
    assert [step for step, _ in steps_of(tmp_path)] == [2, 5, 6]


def test_where_the_best_is_damaged_a_step_from_before_it_makes_it_again(tmp_path: Path):
    for step, best in ((1, None), (2, 2), (3, 2)):
        write(tmp_path, step, best=best)
    flip(tmp_path / "step-00000002" / "model.safetensors", 300)
    found, broken = newest_valid(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "step 3 is not used: the best one so far, of step 2, is damaged: model.safetensors was changed" in broken[0]
    assert "step 2 is not used: model.safetensors was changed" in broken[1]


def test_where_nothing_from_before_the_best_is_left_the_newest_is_used_and_that_is_said(tmp_path: Path):
    for step, best in ((2, 2), (3, 2), (4, 2)):
        write(tmp_path, step, best=best)
    flip(tmp_path / "step-00000002" / "state.json", 3)
    found, broken = newest_valid(tmp_path)
    assert found is not None
    assert found.step == 4
    assert broken[-1] == "but no earlier one is left, so that of step 4 is used after all"


def test_steps_of_a_future_that_was_given_up_go_with_the_next_save(tmp_path: Path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    write(tmp_path, 2)  # the run went back to step 1
    assert [step for step, _ in steps_of(tmp_path)] == [1, 2]


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position % len(data)] ^= 1 << (position % 8)
    file.write_bytes(data)


def valid_steps(root: Path) -> set[int]:
    return {step for step, path in steps_of(root) if problem_of(path) is None}


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    keep=st.integers(1, 3),
    deeds=st.lists(
        st.sampled_from(["save", "save", "save as the best", "flip the newest", "flip the oldest", "resume"]), min_size=4, max_size=10
    ),
)
def test_whatever_happens_retention_never_removes_the_best_or_the_only_valid_one(keep: int, deeds: list[str]):
    with TemporaryDirectory() as folder, patch("os.fsync"):  # which files there are is the question, and the disk is slow
        root, step, best = Path(folder) / "checkpoints", 0, None
        for deed in deeds:
            steps = [step for step, _ in steps_of(root)]
            if deed.startswith("save"):
                step += 1
                best = step if deed == "save as the best" else best
                write(root, step, keep=keep, best=best)
                newest = [*(s for s in steps if s < step), step][-keep:]
                assert [s for s, _ in steps_of(root)] == sorted({*newest, *({best} & {*steps, step})})
                assert step in valid_steps(root)
            elif deed == "resume":
                found, _ = newest_valid(root)
                assert (found is None) == (not valid_steps(root))
                step = found.step if found else 0
                best = found.state["best"] if found and best_problem(found) is None else None
            elif steps:
                flip(steps_of(root)[-1 if deed == "flip the newest" else 0][1] / "model.safetensors", 250)


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
