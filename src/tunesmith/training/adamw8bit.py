"""AdamW whose moments take 8 bits each instead of 32: codes of 256 levels, and a float32 scale for every 256 of them.

    optimizer = AdamW8bit(groups, lr=1e-4)        # 2.03 bytes of state a parameter; AdamW keeps 8

    step:  m, v ← codes × scales;   m ← β1 m + (1 - β1) g;   v ← β2 v + (1 - β2) g²;   p ← p - lr (m̂ / (√v̂ + ε) + λ p);   codes ← m, v

The step itself is AdamW's, from moments that were rounded after the step before (kernels/adamw8bit.py). The levels lie denser near
zero (7 decades, so that small and large entries of one block both keep a relative error of a few per cent); the first moment has a
sign, and the second spends that bit on finer levels.

One departure from the paper: a second moment above zero never becomes zero. It would be divided by ε alone at the next small
gradient, and one entry with a large gradient in the block is enough for that (the "zero-point problem", Li et al. 2023, arXiv
2309.01507, section 4.1). Rounded up to the lowest level instead, it makes a step too small, never too large.

Source: Dettmers et al. 2022 (arXiv 2110.02861), sections 2 and 3; AdamW: Loshchilov & Hutter 2019 (arXiv 1711.05101).
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tunesmith.kernels.adamw8bit import BLOCK, Moment, MomentMap, Settings, adamw, adamw8bit, map_of
from tunesmith.quant.codebook import dynamic_map

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
        settings = Settings(group["lr"], beta1, beta2, group["eps"], group["weight_decay"], n_steps=int(state["step"]))
        assert parameter.grad is not None
        flat, gradient = parameter.reshape(-1), parameter.grad.reshape(-1)
        if "exp_avg_scales" not in state:
            adamw(flat, gradient, state["exp_avg"], state["exp_avg_sq"], settings)
        else:
            first, second = (Moment(state[name], state[f"{name}_scales"]) for name in ("exp_avg", "exp_avg_sq"))
            adamw8bit(flat, gradient, first, second, (moment_map(True, flat.device), moment_map(False, flat.device)), settings)
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
                state[name] = moment_map(signed, device).lowest_6400[0].to(torch.uint8).repeat(n)  # the code of 0
                state[f"{name}_scales"] = torch.zeros(-(-n // BLOCK), dtype=torch.float32, device=device)
        return state


@cache
def moment_map(signed: bool, device: torch.device) -> MomentMap:
    made = map_of(dynamic_map(signed), signed)
    return MomentMap(made.levels_256.to(device), made.bounds_256.to(device), made.lowest_6400.to(device))
