"""Rows to e4m3 codes on a GPU, in Triton; called by float8.py, whose docstrings are the contract.

A program takes a whole row and walks through it twice in pieces: the largest number, then the codes; the second time it comes from the cache.
"""

import triton
import triton.language as tl
from torch import Tensor

PIECE = 4096


def quantize_rows_triton(x_MK: Tensor, codes_MK: Tensor, scale_M: Tensor) -> None:
    """x contiguous, of at most 32 bits; codes float8_e4m3fn."""
    n, n_columns = x_MK.shape
    block = min(PIECE, triton.next_power_of_2(n_columns))
    _quantize_rows[(n,)](x_MK, codes_MK, scale_M, n_columns, BLOCK=block, num_warps=max(4, min(8, block // 512)))


@triton.jit  # type: ignore[untyped-decorator]
def _quantize_rows(x_ptr, codes_ptr, scale_ptr, n_columns, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * n_columns
    codes_ptr += row * n_columns
    largest = 0.0
    broken = 0.0  # a maximum forgets NaN; this sum does not
    for start in range(0, n_columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + column, mask=column < n_columns, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.max(tl.abs(x), 0))
        broken += tl.sum(x * 0.0, 0)
    scale = largest / 448.0
    tl.store(scale_ptr + row, scale + broken)
    divisor = tl.maximum(scale, 1e-30)
    for start in range(0, n_columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + column, mask=column < n_columns, other=0.0).to(tl.float32) / divisor
        x = tl.minimum(tl.maximum(x, -448.0), 448.0)
        tl.store(codes_ptr + column, x.to(codes_ptr.dtype.element_ty), mask=column < n_columns)
