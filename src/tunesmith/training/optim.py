"""The optimizer, the learning rate and its schedule.

rate, reason = learning_rate(run, width=576)
optimizer = build_optimizer(parameters, run.training, rate)
set_lr(optimizer, rate * schedule(step, steps, run.training))
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tunesmith.config import Run, TrainingConfig
from tunesmith.training.adamw8bit import AdamW8bit
from tunesmith.training.shards import Stored


def learning_rate(run: Run, width: int) -> tuple[float, str]:
    """The rate of the config, or the rule behind "auto", with its reason in words.

    width   D of the model: narrower models take higher rates, about as sqrt(2000 / D)
    Source: "LoRA Without Regret" (Thinking Machines Lab 2025): 5e-5 for full fine-tuning of a 2000-wide model, ten times that
    for LoRA, hardly depending on rank when the update is scaled by alpha / r. Our own figures: docs/log.md.
    """
    given = run.training.learning_rate
    if isinstance(given, float):
        return given, f"learning rate {given:g}, as given"
    full = 5e-5 * math.sqrt(2000 / width)
    if run.method == "full":
        rate = _two_digits(full)
        return rate, f"learning rate {rate:g}: 5e-5 for full fine-tuning of a model 2000 wide, times sqrt(2000 / {width}) for this one"
    rate = _two_digits(10 * full)
    return (
        rate,
        f"learning rate {rate:g}: ten times that of full fine-tuning ({_two_digits(full):g} at width {width}), as LoRA's best rate is about 10x",
    )


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")


def schedule(step: int, steps: int, config: TrainingConfig) -> float:
    """Factor on the learning rate at `step` of `steps` (from 0): linear warm-up, then constant, linear or cosine down to zero."""
    warmup = config.warmup * steps if config.warmup < 1 else config.warmup
    warmup = min(math.ceil(warmup), steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    return 1.0 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def set_lr(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


def build_optimizer(parameters: Mapping[str, nn.Parameter], config: TrainingConfig, rate: float) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), fused, or with moments in 8 bits; weight decay on matrices only, not on norms and biases."""
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    others = [p for p in parameters.values() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups, betas = [g for g in groups if g["params"]], (config.beta1, config.beta2)
    if config.optimizer == "adamw8bit":
        return AdamW8bit(groups, lr=rate, betas=betas, eps=config.epsilon)
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=config.epsilon, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Both moments (or their codes and scales) and the step count of every parameter, by name: "NAME.exp_avg"."""
    return {
        f"{name}.{kind}": value
        for name, parameter in parameters.items()
        for kind, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], stored: Stored) -> None:
    """As `optimizer_tensors` gave them, sharded as the parameters are now."""
    for key in stored.shapes:
        name, _, kind = key.rpartition(".")
        if name in parameters:
            # moments live beside their parameter; fused AdamW wants the step count there too
            parameter = parameters[name]
            optimizer.state[parameter][kind] = stored.like(key, parameter).clone().to(parameter.device)


def clip_grad_norm(parameters: Mapping[str, nn.Parameter], most: float) -> Tensor:
    """Scale gradients so that their joint norm is at most `most`; returns the norm before (non-finite stays non-finite)."""
    trained = [p for p in parameters.values() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm  # over the rows of all processes
    nn.utils.clip_grads_with_norm_(trained, most, norm)
    return norm
