"""The gradient of a weight, summed over all tokens in float32 and kept so.

    d_weight_NK = weight_gradient(dy_MN, x_MK)         # of y = x @ weight.T
    add_weight_gradient_(d_weight_NK, dy_MN, x_MK)     # of further tokens

On a CPU with AMX bfloat16 tensors are worked on by compiled C (weight_gradient.c): the sum runs over the rows of both operands, which is the wrong
way round for the matrix unit, and torch's library takes twice as long for it as for the products of the forward pass.
"""

import torch
from torch import Tensor

from tunesmith.kernels.native import Compiled, compiled
from tunesmith.kernels.operations import operation


def weight_gradient(dy_MN: Tensor, x_MK: Tensor) -> Tensor:
    """dy.T @ x in float32 (in float64 of that)."""
    d_weight_NK: Tensor = _weight_gradient(dy_MN, x_MK)
    return d_weight_NK


def add_weight_gradient_(d_weight_NK: Tensor, dy_MN: Tensor, x_MK: Tensor) -> None:
    """The same, added to what is there."""
    _add_weight_gradient(d_weight_NK, dy_MN, x_MK)


def fast(dy_MN: Tensor, x_MK: Tensor) -> Compiled | None:
    """The compiled library, where it can do this."""
    suits = all(t.device.type == "cpu" and t.dtype == torch.bfloat16 and t.stride(1) == 1 and t.numel() > 0 for t in (dy_MN, x_MK))
    native = compiled() if suits else None
    return native if native is not None and native.has_amx else None


def _work(dy_MN: Tensor, x_MK: Tensor) -> Tensor:
    native = fast(dy_MN, x_MK)
    if native is None:
        return weight_gradient_reference(dy_MN, x_MK)
    d_weight_NK = _shapes(dy_MN, x_MK)
    _compute(native, d_weight_NK, dy_MN, x_MK, add=False)
    return d_weight_NK


def _add(d_weight_NK: Tensor, dy_MN: Tensor, x_MK: Tensor) -> None:
    native = fast(dy_MN, x_MK) if d_weight_NK.dtype == torch.float32 and d_weight_NK.is_contiguous() else None
    if native is None:
        d_weight_NK += weight_gradient_reference(dy_MN, x_MK)
        return
    _compute(native, d_weight_NK, dy_MN, x_MK, add=True)
    torch.autograd.graph.increment_version(d_weight_NK)


def _compute(native: Compiled, d_weight_NK: Tensor, dy_MN: Tensor, x_MK: Tensor, add: bool) -> None:
    if native.library.tunesmith_weight_gradient(
        torch.get_num_threads(), len(x_MK), dy_MN.shape[1], x_MK.shape[1], dy_MN.data_ptr(), dy_MN.stride(0), x_MK.data_ptr(), x_MK.stride(0),
        d_weight_NK.data_ptr(), add,
    ):  # fmt: skip
        raise MemoryError("no memory for the gradient of a weight")


def _shapes(dy_MN: Tensor, x_MK: Tensor) -> Tensor:
    return x_MK.new_empty(dy_MN.shape[1], x_MK.shape[1], dtype=torch.promote_types(x_MK.dtype, torch.float32))


def weight_gradient_reference(dy_MN: Tensor, x_MK: Tensor) -> Tensor:
    """As autocast makes it: the product in the dtype of its operands, then wide."""
    return (dy_MN.T @ x_MK).to(torch.promote_types(x_MK.dtype, torch.float32))


_weight_gradient = operation("weight_gradient(Tensor dy, Tensor x) -> Tensor", _work, _shapes)
_add_weight_gradient = operation("add_weight_gradient_(Tensor(a!) d_weight, Tensor dy, Tensor x) -> ()", _add, lambda *_: None)
