"""A base weight that is never trained, behind two products: all that knows how it is stored.

    frozen = FrozenLinear(linear)          # nn.Linear or GPT-2's Conv1D
    y_MN = frozen.mm(x_MK); dx_MK = frozen.mm_t(dy_MN)

Adapter code calls these two and never sees a format; 4- and 8-bit storages are further classes with the same two methods.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class FrozenWeight(Protocol):
    """What an adapter needs of its base; N outputs, K inputs."""

    n_outputs: int
    n_inputs: int

    def mm(self, x_MK: Tensor) -> Tensor: ...

    def mm_t(self, dy_MN: Tensor) -> Tensor: ...


class FrozenLinear(nn.Module):
    """Dense weight in its own dtype, with its bias; shares the memory of the layer it is made from."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        if not isinstance(layer, nn.Linear | Conv1D):
            raise TypeError(f"not a linear layer: {type(layer).__name__}")
        self.transposed = isinstance(layer, Conv1D)  # Conv1D keeps its weight as inputs x outputs
        self.weight, self.bias = layer.weight, layer.bias
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        rows, columns = self.weight.shape
        self.n_outputs, self.n_inputs = (columns, rows) if self.transposed else (rows, columns)

    def mm(self, x_MK: Tensor) -> Tensor:
        """x @ W.T + bias."""
        weight_NK = self.weight.T if self.transposed else self.weight
        return nn.functional.linear(x_MK, weight_NK, self.bias)

    def mm_t(self, dy_MN: Tensor) -> Tensor:
        """dy @ W: the gradient of mm towards its input."""
        return torch.mm(dy_MN, self.weight.T if self.transposed else self.weight)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.weight, self.bias) if t is not None)
