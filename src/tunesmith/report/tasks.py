"""A run of several tasks, task by task; and the same rows asked in other words.

charts, body = task_by_task(files)      # ({}, "") for a run of one task
phrasings(files)                        # "" where only one phrasing was measured
"""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tunesmith.page import BLUE, GREY, ORANGE, bullets, figure, layout
from tunesmith.progress import counted
from tunesmith.report.facts import count_as_text
from tunesmith.report.files import Files, finite, mapping, texts_of
from tunesmith.report.scores import BASELINES, as_text, change_of, interval_in_words, may_be_zero, models_of, tuned_of

OF_KIND = {"label": "accuracy", "json": "exact_match", "text": "rouge_l"}  # the metric that speaks for a task
OF_MEAN = ("rouge_l", "exact_match", "choice", "choice_pmi")  # those that speak for several


def task_by_task(files: Files) -> tuple[dict[str, Any], str]:
    """Each task's own metric before and after with its interval, the means over tasks, and a chart of them."""
    tasks = {name: mapping(found) for name, found in mapping(files.evaluation.get("tasks")).items()}
    models = models_of(files)
    tuned = tuned_of(files, models)
    if not tasks or tuned is None:
        return {}, ""
    columns = [name for name in (*BASELINES, tuned) if name in models]
    head = "".join(f'<th scope="col">{escape(word)}</th>' for word in ("task", "rows", "metric", *columns, "change"))
    body = []
    for name, found in tasks.items():
        of_models = mapping(found.get("models"))
        own = OF_KIND.get(str(found.get("kind")), "exact_match")
        for metric in [own, *(m for m in ("choice",) if m in mapping(of_models.get(tuned)))]:
            values = {model: finite(mapping(of_models.get(model)).get(metric)) for model in columns}
            body.append(
                _task_row(name, count_as_text(found.get("rows", "–")), metric, values, change_of(files, tuned, "tasks", name, metric))
            )
    means = mapping(mapping(files.evaluation.get("macro")).get("models"))
    n_tasks = mapping(mapping(files.evaluation.get("macro")).get("n_tasks"))
    for metric in OF_MEAN:
        values = {model: finite(mapping(means.get(model)).get(metric)) for model in columns}
        if values.get(tuned) is not None:
            over = counted(int(finite(n_tasks.get(metric)) or len(tasks)), "task")
            body.append(_task_row(f"mean over {over}", "", metric, values, change_of(files, tuned, "macro", metric)))
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
        text = as_text(metric, value)
        cells += f"<td><strong>{text}</strong></td>" if value is not None and round(value, 3) == best else f"<td>{text}</td>"
    certain = bool(interval) and not may_be_zero(interval)
    css = f' class="{"better" if interval["value"] > 0 else "worse"}"' if certain else ""
    return (
        f'<tr><th scope="row" class="long">{escape(name)}</th><td>{escape(rows)}</td><td>{escape(metric)}</td>{cells}'
        f"<td{css}>{interval_in_words(interval) or '–'}</td></tr>\n"
    )


def _task_chart(files: Files, tasks: Mapping[str, Mapping[str, Any]], tuned: str) -> dict[str, Any]:
    points: dict[str, list[float | None]] = {"majority": [], "base": [], tuned: []}
    below: list[float] = []
    above: list[float] = []
    for name, found in tasks.items():
        metric = OF_KIND.get(str(found.get("kind")), "exact_match")
        for model, xs in points.items():
            xs.append(finite(mapping(mapping(found.get("models")).get(model)).get(metric)))
        change = change_of(files, tuned, "tasks", name, metric)
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


def phrasings(files: Files) -> str:
    """Scores of each phrasing, and how much they vary."""
    found = mapping(files.evaluation.get("phrasings"))
    models = mapping(found.get("models"))
    if not models:
        return ""
    tasks = mapping(files.evaluation.get("tasks"))
    metrics = OF_MEAN if len(tasks) > 1 else ("accuracy", *OF_MEAN)
    parts = [_spread_table(models, metrics, "mean over tasks" if len(tasks) > 1 else "all rows")]
    consistent = [
        f"{name} answers {value:.0%} of the rows alike under all phrasings"
        for name, given in mapping(found.get("consistent")).items()
        if (value := finite(given)) is not None
    ]
    note = "sd: standard deviation over the phrasings; a part of it is luck of these rows. " + "; ".join(consistent) + "."
    parts.append(f'<p class="note">{escape(note)}</p>')
    of_tasks = "".join(
        _spread_table(mapping(of_models), (OF_KIND.get(str(mapping(tasks.get(task)).get("kind")), "exact_match"), "choice"), str(task))
        for task, of_models in mapping(found.get("tasks")).items()
    )
    texts = "".join(
        f"<p>{escape(str(task) or 'all rows')}</p>" + bullets("said", texts_of(listed))
        for task, listed in mapping(found.get("texts")).items()
    )
    folds = {"task by task": of_tasks, "the phrasings": texts}
    return "\n".join([*parts, *(f"<details><summary>{name}</summary>\n{body}</details>" for name, body in folds.items() if body)])


def _spread_table(models: Mapping[str, Any], metrics: Sequence[str], title: str) -> str:
    rows = []
    n = 0
    for model, of_metrics in models.items():
        for metric in metrics:
            spread = mapping(mapping(of_metrics).get(metric))
            values = spread.get("values")
            if not isinstance(values, list):
                continue
            n = max(n, len(values))
            shown = [as_text(metric, value) for value in [*values, *(spread.get(key) for key in ("mean", "min", "max", "sd"))]]
            cells = "".join(f"<td>{escape(text)}</td>" for text in shown)
            rows.append(f'<tr><th scope="row">{escape(str(model))}, {escape(metric)}</th>{cells}</tr>\n')
    if not rows:
        return ""
    headings = [title, "as given", *map(str, range(1, n)), "mean", "min", "max", "sd"]
    head = "".join(f'<th scope="col">{escape(word)}</th>' for word in headings)
    return f'<div class="wide"><table class="scores">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{"".join(rows)}</tbody></table></div>'
