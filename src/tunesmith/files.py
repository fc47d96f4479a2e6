"""Files that are whole or not there: written beside their place, synced, renamed.

    write_json(path, {"step": 3}); write_tensors(path, {"w": tensor})
    with new_folder(path) as beside: ...            # written into, then renamed to `path`

A failed write leaves what was there before, and the error says how many bytes were needed and how many were free.
"""

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import BadInput, DiskRefused

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def explain_disk(path: Path, n_bytes: int = 0) -> Iterator[None]:
    """Turn the system's refusal to write into what / where / fix."""
    try:
        yield
    except OSError as error:
        from tunesmith.hardware import free_disk_bytes

        free = free_disk_bytes(path)
        need = f"{n_bytes:,} bytes needed, " if n_bytes else ""
        what, remedy = {
            errno.ENOSPC: ("the disk is full", "free some space"),
            errno.EDQUOT: ("the disk quota is used up", "free some space"),
            errno.EFBIG: ("a file may not be that large here", "raise the limit (ulimit -f; some file systems have one too)"),
        }.get(error.errno or 0, (f"the file cannot be written: {error.strerror or error}", "check the path and its permissions"))
        raise DiskRefused(f"{what}; what was saved before is untouched", f"{path} ({need}{free:,} free)", remedy) from error


def _replace(path: Path, n_bytes: int, write: Callable[[Path], None]) -> None:
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with explain_disk(path, n_bytes):
        try:
            write(beside)
            sync(beside)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def must_be_new(output: Path) -> None:
    """Nothing is at `output` yet, and a folder can be made there: tried, and taken away again, so that this is known before the work."""
    made: list[Path] = []
    try:
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


@contextmanager
def new_folder(folder: Path, n_bytes: int = 0) -> Iterator[Path]:
    """A folder to be made and filled; when the block ends it takes the place of `folder`, and if the block fails nothing is left of it."""
    beside = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex[:8]}")
    with explain_disk(folder, n_bytes):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            yield beside
            for path in beside.iterdir():
                sync(path)
            if folder.exists():
                shutil.rmtree(folder)
            beside.rename(folder)
            sync(folder.parent)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


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
    except (OSError, ValueError) as error:
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
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
