"""Kill runs at every instant, go on, and compare with the run that never stopped.

    make torture                                              # 200 kills at random times, every kill point 5 times, transformers beside it
    python tests/torture/torture.py --random 20 --times 1 --peer 0

Each run is killed by SIGKILL once or several times and resumed until it is done. A kill counts as

    lost             something that had been saved or logged is not there any more
    unresumable      `resume` (for transformers: Trainer.train(resume_from_checkpoint=…)) ends with an error
    bit-identical    weights, optimizer and every logged loss end as in the run that never stopped, bit for bit

Random times follow a uniform distribution over the seconds of the whole run, its start and its end included. Half of our runs are
killed again while they go on, transformers' runs once each.
"""

import os

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TUNESMITH_CACHE="off", TOKENIZERS_PARALLELISM="false")

import argparse
import gc
import json
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1] / "benchmarks")]

import ours  # noqa: E402
import theirs  # noqa: E402
from forked import End, in_child  # noqa: E402

from tunesmith.kill_points import POINTS  # noqa: E402

# Points that a run reaches only where it replaces something or goes on: where it is killed first, and whether its newest checkpoint
# is damaged then, so that its step is taken and saved again.
AFTER = {"folder.moved-aside": [("finish.written", False), ("step.begun:8", True)], "start.restored": [("step.begun:7", False)]}


@dataclass
class Count:
    kills: int = 0
    lost: int = 0
    unresumable: int = 0
    bit_identical: int = 0
    runs: int = 0
    problems: list[str] = field(default_factory=list)

    def reasons(self) -> dict[str, int]:
        """How often each problem came, by its last line without numbers and paths."""
        last = [problem.strip().splitlines()[-1] for problem in self.problems]
        return dict(Counter(re.sub(r"\S*/(?=[^/\s])", "", re.sub(r"\d+", "N", line))[:160] for line in last).most_common())

    def __str__(self) -> str:
        return f"kills: {self.kills}, lost: {self.lost}, unresumable: {self.unresumable}, bit-identical: {self.bit_identical}"


@dataclass(frozen=True)
class Subject:
    """Something to kill. begin, go_on: work for a child, in a folder; lost: what is missing after a kill, given what was saved before."""

    name: str
    begin: Callable[[Path], None]
    go_on: Callable[[Path], None]
    result: Callable[[Path], dict[str, Any]]
    lost: Callable[[Path, int], tuple[int, str | None]]
    whole: dict[str, Any]
    seconds: float
    points: dict[str, int]


def our_subject(scenario: ours.Scenario, work: Path) -> Subject:
    folder = work / f"whole {scenario.name}"
    end = in_child(lambda: ours.noted_points(scenario, folder), work / "log")
    assert end.code == 0, end.said
    whole = ours.result_of(folder)
    points = json.loads(folder.with_suffix(".points").read_text(encoding="utf-8"))
    shutil.rmtree(folder)
    return Subject(
        scenario.name, lambda at: ours.begin(scenario, at), lambda at: ours.go_on(scenario, at), ours.result_of,
        lambda at, before: ours.what_is_lost(at, scenario, before), whole, end.seconds, points,
    )  # fmt: skip


def their_subject(settings: str, model: Path, rows: Path, work: Path) -> Subject:
    def train(folder: Path) -> None:
        theirs.train(model, rows, theirs.SETTINGS[settings], folder)

    folder = work / f"whole {settings}"
    end = in_child(lambda: train(folder), work / "log")
    assert end.code == 0, end.said
    # what it loses is not looked at: it promises nothing about it
    return Subject(settings, train, train, theirs.result_of, lambda at, before: (0, None), theirs.result_of(folder), end.seconds, {})


@dataclass(frozen=True)
class Kill:
    """at: a kill point with its number; after: seconds; damage: a bit of the newest checkpoint is flipped once it is dead."""

    at: str | None = None
    after: float | None = None
    damage: bool = False


def one_run(subject: Subject, kills: Sequence[Kill], work: Path, count: Count) -> list[Kill]:
    """Begin, be killed, go on … until done; counts the kills that happened. Returns those that did not: the run ended before."""
    folder = work / "run"
    shutil.rmtree(folder, ignore_errors=True)
    happened, saved, lost, missed = 0, 0, 0, []
    for n, kill in enumerate([*kills, Kill()]):
        work_of_child = subject.go_on if n else subject.begin
        end = in_child(lambda work_of_child=work_of_child: work_of_child(folder), work / "log", kill.at, kill.after)
        if not end.killed:
            missed = list(kills[n:])
            break
        happened += 1
        saved, problem = subject.lost(folder, saved)
        if problem is not None:
            lost = 1
            count.problems.append(f"{subject.name}, {kill}: {problem}")
        if kill.damage:
            ours.flip_a_bit_of_the_newest(folder)
            saved, _ = subject.lost(folder, 0)
    if happened:
        _judge(subject, folder, end, happened, lost, f"{subject.name}, {list(kills[:happened])}", count)
    elif end.code != 0:
        raise SystemExit(f"{subject.name} fails without being killed:\n{end.said}")
    return missed


def _judge(subject: Subject, folder: Path, end: End, happened: int, lost: int, what: str, count: Count) -> None:
    count.runs += 1
    count.kills += happened
    count.lost += lost
    if end.code != 0:
        count.unresumable += 1  # the last kill; going on after those before it was under way
        count.problems.append(f"{what}: {end.said[-1500:]}")
        return
    result = subject.result(folder)
    differs = [key for key in {*result, *subject.whole} if result.get(key) != subject.whole.get(key)]
    count.bit_identical += 0 if differs else happened
    if differs:
        count.problems.append(f"{what}: {', '.join(sorted(differs))} differ from the run that never stopped")


def random_kills(
    subjects: Sequence[Subject], n: int, again: float, work: Path, draw: random.Random, tell: Callable[[str], None]
) -> Count:  # fmt: skip
    """`n` kills at random times; after each one another follows with probability `again`, while the run goes on."""
    count = Count()
    for subject in cycle(subjects):
        if count.kills >= n:
            return count
        moments = [Kill(after=draw.uniform(0, subject.seconds))]
        while draw.random() < again and count.kills + len(moments) < n:
            moments.append(Kill(after=draw.uniform(0, subject.seconds)))
        before = count.kills
        one_run(subject, moments, work, count)
        if count.kills // 10 > before // 10:
            tell(f"random: {count}")
    return count


def named_kills(subjects: Sequence[Subject], times: int, work: Path, draw: random.Random, tell: Callable[[str], None]) -> Count:
    """Every kill point `times` times, each in a run of its own, in turn over the subjects that reach it."""
    count = Count()
    for point in POINTS:
        before = cycle(AFTER.get(point, [None]))
        fit = [subject for subject in subjects if point in AFTER or subject.points.get(point)]
        assert fit, f"no run reaches {point}"
        for subject in [draw.choice(fit) for _ in range(times)]:
            first = next(before)
            nth = 1 if first else draw.randint(1, subject.points[point])
            kills = [*([Kill(first[0], damage=first[1])] if first else []), Kill(f"{point}:{nth}")]
            missed = one_run(subject, kills, work, count)
            if missed:
                count.problems.append(f"{subject.name} did not reach {missed[0].at}")
        tell(f"{point}: {count}")
    return count


def chained_kills(subject: Subject, work: Path, tell: Callable[[str], None]) -> Count:
    """Every kill point once, one after another in as few runs as they fit into: the short form."""
    count = Count()
    count.problems += [f"{subject.name} does not reach {point}" for point in POINTS if point not in AFTER and point not in subject.points]
    left = [point for point in POINTS if point not in AFTER and point in subject.points]
    chain = [Kill(point) for point in left]
    while chain:
        before = len(chain)
        chain = one_run(subject, chain, work, count)
        if len(chain) == before:
            count.problems.append(f"{subject.name} did not reach {chain.pop(0).at}")
        tell(f"in a chain: {count}")
    for point, firsts in AFTER.items():
        for first, damage in firsts:
            if one_run(subject, [Kill(first, damage=damage), Kill(point)], work, count):
                count.problems.append(f"{subject.name} did not reach {point} after {first}")
    tell(f"in a chain: {count}")
    return count


def rows_of(counts: dict[tuple[str, str], Count]) -> Iterator[dict[str, Any]]:
    for (opponent, workload), count in counts.items():
        figures = {key: value for key, value in asdict(count).items() if key != "problems"}
        yield {"workload": workload, "opponent": opponent, **figures, "reasons": count.reasons()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", type=int, default=200, help="kills at random times")
    parser.add_argument("--times", type=int, default=5, help="runs killed at each kill point")
    parser.add_argument("--peer", type=int, default=200, help="kills at random times of transformers' Trainer")
    parser.add_argument("--short", action="store_true", help="every kill point once, in chains, on one LoRA run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="the file of results to merge into")
    options = parser.parse_args()
    draw = random.Random(options.seed)

    def tell(text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    from conftest import save_tiny_model

    gc.freeze()  # what was imported is no garbage: a child that looked for some would copy every page that it shares with this process
    now: dict[str, Any] = {}
    if options.results is not None:
        import _harness

    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        model = work / "model"
        assert in_child(lambda: save_tiny_model(model), work / "log").code == 0
        if options.results is not None:  # in a child: it asks torch about its threads
            in_child(lambda: (work / "facts").write_text(json.dumps(_harness.facts()), encoding="utf-8"), work / "log")
            now = json.loads((work / "facts").read_text(encoding="utf-8"))
        counts: dict[tuple[str, str], Count] = {}
        features = ("measured",) if options.short else tuple(ours.FEATURES)
        chosen = [s for s in ours.scenarios(model, work, features) if not options.short or s.method == "lora"]
        subjects = [our_subject(scenario, work) for scenario in chosen]
        tell(f"{len(subjects)} runs that were never stopped, {sum(s.seconds for s in subjects) / len(subjects):.2f} s each")
        if options.short:
            counts["tunesmith", "every kill point"] = chained_kills(subjects[0], work, tell)
        if options.times:
            counts["tunesmith", "every kill point"] = named_kills(subjects, options.times, work, draw, tell)
        if options.random:
            counts["tunesmith", "random times"] = random_kills(subjects, options.random, 0.5, work, draw, tell)
        if options.peer:
            peers = [their_subject(settings, model, chosen[0].rows, work) for settings in theirs.SETTINGS]
            counts["transformers Trainer", "random times"] = random_kills(peers, options.peer, 0.0, work, draw, tell)
    if options.results is not None:
        _harness.write_rows(options.results, list(rows_of(counts)), now)
    own = [count for (opponent, _), count in counts.items() if opponent == "tunesmith"]
    for count in own:
        for problem in count.problems:
            tell(problem)
    total = Count(*(sum(getattr(count, key) for count in own) for key in ("kills", "lost", "unresumable", "bit_identical")))
    for (opponent, workload), count in counts.items():
        print(f"{opponent}, {workload}: {count}")
    print(total)
    sys.exit(0 if total.bit_identical == total.kills and not any(count.problems for count in own) else 1)


if __name__ == "__main__":
    try:
        main()
    finally:
        gc.unfreeze()  # or libraries that look for leaks at the end find everything
