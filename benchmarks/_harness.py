"""What the benchmarks share: two sides in processes of their own that take turns, medians of pairs, results with their facts.

    with Worker([...ours]) as ours, Worker([...theirs]) as theirs:
        for pair in alternate({"ours": ours, "theirs": theirs}, [{"step": n} for n in range(20)]):
            pair["ours"]["seconds"], pair["theirs"]["seconds"]
    write_rows(RESULTS / "speed.json", [{"workload": ..., "opponent": ..., **summary(ours_seconds, theirs_seconds)}], facts())

A busy or warm machine drifts by more than the differences that matter. So both sides are loaded once and then do one piece of work
each in turn, A B A B: drift hits the two halves of a pair alike, and the median of the pairs' ratios forgets the disturbed ones.
A process of its own gives each side its allocator, its threads and its peak memory; while one works, the other waits in a read.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Command = dict[str, Any]
Reply = dict[str, Any]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "tunesmith")
PAUSE_SECONDS = 0.25  # OpenMP threads spin for up to 0.2 s after their last work (Intel's runtime): let them fall asleep


# --- two sides ----------------------------------------------------------------------------------------------------------


class Worker:
    """One side of a comparison: a process that answers each line of JSON on its standard input with one line."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.name = name
        pipe, whole_env = subprocess.PIPE, {**os.environ, **(env or {})}
        self.process = subprocess.Popen(list(command), stdin=pipe, stdout=pipe, env=whole_env, text=True)
        self.started_with = self._read()

    def ask(self, command: Command) -> Reply:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: the read says with which code
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        return self._read()

    def _read(self) -> Reply:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with code {self.process.wait()}; its own message is above")
        reply: Reply = json.loads(line)
        return reply

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.communicate()


def serve(build: Callable[[], tuple[Reply, Callable[[Command], Reply]]]) -> None:
    """The worker's side: build once, then answer commands until the input ends.

    build   returns the first reply and the function that answers; it runs here so that whatever its imports print goes to
            standard error, and standard output carries replies alone
    """
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)
        first, answer = build()
        replies.write(json.dumps(first) + "\n")
        replies.flush()
        for line in sys.stdin:
            replies.write(json.dumps(answer(json.loads(line))) + "\n")
            replies.flush()


def alternate(sides: Mapping[str, Worker], commands: Sequence[Command], pause_seconds: float = PAUSE_SECONDS) -> Iterator[dict[str, Reply]]:
    """Each command to each side in turn; yields the replies of one round by the side's name."""
    for command in commands:
        round_: dict[str, Reply] = {}
        for name, side in sides.items():
            round_[name] = side.ask(command)
            time.sleep(pause_seconds)
        yield round_


def peak_resident_bytes() -> int:
    """Most memory that this process has had resident since it began.

    Linux: VmHWM. `ru_maxrss` is the same number, but a child begins with that of the process that started it.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# --- numbers ------------------------------------------------------------------------------------------------------------


def summary(ours_seconds: Sequence[float], theirs_seconds: Sequence[float]) -> dict[str, float | int]:
    """Median, least and greatest of theirs / ours over pairs (above 1: ours is faster), and each side's median seconds."""
    ratios = [theirs / ours for ours, theirs in zip(ours_seconds, theirs_seconds, strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 4),
        "ratio_min": round(min(ratios), 4),
        "ratio_max": round(max(ratios), 4),
        "ours_seconds": round(statistics.median(ours_seconds), 5),
        "theirs_seconds": round(statistics.median(theirs_seconds), 5),
        "pairs": len(ratios),
    }


def relative_difference(found: float, expected: float) -> float:
    """|found - expected| / |expected|; inf where a side is not a finite number or only one of the two is zero."""
    if found == expected:
        return 0.0
    difference = abs(found - expected) / abs(expected) if expected else float("inf")
    return difference if difference == difference else float("inf")  # NaN is not equal to itself


# --- results ------------------------------------------------------------------------------------------------------------


def facts() -> dict[str, Any]:
    """What a figure depends on besides the code under test: machine, versions, commit."""
    from tunesmith.hardware import describe_machine

    return {"machine": describe_machine(), "versions": versions(PACKAGES), "commit": commit()}


def versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Hash of HEAD, with "+changes" if the code differs from it; "unknown" outside a git checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "src", "benchmarks", ":(exclude)benchmarks/results")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def merge(before: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], now: Mapping[str, Any]) -> dict[str, Any]:
    """The file's new content: `rows` replace those of the same workload and opponent, the others stay.

    The facts at the top are those of the newest rows; a row that was measured under other facts keeps them as `measured_with`.
    """
    then = {key: before[key] for key in now if key in before}
    replaced = {(row["workload"], row["opponent"]) for row in rows}
    kept = []
    for row in before.get("rows", []):
        if (row["workload"], row["opponent"]) not in replaced:
            kept.append(dict(row) if then == now else {"measured_with": then, **row})
    merged = sorted([*kept, *map(dict, rows)], key=lambda row: (row["workload"], row["opponent"]))
    return {**now, "rows": merged}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], now: Mapping[str, Any]) -> None:
    """Merge `rows` into the results file, whole or not at all.

    now   `facts()` as they were when the measurement began: the checkout may have moved on since
    """
    from tunesmith.files import write_json

    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, merge(before, rows, now))
