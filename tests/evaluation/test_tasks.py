"""Several tasks in one evaluation: each by itself, all rows together, the mean over tasks, and what changed."""

from pathlib import Path

import pytest

from tunesmith.config import EvaluationConfig
from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.template import Renderer
from tunesmith.errors import BadInput
from tunesmith.evaluation.score import Measured
from tunesmith.evaluation.tasks import majority, measure_tasks, phrasing_summary, row_records, summary, task_rows
from tunesmith.model.load import load_model


def row(task: str, text: str, answer: str, number: int, **fields) -> Conversation:
    return Conversation((Message("user", text, False), Message("assistant", answer, True)), f"{task}:{number}", fields, task)


LABELLED = [row("sst", f"free {n}", "good" if n % 3 else "bad", n) for n in range(1, 9)]
FREE = [row("copy", f"say {n}", f"the words {n}", n, references=[f"the words {n}", f"words {n}"]) for n in range(1, 5)]


@pytest.fixture
def opened(tiny_model: Path):
    loaded = load_model(str(tiny_model), "float32")
    return loaded, Renderer(loaded.tokenizer, eos_ids=loaded.eos_ids)


def told(values: dict[str, list[float]], answers: list[str]) -> Measured:
    """What a model would have been measured as."""
    return Measured({name: sum(each) / len(each) for name, each in values.items()}, answers, [], values, {})


def test_each_task_is_measured_by_what_fits_it_and_all_by_what_fits_any(opened):
    loaded, renderer = opened
    config = EvaluationConfig(max_new_tokens=4)
    tasks = task_rows([*LABELLED, *FREE], [], config, renderer, loaded.context)
    assert [(task.name, task.kind, len(task.rows.prompts)) for task in tasks] == [("sst", "label", 8), ("copy", "text", 4)]
    assert tasks[0].choices == [["bad", "good"]] * 8
    assert tasks[1].choices is None
    assert tasks[1].rows.accepted[0] == ("the words 1", "words 1")
    base = measure_tasks(loaded.model, tasks, renderer, config, adapter=None, title="base", context=loaded.context)
    found = summary(tasks, {"majority": majority(tasks), "base": base})
    assert (found["rows"], found["task"]) == (12, "text")
    sst, copy = found["tasks"]["sst"], found["tasks"]["copy"]
    assert {"accuracy", "f1_bad", "choice", "choice_pmi", "exact_match", "rouge_l", "loss"} <= set(sst["models"]["base"])
    assert "accuracy" not in copy["models"]["base"]
    assert (sst["majority_share"], copy["majority_share"]) == (0.75, 0.25)  # 6 of 8; each of 4 once
    assert sst["models"]["majority"]["choice"] == sst["models"]["majority"]["accuracy"] == 0.75

    overall, mean = found["models"]["base"], found["macro"]["models"]["base"]
    for metric in ("exact_match", "rouge_l", "stop_rate"):
        one, other = sst["models"]["base"][metric], copy["models"]["base"][metric]
        assert overall[metric] == pytest.approx((8 * one + 4 * other) / 12), metric
        assert mean[metric] == pytest.approx((one + other) / 2), metric
    n_tokens = [sum(m.weights["loss"]) for m in base.values()]
    assert overall["loss"] == pytest.approx(
        (sst["models"]["base"]["loss"] * n_tokens[0] + copy["models"]["base"]["loss"] * n_tokens[1]) / sum(n_tokens)
    )
    assert mean["choice"] == sst["models"]["base"]["choice"]
    assert found["macro"]["n_tasks"]["choice"] == 1
    assert "f1_bad" not in mean
    assert "differences" not in found  # nothing was tuned


def test_one_dataset_is_measured_as_ever(opened):
    loaded, renderer = opened
    rows = [row("", f"free {n}", "good" if n % 3 else "bad", n) for n in range(1, 9)]
    config = EvaluationConfig(max_new_tokens=4)
    tasks = task_rows(rows, [row("", "x", "bad", 9)], config, renderer, loaded.context)
    found = summary(tasks, {"majority": majority(tasks), "base": measure_tasks(
        loaded.model, tasks, renderer, config, adapter=None, title="base", context=loaded.context)})  # fmt: skip
    assert found.keys() == {"rows", "task", "models"}
    assert list(found["models"]["base"]) == [
        "loss", "perplexity", "bits_per_byte", "accuracy", "f1_bad", "f1_good", "f1_macro", "valid_label", "stop_rate",
    ]  # fmt: skip
    assert found["models"]["majority"] == pytest.approx(
        {"accuracy": 0.25, "f1_bad": 0.4, "f1_good": 0.0, "f1_macro": 0.2, "valid_label": 1.0}  # the training rows say "bad"
    )
    text = task_rows([*FREE[:1], row("copy", "a", "b", 2), row("copy", "a", "c", 3)], [], config, renderer, loaded.context)
    assert majority(text) == {}  # no one answer makes sense


def test_one_task_with_a_name_is_measured_as_it_would_be_among_others(opened):
    loaded, renderer = opened
    config = EvaluationConfig(max_new_tokens=4)
    tasks = task_rows(LABELLED, [], config, renderer, loaded.context)
    base = measure_tasks(loaded.model, tasks, renderer, config, adapter=None, title="base", context=loaded.context)
    found = summary(tasks, {"majority": majority(tasks), "base": base, "tuned": base})
    assert (found["task"], "macro" in found) == ("label", False)
    among_others = measure_tasks(
        loaded.model, task_rows([*LABELLED, *FREE], [], config, renderer, loaded.context)[:1], renderer, config,
        adapter=None, title="base", context=loaded.context,
    )  # fmt: skip
    assert {"choice", "rouge_l", "accuracy"} <= set(found["models"]["base"]) == set(among_others["sst"].metrics)
    assert found["tasks"]["sst"]["models"]["base"] == found["models"]["base"]
    assert found["differences"]["tuned"]["base"]["tasks"]["sst"] == found["differences"]["tuned"]["base"]["overall"]


def test_choices_are_asked_for_by_name_where_there_is_one_task(opened):
    loaded, renderer = opened
    rows = [row("", "free", "b", 1, options=["a", "b"]), row("", "lunch", "c", 2, options=["c", "d", "e"])]
    by_column = task_rows(rows, [], EvaluationConfig(choices="options"), renderer, loaded.context)[0]
    assert by_column.choices == [["a", "b"], ["c", "d", "e"]]
    assert not by_column.same_choices
    labels = task_rows(LABELLED, [row("sst", "x", "so-so", 1)], EvaluationConfig(choices="labels"), renderer, loaded.context)[0]
    assert labels.choices == [["bad", "good", "so-so"]] * 8  # a label that no test row happens to have is possible too
    assert task_rows([*LABELLED, *FREE], [], EvaluationConfig(choices="none"), renderer, loaded.context)[0].choices is None


def test_what_changed_has_an_interval_for_each_task_for_all_rows_and_for_the_mean_of_tasks(opened):
    loaded, renderer = opened
    tasks = task_rows([*LABELLED, *FREE], [], EvaluationConfig(), renderer, loaded.context)
    before = {"sst": told({"exact_match": [0] * 8}, [""] * 8), "copy": told({"exact_match": [1, 0, 0, 0]}, [""] * 4)}
    after = {"sst": told({"exact_match": [1] * 6 + [0] * 2}, [""] * 8), "copy": told({"exact_match": [0, 1, 1, 1]}, [""] * 4)}
    found = summary(tasks, {"base": before, "sms": after})["differences"]["sms"]
    assert list(found) == ["base"]  # no majority was measured
    sst = found["base"]["tasks"]["sst"]["exact_match"]
    assert (sst["value"], sst["gained"], sst["lost"]) == (0.75, 6, 0)
    assert sst["p"] == pytest.approx(2 / 2**6)
    assert 0 < sst["low"] < 0.75 < sst["high"] <= 1
    assert found["base"]["tasks"]["copy"]["exact_match"]["gained"] == 3
    assert found["base"]["overall"]["exact_match"]["value"] == pytest.approx((6 + 2) / 12)
    assert found["base"]["macro"]["exact_match"]["value"] == pytest.approx((6 / 8 + 2 / 4) / 2)


def test_every_row_keeps_its_values_so_that_another_model_can_be_paired_with_it_later(opened):
    loaded, renderer = opened
    config = EvaluationConfig(max_new_tokens=4)
    tasks = task_rows([*LABELLED, *FREE], [], config, renderer, loaded.context)
    base = measure_tasks(loaded.model, tasks, renderer, config, adapter=None, title="base", context=loaded.context)
    found = summary(tasks, {"base": base})
    records = row_records(tasks, {"base": base})
    assert [record["source"] for record in records] == [c.source for c in [*LABELLED, *FREE]]
    for task, of_task in found["tasks"].items():
        mine = [record for record in records if record["task"] == task]
        for metric in mine[0]["values"]["base"]:
            weights = [record["weights"].get(metric, 1) for record in mine]
            mean = sum(r["values"]["base"][metric] * w for r, w in zip(mine, weights, strict=True)) / sum(weights)
            assert mean == pytest.approx(of_task["models"]["base"][metric]), (task, metric)
    assert records[8]["references"] == ["the words 1", "words 1"]
    assert isinstance(records[0]["answers"]["base"], str)


def test_scores_over_phrasings_have_a_spread_per_task_and_in_the_mean():
    def model(right_of_sst: list[int], right_of_copy: list[int], answer: str) -> dict[str, Measured]:
        return {"sst": told({"exact_match": right_of_sst}, [answer] * 2), "copy": told({"exact_match": right_of_copy}, ["same"] * 2)}

    measured = [{"majority": {}, "base": model([1, 1], [0, 0], "a")}, {"base": model([1, 0], [0, 0], "b")}]
    found = phrasing_summary({"": ["in other words"]}, measured)
    assert found["tasks"]["sst"]["base"]["exact_match"]["values"] == [1.0, 0.5]
    assert found["tasks"]["copy"]["base"]["exact_match"]["sd"] == 0.0
    mean = found["models"]["base"]["exact_match"]
    assert mean["values"] == [0.5, 0.25]
    assert (mean["mean"], mean["min"], mean["max"]) == (0.375, 0.25, 0.5)
    assert found["consistent"] == {"base": 0.5}  # the two rows of copy, of four
    assert found["texts"] == {"": ["in other words"]}


def test_rows_of_two_kinds_are_refused_and_none_at_all(opened):
    loaded, renderer = opened
    text = Conversation((Message("text", "words", True),), "book:1", {}, "book")
    with pytest.raises(BadInput, match="raw text and some have answers"):
        task_rows([*FREE, text], [], EvaluationConfig(), renderer, loaded.context)
    with pytest.raises(BadInput, match="no test rows"):
        task_rows([], [], EvaluationConfig(), renderer, loaded.context)
