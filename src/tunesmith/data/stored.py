"""Examples on disk, memory-mapped: a million of them cost a few pages of memory and are there at once.

write_examples(folder, examples)             # once, in the order in which they come
stored = StoredExamples(folder)              # a sequence of Example; arrays are views of the files
stored[3].ids, stored.lengths

ids.i32       token ids one example after another          trained.u8    0 or 1 for each of them
ends.i64      where example i ends in both                 sources.txt   "train.jsonl:418", …; source_ends.i64: where each ends
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from tunesmith.data.template import Example
from tunesmith.errors import BadInput

FILES = ("ids.i32", "trained.u8", "ends.i64", "sources.txt", "source_ends.i64")


def write_examples(folder: Path, examples: Iterable[Example]) -> int:
    """Write into a new folder; returns how many there were. Memory: one example at a time."""
    folder.mkdir(parents=True)
    end = source_end = n = 0
    with ExitStack() as stack:
        ids, trained, ends, sources, source_ends = (stack.enter_context((folder / name).open("wb")) for name in FILES)
        for example in examples:
            source = example.source.encode("utf-8", "surrogatepass")
            end, source_end, n = end + len(example), source_end + len(source), n + 1
            ids.write(np.ascontiguousarray(example.ids, dtype="<i4").data)
            trained.write(np.ascontiguousarray(example.trained, dtype=np.uint8).data)
            ends.write(end.to_bytes(8, "little"))
            sources.write(source)
            source_ends.write(source_end.to_bytes(8, "little"))
    return n


class StoredExamples(Sequence[Example]):
    """What `write_examples` wrote. Opening reads nothing but sizes; raises BadInput where the files do not fit each other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ids, trained, ends, sources, source_ends = (
            _mapped(folder / name, kind) for name, kind in zip(FILES, ("<i4", "u1", "<i8", "u1", "<i8"))
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


def _mapped(file: Path, kind: str) -> npt.NDArray[Any]:
    """The file as an array that is read as it is used; an empty file cannot be mapped."""
    size = np.dtype(kind).itemsize
    try:
        n_bytes = file.stat().st_size
        if n_bytes % size:
            raise BadInput("the stored examples are damaged", where=str(file), fix="remove the folder; they are made again")
        return np.memmap(file, dtype=kind, mode="r") if n_bytes else np.zeros(0, dtype=kind)
    except OSError as error:
        raise BadInput(
            f"the stored examples cannot be read: {error}", where=str(file), fix="remove the folder; they are made again"
        ) from None
