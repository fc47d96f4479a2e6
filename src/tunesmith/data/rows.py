"""From files to rows ready for training: read, de-duplicate, split, render, fit; everything that was left out is counted.

    parts = load_parts(run.data)                              # conversations for training, validation and test
    rows = load_rows(parts, run.data, max_length=512, renderer=renderer)
    rows.train                                                # list[Example]
    rows.said, rows.counts                                    # what to print, what to keep

No model is needed for the first step, so a wrong path is found before one is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.config import DataConfig, first_path
from tunesmith.data.batches import Fitted, fit, render_all, windows
from tunesmith.data.conversation import Conversation, has_thinking
from tunesmith.data.mixture import by_task, mix, repeated, table
from tunesmith.data.readers import listed
from tunesmith.data.sources import Part, read_part, spread_phrasings
from tunesmith.data.split import drop_duplicates, remove_overlap, split
from tunesmith.data.template import Example, Renderer
from tunesmith.errors import BadInput, nearest
from tunesmith.progress import counted, progress, upto

THINKING = {
    "keep": "learned as the beginning of the answer",
    "strip": "left out, the answer is learned without it",
    "untrained": "the model sees it before the answer and does not learn it",
}
GIANT_LENGTHS, GIANT_CHARACTERS = 100, 1_000_000  # times training.max_length; of a row


@dataclass(frozen=True)
class Parts:
    """Conversations of each use, before any token."""

    train: list[Conversation]
    validation: list[Conversation]
    test: list[Conversation]
    said: list[str]
    counts: dict[str, int]
    files: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Rows:
    """Examples in memory, or on disk (data/cache.py)."""

    train: Sequence[Example]
    validation: Sequence[Example]
    test: list[Conversation]
    train_answers: list[str]
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
    held: dict[str, list[Conversation]] = {"validation": [], "test": []}
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
    strangers = [*(() if "test" in shares else held["test"]), *held_out]  # test rows that the split has not seen
    held["test"] = [*held["test"], *held_out]

    def apart(name: str, rows: list[Conversation], others: list[Conversation]) -> list[Conversation]:
        if not others:
            return rows
        with progress(f"looking for held-out rows in {name}" if near else "", len(rows)) as bar:
            found = remove_overlap(rows, others, name=name, near=near, group_by=config.group_by, on_progress=upto(bar))
        counts["overlap_removed"] += len(found.removed)
        said.extend([found.said] if found.said else [])
        return found.kept

    # a share cannot overlap; a file can, with the training file and with the other one, and so can a held-out task
    held["validation"] = apart("validation", held["validation"], strangers if "validation" in shares else held["test"])
    train = apart("train", train, [*(() if "validation" in shares else held["validation"]), *strangers])
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


def _without_tasks(part: Part, names: Sequence[str]) -> tuple[list[Conversation], list[Conversation]]:
    """The rows of the tasks that are trained on, and those of the held-out ones."""
    tasks = list(part.weights())
    if unknown := [name for name in names if name not in tasks]:
        fix = nearest(unknown[0], tasks) if len(tasks) > 1 else "data.train: several files, or a folder of them"
        raise BadInput(f'data.train has no task "{unknown[0]}" to hold out', where="data.held_out", fix=fix)
    kept = [row for row in part.conversations if row.task not in names]
    if names and not kept:
        where = f"data.held_out: {listed(names)}"
        raise BadInput(
            "every task of data.train is held out, so no row is left to train on", where=where, fix="leave a task out of data.held_out"
        )
    return kept, [row for row in part.conversations if row.task in names]


def _mixed(
    train: Sequence[Conversation], weights: dict[str, float], config: DataConfig, counts: dict[str, int], said: list[str]
) -> list[Conversation]:
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
    rows = [row for dose in doses for row in repeated(tasks[dose.task], dose.n_seen)]
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
    conversations: Sequence[Conversation], renderer: Renderer, max_length: int, on_too_long: str
) -> tuple[list[Conversation], list[str]]:
    """Giant rows are treated before they are tokenised, which would cost gigabytes; the second value is what was dropped.

    Rows that are merely too long are left to `fit`, which counts them and knows the length that would do.
    """
    kept, dropped = [], []
    for conversation in conversations:
        n_characters = sum(len(message.content) for message in conversation.messages)
        least = renderer.least_tokens(conversation)
        if conversation.is_text or least <= max_length or (least <= GIANT_LENGTHS * max_length and n_characters <= GIANT_CHARACTERS):
            kept.append(conversation)
        elif on_too_long == "drop":
            dropped.append(conversation.source)
        elif on_too_long == "truncate":
            kept.append(renderer.shortened(conversation, max_length))
        else:
            raise BadInput(
                f"an example is far longer than training.max_length = {max_length}",
                where=f"{conversation.source}: {n_characters:,} characters, so more than {least:,} tokens",
                fix='look at the row; data.on_too_long: "drop" or "truncate" lets the others train',
            )
    return kept, dropped


def load_rows(parts: Parts, config: DataConfig, max_length: int, renderer: Renderer) -> Rows:
    """Conversations rendered to ids; the policy for long ones is applied to what is trained and validated on.

    Raw text has no answer that a cut could lose: it is cut into windows of `max_length` tokens, each token learned once.
    """
    said, counts = list(parts.said), dict(parts.counts)
    said.append(renderer.describe())
    if n_thinking := sum(map(has_thinking, parts.train)):
        said.append(f"{counted(n_thinking, 'training row')} with thinking: {THINKING[config.thinking]} (data.thinking: {config.thinking})")

    def examples(name: str, conversations: Sequence[Conversation]) -> list[Example]:
        possible, far_too_long = _without_giants(conversations, renderer, max_length, config.on_too_long)
        with progress(f"rendering {name}", len(possible)) as bar:
            rendered = render_all(possible, renderer, lambda n: bar.advance(256))
        texts = {c.source for c in possible if c.is_text}
        cut = [window for example in rendered for window in (windows(example, max_length) if example.source in texts else [example])]
        if len(cut) > len(rendered):
            counts["text_windows"] = counts.get("text_windows", 0) + len(cut)
            said.append(f"{len(rendered):,} {name} texts cut into {len(cut):,} windows of at most {max_length} tokens")
        fitted: Fitted = fit(cut, max_length, config.on_too_long)
        for kind, sources in (("dropped", [*far_too_long, *fitted.dropped]), ("truncated", fitted.truncated)):
            if sources:
                counts[f"too_long_{kind}"] = counts.get(f"too_long_{kind}", 0) + len(sources)
                said.append(f"{len(sources):,} {name} examples longer than {max_length} tokens {kind}; the first: {sources[0]}")
        return fitted.examples

    train = examples("training", parts.train)
    validation = examples("validation", parts.validation) if parts.validation else []
    if not train:
        raise BadInput("every example is longer than training.max_length", where=first_path(config), fix="raise training.max_length")
    if len(train) > len(parts.train) and "text_windows" not in counts:
        said.append(
            f"{len(parts.train):,} conversations became {len(train):,} examples: the template rewrites earlier turns, so each answer is its own example"
        )
    counts["trained_tokens_per_epoch"] = sum(int(e.trained[1:].sum()) for e in train)
    counts["tokens_per_epoch"] = sum(len(e) for e in train)
    said.append(
        f"training on {counted(len(train), 'example')}, {counts['tokens_per_epoch']:,} tokens of which {counts['trained_tokens_per_epoch']:,} are learned; "
        f"validation {len(validation):,}, test {len(parts.test):,}"
    )
    answers = [c.answer for c in parts.train if c.answer is not None]
    return Rows(train, validation, parts.test, answers, said, counts, parts.files)
