"""A step that does not fit into memory is taken again with half the micro-batch: the same examples, the same sums, more pieces.

    cuts = Cuts(folder, ready)                          # as the config says, or as an earlier part of this run has found out
    try_largest(scored, ready, optimizer, cuts, first)  # before the first step: the largest micro-batch there will be, for real
    while (losses := attempt(work, scored)) is None:    # it did not fit, on this process or on another
        cuts.halve(TRAINING, step, groups, "step 3")    # from this step on; an error where each piece is one example already

Whatever was halved stays so for the rest of the run, from the same step on when it is resumed (status.json keeps the steps): a sum of
other pieces is rounded otherwise, and a resumed run has to end in the same bits. Dropout draws other masks for other pieces.

A machine that promises memory which it does not have gives no error to answer: Linux kills the process. That is `resume`'s matter.
"""

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from tunesmith.data.batches import StepRows, grouped, tokens_of
from tunesmith.data.template import Example
from tunesmith.errors import MachineFailed
from tunesmith.hardware import peak_memory_bytes
from tunesmith.loss import Scored
from tunesmith.progress import counted, say
from tunesmith.runs import RunFolder
from tunesmith.training import distributed
from tunesmith.training.adamw8bit import AdamW8bit
from tunesmith.training.ready import Ready
from tunesmith.training.sharding import as_many_for_all, nll_of_share
from tunesmith.training.stopping import what_is_saved

TRAINING, VALIDATION = "training", "validation"
EXAMPLES_OPENED = 4096  # to find the largest micro-batch
# How a refusal reads where it is no torch.OutOfMemoryError or MemoryError: torch's CPU allocator (Linux, Windows), oneDNN, which does
# not say why it could not prepare a matrix product, C++, and CUDA's libraries. Found by setting limits (tests/training/test_memory.py).
REFUSALS = (
    "DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "could not create a primitive",
    "could not create a memory object", "std::bad_alloc", "CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
)  # fmt: skip
Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(refusal in str(error) for refusal in REFUSALS)


def attempt(work: Callable[[], Result], scored: Scored) -> Result | None:
    """What `work` returns; None if memory did not hold it in any of the processes, which all call this.

    `work` exchanges nothing with other processes. Where weights are sharded it has to, and a process that ran out of memory in the
    middle cannot come to an agreement with those that wait for its part of a layer: there it is an error.
    """
    result, refused = None, False
    try:
        result = work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if isinstance(scored, FSDPModule):
            raise MachineFailed(
                f"out of memory: {_first_line(error)}", where="training.sharding: full",
                fix="half the training.micro_batch_tokens, then tunesmith resume",
            ) from None  # fmt: skip
        refused = True
    # only here, past the except block, has the traceback gone that kept every tensor of the failed work
    if not distributed.largest(int(refused)):
        return result
    del result
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


@contextmanager
def explained(folder: RunFolder) -> Iterator[None]:
    """Memory that ran out where no micro-batch is to blame (loading, the optimizer, saving) ends the run with words, not with a traceback."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise MachineFailed(
            f"out of memory: {_first_line(error)}", where=str(folder.path),
            fix=f"more free memory, then {folder.resume_command}; or a new run with method: qlora, training.optimizer: adamw8bit or a smaller model",
        ) from None  # fmt: skip


# --- how steps are cut ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """From step `since` (counted from 0) on, a micro-batch has at most so many tokens, and so many examples if that is not None."""

    since: int
    tokens: int
    size: int | None


class Cuts:
    """How training and validation are cut, from which step on. Kept in status.json as soon as it is not what the config says."""

    def __init__(self, folder: RunFolder, ready: Ready) -> None:
        training = ready.run.training
        self.folder, self.ready = folder, ready
        self.asked = {
            key: getattr(training, key) for key in ("micro_batch_tokens", "micro_batch_size", "packing", "gradient_checkpointing", "sharding")
        } | {"share_prefixes": ready.step_rows.sharing}  # fmt: skip
        self.start = Cut(0, training.micro_batch_tokens, training.micro_batch_size)
        self.cuts = {TRAINING: [self.start], VALIDATION: [self.start]}
        self._rows = (self.start, ready.step_rows)
        kept = distributed.from_first(lambda: folder.status().get("micro_batches"))
        if kept and kept["asked"] != self.asked:
            say("micro-batches were halved in an earlier part of this run; the config has changed since, so they begin as it says")
        elif kept:
            self.cuts = {kind: [Cut(**cut) for cut in kept[kind]] for kind in self.cuts}
            say(f"micro-batches as they have fitted into memory before: {_in_words(self.cuts[TRAINING][-1])}")

    def at(self, kind: str, step: int) -> Cut:
        return [cut for cut in self.cuts[kind] if cut.since <= step][-1]

    def rows(self, step: int) -> StepRows:
        """The run's steps, cut as step `step` is."""
        cut = self.at(TRAINING, step)
        if self._rows[0] != cut:
            self._rows = (cut, replace(self.ready.step_rows, micro_batch_tokens=cut.tokens, micro_batch_size=cut.size))
        return self._rows[1]

    def halve(self, kind: str, step: int, groups: Sequence[Sequence[Example]], what: str, before: Cut | None = None) -> None:
        """From this step on no micro-batch is more than half of the largest of `groups`, which did not fit.

        groups   the examples of each micro-batch, of all processes: what is decided must be the same in each
        what     was computed, in words
        before   how they were cut, if not as this step is
        Raises MachineFailed where each of them is one example already; that halving did not help is then forgotten.
        """
        before, packing = before or self.at(kind, step), self.ready.step_rows.packing
        largest = max(groups, key=partial(tokens_of, packing=packing))
        earlier = [cut for cut in self.cuts[kind] if cut.since < step]
        if max(map(len, groups)) == 1:
            self._keep(kind, earlier or [self.start])
            raise self._too_large(largest[0])
        tokens = min(before.tokens, tokens_of(largest, packing)) // 2
        size = None if before.size is None else math.ceil(min(before.size, max(map(len, groups))) / 2)
        less = Cut(step, max(1, tokens), size)
        self._keep(kind, [*earlier, less, *[cut for cut in self.cuts[kind] if cut.since > step and cut.tokens < less.tokens]])
        drops = kind == TRAINING and self.ready.tuned.adapter is not None and self.ready.run.lora.dropout > 0
        masks = " (dropout draws other masks for other pieces)" if drops else ""
        say(f"out of memory in {what}: {_in_words(less)} from here on, and again{masks}")

    def _keep(self, kind: str, cuts: list[Cut]) -> None:
        self.cuts[kind] = cuts
        if distributed.rank() == 0:
            known = {each: list(map(asdict, of_it)) for each, of_it in self.cuts.items()}
            self.folder.set_status(micro_batches={"asked": self.asked, **known})

    def _too_large(self, example: Example) -> MachineFailed:
        run = self.ready.run
        now = [] if run.training.gradient_checkpointing else ["training.gradient_checkpointing: true"]
        instead = {"full": "method: lora or qlora", "lora": "method: qlora"}.get(run.method)
        anew = ["in a new run", f"training.max_length below {len(example):,}" + (f", or {instead}" if instead else "")]
        return MachineFailed(
            f"one example alone does not fit into memory; {what_is_saved(self.folder)}",
            where=f"{example.source}: {len(example):,} tokens",
            fix="; or ".join([*[f"{change}, then {self.folder.resume_command}" for change in now], " ".join(anew)]),
        )


def _in_words(cut: Cut) -> str:
    size = f" and {counted(cut.size, 'example')}" if cut.size is not None else ""
    return f"at most {counted(cut.tokens, 'token')}{size} at once"


# --- the largest first ----------------------------------------------------------------------------------------------------


def try_largest(scored: Scored, ready: Ready, optimizer: torch.optim.Optimizer, cuts: Cuts, first: int) -> None:
    """Compute the largest micro-batches of the run and forget them, so that what does not fit is known before the first step.

    first   step that comes next
    Forward and backward with all that a step holds besides (gradients, the moments of the optimizer), and of the validation the
    largest batch. Neither weights nor optimizer nor random numbers are touched: the run's numbers are those of a run without this.
    """
    steps = range(first, ready.timetable.steps)
    if not steps:
        return
    device = next(iter(ready.tuned.parameters.values())).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        scored.model.train()
        while True:
            newest = cuts.cuts[TRAINING][-1]
            groups, several = largest_micro_batches(cuts.rows(max(first, newest.since)), steps, distributed.world())
            tried = attempt(partial(_step_of, scored, ready, optimizer, groups, several), scored)
            optimizer.zero_grad(set_to_none=True)
            if tried:
                break
            cuts.halve(TRAINING, first, groups, "the largest micro-batch of the run, tried beforehand", newest)
        while ready.rows.validation:
            newest, packing, sharing = cuts.cuts[VALIDATION][-1], ready.step_rows.packing, ready.step_rows.sharing
            groups_of_it = grouped(ready.rows.validation, newest.tokens, packing=packing, sharing=sharing)
            group = max(groups_of_it, key=partial(tokens_of, packing=packing))
            # each process takes its part of this: the whole group
            share = [example for example in group for _ in range(distributed.world())]
            if attempt(partial(nll_of_share, scored, share, newest.tokens, packing, sharing), scored) is not None:
                break
            cuts.halve(VALIDATION, first, [group], "the largest batch of the validation, tried beforehand", newest)
    shape = " and ".join(f"{len(g)} × {max(map(len, g))}" for g in groups)
    say(f"the largest micro-batches fit: {shape} tokens, {peak_memory_bytes() / 2**30:.1f} GiB at the peak")


def _step_of(scored: Scored, ready: Ready, optimizer: torch.optim.Optimizer, groups: list[list[Example]], several: bool) -> bool:
    parameters = ready.tuned.parameters.values()
    device = next(iter(parameters)).device
    held = _moments_to_come(optimizer)
    if several and not isinstance(scored, FSDPModule):
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
    batches = [ready.step_rows.collated(group).to(device) for group in groups]
    for batch in as_many_for_all(batches, scored):
        (scored(batch).sum / batch.n_trained).backward()
    del held
    return True


def _moments_to_come(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """As much memory as the first update will take to keep; nothing once it has been made."""
    dtype = torch.uint8 if isinstance(optimizer, AdamW8bit) else None
    fresh = [p for group in optimizer.param_groups for p in group["params"] if p not in optimizer.state]
    return [torch.empty_like(p, dtype=dtype) for p in fresh for _ in range(2)]


def largest_micro_batches(rows: StepRows, steps: range, world: int) -> tuple[list[list[Example]], bool]:
    """The examples of the micro-batch with the most tokens, and of that with the longest rows if it is another one.

    Attention takes memory by the square of a row's length, the rest by the number of tokens. Looked for in the steps whose lengths
    allow the most, so that of two million rows a few thousand are opened.
    Returns also whether any of those steps has more than one micro-batch, so that gradients are there already when one is computed.
    """
    found: list[list[Example]] = []
    several = False
    for step in rows.largest_steps(steps, world, EXAMPLES_OPENED):
        for rank in range(world):
            groups = rows.groups(step, rank, world)
            several = several or len(groups) > 1
            found += groups
    most = max(found, key=lambda group: (tokens_of(group, rows.packing), max(map(len, group))))
    longest = max(found, key=lambda group: (max(map(len, group)), tokens_of(group, rows.packing)))
    same = most is longest or max(map(len, most)) == max(map(len, longest))
    return ([most] if same else [most, longest]), several


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
