"""The thin products of LoRA: one side is a rank of 8 to 64, so that reading the large matrix is all that takes time.

    low_MR = products([x_MK], [a_RK], [scale], transposed=True)                  # scale x Aᵀ; of several: side by side
    add_([y_MN], [low_MR], [b_NR], [1.0], transposed=True)                      # y += low Bᵀ
    d_low_MR = products([dy_MN], [b_NR], [1.0], transposed=False)               # dy B
    add_([dx_MK], [d_low_q_MR, d_low_k_MR], [a_q_RK, a_k_RK], scales, transposed=False)     # dx += the sum of d_low A
    [d_a_RK] = gradients([d_low_MR], [x_MK], [scale], transposed=False)          # scale d_lowᵀ x
    [d_b_NR] = gradients([low_MR], [dy_MN], [1.0], transposed=True)              # dyᵀ low

Factors (A and B) are float32 masters; each is scaled and then rounded to the dtype of what it multiplies. Sums are float32; gradients stay so.
On a CPU with AMX bfloat16 is worked on by compiled C (thin.c), in one call for all projections of an input, which reads every matrix once
and as it lies. Elsewhere the references. Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from tunesmith.kernels.blocks_4bit import n_threads
from tunesmith.kernels.native import Compiled, compiled
from tunesmith.kernels.operations import operation

SETS, ADDS, SUMS = range(3)  # as in thin.c
MOST = 8


class _Product(ctypes.Structure):
    _fields_ = [
        ("factor", ctypes.c_void_p), ("inner", ctypes.c_int64), ("outer", ctypes.c_int64), ("stride", ctypes.c_int64), ("turned", ctypes.c_int64),
        ("scale", ctypes.c_float), ("x", ctypes.c_void_p), ("x_stride", ctypes.c_int64), ("y", ctypes.c_void_p), ("y_stride", ctypes.c_int64),
    ]  # fmt: skip


class _Gradient(ctypes.Structure):
    _fields_ = [
        ("rank", ctypes.c_int64), ("width", ctypes.c_int64), ("low", ctypes.c_void_p), ("low_stride", ctypes.c_int64), ("x", ctypes.c_void_p),
        ("x_stride", ctypes.c_int64), ("scale", ctypes.c_float), ("sums", ctypes.c_void_p), ("turned", ctypes.c_int64),
    ]  # fmt: skip


def _fast(large: Sequence[Tensor], factors: Sequence[Tensor] = ()) -> Compiled | None:
    """The compiled library, where all matrices are bfloat16 on a CPU with AMX, with neighbouring numbers in a row, and factors float32."""
    suits = all(t.device.type == "cpu" and t.dtype == torch.bfloat16 and t.stride(1) == 1 for t in large)
    suits = suits and all(f.dtype == torch.float32 and f.stride(1) == 1 for f in factors)
    native = compiled() if suits and 0 < len(large) <= MOST and all(len(t) for t in large) else None
    return native if native is not None and native.has_amx else None


def _factor(f: Tensor, dtype: torch.dtype, scale: float, transposed: bool) -> Tensor:
    rounded = (f * scale if scale != 1 else f).to(dtype)
    return rounded.T if transposed else rounded


# --- products -------------------------------------------------------------------------------------------------------------


def products(xs: Sequence[Tensor], factors: Sequence[Tensor], scales: Sequence[float], transposed: bool) -> Tensor:
    """Of each x [M, K] and its factor [K, R] ([R, K] if `transposed`), side by side; of one x it may be given once."""
    y_MR: Tensor = _products([*xs] * (len(factors) // len(xs)), list(factors), list(scales), transposed)
    return y_MR


def _products_work(xs: list[Tensor], factors: list[Tensor], scales: list[float], transposed: bool) -> Tensor:
    native = _fast(xs, factors)
    if native is None:
        return products_reference(xs, factors, scales, transposed)
    y_MR = _products_shapes(xs, factors, scales, transposed)
    sizes = [f.shape[0 if transposed else 1] for f in factors]
    _call(native, xs, factors, scales, transposed, list(torch.split(y_MR, sizes, 1)), SETS)
    return y_MR


def _products_shapes(xs: list[Tensor], factors: list[Tensor], scales: list[float], transposed: bool) -> Tensor:
    return xs[0].new_empty(len(xs[0]), sum(f.shape[0 if transposed else 1] for f in factors))


_products = operation(
    "thin_products(Tensor[] x, Tensor[] factor, float[] scale, bool transposed) -> Tensor", _products_work, _products_shapes
)


def products_reference(xs: Sequence[Tensor], factors: Sequence[Tensor], scales: Sequence[float], transposed: bool) -> Tensor:
    return torch.cat([x @ _factor(f, x.dtype, s, transposed) for x, f, s in zip(xs, factors, scales, strict=True)], 1)


# --- sums -----------------------------------------------------------------------------------------------------------------


def add_(ys: Sequence[Tensor], xs: Sequence[Tensor], factors: Sequence[Tensor], scales: Sequence[float], transposed: bool) -> None:
    """y [M, N] += x [M, R] times its factor [R, N] ([N, R] if `transposed`), each onto its own y; onto one y, all of them and rounded once."""
    _add(list(ys), list(xs), list(factors), list(scales), transposed)


def _add_work(ys: list[Tensor], xs: list[Tensor], factors: list[Tensor], scales: list[float], transposed: bool) -> None:
    native = _fast([*xs, *ys], factors) if len(xs) + len(ys) <= MOST else None
    if native is None:
        add_reference_(ys, xs, factors, scales, transposed)
        return
    _call(native, xs, factors, scales, transposed, ys, ADDS if len(ys) == len(xs) else SUMS)
    for y in ys:
        torch.autograd.graph.increment_version(y)


_add = operation("thin_add_(Tensor(a!)[] y, Tensor[] x, Tensor[] factor, float[] scale, bool transposed) -> ()", _add_work, lambda *_: None)


def add_reference_(
    ys: Sequence[Tensor], xs: Sequence[Tensor], factors: Sequence[Tensor], scales: Sequence[float], transposed: bool
) -> None:
    ys = ys if len(ys) == len(xs) else [*ys] * len(xs)
    for y, x, f, scale in zip(ys, xs, factors, scales, strict=True):
        y.addmm_(x, _factor(f, x.dtype, scale, transposed))


def _call(
    native: Compiled, xs: list[Tensor], factors: list[Tensor], scales: list[float], transposed: bool, ys: list[Tensor], how: int
) -> None:
    described = (_Product * len(xs))()
    for i, (x, f, scale) in enumerate(zip(xs, factors, scales, strict=True)):
        y = ys[i if how != SUMS else 0]
        inner, outer = f.shape[::-1] if transposed else f.shape
        described[i] = _Product(
            f.data_ptr(), inner, outer, f.stride(0), transposed, scale, x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0)
        )
    if native.library.tunesmith_thin_products(n_threads(xs[0]), len(xs[0]), len(xs), described, how):
        raise MemoryError("no memory for the factors of adapters")


# --- gradients ------------------------------------------------------------------------------------------------------------


def gradients(lows: Sequence[Tensor], xs: Sequence[Tensor], scales: Sequence[float], transposed: bool) -> list[Tensor]:
    """scale lowᵀ x of each low [M, R] and x [M, K], in float32 at least: [R, K], or [K, R] if `transposed`."""
    found: list[Tensor] = _gradients(list(lows), list(xs), list(scales), transposed)
    return found


def _gradients_work(lows: list[Tensor], xs: list[Tensor], scales: list[float], transposed: bool) -> list[Tensor]:
    native = _fast([*lows, *xs]) if len(lows) + len(xs) <= MOST else None
    if native is None:
        return gradients_reference(lows, xs, scales, transposed)
    found = _gradients_shapes(lows, xs, scales, transposed)
    described = (_Gradient * len(xs))()
    for i, (low, x, scale, sums) in enumerate(zip(lows, xs, scales, found, strict=True)):
        described[i] = _Gradient(
            low.shape[1],
            x.shape[1],
            low.data_ptr(),
            low.stride(0),
            x.data_ptr(),
            x.stride(0),
            scale,
            sums.data_ptr(),
            transposed,
        )
    if native.library.tunesmith_thin_gradients(n_threads(xs[0]), len(xs[0]), len(xs), described):
        raise MemoryError("no memory for the gradients of adapters")
    return found


def _gradients_shapes(lows: list[Tensor], xs: list[Tensor], scales: list[float], transposed: bool) -> list[Tensor]:
    wide = torch.promote_types(xs[0].dtype, torch.float32)
    sizes = [(low.shape[1], x.shape[1]) for low, x in zip(lows, xs, strict=True)]
    return [x.new_empty(size[::-1] if transposed else size, dtype=wide) for x, size in zip(xs, sizes, strict=True)]


_gradients = operation(
    "thin_gradients(Tensor[] low, Tensor[] x, float[] scale, bool transposed) -> Tensor[]", _gradients_work, _gradients_shapes
)


def gradients_reference(lows: Sequence[Tensor], xs: Sequence[Tensor], scales: Sequence[float], transposed: bool) -> list[Tensor]:
    wide = torch.promote_types(xs[0].dtype, torch.float32)
    pairs = [(x.T @ low if transposed else low.T @ x) for low, x in zip(lows, xs, strict=True)]
    return [found.to(wide).mul_(scale) for found, scale in zip(pairs, scales, strict=True)]
