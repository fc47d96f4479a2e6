"""How far the answers of two models lie apart: the same rows through both, every position compared.

    rows = probe_rows(conversations, renderer, loaded)          # a few dozen
    before = keep_logits(model, rows)                           # then the model may change, or go
    compare(before, other_model, rows)                          # Parity(max_logit=0.03, kl=1e-6, agreement=0.999, …)

The first model's logits are kept, in its own dtype and up to half a GiB; the second's are read batch by batch and let go, so that
both models never need to be in memory at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.data.batches import IGNORED, collate, cut
from tunesmith.data.conversation import Conversation
from tunesmith.data.template import Example, Renderer
from tunesmith.errors import BadInput
from tunesmith.model.load import Loaded

ROWS = 48
LONGEST = 2048  # tokens of a row; what follows is left out
KEPT_BYTES = 1 << 29  # of logits
BATCH_VALUES = 1 << 25  # logits computed at once
COMPARED_VALUES = 1 << 22  # logits compared at once, in float64


@dataclass(frozen=True)
class Parity:
    """positions: every token of prompt and answer but the first; answers: those of the answer.

    max_logit   largest |Δlogit|
    kl          mean over positions of KL(first ‖ second), in nats
    agreement   share of positions at which both find the same token likeliest
    """

    positions: int
    answers: int
    max_logit: float
    kl: float
    agreement: float
    answers_agreement: float


def probe_rows(conversations: Sequence[Conversation], renderer: Renderer, loaded: Loaded) -> list[Example]:
    """Some conversations, evenly chosen, as ids; as many as their logits may be kept of."""
    values = loaded.n_ids * loaded.model.dtype.itemsize
    left = max(2, KEPT_BYTES // values)
    longest = min(LONGEST, loaded.context or LONGEST, left)
    rows: list[Example] = []
    for conversation in list(conversations)[:: max(1, len(conversations) // ROWS)][:ROWS]:
        possible = renderer.least_tokens(conversation) <= longest
        for example in renderer.render(conversation if possible else renderer.shortened(conversation, longest)):
            row = Example(example.ids[:longest], example.trained[:longest], example.source)
            if len(row) < 2 or len(row) > left:
                continue
            rows.append(row)
            left -= len(row)
    if not rows:
        raise BadInput("there is no row to compare the models on", where="probe rows", fix="--data FILE with a few rows")
    return rows


def keep_logits(model: Any, rows: Sequence[Example]) -> list[Tensor]:
    """[positions, vocabulary] of each batch, on the CPU."""
    return [logits_PV.cpu() for logits_PV, _ in _logits(model, rows)]


def compare(before: Sequence[Tensor], model: Any, rows: Sequence[Example]) -> Parity:
    """Of kept logits with those of `model` on the same rows."""
    n, n_answers, largest, kl, same, same_answers = 0, 0, 0.0, 0.0, 0, 0
    for kept_PV, (found_PV, answer_P) in zip(before, _logits(model, rows), strict=True):
        step = max(1, COMPARED_VALUES // kept_PV.shape[1])
        for start in range(0, len(kept_PV), step):
            first_PV = kept_PV[start : start + step].to(found_PV.device).double()
            second_PV, answer = found_PV[start : start + step].double(), answer_P[start : start + step]
            largest = max(largest, float((first_PV - second_PV).abs().max()))
            agree_P = first_PV.argmax(dim=1) == second_PV.argmax(dim=1)
            first_PV, second_PV = first_PV.log_softmax(dim=1), second_PV.log_softmax(dim=1)
            kl += float((first_PV.exp() * (first_PV - second_PV)).sum())
            n, same = n + len(agree_P), same + int(agree_P.sum())
            n_answers, same_answers = n_answers + int(answer.sum()), same_answers + int((agree_P & answer).sum())
    return Parity(n, n_answers, largest, kl / n, same / n, same_answers / max(1, n_answers))


@torch.no_grad()
def _logits(model: Any, rows: Sequence[Example]) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each batch: logits of every position whose next token the row holds, and whether that token is of the answer."""
    device = model.get_input_embeddings().weight.device
    at_once = max(1, BATCH_VALUES // int(model.get_input_embeddings().weight.shape[0]))
    for group in cut(rows, at_once):
        batch = collate(group).to(device)
        logits_BTV = model(input_ids=batch.ids_BT, use_cache=False).logits
        last_B1 = torch.tensor([[len(row) - 1] for row in group], device=device)
        inside_BT = torch.arange(batch.ids_BT.shape[1], device=device)[None] < last_B1
        yield logits_BTV[inside_BT], (batch.labels_BT != IGNORED)[inside_BT]
