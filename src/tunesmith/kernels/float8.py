"""Products in FP8: rows of e4m3 codes with one scale each, multiplied as they are stored.

    codes_NK, scale_N = quantize_rows(weight_NK)                # uint8, the bits of e4m3; x = code * scale of its row
    y_MN = product(x_MK, codes_NK, scale_N)                     # x is coded row by row on the way; y in x's dtype

    row      -3.0   0.01   1.5          scale 3 / 448: the largest of a row becomes the largest code
    codes    -448   1.5    224          1.5 is 0.01 / scale = 1.493 with three bits of mantissa: x' = 0.01004

e4m3 has 4 bits of exponent and 3 of mantissa and no infinity: a code is off by at most 1/16 of itself, and by half of 2^-9 near zero. A row of
x is a token, so that one loud token takes no bits from the others; a row of the weight is an output. For the way back, dx = dy W, rows have to
be inputs: the transposed weight has codes and scales of its own (quant/tensor.py), as the scales of outputs cannot be taken out of that sum.

On GPUs since compute capability 8.9 torch._scaled_mm multiplies the codes (their products are added up in 32 bits, and scaled once at the end)
and Triton codes the rows; the reference does the same in float32. Sources: Micikevicius et al. 2022 (arXiv 2209.05433) for the format;
per-row scales as in torchao's row-wise recipe. The code is ours.
"""

import importlib
import os
import threading
import weakref
from contextlib import nullcontext
from functools import cache

import torch
from torch import Tensor

from tunesmith.errors import BadInput
from tunesmith.kernels.native import VARIABLE, uses_triton
from tunesmith.kernels.operations import operation

LARGEST = 448.0  # of e4m3
LEAST = 1e-30  # a row is never divided by less: one of zeros gives zeros
MULTIPLE = 16  # of rows and columns of a weight, for the GPU's products


@cache
def multiplies(device: torch.device) -> bool:
    """Whether a device has matrix products of e4m3."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def must_multiply(device: torch.device, where: str) -> None:
    """Raises BadInput where FP8 would be slower than what it is made from, unless the reference is asked for."""
    if not multiplies(device) and os.environ.get(VARIABLE) != "reference":
        named = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
        raise BadInput(
            f"{named} has no products in FP8", where=where,
            fix="a GPU since compute capability 8.9 (H100, L40S, RTX 4090); or method: lora, or quantization.scheme: nf4",
        )  # fmt: skip


# --- codes ----------------------------------------------------------------------------------------------------------------


def quantize_rows(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest e4m3 code of each number relative to the largest of its row: uint8 [M, K], and float32 [M], the largest over 448.

    The scale of a row with NaN or infinity is not finite; its codes mean nothing.
    """
    codes_MK, scale_M = _float8_rows(x_MK)
    return codes_MK, scale_M


def _rows_work(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    if not uses_triton(x_MK.device.type) or x_MK.dtype == torch.float64 or not x_MK.numel():
        return quantize_rows_reference(x_MK)
    x_MK = x_MK.contiguous()
    codes_MK, scale_M = _rows_shapes(x_MK)
    with torch.cuda.device(x_MK.device) if x_MK.is_cuda else nullcontext():
        importlib.import_module("tunesmith.kernels.float8_triton").quantize_rows_triton(x_MK, codes_MK.view(torch.float8_e4m3fn), scale_M)
    return codes_MK, scale_M


def _rows_shapes(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    return x_MK.new_empty(x_MK.shape, dtype=torch.uint8), x_MK.new_empty(len(x_MK), dtype=torch.float32)


_float8_rows = operation("float8_rows(Tensor x) -> (Tensor, Tensor)", _rows_work, _rows_shapes)


def quantize_rows_reference(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    wide_MK = x_MK.float()
    scale_M = wide_MK.abs().amax(1) / LARGEST
    codes_MK = (wide_MK / scale_M.clamp(min=LEAST)[:, None]).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return codes_MK.view(torch.uint8), scale_M


def dequantize_rows(codes_MK: Tensor, scale_M: Tensor) -> Tensor:
    """code * scale, float32."""
    return codes_MK.view(torch.float8_e4m3fn).float() * scale_M[:, None]


# --- products -------------------------------------------------------------------------------------------------------------


def product(x_MK: Tensor, codes_NK: Tensor, scale_N: Tensor) -> Tensor:
    """x' w'.T of what the codes of both stand for, added up in 32 bits and rounded once to the dtype of x."""
    x_codes_MK, x_scale_M = _codes_of(x_MK)
    n, k = codes_NK.shape
    if uses_triton("cuda") and multiplies(x_MK.device) and n % MULTIPLE == 0 and k % MULTIPLE == 0 and x_MK.dtype == torch.bfloat16:
        return scaled_mm(x_codes_MK, x_scale_M, codes_NK, scale_N, x_MK.dtype)
    return product_reference(x_codes_MK, x_scale_M, codes_NK, scale_N, x_MK.dtype)


def scaled_mm(x_codes_MK: Tensor, x_scale_M: Tensor, codes_NK: Tensor, scale_N: Tensor, dtype: torch.dtype) -> Tensor:
    """By torch's own: rows of the left and columns of the right matrix with a scale each."""
    left, right = x_codes_MK.view(torch.float8_e4m3fn), codes_NK.view(torch.float8_e4m3fn).t()
    return torch._scaled_mm(left, right, scale_a=x_scale_M[:, None], scale_b=scale_N[None, :], out_dtype=dtype, use_fast_accum=True)


def product_reference(x_codes_MK: Tensor, x_scale_M: Tensor, codes_NK: Tensor, scale_N: Tensor, dtype: torch.dtype) -> Tensor:
    return (dequantize_rows(x_codes_MK, x_scale_M) @ dequantize_rows(codes_NK, scale_N).T).to(dtype)


_last = threading.local()


def _codes_of(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """As `quantize_rows`; once for all projections of one input, which follow each other and change nothing in it."""
    if x_MK.is_inference():  # has no version to tell whether it was changed
        return quantize_rows(x_MK)
    held = getattr(_last, "held", None)
    if held is not None and held[0]() is x_MK and held[1] == x_MK._version:
        found: tuple[Tensor, Tensor] = held[2]
        return found
    codes = quantize_rows(x_MK)
    _last.held = weakref.ref(x_MK, lambda _gone: _last.__dict__.pop("held", None)), x_MK._version, codes
    return codes
