"""Bytes that are no UTF-8: every line that has some, and the other rows of the file all the same.

    lines = lines_of(path)                             # {41: 0xe9}: line → its first bad byte
    read = read_around(config, path, "sms.csv", "")    # the rows that do not begin in such a line

Training stops at the first such byte, for whoever wrote one in another encoding wrote more of them. A check says how many there are.
"""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, cast

import numpy as np

from tunesmith.config import DataConfig
from tunesmith.data.checks.finding import Finding, found
from tunesmith.data.formats import Read, read_conversations
from tunesmith.data.spool import picked
from tunesmith.errors import BadInput


def _packed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _bytes(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if _packed(path) else path.open("rb")


def lines_of(path: Path) -> dict[int, int]:
    """Line → its first byte that is out of place."""
    bad: dict[int, int] = {}
    with _bytes(path) as stream:
        for number, raw in enumerate(stream, 1):
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError as error:
                bad[number] = raw[error.start]
    return bad


def read_around(config: DataConfig, path: Path, name: str, task: str) -> Read | None:
    """What the file holds if each bad byte is taken for a character, less the rows that begin in a line with one; None if even so nothing."""
    bad = lines_of(path)
    with mended(path) as copy:
        try:
            read = read_conversations(config, copy, name, task)
        except BadInput:
            return None
    is_bad = np.fromiter((int(c.source.rpartition(":")[2]) in bad for c in read.conversations), bool, len(read.conversations))
    return replace(read, conversations=picked(read.conversations, np.flatnonzero(~is_bad)))


@contextmanager
def mended(path: Path) -> Iterator[Path]:
    """A copy, while it is needed, in which a replacement character stands for each bad byte."""
    with TemporaryDirectory() as folder:
        copy = Path(folder) / (path.stem if _packed(path) else path.name)
        with _bytes(path) as stream, copy.open("wb") as written:
            for raw in stream:
                written.write(raw.decode("utf-8", "replace").encode("utf-8"))
        yield copy


def finding(path: Path, name: str, error: BadInput) -> list[Finding]:
    """Every line of a file that stops the reading for its bytes."""
    hits = [(f"{name}:{line}", f"byte 0x{byte:02x}") for line, byte in lines_of(path).items()]
    return found("not-utf-8", "error", hits, "the file is not UTF-8, and training stops at it, whatever data.on_bad_row says", error.fix)


def is_it(error: BadInput) -> bool:
    return error.what.startswith("the file is not UTF-8")
