"""Rows that are there twice, and rows that answer one prompt in two ways.

    exact(table)             # rows whose every turn equals that of an earlier row, to the letter
    near(table, 0.8)         # rows whose prompt is nearly that of an earlier row (similar.py), and not equal
    contradictory(table)     # "Call me" → ham here and spam there

A copied row counts double in training; a copy in a held-out part makes any model look better than it is (overlap.py).
"""

from collections.abc import Callable

import numpy as np

from tunesmith.data.checks.finding import Finding, found
from tunesmith.data.checks.json_answers import are_json
from tunesmith.data.checks.label_set import canonical
from tunesmith.data.checks.table import Table, folded
from tunesmith.data.digests import digests, first_equal
from tunesmith.data.readers import clip
from tunesmith.data.similar import clusters


def exact(table: Table, dropped: bool = False) -> list[Finding]:
    """Rows equal to an earlier one in every turn, to the letter; as many as `data.duplicates: drop` would leave out."""
    first = table.first_copies
    again = np.flatnonzero(first != np.arange(len(first))).tolist()
    hits = ((table.sources[n], f"equals {table.sources[first[n]]}") for n in again)
    if dropped:
        return found("exact-duplicates", "note", hits, "rows equal to an earlier one are left out (data.duplicates: drop)", "nothing to do")
    reason = "rows equal to an earlier one: they count double, and a random split would put copies on both sides"
    return found("exact-duplicates", "warning", hits, reason, "data.duplicates: drop")


def near(table: Table, threshold: float, on_progress: Callable[[int], None] | None = None) -> list[Finding]:
    """Rows whose prompt is a near copy of an earlier row's, or equal to it but for case and spacing; prompts equal to the letter aside."""
    cluster = clusters(table.beginnings, threshold, on_progress)
    new = table.first_copies == np.arange(len(table))
    hits = (
        (table.sources[n], f"nearly {table.sources[of]}")
        for n, of in enumerate(cluster)
        if of != n and new[n] and table.prompts[n] != table.prompts[of]
    )
    reason = f"prompts that are nearly those of an earlier row ({100 * threshold:.0f} % of their words and word pairs are the same)"
    fix = "a split by share keeps them together (data.near_duplicates); remove them if a template made them and not people"
    return found("near-duplicates", "note", hits, reason, fix)


def contradictory(table: Table) -> list[Finding]:
    """One prompt (but for case and spacing) with different answers: a contradiction where answers are labels or JSON, else perhaps a choice."""
    if table.is_text:
        return []
    are_labels = table.labels is not None
    asked = first_equal(table.asked)
    said = first_equal(digests(map(canonical if are_labels else folded, table.answers)))
    otherwise = np.full(len(table), -1, np.int64)  # the first row of the same prompt that says something else
    differ = said != said[asked]
    first_other = np.full(len(table), len(table), np.int64)
    np.minimum.at(first_other, asked[differ], np.flatnonzero(differ))
    otherwise[differ] = asked[differ]
    agrees = ~differ & (first_other[asked] < len(table))
    otherwise[agrees] = first_other[asked[agrees]]

    def hit(n: int, m: int) -> tuple[str, str]:
        own, other = where_they_differ(table.answers[n], table.answers[m])
        return table.sources[n], f"{own!r}; {table.sources[m]}: {other!r}"

    hits = (hit(n, int(otherwise[n])) for n in np.flatnonzero(otherwise >= 0).tolist())
    if are_labels or are_json(table):
        return found("contradiction", "warning", hits, "one prompt has different answers: whichever the model learns, some of these rows say it is wrong",
                     "decide on one answer, or put what tells these rows apart into the prompt")  # fmt: skip
    return found("several-answers", "note", hits, "one prompt has several answers: fine where all are right, but exact match counts only one",
                 "keep them if all are right")  # fmt: skip


def where_they_differ(one: str, other: str, length: int = 30) -> tuple[str, str]:
    """Two texts in `length` characters each: from their beginning, or, where that is the same in both, from a little before they part."""
    parts = next((n for n, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
    start = 0 if parts < length - 5 else parts - 8
    mark = "…" if start else ""
    return clip(mark + one[start:], length), clip(mark + other[start:], length)
