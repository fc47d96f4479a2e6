"""The compiled step against the reference and against float64, on every path that this machine has."""

import math

import pytest
import torch

from tunesmith.errors import BadInput
from tunesmith.kernels import native
from tunesmith.kernels.adamw8bit import BLOCK, Moment, Settings, adamw8bit, adamw8bit_reference, dequantize
from tunesmith.training.adamw8bit import moment_map

CPU = torch.device("cpu")
MAPS = (moment_map(True, CPU), moment_map(False, CPU))
SETTINGS = Settings(lr=1e-2, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, n_steps=3)


def wide(n, seed):
    """Numbers over six decades with zeros among them, as gradients are."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=generator) * 10.0 ** (6 * torch.rand(n, generator=generator) - 6)
    x[:: max(1, n // 7)] = 0.0
    return x


def start(n):
    """Parameter, gradient and both moments after one reference step from zero."""
    parameter = wide(n, 1)
    zero = [Moment(m.lowest_6400[0].to(torch.uint8).repeat(n), torch.zeros(math.ceil(n / BLOCK))) for m in MAPS]
    adamw8bit_reference(parameter, wide(n, 2), *zero, MAPS, SETTINGS)
    return parameter, wide(n, 3), zero


def copied(moments):
    return [Moment(m.codes.clone(), m.scales.clone()) for m in moments]


@pytest.mark.parametrize("path", ["c-scalar", "c-avx2", "c"])
@pytest.mark.parametrize("n", [1, 255, 256, 257, 3 * BLOCK + 77, 70_001])
def test_the_compiled_step_is_as_exact_as_the_reference(path, n, monkeypatch):
    monkeypatch.setenv(native.VARIABLE, path)
    try:
        native.compiled()
    except BadInput as error:
        pytest.skip(error.what)
    parameter, gradient, moments = start(n)
    ours, our_moments, theirs, their_moments = parameter.clone(), copied(moments), parameter.clone(), copied(moments)
    adamw8bit(ours, gradient, *our_moments, MAPS, SETTINGS)
    adamw8bit_reference(theirs, gradient, *their_moments, MAPS, SETTINGS)

    s, (m, v) = SETTINGS, (dequantize(moment.codes, moment.scales, levels).double() for moment, levels in zip(moments, MAPS))
    m = m + (1 - s.beta1) * (gradient.double() - m)
    v = v * s.beta2 + (1 - s.beta2) * gradient.double() ** 2
    exact = parameter.double() * (1 - s.lr * s.weight_decay) - s.lr / s.correction1 * m / ((v / s.correction2).sqrt() + s.eps)
    assert (ours - exact).abs().max() <= 1.5 * (theirs - exact).abs().max() + 1e-9

    for mine, other in zip(our_moments, their_moments):
        torch.testing.assert_close(mine.scales, other.scales, rtol=1e-6, atol=0)
        apart = (mine.codes.int() - other.codes.int()).abs()
        assert apart.max() <= 1 and (apart > 0).sum() <= 1 + n // 10_000, "only values on a border may have the code beside"


def test_a_moment_of_zeros_and_one_with_an_outlier_are_written_as_the_reference_writes_them():
    n = 4 * BLOCK
    gradient = torch.zeros(n)
    gradient[2 * BLOCK] = 1e18  # its square is near the end of float32
    gradient[3 * BLOCK :] = 1e-30  # squares that are zero in float32
    moments = [Moment(m.lowest_6400[0].to(torch.uint8).repeat(n), torch.zeros(4)) for m in MAPS]
    ours, theirs = torch.zeros(n), torch.zeros(n)
    our_moments, their_moments = copied(moments), copied(moments)
    adamw8bit(ours, gradient, *our_moments, MAPS, SETTINGS)
    adamw8bit_reference(theirs, gradient, *their_moments, MAPS, SETTINGS)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9)
    for mine, other in zip(our_moments, their_moments):
        assert torch.equal(mine.codes, other.codes)
        torch.testing.assert_close(mine.scales, other.scales, rtol=1e-6, atol=0)


def test_a_gradient_in_another_layout_goes_the_way_of_the_reference():
    n = 2 * BLOCK
    parameter, gradient, moments = start(n)
    strided = torch.stack((gradient, gradient), dim=1)[:, 0]
    assert not strided.is_contiguous()
    ours, our_moments, theirs, their_moments = parameter.clone(), copied(moments), parameter.clone(), copied(moments)
    adamw8bit(ours, strided, *our_moments, MAPS, SETTINGS)
    adamw8bit_reference(theirs, gradient, *their_moments, MAPS, SETTINGS)
    assert torch.equal(ours, theirs)
