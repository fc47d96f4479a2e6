"""The datasets of a run: `data.train`, `data.validation` or `data.test` as files with the way to read each, and all their rows.

    [source.task for source in sources_of(run.data, "train")]     # ["hotels", "trains"]
    part = read_part(run.data, "train")
    part.conversations[0].task, part.conversations[0].source      # "hotels", "hotels.jsonl:1"

Where a part has one dataset there are no tasks (`task` is ""); where it has several, each is a task, called as its entry says or
as its file. For a measurement the only file of a folder of tasks keeps its name (`name_alone`): the folder may be one of several
that are measured one after the other. What an entry sets is set for its files only; everything else is as in `data`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config import DataConfig, DataEntry
from tunesmith.data.conversation import Conversation
from tunesmith.data.formats import BadRow, Read, phrased, read_conversations
from tunesmith.data.hashes import known_sha256
from tunesmith.data.mixture import chosen, content_hash
from tunesmith.data.places import find, stem
from tunesmith.data.spool import Gathered, joined
from tunesmith.errors import BadInput

MOST_LINES = 8  # files that are told of one by one


@dataclass(frozen=True)
class Source:
    """One dataset: its files, and how they are read.

    task      its name among several, else ""
    files     in the order in which they are read
    names     what the rows of each file are called by, unlike for any two files of the part
    origins   what the facts about each file are kept under: its whole path, or its name on the hub
    config    the `data` section with what the entry sets put in
    """

    task: str
    files: tuple[Path, ...]
    names: tuple[str, ...]
    origins: tuple[str, ...]
    config: DataConfig
    weight: float = 1.0
    limit: int | None = None


@dataclass(frozen=True)
class Part:
    """All rows of a part. `files`: origin → {"rows", "sha256"}; `n_rows` counts the skipped ones too."""

    sources: tuple[Source, ...]
    conversations: Sequence[Conversation]
    skipped: list[BadRow]
    n_rows: int
    n_limited: int
    said: list[str]
    files: dict[str, dict[str, Any]]

    def weights(self) -> dict[str, float]:
        """Task → its weight, in order; entries of one task must agree on it."""
        weights: dict[str, float] = {}
        for source in self.sources:
            if weights.setdefault(source.task, source.weight) != source.weight:
                where = f"{source.names[0]}: {source.weight:g}, before {weights[source.task]:g}"
                raise BadInput(f'two weights of the task "{source.task}"', where=where, fix="give its entries one weight, or two names")
        return weights


def sources_of(config: DataConfig, part: str, name_alone: bool = False) -> tuple[tuple[Source, ...], list[str]]:
    """The datasets of data.train, data.validation or data.test, and what was decided in finding them, to be said aloud.

    name_alone   whether the one dataset of a folder of tasks is called by its name too
    A share is no dataset: there are none then.
    """
    value = getattr(config, part)
    entries = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    said: list[str] = []
    drafts: list[tuple[DataEntry, str, tuple[Path, ...], tuple[str, ...]]] = []
    for given in entries:
        entry = given if isinstance(given, DataEntry) else DataEntry(path=given)
        found = find(entry.path, part)
        said.extend(line for line in found.said if line not in said)
        if name_alone and found.are_tasks and len(entries) == len(found.places) == 1 and not entry.task:
            entry = entry.model_copy(update={"task": found.places[0].name})
        for place in found.places:
            drafts.append((entry, place.name, place.files, tuple(place.origin(file) for file in place.files)))
    every_file = [file for _, _, files, _ in drafts for file in files]
    if twice := sorted({str(file) for file in every_file if every_file.count(file) > 1}):
        raise BadInput(f"data.{part} names a file twice", where=twice[0], fix="name it once, with a weight if it should count more")
    names = dict(zip(every_file, _short_names(every_file)))
    tasks = _task_names([(entry.task or "", name, files[0]) for entry, name, files, _ in drafts])
    return tuple(
        Source(
            task, files, tuple(names[file] for file in files), origins,
            config.model_copy(update=entry.settings() | {"train": str(files[0])}), entry.weight, entry.limit,
        )
        for task, (entry, _, files, origins) in zip(tasks, drafts)
    ), said  # fmt: skip


def _task_names(datasets: Sequence[tuple[str, str, Path]]) -> list[str]:
    """What each dataset is called: as its entry says; else, where there are several, by its own name, with its folder's where two are alike."""
    own = [name for _, name, _ in datasets]
    if len(datasets) == 1:
        return [datasets[0][0]]
    return [given or (name if own.count(name) == 1 else f"{file.absolute().parent.name}/{stem(file)}") for given, name, file in datasets]


def _short_names(files: Sequence[Path]) -> list[str]:
    """The last parts of each path, as few as tell it from the others: train.jsonl, or a/train.jsonl and b/train.jsonl."""
    wholes = [file.absolute() for file in files]
    names = []
    for whole in wholes:
        n = 1
        while n < len(whole.parts) and sum(other.parts[-n:] == whole.parts[-n:] for other in wholes) > 1:
            n += 1
        names.append("/".join(whole.parts[-n:]))
    return names


def read_part(config: DataConfig, part: str, name_alone: bool = False) -> Part:
    """Every row of a part, in the order of its datasets, each with its task; name_alone as of `sources_of`."""
    sources, said = sources_of(config, part, name_alone)
    parts: list[Sequence[Conversation]] = []
    skipped: list[BadRow] = []
    reads: list[tuple[str, Read]] = []
    files: dict[str, dict[str, Any]] = {}
    limited: list[str] = []
    n_rows = n_limited = 0
    for source in sources:
        of_files: list[Sequence[Conversation]] = []
        for path, name, origin in zip(source.files, source.names, source.origins):
            read = read_conversations(source.config, path, name, source.task)
            reads.append((name, read))
            of_files.append(read.conversations)
            skipped += read.skipped
            n_rows += read.n_rows
            files[origin] = {"rows": read.n_rows, "sha256": known_sha256(path)}
        rows = joined(of_files)
        if source.limit is not None and source.limit < len(rows):
            n_limited += len(rows) - source.limit
            limited.append(f"{source.task or source.names[0]}: {source.limit:,} of {len(rows):,} rows used (its limit)")
            rows = chosen(rows, source.limit)
        parts.append(rows)
    return Part(sources, joined(parts), skipped, n_rows, n_limited, [*said, *_told(reads), *limited], files)


def _told(reads: Sequence[tuple[str, Read]]) -> list[str]:
    """What is said of each file; of many files that were read alike, once."""
    if len(reads) <= MOST_LINES:
        return [line for _, read in reads for line in read.said]
    lines: list[str] = []
    for what in dict.fromkeys(read.what for _, read in reads):
        alike = [(name, read) for name, read in reads if read.what == what]
        first, read = alike[0]
        if len(alike) == 1:
            lines += read.said
            continue
        n_rows = sum(other.n_rows for _, other in alike)
        kind, _, rest = what.partition(", ")
        lines.append(f"{first} and {len(alike) - 1} files like it: {kind}, {n_rows:,} rows, {rest}")
        lines += [line for _, other in alike for line in other.said[1:]]
    return lines


def spread_phrasings(rows: Sequence[Conversation], sources: Sequence[Source]) -> tuple[Sequence[Conversation], list[str]]:
    """Training rows with one phrasing of their dataset's prompt each, by a hash of what the row says; and how many got which.

    Rows come with the first phrasing: in that one they were compared and split, and in that one test rows are asked.
    """
    phrasings = {name: source.config.phrasings for source in sources for name in source.names if len(source.config.phrasings) > 1}
    if not phrasings:
        return rows, []
    counts: dict[tuple[str, ...], list[int]] = {texts: [0] * len(texts) for texts in phrasings.values()}
    result = Gathered()
    for row in rows:
        texts = phrasings.get(row.source.rpartition(":")[0])
        if texts is not None:
            which = int.from_bytes(content_hash(row)[:8], "big") % len(texts)
            counts[texts][which] += 1
            row = row if which == 0 else phrased(row, texts[which])
        result.append(row)
    said = [f"data.prompt: {', '.join(f'{n:,}' for n in ns)} training rows have each of the {len(ns)} phrasings" for ns in counts.values()]
    return result.whole(), said
