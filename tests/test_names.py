"""Names that are never paths, and paths that no system takes, wherever they come from."""

import json

import pytest

from tunesmith.cli import main
from tunesmith.config import is_hub_name, validate
from tunesmith.data.places import find
from tunesmith.errors import BadInput
from tunesmith.model.load import load_model
from tunesmith.names import is_plain, must_be_path

NO_NAMES = [
    "", ".", "..", "../x", "a/b", "a\\b", "/etc/passwd", "C:x", "a\0", "a\nb", " a", "-a", "CON", "nul.safetensors", "a" * 300, "\u202ea", "é", "~", None, 7,
]  # fmt: skip
NO_PATHS = ["a\0b", "a" * 300, "x/" * 3000, "\ud800"]


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_from_a_file_is_no_path(name):
    assert not is_plain(name)


def test_ordinary_names_are_plain():
    for name in ("model-00001-of-00002.safetensors", "data-00000-of-00001.arrow", "a", "consolidated.safetensors", "v1.5+cu118"):
        assert is_plain(name)


@pytest.mark.parametrize("path", NO_PATHS)
def test_a_path_that_no_system_takes_is_refused_as_such(path):
    with pytest.raises(BadInput, match="a path cannot"):
        must_be_path(path, "model")
    with pytest.raises(BadInput, match="a path cannot"):
        load_model(path)


@pytest.mark.parametrize("path", NO_PATHS)
@pytest.mark.parametrize("key", ["model", "output", "data.train", "data.test", "data.answer_schema", "lora.continue_from"])
def test_a_config_names_paths_that_can_be(key, path):
    raw = {"model": "acorn", "data": {"train": "rows.jsonl"}, "output": "runs/x"}
    section, _, inner = key.rpartition(".")
    (raw.setdefault(section, {}) if section else raw)[inner] = path
    with pytest.raises(BadInput, match="a path cannot") as error:
        validate(raw, "run.yaml")
    assert key in error.value.where


def test_a_long_path_on_the_command_line_is_an_error_of_the_user(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tunesmith", "resume", "a" * 5000])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "fix:" in capsys.readouterr().err


def test_a_hub_name_leads_to_no_other_folder():
    assert is_hub_name("owner/name/subset")
    for name in ("owner/name/..", "owner/name/.", "owner/name/.git", "../name", "owner/..", "-owner/name", "owner/name/../x"):
        assert not is_hub_name(name)


@pytest.mark.parametrize("name", ["..", "../rows.arrow", "/etc/passwd", "a\0.arrow"])
def test_a_saved_dataset_names_files_of_its_own_folder(name, tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(BadInput, match="names no files of its own"):
        find(str(tmp_path), "train")
    (tmp_path / "state.json").write_text("[" * 100_000)
    with pytest.raises(BadInput, match="does not say which files"):
        find(str(tmp_path), "train")
