"""Gradients of weights by compiled C: to float32 what float64 says, whatever the shapes are."""

import pytest
import torch

from tunesmith.kernels import native
from tunesmith.kernels.weight_gradient import add_weight_gradient_, fast, weight_gradient, weight_gradient_reference

#  tokens, outputs, inputs: nothing divides anything, one of everything, more tokens than are packed at a time
SHAPES = [(37, 33, 17), (1, 1, 1), (70, 100, 31), (33, 16, 5), (2101, 40, 65)]


@pytest.fixture(params=["c", "reference"])
def path(request, monkeypatch):
    monkeypatch.setenv(native.VARIABLE, request.param)
    if request.param != "reference" and (native.library_file() is None or not native.compiled().has_amx):
        pytest.skip("a CPU without AMX")
    return request.param


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def error(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize(("tokens", "outputs", "inputs"), SHAPES)
def test_the_sum_over_tokens_is_exact_to_float32(path, tokens, outputs, inputs):
    dy, x = numbers(tokens, outputs), numbers(tokens, inputs, seed=1)
    exact = dy.double().T @ x.double()
    reference = weight_gradient_reference(dy, x)
    found = weight_gradient(dy, x)
    assert found.dtype == torch.float32
    assert error(found, exact) <= (1e-6 if path == "c" else error(reference, exact))
    add_weight_gradient_(found, dy, x)
    assert error(found, 2 * exact) <= (1e-6 if path == "c" else error(reference, exact))


def test_columns_of_a_wider_tensor_are_read_where_they_lie(path):
    wide = numbers(37, 3 * 21)
    dy, x = wide[:, 21:42], numbers(37, 50, seed=1)[:, 3:20]
    assert torch.equal(weight_gradient(dy, x), weight_gradient(dy.contiguous(), x.contiguous()))


def test_nan_and_infinity_stay_in_their_row_and_column(path):
    dy, x = numbers(37, 20), numbers(37, 18, seed=1)
    dy[3, 7], x[3, 2] = torch.nan, torch.inf
    found = weight_gradient(dy, x)
    assert found[7].isnan().all()
    assert not found[:, 2].isfinite().any()
    assert found[:7, 3:].isfinite().all()


def test_what_the_library_cannot_do_is_done_by_the_reference(path):
    x = torch.randn(5, 4)
    assert fast(x, x) is None
    assert torch.equal(weight_gradient(x, x), x.T @ x)
    assert torch.equal(weight_gradient(numbers(0, 3), numbers(0, 4)), torch.zeros(3, 4))
