"""A base weight that is never trained, behind two products: all that knows how it is stored.

    frozen = FrozenLinear(linear)          # nn.Linear or GPT-2's Conv1D
    y_MN = frozen.mm(x_MK); dx_MK = frozen.mm_t(dy_MN)

    frozen = QuantizedLinear(n_outputs, n_inputs, bias, torch.bfloat16); frozen.hold(quantize(weight_NK, scheme))

Adapter code calls these two and never sees a format. Storage and computation are two things: a quantised weight keeps its few
bits and becomes 16 (or 32) of them in one buffer, shared by all layers, each time that a product needs it.
"""

import threading
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import BadInput
from tunesmith.quant.scheme import Scheme
from tunesmith.quant.tensor import Layout, QTensor, dequantize_into, from_tensors


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


class QuantizedLinear(nn.Module):
    """A weight in few bits, with its bias; de-quantised at the moment of use, forward and backward.

    The stored tensors are frozen parameters (codes, scales, …), so that saving, moving and sharding see them. `dtype` is what the
    layer looks like to a trunk that asks; products are made in the dtype of their input.
    """

    def __init__(self, n_outputs: int, n_inputs: int, bias: nn.Parameter | None, dtype: torch.dtype, transposed: bool = False) -> None:
        super().__init__()
        self.n_outputs, self.n_inputs, self.dtype = n_outputs, n_inputs, dtype
        self.transposed = transposed  # the dense weight was a Conv1D's, inputs x outputs; codes are outputs x inputs always
        self.bias = bias
        self.scheme: Scheme | None = None
        self.layout: Layout = "rows"
        self.sample: Tensor | None = None  # of the weight before it was quantised, for the base's fingerprint
        self._held: QTensor | None = None

    def hold(self, q: QTensor, sample: Tensor | None = None) -> None:
        """Keep these codes from now on."""
        if q.shape != (self.n_outputs, self.n_inputs):
            raise BadInput(
                f"a quantised weight of {q.shape} is not one of {(self.n_outputs, self.n_inputs)}", fix="give the model's own file"
            )
        self.scheme, self.layout, self.sample = q.scheme, q.layout, sample
        for name in [name for name in self._parameters if name.startswith("stored_")]:
            del self._parameters[name]
        for name, tensor in q.tensors().items():
            setattr(self, f"stored_{name}", nn.Parameter(tensor, requires_grad=False))
        self._held = None

    @property
    def q(self) -> QTensor:
        """What is held, as one value; made anew when the module was moved."""
        codes: Any = self._parameters.get("stored_codes")
        if codes is None or self.scheme is None:
            raise BadInput("this layer holds no weight yet", fix="load the model with tunesmith")
        if self._held is None or self._held.codes.data_ptr() != codes.data_ptr():
            named = {
                name.removeprefix("stored_"): p.detach()
                for name, p in self._parameters.items()
                if name.startswith("stored_") and p is not None
            }
            self._held = from_tensors(self.scheme, (self.n_outputs, self.n_inputs), self.layout, named)
        return self._held

    @property
    def weight(self) -> Tensor:
        """Shape, dtype and device of the weight, and NaN in every place: nobody must compute with it."""
        codes = self._parameters.get("stored_codes")
        nan = torch.full((), torch.nan, dtype=self.dtype, device="meta" if codes is None else codes.device)
        weight_NK = nan.expand(self.n_outputs, self.n_inputs)
        weight_NK._is_hf_initialized = True  # type: ignore[attr-defined]  # GPT-2 would draw it anew before its codes are read
        return weight_NK

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The de-quantised weight [N, K] in the shared buffer: valid until the next layer is used."""
        return dequantize_into(self.q, _buffer(self.n_outputs, self.n_inputs, dtype, self.q.codes.device))

    def mm(self, x_MK: Tensor) -> Tensor:
        """x @ W.T + bias."""
        if torch.is_grad_enabled() and x_MK.requires_grad:
            result: Tensor = _QuantizedProduct.apply(x_MK, self)  # type: ignore[no-untyped-call]
            return result
        return nn.functional.linear(x_MK, self.dense(x_MK.dtype), self.bias)

    def mm_t(self, dy_MN: Tensor) -> Tensor:
        """dy @ W."""
        return torch.mm(dy_MN, self.dense(dy_MN.dtype))

    def forward(self, x: Tensor) -> Tensor:
        y_MN = self.mm(x.reshape(-1, x.shape[-1]))
        return y_MN.view(*x.shape[:-1], self.n_outputs)

    @property
    def nbytes(self) -> int:
        return self.q.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def extra_repr(self) -> str:
        return f"{self.n_inputs} → {self.n_outputs}, {self.scheme}"


class _QuantizedProduct(torch.autograd.Function):
    """Autograd would keep the buffer for the backward pass, and find another layer's weight in it: de-quantise again instead."""

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return nn.functional.linear(x_MK, layer.dense(x_MK.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.mm_t(upstream[0]), None


_buffers = threading.local()


def _buffer(n: int, k: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One buffer per thread, device and dtype, as large as the largest weight so far."""
    held: dict[tuple[torch.dtype, torch.device], Tensor] = _buffers.__dict__.setdefault("held", {})
    buffer = held.get((dtype, device))
    if buffer is None or buffer.numel() < n * k:
        buffer = held[dtype, device] = torch.empty(n * k, dtype=dtype, device=device)
    return buffer[: n * k].view(n, k)
