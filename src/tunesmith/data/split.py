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

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil

from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.similar import clusters, matches, plain
from tunesmith.errors import BadInput, nearest
from tunesmith.progress import counted

# Answers are labels if there are few, short and repeated ones.
MAX_LABELS, MAX_LABEL_CHARACTERS, MIN_ROWS_PER_LABEL = 50, 40, 5
SAME_PROPORTION = 0.005  # of all rows: how far a split's count of a label may be off and still be called the same
LARGE_CLUSTER = 0.1  # of all rows


@dataclass(frozen=True)
class Splits:
    """Rows in the order of the file. `said`: sentences to print, with the counts."""

    train: list[Conversation]
    validation: list[Conversation]
    test: list[Conversation]
    said: list[str]


@dataclass(frozen=True)
class _Group:
    """Rows that stay together. `order`: their place in the draw; `rows`: their places in the file."""

    order: bytes
    stratum: str
    rows: list[int]


def prompt_key(conversation: Conversation) -> str:
    """What two rows have in common when they ask the same: the turns before the answer (raw text: the text), less case and spacing."""
    return "\x1e".join(f"{message.role}\x1f{plain(_said_in(message))}" for message in conversation.prompt or conversation.messages)


def prompt_text(conversation: Conversation) -> str:
    """What is compared to find near copies: the contents of the same turns."""
    return "\n".join(_said_in(message) for message in conversation.prompt or conversation.messages)


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
        return Splits(list(conversations), [], [], [])
    labels = _labels(conversations) if stratify else None
    together = _together(conversations, near, group_by, on_progress)
    groups = _groups(conversations, together, seed, by_label=labels is not None)
    place = ["train"] * len(conversations)
    left = groups
    for name, share in shares.items():
        targets = Counter[str]()
        for group in groups:  # shares are of all rows, not of those that an earlier draw left
            targets[group.stratum] += len(group.rows)
        taken = _draw(left, {stratum: share * n_rows for stratum, n_rows in targets.items()})
        for group in taken:
            for row in group.rows:
                place[row] = name
        drawn = {group.order for group in taken}
        left = [group for group in left if group.order not in drawn]
    rows = {name: [c for c, where in zip(conversations, place) if where == name] for name in ("train", "validation", "test")}
    for name in ("train", *(name for name, share in shares.items() if share)):
        if not rows[name]:
            raise _empty(name, shares, conversations, groups, group_by)
    wanted = [name for name in ("train", "validation", "test") if name == "train" or shares[name]]
    sentence = "split: " + ", ".join(f"{len(rows[name]):,} {name}" for name in wanted) + " rows"
    if labels is not None:
        sentence += _proportions(labels, {name: rows[name] for name in wanted})
    return Splits(rows["train"], rows["validation"], rows["test"], [sentence, *together.said])


def drop_duplicates(conversations: Iterable[Conversation]) -> tuple[list[Conversation], list[Conversation]]:
    """The rows that say something new (every turn counts, to the letter) and the later rows equal to one of them."""
    kept: list[Conversation] = []
    dropped: list[Conversation] = []
    seen: set[object] = set()
    for conversation in conversations:
        (dropped if conversation.messages in seen else kept).append(conversation)
        seen.add(conversation.messages)
    return kept, dropped


@dataclass(frozen=True)
class Overlap:
    """Rows that are no copies of held-out ones, those that are, and a sentence about the second ("" where there are none)."""

    kept: list[Conversation]
    removed: list[Conversation]
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
        return Overlap(list(rows), [], "")
    twin: dict[int, Conversation] = {}  # the held-out row that a row is a copy of
    why = Counter[str]()

    def found(pairs: Iterable[tuple[int, Conversation | None]], reason: str) -> None:
        for place, other in pairs:
            if other is not None and place not in twin:
                twin[place] = other
                why[reason] += 1

    asked = {prompt_key(conversation): conversation for conversation in reversed(held_out)}
    found(((place, asked.get(prompt_key(row))) for place, row in enumerate(rows)), "")
    if near is not None:
        copies = matches([prompt_text(row) for row in rows], [prompt_text(other) for other in held_out], near, on_progress)
        found(((place, None if other is None else held_out[other]) for place, other in enumerate(copies)), "near copies of a prompt")
    if group_by is not None:
        same = dict(zip(reversed(_values(held_out, group_by)), reversed(held_out)))
        values = _values(rows, group_by)
        found(((place, None if value is None else same.get(value)) for place, value in enumerate(values)), f"of the same {group_by}")
    if not twin:
        return Overlap(list(rows), [], "")
    first = min(twin)
    said = f"{counted(len(twin), 'row')} of {name} removed because the held-out rows contain them; the first: {rows[first].source}, see {twin[first].source}"
    if reasons := [f"{reason}: {n:,}" for reason, n in why.items() if reason]:
        said += f" ({', '.join(reasons)})"
    kept = [row for place, row in enumerate(rows) if place not in twin]
    return Overlap(kept, [rows[place] for place in sorted(twin)], said)


def _labels(conversations: Sequence[Conversation]) -> list[str] | None:
    """The answers, most frequent first, if they are labels."""
    answers = Counter(_label(conversation) for conversation in conversations)
    few = 1 < len(answers) <= MAX_LABELS and len(conversations) >= MIN_ROWS_PER_LABEL * len(answers)
    short = all(answer is not None and len(answer) <= MAX_LABEL_CHARACTERS for answer in answers)
    if not (few and short):
        return None
    return [answer for answer, _ in sorted(answers.items(), key=lambda item: (-item[1], item[0] or "")) if answer is not None]


def _label(conversation: Conversation) -> str | None:
    return None if not conversation.prompt else conversation.answer


@dataclass(frozen=True)
class _Together:
    """What stays together: for each row the place of the first row of its group, and what the group's place in the draw follows from."""

    first: list[int]
    names: list[str]
    said: list[str]


def _together(
    conversations: Sequence[Conversation], near: float | None, group_by: str | None, on_progress: Callable[[int], None] | None
) -> _Together:
    keys = [prompt_key(conversation) for conversation in conversations]
    said: list[str] = []
    relations: list[Sequence[Hashable]] = [keys]
    if (n_copies := len(keys) - len(set(keys))) > 0:
        said.append(f"split: {counted(n_copies, 'row')} with the prompt of another row; each stays with it in one split")
    if near is not None:
        cluster_of = clusters([prompt_text(conversation) for conversation in conversations], near, on_progress)
        relations.append(cluster_of)
        said += _near_copies(conversations, keys, cluster_of, near)
    names = keys
    if group_by is not None:
        values = _values(conversations, group_by)
        relations.append(values)
        names = [key if value is None else f"\x1c{value}" for key, value in zip(keys, values)]
        n_values, n_without = len({value for value in values if value is not None}), values.count(None)
        said.append(f"split: {counted(n_values, 'value')} of {group_by}; rows with the same one stay together")
        if n_without:
            first = conversations[values.index(None)].source
            said[-1] += f"; {counted(n_without, 'row')} without one, each by itself, the first: {first}"
    return _Together(_united(relations, len(keys)), names, said)


def _near_copies(conversations: Sequence[Conversation], keys: Sequence[str], cluster_of: Sequence[int], near: float) -> list[str]:
    """How many different prompts are near copies of an earlier one, in how many clusters, the largest, an example."""
    members: defaultdict[int, dict[str, int]] = defaultdict(dict)  # cluster → prompt → a row that has it
    for place, (key, cluster) in enumerate(zip(keys, cluster_of)):
        members[cluster].setdefault(key, place)
    several = {cluster: prompts for cluster, prompts in members.items() if len(prompts) > 1}
    if not several:
        return []
    n_rows = Counter(cluster for cluster in cluster_of if cluster in several)
    largest = max(several, key=lambda cluster: n_rows[cluster])
    one, other = [conversations[place].source for place in several[largest].values()][:2]
    n_more = sum(len(prompts) - 1 for prompts in several.values())
    said = (
        f"split: {counted(n_more, 'row')} more with nearly the prompt of another (data.near_duplicates: {near:g}), which stay with it: "
        f"{counted(len(several), 'cluster')}, the largest of {n_rows[largest]:,} rows, such as {one} and {other}"
    )
    if n_rows[largest] > LARGE_CLUSTER * len(keys):
        said += "; if these ask different things, a data.near_duplicates nearer to 1, or off, sets them free"
    return [said]


def _values(conversations: Sequence[Conversation], column: str) -> list[str | None]:
    """Each row's value of a column as text; None where it is absent, null or blank."""
    values = [conversation.fields.get(column) for conversation in conversations]
    if all(value is None for value in values):
        columns = list(dict.fromkeys(name for conversation in conversations for name in conversation.fields))
        file = conversations[0].source.rpartition(":")[0] if conversations else ""
        raise BadInput(
            f'no row has the column "{column}"', where=f"data.group_by, {file}",
            fix=nearest(column, columns) if columns else "leave it out: rows of this format have no columns",
        )  # fmt: skip
    return [str(value).strip() or None if value is not None else None for value in values]


def _united(relations: Sequence[Sequence[Hashable]], n_rows: int) -> list[int]:
    """For each row the place of the first one it is joined with: rows that are alike in a relation (None: like none), and so on from row to row."""
    above = list(range(n_rows))

    def root(place: int) -> int:
        while above[place] != place:
            above[place] = place = above[above[place]]
        return place

    for relation in relations:
        first: dict[Hashable, int] = {}
        for place, value in enumerate(relation):
            if value is not None:
                one, other = sorted((root(first.setdefault(value, place)), root(place)))
                above[other] = one
    return [root(place) for place in range(n_rows)]


def _groups(conversations: Sequence[Conversation], together: _Together, seed: int, by_label: bool) -> list[_Group]:
    """Rows that stay together, in the order of the draw. A group with several answers counts with its most frequent one.

    Its place in the draw is that of its member that comes first: so a group stays where it is when it grows, but for once in a while.
    """
    rows: defaultdict[int, list[int]] = defaultdict(list)
    for index, first in enumerate(together.first):
        rows[first].append(index)
    groups: list[_Group] = []
    for indices in rows.values():
        names = {together.names[index] for index in indices}
        order = min(blake2b(f"{seed}\x1d{name}".encode(), digest_size=16).digest() for name in names)
        own = [conversations[index] for index in indices]  # each task of a mixture gives its share, as each label does
        answers = Counter(f"{row.task}\x1d{(_label(row) or '') if by_label else ''}" for row in own)
        stratum = min(answers, key=lambda answer: (-answers[answer], answer))
        groups.append(_Group(order, stratum, indices))
    return sorted(groups, key=lambda group: group.order)


def _draw(groups: list[_Group], targets: dict[str, float]) -> list[_Group]:
    """Whole groups, in the order of the draw, whose rows come as near as possible to the target of each stratum, in rows.

    What one stratum gets too much or too little is carried to the next, so that the total is near its target too; a group that
    would overshoot is passed over for smaller ones.
    """
    by_stratum: defaultdict[str, list[_Group]] = defaultdict(list)
    for group in groups:
        by_stratum[group.stratum].append(group)
    taken: list[_Group] = []
    carried = 0.0
    for stratum in sorted(targets):
        missing = targets[stratum] + carried
        for group in by_stratum[stratum]:
            if abs(missing - len(group.rows)) <= abs(missing) and missing > 0:
                taken.append(group)
                missing -= len(group.rows)
        carried = missing
    return taken


def _proportions(labels: list[str], rows: dict[str, list[Conversation]]) -> str:
    """Whether the splits have the labels in the same proportions; if groups did not allow it, the label for which they differ most."""
    n_all = sum(map(len, rows.values()))
    counts = {name: Counter(_label(row) for row in part) for name, part in rows.items()}
    off = {
        label: max(abs(counts[name][label] - len(part) * sum(c[label] for c in counts.values()) / n_all) for name, part in rows.items())
        for label in labels
    }
    worst = max(reversed(labels), key=lambda label: round(off[label], 6))  # of two that are as far off the rarer one
    if off[worst] <= 1 + SAME_PROPORTION * n_all:
        return f", each with the same proportions of {_listed(labels)}"
    shares = ", ".join(f"{counts[name][worst] / len(part):.1%} of {name}" for name, part in rows.items())
    return f"; what stays together mixes labels, so that {worst} is {shares}"


def _empty(
    name: str, shares: dict[str, float], conversations: Sequence[Conversation], groups: Sequence[_Group], group_by: str | None
) -> BadInput:
    n_rows, n_prompts = len(conversations), len({prompt_key(conversation) for conversation in conversations})
    where = f"{n_rows:,} {'row' if n_rows == 1 else 'rows'} with {n_prompts:,} different {'prompt' if n_prompts == 1 else 'prompts'}"
    asked = ", ".join(f"data.{key}: {share:g}" for key, share in shares.items() if share)
    if len(groups) < n_prompts:
        where += f" in {len(groups):,} {'group' if len(groups) == 1 else 'groups'} that stay together"
    smallest = min(share for share in (*shares.values(), 1 - sum(shares.values())) if share > 0)
    if n_prompts == 1 < n_rows:
        fix = "rows with one prompt stay together: put a column that differs into data.prompt, or give the split as a file"
    elif len(groups) < min(n_prompts, ceil(1 / smallest)):
        why = f"one {group_by} or nearly one prompt" if group_by else "nearly one prompt"
        fix = f"rows with {why} stay together; if they ask different things: data.near_duplicates: off"
        fix += ", or another data.group_by" if group_by else ""
    else:
        needed = max(ceil(1 / smallest), n_prompts + 1)
        fix = f"add rows (these shares need about {needed:,}), take other shares, or give the split as a file"
    return BadInput(f"the {name} split would be empty", where=f"{where}; {asked}", fix=fix)


def _listed(labels: list[str]) -> str:
    return ", ".join(labels[:5]) + (f" and {len(labels) - 5} more labels" if len(labels) > 5 else "")
