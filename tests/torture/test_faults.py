"""Disks that refuse, disks that fill up, bits that flip: what was saved stays, and what is wrong is said."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from ours import Scenario, result_of, scenarios

from tunesmith import api
from tunesmith.config import validate
from tunesmith.errors import BadInput, DiskRefused
from tunesmith.runs import RunFolder
from tunesmith.training.checkpoint import newest_valid, steps_of

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def lora(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """A LoRA run of 10 steps with dropout, that saves at every second one and keeps two."""
    return next(s for s in scenarios(tiny_model, tmp_path_factory.mktemp("lora"), ("dropout",)) if s.method == "lora")


@pytest.fixture(scope="module")
def whole(lora: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run, never stopped; tests only copy it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    api.train(validate(lora.config(folder), "test")[0], check=False)
    return folder


def unfinished(whole: Path, folder: Path) -> RunFolder:
    """A copy that was stopped after its last step, before its result was written."""
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "adapter")
    run = RunFolder(folder)
    run.set_status(state="interrupted")
    return run


def flip(file: Path, draw: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


# --- flipped bits -------------------------------------------------------------------------------------------------------


def test_of_two_hundred_flipped_bits_two_hundred_are_noticed_and_the_checkpoint_before_is_used(whole: Path, tmp_path: Path):
    run = unfinished(whole, tmp_path / "run")
    (before, _), (newest, place) = steps_of(run.checkpoints)[-2:]
    files = sorted(place.iterdir())
    assert {file.name for file in files} == {"MANIFEST.json", "adapter_model.safetensors", "optimizer.safetensors", "state.json"}
    draw, noticed = random.Random(0), 0
    for n in range(200):
        file = files[n % len(files)]
        good = file.read_bytes()
        flip(file, draw)
        found, broken = newest_valid(run.checkpoints)
        assert found is not None
        noticed += found.step == before and f"checkpoint of step {newest} is not used: " in broken[0]
        file.write_bytes(good)
    assert noticed == 200
    assert newest_valid(run.checkpoints)[1] == []


def test_a_run_whose_newest_checkpoint_is_damaged_ends_in_the_same_bits(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = unfinished(whole, tmp_path / "run")
    (before, _), (newest, place) = steps_of(run.checkpoints)[-2:]
    flip(place / "MANIFEST.json", random.Random(1))
    api.resume(run.path)
    said = capsys.readouterr().err
    assert f"checkpoint of step {newest} is not used" in said
    assert f"going on after step {before} of {newest}" in said
    assert result_of(run.path) == result_of(whole)


def test_a_best_checkpoint_that_cannot_be_made_again_is_said_to_be_lost(lora: Scenario, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = lora.config(tmp_path / "run")
    config["training"] |= {"learning_rate": 0.2, "validate_every": 1, "keep_checkpoints": 1, "early_stopping": 3}
    run = api.train(validate(config, "test")[0], check=False)
    best, last = steps_of(run.checkpoints)
    flip(best[1] / "adapter_model.safetensors", random.Random(0))
    shutil.rmtree(run.adapter)
    run.set_status(state="interrupted")
    api.resume(run.path)
    said = capsys.readouterr().err
    assert f"the best one so far, of step {best[0]}, is damaged" in said
    assert f"no earlier one is left, so that of step {last[0]} is used after all" in said
    assert "the best checkpoint is lost, so the best is chosen among the steps after" in said
    assert run.status()["state"] == "done"


@pytest.mark.parametrize("name", ["metrics.jsonl", "status.json", "config.yaml"])
def test_a_damaged_log_status_or_config_never_ends_in_a_traceback_and_loses_no_weight(whole: Path, tmp_path: Path, name: str):
    draw, refused = random.Random(0), 0
    for n in range(5):
        run = unfinished(whole, tmp_path / f"{n}")
        good = (run.path / name).read_bytes()
        flip(run.path / name, draw)
        try:
            api.resume(run.path)
        except BadInput as error:  # never anything else, and what it tells to do helps
            refused += 1
            assert error.where
            assert error.fix
            if "delete it, then tunesmith resume" in error.fix:
                (run.path / name).unlink()
            else:
                (run.path / name).write_bytes(good)
            api.resume(run.path)
        assert (run.adapter / "adapter_model.safetensors").read_bytes() == (whole / "adapter/adapter_model.safetensors").read_bytes()
    assert refused == 0 or name != "metrics.jsonl", "a log that nothing depends on stops no run"


def test_the_data_are_still_compared_where_the_status_is_gone(whole: Path, tmp_path: Path, lora: Scenario):
    run = unfinished(whole, tmp_path / "run")
    (run.path / "status.json").unlink()
    other = tmp_path / "rows.jsonl"
    other.write_text(lora.rows.read_text("utf-8").replace("prize", "price"), encoding="utf-8")
    config = (run.path / "config.yaml").read_text("utf-8")
    good = lora.rows.read_bytes()
    try:
        lora.rows.write_bytes(other.read_bytes())
        with pytest.raises(BadInput, match="the data changed since this run began"):
            api.resume(run.path)
    finally:
        lora.rows.write_bytes(good)
    assert (run.path / "config.yaml").read_text("utf-8") == config


# --- a disk that refuses ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def failing_calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that lets a process's writing calls fail."""
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("a C compiler and Linux are needed to let single calls fail")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, HERE / "faults.c", "-ldl"], check=True)
    return library


def test_a_save_that_fails_at_any_call_for_any_reason_leaves_the_old_checkpoints(failing_calls: Path):
    env = {**os.environ, "LD_PRELOAD": str(failing_calls), "OMP_NUM_THREADS": "1"}
    in_memory = Path("/dev/shm")
    with TemporaryDirectory(dir=in_memory if in_memory.is_dir() else None) as place:
        command = [sys.executable, HERE / "failing_writes.py", place, failing_calls]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["problems"] == []
    assert found["calls"] >= 30, "it caught the calls of a whole save"
    assert found["tried"] == 8 * found["calls"]  # 4 reasons; once, and from then on
    assert found["refused"] > 0.9 * found["tried"], "the others are what retention does after the save"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for a checkpoint or two."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "none", place], capture_output=True).returncode != 0:
        pytest.skip("mounting a file system needs more rights than this user has")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_run_on_a_disk_that_fills_up_goes_on_to_the_same_bits_once_there_is_room(lora: Scenario, whole: Path, small_disk: Path):
    config = lora.config(small_disk / "run")
    with pytest.raises(DiskRefused, match="the disk is full; what was saved before is untouched") as caught:
        api.train(validate(config, "test")[0], check=False)
    run = RunFolder(small_disk / "run")
    assert "bytes needed, " in caught.value.where
    assert caught.value.fix == f"free some space, then tunesmith resume {run.path}"
    kept = newest_valid(run.checkpoints)[0]
    assert kept is not None
    assert kept.step >= 2
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    api.resume(run.path)
    assert result_of(run.path) == result_of(whole)
