"""Full fine-tuning through fused layers: loss and every gradient no further from float64 than the family's own code under autocast."""

from typing import Any

import pytest
import torch
import transformers
from tests.model.families import CONFIGS
from tests.model.test_fused_layers import FUSED, LENGTHS, examples

from tunesmith.data.batches import Batch, collate, collate_row
from tunesmith.data.packing import row_of
from tunesmith.kernels import native
from tunesmith.loss import Scored
from tunesmith.model import layers
from tunesmith.model.attention import keep_documents_apart
from tunesmith.model.layers import fuse_layers, fused_forms
from tunesmith.training.method import recompute_activations

pytestmark = pytest.mark.skipif(native.compiled() is None or not native.compiled().has_amx, reason="a CPU without AMX")

Gradients = dict[str, torch.Tensor]


def trained(family: str, dtype: torch.dtype = torch.float32, only: str = "") -> Any:
    """Masters of which all are trained, or those whose name holds `only`; weights large enough that the loss is far from ln V."""
    config = (FUSED | CONFIGS)[family]()
    config.head_dim = 16
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.2) if parameter.ndim == 2 else parameter.add_(torch.randn_like(parameter) * 0.2)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(only in name)
    return model.to(dtype).train()


def computed(model: Any, *batches: Batch, compute: torch.dtype = torch.bfloat16) -> tuple[float, Gradients]:
    """Summed loss and gradients of micro-batches, one after another."""
    scored, total = Scored(model, compute), 0.0
    model.zero_grad(set_to_none=True)
    for batch in batches:
        nll = scored(batch)
        nll.sum.backward()
        total += float(nll.sum.detach())
    return total, {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def fused(model: Any) -> Any:
    fuse_layers(model)
    assert len(fused_forms(model)) == model.config.num_hidden_layers
    return model


def assert_as_near(found: tuple[float, Gradients], own: tuple[float, Gradients], exact: tuple[float, Gradients]) -> None:
    """All gradients together, and each by itself with some room for the luck of a few numbers."""

    def off(gradients: Gradients, names: Any) -> float:
        here, there = (torch.cat([each[name].flatten() for name in names]) for each in (gradients, exact[1]))
        return float((here - there).norm() / there.norm())

    assert found[1].keys() == own[1].keys()
    assert abs(found[0] / exact[0] - 1) <= max(2 * abs(own[0] / exact[0] - 1), 1e-3)
    assert off(found[1], found[1]) <= 1.05 * off(own[1], own[1])
    for name in found[1]:
        assert off(found[1], [name]) <= 1.5 * off(own[1], [name]), name


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("family", FUSED)
def test_loss_and_every_gradient_are_no_further_off_than_the_familys_own(family, packed):
    batch = collate_row(row_of(examples())) if packed else collate(examples())
    exact = computed(trained(family, torch.float64), collate(examples()), compute=torch.float64)
    model = trained(family)
    if packed:
        keep_documents_apart(model, 0, max(LENGTHS))
    own = computed(model, batch)
    found = computed(fused(model), batch)
    assert len(found[1]) == len(list(model.parameters()))
    assert_as_near(found, own, exact)


@pytest.mark.parametrize("only", ["norm", "bias", "layers.1.", "v_proj", "embed_tokens"])
def test_of_a_part_that_is_trained_the_same_gradients_are_there(only):
    exact = computed(trained("qwen2", torch.float64, only), collate(examples()), compute=torch.float64)
    model = trained("qwen2", only=only)
    own = computed(model, collate(examples()))
    found = computed(fused(model), collate(examples()))
    assert found[1].keys() == exact[1].keys()
    assert_as_near(found, own, exact)


def test_weights_that_are_bfloat16_themselves_are_trained_directly():
    exact = computed(trained("llama", torch.bfloat16).double(), collate(examples()), compute=torch.float64)
    model = trained("llama", torch.bfloat16)
    own = computed(model, collate(examples()))
    found = computed(fused(model), collate(examples()))
    assert {p.grad.dtype for p in model.parameters()} == {torch.bfloat16}
    assert_as_near(found, own, exact)


def test_gradients_add_up_over_micro_batches():
    model = fused(trained("qwen3"))
    one, other = collate(examples()[:1]), collate(examples()[1:])
    (loss_1, first), (loss_2, second), (loss, both) = computed(model, one), computed(model, other), computed(model, one, other)
    assert loss == loss_1 + loss_2
    for name, gradient in both.items():
        assert torch.equal(gradient, (first[name].float() + second[name].float()).double()), name


def test_weights_that_have_changed_are_read_again():
    """By an optimizer, by a copy, or past autograd's notice: no cast of a master outlives its backward pass."""
    model, batch = fused(trained("llama")), collate(examples())
    computed(model, batch)
    other = trained("llama")
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            mine.data.mul_(0.5)
            theirs.mul_(0.5)
    found, expected = computed(model, batch), computed(fused(other), batch)
    assert found[0] == expected[0]
    assert all(torch.equal(found[1][name], expected[1][name]) for name in expected[1])


def test_a_second_backward_pass_over_the_same_graph_gives_the_same():
    model = fused(trained("llama"))
    nll = Scored(model, torch.bfloat16)(collate(examples()))
    nll.sum.backward(retain_graph=True)
    first = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    nll.sum.backward()
    assert all(torch.equal(p.grad, first[name]) for name, p in model.named_parameters())


def test_recomputed_layers_give_the_same_bits():
    kept, again = fused(trained("qwen3")), fused(trained("qwen3"))
    recompute_activations(again)
    found, expected = computed(again, collate(examples())), computed(kept, collate(examples()))
    assert found[0] == expected[0]
    assert all(torch.equal(found[1][name], gradient) for name, gradient in expected[1].items())


def test_in_float32_the_family_computes_by_itself():
    """Whoever does not ask for products in bfloat16 gets none."""
    model, batch = trained("llama"), collate(examples())
    own = computed(model, batch, compute=torch.float32)
    found = computed(fused(model), batch, compute=torch.float32)
    assert found[0] == own[0]
    assert all(torch.equal(found[1][name], gradient) for name, gradient in own[1].items())


@pytest.mark.parametrize("of", [("of_weights", 0), ("of_weights", 1)], ids=["weight", "bias"])
def test_a_layer_whose_weights_would_get_other_gradients_is_not_fused(of, monkeypatch):
    """The trial itself looks at what is trained."""
    name, at = of
    own = getattr(layers, name)

    def wrong(*arguments: Any) -> list[torch.Tensor]:
        gradients = own(*arguments)
        return [g if i != at else 1.1 * g for i, g in enumerate(gradients)] if len(gradients) > 1 else gradients

    monkeypatch.setattr(layers, name, wrong)
    model = trained("qwen2")
    fuse_layers(model)
    assert fused_forms(model) == {}


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "phi3", "gpt2", "gpt_neox", "mistral"])
def test_other_families_keep_their_own_forward(family):
    model = trained(family)
    fuse_layers(model)
    assert fused_forms(model) == {}


def test_names_in_files_stay_and_gradients_are_of_the_masters():
    model = trained("llama")
    before = list(model.state_dict())
    computed(fused(model), collate(examples()))
    assert list(model.state_dict()) == before
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
