"""What packing saves: padding and seconds of an epoch, the same LoRA steps on acorn with padded and with packed rows, in turns.

    python benchmarks/packing.py --data ../shared/data     # both workloads; writes benchmarks/results/packing.json
    python benchmarks/packing.py --only long-tail --steps 20
    python benchmarks/packing.py --tiny                    # four steps of each: tests this script, writes nothing

Workloads
    sms         SMS spam as the README trains on it: 3,620 rows of 19 to 386 tokens, batches of 16 (left out where FOLDER/sms_spam is not there)
    long-tail   2,000 synthetic rows, most of them short and a few of up to a thousand characters, batches of 16

Both sides take the same steps of the same examples and are compared in loss and gradient norm at each; the learning rate is so low that
both stay where they began and rounding cannot add up. Seconds of an epoch: the mean of the timed steps times the steps of an epoch,
without validation and saving.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

import _harness as harness

DATA = harness.ROOT.parent / "shared" / "data"
WARM_UP_STEPS = 10  # compared in value, left out of the time: the matrix library compiles for every new shape
LOSS_NOISE, GRAD_NORM_NOISE = 0.005, 0.03  # as in step.py: bfloat16
WORDS = "free prize call now later lunch meeting report weather train ticket answer question summary paper river garden window".split()


def config(workload: str, data: Path, folder: Path, packing: bool) -> dict[str, Any]:
    training = {
        "batch_size": 16,
        "max_length": 512,
        "learning_rate": 1e-5,
        "schedule": "constant",
        "packing": packing,
        "share_prefixes": False,
    }
    if workload == "long-tail":
        rows: dict[str, Any] = {"train": str(folder / "long-tail.jsonl")}
    else:
        rows = {
            "train": str(data / "sms_spam" / "SMSSpamCollection.tsv"), "columns": ["label", "text"], "header": False, "quoting": False,
            "duplicates": "drop", "validation": 0.1, "test": 0.2, "prompt": "Is this message spam or ham?\n\n{text}", "completion": "{label}",
        }  # fmt: skip
    return {"model": "acorn", "method": "lora", "output": str(folder / "run"), "data": rows, "training": training}


def write_long_tail(path: Path, n_rows: int) -> None:
    """Lengths log-normal, the tail cut off where examples would pass max_length."""
    random = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(n_rows):
            n_words = int(min(random.lognormal(2.5, 1.0), 150)) + 1
            row = {"prompt": " ".join(random.choice(WORDS, n_words)), "completion": str(random.choice(WORDS))}
            file.write(json.dumps(row) + "\n")


def side(raw: dict[str, Any]) -> tuple[harness.Reply, Any]:
    """The product's own functions in the order in which training/loop.py calls them."""
    import tunesmith.api  # noqa: F401 - every command's entry: sets the allocator before torch is imported

    import torch  # isort: skip

    from tunesmith.config import validate
    from tunesmith.loss import Scored
    from tunesmith.training.optim import build_optimizer, clip_grad_norm
    from tunesmith.training.ready import prepare

    ready = prepare(validate(raw, "benchmarks/packing.py")[0], "bench")
    parameters, rows, training = ready.tuned.parameters, ready.step_rows, ready.run.training
    scored = Scored(ready.tuned.loaded.model, ready.tuned.compute_dtype)
    optimizer = build_optimizer(parameters, training, ready.timetable.rate)
    ready.tuned.loaded.model.train()

    def step(command: harness.Command) -> harness.Reply:
        started = time.perf_counter()
        batches = rows.micro_batches(command["step"])
        n_trained = sum(batch.n_trained for batch in batches)
        total = 0.0
        for batch in batches:
            nll = scored(batch)
            (nll.sum / n_trained).backward()
            total += float(nll.sum.detach())
        grad_norm = float(clip_grad_norm(parameters, training.max_grad_norm))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {
            "seconds": time.perf_counter() - started, "loss": total / n_trained, "grad_norm": grad_norm,
            "tokens": sum(len(example) for example in rows.of_step(command["step"])), "peak_bytes": harness.peak_resident_bytes(),
        }  # fmt: skip

    facts = {
        "padding": ready.padding, "shared": ready.shared, "steps_per_epoch": rows.steps_of_epoch(0), "examples": len(rows.examples),
        "threads": torch.get_num_threads(),
        "tokens_per_epoch": ready.rows.counts["tokens_per_epoch"],
    }  # fmt: skip
    return facts, step


def start(name: str, raw: dict[str, Any]) -> harness.Worker:
    return harness.Worker(name, [sys.executable, str(Path(__file__).resolve()), "worker", json.dumps(raw)])


def compare(workload: str, data: Path, n_steps: int, n_rows: int) -> dict[str, Any]:
    """One row of results; ends the program at the first step where the two sides differ by more than noise."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-packing-") as temporary:
        folder = Path(temporary)
        write_long_tail(folder / "long-tail.jsonl", n_rows)
        with (
            start("packed", config(workload, data, folder, True)) as packed,
            start("padded", config(workload, data, folder, False)) as padded,
        ):
            known = packed.started_with
            padding, per_epoch = known["padding"], known["steps_per_epoch"]
            print(f"{workload}: {known['examples']:,} examples; padding {padding['unpacked']:.1%} unpacked, {padding['packed']:.1%} packed")
            pairs = []
            for n, pair in enumerate(harness.alternate({"packed": packed, "padded": padded}, [{"step": n} for n in range(n_steps)])):
                for key, noise in (("loss", LOSS_NOISE), ("grad_norm", GRAD_NORM_NOISE)):
                    difference = harness.relative_difference(pair["packed"][key], pair["padded"][key])
                    if not difference <= noise:
                        raise SystemExit(f"step {n + 1}: {key} differs by {difference:.3%}, more than {noise:.1%}; nothing is written")
                pairs.append(pair)
    seconds = {name: [pair[name]["seconds"] for pair in pairs[min(WARM_UP_STEPS, n_steps - 1) :]] for name in ("packed", "padded")}
    tokens = fmean(pair["packed"]["tokens"] for pair in pairs)
    worst = {key: max(harness.relative_difference(p["packed"][key], p["padded"][key]) for p in pairs) for key in ("loss", "grad_norm")}
    row = {
        "workload": f"packing-{workload}", "opponent": "padded", **harness.summary(seconds["packed"], seconds["padded"]),
        "padding_unpacked": padding["unpacked"], "padding_packed": padding["packed"],
        **{f"epoch_seconds_{name}": round(fmean(values) * per_epoch, 1) for name, values in seconds.items()},
        **{f"tokens_per_second_{name}": round(tokens / fmean(values), 1) for name, values in seconds.items()},
        **{f"peak_bytes_{name}": pairs[-1][name]["peak_bytes"] for name in seconds},
        "examples": known["examples"], "tokens_per_epoch": known["tokens_per_epoch"], "steps_per_epoch": per_epoch, "steps_compared": len(pairs),
        "worst_loss_difference": worst["loss"], "worst_grad_norm_difference": worst["grad_norm"], "threads": known["threads"],
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    print(
        f"  {row['ratio']:.2f}x (from {row['ratio_min']:.2f} to {row['ratio_max']:.2f}); an epoch {row['epoch_seconds_packed']:.1f} s packed, "
        f"{row['epoch_seconds_padded']:.1f} s padded; worst difference in {len(pairs)} steps: loss {worst['loss']:.4%}, "
        f"gradient norm {worst['grad_norm']:.4%}",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", choices=("sms", "long-tail"), nargs="*", help="these workloads instead of all")
    parser.add_argument("--steps", type=int, default=60, help="steps of each side, of which the first ten are not timed (60)")
    parser.add_argument("--data", type=Path, default=DATA, help="folder that holds sms_spam (../shared/data)")
    parser.add_argument(
        "--tiny", action="store_true", help="four steps on a hundred rows: tests this script; writes only where --output says"
    )
    parser.add_argument("--output", type=Path, help="results file (benchmarks/results/packing.json)")
    chosen = parser.parse_args()
    if chosen.steps < 1:
        parser.error("--steps: at least 1")
    output = chosen.output or (None if chosen.tiny else harness.RESULTS / "packing.json")
    now = harness.facts()
    for workload in chosen.only or ("sms", "long-tail"):
        if workload == "sms" and not (chosen.data / "sms_spam").is_dir():
            print(f"sms is left out: {chosen.data / 'sms_spam'} is not there")
            continue
        row = compare(workload, chosen.data, 4 if chosen.tiny else chosen.steps, 100 if chosen.tiny else 2000)
        if output is not None:
            harness.write_rows(output, [row], now)
            print(f"  written to {output}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        harness.serve(lambda: side(json.loads(sys.argv[2])))
    else:
        main()
