"""A run folder keeps what it was given and survives torn lines."""

from pathlib import Path

import pytest

from tunesmith.config import validate
from tunesmith.errors import BadInput
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


def test_a_folder_that_is_no_run_names_the_nearest(tmp_path: Path):
    create(tmp_path / "spam")
    with pytest.raises(BadInput) as caught:
        RunFolder.open(tmp_path / "spma")
    assert "spam" in caught.value.fix
