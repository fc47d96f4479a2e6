"""Answers that are labels: how evenly they occur, and which of them are one label written in two ways.

    table.labels                  # Counter({"ham": 4827, "spam": 747}), or None where answers are free text (label_set.py)
    variants(table)               # "Spam", "SPAM" and "spam " are one label; "spma" is a slip of the finger

A share of right answers says little when one label is frequent: whoever says "ham" to every message is right in 87 % of them.
"""

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator

from tunesmith.data.checks.finding import Finding, Hit, found, share
from tunesmith.data.checks.label_set import LONGEST_LABEL, canonical
from tunesmith.data.checks.table import Table, folded
from tunesmith.data.readers import clip

COMMON_SHARE, FEW_ROWS = 0.8, 10
RARER = 10  # times as rare as the label that it resembles, before it is taken for a slip
LABEL_KEYS = r"label|answer|category|class|target|gold|ground[ _-]?truth|intent|output|sentiment|expected"


def table_checks(table: Table) -> list[Finding]:
    counts = None if table.is_text else table.labels
    if counts is None:
        return []
    slips = slips_of(counts)
    if table.part != "train":
        return [*variants(table, counts), *typos(table, slips)]
    counts = Counter({label: n for label, n in counts.items() if label not in slips})
    return [*variants(table, counts), *typos(table, slips), *one_label(table, counts), *imbalance(table, counts), *few_rows(table, counts)]


def variants(table: Table, counts: Counter[str]) -> list[Finding]:
    """Rows whose label is spelled otherwise than most rows with that label spell it."""
    spellings: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for answer in table.answers:
        spellings[canonical(answer)][answer] += 1
    usual = {label: ways.most_common(1)[0][0] for label, ways in spellings.items()}
    hits = (
        (source, f"{answer!r}, mostly {usual[canonical(answer)]!r}")
        for source, answer in zip(table.sources, table.answers)
        if answer != usual[canonical(answer)]
    )
    return found(
        "label-variant",
        "warning",
        hits,
        "one label is spelled in several ways: the model learns them as different answers",
        "spell each label in one way",
    )


def slips_of(counts: Counter[str]) -> dict[str, str]:
    """Rare labels that are one or two letters away from a frequent one, each with that one."""
    slips: dict[str, str] = {}
    frequent = [(other, m) for other, m in counts.items() if m >= RARER]
    for label, n in counts.items():
        for other, m in frequent:
            if m >= RARER * n and n <= 3 and len(label) >= 3 and not any(map(str.isdigit, label + other)) and _one_slip(label, other):
                slips[label] = other
    return slips


def _one_slip(one: str, other: str) -> bool:
    """Whether two words differ by one letter more, less, changed or by two neighbours swapped; by two such slips in words of eight."""
    most = 2 if min(len(one), len(other)) >= 8 else 1
    return one != other and abs(len(one) - len(other)) <= most and _distance(one, other) <= most


def _distance(one: str, other: str) -> int:
    """Edits between two short words, a swap of neighbours counting as one (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        previous, before, row = before, row, [i]
        for j, b in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, previous[j - 2] + 1)
            row.append(cost)
    return row[-1]


def typos(table: Table, slips: dict[str, str]) -> list[Finding]:
    hits = (
        (source, f"{answer!r}, perhaps {slips[canonical(answer)]!r}")
        for source, answer in zip(table.sources, table.answers)
        if canonical(answer) in slips
    )
    return found(
        "label-typo", "warning", hits, "a label of few rows that is a letter or two away from a frequent one", "correct it, if it is a slip"
    )


def one_label(table: Table, counts: Counter[str]) -> list[Finding]:
    if len(counts) != 1 or len(table) < 10:
        return []
    reason = f"every row has the label {next(iter(counts))!r}: there is nothing to tell apart"
    return [Finding("one-label", "warning", len(table), table.sources, reason, "add rows with other labels")]


def imbalance(table: Table, counts: Counter[str]) -> list[Finding]:
    """One label in four fifths of the rows, or ten times as many rows as the rarest of the labels that matter."""
    if len(counts) < 2 or len(table) < 20:
        return []
    (most, n_most), (least, n_least) = counts.most_common()[0], counts.most_common()[-1]
    if n_most < COMMON_SHARE * len(table) and n_most < RARER * n_least:
        return []
    reason = (
        f"{most!r} is the label of {share(n_most, len(table))} of the rows and {least!r} of {share(n_least, len(table))}: "
        f"a model that always says {most!r} is right in {share(n_most, len(table))}"
    )
    rare = _rows_of(table, {least})
    return found(
        "label-imbalance",
        "warning",
        rare,
        reason,
        "read F1 of each label, not the share of right answers; more rows of the rare ones help most",
    )


def _rows_of(table: Table, labels: Collection[str]) -> Iterator[Hit]:
    """The rows that have one of these labels, each with what it asks."""
    rows = zip(table.sources, table.answers, table.own)
    return ((source, f"{answer!r} to: {clip(own.strip(), 60)}") for source, answer, own in rows if canonical(answer) in labels)


def few_rows(table: Table, counts: Counter[str]) -> list[Finding]:
    rare = {label for label, n in counts.items() if n < FEW_ROWS}
    if not rare or len(table) < 2 * FEW_ROWS:
        return []
    hits = _rows_of(table, rare)
    names = ", ".join(f"{label!r} {counts[label]}" for label in sorted(rare)[:5])
    return found("few-rows-per-label", "warning", hits, f"labels with fewer than {FEW_ROWS} rows ({names}): hardly learned, and not measured at all",
                 f"add rows until each label has {FEW_ROWS} or more, or merge labels")  # fmt: skip


def unseen(train: Table, held: Table) -> list[Finding]:
    """Labels of held-out rows that no training row has: they can only be got wrong."""
    known, there = train.labels, held.labels
    if known is None or there is None:
        return []
    hits = ((s, repr(a)) for s, a in zip(held.sources, held.answers) if canonical(a) not in known)
    return found("unseen-label", "warning", hits, f"a label of the {held.part} rows that no training row has: it can only be answered wrongly",
                 "add training rows with it, or spell it as there")  # fmt: skip


# --- the answer in the prompt ---------------------------------------------------------------------------------------------


def leaked(table: Table) -> list[Finding]:
    """Prompts that hold their own label: as a field ("label: spam"), as a column put into the prompt, or far more often than chance."""
    counts = None if table.is_text else table.labels
    if counts is None:
        return []
    labels = {label for label, n in counts.items() if n >= 3 and len(label) > 1}
    said = re.compile(rf"\b(?:{LABEL_KEYS})[\"']?\s*(?:[:=]|\bis\b)\s*[\"']?([^\n\"',;|}}]{{1,{LONGEST_LABEL}}})", re.I)
    sign = re.compile(LABEL_KEYS, re.I)
    said_so, own_named, others_named = array("q"), array("q"), 0  # rows
    word = re.compile(r"\b(?:" + "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True)) + r")\b") if labels else None
    for n, (own, answer) in enumerate(zip(table.own, table.answers)):
        label = canonical(answer)
        if sign.search(own) and any(canonical(match[1]) == label for match in said.finditer(own)):
            said_so.append(n)
            continue
        named = set(word.findall(folded(own))) if word else set()
        if named == {label}:
            own_named.append(n)
        elif named and label not in named:
            others_named += 1
    if len(counts) > 1 and len(own_named) >= 0.5 * len(table) and others_named * 5 <= len(own_named):
        said_so = array("q", sorted(said_so + own_named))
    hits = ((table.sources[n], f"{table.answers[n]!r} in the prompt") for n in said_so)
    return found("label-in-prompt", "warning", hits, "the prompt holds the answer: the model learns to copy it, and fails where it is not there",
                 "take the column out of the prompt")  # fmt: skip
