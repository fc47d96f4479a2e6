"""The training loop, read downwards: one step is one denominator, one update, one line in metrics.jsonl.

    folder = train(run)                      # a new run
    folder = resume(RunFolder.open(path))    # goes on where the newest valid checkpoint stands

After the loop the folder holds adapter/ (or model/): the best checkpoint by validation, the last one without validation.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith import provenance
from tunesmith.config import Run
from tunesmith.data.batches import Batch, grouped
from tunesmith.errors import BadInput, Interrupted, MachineFailed
from tunesmith.hardware import peak_memory_bytes
from tunesmith.kill_points import reached
from tunesmith.loss import Scored
from tunesmith.progress import clock, progress, say
from tunesmith.runs import RunFolder, now
from tunesmith.training import checkpoint, distributed, guards, sharding
from tunesmith.training.distributed import all_ranks, ending_together, sum_gradients
from tunesmith.training.memory import TRAINING, VALIDATION, Cuts, attempt, explained, try_largest
from tunesmith.training.method import Tuned
from tunesmith.training.optim import build_optimizer, clip_grad_norm, schedule, set_lr
from tunesmith.training.ready import Ready, prepare, serving_facts
from tunesmith.training.resuming import State, config_changes, go_back, load_weights, must_be_same_data, newest, restore, save_step
from tunesmith.training.sharding import nll_of_share
from tunesmith.training.stopping import Stop, end_noted, signals, unmeasured, what_is_saved


def train(run: Run, command: str = "") -> RunFolder:
    """Fine-tune as `run` says into a new run folder, which is returned."""
    distributed.start(run.training.heartbeat_seconds)
    folder = RunFolder.create(run, command) if distributed.rank() == 0 else RunFolder(Path(run.output).expanduser())
    return _train(folder, run)


def resume(folder: RunFolder) -> RunFolder:
    """Continue a run from its newest valid checkpoint; the result is bit-equal to the run that never stopped."""
    run = folder.run().model_copy(update={"output": str(folder.path)})  # the folder may have been moved
    distributed.start(run.training.heartbeat_seconds)
    return _train(folder, run, again=True)


def _train(folder: RunFolder, run: Run, again: bool = False) -> RunFolder:
    begun = time.monotonic()
    leader = distributed.rank() == 0
    tell = say if leader else lambda text: None
    with (
        folder.only_process() if leader else nullcontext(), signals() as stop, end_noted(folder, stop), ending_together(),
        folder.named_in_disk_errors(), explained(folder),
    ):  # fmt: skip
        found, broken = newest(folder)
        for line in [*broken, *config_changes(folder, run, found)]:
            tell(line)
        ready = prepare(run, folder.name)
        for line in ready.said:
            tell(line)
        must_be_same_data(folder, ready.rows, found)
        reached("start.prepared")
        depends = provenance.of(run, ready.tuned.loaded, ready.tuned.compute_dtype, distributed.world())
        changed = provenance.since(folder.status(), depends)
        for line in changed:
            tell(f"changed since this run began: {line} (sums may be rounded otherwise)")
        if leader:
            changed = [*folder.status().get("changed", []), *changed]
            folder.set_status(state="running", problem=None, ended=None, changed=changed, **depends, **_facts(ready))
        tuned, scored = sharding.distribute(run, ready.tuned)
        ready = replace(ready, tuned=tuned)
        optimizer = build_optimizer(tuned.parameters, run.training, ready.timetable.rate)
        if scored.why_full_logits:
            tell(f"all logits are computed: {scored.why_full_logits}")
        first, state = restore(folder, ready, optimizer, found, again, tell)
        cuts = Cuts(folder, ready)
        try_largest(scored, ready, optimizer, cuts, first)
        spent_before = state.seconds
        stop.patient = True
        _steps(folder, ready, scored, optimizer, cuts, first, state, stop, lambda: spent_before + time.monotonic() - begun)
        stop.patient = False
        _finish(folder, ready, state, spent_before + time.monotonic() - begun, tell)
        if all_ranks(float(stop.asked)):  # during the last step: the answer is to measure nothing
            raise unmeasured(folder)
    return folder


def _steps(
    folder: RunFolder, ready: Ready, scored: Scored, optimizer: torch.optim.Optimizer, cuts: Cuts, first: int, state: State, stop: Stop,
    seconds: Callable[[], float],
) -> None:  # fmt: skip
    run, timetable, parameters = ready.run, ready.timetable, ready.tuned.parameters
    leader = distributed.rank() == 0
    model = ready.tuned.loaded.model
    rows = ready.step_rows
    board = _tensorboard(folder, run) if leader else None
    with progress("training" if leader else "", timetable.steps, "step", done=first) as bar:
        for step in range(first, timetable.steps):
            if state.stopped_early:
                break
            reached("step.begun")
            started = time.monotonic()
            model.train()
            batches, n_trained, sums = _gradients(ready, scored, optimizer, cuts, step)
            rate = timetable.rate * schedule(step, timetable.steps, run.training)
            set_lr(optimizer, rate)
            reached("step.backward")
            sum_gradients(parameters.values())  # over ranks: a sum, as the denominator is global already
            if step == 0:
                _every_layer_has_a_gradient(ready.tuned)
            *losses, grad_norm = _read([*sums, clip_grad_norm(parameters, run.training.max_grad_norm)])
            loss = all_ranks(_sum(losses)) / n_trained
            if guards.is_not_finite(loss, grad_norm):  # before the update: no weight is touched
                sources = [example.source for example in rows.of_step(step)]
                raise guards.not_finite(folder, step, loss, grad_norm, _blamed(ready, scored, step, batches, n_trained, losses), sources)
            is_spike = _note_spike(folder, ready, state, step, loss)
            reached("step.before-update")
            if not is_spike or run.training.on_spike == "note":
                optimizer.step()
            elif run.training.on_spike == "roll_back" and state.kept_step > 0:
                go_back(folder, ready, optimizer, state.kept_step)
            reached("step.updated")
            optimizer.zero_grad(set_to_none=True)

            taken = step + 1
            spent = time.monotonic() - started
            n_tokens = sum(len(example) for example in rows.of_step(step))
            line = {
                "step": taken, "loss": loss, "grad_norm": grad_norm, "learning_rate": rate, "trained_tokens": n_trained, "tokens": n_tokens,
                "tokens_per_second": round(n_tokens / spent, 1), "seconds": round(spent, 4), "peak_memory_bytes": peak_memory_bytes(),
            }  # fmt: skip
            if leader:
                folder.log(line)
                _to_board(board, line)
            reached("step.logged")
            memory = peak_memory_bytes() / 2**30
            bar.advance(1, f"loss {loss:.4f}, {line['tokens_per_second']:,.0f} tokens/s, {memory:.1f} GiB")
            if ready.rows.validation and (taken % timetable.validate_every == 0 or taken == timetable.steps):
                _validate(folder, ready, scored, cuts, taken, state, board)
                reached("step.measured")
            due = taken % timetable.save_every == 0 or taken == timetable.steps or state.best_step == taken or state.stopped_early
            interrupted = bool(all_ranks(float(stop.asked)))
            if due:
                state.kept_step = taken
            if due or interrupted:
                state.seconds = seconds()
                save_step(folder, ready, optimizer, taken, state)
            if interrupted and taken < timetable.steps:
                if leader:
                    folder.set_status(state="interrupted", step=taken, resume_command=folder.resume_command, ended=now())
                raise Interrupted(
                    f"stopped after step {taken:,} of {timetable.steps:,}; everything is saved",
                    where=str(folder.path),
                    fix=folder.resume_command,
                )
    if board is not None:
        board.close()


# --- the parts of a step ------------------------------------------------------------------------------------------------


def _gradients(
    ready: Ready, scored: Scored, optimizer: torch.optim.Optimizer, cuts: Cuts, step: int
) -> tuple[list[Batch], int, list[Tensor]]:  # fmt: skip
    """Add up the gradients of a step, in micro-batches that fit into memory: those of this process, the trained tokens of all, the loss of each."""
    rank, world = distributed.rank(), distributed.world()
    device = next(iter(ready.tuned.parameters.values())).device
    while True:
        _seed(ready, step)
        rows = cuts.rows(step)
        share = rows.micro_batches(step, rank, world)
        batches = [batch.to(device) for batch in sharding.as_many_for_all(share, scored)]
        n_trained = int(all_ranks(sum(batch.n_trained for batch in batches)))  # > 0: promised by load_rows
        sums = attempt(partial(_backward, scored, batches, n_trained), scored)
        if sums is not None:
            return batches, n_trained, sums
        optimizer.zero_grad(set_to_none=True)
        groups = [group for other in range(world) for group in rows.groups(step, other, world)]
        cuts.halve(TRAINING, step, groups, f"step {step + 1:,}")


def _seed(ready: Ready, step: int) -> None:
    """Dropout of a step depends on (seed, step, rank) alone, so that a resumed run draws the same."""
    torch.manual_seed((ready.run.training.seed << 32) + step * 1024 + distributed.rank())


def _backward(scored: Scored, batches: Sequence[Batch], n_trained: int) -> list[Tensor]:
    """Gradients of the batches, added to those that are there; the summed loss of each."""
    sums = []
    for batch in batches:
        nll = scored(batch)
        (nll.sum / n_trained).backward()  # one denominator, however the step was cut
        sums.append(nll.sum.detach())
    return sums


def _read(numbers: Sequence[Tensor]) -> list[float]:
    """Each as a number. The one place in a step where the processor waits for a GPU: before the update, which must not happen if one is not finite."""
    read: list[float] = torch.stack([number.to(torch.float64) for number in numbers]).tolist()
    return read


def _sum(numbers: Sequence[float]) -> float:
    """In their order, as Python's own sum rounds otherwise from 3.12 on."""
    total = 0.0
    for number in numbers:
        total += number
    return total


def _blamed(ready: Ready, scored: Scored, step: int, batches: Sequence[Batch], n_trained: int, losses: Sequence[float]) -> list[Batch]:
    """The micro-batches that made a step's numbers not finite; with the same dropout as before."""
    _seed(ready, step)
    compute = None if sharding.is_on(ready.run) else lambda batch: _backward(scored, [batch], n_trained)
    return guards.blamed(batches, losses, ready.tuned.parameters.values(), compute)


def _note_spike(folder: RunFolder, ready: Ready, state: State, step: int, loss: float) -> bool:
    """Whether this loss is far above the last ones, which is said and logged with the rows of the step and what becomes of it."""
    limit = guards.spike_limit(state.recent)
    state.recent = [*state.recent, loss][-guards.RECENT :]
    if limit is None or loss <= limit:
        return False
    on_spike, kept = ready.run.training.on_spike, state.kept_step
    if on_spike == "roll_back" and kept > 0:
        done = f"back to the weights of step {kept:,}; the updates since are left out"
    else:
        done = "noted (training.on_spike: note)" if on_spike == "note" else "its update is left out"
    if distributed.rank() == 0:
        sources = [example.source for example in ready.step_rows.of_step(step)]
        folder.log({"step": step + 1, "spike": loss, "limit": limit, "then": done, "rows": sources})
        say(f"step {step + 1:,}: loss {loss:.4f} is far above the last ones (more than {limit:.4f}): {done}")
    return True


def _validate(folder: RunFolder, ready: Ready, scored: Scored, cuts: Cuts, taken: int, state: State, board: Any) -> None:
    """Validation loss, and what follows from it: the best checkpoint and early stopping."""
    found, examples, packing, sharing = None, ready.rows.validation, ready.step_rows.packing, ready.step_rows.sharing
    while found is None:
        tokens = cuts.at(VALIDATION, taken).tokens
        found = attempt(partial(nll_of_share, scored, examples, tokens, packing, sharing), scored)
        if found is None:
            groups = grouped(examples, tokens, packing=packing, sharing=sharing)
            cuts.halve(VALIDATION, taken, groups, f"the validation after step {taken:,}")
    total, count = map(all_ranks, found)
    loss = total / count
    if not math.isfinite(loss):
        raise MachineFailed(
            f"the validation loss after step {taken} is {loss}; {what_is_saved(folder)}", where=str(folder.path),
            fix="in a new run a lower training.learning_rate, or training.dtype: float32",
        )  # fmt: skip
    better = state.best_loss is None or loss < state.best_loss
    if better:
        state.best_loss, state.best_step, state.worse_validations = loss, taken, 0
    else:
        state.worse_validations += 1
    patience = ready.run.training.early_stopping
    state.stopped_early = patience is not None and state.worse_validations >= patience
    if distributed.rank() == 0:
        folder.log({"step": taken, "validation_loss": loss})
        _to_board(board, {"step": taken, "validation_loss": loss})
        say(
            f"step {taken:,}: validation loss {loss:.4f}{', the best so far' if better else f', best {state.best_loss:.4f} at step {state.best_step:,}'}"
        )
        if state.stopped_early:
            say(f"stopped early: {patience} validations without a better one")


def _every_layer_has_a_gradient(tuned: Tuned) -> None:
    """While B is zero, A's gradient is zero and B's must not be: a layer without one would stay untrained in silence (FAILURES 23)."""
    if tuned.adapter is None:
        return
    dead = [name for name, p in tuned.parameters.items() if name.endswith("lora_B.weight") and (p.grad is None or not bool(p.grad.any()))]
    if dead:
        raise BadInput(
            f"{len(dead)} adapted layers get no gradient; the first is {dead[0].removesuffix('.lora_B.weight')}", where="lora.targets",
            fix="leave these layers out of lora.targets",
        )  # fmt: skip


# --- the end --------------------------------------------------------------------------------------------------------------


def _facts(ready: Ready) -> dict[str, Any]:
    parameters = ready.tuned.parameters
    total = sum(p.numel() for p in ready.tuned.loaded.model.parameters())
    return {
        "steps": ready.timetable.steps,
        "data": {"said": ready.rows.said, "counts": ready.rows.counts, "files": ready.rows.files},
        "padding": ready.padding,
        "arithmetic": ready.tuned.said,
        "shared_beginnings": ready.shared,
        "learning_rate_reason": ready.said[-2],
        "parameters": {"trained": sum(p.numel() for p in parameters.values()), "total": total},
    }  # fmt: skip


def _finish(folder: RunFolder, ready: Ready, state: State, seconds: float, tell: Any) -> None:
    """The best checkpoint by validation becomes adapter/ or model/."""
    reached("finish.begun")
    last = checkpoint.steps_of(folder.checkpoints)[-1][0]
    step = state.best_step if state.best_step is not None else last
    if step != last:
        found = checkpoint.open_valid(folder.checkpoints / f"step-{step:08d}")
        if found is None:
            raise MachineFailed(
                "the best checkpoint was changed on disk",
                where=f"{folder.checkpoints}/step-{step:08d}",
                fix=f"{folder.resume_command}: it goes back to a checkpoint from before",
            )
        load_weights(ready.tuned, found)
        tell(f"using step {step:,}, the best by validation (the last is {last:,})")
    place = folder.adapter if ready.tuned.adapter is not None else folder.model
    ready.tuned.save(place, serving_facts(ready))
    if distributed.rank() == 0:
        reached("finish.written")
        folder.set_status(state="trained", step=last, best_step=step, seconds=round(seconds, 1), ended=now())
        reached("finish.noted")
        tell(f"{place} written after {clock(seconds)}")
    distributed.barrier()


# --- TensorBoard ----------------------------------------------------------------------------------------------------------


def _tensorboard(folder: RunFolder, run: Run) -> Any:
    if not run.training.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise BadInput(
            "TensorBoard is not installed", where="training.tensorboard: true", fix='pip install "tunesmith[tensorboard]"'
        ) from None
    return SummaryWriter(str(folder.path / "tensorboard"))


def _to_board(board: Any, line: Mapping[str, Any]) -> None:
    if board is not None:
        for key, value in line.items():
            if key != "step":
                board.add_scalar(key, value, line["step"])
