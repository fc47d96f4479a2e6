"""Causal attention within documents that stand side by side, without any copy of their scores in memory.

    out_MHD, lse_HM = causal_attention(query_MHD, key_MGD, value_MGD, starts, scale)
    dq_MHD, dk_MGD, dv_MGD = causal_attention_backward(d_out_MHD, query_MHD, key_MGD, value_MGD, out_MHD, lse_HM, starts, scale)

    starts   0      4        7   9         of each document, and the end of the last:
    tokens   a a a a b b b   c c           b sees b alone, and of b what came before

H / G neighbouring heads share a key. On a CPU with AMX, bfloat16 tensors are worked on by compiled C (causal_attention.c) a document and a head
of keys at a time, 32 queries or keys in the cache; scores are computed again in the backward pass. On a GPU torch's flash attention does it
(flash_attention.py). Elsewhere the reference: the documents one by one.

Sources: Dao et al. 2022, FlashAttention (arXiv 2205.14135), algorithms 1 and 4; Ainslie et al. 2023 (arXiv 2305.13245) for shared keys.
"""

from itertools import pairwise

import torch
from torch import Tensor

from tunesmith.kernels import flash_attention
from tunesmith.kernels.native import Compiled, compiled, uses_triton
from tunesmith.kernels.operations import operation


def is_fast(head_width: int, device_type: str = "cpu") -> bool:
    """Whether bfloat16 heads of this width are worked on by compiled C, or on a GPU by flash attention beside Triton's row operations."""
    if uses_triton(device_type):
        return device_type == "cpu" or flash_attention.is_at_hand(head_width)  # "cpu": Triton's interpreter, in tests
    native = compiled() if device_type == "cpu" else None
    return native is not None and native.has_amx and head_width % 16 == 0


def fast(query_MHD: Tensor, *others: Tensor) -> Compiled | None:
    """The compiled library, where it can do this."""
    suits = all(
        t.device.type == "cpu" and t.dtype == torch.bfloat16 and t.stride(-1) == 1 and t.stride(-2) == t.shape[-1]
        for t in (query_MHD, *others)
    )
    native = compiled() if suits and query_MHD.shape[-1] % 16 == 0 else None
    return native if native is not None and native.has_amx else None


def causal_attention(
    query_MHD: Tensor, key_MGD: Tensor, value_MGD: Tensor, starts: Tensor, scale: float, window: int | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(scale · q kᵀ) v over the tokens of the same document up to each one's own; and the logarithm of each softmax's sum.

    starts   int32 [documents + 1], on the CPU, rising, from 0 to M
    window   tokens that each one sees, itself among them; None: all
    Returns [M, H, D] and [H, M] in float32 at least.
    """
    out_MHD, lse_HM = _causal_attention(query_MHD, key_MGD, value_MGD, starts, scale, window or 0)
    return out_MHD, lse_HM


def _work(query_MHD: Tensor, key_MGD: Tensor, value_MGD: Tensor, starts: Tensor, scale: float, window: int) -> tuple[Tensor, Tensor]:
    if uses_triton(query_MHD.device.type) and flash_attention.suits(query_MHD, key_MGD, value_MGD):
        return flash_attention.forward(query_MHD, key_MGD, value_MGD, starts, scale, window)
    native = fast(query_MHD, key_MGD, value_MGD)
    if native is None:
        return causal_attention_reference(query_MHD, key_MGD, value_MGD, starts, scale, window or None)
    out_MHD, lse_HM = _shapes(query_MHD, key_MGD, value_MGD, starts, scale, window)
    _, heads, width = query_MHD.shape
    failed = native.library.tunesmith_attention_forward(
        torch.get_num_threads(), starts.data_ptr(), len(starts) - 1, heads, key_MGD.shape[1], width, window, scale,
        *(at for x in (query_MHD, key_MGD, value_MGD, out_MHD) for at in (x.data_ptr(), x.stride(0))), lse_HM.data_ptr(),
    )  # fmt: skip
    if failed:
        raise MemoryError("no memory for the scores of attention")
    return out_MHD, lse_HM


def _shapes(query_MHD: Tensor, key_MGD: Tensor, value_MGD: Tensor, starts: Tensor, scale: float, window: int) -> tuple[Tensor, Tensor]:
    lse_HM = query_MHD.new_empty(query_MHD.shape[1], len(query_MHD), dtype=torch.promote_types(query_MHD.dtype, torch.float32))
    return query_MHD.new_empty(query_MHD.shape), lse_HM


_causal_attention = operation(
    "causal_attention(Tensor query, Tensor key, Tensor value, Tensor starts, float scale, int window) -> (Tensor, Tensor)", _work, _shapes
)


def causal_attention_backward(
    d_out_MHD: Tensor, query_MHD: Tensor, key_MGD: Tensor, value_MGD: Tensor, out_MHD: Tensor, lse_HM: Tensor, starts: Tensor, scale: float,
    window: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of queries, keys and values, each contiguous."""
    dq, dk, dv = _causal_attention_backward(d_out_MHD, query_MHD, key_MGD, value_MGD, out_MHD, lse_HM, starts, scale, window or 0)
    return dq, dk, dv


def _backward_work(
    d_out_MHD: Tensor, query_MHD: Tensor, key_MGD: Tensor, value_MGD: Tensor, out_MHD: Tensor, lse_HM: Tensor, starts: Tensor, scale: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    tensors = (query_MHD, key_MGD, value_MGD, out_MHD, d_out_MHD)
    if uses_triton(query_MHD.device.type) and flash_attention.suits(*tensors):
        return flash_attention.backward(d_out_MHD, query_MHD, key_MGD, value_MGD, out_MHD, lse_HM, starts, scale, window)
    native = fast(*tensors)
    if native is None:
        return causal_attention_backward_reference(d_out_MHD, query_MHD, key_MGD, value_MGD, starts, scale, window or None)
    gradients = _backward_shapes(d_out_MHD, query_MHD, key_MGD, value_MGD)
    _, heads, width = query_MHD.shape
    failed = native.library.tunesmith_attention_backward(
        torch.get_num_threads(), starts.data_ptr(), len(starts) - 1, heads, key_MGD.shape[1], width, window, scale,
        *(at for x in tensors for at in (x.data_ptr(), x.stride(0))), lse_HM.data_ptr(),
        *(at for x in gradients for at in (x.data_ptr(), x.stride(0))),
    )  # fmt: skip
    if failed:
        raise MemoryError("no memory for the scores of attention")
    return gradients


def _backward_shapes(
    d_out_MHD: Tensor, query_MHD: Tensor, key_MGD: Tensor, value_MGD: Tensor, *_rest: object
) -> tuple[Tensor, Tensor, Tensor]:
    return query_MHD.new_empty(query_MHD.shape), key_MGD.new_empty(key_MGD.shape), value_MGD.new_empty(value_MGD.shape)


_causal_attention_backward = operation(
    "causal_attention_backward(Tensor d_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, Tensor starts, float scale, int window)"
    " -> (Tensor, Tensor, Tensor)",
    _backward_work, _backward_shapes,
)  # fmt: skip


def causal_attention_reference(
    query_MHD: Tensor, key_MGD: Tensor, value_MGD: Tensor, starts: Tensor, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    answers, sums = [], []
    for part in documents_of(starts):
        share_HLL, lse_HL = _shares(query_MHD[part], key_MGD[part], scale, window)
        value_HLD = _of_each_head(value_MGD[part], query_MHD.shape[1])
        answers.append((share_HLL.to(value_HLD.dtype) @ value_HLD).transpose(0, 1))
        sums.append(lse_HL)
    return torch.cat(answers), torch.cat(sums, 1)


def causal_attention_backward_reference(
    d_out_MHD: Tensor, query_MHD: Tensor, key_MGD: Tensor, value_MGD: Tensor, starts: Tensor, scale: float, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What autograd says of the reference."""
    leaves = [x.detach().requires_grad_() for x in (query_MHD, key_MGD, value_MGD)]
    with torch.enable_grad():
        out_MHD, _ = causal_attention_reference(leaves[0], leaves[1], leaves[2], starts, scale, window)
    dq, dk, dv = torch.autograd.grad(out_MHD, leaves, d_out_MHD)
    return dq, dk, dv


def documents_of(starts: Tensor) -> list[slice]:
    return [slice(start, end) for start, end in pairwise(starts.tolist())]


def _shares(query_LHD: Tensor, key_LGD: Tensor, scale: float, window: int | None) -> tuple[Tensor, Tensor]:
    """Softmax over what each query sees, [H, L, L], and the logarithm of its sum; float32 at least."""
    key_HLD = _of_each_head(key_LGD, query_LHD.shape[1])
    wide = torch.promote_types(query_LHD.dtype, torch.float32)
    scores_HLL = (query_LHD.transpose(0, 1) @ key_HLD.transpose(1, 2)).to(wide) * scale
    n = len(query_LHD)
    sees_LL = torch.ones(n, n, dtype=torch.bool, device=query_LHD.device).tril()
    if window is not None:
        sees_LL = sees_LL.triu(1 - window)
    scores_HLL = scores_HLL.masked_fill(~sees_LL, -torch.inf)
    return torch.softmax(scores_HLL, -1), torch.logsumexp(scores_HLL, -1)


def _of_each_head(x_LGD: Tensor, n_heads: int) -> Tensor:
    return x_LGD.transpose(0, 1).repeat_interleave(n_heads // x_LGD.shape[1], 0)
