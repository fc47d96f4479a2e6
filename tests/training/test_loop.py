"""Real runs on a tiny model: exact resume at every step, one denominator, the best checkpoint, several processes."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tunesmith.config import Run, to_yaml, validate
from tunesmith.errors import BadInput, Interrupted, MachineFailed
from tunesmith.loss import Scored
from tunesmith.runs import RunFolder
from tunesmith.training.checkpoint import open_valid, save, steps_of
from tunesmith.training.loop import _validate, resume, train
from tunesmith.training.memory import Cuts
from tunesmith.training.ready import Ready, prepare
from tunesmith.training.resuming import State

METHODS = {
    "lora": {"method": "lora", "lora": {"rank": 4}},
    "lora-dropout": {"method": "lora", "lora": {"rank": 4, "dropout": 0.2, "targets": ["q_proj", "down_proj"]}},
    "qlora": {"method": "qlora", "lora": {"rank": 4}, "quantization": {"block_size": 32}},
    "full": {"method": "full", "training": {"learning_rate": 1e-3}},
    "full-adamw8bit": {"method": "full", "training": {"learning_rate": 1e-3, "optimizer": "adamw8bit"}},
    "lora-packed": {"method": "lora", "lora": {"rank": 4, "dropout": 0.2}, "training": {"packing": True}},
    "lora-shared": {"method": "lora", "lora": {"rank": 4}, "training": {"packing": True, "micro_batch_tokens": 4096}},
    "full-packed": {"method": "full", "training": {"learning_rate": 1e-3, "packing": True}},
    "full-last-layer": {"method": "full", "full": {"train": 1}, "training": {"learning_rate": 1e-3}},
}


def write_rows(path: Path, n: int = 22) -> Path:
    rows = [{"prompt": f"spam or ham? call {i} now {'free prize ' * (i % 4)}", "completion": "spam" if i % 3 else "ham"} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_run(model: Path, folder: Path, output: str = "run", **changes: Any) -> Run:
    raw: dict[str, Any] = {
        "model": str(model), "output": str(folder / output), "data": {"train": str(write_rows(folder / "rows.jsonl")), "validation": 0.2},
        "training": {"epochs": 2, "batch_size": 4, "max_length": 96, "dtype": "float32", "learning_rate": 1e-2, "save_every": 1, "validate_every": 3,
                     "keep_checkpoints": 99, "micro_batch_tokens": 100},
    }  # fmt: skip
    for key, value in changes.items():
        raw[key] = {**raw.get(key, {}), **value} if isinstance(value, dict) else value
    if "batch_tokens" in raw["training"]:
        del raw["training"]["batch_size"]
    return validate(raw, "test")[0]


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    [file] = [*folder.path.glob("adapter/adapter_model.safetensors"), *folder.path.glob("model/model.safetensors")]
    return load_file(file)


def losses(folder: RunFolder) -> list[dict[str, float]]:
    timed = {"seconds", "tokens_per_second", "peak_memory_bytes"}
    return [{key: value for key, value in row.items() if key not in timed} for row in folder.metrics()]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_stopped_at_any_step_and_resumed_is_bit_equal(tiny_model: Path, tmp_path: Path, method: str, dtype: str):
    changes = {**METHODS[method], "training": {**METHODS[method].get("training", {}), "dtype": dtype}}
    whole = train(make_run(tiny_model, tmp_path, **changes))
    steps = [step for step, _ in steps_of(whole.checkpoints)]
    assert steps == list(range(1, 11))  # 18 rows in steps of 4, twice: epochs end at 5 and 10
    for stop in (1, 4, 5, 9) if dtype == "float32" else (3,):
        stopped = RunFolder(tmp_path / f"stopped-{stop}")
        shutil.copytree(whole.path, stopped.path)
        for step, path in steps_of(stopped.checkpoints):
            if step > stop:
                shutil.rmtree(path)
        shutil.rmtree(stopped.adapter if stopped.adapter.exists() else stopped.model)
        stopped.set_status(state="interrupted")
        resume(stopped)
        assert losses(stopped) == losses(whole)
        assert {k: v.tolist() for k, v in weights(stopped).items()} == {k: v.tolist() for k, v in weights(whole).items()}
        last = load_file(steps_of(stopped.checkpoints)[-1][1] / "optimizer.safetensors")
        for name, tensor in load_file(steps_of(whole.checkpoints)[-1][1] / "optimizer.safetensors").items():
            assert torch.equal(last[name], tensor), name


def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_is_used(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    whole = train(make_run(tiny_model, tmp_path, **METHODS["lora"]))
    expected = weights(whole)
    shutil.rmtree(whole.adapter)
    newest = steps_of(whole.checkpoints)[-1][1] / "adapter_model.safetensors"
    damaged = bytearray(newest.read_bytes())
    damaged[-1] ^= 1
    newest.write_bytes(damaged)
    whole.set_status(state="interrupted")
    resume(whole)
    assert "checkpoint of step 10 is not used: adapter_model.safetensors was changed" in capsys.readouterr().err
    assert all(torch.equal(weights(whole)[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "cut",
    [
        {"micro_batch_size": 1},
        {"micro_batch_size": 3},
        {"micro_batch_tokens": 4096},
        {"packing": True},
        {"packing": True, "micro_batch_tokens": 4096},
        {"packing": True, "share_prefixes": False},
        {"packing": True, "micro_batch_tokens": 8},  # every example is longer than a row and has one of its own
    ],
)
def test_a_step_is_the_same_however_it_is_cut(tiny_model: Path, tmp_path: Path, cut: dict[str, int]):
    """FAILURES 7: averaging the means of micro-batches would weigh short answers more."""
    one = train(make_run(tiny_model, tmp_path, "one", **METHODS["lora"], training={"steps": 4}))
    other = train(make_run(tiny_model, tmp_path, "other", **METHODS["lora"], training={"steps": 4, **cut}))
    for a, b in zip(losses(one), losses(other), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(other)[name], tensor, rtol=1e-4, atol=1e-6)


def contradicting(model: Path, folder: Path, **training: Any) -> Run:
    """Training says spam to everything and validation ham: what is learned makes validation worse, sooner or later."""
    (folder / "spam.jsonl").write_text("".join(json.dumps({"prompt": f"call {i}", "completion": "spam"}) + "\n" for i in range(12)))
    (folder / "ham.jsonl").write_text("".join(json.dumps({"prompt": f"win {i}", "completion": "ham"}) + "\n" for i in range(6)))
    data = {"train": str(folder / "spam.jsonl"), "validation": str(folder / "ham.jsonl")}
    return make_run(model, folder, method="lora", data=data, training={"schedule": "constant", "validate_every": 1, **training})


def validation_losses(folder: RunFolder) -> dict[int, float]:
    return {row["step"]: row["validation_loss"] for row in folder.metrics() if "validation_loss" in row}


def test_the_best_checkpoint_by_validation_is_what_is_kept(tiny_model: Path, tmp_path: Path):
    folder = train(contradicting(tiny_model, tmp_path, epochs=6))
    found = validation_losses(folder)
    best = min(found, key=lambda step: found[step])
    assert folder.status()["best_step"] == best < max(found) == 18
    kept = load_file(folder.checkpoints / f"step-{best:08d}" / "adapter_model.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(folder).items())


def test_early_stopping_stops_after_its_patience(tiny_model: Path, tmp_path: Path):
    folder = train(contradicting(tiny_model, tmp_path, epochs=30, early_stopping=2, keep_checkpoints=1))
    found = list(validation_losses(folder).values())
    assert len(found) < 90
    assert len(found) - 1 - found.index(min(found)) == 2


def test_training_learns_and_leaves_the_base_as_it_was(tiny_model: Path, tmp_path: Path):
    before = load_file(tiny_model / "model.safetensors")
    folder = train(make_run(tiny_model, tmp_path, method="lora", training={"epochs": 8, "save_every": 40}))
    rows = [row["loss"] for row in folder.metrics() if "loss" in row]
    assert rows[-1] < 0.5 * rows[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(tiny_model / "model.safetensors").items())


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_rows(tiny_model: Path, tmp_path: Path):
    spoiled = tmp_path / "spoiled"
    shutil.copytree(tiny_model, spoiled)
    from safetensors.torch import save_file

    tensors = load_file(spoiled / "model.safetensors")
    tensors["model.norm.weight"] *= 1e30  # logits stay finite, gradients do not
    save_file(tensors, spoiled / "model.safetensors", metadata={"format": "pt"})
    run = make_run(spoiled, tmp_path, method="full")
    with pytest.raises(MachineFailed, match="stopped before the update"):
        train(run)
    folder = RunFolder(tmp_path / "run")
    named = json.loads((folder.path / "not-finite-step-1.json").read_text())
    assert len(named["rows"]) == 4
    assert all(source.startswith("rows.jsonl:") for source in named["rows"])
    assert folder.status()["state"] == "failed"
    assert steps_of(folder.checkpoints) == []


def test_a_validation_loss_that_is_not_finite_stops_the_run(tiny_model: Path, tmp_path: Path):
    run = make_run(tiny_model, tmp_path, method="full")
    ready, folder = prepare(run, "run"), RunFolder.create(run, "")
    scored = Scored(ready.tuned.loaded.model)
    ready.tuned.parameters["model.norm.weight"].data.fill_(torch.nan)
    with pytest.raises(MachineFailed, match="validation loss after step 5 is nan") as caught:
        _validate(folder, ready, scored, Cuts(folder, ready), 5, State(), None)
    assert caught.value.what.endswith("; nothing was saved yet") and "learning_rate" in caught.value.fix


def test_a_resumed_run_refuses_changed_data(tiny_model: Path, tmp_path: Path):
    folder = train(make_run(tiny_model, tmp_path, method="lora", training={"steps": 2}))
    folder.set_status(state="interrupted")
    write_rows(tmp_path / "rows.jsonl", n=23)
    with pytest.raises(BadInput, match="data changed"):
        resume(folder)


def stopped_run(model: Path, folder: Path, **changes: Any) -> RunFolder:
    run = train(make_run(model, folder, method="lora", training={"steps": 2, "validate_every": 2, **changes}))
    run.set_status(state="interrupted")
    return run


def edit_config(folder: RunFolder, **changes: Any) -> None:
    """Keys by their dotted names, with a double underscore for the dot."""
    raw = folder.run().model_dump(mode="json")
    for path, value in changes.items():
        section, key = path.split("__")
        raw[section][key] = value
    (folder.path / "config.yaml").write_text(to_yaml(Run.model_validate(raw)))


def test_a_resumed_run_refuses_a_config_that_would_end_in_other_weights(tiny_model: Path, tmp_path: Path):
    folder = stopped_run(tiny_model, tmp_path)
    edit_config(folder, training__learning_rate="auto", lora__rank=8)
    with pytest.raises(BadInput, match="the config changed since this run began") as caught:
        resume(folder)
    assert caught.value.where.split("\n")[1:] == ["lora.rank: 16 → 8", "training.learning_rate: 0.01 → auto"]
    assert "restore lora.rank: 16, training.learning_rate: 0.01" in caught.value.fix
    edit_config(folder, training__learning_rate=0.01, lora__rank=16)
    resume(folder)


def test_a_resumed_run_may_change_what_decides_no_weight_and_says_so(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = stopped_run(tiny_model, tmp_path)
    edit_config(folder, training__keep_checkpoints=1, evaluation__limit=3, training__micro_batch_tokens=200)
    moved = RunFolder(folder.path.rename(tmp_path / "moved"))
    resume(moved)
    said = [line for line in capsys.readouterr().err.splitlines() if "config changed" in line]
    assert said == [
        "the config changed, as it may: training.micro_batch_tokens: 100 → 200 (sums are rounded otherwise)",
        "the config changed, as it may: training.keep_checkpoints: 99 → 1",
        "the config changed, as it may: evaluation.limit: None → 3",
    ]


def without_settings(folder: RunFolder) -> None:
    """Its newest checkpoint as it was before the settings were kept in it."""
    step, path = steps_of(folder.checkpoints)[-1]
    found = open_valid(path)
    assert found is not None
    files = {name: found.tensors(name) for name in ("adapter_model", "optimizer")}
    save(folder.checkpoints, step, files, {key: found.state[key] for key in ("state", "steps")}, keep=99, best=None)


def test_a_run_whose_checkpoints_hold_no_settings_still_resumes(tiny_model: Path, tmp_path: Path):
    folder = stopped_run(tiny_model, tmp_path)
    without_settings(folder)
    resume(folder)
    folder.set_status(state="interrupted")
    without_settings(folder)
    edit_config(folder, lora__rank=8)
    with pytest.raises(BadInput, match="other tensors than this run trains"):
        resume(folder)


def test_a_resumed_run_without_a_checkpoint_says_that_it_begins_again(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = stopped_run(tiny_model, tmp_path)
    before = losses(folder)
    shutil.rmtree(folder.checkpoints)
    resume(folder)
    said = capsys.readouterr().err
    assert "no usable checkpoint: starting again from step 1; what metrics.jsonl holds of 2 earlier steps is forgotten" in said
    assert losses(folder) == before


def test_what_a_run_without_a_whole_checkpoint_leaves_is_kept_under_another_name(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = stopped_run(tiny_model, tmp_path)
    before, log = losses(folder), (folder.path / "metrics.jsonl").read_bytes()
    damaged = {}
    for _, path in steps_of(folder.checkpoints):
        file = path / "optimizer.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"x")
        damaged[f"damaged-{path.name}"] = file.read_bytes()
    resume(folder)
    said = "no usable checkpoint: starting again from step 1; what there was is kept as metrics.before.jsonl, checkpoints/damaged-step-00000001"
    assert said in capsys.readouterr().err
    assert losses(folder) == before and (folder.path / "metrics.before.jsonl").read_bytes() == log
    assert {path.parent.name: path.read_bytes() for path in folder.checkpoints.glob("damaged-*/optimizer.safetensors")} == damaged
    assert [step for step, path in steps_of(folder.checkpoints) if open_valid(path)] == [1, 2]


def test_a_logged_loss_that_is_not_the_checkpoints_is_said(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = stopped_run(tiny_model, tmp_path)
    log = folder.path / "metrics.jsonl"
    first, *rest = log.read_text().splitlines(keepends=True)
    true = json.loads(first)["loss"]
    log.write_text(json.dumps(json.loads(first) | {"loss": 99.0}) + "\n" + "".join(rest))
    resume(folder)
    said = f"metrics.jsonl was changed: the loss of step 1 is 99.0 there, and {true} in the checkpoint; the weights do not depend on it\n"
    assert said in capsys.readouterr().err


def test_a_signal_before_the_first_step_ends_the_run_as_interrupted_with_nothing_saved(tiny_model: Path, tmp_path: Path):
    def press(text: str) -> None:  # while the run says what it found, long before its first step
        if "steps of" in text:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.training.loop.say", press)
        with pytest.raises(Interrupted, match="nothing was saved yet") as caught:
            train(make_run(tiny_model, tmp_path, method="lora", training={"steps": 2}))
    folder = RunFolder(tmp_path / "run")
    assert caught.value.fix == folder.resume_command
    assert (folder.state(), folder.metrics()) == ("interrupted", [])
    train(make_run(tiny_model, tmp_path, method="lora", training={"steps": 2}))  # the same command may be given again


def test_a_second_signal_ends_the_run_as_interrupted_at_once(tiny_model: Path, tmp_path: Path):
    pressed = 0

    def press(model: torch.nn.Module, inputs: Any) -> None:  # twice within the third step
        nonlocal pressed
        if len(RunFolder(tmp_path / "run").metrics()) == 2 and model.training and isinstance(model, Scored):
            pressed += 1
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(press)
    try:
        with pytest.raises(Interrupted, match="stopped at once; the steps up to 2 are saved"):
            train(make_run(tiny_model, tmp_path, method="lora"))
    finally:
        hook.remove()
    assert pressed == 1
    folder = RunFolder(tmp_path / "run")
    assert folder.state() == "interrupted"
    assert [step for step, _ in steps_of(folder.checkpoints)] == [1, 2]
    resume(folder)


def test_continuing_from_an_adapter_starts_where_it_ended(tiny_model: Path, tmp_path: Path):
    first = train(
        make_run(tiny_model, tmp_path, "first", method="lora", training={"steps": 6, "validate_every": 6, "schedule": "constant"})
    )
    more = {
        "method": "lora",
        "lora": {"continue_from": str(first.path)},  # a run stands for its adapter
        "training": {"steps": 2, "schedule": "constant", "learning_rate": 1e-9},
    }
    second = train(make_run(tiny_model, tmp_path, "second", **more))
    for name, tensor in weights(first).items():
        torch.testing.assert_close(weights(second)[name], tensor, rtol=1e-4, atol=1e-7)
    wrong = {**more, "lora": {"continue_from": str(first.adapter), "rank": 8}}
    with pytest.raises(BadInput, match="rank 16"):
        train(make_run(tiny_model, tmp_path, "third", **wrong))


@pytest.mark.parametrize(("part", "names"), [(1, "model.layers.1."), (["model.norm.*", "*.mlp.*"], ""), ("all", "")])
def test_full_fine_tuning_changes_the_named_part_and_nothing_else(tiny_model: Path, tmp_path: Path, part: Any, names: str):
    before = load_file(tiny_model / "model.safetensors")
    after = weights(
        train(make_run(tiny_model, tmp_path, method="full", full={"train": part}, training={"steps": 2, "learning_rate": 1e-2}))
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    if part == 1:
        assert changed == {name for name in before if name.startswith(names)}
    elif part == "all":
        assert changed == set(before)
    else:
        assert changed == {name for name in before if ".mlp." in name or name == "model.norm.weight"}


def test_tensorboard_gets_the_curve(tiny_model: Path, tmp_path: Path):
    folder = train(make_run(tiny_model, tmp_path, method="lora", training={"steps": 2, "tensorboard": True}))
    assert list((folder.path / "tensorboard").glob("events*"))


def test_an_adapted_layer_without_a_gradient_stops_the_run(tiny_model: Path, tmp_path: Path):
    """Nothing that gate_proj computes gets past a down_proj of zeros, so its adapter would stay untrained in silence (FAILURES 23)."""
    from safetensors.torch import save_file

    shutil.copytree(tiny_model, tmp_path / "dead")
    tensors = load_file(tmp_path / "dead" / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"].zero_()
    save_file(tensors, tmp_path / "dead" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"2 adapted layers get no gradient.*model\.layers\.1\.mlp\.gate_proj"):
        train(make_run(tmp_path / "dead", tmp_path, method="lora"))


def test_both_ways_of_attention_on_a_cpu_take_the_same_steps(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = train(make_run(tiny_model, tmp_path, "kept", **METHODS["lora"], training={"steps": 4}))
    monkeypatch.setattr("tunesmith.training.ready.KEPT_SCORE_BYTES", 0)
    flash = train(make_run(tiny_model, tmp_path, "flash", **METHODS["lora"], training={"steps": 4}))
    for a, b in zip(losses(kept), losses(flash), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize("method", ["lora", "lora-dropout", "qlora", "full"])
def test_computing_activations_again_changes_no_number(tiny_model: Path, tmp_path: Path, method: str):
    kept = train(make_run(tiny_model, tmp_path, "kept", **METHODS[method]))
    settings = METHODS[method] | {"training": {**METHODS[method].get("training", {}), "gradient_checkpointing": True}}
    again = train(make_run(tiny_model, tmp_path, "again", **settings))
    assert losses(again) == losses(kept)
    assert all(torch.equal(tensor, weights(kept)[name]) for name, tensor in weights(again).items())


# --- packing and steps of tokens ----------------------------------------------------------------------------------------------


def test_a_packed_run_by_token_budget_takes_every_row_once_per_epoch_and_resumes_bit_equal_after_any_step(tiny_model: Path, tmp_path: Path):
    training = {"batch_tokens": 200, "packing": True, "epochs": 2}
    whole = train(make_run(tiny_model, tmp_path, **METHODS["lora"], training=training))
    n_steps = whole.status()["steps"]
    tokens = [row["tokens"] for row in whole.metrics() if "tokens" in row]
    assert len(tokens) == n_steps > 4
    assert max(tokens) <= 200
    assert sum(tokens) == 2 * whole.status()["data"]["counts"]["tokens_per_epoch"]
    for stop in range(1, n_steps):
        stopped = RunFolder(tmp_path / f"stopped-{stop}")
        shutil.copytree(whole.path, stopped.path)
        for step, path in steps_of(stopped.checkpoints):
            if step > stop:
                shutil.rmtree(path)
        stopped.set_status(state="interrupted")
        resume(stopped)
        assert losses(stopped) == losses(whole)
        assert all(torch.equal(weights(stopped)[name], tensor) for name, tensor in weights(whole).items())


def test_the_padding_before_and_after_packing_is_said_and_kept(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    short_and_long = [{"prompt": "call", "completion": "ham"}] * 9 + [{"prompt": "free prize " * 12, "completion": "spam"}] * 3
    (tmp_path / "tail.jsonl").write_text("".join(json.dumps(row) + "\n" for row in short_and_long))
    data = {"train": str(tmp_path / "tail.jsonl"), "validation": None}
    training = {"steps": 3, "validate_every": None, "micro_batch_tokens": 4096, "packing": True, "share_prefixes": False}
    folder = train(make_run(tiny_model, tmp_path, method="lora", data=data, training=training))
    share = folder.status()["padding"]
    assert share["packed"] < 0.15 < 0.3 < share["unpacked"] < 1
    said = capsys.readouterr().err
    assert "packed rows: tried on this model, no example sees another" in said
    assert f"{share['packed']:.1%} of what is computed is padding; without packing it would be {share['unpacked']:.1%}" in said
    ready = prepare(make_run(tiny_model, tmp_path, method="lora", data=data, training={**training, "packing": False}), "run")
    assert ready.padding == share
    assert any(line.endswith(f"training.packing: true would leave {share['packed']:.1%}") for line in ready.said)


def test_by_default_rows_are_packed_where_much_would_be_padding(tiny_model: Path, tmp_path: Path):
    def ready_of(lengths: list[int], **training: Any) -> Ready:
        rows = [{"prompt": "call " * n, "completion": "ham"} for n in lengths]
        (tmp_path / "rows-of.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"train": str(tmp_path / "rows-of.jsonl"), "validation": None}
        training = {"steps": 3, "validate_every": None, "micro_batch_tokens": 4096, **training}
        return prepare(make_run(tiny_model, tmp_path, method="lora", data=data, training=training), "run")

    varied, alike = [3, 4, 40, 5, 3, 4], [20, 20, 20, 20]
    assert ready_of(varied).step_rows.packing
    assert not ready_of(alike, share_prefixes=False).step_rows.packing
    assert ready_of(alike).step_rows.sharing  # all that they begin with need be computed once only
    assert not ready_of(varied, packing=False).step_rows.packing
    assert not ready_of(varied, micro_batch_size=2).step_rows.packing  # so many examples at once were asked for


def test_a_resumed_run_may_start_to_pack(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = stopped_run(tiny_model, tmp_path)
    edit_config(folder, training__packing=True)
    resume(folder)
    assert "training.packing: auto → True (sums are rounded otherwise)" in capsys.readouterr().err


def test_steps_of_a_token_budget_are_said_with_the_examples_that_do_not_fit(tiny_model: Path, tmp_path: Path):
    ready = prepare(make_run(tiny_model, tmp_path, method="lora", training={"batch_tokens": 30}), "run")
    n_longer = sum(len(example) > 30 for example in ready.rows.train)
    assert 0 < n_longer < 18
    assert f"steps of at most 30 tokens ({n_longer} longer examples by themselves); " in ready.said[-1]


@pytest.mark.parametrize(
    ("training", "what"),
    [
        ({"batch_tokens": 100, "batch_size": 4}, "a step has training.batch_size: 4 examples or training.batch_tokens: 100, not both"),
        ({"packing": True, "micro_batch_size": 2}, "packed rows are cut by tokens, so training.micro_batch_size would not be read"),
    ],
)
def test_two_ways_to_say_the_size_of_something_are_refused(tmp_path: Path, training: dict[str, Any], what: str):
    with pytest.raises(BadInput) as caught:
        validate({"model": "acorn", "data": {"train": "rows.jsonl"}, "training": training}, "job.yaml")
    assert caught.value.what == what
    assert caught.value.where == "job.yaml"
    with pytest.raises(BadInput, match="batch_size"):
        validate(
            {"model": "acorn", "data": {"train": "rows.jsonl"}}, "job.yaml", [f"training.{key}={value}" for key, value in training.items()]
        )


def test_keys_of_other_tools_for_packing_are_converted():
    run, said = validate({"model": "acorn", "data": {"train": "rows.jsonl"}, "sample_packing": True}, "job.yaml")
    assert run.training.packing
    assert "converted sample_packing: true → training.packing: true" in said


def test_a_model_that_mixes_packed_documents_stops_the_run_before_its_first_step(tiny_model: Path, tmp_path: Path):
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=384, hidden_size=32, num_hidden_layers=1, state_size=8, eos_token_id=2, bos_token_id=None)
    shutil.copytree(tiny_model, tmp_path / "mamba")
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    lora = {"targets": ["in_proj"]}
    with pytest.raises(BadInput, match="documents in one row would not stay apart in this model"):
        prepare(make_run(tmp_path / "mamba", tmp_path, method="lora", lora=lora, training={"packing": True}), "run")
    # by default no run is stopped
    varied = [{"prompt": "call " * n, "completion": "ham"} for n in (3, 4, 40, 5)]
    (tmp_path / "varied.jsonl").write_text("".join(json.dumps(row) + "\n" for row in varied))
    data = {"train": str(tmp_path / "varied.jsonl"), "validation": None}
    training = {"steps": 1, "validate_every": None, "micro_batch_tokens": 4096}
    padded = prepare(make_run(tmp_path / "mamba", tmp_path, method="lora", lora=lora, data=data, training=training), "run")
    assert padded.padding["unpacked"] - padded.padding["packed"] > 0.1
    assert not padded.step_rows.packing
    assert any(line.startswith("rows are padded and not packed: documents in one row would not stay apart") for line in padded.said)
