"""Every command once, as a user types it: what it prints where, and what it leaves behind."""

import csv
import json
import re
from pathlib import Path

import pytest
from shell import COLOURS, Train, colour_row, finished, run_here, write_jsonl

from tunesmith.config import load_run

COMMANDS = ("demo", "init", "train", "resume", "eval", "generate", "chat", "show", "runs", "diff", "doctor")


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_every_command_explains_itself(command):
    said = run_here(*command, "--help")
    finished(said)
    assert "Usage: tunesmith" in said.out and said.err == ""
    if not command:
        assert all(re.search(rf"\b{name}\b", said.out) for name in COMMANDS)


# --- init ---------------------------------------------------------------------------------------------------------------


def pairs(folder: Path) -> tuple[Path, list[str]]:
    return write_jsonl(folder / "pairs.jsonl", map(colour_row, range(40))), []


def csv_without_header(folder: Path) -> tuple[Path, list[str]]:
    path = folder / "sms.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows((COLOURS[n % 3], f"what colour, is thing {n}?") for n in range(40))
    return path, []


def alpaca(folder: Path) -> tuple[Path, list[str]]:
    path = folder / "alpaca.json"
    path.write_text(json.dumps([{"instruction": "name the colour", "input": f"thing {n}", "output": COLOURS[n % 3]} for n in range(40)]))
    return path, []


def columns_of_other_names(folder: Path) -> tuple[Path, list[str]]:
    return write_jsonl(folder / "spam.jsonl", ({"text": f"message {n}", "label": COLOURS[n % 3]} for n in range(40))), []


@pytest.mark.parametrize("make", [pairs, csv_without_header, alpaca, columns_of_other_names])
def test_init_writes_a_config_that_train_accepts(make, tiny, tmp_path):
    data, options = make(tmp_path)
    finished(run_here("init", data, "--model", tiny, *options))
    tried = run_here("train", "tunesmith.yaml", "--dry-run")
    finished(tried)
    assert "split: 28 train, 4 validation, 8 test rows" in tried.out
    assert not Path("runs").exists(), "a dry run writes nothing"


def test_init_says_what_it_guessed_and_never_replaces_a_config(tiny, tmp_path):
    data, options = csv_without_header(tmp_path)
    first = run_here("init", data, "--model", tiny, *options)
    assert "guessed: text is the prompt and label the answer" in first.out
    written = Path("tunesmith.yaml").read_bytes()
    again = run_here("init", data, "--model", tiny, *options)
    assert again.code == 2 and "already a file" in again.err
    assert Path("tunesmith.yaml").read_bytes() == written


# --- train --------------------------------------------------------------------------------------------------------------


def test_a_yaml_file_and_flags_describe_the_same_run(tiny, colours, train: Train):
    Path("run.yaml").write_text(
        f"model: {tiny}\noutput: runs/yaml\ndata: {{train: {colours}, test: 0.25}}\n"
        "lora: {rank: 4}\ntraining: {epochs: 1, max_length: 128, dtype: float32}\n"
    )
    finished(run_here("train", "run.yaml"))
    finished(train("--test", "0.25", output="runs/flags"))
    by_yaml, by_flags = (load_run(f"runs/{name}/config.yaml")[0] for name in ("yaml", "flags"))
    assert by_yaml.model_copy(update={"output": "runs/flags"}) == by_flags
    one, other = (Path(f"runs/{name}/adapter/adapter_model.safetensors").read_bytes() for name in ("yaml", "flags"))
    assert one == other, "the same run gives the same adapter, bit for bit"


def test_a_run_folder_holds_everything_that_was_promised(trained):
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "config.yaml",
        "status.json",
        "metrics.jsonl",
        "samples.jsonl",
        "evaluation.json",
        "report.html",
        "README.md",
        "adapter",
    }
    assert {path.name for path in (trained / "adapter").iterdir()} >= {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja", "tunesmith.json"
    }  # fmt: skip
    assert json.loads((trained / "status.json").read_text())["state"] == "done"


def test_set_changes_one_key(train: Train):
    finished(train("--set", "training.steps=2", "--set", "lora.targets=[q_proj, v_proj]"))
    run, _ = load_run("runs/x/config.yaml")
    assert (run.training.steps, run.lora.targets) == (2, ["q_proj", "v_proj"])
    assert len(Path("runs/x/metrics.jsonl").read_text().splitlines()) == 2


def test_without_an_output_the_run_is_named_after_its_config_or_its_data(tiny, colours):
    Path("mine.yaml").write_text(f"model: {tiny}\ndata: {{train: {colours}}}\ntraining: {{steps: 1, max_length: 128}}\n")
    said = run_here("train", "mine.yaml")
    finished(said)
    assert "output: runs/mine" in said.err and Path("runs/mine/adapter").is_dir()
    said = run_here("train", "--model", tiny, "--data", colours, "--set", "training.steps=1", "--max-length", "128")
    finished(said)
    assert "output: runs/colours" in said.err and Path("runs/colours/adapter").is_dir()


def test_keys_of_other_tools_are_converted_and_the_conversion_is_printed(tiny, colours):
    Path("peer.yaml").write_text(
        f"base_model: {tiny}\ntrain_file: {colours}\noutput_dir: runs/peer\nlora_r: 4\nlora_alpha: 16\n"
        "num_train_epochs: 2\nper_device_train_batch_size: 2\ngradient_accumulation_steps: 6\ncutoff_len: 100\n"
    )
    said = run_here("train", "peer.yaml", "--dry-run")
    finished(said)
    for line in (
        "converted lora_r: 4 → lora.rank: 4",
        "converted num_train_epochs: 2 → training.epochs: 2",
        "converted cutoff_len: 100 → training.max_length: 100",
    ):
        assert line in said.err
    assert re.search(r"per_device_train_batch_size × gradient_accumulation_steps: .*2 × 6.* → training.batch_size: 12", said.err)
    assert "8 steps of 12 examples" in said.out


def test_train_prints_json_and_nothing_else_on_request(train: Train):
    said = train("--test", "0.25", "--json")
    finished(said)
    printed = json.loads(said.out)
    assert printed["run"] == "runs/x" and printed["status"]["state"] == "done"
    assert set(printed["evaluation"]["models"]) == {"majority", "base", "x"}


def test_full_fine_tuning_leaves_a_model_that_answers(train: Train):
    finished(train("--method", "full", "--rank", "16", "--test", "0.25"))  # 16: the default, so nothing that full would not read
    assert {path.name for path in Path("runs/x/model").iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    finished(run_here("generate", "runs/x/model", "--prompt", "what colour is thing 1?", "--max-new-tokens", "3"))
    finished(run_here("generate", "runs/x", "--prompt", "what colour is thing 1?", "--max-new-tokens", "3"))


# --- eval ---------------------------------------------------------------------------------------------------------------


def test_eval_prints_rows_and_models_as_json_and_nothing_else(trained):
    said = run_here("eval", trained, "--json")
    finished(said)
    printed = json.loads(said.out)
    assert printed.keys() == {"rows", "task", "models", "differences"} and printed["rows"] == 12
    assert set(printed["models"]) == {"majority", "base", "colours"}
    assert {"loss", "perplexity", "bits_per_byte", "accuracy", "f1_red"} <= set(printed["models"]["colours"])
    assert printed["models"]["colours"]["loss"] < printed["models"]["base"]["loss"]


def test_eval_measures_other_rows_and_other_adapters(trained, always):
    data = write_jsonl(Path("other.jsonl"), ({**colour_row(n), "completion": "red"} for n in range(100, 106)))
    kept = (trained / "evaluation.json").read_bytes()
    said = run_here("eval", trained, "--data", data, "--adapter", f"red={always['red']}", "--json")
    finished(said)
    printed = json.loads(said.out)
    assert printed["rows"] == 6 and set(printed["models"]) == {"majority", "base", "colours", "red"}
    assert printed["models"]["red"]["accuracy"] == 1.0
    assert (trained / "evaluation.json").read_bytes() == kept, "the run's own figures stay those of its own test rows"


# --- generate and chat --------------------------------------------------------------------------------------------------


def test_generate_answers_one_prompt(always):
    said = run_here("generate", always["red"], "--prompt", "what colour is thing 77?")
    assert (said.code, said.out) == (0, "red\n")


def test_generate_answers_every_row_of_a_file_in_order(always):
    rows = write_jsonl(Path("rows.jsonl"), map(colour_row, (5, 3, 4)))
    said = run_here("generate", always["blue"], "--data", rows, "--output", "out/preds.jsonl")
    finished(said)
    assert [json.loads(line) for line in Path("out/preds.jsonl").read_text().splitlines()] == [
        {"source": "rows.jsonl:1", "answer": "blue", "reference": "green"},
        {"source": "rows.jsonl:2", "answer": "blue", "reference": "red"},
        {"source": "rows.jsonl:3", "answer": "blue", "reference": "blue"},
    ]


def test_generate_never_overwrites_the_file_of_prompts(always):
    rows = write_jsonl(Path("rows.jsonl"), map(colour_row, range(3)))
    before = rows.read_bytes()
    said = run_here("generate", always["blue"], "--data", rows, "--output", "./rows.jsonl")
    assert said.code == 2 and "is the file of prompts" in said.err
    assert rows.read_bytes() == before


def test_two_adapters_on_one_base_and_use_chooses(tiny, always):
    adapters = ("--adapter", f"r={always['red']}", "--adapter", f"b={always['blue'] / 'adapter'}")
    asked = ("generate", tiny, *adapters, "--prompt", "what colour is thing 77?", "--max-new-tokens", "4")
    by = {use: run_here(*asked, "--use", use).out for use in ("r", "b", "base")}
    assert (by["r"], by["b"]) == ("red\n", "blue\n") and by["base"] not in ("red\n", "blue\n")
    assert run_here(*asked).out == "red\n", "by default the first adapter answers"


def test_an_adapter_cannot_take_a_name_that_means_something_else(tiny, always):
    said = run_here("generate", tiny, "--adapter", f"base={always['red']}", "--prompt", "x")
    assert said.code == 2 and '"base"' in said.err
    said = run_here("generate", always["red"], "--adapter", f"red={always['blue']}", "--prompt", "x")
    assert said.code == 2 and "is the name of the run itself" in said.err


def test_a_run_folder_called_base_does_not_pass_for_the_base(train: Train):
    finished(train("--test", "0.25", output="runs/base"))
    assert set(json.loads(run_here("eval", "runs/base", "--json").out)["models"]) == {"majority", "base", "base-run"}


def test_chat_switches_between_adapters(tiny, always):
    lines = ["what colour is thing 50?", "/b", "what colour is thing 50?", "/nobody", "/new", "/quit", "never asked"]
    said = run_here("chat", tiny, "--adapter", f"r={always['red']}", "--adapter", f"b={always['blue']}", stdin="\n".join(lines))
    assert (said.code, said.out) == (0, "red\nblue\n")
    assert "talking to r; /base, /r, /b switch (the base is tiny), /new" in said.err
    assert "now b answers" in said.err and "/nobody is not known" in said.err


@pytest.fixture
def templated(train: Train) -> Path:
    """A run whose prompts have a template with one column."""
    rows = write_jsonl(Path("things.jsonl"), ({"thing": f"thing {n}", "colour": "red"} for n in range(32)))
    templates = ("--prompt", "what colour is {thing}?\nOne word.", "--completion", "{colour}")
    finished(train(*templates, "--epochs", "15", "--learning-rate", "0.01", data=rows, output="runs/things"))
    return Path("runs/things")


def test_the_form_of_the_prompts_is_said_and_fill_makes_it(templated):
    form = '"what colour is {thing}?\\nOne word."'
    whole, part = "what colour is thing 50?\nOne word.", "thing 50"
    said = run_here("generate", templated, "--prompt", part)
    finished(said)
    assert f"things was trained on prompts of the form {form}; type the whole prompt, or with --fill only {{thing}}" in said.err
    assert form not in run_here("generate", templated, "--prompt", whole).err, "a prompt of this form needs no advice"
    filled = json.loads(run_here("generate", templated, "--prompt", part, "--fill", "--json").out)
    assert filled == {"adapter": "things", "prompt": whole, "answer": "red"}
    said = run_here("chat", templated, stdin=f"{part}\n/base\n")
    assert said.err.count(form) == 2, "the base is asked in the same form"
    said = run_here("chat", templated, "--fill", stdin=f"{part}\n")
    assert (said.out, form in said.err) == ("red\n", False)


def test_a_model_without_adapters_is_called_by_its_own_name(tiny, templated, train: Train):
    finished(run_here("merge", templated, "--output", "for-things"))
    finished(train("--method", "full", "--set", "lora.rank=16", "--set", "training.steps=1", output="runs/whole"))
    for model, name in (("for-things", "for-things"), ("runs/whole", "whole"), (tiny, "tiny")):
        said = run_here("chat", model, stdin="/base\n")
        finished(said)
        assert f"talking to {name}; /new starts over" in said.err
        assert "/base is not known; /new, /quit" in said.err
        assert ("this model was trained on prompts of the form" in said.err) == (model == "for-things")
    refused = run_here("chat", tiny, "--fill")
    assert refused.code == 2 and "this model was trained without a template" in refused.err


def test_fill_needs_a_template_with_one_column(always):
    for command in (("generate", always["red"], "--prompt", "x", "--fill"), ("chat", always["red"], "--fill")):
        said = run_here(*command)
        assert said.code == 2 and "red was trained without a template" in said.err and "--fill" in said.err


# --- show, runs, doctor -------------------------------------------------------------------------------------------------


def test_show_marks_the_trained_tokens_of_a_row(tiny, colours):
    said = run_here("show", colours, "--row", "3", "--model", tiny)
    finished(said)
    painted = next(line for line in said.out.splitlines() if "<|assistant|>" in line)
    prompt, _, answer = painted.partition("<|assistant|>")
    assert prompt == "<|bos|><|user|>what colour is thing 2?<|end|>", "nothing before the answer is trained"
    assert "".join(re.findall(r"\[([^]]*)\]", answer)) == "green<|end|>" and re.sub(r"\[[^]]*\]", "", answer) == ""
    assert "colours.jsonl:3: " in said.out


def test_show_prints_json_for_a_program(tiny, colours):
    said = run_here("show", colours, "--row", "3", "--model", tiny, "--json")
    finished(said)
    [example] = json.loads(said.out)["examples"]
    assert example["source"] == "colours.jsonl:3" and set(example["tokens"][0]) == {"id", "text", "trained", "control"}
    assert "".join(token["text"] for token in example["tokens"] if token["trained"]) == "green<|end|>"


def test_show_takes_a_config_and_a_run_folder_too(trained):
    by_folder, by_config = run_here("show", trained), run_here("show", trained / "config.yaml")
    finished(by_folder)
    assert by_folder.out == by_config.out and "colours.jsonl:1: " in by_folder.out


def test_runs_lists_state_step_and_figures(trained):
    said = run_here("runs", trained.parent)
    assert said.code == 0
    assert re.search(r"colours  done  step 12 of 12  accuracy 0\.\d{4} → [01]\.\d{4}", said.out)
    [listed] = json.loads(run_here("runs", trained.parent, "--json").out)
    assert (listed["run"], listed["state"], listed["step"], listed["steps"]) == (str(trained), "done", 12, 12)
    assert run_here("runs").out == "no runs below runs\n"
    assert json.loads(run_here("runs", "--json").out) == []


def test_doctor_describes_the_machine():
    facts = json.loads(run_here("doctor", "--json").out)
    assert {"tunesmith", "python", "torch", "cores", "device", "memory_bytes", "free_disk_bytes"} <= set(facts)
    assert all(key in run_here("doctor").out for key in facts)
