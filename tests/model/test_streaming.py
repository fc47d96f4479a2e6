"""Models quantised while they load: the same codes as quantising afterwards, in less memory."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import byte_level_tokenizer
from tests.memory import needs_proc, watched
from tests.model.families import FAMILIES, tiny
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.config import LoraConfig
from tunesmith.data.batches import Batch
from tunesmith.errors import BadInput
from tunesmith.kernels import native
from tunesmith.loss import Scored
from tunesmith.model.adapters import adapter_parameters, attach, fingerprint, linear_layers, using
from tunesmith.model.frozen import QuantizedEmbedding, QuantizedLinear
from tunesmith.model.load import load_model
from tunesmith.quant.scheme import Scheme, find_scheme
from tunesmith.quant.tensor import dequantize, quantize

NF4_32, WITH_EMBEDDINGS = find_scheme("nf4", 32), find_scheme("nf4", 32, embeddings=True)
IDS = torch.arange(3, 40)[None]


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)  # any: ids go in and logits come out
    return folder


def dequantised(quantized: Any, dense: Any) -> Any:
    """The dense model with its weights replaced by what the codes of the other stand for."""
    for name, stored in quantized.named_modules():
        if isinstance(stored, QuantizedLinear | QuantizedEmbedding):
            weight_NK = dequantize(stored.q, dense.dtype)
            dense.get_submodule(name).weight.data = weight_NK.T.contiguous() if getattr(stored, "transposed", False) else weight_NK
    return dense


def tables(model: Any) -> tuple[nn.Module, nn.Module]:
    return model.get_input_embeddings(), model.get_output_embeddings()


@pytest.mark.parametrize("scheme", [NF4_32, WITH_EMBEDDINGS], ids=["linear layers", "embeddings too"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_as_with_dequantised_weights(family: str, scheme: Scheme, tmp_path: Path):
    """Tied and untied heads, Gemma's scaled embeddings, GPT-2's positions, which stay."""
    folder = str(save(tiny(family), tmp_path))
    quantized = load_model(folder, "float32", scheme=scheme)
    assert all(isinstance(layer, QuantizedLinear) for layer in linear_layers(quantized.model).values()), "all linear layers but the head"
    assert any(isinstance(table, QuantizedEmbedding | QuantizedLinear) for table in tables(quantized.model)) == scheme.embeddings
    expected = dequantised(quantized.model, load_model(folder, "float32").model)
    torch.testing.assert_close(quantized.model(IDS).logits, expected(IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_in_few_bits_are_bfloat16_to_the_model_and_its_loss(family: str, tmp_path: Path):
    """What is read off a model, its dtype first of all, is as before; so is the loss through the quantised head, and its gradients."""
    folder = str(save(tiny(family), tmp_path))
    quantized, dense = load_model(folder, "bfloat16", scheme=WITH_EMBEDDINGS), load_model(folder, "bfloat16")
    assert fingerprint(quantized.model) == fingerprint(dense.model)
    assert quantized.model.dtype == torch.bfloat16 and quantized.n_ids == dense.n_ids
    found, losses = [], []
    for model in (quantized.model, dequantised(quantized.model, dense.model)):
        attach(model, "x", LoraConfig(rank=4), seed=0)
        for parameter in adapter_parameters(model, "x").values():
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
            parameter.requires_grad_(True)
        scored = Scored(model)
        with using(model, "x"):
            nll = scored(Batch(IDS, IDS.roll(-1, 1), IDS.shape[1], ("row",)))
            nll.sum.backward()
        losses.append((scored.why_full_logits, nll.sum.detach()))
        found.append({name: p.grad for name, p in adapter_parameters(model, "x").items()})
    assert losses[0] == losses[1]
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


def test_a_tied_weight_is_held_once_and_an_untied_head_for_itself(tmp_path: Path):
    for family, tied in (("qwen2", True), ("llama", False)):
        loaded = load_model(str(save(tiny(family), tmp_path / family)), "float32", scheme=WITH_EMBEDDINGS)
        embedding, head = tables(loaded.model)
        assert head.shares(embedding) == tied
        in_16_bits = load_model(str(tmp_path / family), "float32", scheme=NF4_32).model.get_input_embeddings().weight.nbytes
        before = sum(p.nbytes for p in load_model(str(tmp_path / family), "float32", scheme=NF4_32).model.parameters())
        saved = before - sum(p.nbytes for p in loaded.model.parameters())
        assert saved == (in_16_bits if tied else 2 * in_16_bits) - embedding.nbytes - (0 if tied else head.nbytes)
        assert deepcopy(loaded.model).get_output_embeddings().shares(embedding) is False, "a copy shares with itself"
        copied = deepcopy(loaded.model)
        assert copied.get_output_embeddings().shares(copied.get_input_embeddings()) == tied


@pytest.mark.parametrize("case", ["head only", "twice the same", "twice, other values"])
def test_files_that_hold_a_tied_weight_otherwise_are_read_as_transformers_reads_them(case: str, tmp_path: Path):
    save(tiny("qwen2"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    weight = tensors["model.embed_tokens.weight"] if case != "head only" else tensors.pop("model.embed_tokens.weight")
    tensors["lm_head.weight"] = weight.clone() if case != "twice, other values" else weight.flip(0).contiguous()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    quantized, dense = load_model(str(tmp_path), "float32", scheme=WITH_EMBEDDINGS), load_model(str(tmp_path), "float32")
    embedding, head = tables(quantized.model)
    assert head.shares(embedding) == (dense.model.get_output_embeddings().weight is dense.model.get_input_embeddings().weight)
    assert fingerprint(quantized.model) == fingerprint(dense.model)
    assert torch.equal(quantized.model(IDS).logits, dequantised(quantized.model, dense.model)(IDS).logits)


def test_a_missing_head_is_still_missing(tmp_path: Path):
    save(tiny("llama"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"missing: lm_head\.weight"):
        load_model(str(tmp_path), "float32", scheme=WITH_EMBEDDINGS)


def test_a_block_longer_than_a_row_of_the_embedding_is_refused_by_name(tmp_path: Path):
    save(tiny("llama"), tmp_path)  # rows of 32 and 48
    with pytest.raises(BadInput, match="a block of 48 is longer than a row of model"):
        load_model(str(tmp_path), "float32", scheme=find_scheme("nf4", 48, embeddings=True))


def test_the_codes_are_those_of_the_file_and_the_fingerprint_is_the_dense_models(tiny_model: Path):
    scheme = find_scheme("nf4", 32)
    quantized, dense = load_model(str(tiny_model), "bfloat16", scheme=scheme), load_model(str(tiny_model), "bfloat16")
    name, layer = next(iter(linear_layers(quantized.model).items()))
    expected = quantize(dense.model.get_submodule(name).weight, scheme)
    assert torch.equal(layer.q.codes, expected.codes)
    assert torch.equal(layer.q.scales.values(), expected.scales.values())
    assert fingerprint(quantized.model) == fingerprint(dense.model)
    assert quantized.scheme == scheme and dense.scheme is None
    assert not hasattr(quantized.model.config, "quantization_config")


def test_a_weight_that_is_not_finite_is_refused_by_name(tiny_model: Path, tmp_path: Path):
    model = LlamaForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 7] = torch.inf
    model.save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="NaN or infinite") as caught:
        load_model(str(tmp_path), "float32", scheme=find_scheme("nf4", 32))
    assert "layers.1.mlp.up_proj.weight" in caught.value.where


@pytest.fixture(scope="module")
def wide_models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By the size of the vocabulary: the largest tensor is a projection of 4.7 MB, or an embedding of 25."""
    folders = {}
    for vocabulary in (384, 16_384):
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=768, intermediate_size=3072, num_hidden_layers=8, num_attention_heads=12,
            num_key_value_heads=12, tie_word_embeddings=True,
        )  # fmt: skip
        folders[vocabulary] = tmp_path_factory.mktemp("wide") / str(vocabulary)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folders[vocabulary])
        byte_level_tokenizer().save_pretrained(folders[vocabulary])
    return folders


@needs_proc
@pytest.mark.parametrize(
    ("vocabulary", "scheme", "slack"),
    [
        (384, 'find_scheme("nf4")', 6e6),
        (16_384, 'find_scheme("nf4", embeddings=True)', 6e6),
        # written in torch: float32 temporaries of a quarter of a million weights
        pytest.param(16_384, 'find_scheme("int4", embeddings=True)', 20e6, marks=pytest.mark.slow),
    ],
)
def test_loading_peaks_at_the_quantised_size_and_the_largest_tensor(
    wide_models: dict[int, Path], vocabulary: int, scheme: str, slack: float
):
    """The largest tensor as it lies in the file, in 16 bits."""
    if native.compiled() is None:
        slack = 200e6  # quantize_4bit_reference works on 4 million weights at a time
    found = watched(
        f'model = load_model(sys.argv[1], "bfloat16", scheme={scheme}).model',
        setup=f"""
from tunesmith.model.load import load_model
from tunesmith.quant.scheme import Scheme, find_scheme
load_model("acorn", "bfloat16", scheme={scheme})  # imports and scratch buffers""",
        facts='{"held": sum(p.nbytes for p in model.parameters())}', arguments=[wide_models[vocabulary]],
    )  # fmt: skip
    dense, largest = 8 * (4 * 768 * 768 + 3 * 768 * 3072) * 2 + vocabulary * 768 * 2, max(768 * 3072, vocabulary * 768) * 2
    assert found["held"] < 0.35 * dense
    assert found["grown"] < found["held"] + largest + slack, f"{found}: the dense model would be {dense:,}"
