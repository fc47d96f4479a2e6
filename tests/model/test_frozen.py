"""A quantised layer against the dense layer that its codes stand for."""

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from tunesmith.errors import BadInput
from tunesmith.model.frozen import FrozenLinear, QuantizedEmbedding, QuantizedLinear, _buffers
from tunesmith.model.lora import lora_linear
from tunesmith.quant.scheme import find_scheme
from tunesmith.quant.tensor import dequantize, quantize

SCHEMES = ["nf4", "fp4", "int8", "int4", "int3", "affine8", "affine5", "affine2"]


def pair(scheme: str, n: int = 96, k: int = 64, seed: int = 0) -> tuple[QuantizedLinear, nn.Linear]:
    """A quantised layer, and a dense one with exactly the weights that its codes stand for."""
    torch.manual_seed(seed)
    dense = nn.Linear(k, n)
    quantized = QuantizedLinear(n, k, dense.bias, torch.float32)
    quantized.hold(quantize(dense.weight.detach(), find_scheme(scheme, None if scheme.endswith("8") else 32)))
    dense.weight.data = dequantize(quantized.q)
    return quantized, dense.requires_grad_(False)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_products_are_those_of_the_dequantised_weight(scheme: str, dtype: torch.dtype):
    quantized, dense = pair(scheme)
    quantized, dense = quantized.to(dtype), dense.to(dtype)
    x_MK, dy_MN = torch.randn(5, 64, dtype=dtype), torch.randn(5, 96, dtype=dtype)
    assert torch.equal(quantized.mm(x_MK), FrozenLinear(dense).mm(x_MK))
    assert torch.equal(quantized.mm_t(dy_MN), FrozenLinear(dense).mm_t(dy_MN))


def test_moving_to_another_dtype_leaves_codes_and_scales_as_they_are():
    quantized, _ = pair("nf4")
    before = quantized.q.tensors()
    after = quantized.to(torch.bfloat16).q.tensors()
    assert {name: tensor.dtype for name, tensor in after.items()} == {name: tensor.dtype for name, tensor in before.items()}


@pytest.mark.parametrize("scheme", ["nf4", "int4"])
def test_a_buffer_that_grew_while_answering_serves_training(scheme: str):
    quantized, dense = pair(scheme)
    _buffers.__dict__.clear()
    with torch.inference_mode():
        quantized(torch.randn(2, 64))
    x = torch.randn(3, 64, requires_grad=True)
    quantized(x).sum().backward()
    torch.testing.assert_close(x.grad, dense.weight.sum(0).expand(3, 64))


def test_gradients_flow_through_two_layers_that_share_one_buffer():
    """Were the buffer kept for the backward pass, the first layer would find the second one's weight in it."""
    (one, one_dense), (two, two_dense) = pair("nf4", 64, 64, seed=1), pair("nf4", 64, 64, seed=2)
    x = torch.randn(3, 64, requires_grad=True)
    y = torch.randn(3, 64)
    (two(torch.tanh(one(x))) * y).sum().backward()
    x_dense = x.detach().clone().requires_grad_()
    (two_dense(torch.tanh(one_dense(x_dense))) * y).sum().backward()
    torch.testing.assert_close(x.grad, x_dense.grad)


def test_lora_over_a_quantised_layer_has_the_gradients_of_lora_over_its_dense_twin():
    quantized, dense = pair("nf4")
    a, b = torch.randn(4, 64), torch.randn(96, 4)
    grads = []
    for frozen in (quantized, FrozenLinear(dense)):
        x_MK = torch.linspace(-1, 1, 5 * 64).view(5, 64).requires_grad_()
        a_RK, b_NR = a.clone().requires_grad_(), b.clone().requires_grad_()
        lora_linear(x_MK, frozen, a_RK, b_NR, 0.5).square().sum().backward()
        grads.append((x_MK.grad, a_RK.grad, b_NR.grad))
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_the_weight_is_never_there_to_be_computed_with_by_mistake():
    quantized, _ = pair("nf4")
    assert quantized.weight.shape == (96, 64)
    assert quantized.weight.dtype == torch.float32
    assert bool(torch.isnan(quantized.weight @ torch.ones(64)).all())


# --- embeddings -----------------------------------------------------------------------------------------------------------


def table(embedding: nn.Embedding, scheme: str = "nf4") -> QuantizedEmbedding:
    """The embedding in few bits; its own weight becomes what the codes stand for."""
    quantized = QuantizedEmbedding(embedding)
    quantized.hold(quantize(embedding.weight.detach(), find_scheme(scheme, None if scheme.endswith("8") else 32)))
    embedding.weight.data = dequantize(quantized.q, embedding.weight.dtype)
    return quantized


class HalvedEmbedding(nn.Embedding):
    """Does something that its attributes do not show."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * 0.5


IDS = torch.tensor([[3, 0, 95], [3, 3, 17]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_looked_up_rows_are_those_of_the_dequantised_table(scheme: str, dtype: torch.dtype):
    torch.manual_seed(0)
    for dense in (nn.Embedding(96, 64, padding_idx=3), Gemma3TextScaledWordEmbedding(96, 64, 3, embed_scale=64**0.5 + 0.1)):
        dense = dense.to(dtype)
        quantized = table(dense, scheme)
        assert torch.equal(quantized(IDS), dense(IDS))
        assert (quantized.num_embeddings, quantized.embedding_dim, quantized.padding_idx) == (96, 64, 3)
        plain = quantized.plain(dense.weight.detach())
        assert type(plain) is type(dense)
        assert torch.equal(plain(IDS), dense(IDS))


@pytest.mark.parametrize("embedding", [HalvedEmbedding(96, 64), nn.Embedding(96, 64, max_norm=1.0)], ids=["another class", "max_norm"])
def test_an_embedding_that_is_more_than_its_rows_is_refused(embedding: nn.Embedding):
    with pytest.raises(BadInput, match=f"{type(embedding).__name__}\\) are more than rows") as error:
        QuantizedEmbedding(embedding, "model.embed_tokens")
    assert error.value.where == "quantization.embeddings: model.embed_tokens"
    assert "quantization.embeddings" in error.value.fix


def test_a_tied_head_holds_the_same_parameters_and_they_are_counted_once():
    torch.manual_seed(0)
    dense = nn.Embedding(96, 64)
    embedding, head = table(dense), QuantizedLinear(96, 64, None, torch.float32)
    head.share(embedding)
    model = nn.ModuleDict({"embedding": embedding, "head": head})
    assert head.shares(embedding) and embedding.shares(head) and not head.shares(table(nn.Embedding(96, 64)))
    assert sum(p.nbytes for p in model.parameters()) == embedding.nbytes
    x = torch.randn(5, 64)
    assert torch.equal(head(x), nn.functional.linear(x, dense.weight))
    with pytest.raises(ValueError, match="one shape"):
        QuantizedLinear(95, 64, None, torch.float32).share(embedding)


def test_the_first_parameter_of_an_embedding_has_the_dtype_of_its_rows():
    """A transformers model asks its first parameter for its dtype, and that is one of the embedding's."""
    quantized = table(nn.Embedding(96, 64, dtype=torch.bfloat16))
    first = next(quantized.parameters())
    assert first.dtype == torch.bfloat16 and first.nbytes == 0


def test_looking_up_and_making_an_embedding_draw_no_random_numbers():
    dense = nn.Embedding(96, 64)
    before = torch.random.get_rng_state()
    table(dense).plain(dense.weight.detach())
    assert torch.equal(torch.random.get_rng_state(), before)
