"""Fused layers the way of a GPU: Triton's row operations, on a GPU itself or in its interpreter (there with the reference of attention)."""

import pytest
import torch
from tests.model.test_fused_layers import FUSED, LENGTHS, adapted, examples, fused, loss_and_gradients, off
from tests.triton_interpreter import force_triton
from torch.overrides import TorchFunctionMode

from tunesmith.data.batches import Batch, collate, collate_row
from tunesmith.data.packing import row_of
from tunesmith.kernels import flash_attention, native, rows
from tunesmith.kernels.causal_attention import causal_attention, causal_attention_backward, is_fast
from tunesmith.loss import Scored
from tunesmith.model.attention import keep_documents_apart

pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # Triton's interpreter is numpy


@pytest.fixture
def device(monkeypatch):
    return torch.device(force_triton(monkeypatch))


def of(packed: bool, device: torch.device) -> Batch:
    return (collate_row(row_of(examples())) if packed else collate(examples())).to(device)


@pytest.mark.parametrize(("family", "packed"), [("llama", True), ("llama", False), ("qwen2", False), ("qwen3", True), ("gemma", True)])
def test_loss_and_gradients_are_no_further_off_than_the_familys_own(device, monkeypatch, family, packed):
    monkeypatch.setenv(native.VARIABLE, "reference")
    exact = loss_and_gradients(adapted(FUSED[family](), torch.float32), of(False, torch.device("cpu")))
    model = adapted(FUSED[family]()).to(device)
    if packed:
        keep_documents_apart(model, 0, max(LENGTHS))
    own = loss_and_gradients(model, of(packed, device))
    force_triton(monkeypatch)
    found = loss_and_gradients(fused(model), of(packed, device))
    (loss, gradients), (own_loss, own_gradients) = (off((x[0], x[1].cpu()), exact) for x in (found, own))
    assert loss <= max(2 * own_loss, 2e-3)
    assert gradients <= 1.3 * own_gradients  # the reference of attention rounds the gradients of its scores; flash attention does not


def test_the_reference_forced_leaves_layers_as_they_are(device, monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "reference")
    assert not is_fast(64, device.type)
    assert not rows.is_compiled(torch.empty(2, 8, dtype=torch.bfloat16, device=device))
    model = adapted(FUSED["llama"]()).to(device)
    fused(model, among=0)


class Waits(TorchFunctionMode):
    """Counts what makes a processor wait for a GPU: numbers read from tensors, and shapes that depend on numbers."""

    NAMES = ("item", "__float__", "__int__", "__bool__", "__index__", "nonzero", "equal", "masked_select", "unique_consecutive")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += getattr(function, "__name__", "") in self.NAMES
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_no_layer_waits_for_the_gpu_nor_does_the_backward_pass(device, packed):
    """What a row's layout and mask ask is asked once, however many layers there are."""
    waits = {}
    for n_layers in (1, 3):
        config = FUSED["llama"]()
        config.num_hidden_layers = n_layers
        model = fused(adapted(config).to(device), among=n_layers)
        if packed:
            keep_documents_apart(model, 0, max(LENGTHS))
        scored, batch = Scored(model), of(packed, device)
        with Waits() as forward:
            nll = scored(batch)
        with Waits() as backward:
            nll.sum.backward()
        waits[n_layers] = forward.count, backward.count
    assert waits[1] == waits[3]
    assert waits[3][1] == 0
    # before the first layer: transformers looks at the positions; of packed rows we at their layout, which is on the CPU, and at the mask
    assert waits[3][0] <= (5 if packed else 1)


@pytest.mark.parametrize(("window", "heads", "keys"), [(0, 4, 4), (7, 6, 2)])
def test_flash_attention_is_asked_in_the_words_that_torch_knows(window, heads, keys):
    """On tensors without numbers: names, order and shapes of torch's two operations."""
    query, key, value = (torch.empty(12, n, 64, dtype=torch.bfloat16, device="meta") for n in (heads, keys, keys))
    starts = torch.tensor([0, 5, 12], dtype=torch.int32)
    out, lse = flash_attention.forward(query, key, value, starts, 0.125, window)
    assert out.shape == (12, heads, 64)
    assert (lse.shape, lse.dtype) == ((heads, 12), torch.float32)
    gradients = flash_attention.backward(out, query, key, value, out, lse, starts, 0.125, window)
    assert [x.shape for x in gradients] == [query.shape, key.shape, value.shape]
    assert flash_attention.on_device(starts, query.device)[1] == 7
    assert flash_attention.on_device(starts, query.device) is flash_attention.on_device(starts, query.device)  # made once


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize(("heads", "keys", "width"), [(4, 4, 64), (6, 2, 128), (8, 1, 72)])
def test_attention_on_a_gpu_is_no_further_off_than_the_reference(heads, keys, width, window):
    generator = torch.Generator().manual_seed(0)
    starts = torch.tensor([0, 33, 34, 161], dtype=torch.int32)
    query, key, value, d_out = (torch.randn(161, n, width, generator=generator).bfloat16() for n in (heads, keys, keys, heads))

    def solved(*tensors):
        query, key, value, d_out = tensors
        out, lse = causal_attention(query, key, value, starts, 0.1, window)
        return out, *causal_attention_backward(d_out, query, key, value, out, lse, starts, 0.1, window)

    exact, found = solved(*(x.double() for x in (query, key, value, d_out))), solved(*(x.cuda() for x in (query, key, value, d_out)))
    for there, right in zip(found, exact, strict=True):
        assert float((there.cpu().double() - right).norm() / right.norm()) < 2**-7
