"""The same de-quantisation on a GPU, in Triton; called by blocks_4bit.py, whose docstrings are the contract.

A program takes a run of bytes of one row, and so of whole pairs: blocks are even, and both codes of a byte share a scale.
TRITON_INTERPRET=1 runs it on a CPU, which is how it is tested without a GPU; the interpreter cuts off what a GPU rounds to bfloat16.
"""

import triton
import triton.language as tl
from torch import Tensor

MOST_BYTES = 1024  # that a program takes


def dequantize_4bit_triton(
    codes_NP: Tensor,
    levels_16: Tensor,
    absmax: Tensor,
    block_size: int,
    out_NK: Tensor,
    table_256: Tensor | None = None,
    groups: Tensor | None = None,
    offset: float = 0.0,
) -> Tensor:
    """dequantize_4bit of blocks_4bit.py with its Nested taken apart: all three of table, groups and offset, or none."""
    n_rows, n_columns = out_NK.shape
    n_bytes = min(MOST_BYTES, triton.next_power_of_2(codes_NP.shape[1]))
    pieces = triton.cdiv(codes_NP.shape[1], n_bytes)
    _dequantize[(n_rows * pieces,)](
        codes_NP, levels_16, absmax, table_256, groups, offset, out_NK, n_columns, pieces,
        BLOCK=block_size, BYTES=n_bytes, NESTED=table_256 is not None,
        enable_fp_fusion=False,  # table * group + offset is rounded twice, as on a CPU
    )  # fmt: skip
    return out_NK


@triton.jit  # type: ignore[untyped-decorator]
def _dequantize(  # type: ignore[no-untyped-def]
    codes_ptr, levels_ptr, absmax_ptr, table_ptr, groups_ptr, offset, out_ptr, n_columns, pieces,
    BLOCK: tl.constexpr, BYTES: tl.constexpr, NESTED: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // pieces).to(tl.int64)
    start = (tl.program_id(0) % pieces).to(tl.int64) * BYTES  # int64: a flat weight may have more than 2**31 numbers
    byte = start + tl.arange(0, BYTES)
    inside = byte < (n_columns + 1) // 2
    pair = tl.load(codes_ptr + row * ((n_columns + 1) // 2) + byte, mask=inside, other=0).to(tl.int32)
    block = row * tl.cdiv(n_columns, BLOCK) + 2 * byte // BLOCK
    if NESTED:
        code = tl.load(absmax_ptr + block, mask=inside, other=0).to(tl.int32)
        scale = tl.load(table_ptr + code) * tl.load(groups_ptr + block // 256, mask=inside, other=0.0) + offset
    else:
        scale = tl.load(absmax_ptr + block, mask=inside, other=0.0)
    first = tl.load(levels_ptr + (pair >> 4)) * scale
    second = tl.load(levels_ptr + (pair & 15)) * scale
    column = 2 * start + tl.arange(0, 2 * BYTES)
    tl.store(out_ptr + row * n_columns + column, tl.interleave(first, second), mask=column < n_columns)
