"""The one place where hidden states become a number.

    nll = Scored(model)(batch)                  # Nll(sum, count): never a mean
    (nll.sum / tokens_of_the_whole_step).backward()

Only trained positions reach the head. In completion-only training that is often a tenth of them.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tunesmith.data.batches import IGNORED, Batch, collated, grouped, labels_at
from tunesmith.data.template import Example
from tunesmith.errors import BadInput
from tunesmith.kernels.linear_nll import linear_nll
from tunesmith.model.attention import documents
from tunesmith.model.frozen import QuantizedLinear, dense_weight


class Nll(NamedTuple):
    """Negative log-likelihood in nats, summed over `count` trained tokens."""

    sum: Tensor
    count: int  # type: ignore[assignment]  # over tuple.count, which nobody needs


class Scored(nn.Module):
    """Batch → Nll: the trunk of a transformers model, then the head over the trained positions alone.

    compute_dtype   with float32 weights (full fine-tuning keeps them as masters), the dtype of the products (autocast)
    ask             finds `why_full_logits` of a model; by default by what it answers
    Where the model's own forward does more than head(trunk(x)) (soft-caps, logit scales), its full logits are used instead;
    `why_full_logits` says so in words, None otherwise.
    """

    def __init__(
        self, model: Any, compute_dtype: torch.dtype | None = None, ask: Callable[[Any], str | None] | None = None
    ) -> None:  # fmt: skip
        super().__init__()
        self.model = model
        self.compute_dtype = compute_dtype or next(model.parameters()).dtype
        self.why_full_logits = (ask or _why_full_logits)(model)

    def forward(self, batch: Batch) -> Nll:
        states_ND, target_N, _ = self.at_trained(batch)
        if self.why_full_logits is not None:
            return Nll(nn.functional.cross_entropy(states_ND.float(), target_N, reduction="sum"), batch.n_trained)
        hidden_ND = states_ND.to(self.compute_dtype)
        head = self.model.get_output_embeddings()
        # a quantised head lies in a buffer until the next layer is used: linear_nll is done with it when it returns, gradients included
        return Nll(linear_nll(hidden_ND, dense_weight(head, hidden_ND.dtype), getattr(head, "bias", None), target_N), batch.n_trained)

    def at_trained(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of the positions before trained tokens: the trunk's output, or the full logits where those are used; the tokens; where they are.

        states [N, D] or [N, V], target int64 [N], places int64 [N] in the flattened batch.
        """
        weights_dtype = self.model.get_input_embeddings().weight.dtype
        autocast = self.compute_dtype == torch.bfloat16 and weights_dtype == torch.float32
        at = batch.at_N if batch.at_N is not None else labels_at(batch.labels_BT)
        target_N = batch.labels_BT.flatten()[at]
        reads = {"input_ids": batch.ids_BT, "use_cache": False}
        if batch.positions_BT is not None:
            reads["position_ids"] = batch.positions_BT
        in_compute_dtype = torch.autocast(batch.ids_BT.device.type, dtype=torch.bfloat16, enabled=autocast)
        with in_compute_dtype, documents(self.model, batch.document_BT, batch.ids_BT.shape, batch.parent_S) as more:
            reads |= more
            states = self.model(**reads).logits if self.why_full_logits is not None else self.model.base_model(**reads).last_hidden_state
            return states.flatten(0, 1).index_select(0, at), target_N, at


def empty_batch(n_tokens: int = 8) -> Batch:
    """A batch of which nothing is trained: its loss is 0, and so are the gradients of it."""
    ids_BT = torch.zeros(1, n_tokens, dtype=torch.int64)
    return Batch(ids_BT, torch.full_like(ids_BT, IGNORED), 0, ())


@torch.no_grad()
def nll_of(
    scored: Scored,
    examples: Sequence[Example],
    micro_batch_tokens: int,
    packing: bool = False,
    sharing: bool = False,
    n_missing: Callable[[int], int] = lambda n: 0,
) -> tuple[float, int]:
    """Summed loss and trained tokens of all examples in evaluation mode; each batch is reduced to a number at once (FAILURES 9).

    packing     in rows of documents side by side, for a model that keeps them apart (model/attention.py)
    sharing     what examples of a row begin with computed once, for a model that was tried (there too)
    n_missing   of this process's number of batches, how many empty ones it computes besides: another process may have more
    """
    total, count = 0.0, 0
    device = next(scored.parameters()).device
    was_training = scored.training
    scored.eval()
    groups = grouped(examples, micro_batch_tokens, packing=packing, sharing=sharing)
    longest = max(map(len, examples), default=0)
    batches = (collated(group, packing, longest) for group in groups)
    for batch in chain(batches, (empty_batch() for _ in range(n_missing(len(groups))))):
        nll = scored(batch.to(device))
        total, count = total + float(nll.sum), count + nll.count
    scored.train(was_training)
    return total, count


@torch.no_grad()
def _why_full_logits(model: Any) -> str | None:
    """Ask the model itself on a few ids: are its logits what its head says of the trunk's output, and nothing more?

    The head's own answer is replaced by numbers up to ±100, since a cap at 30 hardly moves the small logits of a few ids.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear | QuantizedLinear):
        return "the head is not one linear layer"
    seen: dict[str, Tensor] = {}

    def answer(_head: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        seen["hidden"] = inputs[0]
        seen["logits"] = torch.linspace(-100, 100, logits.numel(), device=logits.device).to(logits.dtype).view_as(logits)
        return seen["logits"]

    ids = torch.arange(3, 11, device=head.weight.device)[None] % model.config.get_text_config().vocab_size
    was_training = model.training
    model.eval()
    hook = head.register_forward_hook(answer)
    try:
        logits = model(input_ids=ids, use_cache=False).logits
        hidden = getattr(model.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
    finally:
        hook.remove()
        model.train(was_training)
    if hidden is not None and not bool(torch.isfinite(hidden).all()):  # the weights themselves were looked at when they were loaded
        raise BadInput("the model computes NaN or inf", where="the adapter it starts from, or its dtype", fix="training.dtype: float32")
    if not seen or hidden is None:
        return "the model's forward does not go from its trunk to its head"
    if seen["hidden"].shape != hidden.shape or not _close(seen["hidden"], hidden):
        return "the model's forward changes the trunk's output before its head"
    if logits.shape != seen["logits"].shape or not _close(seen["logits"], logits):
        return "the model's forward changes the logits after its head (a soft-cap or a scale)"
    return None


def _close(found: Tensor, expected: Tensor) -> bool:
    """The same computation twice: far closer than any cap or scale, with room for a device that does not repeat itself bit for bit."""
    return torch.allclose(found.float(), expected.float(), rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
