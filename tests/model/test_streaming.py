"""Models quantised while they load: the same codes as quantising afterwards, in less memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.conftest import byte_level_tokenizer
from tests.model.families import FAMILIES, tiny
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.errors import BadInput
from tunesmith.model.adapters import fingerprint, linear_layers
from tunesmith.model.frozen import QuantizedLinear
from tunesmith.model.load import load_model
from tunesmith.quant.scheme import find_scheme
from tunesmith.quant.tensor import dequantize, quantize


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_as_with_dequantised_weights(family: str, tmp_path: Path):
    """The dense model with its weights replaced by what the codes stand for gives the same logits."""
    tiny(family).save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)  # any: ids go in and logits come out
    scheme = find_scheme("nf4", 32)
    quantized, dense = load_model(str(tmp_path), "float32", scheme=scheme), load_model(str(tmp_path), "float32")
    layers = linear_layers(quantized.model)
    assert all(isinstance(layer, QuantizedLinear) for layer in layers.values()), "all linear layers but the head"
    for name, layer in linear_layers(dense.model).items():
        stored = layers[name]
        weight_NK = dequantize(stored.q)
        layer.weight.data = weight_NK.T.contiguous() if stored.transposed else weight_NK
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(quantized.model(ids).logits, dense.model(ids).logits, rtol=1e-5, atol=1e-5)


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


LOAD = """
import json, sys, threading, time
from tunesmith import api
from tunesmith.model.load import load_model
from tunesmith.quant.scheme import find_scheme

def anonymous():
    return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) * 1024

load_model("acorn", "bfloat16", scheme=find_scheme("nf4"))  # imports and scratch buffers
before, peak, done = anonymous(), [0], []

def watch():
    while not done:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.0005)

thread = threading.Thread(target=watch)
thread.start()
model = load_model(sys.argv[1], "bfloat16", scheme=find_scheme("nf4")).model
done.append(1)
thread.join()
held = sum(p.nbytes for p in {id(p): p for p in model.parameters()}.values())
print(json.dumps({"grown": peak[0] - before, "held": held, "largest": max(p.nbytes for p in model.parameters() if p.is_floating_point())}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_loading_peaks_at_the_quantised_size_and_the_largest_tensor(tmp_path: Path):
    config = LlamaConfig(
        vocab_size=384, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=12,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    dense = 12 * (4 * 768 * 768 + 3 * 768 * 3072) * 2
    done = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    largest = 768 * 3072 * 4  # a weight in float32 while it is quantised
    assert found["held"] < 0.3 * dense
    assert found["grown"] < found["held"] + 3 * largest + 16e6, f"{found}: the dense model would be {dense:,}"
