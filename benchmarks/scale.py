"""Whether a file of millions of rows is trained on in bounded memory, from its first pass on, and how soon a run in it goes on.

    python benchmarks/scale.py                            # 100,000 and 2,000,000 rows; writes benchmarks/results/scale.json
    python benchmarks/scale.py --rows 100000 500000 --only first second resume
    python benchmarks/scale.py --rows 3000                # a trial of this script; writes nothing below 100,000 rows

Short prompts with an answer (the rows of benchmarks/data.py, about 70 tokens of acorn's). Each job is a process of its own:

    check     every row looked at, as `tunesmith train` begins
    first     a run is made ready for the first time: read, split by near copies, rendered, kept; with a checkpoint in the middle of its first epoch
    second    it is made ready again
    resume    and goes on from the checkpoint: from the search for it to the batches of the next step

Seconds are those of the job without Python's imports; of `second` and `resume` also without the loading of the model, which is done once
before to know its time. Memory is the most that the process has had resident, PyTorch and the model included; a part of it are pages of the
mapped examples, which the system takes back when it needs room (anonymous_bytes, at the end of the job, are without them). What a row costs is
the difference between the largest file and the smallest, by row.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _harness as harness
from data import anonymous_bytes, write_rows

JOBS = ("check", "first", "second", "resume")
LEAST_KEPT = 100_000
BATCH = 64


def run_of(path: str, folder: str) -> Any:
    from tunesmith.config import validate

    run, _ = validate(
        {
            "model": "acorn", "method": "lora", "output": f"{folder}/run", "training": {"batch_size": BATCH, "epochs": 1},
            "data": {"train": path, "validation": 0.001, "test": 0.001},
        }, "benchmark",
    )  # fmt: skip
    return run


def job(name: str, path: str, folder: str) -> dict[str, Any]:
    import tunesmith.api as api
    from tunesmith.runs import RunFolder
    from tunesmith.training import checkpoint
    from tunesmith.training.method import build
    from tunesmith.training.optim import build_optimizer
    from tunesmith.training.ready import prepare
    from tunesmith.training.resuming import State, restore, save_step

    run = run_of(path, folder)
    if name == "check":
        begun = time.perf_counter()
        report = api.check(path, model="acorn")
        return {"seconds": time.perf_counter() - begun, "rows": sum(report.rows.values()), **memory()}
    load_seconds = 0.0
    for _ in range(0 if name == "first" else 2):  # the first time imports, too
        begun = time.perf_counter()
        build(run, "run")
        load_seconds = time.perf_counter() - begun
    begun = time.perf_counter()
    found = checkpoint.newest_valid(RunFolder.open(f"{folder}/run").checkpoints)[0] if name == "resume" else None
    ready = prepare(run, "run")
    result: dict[str, Any] = {"rows": len(ready.rows.train), "tokens": ready.rows.counts["tokens_per_epoch"]}
    if name == "resume":
        optimizer = build_optimizer(ready.tuned.parameters, run.training, ready.timetable.rate)
        step, _ = restore(RunFolder.open(f"{folder}/run"), ready, optimizer, found, True, lambda line: None)
        ready.step_rows.micro_batches(step)
        result |= {"at_row": step * BATCH}
    result |= {"seconds": time.perf_counter() - begun - load_seconds, "load_seconds": load_seconds, **memory()}
    if name == "first":
        optimizer = build_optimizer(ready.tuned.parameters, run.training, ready.timetable.rate)
        save_step(RunFolder.create(run, "benchmark"), ready, optimizer, len(ready.rows.train) // 2 // BATCH, State())
    return result


def memory() -> dict[str, int]:
    return {"peak_bytes": harness.peak_resident_bytes(), "anonymous_bytes": anonymous_bytes()}


def run_job(name: str, path: Path, folder: Path) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).resolve()), "job", name, str(path), str(folder)]
    env = {**os.environ, "TUNESMITH_CACHE": str(folder / "cache")}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[LEAST_KEPT, 2_000_000])
    parser.add_argument("--only", nargs="*", choices=JOBS, default=JOBS, help="second and resume need first")
    parser.add_argument("--output", type=Path, help="results file (benchmarks/results/scale.json)")
    parser.add_argument("--folder", type=Path, help="where to put the files, about 3 kB a row, for the time of the benchmark")
    chosen = parser.parse_args()
    if min(chosen.rows) < 1000:
        parser.error("--rows: at least 1,000")
    now = harness.facts()
    peaks: dict[str, dict[int, int]] = {name: {} for name in JOBS}
    for n_rows in chosen.rows:
        output = chosen.output or (harness.RESULTS / "scale.json" if n_rows >= LEAST_KEPT else None)
        with tempfile.TemporaryDirectory(prefix="tunesmith-scale-", dir=chosen.folder) as name:
            folder = Path(name)
            write_rows(folder / "rows.jsonl", n_rows)
            n_bytes = (folder / "rows.jsonl").stat().st_size
            print(f"{n_rows:,} rows, {n_bytes / 1e6:,.0f} MB")
            time.sleep(3)  # a file that changed in the last two seconds is hashed again each time (data/hashes.py)
            for of in (one for one in JOBS if one in chosen.only):
                found = run_job(of, folder / "rows.jsonl", folder)
                peaks[of][n_rows] = found["peak_bytes"]
                slope = bytes_per_row(peaks[of])
                row = {
                    "workload": f"{of}-{n_rows}", "opponent": "none", **{key: round(v, 2) if isinstance(v, float) else v for key, v in found.items()},
                    **({"bytes_per_row": slope} if slope is not None else {}),
                    "file_bytes": n_bytes, "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                }  # fmt: skip
                more = f", {slope:,} bytes a row" if slope is not None else ""
                print(f"{of}: {found['seconds']:.2f} s, {found['peak_bytes'] / 2**20:,.0f} MiB resident at most{more}", flush=True)
                if output is not None:
                    harness.write_rows(output, [row], now)


def bytes_per_row(peaks: dict[int, int]) -> int | None:
    """Of the largest file, by what it needs more than the smallest."""
    few, many = min(peaks), max(peaks)
    return round((peaks[many] - peaks[few]) / (many - few)) if few < many else None


if __name__ == "__main__":
    if sys.argv[1:2] == ["job"]:
        print(json.dumps(job(*sys.argv[2:5])))
    else:
        main()
