"""What a new user gets wrong, and a machine too: each is told what, where and what to do, and nothing that existed is lost."""

import json
import resource
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from shell import Train, colour_row, finished, refused, run_here, run_there, tree, write_jsonl

GOOD = json.dumps(colour_row(0))
MESSAGES = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})


# --- data ---------------------------------------------------------------------------------------------------------------


def test_a_missing_data_file_names_the_nearest_one(train: Train, colours):
    refused(train(data=Path(colours).with_name("colors.jsonl")), "no such file", "colors.jsonl", 'did you mean "colours.jsonl"')


def test_a_missing_folder_is_named(train: Train):
    refused(train(data="nowhere/colours.jsonl"), "no such file", "nowhere/colours.jsonl", 'there is no folder "nowhere"')


def test_one_broken_line_in_ten_thousand_is_named_by_its_number(train: Train):
    rows = [json.dumps(colour_row(n)) for n in range(10_000)]
    rows[7340] = '{"prompt": "cut off", "compl'
    Path("rows.jsonl").write_text("\n".join(rows) + "\n")
    refused(train(data="rows.jsonl"), "not JSON", "rows.jsonl:7341", "data.on_bad_row: skip")


def test_skipped_rows_are_counted_aloud(train: Train):
    Path("rows.jsonl").write_text("\n".join([GOOD, "{", *(json.dumps(colour_row(n)) for n in range(1, 20))]))
    said = train("--set", "data.on_bad_row=skip", "--dry-run", data="rows.jsonl")
    finished(said)
    assert "1 of 21 rows skipped, the first at rows.jsonl:2" in said.out and "training on 20 examples" in said.out


UTF16 = f"{GOOD}\n{GOOD}\n".encode("utf-16")


@pytest.mark.parametrize(
    ("name", "content", "what", "where", "fix"),
    [
        ("empty.jsonl", b"", "the file is empty", "empty.jsonl", "at least one example"),
        ("blank.jsonl", b"\n \n\n", "blank lines", "blank.jsonl", "at least one example"),
        ("utf16.jsonl", UTF16, "UTF-16, not UTF-8", "utf16.jsonl: byte 0", 'iconv -f UTF-16 -t UTF-8 "utf16.jsonl"'),
        ("latin.csv", "prompt,completion\ncafé,x\n".encode("latin-1"), "byte 0xe9", "latin.csv:2", "iconv -f WINDOWS-1252"),
        ("surrogate.jsonl", f'{GOOD}\n{{"prompt": "a\\ud83d", "completion": "b"}}'.encode(), "surrogate", "surrogate.jsonl:2", "skip"),
        ("nan.jsonl", f'{GOOD}\n{{"prompt": "a", "completion": NaN}}'.encode(), "NaN", "nan.jsonl:2", "skip"),
        ("mixed.jsonl", f"{GOOD}\n{MESSAGES}".encode(), "mixed formats", "mixed.jsonl:2", "skip"),
        ("columns.csv", b"thing,colour\nsky,blue\n", "do not say which is the prompt", "thing, colour", 'data.completion: "{colour}"'),
        ("ragged.csv", b"prompt,completion\na,b\nc\n", "1 cell where the 2 columns", "ragged.csv:3", "skip"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(train: Train, name, content, what, where, fix):
    Path(name).write_bytes(content)
    refused(train(data=name), what, where, fix)
    assert Path(name).read_bytes() == content


def test_a_column_that_is_not_there_is_named_with_the_nearest(train: Train):
    said = train("--prompt", "Q: {promt}", "--completion", "{completion}")
    refused(said, "{promt}, which is no column", "columns prompt, completion", 'did you mean "prompt"')


def test_a_row_of_20_megabytes_is_refused_as_too_long_with_its_line(train: Train):
    write_jsonl(Path("long.jsonl"), [colour_row(0), {"prompt": "what colour is it? " * 1_100_000, "completion": "red"}])
    assert Path("long.jsonl").stat().st_size > 20_000_000
    refused(train(data="long.jsonl"), "longer than training.max_length = 128", "long.jsonl:2", 'data.on_too_long: "drop"')


def test_test_rows_that_are_also_training_rows_are_removed_and_said(train: Train):
    write_jsonl(Path("test.jsonl"), map(colour_row, range(5)))
    said = train("--test", "test.jsonl", "--dry-run")
    finished(said)
    assert "5 rows of train removed because the held-out rows contain them; the first: colours.jsonl:1" in said.out
    assert "training on 43 examples" in said.out


# --- config -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "what", "fix"),
    [
        (["--set", "lora.rnk=4"], 'unknown key "lora.rnk"', 'did you mean "lora.rank"'),
        (["--set", "training.rank=4"], 'unknown key "training.rank"', 'did you mean "lora.rank"'),
        (["--set", "training.batch_size=many"], "\"training.batch_size\" cannot be 'many'", "examples per optimizer step"),
        (["--set", "training"], "does not set a key", "--set training.epochs=2"),
        (["--method", "dora"], "\"method\" cannot be 'dora'", "lora: adapters"),
        (["--method", "qlora", "--set", "quantization.scheme=nf5"], 'there is no scheme "nf5"', 'did you mean "nf4"'),
        (["--method", "qlora", "--set", "quantization.block_size=128"], "a block of 128 is longer than a row", "at most 64"),
        (["--method", "qlora", "--set", "quantization.block_size=7"], "a block of 7 weights", "an even number from 32 to 4096"),
        (["--set", "quantization.scheme=fp4"], "method lora does not read quantization.scheme", "method: qlora"),
        (["--learning-rate", "fast"], "cannot be 'fast': should be auto or a number above 0 and below 10", "auto"),
        (["--validation", "0.7", "--test", "0.6"], "leave nothing to train on", "sum to less than 1"),
        (["--rank", "65"], "rank 65 is larger than the layer", "lora.rank: at most 64"),
        (["--set", "lora.targets=[q_prj]"], "no linear layer is named q_prj", 'did you mean "q_proj"'),
        (["--max-length", "300"], "256 positions", "training.max_length: 256"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(train: Train, options, what, fix):
    refused(train(*options), what, fix=fix)


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("model: acorn\noutput: x\nmodle: y\ndata: {train: z}\n", 'unknown key "modle"', "run.yaml"),
        ("model: acorn\nmodel: acorn\n", 'the key "model" is given twice', "run.yaml, line 2"),
        ("model: acorn\n  output: x\n", "not YAML", "run.yaml:2"),
        ("model: acorn\noutput: x\n", '"data.train" is missing', "run.yaml"),
        ("- model\n", "a config is a mapping", "run.yaml"),
    ],
)
def test_a_config_that_is_not_one_is_refused(text, what, where):
    Path("run.yaml").write_text(text)
    refused(run_here("train", "run.yaml"), what, where)


def test_what_is_given_in_place_of_a_config_is_recognised(colours, trained):
    refused(run_here("train", colours), "a file of examples, not a config", colours, "tunesmith init")
    refused(run_here("train", trained), "a run, not a config", str(trained), "tunesmith resume")
    refused(run_here("train", "nowhere.yaml"), "no such config", "nowhere.yaml", "tunesmith init")
    refused(run_here("train"), "--model and --data must be given", "tunesmith train", "CONFIG.yaml")


def test_a_setting_that_would_not_be_read_stops_before_anything_is_loaded(train: Train, trained):
    said = train("--method", "full", "--set", f"lora.continue_from={trained / 'adapter'}", model="nowhere", data="nowhere.jsonl")
    refused(said, "method full does not read lora.rank, lora.continue_from", "--rank 4", "method: lora, or leave them out")


def test_a_misspelt_option_is_named_as_it_was_typed(train: Train):
    refused(train("--set", "epoch=2"), 'unknown key "epoch"', "--set epoch=2", 'did you mean "training.epochs"?')
    refused(train("--epochs", "0"), '"training.epochs" cannot be 0', "--epochs 0", "passes over the training rows")


def test_a_flag_is_named_as_it_was_typed_by_plan_too(tiny):
    refused(run_here("plan", tiny, "--max-length", "0"), '"training.max_length" cannot be 0', "--max-length 0", "training.max_length")


@pytest.mark.parametrize(
    ("command", "what", "where", "fix"),
    [
        (["plan"], "missing argument 'config'", "tunesmith plan", "tunesmith plan --help"),
        (["diff", "runs/s"], "missing argument 'b'", "tunesmith diff", "tunesmith diff --help"),
        (["resume", "runs/x", "--set", "a=b"], "no such option: --set", "tunesmith resume", "config.yaml"),
        (["train", "--epochs", "many"], "invalid value for '--epochs'", "tunesmith train", "tunesmith train --help"),
        (["check", "x", "--lines", "0"], "invalid value for '--lines'", "tunesmith check", "tunesmith check --help"),
        (["runs", "a", "b"], "extra argument", "tunesmith runs", "tunesmith runs --help"),
        (["trian"], "no such command 'trian'", "tunesmith", "tunesmith --help"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_refused_in_three_lines(command, what, where, fix):
    said = run_here(*command)
    lines = said.err.lower().splitlines()
    assert [line.split()[0] for line in lines] == ["error:", "where:", "fix:"] and said.out == "" and said.code == 2
    assert what in lines[0] and lines[1].endswith(where) and lines[2].endswith(f"{where} --help") and fix in lines[2]


def test_no_command_at_all_prints_the_help():
    said = run_here()
    assert said.code == 2 and "Usage: tunesmith" in said.out + said.err and "error: " not in said.err


# --- models and adapters ------------------------------------------------------------------------------------------------


def test_a_misspelt_model_folder_names_the_nearest(train: Train, tiny):
    refused(train(model=f"{tiny}y"), "no such model folder", "tinyy", tiny)
    refused(train(model="acron", output="runs/y"), "no such model folder", "acron", 'did you mean "acorn"')


def test_a_folder_without_safetensors_is_refused_and_a_pickle_is_never_read(train: Train, tiny):
    shutil.copytree(tiny, "model", ignore=shutil.ignore_patterns("*.safetensors"))
    refused(train(model="model"), "no safetensors weights", "model", "save_pretrained")
    Path("model/pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    refused(train(model="model", output="runs/y"), "pytorch_model.bin is a pickle and is never read", "model")
    assert not Path("pwned").exists()


def test_weights_that_were_cut_short_are_refused(train: Train, tiny):
    shutil.copytree(tiny, "model")
    weights = Path("model/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(train(model="model"), "weights cannot be loaded", "model", "again")


def test_a_run_and_an_adapter_are_no_base_models(train: Train, trained):
    refused(train(model=trained), "a run, not a model", str(trained))
    refused(train(model=trained / "adapter", output="runs/y"), "an adapter, not a model", "adapter", "its base")


def test_an_adapter_for_another_base_is_refused(other_tiny, trained, train: Train):
    said = run_here("generate", other_tiny, "--adapter", f"x={trained}", "--prompt", "hello")
    refused(said, "whose weights are not these", str(trained / "adapter"), "the base it was trained on")
    said = train("--set", f"lora.continue_from={trained / 'adapter'}", model=other_tiny)
    refused(said, "whose weights are not these", str(trained / "adapter"))


def test_an_adapter_for_another_base_names_its_own_even_where_the_tokenizers_differ(tiny, trained, tmp_path):
    """A base without a chat template, and one with another vocabulary: the first thing that is wrong is the base."""
    plain = tmp_path / "plain"
    shutil.copytree(tiny, plain)
    (plain / "chat_template.jinja").unlink()
    tensors = load_file(plain / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, plain / "model.safetensors", metadata={"format": "pt"})
    for other in (plain, "acorn"):
        said = run_here("generate", other, "--adapter", f"x={trained}", "--prompt", "hello")
        refused(said, f"it was trained on {tiny}, whose weights are not these", str(other), f"load the base it was trained on ({tiny})")


def test_advice_on_a_file_of_prompts_says_how_a_key_is_given_here(tiny, trained):
    Path("sms.tsv").write_text("ham\tsee you at five\nspam\tfree entry\n")
    said = run_here("generate", tiny, "--data", "sms.tsv", "--output", "preds.jsonl")
    refused(said, "do not say which is the prompt", "sms.tsv", "--set 'data.columns=[label, text]'")
    sets = ("--set", "data.header=false", "--set", "data.columns=[label, text]", "--set", "data.prompt={text}")
    finished(run_here("generate", tiny, "--data", "sms.tsv", "--output", "preds.jsonl", *sets, "--max-new-tokens", "1"))
    assert len(Path("preds.jsonl").read_text().splitlines()) == 2
    finished(run_here("eval", trained, "--data", "sms.tsv", *sets, "--set", "completion={label}"))
    said = run_here("generate", tiny, "--data", "sms.tsv", "--output", "other.jsonl", "--set", "training.epochs=2")
    refused(said, "only keys of data can be set here", "training.epochs=2", "data.header")


def test_answers_never_replace_a_file_unless_that_is_asked_for(always, colours):
    Path("preds.jsonl").write_text("precious")
    asked = ("generate", always["red"], "--data", colours, "--output", "preds.jsonl", "--max-new-tokens", "2")
    refused(run_here(*asked), "already a file of this name", "preds.jsonl", "--overwrite")
    assert Path("preds.jsonl").read_text() == "precious"
    finished(run_here(*asked, "--overwrite"))
    assert len(Path("preds.jsonl").read_text().splitlines()) == 48


# --- run folders --------------------------------------------------------------------------------------------------------


def test_an_output_that_holds_something_is_refused_and_left_as_it_was(train: Train, trained):
    before = tree(trained)
    refused(train(output=trained), "already holds a finished run", str(trained), "another output")
    assert tree(trained) == before
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    refused(train(output="mine"), "not empty", "mine", "another output")
    assert tree(Path("mine")) == {"letter.txt": b"dear"}


def test_a_run_that_is_done_is_left_as_it_is_and_other_folders_are_refused(trained, tiny):
    before = tree(trained)
    again = run_here("resume", trained)  # as a scheduler does, which cannot know that it ended
    assert again.code == 0, again
    assert "this run is done, and nothing is left to do" in again.out + again.err
    assert tree(trained) == before
    refused(run_here("resume", tiny), "not a run folder", tiny)
    refused(run_here("resume", trained.with_name("colour")), "no such run folder", "colour", f'did you mean "{trained}"')


def test_an_output_below_a_file_is_refused_before_anything_is_read(train: Train):
    Path("afile").write_text("precious")
    refused(train(output="afile/x"), "afile is a file, and the output would lie in it", "afile/x", "another output")


def test_a_config_that_is_lost_is_written_again_from_a_checkpoint(interrupted):
    folder = interrupted()
    config = folder / "config.yaml"
    before = config.read_bytes()
    config.unlink()
    refused(run_here("eval", folder), "the config.yaml of this run is lost", str(folder), f"tunesmith resume {folder}")
    said = run_here("resume", folder)
    finished(said)
    assert f"{config} was lost, and is written again as the newest checkpoint has it" in said.err
    assert config.read_bytes() == before


def test_a_config_that_no_whole_checkpoint_holds_is_said_to_be_lost(interrupted):
    folder = interrupted()
    (folder / "config.yaml").unlink()
    for state in folder.glob("checkpoints/*/state.json"):
        state.write_bytes(state.read_bytes() + b" ")
    refused(run_here("resume", folder), "no whole checkpoint holds what it said", str(folder), "this run began with: tunesmith train")


def test_data_that_changed_since_the_run_began_are_noticed(tiny, interrupted):
    rows = Path("rows.jsonl")
    write_jsonl(rows, map(colour_row, range(48)))
    folder = interrupted("--data", rows)
    write_jsonl(rows, map(colour_row, range(1, 49)))
    refused(run_here("resume", folder), "the data changed since this run began", "rows.jsonl", "restore the file")
    write_jsonl(rows, map(colour_row, range(48)))
    finished(run_here("resume", folder))


def test_a_file_that_came_into_a_folder_of_tasks_is_noticed(tiny, interrupted):
    Path("tasks").mkdir()
    for task in ("one", "two"):
        write_jsonl(Path(f"tasks/{task}.jsonl"), map(colour_row, range(24)))
    folder = interrupted("--data", "tasks")
    write_jsonl(Path("tasks/three.jsonl"), map(colour_row, range(24)))
    refused(run_here("resume", folder), "the data changed since this run began", "three.jsonl is new", "restore the files")


# --- the machine --------------------------------------------------------------------------------------------------------


def with_small_files():
    """In the child: writing a file beyond 40 kB fails as on a full disk, but for the reason. An adapter fits, the optimizer's moments do not."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))


def test_a_full_disk_while_saving_keeps_the_earlier_checkpoint_and_resume_goes_on(interrupted):
    from tunesmith.training.checkpoint import newest_valid

    folder = interrupted()
    before, _ = newest_valid(folder / "checkpoints")
    said = run_there("resume", folder, preexec_fn=with_small_files)
    refused(said, "a file may not be that large", "checkpoints", f"then tunesmith resume {folder}", code=1)
    after, broken = newest_valid(folder / "checkpoints")
    assert before is not None and after == before and broken == []
    assert not list(folder.rglob("*.tmp-*")), "no half-written folder is left"
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    finished(run_here("resume", folder))
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "done" and not status.get("problem")


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_rows(train: Train):
    from tunesmith.training.checkpoint import newest_valid

    # decay by a factor of -1e6 in each step: products overflow after a few
    explode = (
        "--learning-rate",
        "1",
        "--set",
        "training.weight_decay=1e6",
        "--set",
        "training.schedule=constant",
        "--set",
        "training.warmup=0",
    )
    said = train(*explode, "--epochs", "20", "--set", "training.save_every=1")
    refused(said, "stopped before the update", "colours.jsonl:", "lower training.learning_rate", code=1)
    [written] = Path("runs/x").glob("not-finite-step-*.json")
    listed = json.loads(written.read_text())
    assert listed["step"] > 1 and len(listed["rows"]) == 16 and all(row.startswith("colours.jsonl:") for row in listed["rows"])
    kept, broken = newest_valid(Path("runs/x/checkpoints"))
    assert kept is not None and kept.step == listed["step"] - 1 and broken == []
    assert len(Path("runs/x/metrics.jsonl").read_text().splitlines()) == kept.step, "the step that was not taken is not logged"


def test_a_base_with_an_infinite_weight_is_noticed_before_anything_is_learned(train: Train, tiny):
    import torch

    shutil.copytree(tiny, "model")
    tensors = load_file("model/model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][0, 0] = torch.inf
    save_file(tensors, "model/model.safetensors", metadata={"format": "pt"})
    refused(train(model="model"), "a weight of the model is NaN or inf", "model: model.layers.0.mlp.down_proj.weight", "copy or download")
    assert not Path("runs/x/adapter").exists()


def test_an_error_of_ours_is_said_to_be_one_and_has_no_traceback(monkeypatch):
    import tunesmith.doctor

    def broken() -> None:
        raise KeyError("unforeseen")

    monkeypatch.setattr(tunesmith.doctor, "examine", broken)
    said = run_here("doctor")
    assert said.code == 1 and "KeyError" in said.err and "TUNESMITH_TRACEBACK=1" in said.err and "Traceback" not in said.err
