"""Rows that are there twice, and rows that answer one prompt in two ways.

    exact(table)             # rows whose every turn equals that of an earlier row, to the letter
    near(table, 0.8)         # rows whose prompt is nearly that of an earlier row (similar.py), and not equal
    contradictory(table)     # "Call me" → ham here and spam there

A copied row counts double in training; a copy in a held-out part makes any model look better than it is (overlap.py).
"""

from collections import defaultdict
from collections.abc import Callable

from tunesmith.data.checks.finding import Finding, Hit, found
from tunesmith.data.checks.json_answers import are_json
from tunesmith.data.checks.labels import canonical, labels_of
from tunesmith.data.checks.table import Table, folded
from tunesmith.data.readers import clip
from tunesmith.data.similar import clusters
from tunesmith.data.split import drop_duplicates


def exact(table: Table, dropped: bool = False) -> list[Finding]:
    """Rows equal to an earlier one in every turn, to the letter; as many as `data.duplicates: drop` would leave out."""
    _, again = drop_duplicates(table.conversations)
    if not again:
        return []
    first: dict[object, str] = {}
    for conversation in table.conversations:
        first.setdefault(conversation.messages, conversation.source)
    hits = [(c.source, f"equals {first[c.messages]}") for c in again]
    if dropped:
        return found("exact-duplicates", "note", hits, "rows equal to an earlier one are left out (data.duplicates: drop)", "nothing to do")
    reason = "rows equal to an earlier one: they count double, and a random split would put copies on both sides"
    return found("exact-duplicates", "warning", hits, reason, "data.duplicates: drop")


def near(table: Table, threshold: float, on_progress: Callable[[int], None] | None = None) -> list[Finding]:
    """Rows whose prompt is a near copy of an earlier row's, or equal to it but for case and spacing; prompts equal to the letter aside."""
    cluster = clusters(table.beginnings, threshold, on_progress)
    seen: set[object] = set()
    hits: list[Hit] = []
    for n, (conversation, of) in enumerate(zip(table.conversations, cluster)):
        if of != n and conversation.messages not in seen and table.prompts[n] != table.prompts[of]:
            hits.append((conversation.source, f"nearly {table.sources[of]}"))
        seen.add(conversation.messages)
    reason = f"prompts that are nearly those of an earlier row ({100 * threshold:.0f} % of their words and word pairs are the same)"
    fix = "a split by share keeps them together (data.near_duplicates); remove them if a template made them and not people"
    return found("near-duplicates", "note", hits, reason, fix)


def contradictory(table: Table) -> list[Finding]:
    """One prompt (but for case and spacing) with different answers: a contradiction where answers are labels or JSON, else perhaps a choice."""
    if table.is_text:
        return []
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for n, asked in enumerate(table.asked):
        groups[asked].append(n)
    are_labels = labels_of(table.answers) is not None
    same = canonical if are_labels else folded
    rows: list[tuple[int, int]] = []  # and another row of the same prompt that says otherwise
    for group in groups.values():
        answers = [same(table.answers[n]) for n in group]
        if len(set(answers)) > 1:
            rows += [(n, next(m for m, given in zip(group, answers) if given != own)) for n, own in zip(group, answers)]
    hits: list[Hit] = []
    for n, m in sorted(rows):
        own, other = where_they_differ(table.answers[n], table.answers[m])
        hits.append((table.sources[n], f"{own!r}; {table.sources[m]}: {other!r}"))
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
