"""A quantised layer against the dense layer that its codes stand for."""

import pytest
import torch
from torch import nn

from tunesmith.model.frozen import FrozenLinear, QuantizedLinear
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
