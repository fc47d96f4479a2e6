"""What a run keeps to go on from, and what it may have changed meanwhile.

    save_step(folder, ready, optimizer, taken=120, state=state)             # weights, optimizer, state: a checkpoint
    first, state = restore(folder, ready, optimizer, found, again, tell)    # (0, fresh) for a new run

Going on is bit-equal to never having stopped, so a config or data that would make other weights are refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.config import Run, with_absolute_paths
from tunesmith.data.rows import Rows
from tunesmith.errors import BadInput, MachineFailed
from tunesmith.kill_points import reached
from tunesmith.progress import counted
from tunesmith.runs import RunFolder
from tunesmith.training import checkpoint, distributed
from tunesmith.training.method import Tuned
from tunesmith.training.optim import load_optimizer_tensors, optimizer_tensors
from tunesmith.training.ready import Ready
from tunesmith.training.shards import copy_stored, is_sharded, write

# What a resumed run may change in its config: what is measured, kept and shown, and how a step is cut to fit the memory.
FREE = (
    "output",
    "evaluation.",
    "training.save_every",
    "training.keep_checkpoints",
    "training.tensorboard",
    "training.heartbeat_seconds",
)
FREE_BUT_FOR_ROUNDING = (
    "training.micro_batch_size",
    "training.micro_batch_tokens",
    "training.packing",
    "training.share_prefixes",
    "training.gradient_checkpointing",  # where memory allows, attention on a CPU is computed in another way (ready.py)
    "training.sharding",
)


@dataclass
class State:
    """What a resumed run must know besides tensors; kept in every checkpoint.

    recent      losses of the last steps, which say what a spike is
    kept_step   the newest checkpoint that was due, and not only made because the run was stopped; 0: none yet
    """

    best_loss: float | None = None
    best_step: int | None = None
    worse_validations: int = 0
    stopped_early: bool = False
    seconds: float = 0.0
    recent: list[float] = field(default_factory=list)
    kept_step: int = 0


def save_step(folder: RunFolder, ready: Ready, optimizer: torch.optim.Optimizer, taken: int, state: State) -> None:
    """A checkpoint: by the first process; where tensors are sharded, by all, each its own rows. All must call it."""
    parameters = ready.tuned.parameters
    files = {
        ready.tuned.weights_file: {n: p.detach() for n, p in parameters.items()}, "optimizer": optimizer_tensors(optimizer, parameters)
    }  # fmt: skip
    sharded = any(map(is_sharded, parameters.values()))
    if distributed.rank() != 0 and sharded:
        _write_parts(None, files)
    if distributed.rank() == 0:
        folder.sync_log()
        checkpoint.save(
            folder.checkpoints,
            taken,
            files,
            {"state": asdict(state), "steps": ready.timetable.steps, "settings": settings_of(ready.run), "data": ready.rows.files},
            ready.run.training.keep_checkpoints,
            state.best_step,
            also=state.kept_step,
            parts=partial(_write_parts, files=files) if sharded else None,
        )
        reached("step.saved")
        folder.set_status(step=taken, steps=ready.timetable.steps)
    distributed.barrier()


def _write_parts(beside: Path | None, files: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """Every process writes its rows into the folder that the first one has made; the facts of all these files."""
    place = Path(distributed.from_first(lambda: str(beside and beside.absolute())))
    written = [n for name, tensors in files.items() for n in write(place, name, tensors, distributed.rank(), distributed.world())]
    facts: list[dict[str, Any]] = distributed.from_all({name: checkpoint.facts_of(place / name) for name in written})
    return {name: held for each in facts for name, held in each.items()}


def settings_of(run: Run) -> dict[str, Any]:
    """Every key of the config, dotted, with its value: what a checkpoint was made with."""
    flat: dict[str, Any] = {}
    for name, value in with_absolute_paths(run).model_dump(mode="json").items():
        flat |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def mend_config(folder: RunFolder) -> None:
    """Write the config of a run again where it is lost: every checkpoint holds all of its keys."""
    if (folder.path / "config.yaml").exists() or not checkpoint.steps_of(folder.checkpoints):
        return
    found, _ = checkpoint.newest_valid(folder.checkpoints)
    nested: dict[str, Any] = {}
    for key, value in (found.state.get("settings", {}) if found is not None else {}).items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    folder.restore_config(Run.model_validate(nested) if nested else None)


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


def newest(folder: RunFolder) -> tuple[checkpoint.Checkpoint | None, list[str]]:
    """The newest valid checkpoint, and what is said of broken ones; the first process looks at every byte for all."""

    def look() -> tuple[int | None, list[str]]:
        found, broken = checkpoint.newest_valid(folder.checkpoints)
        return (None if found is None else found.step), broken

    step, broken = distributed.from_first(look)
    return (None if step is None else checkpoint.open_known(folder.checkpoints, step)), broken


def restore(
    folder: RunFolder, ready: Ready, optimizer: torch.optim.Optimizer, found: checkpoint.Checkpoint | None, again: bool, tell: Any
) -> tuple[int, State]:  # fmt: skip
    """First step to take and the state to take it in: (0, fresh) for a new run."""
    if again and found is None and distributed.rank() == 0:
        n_logged = sum("loss" in row for row in folder.metrics())
        damaged = [path for _, path in checkpoint.steps_of(folder.checkpoints)]
        kept = f"; what there was is kept as {folder.set_aside(damaged)}" if damaged else ""
        forgotten = f"; what metrics.jsonl holds of {n_logged:,} earlier steps is forgotten" if n_logged and not damaged else ""
        tell(f"no usable checkpoint: starting again from step 1{kept}{forgotten}")
    if distributed.rank() == 0:
        for line in folder.forget_after(found.step if found else 0):
            tell(line)
    if found is None:
        return 0, State()
    if found.state["steps"] != ready.timetable.steps:
        raise BadInput(
            f"the checkpoint belongs to a run of {found.state['steps']:,} steps, the config and data now give {ready.timetable.steps:,}", where=str(found.path),
            fix="restore config.yaml and the data, or start a new run",
        )  # fmt: skip
    _load(ready, optimizer, found)
    state = State(**found.state["state"])
    if distributed.rank() == 0 and (other := unlike_logged(folder.metrics(), found.step, state.recent)):
        tell(f"metrics.jsonl was changed: {other}; the weights do not depend on it")
    if distributed.from_first(lambda: checkpoint.best_problem(found)):
        state.best_loss = state.best_step = None
        tell(f"the best checkpoint is lost, so the best is chosen among the steps after {found.step:,}; the last one, if none is validated")
    tell(f"going on after step {found.step:,} of {ready.timetable.steps:,}")
    reached("start.restored")
    return found.step, state


def unlike_logged(rows: Sequence[Mapping[str, Any]], step: int, recent: Sequence[float]) -> str:
    """Which of the last losses before a checkpoint are logged otherwise than it holds them, in words; of earlier ones nobody knows."""
    logged = {row["step"]: row["loss"] for row in rows if "loss" in row}
    true = dict(enumerate(recent, step - len(recent) + 1))
    other = [n for n, loss in true.items() if n in logged and logged[n] != loss]
    if not other:
        return ""
    more = f", and so are {counted(len(other) - 1, 'later one')}" if len(other) > 1 else ""
    return f"the loss of step {other[0]:,} is {logged[other[0]]} there, and {true[other[0]]} in the checkpoint{more}"


def go_back(folder: RunFolder, ready: Ready, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Weights and optimizer as the checkpoint of this step holds them; nothing else changes."""
    place = checkpoint.place_of(folder.checkpoints, step)
    problem = distributed.from_first(lambda: checkpoint.problem_of(place))
    if problem:
        raise MachineFailed(
            f"the checkpoint of step {step:,} cannot be gone back to: {problem}", where=str(place),
            fix=f"{folder.resume_command}: it goes on from one before",
        )  # fmt: skip
    _load(ready, optimizer, checkpoint.open_known(folder.checkpoints, step))


def _load(ready: Ready, optimizer: torch.optim.Optimizer, found: checkpoint.Checkpoint) -> None:
    load_weights(ready.tuned, found)
    load_optimizer_tensors(optimizer, ready.tuned.parameters, found.stored("optimizer"))


def load_weights(tuned: Tuned, found: checkpoint.Checkpoint) -> None:
    copy_stored(found.stored(tuned.weights_file), tuned.parameters)


def must_be_same_data(folder: RunFolder, rows: Rows, found: checkpoint.Checkpoint | None) -> None:
    """A resumed run must see the same files, or its order of examples would mean other examples."""
    in_status = folder.status().get("data", {}).get("files", {})  # all there is before the first checkpoint
    before = found.state.get("data", in_status) if found is not None else in_status
    came, went = [path for path in rows.files if path not in before], [path for path in before if path not in rows.files]
    changed = [path for path, facts in rows.files.items() if path in before and before[path]["sha256"] != facts["sha256"]]
    if before and (changed or came or went):
        where = changed[0] if changed else f"{came[0]} is new" if came else f"{went[0]} is not read any more"
        raise BadInput("the data changed since this run began", where=where, fix="restore the files, or start a new run")
