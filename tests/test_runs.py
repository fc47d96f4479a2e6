"""A run folder keeps what it was given and survives torn lines."""

import errno
import os
from pathlib import Path

import pytest

from tunesmith.config import validate
from tunesmith.errors import BadInput, MachineFailed
from tunesmith.files import explain_disk
from tunesmith.runs import RunFolder, list_runs


def create(path: Path) -> RunFolder:
    return RunFolder.create(
        validate({"model": "acorn", "output": str(path), "data": {"train": "x"}}, "test")[0], command="tunesmith train x.yaml"
    )


def test_a_new_folder_holds_its_config_and_status_and_is_listed(tmp_path: Path):
    folder = create(tmp_path / "runs" / "my run!")
    assert folder.run().model == "acorn"
    assert folder.status()["command"] == "tunesmith train x.yaml"
    assert folder.name == "my-run"
    assert [f.path for f in list_runs(tmp_path)] == [folder.path]


def test_an_output_that_is_a_file_is_said_to_be_one(tmp_path: Path):
    (tmp_path / "run").write_text("precious")
    with pytest.raises(BadInput, match="the output is a file"):
        create(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "precious"


def test_an_output_below_a_file_names_the_file(tmp_path: Path):
    (tmp_path / "notes").write_text("precious")
    with pytest.raises(BadInput, match=f"{tmp_path / 'notes'} is a file, and the output would lie in it"):
        create(tmp_path / "notes" / "runs" / "x")


def test_a_run_that_is_being_trained_is_not_offered_to_be_resumed(tmp_path: Path):
    for state in ("running", "failed"):  # failed: what a resumed run has in its status until it is prepared
        folder = create(tmp_path / state)
        folder.set_status(state=state)
        with folder.only_process(), pytest.raises(BadInput, match="another process is training a run in this folder") as caught:
            create(folder.path)
        assert "resume" not in caught.value.fix


def test_nothing_that_is_there_is_ever_overwritten(tmp_path: Path):
    create(tmp_path / "run")
    with pytest.raises(BadInput, match="already holds a run"):
        create(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match="not empty"):
        create(tmp_path / "other")


def test_a_line_torn_by_a_crash_is_passed_over_and_later_steps_are_forgotten(tmp_path: Path):
    folder = create(tmp_path / "run")
    for step in (1, 2, 3):
        folder.log({"step": step, "loss": 1.0 / step})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in folder.metrics()] == [1, 2, 3]
    folder.forget_after(2)
    assert [row["step"] for row in folder.metrics()] == [1, 2]


def logged(folder: RunFolder, steps: int) -> Path:
    for step in range(1, steps + 1):
        folder.log({"step": step, "loss": 1.0 / step})
    return folder.path / "metrics.jsonl"


def test_damaged_lines_of_the_log_are_kept_aside_and_counted(tmp_path: Path):
    folder = create(tmp_path / "run")
    log = logged(folder, 5)
    lines = log.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"step"', b'\xffstep"')
    lines[3] = b"[4]\n"
    log.write_bytes(b"".join(lines))
    said = folder.forget_after(4)
    assert [row["step"] for row in folder.metrics()] == [1, 3]
    assert (folder.path / "metrics.damaged.jsonl").read_bytes() == lines[1] + lines[3]
    assert said == [
        "metrics.jsonl: 2 lines cannot be read, and moved to metrics.damaged.jsonl",
        "metrics.jsonl: lines are missing for 2 of the first 4 steps; the weights do not depend on them",
    ]
    assert folder.forget_after(3) == ["metrics.jsonl: lines are missing for 1 of the first 3 steps; the weights do not depend on them"]


def test_a_whole_log_is_nothing_to_speak_of(tmp_path: Path):
    folder = create(tmp_path / "run")
    before = logged(folder, 3).read_bytes()
    folder.log({"step": 3, "validation_loss": 0.5})
    assert folder.forget_after(3) == []
    assert (folder.path / "metrics.jsonl").read_bytes().startswith(before)


@pytest.mark.parametrize("damage", [b"{", b"[]", b"\xff{}", b"[" * 100_000])
def test_a_damaged_status_says_what_to_do_and_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes):
    folder = create(tmp_path / "run")
    (folder.path / "status.json").write_bytes(damage)
    with pytest.raises(BadInput, match=r"status.json cannot be read") as caught:
        folder.status()
    assert caught.value.fix == f"delete it, then tunesmith resume {folder.path}"
    folder.set_status(state="running", step=7)
    assert folder.status()["step"] == 7
    assert (folder.path / "status.damaged.json").read_bytes() == damage
    assert "it is kept as" in capsys.readouterr().err


def test_a_run_that_was_killed_while_its_folder_was_made_makes_room_for_the_same_command(tmp_path: Path):
    path = tmp_path / "run"
    path.mkdir()
    (path / ".config.yaml.0123abcd").write_text("mod")
    assert create(path).run().model == "acorn"
    with RunFolder(path).only_process():
        assert sorted(p.name for p in path.iterdir()) == [".lock", "config.yaml", "status.json"]


def test_a_folder_that_is_no_run_names_the_nearest(tmp_path: Path):
    create(tmp_path / "spam")
    with pytest.raises(BadInput) as caught:
        RunFolder.open(tmp_path / "spma")
    assert "spam" in caught.value.fix


def no_run(path: Path) -> BadInput:
    with pytest.raises(BadInput) as caught:
        RunFolder.open(path)
    return caught.value


def test_what_is_no_run_folder_is_told_apart(tmp_path: Path):
    assert no_run(tmp_path / "nope").what == "there is no such run folder"
    (tmp_path / "full").mkdir()
    assert no_run(tmp_path / "full").what == "this is not a run folder: it has no config.yaml"
    (tmp_path / "s.yaml").write_text("model: acorn")
    file = no_run(tmp_path / "s.yaml")
    assert (file.what, file.fix) == ("this is a file, and a run is a folder", f"tunesmith train {tmp_path / 's.yaml'} starts a run")


def test_a_run_whose_config_is_lost_is_not_taken_for_another_run(tmp_path: Path):
    create(tmp_path / "run-2")
    folder = create(tmp_path / "run")
    (folder.path / "config.yaml").unlink()
    lost = no_run(folder.path)
    assert lost.what == "the config.yaml of this run is lost" and "this run began with: tunesmith train x.yaml" in lost.fix
    (folder.checkpoints / "step-00000001").mkdir(parents=True)
    assert no_run(folder.path).fix.startswith(folder.resume_command)


def test_what_is_set_aside_never_replaces_what_was_set_aside_before(tmp_path: Path):
    folder = create(tmp_path / "run")
    place = folder.checkpoints / "step-00000001"
    for text in ("first", "second"):
        place.mkdir(parents=True)
        (place / "state.json").write_text(text)
        (folder.path / "metrics.jsonl").write_text(text)
        said = folder.set_aside([place])
    assert said == "metrics.before-2.jsonl, checkpoints/damaged-step-00000001-2"
    kept = [*folder.path.glob("metrics*"), *folder.checkpoints.glob("*/state.json")]
    assert sorted(path.read_text() for path in kept) == ["first", "first", "second", "second"]


def test_a_run_that_ended_before_its_first_step_makes_room_for_the_same_command(tmp_path: Path):
    for state in ("failed", "interrupted"):
        create(tmp_path / "run").set_status(state=state)
    assert create(tmp_path / "run").status()["state"] == "running"


def test_a_run_that_should_be_running_and_whose_lock_is_free_was_killed(tmp_path: Path):
    folder = create(tmp_path / "run")
    with folder.only_process():
        assert folder.state() == "running"
        with pytest.raises(BadInput, match="another process is training this run"), RunFolder(folder.path).only_process():
            pass
    assert folder.state() == "killed"
    folder.set_status(state="done")
    assert folder.state() == "done"


def test_a_finished_run_is_not_offered_to_be_resumed(tmp_path: Path):
    create(tmp_path / "run").set_status(state="done")
    with pytest.raises(BadInput, match="already holds a finished run") as caught:
        create(tmp_path / "run")
    assert "resume" not in caught.value.fix


@pytest.mark.parametrize(
    ("code", "what", "remedy"), [(errno.ENOSPC, "the disk is full", "free some space"), (errno.EFBIG, "may not be that large", "limit")]
)
def test_what_the_disk_refuses_names_the_command_that_goes_on(tmp_path: Path, code: int, what: str, remedy: str):
    folder = create(tmp_path / "my run")
    with pytest.raises(MachineFailed, match=what) as caught, folder.named_in_disk_errors(), explain_disk(folder.checkpoints):
        raise OSError(code, os.strerror(code))
    assert remedy in caught.value.fix
    assert caught.value.fix.endswith(f"tunesmith resume '{folder.path}'")
