"""What is looked at before a step's update: numbers that are not finite end the run, a loss far above its level is a spike.

    if is_not_finite(loss, grad_norm): raise not_finite(folder, step, loss, grad_norm, blamed(...), rows)
    limit = spike_limit(state.recent)            # None while there are too few losses to tell
    if limit is not None and loss > limit: ...   # training.on_spike: note, skip the update, or roll back to the newest checkpoint

A spike is a loss more than ten standard deviations above the median of the last 64, the deviation being that of a normal law with their
median absolute deviation, and at least half a nat above it: where the loss is nearly zero one hard example is many deviations. Median and
MAD move only when half of the losses have: one spike hides no other, and a level that stays high is the level after 32 steps.

False alarms: 1 in 17,545 steps of 29 runs that went well (classification with losses near zero among them; with 6 deviations 7, with a
quarter of a nat 9). Source of the remedy "roll_back": Chowdhery et al. 2022, PaLM (arXiv 2204.02311), section 5.1, who went back to a
checkpoint from before and left out the batches in between.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

from torch import nn

from tunesmith.data.batches import Batch
from tunesmith.errors import MachineFailed
from tunesmith.files import write_json
from tunesmith.runs import RunFolder
from tunesmith.training import distributed
from tunesmith.training.stopping import what_is_saved

RECENT = 64  # losses that say what is usual
LEAST_RECENT = 16  # without so many nothing is far from usual
DEVIATIONS = 10.0
LEAST_NATS = 0.5  # above the median
OF_A_NORMAL_LAW = 1.4826  # standard deviation per MAD


def spike_limit(recent: Sequence[float]) -> float | None:
    """Above this a loss is a spike; None while there are fewer than LEAST_RECENT."""
    if len(recent) < LEAST_RECENT:
        return None
    middle = median(recent)
    spread = OF_A_NORMAL_LAW * median(abs(loss - middle) for loss in recent)
    return middle + max(DEVIATIONS * spread, LEAST_NATS)


def is_not_finite(*numbers: float) -> bool:
    return not all(map(math.isfinite, numbers))


def blamed(
    batches: Sequence[Batch], losses: Sequence[float], parameters: Iterable[nn.Parameter], compute: Callable[[Batch], Any] | None
) -> list[Batch]:  # fmt: skip
    """This process's micro-batches with a loss that is not finite; where all are, those whose gradient is not, computed once more each.

    compute   forward and backward of one micro-batch; None where it cannot be computed by one process
    Empty if none can be found: a sum that overflowed, or a machine that does not compute the same twice.
    """
    by_loss = [batch for batch, loss in zip(batches, losses, strict=True) if not math.isfinite(loss)]
    if by_loss or compute is None:
        return by_loss
    trained, found = list(parameters), []
    for batch in batches:
        for parameter in trained:
            parameter.grad = None
        compute(batch)
        if any(p.grad is not None and not bool(p.grad.isfinite().all()) for p in trained):
            found.append(batch)
    return found


def not_finite(folder: RunFolder, step: int, loss: float, grad_norm: float, found: Sequence[Batch], rows: Sequence[str]) -> MachineFailed:
    """The error that ends the run; the rows of the micro-batches that were found, of all processes, are written down first.

    rows   of the whole step, for the case that nothing was found
    """
    guilty = [source for part in distributed.from_all([s for batch in found for s in batch.sources]) for source in part]
    where = folder.path / f"not-finite-step-{step + 1}.json"
    if distributed.rank() == 0:
        write_json(
            where, {"step": step + 1, "loss": str(loss), "grad_norm": str(grad_norm), "rows": guilty or list(rows), "rows_of_step": list(rows)}
        )  # fmt: skip
    named = ", ".join((guilty or rows)[:4])
    return MachineFailed(
        f"step {step + 1} gave loss {loss} and gradient norm {grad_norm}; stopped before the update", where=f"rows {named} … (all in {where})",
        fix=f"look at these rows; in a new run a lower training.learning_rate, or training.dtype: float32; {what_is_saved(folder)}",
    )  # fmt: skip
