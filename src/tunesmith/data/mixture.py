"""How many rows of each task an epoch takes, and which: the arithmetic of a mixture.

    doses = mix({"qa": 300, "summaries": 60}, mixing="temperature", temperature=2.0)
    [(d.task, d.n_rows, d.n_seen) for d in doses]      # [("qa", 300, 249), ("summaries", 60, 111)]
    rows = repeated(rows_of_summaries, 111)            # every row once, 51 of them twice

A task's share of an epoch is its weight times

    proportional   n             every row as often as any other
    equal          1             every task as often as any other
    temperature    n^(1/T)       between the two: T = 1 is proportional, T → ∞ equal

where n, its number of rows, counts at most up to `cap` (examples-proportional mixing with an artificial limit and
temperature-scaled mixing: Raffel et al. 2020, arXiv 1910.10683, section 3.5.2). An epoch has as many rows as all tasks
have together, each counted up to the cap. Shares become whole rows by the largest remainder (Hamilton's method), in
exact fractions, so the rows of an epoch always add up and a plain mixture takes each row exactly once.

A task that gets fewer rows than it has keeps those with the smallest hash of their content: the same ones in every run and
every epoch, and nearly the same ones when rows are added. One that gets more repeats all its rows equally often, then those
with the smallest hash once more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from hashlib import blake2b

import numpy as np

from tunesmith.data.conversation import Conversation
from tunesmith.data.digests import Places, as_numbers, ranked
from tunesmith.data.spool import picked
from tunesmith.errors import BadInput


@dataclass(frozen=True)
class Dose:
    """One task's part of an epoch. `share`: what mixing asks for, of 1; `n_seen`: the rows that this comes to."""

    task: str
    n_rows: int
    share: Fraction
    n_seen: int


def mix(
    n_rows: Mapping[str, int],
    *,
    weights: Mapping[str, float] | None = None,
    mixing: str = "proportional",
    temperature: float = 1.0,
    cap: int | None = None,
    n_epoch: int | None = None,
) -> list[Dose]:
    """What each task gives to an epoch, in the order of `n_rows`.

    n_rows    task → rows that it has, above 0
    weights   task → factor of its share; 1 where it is not named
    n_epoch   rows of an epoch; by default the sum of all rows, each task counted up to `cap`
    Raises BadInput where a task would get no row at all.
    """
    counted = {task: min(n, cap or n) for task, n in n_rows.items()}
    power = {"proportional": 1.0, "equal": 0.0, "temperature": 1 / temperature}[mixing]
    parts = {task: Fraction(n**power) * Fraction(str((weights or {}).get(task, 1))) for task, n in counted.items()}
    shares = {task: part / sum(parts.values()) for task, part in parts.items()}
    seen = apportion(sum(counted.values()) if n_epoch is None else n_epoch, shares)
    doses = [Dose(task, n_rows[task], shares[task], seen[task]) for task in n_rows]
    if never := [dose for dose in doses if not dose.n_seen]:
        raise BadInput(
            f'the task "{never[0].task}" would never be trained on',
            where=f"its share of {sum(seen.values()):,} rows an epoch is {float(never[0].share):.3%}",
            fix="raise its weight, use data.mixing: equal or temperature, raise data.limit, or leave the task out",
        )
    return doses


def apportion(total: int, shares: Mapping[str, Fraction]) -> dict[str, int]:
    """Whole numbers that sum to `total` and are each less than 1 from their share of it: the largest remainders are rounded up.

    shares   sum to 1; of equal remainders the earlier one is rounded up
    """
    quotas = {name: total * share for name, share in shares.items()}
    whole = {name: int(quota) for name, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda name: whole[name] - quotas[name])
    for name in by_remainder[: total - sum(whole.values())]:
        whole[name] += 1
    return whole


def chosen(rows: Sequence[Conversation], n: int) -> Sequence[Conversation]:
    """The `n` rows with the smallest hash of their content, in their own order."""
    return rows if n >= len(rows) else picked(rows, _smallest(rows, n))


def repeated(rows: Sequence[Conversation], n: int) -> Sequence[Conversation]:
    """`n` rows, each as often as any other or once more."""
    times, more = divmod(n, len(rows))
    if times == 1 and not more:
        return rows
    again = _smallest(rows, more) if more else np.empty(0, np.int64)
    return picked(rows, np.concatenate([np.tile(np.arange(len(rows)), times), again]))


def _smallest(rows: Sequence[Conversation], n: int) -> Places:
    """The places of the `n` rows with the smallest hash of their content, in order."""
    return np.sort(ranked(as_numbers(b"".join(map(content_hash, rows))))[:n])


def content_hash(conversation: Conversation) -> bytes:
    """Of what a row says, wherever it stands."""
    turns = "\x1e".join(f"{message.role}\x1f{message.content}" for message in conversation.messages)
    return blake2b(turns.encode(), digest_size=16).digest()


def by_task(rows: Sequence[Conversation]) -> dict[str, Sequence[Conversation]]:
    """The rows of each task, tasks in the order in which they first come."""
    return {task: picked(rows, places) for task, places in _places_by_task(rows).items()}


def _places_by_task(rows: Sequence[Conversation]) -> dict[str, Places]:
    numbers: dict[str, int] = {}
    task_of = np.fromiter((numbers.setdefault(row.task, len(numbers)) for row in rows), np.int32, len(rows))
    return {task: np.flatnonzero(task_of == number) for task, number in numbers.items()}


def evenly(rows: Sequence[Conversation], most: int | None) -> Sequence[Conversation]:
    """At most `most` rows, the first ones of every task: as many of each as there are, but never more of one than fit for all."""
    if most is None or most >= len(rows):
        return rows
    tasks = _places_by_task(rows)
    taken, left = dict.fromkeys(tasks, 0), most
    while left:
        for task in [task for task, own in tasks.items() if taken[task] < len(own)][:left]:
            taken[task] += 1
            left -= 1
    return picked(rows, np.sort(np.concatenate([own[: taken[task]] for task, own in tasks.items()])))


def table(doses: Sequence[Dose]) -> list[str]:
    """Task, rows, share of an epoch and rows seen in one, as lines to print."""
    width = min(60, max(4, *(len(dose.task) for dose in doses)))
    lines = [f"  {'task':{width}}  {'rows':>9}  {'share':>6}  {'seen per epoch':>14}"]
    for dose in doses:
        name = dose.task if len(dose.task) <= width else dose.task[: width - 1] + "…"
        times = f"  ({dose.n_seen / dose.n_rows:.2f} times each)" if dose.n_seen > dose.n_rows else ""
        lines.append(f"  {name:{width}}  {dose.n_rows:>9,}  {float(dose.share):>6.1%}  {dose.n_seen:>14,}{times}")
    return lines
