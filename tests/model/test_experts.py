"""Mixtures of experts: adapters on 3-D weights against PEFT on the same list, and experts in few bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.conftest import byte_level_tokenizer
from torch import nn

from tunesmith.config import LoraConfig
from tunesmith.errors import BadInput
from tunesmith.model.adapters import adapter_parameters, attach, choose_targets, load_adapter, save_adapter, using
from tunesmith.model.experts import ExpertStack, expert_parameters
from tunesmith.model.load import load_model
from tunesmith.quant.scheme import find_scheme
from tunesmith.quant.tensor import dequantize
from tunesmith.training.method import experts_left_out

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT reads it

SHAPE = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
MIXTURES = {
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**SHAPE, moe_intermediate_size=40, num_experts=4, num_experts_per_tok=2, head_dim=8),
    "mixtral": lambda: transformers.MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
    "gpt_oss": lambda: transformers.GptOssConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2, head_dim=8),
}
TARGETS = ["q_proj", "experts.gate_up_proj", "experts.down_proj"]


def mixture(family: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = MIXTURES[family]()
    config._experts_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model.eval()


def ids() -> torch.Tensor:
    return torch.randint(3, 96, (2, 17), generator=torch.Generator().manual_seed(1))


def loss_of(model: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(ids()).logits[:, :-1].flatten(0, 1), ids()[:, 1:].flatten())


def adapted(family: str) -> Any:
    model = mixture(family)
    attach(model, "x", LoraConfig(rank=4, targets=TARGETS), seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter_parameters(model, "x").values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def test_experts_are_adapted_only_where_they_are_named():
    model = mixture("qwen3_moe")
    assert not any("experts" in path for path in choose_targets(model, "all-linear"))
    assert [path for path in choose_targets(model, ["experts.down_proj"]) if "layers.0" in path] == ["model.layers.0.mlp.experts.down_proj"]


@pytest.mark.parametrize("family", MIXTURES)
def test_a_new_adapter_on_experts_changes_nothing(family: str):
    model = mixture(family)
    before = model(ids()).logits
    attach(model, "x", LoraConfig(rank=4, targets=TARGETS), seed=0)
    with using(model, "x"):
        assert torch.equal(model(ids()).logits, before)


@pytest.mark.parametrize("family", MIXTURES)
def test_loss_and_gradients_are_those_of_peft_on_the_same_list(family: str):
    peft = pytest.importorskip("peft")
    ours = adapted(family)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"], lora_dropout=0.0
    )
    theirs = peft.get_peft_model(mixture(family), config)
    named = {n.replace(".default.", "."): p for n, p in theirs.named_parameters() if p.requires_grad}
    mine = adapter_parameters(ours, "x")
    assert named.keys() == mine.keys()
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(mine[name])
    with using(ours, "x"):
        loss = loss_of(ours)
        loss.backward()
    expected = loss_of(theirs)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for name, parameter in named.items():
        torch.testing.assert_close(mine[name].grad, parameter.grad, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_saved_adapters_open_in_peft_and_here(tmp_path: Path):
    peft = pytest.importorskip("peft")
    ours = adapted("qwen3_moe")
    save_adapter(ours, "x", tmp_path, {}, "a mixture", LoraConfig(rank=4, targets=TARGETS))
    with using(ours, "x"):
        expected = ours(ids()).logits
    theirs = peft.PeftModel.from_pretrained(mixture("qwen3_moe"), tmp_path)
    torch.testing.assert_close(theirs(ids()).logits, expected, rtol=1e-5, atol=1e-5)
    again = mixture("qwen3_moe")
    load_adapter(again, "x", tmp_path)
    with using(again, "x"):
        torch.testing.assert_close(again(ids()).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_are_quantised_with_the_rest_and_answer_as_their_dequantised_weights(family: str, tmp_path: Path):
    dense = mixture(family)
    dense.save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    quantised = load_model(str(tmp_path), "float32", scheme=find_scheme("nf4", 32)).model
    stacks = {path: module for path, module in quantised.named_modules() if isinstance(module, ExpertStack)}
    assert stacks.keys() == expert_parameters(dense).keys()
    assert all(len(stack.quantized) == 4 and stack.dense is None for stack in stacks.values())
    with torch.no_grad():
        for path, module in quantised.named_modules():
            if isinstance(module, ExpertStack):
                weights = torch.stack([dequantize(layer.q) for layer in module.quantized])
                dense.get_parameter(path).copy_(weights.transpose(1, 2) if module.transposed else weights)
            elif hasattr(module, "q") and ".quantized." not in path:
                dense.get_submodule(path).weight.copy_(dequantize(module.q))
    torch.testing.assert_close(quantised(ids()).logits, dense(ids()).logits, rtol=1e-4, atol=1e-4)


def test_dropout_on_experts_is_refused():
    with pytest.raises(BadInput, match="cannot be adapted with dropout"):
        attach(mixture("mixtral"), "x", LoraConfig(rank=4, targets=TARGETS, dropout=0.1), seed=0)


@pytest.mark.parametrize(("targets", "left_out"), [("all-linear", True), (["q_proj", "experts.gate_up_proj", "experts.down_proj"], False)])
def test_experts_without_an_adapter_are_told_of(targets: Any, left_out: bool):
    model = mixture("qwen3_moe")
    attach(model, "x", LoraConfig(rank=4, targets=targets), seed=0)
    said = " ".join(experts_left_out(model, "x"))
    assert ("experts.down_proj, experts.gate_up_proj" in said) == left_out
