"""The SMS job in 1, 2 and 4 processes, sharded and not: how far losses and weights are from those of one process.

    python benchmarks/processes.py --data FOLDER [--steps 30] [--output benchmarks/results/processes.json]

FOLDER holds sms_spam/SMSSpamCollection.tsv (public). float32, one thread per process: what is compared is arithmetic, not speed.
Each row: the largest difference of a step's loss and of a weight from the run of one process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from _harness import RESULTS, facts
from jobs import SMS

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def run(folder: Path, data: Path, method: str, sharding: str, n: int, steps: int) -> Path:
    place = folder / f"{method}-{sharding}-{n}"
    config = {
        "model": "acorn", "method": method, "output": str(place), "data": {**SMS, "train": str(data / "sms_spam/SMSSpamCollection.tsv"), "test": None},
        "training": {
            "steps": steps, "max_length": 512, "dtype": "float32", "sharding": sharding, "save_every": steps, "validate_every": steps,
            "learning_rate": 2e-4 if method == "full" else 2e-3,
        },
    }  # fmt: skip
    path = place.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    subprocess.run(
        [*TORCHRUN, str(n), "-m", "tunesmith", "train", str(path), "--no-check"], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True
    )
    return place


def compared(found: Path, one: Path) -> dict[str, Any]:
    rows, theirs = ([json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()] for place in (found, one))
    assert [row.get("trained_tokens") for row in rows] == [row.get("trained_tokens") for row in theirs], "not the same samples"
    losses = [
        abs(row[key] - other[key]) for row, other in zip(rows, theirs, strict=True) for key in ("loss", "validation_loss") if key in row
    ]
    mine, other = weights(found), weights(one)
    assert mine.keys() == other.keys()
    worst = max(float((mine[name].float() - tensor.float()).abs().max()) for name, tensor in other.items())
    return {
        "steps": len(losses) - 1,
        "first_loss": rows[0]["loss"],
        "last_loss": rows[-2]["loss"],
        "loss_off": max(losses),
        "weights_off": worst,
    }


def weights(place: Path) -> dict[str, Any]:
    [file] = [*place.glob("adapter/adapter_model.safetensors"), *place.glob("model/model.safetensors")]
    return load_file(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--only", nargs="*", default=["full", "lora", "qlora"], help="methods")
    parser.add_argument("--output", type=Path, default=RESULTS / "processes.json")
    args = parser.parse_args()
    rows, now = [], facts()
    with tempfile.TemporaryDirectory() as temporary:
        for method in args.only:
            one = run(Path(temporary), args.data, method, "none", 1, args.steps)
            for n in (2, 4):
                for sharding in ("none", "full"):
                    found = run(Path(temporary), args.data, method, sharding, n, args.steps)
                    rows.append({"method": method, "sharding": sharding, "processes": n, **compared(found, one)})
                    print(json.dumps(rows[-1]))
    args.output.write_text(json.dumps({**now, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
