"""Any dense decoder: our loss and our LoRA against transformers and PEFT, family by family, in float32."""

import math
from copy import deepcopy

import peft
import pytest
import torch
import transformers
from families import FAMILIES, LAYERS, LENGTHS, VOCABULARY, WINDOW, assert_close, linear_paths, ragged_rows, their_summed_loss, tiny

from tunesmith.config import LoraConfig
from tunesmith.loss import Scored
from tunesmith.model.adapters import (
    adapted_layers,
    adapter_parameters,
    attach,
    choose_targets,
    load_adapter,
    save_adapter,
    switch_of,
    using,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)  # PEFT 0.21 asks transformers 5.23
BASE = "a-base"
# part of the layers, by the end of their names; "c_proj" of GPT-2 is in attention and MLP alike
PART = {"gpt2": ["c_attn", "c_proj"], "gpt_neox": ["query_key_value", "dense_4h_to_h"], "phi3": ["qkv_proj", "down_proj"]}
QV = ["q_proj", "v_proj"]


def with_lora(family, targets="all-linear", rslora=False, rank=4, alpha=6.0, seed=1):
    """A tiny model with an adapter whose B is not zero, as after some training, active."""
    model, config = tiny(family), LoraConfig(rank=rank, alpha=alpha, targets=targets, rslora=rslora)
    attach(model, "spam", config, seed)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in adapter_parameters(model, "spam").items():
        if "lora_B" in key:
            parameter.data.normal_(std=0.2, generator=generator)
    switch_of(model).active = "spam"
    return model, config


def in_peft(family, ours, targets, rslora, rank=4, alpha=6.0):
    """PEFT's LoRA on a list of layers, with the numbers of ours."""
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets,
        lora_dropout=0.0,
        use_rslora=rslora,
        task_type="CAUSAL_LM",
        fan_in_fan_out=family == "gpt2",
    )
    model = peft.get_peft_model(tiny(family), config)
    parameters = dict(model.named_parameters())
    for key, value in adapter_parameters(ours, "spam").items():
        parameters[key.replace(".weight", ".default.weight")].data.copy_(value.data)
    return model.eval()


def logits_of(model, batch, mask_BT):
    """Of the real positions alone: what a padded one answers is nobody's business."""
    return model(input_ids=batch.ids_BT, attention_mask=mask_BT, use_cache=False).logits[mask_BT.bool()]


# --- the loss -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tiny_model_is_far_from_guessing_and_looks_at_its_input(family):
    batch, inputs = ragged_rows()
    model = tiny(family)
    with torch.no_grad():
        per_token = float(their_summed_loss(model, inputs, batch.n_trained)) / batch.n_trained
        assert abs(per_token - math.log(VOCABULARY)) > 0.3
        # the first token changes the answer at the last position that it can reach
        other = batch.ids_BT.clone()
        other[0, 0] = (other[0, 0] + 1) % VOCABULARY
        reach = LENGTHS[0] - 1 if family not in ("mistral", "phi3") else LAYERS * (WINDOW - 1)
        moved = (model(input_ids=batch.ids_BT).logits - model(input_ids=other).logits)[0, reach].abs().max()
        assert moved > 1e-3


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3", "phi3"])
def test_the_window_of_the_tiny_model_is_shorter_than_its_rows(family):
    batch, _ = ragged_rows()
    model = tiny(family)
    wide = deepcopy(model.config)
    wide.sliding_window = 64
    without = type(model)(wide).eval()
    without.load_state_dict(model.state_dict())
    with torch.no_grad():
        difference_T = (model(input_ids=batch.ids_BT).logits - without(input_ids=batch.ids_BT).logits)[0].abs().amax(-1)
    assert difference_T[:WINDOW].max() < 1e-5
    assert difference_T[WINDOW:].min() > 1e-3


@pytest.mark.parametrize(("family", "rotated"), [("phi3", 4), ("gpt_neox", 2)])
def test_the_tiny_model_rotates_part_of_each_head(family, rotated):
    model = tiny(family)
    cos_BTR, _ = model.base_model.rotary_emb(torch.zeros(1, 3, 32), torch.arange(3)[None])
    assert cos_BTR.shape[-1] == rotated
    assert model.config.hidden_size // model.config.num_attention_heads == 8


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_every_gradient_of_full_fine_tuning_equal_those_of_transformers(family):
    batch, inputs = ragged_rows()
    ours, theirs = tiny(family).requires_grad_(True), tiny(family).requires_grad_(True)
    found, expected = Scored(ours)(batch), their_summed_loss(theirs, inputs, batch.n_trained)
    assert found.count == batch.n_trained == int((inputs["labels"] != -100).sum())
    assert_close(found.sum, expected, what="loss")
    found.sum.backward()
    expected.backward()
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        if parameter.grad.abs().max() < 1e-3:  # a bias of keys shifts all scores alike: its gradient is zero but for rounding
            assert "key" in name or "k_proj.bias" in name or "c_attn.bias" in name, name
            assert gradients[name].abs().max() < 1e-3, name
        else:
            assert_close(gradients[name], parameter.grad, what=name)


def test_only_the_soft_cap_of_gemma_2_asks_for_full_logits_and_it_says_so():
    reasons = {family: Scored(tiny(family)).why_full_logits for family in FAMILIES}
    assert reasons.pop("gemma2") == "the model's forward changes the logits after its head (a soft-cap or a scale)"
    assert set(reasons.values()) == {None}


def test_a_soft_cap_is_found_however_small_the_logits_of_a_fresh_model_are():
    model = tiny("gemma2")
    model.config.final_logit_softcapping = 30.0  # bends logits of 0.1 by four millionths
    model.get_output_embeddings().weight.data.mul_(0.01)
    assert Scored(model).why_full_logits is not None
    model.config.final_logit_softcapping = None
    assert Scored(model).why_full_logits is None


def test_a_scale_of_the_logits_is_found():
    config = transformers.CohereConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, logit_scale=0.25,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.CohereForCausalLM(config).eval()
    assert "a scale" in Scored(model).why_full_logits
    batch, inputs = ragged_rows()
    assert_close(Scored(model)(batch).sum, their_summed_loss(model, inputs, batch.n_trained))


def test_asking_for_the_reason_leaves_the_model_as_it_was():
    model = tiny("llama").train()
    Scored(model)
    assert model.training
    assert not model.get_output_embeddings()._forward_hooks
    assert all(p.grad is None for p in model.parameters())


# --- LoRA ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rslora", [False, True], ids=["alpha / r", "alpha / sqrt r"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_loss_and_gradients_of_an_adapter_equal_those_of_peft(family, rslora):
    batch, inputs = ragged_rows()
    ours, _ = with_lora(family, rslora=rslora)
    theirs = in_peft(family, ours, linear_paths(tiny(family)), rslora)
    with torch.no_grad():
        found, expected = (logits_of(m, batch, inputs["attention_mask"]) for m in (ours, theirs))
        assert_close(found, expected, what="logits")
        with using(ours, None):
            base = logits_of(ours, batch, inputs["attention_mask"])
        assert (base - expected).abs().max() > 0.1 * expected.abs().max(), "the adapter should matter"
    nll, their_sum = Scored(ours)(batch), their_summed_loss(theirs, inputs, batch.n_trained)
    assert_close(nll.sum, their_sum, what="loss")
    nll.sum.backward()
    their_sum.backward()
    their_gradients = {name.replace(".default", ""): p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    our_gradients = {name: p.grad for name, p in adapter_parameters(ours, "spam").items()}
    assert set(our_gradients) == set(their_gradients)
    assert len(our_gradients) == 2 * len(linear_paths(tiny(family)))
    for name, gradient in our_gradients.items():
        assert_close(gradient, their_gradients[name], what=name)
    assert all(p.grad is None for name, p in ours.named_parameters() if ".adapters." not in name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_step_zero_is_the_base_bit_for_bit(family, dtype):
    batch, _ = ragged_rows()
    model = tiny(family, dtype=dtype)
    with torch.no_grad():
        base = model(input_ids=batch.ids_BT).logits
        attach(model, "fresh", LoraConfig(rank=4), seed=0)
        with using(model, "fresh"):
            assert torch.equal(model(input_ids=batch.ids_BT).logits, base)
        with using(model, None):
            assert torch.equal(model(input_ids=batch.ids_BT).logits, base)


@pytest.mark.parametrize("family", FAMILIES)
def test_after_one_step_every_b_has_a_gradient_and_every_a_is_still_without(family):
    #            gradient of B = dy (A x) scale       > 0
    #  step 0:   gradient of A = (B dy) x scale       = 0, for B = 0
    batch, _ = ragged_rows()
    model = tiny(family)
    attach(model, "fresh", LoraConfig(rank=4), seed=0)
    with using(model, "fresh"):
        Scored(model)(batch).sum.backward()
    for name, parameter in adapter_parameters(model, "fresh").items():
        assert bool(parameter.grad.any()) == ("lora_B" in name), name


# --- files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rslora", [False, True], ids=["alpha / r", "alpha / sqrt r"])
@pytest.mark.parametrize("part", [False, True], ids=["all linear", "part"])
@pytest.mark.parametrize("family", FAMILIES)
def test_our_adapter_opens_in_peft_on_exactly_our_layers_with_equal_logits(family, part, rslora, tmp_path):
    batch, inputs = ragged_rows()
    targets = PART.get(family, QV) if part else "all-linear"
    ours, config = with_lora(family, targets, rslora)
    save_adapter(ours, "spam", tmp_path, {}, BASE, config)
    theirs = peft.PeftModel.from_pretrained(tiny(family), tmp_path).eval()
    assert set(theirs.base_model.targeted_module_names) == set(adapted_layers(ours, "spam"))
    if not part:
        assert set(adapted_layers(ours, "spam")) == set(linear_paths(tiny(family)))
    with torch.no_grad():
        assert_close(*(logits_of(m, batch, inputs["attention_mask"]) for m in (ours, theirs)))


@pytest.mark.parametrize("rslora", [False, True], ids=["alpha / r", "alpha / sqrt r"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_of_peft_opens_here_with_equal_logits(family, rslora, tmp_path):
    batch, inputs = ragged_rows()
    other, _ = with_lora(family, rslora=rslora)
    theirs = in_peft(family, other, linear_paths(tiny(family)), rslora)
    theirs.save_pretrained(tmp_path)
    ours = tiny(family)
    load_adapter(ours, "from-peft", tmp_path)
    assert set(adapted_layers(ours, "from-peft")) == set(linear_paths(tiny(family)))
    with torch.no_grad(), using(ours, "from-peft"):
        assert_close(*(logits_of(m, batch, inputs["attention_mask"]) for m in (ours, theirs)))


def test_layers_of_one_name_are_named_in_full_where_only_some_of_them_are_adapted(tmp_path):
    #  c_proj is in attention and in the MLP; the adapter is on the one in the MLP of layer 1
    ours, config = with_lora("gpt2", ["h.1.mlp.c_proj"])
    save_adapter(ours, "spam", tmp_path, {}, BASE, config)
    theirs = peft.PeftModel.from_pretrained(tiny("gpt2"), tmp_path)
    assert theirs.base_model.targeted_module_names == ["transformer.h.1.mlp.c_proj"] == list(adapted_layers(ours, "spam"))


def test_ranks_and_alphas_by_layer_are_read_from_peft_and_written_back(tmp_path):
    batch, inputs = ragged_rows()
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False,
        rank_pattern={"down_proj": 2, "^model.layers.0.self_attn.v_proj": 3, "v_proj": 5}, alpha_pattern={"layers.1.self_attn.q_proj": 11},
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = peft.get_peft_model(tiny("llama"), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = tiny("llama")
    load_adapter(ours, "spam", tmp_path / "theirs")
    save_adapter(ours, "spam", tmp_path / "ours", {}, BASE, LoraConfig(rank=4, alpha=6))
    back = peft.PeftModel.from_pretrained(tiny("llama"), tmp_path / "ours").eval()
    with torch.no_grad(), using(ours, "spam"):
        expected = logits_of(theirs, batch, inputs["attention_mask"])
        assert_close(logits_of(ours, batch, inputs["attention_mask"]), expected)
        assert_close(logits_of(back, batch, inputs["attention_mask"]), expected)


def test_targets_of_a_list_mean_the_layers_that_peft_means():
    for family in FAMILIES:
        model = tiny(family)
        targets = PART.get(family, QV)
        config = peft.LoraConfig(target_modules=targets, fan_in_fan_out=family == "gpt2")
        assert choose_targets(model, targets) == peft.get_peft_model(tiny(family), config).base_model.targeted_module_names
