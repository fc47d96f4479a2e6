"""What a run folder holds, read forgivingly: what is not there is empty, what cannot be read is told in `left_out`.

    files = read_folder(Path("runs/sms"))
    files.steps[0]["loss"], files.evaluation["models"]["base"], files.left_out

Only config.yaml has to be there: a run that was interrupted gets a page of what it has.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config import parse_yaml
from tunesmith.errors import BadInput
from tunesmith.progress import counted


@dataclass(frozen=True)
class Files:
    """What a run folder holds, read forgivingly; `left_out` says what could not be read."""

    folder: Path
    config_text: str
    config: Mapping[str, Any]
    status: Mapping[str, Any]
    steps: list[dict[str, Any]]
    evaluation: Mapping[str, Any]
    samples: list[dict[str, Any]]
    left_out: list[str]

    @property
    def name(self) -> str:
        return self.folder.resolve().name


def read_folder(folder: Path) -> Files:
    left_out: list[str] = []
    try:
        config_text = (folder / "config.yaml").read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(
            "this is no run folder: it has no config.yaml", where=str(folder), fix="tunesmith runs lists the run folders"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"the run's config cannot be read: {error}", where=str(folder / "config.yaml")) from None
    config = parse_yaml(config_text, str(folder / "config.yaml"))
    if not isinstance(config, Mapping):
        raise BadInput("a config is a mapping of keys to values", where=str(folder / "config.yaml"))
    return Files(
        folder=folder,
        config_text=config_text,
        config=config,
        status=_read_json(folder / "status.json", left_out),
        steps=_read_jsonl(folder / "metrics.jsonl", left_out),
        evaluation=_read_json(folder / "evaluation.json", left_out),
        samples=_read_jsonl(folder / "samples.jsonl", left_out),
        left_out=left_out,
    )


def _read_json(path: Path, left_out: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        left_out.append(f"{path.name}: not readable")
        return {}
    return value


def _read_jsonl(path: Path, left_out: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSONL file; a run that was killed may leave half a line."""
    try:
        lines = path.read_bytes().splitlines()  # bytes: str.splitlines also splits at U+2028, which JSON allows inside a string
    except FileNotFoundError:
        return []
    except OSError:
        left_out.append(f"{path.name}: not readable")
        return []
    rows: list[dict[str, Any]] = []
    unreadable: list[int] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            unreadable.append(number)
    if unreadable:
        left_out.append(f"{path.name}: {counted(len(unreadable), 'line')} not readable, the first at {path.name}:{unreadable[0]}")
    return rows


def finite(value: Any) -> float | None:
    """A finite number, or None for whatever else a JSON file holds in its place."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def texts_of(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []
