"""Damaged data files: whatever is in one, reading it gives conversations or an error that says where and what to do.

    python tests/fuzz/fuzz_formats.py [FILES] [SEED]          # part of `make fuzz`: at least so many files, and how they ended
    check_bytes(kind, folder, content); check_rows(shape, folder, rows, as_lines=True)       # one file; raises what must never be seen

Hypothesis draws the damage and shrinks what fails. *Bytes*: a small good file of each kind is torn: bits flipped, bytes inserted,
removed, repeated and cut, lines torn, joined, swapped and doubled, other line ends, encodings and byte-order marks, NUL, huge numbers, keys
given twice, deep nesting, and the packed bytes of a .gz damaged before or after packing. *Rows*: in a file of each shape rows get odd
values, lose some, or come from a file of another shape, so that the file is well formed and its rows are not.

Each file is read with `on_bad_row` "skip" and "error" and as prompts, and beside it by `naive_rows`, which knows nothing of the reader's code:
- no traceback: an error says what, where and what to do;
- true line numbers: every row that the naive reading finds is read or skipped, once, at the line where it starts;
- good rows kept: a row of the undamaged file that is still there is read, and as it was, to the byte;
- nothing changed silently: what was read of a row is what it says when it is read alone;
- "error" stops at the first row that "skip" leaves out, and otherwise both read the same;
- a file that can be read by naive means, and begins as the good one does, is not refused.
"""

import copy
import gzip
import io
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tunesmith.config import DataConfig
from tunesmith.data.conversation import Conversation
from tunesmith.data.formats import Read, read_conversations, read_prompts
from tunesmith.errors import BadInput

AWKWARD = [
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"', b'""', b"\n", b"\r", b"\r\n", b"\t", b",", b"{", b"}", b"[", b"]", b":", b"\\u",
    b"\\ud800", b"NaN", b"-Infinity", b"1e999", b"null", b"9" * 5000, b"[" * 5000, b'{"a":' * 5000, "\u2028".encode(), "\u00e9".encode("latin-1"),
    b'"data":', b'"messages":', b'"instances":', b'"definition":', b'"tool_calls":', b'"prompt":1,"prompt":2,', b"<think>", b"</think>", b"\x1f\x8b",
]  # fmt: skip
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 0.5, 10**400, "", " ", "\n", "x", "{x}", "{", "[]", "null", "\0", "\u2028", "<think>", "<think>a</think>",
    "<think></think>b", "user", "tool", "assistant", "system", "function_call", [], [[]], [None], {}, {"a": None}, {"role": "user"}, ["a", "b"],
    '{"name": 1}', '[{"name": "f"}]', {"type": "text", "text": "x"}, "nan",
]  # fmt: skip
KEYS = ["role", "content", "name", "tools", "weight", "thinking", "train", "label", "output"]
TEMPLATES = {"prompt": "Spam or ham?\n\n{text}", "completion": "{label}"}
TABLE = [{"text": f"hello, wörld {i}", "label": "spam" if i % 3 else "ham"} for i in range(8)]

Options = dict[str, Any]
Values = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of file: a small good one, and how it is read."""

    name: str
    good: bytes
    options: Options = field(default_factory=dict)

    @property
    def suffix(self) -> str:
        return Path(self.name.removesuffix(".gz")).suffix


def shapes() -> dict[str, list[Values]]:
    """Eight rows of every shape that is recognised."""
    texts = [(row["text"], row["label"]) for row in TABLE]
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}}}

    def chat(asked: str, said: str, **more: Any) -> list[Values]:
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": said, **more}]

    def called(asked: str, said: str) -> list[Values]:
        call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": json.dumps({"q": asked})}}
        return [
            {"role": "system", "content": "Be short."}, {"role": "user", "content": asked},
            {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c1", "content": "[1, 2]"},
            {"role": "assistant", "content": said},
        ]  # fmt: skip

    def sharegpt(asked: str, said: str) -> list[Values]:
        return [
            {"from": "human", "value": asked}, {"from": "function_call", "value": json.dumps({"name": "find", "arguments": {"q": asked}})},
            {"from": "observation", "value": "[1, 2]"}, {"from": "gpt", "value": said},
        ]  # fmt: skip

    return {
        "messages": [{"messages": chat(a, b, weight=1)} for a, b in texts],
        "parts": [{"messages": [{"role": "user", "content": [{"type": "text", "text": a}]}, *chat(a, b)[1:]]} for a, b in texts],
        "tools": [{"messages": called(a, b), "tools": [tool]} for a, b in texts],
        "thinking": [{"messages": chat(a, b, reasoning_content="hm")} for a, b in texts],
        "think marks": [{"messages": chat(a, f"<think>\nhm\n</think>\n\n{b}", train=True)} for a, b in texts],
        "sharegpt": [{"conversations": sharegpt(a, b), "system": "Be short.", "tools": json.dumps([tool["function"]])} for a, b in texts],
        "alpaca": [{"instruction": "Sort.", "input": a, "output": b, "system": "Be short.", "history": [[a, b]]} for a, b in texts],
        "two lists": [{"prompt": chat(a, b)[:1], "completion": chat(a, b)[1:]} for a, b in texts],
        "pairs": [{"prompt": a, "completion": b} for a, b in texts],
        "instances": [{"definition": "Sort.", "input": a, "output": [b, b.upper()]} for a, b in texts],
        "text": [{"text": a} for a, _ in texts],
    }


@cache
def kinds() -> tuple[Kind, ...]:
    of = shapes()

    def lines(rows: list[Values]) -> bytes:
        return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()

    task = {"Definition": ["Sort."], "Positive Examples": [{"input": "a", "output": "b"}], "Instances": of["instances"]}
    csv = ("text,label\n" + "".join(f'"{r["text"]}\n second",{r["label"]}\n' for r in TABLE)).encode()
    tsv = "".join(f"{r['label']}\t{r['text']}\n" for r in TABLE).encode()
    plain = "".join(f"{r['label']},{r['text'].replace(',', '')}\n" for r in [{"label": "label", "text": "text"}, *TABLE]).encode()
    table, stream = io.BytesIO(), io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(TABLE), table)
    chats = pa.Table.from_pylist(of["messages"])
    with pa.ipc.new_stream(stream, chats.schema) as writer:
        writer.write_table(chats)
    return (
        Kind("a.jsonl", lines(of["messages"])),
        Kind("pairs.jsonl", lines(of["pairs"])),
        Kind("tools.jsonl", lines(of["tools"])),
        Kind("sharegpt.jsonl", lines(of["sharegpt"])),
        Kind("alpaca.jsonl", lines(of["alpaca"])),
        Kind("thinking.jsonl", lines(of["think marks"])),
        Kind("a.json", json.dumps({"data": of["pairs"]}, indent=1).encode()),
        Kind("b.json", json.dumps(TABLE).encode(), TEMPLATES),
        Kind("task.json", json.dumps(task, indent=1).encode()),
        Kind("shown.json", json.dumps(task).encode(), {"examples": 1}),
        Kind("a.csv", csv, TEMPLATES),
        Kind("plain.csv", plain, TEMPLATES),
        Kind("a.tsv", tsv, {**TEMPLATES, "columns": ["label", "text"], "header": False, "quoting": False}),
        Kind("a.parquet", table.getvalue(), TEMPLATES),
        Kind("a.arrow", stream.getvalue()),
        Kind("a.txt", csv),
        Kind("a.unknown", lines(of["messages"])),
        Kind("a.jsonl.gz", gzip.compress(lines(of["messages"]), mtime=0)),
        Kind("a.csv.gz", gzip.compress(csv, mtime=0), TEMPLATES),
    )


# -------------------------------------------------------------------------------------------------------------- damage

Draw = Callable[..., Any]


def _at(draw: Draw, data: bytes) -> int:
    return draw(st.integers(0, len(data)))


def _a_bit(draw: Draw, data: bytes) -> bytes:
    at = _at(draw, data)
    return data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :] if at < len(data) else data


def _inserted(draw: Draw, data: bytes) -> bytes:
    at = _at(draw, data)
    return data[:at] + draw(st.binary(min_size=1, max_size=64)) + data[at:]


def _awkward(draw: Draw, data: bytes) -> bytes:
    at, replaced = _at(draw, data), draw(st.sampled_from((0, 0, 1, 8)))
    return data[:at] + draw(st.sampled_from(AWKWARD)) + data[at + replaced :]


def _removed(draw: Draw, data: bytes) -> bytes:
    at = _at(draw, data)
    return data[:at] + data[at + draw(st.sampled_from((1, 2, 8, 64))) :]


def _repeated(draw: Draw, data: bytes) -> bytes:
    at, length = _at(draw, data), draw(st.sampled_from((1, 8, 64)))
    return data[:at] + data[at : at + length] * draw(st.sampled_from((1, 2, 50))) + data[at:]


def _cut(draw: Draw, data: bytes) -> bytes:
    return data[: _at(draw, data)]


def _lines_moved(draw: Draw, data: bytes) -> bytes:
    lines = data.split(b"\n")
    one, other = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    match draw(st.sampled_from(("swapped", "doubled", "joined", "gone", "blank"))):
        case "swapped":
            lines[one], lines[other] = lines[other], lines[one]
        case "doubled":
            lines.insert(other, lines[one])
        case "joined":
            lines[one : one + 2] = [b"".join(lines[one : one + 2])]
        case "gone":
            del lines[one]
        case _:
            lines.insert(one, draw(st.sampled_from((b"", b" ", b"\t", b"\r"))))
    return b"\n".join(lines)


def _torn(draw: Draw, data: bytes) -> bytes:
    at = _at(draw, data)
    return data[:at] + draw(st.sampled_from((b"\n", b"\r", b"\r\n", "\u2028".encode()))) + data[at:]


def _line_ends(draw: Draw, data: bytes) -> bytes:
    return data.replace(b"\n", draw(st.sampled_from((b"\r\n", b"\r", b"\n\n"))))


def _encoded(draw: Draw, data: bytes) -> bytes:
    return data.decode("utf-8", "replace").encode(
        draw(st.sampled_from(("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "utf-7"))), "replace"
    )


def _key_twice(draw: Draw, data: bytes) -> bytes:
    places = [at for at, byte in enumerate(data) if byte == 0x7B]  # {
    if not places:
        return data
    at = draw(st.sampled_from(places)) + 1
    return data[:at] + data[at : data.find(b":", at) + 1] + b'"first",' + data[at:]


def _odd_value(draw: Draw, data: bytes) -> bytes:
    """One of the texts or numbers of a JSON file, or a cell, is another value."""
    places = [at for at, byte in enumerate(data) if byte in b":,\t"]
    if not places:
        return data
    at = draw(st.sampled_from(places)) + 1
    ends = [end for mark in (b",", b"}", b"]", b"\n", b"\t") if (end := data.find(mark, at)) >= 0]
    value = json.dumps(draw(st.sampled_from(ODD)), ensure_ascii=draw(st.booleans()))
    return data[:at] + value.encode("utf-8", "surrogatepass") + data[min(ends, default=len(data)) :]


DAMAGES = (
    _a_bit, _inserted, _awkward, _awkward,
    _removed, _repeated, _cut, _lines_moved, _lines_moved, _torn, _line_ends, _encoded, _key_twice, _odd_value, _odd_value,
)  # fmt: skip


@st.composite
def damaged(draw: Draw, kind: Kind) -> bytes:
    inside = kind.name.endswith(".gz") and draw(st.booleans())
    data = gzip.decompress(kind.good) if inside else kind.good
    for damage in draw(st.lists(st.sampled_from(DAMAGES), min_size=1, max_size=3)):
        data = damage(draw, data)
    return gzip.compress(data, mtime=0) if inside else data


def _odd(draw: Draw, row: Values) -> Values:
    """The row with one to three of its values, at any depth, replaced, removed, repeated or given another key."""
    row = copy.deepcopy(row)
    for _ in range(draw(st.integers(1, 3))):
        holders: list[Any] = [row]
        for holder in holders:
            inner = holder.values() if isinstance(holder, dict) else holder
            holders += [value for value in inner if isinstance(value, dict | list) and value]
        holder = draw(st.sampled_from([holder for holder in holders if holder] or [{"x": 1}]))
        key = draw(st.sampled_from(list(holder))) if isinstance(holder, dict) else draw(st.integers(0, len(holder) - 1))
        match draw(st.sampled_from(("gone", "repeated", "other key", "value", "value"))):
            case "gone":
                del holder[key]
            case "repeated" if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case "other key" if isinstance(holder, dict):
                holder[draw(st.sampled_from(KEYS))] = copy.deepcopy(draw(st.sampled_from(ODD)))
            case _:
                holder[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
    return row


@st.composite
def odd_rows(draw: Draw, shape: str) -> list[Values]:
    """The good rows with one to three others among them; the first stays, as what the file is, is told by it."""
    rows = list(shapes()[shape])
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(1, len(rows) - 1))
        if draw(st.integers(0, 3)):
            rows[at] = _odd(draw, rows[at])
        else:
            rows.insert(at, draw(st.sampled_from([other[0] for name, other in shapes().items() if name != shape])))
    return rows


# --------------------------------------------------------------------------------------------------- the naive reading


class Unreadable(ValueError):
    """The file as a whole cannot be read."""


def naive_rows(kind: Kind, content: bytes) -> list[tuple[int, Values | None]]:
    """(line where it starts, values) of every row, None for one that is no row; raises Unreadable for a file that is none."""
    try:
        if kind.name.endswith(".gz"):
            content = gzip.decompress(content)
        if kind.suffix in (".parquet", ".arrow"):
            return list(enumerate(naive_table(kind, content), 1))
        text = content.decode("utf-8").removeprefix("\ufeff")
    except Exception as error:
        raise Unreadable(str(error)) from error
    match kind.suffix:
        case ".jsonl":
            return [(line, naive_json(part)) for line, part in numbered(text) if part.strip()]
        case ".tsv":
            return [(line, naive_cells(kind, part.split("\t"))) for line, part in numbered(text) if part]
        case ".csv":
            return naive_csv(text)
        case ".json":
            return naive_document(text)
        case ".txt":
            return [(1, {"text": text})]
    raise Unreadable("no naive reading of this kind")


def numbered(text: str) -> list[tuple[int, str]]:
    """Lines; of a file whose lines end in CR alone, these."""
    if "\n" not in text and "\r" in text:
        return list(enumerate(text.split("\r"), 1))
    return [(number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1)]


def naive_json(text: str) -> Values | None:
    def once(items: list[tuple[str, Any]]) -> Values:
        if len({key for key, _ in items}) < len(items):
            raise ValueError("a key is given twice")
        return dict(items)

    def none(name: str) -> None:
        raise ValueError(name)

    try:
        value = json.loads(text, object_pairs_hook=once, parse_constant=none)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def naive_cells(kind: Kind, cells: list[str]) -> Values | None:
    names = kind.options["columns"]
    return dict(zip(names, cells, strict=True)) if len(cells) == len(names) else None


def naive_csv(text: str) -> list[tuple[int, Values | None]]:
    """Quoted cells by a scanner of single characters; a record that breaks the rules costs its first line."""
    lines = [f"{line}\n" for line in text.split("\n")]
    lines = [*lines[:-1], *([lines[-1][:-1]] if lines[-1] != "\n" else [])]
    rows: list[tuple[int, list[str] | None]] = []
    at = 0
    while at < len(lines):
        cells, taken = naive_record(lines, at)
        if cells != []:
            rows.append((at + 1, cells))
        at += taken
    if not rows or rows[0][1] is None:
        raise Unreadable("no header")
    names = [name.strip() for name in rows[0][1] or []]
    return [
        (line, dict(zip(names, cells, strict=True)) if cells is not None and len(cells) == len(names) else None) for line, cells in rows[1:]
    ]


def naive_record(lines: list[str], at: int) -> tuple[list[str] | None, int]:
    """The cells of the record that starts in this line ([]: it is blank), and how many lines it takes; None: it breaks the rules."""
    if lines[at].rstrip("\n").removesuffix("\r") == "":
        return [], 1
    text, cells, cell, quoted, closed = "".join(lines[at:]), list[str](), "", False, False
    place = 0
    while place < len(text):
        character = text[place]
        place += 1
        if quoted:
            if character == '"' and text[place : place + 1] == '"':
                cell, place = cell + '"', place + 1
            elif character == '"':
                quoted, closed = False, True
            else:
                cell += character
        elif character in "\r\n":
            end = text.find("\n", place - 1) + 1 or len(text)
            if text[place:end].strip("\r\n"):
                return None, 1
            return [*cells, cell], max(1, text[:end].count("\n"))
        elif character == ",":
            cells, cell, closed = [*cells, cell], "", False
        elif closed:
            return None, 1
        elif character == '"' and not cell:
            quoted = True
        else:
            cell += character
    if quoted:
        raise Unreadable("a quote is never closed")
    return [*cells, cell], max(1, len(lines) - at)


def naive_document(text: str) -> list[tuple[int, Values | None]]:
    """An array of objects, or {"data": …}; with the keys of a task, or one object a line, nothing is said here."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(str(error)) from error
    start = 0
    if isinstance(value, dict) and list(value) == ["data"]:
        start = text.index("[") if isinstance(value["data"], list) else 0
        value = value["data"]
    if not isinstance(value, list):
        raise Unreadable("no array")
    rows, at, decoder = list[tuple[int, Values | None]](), text.index("[", start) + 1, json.JSONDecoder()
    for _ in value:
        at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n,"))
        _, end = decoder.raw_decode(text, at)
        rows.append((text.count("\n", 0, at) + 1, naive_json(text[at:end])))
        at = end
    return rows


def naive_table(kind: Kind, content: bytes) -> list[Values]:
    if kind.suffix == ".parquet":
        return parquet.read_table(io.BytesIO(content)).to_pylist()
    with pa.ipc.open_stream(io.BytesIO(content)) as reader:
        found = reader.read_all()
    found.validate(full=True)
    return found.to_pylist()


# ------------------------------------------------------------------------------------------------------------- reading


def read(path: Path, options: Options, policy: str, prompts: bool = False) -> Read | BadInput:
    """What a user gets; raises what a user must never see."""
    config = DataConfig.model_validate({"train": str(path), "on_bad_row": policy, **options})
    try:
        found = read_prompts(config, path) if prompts else read_conversations(config)
    except BadInput as error:
        str(error).encode()
        assert error.what and error.where and error.fix, f"an error without what, where or fix: {error!r}"
        return error
    assert found.conversations and found.n_rows == len(found.conversations) + len(found.skipped)
    for conversation in found.conversations:
        whole = [conversation.fields, conversation.tools, [(m.content, m.thinking, str(m.tool_calls)) for m in conversation.messages]]
        json.dumps(whole, allow_nan=False, ensure_ascii=False).encode()
        assert prompts or conversation.answer is not None, f"{conversation.source} teaches nothing"
    "\n".join([*found.said, *(bad.problem for bad in found.skipped)]).encode()
    return found


def says(conversation: Conversation) -> tuple[Any, ...]:
    """All that a row teaches, without where it stands."""
    return conversation.messages, conversation.tools


def line_of(source: str) -> int:
    return int(source.rpartition(":")[2])


@cache
def good_rows(kind: Kind, folder: Path) -> tuple[str, list[tuple[Values, tuple[Any, ...]]]]:
    """What the undamaged file is taken for, and its rows: values, and what they say."""
    path = folder / kind.name
    path.write_bytes(kind.good)
    found = read(path, kind.options, "error")
    assert isinstance(found, Read), f"the undamaged {kind.name} is refused: {found}"
    try:
        naive = [values or {} for _, values in naive_rows(kind, kind.good)]
    except Unreadable:
        naive = []
    return found.what, [(values, says(c)) for values, c in zip(naive, found.conversations, strict=False)]


def check_bytes(kind: Kind, folder: Path, content: bytes) -> str:
    """All that must hold of a damaged file; returns in a word how it ended."""
    what, good = good_rows(kind, folder)
    path = folder / kind.name
    path.write_bytes(content)
    skipping, stopping = read(path, kind.options, "skip"), read(path, kind.options, "error")
    read(path, kind.options, "skip", prompts=True)
    agree(skipping, stopping)
    try:
        naive = naive_rows(kind, content)
    except Unreadable:
        naive = None
    if isinstance(skipping, BadInput):
        begins_well = naive and any(naive[0][1] == values for values, _ in good) and b"\0" not in content
        is_table = kind.suffix == ".tsv" and b"\n" in content  # lines that end in CR alone are one line, and it is said how to mend that
        assert not (begins_well and (kind.suffix in (".jsonl", ".json") or is_table)), (
            f"refused, though it begins as a good file: {skipping}"
        )
        return "refused"
    if kind.suffix in (".jsonl", ".tsv", ".csv") or (kind.suffix == ".json" and naive is not None):
        assert naive is not None, f"read, though it cannot be: {skipping.said}"
    if naive is not None and kind.suffix != ".txt":
        lines_agree(skipping, [line for line, _ in naive])
    if naive is not None and skipping.what == what:  # damage that makes it another format is said aloud, and all else follows from it
        now: dict[int, list[Any]] = {}  # several objects of a JSON array may stand in one line
        for conversation in skipping.conversations:
            now.setdefault(line_of(conversation.source), []).append(says(conversation))
        n_rows = Counter(line for line, _ in naive)
        for line, values in naive:
            for was, said in good:
                assert values != was or said in now.get(line, []), f"line {line} was good and is now {now.get(line)}"
            assert values is not None or len(now.get(line, [])) < n_rows[line], f"line {line} is no row and was read: {now[line]}"
    if kind.name.endswith((".jsonl", ".tsv")):
        alone_the_same(skipping, content.removeprefix(b"\xef\xbb\xbf"), path, kind.options)
    return "read, rows skipped" if skipping.skipped else "read whole"


def agree(skipping: Read | BadInput, stopping: Read | BadInput) -> None:
    """ "error" stops at the first row that "skip" leaves out, and otherwise both read the same."""
    if isinstance(skipping, BadInput):
        assert isinstance(stopping, BadInput), f"skip refuses what error reads: {skipping}"
        return
    if not skipping.skipped:
        assert isinstance(stopping, Read), f"error refuses what skip reads whole: {stopping}"
        assert [says(c) for c in stopping.conversations] == [says(c) for c in skipping.conversations]
        return
    first = line_of(skipping.skipped[0].source)
    assert isinstance(stopping, BadInput), f"line {first} is skipped, and error reads it"
    if any(line_of(c.source) < first for c in skipping.conversations):  # a good row before it told what the file is
        assert stopping.where.endswith(f":{first}"), f"the first bad row is at line {first}, refused was {stopping}"


def lines_agree(found: Read, lines: list[int]) -> None:
    told = sorted([*(line_of(c.source) for c in found.conversations), *(line_of(bad.source) for bad in found.skipped)])
    assert told == sorted(lines), f"rows start at the lines {lines}, and are told at {told}"


def alone_the_same(found: Read, content: bytes, path: Path, options: Options) -> None:
    """The line that a row names holds it, and nothing else makes it what it is: of the first and the last row, as each is one more file."""
    alone = path.with_name(f"alone{path.suffix}")
    lines = content.split(b"\n" if b"\n" in content else b"\r")
    for conversation in {line_of(c.source): c for c in (found.conversations[0], found.conversations[-1])}.values():
        alone.write_bytes(
            b"\xef\xbb\xbf" + lines[line_of(conversation.source) - 1] + b"\n"
        )  # a mark of its own, for one may begin the line
        again = read(alone, options, "error")
        assert isinstance(again, Read), f"{conversation.source} is not what its line says: {again}"
        assert [says(c) for c in again.conversations] == [says(conversation)], f"{conversation.source} is not what its line says"


def check_rows(shape: str, folder: Path, rows: list[Values], as_lines: bool) -> str:
    """All that must hold of a well-formed file with odd rows; returns in a word how it ended."""
    good = shapes()[shape]
    path = folder / (f"{shape}.jsonl" if as_lines else f"{shape}.json")
    text = "\n".join(json.dumps(row) for row in rows) if as_lines else json.dumps(rows, indent=1)
    path.write_text(text)
    skipping, stopping = read(path, {}, "skip"), read(path, {}, "error")
    read(path, {}, "skip", prompts=True)
    assert isinstance(skipping, Read), f"odd rows make the file unreadable: {skipping}"
    agree(skipping, stopping)
    lines = [n for n, line in enumerate(text.split("\n"), 1) if as_lines or line.startswith(" {")]
    lines_agree(skipping, lines)
    kept = {line_of(c.source): says(c) for c in skipping.conversations}
    said = said_of(shape, folder)
    for line, row in zip(lines, rows, strict=True):
        if row in good:
            assert kept.get(line) == said[good.index(row)], f"the good row at line {line} is now {kept.get(line)}"
    if as_lines:
        alone_the_same(skipping, text.encode(), path, {"format": skipping.format})
    return "read, rows skipped" if skipping.skipped else "read whole"


@cache
def said_of(shape: str, folder: Path) -> list[tuple[Any, ...]]:
    path = folder / "good.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in shapes()[shape]))
    found = read(path, {}, "error")
    assert isinstance(found, Read)
    return [says(c) for c in found.conversations]


# ------------------------------------------------------------------------------------------------------------ the runs


def fuzz(folder: Path, n_files: int, number: int | None = None, kind: str = "", shape: str = "") -> Counter[tuple[str, str]]:
    """At least `n_files` files of one kind or of one shape; returns (name, outcome) → files. Raises the smallest failure that is found.

    number   of the draw; None: the same one every time
    """
    outcomes: Counter[tuple[str, str]] = Counter()
    if kind:
        [chosen] = [one for one in kinds() if one.name == kind]
        name, strategy = kind, damaged(chosen).map(lambda content: lambda: check_bytes(chosen, folder, content))
    else:
        drawn = st.tuples(odd_rows(shape), st.sampled_from((True, True, True, False)))
        name, strategy = f"odd {shape}", drawn.map(lambda both: lambda: check_rows(shape, folder, *both))

    def test(one: Callable[[], str]) -> None:
        outcomes[name, one()] += 1

    test = given(strategy)(test)
    usual = settings(
        max_examples=n_files, derandomize=number is None, database=None, deadline=None, print_blob=False,
        phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    usual(test if number is None else seed(number)(test))()
    return outcomes


def main(n_files: int = 6000, number: int = 0) -> None:
    """At least so many files, and a table of how they ended."""
    names = [*(kind.name for kind in kinds()), *(f"odd {shape}" for shape in shapes())]
    each = -(-n_files // len(names))
    outcomes: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds():
            outcomes += fuzz(Path(folder), each, number, kind=kind.name)
        for shape in shapes():
            outcomes += fuzz(Path(folder), each, number, shape=shape)
    columns = ("read whole", "read, rows skipped", "refused")
    print(f"{'':16}" + "".join(f"{column:>20}" for column in columns))
    for name in names:
        print(f"{name:16}" + "".join(f"{outcomes[name, column]:>20,}" for column in columns))
    print(f"formats: {outcomes.total():,} damaged files, 0 of them not read as they should be")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:3]))
