import math

import pytest
import torch

from tunesmith.errors import BadInput, TunesmithError
from tunesmith.inference.sampling import check_sampling, nucleus, row_generator, sample


def test_the_nucleus_is_the_smallest_set_of_likeliest_tokens_that_reaches_top_p():
    #  token               0      1      2      3      4
    probabilities_BV = torch.tensor([
                         [0.125, 0.500, 0.000, 0.250, 0.125],
                         [0.250, 0.250, 0.250, 0.125, 0.125],
    ])  # fmt: skip
    T, F = True, False
    expected = {
        0.50: [[F, T, F, F, F], [T, T, F, F, F]],  # reaching top_p exactly is enough
        0.51: [[F, T, F, T, F], [T, T, T, F, F]],
        0.80: [[T, T, F, T, F], [T, T, T, T, F]],  # of equals the lower id comes first
        0.01: [[F, T, F, F, F], [T, F, F, F, F]],  # never empty
    }
    for top_p, kept in expected.items():
        assert nucleus(probabilities_BV, top_p).tolist() == kept


def draws(probabilities: list[float], n: int, temperature: float = 1.0, top_p: float = 1.0) -> list[float]:
    """The share of n rows that drew each token."""
    logits_BV = torch.tensor(probabilities).log().expand(n, -1)
    ids_B = sample(logits_BV, temperature, top_p, [row_generator(0, row) for row in range(n)])
    return (ids_B.bincount(minlength=len(probabilities)) / n).tolist()


def test_tokens_are_drawn_as_often_as_their_probabilities_say():
    #                      token   0     1     2     3            5 standard deviations of 20,000 draws: 0.018
    assert draws([0.1, 0.6, 0.0, 0.3], 20_000) == pytest.approx([0.1, 0.6, 0.0, 0.3], abs=0.018)
    assert draws([0.1, 0.6, 0.0, 0.3], 20_000, top_p=0.7) == pytest.approx([0.0, 2 / 3, 0.0, 1 / 3], abs=0.018)
    squared = [0.01, 0.36, 0.0, 0.09]  # temperature 1/2 squares the odds
    assert draws([0.1, 0.6, 0.0, 0.3], 20_000, temperature=0.5) == pytest.approx([p / sum(squared) for p in squared], abs=0.018)


def test_a_token_without_probability_is_never_drawn():
    logits_BV = torch.tensor([[-math.inf, 3.0, -math.inf, 1.0, -math.inf]]).expand(5000, -1)
    for temperature in (1e-40, 0.5, 1e6):
        for top_p in (1e-9, 0.9, 1.0):
            ids_B = sample(logits_BV, temperature, top_p, [row_generator(1, row) for row in range(5000)])
            assert set(ids_B.tolist()) <= {1, 3}


def test_temperature_zero_takes_the_most_likely_token_and_no_random_number():
    generator = row_generator(0, 0)
    before = generator.get_state()
    assert sample(torch.tensor([[0.0, 2.0, 1.0, 2.0]]), 0.0, 1.0, [generator]).tolist() == [1]
    assert torch.equal(generator.get_state(), before)


def test_a_row_draws_the_same_token_alone_and_among_others():
    logits_BV = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    together = sample(logits_BV, 1.5, 0.95, [row_generator(7, row) for row in range(8)]).tolist()
    alone = [sample(logits_BV[row : row + 1], 1.5, 0.95, [row_generator(7, row)]).item() for row in range(8)]
    assert together == alone
    assert len(set(together)) > 3


def test_each_token_of_a_row_takes_a_new_number():
    generator = row_generator(0, 0)
    ids = [sample(torch.zeros(1, 1000), 1.0, 1.0, [generator]).item() for _ in range(20)]
    assert len(set(ids)) > 15


def test_logits_that_are_not_finite_stop_the_run():
    for bad in (math.nan, math.inf):
        with pytest.raises(TunesmithError, match="logits are not finite"):
            sample(torch.tensor([[0.0, bad, 1.0]]), 0.0, 1.0, [row_generator(0, 0)])


@pytest.mark.parametrize(
    ("temperature", "top_p", "named"),
    [(-0.1, 1.0, "temperature"), (math.nan, 1.0, "temperature"), (1.0, 0.0, "top_p"), (1.0, 1.1, "top_p")],
)
def test_settings_out_of_range_are_refused_by_name(temperature, top_p, named):
    with pytest.raises(BadInput, match=named) as refused:
        check_sampling(temperature, top_p)
    assert refused.value.fix
