"""A plan on the terminal: three columns for the methods, then a row for each device."""

import sys

from tunesmith.planning.plan import Fit, Plan, gib
from tunesmith.planning.rehearsal import KINDS
from tunesmith.progress import clock

ABOUT = {
    "weights": "the base, or all that is trained", "adapters": "A and B in float32", "gradients": "of earlier micro-batches",
    "optimizer": "both moments", "activations": "kept for the backward pass", "head": "logits of a few hundred positions",
    "de-quantise buffer": "one weight in 16 bits", "in passing": "freed again at once",
}  # fmt: skip


def print_plan(plan: Plan) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    for line in plan.said:
        console.print(line, style="dim", markup=False)
    table = Table(title=f"{plan.model} here", title_justify="left", min_width=70)
    table.add_column("")
    for name in plan.methods:
        table.add_column(Text(name, style="bold" if name == plan.chosen else ""), justify="right")
    for name, *cells in _rows(plan):
        table.add_row(name, *cells, style="bold" if name == "peak" else "", end_section=name in ("peak", "trained values"))
    console.print(table)
    if plan.devices:
        fits = Table(title="largest micro-batch that a device holds, tokens x rows", title_justify="left", min_width=70)
        fits.add_column("device")
        for name in plan.methods:
            fits.add_column(name, justify="right")
        for device, found in plan.devices.items():
            fits.add_row(device, *(_fit(found[name]) if name in found else "" for name in plan.methods))
        console.print(fits)
        for name in plan.methods:
            console.print(_least(name, plan), highlight=False, markup=False)
        if any(fit.recomputed for found in plan.devices.values() for fit in found.values()):
            console.print("r: with training.gradient_checkpointing: true only", style="dim", markup=False)
        if any(" x " in device for device in plan.devices):
            console.print("several devices: with training.sharding: full, each computing such a micro-batch", style="dim", markup=False)


def _least(method: str, plan: Plan) -> str:
    """ "qlora fits 80 GB: 2,048 tokens x 10"."""
    fitting = [(device, found[method]) for device, found in plan.devices.items() if method in found and found[method].rows]
    if not fitting:
        return f"{method} fits none of these"
    device, fit = fitting[0]
    again = ", with training.gradient_checkpointing" if fit.recomputed else ""
    return f"{method} fits {device}: {fit.length:,} tokens x {fit.rows:,}{again}"


def _rows(plan: Plan) -> list[list[str]]:
    methods = list(plan.methods.values())
    rows = [["trained values", *(f"{m.n_trained:,}" for m in methods)]]
    rows += [[kind, *(_amount(m.memory.kinds[kind]) for m in methods)] for kind in KINDS if any(m.memory.kinds[kind] >= 1 for m in methods)]
    others = {
        "validation": [m.memory.validation for m in methods],
        "saving": [m.memory.saving for m in methods],
        "measuring": [m.memory.measuring for m in methods],
    }
    rows += [["a training step", *(_amount(m.memory.training) for m in methods)]]
    rows += [[name, *map(_amount, amounts)] for name, amounts in others.items() if any(amounts)]
    rows += [["peak", *(gib(m.memory.peak) for m in methods)]]
    rows += [["computation of a step", *(f"{m.flops / 1e12:,.2f} TFLOP" for m in methods)]]
    rows += [["time of a step", *(f"{m.step_seconds:,.2f} s" if m.step_seconds < 60 else clock(m.step_seconds) for m in methods)]]
    if plan.n_steps is not None:
        rows += [[f"time of {plan.n_steps:,} steps", *(clock(m.seconds) if m.seconds is not None else "" for m in methods)]]
        if plan.price_per_hour is not None:
            rows += [["cost", *(f"{plan.cost(name):,.2f}" for name in plan.methods)]]
    return [
        *rows,
        ["a checkpoint", *(gib(m.checkpoint_bytes) for m in methods)],
        ["disk, all that is kept", *(gib(m.disk_bytes) for m in methods)],
    ]


def _amount(n_bytes: float) -> str:
    return gib(n_bytes) if n_bytes >= 2**20 else "–" if n_bytes < 1 else "< 1 MiB"


def _fit(fit: Fit) -> str:
    return "–" if not fit.rows else f"{fit.length:,} x {fit.rows:,}{' r' if fit.recomputed else ''}"
