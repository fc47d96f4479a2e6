"""Four-bit codes in blocks that share a scale: numbers from codes, and codes from numbers.

    dequantize_4bit(codes_NP, levels_16, absmax, 64, out_NK)            # value = levels[code] * scale of its block
    codes_NP, absmax = quantize_4bit(weight_NK, bounds_15, order_16, 64)

A row of 6 numbers in blocks of 4, with the levels -1, -13/15 ... 1 and the scales 2.0 and 0.5:

    codes    0    15     7     8  |   15     0          two to a byte, the first in the high half: 0x0f 0x78 0xf0
    values  -2     2  -.13   .13  |   .5   -.5

What the levels are is the caller's matter (NF4, FP4, evenly spaced). One weight in bitsandbytes' layout, whose blocks run over the
flattened matrix, is a matrix of one row here. The arithmetic of both directions is that of bitsandbytes' torch code, so its files
can be read and written bit for bit; the code is ours.

CUDA tensors are read by Triton, CPU tensors by compiled C (native.py), everything else by the references below: the other paths equal
them bit for bit. Blocks and nested scales: Dettmers et al. 2023 (arXiv 2305.14314), section 3.
"""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from tunesmith.kernels.native import compiled, uses_triton

GROUP = 256  # scales that share a second-level scale
LEAST_SCALE = 1e-38  # a block is never divided by less: an all-zero one gives zeros, not NaN
ONE_THREAD = 1 << 15  # numbers below which waking a second thread costs more than it saves
PIECE = 1 << 22  # numbers that a reference works on at a time, for its temporaries are several times as large


@dataclass(frozen=True)
class Nested:
    """Second level: scale i is table_256[codes[i]] * groups[i // 256] + offset, each step rounded to float32.

    table_256   float32, the value of each 8-bit code
    groups      float32 [ceil(n_blocks / 256)], in the unit of the weight, as is offset
    """

    table_256: Tensor
    groups: Tensor
    offset: float


# --- numbers from codes ---------------------------------------------------------------------------------------------------


def dequantize_4bit(
    codes_NP: Tensor, levels_16: Tensor, absmax: Tensor, block_size: int, out_NK: Tensor, nested: Nested | None = None
) -> Tensor:
    """Write levels[code] * scale, in float32 and then rounded once to the type of `out_NK`, which is returned.

    codes_NP    uint8 [N, ceil(K / 2)], two codes to a byte, the first in the high half
    levels_16   float32, the level of each code
    absmax      float32 [N * ceil(K / block_size)], one scale per block, row by row; with `nested` uint8 codes of the same length
    block_size  even; blocks run along K and end with the row, so the last one of a row may be shorter
    out_NK      float32 or bfloat16, contiguous
    """
    n_rows, n_columns = out_NK.shape
    _check_codes(codes_NP, absmax, torch.uint8 if nested else torch.float32, block_size, n_rows, n_columns)
    _check("out", out_NK, (n_rows, n_columns), (torch.float32, torch.bfloat16), codes_NP.device)
    _check("levels", levels_16, (16,), (torch.float32,), codes_NP.device)
    if nested is not None:
        _check("nested.table_256", nested.table_256, (256,), (torch.float32,), codes_NP.device)
        _check("nested.groups", nested.groups, (-(-len(absmax) // GROUP),), (torch.float32,), codes_NP.device)
    if out_NK.numel() == 0:
        return out_NK
    if out_NK.is_cuda and uses_triton("cuda"):
        kernels = importlib.import_module("tunesmith.kernels.blocks_4bit_triton")
        table_256, groups, offset = (nested.table_256, nested.groups, nested.offset) if nested else (None, None, 0.0)
        with torch.cuda.device(out_NK.device):
            kernels.dequantize_4bit_triton(codes_NP, levels_16, absmax, block_size, out_NK, table_256, groups, offset)
    elif out_NK.device.type == "cpu" and (native := compiled()) is not None:
        native.library.tunesmith_dequantize_4bit(
            native.path, n_threads(out_NK), n_rows, n_columns, block_size, codes_NP.data_ptr(), levels_16.data_ptr(),
            None if nested else absmax.data_ptr(), absmax.data_ptr() if nested else None,
            nested.table_256.data_ptr() if nested else None, nested.groups.data_ptr() if nested else None,
            nested.offset if nested else 0.0, out_NK.dtype == torch.bfloat16, out_NK.data_ptr(),
        )  # fmt: skip
    else:
        width, pieces = _pieces(n_rows, n_columns, block_size)
        out_RW, codes_RP = out_NK.view(-1, width), codes_NP.view(-1, (width + 1) // 2)
        scales_RG = block_scales(absmax, nested).view(len(out_RW), -1)
        for rows in pieces:
            dequantize_4bit_reference(codes_RP[rows], levels_16, scales_RG[rows].flatten(), block_size, out_RW[rows])
        return out_NK
    torch.autograd.graph.increment_version(out_NK)  # written behind torch's back: a backward that saved the old content must notice
    return out_NK


def dequantize_4bit_reference(
    codes_NP: Tensor, levels_16: Tensor, absmax: Tensor, block_size: int, out_NK: Tensor, nested: Nested | None = None
) -> Tensor:
    """The same in readable torch, on any device."""
    n_rows, n_columns = out_NK.shape
    code_NK = torch.stack((codes_NP >> 4, codes_NP & 15), -1).view(n_rows, -1)[:, :n_columns]
    scale_NG = block_scales(absmax, nested).view(n_rows, -1)
    scale_NK = scale_NG.repeat_interleave(min(block_size, n_columns), 1)[:, :n_columns]
    return out_NK.copy_(levels_16[code_NK.int()] * scale_NK)


def block_scales(absmax: Tensor, nested: Nested | None) -> Tensor:
    """The float32 scale of each block."""
    if nested is None:
        return absmax
    return nested.table_256[absmax.int()] * nested.groups.repeat_interleave(GROUP)[: len(absmax)] + nested.offset


# --- codes from numbers ---------------------------------------------------------------------------------------------------


def quantize_4bit(weight_NK: Tensor, bounds_15: Tensor, order_16: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """The code of each number relative to the largest of its block: order[how many bounds lie strictly below x / absmax].

    weight_NK   float32, bfloat16 or float16, contiguous
    bounds_15   float32, ascending: where one level ends and the next begins
    order_16    integers, the code of each level, by the size of the level
    block_size  even; the last block of a row may be shorter
    Returns codes uint8 [N, ceil(K / 2)], the spare half byte of an odd row being the code of 0, and absmax float32
    [N * ceil(K / block_size)] in the unit of the weight: 0.0 for a block of zeros, not finite for a block with NaN or infinity, whose
    codes mean nothing; the caller refuses it.

    x / absmax is x * (1 / absmax) in a whole block and a division in a shorter last one: bitsandbytes' arithmetic, whose codes these are.
    """
    _check("weight", weight_NK, tuple(weight_NK.shape), (torch.float32, torch.bfloat16, torch.float16), weight_NK.device)
    _check("bounds", bounds_15, (15,), (torch.float32,), weight_NK.device)
    _check("order", order_16, (16,), (torch.uint8, torch.int32, torch.int64), weight_NK.device)
    _check_block_size(block_size)
    n_rows, n_columns = weight_NK.shape
    codes_NP = torch.empty(n_rows, (n_columns + 1) // 2, dtype=torch.uint8, device=weight_NK.device)
    absmax_NG = torch.empty(n_rows, -(-n_columns // block_size), dtype=torch.float32, device=weight_NK.device)
    if weight_NK.numel() == 0:
        return codes_NP, absmax_NG.flatten()
    if weight_NK.device.type == "cpu" and (native := compiled()) is not None:
        numbers_NK = weight_NK.float() if weight_NK.dtype == torch.float16 else weight_NK
        order = order_16.to(torch.uint8)
        native.library.tunesmith_quantize_4bit(
            native.path, n_threads(numbers_NK), n_rows, n_columns, block_size, numbers_NK.data_ptr(), numbers_NK.dtype == torch.bfloat16,
            bounds_15.data_ptr(), order.data_ptr(), codes_NP.data_ptr(), absmax_NG.data_ptr(),
        )  # fmt: skip
        return codes_NP, absmax_NG.flatten()
    width, pieces = _pieces(n_rows, n_columns, block_size)
    weight_RW, codes_RP = weight_NK.view(-1, width), codes_NP.view(-1, (width + 1) // 2)
    absmax_RG = absmax_NG.view(len(weight_RW), -1)
    for rows in pieces:
        codes, absmax = quantize_4bit_reference(weight_RW[rows], bounds_15, order_16, block_size)
        codes_RP[rows] = codes
        absmax_RG[rows] = absmax.view_as(absmax_RG[rows])
    return codes_NP, absmax_NG.flatten()


def quantize_4bit_reference(weight_NK: Tensor, bounds_15: Tensor, order_16: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """The same in readable torch, on any device."""
    n_rows, n_columns = weight_NK.shape
    n_blocks = -(-n_columns // block_size)
    length = min(block_size, n_columns + n_columns % 2)
    x_NGL = pad(weight_NK.float(), (0, n_blocks * length - n_columns)).view(n_rows, n_blocks, length)
    # as integers, absolute values keep their order, and NaN is larger than infinity instead of lost
    absmax_NG = (x_NGL.view(torch.int32) & 0x7FFFFFFF).amax(-1).view(torch.float32)
    divisor_NG1 = absmax_NG.clamp(min=LEAST_SCALE)[..., None]
    scaled_NGL = x_NGL * (1 / divisor_NG1)
    if n_columns % block_size:
        scaled_NGL[:, -1] = x_NGL[:, -1] / divisor_NG1[:, -1]
    below_NGL = torch.bucketize(scaled_NGL.clamp_(-1, 1), bounds_15, out_int32=True)
    code_NK = order_16.to(torch.uint8)[below_NGL].view(n_rows, -1)[:, : n_columns + n_columns % 2]
    return code_NK[:, ::2] << 4 | code_NK[:, 1::2], absmax_NG.flatten()


# --- what both need -------------------------------------------------------------------------------------------------------


def _pieces(n_rows: int, n_columns: int, block_size: int) -> tuple[int, Iterator[slice]]:
    """A width that the matrix can be viewed in without changing its blocks, and slices of such rows of about PIECE numbers."""
    width = n_columns if n_columns % block_size else block_size
    total, step = n_rows * n_columns // width, max(1, PIECE // width)
    return width, (slice(start, start + step) for start in range(0, total, step))


def n_threads(numbers_NK: Tensor) -> int:
    """Of a compiled kernel over so many numbers: few are not worth waking the others."""
    return torch.get_num_threads() if numbers_NK.numel() >= ONE_THREAD else 1


def _check_codes(codes_NP: Tensor, absmax: Tensor, dtype: torch.dtype, block_size: int, n_rows: int, n_columns: int) -> None:
    _check_block_size(block_size)
    _check("codes", codes_NP, (n_rows, (n_columns + 1) // 2), (torch.uint8,), codes_NP.device)
    _check("absmax", absmax, (n_rows * -(-n_columns // block_size),), (dtype,), codes_NP.device)


def _check_block_size(block_size: int) -> None:
    if block_size < 2 or block_size % 2:
        raise ValueError(f"block_size must be even and at least 2, not {block_size}")


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], device: torch.device) -> None:
    """Kernels read raw memory: what does not fit is a mistake of the caller, found before it is a crash."""
    if tuple(tensor.shape) != shape or tensor.dtype not in dtypes or tensor.device != device or not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous {' or '.join(map(str, dtypes))} of shape {shape} on {device}, "
            f"not {tensor.dtype} {tuple(tensor.shape)} with strides {tensor.stride()} on {tensor.device}"
        )
