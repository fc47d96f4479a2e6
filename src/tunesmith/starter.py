"""A first config for a data file: what was recognised, filled in, and every other key with its default and reason as a comment.

    tunesmith init SMSSpamCollection.tsv          # no header, stray quotes: both are found and stand in the config
    tunesmith init tasks/                         # a folder or a hub dataset, where its rows say what they are

The config that comes out is one that `train` accepts. Where neither the names of the columns nor the user say which is the
prompt and which the answer, the rows themselves do: the answer is the column called like one, or the one with the fewest
different values; the prompt is the column "text" or the longest of the others. Where further columns are left, the answer is
JSON of all of them. That is a guess, so it is said aloud and stands in the file to be changed.
"""

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from tunesmith.config import DataConfig, Run, is_hub_name, known_keys, sections
from tunesmith.data import formats, readers
from tunesmith.data.sources import Part, read_part
from tunesmith.data.split import prompt_key
from tunesmith.errors import BadInput
from tunesmith.files import explain_disk, write_text
from tunesmith.progress import counted

GUESSED = ("the columns do not say", "a file without a header needs")  # refusals that rows can answer; every other one stands
QUOTED_FOR_STRAY, QUOTED_SHARE = 4, 0.1  # cells in quotes for each line with a stray one, and of the lines: then quotes are quotation
MANY_TIMES = 10  # as long as the prompt is no answer of objects, but the document itself
ROWS_FOR_HEADER = 1000  # a label that is in the first line is in one of these too
PROMPTS_FOR_SHARES = 30  # with fewer, shares for validation and test would be empty or say nothing


def write_starter(data: str, output: Path, model: str, header: bool | None = None, quoting: bool | None = None) -> list[str]:
    """Write the config and return what to tell the user; an existing file is never replaced.

    header, quoting   of CSV and TSV; None: found out from the rows
    """
    if output.exists():
        raise BadInput("there is already a file of this name", where=str(output), fix="--output another.yaml")
    several = not Path(data).is_file() and (Path(data).is_dir() or is_hub_name(data))
    settings, reasons = ({}, {}) if several else _table_settings(readers.recognise(Path(data), DataConfig(train=data)), header, quoting)
    guessed: list[str] = []
    try:
        read = _read(data, settings)
    except BadInput as error:
        if several or not can_be_guessed(error):
            raise
        settings, guessed = _guess(data, settings, error)
        read = _read(data, settings)
    said = [*read.said, *(f"data.{key}: {str(settings[key]).lower()}, {reason}" for key, reason in reasons.items()), *guessed]
    if read.skipped:
        settings["on_bad_row"] = "skip"
        first = read.skipped[0]
        reasons["on_bad_row"] = f"{len(read.skipped):,} of {read.n_rows:,} rows are bad, the first at {first.source}: {first.problem}"
        said.append("the config leaves such rows out (data.on_bad_row: skip); without that, train would stop at the first one")
    n_prompts = len({prompt_key(conversation) for conversation in read.conversations})
    shares = {"validation": 0.1, "test": 0.2} if n_prompts >= PROMPTS_FOR_SHARES else {}
    if not shares:
        said.append(
            f"{counted(n_prompts, 'different prompt')} {'is' if n_prompts == 1 else 'are'} too few to hold some out: "
            "to measure, give files as data.validation and data.test"
        )
    filled: dict[str, Any] = {
        "model": model, "method": "lora", "output": f"runs/{Path(data).name.split('.')[0] or 'run'}",
        "data": {"train": data, **settings, **shares},
    }  # fmt: skip
    with explain_disk(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, commented(filled, {f"data.{key}": reason for key, reason in reasons.items()}))
    return [*said, f"{output} written; next: tunesmith train {output} --dry-run"]


def settings_for(config: DataConfig) -> tuple[dict[str, Any], list[str]]:
    """data.header and data.quoting as the rows of `config.train` show them where the config does not say, each with its reason in words."""
    given = config.model_fields_set
    file = readers.recognise(Path(str(config.train)), config)
    asked = (None if key not in given else getattr(config, key) for key in ("header", "quoting"))
    settings, reasons = _table_settings(file, *asked)
    return settings, [f"data.{key}: {str(settings[key]).lower()}, {reason}" for key, reason in reasons.items()]


def can_be_guessed(error: BadInput) -> bool:
    """Whether a reader only lacks the names of the prompt and the answer; what it refuses for another reason is never guessed around."""
    return error.what.startswith(GUESSED)


def columns_for(config: DataConfig, error: BadInput) -> tuple[dict[str, Any], list[str]]:
    """Which columns are the prompt and the answer, guessed from the rows, and the guess in words; `error` is raised where nothing can be."""
    if not can_be_guessed(error) or config.prompt is not None:
        raise error
    settings = {key: value for key in ("header", "quoting") if (value := getattr(config, key)) is False}
    return _guess(str(config.train), settings | ({"columns": config.columns} if config.columns else {}), error)


def _read(data: str, settings: dict[str, Any]) -> Part:
    return read_part(DataConfig(train=data, on_bad_row="skip", **settings), "train")


# --- how a table is written -------------------------------------------------------------------------------------------------


def _table_settings(file: readers.File, header: bool | None, quoting: bool | None) -> tuple[dict[str, Any], dict[str, str]]:
    """data.header and data.quoting where they are not the default, and for those that the rows decided the reason."""
    settings: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    if file.kind not in ("csv", "tsv"):
        return {key: False for key, value in (("header", header), ("quoting", quoting)) if value is False}, reasons
    if quoting is None and (why := _why_no_quoting(file)):
        quoting, reasons["quoting"] = False, why
    if header is None and (why := _why_no_header(file, quoting is not False)):
        header, reasons["header"] = False, why
    for key, value in (("header", header), ("quoting", quoting)):
        if value is False:
            settings[key] = False
    return settings, {key: reasons[key] for key in settings if key in reasons}


def _why_no_quoting(file: readers.File) -> str:
    """Quotes are mere characters where reading them as quotes does harm, every line is a whole row without, and few cells stand in
    quotes; "" elsewhere. Where many do, a stray quote is a fault of its line.
    """
    widths: set[int] = set()
    n_lines = n_quoted = n_stray = 0
    for _, cells, _ in readers.plain_records(file):
        widths.add(len(cells))
        in_quotes = sum(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells)
        n_lines, n_quoted = n_lines + 1, n_quoted + in_quotes
        n_stray += any(cell.count('"') % 2 for cell in cells)
    if len(widths) != 1 or widths == {1}:
        return ""
    if n_quoted >= QUOTED_FOR_STRAY * max(1, n_stray) and n_quoted >= QUOTED_SHARE * n_lines:
        return ""
    spanning: list[str] = []
    try:
        stray = next((line for line, _, problem in readers.quoted_records(file, spanning) if problem), None)
    except BadInput:
        return "as a quote is opened and never closed"
    if stray is not None:
        return f"as line {stray:,} has a stray quote"
    return "as quotes would join whole lines into one row" if spanning else ""


def _why_no_header(file: readers.File, quoting: bool) -> str:
    """A first line is data if a value of it comes again below in its column, or is a number; "" for a header."""
    records = readers.quoted_records(file, []) if quoting else readers.plain_records(file)
    rows = [cells for _, cells, problem in islice(records, ROWS_FOR_HEADER) if not problem]
    first, below = (rows[0], rows[1:]) if rows else ([], [])
    for number, cell in enumerate(first):
        if cell.strip() and any(len(row) > number and row[number] == cell for row in below):
            return f'as "{readers.clip(cell)}" of the first line is a value of its column further down too'
        if cell.strip().replace(".", "", 1).isdigit():
            return f'as "{readers.clip(cell)}" in the first line is no name of a column'
    return ""


# --- which column is what -------------------------------------------------------------------------------------------------


def _guess(data: str, settings: dict[str, Any], error: BadInput) -> tuple[dict[str, Any], list[str]]:
    """Settings that say which columns are prompt and answer, and the guess in words; `error` is raised where there is nothing to guess."""
    rows = _first_rows(data, settings)
    names = list(dict.fromkeys(name for row in rows for name in row))
    usable = [name for name in names if any(row.get(name) not in (None, "") for row in rows) and not set(name) & set("{}\n")]
    if len(usable) < 2:
        raise error
    nested = [name for name in usable if any(_is_nested(row.get(name)) for row in rows)]
    texts = {name: [_as_text(row[name]) for row in rows if row.get(name) not in (None, "")] for name in usable}
    numbers = [name for name in usable if _is_number_of_row(name, texts[name])]
    if len(usable) - len(numbers) < 2:
        numbers = []
    usable = [name for name in usable if name not in numbers]
    called = [name for name in usable if name.lower() in formats.ANSWER_COLUMNS]
    answer = called[0] if called else min(usable, key=lambda name: (len(set(texts[name])), len("".join(texts[name]))))
    is_text = {name: all(isinstance(row.get(name), str | None) for row in rows) for name in usable}  # slots in JSON are no question
    mean_length = {name: len("".join(texts[name])) / len(texts[name]) for name in usable}
    prompt = max((name for name in usable if name != answer), key=lambda name: (name == "text", is_text[name], mean_length[name]))
    whole = answer in nested and mean_length[answer] > MANY_TIMES * mean_length[prompt]  # a document with its title, and no question
    if prompt in nested or whole:
        raise BadInput(
            f'"{_short(answer if whole else prompt)}" holds objects, and no column is a text that asks for it', where=error.where,
            fix="write one row for each question, its text and its answer in columns of their own, as JSONL",
        )  # fmt: skip
    answers = [name for name in usable if name == answer or (name != prompt and all(row.get(name) is not None for row in rows))]
    left_out = [name for name in names if name not in (prompt, *answers)]
    if names[0] == "column_1" and not settings.get("header", True):
        better = {answer: "label" if len(set(texts[answer])) < len(texts[answer]) else "answer", prompt: "text"}
        settings = {**settings, "columns": [better.get(name, name) for name in names]}
        answers, prompt = [better.get(name, name) for name in answers], better[prompt]
    if len(answers) == 1:
        completion, what = f"{{{answers[0]}}}", f"{_short(answers[0])} the answer"
    else:
        completion = "{" + ", ".join(f"{json.dumps(name, ensure_ascii=False)}: {{{name}:json}}" for name in answers) + "}"
        what = f"the answer is JSON of {', '.join(map(_short, answers))}"
    said = [f"guessed: {_short(prompt)} is the prompt and {what}; if not, change data.prompt and data.completion"]
    if left_out:
        said.append(f"not used: {', '.join(map(_short, left_out))}")
    repeated = next((name for name in names if settings.get("header", True) and any(row.get(name) == name for row in rows)), None)
    if repeated is not None:
        said.append(
            f'the first line looks like data ("{_short(repeated)}" is also a value of its column); if so, init again with --no-header'
        )
    return {**settings, "prompt": f"{{{prompt}}}", "completion": completion}, said


def _is_number_of_row(name: str, values: list[str]) -> bool:
    """Whether a column only tells rows apart."""
    return name.lower() in ("id", "idx", "index", "uid", "uuid") or (
        all(value.isdigit() for value in values) and len(set(values)) == len(values) > 2
    )


def _is_nested(value: Any) -> bool:
    """An object, or a list that holds one."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(inner, dict) for inner in value))


def _as_text(value: Any) -> str:
    """As a template inserts it: a text as it is, any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _short(name: str) -> str:
    return name if len(name) <= 40 else name[:39] + "…"


def _first_rows(data: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The first good rows as they stand in the file; columns of a file without a header are called column_1, column_2 …"""
    config = DataConfig(train=data, **settings)
    file = readers.recognise(Path(data), config)
    if not config.header and file.kind in ("csv", "tsv"):
        records = readers.quoted_records(file, []) if config.quoting else readers.plain_records(file)
        n_columns = len(next((cells for _, cells, problem in records if not problem), []))
        config = config.model_copy(update={"columns": [f"column_{number}" for number in range(1, n_columns + 1)]})
    rows = readers.peek(readers.rows_of(file, config, [], one_per_line=False), stop_at_bad=False)
    return [row.values for row in rows if not row.problem]


# --- the file -------------------------------------------------------------------------------------------------------------


def commented(filled: dict[str, Any], reasons: Mapping[str, str] | None = None) -> str:
    """YAML in which given keys stand and every other key is a comment with its default.

    reasons   dotted key → why it has its value, to stand behind it
    """
    reasons = reasons or {}
    lines: list[str] = []
    known, parts = known_keys(), sections()
    for name, field in Run.model_fields.items():
        if name in parts:
            lines += ["", f"{name}:" if filled.get(name) else f"# {name}:"]
            for key in parts[name].model_fields:
                lines.append(_line(f"{name}.{key}", known[f"{name}.{key}"], filled.get(name, {}), key, "  ", reasons))
        else:
            lines.append(_line(name, field, filled, name, "", reasons))
    return "\n".join(lines).strip() + "\n"


def _line(path: str, field: Any, filled: dict[str, Any], key: str, indent: str, reasons: Mapping[str, str]) -> str:
    given = key in filled
    why = f" ({' '.join(reasons[path].split())})" if path in reasons else ""
    value = filled[key] if given else field.default
    # one line whatever the value: a list of names in [ ], a text with a line break as "…\n…"
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1 << 20).strip().removesuffix("...").strip()
    if "\n" in text:
        text = json.dumps(value, ensure_ascii=False)
    return f"{indent}{'' if given else '# '}{key}: {text}".ljust(44) + f"  # {field.description}{why}"
