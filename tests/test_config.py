"""What a user may write, what is converted, and what is refused with the nearest name."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.config import DataEntry, Run, apply_overrides, is_hub_name, load_run, to_yaml, validate
from tunesmith.errors import BadInput

LEAST = {"model": "acorn", "output": "runs/x", "data": {"train": "rows.jsonl"}}


def given(**more: Any) -> tuple[Run, list[str]]:
    return validate({**LEAST, **more}, "c.yaml")


def test_two_keys_are_enough_and_defaults_are_the_fields_usual_ones():
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
        ({"data": {"train": "x", "vlidation": 0.1}}, "data.vlidation", '"data.validation"'),
        ({"trainning": {}}, "trainning", '"training"'),
        ({"lora": {"rnk": 4}}, "lora.rnk", '"lora.rank"'),
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
        ({"optim": "paged_adamw_8bit"}, "training", "optimizer", "adamw8bit"),
        ({"optim": "adamw_torch_fused"}, "training", "optimizer", "adamw"),
        ({"optimizer": "adamw_bnb_8bit"}, "training", "optimizer", "adamw8bit"),
        ({"method": "qlora", "training": {"optimizer": "paged_adamw_8bit"}}, "training", "optimizer", "adamw8bit"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "quantization", "scheme", "fp4"),
        ({"quantization_bit": 4, "double_quantization": False}, "quantization", "double", False),
        ({"method": "qlora", "bnb_4bit_compute_dtype": "torch.float32"}, "training", "dtype", "float32"),
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
        ({"optim": "adafactor"}, "should be 'adamw' or 'adamw8bit'"),
        ({"training": {"learning_rate": "fast"}}, "learning_rate"),
        ({"training": {"learning_rate": float("nan")}}, "learning_rate"),
        ({"training": {"epochs": 0}}, "greater than 0"),
        ({"data": {"train": "x", "validation": 1.5}}, "less than 1"),
        ({"lora": {"rank": 0}}, "greater than or equal to 1"),
        ({"data": {"train": "x", "near_duplicates": 1.5}}, "off, or a share from 0.5 to 1"),
        ({"data": "rows.jsonl"}, "data"),
        ({"output": " "}, "should not be empty"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_the_key_and_its_meaning(raw: dict[str, Any], message: str):
    with pytest.raises(BadInput, match=message) as caught:
        given(**raw)
    assert caught.value.where == "c.yaml"
    assert caught.value.fix


AXOLOTL = """
base_model: acorn
datasets:
  - path: rows.jsonl
    type: alpaca
adapter: lora
lora_model_dir:
lora_r: 32
lora_alpha: 16
lora_target_linear: true
sequence_len: 256
micro_batch_size: 2
gradient_accumulation_steps: 4
val_set_size: 0
bf16: auto
load_in_8bit: false
load_in_4bit: false
logging_steps: 1
"""


def test_a_stock_config_of_axolotl_becomes_ours_and_every_key_is_accounted_for(tmp_path: Path):
    path = tmp_path / "axolotl.yaml"
    path.write_text(AXOLOTL)
    run, said = load_run(path)
    assert (run.data.train, run.data.format, run.data.validation) == ("rows.jsonl", "alpaca", None)
    assert (run.lora.rank, run.lora.alpha, run.lora.targets, run.lora.continue_from) == (32, 16, "all-linear", None)
    assert (run.training.batch_size, run.training.dtype, run.training.max_length) == (8, "auto", 256)
    assert run.output == "runs/axolotl"
    for key in yaml.safe_load(AXOLOTL):
        assert any(key in line for line in said), key
    assert "left out logging_steps: 1, as every step is logged" in said


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        ({"datasets": [{"path": "a.jsonl"}, {"type": "alpaca"}]}, "this entry has no path"),
        ({"datasets": [{"path": "a.jsonl", "type": "input_output"}]}, "type input_output cannot be converted"),
        ({"template": "llama3"}, "the tokenizer's own template"),
        ({"fp16": True}, "training.dtype"),
        ({"load_in_8bit": True}, "quantization.scheme: int8"),
        ({"quantization_bit": 8}, "quantization.scheme: int8"),
        ({"bnb_4bit_compute_dtype": "float16"}, "training.dtype: bfloat16"),
    ],
)
def test_a_key_of_another_tool_that_means_something_else_here_is_refused_with_what_to_write(theirs: dict[str, Any], words: str):
    with pytest.raises(BadInput) as caught:
        given(**theirs)
    assert words in str(caught.value) and next(iter(theirs)) in caught.value.what


def test_a_section_given_as_one_value_is_told_the_key_that_was_meant():
    with pytest.raises(BadInput, match="is a section with keys of its own") as caught:
        given(method="qlora", quantization="nf4")
    assert caught.value.fix == "quantization.scheme: nf4"


def test_all_unknown_keys_are_named_at_once_and_before_a_missing_one():
    raw = {"model": "acorn", "flash_attention": True, "batchsize": 3, "template": "llama3", "lora": {"rnk": 4}}
    with pytest.raises(BadInput, match=r'unknown keys "flash_attention", "batchsize", "lora\.rnk"\n +template: ') as caught:
        validate(raw, "c.yaml")
    assert caught.value.where == "c.yaml"
    assert (
        'batchsize: did you mean "training.batch_size"?' in caught.value.fix and 'lora.rnk: did you mean "lora.rank"?' in caught.value.fix
    )


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("epoch=2", "training.epochs"),
        ("batchsize=4", "training.batch_size"),
        ("promt={text}", "data.prompt"),
        ("learning_rat=1e-3", "training.learning_rate"),
        ("lora_rnk=4", "lora.rank"),
        ("trainig.epochs=2", "training"),
    ],
)
def test_a_misspelt_set_is_named_as_it_was_typed_with_the_key_that_was_meant(override: str, meant: str):
    with pytest.raises(BadInput, match="unknown key") as caught:
        validate(LEAST, "c.yaml", [override])
    assert (caught.value.where, caught.value.fix) == (f"--set {override}", f'did you mean "{meant}"?')


@pytest.mark.parametrize(
    ("overrides", "path", "value"),
    [
        (["rank=8"], "lora.rank", 8),
        (["lora_r=8"], "lora.rank", 8),
        (["training.lr=1e-3"], "training.learning_rate", 1e-3),
        (["batch_size=4"], "training.batch_size", 4),
        (["micro_batch_size=4"], "training.micro_batch_size", 4),
        (["per_device_train_batch_size=2", "gradient_accumulation_steps=3"], "training.batch_size", 6),
        (["val_set_size=0"], "data.validation", None),
        (["lora={dropout: 0.5}"], "lora.rank", 4),
    ],
)
def test_a_key_that_is_set_wins_over_the_file_whichever_tool_it_is_from(overrides: list[str], path: str, value: Any):
    file = {
        "model": "acorn", "data": {"train": "x", "validation": 0.1}, "lora": {"rank": 4},
        "training": {"learning_rate": 1e-4, "batch_size": 16},
    }  # fmt: skip
    run, _ = validate(file, "c.yaml", overrides)
    section, key = path.split(".")
    assert getattr(getattr(run, section), key) == value


def test_accumulation_that_is_set_goes_with_the_micro_batch_of_the_file():
    run, _ = validate({**LEAST, "micro_batch_size": 2, "gradient_accumulation_steps": 8}, "c.yaml", ["gradient_accumulation_steps=3"])
    assert run.training.batch_size == 6


def test_of_two_keys_with_one_name_the_one_that_is_meant_is_set():
    run, said = given(batch_size=4, limit=100)
    assert (run.training.batch_size, run.data.limit) == (4, 100) and (run.evaluation.batch_size, run.evaluation.limit) == (64, None)
    assert len(said) == 2


def test_the_output_is_named_after_the_config_or_else_after_the_data(tmp_path: Path):
    path = tmp_path / "sms.yaml"
    path.write_text("model: acorn\ndata: {train: rows.jsonl}\n")
    run, said = load_run(path)
    assert (run.output, said) == ("runs/sms", ["output: runs/sms"])
    assert load_run(path, ["output=mine"])[0].output == "mine"
    assert validate({"model": "acorn", "data": {"train": "there/rows.csv.gz"}}, "the config")[0].output == "runs/rows"
    assert Run.model_validate({"model": "acorn", "data": {"train": "rows.csv"}}).output == "runs/rows"


@pytest.mark.parametrize(
    ("raw", "idle", "fix"),
    [
        ({"method": "full", "lora": {"rank": 8, "continue_from": "a"}}, "lora.rank, lora.continue_from", "method: lora"),
        ({"method": "full", "lora_r": 8}, "lora.rank", "method: lora"),
        ({"method": "lora", "full": {"train": "biases"}}, "full.train", "method: full"),
        ({"method": "qlora", "full": {"train": 2}}, "full.train", "method: full"),
        ({"method": "lora", "quantization": {"block_size": 32}}, "quantization.block_size", "method: qlora"),
        ({"method": "full", "quantization": {"scheme": "int4"}}, "quantization.scheme", "method: qlora"),
    ],
)
def test_a_setting_that_the_method_does_not_read_is_refused(raw: dict[str, Any], idle: str, fix: str):
    with pytest.raises(BadInput) as caught:
        given(**raw)
    assert caught.value.what.endswith(f"does not read {idle}") and fix in caught.value.fix


@pytest.mark.parametrize(("written", "near"), [("off", "off"), ('"off"', "off"), ("on", 0.8), ("0.9", 0.9), ("1", 1.0)])
def test_near_copies_are_a_similarity_or_off_as_yaml_reads_it(tmp_path: Path, written: str, near: float | str):
    (tmp_path / "c.yaml").write_text(f"model: acorn\ndata: {{train: rows.jsonl, near_duplicates: {written}}}\n")
    run, _ = load_run(tmp_path / "c.yaml")
    assert run.data.near_duplicates == near
    (tmp_path / "saved.yaml").write_text(to_yaml(run))
    assert load_run(tmp_path / "saved.yaml")[0].data.near_duplicates == near


def test_rows_are_grouped_only_where_some_are_held_out():
    raw = {"model": "acorn", "data": {"train": "rows.jsonl", "group_by": "author"}}
    with pytest.raises(BadInput, match=r"data\.group_by without rows held out has no effect"):
        validate(raw, "run.yaml")
    for data in ({"validation": 0.1}, {"test": "b.jsonl"}):
        assert validate({**raw, "data": {**raw["data"], **data}}, "run.yaml")[0].data.group_by == "author"


def test_a_setting_that_waits_for_validation_rows_is_refused_without_them():
    with pytest.raises(BadInput, match=r"training\.early_stopping without validation rows") as caught:
        given(training={"early_stopping": 2})
    assert "data.validation" in caught.value.fix


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_saved_config_spells_out_defaults_of_every_section_and_loads(method: str, tmp_path: Path):
    run, _ = given(method=method)
    (tmp_path / "config.yaml").write_text(to_yaml(run))
    assert load_run(tmp_path / "config.yaml") == (run, [])


@pytest.mark.parametrize("rate", ["fast", float("nan"), "nan", 0, -1, 10, True, None, [1]])
def test_a_learning_rate_is_auto_or_a_number_in_its_range(rate: Any):
    with pytest.raises(BadInput, match="should be auto or a number above 0 and below 10"):
        given(training={"learning_rate": rate})


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


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_quantisation_is_refused_without_qlora_even_where_it_is_the_default(method: str):
    raw = {"model": "acorn", "method": method, "data": {"train": "rows.jsonl"}, "quantization": {"scheme": "nf4"}}
    with pytest.raises(BadInput, match=f"method {method} does not read quantization.scheme") as caught:
        validate(raw, "run.yaml")
    assert caught.value.fix.startswith("method: qlora")
    saved = yaml.safe_load(to_yaml(validate({**raw, "quantization": {}}, "run.yaml")[0]))
    assert validate(saved, "config.yaml")[0].method == method, "a saved run spells its defaults out"


# --- several datasets -------------------------------------------------------------------------------------------------------


def test_a_list_of_datasets_names_each_by_its_path_or_by_what_is_otherwise_for_it():
    run, _ = given(data={"train": ["a.jsonl", {"path": "b.csv", "weight": 2, "prompt": "{q}", "completion": "{a}"}]})
    assert isinstance(run.data.train, list) and run.data.train[0] == "a.jsonl"
    entry = run.data.train[1]
    assert isinstance(entry, DataEntry) and entry.settings() == {"prompt": "{q}", "completion": "{a}"}
    assert DataEntry(path="c.jsonl", format="messages").settings() == {
        "prompt": None,
        "completion": None,
        "columns": None,
        "format": "messages",
    }


@pytest.mark.parametrize(
    ("data", "what", "fix"),
    [
        ({"train": [{"pth": "x"}]}, 'entry 1 of "data.train" has no path', "path: FILE"),
        ({"train": ["a", {"path": "x", "weigth": 2}]}, 'entry 2 of "data.train" has the unknown key "weigth"', '"weight"'),
        ({"train": [{"path": "x", "weight": 0}]}, 'weight of entry 1 of "data.train" cannot be 0', "how much more often"),
        ({"train": [5]}, 'entry 1 of "data.train" cannot be 5', "data.train: a file"),
        ({"train": []}, "should name at least one file", "data.train: a file"),
        ({"train": "a", "test": [{"path": "b", "weight": 2}]}, "a weight is for data.train", "data.test"),
        ({"train": "a", "prompt": ["{x}", "{x}"]}, "a list of different ones", "data.prompt"),
        ({"train": "a", "temperature": 3}, "data.mixing: proportional does not read data.temperature", "data.mixing: temperature"),
        ({"train": "a", "mixing": "equal", "cap": 3}, "data.mixing: equal does not read data.cap", "leave it out"),
    ],
)
def test_a_fault_in_a_list_of_datasets_is_named_by_its_entry_and_key(data: dict[str, Any], what: str, fix: str):
    with pytest.raises(BadInput) as caught:
        validate({"model": "acorn", "data": data}, "c.yaml")
    assert what in caught.value.what and fix in caught.value.fix


def test_a_list_on_the_command_line_is_yaml_and_a_template_is_text():
    raw = {"model": "acorn", "data": {"train": "x"}}
    run, _ = validate(
        raw, "c.yaml", ["data.train=[a.jsonl, {path: b.jsonl, weight: 2}]", "data.prompt=[{text}]", "data.completion={label}"]
    )
    assert run.data.train == ["a.jsonl", DataEntry(path="b.jsonl", weight=2)]
    assert (run.data.prompt, run.data.completion) == ("[{text}]", "{label}")
    assert validate(raw, "c.yaml", ['data.prompt=["{a}?", "{a}!"]'])[0].data.phrasings == ("{a}?", "{a}!")


def test_axolotls_datasets_become_a_list():
    theirs = [{"path": "a.jsonl", "type": "alpaca"}, {"path": "owner/name", "split": "train"}]
    run, said = validate({"model": "acorn", "datasets": theirs}, "c.yaml")
    assert run.data.train == [DataEntry(path="a.jsonl", format="alpaca"), "owner/name:train"]
    assert run.output == "runs/a" and any(line.startswith("converted datasets") for line in said)


@pytest.mark.parametrize(
    ("path", "is_hub"),
    [
        ("owner/name", True), ("owner/name:train", True), ("owner/name-v1.5/subset:test", True), ("owner/name.jsonl", False),
        ("./owner/name", False), ("/owner/name", False), ("name", False), ("a/b/c/d", False),
    ],
)  # fmt: skip
def test_a_hub_name_is_two_or_three_words_and_no_path(path: str, is_hub: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_name(path) is is_hub
    Path("owner/name").mkdir(parents=True)
    assert not is_hub_name("owner/name") and not is_hub_name("owner/name:train"), "what is there is meant"


# --- every message says what, where and what to do ----------------------------------------------------------------------------

GOOD = "model: acorn\ndata: {train: x.jsonl}\n"
BAD = [  # the file; words of what is wrong; where; words of the fix
    ("model: acorn\ndata: {train: [x.jsonl\n", "not YAML: expected ','", "c.yaml:3", "close what line 2 opens with ["),
    ("model: acorn\ndata: {train: x.jsonl\n", "not YAML: expected ','", "c.yaml:3", "close what line 2 opens with {"),
    ("model: acorn\ndata:\n\ttrain: x\n", "cannot start any token", "c.yaml:3", "indent with spaces"),
    (GOOD + "---\nmodel: x\n", "found another document", "c.yaml:3", "leave the line --- out"),
    ("model: !!python/object/apply:os.system [ls]\n", "for the tag", "c.yaml:1", "leave the !tag out"),
    ("a: &a [*a]\n" + GOOD, "recursive", "c.yaml:1", "leave the & and * out"),
    ("model: *x\n", "undefined alias", "c.yaml:1", "in quotes"),
    ("model: acorn\0\n", "unacceptable character", "c.yaml", "write it again"),
    ("model: %x\n", "cannot start any token", "c.yaml:1", "quote text"),
    (GOOD + "model: other\n", 'the key "model" is given twice', "c.yaml, line 3", "keep one"),
    ("? [a, b]\n: 2\n" + GOOD, "a key is a word", "c.yaml, line 1", "key: value"),
    ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply", "c.yaml", "tunesmith init"),
    ("", "a config is a mapping", "c.yaml", "tunesmith init"),
    ("- model\n", "a config is a mapping", "c.yaml", "tunesmith init"),
    (GOOD + "1: 2\n", 'unknown key "1"', "c.yaml", "docs/configuration.md"),
    (GOOD + "training: {batch_size: true}\n", '"training.batch_size" cannot be true: should be a number', "c.yaml", "examples per optimizer step"),
    (GOOD + "training: {epochs: no}\n", '"training.epochs" cannot be false: should be a number', "c.yaml", "passes over"),
    (GOOD + "method: full\nfull: {train: true}\n", '"full.train" cannot be true: should be a number', "c.yaml", "the last N layers"),
    (GOOD + "training: {epochs: .inf}\n", "should be a finite number", "c.yaml", "passes over"),
    (GOOD + "output: 2024-01-01\n", '"output" cannot be 2024-01-01: input should be a valid string', "c.yaml", 'in quotes it is text: output: "2024-01-01"'),
    (GOOD + "lora: {targets: 5}\n", "should be 'all-linear' or a list", "c.yaml", "every linear layer"),
    (GOOD + "lora: [1, 2]\n", '"lora" is a section', "c.yaml", "lora.rank"),
    ("model: acorn\ndata: {train: null}\n", '"data.train" cannot be empty', "c.yaml", "a file (JSONL"),
    (b"model: \xff\xfe\n", "cannot be read", "c.yaml", "UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "what", "where", "fix"), BAD)
def test_every_bad_config_is_told_what_where_and_what_to_do(tmp_path, monkeypatch, text, what, where, fix):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput) as caught:
        load_run("c.yaml")
    assert what in caught.value.what
    assert where == caught.value.where
    assert fix in caught.value.fix


def test_yaml_words_for_yes_and_no_stay_what_they_are_where_they_fit():
    assert given(training={"packing": True})[0].training.packing is True
    assert given(data={"train": "x", "near_duplicates": False})[0].data.near_duplicates == "off"


def test_everything_that_is_wrong_is_told_at_once():
    raw = {"model": "acorn", "data": {"train": "x"}, "lora": {"rank": 0, "drpout": 1}, "training": {"packing": True, "micro_batch_size": 4}}
    with pytest.raises(BadInput) as caught:
        validate(raw, "c.yaml", ["training.epochs=-1"])
    unknown, *others = caught.value.what.splitlines()
    assert unknown == 'unknown key "lora.drpout"'
    assert ['"lora.rank" cannot be 0' in others[0], '"training.epochs" cannot be -1' in others[1], "packed rows" in others[2]] == [True] * 3
    assert caught.value.where.splitlines() == ["c.yaml", "--set training.epochs=-1"]
    assert [line.partition(":")[0] for line in caught.value.fix.splitlines()] == [
        "lora.drpout", "lora.rank", "training.epochs", "training.micro_batch_size"
    ]  # fmt: skip


def test_what_is_wrong_makes_no_second_complaint():
    with pytest.raises(BadInput) as caught:  # the validation rows are there, only not well said
        validate({"model": "acorn", "data": {"train": "x", "validation": 1.5}, "training": {"early_stopping": 2}}, "c.yaml")
    assert caught.value.what.splitlines() == [caught.value.what]
    with pytest.raises(BadInput, match="\"method\" cannot be 'loar'") as caught:
        validate({"model": "acorn", "data": {"train": "x"}, "method": "loar", "full": {"train": 2}}, "c.yaml")
    assert "\n" not in caught.value.what
