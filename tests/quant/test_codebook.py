"""Sixteen levels: where they come from, that the nearest is taken, and that they are bitsandbytes' own."""

import pytest
import torch

from tunesmith.quant.codebook import FP4, NF4, codebook, dynamic_map, nearest_level


def test_nf4_levels_are_where_equally_many_values_of_a_normal_distribution_fall():
    """Eight quantiles on the side of the positive numbers and seven on the other, 0 between them; the largest becomes 1."""
    outermost = 0.9677083  # the paper's offset, appendix E
    positive = torch.special.ndtri(torch.linspace(outermost, 0.5, 9, dtype=torch.float64)[:-1])
    negative = -torch.special.ndtri(torch.linspace(outermost, 0.5, 8, dtype=torch.float64)[:-1])
    expected = torch.cat([negative, torch.zeros(1), positive]).sort().values / positive.max()
    assert torch.allclose(torch.tensor(NF4, dtype=torch.float64), expected, atol=2e-7)
    assert sorted(NF4) == list(NF4)


def test_fp4_levels_are_a_sign_two_bits_of_exponent_and_one_of_mantissa():
    sizes = [0, 0.0625, 2, 3, 4, 6, 8, 12]
    assert sorted(12 * level for level in FP4[:8]) == pytest.approx(sizes)
    assert [-level for level in FP4[8:]] == list(FP4[:8])


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_bounds_lie_in_the_middle_between_neighbours(name):
    book = codebook(name)
    rising = book.levels_16[book.order_16]
    assert bool((rising.diff() >= 0).all())
    assert torch.equal(book.bounds_15, (rising[1:] + rising[:-1]) / 2)


def test_the_nearest_level_is_taken_and_the_lower_one_halfway():
    levels = torch.tensor([-1.0, 0.0, 0.5, 1.0])
    x = torch.tensor([-9.0, -0.51, -0.5, -0.49, 0.1, 0.25, 0.26, 0.74, 0.76, 9.0])
    assert nearest_level(x, levels).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]
    random = torch.rand(10_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(nearest_level(random, dynamic_map()).long(), (random[:, None] - dynamic_map()).abs().argmin(1))


def test_the_dynamic_map_has_256_levels_that_are_dense_near_zero():
    levels = dynamic_map()
    assert (len(levels), levels.dtype) == (256, torch.float32)
    assert levels[0] == pytest.approx(-0.9929687) and levels[-1] == 1 and 0.0 in levels
    assert len(levels.unique()) == 256
    assert int((levels.abs() < 0.01).sum()) == 63  # a quarter of them within a hundredth of the range


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_levels_are_those_of_bitsandbytes(name):
    functional = pytest.importorskip("bitsandbytes.functional")
    assert torch.equal(codebook(name).levels_16, functional.get_4bit_type(name, device="cpu"))


def test_the_dynamic_map_is_that_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    assert torch.equal(dynamic_map(), functional.create_dynamic_map().float())
