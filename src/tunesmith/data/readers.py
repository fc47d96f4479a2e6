"""Bytes become rows: JSONL, JSON, CSV, TSV, Parquet, Arrow and text, each also as .gz, every row with its true line.

    file = recognise(Path("sms.csv"), config)         # kind, separator, compression; what was guessed is in file.note
    for row in rows_of(file, config, notes, one_per_line=False):
        row.line, row.values, row.problem             # a row that cannot be read has a problem instead of values

Streams: only one row at a time is in memory. Damage that makes every later row doubtful (another encoding, a cut .gz, a JSON
document that breaks off, a quote that swallows the file) raises BadInput; damage of one row is that row's problem.
"""

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, cast
from uuid import UUID

from tunesmith.config import DataConfig
from tunesmith.errors import BadInput, MachineFailed, nearest

KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
KINDS |= {".arrow": "arrow", ".txt": "text"}
KIND_NAMES = {"jsonl": "JSONL", "json": "JSON", "csv": "CSV", "tsv": "TSV", "parquet": "Parquet", "arrow": "Arrow", "text": "text"}
COLUMNAR = ("parquet", "arrow")  # every row has every key, in nested values too: what a row does not have is null there
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

TASK_KEYS = {"definition": "definition", "instances": "instances", "positive_examples": "positive_examples"}  # of a task file
TASK_KEYS |= {"positive examples": "positive_examples"}

PEEK_ROWS = 100  # rows that decide what the file is
MAX_RECORD_LINES = 1000  # a quoted CSV cell over more lines than this is a stray quote, not a text
MAX_DEPTH = 100  # of nested JSON; Python's own limits differ by version and by direction (read, write)
BLANK = re.compile(r"[ \t\r\n]*")


# ---------------------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class File:
    """A file whose kind is known. `note`: what had to be guessed, to be said aloud; `classic`: its lines end in CR alone, as on the first Macs."""

    path: Path
    kind: str
    gzipped: bool
    separator: str = ""
    note: str = ""
    classic: bool = False

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


def recognise(path: Path, config: DataConfig) -> File:
    """The kind of a file: its extension decides, its first bytes where the extension is unknown."""
    _must_be_a_file(path)
    name = path.name.lower()
    gzipped = name.endswith(".gz")
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix in NOT_READ:
        raise BadInput(f"{suffix} files are not read", where=str(path), fix=NOT_READ[suffix])
    file = File(path, KINDS.get(suffix, ""), gzipped)
    with _open(file) as stream:
        head = stream.read(1 << 16)
    if not head:
        raise BadInput("the file is empty", where=str(path), fix="give a file with at least one example")
    if head[:2] == b"\x1f\x8b":
        raise BadInput("this is a gzip file", where=str(path), fix=f'name it "{path.name}.gz", or unpack it')
    if not file.kind:
        file = replace(file, kind=_sniff(head, config))
        file = replace(file, note=f'the extension "{suffix}" is unknown; read as {KIND_NAMES[file.kind]}, judging by the content')
    if file.kind in COLUMNAR:
        return file
    _must_not_be_utf16(file, head)
    if not head.removeprefix(b"\xef\xbb\xbf").strip() and len(head) < 1 << 16:
        raise BadInput("the file holds only blank lines", where=str(path), fix="give a file with at least one example")
    if file.kind == "jsonl" and _is_classic(head):
        file = replace(file, classic=True, note=file.note or "its lines end in CR alone (carriage return, as on old Macs), and are read so")
    if file.kind in ("csv", "tsv"):
        _must_have_lines(file, head)
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
        fix = f"name one file in it: {listed(readable)}" if readable else "name a file"
        raise BadInput("this is a folder, not a file", where=str(path), fix=fix)
    if exists:
        raise BadInput("this is not a regular file", where=str(path), fix="save the rows to a file first")
    if names:
        raise BadInput("there is no such file", where=str(path), fix=nearest(path.name, sorted(names)[:200]))
    where = "the folder is empty" if folder.is_dir() else f'there is no folder "{folder}"'
    raise BadInput("there is no such file", where=str(path), fix=f"check data.train: {where}")


@contextmanager
def _open(file: File) -> Iterator[IO[bytes]]:
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


def _must_not_be_utf16(file: File, head: bytes) -> None:
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


def _must_have_lines(file: File, head: bytes) -> None:
    r"""A table whose lines end in \r alone, as on the first Macintoshes, would be one line, the header."""
    if b"\r" in head.strip() and b"\n" not in head:
        rewritten = file.path.with_name(file.path.name.removesuffix(".gz").removesuffix(file.path.suffix) + ".lf." + file.kind)
        unpack, given = (f'gunzip -c "{file.path}" | ', "") if file.gzipped else ("", f' < "{file.path}"')
        command = f"{unpack}tr '\\r' '\\n'{given} > \"{rewritten}\""
        raise BadInput(
            "the lines of this table end in CR alone (carriage return, as on old Macs), not in LF", where=str(file.path), fix=command
        )


def _is_classic(head: bytes) -> bool:
    """Whether the objects of a JSONL file stand between carriage returns, which in one object may be white space too."""
    if b"\n" in head or b"\r" not in head.strip() or _is_object(head):
        return False
    return any(map(_is_object, head.split(b"\r")))


def _is_object(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False


def _sniff(head: bytes, config: DataConfig) -> str:
    if head[:4] == b"PAR1":
        return "parquet"
    if head[:6] == b"ARROW1":
        return "arrow"
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
    """Comma or tab; where the first line has none of them, the tab or semicolon that it does have (not in a .tsv with tabs further down: that
    line is damaged, and read by its commas the others would be cut at the wrong places)."""
    line = head.lstrip().partition(b"\n")[0]
    usual = "," if kind == "csv" else "\t"
    one_column = config.columns is not None and len(config.columns) == 1
    others = [mark for mark in "\t;," if mark.encode() in line]
    has_usual = usual in others or (kind == "tsv" and b"\t" in head)
    return usual if one_column or not others or has_usual else others[0]


# ----------------------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class Row:
    """One row as it stands in the file. `line`: where it starts (Parquet: the row's number); `problem`: why it is bad, or ""."""

    line: int
    values: dict[str, Any]
    problem: str = ""


def rows_of(file: File, config: DataConfig, notes: list[str], one_per_line: bool) -> Iterator[Row]:
    if file.kind == "jsonl":
        return _jsonl_rows(file)
    if file.kind == "json":
        return _json_rows(file, notes, with_examples=config.examples > 0)
    if file.kind in COLUMNAR:
        return _columnar_rows(file, notes)
    if file.kind == "text":
        return _text_rows(file, one_per_line)
    return _delimited_rows(file, config, notes)


def peek(rows: Iterator[Row], stop_at_bad: bool) -> list[Row]:
    """The first rows, until enough good ones are there (or at the first bad one, where that ends the reading anyway)."""
    peeked: list[Row] = []
    n_good = 0
    while n_good < PEEK_ROWS and (row := next(rows, None)) is not None:
        peeked.append(row)
        n_good += not row.problem
        if row.problem and stop_at_bad:
            break
    return peeked


def _lines(file: File) -> Iterator[tuple[int, str]]:
    r"""Line number and text with its line end. Only \n ends a line (\r too in a classic file): str.splitlines would also cut at U+2028 inside a string."""
    offset = 0
    with _open(file) as stream:
        for number, raw in enumerate(_classic_lines(stream) if file.classic else stream, 1):
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


def _classic_lines(stream: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while block := stream.read(1 << 16):
        *lines, rest = (rest + block).split(b"\r")
        yield from (line + b"\r" for line in lines)
    if rest:
        yield rest


def _text_rows(file: File, one_per_line: bool) -> Iterator[Row]:
    if one_per_line:
        for line, text in _lines(file):
            if text.strip():
                yield _checked(line, {"text": _without_end(text)})
    else:
        yield _checked(1, {"text": "".join(text for _, text in _lines(file))})


def _without_end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def _checked(line: int, values: Any, problems: Sequence[str] = ()) -> Row:
    """A row, or why it cannot be one."""
    if problems:
        return Row(line, {}, problems[0])
    if not isinstance(values, dict):
        return Row(line, {}, f"a row should be an object {{…}}, this is {type_name(values)}")
    problem = _unusable(values)
    return Row(line, {} if problem else values, problem)


def _unusable(values: dict[str, Any]) -> str:
    """What in a row no tokenizer, report or JSON file could hold; "" if nothing. Iterative: the data choose the depth."""
    stack: list[tuple[Any, int, str]] = [(value, 1, str(key)) for key, value in values.items()]
    stack += [(key, 0, str(key)) for key in values]
    while stack:
        value, depth, column = stack.pop()
        if isinstance(value, str):
            if "\0" in value:
                return f'a NUL character in "{clip(column)}"'
            if not value.isascii():
                try:
                    value.encode("utf-8")
                except UnicodeEncodeError as error:
                    return f'half of a surrogate pair (\\u{ord(value[error.start]):04x}) in "{clip(column)}", which is no character'
        elif isinstance(value, float):
            if not math.isfinite(value):
                return f'{value} in "{clip(column)}" is not a number'
        elif isinstance(value, dict | list | tuple):
            if depth > MAX_DEPTH:
                return f'"{clip(column)}" is nested more than {MAX_DEPTH} deep'
            if isinstance(value, dict):
                stack += [(key, depth, column) for key in value]
            stack += [(inner, depth + 1, column) for inner in (value.values() if isinstance(value, dict) else value)]
        elif value is not None and not isinstance(value, int):
            return f'"{clip(column)}" is {type_name(value)}, which is not text'
    return ""


def type_name(value: Any) -> str:
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


def clip(text: str, length: int = 40) -> str:
    text = text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\n", "\\n").replace("\0", "\\0")
    return text if len(text) <= length else text[: length - 1] + "…"


def listed(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(clip(name) for name in names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


# ----------------------------------------------------------------------------------------------------------------- JSON


def _decoder(problems: list[str]) -> json.JSONDecoder:
    """JSON as the standard has it. What Python would let pass goes to `problems`; raising would lose the place in a document."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            twice = next(key for key, n in Counter(key for key, _ in items).items() if n > 1)
            problems.append(f'the key "{clip(twice)}" is given twice')
        return found

    def constant(name: str) -> None:
        problems.append(f"{name} is not a value that JSON has")

    return json.JSONDecoder(object_pairs_hook=pairs, parse_constant=constant)


def _jsonl_rows(file: File) -> Iterator[Row]:
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


def strict_json(text: str) -> tuple[Any, str]:
    """What a text in a cell says as JSON, and why it cannot be used ("" if it can)."""
    problems: list[str] = []
    try:
        value = _decoder(problems).decode(text)
    except json.JSONDecodeError as error:
        return None, f"{error.msg} at column {error.colno:,}"
    except (ValueError, RecursionError) as error:
        return None, _json_limit(error)
    return value, problems[0] if problems else _unusable({"it": value})


def _json_limit(error: Exception) -> str:
    return "the JSON is nested too deeply" if isinstance(error, RecursionError) else "a number in the JSON has thousands of digits"


def _json_rows(file: File, notes: list[str], with_examples: bool) -> Iterator[Row]:
    """An array of objects, {"data": [...]}, a task with its instances or, under the wrong name, one object a line.

    Lines are those where an object starts. with_examples: the instances of a task keep its positive_examples.
    """
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
        end = yield from document.rows_of_object(start, with_examples)
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
    return isinstance(value, dict) and not any(isinstance(value.get(key), list) for key in ("data", "instances", "Instances"))


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

    def elements(self, bracket: int, shared: dict[str, Any] | None = None) -> Generator[Row, None, int]:
        """The rows of the array that opens at `bracket`, each with the columns `shared`; the generator returns the place after its end."""
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
            yield _checked(line, {**shared, **value} if shared and isinstance(value, dict) else value, self.problems)
            at = _skip(text, end)
            if text[at : at + 1] == "]":
                return at + 1
            if text[at : at + 1] != ",":
                raise self.error(at, "a comma or ] should follow here")
            at = _skip(text, at + 1)

    def rows_of_object(self, brace: int, with_examples: bool) -> Generator[Row, None, int]:
        """The rows that the object which opens at `brace` wraps; the generator returns the place after its end.

        They are those of its key "data"; or, in a task file of Super-NaturalInstructions, the instances, each with the task's
        definition. The files of that collection and of its copies spell the keys with a capital or without.
        """
        text, head, bracket, rows_key = self.text, dict[str, Any](), -1, ""
        at = _skip(text, brace + 1)
        while text[at : at + 1] != "}":
            key, end = self.decode(at)
            if not isinstance(key, str):
                raise self.error(at, "a key should stand here")
            at = _skip(text, end)
            if text[at : at + 1] != ":":
                raise self.error(at, "a colon should follow here")
            at = _skip(text, at + 1)
            plain = TASK_KEYS.get(key.lower(), key)
            is_rows = (key == "data" or plain == "instances") and text[at : at + 1] == "["
            if (plain in head and plain in TASK_KEYS.values()) or (is_rows and rows_key):
                raise self.error(at, f'the key "{clip(key)}" is given twice' if key in (rows_key, *head) else "the rows are given twice")
            if is_rows:
                bracket, rows_key = at, plain
            if is_rows and (key == "data" or ("definition" in head and ("positive_examples" in head or not with_examples))):
                end = yield from self.elements(at, _shared(head, with_examples) if plain == "instances" else None)
                bracket = -1
            else:
                value, end = self.decode(at)
                head[plain] = None if is_rows else value
            at = _skip(text, end)
            if text[at : at + 1] == ",":
                at = _skip(text, at + 1)
            elif text[at : at + 1] != "}":
                raise self.error(at, "a comma or } should follow here")
        if rows_key == "instances" and bracket >= 0 and "definition" in head:
            yield from self.elements(bracket, _shared(head, with_examples))
        elif not rows_key or bracket >= 0:
            raise BadInput(
                "a JSON file should hold an array of objects, this is one object",
                where=f"{self.path}: its keys are {listed(list(head))}" if head else str(self.path),
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


def _shared(head: dict[str, Any], with_examples: bool) -> dict[str, Any]:
    """What every instance of a task has from its task: the definition (one text, or the first of a list), and the examples if wanted."""
    definition = head["definition"]
    if isinstance(definition, list) and definition:
        definition = definition[0]
    return {"definition": definition, **({"positive_examples": head.get("positive_examples")} if with_examples else {})}


# --------------------------------------------------------------------------------------------------------- CSV and TSV


def _delimited_rows(file: File, config: DataConfig, notes: list[str]) -> Iterator[Row]:
    """Rows of a table in text. Cells stay as they are; only column names lose surrounding blanks."""
    if not config.header and config.columns is None:
        raise BadInput("a file without a header needs column names", where=str(file.path), fix="data.columns: [label, text]")
    records = quoted_records(file, notes) if config.quoting else plain_records(file)
    names = list(config.columns or [])
    if config.header:
        names = _header(file, config, next(records, None))
    _must_differ(file, config, names)
    for line, cells, problem in records:
        if problem:
            yield Row(line, {}, problem)
        elif len(cells) != len(names):
            separator = {",": "comma", "\t": "tab", ";": "semicolon"}[file.separator]
            cut = f"{len(cells):,} {'cell' if len(cells) == 1 else 'cells'}"
            yield Row(line, {}, f"{cut} where the {len(names)} columns {listed(names)} are expected (separated by {separator})")
        else:
            yield _checked(line, dict(zip(names, cells)))


def _header(file: File, config: DataConfig, record: tuple[int, list[str], str] | None) -> list[str]:
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
            where=f"{file.path}:{line}: {listed(names)}",
            fix="data.header: false if this line is data; otherwise leave data.columns out",
        )
    return names


def _must_differ(file: File, config: DataConfig, names: list[str]) -> None:
    twice = [name for name, n in Counter(names).items() if n > 1 or not name]
    if twice or not names:
        fix = "give each column its own name"
        if config.header:
            fix += f" in the first line; if that line is data: data.header: false and {columns_example(len(names))}"
        raise BadInput(
            f'two columns are called "{clip(twice[0])}"' if twice else "there are no column names",
            where=f"{file.path}: {listed(names)}",
            fix=fix,
        )


def columns_example(n: int) -> str:
    known = {1: "[text]", 2: "[label, text]"}
    return "data.columns: " + known.get(n, "[" + ", ".join(f"column_{i}" for i in range(1, min(n, 6) + 1)) + (", …]" if n > 6 else "]"))


def plain_records(file: File) -> Iterator[tuple[int, list[str], str]]:
    """quoting false: a line is a record and a quote is a character."""
    for line, text in _lines(file):
        if text := _without_end(text):
            yield line, text.split(file.separator), ""


def quoted_records(file: File, notes: list[str]) -> Iterator[tuple[int, list[str], str]]:
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


def _open_quote(file: File, record: list[tuple[int, str]], state: str) -> BadInput:
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


# --------------------------------------------------------------------------------------------------- Parquet and Arrow


def _columnar_rows(file: File, notes: list[str]) -> Iterator[Row]:
    """Rows of a Parquet or Arrow file, numbered from 1. Null stays None; dates, times and decimals become their usual text.

    A column that Hugging Face's `datasets` marked as a ClassLabel holds numbers; they are read as the names they stand for.
    """
    with _open(file) as stream:
        content = io.BytesIO(stream.read()) if file.gzipped else stream
        try:
            schema, batches = _columnar_batches(file.kind, content)
            names = list(schema.names)
        except Exception as error:  # pyarrow raises a dozen kinds; all mean that the file is not what it says
            raise _damaged(file, error) from None
        if len(set(names)) < len(names):
            twice = next(name for name, n in Counter(names).items() if n > 1)
            raise BadInput(f'two columns are called "{clip(twice)}"', where=str(file.path), fix="give each column its own name")
        labels = _class_labels(schema)
        notes += [f'{file.path.name}: the numbers of "{clip(name)}" are read as {listed(classes)}' for name, classes in labels.items()]
        row_number = 0
        while True:
            try:
                batch = next(batches, None)
                if batch is not None:
                    batch.validate(full=True)  # of damaged Arrow files pyarrow would read outside its memory
                rows = [] if batch is None else batch.to_pylist()
            except Exception as error:
                raise _damaged(file, error) from None
            if batch is None:
                return
            for values in rows:
                row_number += 1
                problem = ""
                for name, classes in labels.items():
                    number = values[name]
                    if isinstance(number, int) and -1 <= number < len(classes):
                        values[name] = classes[number] if number >= 0 else None  # -1: the label is withheld
                    elif number is not None:
                        problem = f'{clip(str(number))} in "{clip(name)}" is the number of no class'
                yield _checked(row_number, {name: _plain(value) for name, value in values.items()}, [problem] if problem else [])


def _columnar_batches(kind: str, content: Any) -> tuple[Any, Iterator[Any]]:
    """The schema and the record batches of a file, one batch in memory at a time."""
    import pyarrow  # 0.2 s to import, for two kinds of file
    from pyarrow import parquet

    if kind == "parquet":
        table = parquet.ParquetFile(content)
        return table.schema_arrow, table.iter_batches(batch_size=1024)
    magic = content.read(6)
    content.seek(0)
    if magic == b"ARROW1":  # the file format; what `datasets` saves is the stream format
        opened = pyarrow.ipc.open_file(content)
        return opened.schema, (opened.get_batch(i) for i in range(opened.num_record_batches))
    reader = pyarrow.ipc.open_stream(content)
    return reader.schema, iter(reader)


def _class_labels(schema: Any) -> dict[str, list[str]]:
    """Column → names of its classes, as `datasets` writes them into a schema; {} where it did not write it."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = {name: feature["names"] for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}
    usable = {name: classes for name, classes in found.items() if name in schema.names and isinstance(classes, list)}
    return {name: classes for name, classes in usable.items() if all(isinstance(text, str) for text in classes)}


def _damaged(file: File, error: Exception) -> BadInput:
    reason = clip(str(error).splitlines()[0] if str(error) else type(error).__name__, 200)
    return BadInput(f"the {KIND_NAMES[file.kind]} file cannot be read: {reason}", where=str(file.path), fix="write or fetch the file again")


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
