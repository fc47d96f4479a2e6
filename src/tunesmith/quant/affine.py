"""Whole numbers for real ones: a scale, and a zero point where the range is lopsided.

    symmetric (absmax)      scale = max|x| / 127              code = round(x / scale)            x' = scale * code
    asymmetric (min-max)    scale = (max - min) / 255         code = round(x / scale) + zero     x' = scale * (code - zero)
                            zero  = round(-min / scale)

(8 bits shown.) Every function takes groups as rows, x_GB: one scale per row, so that "per tensor", "per row" and "per block"
differ only in how the caller cuts. Values outside the range saturate: they take the nearest end of it. Rounding is to the
nearest, ties to even. Source: Jacob et al. 2018 (arXiv 1712.05877), section 2.1.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Levels:
    """Which whole numbers a code may be: bits 2 to 8; signed ones are symmetric around zero (-127 … 127, never -128)."""

    bits: int
    signed: bool

    @property
    def lowest(self) -> int:
        return -self.highest if self.signed else 0

    @property
    def highest(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1


def clip_ends(x_GB: Tensor, percentile: float | None) -> Tensor:
    """Each row with its values limited to the `percentile` of their sizes (98, say): an outlier saturates and the others get finer steps.

    The limit is the size that stands at that place or next above it: of 64 values the second largest at 98, the largest at 99.
    """
    if percentile is None:
        return x_GB
    size_GB = x_GB.abs().float()
    limit_G1 = size_GB.kthvalue(1 + place_of(percentile, x_GB.shape[1]), dim=1, keepdim=True).values  # torch.quantile ends at 2**24 values
    return torch.where(size_GB.isfinite().all(dim=1, keepdim=True), x_GB.clamp(-limit_G1, limit_G1), x_GB)  # inf is no outlier


def place_of(percentile: float, n: int) -> int:
    """Which of `n` sizes in rising order, counted from 0, is the limit."""
    return math.ceil(round(percentile / 100 * (n - 1), 6))


def symmetric_scale(x_GB: Tensor, levels: Levels) -> Tensor:
    """float32 [G]: the largest size of each row takes the highest code; a row of zeros has scale 0."""
    return x_GB.float().abs().amax(dim=1) / levels.highest


def minmax_scale(x_GB: Tensor, levels: Levels) -> tuple[Tensor, Tensor]:
    """Scale float32 [G] and zero point uint8 [G]: the code of 0.0, which is a code always, as the range is widened to hold it."""
    low_G = x_GB.float().amin(dim=1).clamp(max=0.0)
    high_G = x_GB.float().amax(dim=1).clamp(min=0.0)
    scale_G = (high_G - low_G) / levels.highest
    zero_G = torch.where(scale_G > 0, -low_G / scale_G, 0.0).round().clamp(0, levels.highest)
    return scale_G, zero_G.to(torch.uint8)


def quantize(x_GB: Tensor, levels: Levels, scale_G: Tensor, zero_G: Tensor | None = None) -> Tensor:
    """Codes [G, B], int8 if signed, otherwise uint8."""
    scale_G1 = scale_G[:, None]
    steps_GB = torch.where(scale_G1 > 0, x_GB.float() / scale_G1, 0.0).round()
    if zero_G is not None:
        steps_GB += zero_G[:, None]
    return steps_GB.clamp(levels.lowest, levels.highest).to(torch.int8 if levels.signed else torch.uint8)


def dequantize(codes_GB: Tensor, scale_G: Tensor, zero_G: Tensor | None = None) -> Tensor:
    """float32 [G, B]."""
    steps_GB = codes_GB.float()
    if zero_G is not None:
        steps_GB -= zero_G[:, None]
    return steps_GB * scale_G[:, None]


def saturated(x_GB: Tensor, levels: Levels, scale_G: Tensor, zero_G: Tensor | None = None) -> Tensor:
    """bool [G, B]: values farther outside the range than rounding would bring them."""
    zero_G1 = 0 if zero_G is None else zero_G[:, None].float()
    steps_GB = torch.where(scale_G[:, None] > 0, x_GB.float() / scale_G[:, None], 0.0) + zero_G1
    return (steps_GB < levels.lowest - 0.5) | (steps_GB > levels.highest + 0.5)
