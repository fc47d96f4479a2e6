"""Is it a difference or luck of these rows? Two models on the same rows, row by row.

    paired_difference(before, after)                   # Interval(value=0.05, low=0.021, high=0.079)
    paired_difference(before, after, groups=tasks)     # of the mean over tasks, each task's rows resampled among themselves
    mcnemar(before, after).p                           # right and wrong answers only
    detectable_difference(500, discordant=0.10)        # 0.0393: less than that, 500 rows will often not show

Both models answered the same rows, so the rows are resampled, never the two models' scores apart: hard rows are hard for both,
and what is left is the difference. The interval speaks of other rows of the same kind (and of the same tasks: which tasks were
chosen is not resampled, a handful of them is no sample). It does not speak of other training seeds.

Intervals are percentiles of the bootstrap distribution (Efron & Tibshirani 1993, chapter 13; for metrics of language models
Koehn 2004, "Statistical significance tests for machine translation evaluation"). On few rows they are a little too narrow, see
the simulation in the tests; where no row differs they are [0, 0], although up to 3/n of other rows might (the rule of three).
McNemar 1947, exact by the binomial distribution; the detectable difference after Connor 1987.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tunesmith.errors import BadInput

MOST_DRAWS, LEAST_DRAWS = 10_000, 1_000  # with 10,000 the ends of a 95 % interval have an error of about 1/40 of its half width
MOST_ROWS_DRAWN = 30_000_000  # in all draws of a group together, half a second: many rows need fewer draws
CHUNK = 2_000_000  # row numbers drawn at once: 8 MB
FEW = 8  # a row's value that stands for so many rows or more on average is drawn as a number of rows

Values: TypeAlias = Sequence[float] | npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its interval, in the unit of the values."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class McNemar:
    """gained: rows that only the second model has right; lost: only the first; p: two-sided, that luck alone makes them so unequal."""

    gained: int
    lost: int
    p: float


def paired_difference(
    before: Values, after: Values, *, groups: Sequence[Hashable] | None = None, weights: Values | None = None,
    level: float = 0.95, n_draws: int | None = None, seed: int = 0,
) -> Interval:  # fmt: skip
    """The mean of after − before over the rows, with its bootstrap interval. Arguments as `mean_interval`."""
    if len(before) != len(after):
        raise BadInput(f"{len(before)} rows before and {len(after)} rows after", fix="give both models the same rows in the same order")
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return mean_interval(difference, groups=groups, weights=weights, level=level, n_draws=n_draws, seed=seed)


def mean_interval(
    values: Values, *, groups: Sequence[Hashable] | None = None, weights: Values | None = None,
    level: float = 0.95, n_draws: int | None = None, seed: int = 0,
) -> Interval:  # fmt: skip
    """The mean of one number per row, with its bootstrap interval.

    groups    a name per row (its task): the mean is that of the groups' means, however many rows each has, and a draw takes as
              many rows from each group as it has
    weights   a row counts so much: bits per byte of a row weighs its bytes, as Σ bits / Σ bytes is not the mean of the rows' shares
    level     of the interval
    n_draws   by default 10,000, fewer where rows are many
    """
    numbers = np.asarray(values, dtype=np.float64)
    weight = np.ones_like(numbers) if weights is None else np.asarray(weights, dtype=np.float64)
    if numbers.ndim != 1 or not len(numbers) or weight.shape != numbers.shape or not np.isfinite(numbers).all():
        raise BadInput(f"{numbers.shape} values and {weight.shape} weights", fix="give one finite number per row, and at least one row")
    if n_draws is None:
        n_draws = min(MOST_DRAWS, max(LEAST_DRAWS, MOST_ROWS_DRAWN // len(numbers)))
    if not 0 < level < 1 or n_draws < 1 or not (weight > 0).all():
        raise BadInput(f"level {level}, {n_draws} draws, least weight {weight.min()}", fix="0 < level < 1, n_draws and weights above 0")
    members = _members(groups, len(numbers))
    rng = np.random.default_rng(seed)
    drawn = np.zeros(n_draws)
    for rows in members:
        drawn += _means(numbers[rows], weight[rows], n_draws, rng) / len(members)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    value = sum(float(np.average(numbers[rows], weights=weight[rows])) for rows in members) / len(members)
    return Interval(value, float(low), float(high))


def _members(groups: Sequence[Hashable] | None, n_rows: int) -> list[npt.NDArray[np.intp]]:
    """The row numbers of each group, in the order in which the groups appear."""
    if groups is None:
        return [np.arange(n_rows)]
    if len(groups) != n_rows:
        raise BadInput(f"{len(groups)} group names for {n_rows} rows", fix="give one per row")
    found: dict[Hashable, list[int]] = {}
    for row, name in enumerate(groups):
        found.setdefault(name, []).append(row)
    return [np.array(rows) for rows in found.values()]


def _means(values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], n_draws: int, rng: np.random.Generator) -> Any:
    """Weighted means of `n_draws` samples of these rows, drawn with replacement."""
    n = len(values)
    distinct, counts = np.unique(np.stack([values, weights]), axis=1, return_counts=True)
    if FEW * len(counts) <= n:  # right and wrong answers: how often each value is drawn is all that matters, and is multinomial
        times = rng.multinomial(n, counts / n, size=n_draws)
        return times @ distinct.prod(axis=0) / (times @ distinct[1])
    means = np.empty(n_draws)
    each = max(1, CHUNK // n)
    for start in range(0, n_draws, each):
        rows = rng.integers(0, n, size=(min(each, n_draws - start), n), dtype=np.int32)
        weight = weights[rows]
        means[start : start + len(rows)] = (values[rows] * weight).sum(axis=1) / weight.sum(axis=1)
    return means


def mcnemar(before: Sequence[bool] | Values, after: Sequence[bool] | Values) -> McNemar:
    """Exact test of two models' right (1) and wrong (0) answers to the same rows: only rows on which they differ say anything.

    If tuning changed nothing, each such row is a gain or a loss with probability 1/2.
    """
    if len(before) != len(after):
        raise BadInput(f"{len(before)} rows before and {len(after)} rows after", fix="give both models the same rows in the same order")
    gained = sum(bool(a) and not bool(b) for b, a in zip(before, after, strict=True))
    lost = sum(bool(b) and not bool(a) for b, a in zip(before, after, strict=True))
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1))
    return McNemar(gained, lost, min(1.0, 2 * (tail / 2**n)))


def detectable_difference(n_rows: int, discordant: float, *, power: float = 0.8, level: float = 0.95) -> float:
    """The least true difference in accuracy that a paired comparison finds with probability `power`.

    discordant   share of rows that only one of the two models has right; half of the rows at most is usual
    Solves δ·√n = z(level)·√d + z(power)·√(d − δ²), where d − δ² is the variance of a row's difference (Connor 1987, equation 4).
    No difference is larger than the discordant share: where even that would not be found, the result is infinite.
    """
    if n_rows < 1 or not 0 <= discordant <= 1 or not 0.5 <= power < 1 or not 0 < level < 1:
        raise BadInput(
            f"{n_rows} rows, discordant {discordant}, power {power}, level {level}",
            fix="rows ≥ 1, shares between 0 and 1, power of 0.5 or more",
        )
    z_level, z_power = NormalDist().inv_cdf((1 + level) / 2), NormalDist().inv_cdf(power)

    def found(delta: float) -> bool:
        return delta * math.sqrt(n_rows) >= z_level * math.sqrt(discordant) + z_power * math.sqrt(max(discordant - delta**2, 0.0))

    low, high = 0.0, discordant
    if not found(high) or discordant == 0:
        return math.inf
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high
