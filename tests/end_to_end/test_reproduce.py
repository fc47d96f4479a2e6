"""A run folder says enough to make the run again: its config.yaml gives the same weights, bit for bit, and what would not is told."""

import json
import shutil
from pathlib import Path

import pytest
from shell import Train, finished, refused, run_here, run_there, tree

METHODS = {
    "lora": ("--set", "lora.dropout=0.1", "--set", "training.micro_batch_size=4"),
    "full": ("--method", "full"),
    "qlora": ("--method", "qlora"),
    "packing": ("--set", "training.packing=true"),
}


def result_of(folder: str) -> dict[str, bytes]:
    return {**tree(Path(folder) / "adapter"), **tree(Path(folder) / "model")}


def losses_of(folder: str) -> list[tuple[int, float]]:
    rows = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row.get("loss", row.get("validation_loss"))) for row in rows]


@pytest.mark.parametrize("method", METHODS)
def test_the_config_of_a_run_folder_gives_the_same_weights_to_the_last_bit(train: Train, method):
    settings = METHODS[method] if method != "full" else (*METHODS[method], "--set", "lora.rank=16")  # SHORT's rank is LoRA's
    finished(train("--validation", "0.2", *settings))
    again = run_here("train", "runs/x/config.yaml", "--output", "runs/y")
    finished(again)
    assert result_of("runs/y") == result_of("runs/x") != {}
    assert losses_of("runs/y") == losses_of("runs/x")
    assert "against runs/x: same weights, bit for bit; configs (but for output), data, base and environment equal" in again.err


def test_another_process_in_another_folder_makes_the_same_weights(train: Train, tmp_path):
    finished(train(*METHODS["lora"], "--set", "training.steps=2"))
    (tmp_path / "elsewhere").mkdir()
    finished(run_there("train", "../runs/x/config.yaml", "--output", "runs/y", cwd=tmp_path / "elsewhere"))
    assert result_of("elsewhere/runs/y") == result_of("runs/x") != {}


def test_without_an_output_nothing_is_overwritten_and_one_is_proposed(train: Train, tmp_path, monkeypatch):
    finished(train("--set", "training.steps=1"))
    before = tree(Path("runs/x"))
    refused(run_here("train", "runs/x/config.yaml"), "already holds a finished run", "runs/x", "--output runs/x-2")
    monkeypatch.chdir(tmp_path.parent)  # where runs/x is free, it is still the run's own config
    refused(run_here("train", tmp_path / "runs/x/config.yaml"), "already holds a finished run", "runs/x", "runs/x-2")
    assert tree(tmp_path / "runs/x") == before


def test_what_is_other_than_when_the_run_was_made_is_told(train: Train):
    finished(train("--set", "training.steps=1"))
    status = Path("runs/x/status.json")
    noted = json.loads(status.read_text())
    noted["machine"]["threads"], noted["environment"]["versions"]["torch"] = 64, "1.0.0"
    status.write_text(json.dumps(noted))
    again = run_here("train", "runs/x/config.yaml", "--output", "runs/y")
    finished(again)
    assert "other than in runs/x: threads: 64 → " in again.err
    assert "other than in runs/x: versions.torch: 1.0.0 → " in again.err
    assert "against runs/x: same weights, bit for bit: threads and versions.torch differ" in again.err


def test_a_run_goes_on_with_its_own_base_only_and_says_what_else_changed(interrupted, tiny, other_tiny):
    folder = interrupted()
    status = json.loads((folder / "status.json").read_text())
    status["environment"]["versions"]["numpy"] = "1.0.0"
    (folder / "status.json").write_text(json.dumps(status))
    shutil.copytree(tiny, "kept")
    try:
        shutil.copy(Path(other_tiny) / "model.safetensors", tiny)
        refused(run_here("resume", folder), "the base model changed since this run began", tiny, "put the base back")
    finally:
        shutil.copy("kept/model.safetensors", tiny)
    resumed = run_here("resume", folder)
    finished(resumed)
    assert "changed since this run began: versions.numpy: 1.0.0 → " in resumed.err
    [noted] = json.loads((folder / "status.json").read_text())["changed"]
    assert noted.startswith("versions.numpy: 1.0.0 → ")


# --- tunesmith diff -----------------------------------------------------------------------------------------------------------


def test_diff_says_what_differs_and_ends_with_a_verdict(train: Train):
    for name, seed in (("a", "0"), ("b", "1")):
        finished(train("--test", "0.25", "--seed", seed, output=f"runs/{name}"))
    said = run_here("diff", "runs/a", "runs/b")
    finished(said)
    assert "config: training.seed" in said.out
    *_, losses, verdict = said.out.strip().splitlines()
    assert losses.startswith("losses: different from the beginning: at step 1 ")
    assert verdict.startswith("weights differ by ")
    assert verdict.endswith("training.seed differs; data, base and environment equal")

    found = json.loads(run_here("diff", "runs/a", "runs/b", "--json").out)
    assert found["config"] == {"training.seed": [0, 1]}
    assert found["data"] == found["computed"] == {}
    loss = found["results"]["loss"]
    assert loss["interval"]["low"] <= loss["b"] - loss["a"] <= loss["interval"]["high"]
    assert found["verdict"] == verdict


def test_diff_of_what_is_no_run_is_refused(trained, tmp_path):
    refused(run_here("diff", trained, tmp_path), "not a run folder", str(tmp_path), "")
