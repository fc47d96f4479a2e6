"""Blocks of a trunk computed as one step of autograd, so that less is kept for the backward pass.

    fuse(model)        # after adapters were put on: gated MLPs with LoRA on their three layers

A gated MLP, down(silu(gate(x)) * up(x)), leaves four tensors as wide as its feed-forward behind for the backward pass, and the input
of `down` is one of them. Here two remain: gate(x) and up(x); the others are computed again from them, with the same operations in
the same order, so that values and gradients equal those of the separate layers bit for bit.
"""

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.model import lora
from tunesmith.model.lora import LoraLinear

LAYERS = ("gate_proj", "up_proj", "down_proj")


class GatedMlp(nn.Module):
    """In place of a transformers MLP of three layers without a bias of its own between them; children keep their names."""

    def __init__(self, gate_proj: nn.Module, up_proj: nn.Module, down_proj: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj

    def forward(self, x: Tensor) -> Tensor:
        adapted = self._adapted()
        if adapted is None:
            y: Tensor = self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
            return y
        layers = [(frozen, adapter.scale) for frozen, adapter in adapted]
        weights = [weight for _, adapter in adapted for weight in (adapter.a_RK, adapter.b_NR)]
        y_MD: Tensor = _GatedMlp.apply(x.reshape(-1, x.shape[-1]), layers, *weights)  # type: ignore[no-untyped-call]
        return y_MD.view(x.shape)

    def _adapted(self) -> list[tuple[Any, Any]] | None:
        """Each layer's frozen weight and active adapter; None where the separate layers must do it (no adapter, dropout, no gradient)."""
        if not torch.is_grad_enabled():
            return None
        found = []
        for layer in (self.gate_proj, self.up_proj, self.down_proj):
            if not isinstance(layer, LoraLinear) or layer.switch.active is None or layer.switch.active not in layer.adapters:
                return None
            adapter: Any = layer.adapters[layer.switch.active]
            if adapter.dropout > 0 and layer.training:
                return None
            found.append((layer.frozen, adapter))
        return found


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, layers: list[tuple[Any, float]], *weights: Tensor) -> Tensor:
        (gate, gate_scale), (up, up_scale), (down, down_scale) = layers
        gate_a, gate_b, up_a, up_b, down_a, down_b = weights
        gate_MF, gate_low_MR = lora.forward(x_MD, gate, gate_a, gate_b, gate_scale)
        up_MF, up_low_MR = lora.forward(x_MD, up, up_a, up_b, up_scale)
        y_MD, down_low_MR = lora.forward(nn.functional.silu(gate_MF) * up_MF, down, down_a, down_b, down_scale)
        ctx.layers = layers
        ctx.save_for_backward(x_MD, gate_MF, up_MF, gate_low_MR, up_low_MR, down_low_MR, *weights)
        return y_MD

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x_MD, gate_MF, up_MF, gate_low_MR, up_low_MR, down_low_MR, gate_a, gate_b, up_a, up_b, down_a, down_b = ctx.saved_tensors
        (gate, gate_scale), (up, up_scale), (down, down_scale) = ctx.layers
        silu_MF = nn.functional.silu(gate_MF)
        d_hidden_MF, *d_down = lora.backward(upstream[0], silu_MF * up_MF, down_low_MR, down, down_a, down_b, down_scale, True)
        assert d_hidden_MF is not None
        d_gate_MF = torch.ops.aten.silu_backward(d_hidden_MF * up_MF, gate_MF)
        d_up_MF = silu_MF.mul_(d_hidden_MF)
        wants_dx = ctx.needs_input_grad[0]
        d_x_gate, *d_gate = lora.backward(d_gate_MF, x_MD, gate_low_MR, gate, gate_a, gate_b, gate_scale, wants_dx)
        d_x_up, *d_up = lora.backward(d_up_MF, x_MD, up_low_MR, up, up_a, up_b, up_scale, wants_dx)
        d_x_MD = d_x_up.add_(d_x_gate) if d_x_up is not None and d_x_gate is not None else None
        return d_x_MD, None, *d_gate, *d_up, *d_down


def fuse(model: nn.Module) -> int:
    """Put GatedMlp in place of every MLP that computes just that; returns their number."""
    count = 0
    for path, module in list(model.named_modules()):
        if {name for name, _ in module.named_children()} - {"act_fn"} != set(LAYERS) or not _is_gated_mlp(module):
            continue
        parent, _, child = path.rpartition(".")
        fused = GatedMlp(*(module.get_submodule(name) for name in LAYERS))
        fused.train(module.training)
        setattr(model.get_submodule(parent), child, fused)
        count += 1
    return count


@torch.no_grad()
def _is_gated_mlp(module: nn.Module) -> bool:
    """Ask the module: are its answers those of down(silu(gate(x)) * up(x)), bit for bit?

    A twin of it answers, with small layers in place of its own: what is asked is how they are put together.
    """
    if not all(isinstance(module.get_submodule(name), LoraLinear) for name in LAYERS):
        return False
    with torch.random.fork_rng(devices=()):
        small = {"gate_proj": nn.Linear(8, 16), "up_proj": nn.Linear(8, 16), "down_proj": nn.Linear(16, 8)}
    twin = copy(module)
    twin._modules = {**module._modules, **small}
    twin.training = False  # without dropout
    x = torch.linspace(-3, 3, 24).view(3, 8)
    return torch.equal(twin(x), GatedMlp(**small)(x))
