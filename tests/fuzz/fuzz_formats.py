"""Damaged data files: whatever is in one, reading it gives conversations or an error that says where and what to do.

    python tests/fuzz/fuzz_formats.py [CASES] [SEED]          # part of `make fuzz`; CASES of each kind and of each shape

Two kinds of damage. *Bytes*: a small good file of each kind is damaged at random places (bytes flipped, removed, repeated, cut,
spliced with awkward ones). *Values*: in one row of a file of each shape a value is replaced, removed or repeated, so that the
file is well formed and the row is odd. Each is read with `on_bad_row` "error" and "skip", and then
- there is no traceback, and an error says what, where and what to do;
- rows = conversations + skipped;
- a row that was read is, read alone, the same conversation (nothing changed silently), and stands at the line it names;
- of a file of lines in which some were damaged, "skip" keeps every line that was not, as it was;
- of a file in which one row is odd, "error" names that row's line and no other.
"""

import copy
import gzip
import io
import json
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from tunesmith.config import DataConfig
from tunesmith.data.conversation import Conversation
from tunesmith.data.formats import Read, read_conversations, read_prompts
from tunesmith.errors import BadInput

AWKWARD = [
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"', b'""', b"\n", b"\r", b"\t", b",", b"{", b"}", b"[", b"]", b":", b"\\u",
    b"\\ud800", b"NaN", b"1e999", b"null", b"9" * 5000, b"[" * 5000, b'{"a":' * 5000, "\u2028".encode(),
    b'"data":', b'"messages":', b'"instances":', b'"definition":', b'"tool_calls":', b"<think>", b"</think>", b"\x1f\x8b",
]  # fmt: skip
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 0.5, 10**400, "", " ", "\n", "x", "{x}", "{", "[]", "null", "\0", "\u2028", "<think>", "<think>a</think>",
    "<think></think>b", "user", "tool", "assistant", "system", "function_call", [], [[]], [None], {}, {"a": None}, {"role": "user"}, ["a", "b"],
    '{"name": 1}', '[{"name": "f"}]', {"type": "text", "text": "x"}, "nan",
]  # fmt: skip
KEYS = ["role", "content", "name", "tools", "weight", "thinking", "train", "label", "output"]
TEMPLATES = {"prompt": "Spam or ham?\n\n{text}", "completion": "{label}"}
TABLE = [{"text": f"hello, wörld {i}", "label": "spam" if i % 3 else "ham"} for i in range(8)]


def shapes() -> dict[str, list[dict[str, Any]]]:
    """Eight rows of every shape that is recognised."""
    texts = [(row["text"], row["label"]) for row in TABLE]
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}}}

    def chat(asked: str, said: str, **more: Any) -> list[dict[str, Any]]:
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": said, **more}]

    def called(asked: str, said: str) -> list[dict[str, Any]]:
        call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": json.dumps({"q": asked})}}
        return [
            {"role": "system", "content": "Be short."}, {"role": "user", "content": asked},
            {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c1", "content": "[1, 2]"},
            {"role": "assistant", "content": said},
        ]  # fmt: skip

    def sharegpt(asked: str, said: str) -> list[dict[str, Any]]:
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


def seeds() -> list[tuple[str, bytes, dict[str, Any]]]:
    """(name, good content, options of the data section) of each kind of file."""
    of = shapes()

    def lines(rows: list[dict[str, Any]]) -> bytes:
        return "\n".join(json.dumps(row) for row in rows).encode()

    task = {"Definition": ["Sort."], "Positive Examples": [{"input": "a", "output": "b"}], "Instances": of["instances"]}
    csv = ("text,label\n" + "".join(f'"{r["text"]}\n second",{r["label"]}\n' for r in TABLE)).encode()
    tsv = "".join(f"{r['label']}\t{r['text']}\n" for r in TABLE).encode()
    table, stream = io.BytesIO(), io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(TABLE), table)
    chats = pa.Table.from_pylist(of["messages"])
    with pa.ipc.new_stream(stream, chats.schema) as writer:
        writer.write_table(chats)
    return [
        ("a.jsonl", lines(of["messages"]), {}),
        ("tools.jsonl", lines(of["tools"]), {}),
        ("sharegpt.jsonl", lines(of["sharegpt"]), {}),
        ("alpaca.jsonl", lines(of["alpaca"]), {}),
        ("thinking.jsonl", lines(of["think marks"]), {}),
        ("a.json", json.dumps({"data": of["pairs"]}, indent=1).encode(), {}),
        ("b.json", json.dumps(TABLE).encode(), dict(TEMPLATES)),
        ("task.json", json.dumps(task, indent=1).encode(), {}),
        ("shown.json", json.dumps(task).encode(), {"examples": 1}),
        ("a.csv", csv, dict(TEMPLATES)),
        ("a.tsv", tsv, {**TEMPLATES, "columns": ["label", "text"], "header": False, "quoting": False}),
        ("a.parquet", table.getvalue(), dict(TEMPLATES)),
        ("a.arrow", stream.getvalue(), {}),
        ("a.txt", csv, {}),
        ("a.unknown", lines(of["messages"]), {}),
        ("a.jsonl.gz", gzip.compress(lines(of["messages"]), mtime=0), {}),
        ("a.csv.gz", gzip.compress(csv, mtime=0), dict(TEMPLATES)),
    ]


# -------------------------------------------------------------------------------------------------------------- damage


def damaged(content: bytes, random_: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(random_.choice((1, 1, 1, 2, 4, 16))):
        at = random_.randrange(len(data) + 1)
        length = random_.choice((1, 1, 2, 8, 64))
        match random_.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << random_.randrange(8)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length] * random_.choice((1, 2, 50))
            case 3:
                del data[at:]
            case 4:
                data[at : at + random_.choice((0, length))] = random_.choice(AWKWARD)
            case _:
                data[at:at] = random_.randbytes(length)
    return bytes(data)


def odd(row: dict[str, Any], random_: random.Random) -> dict[str, Any]:
    """The row with one to three of its values, at any depth, replaced, removed, repeated or given another key."""
    row = copy.deepcopy(row)
    for _ in range(random_.choice((1, 1, 2, 3))):
        holders: list[Any] = [row]
        for holder in holders:
            holders += [
                value for value in (holder.values() if isinstance(holder, dict) else holder) if isinstance(value, dict | list) and value
            ]
        holder = random_.choice([holder for holder in holders if holder] or [{"x": 1}])
        key = random_.choice(list(holder)) if isinstance(holder, dict) else random_.randrange(len(holder))
        match random_.randrange(5):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case 2 if isinstance(holder, dict):
                holder[random_.choice(KEYS)] = copy.deepcopy(random_.choice(ODD))
            case _:
                holder[key] = copy.deepcopy(random_.choice(ODD))
    return row


# ------------------------------------------------------------------------------------------------------------- reading


def read(path: Path, options: dict[str, Any], policy: str, prompts: bool = False) -> Read | BadInput:
    """What a user gets; raises what a user must never see."""
    config = DataConfig.model_validate({"train": str(path), "on_bad_row": policy, **options})
    try:
        found = read_prompts(config, path) if prompts else read_conversations(config)
    except BadInput as error:
        str(error).encode()
        if not (error.what and error.where and error.fix):
            raise AssertionError(f"an error without what, where or fix: {error!r}") from error
        return error
    if found.n_rows != len(found.conversations) + len(found.skipped) or not found.conversations:
        raise AssertionError(f"{found.n_rows} rows, {len(found.conversations)} read, {len(found.skipped)} skipped")
    for conversation in found.conversations:
        whole = [conversation.fields, conversation.tools, [(m.content, m.thinking, str(m.tool_calls)) for m in conversation.messages]]
        json.dumps(whole, allow_nan=False, ensure_ascii=False).encode()
        if conversation.answer is None and not prompts:
            raise AssertionError(f"{conversation.source} teaches nothing")
    "\n".join([*found.said, *(bad.problem for bad in found.skipped)]).encode()
    return found


def says(conversation: Conversation) -> tuple[Any, ...]:
    """All that a row teaches, without where it stands."""
    return conversation.messages, conversation.tools


def line_of(source: str) -> int:
    return int(source.rpartition(":")[2])


def same_when_alone(conversation: Conversation, content: bytes, path: Path, options: dict[str, Any]) -> None:
    """The line of a .jsonl or .tsv file that a conversation names holds it, and nothing else makes it what it is."""
    line = content.split(b"\n")[line_of(conversation.source) - 1]
    alone = path.with_name(f"alone{path.suffix}")
    alone.write_bytes(line)
    found = read(alone, options, "error")
    if isinstance(found, BadInput) or [says(c) for c in found.conversations] != [says(conversation)]:
        raise AssertionError(f"{conversation.source} is not what its line says: {line!r}, {found}")


def good_lines_kept(good: bytes, content: bytes, before: Read, after: Read) -> None:
    """Every line that stands in the good file too is read, and as it was there."""
    was = {line: says(c) for line, c in zip(good.split(b"\n"), before.conversations)}
    now = {line_of(c.source): says(c) for c in after.conversations}
    for number, line in enumerate(content.split(b"\n"), 1):
        if line in was and now.get(number) != was[line]:
            raise AssertionError(f"line {number} was good and is now {now.get(number)}")


# --------------------------------------------------------------------------------------------------------------- cases


def fuzz_bytes(folder: Path, seed: tuple[str, bytes, dict[str, Any]], case: int, random_: random.Random) -> str:
    name, good, options = seed
    path = folder / name
    path.write_bytes(good)
    before = read(path, options, "error")
    if isinstance(before, BadInput):
        raise AssertionError(f"the undamaged {name} is refused") from before
    content = damaged(good, random_)
    path.write_bytes(content)
    policy, prompts = ("error", "skip")[case % 2], case % 8 == 7
    found = read(path, options, policy, prompts)
    if isinstance(found, BadInput):
        return f"refused ({policy})"
    of_lines = path.suffix in (".jsonl", ".tsv") and not prompts
    # where the first rows were damaged so that the file is taken for another format, that is said aloud and all else follows from it
    if of_lines and found.what == before.what:
        good_lines_kept(good, content.removeprefix(b"\xef\xbb\xbf"), before, found)
        same_when_alone(random_.choice(found.conversations), content, path, options)
    return f"read ({policy})"


def fuzz_values(folder: Path, shape: tuple[str, list[dict[str, Any]]], case: int, random_: random.Random) -> str:
    name, rows = shape
    at = random_.randrange(2, len(rows))  # not the first: what the file is, is told by it
    rows = [*rows[:at], odd(rows[at], random_), *rows[at + 1 :]]
    as_lines = case % 4 != 3
    path = folder / (f"{name}.jsonl" if as_lines else f"{name}.json")
    text = "\n".join(json.dumps(row) for row in rows) if as_lines else json.dumps(rows, indent=1)
    path.write_text(text)
    skipping, stopping = read(path, {}, "skip"), read(path, {}, "error")
    if isinstance(skipping, BadInput):
        raise AssertionError(f"one odd row makes the file unreadable: {skipping}")
    line = at + 1 if as_lines else line_of(json_sources(text)[at])
    others = [c for c in skipping.conversations if line_of(c.source) != line]
    if len(others) != len(rows) - 1 or [bad for bad in skipping.skipped if line_of(bad.source) != line]:
        raise AssertionError(f"the odd row is at line {line}, and other rows went: {[c.source for c in others]}, {skipping.skipped}")
    if isinstance(stopping, BadInput):
        if not skipping.skipped or not stopping.where.endswith(f":{line}"):
            raise AssertionError(f"the odd row is at line {line}, refused was {stopping}")
        return "refused"
    if skipping.skipped or [says(c) for c in stopping.conversations] != [says(c) for c in skipping.conversations]:
        raise AssertionError("error and skip disagree about the row")
    if as_lines:
        same_when_alone(stopping.conversations[at], text.encode(), path, {"format": skipping.format})
    return "read"


def json_sources(text: str) -> list[str]:
    """The line of each object of an array that json.dumps wrote with indent=1."""
    return [f"x:{number}" for number, line in enumerate(text.split("\n"), 1) if line.startswith(" {")]


def run(title: str, n_cases: int, one: Callable[[int], str], kept: Callable[[], bytes]) -> int:
    """`one` for every case; prints the counts, and what fails with the file that it fails on. Returns how many failed."""
    counts: Counter[str] = Counter()
    n_failed = 0
    for case in range(n_cases):
        try:
            counts[one(case)] += 1
        except Exception:  # the finding: keep the file's bytes and go on
            n_failed += 1
            traceback.print_exc()
            print(f"{title}, case {case}: {kept()[:2000]!r}")
    print(f"{title:24} " + ", ".join(f"{n:,} {what}" for what, n in sorted(counts.items())))
    return n_failed


def main(n_cases: int = 400, seed: int = 0) -> int:
    """Damage and read `n_cases` files of each kind and shape; returns how many ended in anything else than they should."""
    random_ = random.Random(seed)
    n_failed = n_files = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def newest() -> bytes:
            return max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns).read_bytes()

        for of_kind in seeds():
            n_failed += run(of_kind[0], n_cases, lambda case: fuzz_bytes(folder, of_kind, case, random_), newest)  # noqa: B023 - called at once
            n_files += n_cases
        for of_shape in shapes().items():
            n_failed += run(f"odd {of_shape[0]}", n_cases, lambda case: fuzz_values(folder, of_shape, case, random_), newest)  # noqa: B023
            n_files += n_cases
    print(f"formats: {n_files:,} damaged files, {n_failed} of them not read as they should be")
    return n_failed


if __name__ == "__main__":
    sys.exit(bool(main(*(int(argument) for argument in sys.argv[1:3]))))
