"""The row operations on a GPU, in Triton; called by rows.py, whose docstrings are the contract.

Each of them is bound by memory: every number is read once and written once, what lies between is float32 in registers, and each answer is
rounded once. A program takes a tile of whole rows where rows are short (the norms of heads) and one row where they are long; only the
vocabulary is longer than a program and is walked through in pieces.

TRITON_INTERPRET=1 runs them on a CPU, which is how they are tested without a GPU; the interpreter cuts off what a GPU rounds to bfloat16.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # numbers that a program of norms or rotations holds in registers at a time
GATED = 1024  # of a gated activation: three inputs and three answers each
WORDS = 8192  # logits: a row of 256k words is 32 pieces
WAVES = 4  # programs a multiprocessor, of a norm's backward pass that adds up the gradient of its weight


def _rows_and_width(n_columns: int) -> tuple[int, int, int]:
    """Of a tile: rows, columns (a power of two that holds all of them), warps."""
    width: int = triton.next_power_of_2(n_columns)
    rows = max(1, TILE // width)
    return rows, width, max(4, min(16, rows * width // 512))


# --- RMSNorm --------------------------------------------------------------------------------------------------------------


def rmsnorm_triton(
    x_MD: Tensor, weight_D: Tensor, epsilon: float, offset: float, added_MD: Tensor | None, y_MD: Tensor, inverse_M: Tensor, sum_MD: Tensor
) -> None:
    """All contiguous; `sum_MD` is written where there is `added_MD`."""
    n, n_columns = x_MD.shape
    rows, width, warps = _rows_and_width(n_columns)
    _rmsnorm[(triton.cdiv(n, rows),)](
        x_MD, added_MD, weight_D, y_MD, inverse_M, sum_MD, n, n_columns, epsilon, offset,
        ADDS=added_MD is not None, ROWS=rows, WIDTH=width, num_warps=warps,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _rmsnorm(  # type: ignore[no-untyped-def]
    x_ptr, added_ptr, weight_ptr, y_ptr, inverse_ptr, sum_ptr, n_rows, n_columns, epsilon, offset,
    ADDS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = (row < n_rows)[:, None] & (column < n_columns)[None, :]
    at = row[:, None] * n_columns + column[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    if ADDS:
        x = (x.to(tl.float32) + tl.load(added_ptr + at, mask=inside, other=0.0).to(tl.float32)).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + at, x, mask=inside)  # what is normed is the sum as others will read it
    x = x.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x, 1) / n_columns + epsilon)
    weight = tl.load(weight_ptr + column, mask=column < n_columns, other=0.0).to(tl.float32) + offset
    tl.store(y_ptr + at, (x * inverse[:, None] * weight[None, :]).to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(inverse_ptr + row, inverse, mask=row < n_rows)


def rmsnorm_backward_triton(
    dy_MD: Tensor,
    x_MD: Tensor,
    inverse_M: Tensor,
    weight_D: Tensor,
    offset: float,
    added_MD: Tensor | None,
    dx_MD: Tensor,
    wants_weight: bool,
) -> Tensor:
    """Writes `dx_MD`; all contiguous. Returns the weight's gradient, float32 [D], or nothing of that shape."""
    n, n_columns = x_MD.shape
    rows, width, warps = _rows_and_width(n_columns)
    blocks = triton.cdiv(n, rows)
    # to add up over rows in a fixed order, a few programs take many rows each
    programs = min(blocks, WAVES * _multiprocessors(x_MD.device)) if wants_weight else blocks
    parts_PD = torch.empty(programs if wants_weight else 0, n_columns, dtype=torch.float32, device=x_MD.device)
    _rmsnorm_backward[(programs,)](
        dy_MD, x_MD, inverse_M, weight_D, added_MD, dx_MD, parts_PD, n, n_columns, offset, blocks, programs,
        ADDS=added_MD is not None, WANTS_WEIGHT=wants_weight, ROWS=rows, WIDTH=width, num_warps=warps,
    )  # fmt: skip
    return parts_PD.sum(0) if wants_weight else inverse_M.new_empty(n_columns)


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@triton.jit  # type: ignore[untyped-decorator]
def _rmsnorm_backward(  # type: ignore[no-untyped-def]
    dy_ptr, x_ptr, inverse_ptr, weight_ptr, added_ptr, dx_ptr, parts_ptr, n_rows, n_columns, offset, blocks, programs,
    ADDS: tl.constexpr, WANTS_WEIGHT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, WIDTH)
    weight = tl.load(weight_ptr + column, mask=column < n_columns, other=0.0).to(tl.float32) + offset
    d_weight = tl.zeros([WIDTH], dtype=tl.float32)
    for block in range(tl.program_id(0), blocks, programs):
        row = block * ROWS + tl.arange(0, ROWS).to(tl.int64)
        inside = (row < n_rows)[:, None] & (column < n_columns)[None, :]
        at = row[:, None] * n_columns + column[None, :]
        inverse = tl.load(inverse_ptr + row, mask=row < n_rows, other=0.0)
        normal = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32) * inverse[:, None]
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        g = dy * weight[None, :]
        dx = (g - normal * (tl.sum(g * normal, 1) / n_columns)[:, None]) * inverse[:, None]
        if ADDS:
            dx += tl.load(added_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        if WANTS_WEIGHT:
            d_weight += tl.sum(dy * normal, 0)
    if WANTS_WEIGHT:
        tl.store(parts_ptr + tl.program_id(0) * n_columns + column, d_weight, mask=column < n_columns)


# --- rotary positions -----------------------------------------------------------------------------------------------------


def rotate_triton_(x_MHD: Tensor, cos_MR: Tensor, sin_MR: Tensor, back: bool) -> None:
    """x: heads of a token side by side, tokens any distance apart; tables contiguous."""
    n, heads, width = x_MHD.shape
    half = cos_MR.shape[1] // 2
    rows, columns, warps = _rows_and_width(half)
    _rotate[(triton.cdiv(n * heads, rows),)](
        x_MHD, cos_MR, sin_MR, n * heads, heads, width, x_MHD.stride(0), half, -1.0 if back else 1.0,
        BACK=back, ROWS=rows, HALF=columns, num_warps=warps,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _rotate(  # type: ignore[no-untyped-def]
    x_ptr, cos_ptr, sin_ptr, n_rows, heads, width, token_stride, half, sign,
    BACK: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, HALF)
    inside = (row < n_rows)[:, None] & (column < half)[None, :]
    token, head = row // heads, row % heads
    at = (token * token_stride + head * width)[:, None] + column[None, :]
    in_table = (token * 2 * half)[:, None] + column[None, :]
    first = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + at + half, mask=inside, other=0.0).to(tl.float32)
    cos_1 = tl.load(cos_ptr + in_table, mask=inside, other=0.0).to(tl.float32)
    cos_2 = tl.load(cos_ptr + in_table + half, mask=inside, other=0.0).to(tl.float32)
    sin_1 = tl.load(sin_ptr + in_table, mask=inside, other=0.0).to(tl.float32)
    sin_2 = tl.load(sin_ptr + in_table + half, mask=inside, other=0.0).to(tl.float32)
    if BACK:  # the transposed matrix: the sines change places
        sin_1, sin_2 = sin_2, sin_1
    tl.store(x_ptr + at, (first * cos_1 - sign * second * sin_1).to(x_ptr.dtype.element_ty), mask=inside)
    tl.store(x_ptr + at + half, (second * cos_2 + sign * first * sin_2).to(x_ptr.dtype.element_ty), mask=inside)


# --- gated activation -----------------------------------------------------------------------------------------------------


def gate_triton(gelu: bool, gate_MF: Tensor, up_MF: Tensor, y_MF: Tensor) -> None:
    """Numbers of a row side by side, rows any distance apart; the answer contiguous."""
    n, n_columns = gate_MF.shape
    block = min(GATED, triton.next_power_of_2(n_columns))
    pieces = triton.cdiv(n_columns, block)
    _gate[(n * pieces,)](gate_MF, up_MF, y_MF, n_columns, gate_MF.stride(0), up_MF.stride(0), pieces, GELU=gelu, BLOCK=block)


def gate_backward_triton_(gelu: bool, dy_MF: Tensor, gate_MF: Tensor, up_MF: Tensor, d_gate_MF: Tensor, d_up_MF: Tensor) -> None:
    """activation(gate) * up takes the place of dy."""
    n, n_columns = gate_MF.shape
    block = min(GATED, triton.next_power_of_2(n_columns))
    pieces = triton.cdiv(n_columns, block)
    _gate_backward[(n * pieces,)](
        dy_MF, gate_MF, up_MF, d_gate_MF, d_up_MF, n_columns, gate_MF.stride(0), up_MF.stride(0), pieces, GELU=gelu, BLOCK=block
    )


@triton.jit  # type: ignore[untyped-decorator]
def _share(x, GELU: tl.constexpr):  # type: ignore[no-untyped-def]
    # both activations are x times a sigmoid: of x (SiLU), or of 2 sqrt(2 / pi) (x + 0.044715 x x x), as (1 + tanh u) / 2 = sigmoid(2 u)
    if GELU:
        x = 1.5957691216057308 * x * (1.0 + 0.044715 * x * x)
    return tl.sigmoid(x)


@triton.jit  # type: ignore[untyped-decorator]
def _gate(  # type: ignore[no-untyped-def]
    gate_ptr, up_ptr, y_ptr, n_columns, gate_stride, up_stride, pieces, GELU: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = (tl.program_id(0) // pieces).to(tl.int64)
    column = (tl.program_id(0) % pieces) * BLOCK + tl.arange(0, BLOCK)
    inside = column < n_columns
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * n_columns + column, (gate * _share(gate, GELU) * up).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _gate_backward(  # type: ignore[no-untyped-def]
    dy_ptr, gate_ptr, up_ptr, d_gate_ptr, d_up_ptr, n_columns, gate_stride, up_stride, pieces, GELU: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = (tl.program_id(0) // pieces).to(tl.int64)
    column = (tl.program_id(0) % pieces) * BLOCK + tl.arange(0, BLOCK)
    inside = column < n_columns
    at = row * n_columns + column
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
    share = _share(gate, GELU)
    value = gate * share
    slope = 1.0  # of what stands in the sigmoid
    if GELU:
        slope = 1.5957691216057308 * (1.0 + 0.134145 * gate * gate)
    d_value = share + value * (1.0 - share) * slope
    tl.store(dy_ptr + at, (value * up).to(dy_ptr.dtype.element_ty), mask=inside)
    tl.store(d_gate_ptr + at, (dy * up * d_value).to(d_gate_ptr.dtype.element_ty), mask=inside)
    tl.store(d_up_ptr + at, (dy * value).to(d_up_ptr.dtype.element_ty), mask=inside)


# --- cross-entropy --------------------------------------------------------------------------------------------------------


def cross_entropy_triton_(logits_NV: Tensor, target_N: Tensor, gradient: bool) -> Tensor:
    """Both contiguous. Whether a target is one of the words cannot be asked without waiting for the GPU: the loss of one that is not is NaN."""
    n, n_words = logits_NV.shape
    nll_N = torch.empty(n, dtype=torch.float32, device=logits_NV.device)
    block = min(WORDS, triton.next_power_of_2(n_words))
    if n:
        _cross_entropy[(n,)](logits_NV, target_N, nll_N, n_words, GRADIENT=gradient, BLOCK=block, num_warps=max(4, min(16, block // 512)))
    return nll_N.sum(dtype=torch.float64)


@triton.jit  # type: ignore[untyped-decorator]
def _cross_entropy(  # type: ignore[no-untyped-def]
    logits_ptr, target_ptr, nll_ptr, n_words, GRADIENT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * n_words
    target = tl.load(target_ptr + row)
    # read before the first barrier of a reduction: other threads write over it further down
    of_target = tl.load(logits_ptr + target, mask=(target >= 0) & (target < n_words), other=float("nan")).to(tl.float32)
    highest, total = -3.0e38, 0.0  # a finite floor: -inf - -inf would be NaN
    for start in range(0, n_words, BLOCK):
        word = start + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + word, mask=word < n_words, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(x, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher), 0)
        highest = higher
    tl.store(nll_ptr + row, highest + tl.log(total) - of_target)
    if GRADIENT:
        for start in range(0, n_words, BLOCK):
            word = start + tl.arange(0, BLOCK)
            x = tl.load(logits_ptr + word, mask=word < n_words, other=-float("inf")).to(tl.float32)
            share = tl.exp(x - highest) / total
            share = tl.where(word == target, share - 1.0, share)
            tl.store(logits_ptr + word, share.to(logits_ptr.dtype.element_ty), mask=word < n_words)
