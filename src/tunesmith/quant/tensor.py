"""A weight in few bits: codes, scales, shape; and the way there and back.

    q = quantize(weight_NK, find_scheme("nf4"))       # outputs x inputs
    weight_NK = dequantize(q, torch.bfloat16)         # or into a buffer: dequantize_into(q, out_NK)
    row_MK = dequantize_rows(q, ids_M)                # some rows, as an embedding needs them

Blocks lie along a row and end with it (layout "rows": a row can be cut off, sharded, de-quantised alone), or run over the
flattened weight (layout "flat": bitsandbytes' files). Where the block divides the row both hold the same codes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from tunesmith.errors import BadInput
from tunesmith.kernels import float8
from tunesmith.kernels.blocks_4bit import GROUP, PIECE, dequantize_4bit, quantize_4bit
from tunesmith.quant import affine
from tunesmith.quant.codebook import codebook_on
from tunesmith.quant.scales import Scales
from tunesmith.quant.scheme import Scheme

CACHED = 1 << 18  # weights whose float32 temporaries stay in the cache of a CPU

Layout: TypeAlias = Literal["rows", "flat"]


@dataclass(frozen=True)
class QTensor:
    """codes uint8 [N, P] (int8 for int5 … int8), P bytes a row; scales of G blocks a row; zeros uint8 [N·G] of affine schemes.

    back   of fp8: codes [K, N] and scales float32 [K] of the transposed weight, which is coded by itself
    In layout "flat" the weight counts as one row of N·K values.
    """

    scheme: Scheme
    shape: tuple[int, int]
    layout: Layout
    codes: Tensor
    scales: Scales
    zeros: Tensor | None = None
    back: tuple[Tensor, Tensor] | None = None

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def rows_cols(self) -> tuple[int, int]:
        """Rows that blocks run along, and their length."""
        n, k = self.shape
        return (n, k) if self.layout == "rows" else (1, n * k)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that must be stored, by name; `from_tensors` is the way back."""
        named = {
            "codes": self.codes,
            "scales": self.scales.stored,
            "groups": self.scales.groups,
            "offset": self.scales.offset,
            "zeros": self.zeros,
            "back_codes": None if self.back is None else self.back[0],
            "back_scales": None if self.back is None else self.back[1],
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def to(self, device: torch.device) -> "QTensor":
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return from_tensors(self.scheme, self.shape, self.layout, moved)


def from_tensors(scheme: Scheme, shape: tuple[int, int], layout: Layout, tensors: Mapping[str, Tensor]) -> QTensor:
    """A QTensor from stored tensors; refuses what cannot belong together (a truncated or tampered file)."""
    expected = stored_shapes(scheme, shape, layout)
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise BadInput(
                f'the quantised weight\'s "{name}" should be {expected.get(name, "absent")}, and is {found.get(name, "missing")}',
                fix="the file is damaged or belongs to another model: quantise again",
            )
    scales = Scales(tensors["scales"], tensors.get("groups"), tensors.get("offset"))
    back = (tensors["back_codes"], tensors["back_scales"]) if scheme.is_float8 else None
    return QTensor(scheme, shape, layout, tensors["codes"], scales, tensors.get("zeros"), back)


def stored_shapes(scheme: Scheme, shape: tuple[int, int], layout: Layout) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of each stored tensor of a weight [N, K]."""
    n, k = shape if layout == "rows" else (1, shape[0] * shape[1])
    if scheme.is_float8:
        codes_only, scales_only = torch.uint8, torch.float32
        return {
            "codes": ((n, k), codes_only), "scales": ((n,), scales_only), "back_codes": ((k, n), codes_only), "back_scales": ((k,), scales_only)
        }  # fmt: skip
    n_blocks = n * -(-k // (scheme.block_size or k))
    whole_bytes = scheme.codes_per_byte == 1
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "codes": ((n, -(-k // scheme.codes_per_byte)), torch.int8 if whole_bytes and not scheme.has_zero_point else torch.uint8),
        "scales": ((n_blocks,), torch.uint8 if scheme.double else torch.float32),
    }
    if scheme.double:
        shapes |= {"groups": ((-(-n_blocks // GROUP),), torch.float32), "offset": ((), torch.float32)}
    if scheme.has_zero_point:
        shapes["zeros"] = ((n_blocks,), torch.uint8)
    return shapes


@torch.no_grad()
def quantize(weight_NK: Tensor, scheme: Scheme, layout: Layout = "rows", where: str = "") -> QTensor:
    """Refuses NaN and inf, of which a few bits could say nothing. FP8 has rows, whatever layout is asked for."""
    n, k = weight_NK.shape
    if scheme.is_float8:
        return _quantize_float8(weight_NK, scheme, where)
    x = weight_NK.contiguous().view((n, k) if layout == "rows" else (1, n * k))
    if x.dtype not in (torch.float32, torch.bfloat16):
        x = x.float()
    if scheme.is_codebook:
        book = codebook_on(scheme.name, x.device)
        assert scheme.block_size is not None
        codes, scale_G = quantize_4bit(x, book.bounds_15, book.order_16, scheme.block_size)
        zeros = None
    else:
        codes, scale_G, zeros = _quantize_affine(x, scheme)
    _must_be_finite(scale_G, where)
    return QTensor(scheme, (n, k), layout, codes, Scales.doubled(scale_G) if scheme.double else Scales.exact(scale_G), zeros)


def _quantize_float8(weight_NK: Tensor, scheme: Scheme, where: str) -> QTensor:
    codes_NK, scale_N = float8.quantize_rows(weight_NK)
    _must_be_finite(scale_N, where)
    back = float8.quantize_rows(weight_NK.T.contiguous())
    return QTensor(scheme, (len(codes_NK), codes_NK.shape[1]), "rows", codes_NK, Scales.exact(scale_N), back=back)


def _must_be_finite(scale_G: Tensor, where: str) -> None:
    if not bool(torch.isfinite(scale_G).all()):
        raise BadInput(
            "a weight that is NaN or infinite cannot be quantised", where=where, fix="the model is broken: copy or download it again"
        )


def dequantize(q: QTensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [N, K] that the codes stand for."""
    return dequantize_into(q, torch.empty(q.shape, dtype=dtype, device=q.codes.device))


def dequantize_into(q: QTensor, out_NK: Tensor) -> Tensor:
    """The same into a contiguous buffer of N·K numbers, float32 or bfloat16; every value is computed in float32 and rounded once."""
    out = out_NK.view(q.rows_cols)
    if q.scheme.is_float8:
        for rows in _pieces(out):
            out[rows] = float8.dequantize_rows(q.codes[rows], q.scales.stored[rows])
    elif q.scheme.is_codebook:
        assert q.scheme.block_size is not None
        book = codebook_on(q.scheme.name, q.codes.device)
        dequantize_4bit(q.codes, book.levels_16, q.scales.stored, q.scheme.block_size, out, q.scales.nested)
    else:
        _dequantize_affine(q, out)
    return out_NK


@torch.no_grad()
def dequantize_rows(q: QTensor, row_M: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Some rows [M, K] of the weight, by their numbers: dequantize(q, dtype)[row_M], and only they are made.

    Where blocks (or bytes) run across the ends of rows, as they may in layout "flat", the whole weight is made on the way.
    """
    n, k = q.shape
    block, row_M = q.scheme.block_size or q.rows_cols[1], row_M.long()
    if q.layout == "flat" and (k % block or k % q.scheme.codes_per_byte):
        return dequantize(q, dtype)[row_M]
    n_blocks = -(-k // block)
    block_I = (row_M[:, None] * n_blocks + torch.arange(n_blocks, device=row_M.device)).flatten()
    zeros = None if q.zeros is None else q.zeros[block_I]
    exact = replace(q.scheme, double=False)
    return dequantize(QTensor(exact, (len(row_M), k), "rows", q.codes.view(n, -1)[row_M], q.scales.at(block_I), zeros), dtype)


def _quantize_affine(x: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor, Tensor | None]:
    """Groups of a block each; the ragged ends of rows are groups of their own length. A few rows at a time: temporaries are float32."""
    n, k = x.shape
    block = scheme.block_size or k
    n_blocks = -(-k // block)
    scale_NG = torch.empty(n, n_blocks, dtype=torch.float32, device=x.device)
    zero_NG = torch.empty(n, n_blocks, dtype=torch.uint8, device=x.device) if scheme.has_zero_point else None
    whole_bytes = torch.int8 if scheme.levels.signed and scheme.codes_per_byte == 1 else torch.uint8
    codes_NP = torch.empty(n, -(-k // scheme.codes_per_byte), dtype=whole_bytes, device=x.device)
    for rows in _pieces(x):
        codes_RK = torch.empty(len(x[rows]), k, dtype=torch.int8 if scheme.levels.signed else torch.uint8, device=x.device)
        for columns, groups, size in spans(k, scheme.block_size):
            x_GB = x[rows, columns].reshape(-1, size)
            scale_G, zero_G = affine_scale(x_GB, scheme)
            if zero_NG is not None and zero_G is not None:
                zero_NG[rows, groups] = zero_G.view(len(codes_RK), -1)
            scale_NG[rows, groups] = scale_G.view(len(codes_RK), -1)
            codes_RK[:, columns] = affine.quantize(x_GB, scheme.levels, scale_G, zero_G).view(len(codes_RK), -1)
        codes_NP[rows] = pack(codes_RK, scheme)
    return codes_NP, scale_NG.view(-1), None if zero_NG is None else zero_NG.view(-1)


def _pieces(weight_NK: Tensor) -> Iterator[slice]:
    """A few rows at a time, so that their temporaries fit into a CPU's cache, and beside any weight on a GPU."""
    n, k = weight_NK.shape
    step = max(1, (CACHED if weight_NK.device.type == "cpu" else PIECE) // k)
    return (slice(start, start + step) for start in range(0, n, step))


def affine_scale(x_GB: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor | None]:
    """Scale of each group, and zero point where the scheme has one, after clipping."""
    inside_GB = affine.clip_ends(x_GB, scheme.clip)
    return (
        affine.minmax_scale(inside_GB, scheme.levels) if scheme.has_zero_point else (affine.symmetric_scale(inside_GB, scheme.levels), None)
    )


def spans(k: int, block_size: int | None) -> Iterator[tuple[slice, slice, int]]:
    """(columns, blocks, size of a block): the whole blocks of rows of `k` weights, then the ragged ends."""
    block = block_size or k
    whole = k // block
    if whole:
        yield slice(0, whole * block), slice(0, whole), block
    if k % block:
        yield slice(whole * block, k), slice(whole, whole + 1), k % block


@torch.no_grad()
def _dequantize_affine(q: QTensor, out: Tensor) -> None:
    n, k = out.shape
    n_blocks = -(-k // (q.scheme.block_size or k))
    scale_NG = q.scales.values().view(n, n_blocks)
    zero_NG = None if q.zeros is None else q.zeros.view(n, n_blocks)
    for rows in _pieces(out):
        codes_RK = unpack(q.codes[rows], q.scheme, k)
        for columns, groups, size in spans(k, q.scheme.block_size):
            zero_G = None if zero_NG is None else zero_NG[rows, groups].reshape(-1)
            values = affine.dequantize(codes_RK[:, columns].reshape(-1, size), scale_NG[rows, groups].reshape(-1), zero_G)
            out[rows, columns] = values.view(len(codes_RK), -1)


def pack(codes_NK: Tensor, scheme: Scheme) -> Tensor:
    """Bytes [N, P]: 1, 2 or 4 codes in each, the first in the highest bits; signed codes are counted from the lowest."""
    per_byte = scheme.codes_per_byte
    if per_byte == 1:
        return codes_NK
    width = 8 // per_byte
    counted = (codes_NK.int() - scheme.levels.lowest).to(torch.uint8)
    padded = torch.nn.functional.pad(counted, (0, -counted.shape[1] % per_byte))
    parts = padded.view(len(padded), -1, per_byte)
    packed = torch.zeros(parts.shape[:2], dtype=torch.uint8, device=codes_NK.device)
    for place in range(per_byte):
        packed |= parts[:, :, place] << (8 - width * (place + 1))
    return packed


def unpack(codes_NP: Tensor, scheme: Scheme, n_columns: int) -> Tensor:
    """The codes [N, K] again."""
    per_byte = scheme.codes_per_byte
    if per_byte == 1:
        return codes_NP
    width = 8 // per_byte
    parts = [(codes_NP >> (8 - width * (place + 1))) & ((1 << width) - 1) for place in range(per_byte)]
    codes_NK = torch.stack(parts, dim=-1).view(len(codes_NP), -1)[:, :n_columns]
    return (codes_NK.to(torch.int8) + scheme.levels.lowest) if scheme.levels.signed else codes_NK
