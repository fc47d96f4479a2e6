"""Loss, validation loss and learning rate over steps, as charts that a phone can draw.

charts, figures = learning(files)       # plotly's data and layout by element id; the HTML that holds them
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.page import BLUE, GREY, ORANGE, figure, layout
from tunesmith.report.files import Files, finite

MOST_POINTS = 1500  # drawn per line; more are averaged, for a phone has to draw them


def curve_of(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of the rows that have both; of a step that was run again after a resume the last."""
    points: dict[float, float] = {}
    for row in rows:
        step, value = finite(row.get("step")), finite(row.get(key))
        if step is not None and value is not None:
            points[step] = value
    return sorted(points.items())


def learning(files: Files) -> tuple[dict[str, Any], str]:
    """Charts by element id, as plotly's data and layout, and the figures that hold them."""
    loss, validation, rate = (curve_of(files.steps, key) for key in ("loss", "validation_loss", "learning_rate"))
    last_step = max((step for curve in (loss, validation, rate) for step, _ in curve), default=0)
    charts: dict[str, Any] = {}
    figures: list[str] = []
    if loss or validation:
        best = finite(files.status.get("best_step")) if validation else None
        charts["loss-chart"] = {
            "data": _loss_lines(loss, validation),
            "layout": _over_steps("loss (nats per trained token)", last_step, height=340)
            | ({} if best is None else {"shapes": [_dotted(best)]}),
        }
        kept = "" if best is None else f" Dotted: step {best:,.0f}, the best by validation, is what was kept."
        figures.append(figure("loss-chart", f"Loss over optimizer steps.{kept}"))
    if rate:
        layout = _over_steps("learning rate", last_step, height=220)
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


def _over_steps(title: str, last_step: float, height: int) -> dict[str, Any]:
    over_steps = layout(title, "step", height)
    over_steps["xaxis"]["range"] = [0, 1.02 * last_step]  # the same on both charts
    return over_steps
