"""What a check finds out about data that nobody described."""

from pathlib import Path

import pytest

from tunesmith.errors import BadInput
from tunesmith.preflight import check_run, subject_of

TABLE = "frage,antwort,n\nwas ist es?,ja,1\nwer ist es?,nein,2\nwo ist es?,nein,3\n"


def test_columns_of_a_folder_that_is_one_task_are_guessed_as_those_of_a_file(tmp_path: Path):
    (tmp_path / "train.csv").write_text(TABLE)
    (tmp_path / "validation.csv").write_text("frage,antwort,n\nwann war es?,ja,1\n")
    of_folder, of_file = subject_of(tmp_path), subject_of(tmp_path / "train.csv")
    assert (of_folder.run.data.prompt, of_folder.run.data.completion) == ("{frage}", "{antwort}")
    assert of_folder.said == of_file.said and any("frage is the prompt and antwort the answer" in line for line in of_folder.said)
    assert check_run(of_folder.run, of_folder.files).rows["train"] == 3


def test_columns_of_a_folder_of_several_tasks_are_not_guessed(tmp_path: Path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(TABLE)
    with pytest.raises(BadInput, match="the columns do not say") as caught:
        subject_of(tmp_path)
    assert "guessed for one task only" in caught.value.fix
