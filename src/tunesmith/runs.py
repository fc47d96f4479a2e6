"""A run is a folder, and this is the only file that knows what is where in it.

folder = RunFolder.create(run, command="tunesmith train sms.yaml")
folder.log({"step": 1, "loss": 2.3}); folder.set_status(state="done")
RunFolder.open("runs/sms").metrics()
with folder.only_process(), folder.named_in_disk_errors(): ...      # a process that trains holds RUN/.lock
"""

import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.config import Run, load_run, to_yaml, with_absolute_paths
from tunesmith.errors import BadInput, DiskRefused, MachineFailed, nearest
from tunesmith.files import clear_leftovers, explain_disk, is_leftover, must_have_folders, sync, write_json, write_text
from tunesmith.kill_points import reached
from tunesmith.progress import counted, say


@dataclass(frozen=True)
class RunFolder:
    """config.yaml, status.json, metrics.jsonl, evaluation.json, evaluation-rows.jsonl, samples.jsonl, report.html, adapter/ or model/, checkpoints/."""

    path: Path

    @classmethod
    def create(cls, run: Run, command: str = "") -> "RunFolder":
        """A new run folder with its config on disk; refuses a folder that holds anything already."""
        run = with_absolute_paths(run)
        path = Path(run.output)
        cls.must_be_free(path)
        with explain_disk(path):
            path.mkdir(parents=True, exist_ok=True)
            sync(path.parent)
        folder = cls(path)
        reached("create.folder-made")
        write_text(path / "config.yaml", to_yaml(run))
        reached("create.config-written")
        fresh = {"state": "running", "version": __version__, "command": command, "started": now(), "resume_command": folder.resume_command}
        write_json(path / "status.json", {**fresh, "updated": now()})  # nothing in it is of a run that never began
        return folder

    @classmethod
    def must_be_free(cls, path: Path) -> None:
        """Refuse a place for a new run that holds anything but a run that never began."""
        must_have_folders(path)
        if path.is_dir() and sys.platform != "win32" and cls(path)._is_held():
            raise BadInput(
                "another process is training a run in this folder",
                where=str(path),
                fix="wait for it, or stop it first; or choose another output",
            )
        if path.exists() and not cls(path)._never_began():
            if (path / "config.yaml").is_file():
                done = cls(path).status().get("state") == "done"
                free = next(name for n in range(2, 10_000) if not Path(name := f"{path}-{n}").exists())
                other = f"another output, as --output {shlex.quote(free)}"
                raise BadInput(
                    f"this folder already holds a {'finished ' if done else ''}run", where=str(path),
                    fix=other if done else f"{cls(path).resume_command}, or {other}",
                )  # fmt: skip
            what = "the output folder is not empty" if path.is_dir() else "the output is a file, and a run is a folder"
            raise BadInput(what, where=str(path), fix="choose another output")

    def _never_began(self) -> bool:
        """Whether all that is here are the config and the status of a run that ended before its first step, or less: it was killed while made."""
        made = (".config.yaml.", ".status.json.")
        try:
            names = {p.name for p in self.path.iterdir() if not (is_leftover(p) and p.name.startswith(made))} - {".lock"}
            return not names or (names == {"config.yaml", "status.json"} and self.status().get("state") in ("failed", "interrupted"))
        except (OSError, BadInput):
            return False

    def state(self) -> str:
        """running, trained (not measured yet), done, interrupted, failed; or killed: it should be running, and nobody holds its lock."""
        state = str(self.status().get("state", "not known"))
        return "killed" if state == "running" and not self._is_held() else state

    def _is_held(self) -> bool:
        if sys.platform == "win32":
            return True  # nobody can tell
        import fcntl

        try:
            with (self.path / ".lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    @contextmanager
    def only_process(self) -> Iterator[None]:
        """Two processes that train the same run would write over each other; the system frees the lock however the first one ends.

        What a process that was killed left half done is cleared away.
        """
        if sys.platform == "win32":
            self._clear()
            yield
            return
        import fcntl

        with explain_disk(self.path):
            lock = (self.path / ".lock").open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BadInput("another process is training this run", where=str(self.path), fix="wait for it, or stop it first") from None
            self._clear()
            yield

    def _clear(self) -> None:
        for folder in (self.path, self.checkpoints):
            clear_leftovers(folder)

    @contextmanager
    def named_in_disk_errors(self) -> Iterator[None]:
        """Where the disk refuses a file of this run, the error names the command that goes on with it."""
        try:
            yield
        except MachineFailed as error:
            if isinstance(error, DiskRefused):
                error.fix = f"{error.remedy}, then {self.resume_command}"
            elif not error.fix:
                error.fix = f"see to the disk, then {self.resume_command}"
            raise

    @property
    def resume_command(self) -> str:
        n = os.environ.get("WORLD_SIZE", "1")  # torchrun's, here and below
        several = n != "1" and os.environ.get("LOCAL_WORLD_SIZE") == n  # on several machines each has its own command
        return f"{f'torchrun --nproc-per-node {n} -m ' if several else ''}tunesmith resume {shlex.quote(str(self.path))}"

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise cls(path)._no_run()
        return cls(path)

    def _no_run(self) -> BadInput:
        """Why nothing can be opened here: not there, a file, another folder, or a run whose config is lost."""
        if self.path.is_file():
            is_config = self.path.suffix in (".yaml", ".yml")
            fix = f"tunesmith train {shlex.quote(str(self.path))} starts a run" if is_config else "tunesmith runs lists run folders"
            return BadInput("this is a file, and a run is a folder", where=str(self.path), fix=fix)
        saved = any(p.name.removeprefix("step-").isdigit() for p in self.checkpoints.glob("step-*"))
        if saved or (self.path / "status.json").is_file():
            again = f"{self.resume_command}: it writes config.yaml again as the newest checkpoint has it"
            fix = again if saved else f"nothing was saved to go on from: begin again with another output{self._begun_by()}"
            return BadInput("the config.yaml of this run is lost", where=str(self.path), fix=fix)
        what = "this is not a run folder: it has no config.yaml" if self.path.exists() else "there is no such run folder"
        parent = self.path.parent
        near = [str(p.parent) for p in parent.glob("*/config.yaml")] if parent.is_dir() else []
        return BadInput(what, where=str(self.path), fix=nearest(str(self.path), near) if near else "tunesmith runs lists them")

    def _begun_by(self) -> str:
        """The command that began the run, in words; nothing where it is not known."""
        try:
            command = self.status().get("command")
        except BadInput:
            command = None
        return f" (this run began with: {command})" if command else ""

    def restore_config(self, run: Run | None) -> None:
        """Write config.yaml again, which was lost; None: what it said is not known."""
        if run is None:
            raise BadInput(
                "the config.yaml of this run is lost, and no whole checkpoint holds what it said", where=str(self.path),
                fix=f'write config.yaml again: "settings" in a state.json below checkpoints/ are its keys{self._begun_by()}',
            )  # fmt: skip
        write_text(self.path / "config.yaml", to_yaml(run))
        say(f"{self.path / 'config.yaml'} was lost, and is written again as the newest checkpoint has it")

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
        try:
            before = self.status()
        except BadInput as error:  # a run does not end for want of it: the checkpoints hold what going on needs
            before = {}
            damaged = self.path / "status.damaged.json"
            with explain_disk(damaged):
                (self.path / "status.json").replace(damaged)
            say(f"{error.what}; it is kept as {damaged}, and begun again")
        write_json(self.path / "status.json", {**before, **fields, "updated": now()})

    def evaluation(self) -> dict[str, Any]:
        return self._read_json("evaluation.json")

    def evaluation_rows(self) -> list[dict[str, Any]]:
        """Every row's answers and values, as save_evaluation wrote them; empty where nothing was measured."""
        path = self.path / "evaluation-rows.jsonl"
        try:
            return [json.loads(line) for line in path.read_bytes().splitlines()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise BadInput(
                f"{path.name} cannot be read: {error}", where=str(path), fix=f"tunesmith eval {self.path} writes it again"
            ) from None

    def save_evaluation(
        self, evaluation: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """samples: answers that the report shows; rows: every row's answers and values, to pair another model's with."""
        save_evaluation(self.path, evaluation, rows)
        write_text(self.path / "samples.jsonl", _lines(samples))
        reached("measure.written")

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            value: object = json.loads((self.path / name).read_text(encoding="utf-8"))
            if not isinstance(value, dict):
                raise ValueError("it holds no object")
            return value
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            again = f"delete it, then {self.resume_command}" if name == "status.json" else "delete it; tunesmith eval writes it again"
            raise BadInput(f"{name} cannot be read: {error}", where=str(self.path / name), fix=again) from None

    def log(self, line: Mapping[str, Any]) -> None:
        """Append to metrics.jsonl; one line, whole or not at all after a crash (readers skip a torn last line)."""
        data = (json.dumps(line, allow_nan=False) + "\n").encode()
        with explain_disk(self.path):
            reached("log.half-a-line", leaving=lambda: _append(self.path / "metrics.jsonl", data[: len(data) // 2]))
            _append(self.path / "metrics.jsonl", data)
        reached("log.written")

    def sync_log(self) -> None:
        """Put metrics.jsonl on the disk: a checkpoint that outlives a power cut should not outlive the losses that led to it."""
        with explain_disk(self.path), suppress(FileNotFoundError):
            sync(self.path / "metrics.jsonl")

    def set_aside(self, damaged: Sequence[Path]) -> str:
        """Give damaged checkpoints, and the log of the steps that led to them, names under which a run that begins again leaves them alone.

        Returns the new names, in words.
        """
        kept = []
        with explain_disk(self.path):
            # the log first: killed after it, the checkpoints are still here and tell the next start to go on with this
            for path in [self.path / "metrics.jsonl", *damaged]:
                if path.exists():
                    name = f"{path.stem}.before{path.suffix}" if path.is_file() else f"damaged-{path.name}"
                    kept.append(_rename(path, name).relative_to(self.path).as_posix())
                    sync(path.parent)
        return ", ".join(kept)

    def metrics(self) -> list[dict[str, Any]]:
        return [row for _, row in self._logged()[0]]

    def _logged(self) -> tuple[list[tuple[bytes, dict[str, Any]]], list[bytes]]:
        """Each line of metrics.jsonl with what it says, and the lines that say nothing; a last one that a crash tore is neither."""
        try:
            lines = (self.path / "metrics.jsonl").read_bytes().split(b"\n")
        except FileNotFoundError:
            return [], []
        rows, damaged = [], []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                    raise ValueError("not a line of ours")
                rows.append((line, row))
            except (ValueError, RecursionError):
                damaged += [line] if line and number < len(lines) else []
        return rows, damaged

    def forget_after(self, step: int) -> list[str]:
        """Drop logged lines of steps that a resumed run will take again; returns what is wrong with those before, in words.

        Lines that cannot be read are kept in metrics.damaged.jsonl.
        """
        rows, damaged = self._logged()
        said = []
        if damaged:
            with explain_disk(self.path):
                _append(self.path / "metrics.damaged.jsonl", b"".join(line + b"\n" for line in damaged))
                sync(self.path / "metrics.damaged.jsonl")
            said = [f"metrics.jsonl: {counted(len(damaged), 'line')} cannot be read, and moved to metrics.damaged.jsonl"]
        kept = [(line, row) for line, row in rows if row["step"] <= step]
        write_text(self.path / "metrics.jsonl", "".join(line.decode() + "\n" for line, _ in kept))
        reached("start.forgotten")
        n_missing = step - len({row["step"] for _, row in kept if "loss" in row and row["step"] > 0})
        if n_missing:
            which = f"{n_missing:,} of the first {counted(step, 'step')}"
            said.append(f"metrics.jsonl: lines are missing for {which}; the weights do not depend on them")
        return said


def _rename(path: Path, name: str) -> Path:
    """To this name beside it, or with a number where there is something of that name."""
    free = next(p for n in count(1) if not (p := path.with_name(name if n == 1 else f"{Path(name).stem}-{n}{Path(name).suffix}")).exists())
    return path.rename(free)


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def save_evaluation(folder: Path, evaluation: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """evaluation.json and evaluation-rows.jsonl, of a run or of a folder that holds nothing else."""
    write_json(folder / "evaluation.json", evaluation)
    reached("measure.answers-written")
    write_text(folder / "evaluation-rows.jsonl", _lines(rows))


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def adapter_of(path: str | Path) -> Path:
    """The adapter folder that a path means: that of a run, or the path itself."""
    folder = Path(path)
    return RunFolder(folder).adapter if (folder / "config.yaml").is_file() else folder


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
