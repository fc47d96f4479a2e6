"""Rows that lie on disk while they are worked on: sequences like any other, at a few bytes of memory a row.

    rows = Gathered()                                    # filled while a file is read
    rows.append(conversation)
    train = picked(rows.whole(), [0, 2, 3])              # a part of them, in this order
    both = joined([train, test])                         # one after the other
    prompts = Texts(c.prompt[0].content for c in train)  # a column of texts, read again as often as needed

Two million conversations take 6 GB as Python objects and half a gigabyte as text. So many rows are written, one compact line of JSON each, to a
file that has no name, and a row is decoded when it is asked for (5 µs); few rows stay a list. Parts and mixtures of rows on disk are
views: the places of their rows. Whoever goes through rows again and again should go through them once and keep what it needs in an array.

A file without a name takes room in the cache folder (TUNESMITH_CACHE; where that is off or cannot be written, the system's folder for temporary
files) and nothing is left of it when the process ends, however it ends. It is read at given places (pread) and not mapped: what is read leaves no
pages in the process, and a forked copy of the process may read too.
"""

import json
import os
import tempfile
import weakref
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain
from pathlib import Path
from typing import IO, Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.conversation import Conversation, Message, ToolCall
from tunesmith.data.digests import Places
from tunesmith.errors import DiskRefused, MachineFailed
from tunesmith.files import explain_disk

T = TypeVar("T")

VARIABLE = "TUNESMITH_CACHE"
MANY_ROWS, MANY_CHARACTERS, MANY_TOKENS = 10_000, 1 << 26, 1 << 24  # from any of these on rows lie on disk
IN_MEMORY_BYTES = 1 << 22  # of one column or file; then it is written
BLOCK_ROWS, BLOCK_BYTES = 512, 1 << 22  # read at once
NEAR_NUMBERS = 512  # between two pieces of an array that are read together


def cache_folder() -> Path | None:
    """Where rows are kept from one start to the next (data/cache.py), and for the time of one; None if the user wants none."""
    named = os.environ.get(VARIABLE, "")
    if named.lower() in ("off", "no", "0"):
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named).expanduser() if named else home / "tunesmith" / "rows"


def unnamed_file(buffering: int = 0) -> tuple[IO[bytes], Path]:
    """A file that is gone with the process, open for writing and reading, and the folder whose room it takes."""
    folder = cache_folder()
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return tempfile.TemporaryFile(dir=folder, buffering=buffering), folder
        except OSError:
            pass
    folder = Path(tempfile.gettempdir())
    with explain_disk(folder):
        return tempfile.TemporaryFile(dir=folder, buffering=buffering), folder


@contextmanager
def explained(folder: Path, n_bytes: int) -> Iterator[None]:
    """Where rows on disk find no room, what, where and what helps."""
    try:
        with explain_disk(folder, n_bytes):
            yield
    except DiskRefused as error:
        what = error.what.removesuffix("; what was saved before is untouched")
        remedy = f"{error.remedy}, or name a folder with room: {VARIABLE}=FOLDER"
        raise DiskRefused(f"{what}; rows are put there while they are worked on", error.where, remedy) from error


class Scratch:
    """Bytes that are appended to and read anywhere; the last of them in memory, and all of them where they are few."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._folder = Path()
        self._n_written = 0
        self._rest = bytearray()

    def __len__(self) -> int:
        return self._n_written + len(self._rest)

    def append(self, data: bytes) -> None:
        """Raises DiskRefused with the room that is missing."""
        self._rest += data
        if len(self._rest) >= IN_MEMORY_BYTES:
            self._write()

    def read(self, start: int, end: int) -> bytes:
        if start >= self._n_written:
            return bytes(self._rest[start - self._n_written : end - self._n_written])
        assert self._file is not None
        head = self._read(start, min(end, self._n_written))
        return head if end <= self._n_written else head + bytes(self._rest[: end - self._n_written])

    def _write(self) -> None:
        if self._file is None:
            self._file, self._folder = unnamed_file()
            weakref.finalize(self, self._file.close)
        with explained(self._folder, len(self._rest)), memoryview(self._rest) as data:
            done = 0
            while done < len(data):
                done += self._file.write(data[done:])
        self._n_written += len(self._rest)
        self._rest.clear()

    def _read(self, start: int, end: int) -> bytes:
        assert self._file is not None
        pieces: list[bytes] = []
        try:
            while start < end:
                if hasattr(os, "pread"):
                    piece = os.pread(self._file.fileno(), min(end - start, 1 << 30), start)
                else:
                    self._file.seek(start)
                    piece = self._file.read(end - start)
                    self._file.seek(0, os.SEEK_END)
                if not piece:
                    raise OSError("it is shorter than what was written")
                pieces.append(piece)
                start += len(piece)
        except OSError as error:
            raise MachineFailed(f"rows on disk cannot be read again: {error}", str(self._folder), "check the disk") from None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class OnDisk(Sequence[T]):
    """A sequence of which each element is some bytes, encoded when it is appended and decoded whenever it is asked for."""

    def __init__(self, encode: Callable[[T], bytes], decode: Callable[[bytes], T], items: Iterable[T] = ()) -> None:
        self._encode, self._decode = encode, decode
        self._bytes, self._ends = Scratch(), array("q", [0])
        for item in items:
            self.append(item)

    def append(self, item: T) -> None:
        data = self._encode(item)
        self._bytes.append(data)
        self._ends.append(self._ends[-1] + len(data))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return Picked(self, np.arange(len(self))[index])
        place = range(len(self))[index]  # negative indices, and IndexError beyond
        return self._decode(self._bytes.read(self._ends[place], self._ends[place + 1]))

    def __iter__(self) -> Iterator[T]:
        for block, begins, ends in self._blocks():
            yield from self._decoded(block, begins, ends)

    def _blocks(self) -> Iterator[tuple[bytes, list[int], list[int]]]:
        """Elements that are read together, and where in these bytes each begins and ends."""
        first, ends = 0, self._ends
        while first < len(self):
            most = min(first + BLOCK_ROWS, len(self))
            last = min(most, max(first + 1, bisect_right(ends, ends[first] + BLOCK_BYTES, first, most + 1) - 1))
            start = ends[first]
            borders = [end - start for end in ends[first : last + 1]]
            yield self._bytes.read(start, ends[last]), borders[:-1], borders[1:]
            first = last

    def _decoded(self, block: bytes, begins: list[int], ends: list[int]) -> list[T]:
        decode = self._decode
        return [decode(block[begin:end]) for begin, end in zip(begins, ends, strict=True)]

    def at(self, places: Sequence[int]) -> Iterator[T]:
        """The elements at these places, in their order; near ones are read together."""
        ends = self._ends
        for first in range(0, len(places), BLOCK_ROWS):
            some = [int(place) for place in places[first : first + BLOCK_ROWS]]
            start, end = ends[min(some)], ends[max(some) + 1]
            n_wanted = sum(ends[place + 1] - ends[place] for place in some)
            if end - start <= min(4 * n_wanted, BLOCK_BYTES):
                block = self._bytes.read(start, end)
                for place in some:
                    yield self._decode(block[ends[place] - start : ends[place + 1] - start])
            else:
                for place in some:
                    yield self._decode(self._bytes.read(ends[place], ends[place + 1]))


class Picked(Sequence[T]):
    """The elements of another sequence at these places."""

    def __init__(self, base: Sequence[T], places: Places) -> None:
        self.base, self.places = base, places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return Picked(self.base, self.places[index])
        return self.base[int(self.places[index])]

    def __iter__(self) -> Iterator[T]:
        return self.at(range(len(self)))

    def at(self, places: Sequence[int]) -> Iterator[T]:
        for first in range(0, len(places), BLOCK_ROWS):
            yield from _at(self.base, self.places[np.asarray(places[first : first + BLOCK_ROWS], np.int64)].tolist())


class Joined(Sequence[T]):
    """Sequences one after the other."""

    def __init__(self, parts: Sequence[Sequence[T]]) -> None:
        self.parts = parts
        self._starts = [0, *accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return Picked(self, np.arange(len(self))[index])
        place = range(len(self))[index]
        part = bisect_right(self._starts, place) - 1
        return self.parts[part][place - self._starts[part]]

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(self.parts)

    def at(self, places: Sequence[int]) -> Iterator[T]:
        first = 0
        while first < len(places):
            part = bisect_right(self._starts, places[first]) - 1
            start, end = self._starts[part], self._starts[part + 1]
            last = next((i for i in range(first, len(places)) if not start <= places[i] < end), len(places))
            yield from _at(self.parts[part], [places[i] - start for i in range(first, last)])
            first = last


class Mapped(Sequence[T]):
    """What a function makes of each element, each time that it is asked for."""

    def __init__(self, make: Callable[[Any], T], base: Sequence[Any]) -> None:
        self.make, self.base = make, base

    def __len__(self) -> int:
        return len(self.base)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return Mapped(self.make, self.base[index]) if isinstance(index, slice) else self.make(self.base[index])

    def __iter__(self) -> Iterator[T]:
        return map(self.make, self.base)


def _at(rows: Sequence[T], places: Sequence[int]) -> Iterator[T]:
    return rows.at(places) if isinstance(rows, OnDisk | Picked | Joined) else (rows[place] for place in places)


def picked(rows: Sequence[T], places: Iterable[int]) -> Sequence[T]:
    """The rows at these places, in this order: a list of a list, a view of anything larger."""
    if isinstance(rows, list):
        return [rows[int(place)] for place in places]
    chosen = np.asarray(places if isinstance(places, np.ndarray) else list(places), np.int64)
    return Picked(rows.base, rows.places[chosen]) if isinstance(rows, Picked) else Picked(rows, chosen)


def joined(parts: Sequence[Sequence[T]]) -> Sequence[T]:
    """All rows of the parts; parts that are lists make a list."""
    filled = [part for part in parts if len(part)]
    if len(filled) == 1:
        return filled[0]
    return [row for part in filled for row in part] if all(isinstance(part, list) for part in filled) else Joined(filled)


# --- texts, numbers, conversations --------------------------------------------------------------------------------------------


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _to_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


class Texts(OnDisk[str]):
    """A column of texts."""

    def __init__(self, items: Iterable[str] = ()) -> None:
        super().__init__(_to_bytes, _to_text, items)

    def _decoded(self, block: bytes, begins: list[int], ends: list[int]) -> list[str]:
        if not block.isascii():
            return super()._decoded(block, begins, ends)
        text = block.decode("ascii")  # where a byte is a character: three times as fast
        return [text[begin:end] for begin, end in zip(begins, ends, strict=True)]


def column(n_rows: int, texts: Iterable[str] = ()) -> list[str] | Texts:
    """A column to append to: a list of few texts, on disk of many."""
    return list(texts) if n_rows <= MANY_ROWS else Texts(texts)


class Numbers:
    """One long array that is appended to; pieces of it are read."""

    def __init__(self, kind: Any) -> None:
        self.kind = np.dtype(kind)
        self._bytes = Scratch()

    def __len__(self) -> int:
        return len(self._bytes) // int(self.kind.itemsize)

    def append(self, values: NDArray[Any]) -> None:
        self._bytes.append(np.ascontiguousarray(values, self.kind).tobytes())

    def read(self, start: int, end: int) -> NDArray[Any]:
        size = self.kind.itemsize
        return np.frombuffer(self._bytes.read(start * size, end * size), self.kind)

    def gathered(self, starts: Places, lengths: Places) -> NDArray[Any]:
        """The pieces that begin at `starts`, one after the other; near ones are read together. starts: in order."""
        ends = starts + lengths
        far = np.flatnonzero(starts[1:] > ends[:-1] + NEAR_NUMBERS) + 1
        pieces: list[NDArray[Any]] = []
        for first, last in zip([0, *far.tolist()], [*far.tolist(), len(starts)], strict=True):
            if last > first:
                block = self.read(int(starts[first]), int(ends[last - 1]))
                pieces.append(block[ranges(starts[first:last] - starts[first], lengths[first:last])])
        return np.concatenate(pieces) if pieces else np.empty(0, self.kind)


def ranges(starts: Places, lengths: Places) -> Places:
    """starts[0], starts[0] + 1, … for lengths[0] places, then starts[1], …"""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


class Gathered:
    """Conversations as they are read: a list while they are few."""

    def __init__(self) -> None:
        self._few: list[Conversation] = []
        self._many: OnDisk[Conversation] | None = None
        self._n_characters = 0

    def append(self, conversation: Conversation) -> None:
        if self._many is not None:
            self._many.append(conversation)
            return
        self._few.append(conversation)
        self._n_characters += sum(len(message.content) for message in conversation.messages)
        if len(self._few) > MANY_ROWS or self._n_characters > MANY_CHARACTERS:
            self._many, self._few = OnDisk(packed, unpacked, self._few), []

    def whole(self) -> Sequence[Conversation]:
        return self._few if self._many is None else self._many


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_decode = json.JSONDecoder().decode
_NO_MORE: list[Any] = [None, [], None, None, Message.before_thinking, Message.after_thinking]


def packed(row: Conversation) -> bytes:
    """A conversation as compact JSON; what it holds came from JSON, a table or Parquet, and comes back as it was."""
    return _to_bytes(_encode([row.source, row.task, [_turn(message) for message in row.messages], row.fields, row.tools]))


def _turn(message: Message) -> list[Any]:
    turn: list[Any] = [message.role, message.content, message.trained]
    calls = [[call.name, call.arguments, call.id] for call in message.tool_calls]
    more = [message.thinking, calls, message.name, message.call_id, message.before_thinking, message.after_thinking]
    return turn if more == _NO_MORE else turn + more


def unpacked(data: bytes) -> Conversation:
    source, task, turns, fields, tools = _decode(_to_text(data))
    return Conversation(tuple([_message(*turn) for turn in turns]), source, fields, task, tuple(tools))


def _message(role: str, content: str, trained: bool, *more: Any) -> Message:
    if not more:
        return Message(role, content, trained)
    thinking, calls, name, call_id, before, after = more
    return Message(role, content, trained, thinking, tuple(ToolCall(*call) for call in calls), name, call_id, before, after)
