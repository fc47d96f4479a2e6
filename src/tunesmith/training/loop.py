"""The training loop, read downwards: one step is one denominator, one update, one line in metrics.jsonl.

    folder = train(run)                      # a new run
    folder = resume(RunFolder.open(path))    # goes on where the newest valid checkpoint stands

After the loop the folder holds adapter/ (or model/): the best checkpoint by validation, the last one without validation.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from tunesmith.config import Run, with_absolute_paths
from tunesmith.data.batches import StepRows, lengths_of, padding_share
from tunesmith.data.cache import RowsCache
from tunesmith.data.rows import Rows, load_parts, load_rows
from tunesmith.data.template import Example, Renderer
from tunesmith.errors import BadInput, Interrupted, MachineFailed, TunesmithError
from tunesmith.files import write_json
from tunesmith.hardware import describe_machine, peak_memory_bytes
from tunesmith.loss import Scored, nll_of
from tunesmith.model.attention import keep_documents_apart
from tunesmith.progress import clock, counted, progress, say
from tunesmith.runs import RunFolder, now
from tunesmith.training import checkpoint, distributed
from tunesmith.training.distributed import all_ranks, sum_gradients
from tunesmith.training.method import Tuned, build
from tunesmith.training.optim import (
    build_optimizer,
    clip_grad_norm,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    schedule,
    set_lr,
)

DEFAULT_MAX_LENGTH = 512
KEPT_SCORE_BYTES = 1 << 30  # for rows of 256 tokens, a model of some ten million parameters
PADDING_STEPS = 100  # of which the padding is counted before the first

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


@dataclass(frozen=True)
class Plan:
    """A run made concrete: how many steps, and at which of them something is due."""

    steps: int
    validate_every: int
    save_every: int
    rate: float


@dataclass(frozen=True)
class Ready:
    """A run with its data checked and its model loaded, before the first step.

    padding   share of what its first steps compute that is no token, "unpacked" and "packed"
    """

    run: Run
    tuned: Tuned
    renderer: Renderer
    rows: Rows
    step_rows: StepRows
    plan: Plan
    padding: dict[str, float]
    said: list[str]


def prepare(run: Run, name: str) -> Ready:
    """Load everything a run needs and say what it found; nothing is written."""
    distributed.start()
    torch.manual_seed(run.training.seed)
    kept = RowsCache(run.data)
    parts = load_parts(run.data) if kept.is_empty else None  # first: a wrong path should not cost the loading of a model
    tuned = build(run, name)
    renderer = Renderer(tuned.loaded.tokenizer, run.data.template, tuned.loaded.eos_ids, tuned.loaded.n_ids, run.data.thinking)
    max_length = longest_example(run.training.max_length, tuned.loaded.context)
    rows = kept.rows(renderer, max_length, make=lambda: load_rows(parts or load_parts(run.data), run.data, max_length, renderer))
    training = run.training
    step_rows = StepRows(
        rows.train, training.batch_size, training.seed, training.micro_batch_tokens, training.micro_batch_size, training.packing, training.batch_tokens
    )  # fmt: skip
    steps_per_epoch = step_rows.steps_of_epoch(0)
    steps = training.steps or step_rows.steps_of(training.epochs)
    rate, reason = learning_rate(run, tuned.loaded.model.config.get_text_config().hidden_size)
    plan = Plan(
        steps, run.training.validate_every or min(steps, steps_per_epoch), run.training.save_every or min(steps, steps_per_epoch), rate
    )
    first_steps = range(min(steps, PADDING_STEPS))
    padding = {name: padding_share(replace(step_rows, packing=name == "packed"), first_steps) for name in ("unpacked", "packed")}
    said = [
        *rows.said,
        *tuned.said,
        *_attention_for(tuned, int(max(lengths_of(part).max(initial=0) for part in (rows.train, rows.validation))), run),
        *_padding_in_words(padding, training.packing),
        reason,
        _steps_in_words(steps, step_rows),
    ]
    return Ready(run, tuned, renderer, rows, step_rows, plan, padding, said)


def _steps_in_words(steps: int, rows: StepRows) -> str:
    n_examples, per_epoch = len(rows.examples), rows.steps_of_epoch(0)
    size = counted(min(rows.batch_size, n_examples), "example")
    if rows.batch_tokens is not None:
        n_longer = int((lengths_of(rows.examples) > rows.batch_tokens).sum())
        size = f"at most {counted(rows.batch_tokens, 'token')}"
        size += f" ({counted(n_longer, 'longer example')} by themselves)" if n_longer else ""
    return f"{counted(steps, 'step')} of {size}; {counted(per_epoch, 'step')} {'sees' if per_epoch == 1 else 'see'} every example once"


def _padding_in_words(share: Mapping[str, float], packing: bool) -> list[str]:
    if packing:
        return [f"{share['packed']:.1%} of what is computed is padding; without packing it would be {share['unpacked']:.1%}"]
    return [f"{share['unpacked']:.1%} of what is computed is padding; training.packing: true would leave {share['packed']:.1%}"]


def _attention_for(tuned: Tuned, longest: int, run: Run) -> list[str]:
    """How attention is computed: within each example of a packed row; and on a CPU with its scores kept where they are few.

    Flash attention's backward pass is several times slower there. Packed rows choose document by document, padded ones once; the same
    mathematics either way.
    """
    model, config = tuned.loaded.model, tuned.loaded.model.config.get_text_config()
    n_kept = 1 if run.training.gradient_checkpointing else config.num_hidden_layers
    score_bytes = (
        getattr(config, "num_attention_heads", 1) * n_kept * 8
    )  # of one in each head and layer: float32, bf16, bf16; Mamba has no heads
    on_cpu = model.device.type == "cpu"
    if run.training.packing:
        keep_documents_apart(model, KEPT_SCORE_BYTES // score_bytes if on_cpu else 0, longest)
        return ["packed rows: tried on this model, no example sees another"]
    most_bytes = run.training.micro_batch_tokens * longest * score_bytes
    if not on_cpu or config._attn_implementation != "sdpa" or most_bytes > KEPT_SCORE_BYTES:
        return []
    model.set_attn_implementation("eager")
    return [f"attention scores are kept (at most {most_bytes / 2**20:,.0f} MiB): faster than flash attention for short rows on a CPU"]


def longest_example(asked: int | None, context: int | None) -> int:
    """Tokens of the longest example: as asked if the model was made for it, otherwise 512 or what the model was made for."""
    if asked is None:
        return min(DEFAULT_MAX_LENGTH, context or DEFAULT_MAX_LENGTH)
    if context is not None and asked > context:
        raise BadInput(
            f"the model was made for {context:,} positions", where=f"training.max_length: {asked}", fix=f"training.max_length: {context}"
        )
    return asked


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
        folder.only_process() if leader else nullcontext(), _signals() as stop, _end_noted(folder, stop), folder.named_in_disk_errors(),
    ):  # fmt: skip
        found, broken = checkpoint.newest_valid(folder.checkpoints)
        for line in [*broken, *config_changes(folder, run, found)]:
            tell(line)
        ready = prepare(run, folder.name)
        for line in ready.said:
            tell(line)
        _same_data(folder, ready.rows)
        if leader:
            folder.set_status(state="running", problem=None, ended=None, machine=describe_machine(), **_facts(ready))
        parameters = ready.tuned.parameters
        optimizer = build_optimizer(parameters, run.training, ready.plan.rate)
        scored = Scored(ready.tuned.loaded.model, ready.tuned.compute_dtype)
        if scored.why_full_logits:
            tell(f"all logits are computed: {scored.why_full_logits}")
        first, state = _restore(folder, ready, optimizer, found, again, tell)
        spent_before = state.seconds
        stop.patient = True
        _steps(folder, ready, scored, optimizer, first, state, stop, lambda: spent_before + time.monotonic() - begun)
        stop.patient = False
        _finish(folder, ready, state, spent_before + time.monotonic() - begun, tell)
        if all_ranks(float(stop.asked)):  # during the last step: the answer is to measure nothing
            raise unmeasured(folder)
    return folder


def unmeasured(folder: RunFolder) -> Interrupted:
    """What is said where Ctrl-C comes after the last step; `resume` measures and reports."""
    return Interrupted("training is finished and saved; measuring was stopped", where=str(folder.path), fix=folder.resume_command)


@contextmanager
def _end_noted(folder: RunFolder, stop: "_Stop") -> Iterator[None]:
    """Whatever ends the run stands in its status; a stop after a step has already said so itself."""
    try:
        yield
    except Interrupted:
        raise
    except BaseException as error:
        # a library may have made another error of our KeyboardInterrupt
        at_once = isinstance(error, KeyboardInterrupt) or stop.hurried
        if at_once:
            stop.ending = True
            if folder.status().get("state") == "trained":
                raise unmeasured(folder) from None
        problem = error.what if isinstance(error, TunesmithError) else str(error).strip().split("\n")[0] or type(error).__name__
        ended = {"state": "interrupted", "problem": None} if at_once else {"state": "failed", "problem": problem}
        if distributed.rank() == 0:
            with suppress(MachineFailed):  # where the disk is full, what is being raised says so
                folder.set_status(**ended, resume_command=folder.resume_command, ended=now())
        if not at_once:
            raise
        kept = [step for step, _ in checkpoint.steps_of(folder.checkpoints)]
        what = f"the steps up to {kept[-1]:,} are saved" if kept else "nothing was saved yet, so it begins again"
        raise Interrupted(f"stopped at once; {what}", where=str(folder.path), fix=folder.resume_command) from None


def _steps(
    folder: RunFolder, ready: Ready, scored: Scored, optimizer: torch.optim.Optimizer, first: int, state: State, stop: "_Stop", seconds: Callable[[], float]
) -> None:  # fmt: skip
    run, plan, parameters = ready.run, ready.plan, ready.tuned.parameters
    leader = distributed.rank() == 0
    model = ready.tuned.loaded.model
    device = next(iter(parameters.values())).device
    rows = ready.step_rows
    board = _tensorboard(folder, run) if leader else None
    with progress("training" if leader else "", plan.steps, "step", done=first) as bar:
        for step in range(first, plan.steps):
            if state.stopped_early:
                break
            started = time.monotonic()
            model.train()
            # dropout of a step depends on (seed, step, rank) alone, so that a resumed run draws the same
            torch.manual_seed((run.training.seed << 32) + step * 1024 + distributed.rank())
            batches = [batch.to(device) for batch in rows.micro_batches(step, distributed.rank(), distributed.world())]
            n_trained = int(all_ranks(sum(batch.n_trained for batch in batches)))  # > 0: promised by load_rows
            rate = plan.rate * schedule(step, plan.steps, run.training)
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
            if ready.rows.validation and (taken % plan.validate_every == 0 or taken == plan.steps):
                _validate(folder, ready, scored, taken, state, board)
            due = taken % plan.save_every == 0 or taken == plan.steps or state.best_step == taken or state.stopped_early
            interrupted = bool(all_ranks(float(stop.asked)))
            if due or interrupted:
                state.seconds = seconds()
                _save(folder, ready, optimizer, taken, state)
            if interrupted and taken < plan.steps:
                if leader:
                    folder.set_status(state="interrupted", step=taken, resume_command=folder.resume_command, ended=now())
                raise Interrupted(
                    f"stopped after step {taken:,} of {plan.steps:,}; everything is saved",
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


# --- saving and going on --------------------------------------------------------------------------------------------------


def _save(folder: RunFolder, ready: Ready, optimizer: torch.optim.Optimizer, taken: int, state: State) -> None:
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
            {"state": asdict(state), "steps": ready.plan.steps, "settings": settings_of(ready.run)},
            ready.run.training.keep_checkpoints,
            state.best_step,
        )
        folder.set_status(step=taken, steps=ready.plan.steps)
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


def _restore(
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
    if found.state["steps"] != ready.plan.steps:
        raise BadInput(
            f"the checkpoint belongs to a run of {found.state['steps']:,} steps, the config and data now give {ready.plan.steps:,}", where=str(found.path),
            fix="restore config.yaml and the data, or start a new run",
        )  # fmt: skip
    _load_weights(ready.tuned, found)
    load_optimizer_tensors(optimizer, ready.tuned.parameters, found.tensors("optimizer"))
    tell(f"going on after step {found.step:,} of {ready.plan.steps:,}")
    return found.step, State(**found.state["state"])


@torch.no_grad()
def _load_weights(tuned: Tuned, found: checkpoint.Checkpoint) -> None:
    tensors = found.tensors(tuned.weights_file)
    if {name: t.shape for name, t in tensors.items()} != {name: p.shape for name, p in tuned.parameters.items()}:
        raise BadInput(
            "the checkpoint holds other tensors than this run trains", where=str(found.path), fix="restore config.yaml, or start a new run"
        )
    for name, parameter in tuned.parameters.items():
        parameter.copy_(tensors[name])


def _same_data(folder: RunFolder, rows: Rows) -> None:
    """A resumed run must see the same files, or its order of examples would mean other examples."""
    before = folder.status().get("data", {}).get("files", {})
    came, went = [path for path in rows.files if path not in before], [path for path in before if path not in rows.files]
    changed = [path for path, facts in rows.files.items() if path in before and before[path]["sha256"] != facts["sha256"]]
    if before and (changed or came or went):
        where = changed[0] if changed else f"{came[0]} is new" if came else f"{went[0]} is not read any more"
        raise BadInput("the data changed since this run began", where=where, fix="restore the files, or start a new run")


def _facts(ready: Ready) -> dict[str, Any]:
    parameters = ready.tuned.parameters
    total = sum(p.numel() for p in ready.tuned.loaded.model.parameters())
    return {
        "steps": ready.plan.steps,
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
        _load_weights(ready.tuned, found)
        tell(f"using step {step:,}, the best by validation (the last is {last:,})")
    if distributed.rank() == 0:
        place = folder.adapter if ready.tuned.adapter is not None else folder.model
        ready.tuned.save(place, serving_facts(ready))
        folder.set_status(state="trained", step=last, best_step=step, seconds=round(seconds, 1), ended=now())
        tell(f"{place} written after {clock(seconds)}")
    distributed.barrier()


def serving_facts(ready: Ready) -> dict[str, Any]:
    """What must be equal when the tuned model answers (FAILURES 1)."""
    renderer, run, scheme = ready.renderer, ready.run, ready.tuned.loaded.scheme
    return {
        "renderer": renderer.fingerprint(), "template": renderer.mode, "stop_ids": sorted(renderer.stop_ids),
        "prompt": run.data.form, "system": run.data.system, "dtype": run.training.dtype,
        "base_scheme": None if scheme is None else str(scheme),
    }  # fmt: skip


# --- signals and TensorBoard ------------------------------------------------------------------------------------------------


class _Stop:
    """asked: a signal came. patient: the steps look for it themselves. hurried: KeyboardInterrupt was raised. ending: no more is heeded."""

    asked = patient = hurried = ending = False


@contextmanager
def _signals() -> Iterator[_Stop]:
    """Ctrl-C and SIGTERM ask for a stop after the current step; the second one, or one where there is no step to end, stops at once."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.ending:
            return
        if stop.asked or not stop.patient:
            stop.asked = stop.hurried = True
            raise KeyboardInterrupt
        stop.asked = True
        with suppress(RuntimeError):  # the signal came in the middle of another line to the same stream
            say("stopping after this step and saving; once more stops at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
