"""What shared beginnings save: LoRA steps of packed rows with and without `training.share_prefixes`, in turns.

    python benchmarks/prefix.py --data ../shared/data                  # all workloads; writes benchmarks/results/prefix.json
    python benchmarks/prefix.py --only sms-acorn --steps 16
    python benchmarks/prefix.py --tiny                                 # four steps of each: tests this script, writes nothing

Workloads (left out where FOLDER does not hold the data)
    sms          SMS spam as the README trains on it: 3,620 rows, of which each begins with the same 13 tokens, batches of 16
    sms-64       the same in batches of 64: products of few tokens cost a CPU nearly as much as those of some more
    tasks        forty tasks of (Super-)NaturalInstructions as docs/experiments/instruction-tuning.yaml has them: each row begins with the
                 definition of its task, batches of 32
    instruction  one of these tasks, with a long definition and short inputs, batches of 16
each on acorn (7.5M parameters) and, as NAME-31m, on random weights of a shape of 31M parameters (sizes as in step.py).

Both sides take the same steps of the same examples and are compared in loss and gradient norm at each; the learning rate is so low that
both stay where they began and rounding cannot add up.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import _harness as harness
import packing as plain

WORKLOADS = {"sms": 16, "sms-64": 64, "tasks": 32, "instruction": 16}  # examples of a step
ONE_TASK = "task346_hybridqa_classification.json"
WARM_UP_STEPS = 8  # compared in value, left out of the time
SHAPE_31M = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 10, "num_attention_heads": 8, "num_key_value_heads": 4}


def needs(workload: str, data: Path) -> Path:
    if workload.startswith("sms"):
        return data / "sms_spam" / "SMSSpamCollection.tsv"
    return data / "super_ni" / "train" / ("" if workload == "tasks" else ONE_TASK)


def config(workload: str, model: str, data: Path, folder: Path, sharing: bool) -> dict[str, Any]:
    raw = plain.config("sms", data, folder, packing=True)
    if not workload.startswith("sms"):
        raw["data"] = {"train": str(needs(workload, data)), "on_too_long": "drop"}
        raw["training"]["max_length"] = 1024
    raw["training"] |= {"batch_size": WORKLOADS[workload], "share_prefixes": sharing}
    return raw | {"model": model}


def write_31m(folder: Path) -> Path:
    """A Llama of this shape with random weights and acorn's tokenizer."""
    import torch
    import transformers

    from tunesmith.model.load import find_model, load_tokenizer

    tokenizer = load_tokenizer(find_model("acorn"))
    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    shape = transformers.LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=1024, tie_word_embeddings=True, **SHAPE_31M, **ids)
    model = transformers.LlamaForCausalLM(shape).to(torch.bfloat16)
    print(f"a shape of {sum(p.numel() for p in model.parameters()) / 1e6:.0f}M parameters")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def start(name: str, raw: dict[str, Any]) -> harness.Worker:
    return harness.Worker(name, [sys.executable, str(Path(__file__).resolve()), "worker", json.dumps(raw)])


def compare(workload: str, model: str, name: str, data: Path, n_steps: int) -> dict[str, Any]:
    """One row of results; ends the program at the first step where the two sides differ by more than noise."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-prefix-") as temporary:
        folder = Path(temporary)
        with (
            start("shared", config(workload, model, data, folder, True)) as shared,
            start("plain", config(workload, model, data, folder, False)) as other,
        ):
            known = shared.started_with
            print(f"{name}: {known['examples']:,} examples; {known['shared']:.1%} of the tokens are not computed again")
            pairs = []
            for n, pair in enumerate(harness.alternate({"shared": shared, "plain": other}, [{"step": n} for n in range(n_steps)])):
                for key, noise in (("loss", plain.LOSS_NOISE), ("grad_norm", plain.GRAD_NORM_NOISE)):
                    difference = harness.relative_difference(pair["shared"][key], pair["plain"][key])
                    if not difference <= noise:
                        raise SystemExit(f"step {n + 1}: {key} differs by {difference:.3%}, more than {noise:.1%}; nothing is written")
                pairs.append(pair)
    seconds = {key: [pair[key]["seconds"] for pair in pairs[min(WARM_UP_STEPS, n_steps - 1) :]] for key in ("shared", "plain")}
    worst = {key: max(harness.relative_difference(p["shared"][key], p["plain"][key]) for p in pairs) for key in ("loss", "grad_norm")}
    row = {
        "workload": f"prefix-{name}", "opponent": "packed", **harness.summary(seconds["shared"], seconds["plain"]), "tokens_saved": known["shared"],
        **{f"steps_per_second_{key}": round(1 / median(values), 3) for key, values in seconds.items()},
        **{f"peak_bytes_{key}": pairs[-1][key]["peak_bytes"] for key in seconds},
        "examples": known["examples"], "tokens_per_epoch": known["tokens_per_epoch"], "steps_compared": len(pairs),
        "worst_loss_difference": worst["loss"], "worst_grad_norm_difference": worst["grad_norm"], "threads": known["threads"],
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    print(
        f"  {row['ratio']:.2f}x (from {row['ratio_min']:.2f} to {row['ratio_max']:.2f}); steps a second: {row['steps_per_second_shared']} shared, "
        f"{row['steps_per_second_plain']} plain; worst difference in {len(pairs)} steps: loss {worst['loss']:.4%}, gradient norm {worst['grad_norm']:.4%}",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    names = [f"{workload}-{model}" for workload in WORKLOADS for model in ("acorn", "31m")]
    parser.add_argument("--only", choices=names, nargs="*", help="these workloads instead of all")
    parser.add_argument("--steps", type=int, default=24, help="steps of each side, of which the first eight are not timed (24)")
    parser.add_argument("--data", type=Path, default=plain.DATA, help="folder that holds sms_spam and super_ni (../shared/data)")
    parser.add_argument("--tiny", action="store_true", help="four steps on acorn: tests this script; writes only where --output says")
    parser.add_argument("--output", type=Path, help="results file (benchmarks/results/prefix.json)")
    chosen = parser.parse_args()
    if chosen.steps < 1:
        parser.error("--steps: at least 1")
    output = chosen.output or (None if chosen.tiny else harness.RESULTS / "prefix.json")
    now = harness.facts()
    with tempfile.TemporaryDirectory(prefix="tunesmith-prefix-31m-") as temporary:
        for name in chosen.only or ([n for n in names if n.endswith("acorn")] if chosen.tiny else names):
            workload, _, kind = name.rpartition("-")
            if not needs(workload, chosen.data).exists():
                print(f"{name} is left out: {needs(workload, chosen.data)} is not there")
                continue
            model = "acorn" if kind == "acorn" else str(write_31m(Path(temporary)))
            row = compare(workload, model, name, chosen.data, 4 if chosen.tiny else chosen.steps)
            if output is not None:
                harness.write_rows(output, [row], now)
                print(f"  written to {output}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        harness.serve(lambda: plain.side(json.loads(sys.argv[2])))
    else:
        main()
