"""What a trunk does between its matrix products, a row at a time: norms, rotary positions, gated activations, dropout, cross-entropy.

    y_MD, inverse_M, _ = rmsnorm(x_MD, weight_D, 1e-5)
    y_MD, inverse_M, sum_MD = rmsnorm(x_MD, weight_D, 1e-5, added_MD=residual_MD)       # of x + residual, in one pass
    y_MD, inverse_M, sum_MD = rmsnorm(x_MD, weight_D, 1e-5, added_MD=out_MD, narrow=True)   # x and the sum in float32, y and out in bfloat16
    rotate_(query_MHD, cos_MR, sin_MR)                                                  # in place
    y_MF = gate("silu", gate_MF, up_MF)                                                 # silu(gate) * up
    y_MK = dropout(x_MK, 0.1, seed=7)                                                   # its own gradient: a function of seed and place
    nll = cross_entropy_(logits_NV, target_N, gradient=True)                            # logits become softmax - one-hot

In torch each of these is several passes over memory, each with a tensor of its own; here it is one. On a CPU bfloat16 tensors are worked on
by compiled C (rows.c, found by native.py), on a GPU all but float64 by Triton (rows_triton.py), everything else by the references below. All
compute in float32 at least; C and Triton round once at the end, so their error is no larger than the reference's own in bfloat16.

Sources: RMSNorm: Zhang & Sennrich 2019 (arXiv 1910.07467), equation 4; rotary positions: Su et al. 2021 (arXiv 2104.09864), section 3.4.2, in
the form of transformers (halves, not neighbours); gated activations: Shazeer 2020 (arXiv 2002.05202), equation 6; noise from counters instead
of a generator's state: Salmon et al. 2011 (doi 10.1145/2063384.2063405), here with the finalisers of splitmix64 and Wellons' lowbias32.
"""

import importlib
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunesmith.kernels.blocks_4bit import n_threads
from tunesmith.kernels.native import Compiled, compiled, uses_triton
from tunesmith.kernels.operations import operation

Activation = Literal["silu", "gelu_tanh"]
KINDS: tuple[Activation, ...] = ("silu", "gelu_tanh")  # by the number that the library knows them by
NARROW = (torch.float32, torch.bfloat16, torch.float16)  # what Triton's way is for


def fast(*tensors: Tensor | None, among: tuple[torch.dtype, ...] = (torch.bfloat16,)) -> Compiled | None:
    """The compiled library, where all tensors are of such a dtype, on the CPU, with neighbouring numbers in their last dimension."""
    held = [tensor for tensor in tensors if tensor is not None]
    suits = all(t.device.type == "cpu" and t.dtype in among and (t.ndim == 0 or t.stride(-1) == 1) for t in held)
    return compiled() if suits else None


EITHER = (torch.bfloat16, torch.float32)


def on_gpu(*tensors: Tensor | None) -> Any:
    """Triton's way, where all tensors are on a GPU, of at most 32 bits, with neighbouring numbers in their last dimension; otherwise None."""
    held = [tensor for tensor in tensors if tensor is not None]
    suits = all(t.dtype in NARROW and (t.ndim == 0 or t.stride(-1) == 1) and t.device == held[0].device for t in held)
    return importlib.import_module("tunesmith.kernels.rows_triton") if suits and uses_triton(held[0].device.type) else None


def is_compiled(tensor: Tensor) -> bool:
    """Whether operations on such a tensor are compiled, by whichever compiler: also of one that only has a shape."""
    if tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16 and compiled() is not None:
        return True
    return on_gpu(tensor) is not None


def _there(tensor: Tensor) -> Any:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _in_place(*_arguments: object) -> None:
    """What an operation without an answer makes of shapes."""


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


# --- RMSNorm --------------------------------------------------------------------------------------------------------------


def rmsnorm(
    x_MD: Tensor, weight_D: Tensor, epsilon: float, offset: float = 0.0, added_MD: Tensor | None = None, narrow: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """(x + added) / root mean square * (offset + weight); also 1 / root mean square, float32 [M], and x + added itself (x if nothing is added).

    offset   1 for families that keep weight - 1 (Gemma)
    narrow   y in bfloat16, of x in float32: a sum of many layers that is kept wide, and products that are not
    """
    y_MD, inverse_M, sum_MD = _rmsnorm(x_MD, weight_D, epsilon, offset, added_MD, narrow)
    return y_MD, inverse_M, x_MD if added_MD is None else sum_MD


def _rmsnorm_work(
    x_MD: Tensor, weight_D: Tensor, epsilon: float, offset: float, added_MD: Tensor | None, narrow: bool
) -> tuple[Tensor, Tensor, Tensor]:
    native = _fast_norm(x_MD, weight_D, added_MD) if narrow == (x_MD.dtype == torch.float32) else None
    triton = on_gpu(x_MD, weight_D, added_MD)
    nothing = x_MD.new_empty(0)
    if native is None and triton is None:
        sum_MD = x_MD if added_MD is None else x_MD + added_MD
        y_MD, inverse_M = rmsnorm_reference(sum_MD, weight_D, epsilon, offset)
        return y_MD.bfloat16() if narrow else y_MD, inverse_M, nothing if added_MD is None else sum_MD
    x_MD, added_MD = x_MD.contiguous(), None if added_MD is None else added_MD.contiguous()
    y_MD, inverse_M, sum_MD = _rmsnorm_shapes(x_MD, weight_D, epsilon, offset, added_MD, narrow)
    if native is None:
        with _there(x_MD):
            triton.rmsnorm_triton(x_MD, weight_D, epsilon, offset, added_MD, y_MD, inverse_M, sum_MD)
        return y_MD, inverse_M, sum_MD
    n, width = x_MD.shape
    native.library.tunesmith_rmsnorm(
        native.path, n_threads(x_MD), n, width, epsilon, offset, narrow, weight_D.dtype == torch.float32, x_MD.data_ptr(), _address(added_MD),
        _address(None if added_MD is None else sum_MD), weight_D.data_ptr(), y_MD.data_ptr(), inverse_M.data_ptr(),
    )  # fmt: skip
    return y_MD, inverse_M, sum_MD


def _fast_norm(x_MD: Tensor, weight_D: Tensor, *narrow: Tensor | None) -> Compiled | None:
    """Of float32 with a float32 weight, or of bfloat16 with a weight of either kind; what else takes part is bfloat16."""
    together = x_MD.dtype == torch.bfloat16 or weight_D.dtype == torch.float32
    return fast(x_MD, weight_D, among=EITHER) if together and fast(*narrow) is not None else None


def _rmsnorm_shapes(
    x_MD: Tensor, weight_D: Tensor, epsilon: float, offset: float, added_MD: Tensor | None, narrow: bool
) -> tuple[Tensor, Tensor, Tensor]:
    new = x_MD.new_empty(x_MD.shape, dtype=torch.bfloat16 if narrow else x_MD.dtype)
    sum_MD = x_MD.new_empty(0 if added_MD is None else x_MD.shape)
    return new, x_MD.new_empty(len(x_MD), dtype=torch.promote_types(x_MD.dtype, torch.float32)), sum_MD


_rmsnorm = operation(
    "rmsnorm(Tensor x, Tensor weight, float epsilon, float offset, Tensor? added, bool narrow) -> (Tensor, Tensor, Tensor)",
    _rmsnorm_work, _rmsnorm_shapes,
)  # fmt: skip


def rmsnorm_reference(x_MD: Tensor, weight_D: Tensor, epsilon: float, offset: float) -> tuple[Tensor, Tensor]:
    """As transformers has it: rounded to x's dtype before the weight, unless there is an offset."""
    wide_MD = x_MD.to(torch.promote_types(x_MD.dtype, torch.float32))
    inverse_M = torch.rsqrt(wide_MD.square().mean(-1) + epsilon)
    normal_MD = wide_MD * inverse_M[:, None]
    y_MD = normal_MD * (offset + weight_D.to(wide_MD.dtype)) if offset else weight_D * normal_MD.to(x_MD.dtype)
    return y_MD.to(x_MD.dtype), inverse_M


def rmsnorm_backward(
    dy_MD: Tensor, x_MD: Tensor, inverse_M: Tensor, weight_D: Tensor, offset: float = 0.0, added_MD: Tensor | None = None,
    wants_weight: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Gradients of what was normed, in its dtype, plus `added` (what reaches it by other ways), and of the weight, float32 [D] (None unless wanted)."""
    dx_MD, d_weight_D = _rmsnorm_backward(dy_MD, x_MD, inverse_M, weight_D, offset, added_MD, wants_weight)
    return dx_MD, d_weight_D if wants_weight else None


def _rmsnorm_backward_work(
    dy_MD: Tensor, x_MD: Tensor, inverse_M: Tensor, weight_D: Tensor, offset: float, added_MD: Tensor | None, wants_weight: bool
) -> tuple[Tensor, Tensor]:
    native = _fast_norm(x_MD, weight_D, dy_MD) if added_MD is None or added_MD.dtype == x_MD.dtype else None
    triton = on_gpu(dy_MD, x_MD, weight_D, added_MD)
    if native is None and triton is None:
        return rmsnorm_backward_reference(dy_MD, x_MD, inverse_M, weight_D, offset, added_MD, wants_weight)
    dy_MD, x_MD, added_MD = dy_MD.contiguous(), x_MD.contiguous(), None if added_MD is None else added_MD.contiguous()
    dx_MD = torch.empty_like(x_MD)
    if native is None:
        with _there(x_MD):
            return dx_MD, triton.rmsnorm_backward_triton(dy_MD, x_MD, inverse_M, weight_D, offset, added_MD, dx_MD, wants_weight)
    n, width = x_MD.shape
    threads = n_threads(x_MD)
    parts = torch.zeros(threads if wants_weight else 0, width, dtype=torch.float32)
    native.library.tunesmith_rmsnorm_back(
        native.path, threads, n, width, offset, x_MD.dtype == torch.float32, weight_D.dtype == torch.float32, dy_MD.data_ptr(), x_MD.data_ptr(),
        inverse_M.data_ptr(), weight_D.data_ptr(), _address(added_MD), dx_MD.data_ptr(), _address(parts if wants_weight else None),
    )  # fmt: skip
    return dx_MD, parts.sum(0)


def _rmsnorm_backward_shapes(
    dy_MD: Tensor, x_MD: Tensor, inverse_M: Tensor, weight_D: Tensor, offset: float, added_MD: Tensor | None, wants_weight: bool
) -> tuple[Tensor, Tensor]:
    return x_MD.new_empty(x_MD.shape), inverse_M.new_empty(weight_D.shape)


_rmsnorm_backward = operation(
    "rmsnorm_backward(Tensor dy, Tensor x, Tensor inverse, Tensor weight, float offset, Tensor? added, bool wants_weight) -> (Tensor, Tensor)",
    _rmsnorm_backward_work, _rmsnorm_backward_shapes,
)  # fmt: skip


def rmsnorm_backward_reference(
    dy_MD: Tensor, x_MD: Tensor, inverse_M: Tensor, weight_D: Tensor, offset: float, added_MD: Tensor | None, wants_weight: bool
) -> tuple[Tensor, Tensor]:
    """dx = (g - x̂ mean(g x̂)) / rms with g = dy (offset + weight), x̂ = x / rms; d weight = sum over rows of dy x̂."""
    wide = torch.promote_types(x_MD.dtype, torch.float32)
    normal_MD = x_MD.to(wide) * inverse_M[:, None]
    g_MD = dy_MD.to(wide) * (offset + weight_D.to(wide))
    dx_MD = (g_MD - normal_MD * (g_MD * normal_MD).mean(-1, keepdim=True)) * inverse_M[:, None]
    if added_MD is not None:
        dx_MD = dx_MD + added_MD
    return dx_MD.to(x_MD.dtype), (dy_MD.to(wide) * normal_MD).sum(0) if wants_weight else normal_MD.new_zeros(x_MD.shape[1])


# --- rotary positions -----------------------------------------------------------------------------------------------------


def rotate_(x_MHD: Tensor, cos_MR: Tensor, sin_MR: Tensor, back: bool = False) -> Tensor:
    """The first R numbers of each head turned in place: halves (a, b) become (a cos - b sin, b cos + a sin); `back`: its gradient.

    cos_MR, sin_MR   of each token, as a model's rotary embedding makes them: [M, R], each half of R numbers for one half of the head; also in
                     float32 for bfloat16 heads
    """
    _rotate(x_MHD, cos_MR, sin_MR, back)
    return x_MHD


def _rotate_work(x_MHD: Tensor, cos_MR: Tensor, sin_MR: Tensor, back: bool) -> None:
    native = fast(cos_MR, sin_MR, among=(cos_MR.dtype,)) if fast(x_MHD) is not None and cos_MR.dtype in EITHER else None
    triton = on_gpu(x_MHD, cos_MR, sin_MR)
    if (native is None and triton is None) or x_MHD.stride(1) != x_MHD.shape[2]:
        x_MHD.copy_(rotate_reference(x_MHD, cos_MR, sin_MR, back))
        return
    cos_MR, sin_MR = cos_MR.contiguous(), sin_MR.contiguous()
    if native is None:
        with _there(x_MHD):
            triton.rotate_triton_(x_MHD, cos_MR, sin_MR, back)
        torch.autograd.graph.increment_version(x_MHD)
        return
    n, heads, width = x_MHD.shape
    native.library.tunesmith_rotary(
        native.path, n_threads(x_MHD), n, heads, width, cos_MR.shape[1], x_MHD.stride(0), x_MHD.data_ptr(), cos_MR.data_ptr(), sin_MR.data_ptr(),
        cos_MR.dtype == torch.float32, -1.0 if back else 1.0,
    )  # fmt: skip
    torch.autograd.graph.increment_version(x_MHD)


_rotate = operation("rotate_(Tensor(a!) x, Tensor cos, Tensor sin, bool back) -> ()", _rotate_work, _in_place)


def rotate_reference(x_MHD: Tensor, cos_MR: Tensor, sin_MR: Tensor, back: bool = False) -> Tensor:
    turned, rest = x_MHD.tensor_split([cos_MR.shape[1]], -1)
    cos, sin = cos_MR[:, None], sin_MR[:, None]

    def half_turn(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat([-second, first], -1)

    answer = turned * cos - half_turn(turned * sin) if back else turned * cos + half_turn(turned) * sin
    return torch.cat([answer, rest], -1)


# --- gated activation -----------------------------------------------------------------------------------------------------


def gate(kind: Activation, gate_MF: Tensor, up_MF: Tensor) -> Tensor:
    """activation(gate) * up."""
    y_MF: Tensor = _gate(KINDS.index(kind), gate_MF, up_MF)
    return y_MF


def _gate_work(kind: int, gate_MF: Tensor, up_MF: Tensor) -> Tensor:
    if (triton := on_gpu(gate_MF, up_MF)) is not None:
        y_MF = _gate_shapes(kind, gate_MF, up_MF)
        with _there(y_MF):
            triton.gate_triton(KINDS[kind] == "gelu_tanh", gate_MF, up_MF, y_MF)
        return y_MF
    native = fast(gate_MF, up_MF)
    if native is None or gate_MF.stride(0) != up_MF.stride(0):
        return gate_reference(KINDS[kind], gate_MF, up_MF)
    y_MF = _gate_shapes(kind, gate_MF, up_MF)
    n, width = gate_MF.shape
    native.library.tunesmith_gate(
        native.path, n_threads(gate_MF), kind, n, width, gate_MF.stride(0), gate_MF.data_ptr(), up_MF.data_ptr(), y_MF.data_ptr()
    )
    return y_MF


def _gate_shapes(kind: int, gate_MF: Tensor, up_MF: Tensor) -> Tensor:
    return gate_MF.new_empty(gate_MF.shape)


_gate = operation("gate(int kind, Tensor gate, Tensor up) -> Tensor", _gate_work, _gate_shapes)


def gate_reference(kind: Activation, gate_MF: Tensor, up_MF: Tensor) -> Tensor:
    return _activated(kind, gate_MF) * up_MF


def _activated(kind: Activation, x: Tensor) -> Tensor:
    return torch.nn.functional.silu(x) if kind == "silu" else torch.nn.functional.gelu(x, approximate="tanh")


def gate_backward_(kind: Activation, dy_MF: Tensor, gate_MF: Tensor, up_MF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """activation(gate) * up once more, in the memory of dy, whose contents are lost; d gate and d up."""
    d_gate_MF, d_up_MF = _gate_backward(KINDS.index(kind), dy_MF, gate_MF, up_MF)
    return dy_MF, d_gate_MF, d_up_MF


def _gate_backward_work(kind: int, dy_MF: Tensor, gate_MF: Tensor, up_MF: Tensor) -> tuple[Tensor, Tensor]:
    if (triton := on_gpu(dy_MF, gate_MF, up_MF)) is not None and dy_MF.is_contiguous():
        d_gate_MF, d_up_MF = _gate_backward_shapes(kind, dy_MF, gate_MF, up_MF)
        with _there(dy_MF):
            triton.gate_backward_triton_(KINDS[kind] == "gelu_tanh", dy_MF, gate_MF, up_MF, d_gate_MF, d_up_MF)
        torch.autograd.graph.increment_version(dy_MF)
        return d_gate_MF, d_up_MF
    native = fast(dy_MF, gate_MF, up_MF)
    if native is None or gate_MF.stride(0) != up_MF.stride(0) or not dy_MF.is_contiguous():
        y_MF, d_gate_MF, d_up_MF = gate_backward_reference(KINDS[kind], dy_MF, gate_MF, up_MF)
        dy_MF.copy_(y_MF)
        return d_gate_MF, d_up_MF
    d_gate_MF, d_up_MF = _gate_backward_shapes(kind, dy_MF, gate_MF, up_MF)
    n, width = gate_MF.shape
    native.library.tunesmith_gate_back(
        native.path,
        n_threads(gate_MF),
        kind,
        n,
        width,
        gate_MF.stride(0),
        *(x.data_ptr() for x in (dy_MF, gate_MF, up_MF, d_gate_MF, d_up_MF)),
    )
    torch.autograd.graph.increment_version(dy_MF)
    return d_gate_MF, d_up_MF


def _gate_backward_shapes(kind: int, dy_MF: Tensor, gate_MF: Tensor, up_MF: Tensor) -> tuple[Tensor, Tensor]:
    return dy_MF.new_empty(dy_MF.shape), dy_MF.new_empty(dy_MF.shape)


_gate_backward = operation(
    "gate_backward_(int kind, Tensor(a!) dy, Tensor gate, Tensor up) -> (Tensor, Tensor)", _gate_backward_work, _gate_backward_shapes
)


def gate_backward_reference(kind: Activation, dy_MF: Tensor, gate_MF: Tensor, up_MF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    value_MF, d_value_MF = _activated(kind, gate_MF), dy_MF * up_MF
    if kind == "silu":
        d_gate_MF = torch.ops.aten.silu_backward(d_value_MF, gate_MF)
    else:
        d_gate_MF = torch.ops.aten.gelu_backward(d_value_MF, gate_MF, approximate="tanh")
    return value_MF * up_MF, d_gate_MF, dy_MF * value_MF


# --- dropout --------------------------------------------------------------------------------------------------------------


def dropout(x_MK: Tensor, probability: float, seed: int, onto_MK: Tensor | None = None) -> Tensor:
    """x with each number zero with this probability and otherwise divided by 1 - probability; plus `onto`.

    seed   from 0 to 2**63 - 1. Noise is a function of seed, row and column alone: the same call on a gradient is the backward pass
    """
    y_MK: Tensor = _dropout(x_MK, probability, seed, onto_MK)
    return y_MK


def _dropout_work(x_MK: Tensor, probability: float, seed: int, onto_MK: Tensor | None) -> Tensor:
    native = fast(x_MK, onto_MK)
    if native is None:
        return dropout_reference(x_MK, probability, seed, onto_MK)
    x_MK, onto_MK = x_MK.contiguous(), None if onto_MK is None else onto_MK.contiguous()
    y_MK = _dropout_shapes(x_MK)
    native.library.tunesmith_dropout(
        native.path, n_threads(x_MK), *x_MK.shape, seed, round(probability * 2**32), 1 / (1 - probability), x_MK.data_ptr(), _address(onto_MK),
        y_MK.data_ptr(),
    )  # fmt: skip
    return y_MK


def _dropout_shapes(x_MK: Tensor, *_rest: object) -> Tensor:
    return x_MK.new_empty(x_MK.shape)


_dropout = operation("dropout(Tensor x, float probability, int seed, Tensor? onto) -> Tensor", _dropout_work, _dropout_shapes)


def dropout_reference(x_MK: Tensor, probability: float, seed: int, onto_MK: Tensor | None = None) -> Tensor:
    stays_MK = torch.from_numpy(_hashes(seed, *x_MK.shape) >= round(probability * 2**32)).to(x_MK.device)
    y_MK = torch.where(stays_MK, x_MK / (1 - probability), 0)
    return y_MK if onto_MK is None else onto_MK + y_MK


def _hashes(seed: int, n_rows: int, n_columns: int) -> NDArray[np.uint32]:
    """uint32 [M, K], as good as drawn."""
    key_M = np.uint64(seed) + np.arange(1, n_rows + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    key_M = (key_M ^ (key_M >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key_M = (key_M ^ (key_M >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    key_M = (key_M ^ (key_M >> np.uint64(31))).astype(np.uint32)
    hash_MK: NDArray[np.uint32] = (np.arange(n_columns, dtype=np.uint32) * np.uint32(0x9E3779B9)) ^ key_M[:, None]
    hash_MK = (hash_MK ^ (hash_MK >> np.uint32(16))) * np.uint32(0x7FEB352D)
    hash_MK = (hash_MK ^ (hash_MK >> np.uint32(15))) * np.uint32(0x846CA68B)
    hash_MK ^= hash_MK >> np.uint32(16)
    return hash_MK


# --- cross-entropy --------------------------------------------------------------------------------------------------------


def cross_entropy_(logits_NV: Tensor, target_N: Tensor, gradient: bool) -> Tensor:
    """Sum over rows of -log softmax(logits)[target], float64; with `gradient` the logits become softmax - one-hot, in place.

    A target that is none of the words is an error; on a GPU, where asking would mean waiting, the sum is NaN then.
    """
    nll: Tensor = _cross_entropy(logits_NV, target_N, gradient)
    return nll


def _cross_entropy_work(logits_NV: Tensor, target_N: Tensor, gradient: bool) -> Tensor:
    if (triton := on_gpu(logits_NV)) is not None and logits_NV.is_contiguous():
        with _there(logits_NV):
            nll: Tensor = triton.cross_entropy_triton_(logits_NV, target_N.contiguous(), gradient)
        torch.autograd.graph.increment_version(logits_NV)
        return nll
    native = fast(logits_NV)
    if native is None or not logits_NV.is_contiguous():
        return cross_entropy_reference_(logits_NV, target_N, gradient)
    n, n_words = logits_NV.shape
    if n and not 0 <= int(target_N.min()) <= int(target_N.max()) < n_words:
        raise IndexError(f"a target is none of {n_words} words")
    nll_N = torch.empty(n, dtype=torch.float64)
    if native.library.tunesmith_cross_entropy(
        native.path, n_threads(logits_NV), n, n_words, logits_NV.data_ptr(), target_N.contiguous().data_ptr(), gradient, nll_N.data_ptr()
    ):
        raise MemoryError("no memory for the rows of the loss")
    torch.autograd.graph.increment_version(logits_NV)
    return nll_N.sum()


def cross_entropy_reference_(logits_NV: Tensor, target_N: Tensor, gradient: bool) -> Tensor:
    wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    log_share_NV = torch.log_softmax(wide_NV, -1)
    nll = -log_share_NV.gather(1, target_N[:, None]).double().sum()
    if gradient:
        share_NV = log_share_NV.exp()
        share_NV.scatter_add_(1, target_N[:, None], share_NV.new_full((len(target_N), 1), -1.0))
        logits_NV.copy_(share_NV)
    return nll


_cross_entropy = operation(
    "cross_entropy_(Tensor(a!) logits, Tensor target, bool gradient) -> Tensor", _cross_entropy_work,
    lambda logits_NV, target_N, gradient: logits_NV.new_empty((), dtype=torch.float64),
)  # fmt: skip
