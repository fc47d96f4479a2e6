"""Rows of one part that stand in another part too: a figure measured on them says what the model remembers, not what it can do.

exact(train, test)       # test rows whose prompt is one of the training prompts, but for case and spacing
near(train, test)        # test rows whose prompt is nearly one of them (similar.py)
"""

import numpy as np

from tunesmith.data.checks.finding import Finding, Hits, found, share
from tunesmith.data.checks.table import Table
from tunesmith.data.digests import where_found
from tunesmith.data.similar import matches


def exact(base: Table, held: Table) -> tuple[list[Finding], set[int]]:
    """The finding, and the rows of `held` it is about."""
    first = where_found(held.asked, base.asked)
    rows = np.flatnonzero(first >= 0).tolist()
    hits = Hits((held.sources[n], f"also {base.sources[int(first[n])]}") for n in rows)
    removed = "training leaves these training rows out" if base.part == "train" else "the figures would not be independent"
    return found(
        f"{held.part}-in-{base.part}", "warning", hits,
        f"{share(len(hits), len(held))} of the {held.part} rows ask what a row of {base.part} asks too, but for case and spacing: {removed}",
        f"remove them from one of the files; data.{held.part} as a share of data.train never overlaps",
    ), set(rows)  # fmt: skip


def near(base: Table, held: Table, beside: set[int], threshold: float, removed: bool) -> list[Finding]:
    """Rows of `held` whose prompt is nearly one of `base`.

    beside    rows of `held` that are told already
    removed   whether training leaves such rows of `base` out
    """
    matched = matches(held.beginnings, base.beginnings, threshold)
    hits = Hits((held.sources[n], f"nearly {base.sources[m]}") for n, m in enumerate(matched) if m is not None and n not in beside)
    what_then = "training leaves these training rows out" if removed and base.part == "train" else "the figure on them is too good"
    reason = f"{share(len(hits), len(held))} of the {held.part} rows ask nearly what a row of {base.part} asks: {what_then}"
    return found(f"{held.part}-near-{base.part}", "warning", hits, reason, "remove them from one of the files")
