"""Cross-entropy of a linear head without ever holding all logits.

    nll_sum = linear_nll(hidden_ND, head_VD, bias_V, target_N)     # a sum, never a mean

The logits of N tokens over V words are the largest tensor of a small model's training (4,096 x 49,152 floats are 800 MB).
Here the head runs over a few hundred tokens at a time (a few thousand on a GPU); each piece's gradient is made in the forward pass while its logits
are at hand, and the backward pass only scales it. Idea: Wijmans et al. 2024, "Cut Your Losses" (arXiv 2411.09009) and the
chunked losses of Liger; the code is ours.
"""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from tunesmith.kernels.rows import cross_entropy_, is_compiled
from tunesmith.kernels.weight_gradient import add_weight_gradient_, weight_gradient

CHUNK_TOKENS = 256  # rows whose logits, of a 50k vocabulary, stay in the cache of a CPU; see docs/log.md
GPU_CHUNK_BYTES = 1 << 30  # of logits on a GPU, whose products want thousands of rows and which has no cache of such a size to stay in
ROWS_STEP = 32  # the last chunk is filled up to a multiple: a CPU's library compiles bfloat16 products for each number of rows
GRADIENT_TOKENS = (
    1024  # whose logits are kept for one product with the states where the head is trained: each passes over a gradient of all words
)
CACHED_ROWS = 16  # rows of float32 logits that are worked on at a time on a CPU, so that they stay in its cache


def linear_nll_reference(hidden_ND: Tensor, head_VD: Tensor, bias_V: Tensor | None, target_N: Tensor) -> Tensor:
    """Sum over tokens of -log softmax(hidden @ head.T + bias)[target], in float32 after the product."""
    logits_NV = torch.nn.functional.linear(hidden_ND, head_VD, bias_V)
    return torch.nn.functional.cross_entropy(logits_NV.float(), target_N, reduction="sum")


def linear_nll(
    hidden_ND: Tensor, head_VD: Tensor, bias_V: Tensor | None, target_N: Tensor, chunk_tokens: int | None = None
) -> Tensor:  # fmt: skip
    """The same sum, by chunks of tokens; hidden and head are multiplied in hidden's dtype, everything else is float32.

    hidden_ND   states of the positions that are scored
    head_VD     output embeddings in any float dtype; gets a gradient if it requires one (summed in float32)
    target_N    int64, the word after each position
    """
    chunk_tokens = chunk_tokens or tokens_of_chunk(hidden_ND.device.type, len(head_VD) * hidden_ND.element_size())
    result: Tensor = _LinearNll.apply(hidden_ND, head_VD, bias_V, target_N, chunk_tokens)  # type: ignore[no-untyped-call]
    return result


def tokens_of_chunk(device_type: str, row_bytes: int) -> int:
    """How many rows of logits of so many bytes are worked on at a time."""
    return CHUNK_TOKENS if device_type == "cpu" else max(CHUNK_TOKENS, GPU_CHUNK_BYTES // row_bytes // CHUNK_TOKENS * CHUNK_TOKENS)


class _LinearNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, bias_V: Tensor | None, target_N: Tensor, chunk_tokens: int) -> Tensor:
        want_hidden, want_head, want_bias = ctx.needs_input_grad[:3]
        want_any = want_hidden or want_head or want_bias
        weight_VD = head_VD.to(hidden_ND.dtype)
        n_tokens, n_words = len(hidden_ND), len(head_VD)
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        d_head_VD: Tensor | None = torch.zeros_like(head_VD, dtype=torch.float32) if want_head and n_tokens == 0 else None
        d_bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if want_bias and bias_V is not None else None
        # one buffer for the logits of a chunk, one float32 scratch for the few rows that are worked on: no large temporaries
        compiles = hidden_ND.device.type == "cpu" and hidden_ND.dtype == torch.bfloat16
        n_multiplied = -(-n_tokens // ROWS_STEP) * ROWS_STEP if compiles else n_tokens
        d_hidden_ND = hidden_ND.new_empty(n_multiplied, hidden_ND.shape[1]) if want_hidden else None
        one_pass = bias_V is None and is_compiled(hidden_ND)
        n_together = max(1, GRADIENT_TOKENS // chunk_tokens) * chunk_tokens if want_head and one_pass else chunk_tokens
        buffer_CV = hidden_ND.new_empty(min(n_together, n_multiplied), n_words)
        all_at_once = hidden_ND.device.type == "cuda" or isinstance(hidden_ND, FakeTensor)  # a rehearsal (planning/) allows for the scratch
        n_rows = min(chunk_tokens if all_at_once else CACHED_ROWS, len(buffer_CV))
        scratch_RV = torch.empty(0 if one_pass else n_rows, n_words, dtype=torch.float32, device=hidden_ND.device)
        for start in range(0, n_tokens, chunk_tokens):
            hidden_CD = filled_CD = hidden_ND[start : start + chunk_tokens]
            n_filled = min(chunk_tokens, n_multiplied - start)
            if n_filled > len(hidden_CD):
                filled_CD = torch.nn.functional.pad(hidden_CD, (0, 0, 0, n_filled - len(hidden_CD)))
            place = start % n_together
            filled_CV = torch.mm(filled_CD, weight_VD.T, out=buffer_CV[place : place + n_filled])
            logits_CV = filled_CV[: len(hidden_CD)]
            if one_pass:
                total += cross_entropy_(logits_CV, target_N[start : start + len(hidden_CD)], want_any).float()
            for row in () if one_pass else range(0, len(hidden_CD), n_rows):
                slice_RV = logits_CV[row : row + n_rows]
                target_R1 = target_N[start + row : start + row + len(slice_RV), None]
                work_RV = scratch_RV[: len(slice_RV)].copy_(slice_RV)
                if bias_V is not None:
                    work_RV += bias_V
                work_RV -= work_RV.amax(-1, keepdim=True)
                total -= work_RV.gather(1, target_R1).sum()
                sum_R1 = work_RV.exp_().sum(-1, keepdim=True)
                total += sum_R1.log().sum()
                if not want_any:
                    continue
                # d nll / d logits = softmax - one-hot, written over the logits
                work_RV /= sum_R1
                work_RV.scatter_add_(1, target_R1, work_RV.new_full(target_R1.shape, -1.0))
                if d_bias_V is not None:
                    d_bias_V += work_RV.sum(0)
                slice_RV.copy_(work_RV)
            if d_hidden_ND is not None:
                torch.mm(filled_CV, weight_VD, out=d_hidden_ND[start : start + n_filled])
            end = start + len(hidden_CD)
            if want_head and (place + chunk_tokens == n_together or end == n_tokens):
                gathered_GV, states_GD = buffer_CV[: end - start + place], hidden_ND[start - place : end]
                if d_head_VD is None:
                    d_head_VD = weight_gradient(gathered_GV, states_GD)
                else:
                    add_weight_gradient_(d_head_VD, gathered_GV, states_GD)
        ctx.save_for_backward(None if d_hidden_ND is None else d_hidden_ND[:n_tokens], d_head_VD, d_bias_V)
        ctx.dtypes = (head_VD.dtype, bias_V.dtype if bias_V is not None else None)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden_ND, d_head_VD, d_bias_V = ctx.saved_tensors
        scale = upstream[0]
        head_dtype, bias_dtype = ctx.dtypes
        return (
            (d_hidden_ND * scale).to(d_hidden_ND.dtype) if d_hidden_ND is not None else None,
            (d_head_VD * scale).to(head_dtype) if d_head_VD is not None else None,
            (d_bias_V * scale).to(bias_dtype) if d_bias_V is not None else None,
            None,
            None,
        )
