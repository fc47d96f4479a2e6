"""The scales of a quantised tensor: float32, or in 8 bits with scales of their own (double quantisation).

    scales = Scales.exact(absmax_G)                # 32 bits a block: 0.5 bit a weight in blocks of 64
    scales = Scales.doubled(absmax_G)              # 8 + 32/256 bits a block: 0.127 bit a weight
    scales.values()                                # float32 [G]
    scales.at(block_I).values()                    # float32 [I]: values()[block_I], and no others are computed

Double: the mean of all scales is taken off, what remains is coded in groups of 256 by the dynamic map's 256 levels times the
group's largest size. Source: Dettmers et al. 2023 (arXiv 2305.14314), section 3; the arithmetic is bitsandbytes', whose files these are.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tunesmith.kernels.blocks_4bit import GROUP, LEAST_SCALE, Nested, block_scales
from tunesmith.quant.codebook import dynamic_map, dynamic_map_on, nearest_level


@dataclass(frozen=True)
class Scales:
    """stored: float32 [G], or uint8 codes [G] with `groups` float32 [ceil(G / 256)] and `offset` float32 []."""

    stored: Tensor
    groups: Tensor | None = None
    offset: Tensor | None = None

    @classmethod
    def exact(cls, scale_G: Tensor) -> "Scales":
        return cls(scale_G.float())

    @classmethod
    def doubled(cls, scale_G: Tensor) -> "Scales":
        offset = scale_G.float().mean()
        rest_G = scale_G.float() - offset
        padded = torch.nn.functional.pad(rest_G, (0, -len(rest_G) % GROUP)).view(-1, GROUP)
        groups = padded.abs().amax(dim=1)
        scaled = (padded * (1.0 / groups.clamp(min=LEAST_SCALE))[:, None]).clamp(-1, 1).view(-1)[: len(rest_G)]
        return cls(nearest_level(scaled, dynamic_map().to(scaled.device)), groups, offset)

    @cached_property  # its offset is a number, which a GPU has to be waited for
    def nested(self) -> Nested | None:
        """What the 4-bit kernels need to fold the second level in."""
        if self.groups is None or self.offset is None:
            return None
        return Nested(dynamic_map_on(self.stored.device), self.groups, float(self.offset))

    def values(self) -> Tensor:
        """float32 [G]."""
        return block_scales(self.stored, self.nested)

    def at(self, block_I: Tensor) -> "Scales":
        """The exact scales of some blocks, by their numbers: the same values, second level resolved."""
        stored, nested = self.stored[block_I], self.nested
        if nested is None:
            return Scales(stored)
        return Scales(nested.table_256[stored.int()] * nested.groups[block_I // GROUP] + nested.offset)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.stored, self.groups, self.offset) if t is not None)
