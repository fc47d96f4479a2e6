"""What a run keeps of its evaluation: figures, every row's values, tasks and phrasings, on the page too."""

import json
from pathlib import Path

import pytest

from tunesmith import api
from tunesmith.cli import print_evaluation
from tunesmith.errors import BadInput

TINY = {
    "method": "lora",
    "lora": {"rank": 2},
    "training": {"steps": 2, "batch_size": 4, "max_length": 200},
    "evaluation": {"max_new_tokens": 3},
}


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "evaluation-rows.jsonl").read_text().splitlines()]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Three datasets in a folder: two of labels, one of free text."""
    for name, question, answers in (
        ("spam", "free or not", ["spam", "ham"]),
        ("mood", "good or bad", ["good", "bad"]),
        ("echo", "say", []),
    ):
        texts = [f"{question} {i} {'now ' * (i % 3)}" for i in range(12)]
        lines = [
            {"instruction": f"Answer: {question}?", "input": t, "output": answers[i % 2] if answers else f"you say {i}"}
            for i, t in enumerate(texts)
        ]
        (tmp_path / "tasks").mkdir(exist_ok=True)
        (tmp_path / "tasks" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "tasks"


def test_a_task_held_out_of_training_is_measured_at_the_end_with_the_others(tiny_model, tmp_path, tasks):
    run = TINY | {"model": str(tiny_model), "output": str(tmp_path / "run"), "data": {"train": str(tasks), "held_out": ["mood", "echo"]}}
    folder = api.train(run)
    found = folder.evaluation()
    assert {task: (of["rows"], of["kind"]) for task, of in found["tasks"].items()} == {"mood": (12, "label"), "echo": (12, "text")}
    assert found["rows"] == 24
    records = rows_of(folder.path)
    assert len(records) == 24
    for model in ("base", "run"):
        of_mood = [r["values"][model]["accuracy"] for r in records if r["task"] == "mood"]
        assert sum(of_mood) / 12 == pytest.approx(found["tasks"]["mood"]["models"][model]["accuracy"])
    assert found["differences"]["run"]["base"]["macro"].keys() >= {"rouge_l", "choice", "bits_per_byte"}
    page = (folder.path / "report.html").read_text()
    assert "Task by task" in page
    assert "task-chart" in page


def test_other_rows_and_other_words_are_measured_and_kept_where_asked(tiny_model, tmp_path, tasks):
    run = TINY | {"model": str(tiny_model), "output": str(tmp_path / "run"), "data": {"train": str(tasks / "spam.jsonl")}}
    folder = api.train(run)
    assert folder.evaluation() == {}
    words = {"spam": ["Free? Or not?"], "mood": ["Is it fine?"], "echo": ["Repeat it."]}
    found = api.evaluate(folder, str(tasks), phrasings=words, output=tmp_path / "out")
    assert set(found["tasks"]) == {"spam", "mood", "echo"}
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == found
    assert len(rows_of(tmp_path / "out")) == 36
    assert folder.evaluation() == {}  # other rows than the run's own
    spread = found["phrasings"]["models"]["run"]["bits_per_byte"]
    assert spread["values"][0] == pytest.approx(found["macro"]["models"]["run"]["bits_per_byte"])  # as the rows stand
    assert spread["values"][0] != spread["values"][1]
    assert found["phrasings"]["texts"] == words
    with pytest.raises(BadInput, match="already"):
        api.evaluate(folder, str(tasks), output=tmp_path / "out")
    with pytest.raises(BadInput, match='no phrasing for the task "echo"'):
        api.evaluate(folder, str(tasks), phrasings={"spam": ["x"], "mood": ["y"]})


def test_a_folder_with_one_task_keeps_its_name_and_a_limit_is_said(tiny_model, tmp_path, tasks, capsys):
    settings = {"evaluation": {"max_new_tokens": 3, "limit": 5}, "data": {"train": str(tasks / "spam.jsonl")}}
    folder = api.train(TINY | {"model": str(tiny_model), "output": str(tmp_path / "run")} | settings)
    (tmp_path / "one").mkdir()
    (tasks / "mood.jsonl").rename(tmp_path / "one" / "mood.jsonl")
    with pytest.raises(BadInput, match='phrasings are of the task "spam", and no test row is') as error:
        api.evaluate(folder, str(tmp_path / "one"), phrasings={"spam": ["Free?"]})
    assert "mood" in error.value.fix
    capsys.readouterr()
    found = api.evaluate(folder, str(tmp_path / "one"), phrasings={"mood": ["How is it?"]})
    assert {task: of["rows"] for task, of in found["tasks"].items()} == {"mood": 5}
    assert (found["rows"], found["rows_given"]) == (5, 12)
    printed = capsys.readouterr()
    assert "measuring base on 5 of 12 rows (evaluation.limit), in 2 phrasings" in printed.out + printed.err
    print_evaluation(found)
    assert "5 of 12 test rows (evaluation.limit) of the task mood" in capsys.readouterr().out


def test_every_phrasing_of_a_list_in_the_config_is_measured(tiny_model, tmp_path, tasks):
    data = {"train": str(tasks / "spam.jsonl"), "prompt": ["Spam? {input}", "{input}\nSpam or ham?"], "completion": "{output}", "test": 0.5}
    found = api.train(TINY | {"model": str(tiny_model), "output": str(tmp_path / "run"), "data": data}).evaluation()
    assert found["phrasings"]["texts"] == {"": ["{input}\nSpam or ham?"]}
    spread = found["phrasings"]["models"]["run"]
    assert spread["loss"]["values"][0] == pytest.approx(found["models"]["run"]["loss"])  # test rows are asked in the words of the first
    assert len(spread["accuracy"]["values"]) == 2
    assert "The same rows in other words" in (tmp_path / "run" / "report.html").read_text()
