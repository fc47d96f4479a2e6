"""Scales in 8 bits: how close they come back, and never farther than bitsandbytes'."""

import pytest
import torch

from tunesmith.kernels.blocks_4bit import block_scales
from tunesmith.quant.codebook import dynamic_map
from tunesmith.quant.scales import Scales


def absmaxes(n=1000, seed=0):
    """The largest sizes of blocks of 64 normal weights."""
    return torch.randn(n, 64, generator=torch.Generator().manual_seed(seed)).abs().amax(1) * 0.02


def test_exact_scales_are_kept_as_they_are():
    scales = Scales.exact(absmaxes())
    assert torch.equal(scales.values(), absmaxes())
    assert scales.nested is None
    assert scales.nbytes == 4000


def test_doubled_scales_by_hand():
    scale_G = torch.tensor([1.0, 2.0, 3.0])  # mean 2; -1, 0 and 1 remain, which are (nearly) levels of the map
    scales = Scales.doubled(scale_G)
    assert scales.offset == 2 and scales.groups.tolist() == [1]
    assert scales.stored.tolist() == [0, 127, 255]
    assert scales.values().tolist() == pytest.approx([2 - 0.9929687, 2, 3])


@pytest.mark.parametrize("n", [1, 255, 256, 257, 1000])
def test_doubled_scales_come_back_within_half_a_gap_of_the_map(n):
    scale_G = absmaxes(n)
    scales = Scales.doubled(scale_G)
    assert (scales.stored.dtype, scales.stored.shape) == (torch.uint8, (n,))
    assert scales.groups.shape == (-(-n // 256),)
    assert scales.nbytes == n + 4 * -(-n // 256) + 4
    widest = dynamic_map().diff().max() / 2
    error_G = (scales.values() - scale_G).abs()
    assert bool((error_G <= widest * scales.groups.repeat_interleave(256)[:n] * 1.001 + 1e-7).all())
    assert error_G.mean() / scale_G.mean() < 0.01
    assert torch.equal(scales.values(), block_scales(scales.stored, scales.nested))  # as the kernels see it


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_equal_scales_come_back_exactly(value):
    assert torch.equal(Scales.doubled(torch.full((300,), value)).values(), torch.full((300,), value))


def test_scales_that_are_not_finite_stay_visible():
    assert not Scales.doubled(torch.tensor([1.0, torch.inf])).values().isfinite().all()


def test_no_scale_is_farther_off_than_in_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    for seed in range(5):
        scale_G = absmaxes(2000, seed)
        offset = scale_G.mean()
        theirs, state = functional.quantize_blockwise(scale_G - offset, blocksize=256, code=functional.create_dynamic_map())
        back = functional.dequantize_blockwise(theirs, state) + offset
        ours = Scales.doubled(scale_G)
        assert torch.equal(ours.groups, state.absmax)
        assert bool(((ours.values() - scale_G).abs() <= (back - scale_G).abs() + 1e-9).all())
