"""The gradient of a weight, summed over all tokens in float32 and kept so.

    d_weight_NK = weight_gradient(dy_MN, x_MK)         # of y = x @ weight.T
"""

import torch
from torch import Tensor

from tunesmith.kernels.operations import operation


def weight_gradient(dy_MN: Tensor, x_MK: Tensor) -> Tensor:
    """dy.T @ x in float32 (in float64 of that)."""
    d_weight_NK: Tensor = _weight_gradient(dy_MN, x_MK)
    return d_weight_NK


def _work(dy_MN: Tensor, x_MK: Tensor) -> Tensor:
    return weight_gradient_reference(dy_MN, x_MK)


def _shapes(dy_MN: Tensor, x_MK: Tensor) -> Tensor:
    return x_MK.new_empty(dy_MN.shape[1], x_MK.shape[1], dtype=torch.promote_types(x_MK.dtype, torch.float32))


def weight_gradient_reference(dy_MN: Tensor, x_MK: Tensor) -> Tensor:
    """As autocast makes it: the product in the dtype of its operands, then wide."""
    return (dy_MN.T @ x_MK).to(torch.promote_types(x_MK.dtype, torch.float32))


_weight_gradient = operation("weight_gradient(Tensor dy, Tensor x) -> Tensor", _work, _shapes)
