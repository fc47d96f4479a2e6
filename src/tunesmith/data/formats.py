"""Files of examples, of every common kind, as conversations that know their line.

    read = read_conversations(DataConfig(train="sms.csv", prompt="Spam or ham?\\n\\n{text}", completion="{label}"))
    read.conversations[0].source         # "sms.csv:2": the line where the row starts, counted from 1
    print("\\n".join(read.said))         # 'sms.csv: CSV, 1,200 rows, columns label, text → prompt "…", completion "…"'

Two steps. Bytes become rows (readers.py: JSONL, JSON, CSV, TSV, Parquet, Arrow, text; each also as .gz), then rows become
messages: by their shape (shapes.py: `messages`, `pairs`, `alpaca`, `instances` of a task, `text`) or by templates over the
columns (columns.py). Here it is decided, once a file, which. Both are streams, and of a large file the conversations lie on disk (spool.py).

Why not a data-frame library: they rename repeated columns, turn gaps into NaN, join lines at a stray quote and count records
instead of lines, all without a word. Here a row is read as it stands, or it is a `BadRow` with its true line and the reason;
`data.on_bad_row` decides whether the first one stops the reading or all of them are counted. Damage that makes every later
row doubtful (another encoding, a cut .gz, a JSON document that breaks off, a quote that swallows the file) always stops it.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from tunesmith.config import DataConfig
from tunesmith.data import shapes
from tunesmith.data.columns import RowError, Template, cell, columns_of, compile_template, placeholders, quoted
from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.readers import COLUMNAR, File, Row, clip, columns_example, listed, peek, recognise, rows_of
from tunesmith.data.spool import Gathered
from tunesmith.errors import BadInput, nearest

# Column pairs that other tools use for a prompt and its answer, most explicit first.
PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("instruction", "response"), ("input", "output"),
    ("inputs", "targets"),
)  # fmt: skip
INSTANCES = (("input", "output"), ("inputs", "targets"))  # beside a definition: one instance of a task
ALPACA = {"instruction", "input", "output", "system", "history", "tools", "functions"}
TURNS = {"messages", "conversations", "tools", "functions"}  # columns that a conversation holds in another form already
ANSWER_COLUMNS = {"label", "answer", "output", "completion", "response", "target", "category", "class", "intent"}

Build = Callable[[dict[str, Any]], tuple[tuple[Message, ...], tuple[dict[str, Any], ...]]]


@dataclass(frozen=True)
class BadRow:
    """A row that was left out: where it is ("train.csv:418") and why."""

    source: str
    problem: str


@dataclass(frozen=True)
class Read:
    """What a file held.

    format    messages, pairs, alpaca, instances or text
    what      kind and format in words, without the file's name and its number of rows
    said      sentences to print: what was recognised, and what was done about it
    skipped   the bad rows, in order; empty unless data.on_bad_row is "skip"
    n_rows    rows in the file: len(conversations) + len(skipped)
    """

    conversations: Sequence[Conversation]
    format: str
    what: str
    said: list[str]
    skipped: list[BadRow]
    n_rows: int


def read_conversations(config: DataConfig, path: str | Path | None = None, name: str = "", task: str = "") -> Read:
    """The examples of one file: every conversation ends in an answer or is raw text.

    path   by default `config.train`; folders, hub names and several files are data/sources.py's
    name   what rows are called by, "name:line"; by default the file's own
    task   what dataset of several the rows are of
    Raises BadInput for a file that cannot be read, for columns that do not fit, and, unless `config.on_bad_row` is "skip",
    at the first bad row.
    """
    return _read(config, Path(str(config.train) if path is None else path), answers=True, name=name, task=task)


def read_prompts(config: DataConfig, path: str | Path, name: str = "") -> Read:
    """The rows of `path` as prompts: as `read_conversations`, but the answer may be absent (it is kept where it is there).

    A .txt file holds one prompt per line; where `config.prompt` is a template with one column, the line is put there. With
    `config.format` "text", texts are to be continued (role "text", not trained) instead of answered (role "user").
    """
    return _read(config, Path(path), answers=False, name=name, task="")


def phrased(conversation: Conversation, template: str) -> Conversation:
    """The same row asked in other words: its question is the template over its columns. For rows that a template made."""
    place = max(index for index, message in enumerate(conversation.messages) if message.role == "user")
    asked = compile_template(template, list(conversation.fields)).fill(conversation.fields)
    messages = list(conversation.messages)
    messages[place] = replace(messages[place], content=asked)
    return replace(conversation, messages=tuple(messages))


def _read(config: DataConfig, path: Path, answers: bool, name: str, task: str) -> Read:
    file = recognise(path, config)
    name = name or path.name
    notes = [f"{name}: {file.note}"] if file.note else []
    rows = _with_references(rows_of(file, config, notes, not answers))
    peeked = peek(rows, stop_at_bad=config.on_bad_row == "error")
    if not peeked:
        raise BadInput("the file holds no rows", where=str(path), fix="give a file with at least one example")
    good = [row for row in peeked if not row.problem]
    skipped: list[BadRow] = []
    gathered = Gathered()
    no_text: dict[str, list[Any]] = {}  # column → how many of its values are no text, the first of them
    have_text: set[str] = set()
    # Without one good row there is nothing to recognise; every row is then a bad one and the reasons are their own.
    plan = _plan(file, config, good, answers) if good else None
    for row in chain(peeked, rows):
        source, problem = f"{name}:{row.line}", row.problem
        if not problem and plan is not None:
            try:
                messages, tools = plan.build(row.values)
                told = TURNS if plan.format == "messages" else set()
                fields = {} if file.kind == "text" else {key: value for key, value in row.values.items() if key not in told}
                gathered.append(Conversation(messages, source, fields, task, tools))
                for column in plan.texts:
                    if isinstance(value := row.values.get(column), str):
                        have_text.add(column)
                    elif value is not None:
                        no_text.setdefault(column, [0, source])[0] += 1
            except RowError as error:
                problem = str(error)
        if problem and config.on_bad_row == "error":
            fix = "repair the row, or leave such rows out, counted, with data.on_bad_row: skip"
            raise BadInput(problem, where=f"{path}:{row.line}", fix=fix)
        if problem:
            skipped.append(BadRow(source, problem))
    conversations = gathered.whole()
    if not conversations or plan is None:
        first = skipped[0]
        raise BadInput(
            f"none of the {len(skipped):,} rows can be used",
            where=str(path),
            fix=f"the first problem is at {first.source}: {first.problem}",
        )
    n_rows = len(conversations) + len(skipped)
    said = [f"{name}: {file}, {n_rows:,} {'row' if n_rows == 1 else 'rows'}, {plan.description}", *notes, *plan.remarks()]
    for column, (n_values, where) in no_text.items():
        if column in have_text:  # a column of numbers or of objects is what it is
            number = "1 value of" if n_values == 1 else f"{n_values:,} values of"
            verb = "is" if n_values == 1 else "are"
            said.append(f'{name}: {number} "{clip(column)}" {verb} no text and written as JSON; the first at {where}')
    if skipped:
        said.append(f"{name}: {len(skipped):,} of {n_rows:,} rows skipped, the first at {skipped[0].source}: {skipped[0].problem}")
    return Read(conversations, plan.format, f"{file}, {plan.description}", said, skipped, n_rows)


def _with_references(rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        yield replace(row, values=shapes.as_instance(row.values)) if "definition" in row.values else row


# ------------------------------------------------------------------------------------------------------ rows → messages


@dataclass(frozen=True)
class _Plan:
    """How every row of this file becomes messages.

    notes   sentences about messages with their number as {n}, counted
    texts   columns that are put into a prompt or an answer as texts, whatever they hold
    """

    format: str
    description: str
    build: Build
    notes: Counter[str] = field(default_factory=Counter)
    texts: tuple[str, ...] = ()

    def remarks(self) -> list[str]:
        return [text.replace("{n}", f"{n:,} {'message' if n == 1 else 'messages'}") for text, n in sorted(self.notes.items())]


@dataclass(frozen=True)
class _Shape:
    """The format of one row, with its columns where there is a choice."""

    kind: str
    prompt: str = ""
    completion: str = ""

    def __str__(self) -> str:
        columns = [column for column in (self.prompt, self.completion) if column]
        return f"{self.kind} ({', '.join(columns)})" if self.kind == "pairs" and columns else self.kind


def _shape_of(values: dict[str, Any], answers: bool) -> _Shape | None:
    """What a row looks like by its columns; null counts as absent (Parquet has every column in every row)."""
    there = {name for name, value in values.items() if value is not None}
    if "messages" in there:
        return _Shape("messages", "messages")
    if isinstance(values.get("conversations"), list):
        return _Shape("messages", "conversations")
    if shapes.has_turns(values, "prompt") and ("completion" in there or (not answers and not {"chosen", "rejected"} & there)):
        return _Shape("messages", "prompt")
    if "definition" in there:
        for given, wanted in INSTANCES:
            if {given, wanted} <= there or (given in there and not answers):
                return _Shape("instances", given, wanted)
    if {"instruction", "output"} <= there:
        return _Shape("alpaca", "instruction", "output")
    for prompt, completion in PAIRS:
        if {prompt, completion} <= there:
            return _Shape("pairs", prompt, completion)
    if not answers and "instruction" in there:
        return _Shape("alpaca", "instruction", "output")
    if not answers and (prompts := [pair for pair in PAIRS if pair[0] in there]):
        return _Shape("pairs", *prompts[0])
    # {"text", "label"} is a classification set more often than prose: text only where nothing else could be meant
    return _Shape("text", "text") if there == {"text"} else None


def _others_than_text(values: dict[str, Any]) -> list[str]:
    return [name for name, value in values.items() if name != "text" and value is not None]


def _plan(file: File, config: DataConfig, rows: list[Row], answers: bool) -> _Plan:
    columns = list(dict.fromkeys(name for row in rows for name in row.values))
    if file.kind == "text":
        return _text_file_plan(file, config, answers)
    templated = config.prompt is not None or config.completion is not None
    if templated and config.format not in ("auto", "pairs"):
        raise BadInput(
            f"data.prompt and data.completion make pairs, but data.format is {config.format}",
            where="the config",
            fix="leave out data.format, or the templates",
        )
    if templated:
        return _template_plan(file, config, columns, answers)
    shape = _file_shape(file, config, columns, rows, answers)
    if answers and rows and all(_is_judged(shape, row.values) for row in rows):
        fix = "keep the rows whose label is true, and leave the column out; or say what a row is with data.prompt and data.completion"
        raise BadInput(JUDGED, where=f"{file.path}: columns {listed(columns)}", fix=fix)
    if config.examples and shape.kind != "instances":
        raise _no_examples(file, f"rows of the format {shape.kind}")
    fixed = config.format != "auto"
    system = _system(file, config, columns, shape.kind)
    notes: Counter[str] = Counter()
    raw_text = shape.kind == "text" and (answers or fixed)
    padded = file.kind in COLUMNAR

    def of_shape(values: dict[str, Any]) -> tuple[shapes.Turns, shapes.Tools]:
        pair_of = (shape.prompt, shape.completion)
        if shape == _Shape("messages", "prompt"):
            return shapes.from_prompt_and_completion(values, notes, answers=answers, padded=padded)
        if shape.kind == "messages":
            return shapes.from_messages(values, shape.prompt, notes, answers=answers, padded=padded)
        if shape.kind == "alpaca":
            return shapes.from_alpaca(values, notes, answers=answers)
        if shape.kind == "instances":
            return shapes.from_instance(values, pair_of, config.examples, notes, answers=answers), ()
        if shape.kind == "text":
            return shapes.from_text(cell(values, "text"), trained=answers, raw=raw_text), ()
        return shapes.from_pair(values, pair_of, notes, answers=answers), ()

    def build(values: dict[str, Any]) -> tuple[shapes.Turns, shapes.Tools]:
        own = _shape_of(values, answers)
        if own is not None and not fixed:
            same = own == shape if answers else (own.kind, own.prompt) == (shape.kind, shape.prompt)
            if not same:
                raise RowError(f"mixed formats: this row is {own}, the file is {shape}")
        elif shape.kind == "text" and not fixed and (others := _others_than_text(values)):
            raise RowError(f"mixed formats: this row has {listed(others)} beside its text, the file is text")
        elif own is not None and own.kind == "messages" and shape.kind != "messages":
            raise RowError(f"mixed formats: this row is messages, the file is {shape}")
        if answers and _is_judged(shape, values):
            raise RowError(JUDGED)
        messages, tools = of_shape(values)
        return _with_system(messages, system, values), tools

    raw = answers or raw_text or shape.kind == "messages"
    return _Plan(shape.kind, _described(shape, columns, config, raw, rows), build, notes, _texts_of(shape))


def _texts_of(shape: _Shape) -> tuple[str, ...]:
    """Columns that become prompt and answer as they stand; those of an instance are its task file's."""
    return {"pairs": (shape.prompt, shape.completion), "alpaca": ("instruction", "input", "output")}.get(shape.kind, ())


def _described(shape: _Shape, columns: list[str], config: DataConfig, raw: bool, rows: list[Row]) -> str:
    """What was recognised, in words to be said aloud."""
    if shape.kind in ("messages", "text"):
        description = shape.kind if raw else "a prompt in each"
        if shape.prompt == "conversations":
            description += ' from "conversations" (ShareGPT: human → user, gpt → assistant)'
            description += ", system messages from the column" if "system" in columns else ""
        if shape.prompt == "prompt":
            description += ' from "prompt" and "completion", of which the completion is trained'
        return description + (", with tools" if {"tools", "functions"} & set(columns) and raw and shape.kind == "messages" else "")
    if shape.kind == "alpaca":
        before = [words for name, words in (("system", "{system}"), ("history", "{history}, trained too")) if name in columns]
        first = f"; before it {' and '.join(before)}" if before else ""
        left_out = [name for name in columns if name not in ALPACA and name != config.group_by]
        unused = f"; not used: {listed(left_out)}" if left_out else ""
        return f'alpaca: columns {listed(columns)} → prompt "{{instruction}}\\n\\n{{input}}", completion "{{output}}"{first}{unused}'
    if shape.kind == "instances":
        there = len(shapes.solved_examples(rows[0].values)) if rows else 0
        shown = f"{min(there, config.examples)} of its {there} solved examples, " if config.examples else ""
        several = ", the first of several outputs" if "references" in columns else ""
        return f"instances of a task → prompt: its definition, {shown}{{{shape.prompt}}}; completion {{{shape.completion}}}{several}"
    description = f'columns {listed(columns)} → prompt "{{{shape.prompt}}}"'
    return description + (f', completion "{{{shape.completion}}}"' if shape.completion in columns else "")


JUDGED = '"label" is true or false, which marks good and bad answers, and here every answer would be learned'


def _is_judged(shape: _Shape, values: dict[str, Any]) -> bool:
    """Whether an answer is marked as good or bad: `label` true or false beside a completion (TRL's KTO rows)."""
    return (shape.completion == "completion" or shape.prompt == "prompt") and isinstance(values.get("label"), bool)


def _no_examples(file: File, what: str) -> BadInput:
    return BadInput(f"data.examples is for task files with instances, this file holds {what}", where=str(file.path), fix="data.examples: 0")


def _file_shape(file: File, config: DataConfig, columns: list[str], rows: list[Row], answers: bool) -> _Shape:
    """The format of the file: the one that is asked for, or that of the first row which shows one.

    A null says nothing: where another row has a value in that column, this one is looked at as if it had it too. Otherwise the one row
    of a labelled set whose label is missing would be raw text, and all labels would be forgotten with it.
    """
    if config.format == "auto":
        known: dict[str, Any] = {}
        for row in rows:
            known |= {name: value for name, value in row.values.items() if value is not None and known.get(name) is None}
        whole = [{name: known.get(name) if value is None else value for name, value in row.values.items()} for row in rows]
        shown = [_shape_of(values, answers) for values in whole]
        found = next((shape for shape in shown if shape is not None), None)
        n_unclear = sum(shape is None and bool(_others_than_text(values)) for shape, values in zip(shown, whole, strict=True))
        if found is None or (found.kind == "text" and n_unclear >= shown.count(found)):  # fewer are bad rows of a file of text
            raise _which_columns(file, config, columns)
        return found
    if config.format == "pairs":
        wanted = [pair for pair in PAIRS if pair[0] in columns and (pair[1] in columns or not answers)]
        if not wanted:
            raise _which_columns(file, config, columns)
        return _Shape("pairs", *wanted[0])
    lists: list[str] = [name for name in ("messages", "conversations") if name in columns]
    if not lists and any(shapes.has_turns(row.values, "prompt") for row in rows):
        lists = ["prompt"]
    shape = {
        "messages": _Shape("messages", *(lists or ["messages"])[:1]),
        "instances": _Shape("instances", *next((pair for pair in INSTANCES if pair[0] in columns), INSTANCES[0])),
        "alpaca": _Shape("alpaca", "instruction", "output"),
        "text": _Shape("text", "text"),
    }[config.format]
    needed = [*(["definition"] if shape.kind == "instances" else []), shape.prompt, *([shape.completion] if answers else [])]
    missing = [column for column in needed if column and column not in columns]
    if missing:
        raise BadInput(
            f'data.format is {config.format}, but there is no column "{missing[0]}"',
            where=f"{file.path}: columns {listed(columns)}",
            fix="leave out data.format, or say which columns to use with data.prompt and data.completion",
        )
    return shape


def _text_file_plan(file: File, config: DataConfig, answers: bool) -> _Plan:
    """A .txt file: one raw text to learn, or one prompt per line to answer."""
    if config.format not in ("auto", "text") and answers:
        raise BadInput(f"data.format is {config.format}, but a text file has no columns", where=str(file.path), fix="data.format: text")
    if answers or config.format == "text":
        if answers and (config.prompt is not None or config.completion is not None):
            raise BadInput(
                "data.prompt and data.completion need columns, and a text file has none",
                where=str(file.path),
                fix='if its lines are rows of a table, name it ".tsv" or ".csv"; to learn the text itself leave the templates out',
            )
        _system(file, config, [], "text")
        description = "raw text" if answers else "a text to continue in each line"
        return _Plan("text", description, lambda values: (shapes.from_text(values["text"], trained=answers, raw=True), ()))
    first = config.phrasings[0] if config.phrasings else None
    names = columns_of(first or "")
    if first is not None and len(names) != 1:
        raise BadInput(
            f"data.prompt has {len(names)} columns, and a line of a text file can fill only one",
            where=f"{file.path}: data.prompt {quoted(first)}",
            fix=f"give a CSV or JSONL file with the columns {', '.join(names)}" if names else "put a column in braces: {text}",
        )
    prompt = compile_template(first, names) if first is not None else None
    system = _system(file, config, names, "pairs")
    notes: Counter[str] = Counter()

    def build(values: dict[str, Any]) -> tuple[shapes.Turns, shapes.Tools]:
        row = {names[0]: values["text"]} if prompt is not None else values
        return _with_system(shapes.pair(prompt.fill(row) if prompt else values["text"], None, answers, notes), system, row), ()

    description = "a prompt in each line" + (f" → prompt {quoted(first)}" if first is not None else "")
    return _Plan("pairs", description, build, notes)


def _template_plan(file: File, config: DataConfig, columns: list[str], answers: bool) -> _Plan:
    """Pairs by templates over the columns. Of several phrasings the first makes every prompt; data/sources.py spreads the others."""
    if not config.phrasings or (config.completion is None and answers):
        given, missing = ("data.completion", "data.prompt") if not config.phrasings else ("data.prompt", "data.completion")
        raise BadInput(f"{given} without {missing}", where="the config", fix=f'{missing}: "{{column}}", with one of {listed(columns)}')
    if config.examples:
        raise _no_examples(file, "rows that data.prompt puts into words")
    prompts = [_template(file, config, "data.prompt", text, columns) for text in config.phrasings]
    prompt = prompts[0]
    completion: Template | None = None
    if config.completion is not None:
        try:
            completion = _template(file, config, "data.completion", config.completion, columns)
        except BadInput:
            if answers:
                raise  # a file of prompts may well lack the column of the answers
    system = _system(file, config, columns, "pairs")
    notes: Counter[str] = Counter()

    def build(values: dict[str, Any]) -> tuple[shapes.Turns, shapes.Tools]:
        own = _shape_of(values, answers)
        if own == _Shape("messages", "messages") and "messages" not in prompt.columns:
            raise RowError("mixed formats: this row is messages, the file is pairs")
        absent = completion is None or (not answers and any(values.get(column) in (None, "") for column in completion.columns))
        wanted = None if completion is None or absent else completion.fill(values)
        for other in prompts[1:]:
            if not other.fill(values).strip():
                raise RowError("the prompt is empty in one of its phrasings")
        return _with_system(shapes.pair(prompt.fill(values), wanted, answers, notes), system, values), ()

    description = f"columns {listed(columns)} → prompt {quoted(config.phrasings[0])}"
    if len(prompts) > 1:
        description += f" and {len(prompts) - 1} other phrasing{'s' if len(prompts) > 2 else ''}"
    if completion is not None and config.completion is not None:
        description += f", completion {quoted(config.completion)}"
    texts = [
        part[0] for template in (*prompts, completion) if template for part in template.parts if not isinstance(part, str) and not part[1]
    ]
    return _Plan("pairs", description, build, notes, tuple(dict.fromkeys(texts)))


def _template(file: File, config: DataConfig, key: str, text: str, columns: list[str]) -> Template:
    where = f"{file.path}: columns {listed(columns)}"
    try:
        template = compile_template(text, columns)
    except KeyError as error:
        name = str(error.args[0])
        fix = nearest(name, [clip(column) for column in columns])
        if _header_hint(file, config) and not any(column in columns for column in _identifiers(config)):
            fix += f"\nif the first line of the file is data: data.header: false and {columns_example(len(columns))}"
        raise BadInput(f"{key} has {{{name}}}, which is no column of the file", where=where, fix=fix) from None
    if not template.columns and key != "data.system":
        same = f" ({{{text}}}?)" if text in columns else ""
        raise BadInput(f"{key} names no column, so every row would get the same text", where=where, fix=f"put a column in braces{same}")
    return template


def _identifiers(config: DataConfig) -> list[str]:
    texts = [text for text in (*config.phrasings, config.completion, config.system) if text is not None]
    return [name for text in texts for name in placeholders(text)]


def _header_hint(file: File, config: DataConfig) -> bool:
    return file.kind in ("csv", "tsv") and config.header


def _system(file: File, config: DataConfig, columns: list[str], kind: str) -> Template | None:
    if config.system is None:
        return None
    if kind == "text":
        raise BadInput("raw text has no system message", where=f"{file.path}: data.system", fix="leave out data.system")
    return _template(file, config, "data.system", config.system, columns)


def _which_columns(file: File, config: DataConfig, columns: list[str]) -> BadInput:
    """Neither the names of the columns nor the config say what is the prompt and what the answer."""
    if {"chosen", "rejected"} <= set(columns):
        return _preferences(file, columns)
    names = columns or ["question", "answer"]
    answer = next((name for name in names if name.lower() in ANSWER_COLUMNS), names[-1])
    prompt = next((name for name in names if name == "text" and name != answer), next((name for name in names if name != answer), answer))
    fix = f'data.prompt: "{{{clip(prompt)}}}"\ndata.completion: "{{{clip(answer)}}}"'
    if len(columns) == 1:
        fix = f'to learn the text itself, call the column "text" instead of "{clip(columns[0])}"; a pair needs two columns'
    elif "text" in columns:
        fix += "\nor data.format: text, to learn the text alone"
    looks_like_data = any(len(name) > 40 or name.count(" ") > 3 or name.replace(".", "").isdigit() for name in columns)
    if _header_hint(file, config) and looks_like_data:
        fix = f"if the first line of the file is data: data.header: false and {columns_example(len(columns))}\notherwise " + fix
    return BadInput(
        "the columns do not say which is the prompt and which the answer",
        where=f"{file.path}: columns {listed(columns) or '(none)'}",
        fix=fix,
    )


def _preferences(file: File, columns: list[str]) -> BadInput:
    asked = next((name for name in ("prompt", "question", "instruction", "input") if name in columns), "")
    fix = 'write the messages of "chosen" as "messages", one list a row, to learn the chosen answers'
    if asked:
        fix = f'to learn the chosen answers: data.prompt: "{{{asked}}}" and data.completion: "{{chosen}}" where they are texts; {fix} where they are lists'
    return BadInput(
        "these rows are preferences (chosen, rejected), and here answers are learned, not compared",
        where=f"{file.path}: columns {listed(columns)}",
        fix=fix,
    )


def _with_system(messages: tuple[Message, ...], system: Template | None, values: dict[str, Any]) -> tuple[Message, ...]:
    if system is None or messages[0].role == "system":
        return messages
    return (Message("system", system.fill(values), trained=False), *messages)
