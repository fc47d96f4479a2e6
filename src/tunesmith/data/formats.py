"""Files of examples, of every common kind, as conversations that know their line.

    read = read_conversations(DataConfig(train="sms.csv", prompt="Spam or ham?\\n\\n{text}", completion="{label}"))
    read.conversations[0].source         # "sms.csv:2": the line where the row starts, counted from 1
    print("\\n".join(read.said))         # 'sms.csv: CSV, 1,200 rows, columns label, text → prompt "…", completion "…"'

Two steps. Bytes become rows (JSONL, JSON, CSV, TSV, Parquet, text; each also as .gz), then rows become messages
(`messages`, `pairs`, `alpaca`, `text`, or templates over the columns). Both are streams: only what is kept stays in memory.

Why not a data-frame library: they rename repeated columns, turn gaps into NaN, join lines at a stray quote and count records
instead of lines, all without a word. Here a row is read as it stands, or it is a `BadRow` with its true line and the reason;
`data.on_bad_row` decides whether the first one stops the reading or all of them are counted. Damage that makes every later
row doubtful (another encoding, a cut .gz, a JSON document that breaks off, a quote that swallows the file) always stops it.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from tunesmith.config import DataConfig
from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.readers import File, Row, clip, columns_example, listed, peek, recognise, rows_of, type_name
from tunesmith.errors import BadInput, nearest

# Column pairs that other tools use for a prompt and its answer, most explicit first.
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("instruction", "response"), ("input", "output"))
ANSWER_COLUMNS = {"label", "answer", "output", "completion", "response", "target", "category", "class", "intent"}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
SHAREGPT = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}  # {"from", "value"}
MEANT_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "ai": "assistant"}
# Parts of a message that the model would have to see and that are not rendered: leaving them out would teach something else.
NOT_RENDERED = ("tool_calls", "function_call", "audio", "reasoning_content", "reasoning", "thinking")

PLACEHOLDER = re.compile(r"\{([^{}\n]+)\}")


@dataclass(frozen=True)
class BadRow:
    """A row that was left out: where it is ("train.csv:418") and why."""

    source: str
    problem: str


@dataclass(frozen=True)
class Read:
    """What a file held.

    format    messages, pairs, alpaca or text
    said      sentences to print: what was recognised, and what was done about it
    skipped   the bad rows, in order; empty unless data.on_bad_row is "skip"
    n_rows    rows in the file: len(conversations) + len(skipped)
    """

    conversations: list[Conversation]
    format: str
    said: list[str]
    skipped: list[BadRow]
    n_rows: int


def read_conversations(config: DataConfig, path: str | Path | None = None) -> Read:
    """The examples of `path` (by default `config.train`): every conversation ends in an answer or is raw text.

    Raises BadInput for a file that cannot be read, for columns that do not fit, and, unless `config.on_bad_row` is "skip",
    at the first bad row.
    """
    return _read(config, Path(config.train if path is None else path), answers=True)


def read_prompts(config: DataConfig, path: str | Path) -> Read:
    """The rows of `path` as prompts: as `read_conversations`, but the answer may be absent (it is kept where it is there).

    A .txt file holds one prompt per line; where `config.prompt` is a template with one column, the line is put there. With
    `config.format` "text", texts are to be continued (role "text", not trained) instead of answered (role "user").
    """
    return _read(config, Path(path), answers=False)


def _read(config: DataConfig, path: Path, answers: bool) -> Read:
    file = recognise(path, config)
    notes = [f"{path.name}: {file.note}"] if file.note else []
    rows = rows_of(file, config, notes, one_per_line=not answers)
    peeked = peek(rows, stop_at_bad=config.on_bad_row == "error")
    if not peeked:
        raise BadInput("the file holds no rows", where=str(path), fix="give a file with at least one example")
    good = [row for row in peeked if not row.problem]
    skipped: list[BadRow] = []
    conversations: list[Conversation] = []
    # Without one good row there is nothing to recognise; every row is then a bad one and the reasons are their own.
    plan = _plan(file, config, good, answers) if good else None
    for row in chain(peeked, rows):
        source, problem = f"{path.name}:{row.line}", row.problem
        if not problem and plan is not None:
            try:
                messages = plan.build(row.values)
                conversations.append(Conversation(messages, source, {} if plan.format == "messages" or file.kind == "text" else row.values))
            except _RowError as error:
                problem = str(error)
        if problem and config.on_bad_row == "error":
            fix = "repair the row, or leave such rows out, counted, with data.on_bad_row: skip"
            raise BadInput(problem, where=f"{path}:{row.line}", fix=fix)
        if problem:
            skipped.append(BadRow(source, problem))
    if not conversations or plan is None:
        first = skipped[0]
        raise BadInput(
            f"none of the {len(skipped):,} rows can be used",
            where=str(path),
            fix=f"the first problem is at {first.source}: {first.problem}",
        )
    n_rows = len(conversations) + len(skipped)
    said = [f"{path.name}: {file}, {n_rows:,} {'row' if n_rows == 1 else 'rows'}, {plan.description}", *notes, *plan.remarks()]
    if skipped:
        said.append(f"{path.name}: {len(skipped):,} of {n_rows:,} rows skipped, the first at {skipped[0].source}: {skipped[0].problem}")
    return Read(conversations, plan.format, said, skipped, n_rows)


class _RowError(Exception):
    """One row cannot be used; the message says why."""


# ------------------------------------------------------------------------------------------------------------ templates


@dataclass(frozen=True)
class Template:
    """Text with columns in braces, cut into literal texts and columns.

    `{name}` inserts a text as it is and any other value as JSON; `{name:json}` inserts every value as JSON. Braces around
    anything that is neither a column nor an identifier are literal, so that a template can be JSON itself:
    `{"intent": {intent:json}, "slots": {slots}}`.
    """

    parts: tuple[str | tuple[str, bool], ...]

    @property
    def columns(self) -> list[str]:
        return [part[0] for part in self.parts if not isinstance(part, str)]

    def fill(self, values: dict[str, Any]) -> str:
        return "".join(part if isinstance(part, str) else _cell(values, *part) for part in self.parts)


def _compile(text: str, columns: Sequence[str]) -> Template:
    """Raises KeyError(name) at a placeholder that is no column."""
    parts: list[str | tuple[str, bool]] = []
    end = 0
    for match in PLACEHOLDER.finditer(text):
        name, as_json = match[1], False
        if name not in columns and name.endswith(":json"):
            name, as_json = name.removesuffix(":json"), True
        if name not in columns:
            if not name.isidentifier():
                continue
            raise KeyError(name)
        parts += [text[end : match.start()], (name, as_json)]
        end = match.end()
    return Template((*parts, text[end:]))


def columns_of(template: str) -> list[str]:
    """The columns that a template names, each once, as far as they can be told without a file."""
    names = (match[1].removesuffix(":json") for match in PLACEHOLDER.finditer(template))
    return list(dict.fromkeys(name for name in names if name.isidentifier()))


def filled(template: str, values: dict[str, Any]) -> str:
    """The template with these columns put in."""
    return _compile(template, list(values)).fill(values)


def looks_filled(template: str, text: str) -> bool:
    """Whether a text could be the template with its columns put in."""
    parts = _compile(template, columns_of(template)).parts
    return re.fullmatch("".join(re.escape(part) if isinstance(part, str) else ".*" for part in parts), text, re.S) is not None


def _cell(values: dict[str, Any], column: str, as_json: bool = False) -> str:
    value = values.get(column)
    if value is None:
        raise _RowError(
            f'"{clip(column)}" is {"null" if column in values else "missing"}; this row has {listed(list(values)) or "no columns"}'
        )
    return value if isinstance(value, str) and not as_json else json.dumps(value, ensure_ascii=False)


def _quoted(template: str) -> str:
    return json.dumps(clip(template, 120).replace("\\n", "\n"), ensure_ascii=False)


# ------------------------------------------------------------------------------------------------------ rows → messages


@dataclass(frozen=True)
class _Plan:
    """How every row of this file becomes messages. `unused`: parts of messages that were left out, counted."""

    format: str
    description: str
    build: Callable[[dict[str, Any]], tuple[Message, ...]]
    unused: Counter[str] = field(default_factory=Counter)

    def remarks(self) -> list[str]:
        return [f'"{clip(key)}" of {n:,} {"message" if n == 1 else "messages"} is not used' for key, n in sorted(self.unused.items())]


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
    fixed = config.format != "auto"
    system = _system(file, config, columns, shape.kind)
    unused: Counter[str] = Counter()
    raw_text = shape.kind == "text" and (answers or fixed)

    def build(values: dict[str, Any]) -> tuple[Message, ...]:
        own = _shape_of(values, answers)
        if own is not None and not fixed:
            same = own == shape if answers else (own.kind, own.prompt) == (shape.kind, shape.prompt)
            if not same:
                raise _RowError(f"mixed formats: this row is {own}, the file is {shape}")
        elif own is not None and own.kind == "messages" and shape.kind != "messages":
            raise _RowError(f"mixed formats: this row is messages, the file is {shape}")
        if shape.kind == "messages":
            messages = _from_messages(values, shape.prompt, answers, unused)
        elif shape.kind == "text":
            messages = _from_text(_cell(values, "text"), trained=answers, raw=raw_text)
        else:
            prompt = _side(values, shape.prompt)
            if shape.kind == "alpaca" and values.get("input") not in (None, ""):
                prompt += "\n\n" + _side(values, "input")
            absent = not answers and values.get(shape.completion) is None
            messages = _from_pair(prompt, None if absent else _side(values, shape.completion), answers)
        return _with_system(messages, system, values)

    if shape.kind in ("messages", "text"):
        description = shape.kind if answers or raw_text or shape.kind == "messages" else "a prompt in each"
        if shape.prompt == "conversations":
            description += ' from "conversations" (ShareGPT: human → user, gpt → assistant)'
            description += ", system messages from the column" if "system" in columns else ""
    elif shape.kind == "alpaca":
        description = f'alpaca: columns {listed(columns)} → prompt "{{instruction}}\\n\\n{{input}}", completion "{{output}}"'
    else:
        description = f'columns {listed(columns)} → prompt "{{{shape.prompt}}}"'
        description += f', completion "{{{shape.completion}}}"' if shape.completion in columns else ""
    return _Plan(shape.kind, description, build, unused)


def _file_shape(file: File, config: DataConfig, columns: list[str], rows: list[Row], answers: bool) -> _Shape:
    """The format of the file: the one that is asked for, or that of the first row which shows one."""
    if config.format == "auto":
        found = next((shape for row in rows if (shape := _shape_of(row.values, answers)) is not None), None)
        if found is None:
            raise _which_columns(file, config, columns)
        return found
    if config.format == "pairs":
        wanted = [pair for pair in PAIRS if pair[0] in columns and (pair[1] in columns or not answers)]
        if not wanted:
            raise _which_columns(file, config, columns)
        return _Shape("pairs", *wanted[0])
    shape = {
        "messages": _Shape("messages", "conversations" if "conversations" in columns and "messages" not in columns else "messages"),
        "alpaca": _Shape("alpaca", "instruction", "output"),
        "text": _Shape("text", "text"),
    }[config.format]
    needed = [shape.prompt, shape.completion] if answers else [shape.prompt]
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
        return _Plan("text", description, lambda values: _from_text(values["text"], trained=answers, raw=True))
    names = columns_of(config.prompt or "")
    if config.prompt is not None and len(names) != 1:
        raise BadInput(
            f"data.prompt has {len(names)} columns, and a line of a text file can fill only one",
            where=f"{file.path}: data.prompt {_quoted(config.prompt)}",
            fix=f"give a CSV or JSONL file with the columns {', '.join(names)}" if names else "put a column in braces: {text}",
        )
    prompt = _compile(config.prompt, names) if config.prompt is not None else None
    system = _system(file, config, names, "pairs")

    def build(values: dict[str, Any]) -> tuple[Message, ...]:
        row = {names[0]: values["text"]} if prompt is not None else values
        return _with_system(_from_pair(prompt.fill(row) if prompt else values["text"], None, answers), system, row)

    description = "a prompt in each line" + (f" → prompt {_quoted(config.prompt)}" if config.prompt is not None else "")
    return _Plan("pairs", description, build)


def _template_plan(file: File, config: DataConfig, columns: list[str], answers: bool) -> _Plan:
    if config.prompt is None or (config.completion is None and answers):
        given, missing = ("data.completion", "data.prompt") if config.prompt is None else ("data.prompt", "data.completion")
        raise BadInput(f"{given} without {missing}", where="the config", fix=f'{missing}: "{{column}}", with one of {listed(columns)}')
    prompt = _template(file, config, "data.prompt", config.prompt, columns)
    completion: Template | None = None
    if config.completion is not None:
        try:
            completion = _template(file, config, "data.completion", config.completion, columns)
        except BadInput:
            if answers:
                raise  # a file of prompts may well lack the column of the answers
    system = _system(file, config, columns, "pairs")

    def build(values: dict[str, Any]) -> tuple[Message, ...]:
        own = _shape_of(values, answers)
        if own == _Shape("messages", "messages") and "messages" not in prompt.columns:
            raise _RowError("mixed formats: this row is messages, the file is pairs")
        absent = completion is None or (not answers and any(values.get(column) in (None, "") for column in completion.columns))
        answer = None if completion is None or absent else completion.fill(values)
        return _with_system(_from_pair(prompt.fill(values), answer, answers), system, values)

    description = f"columns {listed(columns)} → prompt {_quoted(config.prompt)}"
    if completion is not None and config.completion is not None:
        description += f", completion {_quoted(config.completion)}"
    return _Plan("pairs", description, build)


def _template(file: File, config: DataConfig, key: str, text: str, columns: list[str]) -> Template:
    where = f"{file.path}: columns {listed(columns)}"
    try:
        template = _compile(text, columns)
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
    texts = [text for text in (config.prompt, config.completion, config.system) if text is not None]
    return [match[1].removesuffix(":json") for text in texts for match in PLACEHOLDER.finditer(text)]


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
    names = columns or ["question", "answer"]
    answer = next((name for name in names if name.lower() in ANSWER_COLUMNS), names[-1])
    prompt = next((name for name in names if name == "text"), next((name for name in names if name != answer), answer))
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


def _side(values: dict[str, Any], column: str) -> str:
    value = values.get(column)
    if isinstance(value, list) and any(isinstance(part, dict) and "role" in part for part in value):
        raise _RowError(f'"{column}" is a list of messages; put all turns into one "messages" list')
    return _cell(values, column)


def _from_pair(prompt: str, answer: str | None, answers: bool) -> tuple[Message, ...]:
    if not prompt.strip():
        raise _RowError("the prompt is empty")
    if answer is not None and not answer.strip():
        if answers:
            raise _RowError("the answer is empty")
        answer = None
    user = Message("user", prompt, trained=False)
    return (user,) if answer is None else (user, Message("assistant", answer, trained=True))


def _from_text(text: str, trained: bool, raw: bool) -> tuple[Message, ...]:
    if not text.strip():
        raise _RowError("the text is empty")
    return (Message("text" if raw else "user", text, trained=trained and raw),)


def _with_system(messages: tuple[Message, ...], system: Template | None, values: dict[str, Any]) -> tuple[Message, ...]:
    if system is None or messages[0].role == "system":
        return messages
    return (Message("system", system.fill(values), trained=False), *messages)


def _from_messages(values: dict[str, Any], column: str, answers: bool, unused: Counter[str]) -> tuple[Message, ...]:
    """OpenAI's layout, or ShareGPT's: one system message at most, then user and assistant in turn, a trained answer among them."""
    for key in ("tools", "functions"):
        if values.get(key):
            raise _RowError(f'"{key}" are not supported yet')
    turns = values.get(column)
    if not isinstance(turns, list) or not turns:
        raise _RowError(f'"{column}" should be a list of messages, it is {"an empty list" if turns == [] else type_name(turns)}')
    if column == "conversations":
        turns = [_from_sharegpt(turn, number) for number, turn in enumerate(turns, 1)]
        if isinstance(system := values.get("system"), str) and system.strip() and turns[0].get("role") != "system":
            turns = [{"role": "system", "content": system}, *turns]
    seen: Counter[str] = Counter()
    messages = [_message(turn, number, seen) for number, turn in enumerate(turns, 1)]
    expected = "user"
    for number, message in enumerate(messages, 1):
        if message.role == "system":
            if number > 1:
                raise _RowError(f"message {number} is a system message; only the first may be one")
            continue
        if message.role != expected:
            raise _RowError(f"message {number} is by {message.role} where {expected} should speak: turns alternate, user first")
        expected = "user" if expected == "assistant" else "assistant"
    last = messages[-1]
    if last.role == "system" or (answers and last.role != "assistant"):
        raise _RowError(f"the last message is by {last.role}, so there is nothing to {'learn' if answers else 'answer'} after it")
    trained = any(message.trained for message in messages)
    if not trained and (answers or last.role == "assistant"):
        raise _RowError("no answer is trained: every assistant message has weight 0")
    unused += seen
    return tuple(messages)


def _from_sharegpt(turn: Any, number: int) -> dict[str, Any]:
    """{"from": "human", "value": …} as {"role": "user", "content": …}."""
    if not isinstance(turn, dict):
        raise _RowError(f'message {number} should be {{"from": …, "value": …}}, it is {type_name(turn)}')
    if "from" not in turn:
        return turn  # some files have OpenAI's messages under ShareGPT's name
    speaker = turn["from"]
    if not isinstance(speaker, str) or speaker not in SHAREGPT:
        said = f'"{clip(speaker)}"' if isinstance(speaker, str) else type_name(speaker)
        raise _RowError(f"message {number} is from {said}; known: {', '.join(SHAREGPT)}")
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    return {**rest, "role": SHAREGPT[speaker], "content": turn.get("value")}


def _message(turn: Any, number: int, seen: Counter[str]) -> Message:
    if not isinstance(turn, dict):
        raise _RowError(f'message {number} should be {{"role": …, "content": …}}, it is {type_name(turn)}')
    given = turn.get("role")
    if given in ("tool", "function"):
        raise _RowError(f"message {number} has the role {given}, which is not supported yet")
    if not isinstance(given, str) or given not in ROLES:
        said = f'"{clip(given)}"' if isinstance(given, str) else "missing" if "role" not in turn else type_name(given)
        meant = f'; write "{MEANT_ROLES[given]}"' if isinstance(given, str) and given in MEANT_ROLES else f"; known: {', '.join(ROLES)}"
        raise _RowError(f"the role of message {number} is {said}{meant}")
    role, weight = ROLES[given], turn.get("weight")
    for key in turn.keys() - {"role", "content", "weight"}:
        if turn[key] in (None, "", [], {}):
            continue
        if key in NOT_RENDERED:
            raise _RowError(f'message {number} has "{key}", which is not supported yet')
        seen[key] += 1
    content = _content(turn.get("content"), number)
    if weight is not None and role != "assistant":
        raise _RowError(f"message {number} has a weight, but only answers (assistant) are trained")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise _RowError(f"the weight of message {number} is {clip(json.dumps(weight))}; it should be 0 or 1")
    if role == "assistant" and not content.strip():
        raise _RowError("the answer is empty" + (f" (message {number})" if number > 2 else ""))
    if role == "user" and not content.strip():
        raise _RowError(f"message {number} is empty")
    return Message(role, content, trained=role == "assistant" and weight != 0)


def _content(content: Any, number: int) -> str:
    """A text, or text parts joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise _RowError(f"the content of message {number} is {type_name(content)}; it should be a text")
    parts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(part, dict) or kind != "text" or not isinstance(part.get("text"), str):
            raise _RowError(
                f"message {number} has a part that is not text" + (f" but {clip(kind)}" if isinstance(kind, str) and kind != "text" else "")
            )
        parts.append(part["text"])
    return "".join(parts)
