"""One token for each row of a batch through a whole decoder: what an answer consists of, many times over.

    cache = Cache.empty(trunk, n_places)
    hidden_MD = read(trunk, x_MD, cache, place_M, starts, cos_MR, sin_MR)      # whole prompts, one after another
    step = Step.of(trunk)                                                      # None where there is no library for it
    word_B = step(x_BD, cache, first_B, position_B, cos_TR, sin_TR).word_B     # one token more: the likeliest of step_reference(trunk, …)

The cache is one run of places per layer and head of keys, and each row has a stretch of its own there: places first[b] to first[b] + position[b] hold row b.
So there is no padding, rows of any length stand side by side, and a row that leaves takes nothing along.

`layer` is the arithmetic, of whole prompts as of single tokens. A step that goes through it waits for some hundred small operations; compiled
(decode.c; bfloat16, AMX), it is one call that reads each weight once, where it lies: one team of threads goes through all layers, and sums between
products stay in float32. What adapters add is computed beside their base, never merged into it.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.kernels import rows
from tunesmith.kernels.causal_attention import causal_attention
from tunesmith.kernels.native import Compiled, compiled

TILE = 32  # numbers of a row of a tile, and outputs of which two tiles are made at a time


@dataclass(frozen=True)
class Projection:
    """weight [N, K] and bias [N]; of an adapter A [R, K], times its scale already, and B [N, R]. All of one dtype."""

    weight_NK: Tensor
    bias_N: Tensor | None = None
    a_RK: Tensor | None = None
    b_NR: Tensor | None = None

    def __call__(self, x_MK: Tensor) -> Tensor:
        y_MN = nn.functional.linear(x_MK, self.weight_NK, self.bias_N)
        return y_MN if self.a_RK is None or self.b_NR is None else y_MN.addmm_(x_MK @ self.a_RK.T, self.b_NR.T)


@dataclass(frozen=True)
class Layer:
    """norm → q, k, v → (norms of the heads) → positions → attention → out, + its input; norm → gate, up → activation → down, + that."""

    before_attention: Tensor
    query: Projection
    key: Projection
    value: Projection
    query_norm: Tensor | None
    key_norm: Tensor | None
    out: Projection
    before_mlp: Tensor
    gate: Projection
    up: Projection
    down: Projection


@dataclass(frozen=True)
class Trunk:
    """Layers of one shape, the last norm and the head; epsilon, offset: of all norms (kernels/rows.py)."""

    heads: int
    key_heads: int
    head_width: int
    scale: float
    epsilon: float
    offset: float
    activation: rows.Activation
    layers: tuple[Layer, ...]
    last_norm: Tensor
    head: Projection


@dataclass(frozen=True)
class Cache:
    """Keys and values [layers, key heads, places, head width]."""

    keys_LGPW: Tensor
    values_LGPW: Tensor

    @classmethod
    def empty(cls, trunk: Trunk, n_places: int) -> "Cache":
        like = trunk.last_norm
        keys, values = (like.new_empty(len(trunk.layers), trunk.key_heads, n_places, trunk.head_width) for _ in range(2))
        return cls(keys, values)


def of_layers(trunk: Trunk, *layers: Layer) -> Trunk:
    """The same with these layers alone."""
    return replace(trunk, layers=layers)


# --- in torch -------------------------------------------------------------------------------------------------------------

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def layer(trunk: Trunk, number: int, x_MD: Tensor, cos_MR: Tensor, sin_MR: Tensor, attend: Attend) -> Tensor:
    """What one layer makes of tokens; attend(number, q [M, H, W], k [M, G, W], v [M, G, W]) answers [M, H, W] and remembers keys and values."""
    own = trunk.layers[number]

    def normed(y_MD: Tensor, weight_D: Tensor | None) -> Tensor:
        return y_MD if weight_D is None else rows.rmsnorm(y_MD.flatten(0, -2), weight_D, trunk.epsilon, trunk.offset)[0].view(y_MD.shape)

    normed_MD = normed(x_MD, own.before_attention)
    q, k, v = (p(normed_MD).view(len(x_MD), -1, trunk.head_width) for p in (own.query, own.key, own.value))
    q, k = rows.rotate_(normed(q, own.query_norm), cos_MR, sin_MR), rows.rotate_(normed(k, own.key_norm), cos_MR, sin_MR)
    x_MD = x_MD + own.out(attend(number, q, k, v).flatten(1))
    normed_MD = normed(x_MD, own.before_mlp)
    return x_MD + own.down(rows.gate(trunk.activation, own.gate(normed_MD), own.up(normed_MD)))


def read(trunk: Trunk, x_MD: Tensor, cache: Cache, place_M: Tensor, starts: Tensor, cos_MR: Tensor, sin_MR: Tensor) -> Tensor:
    """Whole prompts, which begin at `starts` (kernels/causal_attention.py), into their places; returns the last layer's answer of all tokens."""

    def attend(number: int, q_MHW: Tensor, k_MGW: Tensor, v_MGW: Tensor) -> Tensor:
        cache.keys_LGPW[number].index_copy_(1, place_M, k_MGW.transpose(0, 1))
        cache.values_LGPW[number].index_copy_(1, place_M, v_MGW.transpose(0, 1))
        return causal_attention(q_MHW, k_MGW, v_MGW, starts, trunk.scale)[0]

    for number in range(len(trunk.layers)):
        x_MD = layer(trunk, number, x_MD, cos_MR, sin_MR, attend)
    return x_MD


def logits(trunk: Trunk, x_BD: Tensor) -> Tensor:
    """Of tokens whose last layer's answer is x: [B, V]."""
    return trunk.head(rows.rmsnorm(x_BD, trunk.last_norm, trunk.epsilon, trunk.offset)[0])


def step_reference(
    trunk: Trunk, x_BD: Tensor, cache: Cache, first_B: Tensor, position_B: Tensor, cos_TR: Tensor, sin_TR: Tensor
) -> Tensor:  # fmt: skip
    """Logits [B, V] after one more token of each row; its key and value join the row's in the cache.

    x_BD              embedded tokens
    first, position   int64 [B]: the place of a row's first token, and the number of this one
    cos_TR, sin_TR    rotary tables, by position
    """
    place_B = first_B + position_B
    stretches = [slice(first, place + 1) for first, place in zip(first_B.tolist(), place_B.tolist(), strict=True)]

    def attend(number: int, q_BHW: Tensor, k_BGW: Tensor, v_BGW: Tensor) -> Tensor:
        keys_GPW, values_GPW = cache.keys_LGPW[number], cache.values_LGPW[number]
        keys_GPW[:, place_B], values_GPW[:, place_B] = k_BGW.transpose(0, 1), v_BGW.transpose(0, 1)
        seen = []
        for query_HW, own in zip(q_BHW, stretches, strict=True):
            key_GNW, value_GNW = keys_GPW[:, own], values_GPW[:, own]
            query_GSW = query_HW.view(trunk.key_heads, -1, trunk.head_width)  # neighbouring heads share a key
            share_GSN = torch.softmax((query_GSW @ key_GNW.mT).to(torch.promote_types(x_BD.dtype, torch.float32)) * trunk.scale, -1)
            seen.append((share_GSN.to(x_BD.dtype) @ value_GNW).flatten(0, 1))
        return torch.stack(seen)

    for number in range(len(trunk.layers)):
        x_BD = layer(trunk, number, x_BD, cos_TR[position_B], sin_TR[position_B], attend)
    return logits(trunk, x_BD)


# --- compiled -------------------------------------------------------------------------------------------------------------


class _Struct(ctypes.Structure):
    """As in decode.c. A tensor that was given stands for its address; who fills a structure holds the tensor."""

    def __init__(self, *values: Any) -> None:
        super().__init__(*(value.data_ptr() if isinstance(value, Tensor) else value for value in values))


class _Projection(_Struct):
    _fields_ = [*((name, ctypes.c_void_p) for name in ("weight", "bias", "b")), ("rank", ctypes.c_int64), ("low", ctypes.c_int64)]


class _Thin(_Struct):
    _fields_ = [("a", ctypes.c_void_p), ("rank", ctypes.c_int64)]


class _Layer(_Struct):
    _fields_ = [
        *((name, _Projection) for name in ("query", "key", "value", "out", "gate", "up", "down")),
        *((name, _Thin) for name in ("of_attention", "of_out", "of_mlp", "of_down")),
        *((name, ctypes.c_void_p) for name in ("before_attention", "before_mlp", "query_norm", "key_norm")),
    ]


class _Decoder(_Struct):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("n_layers", "width", "feed_forward", "heads", "key_heads", "head_width")),
        *((name, ctypes.c_int64) for name in ("n_words", "activation", "most_rank")),
        *((name, ctypes.c_float) for name in ("scale", "epsilon", "offset", "unused")),
        ("layers", ctypes.c_void_p), ("last_norm", ctypes.c_void_p), ("head", _Projection),
    ]  # fmt: skip


class _Past(_Struct):
    _fields_ = [
        ("keys", ctypes.c_void_p), ("values", ctypes.c_void_p), ("n_places", ctypes.c_int64), ("turned", ctypes.c_int64),
        ("cos", ctypes.c_void_p), ("sin", ctypes.c_void_p),
    ]  # fmt: skip


@dataclass(frozen=True)
class Next:
    """The most likely token of each row, int64 [B]; its logit, float32 [B], NaN where a logit is; all logits, float32 [B, V], if asked for."""

    word_B: Tensor
    most_B: Tensor
    logits_BV: Tensor | None


class Step:
    """`step_reference` in one call, and the largest logit with it; holds the tensors that the library reads."""

    def __init__(self, native: Compiled, trunk: Trunk) -> None:
        self.native = native
        self.held: list[Any] = [trunk]
        layers = (_Layer * len(trunk.layers))(*(self._layer(own) for own in trunk.layers))
        most_rank = max(thin.rank for own in layers for thin in (own.of_attention, own.of_out, own.of_mlp, own.of_down))
        [head], _ = self._projections(trunk.head)
        first = trunk.layers[0]
        self.n_words = trunk.head.weight_NK.shape[0]
        self.decoder = _Decoder(
            len(layers), first.gate.weight_NK.shape[1], first.gate.weight_NK.shape[0], trunk.heads, trunk.key_heads, trunk.head_width,
            self.n_words, rows.KINDS.index(trunk.activation), most_rank, trunk.scale, trunk.epsilon, trunk.offset, 0.0,
            ctypes.addressof(layers), trunk.last_norm, head,
        )  # fmt: skip
        self.held.append(layers)

    @classmethod
    def of(cls, trunk: Trunk) -> "Step | None":
        """None where there is no library for it, or the weights are others than it reads."""
        native = compiled()
        return cls(native, trunk) if native is not None and native.has_amx and fits(trunk) else None

    def __call__(
        self, x_BD: Tensor, cache: Cache, first_B: Tensor, position_B: Tensor, cos_TR: Tensor, sin_TR: Tensor, all_logits: bool = False
    ) -> Next:
        """As step_reference."""
        x_BD, n = x_BD.contiguous(), len(x_BD)
        answer = Next(first_B.new_empty(n), torch.empty(n), torch.empty(n, self.n_words) if all_logits else None)
        past = _Past(cache.keys_LGPW, cache.values_LGPW, cache.keys_LGPW.shape[2], cos_TR.shape[1], cos_TR, sin_TR)
        failed = self.native.library.tunesmith_decode_step(
            torch.get_num_threads(), ctypes.addressof(self.decoder), ctypes.addressof(past), n, first_B.data_ptr(), position_B.data_ptr(), x_BD.data_ptr(),
            None if answer.logits_BV is None else answer.logits_BV.data_ptr(), answer.word_B.data_ptr(), answer.most_B.data_ptr(),
        )  # fmt: skip
        if failed:
            raise MemoryError("no memory for a step of decoding")
        return answer

    def _layer(self, own: Layer) -> _Layer:
        of_attention, thin_attention = self._projections(own.query, own.key, own.value)
        (out,), thin_out = self._projections(own.out)
        of_mlp, thin_mlp = self._projections(own.gate, own.up)
        (down,), thin_down = self._projections(own.down)
        norms = (own.before_attention, own.before_mlp, own.query_norm, own.key_norm)
        return _Layer(*of_attention, out, *of_mlp, down, thin_attention, thin_out, thin_mlp, thin_down, *norms)

    def _projections(self, *projections: Projection) -> tuple[list[_Projection], _Thin]:
        """Those of one input: their A stacked, each with zeros up to whole tiles, and each B with as many columns of zeros."""
        found, stacked, low = [], [], 0
        for p in projections:
            b_NR, rank = None, 0
            if p.a_RK is not None and p.b_NR is not None:
                missing = -len(p.a_RK) % TILE
                rank = len(p.a_RK) + missing
                stacked.append(nn.functional.pad(p.a_RK, (0, 0, 0, missing)))
                b_NR = nn.functional.pad(p.b_NR, (0, missing)).contiguous()
                self.held.append(b_NR)
            found.append(_Projection(p.weight_NK, p.bias_N, b_NR, rank, low))
            low += rank
        if not stacked:
            return found, _Thin(None, 0)
        a_RK = torch.cat(stacked).contiguous()
        self.held.append(a_RK)
        return found, _Thin(a_RK, low)


def fits(trunk: Trunk) -> bool:
    """Whether all of it is contiguous bfloat16 on the CPU, in whole tiles and of one shape in all layers."""
    projections = [p for own in trunk.layers for p in _projections(own)]
    tensors = [t for own in trunk.layers for t in _tensors(own)] + [trunk.last_norm, *_tensors(trunk.head)]
    whole = {trunk.head_width} | {n for p in projections for n in p.weight_NK.shape}
    return (
        all(type(t) in (Tensor, nn.Parameter) for t in tensors)  # and not the part of one that this process has
        and all(t.device.type == "cpu" and t.dtype == torch.bfloat16 and t.is_contiguous() for t in tensors)
        and all(n % TILE == 0 for n in whole)
        and trunk.head.weight_NK.shape[0] >= TILE
        and trunk.head.a_RK is None
        and len({tuple(p.weight_NK.shape for p in _projections(own)) for own in trunk.layers}) == 1
    )


def _projections(own: Layer) -> list[Projection]:
    return [value for value in (getattr(own, field.name) for field in fields(own)) if isinstance(value, Projection)]


def _tensors(own: Layer | Projection) -> Sequence[Tensor]:
    values = [getattr(own, field.name) for field in fields(own)]
    return [t for value in values for t in (_tensors(value) if isinstance(value, Projection) else [value]) if isinstance(t, Tensor)]
