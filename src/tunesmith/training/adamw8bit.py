"""AdamW whose moments take 8 bits each instead of 32: codes of 256 levels, and a float32 scale for every 256 of them.

    optimizer = AdamW8bit(groups, lr=1e-4)        # 2.03 bytes of state a parameter; AdamW keeps 8

    step:  m, v ← codes × scales;   m ← β1 m + (1 - β1) g;   v ← β2 v + (1 - β2) g²;   p ← p - lr (m̂ / (√v̂ + ε) + λ p);   codes ← m, v

A piece of the tensor at a time, so that no float32 copy of a whole moment ever exists. The step itself is AdamW's, from moments
that were rounded after the step before. The levels lie denser near zero (7 decades, so that small and large entries of one block
both keep a relative error of a few per cent); the first moment has a sign, and the second spends that bit on finer levels.

One departure from the paper: a second moment above zero never becomes zero. It would be divided by ε alone at the next small
gradient, and one entry with a large gradient in the block is enough for that (the "zero-point problem", Li et al. 2023, arXiv
2309.01507, section 4.1). Rounded up to the lowest level instead, it makes a step too small, never too large.

Source: Dettmers et al. 2022 (arXiv 2110.02861), sections 2 and 3; AdamW: Loshchilov & Hutter 2019 (arXiv 1711.05101).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tunesmith.kernels.blocks_4bit import LEAST_SCALE
from tunesmith.quant.codebook import dynamic_map

BLOCK = 256  # values that share a scale
LEAST_VALUES = 4096  # a smaller tensor keeps float32 moments: norms and biases are few, and every one of their values counts


class AdamW8bit(torch.optim.Optimizer):
    """groups: as torch's AdamW takes them, with their own weight_decay. Parameters are float32."""

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:  # fmt: skip
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter] or self._start(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        settings = _Settings(group["lr"], beta1, beta2, group["eps"], group["weight_decay"], n_steps=int(state["step"]))
        assert parameter.grad is not None
        flat, gradient = parameter.reshape(-1), parameter.grad.reshape(-1)
        if "exp_avg_scales" not in state:
            adamw(flat, gradient, state["exp_avg"], state["exp_avg_sq"], settings)
        else:
            signed, unsigned = moment_map(True, flat.device), moment_map(False, flat.device)
            n_at_once = 1 << 18 if flat.device.type == "cpu" else 1 << 24  # a piece stays in the cache; a GPU wants few launches
            for start in range(0, len(flat), n_at_once):
                piece, blocks = slice(start, start + n_at_once), slice(start // BLOCK, (start + n_at_once) // BLOCK)
                first = dequantize(state["exp_avg"][piece], state["exp_avg_scales"][blocks], signed)
                second = dequantize(state["exp_avg_sq"][piece], state["exp_avg_sq_scales"][blocks], unsigned)
                adamw(flat[piece], gradient[piece], first, second, settings)
                state["exp_avg"][piece], state["exp_avg_scales"][blocks] = quantize(first, signed)
                state["exp_avg_sq"][piece], state["exp_avg_sq_scales"][blocks] = quantize(second, unsigned)
        if flat.data_ptr() != parameter.data_ptr():  # its values do not lie one after another: what was updated is a copy
            parameter.copy_(flat.view_as(parameter))

    def _start(self, parameter: Tensor) -> dict[str, Any]:
        n, device = parameter.numel(), parameter.device
        state: dict[str, Any] = self.state[parameter]
        state["step"] = torch.zeros((), dtype=torch.float32)
        for name, signed in (("exp_avg", True), ("exp_avg_sq", False)):
            if n < LEAST_VALUES:
                state[name] = torch.zeros(n, dtype=torch.float32, device=device)
            else:
                state[name] = moment_map(signed, device).lowest_65536[1 << 15].to(torch.uint8).repeat(n)  # the code of 0
                state[f"{name}_scales"] = torch.zeros(-(-n // BLOCK), dtype=torch.float32, device=device)
        return state


@dataclass(frozen=True)
class _Settings:
    """Of one parameter in one step; n_steps counts this one."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    n_steps: int


def adamw(parameter: Tensor, gradient: Tensor, first: Tensor, second: Tensor, settings: _Settings) -> None:
    """One AdamW step in place, moments too; the order of operations is torch's, so float32 moments give its results bit for bit."""
    s = settings
    correction1, correction2 = 1 - s.beta1**s.n_steps, 1 - s.beta2**s.n_steps
    parameter.mul_(1 - s.lr * s.weight_decay)
    first.lerp_(gradient, 1 - s.beta1)
    second.mul_(s.beta2).addcmul_(gradient, gradient, value=1 - s.beta2)
    parameter.addcdiv_(first, (second.sqrt() / math.sqrt(correction2)).add_(s.eps), value=-s.lr / correction1)


@dataclass(frozen=True)
class MomentMap:
    """Levels of a moment between -1 (or 0) and 1, rising; bounds[i] lies between level i and i + 1, and the last is infinite.

    lowest_65536   the code of the smallest number whose float32 begins with these 16 bits (counted from -2^15): the bounds lie
                   farther apart than such numbers reach, so the code is this one or the next
    """

    levels_256: Tensor
    bounds_256: Tensor
    lowest_65536: Tensor


@cache
def moment_map(signed: bool, device: torch.device) -> MomentMap:
    levels = dynamic_map(signed)
    bounds = torch.cat(((levels[:-1] + levels[1:]) / 2, torch.tensor([torch.inf])))
    if not signed:
        bounds[0] = 0.0  # above zero is never zero
    heads = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32) << 16
    smallest = torch.where(heads < 0, heads | 0xFFFF, heads).view(torch.float32)  # of negative numbers, the one of the largest size
    codes = torch.bucketize(smallest.nan_to_num(0.0), bounds[:-1])  # NaN never comes: training stops before it
    return MomentMap(levels.to(device), bounds.to(device), codes.to(device, torch.int32))


def quantize(x: Tensor, levels: MomentMap) -> tuple[Tensor, Tensor]:
    """Nearest level of each value relative to the largest of its block: codes uint8 [n] and scales float32 [ceil(n / 256)].

    The same codes as torch.bucketize(x / scale, bounds), eight times faster: most of the search is one look into a table.
    """
    n = len(x)
    x_GB = pad(x, (0, -n % BLOCK)).view(-1, BLOCK)
    scale_G = x_GB.abs().amax(dim=1)
    part = (x_GB * (1 / scale_G.clamp(min=LEAST_SCALE))[:, None]).clamp_(-1, 1).view(-1)[:n]
    lowest = levels.lowest_65536.index_select(0, (part.view(torch.int32) >> 16) + (1 << 15))
    return (lowest + (part > levels.bounds_256.index_select(0, lowest))).to(torch.uint8), scale_G


def dequantize(codes: Tensor, scale_G: Tensor, levels: MomentMap) -> Tensor:
    """float32 [n]."""
    values = pad(levels.levels_256.index_select(0, codes.int()), (0, -len(codes) % BLOCK))
    return (values.view(-1, BLOCK) * scale_G[:, None]).view(-1)[: len(codes)]
