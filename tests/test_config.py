"""What a user may write, what is converted, and what is refused with the nearest name."""

from pathlib import Path
from typing import Any

import pytest

from tunesmith.config import Run, apply_overrides, load_run, to_yaml, validate
from tunesmith.errors import BadInput

LEAST = {"model": "acorn", "output": "runs/x", "data": {"train": "rows.jsonl"}}


def given(**more: Any) -> tuple[Run, list[str]]:
    return validate({**LEAST, **more}, "c.yaml")


def test_three_keys_are_enough_and_defaults_are_the_fields_usual_ones():
    run, said = given()
    assert said == []
    assert (run.method, run.lora.rank, run.lora.resolved_alpha, run.lora.targets) == ("lora", 16, 32.0, "all-linear")
    assert given(lora={"rank": 8})[0].lora.resolved_alpha == 16.0


def test_the_readme_example_is_a_valid_config(tmp_path: Path):
    path = tmp_path / "sms.yaml"
    path.write_text(
        "model: acorn\nmethod: lora\noutput: runs/sms\n"
        "data:\n  train: SMSSpamCollection.tsv\n  columns: [label, text]\n  header: false\n  quoting: false\n"
        '  prompt: "Is this message spam or ham?\\n\\n{text}"\n  completion: "{label}"\n  validation: 0.1\n  test: 0.2\n  on_too_long: error\n'
        "lora: {rank: 16, alpha: 32, dropout: 0.0, targets: all-linear}\n"
        "training: {epochs: 2, batch_size: 16, learning_rate: auto, max_length: 512, seed: 0}\n"
    )
    run, _ = load_run(path)
    assert run.data.prompt == "Is this message spam or ham?\n\n{text}"
    kept = tmp_path / "config.yaml"
    kept.write_text(to_yaml(run))
    assert load_run(kept)[0] == run


@pytest.mark.parametrize(
    ("raw", "path", "near"),
    [
        ({"data": {"train": "x", "vlidation": 0.1}}, "data.vlidation", '"validation"'),
        ({"trainning": {}}, "trainning", '"training"'),
        ({"lora": {"rnk": 4}}, "lora.rnk", '"rank"'),
        ({"lora": {"batch_size": 4}}, "lora.batch_size", "training.batch_size"),
    ],
)
def test_an_unknown_key_is_an_error_with_the_nearest_name(raw: dict[str, Any], path: str, near: str):
    with pytest.raises(BadInput, match=f'unknown key "{path}"') as caught:
        given(**raw)
    assert near in caught.value.fix


@pytest.mark.parametrize(
    ("theirs", "section", "key", "value"),
    [
        ({"lora_r": 8}, "lora", "rank", 8),
        ({"num_train_epochs": 2}, "training", "epochs", 2.0),
        ({"cutoff_len": 256}, "training", "max_length", 256),
        ({"lora_target": "q_proj,v_proj"}, "lora", "targets", ["q_proj", "v_proj"]),
        ({"lora_target": "all"}, "lora", "targets", "all-linear"),
        ({"lr_scheduler_type": "constant_with_warmup"}, "training", "schedule", "constant"),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8}, "training", "batch_size", 32),
        ({"micro_batch_size": 2, "gradient_accumulation_steps": 4}, "training", "batch_size", 8),
        ({"training": {"micro_batch_size": 2, "gradient_accumulation_steps": 4}}, "training", "batch_size", 8),
        ({"training": {"num_train_epochs": 1}}, "training", "epochs", 1.0),
        ({"epochs": 5}, "training", "epochs", 5.0),
    ],
)
def test_keys_of_other_tools_are_converted_and_said(theirs: dict[str, Any], section: str, key: str, value: Any):
    run, said = given(**theirs)
    assert getattr(getattr(run, section), key) == value
    assert any(f"{section}.{key}: " in line for line in said)


def test_a_conversion_that_contradicts_our_key_is_an_error():
    with pytest.raises(BadInput, match="disagree"):
        given(lora_r=8, lora={"rank": 16})


def test_accumulation_alone_does_not_say_how_many_examples_a_step_has():
    with pytest.raises(BadInput, match="without a micro-batch size"):
        given(gradient_accumulation_steps=4)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"method": "lorra"}, "should be 'full', 'lora' or 'qlora'"),
        ({"training": {"learning_rate": "fast"}}, "learning_rate"),
        ({"training": {"learning_rate": float("nan")}}, "learning_rate"),
        ({"training": {"epochs": 0}}, "greater than 0"),
        ({"data": {"train": "x", "validation": 1.5}}, "less than 1"),
        ({"lora": {"rank": 0}}, "greater than or equal to 1"),
        ({"data": "rows.jsonl"}, "data"),
        ({"output": " "}, "should not be empty"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_the_key_and_its_meaning(raw: dict[str, Any], message: str):
    with pytest.raises(BadInput, match=message) as caught:
        given(**raw)
    assert caught.value.where == "c.yaml"
    assert caught.value.fix


def test_a_key_given_twice_is_an_error_and_not_the_last_one(tmp_path: Path):
    path = tmp_path / "twice.yaml"
    path.write_text("model: acorn\noutput: a\noutput: b\ndata: {train: x}\n")
    with pytest.raises(BadInput, match='"output" is given twice') as caught:
        load_run(path)
    assert caught.value.where == f"{path}, line 3"


def test_a_number_with_an_exponent_is_a_number(tmp_path: Path):
    """YAML 1.1 reads 1e-4 as text; nobody means that."""
    path = tmp_path / "c.yaml"
    path.write_text("model: acorn\noutput: a\ndata: {train: x}\ntraining: {learning_rate: 1e-4}\n")
    assert load_run(path)[0].training.learning_rate == 1e-4


def test_overrides_are_yaml_at_dotted_keys():
    raw = apply_overrides(dict(LEAST), ["training.epochs=2", "lora.targets=[q_proj]", "data.validation=0.2"])
    run, _ = validate(raw, "c.yaml")
    assert (run.training.epochs, run.lora.targets, run.data.validation) == (2.0, ["q_proj"], 0.2)
    with pytest.raises(BadInput, match="does not set a key"):
        apply_overrides({}, ["training.epochs"])


@pytest.mark.parametrize("text", ["model: [", "- a\n- b\n", "just words", ""])
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(BadInput):
        load_run(path)


def test_a_missing_config_names_the_nearest(tmp_path: Path):
    (tmp_path / "spam.yaml").write_text("")
    with pytest.raises(BadInput) as caught:
        load_run(tmp_path / "spma.yaml")
    assert "spam.yaml" in caught.value.fix
