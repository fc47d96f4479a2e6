"""The arithmetic and the turn-taking of the benchmarks; what they measure is not run here."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import _harness as harness  # noqa: E402

# a side that counts its own commands and notes every turn in a file that both sides share
COUNTER = """
import sys
sys.path.insert(0, sys.argv[1])
import _harness as harness

def build():
    print("whatever an import prints")
    count = 0
    def answer(command):
        nonlocal count
        count += 1
        with open(sys.argv[2], "a") as file:
            file.write(f"{sys.argv[3]}{command['step']} ")
        if command["step"] == 7:
            raise SystemExit(3)
        return {"count": count}
    return {"threads": 1}, answer

harness.serve(build)
"""


def counter(name, log):
    return harness.Worker(name, [sys.executable, "-c", COUNTER, str(BENCHMARKS), str(log), name])


def test_two_sides_take_turns_and_each_keeps_its_own_state(tmp_path):
    with counter("A", tmp_path / "log") as a, counter("B", tmp_path / "log") as b:
        rounds = list(harness.alternate({"ours": a, "theirs": b}, [{"step": n} for n in range(3)], pause_seconds=0))
    assert (tmp_path / "log").read_text() == "A0 B0 A1 B1 A2 B2 "
    assert [r["ours"]["count"] for r in rounds] == [1, 2, 3]
    assert [r["theirs"]["count"] for r in rounds] == [1, 2, 3]
    assert a.started_with == {"threads": 1}
    assert a.process.poll() is not None, "a worker must not outlive its block"


def test_a_side_that_ends_early_is_named_with_its_code(tmp_path):
    with counter("A", tmp_path / "log") as a, pytest.raises(SystemExit, match="A ended with code 3"):
        a.ask({"step": 7})


def test_the_ratio_is_the_median_over_pairs_and_forgets_a_disturbed_one():
    #         a quiet pair | both slow | theirs disturbed
    ours    = [1.0,          2.0,        1.0]  # fmt: skip
    theirs  = [2.0,          4.2,        9.0]  # fmt: skip
    found = harness.summary(ours, theirs)
    assert (found["ratio"], found["ratio_min"], found["ratio_max"]) == (2.1, 2.0, 9.0)
    assert (found["ours_seconds"], found["theirs_seconds"], found["pairs"]) == (1.0, 4.2, 3)


@pytest.mark.parametrize(
    ("found", "expected", "difference"),
    [
        (1.01, 1.0, 0.01),
        (-1.0, 1.0, 2.0),
        (0.0, 0.0, 0.0),
        (1.0, 0.0, float("inf")),
        (float("nan"), 1.0, float("inf")),
        (1.0, float("nan"), float("inf")),
    ],
)
def test_a_relative_difference_is_never_small_by_accident(found, expected, difference):
    assert harness.relative_difference(found, expected) == pytest.approx(difference)


def row(workload, opponent, ratio):
    return {"workload": workload, "opponent": opponent, "ratio": ratio}


def test_new_rows_replace_their_own_kind_and_others_stay():
    now = {"machine": {"cpu": "x"}, "versions": {"torch": "2"}, "commit": "c1"}
    before = {**now, "rows": [row("step", "peft", 1.0), row("step", "trl", 1.5), row("load", "peft", 3.0)]}
    merged = harness.merge(before, [row("step", "peft", 2.0)], now)
    assert merged == {**now, "rows": [row("load", "peft", 3.0), row("step", "peft", 2.0), row("step", "trl", 1.5)]}


def test_a_row_keeps_the_facts_it_was_measured_under():
    def facts(commit):
        return {"machine": {"cpu": "x"}, "versions": {}, "commit": commit}

    file = harness.merge({}, [row("a", "peft", 1.0)], facts("c1"))
    file = harness.merge(file, [row("b", "peft", 2.0)], facts("c2"))
    file = harness.merge(file, [row("c", "peft", 3.0)], facts("c3"))
    assert file["commit"] == "c3"
    assert [r.get("measured_with", file)["commit"] for r in file["rows"]] == ["c1", "c2", "c3"]


def test_results_are_written_as_strict_json_into_a_new_folder(tmp_path):
    path = tmp_path / "results" / "speed.json"
    harness.write_rows(path, [row("a", "peft", 1.0)], {"commit": "c1"})
    harness.write_rows(path, [row("b", "peft", 2.0)], {"commit": "c1"})
    assert json.loads(path.read_text()) == {"commit": "c1", "rows": [row("a", "peft", 1.0), row("b", "peft", 2.0)]}


def test_versions_name_what_is_installed_and_nothing_else():
    found = harness.versions(["torch", "no-such-package"])
    assert list(found) == ["torch"]


def test_peak_memory_is_this_process_and_counts_what_was_freed():
    before = harness.peak_resident_bytes()
    block = bytearray(b"x") * (300 << 20)
    del block
    assert harness.peak_resident_bytes() >= max(before, 300 << 20)
