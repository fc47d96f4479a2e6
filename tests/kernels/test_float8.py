"""FP8: rows as codes by hand and against their bounds, products against float64 and torch's own, layers forward and back."""

import copy

import pytest
import torch
from tests.model.test_fused_layers import FUSED, adapted, examples, loss_and_gradients, off
from tests.triton_interpreter import force_triton
from torch import nn

from tunesmith.config import DataConfig, QuantizationConfig, Run
from tunesmith.data.batches import collate
from tunesmith.errors import BadInput
from tunesmith.exports.quantized import write_quantized
from tunesmith.kernels import float8, native
from tunesmith.model.adapters import linear_layers
from tunesmith.model.frozen import QuantizedLinear
from tunesmith.model.lora import LoraLinear
from tunesmith.quant.scheme import find_scheme, scheme_of_words
from tunesmith.quant.tensor import dequantize, from_tensors, quantize
from tunesmith.training.method import build

pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # Triton's interpreter is numpy

FP8 = find_scheme("fp8")


@pytest.fixture(params=["reference", "triton"])
def device(request, monkeypatch):
    if request.param == "triton":
        return torch.device(force_triton(monkeypatch))
    monkeypatch.setenv(native.VARIABLE, "reference")
    return torch.device("cpu")


def numbers(*shape, seed=0, by=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * by).bfloat16()


def values(codes):
    return codes.view(torch.float8_e4m3fn).float()


def off_by(found, exact):
    return float((found.double() - exact.double()).norm() / exact.double().norm())


# --- codes ----------------------------------------------------------------------------------------------------------------


def test_a_row_by_hand(device):
    #                       largest       1.5 of 448/3   0.01 · 448/3 = 1.493        440: nearer to 448 than to 416
    row   = torch.tensor([[-3.0,          1.5,           0.01,                 0.0,  3.0 * 440 / 448]], device=device)  # fmt: skip
    codes = torch.tensor([[-448.0,        224.0,         1.5,                  0.0,  448.0]])  # fmt: skip
    found, scale = float8.quantize_rows(row)
    assert values(found.cpu()).tolist() == codes.tolist()
    assert scale.tolist() == pytest.approx([3 / 448])
    assert float(float8.dequantize_rows(found, scale)[0, 2]) == pytest.approx(0.010045, rel=1e-3)


@pytest.mark.parametrize("width", [1, 17, 640, 5001])  # the last is more than a piece of the kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_number_is_off_by_more_than_half_a_step(device, width, dtype):
    x = (numbers(5, width).float() * torch.logspace(-6, 4, 5)[:, None]).to(dtype).to(device)
    codes, scale = float8.quantize_rows(x)
    error = (float8.dequantize_rows(codes, scale) - x.float()).abs()
    half_a_step = torch.maximum(x.float().abs() / 16, scale[:, None] * 2**-10)  # 3 bits of mantissa; 2^-9 between the smallest
    assert bool((error <= half_a_step * (1 + 2**-20)).all())
    assert off_by(float8.dequantize_rows(codes, scale), x) < 0.03 or width == 1


def test_rows_of_zeros_and_of_what_is_no_number(device):
    x = torch.zeros(4, 40, device=device)
    x[1, 3], x[2, 39], x[3, 0] = torch.nan, torch.inf, 1e-38
    codes, scale = float8.quantize_rows(x)
    assert scale.isfinite().tolist() == [True, False, False, True]
    assert not values(codes[0].cpu()).any()


# --- products -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n", "k"), [(3, 16, 32), (7, 48, 64), (33, 80, 144)])
def test_the_reference_and_torchs_own_product_are_the_same_to_the_last_bit_of_bfloat16(m, n, k):
    device = "cuda" if torch.cuda.is_available() and float8.multiplies(torch.device("cuda")) else "cpu"
    x, weight = (float8.quantize_rows_reference(numbers(*shape, seed=k).to(device)) for shape in ((m, k), (n, k)))
    exact = (values(x[0]).double() * x[1].double()[:, None]) @ (values(weight[0]).double() * weight[1].double()[:, None]).T
    reference = float8.product_reference(*x, *weight, torch.bfloat16)
    assert off_by(reference, exact) < 2**-9
    try:
        theirs = float8.scaled_mm(*x, *weight, torch.bfloat16)
    except (RuntimeError, NotImplementedError) as none:  # a CPU's torch without row-wise scales
        pytest.skip(str(none).splitlines()[0])
    assert off_by(theirs, exact) < 2**-8


def test_a_product_is_as_far_off_as_its_codes_are(device):
    x, weight = numbers(9, 100), numbers(31, 100, seed=1)
    found = float8.product(x.to(device), *(t.to(device) for t in float8.quantize_rows_reference(weight)))
    assert found.dtype == torch.bfloat16
    assert off_by(found.cpu(), x.double() @ weight.double().T) < 0.05  # 2.6 % of either side, by their square root


def test_an_input_is_coded_once_for_its_projections_and_again_when_it_was_changed(monkeypatch):
    coded = []
    monkeypatch.setattr(float8, "quantize_rows", lambda x: (coded.append(x.shape), float8.quantize_rows_reference(x))[1])
    x, weights = numbers(4, 32), [float8.quantize_rows_reference(numbers(8, 32, seed=seed)) for seed in range(3)]
    first = [float8.product(x, *weight) for weight in weights]
    assert len(coded) == 1
    x += 1
    assert not torch.equal(float8.product(x, *weights[0]), first[0])
    float8.product(x.clone(), *weights[0])
    assert len(coded) == 3
    with torch.inference_mode():
        float8.product(numbers(4, 32), *weights[0])


# --- layers ---------------------------------------------------------------------------------------------------------------


def test_both_directions_are_stored_and_come_back_from_their_tensors():
    weight = numbers(24, 40)
    q = quantize(weight, FP8)
    assert {name: tuple(t.shape) for name, t in q.tensors().items()} == {
        "codes": (24, 40), "scales": (24,), "back_codes": (40, 24), "back_scales": (40,)
    }  # fmt: skip
    assert q.nbytes == 2 * 24 * 40 + 4 * (24 + 40)
    again = from_tensors(FP8, (24, 40), "rows", q.tensors())
    assert torch.equal(dequantize(again), dequantize(q))
    assert off_by(dequantize(q), weight) < 0.03
    assert scheme_of_words(str(FP8)) == FP8
    weight[3, 4] = torch.inf
    with pytest.raises(BadInput, match="NaN or infinite"):
        quantize(weight, FP8)


@pytest.mark.parametrize("biased", [False, True])
def test_a_layers_gradient_is_the_product_with_the_codes_of_the_transpose(biased):
    weight, bias = numbers(48, 32), nn.Parameter(numbers(48, seed=1)) if biased else None
    layer = QuantizedLinear(48, 32, bias, torch.bfloat16)
    layer.hold(quantize(weight, FP8))
    x, dy = numbers(7, 32, seed=2).requires_grad_(), numbers(7, 48, seed=3)
    y = layer.mm(x)
    y.backward(dy)
    expected = float8.product_reference(*float8.quantize_rows(x.detach()), layer.q.codes, layer.q.scales.stored, torch.bfloat16)
    assert torch.equal(y.detach(), expected if bias is None else expected + bias.detach())
    back = float8.product_reference(*float8.quantize_rows(dy), *float8.quantize_rows(weight.T.contiguous()), torch.bfloat16)
    assert torch.equal(x.grad, back)
    assert off_by(x.grad, dy.double() @ weight.double()) < 0.06
    onto = numbers(7, 32, seed=4)
    assert torch.equal(layer.mm_t(dy, onto=onto.clone()), onto + back)


def test_a_model_in_fp8_learns_nearly_what_its_base_in_bfloat16_would():
    model, batch = adapted(FUSED["llama"]()), collate(examples())
    own = loss_and_gradients(model, batch)
    inside = copy.deepcopy(model)
    for layer in linear_layers(inside).values():
        assert isinstance(layer, LoraLinear)
        dense, held = layer.frozen, QuantizedLinear(layer.frozen.n_outputs, layer.frozen.n_inputs, layer.frozen.bias, torch.bfloat16)
        held.hold(quantize(dense.weight, FP8))
        layer.frozen = held
    loss, gradients = off(loss_and_gradients(inside, batch), own)
    assert loss < 0.02
    assert gradients < 0.25  # each weight and activation of two layers off by 2.6 %, in a model that is steep on purpose


# --- refusals -------------------------------------------------------------------------------------------------------------


def test_it_is_refused_where_nothing_multiplies_it(tiny_model, monkeypatch):
    if torch.cuda.is_available() and float8.multiplies(torch.device("cuda")):
        pytest.skip("this GPU does")
    run = Run(
        model=str(tiny_model), method="qlora", output="none", data=DataConfig(train="none"), quantization=QuantizationConfig(scheme="fp8")
    )
    with pytest.raises(BadInput, match="no products in FP8") as refused:
        build(run, "x")
    assert refused.value.where == "quantization.scheme: fp8"
    assert "H100" in refused.value.fix
    monkeypatch.setenv(native.VARIABLE, "reference")  # which computes it anywhere
    tuned = build(run, "x")
    assert any("base in fp8, rows" in line for line in tuned.said)


@pytest.mark.parametrize("more", [{"block_size": 64}, {"double": True}, {"clip": 98}, {"embeddings": True}], ids=str)
def test_what_fp8_has_not_is_refused(more):
    with pytest.raises(BadInput, match="one scale for each row"):
        find_scheme("fp8", **more)


def test_no_file_is_written_in_it(tiny_model, tmp_path):
    with pytest.raises(BadInput, match="not kept in files"):
        write_quantized(str(tiny_model), FP8, tmp_path / "out")
    assert not (tmp_path / "out").exists()
