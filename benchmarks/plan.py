"""How near `tunesmith plan` comes: memory and time that it says before a run, beside the same runs measured.

    python benchmarks/plan.py                          # all configurations; writes benchmarks/results/plan.json
    python benchmarks/plan.py --only lora-packed --only full-8bit
    python scripts/write_docs.py                       # makes the table of docs/plan.md from it

Models of some ten million random weights are written from configs, and trained on rows of random words. Each configuration runs in
three processes of its own:

    account   the run within planning/account.py, which notes every tensor: the plan's peak should be within 5 % of its peak
    resident  the most memory the process had resident (VmHWM) above what it had before anything was loaded: the plan's peak and what it
              says of the process should be within 10 %
    time      the run as it is. A matrix product (the probe) is timed before and after planning, the fastest of many as the plan's own
              trials are, and after every step, on the average as other work on the machine slows both: the plan says how many probes a
              step takes, the run how many it took, in the median: within 25 %
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import _harness as harness

ACCOUNT_NOISE, RESIDENT_NOISE, TIME_NOISE = 0.05, 0.10, 0.25
STEPS, TIMED_STEPS, PROBE_SECONDS = 3, 6, 0.25
MODES = ("account", "resident", "time")


@dataclass(frozen=True)
class Shape:
    """A model: transformers' kind and its settings."""

    kind: str
    settings: dict[str, Any]


def llama(width: int, layers: int, words: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64, "num_key_value_heads": max(1, width // 128),
        "intermediate_size": 11 * width // 4, "vocab_size": words, "max_position_embeddings": 2048, "tie_word_embeddings": True, **more,
    }  # fmt: skip


SHAPES = {
    "12M": Shape("llama", llama(256, 8, 16_384)),
    "31M": Shape("llama", llama(512, 8, 16_384)),
    "47M": Shape("qwen3", llama(768, 4, 32_768, head_dim=64)),
    "gemma": Shape("gemma2", llama(384, 6, 16_384, head_dim=64, sliding_window=64, query_pre_attn_scalar=64)),
}


@dataclass(frozen=True)
class Case:
    """words: fewest and most in a row's prompt; an answer has half as many. training, more: keys of the config."""

    shape: str
    method: str
    words: tuple[int, int]
    training: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


CASES = {
    "lora": Case("31M", "lora", (20, 80)),
    "lora-long": Case("31M", "lora", (200, 300), {"max_length": 1024}),
    "lora-packed": Case("31M", "lora", (10, 80), {"packing": True}),
    "lora-recomputed": Case("31M", "lora", (40, 80), {"gradient_checkpointing": True}),
    "lora-accumulated-dropout": Case("47M", "lora", (20, 60), {"micro_batch_size": 4}, {"lora": {"dropout": 0.1, "rank": 32}}),
    "lora-full-logits": Case("gemma", "lora", (20, 60)),
    "qlora": Case("47M", "qlora", (40, 80)),
    "qlora-packed-recomputed": Case("31M", "qlora", (20, 80), {"packing": True, "gradient_checkpointing": True}),
    "qlora-validation": Case("12M", "qlora", (20, 100), {"micro_batch_size": 4}, {"validation": 0.3}),
    "full": Case("12M", "full", (20, 80)),
    "full-8bit": Case("31M", "full", (20, 60), {"optimizer": "adamw8bit"}),
    "full-packed-recomputed": Case("31M", "full", (20, 80), {"packing": True, "gradient_checkpointing": True}),
    "full-accumulated": Case("47M", "full", (20, 60), {"micro_batch_tokens": 1024}),
    "full-float32": Case("12M", "full", (20, 80), {"dtype": "float32"}),
}


# --- what a case needs on the disk ----------------------------------------------------------------------------------------


def write_model(folder: Path, shape: Shape) -> None:
    import torch
    import transformers

    from tunesmith.model.load import ACORN

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(shape.kind, **shape.settings)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for file in ACORN.iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copy(file, folder / file.name)


def write_rows_of(path: Path, words: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    known = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "dogs", "run", "over", "hills", "while", "sun", "rose", "high"]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(160):
            n = int(draw.integers(*words, endpoint=True))
            prompt, completion = (" ".join(draw.choice(known, size)) for size in (n, max(1, n // 2)))
            file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")


def config_of(case: Case, folder: Path, steps: int, mode: str) -> dict[str, Any]:
    training = {"steps": steps, "batch_size": 16, "micro_batch_tokens": 4096, "save_every": 1000, "max_length": 512, **case.training}
    data = {"train": str(folder / "rows.jsonl"), **{k: v for k, v in case.more.items() if k == "validation"}}
    more = {key: value for key, value in case.more.items() if key != "validation"}
    return {"model": str(folder / "model"), "method": case.method, "output": str(folder / mode), "data": data, "training": training, **more}


# --- the processes --------------------------------------------------------------------------------------------------------


def work(mode: str, name: str, folder: Path) -> harness.Reply:
    from tunesmith import api
    from tunesmith.config import validate
    from tunesmith.training import loop

    case = CASES[name]
    run, _ = validate(config_of(case, folder, TIMED_STEPS if mode == "time" else STEPS, mode), name)
    if mode == "account":
        from tunesmith.planning.account import Account

        found = api.plan(run, devices="24")
        with Account() as account:
            loop.train(run)
        memory = found.methods[run.method].memory
        return {
            "account_bytes": account.peak_bytes, "predicted_bytes": round(memory.peak + memory.mapped), "process_bytes": round(memory.process),
            "kinds": {kind: round(n) for kind, n in memory.kinds.items()},
        }  # fmt: skip
    import transformers.modeling_utils  # noqa: F401 - what is imported later would be counted as the run's

    __import__(f"transformers.models.{SHAPES[case.shape].kind}.modeling_{SHAPES[case.shape].kind}")
    if mode == "resident":
        before = resident_now()
        loop.train(run)
        return {"resident_bytes": harness.peak_resident_bytes() - before}
    return timed(run, lambda: loop.train(run))


def timed(run: Any, train: Callable[[], Any]) -> harness.Reply:
    """Steps in probes, as planned and as taken."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from tunesmith import api
    from tunesmith.hardware import pick_device, pick_dtype

    width = 768
    dtype = pick_dtype(run.training.dtype, pick_device())
    x, w = torch.ones(1024, width, dtype=dtype), torch.ones(4 * width, width, dtype=dtype)

    def probe() -> list[float]:
        x @ w.T
        times = [time.perf_counter()]
        while times[-1] < times[0] + PROBE_SECONDS:
            x @ w.T
            times.append(time.perf_counter())
        return [b - a for a, b in pairwise(times)]

    alone = probe()
    planned = api.plan(run, devices="24").methods[run.method].step_seconds
    in_probes = planned / min(alone + probe())
    probes: list[float] = []
    spent: list[float] = []

    def after_step(*_ignored: Any) -> None:
        begun = time.perf_counter()
        probes.append(statistics.mean(probe()))
        spent.append(time.perf_counter() - begun)

    handle = register_optimizer_step_post_hook(after_step)
    train()
    handle.remove()
    lines = [json.loads(line) for line in (Path(run.output) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line["seconds"] for line in lines if "seconds" in line]
    ratios = [(seconds - extra) / own for seconds, extra, own in zip(steps, spent, probes, strict=True)][1:]  # the first one compiles
    return {
        "predicted_probes": in_probes, "taken_probes": statistics.median(ratios), "seconds": statistics.median(steps[1:]),
        "predicted_seconds": planned,
    }  # fmt: skip


def resident_now() -> int:
    return int(Path("/proc/self/status").read_text(encoding="ascii").split("VmRSS:")[1].split()[0]) * 1024


# --- all of them ----------------------------------------------------------------------------------------------------------


def measure(name: str, folder: Path) -> dict[str, Any]:
    case, row = CASES[name], {"workload": f"plan-{name}", "opponent": "measured"}
    for mode in MODES:
        with harness.Worker(f"{name} {mode}", [sys.executable, __file__, "--work", mode, name, str(folder)], {}) as worker:
            row |= worker.started_with
    predicted = row["predicted_bytes"]
    row["account_off"] = round(predicted / row["account_bytes"] - 1, 4)
    row["resident_off"] = round((predicted + row["process_bytes"]) / row["resident_bytes"] - 1, 4)
    row["time_off"] = round(row["predicted_probes"] / row["taken_probes"] - 1, 4)
    return {**row, "method": case.method, "shape": case.shape, "settings": {**case.training, **case.more}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=sorted(CASES), help="these configurations; repeatable")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        mode, name, folder = arguments.work
        harness.serve(lambda: (work(mode, name, Path(folder)), lambda command: {}))
        return
    now, rows = harness.facts(), []
    with tempfile.TemporaryDirectory() as root:
        for name in arguments.only or CASES:
            case, folder = CASES[name], Path(root) / name
            write_model(folder / "model", SHAPES[case.shape])
            write_rows_of(folder / "rows.jsonl", case.words)
            row = measure(name, folder)
            rows.append(row)
            print(
                f"{name:<26} account {row['account_bytes'] / 2**20:7.0f} MiB {row['account_off']:+7.2%}   resident {row['resident_bytes'] / 2**20:7.0f} "
                f"{row['resident_off']:+7.2%}   probes {row['taken_probes']:7.0f} {row['time_off']:+7.2%}",
                flush=True,
            )
            harness.write_rows(harness.RESULTS / "plan.json", [row], now)
            shutil.rmtree(folder)
    bounds = {"account_off": ACCOUNT_NOISE, "resident_off": RESIDENT_NOISE, "time_off": TIME_NOISE}
    missed = [f"{row['workload']}: {key} {row[key]:+.1%}" for row in rows for key, bound in bounds.items() if abs(row[key]) > bound]
    if missed:
        raise SystemExit("\n".join(["outside the bounds:", *missed]))


if __name__ == "__main__":
    main()
