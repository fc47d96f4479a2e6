"""From files to rows ready for training: read, de-duplicate, split, render, fit; everything that was left out is counted.

    parts = load_parts(run.data)                              # conversations for training, validation and test
    rows = load_rows(parts, run.data, max_length=512, renderer=renderer)
    rows.train                                                # list[Example]
    rows.said, rows.counts                                    # what to print, what to keep

No model is needed for the first step, so a wrong path is found before one is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.config import DataConfig
from tunesmith.data.batches import Fitted, fit, render_all, windows
from tunesmith.data.conversation import Conversation
from tunesmith.data.formats import read_conversations
from tunesmith.data.split import drop_duplicates, remove_overlap, split
from tunesmith.data.template import Example, Renderer
from tunesmith.errors import BadInput
from tunesmith.files import sha256_of
from tunesmith.progress import counted, progress

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
    train: list[Example]
    validation: list[Example]
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

    def read(path: str) -> list[Conversation]:
        found = read_conversations(config, path)
        said.extend(found.said)
        counts["read"] += found.n_rows
        counts["skipped"] += len(found.skipped)
        files[str(Path(path).absolute())] = {"rows": found.n_rows, "sha256": sha256_of(Path(path))}
        return found.conversations

    train = read(config.train)
    if config.duplicates == "drop":
        train, dropped = drop_duplicates(train)
        counts["duplicates_dropped"] = len(dropped)
        said.append(f"{len(dropped):,} rows equal to an earlier one dropped; {len(train):,} left")
    shares = {kind: value for kind in ("validation", "test") if isinstance(value := getattr(config, kind), float)}
    held: dict[str, list[Conversation]] = {"validation": [], "test": []}
    seed = 0  # of the split: the same rows are held out whatever the seed of training
    if shares:
        parts = split(train, validation=shares.get("validation"), test=shares.get("test"), seed=seed, stratify=config.stratify)
        train, held["validation"], held["test"] = parts.train, parts.validation, parts.test
        said.extend(parts.said)
    for kind in ("validation", "test"):
        path = getattr(config, kind)
        if isinstance(path, str):
            held[kind] = read(path)
    if config.validation or config.test:
        # a share cannot overlap; a file can, with the training file and with the other one
        for one, other in (("validation", held["test"]), ("train", [*held["validation"], *held["test"]])):
            rows = train if one == "train" else held[one]
            kept, removed = remove_overlap(rows, other)
            if removed:
                counts["overlap_removed"] += len(removed)
                said.append(
                    f"{len(removed):,} rows of {one} removed because the held-out rows contain them; the first: {removed[0].source}"
                )
            if one == "train":
                train = kept
            else:
                held[one] = kept
    if config.limit is not None and config.limit < len(train):
        n_all = len(train)
        train = split(train, validation=None, test=config.limit / n_all, seed=seed, stratify=config.stratify).test
        counts["left_out_by_limit"] = n_all - len(train)
        said.append(f"{len(train):,} of {n_all:,} training rows used (data.limit: {config.limit:,})")
    if not train:
        held_by_file = counts["overlap_removed"] > 0
        raise BadInput(
            "every training row is also in the validation or test file" if held_by_file else "no row is left to train on", where=config.train,
            fix="give other rows to train on" if held_by_file else "smaller shares for validation and test, or more data",
        )  # fmt: skip
    counts |= {"train": len(train), "validation": len(held["validation"]), "test": len(held["test"])}
    return Parts(train, held["validation"], held["test"], said, counts, files)


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
        raise BadInput("every example is longer than training.max_length", where=config.train, fix="raise training.max_length")
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
