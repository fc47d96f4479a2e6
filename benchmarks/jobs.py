"""The real jobs of the README: SMS spam and SNIPS text → JSON on acorn, before and after, with the time each took.

    python benchmarks/jobs.py --data FOLDER [--only sms-lora sms-full …] [--output benchmarks/results/jobs.json]

FOLDER holds sms_spam/SMSSpamCollection.tsv and snips_slots/{train,validate}.jsonl (both public). Each job is one `tunesmith train`
in a process of its own, so the seconds are what a user waits; finished jobs keep their place in the results file.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from _harness import facts

SMS = {
    "columns": ["label", "text"], "header": False, "quoting": False, "duplicates": "drop", "validation": 0.1, "test": 0.2,
    "prompt": "Is this message spam or ham?\n\n{text}", "completion": "{label}", "on_too_long": "error",
}  # fmt: skip
SNIPS = {"prompt": "{text}", "completion": '{"intent": "{intent}", "slots": {slots}}', "validation": 0.02}


def jobs(data: Path) -> dict[str, dict[str, Any]]:
    sms = {**SMS, "train": str(data / "sms_spam/SMSSpamCollection.tsv")}
    snips = {**SNIPS, "train": str(data / "snips_slots/train.jsonl"), "test": str(data / "snips_slots/validate.jsonl")}
    found: dict[str, dict[str, Any]] = {
        "sms-lora": {"method": "lora", "data": sms, "training": {"epochs": 3, "max_length": 512}},
        "sms-qlora": {"method": "qlora", "data": sms, "training": {"epochs": 3, "max_length": 512}},
        "sms-full": {"method": "full", "data": sms, "training": {"epochs": 3, "max_length": 512}},
    }
    for n in (100, 200, 400):
        found[f"sms-lora-{n}"] = {"method": "lora", "data": {**sms, "limit": n}, "training": {"epochs": 8, "max_length": 512}}
    for method in ("lora", "qlora"):
        found[f"snips-{method}"] = {
            "method": method, "lora": {"rank": 32}, "data": snips,
            "training": {"epochs": 2, "batch_size": 16, "learning_rate": 2.5e-3, "max_length": 256},
        }  # fmt: skip
    found["snips-full"] = {
        "method": "full", "data": snips, "training": {"epochs": 4, "batch_size": 16, "learning_rate": 6e-4, "max_length": 256},
    }  # fmt: skip
    return found


def run_job(name: str, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"model": "acorn", "output": str(folder / name), **config}))
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "tunesmith", "train", str(path), "--json"], stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.monotonic() - begun
    result = json.loads(done.stdout)
    status = result["status"]
    return {
        "job": name, "method": config["method"], "epochs": config["training"]["epochs"], "train_rows": status["data"]["counts"]["train"],
        "test_rows": result["evaluation"]["rows"], "training_seconds": status["seconds"], "wall_seconds": round(seconds, 1),
        "best_step": status["best_step"], "steps": status["steps"], "learning_rate": status["learning_rate_reason"], "models": result["evaluation"]["models"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "jobs.json")
    parser.add_argument("--keep", type=Path, default=None, help="keep the run folders here")
    args = parser.parse_args()
    rows = {row["job"]: row for row in json.loads(args.output.read_text())["rows"]} if args.output.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name, config in jobs(args.data).items():
            if args.only is None or name in args.only:
                rows[name] = run_job(name, config, folder)
                result = {**facts(), "rows": list(rows.values())}
                args.output.parent.mkdir(parents=True, exist_ok=True)
                args.output.write_text(json.dumps(result, indent=2) + "\n")
                print(json.dumps(rows[name], indent=2))


if __name__ == "__main__":
    main()
