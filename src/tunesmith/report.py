"""What a run did, on one page: run folder in, `report.html` and a model card (`README.md`) out.

    write_report(Path("runs/sms"))      # runs/sms/report.html: opens anywhere, asks the network for nothing
    write_model_card(Path("runs/sms"))  # runs/sms/README.md: facts only, with what is not known

Both read the files that the run left (config.yaml, status.json, metrics.jsonl, evaluation.json, samples.jsonl) and compute no
result of their own. Only config.yaml has to be there: a run that was interrupted gets a page of what it has.

Prompts, answers, labels and file names are other people's text: each goes through html.escape, and the charts draw numbers only.
What the page itself guards is in page.py.
"""

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import yaml

from tunesmith.config import parse_yaml
from tunesmith.errors import BadInput
from tunesmith.evaluation.metrics import Task, same_answer
from tunesmith.page import BLUE, GREY, ORANGE, document, figure, layout, section, table, write_page

LOWER_IS_BETTER = {"loss", "perplexity", "bits_per_byte", "repeated_keys"}
MOST_SAMPLES = 16  # shown; the rest stay in samples.jsonl
MOST_POINTS = 1500  # drawn per line; more are averaged, for a phone has to draw them
LONG_PROMPT = 700  # characters; longer ones are folded
OF_KIND = {"label": "accuracy", "json": "exact_match", "text": "rouge_l"}  # the metric that speaks for a task
OF_MEAN = ("rouge_l", "exact_match", "choice", "choice_pmi")  # those that speak for several
BASELINES = ("majority", "base")  # every other model of evaluation.json is a tuned one


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


def write_report(folder: Path) -> Path:
    """Write the folder's `report.html`: one self-contained page (about 5 MB, most of it the chart library)."""
    return write_page(folder / "report.html", _page(read_folder(folder)))


def write_model_card(folder: Path) -> Path:
    """Write the folder's `README.md`: what was trained, on what, how it measured, and what is not known. Facts only."""
    return write_page(folder / "README.md", _card(read_folder(folder)))


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
        left_out.append(f"{path.name}: {_count(len(unreadable), 'line')} not readable, the first at {path.name}:{unreadable[0]}")
    return rows


# ── facts that the page and the card share ─────────────────────────────────────────────────────────────────────────────────────


def _number(value: Any) -> float | None:
    """A finite number, or None for whatever else a JSON file holds in its place."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def _models(files: Files) -> dict[str, Mapping[str, Any]]:
    """Metrics of each model, baselines first."""
    models = {name: metrics for name, metrics in _mapping(files.evaluation.get("models")).items() if isinstance(metrics, Mapping)}
    order = [name for name in BASELINES if name in models] + [name for name in models if name not in BASELINES]
    return {name: models[name] for name in order}


def _tuned(files: Files, models: Mapping[str, Any]) -> str | None:
    """The model that this run made: the one named after the folder, or the last."""
    return files.name if files.name in models else next((name for name in list(models)[::-1] if name not in BASELINES), None)


def _metric_order(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(metric for metrics in models.values() for metric in metrics))


def _headline(task: Any, models: Mapping[str, Mapping[str, Any]], tuned: str) -> str | None:
    """The one metric to name first.

    Of two labels, the F1 of the rarer: the one that the majority baseline never finds. Otherwise the strictest of the task's.
    """
    ours = models[tuned]
    missed = [m for m, value in _mapping(models.get("majority")).items() if m.startswith("f1_") and m != "f1_macro" and value == 0]
    classes = [m for m in ours if m.startswith("f1_") and m != "f1_macro"]
    if task == "label" and len(classes) == 2 and len(missed) == 1 and missed[0] in ours:
        return missed[0]
    preferred = {"label": ["f1_macro", "accuracy"], "json": ["exact_match", "f1_fields"], "text": ["token_f1", "exact_match"]}.get(
        str(task), []
    )
    return next((m for m in [*preferred, *ours] if _number(ours.get(m)) is not None), None)


def _verdict(files: Files) -> str:
    """One sentence: "f1_spam 0.00 → 0.95 on 1,034 test rows", or what can be said without test rows."""
    models, state = _models(files), files.status.get("state")
    tuned = _tuned(files, models)
    at = f" at step {files.status.get('step')} of {files.status.get('steps')}" if files.status.get("steps") is not None else ""
    if state == "failed":
        problem = files.status.get("problem")
        return f"The run failed{at}: {problem}" if problem else f"The run failed{at}."
    if state in {"interrupted", "running"} and tuned is None:
        return f"The run was interrupted{at}." if state == "interrupted" else f"The run is under way{at}."
    metric = _headline(files.evaluation.get("task"), models, tuned) if tuned else None
    means = _mapping(_mapping(files.evaluation.get("macro")).get("models"))
    if tuned and (mean := _number(_mapping(means.get(tuned)).get("rouge_l"))) is not None:
        change = _interval(_changed(files, tuned, "macro", "rouge_l"), digits=2)
        of_base = _value("rouge_l", _mapping(means.get("base")).get("rouge_l"), 2)
        n_tasks = _count(len(_mapping(files.evaluation.get("tasks"))), "task")
        return f"rouge_l {of_base} → {mean:.2f} in the mean over {n_tasks}{f', change {change}' if change else ''}"
    if tuned and metric:
        where = f" on {n_rows}" if (n_rows := _rows_measured(files)) else ""
        before = _number(_mapping(models.get("base")).get(metric))
        after = _value(metric, models[tuned][metric], 2)
        return f"{metric} {after}{where}" if before is None else f"{metric} {_value(metric, before, 2)} → {after}{where}"
    for key, words in (("validation_loss", "validation loss"), ("loss", "training loss")):
        curve = _curve(files.steps, key)
        if curve:
            values = [value for _, value in curve]
            fell = f"{values[0]:.3f} → {min(values) if key == 'validation_loss' else values[-1]:.3f}"
            return f"{words} {fell}; no answers were measured on test rows"
    return "Nothing was measured yet."


def _value(metric: str, value: Any, digits: int = 3) -> str:
    number = _number(value)
    if number is None:
        return "–" if value is None or isinstance(value, float) else str(value)
    if isinstance(number, int) and (number < 0 or number > 1):
        return f"{number:,}"
    return f"{number:.{digits}f}" if abs(number) < 1000 else f"{number:,.0f}"


def _curve(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of the rows that have both; of a step that was run again after a resume the last."""
    points: dict[float, float] = {}
    for row in rows:
        step, value = _number(row.get("step")), _number(row.get(key))
        if step is not None and value is not None:
            points[step] = value
    return sorted(points.items())


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _bytes(n: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if n < 1024:
            return f"{n:,.0f} {unit}"
        n /= 1024
    return f"{n:,.2f} GiB"


def _moment(value: Any) -> str | None:
    number = _number(value)
    if number is not None:
        return datetime.fromtimestamp(number, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return value if isinstance(value, str) else None


def _method(files: Files) -> str:
    method = str(files.config.get("method", "lora"))
    if method == "full":
        part = _mapping(files.config.get("full")).get("train", "all")
        return "full fine-tuning" if part == "all" else f"full fine-tuning of a part ({part})"
    lora = _mapping(files.config.get("lora"))
    rank = lora.get("rank", 16)
    alpha = lora.get("alpha") if lora.get("alpha") is not None else 2 * rank if isinstance(rank, int) else "2 · rank"
    scale = ", rsLoRA scaling" if lora.get("rslora") else ""
    targets = lora.get("targets", "all-linear")
    on = ", ".join(map(str, targets)) if isinstance(targets, list) else targets
    return (
        f"{'QLoRA' if method == 'qlora' else 'LoRA'}, rank {rank}, alpha {alpha:g}{scale}, on {on}"
        if isinstance(alpha, int | float)
        else method
    )


def _facts(files: Files) -> list[tuple[str, str]]:
    """The few figures that one looks for first; only those that are known."""
    status, facts = files.status, [("base model", str(files.config.get("model", "not stated"))), ("method", _method(files))]
    parameters = _mapping(status.get("parameters"))
    trained, total = _number(parameters.get("trained")), _number(parameters.get("total"))
    if trained is not None and total:
        facts.append(("trained parameters", f"{trained:,.0f} of {total:,.0f} ({100 * trained / total:.2f} %)"))
    if status.get("steps") is not None:
        best = f", best at {status['best_step']}" if status.get("best_step") is not None else ""
        facts.append(("optimizer steps", f"{status.get('step')} of {status.get('steps')}{best}"))
    seconds = _number(status.get("seconds"))
    if seconds is not None:
        facts.append(("time", _duration(seconds)))
    speed = [value for _, value in _curve(files.steps, "tokens_per_second")]
    if speed:
        facts.append(("speed", f"{statistics.median(speed):,.0f} tokens/s (median step)"))
    memory = [value for _, value in _curve(files.steps, "peak_memory_bytes")]
    if memory:
        facts.append(("peak memory", _bytes(max(memory))))
    return facts


COUNT_WORDS = {
    "read": "rows read",
    "skipped": "skipped: could not be read",
    "duplicates_dropped": "dropped: equal to an earlier row",
    "overlap_removed": "removed: the held-out rows contain them",
    "left_out_by_limit": "left out by data.limit",
    "train": "training rows",
    "validation": "validation rows (used for choices)",
    "test": "test rows (measured only)",
    "text_windows": "windows that long texts were cut into",
    "too_long_dropped": "dropped: longer than training.max_length",
    "too_long_truncated": "cut at training.max_length",
    "tokens_per_epoch": "tokens per epoch",
    "trained_tokens_per_epoch": "trained tokens per epoch",
}


def _counts(files: Files) -> list[tuple[str, str]]:
    """Counts in words, in the order in which rows went; what a later version may count keeps its own name."""
    counts = _mapping(_mapping(files.status.get("data")).get("counts"))
    ordered = [key for key in COUNT_WORDS if key in counts] + [key for key in counts if key not in COUNT_WORDS]
    return [(COUNT_WORDS.get(key, str(key)), _value_of_count(counts[key])) for key in ordered]


def _value_of_count(value: Any) -> str:
    return f"{value:,}" if _number(value) is not None else str(value)


def _data_files(files: Files) -> list[tuple[str, str]]:
    """(name, checksum in words) of the data files, from {"name": "sha256"}, {"name": {"sha256": …}} or a list of {"path", "sha256"}."""
    listed = _mapping(files.status.get("data")).get("files")
    entries: list[tuple[Any, Any]] = (
        list(listed.items()) if isinstance(listed, Mapping) else [(None, e) for e in listed or [] if isinstance(e, Mapping)]
    )
    found = []
    for name, entry in entries:
        inner = _mapping(entry)
        sha = inner.get("sha256") if inner else entry
        path = inner.get("path") or inner.get("name") or name
        found.append((Path(str(path)).name, f"sha256 {sha}" if re.fullmatch("[0-9a-f]{64}", str(sha)) else "sha256 not recorded"))
    return found


def _machine(files: Files) -> list[tuple[str, str]]:
    rows = [("tunesmith", str(files.status["version"]))] if files.status.get("version") else []
    for key, value in _mapping(files.status.get("machine")).items():
        rows += [_described(inner, given) for inner, given in value.items()] if isinstance(value, Mapping) else [_described(key, value)]
    return rows


def _described(key: Any, value: Any) -> tuple[str, str]:
    name, number = str(key), _number(value)
    if number is not None and name.endswith("_bytes"):
        return name.removesuffix("_bytes").replace("_", " "), _bytes(number)
    words = ", ".join(map(str, value)) if isinstance(value, list) else "not known" if value is None else str(value)
    return name.replace("_", " "), words


# ── the page ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _page(files: Files) -> str:
    charts, figures = _charts(files)
    task_charts, by_task = _by_task(files)
    state = files.status.get("state")
    sections = [
        f"<h1>{escape(files.name)}</h1>",
        f'<p class="verdict">{escape(_verdict(files))}</p>',
        _state_note(files),
        *(f'<p class="note">Left out: {escape(note)}.</p>' for note in files.left_out),
        table("facts", _facts(files)),
        section("Before and after", _scores(files), fallback="No test rows were measured."),
        section("Task by task", by_task),
        section("The same rows in other words", _phrasings(files)),
        section("Learning", figures, fallback="No steps were recorded yet." if state == "running" else "No steps were recorded."),
        section("Sample answers", _samples(files)),
        section("Data", _data(files)),
        section("What is trained", _list("arithmetic", _texts(files.status.get("arithmetic")))),
        section("Command", _command(files)),
        section("Environment", table("facts", _machine(files))),
        section(
            "Configuration",
            f"<details><summary>config.yaml, every default filled in</summary><pre>{escape(files.config_text)}</pre></details>",
        ),
    ]
    return document(files.name, sections, charts | task_charts)


def _state_note(files: Files) -> str:
    state, resume = files.status.get("state"), files.status.get("resume_command")
    words = {
        "interrupted": "Interrupted and saved.",
        "failed": "This run did not finish.",
        "running": "This page was written while the run was under way.",
    }
    if state not in words:
        return ""
    how = f" Continue with <code>{escape(str(resume))}</code>" if resume and state != "running" else ""
    return f'<p class="note">{escape(words[state])}{how}</p>'


def _charts(files: Files) -> tuple[dict[str, Any], str]:
    """Charts by element id, as plotly's data and layout, and the figures that hold them."""
    loss, validation, rate = (_curve(files.steps, key) for key in ("loss", "validation_loss", "learning_rate"))
    last_step = max((step for curve in (loss, validation, rate) for step, _ in curve), default=0)
    charts: dict[str, Any] = {}
    figures: list[str] = []
    if loss or validation:
        best = _number(files.status.get("best_step")) if validation else None
        charts["loss-chart"] = {
            "data": _loss_lines(loss, validation),
            "layout": _layout("loss (nats per trained token)", last_step, height=340)
            | ({} if best is None else {"shapes": [_dotted(best)]}),
        }
        kept = "" if best is None else f" Dotted: step {best:,.0f}, the best by validation, is what was kept."
        figures.append(figure("loss-chart", f"Loss over optimizer steps.{kept}"))
    if rate:
        layout = _layout("learning rate", last_step, height=220)
        layout["yaxis"]["tickformat"] = "~e"
        charts["rate-chart"] = {"data": [_line("learning rate", _thin(rate)[0], BLUE, hover=".3e")], "layout": layout}
        figures.append(figure("rate-chart", _sentence(str(files.status.get("learning_rate_reason") or "learning rate"))))
    if figures:
        figures.append('<noscript><p class="note">The charts need JavaScript; their numbers are in metrics.jsonl.</p></noscript>')
    return charts, "\n".join(figures)


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _loss_lines(loss: list[tuple[float, float]], validation: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """Single steps are noisy: where there are many, they are drawn faintly under their mean."""
    drawn, each = _thin(loss)
    name = "loss of a step" if each == 1 else f"loss, mean of {each} steps"
    lines = []
    if len(drawn) > 40:
        reach = max(2, len(drawn) // 60)
        mean = _line(f"mean of {(2 * reach + 1) * each} steps", _smoothed(drawn, reach), BLUE)
        lines += [_line(name, drawn, BLUE, opacity=0.35), mean]
    elif drawn:
        lines.append(_line(name, drawn, BLUE))
    if validation:
        lines.append(_line("validation loss", validation, ORANGE, mode="lines+markers"))
    return lines


def _dotted(step: float) -> dict[str, Any]:
    line = {"color": GREY, "dash": "dot", "width": 1}
    return {"type": "line", "x0": step, "x1": step, "yref": "paper", "y0": 0, "y1": 1, "line": line}


def _thin(points: list[tuple[float, float]]) -> tuple[list[tuple[float, float]], int]:
    """At most MOST_POINTS points, each the mean of so many neighbours, and that number."""
    each = math.ceil(len(points) / MOST_POINTS) or 1
    groups = [points[start : start + each] for start in range(0, len(points), each)]
    return [(group[-1][0], statistics.fmean(value for _, value in group)) for group in groups], each


def _smoothed(points: list[tuple[float, float]], reach: int) -> list[tuple[float, float]]:
    """Each value's mean with up to `reach` neighbours on either side, fewer but as many on both at the ends: no lag, no edge."""
    values = [value for _, value in points]
    reaches = [min(reach, i, len(values) - 1 - i) for i in range(len(values))]
    return [(step, statistics.fmean(values[i - r : i + r + 1])) for i, ((step, _), r) in enumerate(zip(points, reaches, strict=True))]


def _line(
    name: str, points: list[tuple[float, float]], color: str, mode: str = "lines", opacity: float = 1, hover: str = ".4f"
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": name,
        "mode": mode if len(points) > 1 else "markers",
        "x": [step for step, _ in points],
        "y": [float(f"{value:.6g}") for _, value in points],
        "opacity": opacity,
        "line": {"color": color, "width": 2},
        "marker": {"color": color, "size": 7},
        "hovertemplate": f"step %{{x:,}}: %{{y:{hover}}}<extra>{name}</extra>",
    }


def _layout(title: str, last_step: float, height: int) -> dict[str, Any]:
    over_steps = layout(title, "step", height)
    over_steps["xaxis"]["range"] = [0, 1.02 * last_step]  # the same on both charts
    return over_steps


def _scores(files: Files) -> str:
    """One row per metric, one column per model, the best of each row bold, and what tuning changed."""
    models = _models(files)
    if not models:
        return ""
    tuned = _tuned(files, models)
    compared = tuned is not None and "base" in models
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in models) + ('<th scope="col">change</th>' if compared else "")
    body = []
    for metric in _metric_order(models):
        shown = {name: _value(metric, metrics.get(metric)) for name, metrics in models.items()}
        best = _best(metric, models)
        cells = "".join(
            f"<td><strong>{escape(text)}</strong></td>" if name in best else f"<td>{escape(text)}</td>" for name, text in shown.items()
        )
        if compared:
            interval = _changed(files, str(tuned), "overall", metric)
            cells += _change(metric, _number(models["base"].get(metric)), _number(models[str(tuned)].get(metric)), interval)
        body.append(f'<tr><th scope="row">{escape(metric)}</th>{cells}</tr>')
    notes = [f"{n_rows}." if (n_rows := _rows_measured(files)) else "", "Bold: the best of its row."]
    if "majority" in models:
        notes.append("majority: the commonest training answer, every time.")
    if compared and any(_changed(files, str(tuned), "overall", metric) for metric in _metric_order(models)):
        notes.append("In brackets the 95 % interval of the change over the rows (paired bootstrap).")
    if LOWER_IS_BETTER & set(_metric_order(models)):
        lower = [metric for metric in _metric_order(models) if metric in LOWER_IS_BETTER]
        notes.append(f"Of {', '.join(lower)} lower is better; of the others higher.")
    note = " ".join(n for n in notes if n)
    header = f'<thead><tr><th scope="col">metric</th>{head}</tr></thead>'
    rows = "\n".join(body)
    table = f'<div class="wide"><table class="scores">\n{header}\n<tbody>\n{rows}\n</tbody></table></div>'
    return f'{table}\n<p class="note">{escape(note)}</p>'


def _rows_measured(files: Files) -> str:
    """How many test rows the figures are of, and of how many, where evaluation.limit took some; "" if that is not known."""
    n_rows, n_given = _number(files.evaluation.get("rows")), _number(files.evaluation.get("rows_given"))
    if n_rows is None:
        return ""
    return _count(int(n_rows), "test row") if n_given is None else f"{n_rows:,.0f} of {n_given:,.0f} test rows (evaluation.limit)"


def _best(metric: str, models: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Models with the best value as printed; none where all are equal."""
    values = {name: round(number, 3) for name, metrics in models.items() if (number := _number(metrics.get(metric))) is not None}
    if len(set(values.values())) < 2:
        return set()
    best = (min if metric in LOWER_IS_BETTER else max)(values.values())
    return {name for name, value in values.items() if value == best}


def _change(metric: str, before: float | None, after: float | None, interval: Mapping[str, Any]) -> str:
    if before is None or after is None:
        return "<td>–</td>"
    ends = _ends(interval)
    change = round(after - before, 3)
    if change == 0 or _may_be_zero(interval):
        return f"<td>{_signed(change) if change else '±0.000'}{ends}</td>"
    better = (change < 0) == (metric in LOWER_IS_BETTER)
    return f'<td class="{"better" if better else "worse"}">{_signed(change)}{ends}</td>'


def _signed(change: float, digits: int = 3) -> str:
    sign = "−" if change < 0 else "+"
    return f"{sign}{abs(change):.{digits}f}" if abs(change) < 1000 else f"{sign}{abs(change):,.0f}"


def _changed(files: Files, tuned: str, part: str, *path: str) -> Mapping[str, Any]:
    """What evaluation.json says of the change from base to tuned: {"value", "low", "high"}; empty where it says nothing."""
    found = _mapping(_mapping(_mapping(files.evaluation.get("differences")).get(tuned)).get("base")).get(part)
    for name in path:
        found = _mapping(found).get(name)
    found = _mapping(found)
    return found if all(_number(found.get(key)) is not None for key in ("value", "low", "high")) else {}


def _may_be_zero(interval: Mapping[str, Any]) -> bool:
    return bool(interval) and interval["low"] <= 0 <= interval["high"]


def _ends(interval: Mapping[str, Any], digits: int = 3) -> str:
    """The interval's ends; where no row changed they are no interval: how often others would is not known to three digits."""
    if interval and interval["low"] == interval["high"] == 0:
        return " (no row changed)"
    return f" [{_signed(interval['low'], digits)}, {_signed(interval['high'], digits)}]" if interval else ""


def _interval(interval: Mapping[str, Any], digits: int = 3) -> str:
    return f"{_signed(interval['value'], digits)}{_ends(interval, digits)}" if interval else ""


# ── several tasks, several phrasings ───────────────────────────────────────────────────────────────────────────────────────────


def _by_task(files: Files) -> tuple[dict[str, Any], str]:
    """Each task's own metric before and after with its interval, the means over tasks, and a chart of them."""
    tasks = {name: _mapping(found) for name, found in _mapping(files.evaluation.get("tasks")).items()}
    models = _models(files)
    tuned = _tuned(files, models)
    if not tasks or tuned is None:
        return {}, ""
    columns = [name for name in (*BASELINES, tuned) if name in models]
    head = "".join(f'<th scope="col">{escape(word)}</th>' for word in ("task", "rows", "metric", *columns, "change"))
    body = []
    for name, found in tasks.items():
        of_models = _mapping(found.get("models"))
        own = OF_KIND.get(str(found.get("kind")), "exact_match")
        for metric in [own, *(m for m in ("choice",) if m in _mapping(of_models.get(tuned)))]:
            values = {model: _number(_mapping(of_models.get(model)).get(metric)) for model in columns}
            body.append(
                _task_row(name, _value_of_count(found.get("rows", "–")), metric, values, _changed(files, tuned, "tasks", name, metric))
            )
    means = _mapping(_mapping(files.evaluation.get("macro")).get("models"))
    n_tasks = _mapping(_mapping(files.evaluation.get("macro")).get("n_tasks"))
    for metric in OF_MEAN:
        values = {model: _number(_mapping(means.get(model)).get(metric)) for model in columns}
        if values.get(tuned) is not None:
            over = _count(int(_number(n_tasks.get(metric)) or len(tasks)), "task")
            body.append(_task_row(f"mean over {over}", "", metric, values, _changed(files, tuned, "macro", metric)))
    table = f'<div class="wide"><table class="scores">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{"".join(body)}</tbody></table></div>'
    notes = (
        "change: from base to this run on the same rows, with its 95 % interval (paired bootstrap, rows drawn within each task). "
        "The intervals speak of other rows of these tasks, not of other tasks, nor of other seeds of training. "
        "majority: the commonest answer of the task, every time. choice: the likeliest of the possible answers."
    )
    chart = _task_chart(files, tasks, tuned)
    drawn = figure(
        "task-chart",
        "Before and after, task by task, each by its own metric. The bar is the 95 % interval of the change, drawn at the tuned score: "
        "where it does not reach the base's mark, the change is more than luck of these rows.",
    )
    return {"task-chart": chart}, f'{table}\n<p class="note">{escape(notes)}</p>\n{drawn}'


def _task_row(name: str, rows: str, metric: str, values: Mapping[str, float | None], interval: Mapping[str, Any]) -> str:
    known = [round(value, 3) for value in values.values() if value is not None]
    best = max(known) if len(set(known)) > 1 else None
    cells = ""
    for value in values.values():
        text = _value(metric, value)
        cells += f"<td><strong>{text}</strong></td>" if value is not None and round(value, 3) == best else f"<td>{text}</td>"
    certain = bool(interval) and not _may_be_zero(interval)
    css = f' class="{"better" if interval["value"] > 0 else "worse"}"' if certain else ""
    return (
        f'<tr><th scope="row" class="long">{escape(name)}</th><td>{escape(rows)}</td><td>{escape(metric)}</td>{cells}'
        f"<td{css}>{_interval(interval) or '–'}</td></tr>\n"
    )


def _task_chart(files: Files, tasks: Mapping[str, Mapping[str, Any]], tuned: str) -> dict[str, Any]:
    points: dict[str, list[float | None]] = {"majority": [], "base": [], tuned: []}
    below: list[float] = []
    above: list[float] = []
    for name, found in tasks.items():
        metric = OF_KIND.get(str(found.get("kind")), "exact_match")
        for model, xs in points.items():
            xs.append(_number(_mapping(_mapping(found.get("models")).get(model)).get(metric)))
        change = _changed(files, tuned, "tasks", name, metric)
        below.append(change["value"] - change["low"] if change else 0.0)
        above.append(change["high"] - change["value"] if change else 0.0)
    places = list(range(len(tasks), 0, -1))
    marks = {"majority": (GREY, "x", "majority"), "base": (ORANGE, "circle-open", "base"), tuned: (BLUE, "circle", "tuned")}
    data = []
    for model, (colour, symbol, name) in marks.items():
        trace: dict[str, Any] = {
            "type": "scatter", "mode": "markers", "name": name, "x": points[model], "y": places,
            "marker": {"color": colour, "symbol": symbol, "size": 11, "line": {"width": 2, "color": colour}},
            "hovertemplate": f"%{{x:.3f}}<extra>{name}</extra>",
        }  # fmt: skip
        if model == tuned:
            trace["error_x"] = {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "color": colour, "thickness": 1.5}
        data.append(trace)
    drawn = layout("", "score", height=110 + 42 * len(tasks))
    drawn["xaxis"]["rangemode"] = "tozero"
    kinds = [OF_KIND.get(str(found.get("kind")), "exact_match") for found in tasks.values()]
    labels = [f"{_plain(name)}, {metric}" for name, metric in zip(tasks, kinds, strict=True)]
    drawn["yaxis"] |= {"tickvals": places, "ticktext": labels, "range": [0.5, len(tasks) + 0.5]}
    return {"data": data, "layout": drawn}


def _plain(name: str) -> str:
    """A name for a chart, which would take < > & for markup: words only, cut where it is long."""
    kept = re.sub(r"[^\w .:/-]+", "·", name)
    return kept if len(kept) <= 36 else kept[:35] + "…"


def _phrasings(files: Files) -> str:
    """Scores of each phrasing, and how much they vary."""
    found = _mapping(files.evaluation.get("phrasings"))
    models = _mapping(found.get("models"))
    if not models:
        return ""
    tasks = _mapping(files.evaluation.get("tasks"))
    metrics = OF_MEAN if len(tasks) > 1 else ("accuracy", *OF_MEAN)
    parts = [_spread_table(models, metrics, "mean over tasks" if len(tasks) > 1 else "all rows")]
    consistent = [
        f"{name} answers {value:.0%} of the rows alike under all phrasings"
        for name, given in _mapping(found.get("consistent")).items()
        if (value := _number(given)) is not None
    ]
    note = "sd: standard deviation over the phrasings; a part of it is luck of these rows. " + "; ".join(consistent) + "."
    parts.append(f'<p class="note">{escape(note)}</p>')
    of_tasks = "".join(
        _spread_table(_mapping(of_models), (OF_KIND.get(str(_mapping(tasks.get(task)).get("kind")), "exact_match"), "choice"), str(task))
        for task, of_models in _mapping(found.get("tasks")).items()
    )
    texts = "".join(
        f"<p>{escape(str(task) or 'all rows')}</p>" + _list("said", _texts(listed)) for task, listed in _mapping(found.get("texts")).items()
    )
    folds = {"task by task": of_tasks, "the phrasings": texts}
    return "\n".join([*parts, *(f"<details><summary>{name}</summary>\n{body}</details>" for name, body in folds.items() if body)])


def _spread_table(models: Mapping[str, Any], metrics: Sequence[str], title: str) -> str:
    rows = []
    n = 0
    for model, of_metrics in models.items():
        for metric in metrics:
            spread = _mapping(_mapping(of_metrics).get(metric))
            values = spread.get("values")
            if not isinstance(values, list):
                continue
            n = max(n, len(values))
            shown = [_value(metric, value) for value in [*values, *(spread.get(key) for key in ("mean", "min", "max", "sd"))]]
            cells = "".join(f"<td>{escape(text)}</td>" for text in shown)
            rows.append(f'<tr><th scope="row">{escape(str(model))}, {escape(metric)}</th>{cells}</tr>\n')
    if not rows:
        return ""
    headings = [title, "as given", *map(str, range(1, n)), "mean", "min", "max", "sd"]
    head = "".join(f'<th scope="col">{escape(word)}</th>' for word in headings)
    return f'<div class="wide"><table class="scores">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{"".join(rows)}</tbody></table></div>'


def _samples(files: Files) -> str:
    task = files.evaluation.get("task")
    known_task: Task = task if task in ("label", "json", "text") else "text"
    shown = files.samples[:MOST_SAMPLES]
    if not shown:
        return ""
    more = (
        f'<p class="note">{len(shown)} of {_count(len(files.samples), "sample")}; all are in samples.jsonl.</p>'
        if len(shown) < len(files.samples)
        else ""
    )
    return more + "\n".join(_sample(sample, known_task) for sample in shown)


def _sample(sample: Mapping[str, Any], task: Task) -> str:
    prompt, reference, answers = _text(sample.get("prompt")), sample.get("reference"), _mapping(sample.get("answers"))
    fold = f"<details><summary>prompt of {len(prompt):,} characters</summary><pre>{escape(prompt)}</pre></details>"
    rows = [] if reference is None else [("expected", escape(_text(reference)))]
    for name, answer in answers.items():
        text = _text(answer)
        body = escape(text) if text.strip() else '<span class="note">(empty)</span>'
        rows.append((str(name), body if reference is None else f"{_mark(same_answer(task, text, _text(reference)))} {body}"))
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{body}</dd>\n" for name, body in rows)
    source = f'<div class="source">{escape(_text(sample["source"]))}</div>' if sample.get("source") else ""
    return f"<article>\n{source}{fold if len(prompt) > LONG_PROMPT else f'<pre>{escape(prompt)}</pre>'}\n<dl>\n{listed}</dl>\n</article>"


def _mark(right: bool) -> str:
    return '<span class="mark better">✓ right</span>' if right else '<span class="mark worse">✗ wrong</span>'


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def _data(files: Files) -> str:
    checksums = [f"{name}: {sha}" for name, sha in _data_files(files)]
    return _list("said", _texts(_mapping(files.status.get("data")).get("said"))) + table("facts", _counts(files)) + _list("note", checksums)


def _list(css: str, lines: Sequence[str]) -> str:
    return f'<ul class="{css}">\n' + "".join(f"<li>{escape(line)}</li>\n" for line in lines) + "</ul>\n" if lines else ""


def _command(files: Files) -> str:
    command = files.status.get("command")
    times = [(word, moment) for word in ("started", "ended") if (moment := _moment(files.status.get(word)))]
    return (f"<pre>{escape(str(command))}</pre>" if command else "") + table("facts", times)


# ── the model card ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _card(files: Files) -> str:
    method, base = str(files.config.get("method", "lora")), str(files.config.get("model", "not stated"))
    head = {
        "base_model": Path(base).name if _is_folder(base) else base,  # a path of this machine says nothing to a reader elsewhere
        "library_name": "transformers" if method == "full" else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["tunesmith", method],
    }
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {_markdown(files.name)}",
        _markdown(_verdict(files)),
        _list_of(
            [
                (name, value if name != "base model" else str(head["base_model"]) + (" (a local folder)" if _is_folder(base) else ""))
                for name, value in _facts(files)
            ]
        ),
        _card_section("Measured", _card_scores(files), "No test rows were measured."),
        _card_section(
            "Training data",
            _list_of(_counts(files) + _data_files(files)),
            "Counts were not recorded.",
        ),
        _card_section("Use", _use(method, base), ""),
        _card_section("Command", _fence(str(files.status["command"])) if files.status.get("command") else "", "Not recorded."),
        _card_section("Versions and machine", _list_of(_machine(files)), "Not recorded."),
        _card_section("Not known", "\n".join(f"- {line}" for line in _unknown(files)), ""),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _use(method: str, base: str) -> str:
    """The lines that open the result without tunesmith. The base is named by where it is, as "acorn" is no name on the hub."""
    if method == "full":
        lines = ["from transformers import AutoModelForCausalLM", "", 'model = AutoModelForCausalLM.from_pretrained("model")']
        return "From this folder `tunesmith chat .`, or with transformers:\n\n" + _fence("\n".join(lines))
    where = {"acorn": "ACORN"}.get(base, json.dumps(f"the folder of {Path(base).name}" if _is_folder(base) else base))
    lines = ["from peft import PeftModel", "from transformers import AutoModelForCausalLM"]
    lines += ["from tunesmith.model.load import ACORN  # the folder of the base, inside the package"] if base == "acorn" else []
    lines += ["", f"base = AutoModelForCausalLM.from_pretrained({where})", 'model = PeftModel.from_pretrained(base, "adapter")']
    if method == "qlora":  # over the 16-bit base the logits are off by several units
        lines[-2] = 'base = AutoModelForCausalLM.from_pretrained("base-in-few-bits")  # by bitsandbytes'
        lines = [line for line in lines if not line.startswith("from tunesmith")]
        return (
            "From this folder `tunesmith chat .`. The adapter belongs on the base in the bits that it was trained on, not on the 16-bit one: "
            f"`tunesmith quantize {base} --output base-in-few-bits` with the scheme above, then with PEFT, where bitsandbytes has the scheme:\n\n"
            + _fence("\n".join(lines))
            + "\n\nOr `tunesmith merge . --output merged`: one 16-bit model that needs neither."
        )
    return "From this folder `tunesmith chat .`, or with PEFT:\n\n" + _fence("\n".join(lines))


def _is_folder(model: str) -> bool:
    return model.startswith(("/", "~", ".")) or "\\" in model or model.count("/") > 1 or Path(model).is_dir()


def _unknown(files: Files) -> list[str]:
    lines = [
        "licence of the training data: not stated",
        "licence of the base model: not stated here; it applies to this model as well",
        "behaviour on inputs unlike the training data, in other languages or under misuse: not measured",
    ]
    if _tuned(files, _models(files)) is None:
        lines.insert(0, "quality of the answers: not measured on test rows")
    if not _data_files(files):
        lines.append("checksums of the data files: not recorded")
    if files.status.get("state") not in (None, "trained", "done"):  # the card is written before the run is called done
        lines.insert(0, f"how it would have ended: the run is {files.status['state']}")
    return lines + [f"left out: {note}" for note in files.left_out]


def _card_scores(files: Files) -> str:
    models = _models(files)
    if not models:
        return ""
    rows = [["metric", *map(_markdown, models)], ["---", *("---:" for _ in models)]]
    for metric in _metric_order(models):
        best = _best(metric, models)
        values = {name: _markdown(_value(metric, metrics.get(metric))) for name, metrics in models.items()}
        rows.append([_markdown(metric), *(f"**{value}**" if name in best else value for name, value in values.items())])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return (f"On {n_rows}; bold: the best of its row.\n\n" if (n_rows := _rows_measured(files)) else "") + table


def _card_section(title: str, body: str, fallback: str) -> str:
    return f"## {title}\n\n{body or fallback}" if body or fallback else ""


def _list_of(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"- {_markdown(name)}: {_markdown(value)}" for name, value in rows)


def _fence(text: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*\[\]|]|(?<!\w)_|_(?!\w)|^[#>+-])", r"\\\1", text)
