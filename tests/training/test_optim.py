"""The schedule, the rule for the learning rate, and what an optimizer keeps."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tunesmith.config import Run, TrainingConfig
from tunesmith.files import write_tensors
from tunesmith.training.optim import build_optimizer, learning_rate, load_optimizer_tensors, optimizer_tensors, schedule
from tunesmith.training.shards import Stored


def run(method: str, rate: float | str = "auto") -> Run:
    return Run.model_validate({"model": "m", "method": method, "output": "o", "data": {"train": "t"}, "training": {"learning_rate": rate}})


def test_schedules_warm_up_and_end_at_zero():
    def curve(kind: str, warmup: float) -> list[float]:
        return [round(schedule(step, 10, TrainingConfig(schedule=kind, warmup=warmup)), 3) for step in range(10)]

    assert curve("constant", 0) == [1.0] * 10
    assert curve("constant", 0.3) == [0.25, 0.5, 0.75] + [1.0] * 7
    assert curve("linear", 2) == [0.333, 0.667, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    cosine = curve("cosine", 0)
    assert cosine[0] == 1.0
    assert cosine[5] == 0.5
    assert cosine == sorted(cosine, reverse=True)


def test_auto_gives_lora_ten_times_the_rate_of_full_and_says_why():
    full, _ = learning_rate(run("full"), width=256)
    lora, reason = learning_rate(run("lora"), width=256)
    assert lora == pytest.approx(10 * full, rel=0.05)
    assert "ten times" in reason
    assert learning_rate(run("lora"), width=4096)[0] < lora
    assert learning_rate(run("lora", 1e-4), width=256) == (1e-4, "learning rate 0.0001, as given")


def test_weight_decay_leaves_norms_and_biases_alone():
    layer = nn.Linear(3, 2)
    optimizer = build_optimizer(dict(layer.named_parameters()), TrainingConfig(weight_decay=0.1), 1e-3)
    assert [(len(g["params"]), g["weight_decay"]) for g in optimizer.param_groups] == [(1, 0.1), (1, 0.0)]


def test_an_optimizer_saved_and_loaded_takes_the_same_step(tmp_path: Path):
    def trained(n_before: int) -> tuple[nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(0)
        layer = nn.Linear(4, 3)
        optimizer = build_optimizer(dict(layer.named_parameters()), TrainingConfig(), 1e-2)
        for _ in range(n_before):
            step(layer, optimizer)
        return layer, optimizer

    def step(layer: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
        layer(torch.arange(8.0).view(2, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    one, its_optimizer = trained(3)
    write_tensors(tmp_path / "optimizer.safetensors", optimizer_tensors(its_optimizer, dict(one.named_parameters())))
    other, fresh = trained(0)
    other.load_state_dict(one.state_dict())
    load_optimizer_tensors(fresh, dict(other.named_parameters()), Stored(tmp_path, "optimizer"))
    step(one, its_optimizer)
    step(other, fresh)
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)
