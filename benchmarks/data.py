"""How long a large file takes to be checked, rendered for the first time and found again, and how much memory each of these takes.

    python benchmarks/data.py                       # 100,000 rows; writes benchmarks/results/data.json
    python benchmarks/data.py --rows 1000000 --only first second
    python benchmarks/data.py --rows 2000           # a trial of this script; writes nothing below 100,000 rows

Rows of about a hundred tokens of acorn's (made up from seeded words, labels as answers). Each job is a process of its own:

    check     `tunesmith check` on the file, every row, with acorn's tokenizer
    first     rows read, split by near copies and rendered, kept in the cache: what the first start of a run does
    second    the same again: what the next start does

Seconds are those of the job without Python's imports; memory is the most that the process has had resident, and of that what is no file
(anonymous): pages of a memory-mapped file are the system's to take back.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _harness as harness

JOBS = ("check", "first", "second")
LEAST_KEPT = 100_000
SYLLABLES = "ba be bi bo da de di do ka ke ki ko la le li lo ma me mi mo na ne ni no ra re ri ro sa se si so ta te ti to".split()


def write_rows(path: Path, n_rows: int) -> None:
    """Seeded sentences of 40 to 80 words out of 20,000, one label in four."""
    draw = random.Random(0)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 3))) for _ in range(20_000)]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(n_rows):
            text = " ".join(draw.choices(words, k=draw.randint(16, 30)))
            file.write(
                json.dumps({"prompt": f"Which kind is it? {text}", "completion": draw.choice(("news", "sport", "trade", "other"))}) + "\n"
            )


def anonymous_bytes() -> int:
    """Resident memory that is no file's, now."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def job(name: str, path: str) -> dict[str, Any]:
    import tunesmith.api as api
    from tunesmith.config import validate
    from tunesmith.data.cache import RowsCache
    from tunesmith.data.rows import load_parts, load_rows
    from tunesmith.preflight import renderer_of

    run, _ = validate({"model": "acorn", "data": {"train": path, "validation": 0.01, "test": 0.01}}, "benchmark")
    if name == "check":
        begun = time.perf_counter()
        report = api.check(path, model="acorn")
        result = {"seconds": time.perf_counter() - begun, "rows": sum(report.rows.values()), "findings": len(report.findings)}
    else:
        renderer, max_length = renderer_of(run)
        begun = time.perf_counter()

        def make() -> Any:
            if name == "second":
                raise SystemExit("the rows of the first start were not found")
            return load_rows(load_parts(run.data), run.data, max_length, renderer)

        rows = RowsCache(run.data).rows(renderer, max_length, make)
        result = {"seconds": time.perf_counter() - begun, "rows": len(rows.train), "tokens": rows.counts["tokens_per_epoch"]}
    return {**result, "peak_bytes": harness.peak_resident_bytes(), "anonymous_bytes": anonymous_bytes()}


def run_job(name: str, path: Path, cache: Path) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).resolve()), "job", name, str(path)]
    done = subprocess.run(command, env={**os.environ, "TUNESMITH_CACHE": str(cache)}, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--only", nargs="*", choices=JOBS, default=JOBS)
    parser.add_argument("--output", type=Path, help="results file (benchmarks/results/data.json)")
    chosen = parser.parse_args()
    if chosen.rows < 1:
        parser.error("--rows: at least 1")
    output = chosen.output or (harness.RESULTS / "data.json" if chosen.rows >= LEAST_KEPT else None)
    now = harness.facts()
    with tempfile.TemporaryDirectory(prefix="tunesmith-data-") as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, chosen.rows)
        n_bytes = path.stat().st_size
        print(f"{chosen.rows:,} rows, {n_bytes / 1e6:,.0f} MB")
        for name in chosen.only:
            found = run_job(name, path, Path(folder) / "cache")
            row = {
                "workload": f"{name}-{chosen.rows}", "opponent": "none", **{key: round(v, 2) if isinstance(v, float) else v for key, v in found.items()},
                "file_bytes": n_bytes, "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }  # fmt: skip
            print(
                f"{name}: {row['seconds']:.1f} s, {row['rows'] / max(row['seconds'], 1e-9):,.0f} rows/s, "
                f"{row['anonymous_bytes'] / 2**20:,.0f} MiB in the end, {row['peak_bytes'] / 2**20:,.0f} MiB resident at most",
                flush=True,
            )
            if output is not None:
                harness.write_rows(output, [row], now)


if __name__ == "__main__":
    if sys.argv[1:2] == ["job"]:
        print(json.dumps(job(*sys.argv[2:4])))
    else:
        main()
