"""From logits to the next token: the most likely one, or one drawn from the nucleus.

    ids_B = sample(logits_BV, temperature=0.7, top_p=0.9, generators=[row_generator(seed, row) for row in rows])

Each row brings its own generator and takes exactly one number from it per token, so what a row says depends on the
seed, on its index and on its own text, and not on the rows that happen to share its batch. The number picks a
token by inverting the cumulative distribution: one sum over the vocabulary, whatever the number of rows.

Source of the nucleus (top-p): Holtzman et al. 2019 (arXiv 1904.09751), section 3.1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tunesmith.errors import BadInput, TunesmithError


def check_sampling(temperature: float, top_p: float) -> None:
    """Refuse settings that no distribution answers to."""
    if not 0.0 <= temperature < float("inf"):
        raise BadInput(
            f"temperature is {temperature}",
            where="temperature",
            fix="0 takes the most likely token; 0.7 is usual for text; it is never negative",
        )
    if not 0.0 < top_p <= 1.0:
        raise BadInput(f"top_p is {top_p}", where="top_p", fix="use a number above 0 and up to 1; 1 keeps every token")


def row_generator(seed: int, row: int) -> torch.Generator:
    """The random numbers of one row.

    The multiplier is the golden ratio times 2^32: rows of one seed never share a stream, and the streams of
    neighbouring seeds do not overlap for any list that fits in memory. 32 bits are what torch's CPU generator keeps of a seed.
    """
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + row) % 2**32)


def nucleus(probabilities_BV: Tensor, top_p: float) -> Tensor:
    """Which tokens belong to the smallest set of likeliest tokens whose probabilities reach `top_p`.

    Returns bool [B, V], at least one True in a row. Of equally likely tokens those with lower ids come first.
    """
    sorted_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = sorted_BV.cumsum(dim=-1).roll(1, dims=-1)  # the mass of all likelier tokens
    before_BV[:, 0] = 0.0
    return torch.zeros_like(probabilities_BV, dtype=torch.bool).scatter(-1, order_BV, before_BV < top_p)


def must_be_finite(most: Tensor) -> None:
    """`most`: the largest logit of each row, NaN where one is; TunesmithError if any is not finite."""
    if not bool(most.isfinite().all()):
        raise TunesmithError(
            "the model's logits are not finite",
            where="while choosing the next token",
            fix='check the weights and those of the adapter; if they were loaded as float16, use dtype "bfloat16" or "float32"',
        )


def sample(logits_BV: Tensor, temperature: float, top_p: float, generators: Sequence[torch.Generator]) -> Tensor:
    """The next token of each row, int64 [B].

    logits_BV     any float type; the softmax is taken in float32
    temperature   0 takes the most likely token (the lowest id of several) and no random number
    generators    one per row, on the CPU; unused at temperature 0
    Errors: TunesmithError if a row has no finite largest logit, for any token from it would be noise.
    """
    logits_BV = logits_BV.float()
    best_B1 = logits_BV.amax(dim=-1, keepdim=True)  # NaN if any logit is NaN
    must_be_finite(best_B1)
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    # the largest is subtracted first: dividing by a tiny temperature would otherwise give inf - inf
    probabilities_BV = torch.softmax((logits_BV - best_B1) / max(temperature, 1e-30), dim=-1)
    if top_p < 1.0:
        probabilities_BV = probabilities_BV.where(nucleus(probabilities_BV, top_p), 0.0)
    cumulative_BV = probabilities_BV.cumsum(dim=-1)
    total_B1 = cumulative_BV[:, -1:].contiguous()
    uniform_B1 = torch.stack([torch.rand((1,), generator=generator) for generator in generators]).to(logits_BV.device)
    # strictly below the total, or rounding could point past the last token that has any probability
    target_B1 = torch.minimum(uniform_B1 * total_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    return torch.searchsorted(cumulative_BV, target_B1, right=True)[:, 0]
