"""What differs between two runs: what they were told, what they read, what they were computed with, and what came of it.

    found = compare(RunFolder.open("runs/a"), RunFolder.open("runs/b"))
    found.verdict            # "weights differ by 0.31 % (‖b − a‖ / ‖a‖): training.seed differs; data, base and environment equal"
    found.losses.words       # "bit-equal up to step 12; at step 13 0.713302612 and 0.713302314"

Nothing is computed again: it is all in the run folders. Results stand beside each other on the same test rows only with an interval
(paired bootstrap, bootstrap.py): two runs that differ in their seed alone differ in their scores too.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tunesmith import provenance
from tunesmith.api import own_name
from tunesmith.errors import BadInput
from tunesmith.evaluation import tasks
from tunesmith.progress import counted
from tunesmith.runs import RunFolder
from tunesmith.training.memory import TRAINING
from tunesmith.training.resuming import settings_of

Pairs = dict[str, tuple[Any, Any]]  # what is differently said → as a has it, as b has it; None: not at all


@dataclass(frozen=True)
class Result:
    """One figure of both runs. interval: of b − a over the test rows, where both were measured on the same ones."""

    a: float | None
    b: float | None
    interval: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Losses:
    """Logged losses, step by step. equal_up_to: the last step before the first difference; None where no step is logged in both.

    gaps     of a and of b: first and last step of each stretch before its last step that its log lacks
    n_both   steps that are logged in both
    """

    steps: tuple[int, int]
    equal_up_to: int | None
    first_difference: Mapping[str, Any] | None
    gaps: tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]] = ((), ())
    n_both: int = 0

    @property
    def words(self) -> str:
        more = "" if self.steps[0] == self.steps[1] else f"; {self.steps[0]:,} steps in a, {self.steps[1]:,} in b"
        lacking = [
            f"; the log of {name} lacks {_and(list(map(_stretch, gaps)))}" for name, gaps in zip("ab", self.gaps, strict=True) if gaps
        ]
        both = " that both logged" if lacking else " that both took" if more else ""
        more += "".join(lacking)
        if self.equal_up_to is None:
            return f"no step is logged in both{more}"
        if self.first_difference is None:
            return f"bit-equal at all {counted(self.n_both, 'step')}{both}{more}"
        first = self.first_difference
        what = "" if first["what"] == "loss" else f"the {first['what'].replace('_', ' ')} is "
        at = f"at step {first['step']:,} {what}{first['a']:.9g} and {first['b']:.9g}"
        where = f"at the steps{both} " if lacking else ""
        return (
            f"bit-equal {where}up to step {self.equal_up_to:,}; {at}" if self.equal_up_to else f"different from the beginning: {at}"
        ) + more


@dataclass(frozen=True)
class Weights:
    """What training made. relative: ‖b − a‖ / ‖a‖ over the tensors that both have in the same shape; None where that is no number."""

    missing: str | None  # in words, where a run has none
    equal: bool = False
    relative: float | None = None
    n_tensors: int = 0
    n_different: int = 0
    only_in_one: int = 0

    @property
    def words(self) -> str:
        if self.missing is not None:
            return self.missing
        if self.equal:
            return "same weights, bit for bit"
        if not self.n_tensors:
            return "weights of other names or shapes"
        by = f" by {_share(self.relative)} (‖b − a‖ / ‖a‖)" if self.relative else ""
        more = f" ({counted(self.only_in_one, 'tensor')} in one of them only, or of another shape)" if self.only_in_one else ""
        return f"weights differ{by}{more}"


@dataclass(frozen=True)
class Difference:
    """Of two runs a and b. computed: base, machine and environment; not_recorded: what one of them, made by an older version, does not say.

    other_output   the configs name different outputs, which is no difference of what was computed
    """

    runs: tuple[str, str]
    config: Pairs
    data: Pairs
    computed: Pairs
    not_recorded: dict[str, list[str]]
    results: dict[str, Result]
    losses: Losses
    weights: Weights
    other_output: bool = False

    @property
    def verdict(self) -> str:
        """One line: what came of it, and what is behind it."""
        environment = [key.partition(".")[2] for key in self.computed if not key.startswith("base.")]
        base = ["base"] if any(key.startswith("base.") for key in self.computed) else []
        data = [f"data ({', '.join(Path(key).name for key in self.data)})"] if self.data else []
        differing = [*self.config, *data, *base, *environment]
        unknown = {what for each in self.not_recorded.values() for what in each}
        named = {"configs": self.config, "data": self.data, "base": base, "environment": environment}
        equal = [name for name, found in named.items() if not found and name not in unknown]
        equal = ["configs (but for output)" if name == "configs" and self.other_output else name for name in equal]
        is_equal = f"{_and(equal)} equal" if equal else ""
        if differing:
            shown = _and([*differing[:5], *([f"{len(differing) - 5} more"] if len(differing) > 5 else [])])
            behind = f"{shown} {'differ' if len(differing) > 1 or data else 'differs'}"
            return f"{self.weights.words}: {behind}" + (f"; {is_equal}" if is_equal else "")
        if self.weights.equal or self.weights.missing is not None:
            return "; ".join(filter(None, [self.weights.words, is_equal, f"{_and(sorted(unknown))} not known" if unknown else ""]))
        why = "what is not recorded decides" if unknown else "nothing that is recorded explains it; if it happens again, report it"
        return f"{self.weights.words}, although {is_equal or 'no difference is recorded'}: {why}"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "losses": asdict(self.losses) | {"words": self.losses.words}, "verdict": self.verdict}


def compare(a: RunFolder, b: RunFolder) -> Difference:
    """Everything that differs between two run folders, finished or not."""
    settings = [settings_of(folder.run()) for folder in (a, b)]
    status = [folder.status() for folder in (a, b)]
    files = [_mapping(_mapping(one.get("data")).get("files")) for one in status]
    unknown = {
        name: [what for what, there in (("data", files[n]), ("base", status[n].get("base")), ("environment", status[n].get("environment"))) if not there]
        for n, name in enumerate("ab")
    }  # fmt: skip
    computed = provenance.differences(status[0], status[1])
    for name, one in zip("ab", status, strict=True):
        for words in one.get("changed", []):
            computed[f"environment.meanwhile in {name}, {words}"] = (None, None)
    cut = [_mapping(one.get("micro_batches")).get(TRAINING) for one in status]
    if cut[0] != cut[1]:
        computed["environment.micro-batches as they fitted into memory"] = (cut[0] or "as configured", cut[1] or "as configured")
    return Difference(
        runs=(str(a.path), str(b.path)),
        config={key: pair for key in dict.fromkeys([*settings[0], *settings[1]]) if key != "output"
                and (pair := (settings[0].get(key), settings[1].get(key)))[0] != pair[1]},
        data=data_differences(*files) if all(files) else {},
        computed=computed,
        not_recorded=unknown,
        results=results(a, b),
        losses=losses(a.metrics(), b.metrics()),
        weights=weights(a, b),
        other_output=settings[0].get("output") != settings[1].get("output"),
    )  # fmt: skip


def data_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Pairs:
    """Files whose bytes differ, or that only one run read. A file that was moved, or renamed, and holds the same bytes is the same."""

    def content(files: Mapping[str, Any], path: str) -> Any:
        return _mapping(files.get(path)).get("sha256")

    left_a = [path for path in a if content(a, path) != content(b, path) and content(a, path) not in {content(b, p) for p in b}]
    left_b = [path for path in b if content(a, path) != content(b, path) and content(b, path) not in {content(a, p) for p in a}]
    found: Pairs = {}
    for path in left_a:
        same = next((p for p in left_b if p == path), None) or next((p for p in left_b if Path(p).name == Path(path).name), None)
        if same is not None:
            left_b.remove(same)
        found[path] = (_file(a[path]), _file(b[same]) if same is not None else None)
    return found | {path: (None, _file(b[path])) for path in left_b}


def _file(facts: Any) -> str:
    known = _mapping(facts)
    return f"{known.get('rows', '?'):,} rows, sha256 {str(known.get('sha256'))[:12]}"


def losses(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> Losses:
    """Of metrics.jsonl's lines: up to where the two runs' losses are the same numbers, to the last bit."""
    of_each = [{(row["step"], what): row[what] for row in rows for what in ("loss", "validation_loss") if what in row} for rows in (a, b)]
    n_steps = [max((step for step, _ in logged), default=0) for logged in of_each]
    shared = sorted(set(of_each[0]) & set(of_each[1]))
    gaps = (_gaps([step for step, what in of_each[0] if what == "loss"]), _gaps([step for step, what in of_each[1] if what == "loss"]))
    n_both = len({step for step, _ in shared})
    first = next(((step, what) for step, what in shared if of_each[0][step, what] != of_each[1][step, what]), None)
    if first is None:
        return Losses((n_steps[0], n_steps[1]), shared[-1][0] if shared else None, None, gaps, n_both)
    before = max((step for step, what in shared if (step, what) < first), default=0)
    difference = {"step": first[0], "what": first[1], "a": of_each[0][first], "b": of_each[1][first]}
    return Losses((n_steps[0], n_steps[1]), min(before, first[0]), difference, gaps, n_both)


def _gaps(steps: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each stretch of steps that is missing before the last one."""
    known = [0, *sorted(set(steps))]
    return [(one + 1, other - 1) for one, other in pairwise(known) if other > one + 1]


def _stretch(gap: tuple[int, int]) -> str:
    return f"step {gap[0]:,}" if gap[0] == gap[1] else f"steps {gap[0]:,} to {gap[1]:,}"


def results(a: RunFolder, b: RunFolder) -> dict[str, Result]:
    """Last and best losses, and every metric of the tuned model; with an interval where the same rows were answered."""
    found: dict[str, Result] = {}
    curves = [{what: [row[what] for row in folder.metrics() if what in row] for what in ("loss", "validation_loss")} for folder in (a, b)]
    for name, what, pick in (("final training loss", "loss", _last), ("best validation loss", "validation_loss", _least)):
        values = [pick(curve[what]) for curve in curves]
        if values != [None, None]:
            found[name] = Result(values[0], values[1])
    models = [_mapping(_mapping(folder.evaluation().get("models")).get(own_name(folder))) for folder in (a, b)]
    changes = _changes(a, b)
    for metric in dict.fromkeys(metric for model in models for metric in model):
        found[metric] = Result(models[0].get(metric), models[1].get(metric), changes.get(metric))
    return found


def _changes(a: RunFolder, b: RunFolder) -> Mapping[str, Mapping[str, float]]:
    """Metric → interval of b − a, where both runs were measured on the same rows; otherwise none."""
    rows = [folder.evaluation_rows() for folder in (a, b)]
    keys = [[(row.get("source"), row.get("task"), row.get("references")) for row in each] for each in rows]
    if not keys[0] or keys[0] != keys[1]:
        return {}
    of_models = [tasks.measured_of(each, own_name(folder)) for each, folder in zip(rows, (a, b), strict=True)]
    if not all(of_models):
        return {}
    changes: Mapping[str, Mapping[str, float]] = tasks.differences(of_models[0], of_models[1])["overall"]
    return changes


def _last(values: Sequence[float]) -> float | None:
    return values[-1] if values else None


def _least(values: Sequence[float]) -> float | None:
    return min(values, default=None)


# --- weights --------------------------------------------------------------------------------------------------------------


def weights(a: RunFolder, b: RunFolder) -> Weights:
    """adapter/ or model/ of both, one tensor at a time."""
    places = [_weights_of(folder) for folder in (a, b)]
    absent = [
        f"{name} has no weights yet ({folder.state()})" for name, folder, found in zip("ab", (a, b), places, strict=True) if not found
    ]
    if absent:
        return Weights(missing=" and ".join(absent))
    one, other = places
    n_different, n_tensors, only_in_one, squared_change, squared_size = 0, 0, len(set(one) ^ set(other)), 0.0, 0.0
    for name in sorted(set(one) & set(other)):
        x, y = _tensor(one[name], name), _tensor(other[name], name)
        if x.shape != y.shape:
            only_in_one += 1
            continue
        n_tensors += 1
        same = x.dtype == y.dtype and torch.equal(x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8))
        n_different += not same
        if x.is_floating_point() and y.is_floating_point():
            squared_size += float(x.double().square().sum())
            squared_change += 0.0 if same else float((x.double() - y.double()).square().sum())
    relative = math.sqrt(squared_change / squared_size) if squared_size and math.isfinite(squared_change + squared_size) else None
    return Weights(None, not n_different and not only_in_one, relative, n_tensors, n_different, only_in_one)


def _weights_of(folder: RunFolder) -> dict[str, Path]:
    """The file of each tensor by the tensor's name; empty for a run without a result."""
    place = folder.model if folder.run().method == "full" else folder.adapter
    found: dict[str, Path] = {}
    for path in sorted(place.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        except (SafetensorError, OSError) as error:
            raise BadInput(f"the weights cannot be read: {error}", where=str(path), fix="train again, or restore the file") from None
    return found


def _tensor(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


# --- in words -------------------------------------------------------------------------------------------------------------


def show(found: Difference) -> None:
    """What differs as a table on standard output, and the verdict below it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    console.print(f"a: {found.runs[0]}\nb: {found.runs[1]}", markup=False, soft_wrap=True)
    table = Table()
    for heading in ("", "a", "b", "b − a"):
        table.add_column(heading, justify="left", overflow="fold")
    parts = {"config": found.config, "data": found.data, "computed with": found.computed}
    for title, pairs in parts.items():
        for n, (key, (one, other)) in enumerate(pairs.items()):
            name = key.partition(".")[2] if title == "computed with" else Path(key).name if title == "data" else key
            table.add_row(Text(f"{title}: {name}"), Text(_short(one)), Text(_short(other)), end_section=n == len(pairs) - 1)
    other = {name: result for name, result in found.results.items() if result.a != result.b}
    for name, result in other.items():
        table.add_row(Text(name), _figure(result.a), _figure(result.b), _change(result))
    if table.row_count:
        console.print(table)
    if n_equal := len(found.results) - len(other):
        console.print(f"{counted(n_equal, 'figure')} of the results {'is' if n_equal == 1 else 'are'} the same in both")
    if any(result.interval for result in other.values()):
        console.print("in brackets the 95 % interval of b − a over the test rows (paired bootstrap): it speaks of other rows, not of other seeds",
                      soft_wrap=True)  # fmt: skip
    for name, what in found.not_recorded.items():
        if what:
            console.print(f"{name} does not record: {', '.join(what)}", markup=False)
    console.print(f"losses: {found.losses.words}", markup=False, soft_wrap=True)
    console.print(found.verdict, style="bold", markup=False, soft_wrap=True)


def _short(value: Any) -> str:
    text = "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:119] + "…"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _change(result: Result) -> str:
    if result.a is None or result.b is None:
        return ""
    if result.interval is None:
        return _signed(result.b - result.a)
    return f"{_signed(result.interval['value'])} [{_signed(result.interval['low'])}, {_signed(result.interval['high'])}]"


def _signed(change: float) -> str:
    return f"{change:+.4f}" if change == 0 or abs(change) >= 0.00005 else f"{change:+.0e}"


def _share(share: float) -> str:
    return f"{100 * share:.2f} %" if share >= 0.0001 else f"{share:.1e}"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
