"""The instruction-tuning experiment, in a tiny form: its control, its run from beginning to end, and its page."""

import json
import sys
from pathlib import Path

import pytest

from tunesmith.config import DataConfig
from tunesmith.data.sources import read_part
from tunesmith.evaluation.sensitivity import read_phrasings, rephrased

ROOT = Path(__file__).parents[2]


@pytest.fixture
def experiment(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    return pytest.importorskip("super_ni_experiment")


def write_tasks(folder: Path, n_tasks: int, n_rows: int, labels: bool = False) -> Path:
    folder.mkdir(parents=True)
    for t in range(n_tasks):
        instances = [
            {"input": f"text {t} {i}", "output": [["yes", "no"][i % 2] if labels else f"the words {i}", "or"]} for i in range(n_rows + t)
        ]
        task = {"definition": f"Do what task {t} asks.", "positive_examples": [], "instances": instances}
        (folder / f"task{t}.json").write_text(json.dumps(task))
    return folder


def test_in_the_control_every_row_stands_under_another_tasks_definition_and_nothing_else_differs(experiment, tmp_path):
    train = write_tasks(tmp_path / "train", n_tasks=3, n_rows=10)
    assert experiment.shuffled_copies(train, tmp_path / "a", seed=1) == 33
    before, after = (read_part(DataConfig(train=str(folder)), "train").conversations for folder in (train, tmp_path / "a"))
    assert [c.task for c in after] == [c.task for c in before]
    assert [(c.fields["input"], c.answer, c.fields["references"]) for c in after] == [
        (c.fields["input"], c.answer, c.fields["references"]) for c in before
    ]
    assert all(a.fields["definition"] != b.fields["definition"] for a, b in zip(after, before, strict=True))
    assert sorted(c.fields["definition"] for c in after) == sorted(c.fields["definition"] for c in before)  # each as often as before
    assert [c.prompt[0].content for c in after] == [f"{c.fields['definition']}\n\n{c.fields['input']}" for c in after]
    experiment.shuffled_copies(train, tmp_path / "b", seed=1)
    experiment.shuffled_copies(train, tmp_path / "c", seed=2)
    with pytest.raises(SystemExit, match="more than half"):
        experiment.shuffled_copies(write_tasks(tmp_path / "two", n_tasks=2, n_rows=4), tmp_path / "d", seed=0)
    texts = {name: (tmp_path / name / "task0.jsonl").read_text() for name in "abc"}
    assert texts["a"] == texts["b"] != texts["c"]


def test_from_training_to_the_page_on_a_tiny_model(experiment, tmp_path, tiny_model, monkeypatch):
    write_tasks(tmp_path / "data" / "train", n_tasks=3, n_rows=4)
    write_tasks(tmp_path / "data" / "heldout", n_tasks=2, n_rows=6, labels=True)
    phrasings = tmp_path / "p.yaml"
    phrasings.write_text("task0: [Please do task 0.]\ntask1: [Please do task 1.]\n")
    monkeypatch.setattr(experiment, "PHRASINGS", phrasings)
    sets = [f"model={tiny_model}", "training.steps=2", "training.batch_size=4", "training.max_length=200", "lora.rank=2",
            "evaluation.max_new_tokens=3"]  # fmt: skip
    found = experiment.figures(tmp_path / "data", tmp_path / "runs", [0, 1], sets)
    assert json.loads(json.dumps(found)) == found
    assert found["arms"] == {"instructions": ["instructions-0", "instructions-1"], "shuffled": ["shuffled-0", "shuffled-1"]}
    owed = found["differences"]["instructions − shuffled"]
    assert set(owed["tasks"]) == {"task0", "task1"}
    per_seed = [found["macro"]["models"][f"{arm}-{seed}"]["bits_per_byte"] for arm in experiment.ARMS for seed in (0, 1)]
    assert owed["macro"]["bits_per_byte"]["value"] == pytest.approx((sum(per_seed[:2]) - sum(per_seed[2:])) / 2)
    page = experiment.page(found)
    for words in ("Is there a gain on unseen tasks?", "| `choice` |", "| task0 | `accuracy` |", "instructions-1", "2 seeds (0, 1)"):
        assert words in page, words
    again = experiment.figures(tmp_path / "data", tmp_path / "runs", [0, 1], sets)  # nothing is trained or measured twice
    assert again["differences"] == found["differences"]
    document = f"# Title\n\n{experiment.BEGIN}\n\nold\n\n{experiment.END}\n\nafter\n"
    assert experiment.with_figures(document, found) == f"# Title\n\n{experiment.BEGIN}\n\n{page}\n\n{experiment.END}\n\nafter\n"


def test_the_verdict_follows_from_the_intervals(experiment):
    def figures(gain: tuple, owed: tuple) -> dict:
        ends = {"instructions − base": gain, "shuffled − base": (0.2, 0.1, 0.3), "instructions − shuffled": owed}
        return {
            "differences": {name: {"macro": {"rouge_l": dict(zip(("value", "low", "high"), v, strict=True))}} for name, v in ends.items()}
        }

    assert "owed to the instructions" in experiment.verdict(figures((0.3, 0.2, 0.4), (0.1, 0.02, 0.18)))
    assert "form of the answers, not the instruction" in experiment.verdict(figures((0.3, 0.2, 0.4), (0.01, -0.02, 0.04)))
    assert "No gain on unseen tasks" in experiment.verdict(figures((0.01, -0.2, 0.4), (0.1, 0.02, 0.18)))


def test_an_interval_of_nothing_is_told_in_words(experiment):
    figures = dict.fromkeys(("value", "low", "high"), 0.0)
    assert experiment._words(figures) == "no row changed"
    assert experiment._words(figures | {"high": 0.1}) == "+0.000 [+0.000, +0.100]"


def test_the_page_holds_the_kept_figures(experiment):
    if not experiment.FIGURES.is_file():
        pytest.skip("the experiment has not been run here yet")
    text = experiment.PAGE.read_text(encoding="utf-8")
    assert experiment.with_figures(text, json.loads(experiment.FIGURES.read_text(encoding="utf-8"))) == text


def test_the_paraphrases_fit_the_held_out_tasks(experiment, shared):
    rows = read_part(DataConfig(train=str(shared / "data" / "super_ni" / "heldout")), "train").conversations
    phrasings = read_phrasings(experiment.PHRASINGS)
    assert {len(texts) for texts in phrasings.values()} == {3}
    for variant in rephrased(rows, phrasings):
        assert all(
            c.prompt[0].content.endswith(c.fields["input"]) and c.prompt[0].content != row.prompt[0].content
            for c, row in zip(variant, rows)
        )
