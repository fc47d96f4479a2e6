"""Files that are whole or not there: written beside their place, synced, renamed.

    write_json(path, {"step": 3}); write_tensors(path, {"w": tensor})
    with new_folder(path) as beside: ...            # written into, then renamed to `path`

A failed write leaves what was there before, and the error says how many bytes were needed and how many were free.
A process that is killed leaves what was there before too, perhaps with something unfinished beside it: names that end in eight
hexadecimal digits, which `clear_leftovers` removes.
"""

import errno
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import BadInput, DiskRefused
from tunesmith.kill_points import reached

if TYPE_CHECKING:
    from torch import Tensor

SAFETENSORS_BYTES = 2 << 20  # its write buffer is half of it


@contextmanager
def explain_disk(path: Path, n_bytes: int = 0) -> Iterator[None]:
    """Turn the system's refusal to write into what / where / fix; of several around one write, the outermost that knows a size speaks.

    n_bytes   that the whole of `path` takes; the free bytes in the message are those after what was begun is removed
    """
    try:
        yield
    except DiskRefused as error:
        if not n_bytes:
            raise
        raise DiskRefused(error.what, _room(path, n_bytes), error.remedy) from error
    except OSError as error:
        what, remedy = {
            errno.ENOSPC: ("the disk is full", "free some space"),
            errno.EDQUOT: ("the disk quota is used up", "free some space"),
            errno.EFBIG: ("a file may not be that large here", "raise the limit (ulimit -f; some file systems have one too)"),
        }.get(error.errno or 0, (f"the file cannot be written: {error.strerror or error}", "check the path and its permissions"))
        raise DiskRefused(f"{what}; what was saved before is untouched", _room(path, n_bytes), remedy) from error


def _room(path: Path, n_bytes: int) -> str:
    from tunesmith.hardware import free_disk_bytes

    try:
        free = f"{free_disk_bytes(path):,} free"
    except OSError:  # a disk that does not answer at all
        free = "how many are free cannot be read"
    return f"{path} ({f'{n_bytes:,} bytes needed, ' if n_bytes else ''}{free})"


def _replace(path: Path, n_bytes: int, write: Callable[[Path], None]) -> None:
    beside = path.with_name(f".{path.name}.{_mark()}")
    with explain_disk(path, n_bytes):
        try:
            reached("file.half-written", leaving=lambda: _write_half(beside, write))
            write(beside)
            sync(beside)
            reached("file.before-rename")
            beside.replace(path)
            reached("file.renamed")
            sync(path.parent)
        finally:
            beside.unlink(missing_ok=True)


def _write_half(path: Path, write: Callable[[Path], None]) -> None:
    write(path)
    os.truncate(path, path.stat().st_size // 2)


def _mark() -> str:
    return uuid.uuid4().hex[:8]


def must_be_new(output: Path) -> None:
    """Nothing but perhaps an empty folder is at `output`, and a folder can be made there: tried and undone, to be known before the work."""
    made: list[Path] = []
    try:
        if output.is_dir() and not output.is_symlink() and not any(output.iterdir()):
            if output.samefile(Path()):
                raise BadInput("the output is the folder that this command runs in", where=str(output), fix="--output NAME, a folder in it")
            output.rename(aside := beside_of(output))  # a mount point cannot be replaced, nor anything in a folder without permission
            aside.rename(output)
            return
        if output.exists() or output.is_symlink():
            raise BadInput("there is something at the output already", where=str(output), fix="choose another --output, or remove it first")
        for folder in reversed([output, *(parent for parent in output.parents if not parent.exists())]):
            folder.mkdir()
            made.append(folder)
    except OSError as error:
        why = error.strerror or str(error)
        raise BadInput(
            f"no folder can be made at the output: {why[0].lower()}{why[1:]}", where=str(output), fix="another --output"
        ) from None
    finally:
        for folder in reversed(made):
            folder.rmdir()


def must_have_folders(output: Path) -> None:
    """Refuse an output below something that is a file."""
    for parent in output.parents:
        if parent.is_file():
            raise BadInput(f"{parent} is a file, and the output would lie in it", where=str(output), fix="choose another output")


@contextmanager
def new_folder(folder: Path, n_bytes: int = 0) -> Iterator[Path]:
    """A folder to be made and filled; when the block ends it takes the place of `folder`, and if the block fails nothing is left of it."""
    beside = beside_of(folder)
    with explain_disk(folder, n_bytes):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            yield beside
            for path in beside.rglob("*"):
                sync(path)
            reached("folder.filled")
            take_place(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def beside_of(folder: Path) -> Path:
    """Where a folder is filled that will take the place of `folder`."""
    return folder.with_name(f"{folder.name}.tmp-{_mark()}")


def take_place(beside: Path, place: Path) -> None:
    """Folder `beside`, whose files are on the disk, becomes `place`. What was there is removed last: a kill at any instant leaves one of them."""
    sync(beside)
    aside = place.with_name(f"{place.name}.old-{_mark()}")
    had_one = place.exists()
    try:
        if had_one:
            place.rename(aside)
            reached("folder.moved-aside")
        beside.rename(place)
    except BaseException:
        if had_one and not place.exists():
            aside.rename(place)
        raise
    reached("folder.renamed")
    sync(place.parent)
    if had_one:
        shutil.rmtree(aside, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Nobody ever sees half of it: it is renamed first. What the disk does not let go of stays."""
    with suppress(OSError):
        beside = beside_of(folder)
        folder.rename(beside)
        reached("folder.taken-out")
        shutil.rmtree(beside, ignore_errors=True)


_BEGUN = re.compile(r"\..+\.[0-9a-f]{8}|.+\.tmp-[0-9a-f]{8}")
_ASIDE = re.compile(r"(.+)\.old-[0-9a-f]{8}")


def is_leftover(path: Path) -> bool:
    """Whether a name is one of those that only an unfinished write has."""
    return bool(_BEGUN.fullmatch(path.name) or _ASIDE.fullmatch(path.name))


def clear_leftovers(folder: Path) -> None:
    """Remove what a process that was killed had begun to write in a folder, and put back what it had moved aside to replace it."""
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        moved = _ASIDE.fullmatch(path.name)
        with suppress(OSError):
            if moved and not path.with_name(moved[1]).exists():
                path.rename(path.with_name(moved[1]))
            elif moved or _BEGUN.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    data = text.encode("utf-8")
    _replace(path, len(data), lambda beside: _write_bytes(beside, data))


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Strict JSON: NaN is an error here, not a token that no other reader accepts."""
    write_text(path, as_json(value))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file that someone else may have written."""
    again = "copy or download it again"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path.name} cannot be read: {error}", where=str(path), fix=again) from None
    if not isinstance(value, dict):
        raise BadInput(f"{path.name} should hold a JSON object", where=str(path), fix=again)
    return value


def as_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"]) -> None:
    """safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    held = {key: tensor.detach().to("cpu").contiguous() for key, tensor in tensors.items()}

    def write(beside: Path) -> None:
        bytearray(SAFETENSORS_BYTES)  # where safetensors cannot have its buffer it ends the process; this is a MemoryError
        try:
            save_file(held, beside, metadata={"format": "pt"})
        except SafetensorError as error:
            raise as_disk_error(error) from error
        make_readable(beside)

    _replace(path, sum(tensor.nbytes for tensor in held.values()), write)


def as_disk_error(error: Exception) -> OSError:
    """What safetensors says of a write that failed, as the system would."""
    text = str(error)
    code = errno.ENOSPC if "No space left" in text else errno.EFBIG if "File too large" in text else errno.EIO
    return OSError(code, os.strerror(code) if code != errno.EIO else text)


def make_readable(path: Path) -> None:
    """The permissions of an ordinary file; safetensors leaves 0600."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def sha256_of(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Force a file or a folder's entries to the disk."""
    if sys.platform == "win32" and path.is_dir():
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
