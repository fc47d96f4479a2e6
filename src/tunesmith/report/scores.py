"""How the models of a run measured: metrics down, models across, the best of each row, and what tuning changed with its interval.

models = models_of(files)               # {"majority": {...}, "base": {...}, "sms": {...}}
score_table(files)                      # HTML; "" where nothing was measured
"""

from collections.abc import Mapping
from html import escape
from typing import Any

from tunesmith.progress import counted
from tunesmith.report.files import Files, finite, mapping

LOWER_IS_BETTER = {"loss", "perplexity", "bits_per_byte", "repeated_keys"}
BASELINES = ("majority", "base")  # every other model of evaluation.json is a tuned one


def models_of(files: Files) -> dict[str, Mapping[str, Any]]:
    """Metrics of each model, baselines first."""
    models = {name: metrics for name, metrics in mapping(files.evaluation.get("models")).items() if isinstance(metrics, Mapping)}
    order = [name for name in BASELINES if name in models] + [name for name in models if name not in BASELINES]
    return {name: models[name] for name in order}


def tuned_of(files: Files, models: Mapping[str, Any]) -> str | None:
    """The model that this run made: the one named after the folder, or the last."""
    return files.name if files.name in models else next((name for name in list(models)[::-1] if name not in BASELINES), None)


def metric_order(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(metric for metrics in models.values() for metric in metrics))


def headline(task: Any, models: Mapping[str, Mapping[str, Any]], tuned: str) -> str | None:
    """The one metric to name first.

    Of two labels, the F1 of the rarer: the one that the majority baseline never finds. Otherwise the strictest of the task's.
    """
    ours = models[tuned]
    missed = [m for m, value in mapping(models.get("majority")).items() if m.startswith("f1_") and m != "f1_macro" and value == 0]
    classes = [m for m in ours if m.startswith("f1_") and m != "f1_macro"]
    if task == "label" and len(classes) == 2 and len(missed) == 1 and missed[0] in ours:
        return missed[0]
    preferred = {"label": ["f1_macro", "accuracy"], "json": ["exact_match", "f1_fields"], "text": ["token_f1", "exact_match"]}.get(
        str(task), []
    )
    return next((m for m in [*preferred, *ours] if finite(ours.get(m)) is not None), None)


def rows_measured(files: Files) -> str:
    """How many test rows the figures are of, and of how many, where evaluation.limit took some; "" if that is not known."""
    n_rows, n_given = finite(files.evaluation.get("rows")), finite(files.evaluation.get("rows_given"))
    if n_rows is None:
        return ""
    return counted(int(n_rows), "test row") if n_given is None else f"{n_rows:,.0f} of {n_given:,.0f} test rows (evaluation.limit)"


def best_of(metric: str, models: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Models with the best value as printed; none where all are equal."""
    values = {name: round(number, 3) for name, metrics in models.items() if (number := finite(metrics.get(metric))) is not None}
    if len(set(values.values())) < 2:
        return set()
    best = (min if metric in LOWER_IS_BETTER else max)(values.values())
    return {name for name, value in values.items() if value == best}


def as_text(metric: str, value: Any, digits: int = 3) -> str:
    number = finite(value)
    if number is None:
        return "–" if value is None or isinstance(value, float) else str(value)
    if isinstance(number, int) and (number < 0 or number > 1):
        return f"{number:,}"
    return f"{number:.{digits}f}" if abs(number) < 1000 else f"{number:,.0f}"


def signed(change: float, digits: int = 3) -> str:
    sign = "−" if change < 0 else "+"
    return f"{sign}{abs(change):.{digits}f}" if abs(change) < 1000 else f"{sign}{abs(change):,.0f}"


def change_of(files: Files, tuned: str, part: str, *path: str) -> Mapping[str, Any]:
    """What evaluation.json says of the change from base to tuned: {"value", "low", "high"}; empty where it says nothing."""
    found = mapping(mapping(mapping(files.evaluation.get("differences")).get(tuned)).get("base")).get(part)
    for name in path:
        found = mapping(found).get(name)
    found = mapping(found)
    return found if all(finite(found.get(key)) is not None for key in ("value", "low", "high")) else {}


def may_be_zero(interval: Mapping[str, Any]) -> bool:
    return bool(interval) and interval["low"] <= 0 <= interval["high"]


def ends_in_words(interval: Mapping[str, Any], digits: int = 3) -> str:
    """The interval's ends; where no row changed they are no interval: how often others would is not known to three digits."""
    if interval and interval["low"] == interval["high"] == 0:
        return " (no row changed)"
    return f" [{signed(interval['low'], digits)}, {signed(interval['high'], digits)}]" if interval else ""


def interval_in_words(interval: Mapping[str, Any], digits: int = 3) -> str:
    return f"{signed(interval['value'], digits)}{ends_in_words(interval, digits)}" if interval else ""


def score_table(files: Files) -> str:
    """One row per metric, one column per model, the best of each row bold, and what tuning changed."""
    models = models_of(files)
    if not models:
        return ""
    tuned = tuned_of(files, models)
    compared = tuned is not None and "base" in models
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in models) + ('<th scope="col">change</th>' if compared else "")
    body = []
    for metric in metric_order(models):
        shown = {name: as_text(metric, metrics.get(metric)) for name, metrics in models.items()}
        best = best_of(metric, models)
        cells = "".join(
            f"<td><strong>{escape(text)}</strong></td>" if name in best else f"<td>{escape(text)}</td>" for name, text in shown.items()
        )
        if compared:
            interval = change_of(files, str(tuned), "overall", metric)
            cells += _change(metric, finite(models["base"].get(metric)), finite(models[str(tuned)].get(metric)), interval)
        body.append(f'<tr><th scope="row">{escape(metric)}</th>{cells}</tr>')
    notes = [f"{n_rows}." if (n_rows := rows_measured(files)) else "", "Bold: the best of its row."]
    if "majority" in models:
        notes.append("majority: the commonest training answer, every time.")
    if compared and any(change_of(files, str(tuned), "overall", metric) for metric in metric_order(models)):
        notes.append("In brackets the 95 % interval of the change over the rows (paired bootstrap).")
    if LOWER_IS_BETTER & set(metric_order(models)):
        lower = [metric for metric in metric_order(models) if metric in LOWER_IS_BETTER]
        notes.append(f"Of {', '.join(lower)} lower is better; of the others higher.")
    note = " ".join(n for n in notes if n)
    header = f'<thead><tr><th scope="col">metric</th>{head}</tr></thead>'
    rows = "\n".join(body)
    table = f'<div class="wide"><table class="scores">\n{header}\n<tbody>\n{rows}\n</tbody></table></div>'
    return f'{table}\n<p class="note">{escape(note)}</p>'


def _change(metric: str, before: float | None, after: float | None, interval: Mapping[str, Any]) -> str:
    if before is None or after is None:
        return "<td>–</td>"
    ends = ends_in_words(interval)
    change = round(after - before, 3)
    if change == 0 or may_be_zero(interval):
        return f"<td>{signed(change) if change else '±0.000'}{ends}</td>"
    better = (change < 0) == (metric in LOWER_IS_BETTER)
    return f'<td class="{"better" if better else "worse"}">{signed(change)}{ends}</td>'
