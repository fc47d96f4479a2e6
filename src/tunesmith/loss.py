"""The one place where hidden states become a number.

    nll = Scored(model)(batch)                  # Nll(sum, count): never a mean
    (nll.sum / tokens_of_the_whole_step).backward()

Only trained positions reach the head. In completion-only training that is often a tenth of them.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tunesmith.data.batches import IGNORED, Batch
from tunesmith.kernels.linear_nll import linear_nll


class Nll(NamedTuple):
    """Negative log-likelihood in nats, summed over `count` trained tokens."""

    sum: Tensor
    count: int


class Scored(nn.Module):
    """Batch → Nll: the trunk of a transformers model, then the head over the trained positions alone.

    compute_dtype   with float32 weights (full fine-tuning keeps them as masters), the dtype of the products (autocast)
    Where the model's own forward does more than head(trunk(x)) (soft-caps, logit scales), its full logits are used instead;
    `why_full_logits` says so in words, None otherwise.
    """

    def __init__(self, model: Any, compute_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model = model
        self.compute_dtype = compute_dtype or next(model.parameters()).dtype
        self.why_full_logits = _why_full_logits(model)

    def forward(self, batch: Batch) -> Nll:
        weights_dtype = self.model.get_input_embeddings().weight.dtype
        autocast = self.compute_dtype == torch.bfloat16 and weights_dtype == torch.float32
        at = torch.nonzero(batch.labels_BT.flatten() != IGNORED)[:, 0]
        target_N = batch.labels_BT.flatten()[at]
        with torch.autocast(batch.ids_BT.device.type, dtype=torch.bfloat16, enabled=autocast):
            if self.why_full_logits is not None:
                logits_BTV = self.model(input_ids=batch.ids_BT, use_cache=False).logits
                logits_NV = logits_BTV.flatten(0, 1).index_select(0, at).float()
                return Nll(nn.functional.cross_entropy(logits_NV, target_N, reduction="sum"), batch.n_trained)
            hidden_BTD = self.model.base_model(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
        hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, at).to(self.compute_dtype)
        head = self.model.get_output_embeddings()
        return Nll(linear_nll(hidden_ND, head.weight, getattr(head, "bias", None), target_N), batch.n_trained)


@torch.no_grad()
def _why_full_logits(model: Any) -> str | None:
    """Ask the model itself on a few ids: does head(trunk(x)) give its logits?"""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return "the head is not one linear layer"
    device = head.weight.device
    ids = torch.arange(3, 11, device=device)[None] % model.config.get_text_config().vocab_size
    was_training = model.training
    model.eval()
    try:
        expected = model(input_ids=ids, use_cache=False).logits
        found = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    finally:
        model.train(was_training)
    # the same products in the same dtype: equal, or another computation
    if expected.shape == found.shape and torch.allclose(expected.float(), found.float(), rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
        return None
    return "the model's forward changes the logits after its head (a soft-cap or a scale)"
