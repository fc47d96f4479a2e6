"""Activations computed again in the backward pass: the same loss and gradients to the last bit, in far less memory, in every family."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.conftest import byte_level_tokenizer
from tests.model.families import FAMILIES, ragged_rows, tiny
from torch import nn

from tunesmith.config import LoraConfig
from tunesmith.data.batches import Batch, collate, collate_row
from tunesmith.data.packing import row_of
from tunesmith.data.template import Example
from tunesmith.errors import BadInput
from tunesmith.loss import Scored
from tunesmith.model.adapters import adapter_parameters, attach, switch_of
from tunesmith.model.attention import keep_documents_apart
from tunesmith.model.blocks import fuse
from tunesmith.model.load import load_model
from tunesmith.planning.account import Account
from tunesmith.quant.scheme import find_scheme
from tunesmith.training.method import _input_gradient, must_be_equal_when_recomputed, recompute_activations


def examples() -> list[Example]:
    """The rows of tests/model/families.py."""
    batch, _ = ragged_rows()
    return [
        Example(ids_T[:n].numpy(), torch.cat([torch.tensor([False]), labels_T[: n - 1] >= 0]).numpy(), source)
        for ids_T, labels_T, n, source in zip(batch.ids_BT, batch.labels_BT, (23, 9, 17), batch.sources, strict=True)
    ]


def adapted(model: Any) -> dict[str, nn.Parameter]:
    """Adapters with dropout, away from the zeros that they start at."""
    attach(model, "x", LoraConfig(rank=4, dropout=0.2), seed=0)
    switch_of(model).active = "x"
    fuse(model)
    parameters = adapter_parameters(model, "x")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return parameters


def computed(scored: Scored, parameters: dict[str, nn.Parameter], batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients with the dropout of one seed."""
    scored.train()
    torch.manual_seed(1)
    loss = scored(batch).sum
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    for parameter in parameters.values():
        parameter.grad = None
    return loss.detach(), gradients


def bit_equal_when_recomputed(model: Any, parameters: dict[str, nn.Parameter], batch: Batch) -> None:
    scored = Scored(model)
    loss, gradients = computed(scored, parameters, batch)
    assert len(gradients) == len(parameters) and all(bool(gradient.any()) for gradient in gradients.values())
    recompute_activations(model)
    again, gradients_again = computed(scored, parameters, batch)
    assert torch.equal(again, loss)
    assert gradients_again.keys() == gradients.keys()
    assert all(torch.equal(gradients_again[name], gradient) for name, gradient in gradients.items())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_loss_and_gradients_are_the_same_bits_with_dropout(family: str, packing: bool):
    model = tiny(family)
    parameters = adapted(model)
    if packing:
        keep_documents_apart(model, 10**6, 23)
    bit_equal_when_recomputed(model, parameters, collate_row(row_of(examples())) if packing else collate(examples()))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_on_a_base_in_four_bits_too(tmp_path: Path, family: str):
    tiny(family).save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    model = load_model(str(tmp_path), "float32", scheme=find_scheme("nf4", 32)).model
    bit_equal_when_recomputed(model, adapted(model), collate(examples()))


def test_full_fine_tuning_too():
    model = tiny("qwen2")
    model.requires_grad_(True)
    bit_equal_when_recomputed(model, dict(model.named_parameters()), collate(examples()))


@pytest.mark.parametrize("what", ["full", "lora"])
def test_memory_falls_to_the_inputs_of_the_layers_and_one_layer(what: str):
    """Of twelve layers, which hold about the same, one is held at a time, and the input of each."""
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=96, num_hidden_layers=12, num_attention_heads=4, max_position_embeddings=128
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    if what == "lora":
        adapted(model)
    else:
        model.requires_grad_(True)
    scored = Scored(model).train()
    batch = collate([Example(torch.arange(128).numpy() % 60, torch.ones(128, dtype=torch.bool).numpy(), "rows:1") for _ in range(4)])

    def peak() -> int:
        with Account() as account:
            held = account.hold(model.parameters()) and account.live_bytes
            scored(batch).sum.backward()
        found = account.peak_bytes - held
        model.zero_grad(set_to_none=True)
        return found

    kept = peak()
    recompute_activations(model)
    again = peak()
    assert again < 0.25 * kept


def test_a_family_that_cannot_is_refused_with_what_to_do():
    model = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(vocab_size=32, n_positions=16, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(BadInput, match="cannot compute its activations again") as caught:
        recompute_activations(model)
    assert caught.value.where == "training.gradient_checkpointing"
    assert caught.value.fix


def test_a_family_that_does_not_compute_the_same_twice_is_refused():
    """Big Bird attends to blocks that it draws anew in each forward pass."""
    model = tiny("llama")
    model.requires_grad_(False)
    layer, draws = model.model.layers[0], torch.Generator().manual_seed(0)
    layer.mlp.register_forward_hook(lambda module, inputs, output: output * torch.rand(1, generator=draws))
    with pytest.raises(BadInput, match="other ones when they are computed again") as caught:
        kept = _input_gradient(model)
        recompute_activations(model)
        must_be_equal_when_recomputed(kept, _input_gradient(model))
    assert (caught.value.where, caught.value.fix) == ("training.gradient_checkpointing", "leave it out")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_tried_before_a_run_is_exact_in_every_family(family: str):
    model = tiny(family)
    adapted(model)
    state, mode = torch.random.get_rng_state(), model.training
    kept = _input_gradient(model)
    recompute_activations(model)
    assert torch.equal(_input_gradient(model), kept)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training == mode
