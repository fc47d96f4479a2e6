"""All checks over all files of a config, in one report.

    files = open_files(run.data)                                       # read once, bad rows kept with their reasons
    report = check(files, run.data, renderer=renderer, max_length=512) # renderer None: no model is known, so nothing about tokens
    report.findings, report.said                                       # worst first; what was recognised

Every row is read and looked at. What concerns one text is in `TEXT_CHECKS`; what compares rows of one file works on a `Table` (table.py); what
compares files comes last. A check is one function in the file of its idea, and this is the only place that knows them all.
"""

import json
import re
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.config import DataConfig
from tunesmith.data.checks import (
    answers,
    bad_rows,
    duplicates,
    encoding,
    json_answers,
    label_set,
    labels,
    language,
    lengths,
    markers,
    overlap,
    quoting,
    rendering,
    secrets,
    size,
    system,
    undecodable,
)  # fmt: skip
from tunesmith.data.checks.beside import beside
from tunesmith.data.checks.finding import SEVERITIES, Finding, Hits, Severity, found
from tunesmith.data.checks.json_answers import Schema
from tunesmith.data.checks.table import PartName, Table
from tunesmith.data.conversation import Message
from tunesmith.data.digests import first_equal
from tunesmith.data.formats import Read, read_conversations
from tunesmith.data.rows import THINKING
from tunesmith.data.sources import sources_of
from tunesmith.data.spool import joined
from tunesmith.data.template import Renderer
from tunesmith.errors import BadInput
from tunesmith.progress import counted, progress, upto

TEXT_CHECKS = (*encoding.CHECKS, *secrets.CHECKS, *markers.CHECKS, *answers.CHECKS)
HABIT_SHARE = 0.5  # of the rows
NEAR = 0.8  # where splits do not look for near copies, the check still does
ALIKE = 3  # lines, or findings of one kind, that are told one by one
MOST_SYSTEMS = 10_000  # different system messages whose findings are remembered
ROWS_FOR_TWO = 5_000  # from here on a second process is worth its start


@dataclass(frozen=True)
class Opened:
    """A file of one part: what was read, or why it could not be; both where only some of its bytes are damaged.

    config   how it was read
    task     its dataset, of several
    """

    part: PartName
    path: Path
    config: DataConfig
    read: Read | None
    error: BadInput | None = None
    task: str = ""


@dataclass(frozen=True)
class Report:
    """What was found, worst first, and the figures that the page draws.

    said       what was recognised, in sentences
    not_done   checks that could not be made, and what would let them
    unit       of the lengths: "tokens" or "characters"
    lengths    "prompt" and "answer", of tokens also "example", both together; of raw text "text" → one number for each training row
    labels     part → label → rows; empty where answers are no labels
    turns      messages in a conversation → training rows
    """

    findings: list[Finding]
    said: list[str]
    rows: dict[str, int]
    not_done: list[str] = field(default_factory=list)
    unit: str = "characters"
    lengths: dict[str, Sequence[int]] = field(default_factory=dict)
    limit: int | None = None
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    turns: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0

    def of(self, severity: Severity) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == severity]

    def as_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "counts": {f"{severity}s": len(self.of(severity)) for severity in SEVERITIES},
            "findings": [finding.as_json() for finding in self.findings],
            "said": self.said,
            "not_done": self.not_done,
            "labels": self.labels,
            "turns": {str(n): rows for n, rows in self.turns.items()},
            "seconds": round(self.seconds, 2),
        }


# --- reading ----------------------------------------------------------------------------------------------------------------


def open_files(config: DataConfig) -> list[Opened]:
    """Every file that the config names, read to its end; bad rows are kept with their reasons whatever data.on_bad_row says."""
    opened: list[Opened] = []
    parts: tuple[PartName, ...] = ("train", "validation", "test")
    for part in parts:
        try:
            sources, _ = sources_of(config, part)
        except BadInput as error:
            opened.append(Opened(part, Path(str(getattr(config, part))), config, None, error))
            continue
        for source in sources:
            own: PartName = "test" if source.task and source.task in config.held_out else part
            reading = source.config.model_copy(update={"on_bad_row": "skip"})
            for path, name in zip(source.files, source.names):
                try:
                    read = read_conversations(reading, path, name, source.task)
                    opened.append(Opened(own, path, reading, read, None, source.task))
                except BadInput as error:
                    around = undecodable.read_around(reading, path, name, source.task) if undecodable.is_it(error) else None
                    opened.append(Opened(own, path, reading, around, error, source.task))
    return opened


def tables_of(files: Sequence[Opened]) -> list[Table]:
    """One table for each dataset of each part: its files belong together, another task's do not."""
    datasets: dict[tuple[PartName, str], list[Opened]] = {}
    for file in files:
        if file.read is not None:
            datasets.setdefault((file.part, file.task), []).append(file)
    return [
        Table(part, task or own[0].path.name, joined([file.read.conversations for file in own if file.read is not None]))
        for (part, task), own in datasets.items()
    ]


# --- the report ---------------------------------------------------------------------------------------------------------------


def check(
    files: Sequence[Opened], config: DataConfig, *, renderer: Renderer | None = None, max_length: int = 512, schema: Schema | None = None,
    thorough: bool = True,
) -> Report:  # fmt: skip
    """Everything that can be said of these files.

    renderer     of the model that is to be tuned; None: nothing is said about tokens
    schema       what every answer must be
    thorough     False: errors only, and quickly; what training refuses by itself is left to it
    """
    begun = time.monotonic()
    read = [line for file in files if file.read is not None for line in file.read.said]
    said = alike([line for line in read if config.on_bad_row == "skip" or " skipped, the first at " not in line])
    tables = tables_of(files)
    findings = _of_reading(files, config)
    if schema is not None:
        for table in tables:
            findings += json_answers.breaks_schema(table, schema)
        findings += json_answers.asks_nothing(schema)
    rows: dict[str, int] = {file.part: 0 for file in files}
    for file in files:
        rows[file.part] += file.read.n_rows if file.read is not None else 0
    if not thorough:
        return Report(_worst_first(findings), said, rows, seconds=time.monotonic() - begun)
    everything = joined([table.conversations for table in tables])
    of_part: list[PartName] = [table.part for table in tables for _ in range(len(table))]
    rendered = rendering.nothing_rendered(0)
    of_tables: list[Finding] = []
    work = beside(lambda: rendering.render_all(everything, renderer, max_length) if renderer else rendered, len(everything) >= ROWS_FOR_TWO)
    try:
        sources = joined([table.sources for table in tables])
        if n_thinking := sum(table.n_thinking for table in tables if table.part == "train"):
            said.append(
                f"{counted(n_thinking, 'training row')} with thinking: {THINKING[config.thinking]} (data.thinking: {config.thinking})"
            )
        for table in tables:
            of_tables += [*_of_texts(table), *_of_table(table)]
        findings += together(of_tables)
        for file in files:
            if file.error is None:
                findings += quoting.trap(file.path, file.config)
        parts = _parts(tables)
        findings += _between(parts, config)
        if renderer is not None:
            said.append(renderer.describe())
            with progress("rendering", len(everything)) as bar:
                rendered = work.result()
                bar.advance(len(everything))
            findings += rendering.findings(rendered, sources, [part != "test" for part in of_part], config, max_length)
            findings += rendering.control_token_text(everything, joined([table.contents for table in tables]), renderer)
    finally:
        work.stop()
    train = parts.get("train")
    return Report(
        findings=_worst_first(findings),
        said=said,
        rows=rows,
        not_done=_not_done(renderer, schema, tables),
        unit="tokens" if renderer is not None else "characters",
        lengths=_lengths(train, of_part, rendered if renderer is not None else None),
        limit=max_length if renderer is not None else None,
        labels=_labels(parts),
        turns=dict(sorted(Counter(train.turns).items())) if train is not None else {},
        seconds=time.monotonic() - begun,
    )


def _of_reading(files: Sequence[Opened], config: DataConfig) -> list[Finding]:
    findings: list[Finding] = []
    for file in files:
        if file.error is not None:
            bytes_ = undecodable.finding(file.path, file.path.name, file.error) if undecodable.is_it(file.error) else []
            findings += bytes_ or [quoting.unreadable(str(file.path), file.error)]
        if file.read is not None:
            findings += bad_rows.refused(file.read.skipped, "error" if config.on_bad_row == "error" else "warning")
    return findings


def _of_texts(table: Table) -> list[Finding]:
    """Every text check over every message: one hit a row and check."""
    hits: defaultdict[str, Hits] = defaultdict(Hits)
    for_answers = [check for check in TEXT_CHECKS if check.where != "prompt"]
    for_prompts = [check for check in TEXT_CHECKS if check.where != "answer"]
    again: dict[str, list[tuple[str, str]]] = {}  # system messages are the same in most rows

    def look(message: Message) -> list[tuple[str, str]]:
        checks = for_answers if message.role in ("assistant", "text") else for_prompts
        text = _all_text(message)
        return [(check.name, what) for check in checks if (what := check.find(text))]

    with progress(f"looking at the rows of {table.name}", len(table)) as bar:
        for n, conversation in enumerate(table.conversations, 1):
            seen: set[str] = set()
            for message in conversation.messages:
                if message.role == "system":
                    if message.content not in again:
                        if len(again) >= MOST_SYSTEMS:
                            again.clear()
                        again[message.content] = look(message)
                    told = again[message.content]
                else:
                    told = look(message)
                for name, what in told:
                    if name not in seen:
                        seen.add(name)
                        hits[name].append((conversation.source, what))
            if n % 512 == 0:
                bar.advance(512)
    findings: list[Finding] = []
    for check in TEXT_CHECKS:
        often = check.habit and len(hits[check.name]) > HABIT_SHARE * len(table) and len(table) >= 10
        reason = f"{check.reason} (in most rows: perhaps it is the task)" if often else check.reason
        findings += found(check.name, "note" if often else check.severity, hits[check.name], reason, check.fix)
    return findings


def _all_text(message: Message) -> str:
    """What a message says, thinks and calls."""
    if message.thinking is None and not message.tool_calls:
        return message.content
    calls = [
        call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments, ensure_ascii=False) for call in message.tool_calls
    ]
    return "\n".join([*([message.thinking] if message.thinking else []), message.content, *calls])


def _of_table(table: Table) -> list[Finding]:
    """What compares the rows of one file with each other."""
    return [
        *encoding.table_checks(table), *language.mixed_languages(table), *answers.table_checks(table), *labels.table_checks(table),
        *labels.leaked(table), *json_answers.not_json(table), *system.odd_system(table), *lengths.odd_lengths(table),
    ]  # fmt: skip


def _parts(tables: Sequence[Table]) -> dict[str, Table]:
    """One table for each part; most parts are one file."""
    parts: dict[str, Table] = {}
    for name in ("train", "validation", "test"):
        own = [table for table in tables if table.part == name]
        if len(own) == 1:
            parts[name] = own[0]  # with the columns that were made of it already
        elif own:
            parts[name] = Table(own[0].part, name, joined([table.conversations for table in own]))
    return parts


def _between(parts: Mapping[str, Table], config: DataConfig) -> list[Finding]:
    """Copies and contradictions within a part, overlap between parts, labels that only held-out rows have, and whether rows suffice."""
    findings: list[Finding] = []
    for table in parts.values():
        findings += duplicates.exact(table, config.duplicates == "drop" and table.part == "train")
        findings += duplicates.contradictory(table)
    train = parts.get("train")
    threshold = NEAR if config.near_duplicates == "off" else config.near_duplicates
    if train is not None:
        with progress("looking for near duplicates", len(train)) as bar:
            findings += duplicates.near(train, threshold, upto(bar))
        n_different = len(np.unique(first_equal(train.asked)))
        shares = {name: value for name in ("validation", "test") if isinstance(value := getattr(config, name), float)}
        shares = shares if sum(shares.values()) < 1 else {}  # such shares are refused, and leave no number to speak of
        findings += size.too_few(train, round(n_different * (1 - sum(shares.values()))))
        for name, value in shares.items():
            findings += size.too_few_to_measure(round(value * len(train)), name)
    for base, held in (("train", "test"), ("train", "validation"), ("validation", "test")):
        if base in parts and held in parts:
            told, rows = overlap.exact(parts[base], parts[held])
            findings += [*told, *overlap.near(parts[base], parts[held], rows, threshold, config.near_duplicates != "off")]
    for name in ("validation", "test"):
        if name in parts:
            findings += size.too_few_to_measure(len(parts[name]), name)
            if train is not None:
                findings += labels.unseen(train, parts[name])
    return findings


def alike(lines: Sequence[str]) -> list[str]:
    """Lines as they are; of many that differ only in their file and their numbers the first, and how many are like it."""
    groups: dict[str, list[str]] = {}
    for line in lines:
        _, _, rest = line.partition(": ")
        groups.setdefault(re.sub(r"\d[\d,.]*|\brows?\b|\bmessages?\b", "#", rest or line), []).append(line)
    said: list[str] = []
    for group in groups.values():
        said += group if len(group) <= ALIKE else [f"{group[0]} ({len(group) - 1:,} files like it)"]
    return said


def together(findings: Sequence[Finding]) -> list[Finding]:
    """Findings as they are; those of one kind in many tasks as one, with the reason of the first and the rows of all."""
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((finding.check, finding.severity), []).append(finding)
    merged: list[Finding] = []
    for same in kinds.values():
        if len(same) <= ALIKE:
            merged += same
            continue
        first = same[0]
        of_all = Hits(hit for one in same for hit in zip_longest(one.sources, one.seen[: len(one.sources)], fillvalue=""))
        equal = all(one.reason == first.reason for one in same)
        reason = (
            f"{first.reason} (in {len(same):,} tasks)"
            if equal
            else f"{first.reason} (so in one task, and likewise in {len(same) - 1:,} more)"
        )
        count, seen = sum(one.count for one in same), tuple(of_all.seen)
        merged.append(Finding(first.check, first.severity, count, of_all.sources, reason, first.fix, seen if any(seen) else ()))
    return merged


def _worst_first(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _not_done(renderer: Renderer | None, schema: Schema | None, tables: Sequence[Table]) -> list[str]:
    missing = []
    if renderer is None:
        missing.append("lengths in tokens, cut answers, stop token, template: name the model (--model acorn)")
    if schema is None and any(json_answers.are_json(table) for table in tables):
        missing.append("the answers are JSON: --schema FILE checks what they must hold")
    return missing


def _lengths(train: Table | None, of_part: Sequence[PartName], rendered: rendering.Rendered | None) -> dict[str, Sequence[int]]:
    """Of the training rows; of_part: the part of each row that was rendered."""
    if train is None:
        return {}
    if rendered is None:
        prompts, given = (array("i", map(len, texts)) for texts in (train.prompts, train.answers))
        return {"text": prompts} if train.is_text else {"prompt": prompts, "answer": given}
    wanted = np.fromiter((part == "train" for part in of_part), bool, len(of_part)) & (rendered.tokens > 0)
    whole, trained = rendered.tokens[wanted], rendered.trained_tokens[wanted]
    sizes = {"text": whole} if train.is_text else {"example": whole, "prompt": whole - trained, "answer": trained}
    return {side: array("i", of_side.astype(np.int32).tobytes()) for side, of_side in sizes.items()}


def _labels(parts: Mapping[str, Table]) -> dict[str, dict[str, int]]:
    found = {name: table.labels for name, table in parts.items() if not table.is_text}
    return {name: dict(counts.most_common(label_set.MOST_LABELS)) for name, counts in found.items() if counts is not None}
