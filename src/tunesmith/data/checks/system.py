"""System messages: the same for all rows but a few is a slip; those few teach the model to behave otherwise."""

from tunesmith.data.checks.finding import Finding, found, share
from tunesmith.data.checks.table import Table, majority
from tunesmith.data.readers import clip

MAIN_SHARE = 0.9


def odd_system(table: Table) -> list[Finding]:
    """Rows without the system message that nine in ten have, or with another one."""
    main = majority(table.systems)
    n_main = sum(system == main for system in table.systems)
    if n_main < MAIN_SHARE * len(table) or n_main == len(table):
        return []
    hits = (
        (source, repr(clip(system, 60)) if system else "none") for source, system in zip(table.sources, table.systems) if system != main
    )
    usual = f"begins {clip(main, 40)!r}" if main else "is absent"
    return found("odd-system-message", "warning", hits, f"another system message than in {share(n_main, len(table))} of the rows, where it {usual}",
                 "give all rows the same one, or none, if they are one task")  # fmt: skip
