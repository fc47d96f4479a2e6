"""A checkpoint is a folder that is whole or not there, and that notices every changed bit.

    save(folder.checkpoints, step=120, files={"adapter_model": tensors, "optimizer": moments}, state={...}, keep=2, best=80)
    found = newest_valid(folder.checkpoints)     # Checkpoint(path, step, state) or None; broken ones are named in `broken`

Written beside its place, synced, given a manifest (name, size, sha256 of every file, and a checksum of the manifest itself),
then renamed; only safetensors and JSON. So a kill at any instant leaves every older checkpoint, and the new one whole or not at
all (`make torture` kills at each of them; kill_points.py).
"""

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from tunesmith.files import as_json, beside_of, explain_disk, remove_folder, sha256_of, sync, take_place, write_json, write_tensors
from tunesmith.kill_points import reached
from tunesmith.training.shards import Stored

MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """All of a file, whole, in memory."""
        stored = self.stored(name)
        return {key: stored.whole(key) for key in stored.shapes}

    def stored(self, name: str) -> Stored:
        """The same on the disk, whichever processes wrote it."""
        return Stored(self.path, name)


def save(
    root: Path, step: int, files: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int, best: int | None,
    also: int | None = None, parts: Callable[[Path], Mapping[str, Any]] | None = None,
) -> Path:  # fmt: skip
    """Write step-N and remove what retention no longer keeps: never the best, never the only valid one.

    also    a step that stays too, as the run may go back to it
    parts   where processes hold parts of the tensors: has each of them write its own into the folder, and returns each file's facts
    """
    place = place_of(root, step)
    beside = beside_of(place)
    n_bytes = sum(t.nbytes for tensors in files.values() for t in tensors.values())
    with explain_disk(place, n_bytes):
        try:
            if not root.is_dir():
                root.mkdir(parents=True)
                sync(root.parent)
            beside.mkdir()
            reached("checkpoint.folder-made")
            written = parts(beside) if parts is not None else {}
            for name, tensors in files.items() if parts is None else ():
                write_tensors(beside / f"{name}.safetensors", tensors)
                reached("checkpoint.tensors-written")
            write_json(beside / "state.json", {**state, "step": step, "best": best})
            reached("checkpoint.files-written")
            write_json(beside / MANIFEST, _manifest(beside, written))
            reached("checkpoint.manifest-written")
            take_place(beside, place)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    reached("checkpoint.in-place")
    _retain(root, keep, {best, also}, newest=step)
    return place


def place_of(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def facts_of(file: Path) -> dict[str, Any]:
    """What the manifest says of a file."""
    return {"bytes": file.stat().st_size, "sha256": sha256_of(file)}


def _manifest(folder: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    files = {p.name: known.get(p.name) or facts_of(p) for p in sorted(folder.iterdir()) if p.name != MANIFEST}
    return {"files": files, "checksum": _checksum(files)}


def _checksum(files: Mapping[str, Any]) -> str:
    return sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def problem_of(path: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None if every byte is as it was written."""
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        files = manifest["files"]
        if set(manifest) != {"files", "checksum"} or manifest["checksum"] != _checksum(files) or text != as_json(manifest):
            return "its manifest was changed"
        for name, facts in files.items():
            file = path / name
            if Path(name).name != name or not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != facts["bytes"] or sha256_of(file) != facts["sha256"]:
                return f"{name} was changed"
        if "state.json" not in files or {p.name for p in path.iterdir()} != {*files, MANIFEST}:
            return "its files are not those of the manifest"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "its manifest cannot be read"
    return None


def steps_of(root: Path) -> list[tuple[int, Path]]:
    """Checkpoint folders by step, oldest first; unfinished ones have another name and are not listed."""
    if not root.is_dir():
        return []
    named = [(p, p.name.removeprefix("step-")) for p in root.iterdir() if p.is_dir() and p.name.startswith("step-")]
    return sorted((int(number), p) for p, number in named if number.isdigit())


def open_valid(path: Path) -> Checkpoint | None:
    return _open(path) if problem_of(path) is None else None


def open_known(root: Path, step: int) -> Checkpoint:
    """One whose bytes were looked at before."""
    return _open(place_of(root, step))


def _open(path: Path) -> Checkpoint:
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return Checkpoint(path, int(state["step"]), state)


def newest_valid(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The highest step whose every byte is right, and a sentence for each newer one that was passed over.

    A checkpoint names the best one so far, which the run may end in: where that one is damaged, a checkpoint from before it makes
    it again. Only where none is left is the newest used without it.
    """
    broken: list[str] = []
    without_best: Checkpoint | None = None
    for step, path in reversed(steps_of(root)):
        problem = problem_of(path)
        if problem is None:
            found = _open(path)
            problem = best_problem(found)
            if problem is None:
                return found, broken
            without_best = without_best or found
        broken.append(f"checkpoint of step {step} is not used: {problem} ({path})")
    if without_best is not None:
        broken.append(f"but no earlier one is left, so that of step {without_best.step} is used after all")
    return without_best, broken


def best_problem(found: Checkpoint) -> str | None:
    """What is wrong with the best checkpoint that this one names, in words."""
    best = found.state.get("best")
    problem = problem_of(place_of(found.path.parent, best)) if best not in (None, found.step) else None
    return f"the best one so far, of step {best}, is damaged: {problem}" if problem else None


def _retain(root: Path, keep: int, never: Collection[int | None], newest: int) -> None:
    """Remove the oldest but `keep`, and steps of a future that was given up (damaged ones, or the run was rolled back)."""
    others = [(step, path) for step, path in steps_of(root) if step != newest]
    older = [(step, path) for step, path in others if step < newest]
    later = [(step, path) for step, path in others if step > newest]
    for step, path in [*later, *older[: max(0, len(older) - (keep - 1))]]:
        if step not in never:
            remove_folder(path)
            reached("checkpoint.one-removed")
