"""Fused layers against the family's own: in bfloat16 no further from float32 than those, in loss and every gradient."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests.model.families import CONFIGS

from tunesmith.config import LoraConfig
from tunesmith.data.batches import Batch, collate, collate_row, grouped
from tunesmith.data.packing import row_of
from tunesmith.data.template import Example
from tunesmith.kernels import native, rows
from tunesmith.loss import Scored
from tunesmith.model import layers
from tunesmith.model.adapters import adapter_parameters, attach, switch_of
from tunesmith.model.attention import keep_documents_apart, why_not_shared
from tunesmith.model.blocks import fuse
from tunesmith.model.layers import fuse_layers, fused_forms
from tunesmith.planning.account import Account
from tunesmith.training.method import recompute_activations

pytestmark = pytest.mark.skipif(native.compiled() is None or not native.compiled().has_amx, reason="a CPU without AMX")


def gemma():
    """Norms that add 1 to their weights, tanh-GELU, embeddings times the root of the width."""
    shape = CONFIGS["llama"]().to_dict()
    return transformers.GemmaConfig(
        **{key: value for key, value in shape.items() if key in transformers.GemmaConfig().to_dict() and key != "model_type"}
    )


FUSED = {"llama": CONFIGS["llama"], "qwen2": CONFIGS["qwen2"], "qwen3": CONFIGS["qwen3"], "gemma": gemma}
LENGTHS = (23, 9, 17)


def adapted(config: Any, dtype: torch.dtype = torch.bfloat16, head_dim: int = 16, **lora: Any) -> Any:
    """With weights large enough that the loss is far from ln V, and adapters that are no longer at their start."""
    config.head_dim = head_dim
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.requires_grad_(False).parameters():
            parameter.normal_(std=0.2) if parameter.ndim == 2 else parameter.add_(torch.randn_like(parameter) * 0.2)
        attach(model.to(torch.bfloat16).to(dtype), "x", LoraConfig(rank=4, **lora), seed=0)
        for name, parameter in adapter_parameters(model, "x").items():
            if "lora_B" in name:
                parameter.data = torch.randn(parameter.shape) * 0.1
    switch_of(model).active = "x"
    return model.train()


def examples() -> list[Example]:
    draw = np.random.default_rng(0)
    return [Example(draw.integers(3, 96, n).astype(np.int32), draw.random(n) < 0.5, f"row {n}") for n in LENGTHS]


def loss_and_gradients(model: Any, batch: Batch) -> tuple[float, torch.Tensor]:
    for parameter in adapter_parameters(model, "x").values():
        parameter.grad = None
    torch.manual_seed(0)
    nll = Scored(model)(batch)
    nll.sum.backward()
    return float(nll.sum.detach()), torch.cat([p.grad.double().flatten() for p in adapter_parameters(model, "x").values()])


def fused(model: Any, among: int | None = None) -> Any:
    fuse_layers(model)
    fuse(model)
    assert len(fused_forms(model)) == (model.config.num_hidden_layers if among is None else among)
    return model


def off(found: tuple[float, torch.Tensor], exact: tuple[float, torch.Tensor]) -> tuple[float, float]:
    return abs(found[0] / exact[0] - 1), float((found[1] - exact[1]).norm() / exact[1].norm())


def assert_as_near(found: Any, own: Any, exact: Any) -> None:
    (loss, gradients), (own_loss, own_gradients) = off(found, exact), off(own, exact)
    assert loss <= max(2 * own_loss, 2e-3), (loss, own_loss)
    assert gradients <= 1.1 * own_gradients, (gradients, own_gradients)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("family", FUSED)
def test_loss_and_gradients_are_no_further_off_than_the_familys_own(family, packed):
    batch = collate_row(row_of(examples())) if packed else collate(examples())
    exact = loss_and_gradients(adapted(FUSED[family](), torch.float32), collate(examples()))
    model = adapted(FUSED[family]())
    if packed:
        keep_documents_apart(model, 0, max(LENGTHS))
    own = loss_and_gradients(model, batch)
    assert_as_near(loss_and_gradients(fused(model), batch), own, exact)


def beginning_alike() -> list[Example]:
    """Two with one beginning of 21 tokens, three with one of 19, and one by itself."""
    draw = np.random.default_rng(1)
    heads = [draw.integers(3, 96, n) for n in (21, 19, 2)]
    made = []
    for head, n in ((0, 6), (1, 9), (1, 2), (2, 30), (0, 17), (1, 23)):
        trained = np.concatenate([np.zeros(len(heads[head]), dtype=bool), draw.random(n - 1) < 0.5, [True]])
        made.append(Example(np.concatenate([heads[head], draw.integers(3, 96, n)]).astype(np.int32), trained, f"row {n}"))
    return made


@pytest.mark.parametrize("family", FUSED)
def test_rows_whose_documents_share_beginnings(family):
    rows = beginning_alike()
    [group] = grouped(rows, 1000, packing=True, sharing=True)
    shared, plain = collate_row(row_of(group), 160), collate_row(row_of(rows), 192)
    assert shared.parent_S is not None and shared.n_trained == plain.n_trained
    exact = loss_and_gradients(adapted(FUSED[family](), torch.float32), collate(rows))
    model = fused(adapted(FUSED[family]()))
    keep_documents_apart(model, 0, max(map(len, rows)))
    assert why_not_shared(model, max(map(len, rows))) is None
    found = loss_and_gradients(model, shared)
    assert_as_near(found, loss_and_gradients(model, plain), exact)
    again = loss_and_gradients(model, shared)
    assert off(again, found) == (0, 0)  # the same bits
    apart = adapted(FUSED[family]())  # the family's own layers
    keep_documents_apart(apart, 0, max(map(len, rows)))
    assert_as_near(loss_and_gradients(apart, shared), loss_and_gradients(apart, plain), exact)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["down_proj", "o_proj"], ["gate_proj"]], ids=str)
def test_layers_of_which_only_some_are_adapted(targets):
    batch = collate(examples())
    exact = loss_and_gradients(adapted(FUSED["llama"](), torch.float32, targets=targets), batch)
    model = adapted(FUSED["llama"](), targets=targets)
    own = loss_and_gradients(model, batch)
    assert_as_near(loss_and_gradients(fused(model, among=0 if len(targets) < 7 else 2), batch), own, exact)


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "phi3", "gpt2", "gpt_neox", "mistral"])
def test_other_families_keep_their_own_forward(family):
    """Mistral's window is shorter than the row here: it would be fused where it is not."""
    model = adapted(CONFIGS[family]())
    own = loss_and_gradients(model, collate(examples()))
    fuse_layers(model)
    assert fused_forms(model) == {}
    assert off(loss_and_gradients(model, collate(examples())), own) == (0, 0)


@pytest.mark.parametrize("wrong", [{"offset": 1.0}, {"scale": 0.5}, {"activation": "gelu_tanh"}, {"epsilon": 0.5}], ids=str)
def test_a_layer_that_computes_something_else_is_not_fused(wrong, monkeypatch):
    """The trial itself: a description that does not fit is noticed."""
    model, described = adapted(FUSED["llama"]()), layers.form_of
    monkeypatch.setattr(layers, "form_of", lambda layer: replace(described(layer), **wrong))
    fuse_layers(model)
    assert fused_forms(model) == {}


def test_an_attention_without_positions_is_not_fused():
    """As every fourth layer of SmolLM3."""
    model = adapted(FUSED["llama"]())
    for layer in model.model.layers:
        own = layer.forward
        layer.forward = lambda x, position_embeddings, own=own, **named: own(
            x, position_embeddings=(torch.ones_like(position_embeddings[0]), torch.zeros_like(position_embeddings[1])), **named
        )
    fuse_layers(model)
    assert fused_forms(model) == {}


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_with_dropout_they_are_as_near_as_the_familys_own_with_the_same_noise(packed, monkeypatch):
    """The family's layers draw their noise in the same order; ours is a function of what was drawn."""
    drawn = []

    def noise_of_ours(x, probability):
        if probability == 0:  # of attention
            return x
        drawn.append(layers._seed())
        return rows.dropout_reference(x, probability, drawn[-1])

    batch = collate_row(row_of(examples())) if packed else collate(examples())
    exact_model, model = adapted(FUSED["llama"](), torch.float32, dropout=0.3), adapted(FUSED["llama"](), dropout=0.3)
    if packed:
        keep_documents_apart(exact_model, 0, max(LENGTHS))
        keep_documents_apart(model, 0, max(LENGTHS))
    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.functional, "dropout", noise_of_ours)
        exact, own = loss_and_gradients(exact_model, batch), loss_and_gradients(model, batch)
    assert len(drawn) == len(set(drawn)) * 2 == 2 * 7 * 2  # two models, seven layers of each of two blocks
    found = loss_and_gradients(fused(model), batch)
    assert_as_near(found, own, exact)
    model.eval()  # nothing is dropped
    assert abs(loss_and_gradients(model, batch)[0] / found[0] - 1) > 0.01


def test_with_a_cache_the_familys_own_forward_answers():
    model, ids = adapted(FUSED["llama"]()), collate(examples()).ids_BT[:1, :9]
    before = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(fused(model).generate(input_ids=ids, max_new_tokens=5, do_sample=False), before)


def test_the_base_and_any_adapter_answer_by_the_switch():
    model, batch = adapted(FUSED["llama"]()).eval(), collate(examples())
    attach(model, "y", LoraConfig(rank=3), seed=5)
    own = {}
    for name in (None, "x", "y"):
        switch_of(model).active = name
        own[name] = model(input_ids=batch.ids_BT, use_cache=False).logits.detach()
    fused(model)
    for name, expected in own.items():
        switch_of(model).active = name
        with torch.no_grad():
            found = model(input_ids=batch.ids_BT, use_cache=False).logits
        assert float((found - expected).norm() / expected.norm()) < 0.02
    assert not torch.equal(own["x"], own[None])


def test_tables_that_a_model_keeps_from_call_to_call_do_not_carry_documents_along():
    """Some rotary embeddings give the same tensors again: what was noted on them for one row is not taken for the next."""
    model = fused(adapted(FUSED["llama"]()))
    keep_documents_apart(model, 0, 40)
    kept, rotary = {}, model.model.rotary_emb.forward
    model.model.rotary_emb.forward = lambda x, position_ids: kept.setdefault(position_ids.shape, rotary(x, position_ids))
    three = collate_row(row_of(examples()))
    positions = torch.tensor([*range(25), *range(24)])[None]
    two = replace(three, positions_BT=positions, document_BT=torch.arange(sum(LENGTHS))[None] // 25)  # the same tokens, cut otherwise
    with torch.no_grad():
        first = float(Scored(model)(two).sum)
        assert float(Scored(model)(three).sum) != first
        assert float(Scored(model)(two).sum) == first


def test_recomputed_layers_give_the_same_bits():
    kept, again = fused(adapted(FUSED["qwen3"]())), fused(adapted(FUSED["qwen3"]()))
    recompute_activations(again)
    assert off(loss_and_gradients(again, collate(examples())), loss_and_gradients(kept, collate(examples()))) == (0, 0)


def test_of_a_recomputed_layer_the_input_alone_is_kept():
    for dropout in (0.0, 0.3):  # the same noise again
        model = fused(adapted(FUSED["llama"](), dropout=dropout))
        kept, bytes_kept = loss_and_gradients(model, collate(examples())), kept_bytes(model)
        recompute_activations(model)
        assert kept_bytes(model) < 0.3 * bytes_kept
        assert off(loss_and_gradients(model, collate(examples())), kept) == (0, 0)


def test_recomputed_layers_keep_their_inputs_alone():
    peaks = {}
    for recomputed in (False, True):
        model = fused(adapted(FUSED["llama"]()))
        if recomputed:
            recompute_activations(model)
        scored = Scored(model)
        with Account() as account:
            scored(collate(examples() * 16))
        peaks[recomputed] = account.peak_bytes
    assert peaks[True] < 0.6 * peaks[False]  # of two layers one is whole at a time


def kept_bytes(model: Any) -> int:
    """Of what a forward pass leaves for the backward one, weights aside."""
    storages, weights = {}, {p.data_ptr() for p in model.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if (at := tensor.untyped_storage().data_ptr()) not in weights:
            storages[at] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        Scored(model)(collate(examples() * 4))
    return sum(storages.values())


def test_less_is_kept_for_the_backward_pass():
    apart, together = adapted(FUSED["llama"]()), adapted(FUSED["llama"]())
    fuse(apart)
    assert kept_bytes(fused(together)) < 0.85 * kept_bytes(apart)


def test_names_in_files_stay():
    model = adapted(FUSED["llama"]())
    before = list(model.state_dict())
    fuse_layers(model)
    assert list(model.state_dict()) == before
    assert all(re.fullmatch(r"model\.layers\.\d+", path) for path in fused_forms(model))
