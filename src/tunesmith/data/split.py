"""Training, validation and test rows: the same rows always, and never one question in two places.

    splits = split(conversations, validation=0.1, test=0.2, seed=0, stratify=True, near=0.8, group_by="author")
    len(splits.train), len(splits.validation), len(splits.test)

Rows that belong together are a group, and a group goes to one split as a whole, for a row with its copy on the other side of a split makes any
model look better than it is. Together are rows with one prompt (but for case and spacing: 403 of the 5,574 messages of the SMS Spam Collection
are copies), with near copies of a prompt (similar.py: 121 more nearly repeat one, often but for a telephone number), and with one value of a chosen
column, such as the author or the document a question is about; and what these join through other rows.

Which group goes where follows from a hash of the seed and the prompt (or the value of the column), not from the order of the file: shuffling or
sorting a file changes nothing, and of a file that has grown only rows at the border move, about as many as the square root of the rows added. The test rows
are taken first: they do not depend on the validation share. Where the answers are labels, each label gives its share.
"""

import json
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.digests import Digests, Places, as_numbers, digest, digests, first_equal, ranked, where_found
from tunesmith.data.similar import clusters, matches, plain
from tunesmith.data.spool import Mapped, picked
from tunesmith.errors import BadInput, nearest
from tunesmith.progress import counted

# Answers are labels if there are few, short and repeated ones.
MAX_LABELS, MAX_LABEL_CHARACTERS, MIN_ROWS_PER_LABEL = 50, 40, 5
SAME_PROPORTION = 0.005  # of all rows: how far a split's count of a label may be off and still be called the same
LARGE_CLUSTER = 0.1  # of all rows


@dataclass(frozen=True)
class Splits:
    """Rows in the order of the file. `said`: sentences to print, with the counts."""

    train: Sequence[Conversation]
    validation: Sequence[Conversation]
    test: Sequence[Conversation]
    said: list[str]


def prompt_key(conversation: Conversation) -> str:
    """What two rows have in common when they ask the same: the turns before the answer (raw text: the text), less case and spacing."""
    return "\x1e".join(f"{message.role}\x1f{plain(_said_in(message))}" for message in conversation.prompt or conversation.messages)


def prompt_text(conversation: Conversation) -> str:
    """What is compared to find near copies: the contents of the same turns."""
    return "\n".join(_said_in(message) for message in conversation.prompt or conversation.messages)


def all_that_is_said(conversation: Conversation) -> str:
    """What two rows have in common that are duplicates: every turn with all that is known of it, and the tools, whatever the order of their keys."""
    messages = conversation.messages
    if not conversation.tools and all(map(_is_plain, messages)):
        return "".join([f"{message.role}{'+' if message.trained else '-'}{len(message.content)}:{message.content}" for message in messages])
    return json.dumps([[vars(message) for message in messages], conversation.tools], sort_keys=True, default=vars)


def _is_plain(message: Message) -> bool:
    """Role, content and whether it is trained are all there is to know of it."""
    return message.thinking is None and not message.tool_calls and message.name is None and message.call_id is None


def _said_in(message: Message) -> str:
    return "\n".join([message.content, *(f"{call.name} {call.arguments}" for call in message.tool_calls)])


def split(
    conversations: Sequence[Conversation],
    *,
    validation: float | None,
    test: float | None,
    seed: int,
    stratify: bool,
    near: float | None = None,
    group_by: str | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Splits:
    """Cut rows into training, validation and test rows.

    validation, test   shares of the rows, above 0 and together below 1; None: no such split
    seed               another seed, another draw
    stratify           keep the proportions of the answers, where these are labels
    near               similarity from which prompts are near copies and stay together; None: only equal ones do
    group_by           a column; rows with one value stay together, rows without a value are free
    on_progress        of the search for near copies, which takes time: told how many rows are done
    Every row is in exactly one split. Raises BadInput where a split that is asked for would be empty, and where no row has the column.
    """
    shares = {"test": test or 0.0, "validation": validation or 0.0}
    if sum(shares.values()) >= 1 or min(shares.values()) < 0:
        raise BadInput(
            f"validation {shares['validation']:g} and test {shares['test']:g} leave nothing to train on",
            where="data.validation, data.test", fix="shares that sum to less than 1, such as 0.1 and 0.2",
        )  # fmt: skip
    if not any(shares.values()):
        return Splits(conversations, [], [], [])
    facts = _facts(conversations, seed, group_by)
    labels = facts.labels() if stratify else None
    first, said = _together(conversations, facts, near, group_by, on_progress)
    groups = _groups(facts, first, by_label=labels is not None)
    # shares are of all rows, not of those that an earlier draw left
    targets = np.bincount(groups.stratum, groups.n_rows, minlength=groups.n_strata)
    place_of = np.zeros(len(groups.n_rows), np.int8)
    for number, share in enumerate(shares.values(), 1):
        place_of[_draw(groups, np.flatnonzero(place_of == 0), share * targets)] = number
    place = place_of[groups.of_row]
    rows = {name: np.flatnonzero(place == number) for number, name in enumerate(("train", *shares))}
    wanted = [name for name in ("train", "validation", "test") if name == "train" or shares[name]]
    for name in ("train", *(name for name, share in shares.items() if share)):
        if not len(rows[name]):
            raise _empty(name, shares, facts, len(groups.n_rows), group_by)
    sentence = "split: " + ", ".join(f"{len(rows[name]):,} {name}" for name in wanted) + " rows"
    if labels is not None:
        sentence += _proportions(labels, {name: Counter(facts.label[rows[name]].tolist()) for name in wanted}, facts.label_names)
    train, held, measured = (picked(conversations, rows[name]) for name in ("train", "validation", "test"))
    return Splits(train, held, measured, [sentence, *said])


def drop_duplicates(conversations: Sequence[Conversation]) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
    """The rows that say something new (every turn counts, to the letter, and the tools) and the later rows equal to one of them."""
    first = first_copies(conversations)
    own = first == np.arange(len(first))
    return picked(conversations, np.flatnonzero(own)), picked(conversations, np.flatnonzero(~own))


def first_copies(conversations: Sequence[Conversation]) -> Places:
    """For each row the place of the first that equals it in every turn, to the letter, and in its tools."""
    return first_equal(digests(map(all_that_is_said, conversations)))


@dataclass(frozen=True)
class Overlap:
    """Rows that are no copies of held-out ones, those that are, and a sentence about the second ("" where there are none)."""

    kept: Sequence[Conversation]
    removed: Sequence[Conversation]
    said: str


def remove_overlap(
    rows: Sequence[Conversation],
    held_out: Sequence[Conversation],
    *,
    name: str = "train",
    near: float | None = None,
    group_by: str | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Overlap:
    """Leave out the rows that ask what a held-out row asks, ask nearly that, or share its value of the column.

    name                         what the rows are called in the sentence
    near, group_by, on_progress  as of `split`
    An equal prompt is enough, whatever the answer: the figure on held-out rows is meant for questions not seen.
    """
    if not rows or not held_out:
        return Overlap(rows, [], "")
    twin = where_found(digests(map(prompt_key, rows)), digests(map(prompt_key, held_out)))  # the held-out row that a row is a copy of
    why: dict[str, int] = {}

    def found(places: Places, reason: str) -> None:
        new = (twin < 0) & (places >= 0)
        twin[new] = places[new]
        if new.any():
            why[reason] = int(new.sum())

    if near is not None:
        copies = matches(Mapped(prompt_text, rows), Mapped(prompt_text, held_out), near, on_progress)
        found(np.fromiter((-1 if copy is None else copy for copy in copies), np.int64, len(rows)), "near copies of a prompt")
    if group_by is not None:
        other, one = (_value_digests(part, group_by) for part in (held_out, rows))
        found(np.where(one.any(axis=1), where_found(one, other), -1), f"of the same {group_by}")
    removed = np.flatnonzero(twin >= 0)
    if not len(removed):
        return Overlap(rows, [], "")
    first = int(removed[0])
    said = (
        f"{counted(len(removed), 'row')} of {name} removed because the held-out rows contain them; "
        f"the first: {rows[first].source}, see {held_out[int(twin[first])].source}"
    )
    if why:
        said += f" ({', '.join(f'{reason}: {n:,}' for reason, n in why.items())})"
    return Overlap(picked(rows, np.flatnonzero(twin < 0)), picked(rows, removed), said)


# --- what is compared ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Facts:
    """What a split needs to know of each row.

    prompt   digest of its prompt key; equal prompts, equal digests
    value    of its value of the column; (0, 0) without one
    order    of the seed and the prompt, or the value: its place in the draw
    label    number of its answer among `label_names`; -1 from where there are too many to be labels
    task     number of its task among `tasks`
    """

    prompt: Digests
    value: Digests | None
    order: Digests
    label: NDArray[np.int32]
    label_names: list[str | None]
    task: NDArray[np.int32]
    tasks: list[str]

    def labels(self) -> list[str] | None:
        """The answers, most frequent first, if they are labels."""
        names = self.label_names
        few = 1 < len(names) <= MAX_LABELS and len(self.label) >= MIN_ROWS_PER_LABEL * len(names)
        if not few or not all(name is not None and len(name) <= MAX_LABEL_CHARACTERS for name in names):
            return None
        counts = np.bincount(self.label, minlength=len(names)).tolist()
        return [name for name, _ in sorted(zip(names, counts, strict=True), key=lambda item: (-item[1], item[0] or "")) if name is not None]


def _facts(conversations: Sequence[Conversation], seed: int, group_by: str | None) -> _Facts:
    prompt, order = bytearray(), bytearray()
    labels: dict[str | None, int] = {}
    tasks: dict[str, int] = {}
    label, task = array("i"), array("i")
    values = None if group_by is None else _value_digests(conversations, group_by)
    for place, row in enumerate(conversations):
        key = prompt_key(row)
        prompt += digest(key)
        name = key if values is None or not values[place].any() else f"\x1c{_value(row, group_by or '')}"
        order += digest(f"{seed}\x1d{name}")
        label.append(labels.setdefault(_label(row), len(labels)) if len(labels) <= MAX_LABELS else -1)
        task.append(tasks.setdefault(row.task, len(tasks)))
    return _Facts(
        as_numbers(prompt), values, as_numbers(order), np.array(label, np.int32), list(labels), np.array(task, np.int32), list(tasks)
    )


def _label(conversation: Conversation) -> str | None:
    return None if not conversation.prompt else conversation.answer


def _value(row: Conversation, column: str) -> str:
    """A row's value of a column as text; "" where it is absent, null or blank."""
    value = row.fields.get(column)
    return "" if value is None else str(value).strip()


def _value_digests(conversations: Sequence[Conversation], column: str) -> Digests:
    """Of each row's value of a column; (0, 0) where it has none."""
    found, is_there = bytearray(), False
    for row in conversations:
        is_there = is_there or row.fields.get(column) is not None
        value = _value(row, column)
        found += digest(value) if value else bytes(16)
    if not is_there:
        columns = list(dict.fromkeys(name for row in conversations for name in row.fields))
        file = conversations[0].source.rpartition(":")[0] if conversations else ""
        raise BadInput(
            f'no row has the column "{column}"', where=f"data.group_by, {file}",
            fix=nearest(column, columns) if columns else "leave it out: rows of this format have no columns",
        )  # fmt: skip
    return as_numbers(found)


# --- what stays together ------------------------------------------------------------------------------------------------------


def _together(
    conversations: Sequence[Conversation],
    facts: _Facts,
    near: float | None,
    group_by: str | None,
    on_progress: Callable[[int], None] | None,
) -> tuple[Places, list[str]]:
    """For each row the place of the first one that it stays with, and what is to be said of it."""
    said: list[str] = []
    same_prompt = first_equal(facts.prompt)
    relations = [same_prompt]
    if (n_copies := int((same_prompt != np.arange(len(same_prompt))).sum())) > 0:
        said.append(f"split: {counted(n_copies, 'row')} with the prompt of another row; each stays with it in one split")
    if near is not None:
        cluster_of = np.array(clusters(Mapped(prompt_text, conversations), near, on_progress), np.int64)
        relations.append(cluster_of)
        said += _near_copies(conversations, same_prompt, cluster_of, near)
    if facts.value is not None:
        same_value, has_none = first_equal(facts.value), ~facts.value.any(axis=1)
        relations.append(np.where(has_none, np.arange(len(same_value)), same_value))
        n_without = int(has_none.sum())
        said.append(f"split: {counted(len(np.unique(same_value[~has_none])), 'value')} of {group_by}; rows with the same one stay together")
        if n_without:
            without = conversations[int(np.argmax(has_none))].source
            said[-1] += f"; {counted(n_without, 'row')} without one, each by itself, the first: {without}"
    return _united(relations), said


def _near_copies(conversations: Sequence[Conversation], same_prompt: Places, cluster_of: Places, near: float) -> list[str]:
    """How many different prompts are near copies of an earlier one, in how many clusters, the largest, an example."""
    prompts = np.flatnonzero(same_prompt == np.arange(len(same_prompt)))  # the first row of each; equal prompts are in one cluster
    n_prompts = np.bincount(cluster_of[prompts], minlength=len(cluster_of))
    several = n_prompts > 1
    if not several.any():
        return []
    n_rows = np.where(several, np.bincount(cluster_of, minlength=len(cluster_of)), 0)
    largest = int(np.argmax(n_rows))
    one, other = (conversations[int(place)].source for place in prompts[cluster_of[prompts] == largest][:2])
    said = (
        f"split: {counted(int((n_prompts[several] - 1).sum()), 'row')} more with nearly the prompt of another (data.near_duplicates: {near:g}), "
        f"which stay with it: {counted(int(several.sum()), 'cluster')}, the largest of {int(n_rows[largest]):,} rows, such as {one} and {other}"
    )
    if n_rows[largest] > LARGE_CLUSTER * len(cluster_of):
        said += "; if these ask different things, a data.near_duplicates nearer to 1, or off, sets them free"
    return [said]


def _united(relations: Sequence[Places]) -> Places:
    """For each row the place of the first one that it is joined with: in one relation or, through other rows, in several.

    relations   for each row the place of the first one that is alike
    """
    first = np.arange(len(relations[0]))
    while True:
        before = first
        for alike in relations:
            least = first.copy()  # of all that are alike, at the place of the first of them
            np.minimum.at(least, alike, first)
            first = least[alike]
        first = first[first]
        if np.array_equal(first, before):
            return first


# --- the draw -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Groups:
    """Rows that stay together, groups in the order of the draw: for each how many rows it has and which stratum it counts with.

    of_row     the group of each row
    n_strata   numbered in the order of their names
    """

    n_rows: Places
    stratum: Places
    of_row: Places
    n_strata: int


def _groups(facts: _Facts, first: Places, by_label: bool) -> _Groups:
    """A group with several answers counts with its most frequent one; each task of a mixture gives its share, as each label does.

    Its place in the draw is that of its member that comes first: so a group stays where it is when it grows, but for once in a while.
    """
    by_group = np.lexsort((facts.order[:, 1], facts.order[:, 0], first))
    begins = np.flatnonzero(np.diff(first[by_group], prepend=-1))
    order = ranked(facts.order[by_group[begins]])
    rank = np.empty(len(order), np.int64)  # of the groups, which are numbered as their first rows come
    rank[order] = np.arange(len(order))
    of_row = rank[np.searchsorted(first[by_group[begins]], first)]
    names = [
        f"{task}\x1d{(label or '') if by_label else ''}" for task in facts.tasks for label in (facts.label_names if by_label else [""])
    ]
    number = {name: n for n, name in enumerate(sorted(set(names)))}
    n_labels = len(facts.label_names) if by_label else 1
    of_names = np.array([number[name] for name in names], np.int64)
    stratum_of_row = of_names[facts.task.astype(np.int64) * n_labels + (facts.label if by_label else 0)]
    pairs, n_pairs = np.unique(of_row * len(number) + stratum_of_row, return_counts=True)
    best = np.lexsort((pairs % len(number), -n_pairs, pairs // len(number)))  # of each group the most frequent, then the first by name
    stratum = (pairs % len(number))[best[np.flatnonzero(np.diff(pairs[best] // len(number), prepend=-1))]]
    return _Groups(np.bincount(of_row, minlength=len(order)), stratum, of_row, len(number))


def _draw(groups: _Groups, free: Places, targets: NDArray[np.floating[Any]]) -> list[int]:
    """Whole groups, in the order of the draw, whose rows come as near as possible to the target of each stratum, in rows.

    free   groups that no earlier draw took
    What one stratum gets too much or too little is carried to the next, so that the total is near its target too; a group that
    would overshoot is passed over for smaller ones.
    """
    taken: list[int] = []
    carried = 0.0
    strata = groups.stratum[free]
    for stratum in range(groups.n_strata):
        missing = float(targets[stratum]) + carried
        own = free[strata == stratum]
        for group, n_rows in zip(own.tolist(), groups.n_rows[own].tolist(), strict=True):
            if missing <= 0:
                break
            if abs(missing - n_rows) <= missing:
                taken.append(group)
                missing -= n_rows
        carried = missing
    return taken


# --- in words -----------------------------------------------------------------------------------------------------------------


def _proportions(labels: list[str], rows: dict[str, Counter[int]], names: Sequence[str | None]) -> str:
    """Whether the splits have the labels in the same proportions; if groups did not allow it, the label for which they differ most."""
    counts = {part: {label: own[names.index(label)] for label in labels} for part, own in rows.items()}
    n_rows = {part: own.total() for part, own in rows.items()}
    n_all = sum(n_rows.values())
    off = {
        label: max(abs(counts[part][label] - n * sum(c[label] for c in counts.values()) / n_all) for part, n in n_rows.items())
        for label in labels
    }
    worst = max(reversed(labels), key=lambda label: round(off[label], 6))  # of two that are as far off the rarer one
    if off[worst] <= 1 + SAME_PROPORTION * n_all:
        return f", each with the same proportions of {_listed(labels)}"
    shares = ", ".join(f"{counts[part][worst] / n:.1%} of {part}" for part, n in n_rows.items())
    return f"; what stays together mixes labels, so that {worst} is {shares}"


def _empty(name: str, shares: dict[str, float], facts: _Facts, n_groups: int, group_by: str | None) -> BadInput:
    n_rows, n_prompts = len(facts.prompt), len(np.unique(first_equal(facts.prompt)))
    where = f"{n_rows:,} {'row' if n_rows == 1 else 'rows'} with {n_prompts:,} different {'prompt' if n_prompts == 1 else 'prompts'}"
    asked = ", ".join(f"data.{key}: {share:g}" for key, share in shares.items() if share)
    if n_groups < n_prompts:
        where += f" in {n_groups:,} {'group' if n_groups == 1 else 'groups'} that stay together"
    smallest = min(share for share in (*shares.values(), 1 - sum(shares.values())) if share > 0)
    if n_prompts == 1 < n_rows:
        fix = "rows with one prompt stay together: put a column that differs into data.prompt, or give the split as a file"
    elif n_groups < min(n_prompts, ceil(1 / smallest)):
        why = f"one {group_by} or nearly one prompt" if group_by else "nearly one prompt"
        fix = f"rows with {why} stay together; if they ask different things: data.near_duplicates: off"
        fix += ", or another data.group_by" if group_by else ""
    else:
        needed = max(ceil(1 / smallest), n_prompts + 1)
        fix = f"add rows (these shares need about {needed:,}), take other shares, or give the split as a file"
    return BadInput(f"the {name} split would be empty", where=f"{where}; {asked}", fix=fix)


def _listed(labels: list[str]) -> str:
    return ", ".join(labels[:5]) + (f" and {len(labels) - 5} more labels" if len(labels) > 5 else "")
