"""The log-likelihood of each example by itself, where training needs only the sum of all.

    found = log_likelihoods(Scored(model), examples)
    found.sum[i], found.n_tokens[i]        # of examples[i]: nats, 0 or less, and trained tokens

The sum over all examples is what loss.nll_of gives; the same trunk, head and dtype are used.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tunesmith.data.batches import Batch, collated, cut
from tunesmith.data.template import Example
from tunesmith.loss import Scored
from tunesmith.model.frozen import dense_weight

CHUNK_TOKENS = 256  # whose logits are held at once


@dataclass(frozen=True)
class LogLikelihoods:
    """sum float64 [n]: of the trained tokens of each example, in nats; n_tokens int64 [n]."""

    sum: npt.NDArray[np.float64]
    n_tokens: npt.NDArray[np.int64]


@torch.inference_mode()
def log_likelihoods(scored: Scored, examples: Sequence[Example], micro_batch_tokens: int = 8192) -> LogLikelihoods:
    """Log-likelihood of every example's trained tokens, in the order of `examples`."""
    total, count = np.zeros(len(examples)), np.zeros(len(examples), dtype=np.int64)
    place = {id(example): number for number, example in enumerate(examples)}
    device = next(scored.parameters()).device
    was_training = scored.training
    scored.eval()
    longest = max(map(len, examples), default=0)
    for group in cut(examples, micro_batch_tokens):
        row_N, log_N = _of_tokens(scored, collated(group, False, longest).to(device))
        places = np.array([place[id(example)] for example in group])[row_N]
        np.add.at(total, places, log_N)
        np.add.at(count, places, 1)
    scored.train(was_training)
    return LogLikelihoods(total, count)


def _of_tokens(scored: Scored, batch: Batch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Of each trained token its row in the batch and its log-probability."""
    states_ND, target_N, at = scored.at_trained(batch)
    head = None if scored.why_full_logits is not None else scored.model.get_output_embeddings()
    logs = [
        _log_probability(_logits(states_CD, head, scored.compute_dtype), target_C)
        for states_CD, target_C in zip(torch.split(states_ND, CHUNK_TOKENS), torch.split(target_N, CHUNK_TOKENS), strict=True)
    ]
    rows = (at // batch.ids_BT.shape[1]).cpu().numpy()
    return rows, torch.cat(logs).double().cpu().numpy()


def _logits(states_CD: Tensor, head: nn.Linear | None, dtype: torch.dtype) -> Tensor:
    """Of some positions: what the head makes of the trunk's output, or the model's own logits where `states_CD` are those."""
    if head is None:
        return states_CD.float()
    bias_V = None if head.bias is None else head.bias.to(dtype)
    return nn.functional.linear(states_CD.to(dtype), dense_weight(head, dtype).to(dtype), bias_V).float()


def _log_probability(logits_CV: Tensor, target_C: Tensor) -> Tensor:
    return -nn.functional.cross_entropy(logits_CV, target_C, reduction="none")
