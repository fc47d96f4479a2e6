"""Examples on disk, memory-mapped: a million of them cost a few pages of memory and are there at once.

    stored = StoredExamples(folder)              # a sequence of Example; arrays are views of the files
    stored[3].ids, stored.lengths
    write_examples(folder, examples)             # once, in the order in which they come

    made = GatheredExamples()                    # as they are rendered: a list while they are few, then on disk in files without a name
    made.append(example); made.whole()

ids.i32       token ids one example after another          trained.u8    0 or 1 for each of them
ends.i64      where example i ends in both                 sources.txt   "train.jsonl:418", …; source_ends.i64: where each ends
"""

import os
import shutil
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
import numpy.typing as npt

from tunesmith.data import spool
from tunesmith.data.spool import explained, unnamed_file
from tunesmith.data.template import Example
from tunesmith.errors import BadInput

FILES = ("ids.i32", "trained.u8", "ends.i64", "sources.txt", "source_ends.i64")


class _Writer:
    """Appends examples to five open files."""

    def __init__(self, files: Sequence[IO[bytes]]) -> None:
        self.ids, self.trained, self.ends, self.sources, self.source_ends = files
        self.end = self.source_end = self.n = 0

    def append(self, example: Example) -> None:
        source = example.source.encode("utf-8", "surrogatepass")
        self.end, self.source_end, self.n = self.end + len(example), self.source_end + len(source), self.n + 1
        self.ids.write(np.ascontiguousarray(example.ids, dtype="<i4").data)
        self.trained.write(np.ascontiguousarray(example.trained, dtype=np.uint8).data)
        self.ends.write(self.end.to_bytes(8, "little"))
        self.sources.write(source)
        self.source_ends.write(self.source_end.to_bytes(8, "little"))


def write_examples(folder: Path, examples: Iterable[Example]) -> int:
    """Write into a new folder; returns how many there were. Memory: one example at a time."""
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        files = [stack.enter_context((folder / name).open("wb")) for name in FILES]
        if isinstance(examples, StoredExamples):
            for there, name, file in zip(examples.files, FILES, files, strict=True):
                with (examples.folder / name).open("rb") if there is None else nullcontext(there) as source:
                    source.seek(0)
                    shutil.copyfileobj(source, file, 1 << 20)
            return len(examples)
        writer = _Writer(files)
        for example in examples:
            writer.append(example)
        return writer.n


class GatheredExamples:
    """Examples as they are made: a list while they are few. Raises DiskRefused with the room that is missing."""

    def __init__(self) -> None:
        self._few: list[Example] = []
        self._n_tokens = 0
        self._writer: _Writer | None = None
        self._files: list[IO[bytes]] = []
        self._folder = Path()

    def append(self, example: Example) -> None:
        if self._writer is None:
            self._few.append(example)
            self._n_tokens += len(example)
            if len(self._few) <= spool.MANY_ROWS and self._n_tokens <= spool.MANY_TOKENS:
                return
            opened = [unnamed_file(buffering=1 << 20) for _ in FILES]
            self._files, self._folder = [file for file, _ in opened], opened[0][1]
            self._writer, some = _Writer(self._files), self._few
            self._few = []
        else:
            some = [example]
        with explained(self._folder, 5 * sum(map(len, some))):
            for one in some:
                self._writer.append(one)

    def whole(self) -> Sequence[Example]:
        if self._writer is None:
            return self._few
        with explained(self._folder, 1 << 20):
            for file in self._files:
                file.flush()
        return StoredExamples(self._folder, self._files)


class StoredExamples(Sequence[Example]):
    """What was written. Opening reads nothing but sizes; raises BadInput where the files do not fit each other.

    files   the open files where they have no names; else they are those in the folder
    """

    def __init__(self, folder: Path, files: Sequence[IO[bytes]] | None = None) -> None:
        self.folder = folder
        self.files: Sequence[IO[bytes] | None] = files or [None] * len(FILES)
        for file in files or ():
            weakref.finalize(self, file.close)
        ids, trained, ends, sources, source_ends = (
            _mapped(folder / name, kind, file) for name, kind, file in zip(FILES, ("<i4", "u1", "<i8", "u1", "<i8"), self.files)
        )
        self._ids, self._trained, self._sources = ids, trained.view(np.bool_), sources
        self._ends, self._source_ends = ends, source_ends
        whole = len(ends) == len(source_ends) and len(ids) == len(trained)
        if not whole or (len(ends) and (int(ends[-1]) != len(ids) or int(source_ends[-1]) != len(sources))):
            raise BadInput("the stored examples are damaged", where=str(folder), fix="remove the folder; they are made again")

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each example."""
        return np.diff(self._ends, prepend=0)

    @property
    def n_trained(self) -> npt.NDArray[np.int64]:
        """Learned tokens of each example; the first token of an example is never a label."""
        starts = self._ends - self.lengths
        counted = np.concatenate(([0], np.cumsum(self._trained, dtype=np.int64)))
        return np.asarray(counted[self._ends] - counted[starts] - self._trained[starts], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]  # negative indices, and IndexError beyond
        start, source_start = (int(ends[i - 1]) if i else 0 for ends in (self._ends, self._source_ends))
        source = bytes(self._sources[source_start : int(self._source_ends[i])]).decode("utf-8", "surrogatepass")
        piece = slice(start, int(self._ends[i]))
        return Example(self._ids[piece], self._trained[piece], source)

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))


def _mapped(file: Path, kind: str, opened: IO[bytes] | None) -> npt.NDArray[Any]:
    """The file as an array that is read as it is used; an empty file cannot be mapped."""
    size = np.dtype(kind).itemsize
    try:
        n_bytes = file.stat().st_size if opened is None else os.fstat(opened.fileno()).st_size
        if n_bytes % size:
            raise BadInput("the stored examples are damaged", where=str(file), fix="remove the folder; they are made again")
        return np.memmap(file if opened is None else opened, dtype=kind, mode="r") if n_bytes else np.zeros(0, dtype=kind)
    except OSError as error:
        raise BadInput(
            f"the stored examples cannot be read: {error}", where=str(file), fix="remove the folder; they are made again"
        ) from None
