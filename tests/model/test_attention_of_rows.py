"""Attention by compiled C within a family's own layers: padded and packed rows, as far from float32 as the family's own attention is."""

import copy

import numpy as np
import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from tunesmith.data.batches import collate, collate_row
from tunesmith.data.packing import row_of
from tunesmith.data.template import Example
from tunesmith.kernels.causal_attention import is_fast
from tunesmith.loss import Scored
from tunesmith.model.attention import keep_documents_apart

pytestmark = pytest.mark.skipif(not is_fast(32), reason="needs a CPU with AMX and the compiled kernels")
LENGTHS = (97, 64, 33, 11)
FAMILIES = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 48},  # some documents are longer than what a token sees
    "gemma3_text": {"sliding_window": 32, "query_pre_attn_scalar": 32},
    "phi3": {"pad_token_id": 0, "eos_token_id": 1},
}


CALLS = {"llama": 2, "qwen3": 2, "mistral": 0, "gemma3_text": 0, "phi3": 2}  # layers of which each token sees all of its document


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.append(operation._schema.name)
        return operation(*args, **(kwargs or {}))


def model_of(kind, **settings):
    config = transformers.AutoConfig.for_model(
        kind, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=512,
        head_dim=32, **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(True)


def step(model, batch, dtype):
    """Loss and all gradients in one vector, and how often the compiled attention was asked."""
    model.zero_grad(set_to_none=True)
    with Count() as count:
        nll = Scored(model, dtype, ask=lambda _: None)(batch)
        nll.sum.backward()
    vector = torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])
    return float(nll.sum.detach()), vector, count.names.count("tunesmith::causal_attention")


def off(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", FAMILIES)
def test_as_far_from_float32_as_the_familys_own(kind):
    draw = np.random.default_rng(0)
    examples = [Example(draw.integers(5, 500, n).astype(np.int32), np.ones(n, dtype=bool), "") for n in LENGTHS]
    padded, packed = collate(examples, 128), collate_row(row_of(examples), 224)
    own = model_of(kind, **FAMILIES[kind])
    loss, exact, _ = step(own, padded, torch.float32)
    own_loss, own_gradient, none = step(own, padded, torch.bfloat16)
    assert none == 0
    ours = copy.deepcopy(own)
    keep_documents_apart(ours, 10**6, max(LENGTHS))
    for batch in (padded, packed):
        found, gradient, calls = step(ours, batch, torch.bfloat16)
        assert calls == CALLS[kind]
        assert abs(found / loss - 1) < max(2 * abs(own_loss / loss - 1), 1e-4)
        assert off(gradient, exact) < 1.2 * off(own_gradient, exact) + 1e-3


def test_float32_goes_the_other_way():
    draw = np.random.default_rng(0)
    examples = [Example(draw.integers(5, 500, n).astype(np.int32), np.ones(n, dtype=bool), "") for n in LENGTHS]
    own = model_of("llama")
    loss, exact, _ = step(own, collate(examples, 128), torch.float32)
    keep_documents_apart(own, 10**6, max(LENGTHS))
    for batch in (collate(examples, 128), collate_row(row_of(examples), 224)):
        found, gradient, calls = step(own, batch, torch.float32)
        assert calls == 0
        assert found == pytest.approx(loss, rel=1e-6)
        assert off(gradient, exact) < 1e-5
