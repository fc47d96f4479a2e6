"""A checkpoint is a folder that is whole or not there, and that notices every changed bit.

    save(folder.checkpoints, step=120, files={"adapter_model": tensors, "optimizer": moments}, state={...}, keep=2, best=80)
    found = newest_valid(folder.checkpoints)     # Checkpoint(path, step, state) or None; broken ones are named in `broken`

Written beside its place, synced, given a manifest (name, size, sha256 of every file, and a checksum of the manifest itself),
then renamed; only safetensors and JSON.
"""

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from tunesmith.files import as_json, explain_disk, sha256_of, sync, write_json, write_tensors

MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = load_file(self.path / f"{name}.safetensors")
        return tensors


def save(root: Path, step: int, files: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int, best: int | None) -> Path:
    """Write step-N and remove what retention no longer keeps: never the best, never the only valid one."""
    place = root / f"step-{step:08d}"
    beside = root / f"step-{step:08d}.tmp-{uuid.uuid4().hex[:8]}"
    n_bytes = sum(t.nbytes for tensors in files.values() for t in tensors.values())
    with explain_disk(root, n_bytes):
        try:
            beside.mkdir(parents=True)
            for name, tensors in files.items():
                write_tensors(beside / f"{name}.safetensors", tensors)
            write_json(beside / "state.json", {**state, "step": step})
            write_json(beside / MANIFEST, _manifest(beside))
            sync(beside)
            if place.exists():
                shutil.rmtree(place)
            beside.rename(place)
            sync(root)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    _retain(root, keep, best, newest=step)
    return place


def _manifest(folder: Path) -> dict[str, Any]:
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in sorted(folder.iterdir()) if p.name != MANIFEST}
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its manifest cannot be read"
    return None


def steps_of(root: Path) -> list[tuple[int, Path]]:
    """Checkpoint folders by step, oldest first; unfinished ones have another name and are not listed."""
    if not root.is_dir():
        return []
    named = [(p, p.name.removeprefix("step-")) for p in root.iterdir() if p.is_dir() and p.name.startswith("step-")]
    return sorted((int(number), p) for p, number in named if number.isdigit())


def open_valid(path: Path) -> Checkpoint | None:
    if problem_of(path) is not None:
        return None
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return Checkpoint(path, int(state["step"]), state)


def newest_valid(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The highest step whose every byte is right, and a sentence for each newer one that was passed over."""
    broken: list[str] = []
    for step, path in reversed(steps_of(root)):
        problem = problem_of(path)
        if problem is None:
            return open_valid(path), broken
        broken.append(f"checkpoint of step {step} is not used: {problem} ({path})")
    return None, broken


def _retain(root: Path, keep: int, best: int | None, newest: int) -> None:
    older = [(step, path) for step, path in steps_of(root) if step != newest]
    for step, path in older[: max(0, len(older) - (keep - 1))]:
        if step != best:
            shutil.rmtree(path, ignore_errors=True)
    for leftover in root.glob("step-*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
