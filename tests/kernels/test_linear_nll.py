"""The chunked loss of a head against its readable twin, in float64, float32 and bfloat16."""

import pytest
import torch

from tunesmith.kernels.linear_nll import linear_nll, linear_nll_reference, tokens_of_chunk

N, D, V, CHUNK = 23, 19, 53, 7  # nothing divides anything
NAMES = ("sum", "d hidden", "d head", "d bias")


def problem(n=N, dtype=torch.float32, seed=0):
    """Random states, head, bias and targets; the first and the last word are among the targets."""
    generator = torch.Generator().manual_seed(seed)
    hidden_ND = torch.randn(n, D, generator=generator).to(dtype)
    head_VD = torch.randn(V, D, generator=generator).to(dtype)
    bias_V = torch.randn(V, generator=generator).to(dtype)
    target_N = torch.randint(0, V, (n,), generator=generator)
    target_N[:2] = torch.tensor([0, V - 1])[:n]
    return hidden_ND, head_VD, bias_V, target_N


def solve(loss, hidden_ND, head_VD, bias_V, target_N, upstream=1.0):
    """The sum and its gradients towards hidden, head and bias."""
    leaves = [t.detach().clone().requires_grad_(True) for t in (hidden_ND, head_VD, bias_V)]
    total = loss(*leaves, target_N)
    (total * upstream).backward()
    return [total.detach(), *(leaf.grad for leaf in leaves)]


def truth(hidden_ND, head_VD, bias_V, target_N, upstream=1.0):
    """In float64, from the same numbers."""

    def loss(hidden_ND, head_VD, bias_V, target_N):
        log_p_NV = torch.log_softmax(hidden_ND @ head_VD.T + bias_V, -1)
        return -log_p_NV.gather(1, target_N[:, None]).sum()

    return solve(loss, hidden_ND.double(), head_VD.double(), bias_V.double(), target_N, upstream)


def in_chunks(size):
    return lambda *args: linear_nll(*args, chunk_tokens=size)


def error(found, exact):
    """The worst difference, relative to the largest number."""
    return float((found.double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("loss", [linear_nll_reference, linear_nll, in_chunks(CHUNK)], ids=["reference", "one chunk", "chunks"])
def test_sum_and_gradients_are_exact_to_float32(loss):
    for name, found, exact in zip(NAMES, solve(loss, *problem(), 0.37), truth(*problem(), 0.37), strict=True):
        assert found.shape == exact.shape
        assert error(found, exact) < 1e-6, name


@pytest.mark.parametrize("n", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 2])
def test_no_token_is_lost_or_counted_twice_where_a_chunk_ends(n):
    for name, found, exact in zip(NAMES, solve(in_chunks(CHUNK), *problem(n)), truth(*problem(n)), strict=True):
        assert error(found, exact) < 1e-6, name


def test_chunks_of_one_token_and_one_chunk_of_all_agree():
    for name, one, all_ in zip(NAMES, solve(in_chunks(1), *problem()), solve(in_chunks(1000), *problem()), strict=True):
        assert error(one, all_.double()) < 1e-6, name


def test_a_sum_of_two_halves_is_the_sum_of_the_whole():
    hidden_ND, head_VD, bias_V, target_N = problem()
    whole = linear_nll(hidden_ND, head_VD, bias_V, target_N)
    halves = [linear_nll(hidden_ND[part], head_VD, bias_V, target_N[part]) for part in (slice(0, 9), slice(9, None))]
    assert torch.isclose(sum(halves), whole, rtol=1e-6)


@pytest.mark.parametrize("size", [0.25, 1.0], ids=["small logits", "large logits"])
@pytest.mark.parametrize("chunk", [CHUNK, 1000])
def test_in_bfloat16_no_error_is_larger_than_that_of_the_reference(chunk, size):
    ours, reference = [], []
    for seed in range(20):
        hidden_ND, *rest = problem(dtype=torch.bfloat16, seed=seed)
        given = (hidden_ND * size, *rest)
        exact = truth(*given)
        ours.append([error(t, true) for t, true in zip(solve(in_chunks(chunk), *given), exact, strict=True)])
        reference.append([error(t, true) for t, true in zip(solve(linear_nll_reference, *given), exact, strict=True)])
    for name, found, plain in zip(NAMES, torch.tensor(ours).T, torch.tensor(reference).T, strict=True):
        assert found.max() <= plain.max() + 2**-8, name  # a step of bfloat16
        assert found.mean() <= 1.25 * plain.mean(), name  # a head's gradient is rounded once per chunk


def test_a_float32_head_gets_a_float32_gradient_from_bfloat16_states():
    hidden_ND, head_VD, bias_V, target_N = problem()
    rounded = hidden_ND.bfloat16()
    total, d_hidden, d_head, d_bias = solve(in_chunks(CHUNK), rounded, head_VD, bias_V, target_N)
    assert (total.dtype, d_hidden.dtype, d_head.dtype, d_bias.dtype) == (torch.float32, torch.bfloat16, torch.float32, torch.float32)
    for name, found, exact in zip(
        NAMES, (total, d_hidden, d_head, d_bias), truth(rounded, head_VD.bfloat16(), bias_V, target_N), strict=True
    ):
        assert error(found, exact) < 0.02, name


def test_without_a_trained_token_the_sum_is_zero_and_so_is_every_gradient():
    total, *gradients = solve(linear_nll, *problem(0))
    assert total == 0
    assert [g.shape for g in gradients] == [(0, D), (V, D), (V,)]
    assert not any(g.any() for g in gradients)


def test_a_head_without_a_bias():
    hidden_ND, head_VD, _, target_N = problem()
    without = linear_nll(hidden_ND, head_VD, None, target_N)
    assert torch.equal(without, linear_nll(hidden_ND, head_VD, torch.zeros(V), target_N))


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)])
def test_only_what_requires_a_gradient_gets_one_and_it_is_the_same(wanted):
    *leaves, target_N = problem()
    all_gradients = solve(in_chunks(CHUNK), *leaves, target_N)[1:]
    leaves = [leaf.clone().requires_grad_(bool(w)) for leaf, w in zip(leaves, wanted, strict=True)]
    linear_nll(*leaves, target_N, chunk_tokens=CHUNK).backward()
    for leaf, w, expected in zip(leaves, wanted, all_gradients, strict=True):
        assert torch.equal(leaf.grad, expected) if w else leaf.grad is None


def test_logits_in_the_thousands_do_not_overflow():
    hidden_ND, head_VD, bias_V, target_N = problem()
    given = (hidden_ND * 1000, head_VD, bias_V, target_N)
    found, exact = solve(in_chunks(CHUNK), *given), truth(*given)
    assert all(bool(t.isfinite().all()) for t in found)
    assert error(found[0], exact[0]) < 1e-6


def test_the_second_backward_pass_of_a_kept_graph_adds_the_same_gradient():
    hidden_ND, head_VD, bias_V, target_N = problem()
    hidden_ND.requires_grad_(True)
    total = linear_nll(hidden_ND, head_VD, bias_V, target_N)
    total.backward(retain_graph=True)
    once = hidden_ND.grad.clone()
    (3 * total).backward()
    assert torch.allclose(hidden_ND.grad, 4 * once)


def test_a_gpu_gets_few_large_pieces_and_a_cpu_those_that_its_cache_holds():
    assert tokens_of_chunk("cpu", 2 * 128_256) == 256
    assert tokens_of_chunk("cuda", 2 * 128_256) == 4096  # 1 GB of logits
    assert tokens_of_chunk("cuda", 2 * 262_144) == 2048
    assert tokens_of_chunk("cuda", 2 * 5_000_000) == 256
