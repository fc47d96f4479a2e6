"""A whole job beside TRL: SMS spam, one epoch of LoRA on acorn, from the start of the process to the saved adapter, and what each learned.

    python benchmarks/job.py --data FOLDER              # writes the row job-sms of benchmarks/results/speed.json
    python benchmarks/job.py --data FOLDER --steps 8    # a try: writes nothing

FOLDER holds sms_spam/SMSSpamCollection.tsv. Both sides train on the same token ids in batches of 16, with rank 16 on every linear layer, the same
learning rate, warm-up and schedule; TRL's SFTTrainer as it comes otherwise (float32 base under bfloat16 autocast, gradient checkpointing),
on rows that need no more preparing. Ours runs before and after, as other work on the machine would slow one side only. Then our
evaluation measures both adapters on the same held-out rows.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _harness as harness
import jobs
import peers

RANK, ALPHA, RATE, BATCH, WARMUP = 16, 32, 1.4e-3, 16, 0.05


def config_of(data: Path, output: Path, steps: int | None) -> dict[str, Any]:
    training = {"learning_rate": RATE, "batch_size": BATCH, "warmup": WARMUP, "max_length": 512, "epochs": 1, "schedule": "cosine"}
    return {
        "model": "acorn", "method": "lora", "output": str(output), "lora": {"rank": RANK, "alpha": ALPHA},
        "data": {**jobs.SMS, "train": str(data / "sms_spam/SMSSpamCollection.tsv")},
        "training": {**training, **({"steps": steps} if steps else {})},
    }  # fmt: skip


# --- in processes of their own ------------------------------------------------------------------------------------------


def ours(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    import tunesmith.api  # noqa: F401 - every command's entry: sets the allocator before torch is imported
    from tunesmith.config import validate
    from tunesmith.training import loop

    run, _ = validate(config_of(Path(settings["data"]), folder / settings["name"], settings["steps"]), "job")
    loop.train(run)
    return {"peak_bytes": harness.peak_resident_bytes()}


def rows(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The token ids and labels that we train on, in a file for the other side."""
    from tunesmith import api
    from tunesmith.config import validate

    run, _ = validate(config_of(Path(settings["data"]), folder / "rows", settings["steps"]), "job")
    ready = api.prepare(run, "rows")
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for example in ready.rows.train:
            labels = [id_ if trained else -100 for id_, trained in zip(example.ids.tolist(), example.trained.tolist(), strict=True)]
            file.write(json.dumps({"input_ids": example.ids.tolist(), "labels": labels}) + "\n")
    return {"rows": len(ready.rows.train), "steps": ready.timetable.steps}


def trl(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    from datasets import load_dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=settings["model"],
        args=SFTConfig(
            output_dir=str(folder / "trl"), per_device_train_batch_size=BATCH, max_steps=settings["steps"], learning_rate=RATE,
            lr_scheduler_type="cosine", warmup_steps=round(WARMUP * settings["steps"]), save_strategy="no", report_to="none", use_cpu=True,
            disable_tqdm=True, logging_steps=50,
        ),
        train_dataset=load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=str(folder / "cache")),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    trainer.model.save_pretrained(folder / "trl")
    return {"peak_bytes": harness.peak_resident_bytes()}


def scores(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    from tunesmith import api

    return {"models": api.evaluate(folder / "ours-1", adapters={"trl": folder / "trl"})["models"]}


SIDES = {"ours": ours, "rows": rows, "trl": trl, "scores": scores}


def ask(side: str, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What it answers, and the seconds from the start of its process to its end."""
    python, answer = peers.python("trl") if side == "trl" else sys.executable, folder / f"{side}.json"
    time.sleep(harness.PAUSE_SECONDS)
    begun = time.perf_counter()
    subprocess.run([python, __file__, "--side", side, str(folder), json.dumps(settings)], check=True, stdout=subprocess.DEVNULL)
    return {"seconds": time.perf_counter() - begun, **json.loads(answer.read_text(encoding="utf-8"))}


# --- the comparison -----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, help="instead of an epoch; nothing is written")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.side:
        side, place, given = chosen.side
        (Path(place) / f"{side}.json").write_text(json.dumps(SIDES[side](Path(place), json.loads(given))), encoding="utf-8")
        return
    if chosen.data is None:
        parser.error("--data: the folder of sms_spam")
    from tunesmith.model.load import ACORN

    now = harness.facts()
    with tempfile.TemporaryDirectory(prefix="tunesmith-job-") as place:
        folder, settings = Path(place), {"data": str(chosen.data.resolve()), "steps": chosen.steps, "model": str(ACORN)}
        found = ask("rows", folder, settings)
        mine = [ask("ours", folder, {**settings, "name": "ours-1"})]
        other = ask("trl", folder, {**settings, "steps": found["steps"]})
        mine.append(ask("ours", folder, {**settings, "name": "ours-2"}))
        models = ask("scores", folder, settings)["models"]
    seconds = [side["seconds"] for side in mine]
    row = {
        "workload": "job-sms", "opponent": "trl-default", "ratio": round(other["seconds"] / statistics.mean(seconds), 4),
        "ratio_min": round(other["seconds"] / max(seconds), 4), "ratio_max": round(other["seconds"] / min(seconds), 4), "pairs": 1,
        "ours_seconds": round(statistics.mean(seconds), 3), "theirs_seconds": round(other["seconds"], 3),
        "ours_peak_bytes": max(side["peak_bytes"] for side in mine), "theirs_peak_bytes": other["peak_bytes"],
        "steps": found["steps"], "rows": found["rows"], "models": models, "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    print(json.dumps(row, indent=2))
    if not chosen.steps:
        harness.write_rows(harness.RESULTS / "speed.json", [row], now)


if __name__ == "__main__":
    main()
