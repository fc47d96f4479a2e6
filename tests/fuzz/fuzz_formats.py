"""Damaged files of every kind: each is read, or refused with BadInput that says where and what to do; never a traceback.

    python tests/fuzz/fuzz_formats.py [CASES] [SEED]          # part of `make fuzz`

A small good file of each kind is damaged at random places (bytes flipped, removed, repeated, cut, spliced with awkward ones)
and read with `on_bad_row` "error" and "skip". What was read must add up: rows = conversations + skipped.
"""

import gzip
import io
import json
import random
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from tunesmith.config import DataConfig
from tunesmith.data.formats import Read, read_conversations, read_prompts
from tunesmith.errors import BadInput

AWKWARD = [
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"', b'""', b"\n", b"\r", b"\t", b",", b"{", b"}", b"[", b"]", b":", b"\\u",
    b"\\ud800", b"NaN", b"1e999", b"null", b"9" * 5000, b"[" * 5000, b'{"a":' * 5000, "\u2028".encode(),
    b'"data":', b'"messages":', b"\x1f\x8b",
]  # fmt: skip
TEMPLATES = {"prompt": "Spam or ham?\n\n{text}", "completion": "{label}"}


def seeds() -> list[tuple[str, bytes, dict[str, object]]]:
    """(name, good content, options of the data section) of each kind."""
    rows = [{"text": f"hello, wörld {i}", "label": "spam" if i % 3 else "ham"} for i in range(8)]
    pairs = [{"prompt": r["text"], "completion": r["label"]} for r in rows]
    chats = [
        {"messages": [{"role": "user", "content": r["text"]}, {"role": "assistant", "content": r["label"], "weight": 1}]} for r in rows
    ]
    jsonl = "\n".join(json.dumps(row) for row in chats).encode()
    csv = ("text,label\n" + "".join(f'"{r["text"]}\n second",{r["label"]}\n' for r in rows)).encode()
    tsv = "".join(f"{r['label']}\t{r['text']}\n" for r in rows).encode()
    table = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), table)
    return [
        ("a.jsonl", jsonl, {}),
        ("a.json", json.dumps({"data": pairs}, indent=1).encode(), {}),
        ("b.json", json.dumps(rows).encode(), dict(TEMPLATES)),
        ("a.csv", csv, dict(TEMPLATES)),
        ("a.tsv", tsv, {**TEMPLATES, "columns": ["label", "text"], "header": False, "quoting": False}),
        ("a.parquet", table.getvalue(), dict(TEMPLATES)),
        ("a.txt", csv, {}),
        ("a.unknown", jsonl, {}),
        ("a.jsonl.gz", gzip.compress(jsonl, mtime=0), {}),
        ("a.csv.gz", gzip.compress(csv, mtime=0), dict(TEMPLATES)),
    ]


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


def outcome(path: Path, options: dict[str, object], policy: str, prompts: bool) -> str:
    """ "read" or "refused"; raises what a user must never see."""
    config = DataConfig.model_validate({"train": str(path), "on_bad_row": policy, **options})
    try:
        found: Read = read_prompts(config, path) if prompts else read_conversations(config)
    except BadInput as error:
        str(error).encode()
        if not (error.what and error.where and error.fix):
            raise AssertionError(f"an error without what, where or fix: {error!r}") from error
        return "refused"
    if found.n_rows != len(found.conversations) + len(found.skipped) or not found.conversations:
        raise AssertionError(f"{found.n_rows} rows, {len(found.conversations)} read, {len(found.skipped)} skipped")
    for conversation in found.conversations:
        json.dumps([conversation.fields, [m.content for m in conversation.messages]], allow_nan=False, ensure_ascii=False).encode()
    "\n".join([*found.said, *(bad.problem for bad in found.skipped)]).encode()
    return "read"


def main(n_cases: int = 4000, seed: int = 0) -> int:
    """Damage and read `n_cases` files of each kind; prints the counts and returns how many ended in anything else."""
    random_ = random.Random(seed)
    n_failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, content, options in seeds():
            path = Path(folder) / name
            path.write_bytes(content)
            if outcome(path, options, "error", prompts=False) != "read":
                raise AssertionError(f"the undamaged {name} is refused")
            counts: Counter[str] = Counter()
            for case in range(n_cases):
                path.write_bytes(damaged(content, random_))
                policy = ("error", "skip")[case % 2]
                try:
                    counts[f"{outcome(path, options, policy, prompts=case % 8 == 7)} ({policy})"] += 1
                except Exception:  # the finding: keep the file's bytes and go on
                    n_failed += 1
                    traceback.print_exc()
                    print(f"{name}, case {case}, seed {seed}, {policy}: {path.read_bytes()[:2000]!r}")
            print(f"{name:12} " + ", ".join(f"{n:,} {what}" for what, n in sorted(counts.items())))
    print(f"formats: {n_cases * len(seeds()):,} damaged files, {n_failed} tracebacks")
    return n_failed


if __name__ == "__main__":
    sys.exit(bool(main(*(int(argument) for argument in sys.argv[1:3]))))
