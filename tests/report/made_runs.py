"""Run folders made by hand, and a page taken apart: what the tests of report/ share."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tunesmith.config import Run, to_yaml

RUN = {"model": "acorn", "method": "lora", "output": "runs/sms", "data": {"train": "sms.tsv", "test": 0.2}, "lora": {"rank": 8}}
STATUS = {
    "state": "done",
    "step": 3,
    "steps": 3,
    "seconds": 241.3,
    "command": "tunesmith train sms.yaml",
    "resume_command": "tunesmith resume runs/sms",
    "version": "0.1.0",
    "machine": {"cpu": "two cores", "memory_bytes": 8 * 2**30, "torch": "2.13.0"},
    "data": {
        "said": ["sms.tsv: TSV with the columns label, text"],
        "counts": {
            "read": 5574,
            "skipped": 0,
            "duplicates_dropped": 403,
            "overlap_removed": 0,
            "left_out_by_limit": 1,
            "train": 3722,
            "validation": 414,
            "test": 1034,
            "trained_tokens_per_epoch": 7444,
            "tokens_per_epoch": 99999,
        },
        "files": {"sms.tsv": "ab" * 32},
    },
    "arithmetic": ["256×256 = 65,536 frozen; A 8×256 + B 256×8 = 4,096 trained (6.25 %)"],
    "learning_rate_reason": "learning rate 0.0014: LoRA takes about 10 × the rate of full fine-tuning",
    "best_step": 2,
    "parameters": {"trained": 4096, "total": 65536},
}
METRICS = [
    {"step": 1, "loss": 2.5, "learning_rate": 1e-3, "tokens_per_second": 900.0, "peak_memory_bytes": 2**20},
    {"step": 2, "loss": 1.5, "learning_rate": 5e-4, "tokens_per_second": 1100.0, "peak_memory_bytes": 2**21},
    {"step": 2, "validation_loss": 1.25},
]
EVALUATION = {
    "rows": 1034,
    "task": "label",
    "models": {
        "majority": {"accuracy": 0.87, "f1_ham": 0.93, "f1_spam": 0.0},
        "base": {"accuracy": 0.1, "f1_ham": 0.2, "f1_spam": 0.0, "loss": 7.0},
        "sms": {"accuracy": 0.99, "f1_ham": 0.99, "f1_spam": 0.95, "loss": 0.1},
    },
}
SAMPLES = [
    {"source": "sms.tsv:4", "prompt": "Spam or ham?\n\nYou WON!", "reference": "spam", "answers": {"base": "the man", "sms": "spam\n"}},
]


def run_folder(tmp_path: Path, **files: Any) -> Path:
    """A run folder named sms with config.yaml and the given files: dicts as .json, lists as .jsonl, text as it is."""
    folder = tmp_path / "sms"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(Run.model_validate(RUN)))
    for name, content in files.items():
        if isinstance(content, str):
            (folder / f"{name}.jsonl").write_text(content)
        elif isinstance(content, list):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        else:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def whole_run(tmp_path: Path) -> Path:
    return run_folder(tmp_path, status=STATUS, metrics=METRICS, evaluation=EVALUATION, samples=SAMPLES)


class Page(HTMLParser):
    """Visible text, the attributes that could load something, and the content of each script."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.loads, self.scripts, self.open = "", [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.open.append(tag) if tag not in ("meta", "br") else None
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.scripts += [""] if tag == "script" else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.text += data

    @property
    def charts(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


ATTACK = '</script></pre></title><script>alert("x")</script><img src=x onerror=alert(1)> & \'"'
