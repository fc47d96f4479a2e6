"""The thin products of LoRA against float64: no further off than torch's own in bfloat16, on sizes that divide nothing."""

import pytest
import torch

from tunesmith.kernels import native, thin

SIZES = [(1, 1, 1, 1), (37, 45, 70, 5), (64, 32, 96, 16), (33, 100, 31, 48), (130, 257, 19, 33)]  # tokens, inputs, outputs, rank


@pytest.fixture(params=["c", "reference"], autouse=True)
def path(request, monkeypatch):
    monkeypatch.setenv(native.VARIABLE, request.param)
    if request.param == "c" and (native.library_file() is None or not native.compiled().has_amx):
        pytest.skip("a CPU without AMX")


def numbers(*shape, seed=0, dtype=torch.bfloat16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def masters(*shape, seed=0):
    return numbers(*shape, seed=seed, dtype=torch.float32)


def no_worse(found, reference, exact):
    errors = [float((y.double() - exact).norm() / exact.norm()) for y in (found, reference)]
    assert errors[0] <= max(1.05 * errors[1], 2**-9), errors


@pytest.mark.parametrize(("n", "inputs", "outputs", "rank"), SIZES)
def test_what_a_layer_with_lora_computes_forward_and_backward(n, inputs, outputs, rank):
    x, dy = numbers(n, inputs), numbers(n, outputs, seed=1)
    a, b = masters(rank, inputs, seed=2), masters(outputs, rank, seed=3)
    low = thin.products([x], [a], [2.0], transposed=True)
    no_worse(low, thin.products_reference([x], [a], [2.0], True), 2 * x.double() @ a.double().T)
    d_low = thin.products([dy], [b], [1.0], transposed=False)
    no_worse(d_low, thin.products_reference([dy], [b], [1.0], False), dy.double() @ b.double())
    y, reference = dy.clone(), dy.clone()
    thin.add_([y], [low], [b], [1.0], transposed=True)
    thin.add_reference_([reference], [low], [b], [1.0], True)
    no_worse(y, reference, dy.double() + low.double() @ b.double().T)
    [d_a] = thin.gradients([d_low], [x], [2.0], transposed=False)
    no_worse(d_a, thin.gradients_reference([d_low], [x], [2.0], False)[0], 2 * d_low.double().T @ x.double())
    [d_b] = thin.gradients([low], [dy], [1.0], transposed=True)
    no_worse(d_b, thin.gradients_reference([low], [dy], [1.0], True)[0], dy.double().T @ low.double())
    assert d_a.dtype == d_b.dtype == torch.float32 and d_a.shape == a.shape and d_b.shape == b.shape


def test_several_projections_of_one_input_at_once():
    """Of other ranks, widths and scales, as columns of one tensor that are read and written in place."""
    n, inputs, ranks, outputs, scales = 45, 70, (5, 16, 33), (40, 17, 64), [2.0, 0.5, 1.0]
    x, a = numbers(n, inputs), [masters(r, inputs, seed=r) for r in ranks]
    low = thin.products([x], a, scales, transposed=True)
    exact = torch.cat([s * x.double() @ f.double().T for f, s in zip(a, scales, strict=True)], 1)
    no_worse(low, thin.products_reference([x] * 3, a, scales, True), exact)

    lows, b = low.split(ranks, 1), [masters(m, r, seed=m) for m, r in zip(outputs, ranks, strict=True)]
    ys, references = ([numbers(n, m, seed=m) for m in outputs] for _ in range(2))
    thin.add_(ys, lows, b, [1.0] * 3, transposed=True)
    thin.add_reference_(references, lows, b, [1.0] * 3, True)
    for y, reference, one, factor, m in zip(ys, references, lows, b, outputs, strict=True):
        no_worse(y, reference, numbers(n, m, seed=m).double() + one.double() @ factor.double().T)

    dx, reference = x.clone(), x.clone()  # all onto one, rounded once
    thin.add_([dx], lows, a, scales, transposed=False)
    thin.add_reference_([reference], lows, a, scales, False)
    no_worse(dx, reference, x.double() + sum(s * one.double() @ f.double() for one, f, s in zip(lows, a, scales, strict=True)))

    found, references = thin.gradients(lows, ys, scales, True), thin.gradients_reference(lows, ys, scales, True)
    for d_b, reference, one, y, s in zip(found, references, lows, ys, scales, strict=True):
        no_worse(d_b, reference, s * y.double().T @ one.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_dtypes_keep_their_own_precision(dtype):
    x, a = numbers(7, 9, dtype=dtype), masters(3, 9)
    assert torch.equal(thin.products([x], [a], [2.0], transposed=True), x @ (a * 2).to(dtype).T)
    [d_a] = thin.gradients([x[:, :3]], [x], [1.0], transposed=False)
    assert d_a.dtype == dtype
