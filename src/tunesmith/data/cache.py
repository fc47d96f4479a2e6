"""Rows that were rendered before, found again by everything that decides what they are (FAILURES 21).

    cache = RowsCache(run.data)                                          # hashes the data files; reads nothing else
    rows = cache.rows(renderer, max_length, make=lambda: load_rows(…))   # made now, or kept before and memory-mapped

The key: the bytes of every data file, the whole data section, the tokenizer with its template and stop tokens (Renderer.fingerprint),
the length limit, the code of the data stage and the versions of the libraries that read and tokenise. What is found is compared with
its manifest first, by the SHA-256 of every file. So a stale or damaged entry is never used: the rows are made again. Of files larger
than 16 MiB that were not touched since they were last read, data and entries alike, the hash is remembered (hashes.py, with the trade-off).

Few rows are not kept: they are made in a moment. Entries lie in the user's cache folder, readable by the user alone
(TUNESMITH_CACHE=FOLDER: elsewhere; TUNESMITH_CACHE=off: none); the ones longest unused go when all take more than 10 GiB.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tunesmith.config import DataConfig
from tunesmith.data.batches import lengths_of
from tunesmith.data.hashes import forget_gone, known_sha256
from tunesmith.data.rows import Rows
from tunesmith.data.sources import sources_of
from tunesmith.data.spool import cache_folder
from tunesmith.data.stored import StoredExamples, write_examples
from tunesmith.data.template import Renderer
from tunesmith.errors import TunesmithError
from tunesmith.files import is_leftover, new_folder, write_json
from tunesmith.progress import say

MOST_BYTES = 10 << 30
LEAST_EXAMPLES = 5_000
LIBRARIES = ("tokenizers", "transformers", "jinja2", "pyarrow", "numpy")
ABANDONED_SECONDS = 3600  # then an unfinished entry is not being written any more: its process was killed
FACTS, MANIFEST = "rows.json", "MANIFEST.json"


class RowsCache:
    """The entries of one data section. Raises BadInput where a file of it is not there."""

    def __init__(self, config: DataConfig, least_examples: int = LEAST_EXAMPLES) -> None:
        root = cache_folder()
        self.least_examples = least_examples
        self.folder: Path | None = None
        sources = [source for part in ("train", "validation", "test") for source in sources_of(config, part)[0]]
        if root is not None:
            bytes_of = [known_sha256(file) for source in sources for file in source.files if file.is_file()]
            names = [[source.task, *source.names, *source.origins] for source in sources]
            key = {"data": config.model_dump(mode="json"), "names": names, "bytes": bytes_of, "code": _code()}
            self.folder = root / _hash(key)

    @property
    def is_empty(self) -> bool:
        """Whether no rows of these data were kept, with any tokenizer."""
        return self.folder is None or not any(entry.is_dir() and not is_leftover(entry) for entry in _inside(self.folder))

    def rows(self, renderer: Renderer, max_length: int, make: Callable[[], Rows]) -> Rows:
        """Kept rows, or new ones, which are kept."""
        found = self.find(renderer, max_length)
        return found if found is not None else self.keep(make(), renderer, max_length)

    def find(self, renderer: Renderer, max_length: int) -> Rows | None:
        """None: not kept, or damaged."""
        place = self._place(renderer, max_length)
        if place is None or not place.is_dir():
            return None
        try:
            rows = _opened(place)
        except (OSError, ValueError, KeyError, TypeError, TunesmithError):
            say(f"the rows kept in {place} are damaged and are made again")
            shutil.rmtree(place, ignore_errors=True)
            return None
        with suppress(OSError):
            os.utime(place)  # used now: others are older
        return rows

    def keep(self, rows: Rows, renderer: Renderer, max_length: int) -> Rows:
        """Write the rows and open what was written; the rows themselves where they are few, or cannot be kept."""
        place = self._place(renderer, max_length)
        if place is None or len(rows.train) + len(rows.validation) < self.least_examples:
            return rows
        try:
            _write(rows, place)
            _remove_oldest(place.parent.parent, spared=place)
            return _opened(place)
        except (OSError, TypeError, ValueError, TunesmithError) as error:  # a full disk must not stop a run that needs none
            say(f"the rows are not kept for the next run: {error.what if isinstance(error, TunesmithError) else error}")
            return rows

    def noted(self, key: Mapping[str, Any]) -> list[str] | None:
        """Lines that were noted of these data under `key`."""
        try:
            held = json.loads(self._note(key).read_text(encoding="utf-8")) if self.folder is not None else None
            return [str(line) for line in held["lines"]] if held is not None else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def note(self, key: Mapping[str, Any], lines: Sequence[str]) -> None:
        if self.folder is not None:
            with suppress(OSError, TunesmithError):
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                write_json(self._note(key), {"lines": list(lines)})

    def _note(self, key: Mapping[str, Any]) -> Path:
        assert self.folder is not None
        return self.folder / f"{_hash(key)}.json"

    def _place(self, renderer: Renderer, max_length: int) -> Path | None:
        return self.folder / _hash({"renderer": renderer.fingerprint(), "max_length": max_length}) if self.folder is not None else None


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _hash(value: Mapping[str, Any]) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


@cache
def _code() -> str:
    """Changes with any line of the data stage, and with the libraries below it."""
    digest = sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return " ".join([digest.hexdigest(), *(f"{name} {version(name)}" for name in LIBRARIES)])


def _write(rows: Rows, place: Path) -> None:
    n_bytes = 5 * (rows.counts.get("tokens_per_epoch", 0) + int(lengths_of(rows.validation).sum()))
    place.parent.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with new_folder(place, n_bytes) as beside:
        beside.mkdir(mode=0o700)
        for name in ("train", "validation"):
            write_examples(beside / name, getattr(rows, name))
        facts = {key: getattr(rows, key) for key in ("said", "counts", "files")}
        write_json(beside / FACTS, facts)
        write_json(beside / MANIFEST, _checksums(beside))


def _opened(place: Path) -> Rows:
    if json.loads((place / MANIFEST).read_text(encoding="utf-8")) != _checksums(place):
        raise ValueError("a file was changed")
    facts = json.loads((place / FACTS).read_text(encoding="utf-8"))
    return Rows(train=StoredExamples(place / "train"), validation=StoredExamples(place / "validation"), **facts)


def _checksums(place: Path) -> dict[str, str]:
    return {
        str(file.relative_to(place)): known_sha256(file) for file in sorted(place.rglob("*")) if file.is_file() and file.name != MANIFEST
    }


def _remove_oldest(root: Path, spared: Path) -> None:
    """Entries longest unused go until the others take at most MOST_BYTES together, and what a killed process left half written."""
    forget_gone(root)
    for entry in (entry for data in _inside(root) for entry in _inside(data) if is_leftover(entry)):
        if time.time() - entry.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(entry, ignore_errors=True)
    entries = [entry for data in _inside(root) for entry in _inside(data) if entry.is_dir()]
    sizes = {entry: sum(file.stat().st_size for file in entry.rglob("*") if file.is_file()) for entry in entries}
    total = sum(sizes.values())
    for entry in sorted(entries, key=lambda entry: entry.stat().st_mtime):
        if total <= MOST_BYTES:
            break
        if entry != spared:
            shutil.rmtree(entry, ignore_errors=True)
            total -= sizes[entry]
            if not any(other.is_dir() for other in _inside(entry.parent)):
                shutil.rmtree(entry.parent, ignore_errors=True)  # it was the last of its data
