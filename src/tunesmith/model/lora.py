"""LoRA: a frozen weight plus a trained product of two thin matrices, W = W0 + (alpha / r) B A.

    y = lora_linear(x, frozen, A_RK, B_NR, scale)

B starts at zero, so step 0 is the base model bit for bit; A starts as in the paper's code (Kaiming uniform). A and B are
float32 masters, multiplied in the dtype of x. Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1; rsLoRA's scale
alpha / sqrt(r): Kalajdzievski 2023 (arXiv 2312.03732).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.model.frozen import FrozenWeight


def lora_linear_reference(x_MK: Tensor, frozen: FrozenWeight, a_RK: Tensor, b_NR: Tensor, scale: float) -> Tensor:
    """x W0.T + scale (x A.T) B.T, as autograd sees it; the readable twin of `lora_linear`."""
    low_MR = x_MK @ a_RK.to(x_MK.dtype).T
    return frozen.mm(x_MK) + scale * (low_MR @ b_NR.to(x_MK.dtype).T)


def lora_linear(x_MK: Tensor, frozen: FrozenWeight, a_RK: Tensor, b_NR: Tensor, scale: float) -> Tensor:
    """The same value with x saved once, additions folded into the products, and A and B cast once."""
    result: Tensor = _LoraLinear.apply(x_MK, a_RK, b_NR, frozen, scale)  # type: ignore[no-untyped-call]
    return result


def forward(x_MK: Tensor, frozen: FrozenWeight, a_RK: Tensor, b_NR: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The value, and x A.T, which `backward` needs."""
    low_MR = x_MK @ a_RK.to(x_MK.dtype).T
    y_MN = frozen.mm(x_MK)
    return y_MN.addmm_(low_MR, b_NR.to(x_MK.dtype).T, alpha=scale), low_MR


def backward(
    dy_MN: Tensor, x_MK: Tensor, low_MR: Tensor, frozen: FrozenWeight, a_RK: Tensor, b_NR: Tensor, scale: float, wants_dx: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of x (None unless wanted), A and B."""
    a, b = a_RK.to(x_MK.dtype), (b_NR * scale).to(x_MK.dtype)  # scaled before the cast: rounded once
    d_low_MR = dy_MN @ b
    d_a_RK = (d_low_MR.T @ x_MK).to(a_RK.dtype)
    d_b_NR = (dy_MN.T @ low_MR).to(b_NR.dtype).mul_(scale)
    return frozen.mm_t(dy_MN).addmm_(d_low_MR, a) if wants_dx else None, d_a_RK, d_b_NR


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, a_RK: Tensor, b_NR: Tensor, frozen: FrozenWeight, scale: float) -> Tensor:
        y_MN, low_MR = forward(x_MK, frozen, a_RK, b_NR, scale)
        ctx.save_for_backward(x_MK, low_MR, a_RK, b_NR)
        ctx.frozen, ctx.scale = frozen, scale
        return y_MN

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x_MK, low_MR, a_RK, b_NR = ctx.saved_tensors
        gradients = backward(upstream[0], x_MK, low_MR, ctx.frozen, a_RK, b_NR, ctx.scale, ctx.needs_input_grad[0])
        return *gradients, None, None


class Adapter(nn.Module):
    """A and B of one layer, as float32 masters; `scale` is alpha / r (or alpha / sqrt(r))."""

    def __init__(self, n_inputs: int, n_outputs: int, rank: int, scale: float, dropout: float, device: torch.device) -> None:
        super().__init__()
        self.scale, self.dropout = scale, dropout
        self.a_RK = nn.Parameter(torch.zeros(rank, n_inputs, dtype=torch.float32, device=device))
        self.b_NR = nn.Parameter(torch.zeros(n_outputs, rank, dtype=torch.float32, device=device))

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """A uniform within ±1/sqrt(K) (Kaiming with a = sqrt 5), B zero: the adapted layer equals its base."""
        bound = 1 / math.sqrt(self.a_RK.shape[1])
        self.a_RK.copy_(torch.empty(self.a_RK.shape).uniform_(-bound, bound, generator=generator))
        self.b_NR.zero_()


class Switch:
    """Which adapter answers; one object shared by all layers of a model."""

    def __init__(self) -> None:
        self.active: str | None = None


class LoraLinear(nn.Module):
    """A frozen layer with any number of named adapters, of which the switch chooses one or none."""

    def __init__(self, frozen: nn.Module, switch: Switch) -> None:
        super().__init__()
        self.frozen, self.switch = frozen, switch
        self.adapters = nn.ModuleDict()

    @property
    def weight(self) -> Tensor:
        """The base weight: some trunks look at a layer's dtype before they call it."""
        weight: Tensor = self.frozen.weight  # type: ignore[assignment]
        return weight

    @property
    def bias(self) -> Tensor | None:
        bias: Tensor | None = self.frozen.bias  # type: ignore[assignment]
        return bias

    def forward(self, x: Tensor) -> Tensor:
        frozen: Any = self.frozen
        x_MK = x.reshape(-1, x.shape[-1])
        name = self.switch.active
        if name is None or name not in self.adapters:
            y_MN = frozen.mm(x_MK)
        else:
            adapter: Any = self.adapters[name]
            if adapter.dropout > 0 and self.training:
                # only the adapter's input is dropped, so the base product and the low-rank one see different x
                low_MR = nn.functional.dropout(x_MK, adapter.dropout) @ adapter.a_RK.to(x.dtype).T
                y_MN = frozen.mm(x_MK) + adapter.scale * (low_MR @ adapter.b_NR.to(x.dtype).T)
            else:
                y_MN = lora_linear(x_MK, frozen, adapter.a_RK, adapter.b_NR, adapter.scale)
        y: Tensor = y_MN.view(*x.shape[:-1], y_MN.shape[-1])
        return y
