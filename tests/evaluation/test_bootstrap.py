import math

import numpy as np
import pytest
from scipy import stats

from tunesmith.errors import BadInput
from tunesmith.evaluation.bootstrap import detectable_difference, mcnemar, mean_interval, paired_difference


def test_the_interval_is_that_of_scipy():
    rng = np.random.default_rng(0)
    before, after = rng.random(80), rng.random(80) + 0.2
    ours = paired_difference(before, after, n_draws=20_000)
    theirs = stats.bootstrap((after - before,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx((after - before).mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.04 * width)  # two seeds differ by so much


def test_the_same_seed_gives_the_same_interval_and_chunks_do_not_matter(monkeypatch):
    values = np.random.default_rng(0).random(50)
    whole = mean_interval(values, n_draws=1000, seed=3)
    assert mean_interval(values, n_draws=1000, seed=3) == whole
    monkeypatch.setattr("tunesmith.evaluation.bootstrap.CHUNK", 60)  # one draw at a time
    assert mean_interval(values, n_draws=1000, seed=3) == whole
    assert mean_interval(values, n_draws=1000, seed=4) != whole


def test_few_different_values_are_drawn_by_their_numbers_with_the_same_result():
    rng = np.random.default_rng(0)
    values, weights = rng.choice([-1.0, 0.0, 1.0], size=600, p=[0.1, 0.6, 0.3]), rng.choice([1.0, 3.0], size=600)
    nearly = values + 1e-9 * rng.random(600)  # every row has a value of its own
    one, other = (mean_interval(v, weights=weights) for v in (values, nearly))
    width = one.high - one.low
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), abs=0.04 * width)


def test_a_pair_is_resampled_as_a_pair():
    hard_and_easy = np.array([0.0, 1.0] * 50)  # rows differ a lot, the two models by the same small amount everywhere
    interval = paired_difference(hard_and_easy, hard_and_easy + 0.01)
    assert (interval.low, interval.high) == pytest.approx((0.01, 0.01))


def test_the_mean_over_tasks_counts_each_task_once_and_draws_rows_within_tasks():
    values, tasks = [1.0] * 10 + [0.0] * 90, ["small"] * 10 + ["large"] * 90
    interval = mean_interval(values, groups=tasks)
    assert (interval.value, interval.low, interval.high) == (0.5, 0.5, 0.5)  # no row varies within its task
    assert mean_interval(values).value == pytest.approx(0.1)

    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 1, 400), rng.normal(1, 2, 100)
    interval = mean_interval([*one, *other], groups=["a"] * 400 + ["b"] * 100)
    standard_error = 0.5 * math.sqrt(one.var() / 400 + other.var() / 100)  # of the mean of two independent means
    assert interval.value == pytest.approx((one.mean() + other.mean()) / 2)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * standard_error, rel=0.05)


def test_weights_make_a_ratio_of_sums():
    bits, n_bytes = np.array([8.0, 30.0, 5.0]), np.array([4.0, 10.0, 1.0])
    assert mean_interval(bits / n_bytes, weights=n_bytes).value == pytest.approx(bits.sum() / n_bytes.sum())


@pytest.mark.parametrize("n_rows, tasks", [(200, 1), (300, 3)])
def test_a_95_percent_interval_covers_the_truth_in_about_95_percent_of_samples(n_rows, tasks):
    rng = np.random.default_rng(7)
    n_samples, covered = 600, 0
    gain, loss = 0.12, 0.05  # shares of rows that are won and lost: the true difference is 0.07
    for sample in range(n_samples):
        kind = rng.choice(3, size=n_rows, p=[gain, loss, 1 - gain - loss])
        groups = np.arange(n_rows) % tasks
        interval = paired_difference(kind == 1, kind == 0, groups=list(groups), n_draws=800, seed=sample)
        covered += interval.low <= gain - loss <= interval.high
    assert 0.92 <= covered / n_samples <= 0.975  # 95 % ± 3 standard errors of 600 samples


def test_mcnemar_is_the_exact_binomial_test():
    before = [1] * 20 + [0] * 30 + [1] * 4
    after = [1] * 20 + [0] * 18 + [1] * 12 + [0] * 4
    found = mcnemar(before, after)
    assert (found.gained, found.lost) == (12, 4)
    assert found.p == pytest.approx(stats.binomtest(4, 16, 0.5).pvalue)
    assert mcnemar([1, 0], [1, 0]).p == 1.0
    assert mcnemar([0] * 3000, [1] * 3000).p < 1e-300  # no float overflows on the way


def test_a_planted_difference_of_five_points_is_found_and_none_is_not():
    """500 rows, 10 % of them discordant: power at least 0.9; with no difference 5 % false alarms at most, and some."""
    rng = np.random.default_rng(0)
    n_samples, found, by_test, false_alarms = 400, 0, 0, 0
    for sample in range(n_samples):
        kind = rng.choice(3, size=500, p=[0.075, 0.025, 0.9])
        found += paired_difference(kind == 1, kind == 0, n_draws=600, seed=sample).excludes_zero
        by_test += mcnemar(kind == 1, kind == 0).p < 0.05
        kind = rng.choice(3, size=500, p=[0.05, 0.05, 0.9])
        false_alarms += paired_difference(kind == 1, kind == 0, n_draws=600, seed=sample).excludes_zero
    assert found / n_samples >= 0.9
    assert by_test / n_samples >= 0.9
    assert 0.01 <= false_alarms / n_samples <= 0.085


def test_the_detectable_difference_has_the_power_that_it_promises():
    delta = detectable_difference(500, 0.10, power=0.8)
    assert delta == pytest.approx(0.0394, abs=0.0005)
    rng = np.random.default_rng(1)
    kinds = rng.multinomial(500, [(0.10 + delta) / 2, (0.10 - delta) / 2, 0.90], size=4000)
    gained, lost = kinds[:, 0], kinds[:, 1]
    z = np.abs(gained - lost) / np.sqrt(gained + lost)  # McNemar without a correction, as the formula has it
    assert (z > 1.96).mean() == pytest.approx(0.8, abs=0.03)
    assert detectable_difference(2000, 0.10) == pytest.approx(delta / 2, rel=0.02)
    assert detectable_difference(10, 0.10) == math.inf  # one discordant row proves nothing


def test_rows_that_do_not_belong_together_are_refused():
    with pytest.raises(BadInput, match="2 rows before and 3 rows after"):
        paired_difference([0, 1], [0, 1, 1])
    with pytest.raises(BadInput, match="2 rows before and 3 rows after"):
        mcnemar([0, 1], [0, 1, 1])
    with pytest.raises(BadInput, match="one per row"):
        mean_interval([0, 1], groups=["a"])
    for values in ([], [math.nan]):
        with pytest.raises(BadInput, match="finite"):
            mean_interval(values)
    with pytest.raises(BadInput, match="draws"):
        mean_interval([1.0], n_draws=0)
