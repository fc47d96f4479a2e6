"""Fused blocks compute what the separate layers compute, bit for bit, and keep less."""

from typing import Any

import pytest
import torch
from tests.model.families import FAMILIES, ragged_rows, tiny

from tunesmith.config import LoraConfig
from tunesmith.loss import Scored
from tunesmith.model.adapters import adapter_parameters, attach, switch_of
from tunesmith.model.blocks import GatedMlp, fuse

GATED = {"llama", "mistral", "qwen2", "qwen3"}


def adapted(family: str, dtype: torch.dtype, **lora: Any) -> Any:
    model = tiny(family).to(dtype)
    attach(model, "x", LoraConfig(rank=4, **lora), seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapter_parameters(model, "x").items():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    switch_of(model).active = "x"
    return model.train()


def loss_and_gradients(model: Any, seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    batch, *_ = ragged_rows()
    torch.manual_seed(seed)
    nll = Scored(model)(batch)
    nll.sum.backward()
    return nll.sum.detach(), {name: p.grad for name, p in adapter_parameters(model, "x").items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_the_separate_layers(family: str, dtype: torch.dtype):
    fused = adapted(family, dtype)
    assert fuse(fused) == (2 if family in GATED else 0)
    loss, gradients = loss_and_gradients(fused)
    expected_loss, expected = loss_and_gradients(adapted(family, dtype))
    assert torch.equal(loss, expected_loss)
    for name, gradient in expected.items():
        assert torch.equal(gradients[name], gradient), name


def test_with_dropout_the_separate_layers_do_it():
    fused = adapted("llama", torch.float32, dropout=0.3)
    assert fuse(fused) == 2
    loss, gradients = loss_and_gradients(fused, seed=7)
    expected_loss, expected = loss_and_gradients(adapted("llama", torch.float32, dropout=0.3), seed=7)
    assert torch.equal(loss, expected_loss)
    assert all(torch.equal(gradients[name], gradient) for name, gradient in expected.items())


def test_names_of_weights_stay_as_they_were():
    fused, plain = adapted("llama", torch.float32), adapted("llama", torch.float32)
    fuse(fused)
    assert any(isinstance(module, GatedMlp) for module in fused.modules())
    assert list(dict(fused.named_parameters())) == list(dict(plain.named_parameters()))


def test_half_as_much_is_kept_of_the_wide_tensors():
    kept = []
    for fused in (False, True):
        model = adapted("llama", torch.float32)
        if fused:
            fuse(model)
        seen: dict[int, int] = {}

        def pack(tensor: torch.Tensor, seen: dict[int, int] = seen) -> torch.Tensor:
            if tensor.shape[-1] == 48 and tensor.numel() == 37 * 48:  # as wide as the feed-forward, for each token
                seen[tensor.untyped_storage().data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.base_model(input_ids=torch.arange(3, 40)[None]).last_hidden_state.sum()
        kept.append(len(seen))
    assert kept == [8, 4], "of two layers: gate, silu, up and their product; gate and up"
