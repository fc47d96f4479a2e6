"""Rows that are far longer or shorter than the others: pasted books, empty-ish prompts, two rows run into one.

A row is an outlier if the logarithm of its length is more than five robust standard deviations from the median (1.4826 times the median
absolute deviation; Rousseeuw and Croux 1993) and the length at least five times, or a fifth of, the median: lengths of texts spread like
a log-normal distribution, and one long row must not hide another.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.checks.finding import Finding, found
from tunesmith.data.checks.table import Table
from tunesmith.progress import counted

DEVIATIONS, TIMES = 5.0, 5.0
LEAST_ROWS = 20


def outliers(lengths: Sequence[int] | NDArray[np.int64]) -> list[int]:
    """The places of the lengths that stand far out; none where the lengths are few."""
    if len(lengths) < LEAST_ROWS:
        return []
    logs = np.log(np.asarray(lengths, dtype=np.float64) + 1)
    middle = float(np.median(logs))
    spread = max(1.4826 * float(np.median(np.abs(logs - middle))), 0.1)
    return [int(n) for n in np.flatnonzero((np.abs(logs - middle) > DEVIATIONS * spread) & (np.abs(logs - middle) > np.log(TIMES)))]


def odd_lengths(table: Table) -> list[Finding]:
    findings: list[Finding] = []
    sides = (("text", table.prompts),) if table.is_text else (("prompt", table.own), ("answer", table.answers))
    for side, texts in sides:
        sizes = np.fromiter(map(len, texts), np.int64, len(table))
        places = outliers(sizes)
        if not places:
            continue
        middle = int(np.median(sizes))
        hits = ((table.sources[n], f"{sizes[n]:,} characters; half of the rows have at most {middle:,}") for n in places)
        longer = int((sizes[places] > middle).sum())
        reason = f"the {side} is far longer ({counted(longer, 'row')}) or shorter ({len(places) - longer:,}) than the others'"
        findings += found(f"{side}-length", "note", hits, reason, "look at them: often two rows in one, a pasted page, or an empty field")
    return findings
