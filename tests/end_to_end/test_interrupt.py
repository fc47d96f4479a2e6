"""Ctrl-C, a second Ctrl-C and a kill: what is said, what is kept, and that going on gives what never stopping gives.

Dropout is on, so that a resumed run which drew other random numbers, or saw other rows, would end in other bytes.
"""

import json
import os
import shlex
import signal
import time
from pathlib import Path

import pytest
from shell import LONG, SHORT, finished, run_here, start, tree, wait_for_lines

from tunesmith.runs import RunFolder
from tunesmith.training.checkpoint import newest_valid, problem_of, steps_of

TIMES = {"seconds", "tokens_per_second", "peak_memory_bytes"}


def begin(tiny: str, colours: str, folder: Path):
    return start("train", "--model", tiny, "--data", colours, "--output", folder, "--test", "0.1", *LONG)


@pytest.fixture(scope="module")
def uninterrupted(tiny, colours, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    finished(run_here("train", "--model", tiny, "--data", colours, "--output", folder, "--test", "0.1", *LONG))
    return folder


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter/adapter_model.safetensors").read_bytes()


def logged(folder: Path) -> list[dict]:
    """Every line of metrics.jsonl but for what a clock says."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def same_result(folder: Path, whole: Path) -> None:
    assert logged(folder) == logged(whole)
    assert adapter_bytes(folder) == adapter_bytes(whole)
    one, other = (run.evaluation()["models"][run.name] for run in (RunFolder(folder), RunFolder(whole)))
    assert one == other


def test_ctrl_c_saves_and_prints_the_command_that_goes_on_to_the_same_result(tiny, colours, uninterrupted):
    folder = Path("my runs/colour's")  # a name that a shell would take apart
    process = begin(tiny, colours, folder)
    wait_for_lines(folder / "metrics.jsonl", 9)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    assert "stopping after this step and saving" in err
    step = json.loads((folder / "status.json").read_text())["step"]
    assert f"stopped after step {step} of 90; everything is saved" in err and 9 <= step < 90
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == step
    command = err.rpartition("fix:   ")[2].strip()
    assert shlex.split(command) == ["tunesmith", "resume", str(folder)]
    assert command in run_here("runs", "my runs").out

    said = run_here(*shlex.split(command)[1:])
    finished(said)
    assert f"going on after step {step} of 90" in said.err
    assert "metrics.jsonl" not in said.err, "the log is as the checkpoint holds it"
    same_result(folder, uninterrupted)


def test_a_killed_run_goes_on_from_its_newest_whole_checkpoint_to_the_same_result(tiny, colours, uninterrupted):
    folder = Path("killed")
    process = begin(tiny, colours, folder)
    wait_for_lines(folder / "metrics.jsonl", 24)
    process.kill()
    process.communicate(timeout=60)
    kept, _ = newest_valid(folder / "checkpoints")
    assert kept is not None and kept.step % 7 == 0 and kept.step >= 14
    [line] = run_here("runs", ".").out.splitlines()
    assert "killed  killed" in line and line.endswith("tunesmith resume killed")
    [listed] = json.loads(run_here("runs", ".", "--json").out)
    assert (listed["state"], listed["resume_command"]) == ("killed", "tunesmith resume killed")
    finished(run_here("resume", folder))
    same_result(folder, uninterrupted)


def test_a_second_ctrl_c_stops_at_once_and_leaves_the_last_checkpoint(tiny, colours):
    folder = Path("twice")
    process = start("train", "--model", tiny, "--data", colours, "--output", folder, *LONG)
    wait_for_lines(folder / "metrics.jsonl", 16)
    # both signals reach the process while it cannot act between them: stop it, send, let it go on
    os.kill(process.pid, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    os.kill(process.pid, signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped at once; the steps up to" in err and "Traceback" not in err
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"
    assert "everything is saved" not in err, "it did not wait for the end of the step"
    assert err.rpartition("fix:   ")[2].strip() == "tunesmith resume twice"
    found = steps_of(folder / "checkpoints")
    assert found and all(problem_of(path) is None for _, path in found)
    finished(run_here("resume", folder))


def wait_for_state(folder: Path, state: str) -> None:
    end = time.monotonic() + 60
    while not ((folder / "status.json").is_file() and json.loads((folder / "status.json").read_text())["state"] == state):
        assert time.monotonic() < end, f"{folder} is not {state} after 60 s"
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_before_the_first_step_says_that_nothing_was_saved(tiny, colours, number):
    folder = Path("early")
    process = begin(tiny, colours, folder)
    wait_for_state(folder, "running")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "nothing was saved yet, so it begins again" in err and "Traceback" not in err
    assert err.rpartition("fix:   ")[2].strip() == "tunesmith resume early"
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"
    assert "early  interrupted" in run_here("runs", ".").out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_measuring_keeps_what_was_trained_and_resume_measures_it(tiny, colours, number):
    folder = Path("measured")
    slow = ("--test", "0.5", "--set", "evaluation.batch_size=1", "--set", "evaluation.max_new_tokens=40")
    process = start("train", "--model", tiny, "--data", colours, "--output", folder, *SHORT, *slow)
    wait_for_state(folder, "trained")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    assert "training is finished and saved; measuring was stopped" in err
    assert err.rpartition("fix:   ")[2].strip() == "tunesmith resume measured"
    before = adapter_bytes(folder)
    finished(run_here("resume", folder))
    assert adapter_bytes(folder) == before and RunFolder(folder).evaluation()["rows"] == 24
    assert (folder / "report.html").is_file()
    [listed] = json.loads(run_here("runs", ".", "--json").out)
    assert (listed["state"], listed["resume_command"]) == ("done", None)


def test_ctrl_c_leaves_no_file_half_written(interrupted):
    folder = interrupted()
    assert not [name for name in tree(folder) if ".tmp-" in name or (Path(name).name.startswith(".") and name != ".lock")]
    for name in ("status.json", "checkpoints"):
        assert (folder / name).exists()
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"
    assert not (folder / "adapter").exists(), "an unfinished run has no result to take for one"


def test_an_unfinished_run_has_nothing_to_measure_or_to_talk_to_yet(interrupted):
    folder = interrupted("--test", "0.2")
    for command in (("eval", folder), ("generate", folder, "--prompt", "x"), ("chat", folder)):
        said = run_here(*command)
        assert said.code == 2 and "this run has no adapter yet" in said.err and f"tunesmith resume {folder}" in said.err
