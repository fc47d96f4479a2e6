"""Causal attention within documents that stand side by side, without any copy of their scores in memory.

    out_MHD, lse_HM = causal_attention(query_MHD, key_MGD, value_MGD, starts, scale)
    dq_MHD, dk_MGD, dv_MGD = causal_attention_backward(d_out_MHD, query_MHD, key_MGD, value_MGD, out_MHD, lse_HM, starts, scale)

    starts   0       4     7   9         of each document, and the end of the last:
    tokens   a a a a b b b c c           b sees b alone, and of b what came before
    parents -1      -1     0             c continues a: it sees all of a, then of c what came before

H / G neighbouring heads share a key. On a CPU with AMX, bfloat16 tensors are worked on by compiled C (causal_attention.c) a document and a head
of keys at a time, 32 queries or keys in the cache; scores are computed again in the backward pass. A document that others continue is given
the sum of their gradients in the order of the row: the same bits each time. On a GPU torch's flash attention does it (flash_attention.py) where
no document continues another. Elsewhere the reference: the documents one by one.

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
    query_MHD: Tensor, key_MGD: Tensor, value_MGD: Tensor, starts: Tensor, scale: float, window: int | None = None, parents: Tensor | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """softmax(scale · q kᵀ) v over the tokens of the same document up to each one's own; and the logarithm of each softmax's sum.

    starts    int32 [documents + 1], on the CPU, rising, from 0 to M
    window    tokens that each one sees, itself among them; None: all
    parents   int32 [documents], on the CPU: an earlier document that each continues, which itself continues none; -1: none. None: no one does
    Returns [M, H, D] and [H, M] in float32 at least.
    """
    out_MHD, lse_HM = _causal_attention(query_MHD, key_MGD, value_MGD, starts, parents, scale, window or 0)
    return out_MHD, lse_HM


def _work(
    query_MHD: Tensor, key_MGD: Tensor, value_MGD: Tensor, starts: Tensor, parents: Tensor | None, scale: float, window: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if parents is None and uses_triton(query_MHD.device.type) and flash_attention.suits(query_MHD, key_MGD, value_MGD):
        return flash_attention.forward(query_MHD, key_MGD, value_MGD, starts, scale, window)
    native = fast(query_MHD, key_MGD, value_MGD)
    if native is None:
        return causal_attention_reference(query_MHD, key_MGD, value_MGD, starts, scale, window or None, parents)
    out_MHD, lse_HM = _shapes(query_MHD, key_MGD, value_MGD)
    _, heads, width = query_MHD.shape
    failed = native.library.tunesmith_attention_forward(
        torch.get_num_threads(), starts.data_ptr(), _place(parents), len(starts) - 1, heads, key_MGD.shape[1], width, window, scale,
        *(at for x in (query_MHD, key_MGD, value_MGD, out_MHD) for at in (x.data_ptr(), x.stride(0))), lse_HM.data_ptr(),
    )  # fmt: skip
    _must_have_worked(failed)
    return out_MHD, lse_HM


def _place(parents: Tensor | None) -> int | None:
    return None if parents is None else parents.data_ptr()


def _must_have_worked(failed: int) -> None:
    if failed == 2:
        raise ValueError("a document continues one that is not before it, or that continues another itself")
    if failed:
        raise MemoryError("no memory for the scores of attention")


def _shapes(query_MHD: Tensor, _key_MGD: Tensor, _value_MGD: Tensor, *_rest: object) -> tuple[Tensor, Tensor]:
    lse_HM = query_MHD.new_empty(query_MHD.shape[1], len(query_MHD), dtype=torch.promote_types(query_MHD.dtype, torch.float32))
    return query_MHD.new_empty(query_MHD.shape), lse_HM


_causal_attention = operation(
    "causal_attention(Tensor query, Tensor key, Tensor value, Tensor starts, Tensor? parents, float scale, int window) -> (Tensor, Tensor)",
    _work, _shapes,
)  # fmt: skip


def causal_attention_backward(
    d_out_MHD: Tensor, query_MHD: Tensor, key_MGD: Tensor, value_MGD: Tensor, out_MHD: Tensor, lse_HM: Tensor, starts: Tensor, scale: float,
    window: int | None = None, parents: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of queries, keys and values, each contiguous."""
    dq, dk, dv = _causal_attention_backward(d_out_MHD, query_MHD, key_MGD, value_MGD, out_MHD, lse_HM, starts, parents, scale, window or 0)
    return dq, dk, dv


def _backward_work(
    d_out_MHD: Tensor, query_MHD: Tensor, key_MGD: Tensor, value_MGD: Tensor, out_MHD: Tensor, lse_HM: Tensor, starts: Tensor,
    parents: Tensor | None, scale: float, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    tensors = (query_MHD, key_MGD, value_MGD, out_MHD, d_out_MHD)
    if parents is None and uses_triton(query_MHD.device.type) and flash_attention.suits(*tensors):
        return flash_attention.backward(d_out_MHD, query_MHD, key_MGD, value_MGD, out_MHD, lse_HM, starts, scale, window)
    native = fast(*tensors)
    if native is None:
        return causal_attention_backward_reference(d_out_MHD, query_MHD, key_MGD, value_MGD, starts, scale, window or None, parents)
    gradients = _backward_shapes(d_out_MHD, query_MHD, key_MGD, value_MGD)
    _, heads, width = query_MHD.shape
    failed = native.library.tunesmith_attention_backward(
        torch.get_num_threads(), starts.data_ptr(), _place(parents), len(starts) - 1, heads, key_MGD.shape[1], width, window, scale,
        *(at for x in tensors for at in (x.data_ptr(), x.stride(0))), lse_HM.data_ptr(),
        *(at for x in gradients for at in (x.data_ptr(), x.stride(0))),
    )  # fmt: skip
    _must_have_worked(failed)
    return gradients


def _backward_shapes(
    d_out_MHD: Tensor, query_MHD: Tensor, key_MGD: Tensor, value_MGD: Tensor, *_rest: object
) -> tuple[Tensor, Tensor, Tensor]:
    return query_MHD.new_empty(query_MHD.shape), key_MGD.new_empty(key_MGD.shape), value_MGD.new_empty(value_MGD.shape)


_causal_attention_backward = operation(
    "causal_attention_backward(Tensor d_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, Tensor starts, Tensor? parents,"
    " float scale, int window) -> (Tensor, Tensor, Tensor)",
    _backward_work, _backward_shapes,
)  # fmt: skip


def causal_attention_reference(
    query_MHD: Tensor, key_MGD: Tensor, value_MGD: Tensor, starts: Tensor, scale: float, window: int | None, parents: Tensor | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    answers, sums = [], []
    documents = documents_of(starts)
    for part, parent in zip(documents, [-1] * len(documents) if parents is None else parents.tolist(), strict=True):
        key_LGD, value_LGD = ([x[documents[parent]], x[part]] if parent >= 0 else [x[part]] for x in (key_MGD, value_MGD))
        share_HLK, lse_HL = _shares(query_MHD[part], torch.cat(key_LGD), scale, window)
        value_HKD = _of_each_head(torch.cat(value_LGD), query_MHD.shape[1])
        answers.append((share_HLK.to(value_HKD.dtype) @ value_HKD).transpose(0, 1))
        sums.append(lse_HL)
    return torch.cat(answers), torch.cat(sums, 1)


def causal_attention_backward_reference(
    d_out_MHD: Tensor, query_MHD: Tensor, key_MGD: Tensor, value_MGD: Tensor, starts: Tensor, scale: float, window: int | None,
    parents: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What autograd says of the reference."""
    leaves = [x.detach().requires_grad_() for x in (query_MHD, key_MGD, value_MGD)]
    with torch.enable_grad():
        out_MHD, _ = causal_attention_reference(leaves[0], leaves[1], leaves[2], starts, scale, window, parents)
    dq, dk, dv = torch.autograd.grad(out_MHD, leaves, d_out_MHD)
    return dq, dk, dv


def documents_of(starts: Tensor) -> list[slice]:
    return [slice(start, end) for start, end in pairwise(starts.tolist())]


def _shares(query_LHD: Tensor, key_KGD: Tensor, scale: float, window: int | None) -> tuple[Tensor, Tensor]:
    """Softmax over what each query sees, [H, L, K], and the logarithm of its sum; float32 at least. The queries are the last L of K tokens."""
    key_HKD = _of_each_head(key_KGD, query_LHD.shape[1])
    wide = torch.promote_types(query_LHD.dtype, torch.float32)
    scores_HLK = (query_LHD.transpose(0, 1) @ key_HKD.transpose(1, 2)).to(wide) * scale
    n, n_before = len(query_LHD), len(key_KGD) - len(query_LHD)
    sees_LK = torch.ones(n, len(key_KGD), dtype=torch.bool, device=query_LHD.device).tril(n_before)
    if window is not None:
        sees_LK = sees_LK.triu(n_before + 1 - window)
    scores_HLK = scores_HLK.masked_fill(~sees_LK, -torch.inf)
    return torch.softmax(scores_HLK, -1), torch.logsumexp(scores_HLK, -1)


def _of_each_head(x_LGD: Tensor, n_heads: int) -> Tensor:
    return x_LGD.transpose(0, 1).repeat_interleave(n_heads // x_LGD.shape[1], 0)
