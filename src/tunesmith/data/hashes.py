"""The SHA-256 of a file; of a large one that nobody has touched since, the one that was found before.

    known_sha256(Path("train.jsonl"))     # reads 1 GB in 0.6 to 2.5 s; the next time, in any process, a record of 200 bytes

A start that continues a run should not read gigabytes to learn that nothing has changed. A file counts as untouched while its size, its times of
modification (mtime) and of change (ctime), its inode and its device are what they were when it was hashed; if any of them differs, it is read
again, whole. The trade-off: a file whose bytes changed and none of these five is not noticed. No program does that to a file by writing it, for
the system itself sets ctime and no call can set it back (on Windows ctime is the time of creation, and mtime alone has to tell); a failing disk
can, or a clock that is turned back to the very nanosecond. A file that changed less than two seconds before it was hashed is not
recorded, as a later change might fall into the same tick of a coarse clock. Files below LARGE bytes are read every time, and with
TUNESMITH_CACHE=off nothing is recorded, for then nothing is kept that could be stale.
"""

import json
import time
from contextlib import suppress
from pathlib import Path

from tunesmith.data.digests import digest
from tunesmith.data.spool import cache_folder
from tunesmith.errors import TunesmithError
from tunesmith.files import sha256_of, write_json

LARGE = 1 << 24
SETTLED_SECONDS = 2.0
FOLDER = "hashes"  # in the cache folder


def known_sha256(path: Path) -> str:
    """Raises OSError where the file cannot be read."""
    stamp, begun = _stamp(path), time.time_ns()
    root = cache_folder()
    if root is None or stamp[0] < LARGE:
        return sha256_of(path)
    record = root / FOLDER / f"{digest(str(path.absolute())).hex()}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        held = json.loads(record.read_text(encoding="utf-8"))
        if held["stamp"] == stamp and held["path"] == str(path.absolute()):
            return str(held["sha256"])
    found = sha256_of(path)
    if _stamp(path) == stamp and begun - max(stamp[1:3]) > SETTLED_SECONDS * 1e9:
        with suppress(OSError, TunesmithError):
            record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_json(record, {"path": str(path.absolute()), "stamp": stamp, "sha256": found})
    return found


def forget_gone(root: Path) -> None:
    """Remove the records of files that are not there any more."""
    for record in (root / FOLDER).glob("*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            if not Path(json.loads(record.read_text(encoding="utf-8"))["path"]).exists():
                record.unlink()


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]
