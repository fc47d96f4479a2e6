"""What a path means: files, folders, saved datasets and datasets of the hub, by the rules in places.py, one after the other."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from tunesmith.config import DataConfig, Run, load_run, to_yaml, with_absolute_paths
from tunesmith.data.places import find
from tunesmith.data.sources import read_part, sources_of
from tunesmith.errors import BadInput, TunesmithError

ROWS = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(4)]


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_to_disk(folder: Path, rows: list[dict[str, Any]], n_shards: int = 1, features: dict[str, Any] | None = None) -> None:
    """A split as `datasets` saves it: Arrow streams, and beside them what they hold."""
    folder.mkdir(parents=True)
    files = []
    for shard in range(n_shards):
        own = pa.Table.from_pylist(rows[shard * len(rows) // n_shards : (shard + 1) * len(rows) // n_shards])
        if features:
            own = own.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        name = f"data-{shard:05d}-of-{n_shards:05d}.arrow"
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, own.schema) as writer:
            writer.write_table(own)
        files.append({"filename": name})
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": folder.name}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features or {}}))


def names(folder: Path, part: str = "train", split: str = "") -> dict[str, list[str]]:
    """Dataset → its files, relative to the folder."""
    found = find(f"{folder}:{split}" if split else str(folder), part)
    return {place.name: [str(file.relative_to(folder)) for file in place.files] for place in found.places}


def problem(folder: Path, part: str = "train", split: str = "") -> str:
    with pytest.raises(BadInput) as caught:
        names(folder, part, split)
    return str(caught.value)


def test_each_file_of_a_folder_is_a_dataset_and_what_is_not_read_is_said(tmp_path):
    for name in ("hotels.jsonl", "trains.parquet", "flights.csv", ".hidden.jsonl"):
        write(tmp_path / name)
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "SOURCE.txt").write_text("about")
    assert names(tmp_path) == {"flights": ["flights.csv"], "hotels": ["hotels.jsonl"], "trains": ["trains.parquet"]}
    [said] = find(str(tmp_path), "train").said
    assert said == f"{tmp_path.name}: 3 datasets, each a task; not read: README.md, SOURCE.txt"


def test_files_of_text_are_read_where_a_folder_has_nothing_else(tmp_path):
    (tmp_path / "one.txt").write_text("a")
    (tmp_path / "two.txt").write_text("b")
    assert names(tmp_path) == {"one": ["one.txt"], "two": ["two.txt"]}


def test_shards_are_one_dataset_in_their_order(tmp_path):
    for i in (1, 0, 2):
        write(tmp_path / f"chat-0000{i}-of-00003.parquet", [{"question": f"q{i}", "answer": "a"}])
    assert list(names(tmp_path)) == ["chat"]
    part = read_part(DataConfig(train=str(tmp_path)), "train")
    assert [c.source for c in part.conversations] == [f"chat-0000{i}-of-00003.parquet:1" for i in range(3)]
    assert {c.task for c in part.conversations} == {""}


def test_files_called_as_splits_are_read_for_their_part(tmp_path):
    for name in ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "validation.jsonl", "test.jsonl"):
        write(tmp_path / "data" / name)
    shards = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
    assert names(tmp_path) == {tmp_path.name: shards}  # further down, as the hub has it
    assert names(tmp_path, "test") == {tmp_path.name: ["data/test.jsonl"]}
    assert names(tmp_path, "validation") == {tmp_path.name: ["data/validation.jsonl"]}
    assert names(tmp_path, "train", "validation") == {tmp_path.name: ["data/validation.jsonl"]}
    assert "not read: test, validation" in find(str(tmp_path), "train").said[0]
    assert "data.validation" not in problem(tmp_path, "train", "tset") and 'did you mean "test"?' in problem(tmp_path, "train", "tset")


def test_a_split_that_is_not_there_or_not_clear_is_for_the_user_to_name(tmp_path):
    for name in ("train_sft", "train_gen", "test_sft"):
        write(tmp_path / f"{name}-00000-of-00001.parquet")
    assert names(tmp_path, "test") == {tmp_path.name: ["test_sft-00000-of-00001.parquet"]}
    assert "several splits may be meant by data.train" in problem(tmp_path) and f"{tmp_path}:train_gen" in problem(tmp_path)
    assert "there is no split for data.validation" in problem(tmp_path, "validation")


def test_a_folder_without_rows_says_what_it_has(tmp_path):
    (tmp_path / "script.py").write_text("x")
    assert "the folder holds no files of rows" in problem(tmp_path) and "script.py" in problem(tmp_path)
    for name in ("de", "en"):
        write(tmp_path / name / "train.jsonl")
    assert "it has the folders de, en" in problem(tmp_path) and str(tmp_path / "de") in problem(tmp_path)


def test_a_saved_dataset_is_read_from_its_arrow_files(tmp_path):
    save_to_disk(tmp_path / "saved", ROWS, n_shards=2)
    part = read_part(DataConfig(train=str(tmp_path / "saved")), "train")
    assert [c.answer for c in part.conversations] == ["a0", "a1", "a2", "a3"]
    assert [c.source for c in part.conversations][::3] == ["data-00000-of-00002.arrow:1", "data-00001-of-00002.arrow:2"]
    assert len(part.files) == 2 and "Arrow, 2 rows" in part.said[0]


def test_a_saved_dictionary_of_splits_is_read_by_its_split(tmp_path):
    for split, rows in (("train", ROWS[:3]), ("test", ROWS[3:])):
        save_to_disk(tmp_path / "saved" / split, rows)
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    config = DataConfig(train=str(tmp_path / "saved"), test=str(tmp_path / "saved"))
    assert [c.answer for c in read_part(config, "train").conversations] == ["a0", "a1", "a2"]
    assert [c.answer for c in read_part(config, "test").conversations] == ["a3"]
    assert "saved: the split train; not read: test" in find(str(tmp_path / "saved"), "train").said
    assert find(str(tmp_path / "saved" / "test"), "train").said == ("test: the split test; not read: train",)


def test_the_only_file_of_a_folder_of_tasks_is_called_by_its_name_where_that_is_asked_for(tmp_path):
    write(tmp_path / "tasks" / "hotels.jsonl")
    config = DataConfig(train=str(tmp_path / "tasks"))
    assert [source.task for source in sources_of(config, "train", name_alone=True)[0]] == ["hotels"]
    assert [source.task for source in sources_of(config, "train")[0]] == [""]
    one_file = DataConfig(train=str(tmp_path / "tasks" / "hotels.jsonl"))
    assert [source.task for source in sources_of(one_file, "train", name_alone=True)[0]] == [""]


@pytest.mark.parametrize("state", ["", "{}", '{"_data_files": []}', '{"_data_files": [{"filename": "../x.arrow"}]}', "[1]"])
def test_a_saved_dataset_with_a_damaged_state_is_refused(tmp_path, state):
    save_to_disk(tmp_path / "saved", ROWS)
    (tmp_path / "saved/state.json").write_text(state)
    assert "state.json" in problem(tmp_path / "saved")
    save_to_disk(tmp_path / "cut", ROWS)
    [arrow] = (tmp_path / "cut").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(BadInput, match="the Arrow file cannot be read"):
        read_part(DataConfig(train=str(tmp_path / "cut")), "train")


def test_numbers_of_classes_are_read_as_their_names_and_that_is_said(tmp_path):
    features = {"label": {"names": ["ham", "spam"], "_type": "ClassLabel"}, "text": {"dtype": "string", "_type": "Value"}}
    save_to_disk(
        tmp_path / "saved", [{"text": "hi", "label": 0}, {"text": "win", "label": 1}, {"text": "?", "label": -1}], features=features
    )
    config = DataConfig(train=str(tmp_path / "saved"), prompt="{text}", completion="{label}", on_bad_row="skip")
    part = read_part(config, "train")
    assert [c.answer for c in part.conversations] == ["ham", "spam"]
    assert any('the numbers of "label" are read as ham, spam' in line for line in part.said)
    assert [bad.problem for bad in part.skipped] == ['"label" is null; this row has text, label']


# ------------------------------------------------------------------------------------------------- several, and their names


def test_datasets_with_one_name_are_told_apart_by_their_folders(tmp_path):
    paths = [str(write(tmp_path / folder / "train.jsonl")) for folder in ("a", "b")]
    sources, _ = sources_of(DataConfig(train=paths), "train")
    assert [source.task for source in sources] == ["a/train", "b/train"]
    assert [source.names for source in sources] == [("a/train.jsonl",), ("b/train.jsonl",)]
    part = read_part(DataConfig(train=paths), "train")
    assert [part.conversations[0].source, part.conversations[4].source] == ["a/train.jsonl:1", "b/train.jsonl:1"]
    with pytest.raises(BadInput, match="names a file twice"):
        sources_of(DataConfig(train=[paths[0], paths[0]]), "train")


def test_one_file_is_no_task_unless_its_entry_says_so(tmp_path):
    path = str(write(tmp_path / "a.jsonl"))
    assert sources_of(DataConfig(train=path), "train")[0][0].task == ""
    named = DataConfig.model_validate({"train": [{"path": path, "task": "quiz"}]})
    assert sources_of(named, "train")[0][0].task == "quiz"


def test_many_files_that_are_read_alike_are_told_of_in_one_line(tmp_path):
    for i in range(12):
        write(tmp_path / f"t{i}.jsonl")
    write(tmp_path / "u.jsonl", [{"prompt": "a", "completion": "b"}])
    said = read_part(DataConfig(train=str(tmp_path)), "train").said
    assert said[1] == 't0.jsonl and 11 files like it: JSONL, 48 rows, columns question, answer → prompt "{question}", completion "{answer}"'
    assert said[2].startswith("u.jsonl: JSONL, 1 row, ") and len(said) == 3


def test_lists_folders_and_hub_names_survive_the_run_folders_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl")
    (tmp_path / "tasks").mkdir()
    data = {
        "train": ["a.jsonl", {"path": "tasks:train", "weight": 2.5, "prompt": ["{x}", "{x}?"]}, "owner/name:train"],
        "test": ["a.jsonl"],
    }
    run = with_absolute_paths(Run.model_validate({"model": "acorn", "output": "runs/x", "data": data}))
    assert run.data.train[0] == str(tmp_path / "a.jsonl") and run.data.train[1].path == str(tmp_path / "tasks:train")
    assert run.data.train[2] == "owner/name:train" and run.data.test == [str(tmp_path / "a.jsonl")]
    (tmp_path / "config.yaml").write_text(to_yaml(run))
    assert load_run(tmp_path / "config.yaml")[0] == run


# ------------------------------------------------------------------------------------------------------------------ hub


def in_cache(cache: Path, repository: str) -> Path:
    """A hub dataset as the cache of huggingface_hub keeps it."""
    store = cache / f"datasets--{repository.replace('/', '--')}"
    version = "0123456789abcdef0123456789abcdef01234567"
    (store / "refs").mkdir(parents=True)
    (store / "refs/main").write_text(version)
    (store / "snapshots" / version).mkdir(parents=True)
    return store / "snapshots" / version


def offline(cache: Path, code: str) -> str:
    """What code prints in a process that has this cache and no network."""
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=cache)
    return done.stdout


READ = """
import sys
from tunesmith.config import DataConfig
from tunesmith.data.sources import read_part
from tunesmith.errors import TunesmithError
for name, part in {asked!r}:
    try:
        read = read_part(DataConfig.model_validate({{"train": name, part: name}}), part)
        print([c.source for c in read.conversations], sorted(read.files), read.said[0])
    except TunesmithError as error:
        print(error.what, "|", error.where, "|", error.fix)
"""


def test_a_hub_dataset_is_read_by_its_name_split_and_subset(tmp_path):
    snapshot = in_cache(tmp_path, "owner/quiz")
    write(snapshot / "data/train-00000-of-00001.parquet")
    write(snapshot / "data/test-00000-of-00001.parquet", ROWS[:1])
    many = in_cache(tmp_path, "owner/langs")
    for language in ("de", "en"):
        write(many / language / "train.jsonl", ROWS[:1])
    in_cache(tmp_path, "owner/script")
    asked = [
        ("owner/quiz", "train"), ("owner/quiz", "test"), ("owner/quiz:test", "train"), ("owner/quiz:tset", "train"), ("owner/langs", "train"),
        ("owner/langs/en", "train"), ("owner/langs/fr", "train"), ("owner/script", "train"), ("owner/nowhere", "train"),
    ]  # fmt: skip
    lines = offline(tmp_path, READ.format(asked=asked)).splitlines()
    whole, test, other, typo, which, english, unknown, script, nowhere = lines
    assert "'train-00000-of-00001.parquet:4'" in whole and "['owner/quiz/data/train-00000-of-00001.parquet']" in whole
    assert "owner/quiz: from the hub, version 0123456789ab" in whole
    assert test == other and "['test-00000-of-00001.parquet:1']" in test
    assert 'there is no split "tset"' in typo and 'did you mean "test"?' in typo
    assert "the folder holds no files of rows" in which and "de, en" in which
    assert "['train.jsonl:1'] ['owner/langs/en/train.jsonl']" in english
    assert 'the dataset has no subset "fr"' in unknown
    assert "a script that makes them is not run" in script
    assert "the hub cannot be reached" in nowhere


def test_a_path_with_an_extension_is_never_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TunesmithError, match="there is no such file"):
        read_part(DataConfig(train="data/rows.jsonl"), "train")
