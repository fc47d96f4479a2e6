"""Attention within documents against float64: no further off than the reference in bfloat16, forward and every gradient."""

import math

import pytest
import torch

from tunesmith.kernels import native
from tunesmith.kernels.causal_attention import (
    causal_attention,
    causal_attention_backward,
    causal_attention_backward_reference,
    causal_attention_reference,
)  # fmt: skip

needs_amx = pytest.mark.skipif(native.compiled() is None or not native.compiled().has_amx, reason="a CPU without AMX")
# lengths of documents, heads, heads of keys, width, window: nothing divides 32
CASES = [
    ([70, 33], 9, 3, 64, None), ([1, 2, 31, 32, 33, 100, 7], 4, 2, 64, None), ([77, 130], 4, 1, 80, None), ([200], 2, 2, 128, 50),
    ([300], 3, 3, 32, 33), ([129, 64], 2, 1, 256, None), ([90], 2, 1, 16, 1),
]  # fmt: skip
# lengths; the document that each continues; heads, heads of keys, width, window
SHARED = [
    #  a   b continues a, ...
    ([37, 5, 30, 1], [-1, 0, 0, 0], 4, 2, 64, None),
    ([1, 2, 64], [-1, 0, 0], 2, 1, 32, None),
    ([31, 1, 33], [-1, 0, 0], 2, 1, 32, None),  # 31 and 1 fill a block together
    ([50, 70, 9, 3, 200, 17], [-1, -1, 1, 1, -1, 0], 9, 3, 64, None),  # two shared, one alone between, one far from what it continues
    ([40, *range(1, 20)], [-1, *[0] * 19], 4, 2, 80, None),  # more than are worked on together
    ([45, 70, 13, 2], [-1, 0, 0, -1], 4, 2, 32, 20),  # windows that reach into the shared document and beyond it
    ([33, 64, 7], [-1, 0, 0], 2, 2, 16, 33),
]  # fmt: skip


def problem(lengths, heads, key_heads, width):
    generator = torch.Generator().manual_seed(0)
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    n = int(starts[-1])
    together = (torch.randn(n, heads + 2 * key_heads, width, generator=generator) * 1.5).bfloat16()
    query, key, value = together.split([heads, key_heads, key_heads], 1)  # with strides, as projections side by side have
    return query, key, value, torch.randn(n, heads, width, generator=generator).bfloat16(), starts


def solved(query, key, value, d_out, starts, scale, window, attend, backward, parents=None):
    out, lse = attend(query, key, value, starts, scale, window, parents)
    more = (out, lse) if backward is causal_attention_backward else ()
    return out, *backward(d_out, query, key, value, *more, starts, scale, window, parents)


@needs_amx
@pytest.mark.parametrize("case", CASES, ids=str)
def test_answers_and_gradients_are_no_further_off_than_the_references(case):
    *shape, window = case
    query, key, value, d_out, starts = problem(*shape)
    scale = 1 / math.sqrt(query.shape[-1])
    rest, reference = (starts, scale, window), (causal_attention_reference, causal_attention_backward_reference)
    found = solved(query, key, value, d_out, *rest, causal_attention, causal_attention_backward)
    in_bf16 = solved(query, key, value, d_out, *rest, *reference)
    exact = solved(*(x.double() for x in (query, key, value, d_out)), *rest, *reference)
    assert_no_further_off(found, in_bf16, exact)


def assert_no_further_off(found, in_bf16, exact):
    for what, ours, theirs, truth in zip(("out", "dq", "dk", "dv"), found, in_bf16, exact, strict=True):
        assert ours.shape == truth.shape
        off, allowed = (float((x.double() - truth).norm() / truth.norm().clamp(min=1)) for x in (ours, theirs))
        assert off <= max(allowed, 2**-9), f"{what}: {off:.2e}, reference {allowed:.2e}"


@needs_amx
def test_documents_do_not_see_each_other():
    query, key, value, d_out, starts = problem([40, 25], 4, 2, 32)
    out, lse = causal_attention(query, key, value, starts, 0.2)
    changed = [x.clone() for x in (query, key, value)]
    for x in changed:
        x[:40] = torch.nan
    again, _ = causal_attention(*changed, starts, 0.2)
    assert torch.equal(out[40:], again[40:])
    gradients = causal_attention_backward(d_out, query, key, value, out, lse, starts, 0.2)
    alone = causal_attention_backward(
        d_out[40:], query[40:], key[40:], value[40:], out[40:], lse[:, 40:].contiguous(), starts[1:] - 40, 0.2
    )
    for both, one in zip(gradients, alone, strict=True):
        assert torch.equal(both[40:], one)


@needs_amx
@pytest.mark.parametrize("case", SHARED, ids=str)
def test_documents_that_continue_one_are_no_further_off_than_the_reference(case):
    lengths, parents, *shape, window = case
    query, key, value, d_out, starts = problem(lengths, *shape)
    parents, scale = torch.tensor(parents, dtype=torch.int32), 1 / math.sqrt(query.shape[-1])
    rest, reference = (starts, scale, window), (causal_attention_reference, causal_attention_backward_reference, parents)
    found = solved(query, key, value, d_out, *rest, causal_attention, causal_attention_backward, parents)
    in_bf16 = solved(query, key, value, d_out, *rest, *reference)
    exact = solved(*(x.double() for x in (query, key, value, d_out)), *rest, *reference)
    assert_no_further_off(found, in_bf16, exact)


@pytest.mark.parametrize("window", [None, 9])
def test_a_shared_document_is_the_same_as_one_for_each(window):
    """The reference, in float64: [a b c] where b and c continue a, against [ab ac]; a's gradients are the sums of both."""
    query, key, value, d_out, _ = (x.double() if x.is_floating_point() else x for x in problem([11, 7, 5], 4, 2, 8))
    a, b, c = range(11), range(11, 18), range(18, 23)
    apart = [*a, *b, *a, *c]
    shared_starts, parents = torch.tensor([0, 11, 18, 23], dtype=torch.int32), torch.tensor([-1, 0, 0], dtype=torch.int32)
    d_apart = d_out[apart].clone()
    d_apart[18:29] = 0  # what a answers counts once
    reference = causal_attention_reference, causal_attention_backward_reference
    out, *gradients = solved(query, key, value, d_out, shared_starts, 0.3, window, *reference, parents)
    expected, *d_expected = solved(
        *(x[apart] for x in (query, key, value)), d_apart, torch.tensor([0, 18, 34], dtype=torch.int32), 0.3, window, *reference
    )
    torch.testing.assert_close(out, expected[[*range(18), *range(29, 34)]])
    for found, both in zip(gradients, d_expected, strict=True):
        torch.testing.assert_close(found, torch.zeros_like(found).index_add_(0, torch.tensor(apart), both))


@needs_amx
def test_a_document_that_continues_what_is_not_before_it_is_refused():
    query, key, value, _, starts = problem([5, 6, 7], 4, 2, 32)
    for wrong in ([-1, 2, -1], [-1, 0, 1], [0, -1, -1]):
        with pytest.raises(ValueError, match="continues one that is not before it"):
            causal_attention(query, key, value, starts, 0.2, parents=torch.tensor(wrong, dtype=torch.int32))


@needs_amx
@pytest.mark.parametrize("parents", [None, [-1, 0, 0, 0]], ids=["apart", "shared"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_bits(threads, parents):
    query, key, value, d_out, starts = problem([50, 64, 3, 90], 4, 2, 32)
    parents = None if parents is None else torch.tensor(parents, dtype=torch.int32)
    before = torch.get_num_threads()
    expected = solved(query, key, value, d_out, starts, 0.2, None, causal_attention, causal_attention_backward, parents)
    try:
        torch.set_num_threads(threads)
        found = solved(query, key, value, d_out, starts, 0.2, None, causal_attention, causal_attention_backward, parents)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_the_reference_is_torchs_own_attention():
    query, key, value, _, starts = (x.float() if x.is_floating_point() else x for x in problem([30], 4, 2, 16))
    out, lse = causal_attention_reference(query, key, value, starts, 0.3, None)
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    torch.testing.assert_close(
        out.transpose(0, 1)[None], torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
    )
    first = (query[0, 0] @ key[0, 0]) * 0.3
    torch.testing.assert_close(lse[0, 0], first)
