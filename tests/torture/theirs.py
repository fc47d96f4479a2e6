"""transformers' Trainer under the same torture, used as its documentation says.

Default settings, but for a checkpoint every one or two steps and a log line every step; after a kill
`train(resume_from_checkpoint=get_last_checkpoint(folder))`. The model, the rows, the batch size and the number of steps are those
of our runs by full fine-tuning.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

SETTINGS: dict[str, dict[str, Any]] = {"save_steps=1": {"save_steps": 1}, "save_steps=2": {"save_steps": 2}}
PAD, IGNORED, N_ROWS = 0, -100, 20  # 5 steps of 4 an epoch, as ours


def train(model: Path, rows: Path, settings: Mapping[str, Any], folder: Path) -> None:
    """Begin, or go on where the folder's last checkpoint stands; the result is folder/result and folder/losses.json."""
    arguments = TrainingArguments(
        output_dir=str(folder), num_train_epochs=2, per_device_train_batch_size=4, learning_rate=1e-3, save_strategy="steps", logging_steps=1,
        report_to="none", use_cpu=True, disable_tqdm=True, **settings,
    )  # fmt: skip
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    examples = _examples(AutoTokenizer.from_pretrained(model), rows)
    trainer = Trainer(AutoModelForCausalLM.from_pretrained(model), arguments, train_dataset=examples)
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model(str(folder / "result"))
    lines = [{key: line[key] for key in ("step", "loss", "grad_norm")} for line in trainer.state.log_history if "loss" in line]
    (folder / "losses.json").write_text(json.dumps(lines), encoding="utf-8")


def _examples(tokenizer: Any, rows: Path) -> list[dict[str, list[int]]]:
    ids = [tokenizer(f"{row['prompt']} {row['completion']}")["input_ids"] for row in map(json.loads, rows.read_text("utf-8").splitlines())]
    longest = max(map(len, ids))
    return [
        {"input_ids": i + [PAD] * (longest - len(i)), "attention_mask": [1] * len(i) + [0] * (longest - len(i)),
         "labels": i + [IGNORED] * (longest - len(i))} for i in ids[:N_ROWS]
    ]  # fmt: skip


def result_of(folder: Path) -> dict[str, Any]:
    """The weights, and every logged loss and gradient norm."""
    return {
        "weights": (folder / "result" / "model.safetensors").read_bytes(),
        "log": json.loads((folder / "losses.json").read_text("utf-8")),
    }
