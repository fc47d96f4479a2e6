"""What a safetensors file holds, by its header alone, and whether the file keeps its word.

    header = read_header(folder / "model.safetensors")
    header.tensors["model.norm.weight"].shape                 # (256,)
    header.n_values                                            # numbers in the whole file

Nothing in the header is believed before it is checked, and nothing of the size that it names is asked for: its length, its JSON, each
dtype, shape × bytes per number = bytes in the file, and the tensors beside each other without a hole or an overlap from the first byte
to the last. The format is eight bytes (the header's length, little-endian), the header, the tensors
(huggingface.co/docs/safetensors, "Format").
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import BadInput
from tunesmith.model.foreign_json import parsed, shown

MOST_HEADER_BYTES = 16 << 20  # some 130,000 tensors in one file; the format itself allows 100 million bytes
MOST_DIMENSIONS = 8
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
NAME = re.compile(r"[A-Za-z0-9_.:/\[\]+-]{1,512}")  # what a message, a terminal and a module path can bear
AGAIN = "copy or download it again"


@dataclass(frozen=True)
class Entry:
    """One tensor: dtype as the format calls it, and its sizes."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def n_values(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    tensors: dict[str, Entry]
    metadata: dict[str, str]

    @property
    def n_values(self) -> int:
        return sum(entry.n_values for entry in self.tensors.values())

    @property
    def largest_size(self) -> int:
        return max((size for entry in self.tensors.values() for size in entry.shape), default=0)


def read_header(path: Path, what: str = "the weights cannot be read") -> Header:
    """BadInput, beginning with `what`, for anything but a whole safetensors file."""
    try:
        if not path.is_file():
            raise BadInput(f"{what}: {path.name} is no ordinary file", where=str(path), fix=AGAIN)
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8:
                raise _refused(path, what, "the file is empty" if not start else f"the file is {size} bytes long, too short for a header")
            if not 2 <= length <= size - 8:
                raise _refused(path, what, f"its header should be {length:,} bytes long, and the file is {size:,}")
            if length > MOST_HEADER_BYTES:
                raise _refused(path, what, f"its header is {length:,} bytes long, more than {MOST_HEADER_BYTES:,}")
            raw = file.read(length)
    except OSError as error:
        raise _refused(path, what, error.strerror or str(error)) from None
    try:
        header = parsed(raw, str(path))
    except BadInput as error:
        raise _refused(path, what, f"the header of {error.what}") from None
    if not isinstance(header, dict):
        raise _refused(path, what, "its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _refused(path, what, "its metadata should be texts by name")
    problem = _problem_of(header, size - 8 - length)
    if problem:
        raise _refused(path, what, problem)
    return Header({key: Entry(found["dtype"], tuple(found["shape"])) for key, found in header.items()}, metadata)


def _problem_of(header: dict[str, Any], n_bytes: int) -> str:
    """What is wrong with the entries of a header over `n_bytes` of tensors, in words; nothing if they hold."""
    spans: list[tuple[int, int, str]] = []
    for key, found in header.items():
        if not NAME.fullmatch(key):
            return f"a tensor cannot be called {shown(key)!r}"
        if not isinstance(found, dict) or found.keys() != {"dtype", "shape", "data_offsets"}:
            return f"{key} should have a dtype, a shape and data_offsets"
        dtype, shape, offsets = found["dtype"], found["shape"], found["data_offsets"]
        if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
            return f"{key} is of a dtype that is none: {shown(str(dtype))!r}"
        if not _are_sizes(shape) or len(shape) > MOST_DIMENSIONS:
            return f"the shape of {key} is no list of sizes"
        if not _are_sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= n_bytes:
            return f"{key} lies outside the file"
        needed = math.prod(shape) * ITEM_BYTES[dtype]  # exact: these integers have no width
        if needed != offsets[1] - offsets[0]:
            return f"{key} should take {needed:,} bytes, and {offsets[1] - offsets[0]:,} are there"
        spans.append((offsets[0], offsets[1], key))
    end = 0
    for start, stop, key in sorted(spans):
        if start != end:
            return f"{key} overlaps another tensor" if start < end else f"there is a hole before {key}"
        end = stop
    return "" if end == n_bytes else f"{n_bytes - end:,} bytes at its end belong to no tensor"


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**62 for size in value)


def _refused(path: Path, what: str, problem: str) -> BadInput:
    return BadInput(f"{what}: {problem}", where=str(path), fix=AGAIN)
