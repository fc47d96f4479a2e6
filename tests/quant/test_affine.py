"""Whole numbers for real ones, by hand: the worked examples of docs/quantization.md, and the error that no value exceeds."""

import pytest
import torch

from tunesmith.quant.affine import Levels, clip_ends, dequantize, minmax_scale, quantize, saturated, symmetric_scale

UNSIGNED, SIGNED = Levels(8, signed=False), Levels(8, signed=True)
EVERY_WIDTH = [Levels(bits, signed) for bits in range(2, 9) for signed in (True, False)]


def row(*values):
    return torch.tensor([values], dtype=torch.float32)


def gaussian(n_rows=64, n=100, seed=0):
    return torch.randn(n_rows, n, generator=torch.Generator().manual_seed(seed)) + 0.3


def encoded(x_GB, levels):
    """Codes, scale and zero point."""
    scale_G, zero_G = (symmetric_scale(x_GB, levels), None) if levels.signed else minmax_scale(x_GB, levels)
    return quantize(x_GB, levels, scale_G, zero_G), scale_G, zero_G


def test_codes_are_symmetric_around_zero_or_start_at_zero():
    assert (SIGNED.lowest, SIGNED.highest) == (-127, 127)  # never -128
    assert (UNSIGNED.lowest, UNSIGNED.highest) == (0, 255)
    assert (Levels(2, True).lowest, Levels(2, True).highest) == (-1, 1)
    assert (Levels(3, False).lowest, Levels(3, False).highest) == (0, 7)


def test_the_range_0_to_1000_in_8_bits_unsigned():
    x = row(0, 1, 2, 250, 500, 998, 1000)
    codes, scale_G, zero_G = encoded(x, UNSIGNED)
    assert scale_G.item() == pytest.approx(1000 / 255)  # 3.92: nothing is more than 1.96 off
    assert zero_G.item() == 0
    assert codes.tolist() == [[0, 0, 1, 64, 128, 254, 255]]
    back = dequantize(codes, scale_G, zero_G)
    assert back.tolist()[0] == pytest.approx([0, 0, 3.9216, 250.98, 501.96, 996.08, 1000], rel=1e-4)


def test_a_lopsided_range_has_a_zero_point():
    x = row(-30, -10, 0, 50, 100)
    codes, scale_G, zero_G = encoded(x, UNSIGNED)
    assert scale_G.item() == pytest.approx(130 / 255)
    assert zero_G.item() == 59  # 30 / (130/255) = 58.8
    assert codes.tolist() == [[0, 39, 59, 157, 255]]
    assert dequantize(codes, scale_G, zero_G).tolist()[0] == pytest.approx([-30.078, -10.196, 0, 49.961, 99.922], rel=1e-4)


def test_symmetric_codes_by_hand_and_ties_go_to_even():
    x = row(12.7, 0.1, 0.05, 0.15, -0.25, -12.7)
    codes, scale_G, _ = encoded(x, SIGNED)
    assert scale_G.item() == pytest.approx(0.1)
    assert codes.dtype == torch.int8
    ties = quantize(row(0.5, 1.5, 2.5, -0.5, -1.5), SIGNED, torch.ones(1))
    assert ties.tolist() == [[0, 2, 2, 0, -2]]


@pytest.mark.parametrize("levels", EVERY_WIDTH, ids=str)
def test_no_value_is_farther_off_than_half_a_step(levels):
    x = gaussian()
    codes, scale_G, zero_G = encoded(x, levels)
    assert int(codes.min()) >= levels.lowest and int(codes.max()) <= levels.highest
    error_GB = (dequantize(codes, scale_G, zero_G) - x).abs()
    # the zero point is rounded too, which can push one end half a step outside
    steps = 0.5 if levels.signed else 1.0
    assert bool((error_GB <= steps * scale_G[:, None] * (1 + 1e-5)).all())
    inside_GB = ~saturated(x, levels, scale_G, zero_G)
    assert bool((error_GB[inside_GB] <= 0.5001 * scale_G[:, None].expand_as(x)[inside_GB]).all())


@pytest.mark.parametrize("levels", EVERY_WIDTH, ids=str)
@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0])
def test_zero_is_a_code_even_where_no_value_is_near_it(levels, shift):
    x = gaussian() + shift
    x[:, 3] = 0.0
    codes, scale_G, zero_G = encoded(x, levels)
    assert bool((dequantize(codes, scale_G, zero_G)[:, 3] == 0).all())


@pytest.mark.parametrize("levels", [SIGNED, UNSIGNED], ids=str)
def test_a_row_of_zeros_has_scale_zero_and_comes_back_as_zeros(levels):
    codes, scale_G, zero_G = encoded(row(0, 0, 0), levels)
    assert scale_G.tolist() == [0]
    assert dequantize(codes, scale_G, zero_G).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("levels", [SIGNED, UNSIGNED], ids=str)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("clip", [None, 60])
def test_a_value_that_is_not_finite_shows_in_the_scale_even_of_a_clipped_row(levels, broken, clip):
    x = torch.cat([gaussian(1, 100), gaussian(1, 100)])
    x[1, 7] = broken
    _, scale_G, _ = encoded(clip_ends(x, clip), levels)
    assert scale_G.isfinite().tolist() == [True, False]


def test_clipping_at_a_percentile_lets_the_outlier_saturate_and_the_others_have_finer_steps():
    x = torch.cat([torch.linspace(-1, 1, 63), torch.tensor([100.0])])[None]
    plain_codes, plain_scale, _ = encoded(x, SIGNED)
    inside = clip_ends(x, 98)  # the second largest of 64
    assert inside.max() == 1
    scale_G = symmetric_scale(inside, SIGNED)
    codes = quantize(x, SIGNED, scale_G)
    assert plain_codes[0, :63].unique().tolist() == [-1, 0, 1]
    assert len(codes[0, :63].unique()) == 63
    assert dequantize(codes, scale_G)[0, 63].item() == pytest.approx(1)  # the outlier itself is lost
    assert saturated(x, SIGNED, scale_G).nonzero().tolist() == [[0, 63]]
    assert not saturated(x, SIGNED, plain_scale).any()


def test_the_percentile_is_that_of_sizes_and_takes_the_next_larger_one():
    x = row(*range(-10, 0), *range(1, 11)) + 0  # sizes 1 1 2 2 … 10 10
    assert clip_ends(x, 50).abs().max() == 6  # place 9.5 of 0 … 19: the tenth
    assert clip_ends(x, 90).abs().max() == 10
    assert torch.equal(clip_ends(x, None), x)


def test_clipping_a_long_row_needs_no_more_than_the_row():
    """torch.quantile ends at 16.7 million values; a weight has more."""
    x = torch.zeros(1, 1)
    assert torch.equal(clip_ends(x.expand(1, (1 << 24) + 1), 99), x.expand(1, (1 << 24) + 1))
