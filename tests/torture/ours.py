"""What is tortured: runs of a tiny model, by every method and with everything that makes going on exactly hard.

whole = reference(scenario, folder)          # the run that never stops: what it ends in, its seconds, its kill points
begin(scenario, folder); go_on(folder)       # train, or resume
what_is_lost(folder, before), result_of(folder)
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import api, kill_points
from tunesmith.config import validate
from tunesmith.runs import RunFolder
from tunesmith.training.checkpoint import newest_valid, steps_of

METHODS: dict[str, dict[str, Any]] = {
    "full": {"training": {"learning_rate": 1e-3}},
    "lora": {"lora": {"rank": 4}},
    "qlora": {"lora": {"rank": 4}, "quantization": {"block_size": 32}},
}
# 18 rows in steps of 4: an epoch ends after steps 5 and 10
FEATURES: dict[str, dict[str, Any]] = {
    "dropout": {"lora": {"dropout": 0.2}},  # and in the attention of the model
    "accumulation": {"training": {"micro_batch_size": 1}},
    "packing": {"training": {"packing": True}},
    "mid-epoch": {"training": {"save_every": 3, "validate_every": 4}},
    "epoch edge": {"training": {"save_every": 5, "validate_every": 5}},
    "adamw8bit": {"training": {"optimizer": "adamw8bit"}},
    "measured": {"data": {"test": 0.2}, "evaluation": {"max_new_tokens": 4}},
    "best is not last": {"training": {"learning_rate": 0.2, "validate_every": 1, "early_stopping": 3}},
}
CLOCK = {"seconds", "tokens_per_second", "peak_memory_bytes"}


@dataclass(frozen=True)
class Scenario:
    """One method with one feature. model: a folder; rows: a file of examples."""

    method: str
    feature: str
    model: Path
    rows: Path

    @property
    def name(self) -> str:
        return f"{self.method}, {self.feature}"

    def config(self, output: Path) -> dict[str, Any]:
        config: dict[str, Any] = {
            "model": str(self.model), "output": str(output), "method": self.method, "data": {"train": str(self.rows), "validation": 0.2},
            "training": {"epochs": 2, "batch_size": 4, "max_length": 96, "dtype": "float32", "learning_rate": 1e-2, "save_every": 2,
                         "validate_every": 3},
        }  # fmt: skip
        for changes in (METHODS[self.method], FEATURES[self.feature]):
            for key, value in changes.items():
                if key != "lora" or self.method != "full":
                    config[key] = {**config.get(key, {}), **value}
        return config


def scenarios(model: Path, folder: Path, features: tuple[str, ...] = tuple(FEATURES)) -> list[Scenario]:
    """Every method with every feature."""
    rows = folder / "rows.jsonl"
    lines = [
        {"prompt": f"spam or ham? call {i} now {'free prize ' * (i % 4)}", "completion": "spam" if i % 3 else "ham"} for i in range(22)
    ]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    forgetful = folder / "model with dropout"
    shutil.copytree(model, forgetful)
    config = json.loads((forgetful / "config.json").read_text(encoding="utf-8"))
    (forgetful / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.1}), encoding="utf-8")
    return [Scenario(method, feature, forgetful if feature == "dropout" else model, rows) for feature in features for method in METHODS]


def begin(scenario: Scenario, folder: Path) -> None:
    api.train(validate(scenario.config(folder), "the scenario")[0], check=False)


def go_on(scenario: Scenario, folder: Path) -> None:
    """What a user does after a kill: resume, or the same command again where not even the config was written."""
    if (folder / "config.yaml").is_file():
        api.resume(folder)
    else:
        begin(scenario, folder)


def noted_points(scenario: Scenario, folder: Path) -> None:
    """A whole run that leaves how often it reached each kill point beside its folder."""
    begin(scenario, folder)
    folder.with_suffix(".points").write_text(json.dumps(kill_points.times_reached), encoding="utf-8")


def result_of(folder: Path) -> dict[str, Any]:
    """Everything that a clock does not change: weights, optimizer, every logged line, what was measured; by name."""
    run = RunFolder(folder)
    last = steps_of(run.checkpoints)[-1][1]
    tensors = [*last.glob("*.safetensors"), *folder.glob("adapter/*.safetensors"), *folder.glob("model/*.safetensors")]
    rows = folder / "evaluation-rows.jsonl"
    measured = next((value for name, value in run.evaluation().get("models", {}).items() if name not in ("base", "majority")), None)
    return {
        "state": run.status()["state"],
        "log": [{key: value for key, value in row.items() if key not in CLOCK} for row in run.metrics()],
        "measured": measured,
        "rows": len(rows.read_text(encoding="utf-8").splitlines()) if rows.is_file() else None,
        **{str(path.relative_to(folder)): path.read_bytes() for path in tensors},
    }


def what_is_lost(folder: Path, scenario: Scenario, saved_before: int) -> tuple[int, str | None]:
    """The newest step that is saved whole, and what should be there and is not, in words.

    saved_before   that step after the kill before: it never goes back
    Every step is logged after all that was due at the step before has been saved, so the log tells what must be there.
    """
    run = RunFolder(folder)
    found, _ = newest_valid(run.checkpoints)
    saved = found.step if found is not None else 0
    logged = {row["step"] for row in run.metrics() if "loss" in row}
    every = scenario.config(folder)["training"]["save_every"]
    due = max(saved_before, (max(logged, default=0) - 1) // every * every)
    if saved < due:
        return saved, f"step {due} was saved, and the newest whole checkpoint is of step {saved}"
    missing = set(range(1, saved + 1)) - logged
    return saved, f"the losses of steps {sorted(missing)} were logged" if missing else None


def flip_a_bit_of_the_newest(folder: Path) -> None:
    path = steps_of(RunFolder(folder).checkpoints)[-1][1] / "optimizer.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    path.write_bytes(damaged)
