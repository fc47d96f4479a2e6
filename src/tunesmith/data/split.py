"""Training, validation and test rows: the same rows always, and never one question in two places.

    splits = split(conversations, validation=0.1, test=0.2, seed=0, stratify=True)
    len(splits.train), len(splits.validation), len(splits.test)

Rows with one prompt (but for case and spacing) are a group, and a group goes to one split as a whole: a copied row on
both sides of a split makes any model look better than it is (403 of the 5,574 messages of the SMS Spam Collection are copies).
Which group goes where follows from a hash of the seed and the prompt, not from the order of the file, so that
shuffling or sorting a file changes nothing. The test rows are taken first: they do not depend on the validation share.
Where the answers are labels, each label gives its share.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil

from tunesmith.data.conversation import Conversation
from tunesmith.errors import BadInput

# Answers are labels if there are few, short and repeated ones.
MAX_LABELS, MAX_LABEL_CHARACTERS, MIN_ROWS_PER_LABEL = 50, 40, 5


@dataclass(frozen=True)
class Splits:
    """Rows in the order of the file. `said`: sentences to print, with the counts."""

    train: list[Conversation]
    validation: list[Conversation]
    test: list[Conversation]
    said: list[str]


@dataclass(frozen=True)
class _Group:
    """Rows that share a prompt. `order`: their place in the draw; `rows`: their places in the file."""

    order: bytes
    stratum: str
    rows: list[int]


def prompt_key(conversation: Conversation) -> str:
    """What two rows have in common when they ask the same: the turns before the answer (raw text: the text), less case and spacing."""
    messages = conversation.prompt or conversation.messages
    return "\x1e".join(f"{message.role}\x1f{' '.join(message.content.casefold().split())}" for message in messages)


def split(conversations: Sequence[Conversation], *, validation: float | None, test: float | None, seed: int, stratify: bool) -> Splits:
    """Cut rows into training, validation and test rows.

    validation, test   shares of the rows, above 0 and together below 1; None: no such split
    seed               another seed, another draw
    stratify           keep the proportions of the answers, where these are labels
    Every row is in exactly one split. Raises BadInput where a split that is asked for would be empty.
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
    groups = _groups(conversations, seed, by_label=labels is not None)
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
            raise _empty(name, shares, len(conversations), len(groups))
    wanted = [name for name in ("train", "validation", "test") if name == "train" or shares[name]]
    sentence = "split: " + ", ".join(f"{len(rows[name]):,} {name}" for name in wanted) + " rows"
    if labels is not None:
        sentence += f", each with the same proportions of {_listed(labels)}"
    said = [sentence]
    if len(groups) < len(conversations):
        said.append(f"split: {len(conversations) - len(groups):,} rows repeat the prompt of another row; each stays with it in one split")
    return Splits(rows["train"], rows["validation"], rows["test"], said)


def drop_duplicates(conversations: Iterable[Conversation]) -> tuple[list[Conversation], list[Conversation]]:
    """The rows that say something new (every turn counts, to the letter) and the later rows equal to one of them."""
    kept: list[Conversation] = []
    dropped: list[Conversation] = []
    seen: set[object] = set()
    for conversation in conversations:
        (dropped if conversation.messages in seen else kept).append(conversation)
        seen.add(conversation.messages)
    return kept, dropped


def remove_overlap(train: Iterable[Conversation], held_out: Iterable[Conversation]) -> tuple[list[Conversation], list[Conversation]]:
    """The training rows whose prompt (but for case and spacing) is not among the held-out ones, and those whose prompt is.

    An equal prompt is enough, whatever the answer: the figure on held-out rows is meant for questions not seen.
    """
    asked = {prompt_key(conversation) for conversation in held_out}
    kept: list[Conversation] = []
    removed: list[Conversation] = []
    for conversation in train:
        (removed if prompt_key(conversation) in asked else kept).append(conversation)
    return kept, removed


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


def _groups(conversations: Sequence[Conversation], seed: int, by_label: bool) -> list[_Group]:
    """Rows by prompt, in the order of the draw. A prompt with several answers counts with its most frequent one."""
    rows: defaultdict[bytes, list[int]] = defaultdict(list)
    for index, conversation in enumerate(conversations):
        rows[blake2b(f"{seed}\x1d{prompt_key(conversation)}".encode(), digest_size=16).digest()].append(index)
    groups: list[_Group] = []
    for order, indices in rows.items():
        answers = Counter((_label(conversations[index]) or "") if by_label else "" for index in indices)
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


def _empty(name: str, shares: dict[str, float], n_rows: int, n_prompts: int) -> BadInput:
    where = f"{n_rows:,} {'row' if n_rows == 1 else 'rows'} with {n_prompts:,} different {'prompt' if n_prompts == 1 else 'prompts'}"
    asked = ", ".join(f"data.{key}: {share:g}" for key, share in shares.items() if share)
    if n_prompts == 1 < n_rows:
        fix = "rows with one prompt stay together: put a column that differs into data.prompt, or give the split as a file"
    else:
        smallest = min(share for share in (*shares.values(), 1 - sum(shares.values())) if share > 0)
        needed = max(ceil(1 / smallest), n_prompts + 1)
        fix = f"add rows (these shares need about {needed:,}), take other shares, or give the split as a file"
    return BadInput(f"the {name} split would be empty", where=f"{where}; {asked}", fix=fix)


def _listed(labels: list[str]) -> str:
    return ", ".join(labels[:5]) + (f" and {len(labels) - 5} more labels" if len(labels) > 5 else "")
