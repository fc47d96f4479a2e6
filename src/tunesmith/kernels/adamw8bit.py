"""One AdamW step over moments that are kept in 8 bits: codes of 256 levels, and a float32 scale for every 256 of them.

    adamw8bit(parameter, gradient, first, second, maps, settings)      # everything in place

On a CPU compiled C does it block by block (native.py); elsewhere, and where there is no compiler, the reference below, a piece of
the tensor at a time, so that no float32 copy of a whole moment ever exists. Both take AdamW's step from moments that were rounded
after the step before; they differ by the rounding of float32 arithmetic (the compiler of torch fuses multiplications with additions,
ours must not), which now and then moves a value across the border between two codes.

Source: Dettmers et al. 2022 (arXiv 2110.02861), sections 2 and 3; AdamW: Loshchilov & Hutter 2019 (arXiv 1711.05101).
"""

import ctypes
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from tunesmith.kernels.blocks_4bit import LEAST_SCALE, n_threads
from tunesmith.kernels.native import compiled

BLOCK = 256  # values that share a scale
FIRST_HEAD, HEADS = 0x3380, 3200  # numbers from 2^-24 to below 2 by their first 16 bits; the level next to zero is larger than 2^-24


@dataclass(frozen=True)
class MomentMap:
    """Levels of a moment between -1 (or 0) and 1, rising; bounds[i] lies between level i and i + 1, and the last is infinite.

    lowest_6400   the code of the smallest number whose float32 begins with the same 16 bits; positive numbers first, then negative
                  ones: the bounds lie farther apart than such numbers reach, so the code is this one or the next
    """

    levels_256: Tensor
    bounds_256: Tensor
    lowest_6400: Tensor


@dataclass(frozen=True)
class Moment:
    """codes uint8 [n], scales float32 [ceil(n / 256)]."""

    codes: Tensor
    scales: Tensor


@dataclass(frozen=True)
class Settings:
    """Of one parameter in one step; n_steps counts this one."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    n_steps: int

    @property
    def correction1(self) -> float:
        return 1 - self.beta1**self.n_steps

    @property
    def correction2(self) -> float:
        return 1 - self.beta2**self.n_steps


def map_of(levels_256: Tensor, signed: bool) -> MomentMap:
    """Without a sign, a number above zero never gets the code of zero (why: training/adamw8bit.py)."""
    bounds = torch.cat(((levels_256[:-1] + levels_256[1:]) / 2, torch.tensor([torch.inf])))
    if not signed:
        bounds[0] = 0.0
    heads = torch.arange(FIRST_HEAD, FIRST_HEAD + HEADS, dtype=torch.int32) << 16
    heads[0] = 0  # everything smaller too
    smallest = torch.cat(
        (heads.view(torch.float32), -(heads | 0xFFFF).view(torch.float32))
    )  # of negative numbers, the one of the largest size
    return MomentMap(levels_256, bounds, torch.bucketize(smallest, bounds[:-1]).to(torch.int32))


@torch.no_grad()
def adamw8bit(
    parameter: Tensor, gradient: Tensor, first: Moment, second: Moment, maps: tuple[MomentMap, MomentMap], settings: Settings
) -> None:
    """Update `parameter` [n] (float32, its values one after another) and both moments in place; maps: of the first and second moment."""
    n, s = len(parameter), settings
    together = gradient.dtype == torch.float32 and gradient.is_contiguous() and parameter.is_contiguous()
    if together and parameter.device.type == "cpu" and (native := compiled()) is not None:
        numbers = (
            1 - s.lr * s.weight_decay, s.lr / s.correction1, 1 - s.beta1, s.beta2, 1 - s.beta2, math.sqrt(s.correction2), s.eps,
        )  # fmt: skip
        tensors = (parameter, gradient, first.codes, first.scales, second.codes, second.scales)
        tables = (table for m in maps for table in (m.levels_256, m.bounds_256, m.lowest_6400))
        native.library.tunesmith_adamw8bit(
            native.path, n_threads(parameter), n, *(t.data_ptr() for t in (*tensors, *tables)), (ctypes.c_float * 7)(*numbers)
        )
    else:
        adamw8bit_reference(parameter, gradient, first, second, maps, settings)


def adamw8bit_reference(
    parameter: Tensor, gradient: Tensor, first: Moment, second: Moment, maps: tuple[MomentMap, MomentMap], settings: Settings
) -> None:
    n_at_once = 1 << 18 if parameter.device.type == "cpu" else 1 << 24  # a piece stays in the cache; a GPU wants few launches
    for start in range(0, len(parameter), n_at_once):
        piece, blocks = slice(start, start + n_at_once), slice(start // BLOCK, (start + n_at_once) // BLOCK)
        moments = [dequantize(m.codes[piece], m.scales[blocks], levels) for m, levels in zip((first, second), maps)]
        adamw(parameter[piece], gradient[piece], moments[0], moments[1], settings)
        for moment, values, levels in zip((first, second), moments, maps):
            moment.codes[piece], moment.scales[blocks] = quantize(values, levels)


def adamw(parameter: Tensor, gradient: Tensor, first: Tensor, second: Tensor, settings: Settings) -> None:
    """One AdamW step in place, float32 moments too; the order of operations is torch's, and so are the results, bit for bit."""
    s = settings
    parameter.mul_(1 - s.lr * s.weight_decay)
    first.lerp_(gradient, 1 - s.beta1)
    second.mul_(s.beta2).addcmul_(gradient, gradient, value=1 - s.beta2)
    parameter.addcdiv_(first, (second.sqrt() / math.sqrt(s.correction2)).add_(s.eps), value=-s.lr / s.correction1)


def quantize(x: Tensor, levels: MomentMap) -> tuple[Tensor, Tensor]:
    """Nearest level of each value relative to the largest of its block: codes uint8 [n] and scales float32 [ceil(n / 256)].

    The same codes as torch.bucketize(x / scale, bounds), eight times faster: most of the search is one look into a table.
    """
    n = len(x)
    x_GB = pad(x, (0, -n % BLOCK)).view(-1, BLOCK)
    scale_G = x_GB.abs().amax(dim=1)
    part = (x_GB * (1 / scale_G.clamp(min=LEAST_SCALE))[:, None]).clamp_(-1, 1).view(-1)[:n]
    bits = part.view(torch.int32)
    head = (((bits & 0x7FFFFFFF) >> 16) - FIRST_HEAD).clamp_(0, HEADS - 1) + (bits < 0) * HEADS
    lowest = levels.lowest_6400.index_select(0, head)
    return (lowest + (part > levels.bounds_256.index_select(0, lowest))).to(torch.uint8), scale_G


def dequantize(codes: Tensor, scale_G: Tensor, levels: MomentMap) -> Tensor:
    """float32 [n]."""
    values = pad(levels.levels_256.index_select(0, codes.int()), (0, -len(codes) % BLOCK))
    return (values.view(-1, BLOCK) * scale_G[:, None]).view(-1)[: len(codes)]
