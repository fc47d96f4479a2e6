"""Quotes in CSV and TSV files that most readers take for quotation, so that lines vanish without a word.

    trap(Path("SMSSpamCollection.tsv"), config)      # "read with quotes … 5,572 rows instead of 5,574": at lines 2339 and 4846

Python's csv, pandas and most others let a stray quote join lines; ours refuses such rows, or takes quotes for characters if told to
(data.quoting: false). The finding warns whoever reads the same file with something else, and shows what was lost.
"""

import csv
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tunesmith.config import DataConfig
from tunesmith.data.checks.finding import Finding, Hit, found
from tunesmith.data.readers import File, plain_records, recognise
from tunesmith.errors import BadInput
from tunesmith.progress import counted


def trap(path: Path, config: DataConfig) -> list[Finding]:
    """Lines that a lenient CSV reader joins with the next ones, in a file whose every line is a whole row."""
    file = recognise(path, config)
    if file.kind not in ("csv", "tsv"):
        return []
    widths = Counter(len(cells) for _, cells, _ in plain_records(file))
    if len(widths) != 1 or 1 in widths:
        return []  # lines are not rows of their own: a quoted cell may well span several
    joined = _joined(file)
    n_lost = sum(n - 1 for _, n in joined)
    if not joined:
        return []
    n_rows = widths.total() - config.header
    hits: list[Hit] = [(f"{path.name}:{line}", f"takes {n - 1:,} more {'line' if n == 2 else 'lines'} in") for line, n in joined]
    reason = f"a quote opens here and swallows lines: read with quotes as quotation, the file gives {counted(n_rows - n_lost, 'row')} instead of {n_rows:,}"
    if config.quoting:
        return found("quoting-trap", "warning", hits, reason, "data.quoting: false, if quotes are mere characters in this file")
    return found(
        "quoting-trap",
        "note",
        hits,
        f"{reason} (here it is read rightly: data.quoting is false)",
        "read it so everywhere, as pandas.read_csv(…, quoting=3)",
    )


def _joined(file: File) -> list[tuple[int, int]]:
    """(line where a record starts, lines it takes) of each record of several lines, as Python's csv reads them by default."""
    csv.field_size_limit(2**31 - 1)
    taken: list[int] = []  # lines of this record

    def lines() -> Iterator[str]:
        for line, cells, _ in plain_records(file):
            taken.append(line)
            yield file.separator.join(cells) + "\n"

    joined: list[tuple[int, int]] = []
    with suppress(csv.Error):
        for cells in csv.reader(lines(), delimiter=file.separator):
            if cells and len(taken) > 1:
                joined.append((taken[0], len(taken)))
            taken.clear()
    return joined


def unreadable(path: str, error: BadInput) -> Finding:
    """A file that cannot be read at all: the reader's own error."""
    return Finding("unreadable-file", "error", 1, (error.where or path,), error.what, error.fix)
