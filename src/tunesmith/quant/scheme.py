"""What a quantised weight is: its name, its bits, how far one scale reaches.

scheme = find_scheme("nf4", block_size=64, double=True)
scheme.bits_per_weight(4096)        # 4.127

name                      codes                             one scale for
nf4, fp4                  16 levels of a codebook            a block (64)
int2 … int8               symmetric: -max … max              a block (64); int8: a row
affine2 … affine8         asymmetric: scale and zero point   a block (64); affine8: a row
fp8                       e4m3, multiplied as it is          a row, and a column of the transposed weight, which is stored too
"""

import math
import re
from dataclasses import dataclass

from tunesmith.errors import BadInput, nearest
from tunesmith.kernels.blocks_4bit import GROUP
from tunesmith.quant.affine import Levels, place_of

NAMES = ("nf4", "fp4", *(f"int{bits}" for bits in range(2, 9)), *(f"affine{bits}" for bits in range(2, 9)))
FLOAT8 = "fp8"  # beside NAMES: no weights in few bits that are de-quantised, but codes that are multiplied
DEFAULT_BLOCK = 64


@dataclass(frozen=True)
class Scheme:
    """How weights are stored, and which of a model's.

    block_size   None: the whole row
    double       the scales are kept in 8 bits
    clip         percentile of sizes beyond which values saturate
    embeddings   of a model also the token embeddings and the head, and not only what lies between them
    """

    name: str
    bits: int
    block_size: int | None
    double: bool = False
    clip: float | None = None
    embeddings: bool = False

    @property
    def is_codebook(self) -> bool:
        return self.name in ("nf4", "fp4")

    @property
    def is_float8(self) -> bool:
        """Codes that products are made of, and not weights that codes stand for (kernels/float8.py)."""
        return self.name == FLOAT8

    @property
    def has_zero_point(self) -> bool:
        return self.name.startswith("affine")

    @property
    def in_bitsandbytes(self) -> bool:
        """Whether bitsandbytes has this scheme: its files are written for it, a form of our own otherwise."""
        if self.embeddings:
            return False
        blocks = self.block_size is not None and self.block_size & (self.block_size - 1) == 0  # 32, 64 … 4096
        return blocks if self.is_codebook else (self.name, self.block_size, self.double, self.clip) == ("int8", None, False, None)

    @property
    def levels(self) -> Levels:
        """Of the schemes that count; codebooks have none."""
        return Levels(self.bits, signed=not self.has_zero_point)

    @property
    def codes_per_byte(self) -> int:
        """4 of 2 bits, 2 of up to 4, 1 of more: 3, 5, 6 and 7 bits save no storage here, only levels."""
        return 4 if self.bits == 2 else 2 if self.bits <= 4 else 1

    def bits_per_weight(self, n_inputs: int) -> float:
        """Stored bits, scales and zero points included, of a row of `n_inputs` weights; fp8 but for the scales of the transposed weight."""
        if self.is_float8:
            return 16 + 32 / n_inputs
        block = n_inputs if self.block_size is None else self.block_size
        n_blocks = math.ceil(n_inputs / block)
        scale_bits = 8 + 32 / GROUP if self.double else 32.0
        zero_bits = 8 if self.has_zero_point else 0
        return 8 * math.ceil(n_inputs / self.codes_per_byte) / n_inputs + (scale_bits + zero_bits) * n_blocks / n_inputs

    def __str__(self) -> str:
        where = "rows" if self.block_size is None else f"blocks of {self.block_size}"
        clipped = f", clipped at {self.clip:g} %" if self.clip is not None else ""
        doubled, more = ", scales in 8 bits" if self.double else "", ", embeddings too" if self.embeddings else ""
        return f"{self.name}, {where}{clipped}{doubled}{more}"


def find_scheme(
    name: str, block_size: int | None = None, double: bool | None = None, clip: float | None = None, embeddings: bool = False
) -> Scheme:
    """A scheme by name; what is not given is the scheme's own default (double quantisation for codebooks only)."""
    name = name.lower()
    if name not in (*NAMES, FLOAT8):
        near = nearest(name, (*NAMES, FLOAT8))
        fix = near if near.startswith("did you mean") else "nf4 is usual; fp4, int2 … int8, affine2 … affine8, fp8"
        raise BadInput(f'there is no scheme "{name}"', where="quantization.scheme", fix=fix)
    bits = 4 if name in ("nf4", "fp4") else int(re.sub(r"\D", "", name))
    if name == FLOAT8 and (block_size is not None or double or clip is not None or embeddings):
        raise BadInput(
            "fp8 has one scale for each row of a layer, and is for layers that multiply", where="quantization",
            fix="leave block_size, double, clip and embeddings out, or another scheme",
        )  # fmt: skip
    if block_size is not None and (block_size < 32 or block_size > 4096 or block_size % 2):
        raise BadInput(
            f"a block of {block_size} weights cannot be had",
            where="quantization.block_size",
            fix="an even number from 32 to 4096; 64 is usual",
        )
    if clip is not None and not 50 <= clip < 100:
        raise BadInput(f"{clip} is no percentile to clip at", where="quantization.clip", fix="from 50 to below 100; 98 for blocks of 64")
    if clip is not None and name in ("nf4", "fp4"):
        raise BadInput(f"{name} has no clipping: its levels are made for the largest value", where="quantization.clip", fix="leave it out")
    block = block_size or (None if bits == 8 else DEFAULT_BLOCK)
    if clip is not None and block is not None and place_of(clip, block) == block - 1:
        raise BadInput(
            f"the {clip:g}th percentile of {block} weights is the largest of them: nothing would be clipped", where="quantization.clip",
            fix=f"at most {math.floor(1000 * (block - 2) / (block - 1)) / 10:g} for blocks of {block}, or larger blocks",
        )  # fmt: skip
    doubled = name in ("nf4", "fp4") if double is None else double
    return Scheme(name, bits, block, doubled, clip, embeddings)


def scheme_of_words(text: str) -> Scheme:
    """The scheme whose `str` this is, as files keep it."""
    found = re.fullmatch(r"(\w+), (?:rows|blocks of (\d+))(?:, clipped at ([\d.]+) %)?(, scales in 8 bits)?(, embeddings too)?", text)
    if found is None:
        raise BadInput(f'"{text}" describes no scheme', fix="as: nf4, blocks of 64, scales in 8 bits")
    name, block, clip, double, embeddings = found.groups()
    return find_scheme(name, int(block) if block else None, double is not None, float(clip) if clip else None, embeddings is not None)
