"""The training loop, read downwards: one step is one denominator, one update, one line in metrics.jsonl.

    folder = train(run)                      # a new run
    folder = resume(RunFolder.open(path))    # goes on where the newest valid checkpoint stands

After the loop the folder holds adapter/ (or model/): the best checkpoint by validation, the last one without validation.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from tunesmith.config import Run
from tunesmith.data.template import Example
from tunesmith.errors import BadInput, Interrupted, MachineFailed
from tunesmith.files import write_json
from tunesmith.hardware import describe_machine, peak_memory_bytes
from tunesmith.loss import Scored, nll_of
from tunesmith.progress import clock, progress, say
from tunesmith.runs import RunFolder, now
from tunesmith.training import checkpoint, distributed
from tunesmith.training.distributed import all_ranks, sum_gradients
from tunesmith.training.method import Tuned
from tunesmith.training.optim import build_optimizer, clip_grad_norm, schedule, set_lr
from tunesmith.training.ready import Ready, prepare, serving_facts
from tunesmith.training.resuming import State, config_changes, load_weights, must_be_same_data, restore, save_step
from tunesmith.training.stopping import Stop, end_noted, signals, unmeasured


def train(run: Run, command: str = "") -> RunFolder:
    """Fine-tune as `run` says into a new run folder, which is returned."""
    distributed.start()
    folder = RunFolder.create(run, command) if distributed.rank() == 0 else RunFolder(Path(run.output).expanduser())
    return _train(folder, run)


def resume(folder: RunFolder) -> RunFolder:
    """Continue a run from its newest valid checkpoint; the result is bit-equal to the run that never stopped."""
    run = folder.run().model_copy(update={"output": str(folder.path)})  # the folder may have been moved
    if folder.status().get("state") == "done":
        more = f"model: {folder.model}" if run.method == "full" else f"lora.continue_from: {folder.path}"
        raise BadInput("this run is done", where=str(folder.path), fix=f"tunesmith eval {folder.path}, or a new run with {more}")
    return _train(folder, run, again=True)


def _train(folder: RunFolder, run: Run, again: bool = False) -> RunFolder:
    begun = time.monotonic()
    leader = distributed.rank() == 0
    tell = say if leader else lambda text: None
    with (
        folder.only_process() if leader else nullcontext(), signals() as stop, end_noted(folder, stop), folder.named_in_disk_errors(),
    ):  # fmt: skip
        found, broken = checkpoint.newest_valid(folder.checkpoints)
        for line in [*broken, *config_changes(folder, run, found)]:
            tell(line)
        ready = prepare(run, folder.name)
        for line in ready.said:
            tell(line)
        must_be_same_data(folder, ready.rows)
        if leader:
            folder.set_status(state="running", problem=None, ended=None, machine=describe_machine(), **_facts(ready))
        parameters = ready.tuned.parameters
        optimizer = build_optimizer(parameters, run.training, ready.timetable.rate)
        scored = Scored(ready.tuned.loaded.model, ready.tuned.compute_dtype)
        if scored.why_full_logits:
            tell(f"all logits are computed: {scored.why_full_logits}")
        first, state = restore(folder, ready, optimizer, found, again, tell)
        spent_before = state.seconds
        stop.patient = True
        _steps(folder, ready, scored, optimizer, first, state, stop, lambda: spent_before + time.monotonic() - begun)
        stop.patient = False
        _finish(folder, ready, state, spent_before + time.monotonic() - begun, tell)
        if all_ranks(float(stop.asked)):  # during the last step: the answer is to measure nothing
            raise unmeasured(folder)
    return folder


def _steps(
    folder: RunFolder, ready: Ready, scored: Scored, optimizer: torch.optim.Optimizer, first: int, state: State, stop: Stop, seconds: Callable[[], float]
) -> None:  # fmt: skip
    run, timetable, parameters = ready.run, ready.timetable, ready.tuned.parameters
    leader = distributed.rank() == 0
    model = ready.tuned.loaded.model
    device = next(iter(parameters.values())).device
    rows = ready.step_rows
    board = _tensorboard(folder, run) if leader else None
    with progress("training" if leader else "", timetable.steps, "step", done=first) as bar:
        for step in range(first, timetable.steps):
            if state.stopped_early:
                break
            started = time.monotonic()
            model.train()
            # dropout of a step depends on (seed, step, rank) alone, so that a resumed run draws the same
            torch.manual_seed((run.training.seed << 32) + step * 1024 + distributed.rank())
            batches = [batch.to(device) for batch in rows.micro_batches(step, distributed.rank(), distributed.world())]
            n_trained = int(all_ranks(sum(batch.n_trained for batch in batches)))  # > 0: promised by load_rows
            rate = timetable.rate * schedule(step, timetable.steps, run.training)
            set_lr(optimizer, rate)
            total = 0.0
            for batch in batches:
                nll = scored(batch)
                (nll.sum / n_trained).backward()  # one denominator, however the step was cut
                total += float(nll.sum.detach())
            sum_gradients(parameters.values())  # over ranks: a sum, as the denominator is global already
            loss = all_ranks(total) / n_trained
            if step == 0:
                _every_layer_has_a_gradient(ready.tuned)
            grad_norm = float(clip_grad_norm(parameters, run.training.max_grad_norm))
            _stop_if_not_finite(folder, loss, grad_norm, step, rows.of_step(step))
            optimizer.step()
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
            memory = peak_memory_bytes() / 2**30
            bar.advance(1, f"loss {loss:.4f}, {line['tokens_per_second']:,.0f} tokens/s, {memory:.1f} GiB")
            if ready.rows.validation and (taken % timetable.validate_every == 0 or taken == timetable.steps):
                _validate(folder, ready, scored, taken, state, board)
            due = taken % timetable.save_every == 0 or taken == timetable.steps or state.best_step == taken or state.stopped_early
            interrupted = bool(all_ranks(float(stop.asked)))
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


def _validate(folder: RunFolder, ready: Ready, scored: Scored, taken: int, state: State, board: Any) -> None:
    """Validation loss, and what follows from it: the best checkpoint and early stopping."""
    total, count = nll_of(scored, ready.rows.validation, ready.run.training.micro_batch_tokens, ready.run.training.packing)
    loss = total / count
    if not math.isfinite(loss):
        raise MachineFailed(
            f"the validation loss after step {taken} is {loss}", where=str(folder.path),
            fix="lower training.learning_rate, or training.dtype: float32; the last checkpoint is untouched",
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


def _stop_if_not_finite(folder: RunFolder, loss: float, grad_norm: float, step: int, examples: Sequence[Example]) -> None:
    """Before the update: no weight is touched, and the rows of the step are written down."""
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    sources = [example.source for example in examples]
    where = folder.path / f"not-finite-step-{step + 1}.json"
    if distributed.rank() == 0:
        write_json(where, {"step": step + 1, "loss": str(loss), "grad_norm": str(grad_norm), "rows": sources})
    raise MachineFailed(
        f"step {step + 1} gave loss {loss} and gradient norm {grad_norm}; stopped before the update", where=f"rows {', '.join(sources[:4])} … (all in {where})",
        fix="lower training.learning_rate, or training.dtype: float32; the last checkpoint is untouched",
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
        "learning_rate_reason": ready.said[-2],
        "parameters": {"trained": sum(p.numel() for p in parameters.values()), "total": total},
    }  # fmt: skip


def _finish(folder: RunFolder, ready: Ready, state: State, seconds: float, tell: Any) -> None:
    """The best checkpoint by validation becomes adapter/ or model/."""
    last = max(row["step"] for row in folder.metrics())
    step = state.best_step if state.best_step is not None else last
    if step != last:
        found = checkpoint.open_valid(folder.checkpoints / f"step-{step:08d}")
        if found is None:
            raise MachineFailed(
                "the best checkpoint was changed on disk",
                where=f"{folder.checkpoints}/step-{step:08d}",
                fix="train again, or use the newest checkpoint",
            )
        load_weights(ready.tuned, found)
        tell(f"using step {step:,}, the best by validation (the last is {last:,})")
    if distributed.rank() == 0:
        place = folder.adapter if ready.tuned.adapter is not None else folder.model
        ready.tuned.save(place, serving_facts(ready))
        folder.set_status(state="trained", step=last, best_step=step, seconds=round(seconds, 1), ended=now())
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
