"""Compiled norms, rotary positions, gates and cross-entropy against float64: no further off than torch's own in bfloat16."""

import pytest
import torch
from tests.triton_interpreter import force_triton

from tunesmith.kernels import native, rows

pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # Triton's interpreter is numpy

WIDTHS = [1, 15, 16, 100, 577]  # nothing divides anything
PATHS = ["c", "c-avx2", "c-scalar", "reference", "triton"]


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    monkeypatch.setenv(native.VARIABLE, request.param)
    if request.param not in ("reference", "triton") and native.library_file() is None:
        pytest.skip("no C compiler at installation")
    with torch.device(force_triton(monkeypatch) if request.param == "triton" else "cpu"):
        yield request.param


def numbers(*shape, seed=0, by=1.0):
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), device="cpu") * by
    return drawn.bfloat16().to(torch.get_default_device())


def leaf(x):
    return x.double().requires_grad_()


def error(found, exact):
    return float((found.double() - exact.detach().double()).norm() / exact.detach().double().norm())


def no_worse(found, reference, exact, what):
    """To a half of bfloat16's last place where the reference is lucky."""
    assert error(found, exact) <= max(1.05 * error(reference, exact), 2**-9), what


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("adds", [False, True])
def test_rmsnorm_and_its_gradients(path, width, offset, adds):
    x, weight, dy, more = numbers(7, width), numbers(width, seed=1), numbers(7, width, seed=2), numbers(7, width, seed=3)
    added = numbers(7, width, seed=4) if adds else None
    y, inverse, total = rows.rmsnorm(x, weight, 1e-5, offset, added)
    assert torch.equal(total, x if added is None else x + added)
    exact, w = leaf(total), leaf(weight)
    y_exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + 1e-5) * (offset + w)
    y_exact.backward(dy.double())
    no_worse(y, rows.rmsnorm_reference(total, weight, 1e-5, offset)[0], y_exact, "y")
    dx, d_weight = rows.rmsnorm_backward(dy, total, inverse, weight, offset, more, wants_weight=True)
    reference = rows.rmsnorm_backward_reference(dy, total, inverse, weight, offset, more, True)
    no_worse(dx, reference[0], exact.grad + more.double(), "dx")
    assert error(d_weight, w.grad) < 1e-5
    assert rows.rmsnorm_backward(dy, total, inverse, weight, offset)[1] is None


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("adds", [False, True])
def test_rmsnorm_of_a_float32_sum_with_a_float32_weight(path, width, offset, adds):
    """What is summed stays float32, what is multiplied becomes bfloat16 once."""
    x, weight, more = (numbers(*shape, seed=i).float() * 1.01 for i, shape in enumerate([(7, width), (width,), (7, width)]))
    dy, added = numbers(7, width, seed=3), numbers(7, width, seed=4) if adds else None
    y, inverse, total = rows.rmsnorm(x, weight, 1e-5, offset, added, narrow=True)
    assert torch.equal(total, x if added is None else x + added)
    exact, w = leaf(total), leaf(weight)
    y_exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + 1e-5) * (offset + w)
    y_exact.backward(dy.double())
    assert y.dtype == torch.bfloat16
    no_worse(y, y_exact.detach().bfloat16(), y_exact, "y")
    dx, d_weight = rows.rmsnorm_backward(dy, total, inverse, weight, offset, more, wants_weight=True)
    assert dx.dtype == torch.float32
    assert error(dx, exact.grad + more.double()) < 1e-5
    assert error(d_weight, w.grad) < 1e-5


def test_rmsnorm_of_bfloat16_with_a_float32_weight(path):
    """As the norms of heads, whose inputs are products."""
    x, weight, dy = numbers(7, 100), numbers(100, seed=1).float() * 1.01, numbers(7, 100, seed=2)
    exact, w = leaf(x), leaf(weight)
    y_exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + 1e-5) * w
    y_exact.backward(dy.double())
    y, inverse, _ = rows.rmsnorm(x, weight, 1e-5)
    dx, d_weight = rows.rmsnorm_backward(dy, x, inverse, weight, wants_weight=True)
    no_worse(y, rows.rmsnorm_reference(x, weight, 1e-5, 0.0)[0], y_exact, "y")
    no_worse(dx, exact.grad.bfloat16(), exact.grad, "dx")
    assert error(d_weight, w.grad) < 1e-5


@pytest.mark.parametrize(("width", "turned"), [(16, 16), (64, 48), (80, 80), (6, 2)])
def test_rotation_and_its_gradient(path, width, turned):
    x, cos, sin = numbers(9, 3, width), numbers(9, turned, seed=1), numbers(9, turned, seed=2)  # halves of the tables that differ, too
    exact = leaf(x)
    y_exact = rows.rotate_reference(exact, cos.double(), sin.double())
    dy = numbers(9, 3, width, seed=3)
    y_exact.backward(dy.double())
    no_worse(rows.rotate_(x.clone(), cos, sin), rows.rotate_reference(x, cos, sin), y_exact, "y")
    no_worse(rows.rotate_(dy.clone(), cos, sin, back=True), rows.rotate_reference(dy, cos, sin, back=True), exact.grad, "dx")


def test_rotation_by_float32_tables_is_rounded_once(path):
    x, cos, sin = numbers(9, 3, 64), numbers(9, 48, seed=1).float() * 1.01, numbers(9, 48, seed=2).float() * 1.01
    exact = rows.rotate_reference(x.double(), cos.double(), sin.double())
    no_worse(rows.rotate_(x.clone(), cos, sin), exact.bfloat16(), exact, "y")
    back = rows.rotate_reference(x.double(), cos.double(), sin.double(), back=True)
    no_worse(rows.rotate_(x.clone(), cos, sin, back=True), back.bfloat16(), back, "dx")


def test_a_rotation_within_wider_rows_touches_its_own_heads_alone(path):
    both = numbers(5, 2 * 3 * 16)
    before, heads = both.clone(), both[:, : 3 * 16].view(5, 3, 16)
    rows.rotate_(heads, numbers(5, 16, seed=1), numbers(5, 16, seed=2))
    assert not torch.equal(both[:, :48], before[:, :48])
    assert torch.equal(both[:, 48:], before[:, 48:])


@pytest.mark.parametrize("kind", rows.KINDS)
@pytest.mark.parametrize("width", WIDTHS)
def test_gate_and_its_gradients(path, kind, width):
    gate, up, dy = numbers(7, width, by=3), numbers(7, width, seed=1), numbers(7, width, seed=2)
    exact_gate, exact_up = leaf(gate), leaf(up)
    exact = rows.gate_reference(kind, exact_gate, exact_up)
    exact.backward(dy.double())
    no_worse(rows.gate(kind, gate, up), rows.gate_reference(kind, gate, up), exact, "y")
    found = rows.gate_backward_(kind, dy.clone(), gate.clone(), up.clone())
    reference = rows.gate_backward_reference(kind, dy, gate, up)
    for what, *three in zip(("y", "d gate", "d up"), found, reference, (exact, exact_gate.grad, exact_up.grad), strict=True):
        no_worse(*three, what)


@pytest.mark.parametrize("kind", rows.KINDS)
def test_gates_at_the_ends_of_the_numbers(path, kind):
    gate = torch.tensor([[-torch.inf, -3e38, -100.0, -0.0, 100.0, 3e38, torch.nan]]).bfloat16()
    found = rows.gate(kind, gate, torch.ones_like(gate)).float()[0]
    assert found[1:4].tolist() == [0, 0, 0]
    assert found[4] == 100
    assert found[5] > 2.9e38
    assert found[6].isnan()


@pytest.mark.parametrize("n_words", [2, 53, 1003])
def test_cross_entropy_and_its_gradient(path, n_words):
    logits, target = numbers(9, n_words, by=4), torch.arange(9) % n_words
    exact = leaf(logits)
    nll = torch.nn.functional.cross_entropy(exact, target, reduction="sum")
    nll.backward()
    place = logits.clone()
    assert float(rows.cross_entropy_(place, target, gradient=False)) == pytest.approx(float(nll.detach()), rel=1e-6)
    assert torch.equal(place, logits)
    assert float(rows.cross_entropy_(place, target, gradient=True)) == pytest.approx(float(nll.detach()), rel=1e-6)
    reference = logits.clone()
    rows.cross_entropy_reference_(reference, target, True)
    no_worse(place, reference, exact.grad, "d logits")


def test_cross_entropy_of_a_token_that_is_out_of_reach_and_of_nan(path):
    far = torch.full((2, 40), -1e4).bfloat16()
    far[:, 3] = 1e4
    assert float(rows.cross_entropy_(far.clone(), torch.tensor([3, 3]), gradient=False)) == 0
    assert float(rows.cross_entropy_(far.clone(), torch.tensor([3, 4]), gradient=False)) == pytest.approx(2e4, rel=0.01)
    far[0, 7] = torch.nan
    assert rows.cross_entropy_(far, torch.tensor([3, 3]), gradient=True).isnan()


@pytest.mark.parametrize("target", [-100, 40])
def test_a_target_beyond_the_words_is_refused_and_nothing_is_read_there(path, target):
    if path == "triton":  # to ask would be to wait for the GPU
        assert rows.cross_entropy_(numbers(2, 40), torch.tensor([3, target]), gradient=True).isnan()
        return
    with pytest.raises((IndexError, RuntimeError)):
        rows.cross_entropy_(numbers(2, 40), torch.tensor([3, target]), gradient=True)


def test_a_vocabulary_longer_than_a_piece_of_the_kernel(monkeypatch):
    with torch.device(force_triton(monkeypatch)):
        logits, target = numbers(3, 20_001, by=4), torch.tensor([0, 8_192, 20_000])
        logits[1, 9_000:9_005] = -torch.inf
        exact = leaf(logits)
        nll = torch.nn.functional.cross_entropy(exact, target, reduction="sum")
        nll.backward()
        assert float(rows.cross_entropy_(logits, target, gradient=True)) == pytest.approx(float(nll.detach()), rel=1e-6)
        assert error(logits, exact.grad) < 2**-8


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "bfloat16"])
def test_a_weights_gradient_over_more_rows_than_programs(monkeypatch, wide):
    """Each program takes several blocks of rows; in float32 all but the last bits are right."""
    with torch.device(force_triton(monkeypatch)):
        n = 5003  # of 3: four rows of the tile's width are 1,024 rows a program
        x, weight, dy = (x if wide else x.float() for x in (numbers(n, 3), numbers(3, seed=1), numbers(n, 3, seed=2)))
        _, inverse, _ = rows.rmsnorm(x, weight, 1e-5)
        dx, d_weight = rows.rmsnorm_backward(dy, x, inverse, weight, wants_weight=True)
        exact, w = leaf(x), leaf(weight)
        (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + 1e-5) * w).backward(dy.double())
        assert error(dx, exact.grad) < (2**-8 if wide else 1e-6)
        assert error(d_weight, w.grad) < 1e-5


def test_float32_is_done_by_the_references():
    x, weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)), torch.ones(40)
    assert torch.equal(rows.rmsnorm(x, weight, 1e-5)[0], rows.rmsnorm_reference(x, weight, 1e-5, 0.0)[0])
    assert not rows.is_compiled(x)


@pytest.mark.parametrize("width", WIDTHS)
def test_dropout_is_a_function_of_seed_and_place_and_so_its_own_gradient(path, width):
    x, more = numbers(7, width), numbers(7, width, seed=1)
    stays = rows.dropout_reference(torch.ones(7, width), 0.3, 5) > 0
    exact = torch.where(stays, x.double() / 0.7, 0)
    no_worse(rows.dropout(x, 0.3, 5), rows.dropout_reference(x, 0.3, 5), exact, "y")
    no_worse(rows.dropout(x, 0.3, 5, more), rows.dropout_reference(x, 0.3, 5, more), exact + more.double(), "y and what it is added to")
    assert torch.equal(rows.dropout(x, 0.3, 5) == 0, rows.dropout(x * 2, 0.3, 5) == 0)


def test_noise_looks_drawn(path):
    """Shares of a million places within four standard deviations: of all, by row and by column, with the neighbour, and of another seed."""
    ones = torch.ones(1000, 1000, dtype=torch.bfloat16)
    gone, other = ((rows.dropout(ones, 0.25, seed) == 0).double() for seed in (2**62 - 1, 2**62 - 2))

    def near(share, expected, n):
        return bool(((share - expected).abs() < 4.5 * (expected * (1 - expected) / n) ** 0.5).all())

    assert near(gone.mean(), 0.25, 10**6)
    assert near(gone.mean(0), 0.25, 1000) and near(gone.mean(1), 0.25, 1000)
    for together in (gone * other, gone[1:] * gone[:-1], gone[:, 1:] * gone[:, :-1], gone[:, 16:] * gone[:, :-16]):
        assert near(together.mean(), 0.25**2, together.numel())
