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

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, time, timedelta
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast
from uuid import UUID

from tunesmith.config import DataConfig
from tunesmith.data.conversation import Conversation, Message
from tunesmith.errors import BadInput, MachineFailed, nearest

KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".txt": "text"}
KIND_NAMES = {"jsonl": "JSONL", "json": "JSON", "csv": "CSV", "tsv": "TSV", "parquet": "Parquet", "text": "text"}
UNPACK, SAVE_AS = "unpack it", "save the sheet as CSV"
NOT_READ = {
    ".zip": UNPACK,
    ".tar": UNPACK,
    ".tgz": UNPACK,
    ".zst": UNPACK,
    ".xz": UNPACK,
    ".bz2": UNPACK,
    ".xlsx": SAVE_AS,
    ".xls": SAVE_AS,
}

# Column pairs that other tools use for a prompt and its answer, most explicit first.
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("instruction", "response"), ("input", "output"))
ANSWER_COLUMNS = {"label", "answer", "output", "completion", "response", "target", "category", "class", "intent"}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# Parts of a message that the model would have to see and that are not rendered: leaving them out would teach something else.
NOT_RENDERED = ("tool_calls", "function_call", "audio", "reasoning_content", "reasoning", "thinking")

PEEK_ROWS = 100  # rows that decide what the file is
MAX_RECORD_LINES = 1000  # a quoted CSV cell over more lines than this is a stray quote, not a text
MAX_DEPTH = 100  # of nested JSON; Python's own limits differ by version and by direction (read, write)
PLACEHOLDER = re.compile(r"\{([^{}\n]+)\}")
BLANK = re.compile(r"[ \t\r\n]*")


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
    file = _recognise(path, config)
    notes = [f"{path.name}: {file.note}"] if file.note else []
    rows = _rows(file, config, notes, one_per_line=not answers)
    peeked = _peek(rows, stop_at_bad=config.on_bad_row == "error")
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


# ---------------------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class _File:
    """A file whose kind is known. `note`: what had to be guessed, to be said aloud."""

    path: Path
    kind: str
    gzipped: bool
    separator: str = ""
    note: str = ""

    def __str__(self) -> str:
        name = KIND_NAMES[self.kind]
        usual = {"csv": ",", "tsv": "\t"}.get(self.kind, "")
        return (f"{name} separated by {self.separator!r}" if self.separator != usual else name) + (" (gzip)" if self.gzipped else "")

    def iconv(self, encoding: str) -> str:
        """The command that rewrites this file as UTF-8."""
        name = str(self.path)
        plain = self.path.with_name(self.path.name[:-3]) if self.gzipped and self.path.suffix.lower() == ".gz" else self.path
        target = plain.with_name(f"{plain.stem}.utf8{plain.suffix}")
        if self.gzipped:
            return f'gunzip -c "{name}" | iconv -f {encoding} -t UTF-8 > "{target}"'
        return f'iconv -f {encoding} -t UTF-8 "{name}" > "{target}"'


def _recognise(path: Path, config: DataConfig) -> _File:
    """The kind of a file: its extension decides, its first bytes where the extension is unknown."""
    _must_be_a_file(path)
    name = path.name.lower()
    gzipped = name.endswith(".gz")
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix in NOT_READ:
        raise BadInput(f"{suffix} files are not read", where=str(path), fix=NOT_READ[suffix])
    file = _File(path, KINDS.get(suffix, ""), gzipped)
    with _open(file) as stream:
        head = stream.read(1 << 16)
    if not head:
        raise BadInput("the file is empty", where=str(path), fix="give a file with at least one example")
    if head[:2] == b"\x1f\x8b":
        raise BadInput("this is a gzip file", where=str(path), fix=f'name it "{path.name}.gz", or unpack it')
    if not file.kind:
        file = replace(file, kind=_sniff(head, config))
        file = replace(file, note=f'the extension "{suffix}" is unknown; read as {KIND_NAMES[file.kind]}, judging by the content')
    if file.kind == "parquet":
        return file
    _must_not_be_utf16(file, head)
    if not head.removeprefix(b"\xef\xbb\xbf").strip() and len(head) < 1 << 16:
        raise BadInput("the file holds only blank lines", where=str(path), fix="give a file with at least one example")
    if file.kind in ("csv", "tsv"):
        file = replace(file, separator=_separator(file.kind, head, config))
    return file


def _must_be_a_file(path: Path) -> None:
    try:
        if path.is_file():
            return
        folder, is_folder, exists = path.parent, path.is_dir(), path.exists()
        names = [p.name for p in (path if is_folder else folder).iterdir() if p.is_file()] if is_folder or folder.is_dir() else []
    except OSError as error:
        raise BadInput(
            f"this path cannot be read: {error.strerror}", where=str(path)[:300], fix="check the path and its permissions"
        ) from None
    if is_folder:
        readable = sorted(n for n in names if Path(n.lower().removesuffix(".gz")).suffix in KINDS)
        fix = f"name one file in it: {_listed(readable)}" if readable else "name a file"
        raise BadInput("this is a folder, not a file", where=str(path), fix=fix)
    if exists:
        raise BadInput("this is not a regular file", where=str(path), fix="save the rows to a file first")
    if names:
        raise BadInput("there is no such file", where=str(path), fix=nearest(path.name, sorted(names)[:200]))
    where = "the folder is empty" if folder.is_dir() else f'there is no folder "{folder}"'
    raise BadInput("there is no such file", where=str(path), fix=f"check data.train: {where}")


@contextmanager
def _open(file: _File) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked; damage and permissions become errors of ours."""
    try:
        with gzip.open(file.path, "rb") if file.gzipped else file.path.open("rb") as stream:
            yield cast(IO[bytes], stream)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadInput(
            f"the .gz file is cut short or damaged: {error}", where=str(file.path), fix="fetch or pack the file again; gzip -t tests it"
        ) from None
    except PermissionError:
        raise BadInput("no permission to read this file", where=str(file.path), fix=f'chmod u+r "{file.path}"') from None
    except OSError as error:
        raise MachineFailed(f"the file cannot be read: {error.strerror or error}", where=str(file.path), fix="check the disk") from None


def _must_not_be_utf16(file: _File, head: bytes) -> None:
    """UTF-16 is told by its mark, or by the NUL bytes that every ASCII character has there."""
    encoding = ""
    if head[:4] in (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff"):
        encoding = "UTF-32"
    elif head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "UTF-16"
    else:
        even, odd = head[:4096:2].count(0), head[1:4096:2].count(0)
        if max(even, odd) > 8 * min(even, odd) and max(even, odd) > len(head[:4096]) // 8:
            encoding = "UTF-16LE" if odd > even else "UTF-16BE"
    if encoding:
        at = 0 if encoding in ("UTF-16", "UTF-32") else head.index(0)
        raise BadInput(
            f"the file is {encoding}, not UTF-8", where=f"{file.path}: byte {at} (0x{head[at]:02x}), line 1", fix=file.iconv(encoding)
        )


def _sniff(head: bytes, config: DataConfig) -> str:
    if head[:4] == b"PAR1":
        return "parquet"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    line = text.partition(b"\n")[0]
    if text[:1] == b"{" and _is_row(line.decode("utf-8", "replace")):
        return "jsonl"
    if text[:1] in (b"{", b"["):
        return "json"
    if b"\t" in line:
        return "tsv"
    expects_columns = config.columns is not None or config.prompt is not None
    return "csv" if expects_columns and b"," in line else "text"


def _separator(kind: str, head: bytes, config: DataConfig) -> str:
    """Comma or tab; where the first line has none of them, the tab or semicolon that it does have."""
    line = head.lstrip().partition(b"\n")[0]
    usual = "," if kind == "csv" else "\t"
    one_column = config.columns is not None and len(config.columns) == 1
    others = [mark for mark in "\t;," if mark.encode() in line]
    return usual if one_column or not others or usual in others else others[0]


# ----------------------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class _Row:
    """One row as it stands in the file. `line`: where it starts (Parquet: the row's number); `problem`: why it is bad, or ""."""

    line: int
    values: dict[str, Any]
    problem: str = ""


def _rows(file: _File, config: DataConfig, notes: list[str], one_per_line: bool) -> Iterator[_Row]:
    if file.kind == "jsonl":
        return _jsonl_rows(file)
    if file.kind == "json":
        return _json_rows(file, notes)
    if file.kind == "parquet":
        return _parquet_rows(file)
    if file.kind == "text":
        return _text_rows(file, one_per_line)
    return _delimited_rows(file, config, notes)


def _peek(rows: Iterator[_Row], stop_at_bad: bool) -> list[_Row]:
    """The first rows, until enough good ones are there (or at the first bad one, where that ends the reading anyway)."""
    peeked: list[_Row] = []
    n_good = 0
    while n_good < PEEK_ROWS and (row := next(rows, None)) is not None:
        peeked.append(row)
        n_good += not row.problem
        if row.problem and stop_at_bad:
            break
    return peeked


def _lines(file: _File) -> Iterator[tuple[int, str]]:
    r"""Line number and text with its line end. Only \n ends a line: str.splitlines would also cut at U+2028 inside a string."""
    offset = 0
    with _open(file) as stream:
        for number, raw in enumerate(stream, 1):
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise BadInput(
                    f"the file is not UTF-8: byte 0x{raw[error.start]:02x} is out of place",
                    where=f"{file.path}:{number}: byte {offset + error.start:,} of the file",
                    fix=f"if it was written on Windows: {file.iconv('WINDOWS-1252')}",
                ) from None
            offset += len(raw)
            yield number, text.removeprefix("\ufeff") if number == 1 else text


def _text_rows(file: _File, one_per_line: bool) -> Iterator[_Row]:
    if one_per_line:
        for line, text in _lines(file):
            if text.strip():
                yield _checked(line, {"text": _without_end(text)})
    else:
        yield _checked(1, {"text": "".join(text for _, text in _lines(file))})


def _without_end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def _checked(line: int, values: Any, problems: Sequence[str] = ()) -> _Row:
    """A row, or why it cannot be one."""
    if problems:
        return _Row(line, {}, problems[0])
    if not isinstance(values, dict):
        return _Row(line, {}, f"a row should be an object {{…}}, this is {_type_name(values)}")
    problem = _unusable(values)
    return _Row(line, {} if problem else values, problem)


def _unusable(values: dict[str, Any]) -> str:
    """What in a row no tokenizer, report or JSON file could hold; "" if nothing. Iterative: the data choose the depth."""
    stack: list[tuple[Any, int, str]] = [(value, 1, str(key)) for key, value in values.items()]
    stack += [(key, 0, str(key)) for key in values]
    while stack:
        value, depth, column = stack.pop()
        if isinstance(value, str):
            if "\0" in value:
                return f'a NUL character in "{_clip(column)}"'
            if not value.isascii():
                try:
                    value.encode("utf-8")
                except UnicodeEncodeError as error:
                    return f'half of a surrogate pair (\\u{ord(value[error.start]):04x}) in "{_clip(column)}", which is no character'
        elif isinstance(value, float):
            if not math.isfinite(value):
                return f'{value} in "{_clip(column)}" is not a number'
        elif isinstance(value, dict | list | tuple):
            if depth > MAX_DEPTH:
                return f'"{_clip(column)}" is nested more than {MAX_DEPTH} deep'
            if isinstance(value, dict):
                stack += [(key, depth, column) for key in value]
            stack += [(inner, depth + 1, column) for inner in (value.values() if isinstance(value, dict) else value)]
        elif value is not None and not isinstance(value, int):
            return f'"{_clip(column)}" is {_type_name(value)}, which is not text'
    return ""


def _type_name(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "null",
        bytes: "bytes",
    }
    return names.get(type(value), type(value).__name__)


def _clip(text: str, length: int = 40) -> str:
    text = text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\n", "\\n").replace("\0", "\\0")
    return text if len(text) <= length else text[: length - 1] + "…"


def _listed(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(_clip(name) for name in names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


# ----------------------------------------------------------------------------------------------------------------- JSON


def _decoder(problems: list[str]) -> json.JSONDecoder:
    """JSON as the standard has it. What Python would let pass goes to `problems`; raising would lose the place in a document."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            twice = next(key for key, n in Counter(key for key, _ in items).items() if n > 1)
            problems.append(f'the key "{_clip(twice)}" is given twice')
        return found

    def constant(name: str) -> None:
        problems.append(f"{name} is not a value that JSON has")

    return json.JSONDecoder(object_pairs_hook=pairs, parse_constant=constant)


def _jsonl_rows(file: _File) -> Iterator[_Row]:
    problems: list[str] = []
    decoder = _decoder(problems)
    for line, text in _lines(file):
        if not text.strip():
            continue
        problems.clear()
        values: Any = None
        try:
            values = decoder.decode(text)
        except json.JSONDecodeError as error:
            problems[:] = [f"this line is not JSON: {error.msg} at column {error.colno:,}"]
            if text.strip() in ("{", "["):
                problems[:] = ['a JSON document over several lines, not one object a line: name the file ".json"']
        except (ValueError, RecursionError) as error:
            problems[:] = [_json_limit(error)]
        yield _checked(line, values, problems)


def _json_limit(error: Exception) -> str:
    return "the JSON is nested too deeply" if isinstance(error, RecursionError) else "a number in the JSON has thousands of digits"


def _json_rows(file: _File, notes: list[str]) -> Iterator[_Row]:
    """An array of objects, {"data": [...]} or, under the wrong name, one object a line. Lines are those where an object starts."""
    text = "".join(piece for _, piece in _lines(file))
    start = _skip(text, 0)
    problems: list[str] = []
    document = _Document(file.path, text, _decoder(problems), problems)
    if text[start : start + 1] == "[":
        end = yield from document.elements(start)
    elif text[start : start + 1] != "{":
        raise document.error(start, "a JSON file should hold an array of objects")
    elif _is_one_object_a_line(text[start:]):
        notes.append(f"{file.path.name}: one object a line, read as JSONL")
        del text, document
        yield from _jsonl_rows(file)
        return
    else:
        end = yield from document.data_of(start)
    if _skip(text, end) < len(text):
        raise document.error(_skip(text, end), "there is more after the end of the JSON document")


def _is_one_object_a_line(text: str) -> bool:
    first, _, rest = text.partition("\n")
    return bool(rest.strip()) and _is_row(first)


def _is_row(line: str) -> bool:
    """A whole JSON object, and not one that wraps rows."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not isinstance(value.get("data"), list)


def _skip(text: str, at: int) -> int:
    blank = BLANK.match(text, at)
    return blank.end() if blank else at


@dataclass(frozen=True)
class _Document:
    """A JSON text that is decoded element by element, so that each knows its line."""

    path: Path
    text: str
    decoder: json.JSONDecoder
    problems: list[str]

    def elements(self, bracket: int) -> Generator[_Row, None, int]:
        """The rows of the array that opens at `bracket`; the generator returns the place after its end."""
        text = self.text
        line, counted = text.count("\n", 0, bracket) + 1, bracket
        at = _skip(text, bracket + 1)
        if text[at : at + 1] == "]":
            return at + 1
        while True:
            line += text.count("\n", counted, at)
            counted = at
            self.problems.clear()
            value, end = self.decode(at)
            yield _checked(line, value, self.problems)
            at = _skip(text, end)
            if text[at : at + 1] == "]":
                return at + 1
            if text[at : at + 1] != ",":
                raise self.error(at, "a comma or ] should follow here")
            at = _skip(text, at + 1)

    def data_of(self, brace: int) -> Generator[_Row, None, int]:
        """The rows of the key "data" of the object that opens at `brace`; the generator returns the place after its end."""
        text, keys, found = self.text, [], False
        at = _skip(text, brace + 1)
        while text[at : at + 1] != "}":
            key, end = self.decode(at)
            if not isinstance(key, str):
                raise self.error(at, "a key should stand here")
            keys.append(key)
            at = _skip(text, end)
            if text[at : at + 1] != ":":
                raise self.error(at, "a colon should follow here")
            at = _skip(text, at + 1)
            if key == "data" and text[at : at + 1] == "[":
                if found:
                    raise self.error(at, 'the key "data" is given twice')
                found = True
                end = yield from self.elements(at)
            else:
                _, end = self.decode(at)
            at = _skip(text, end)
            if text[at : at + 1] == ",":
                at = _skip(text, at + 1)
            elif text[at : at + 1] != "}":
                raise self.error(at, "a comma or } should follow here")
        if not found:
            raise BadInput(
                "a JSON file should hold an array of objects, this is one object",
                where=f"{self.path}: its keys are {_listed(keys)}" if keys else str(self.path),
                fix='write [{…}, {…}], or {"data": [{…}, {…}]}, or one object a line in a .jsonl file',
            )
        return at + 1

    def decode(self, at: int) -> tuple[Any, int]:
        try:
            return self.decoder.raw_decode(self.text, at)
        except json.JSONDecodeError as error:
            raise self.error(error.pos, error.msg[0].lower() + error.msg[1:]) from None
        except (ValueError, RecursionError) as error:
            raise self.error(at, _json_limit(error)) from None

    def error(self, at: int, problem: str) -> BadInput:
        line = self.text.count("\n", 0, at) + 1
        column = at - (self.text.rfind("\n", 0, at) + 1) + 1
        where = f"{self.path}:{line}: column {column:,}" + (", the end of the file" if at >= len(self.text) else "")
        return BadInput(f"this is not JSON: {problem}", where=where, fix="repair the file there; a broken document cannot be skipped over")


# --------------------------------------------------------------------------------------------------------- CSV and TSV


def _delimited_rows(file: _File, config: DataConfig, notes: list[str]) -> Iterator[_Row]:
    """Rows of a table in text. Cells stay as they are; only column names lose surrounding blanks."""
    if not config.header and config.columns is None:
        raise BadInput("a file without a header needs column names", where=str(file.path), fix="data.columns: [label, text]")
    records = _quoted_records(file, notes) if config.quoting else _plain_records(file)
    names = list(config.columns or [])
    if config.header:
        names = _header(file, config, next(records, None))
    _must_differ(file, config, names)
    for line, cells, problem in records:
        if problem:
            yield _Row(line, {}, problem)
        elif len(cells) != len(names):
            separator = {",": "comma", "\t": "tab", ";": "semicolon"}[file.separator]
            cut = f"{len(cells):,} {'cell' if len(cells) == 1 else 'cells'}"
            yield _Row(line, {}, f"{cut} where the {len(names)} columns {_listed(names)} are expected (separated by {separator})")
        else:
            yield _checked(line, dict(zip(names, cells)))


def _header(file: _File, config: DataConfig, record: tuple[int, list[str], str] | None) -> list[str]:
    if record is None:
        raise BadInput("the file holds no rows", where=str(file.path), fix="give a file with at least one example")
    line, cells, problem = record
    if problem:
        raise BadInput(f"the header cannot be read: {problem}", where=f"{file.path}:{line}", fix="repair the first line")
    bad = _unusable(dict(enumerate(cells)))  # type: ignore[arg-type]
    if bad:
        raise BadInput(f"the header cannot be read: {bad}", where=f"{file.path}:{line}", fix="repair the first line")
    names = [cell.strip() or f"column_{number}" for number, cell in enumerate(cells, 1)]
    if config.columns is not None and config.columns != names:
        raise BadInput(
            "data.columns names columns of a file without a header, but data.header is true",
            where=f"{file.path}:{line}: {_listed(names)}",
            fix="data.header: false if this line is data; otherwise leave data.columns out",
        )
    return names


def _must_differ(file: _File, config: DataConfig, names: list[str]) -> None:
    twice = [name for name, n in Counter(names).items() if n > 1 or not name]
    if twice or not names:
        fix = "give each column its own name"
        if config.header:
            fix += f" in the first line; if that line is data: data.header: false and {_columns_example(len(names))}"
        raise BadInput(
            f'two columns are called "{_clip(twice[0])}"' if twice else "there are no column names",
            where=f"{file.path}: {_listed(names)}",
            fix=fix,
        )


def _columns_example(n: int) -> str:
    known = {1: "[text]", 2: "[label, text]"}
    return "data.columns: " + known.get(n, "[" + ", ".join(f"column_{i}" for i in range(1, min(n, 6) + 1)) + (", …]" if n > 6 else "]"))


def _plain_records(file: _File) -> Iterator[tuple[int, list[str], str]]:
    """quoting false: a line is a record and a quote is a character."""
    for line, text in _lines(file):
        if text := _without_end(text):
            yield line, text.split(file.separator), ""


def _quoted_records(file: _File, notes: list[str]) -> Iterator[tuple[int, list[str], str]]:
    """quoting true: (line where the record starts, cells, problem).

    csv's strict mode refuses text after a closing quote, which is how a stray quote shows; the lenient default would join
    lines without a word (5,572 rows instead of 5,574 in the SMS Spam Collection). After such a record reading goes on at
    the line after its first, so that lines which the quote had swallowed are not lost.
    """
    csv.field_size_limit(2**31 - 1)  # of the whole process, by default 131,072: a long text is not an error here
    lines, again = _lines(file), deque[tuple[int, str]]()
    record: list[tuple[int, str]] = []
    spanning: list[int] = []

    def feed() -> Iterator[str]:
        while (item := again.popleft() if again else next(lines, None)) is not None:
            record.append(item)
            if len(record) > MAX_RECORD_LINES:
                raise _open_quote(file, record, f"still open {MAX_RECORD_LINES:,} lines later")
            yield item[1]

    reader = csv.reader(feed(), delimiter=file.separator, strict=True)
    while True:
        record.clear()
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise _open_quote(file, record, "still open at the end of the file") from None
            problem = "a carriage return in a cell without quotes" if "new-line" in str(error) else "a cell goes on after its closing quote"
            yield record[0][0], [], f"{problem} (where quotes are mere characters, set data.quoting: false)"
            again.extendleft(reversed(record[1:]))
            continue
        if cells:
            if len(record) > 1:
                spanning.append(record[0][0])
            yield record[0][0], cells, ""
    if spanning:
        rows = "1 row spans" if len(spanning) == 1 else f"{len(spanning):,} rows span"
        first = f"the first at line {spanning[0]:,} (data.quoting: false reads quotes as characters)"
        notes.append(f"{file.path.name}: {rows} several lines by quotes, {first}")


def _open_quote(file: _File, record: list[tuple[int, str]], state: str) -> BadInput:
    opened, inside = record[0][0], False
    for line, text in record:  # quotes come in pairs; the line that leaves one over, with none closing it later, opened it
        if text.count('"') % 2:
            inside = not inside
            opened = line if inside else opened
    return BadInput(
        f"a quote that opens here is {state}",
        where=f"{file.path}:{opened}",
        fix="data.quoting: false, if quotes are mere characters in this file; otherwise close it",
    )


# -------------------------------------------------------------------------------------------------------------- Parquet


def _parquet_rows(file: _File) -> Iterator[_Row]:
    """Rows of a Parquet file, numbered from 1. Null stays None; dates, times and decimals become their usual text."""
    from pyarrow import parquet  # 0.2 s to import, for one kind of file

    def refuse(error: Exception) -> BadInput:
        reason = _clip(str(error).splitlines()[0] if str(error) else type(error).__name__, 200)
        return BadInput(f"the Parquet file cannot be read: {reason}", where=str(file.path), fix="write or fetch the file again")

    with _open(file) as stream:
        content = io.BytesIO(stream.read()) if file.gzipped else stream
        try:
            table = parquet.ParquetFile(content)
            names = list(table.schema_arrow.names)
            batches = table.iter_batches(batch_size=1024)
        except Exception as error:  # pyarrow raises a dozen kinds; all mean that the file is not what it says
            raise refuse(error) from None
        if len(set(names)) < len(names):
            twice = next(name for name, n in Counter(names).items() if n > 1)
            raise BadInput(f'two columns are called "{_clip(twice)}"', where=str(file.path), fix="give each column its own name")
        row_number = 0
        while True:
            try:
                batch = next(batches, None)
                rows = [] if batch is None else batch.to_pylist()
            except Exception as error:
                raise refuse(error) from None
            if batch is None:
                return
            for values in rows:
                row_number += 1
                yield _checked(row_number, {name: _plain(value) for name, value in values.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta | Decimal | UUID):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


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


def _cell(values: dict[str, Any], column: str, as_json: bool = False) -> str:
    value = values.get(column)
    if value is None:
        raise _RowError(
            f'"{_clip(column)}" is {"null" if column in values else "missing"}; this row has {_listed(list(values)) or "no columns"}'
        )
    return value if isinstance(value, str) and not as_json else json.dumps(value, ensure_ascii=False)


def _quoted(template: str) -> str:
    return json.dumps(_clip(template, 120).replace("\\n", "\n"), ensure_ascii=False)


# ------------------------------------------------------------------------------------------------------ rows → messages


@dataclass(frozen=True)
class _Plan:
    """How every row of this file becomes messages. `unused`: parts of messages that were left out, counted."""

    format: str
    description: str
    build: Callable[[dict[str, Any]], tuple[Message, ...]]
    unused: Counter[str] = field(default_factory=Counter)

    def remarks(self) -> list[str]:
        return [f'"{_clip(key)}" of {n:,} {"message" if n == 1 else "messages"} is not used' for key, n in sorted(self.unused.items())]


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
        return _Shape("messages")
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


def _plan(file: _File, config: DataConfig, rows: list[_Row], answers: bool) -> _Plan:
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
            messages = _from_messages(values, answers, unused)
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
    elif shape.kind == "alpaca":
        description = f'alpaca: columns {_listed(columns)} → prompt "{{instruction}}\\n\\n{{input}}", completion "{{output}}"'
    else:
        description = f'columns {_listed(columns)} → prompt "{{{shape.prompt}}}"'
        description += f', completion "{{{shape.completion}}}"' if shape.completion in columns else ""
    return _Plan(shape.kind, description, build, unused)


def _file_shape(file: _File, config: DataConfig, columns: list[str], rows: list[_Row], answers: bool) -> _Shape:
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
        "messages": _Shape("messages", "messages"),
        "alpaca": _Shape("alpaca", "instruction", "output"),
        "text": _Shape("text", "text"),
    }[config.format]
    needed = [shape.prompt, shape.completion] if answers else [shape.prompt]
    missing = [column for column in needed if column and column not in columns]
    if missing:
        raise BadInput(
            f'data.format is {config.format}, but there is no column "{missing[0]}"',
            where=f"{file.path}: columns {_listed(columns)}",
            fix="leave out data.format, or say which columns to use with data.prompt and data.completion",
        )
    return _Shape("messages") if shape.kind == "messages" else shape


def _text_file_plan(file: _File, config: DataConfig, answers: bool) -> _Plan:
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
    names = list(
        dict.fromkeys(name for m in PLACEHOLDER.finditer(config.prompt or "") if (name := m[1].removesuffix(":json")).isidentifier())
    )
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


def _template_plan(file: _File, config: DataConfig, columns: list[str], answers: bool) -> _Plan:
    if config.prompt is None or (config.completion is None and answers):
        given, missing = ("data.completion", "data.prompt") if config.prompt is None else ("data.prompt", "data.completion")
        raise BadInput(f"{given} without {missing}", where="the config", fix=f'{missing}: "{{column}}", with one of {_listed(columns)}')
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
        if own is not None and own.kind == "messages" and "messages" not in prompt.columns:
            raise _RowError("mixed formats: this row is messages, the file is pairs")
        absent = completion is None or (not answers and any(values.get(column) in (None, "") for column in completion.columns))
        answer = None if completion is None or absent else completion.fill(values)
        return _with_system(_from_pair(prompt.fill(values), answer, answers), system, values)

    description = f"columns {_listed(columns)} → prompt {_quoted(config.prompt)}"
    if completion is not None and config.completion is not None:
        description += f", completion {_quoted(config.completion)}"
    return _Plan("pairs", description, build)


def _template(file: _File, config: DataConfig, key: str, text: str, columns: list[str]) -> Template:
    where = f"{file.path}: columns {_listed(columns)}"
    try:
        template = _compile(text, columns)
    except KeyError as error:
        name = str(error.args[0])
        fix = nearest(name, [_clip(column) for column in columns])
        if _header_hint(file, config) and not any(column in columns for column in _identifiers(config)):
            fix += f"\nif the first line of the file is data: data.header: false and {_columns_example(len(columns))}"
        raise BadInput(f"{key} has {{{name}}}, which is no column of the file", where=where, fix=fix) from None
    if not template.columns and key != "data.system":
        same = f" ({{{text}}}?)" if text in columns else ""
        raise BadInput(f"{key} names no column, so every row would get the same text", where=where, fix=f"put a column in braces{same}")
    return template


def _identifiers(config: DataConfig) -> list[str]:
    texts = [text for text in (config.prompt, config.completion, config.system) if text is not None]
    return [match[1].removesuffix(":json") for text in texts for match in PLACEHOLDER.finditer(text)]


def _header_hint(file: _File, config: DataConfig) -> bool:
    return file.kind in ("csv", "tsv") and config.header


def _system(file: _File, config: DataConfig, columns: list[str], kind: str) -> Template | None:
    if config.system is None:
        return None
    if kind == "text":
        raise BadInput("raw text has no system message", where=f"{file.path}: data.system", fix="leave out data.system")
    return _template(file, config, "data.system", config.system, columns)


def _which_columns(file: _File, config: DataConfig, columns: list[str]) -> BadInput:
    """Neither the names of the columns nor the config say what is the prompt and what the answer."""
    names = columns or ["question", "answer"]
    answer = next((name for name in names if name.lower() in ANSWER_COLUMNS), names[-1])
    prompt = next((name for name in names if name == "text"), next((name for name in names if name != answer), answer))
    fix = f'data.prompt: "{{{_clip(prompt)}}}"\ndata.completion: "{{{_clip(answer)}}}"'
    if len(columns) == 1:
        fix = f'to learn the text itself, call the column "text" instead of "{_clip(columns[0])}"; a pair needs two columns'
    elif "text" in columns:
        fix += "\nor data.format: text, to learn the text alone"
    looks_like_data = any(len(name) > 40 or name.count(" ") > 3 or name.replace(".", "").isdigit() for name in columns)
    if _header_hint(file, config) and looks_like_data:
        fix = f"if the first line of the file is data: data.header: false and {_columns_example(len(columns))}\notherwise " + fix
    return BadInput(
        "the columns do not say which is the prompt and which the answer",
        where=f"{file.path}: columns {_listed(columns) or '(none)'}",
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


def _from_messages(values: dict[str, Any], answers: bool, unused: Counter[str]) -> tuple[Message, ...]:
    """OpenAI's layout: one system message at most, then user and assistant in turn, a trained answer among them."""
    for key in ("tools", "functions"):
        if values.get(key):
            raise _RowError(f'"{key}" are not supported yet')
    turns = values.get("messages")
    if not isinstance(turns, list) or not turns:
        raise _RowError(f'"messages" should be a list of messages, it is {"an empty list" if turns == [] else _type_name(turns)}')
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


def _message(turn: Any, number: int, seen: Counter[str]) -> Message:
    if not isinstance(turn, dict):
        raise _RowError(f'message {number} should be {{"role": …, "content": …}}, it is {_type_name(turn)}')
    given = turn.get("role")
    if given in ("tool", "function"):
        raise _RowError(f"message {number} has the role {given}, which is not supported yet")
    if not isinstance(given, str) or given not in ROLES:
        said = f'"{_clip(given)}"' if isinstance(given, str) else "missing" if "role" not in turn else _type_name(given)
        raise _RowError(f"the role of message {number} is {said}; known: {', '.join(ROLES)}")
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
        raise _RowError(f"the weight of message {number} is {_clip(json.dumps(weight))}; it should be 0 or 1")
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
        raise _RowError(f"the content of message {number} is {_type_name(content)}; it should be a text")
    parts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(part, dict) or kind != "text" or not isinstance(part.get("text"), str):
            raise _RowError(
                f"message {number} has a part that is not text"
                + (f" but {_clip(kind)}" if isinstance(kind, str) and kind != "text" else "")
            )
        parts.append(part["text"])
    return "".join(parts)
