"""A run is a folder, and this is the only file that knows what is where in it.

folder = RunFolder.create(run, command="tunesmith train sms.yaml")
folder.log({"step": 1, "loss": 2.3}); folder.set_status(state="done")
RunFolder.open("runs/sms").metrics()
"""

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.config import Run, load_run, to_yaml, with_absolute_paths
from tunesmith.errors import BadInput, nearest
from tunesmith.files import explain_disk, write_json, write_text


@dataclass(frozen=True)
class RunFolder:
    """config.yaml, status.json, metrics.jsonl, evaluation.json, samples.jsonl, report.html, adapter/ or model/, checkpoints/."""

    path: Path

    @classmethod
    def create(cls, run: Run, command: str = "") -> "RunFolder":
        """A new run folder with its config on disk; refuses a folder that holds anything already."""
        run = with_absolute_paths(run)
        path = Path(run.output)
        if path.exists() and not cls(path)._never_began() and (not path.is_dir() or any(path.iterdir())):
            if (path / "config.yaml").is_file():
                raise BadInput(
                    "this folder already holds a run", where=str(path), fix=f"tunesmith resume {shlex.quote(str(path))}, or another output"
                )
            raise BadInput("the output folder is not empty", where=str(path), fix="choose another output")
        with explain_disk(path):
            path.mkdir(parents=True, exist_ok=True)
        folder = cls(path)
        (path / "status.json").unlink(missing_ok=True)  # of a run that never began
        write_text(path / "config.yaml", to_yaml(run))
        resume = f"tunesmith resume {shlex.quote(str(path))}"
        folder.set_status(state="running", version=__version__, command=command, started=now(), resume_command=resume)
        return folder

    def _never_began(self) -> bool:
        """Whether all that is here are the config and the status of a run that failed before its first step."""
        try:
            return {p.name for p in self.path.iterdir()} - {".lock"} == {"config.yaml", "status.json"} and self.status().get(
                "state"
            ) == "failed"
        except OSError:
            return False

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        path = Path(path)
        if not (path / "config.yaml").is_file():
            near = [str(p.parent) for p in path.parent.glob("*/config.yaml")] if path.parent.is_dir() else []
            raise BadInput(
                "this is not a run folder: it has no config.yaml",
                where=str(path),
                fix=nearest(str(path), near) if near else "tunesmith runs lists them",
            )
        return cls(path)

    @property
    def name(self) -> str:
        """The folder's own name, made fit to name an adapter."""
        kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in self.path.resolve().name).strip("-_")
        return kept[:64] or "tuned"

    def run(self) -> Run:
        return load_run(self.path / "config.yaml")[0]

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        return self.path / "model"

    def status(self) -> dict[str, Any]:
        return self._read_json("status.json")

    def set_status(self, **fields: Any) -> None:
        write_json(self.path / "status.json", {**self.status(), **fields, "updated": now()})

    def evaluation(self) -> dict[str, Any]:
        return self._read_json("evaluation.json")

    def save_evaluation(self, evaluation: Mapping[str, Any], samples: list[dict[str, Any]]) -> None:
        write_json(self.path / "evaluation.json", evaluation)
        write_text(self.path / "samples.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples))

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise BadInput(
                f"{name} cannot be read: {error}", where=str(self.path / name), fix="delete it; tunesmith writes it again"
            ) from None
        return value if isinstance(value, dict) else {}

    def log(self, line: Mapping[str, Any]) -> None:
        """Append to metrics.jsonl; one line, whole or not at all after a crash (readers skip a torn last line)."""
        with explain_disk(self.path), (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        try:
            lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        rows = []
        for line in lines:
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue  # torn by a crash
        return rows

    def forget_after(self, step: int) -> None:
        """Drop logged lines of steps that a resumed run will take again."""
        kept = [row for row in self.metrics() if row["step"] <= step]
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def list_runs(root: Path) -> list[RunFolder]:
    """Run folders below `root`, newest first."""
    found = []
    for at, folders, files in os.walk(root):
        if {"config.yaml", "status.json"} <= set(files):
            found.append(Path(at))
            folders.clear()  # nothing inside a run is another run
    return [RunFolder(path) for path in sorted(found, key=lambda p: (p / "status.json").stat().st_mtime, reverse=True)]
