"""Four bits that are no number but a place in a list of 16 levels between -1 and 1.

    code = nearest level of x / absmax(block)        x' = LEVELS[code] * absmax(block)

NF4 puts its levels where equally many values of a normal distribution fall (Dettmers et al. 2023, arXiv 2305.14314,
appendix E); 0 is a level, and so are -1 and 1. FP4 is a sign, two bits of exponent and one of mantissa. Both lists are those
of bitsandbytes' files, so that the same code means the same weight there and here.

The 8-bit `dynamic_map` holds the scales themselves in double quantisation: 256 levels, denser near zero, between -1 and 1
(Dettmers 2016, arXiv 1511.04561).
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

# fmt: off
NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)
# by code: bit 3 is the sign; 0 0.0625 8 12 4 6 2 3 in units of 1/12
FP4 = tuple(sign * value / 12 for sign in (1, -1) for value in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0))
# fmt: on


@dataclass(frozen=True)
class Codebook:
    """levels_16 by code; bounds_15, the midpoints of neighbouring levels; order_16, the codes by rising level. float32, int64."""

    levels_16: Tensor
    bounds_15: Tensor
    order_16: Tensor

    def to(self, device: torch.device) -> "Codebook":
        if self.levels_16.device == device:  # asked for with every weight: three copies that copy nothing take time too
            return self
        return Codebook(self.levels_16.to(device), self.bounds_15.to(device), self.order_16.to(device))


@cache
def codebook(name: str) -> Codebook:
    levels_16 = torch.tensor({"nf4": NF4, "fp4": FP4}[name], dtype=torch.float32)
    order_16 = torch.argsort(levels_16, stable=True)
    rising_16 = levels_16[order_16]
    return Codebook(levels_16, (rising_16[:-1] + rising_16[1:]) / 2, order_16)


@cache
def codebook_on(name: str, device: torch.device) -> Codebook:
    """The same where it is needed: copied once, as a copy with every weight would make the processor wait for the GPU each time."""
    return codebook(name).to(device)


@cache
def dynamic_map_on(device: torch.device) -> Tensor:
    return dynamic_map().to(device)


@cache
def dynamic_map(signed: bool = True) -> Tensor:
    """256 float32 levels in rising order: 0, 1, and ± the midpoints of 2^i equal parts of [0.1, 1], times 10^(i - 6), for i = 0 … 6.

    Without a sign there are twice as many parts instead.
    """
    levels = [0.0, 1.0]
    for i in range(7):
        ends = torch.linspace(0.1, 1.0, (1 << i if signed else 2 << i) + 1, dtype=torch.float32)
        middles = ((ends[:-1] + ends[1:]) / 2.0) * 10.0 ** (i - 6)
        levels += middles.tolist()
        levels += (-middles).tolist() if signed else []
    return torch.tensor(sorted(levels), dtype=torch.float32)


def nearest_level(x: Tensor, levels: Tensor) -> Tensor:
    """Code (uint8) of the nearest of some rising levels; halfway between two, the lower one."""
    return torch.bucketize(x.contiguous(), (levels[:-1] + levels[1:]) / 2).to(torch.uint8)
