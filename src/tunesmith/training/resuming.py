"""What a run keeps to go on from, and what it may have changed meanwhile.

    save_step(folder, ready, optimizer, taken=120, state=state)             # weights, optimizer, state: a checkpoint
    first, state = restore(folder, ready, optimizer, found, again, tell)    # (0, fresh) for a new run

Going on is bit-equal to never having stopped, so a config or data that would make other weights are refused.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from tunesmith.config import Run, with_absolute_paths
from tunesmith.data.rows import Rows
from tunesmith.errors import BadInput
from tunesmith.runs import RunFolder
from tunesmith.training import checkpoint, distributed
from tunesmith.training.method import Tuned
from tunesmith.training.optim import load_optimizer_tensors, optimizer_tensors
from tunesmith.training.ready import Ready

# What a resumed run may change in its config: what is measured, kept and shown, and how a step is cut to fit the memory.
FREE = (
    "output",
    "evaluation.",
    "training.gradient_checkpointing",
    "training.save_every",
    "training.keep_checkpoints",
    "training.tensorboard",
)
FREE_BUT_FOR_ROUNDING = ("training.micro_batch_size", "training.micro_batch_tokens", "training.packing")


@dataclass
class State:
    """What a resumed run must know besides tensors; kept in every checkpoint."""

    best_loss: float | None = None
    best_step: int | None = None
    worse_validations: int = 0
    stopped_early: bool = False
    seconds: float = 0.0


def save_step(folder: RunFolder, ready: Ready, optimizer: torch.optim.Optimizer, taken: int, state: State) -> None:
    if distributed.rank() == 0:
        parameters = ready.tuned.parameters
        files = {
            ready.tuned.weights_file: {n: p.detach() for n, p in parameters.items()},
            "optimizer": optimizer_tensors(optimizer, parameters),
        }
        checkpoint.save(
            folder.checkpoints,
            taken,
            files,
            {"state": asdict(state), "steps": ready.timetable.steps, "settings": settings_of(ready.run)},
            ready.run.training.keep_checkpoints,
            state.best_step,
        )
        folder.set_status(step=taken, steps=ready.timetable.steps)
    distributed.barrier()


def settings_of(run: Run) -> dict[str, Any]:
    """Every key of the config, dotted, with its value: what a checkpoint was made with."""
    flat: dict[str, Any] = {}
    for name, value in with_absolute_paths(run).model_dump(mode="json").items():
        flat |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def config_changes(folder: RunFolder, run: Run, found: checkpoint.Checkpoint | None) -> list[str]:
    """What changed in the config since the checkpoint and may, in words; any other change would end in weights that no config describes.

    Older checkpoints hold no settings; all that is known of them is their optimizer.
    """
    before = found.state.get("settings", {"training.optimizer": "adamw"}) if found is not None else {}
    changed = {key: (before[key], value) for key, value in settings_of(run).items() if key in before and before[key] != value}
    said = {key: f"{key}: {was} → {value}" for key, (was, value) in changed.items()}
    refused = [key for key in changed if not key.startswith((*FREE, *FREE_BUT_FOR_ROUNDING))]
    if refused:
        raise BadInput(
            "the config changed since this run began",
            where="\n".join([str(folder.path / "config.yaml"), *(said[key] for key in refused)]),
            fix=f"restore {', '.join(f'{key}: {changed[key][0]}' for key in refused)}; or start a new run",
        )
    return [
        f"the config changed, as it may: {words}" + (" (sums are rounded otherwise)" if key in FREE_BUT_FOR_ROUNDING else "")
        for key, words in said.items()
        if key != "output"  # the folder was moved
    ]


def restore(
    folder: RunFolder, ready: Ready, optimizer: torch.optim.Optimizer, found: checkpoint.Checkpoint | None, again: bool, tell: Any
) -> tuple[int, State]:  # fmt: skip
    """First step to take and the state to take it in: (0, fresh) for a new run."""
    if again and found is None:
        n_logged = sum("loss" in row for row in folder.metrics())
        forgotten = f"; what metrics.jsonl holds of {n_logged:,} earlier steps is forgotten" if n_logged else ""
        tell(f"no usable checkpoint: starting again from step 1{forgotten}")
    if distributed.rank() == 0:
        folder.forget_after(found.step if found else 0)
    if found is None:
        return 0, State()
    if found.state["steps"] != ready.timetable.steps:
        raise BadInput(
            f"the checkpoint belongs to a run of {found.state['steps']:,} steps, the config and data now give {ready.timetable.steps:,}", where=str(found.path),
            fix="restore config.yaml and the data, or start a new run",
        )  # fmt: skip
    load_weights(ready.tuned, found)
    load_optimizer_tensors(optimizer, ready.tuned.parameters, found.tensors("optimizer"))
    tell(f"going on after step {found.step:,} of {ready.timetable.steps:,}")
    return found.step, State(**found.state["state"])


@torch.no_grad()
def load_weights(tuned: Tuned, found: checkpoint.Checkpoint) -> None:
    tensors = found.tensors(tuned.weights_file)
    if {name: t.shape for name, t in tensors.items()} != {name: p.shape for name, p in tuned.parameters.items()}:
        raise BadInput(
            "the checkpoint holds other tensors than this run trains", where=str(found.path), fix="restore config.yaml, or start a new run"
        )
    for name, parameter in tuned.parameters.items():
        parameter.copy_(tensors[name])


def must_be_same_data(folder: RunFolder, rows: Rows) -> None:
    """A resumed run must see the same files, or its order of examples would mean other examples."""
    before = folder.status().get("data", {}).get("files", {})
    came, went = [path for path in rows.files if path not in before], [path for path in before if path not in rows.files]
    changed = [path for path, facts in rows.files.items() if path in before and before[path]["sha256"] != facts["sha256"]]
    if before and (changed or came or went):
        where = changed[0] if changed else f"{came[0]} is new" if came else f"{went[0]} is not read any more"
        raise BadInput("the data changed since this run began", where=where, fix="restore the files, or start a new run")
