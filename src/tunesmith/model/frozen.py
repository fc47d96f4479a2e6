"""A base weight that is never trained, behind two products: all that knows how it is stored.

    frozen = FrozenLinear(linear)          # nn.Linear or GPT-2's Conv1D
    y_MN = frozen.mm(x_MK); dx_MK = frozen.mm_t(dy_MN)

    frozen = QuantizedLinear(n_outputs, n_inputs, bias, torch.bfloat16); frozen.hold(quantize(weight_NK, scheme))
    table = QuantizedEmbedding(embedding); table.hold(quantize(weight_VD, scheme)); head.share(table)       # a tied head

Adapter code calls these two and never sees a format. Storage and computation are two things: a quantised weight keeps its few
bits and becomes 16 (or 32) of them in one buffer, shared by all layers, each time that a product needs it.
"""

import threading
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import BadInput
from tunesmith.kernels import float8
from tunesmith.quant.scheme import Scheme
from tunesmith.quant.tensor import Layout, QTensor, dequantize_into, dequantize_rows, from_tensors

DTYPE = "stored_dtype"  # the empty parameter of an embedding


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

    def mm_t(self, dy_MN: Tensor, onto: Tensor | None = None) -> Tensor:
        """dy @ W: the gradient of mm towards its input; added to `onto` in its place, if that is given."""
        weight_NK = self.weight.T if self.transposed else self.weight
        return torch.mm(dy_MN, weight_NK) if onto is None else onto.addmm_(dy_MN, weight_NK)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.weight, self.bias) if t is not None)


class QuantizedWeight(nn.Module):
    """A weight [N, K] in few bits, whatever it is used for.

    The stored tensors are frozen parameters (codes, scales, …), so that saving, moving and sharding see them. `dtype` is what the
    layer looks like to a trunk that asks.
    """

    def __init__(self, n_outputs: int, n_inputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.n_outputs, self.n_inputs, self.dtype = n_outputs, n_inputs, dtype
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
        stored = {f"stored_{name}": nn.Parameter(tensor, requires_grad=False) for name, tensor in q.tensors().items()}
        self._keep(stored, q.scheme, q.layout, sample)

    def share(self, other: "QuantizedWeight") -> None:
        """Hold what another layer holds: the same parameters, so that a tied weight is stored, counted and moved once."""
        if (self.n_outputs, self.n_inputs) != (other.n_outputs, other.n_inputs) or other.scheme is None:
            raise ValueError("a tied weight has one shape, and is held by one of its layers already")
        self._keep(other._stored(), other.scheme, other.layout, other.sample)

    def forget(self) -> None:
        """Let go of the tensors as they are held now: others will take the place of the parameters."""
        self._held = None

    def shares(self, other: object) -> bool:
        """Whether both hold the same parameters."""
        return (
            isinstance(other, QuantizedWeight) and self.holds and self._parameters["stored_codes"] is other._parameters.get("stored_codes")
        )

    def _keep(self, stored: dict[str, nn.Parameter], scheme: Scheme, layout: Layout, sample: Tensor | None) -> None:
        self.scheme, self.layout, self.sample, self._held = scheme, layout, sample, None
        for name in self._stored():
            del self._parameters[name]
        self._parameters.update(stored)

    def _stored(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._parameters.items() if name.startswith("stored_") and name != DTYPE and p is not None}

    @property
    def holds(self) -> bool:
        """Whether there is a weight yet."""
        return "stored_codes" in self._parameters

    @property
    def q(self) -> QTensor:
        """What is held, as one value; made anew when the module was moved."""
        codes: Any = self._parameters.get("stored_codes")
        if codes is None or self.scheme is None:
            raise BadInput("this layer holds no weight yet", fix="load the model with tunesmith")
        if self._held is None or self._held.codes.data_ptr() != codes.data_ptr():
            named = {name.removeprefix("stored_"): p.detach() for name, p in self._stored().items()}
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
        codes: Any = self._parameters["stored_codes"] if self.holds else self.q.codes
        buffer_NK = _buffer(self.n_outputs, self.n_inputs, dtype, codes.device)
        return buffer_NK if isinstance(codes, FakeTensor) else dequantize_into(self.q, buffer_NK)  # a rehearsal (planning/) has only shapes

    @property
    def nbytes(self) -> int:
        return self.q.nbytes

    def extra_repr(self) -> str:
        return f"{self.n_inputs} → {self.n_outputs}, {self.scheme}"


class QuantizedLinear(QuantizedWeight):
    """A linear layer with its bias, de-quantised at the moment of use, forward and backward; products are made in the dtype of their input.

    In FP8 products are made of the codes themselves, forward with those of W, backward with those of its transpose (kernels/float8.py).
    """

    def __init__(self, n_outputs: int, n_inputs: int, bias: nn.Parameter | None, dtype: torch.dtype, transposed: bool = False) -> None:
        super().__init__(n_outputs, n_inputs, dtype)
        self.transposed = transposed  # the dense weight was a Conv1D's, inputs x outputs; codes are outputs x inputs always
        self.bias = bias

    def mm(self, x_MK: Tensor) -> Tensor:
        """x @ W.T + bias."""
        if torch.is_grad_enabled() and x_MK.requires_grad:
            result: Tensor = _QuantizedProduct.apply(x_MK, self)  # type: ignore[no-untyped-call]
            return result
        return self._mm(x_MK)

    def _mm(self, x_MK: Tensor) -> Tensor:
        if not self._is_float8:
            return nn.functional.linear(x_MK, self.dense(x_MK.dtype), self.bias)
        stored: Any = self._parameters
        y_MN = float8.product(x_MK, stored["stored_codes"], stored["stored_scales"])
        return y_MN if self.bias is None else y_MN.add_(self.bias)

    @property
    def _is_float8(self) -> bool:
        return self.scheme is not None and self.scheme.is_float8

    def mm_t(self, dy_MN: Tensor, onto: Tensor | None = None) -> Tensor:
        """dy @ W; added to `onto` in its place, if that is given."""
        if self._is_float8:
            stored: Any = self._parameters
            dx_MK = float8.product(dy_MN, stored["stored_back_codes"], stored["stored_back_scales"])
            return dx_MK if onto is None else onto.add_(dx_MK)
        weight_NK = self.dense(dy_MN.dtype)
        return torch.mm(dy_MN, weight_NK) if onto is None else onto.addmm_(dy_MN, weight_NK)

    def forward(self, x: Tensor) -> Tensor:
        y_MN = self.mm(x.reshape(-1, x.shape[-1]))
        return y_MN.view(*x.shape[:-1], self.n_outputs)

    @property
    def nbytes(self) -> int:
        return super().nbytes + (0 if self.bias is None else self.bias.nbytes)


def dense_weight(layer: nn.Module, dtype: torch.dtype) -> Tensor:
    """The weight [N, K] of a linear layer, whichever way it is kept; of a quantised one in `dtype`, valid until the next layer is used."""
    weight_NK = layer.dense(dtype) if isinstance(layer, QuantizedWeight) else layer.weight
    assert isinstance(weight_NK, Tensor)
    return weight_NK


class _QuantizedProduct(torch.autograd.Function):
    """Autograd would keep the buffer for the backward pass, and find another layer's weight in it: de-quantise again instead."""

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return layer._mm(x_MK)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.mm_t(upstream[0]), None


class QuantizedEmbedding(QuantizedWeight):
    """A table of V rows in few bits, of which a forward de-quantises those that it is asked for; frozen, so it has no backward.

    In place of a plain embedding, or of one that multiplies by its `embed_scale` and does nothing else (Gemma: by the root of the
    width); BadInput for any other. Which one it is, a small table of the same class is asked: the model may still be without memory.
    """

    def __init__(self, embedding: nn.Embedding, where: str = "") -> None:
        super().__init__(embedding.num_embeddings, embedding.embedding_dim, embedding.weight.dtype)
        old: Any = embedding
        self.num_embeddings, self.embedding_dim, self.padding_idx = self.n_outputs, self.n_inputs, embedding.padding_idx
        self._kind, self._factor = type(embedding), 1.0
        try:
            self._factor = float(getattr(old, "scalar_embed_scale", getattr(old, "embed_scale", 1.0)))
            with torch.device("cpu"), torch.no_grad():
                small: Any = self._small(3)
                ids, rows = torch.tensor([[2, 0], [1, 1]]), torch.linspace(-1, 1, 3 * self.embedding_dim).view(3, -1)
                small.weight.copy_(rows)
                known = embedding.max_norm is None and torch.equal(small(ids), small.weight[ids] * getattr(small, "embed_scale", 1.0))
        except Exception:  # whatever another class asks for
            known = False
        if not known:
            raise BadInput(
                f"the token embeddings of this model ({self._kind.__name__}) are more than rows, and cannot be stored in few bits",
                where=f"quantization.embeddings: {where}", fix="leave quantization.embeddings out",
            )  # fmt: skip
        scale = getattr(small, "embed_scale", None)  # a tensor is rounded to the dtype of the rows before it multiplies them
        self.embed_scale = torch.tensor(self._factor, dtype=torch.float32, device="cpu") if isinstance(scale, Tensor) else scale

    def _small(self, n_rows: int) -> nn.Embedding:
        """An embedding of the class that this one took the place of."""
        with torch.device("cpu"), torch.random.fork_rng(devices=()):
            if self._kind is nn.Embedding:
                return nn.Embedding(n_rows, self.embedding_dim)
            return self._kind(n_rows, self.embedding_dim, None, embed_scale=self._factor)  # type: ignore[call-arg]

    def _keep(self, stored: dict[str, nn.Parameter], scheme: Scheme, layout: Layout, sample: Tensor | None) -> None:
        """A model's dtype is that of its first parameter, and embeddings stand first: nothing at all, in the dtype of the rows."""
        super()._keep(stored, scheme, layout, sample)
        nothing = torch.empty(0, dtype=self.dtype, device=stored["stored_codes"].device)
        self._parameters = {DTYPE: nn.Parameter(nothing, requires_grad=False), **self._parameters}

    def forward(self, ids: Tensor) -> Tensor:
        codes = self._parameters.get("stored_codes")
        if isinstance(codes, FakeTensor):
            return codes.new_empty(*ids.shape, self.embedding_dim, dtype=self.dtype)
        rows = dequantize_rows(self.q, ids.reshape(-1), self.dtype).view(*ids.shape, self.embedding_dim)
        if self.embed_scale is None:
            return rows
        return rows * (self.embed_scale.to(rows.dtype) if isinstance(self.embed_scale, Tensor) else self.embed_scale)

    def plain(self, weight_VD: Tensor) -> nn.Embedding:
        """The dense embedding that this one took the place of, with another weight."""
        embedding = self._small(1).to(weight_VD.device)
        embedding.weight = nn.Parameter(weight_VD, requires_grad=False)
        embedding.num_embeddings, embedding.padding_idx = self.num_embeddings, self.padding_idx
        return embedding.train(self.training)


_buffers = threading.local()


def buffers() -> list[Tensor]:
    """Those of this thread."""
    return list(_buffers.__dict__.get("held", {}).values())


def _buffer(n: int, k: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One buffer per thread, device and dtype, as large as the largest weight so far."""
    held: dict[tuple[torch.dtype, torch.device], Tensor] = _buffers.__dict__.setdefault("held", {})
    buffer = held.get((dtype, device))
    if buffer is None or buffer.numel() < n * k:
        with torch.inference_mode(False):  # training may come after the answer that made it this large
            buffer = held[dtype, device] = torch.empty(n * k, dtype=dtype, device=device)
    return buffer[: n * k].view(n, k)
