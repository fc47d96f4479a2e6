"""From files to rows ready for training: read, de-duplicate, split, render, fit; everything that was left out is counted.

    parts = load_parts(run.data)                              # conversations for training, validation and test
    rows = load_rows(parts, run.data, max_length=512, renderer=renderer)
    rows.train                                                # Sequence[Example]
    rows.said, rows.counts                                    # what to print, what to keep

No model is needed for the first step, so a wrong path is found before one is loaded. Of many rows neither conversations nor
examples are in memory (spool.py, stored.py): what is kept of a row while it is compared, split and rendered are some 300 bytes.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tunesmith.config import DataConfig, first_path
from tunesmith.data.batches import fitting, windows
from tunesmith.data.conversation import Conversation, has_thinking
from tunesmith.data.mixture import by_task, mix, repeated, table
from tunesmith.data.readers import listed
from tunesmith.data.sources import Part, read_part, spread_phrasings
from tunesmith.data.split import drop_duplicates, remove_overlap, split
from tunesmith.data.spool import joined, picked
from tunesmith.data.stored import GatheredExamples
from tunesmith.data.template import Example, Renderer
from tunesmith.errors import BadInput, nearest
from tunesmith.progress import Bar, counted, progress, upto

THINKING = {
    "keep": "learned as the beginning of the answer",
    "strip": "left out, the answer is learned without it",
    "untrained": "the model sees it before the answer and does not learn it",
}
GIANT_LENGTHS, GIANT_CHARACTERS = 100, 1_000_000  # times training.max_length; of a row


@dataclass(frozen=True)
class Parts:
    """Conversations of each use, before any token."""

    train: Sequence[Conversation]
    validation: Sequence[Conversation]
    test: Sequence[Conversation]
    said: list[str]
    counts: dict[str, int]
    files: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Rows:
    """Examples in memory, or on disk (stored.py)."""

    train: Sequence[Example]
    validation: Sequence[Example]
    said: list[str]
    counts: dict[str, int]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)


def load_parts(config: DataConfig) -> Parts:
    """Read and split: nothing straddles two parts, and each part is a file of its own or a share of the training file."""
    said: list[str] = []
    counts = {"read": 0, "skipped": 0, "duplicates_dropped": 0, "overlap_removed": 0}
    files: dict[str, dict[str, Any]] = {}

    def read(name: str) -> Part:
        found = read_part(config, name)
        said.extend(found.said)
        counts["read"] += found.n_rows
        counts["skipped"] += len(found.skipped)
        if found.n_limited:
            counts["left_out_by_limit"] = counts.get("left_out_by_limit", 0) + found.n_limited
        files.update(found.files)
        return found

    part = read("train")
    train, held_out = _without_tasks(part, config.held_out)
    if config.duplicates == "drop":
        train, dropped = drop_duplicates(train)
        counts["duplicates_dropped"] = len(dropped)
        said.append(f"{len(dropped):,} rows equal to an earlier one dropped; {len(train):,} left")
    shares = {kind: value for kind in ("validation", "test") if isinstance(value := getattr(config, kind), float)}
    held: dict[str, Sequence[Conversation]] = {"validation": [], "test": []}
    near = None if config.near_duplicates == "off" else config.near_duplicates
    seed = 0  # of the split: the same rows are held out whatever the seed of training
    if shares:
        with progress("looking for near copies" if near else "", len(train)) as bar:
            parts = split(
                train, validation=shares.get("validation"), test=shares.get("test"), seed=seed, stratify=config.stratify,
                near=near, group_by=config.group_by, on_progress=upto(bar),
            )  # fmt: skip
        train, held["validation"], held["test"] = parts.train, parts.validation, parts.test
        said.extend(parts.said)
    for kind in ("validation", "test"):
        if isinstance(getattr(config, kind), str | list):
            held[kind] = read(kind).conversations
    strangers = joined([[] if "test" in shares else held["test"], held_out])  # test rows that the split has not seen
    held["test"] = joined([held["test"], held_out])

    def apart(name: str, rows: Sequence[Conversation], others: Sequence[Conversation]) -> Sequence[Conversation]:
        if not others:
            return rows
        with progress(f"looking for held-out rows in {name}" if near else "", len(rows)) as bar:
            found = remove_overlap(rows, others, name=name, near=near, group_by=config.group_by, on_progress=upto(bar))
        counts["overlap_removed"] += len(found.removed)
        said.extend([found.said] if found.said else [])
        return found.kept

    # a share cannot overlap; a file can, with the training file and with the other one, and so can a held-out task
    held["validation"] = apart("validation", held["validation"], strangers if "validation" in shares else held["test"])
    train = apart("train", train, joined([[] if "validation" in shares else held["validation"], strangers]))
    if not train:
        held_by_file = counts["overlap_removed"] > 0
        raise BadInput(
            "every training row is also in the validation or test file" if held_by_file else "no row is left to train on",
            where=first_path(config), fix="give other rows to train on" if held_by_file else "smaller shares for validation and test, or more data",
        )  # fmt: skip
    train, words = spread_phrasings(train, part.sources)
    said.extend(words)
    weights = part.weights()
    if len(weights) > 1:
        train = _mixed(train, weights, config, counts, said)
    elif config.mixing != "proportional" or config.cap is not None or set(weights.values()) != {1.0}:
        key = "data.cap" if config.cap is not None else "the weight" if config.mixing == "proportional" else f"data.mixing: {config.mixing}"
        raise BadInput("there is one dataset, so nothing is mixed", where=key, fix="leave it out; data.limit trains on fewer rows")
    elif config.limit is not None and config.limit < len(train):
        n_all = len(train)
        train = split(train, validation=None, test=config.limit / n_all, seed=seed, stratify=config.stratify).test
        counts["left_out_by_limit"] = counts.get("left_out_by_limit", 0) + n_all - len(train)
        said.append(f"{len(train):,} of {n_all:,} training rows used (data.limit: {config.limit:,})")
    counts |= {"train": len(train), "validation": len(held["validation"]), "test": len(held["test"])}
    return Parts(train, held["validation"], held["test"], said, counts, files)


def _without_tasks(part: Part, names: Sequence[str]) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
    """The rows of the tasks that are trained on, and those of the held-out ones."""
    tasks = list(part.weights())
    if unknown := [name for name in names if name not in tasks]:
        fix = nearest(unknown[0], tasks) if len(tasks) > 1 else "data.train: several files, or a folder of them"
        raise BadInput(f'data.train has no task "{unknown[0]}" to hold out', where="data.held_out", fix=fix)
    if not names:
        return part.conversations, []
    held_out = np.fromiter((row.task in names for row in part.conversations), bool, len(part.conversations))
    kept = picked(part.conversations, np.flatnonzero(~held_out))
    if not kept:
        where = f"data.held_out: {listed(names)}"
        raise BadInput(
            "every task of data.train is held out, so no row is left to train on", where=where, fix="leave a task out of data.held_out"
        )
    return kept, picked(part.conversations, np.flatnonzero(held_out))


def _mixed(
    train: Sequence[Conversation], weights: dict[str, float], config: DataConfig, counts: dict[str, int], said: list[str]
) -> Sequence[Conversation]:
    """The rows of one epoch of several tasks, tasks in the order of data.train."""
    tasks = by_task(train)
    if gone := [task for task in weights if task not in tasks and task not in config.held_out]:
        raise BadInput(
            f'no row of the task "{gone[0]}" is left to train on', where=first_path(config),
            fix="give it more rows, or leave the task out of data.train",
        )  # fmt: skip
    n_rows = {task: len(tasks[task]) for task in weights if task in tasks}
    n_epoch = sum(min(n, config.cap or n) for n in n_rows.values())
    doses = mix(
        n_rows, weights=weights, mixing=config.mixing, temperature=config.temperature, cap=config.cap,
        n_epoch=min(n_epoch, config.limit or n_epoch),
    )  # fmt: skip
    rows = joined([repeated(tasks[dose.task], dose.n_seen) for dose in doses])
    if left_out := sum(max(0, dose.n_rows - dose.n_seen) for dose in doses):
        counts["left_out_by_mixing"] = left_out
    if again := sum(max(0, dose.n_seen - dose.n_rows) for dose in doses):
        counts["repeated_by_mixing"] = again
    words = [f"{counted(left_out, 'row')} left out" if left_out else "", f"{counted(again, 'row')} seen again" if again else ""]
    changed = "; ".join(word for word in words if word) or "every row once"
    said.append(f"mixture of {len(doses)} tasks, {config.mixing}: {len(rows):,} rows an epoch; {changed}")
    said.extend(table(doses))
    return rows


def _without_giants(
    conversations: Iterable[Conversation], renderer: Renderer, max_length: int, on_too_long: str, dropped: Callable[[str], None]
) -> Iterator[Conversation]:
    """Giant rows are treated before they are tokenised, which would cost gigabytes; `dropped` is told the sources of those left out.

    Rows that are merely too long are left to `fitting`, which counts them and knows the length that would do.
    """
    for conversation in conversations:
        n_characters = sum(len(message.content) for message in conversation.messages)
        least = renderer.least_tokens(conversation)
        if conversation.is_text or least <= max_length or (least <= GIANT_LENGTHS * max_length and n_characters <= GIANT_CHARACTERS):
            yield conversation
        elif on_too_long == "drop":
            dropped(conversation.source)
        elif on_too_long == "truncate":
            yield renderer.shortened(conversation, max_length)
        else:
            raise BadInput(
                f"an example is far longer than training.max_length = {max_length}",
                where=f"{conversation.source}: {n_characters:,} characters, so more than {least:,} tokens",
                fix='look at the row; data.on_too_long: "drop" or "truncate" lets the others train',
            )


@dataclass
class _Rendering:
    """Conversations on their way to examples: one pass, in which everything is counted that is said afterwards."""

    renderer: Renderer
    max_length: int
    on_too_long: str
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)  # the source of the first row of a kind

    def examples(self, name: str, conversations: Sequence[Conversation]) -> Sequence[Example]:
        made = GatheredExamples()
        with progress(f"rendering {name}", len(conversations)) as bar:
            cut = self._cut(_told(conversations, bar))
            for example in fitting(cut, self.max_length, self.on_too_long, self._note("dropped"), self._note("truncated")):
                self.counts["tokens"] += len(example)
                self.counts["trained"] += int(example.trained[1:].sum())
                made.append(example)
        return made.whole()

    def _note(self, kind: str) -> Callable[[str], None]:
        def note(source: str) -> None:
            self.counts[kind] += 1
            self.first.setdefault(kind, source)

        return note

    def _cut(self, conversations: Iterable[Conversation]) -> Iterator[Example]:
        """Every example; of raw text its windows."""
        are_text: deque[bool] = deque()  # of the rows that the renderer has taken and not given back

        def all_rows() -> Iterator[Conversation]:
            for conversation in conversations:
                self.counts["thinking"] += has_thinking(conversation)
                yield conversation

        def possible_rows() -> Iterator[Conversation]:
            for conversation in _without_giants(all_rows(), self.renderer, self.max_length, self.on_too_long, self._note("dropped")):
                are_text.append(conversation.is_text)
                yield conversation

        for result in self.renderer.attempt_many(possible_rows()):
            if isinstance(result, BadInput):
                raise result
            is_text = are_text.popleft()
            for example in result:
                pieces = windows(example, self.max_length) if is_text else [example]
                self.counts["rendered"] += 1
                self.counts["cut"] += len(pieces)
                yield from pieces


def _told(conversations: Iterable[Conversation], bar: Bar) -> Iterator[Conversation]:
    for n, conversation in enumerate(conversations, 1):
        yield conversation
        if n % 256 == 0:
            bar.advance(256)


def load_rows(parts: Parts, config: DataConfig, max_length: int, renderer: Renderer) -> Rows:
    """Conversations rendered to ids; the policy for long ones is applied to what is trained and validated on.

    Raw text has no answer that a cut could lose: it is cut into windows of `max_length` tokens, each token learned once.
    """
    said, counts = [*parts.said, renderer.describe()], dict(parts.counts)
    told: list[str] = []

    def examples(name: str, conversations: Sequence[Conversation]) -> tuple[Sequence[Example], Counter[str]]:
        rendering = _Rendering(renderer, max_length, config.on_too_long)
        made, found = rendering.examples(name, conversations), rendering.counts
        if found["cut"] > found["rendered"]:
            counts["text_windows"] = counts.get("text_windows", 0) + found["cut"]
            told.append(f"{found['rendered']:,} {name} texts cut into {found['cut']:,} windows of at most {max_length} tokens")
        for kind in ("dropped", "truncated"):
            if n := found[kind]:
                counts[f"too_long_{kind}"] = counts.get(f"too_long_{kind}", 0) + n
                told.append(f"{n:,} {name} examples longer than {max_length} tokens {kind}; the first: {rendering.first[kind]}")
        return made, found

    train, of_train = examples("training", parts.train)
    if n_thinking := of_train["thinking"]:
        said.append(f"{counted(n_thinking, 'training row')} with thinking: {THINKING[config.thinking]} (data.thinking: {config.thinking})")
    validation, _ = examples("validation", parts.validation) if parts.validation else ([], None)
    said += told
    if not train:
        raise BadInput("every example is longer than training.max_length", where=first_path(config), fix="raise training.max_length")
    if len(train) > len(parts.train) and "text_windows" not in counts:
        said.append(
            f"{len(parts.train):,} conversations became {len(train):,} examples: the template rewrites earlier turns, so each answer is its own example"
        )
    counts["trained_tokens_per_epoch"] = of_train["trained"]
    counts["tokens_per_epoch"] = of_train["tokens"]
    said.append(
        f"training on {counted(len(train), 'example')}, {counts['tokens_per_epoch']:,} tokens of which {counts['trained_tokens_per_epoch']:,} are learned; "
        f"validation {len(validation):,}, test {len(parts.test):,}"
    )
    return Rows(train, validation, said, counts, parts.files)
