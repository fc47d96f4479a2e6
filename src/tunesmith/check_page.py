"""What was found in data, to look at: a report of the checks in, one self-contained page out.

    write_check(report, Path("check.html"), "sms.yaml")

The findings with their lines come first, worst first; then how long prompts and answers are, how often each label occurs, and how many
messages a conversation has. Rows are other people's text: what the page shows of them goes through html.escape, secrets are masked already.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data.checks.check import Report
from tunesmith.data.checks.finding import SEVERITIES, Finding
from tunesmith.page import BLUE, GREY, ORANGE, document, figure, layout, section, table, write_page
from tunesmith.progress import counted

MOST_LINES = 50  # of a finding; all of them are in the JSON
BINS = 48
PART_COLOURS = {"train": BLUE, "validation": GREY, "test": ORANGE}
WORDS = {"error": "training would stop, or a rule of yours is broken", "warning": "worth mending", "note": "good to know"}
MARKS = {"error": "worse", "warning": "mark", "note": "note"}  # classes of page.py's style


def write_check(report: Report, path: Path, name: str) -> Path:
    return write_page(path, page(report, name))


def page(report: Report, name: str) -> str:
    charts: dict[str, Any] = {}
    for side, sizes in report.lengths.items():
        if sizes and max(sizes) > 0:
            charts[f"length-{side}"] = lengths_chart(
                sizes, f"{report.unit} of the {side}", report.limit if side in ("example", "text") else None
            )
    if report.labels:
        charts["labels"] = labels_chart(report.labels)
    if len(report.turns) > 1:
        charts["turns"] = turns_chart(report.turns)
    rows = [*((f"{part} rows", f"{n:,}") for part, n in report.rows.items()), *(("recognised", line) for line in report.said),
            *(("not looked at", line) for line in report.not_done)]  # fmt: skip
    sections = [
        f"<h1>What is in the data: {escape(Path(name).name)}</h1>",
        f'<p class="verdict">{escape(verdict(report))}</p>',
        table("facts", rows),
        *(findings_section(report, severity) for severity in SEVERITIES),
        section("Lengths", "".join(figure(at, caption(side, sizes, report)) for side, sizes in report.lengths.items() if (at := f"length-{side}") in charts)),
        section("Labels", figure("labels", "Share of the rows of each part that have a label.") + labels_table(report)) if report.labels else "",
        section("Turns", figure("turns", "Messages in a conversation, the system message counted.")) if "turns" in charts else "",
        '<noscript><p class="note">The charts need JavaScript; tunesmith check --json has the findings.</p></noscript>',
    ]  # fmt: skip
    return document(f"check of {Path(name).name}", sections, charts)


# --- words and tables ---------------------------------------------------------------------------------------------------------


def verdict(report: Report) -> str:
    """The whole report in one sentence."""
    counts = [counted(len(found), severity) for severity in SEVERITIES if (found := report.of(severity))]
    n_rows = counted(sum(report.rows.values()), "row")
    return f"{', '.join(counts)} in {n_rows}" if counts else f"nothing to complain about in {n_rows}"


def findings_section(report: Report, severity: Any) -> str:
    found = report.of(severity)
    title = {"error": "Errors", "warning": "Warnings", "note": "Notes"}[severity]
    return section(title, f'<p class="note">{escape(WORDS[severity])}</p>' + "".join(map(article, found))) if found else ""


def article(finding: Finding) -> str:
    """One finding: what, why, what to do, and its lines behind a fold."""
    head = f'<span class="{MARKS[finding.severity]}">{counted(finding.count, "row")}</span> · {escape(finding.check)}'
    lines = [
        f"{escape(source)}{f'  <span class=note>{escape(seen)}</span>' if seen else ''}"
        for source, seen in zip(finding.sources[:MOST_LINES], [*finding.seen, *[""] * MOST_LINES])
    ]
    more = (
        f"\n… and {len(finding.sources) - MOST_LINES:,} more: tunesmith check --json lists all" if len(finding.sources) > MOST_LINES else ""
    )
    shown = "\n".join(lines[:3])
    folded = "\n".join(lines[3:]) + more
    places = f"<pre>{shown}</pre>" if lines else ""
    if len(lines) > 3:
        places += f"<details><summary>{len(finding.sources) - 3:,} more</summary><pre>{folded}</pre></details>"
    facts = f"<dl><dt>reason</dt><dd>{escape(finding.reason)}</dd><dt>fix</dt><dd>{escape(finding.fix)}</dd></dl>"
    return f"<article><div>{head}</div>{facts}{places}</article>"


def caption(side: str, sizes: Sequence[int], report: Report) -> str:
    low, middle, high = (int(value) for value in np.percentile(sizes, (5, 50, 95)))
    limit = f" Examples may have {report.limit:,} tokens." if report.limit is not None and side == "example" else ""
    return f"Half of the {side}s have at most {middle:,} {report.unit}; nine in ten have {low:,} to {high:,}; the longest has {max(sizes):,}.{limit}"


def labels_table(report: Report) -> str:
    parts = list(report.labels)
    names = list(dict.fromkeys(label for counts in report.labels.values() for label in counts))
    head = "".join(f"<th>{escape(part)}</th>" for part in parts)
    body = "".join(
        f'<tr><th scope="row">{escape(label)}</th>{"".join(f"<td>{report.labels[part].get(label, 0):,}</td>" for part in parts)}</tr>\n'
        for label in names
    )
    return f'<div class="wide"><table class="scores"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


# --- charts -------------------------------------------------------------------------------------------------------------------


def lengths_chart(sizes: Sequence[int], title: str, limit: int | None) -> dict[str, Any]:
    """A histogram up to the length of all but the longest 1 in 200; those are the last bar, so that one long row does not flatten the rest."""
    values = np.asarray(sizes)
    low, top = int(values.min()), int(values.max())
    high = int(np.percentile(values, 99.5))
    over = limit is not None and top > limit
    if over and limit is not None:
        high = max(high, min(top, int(1.1 * limit)))
    step = max(1, -(-(high + 1 - low) // BINS))
    starts = np.arange(low, high + 1, step)
    counts = np.bincount(np.minimum((values - low) // step, len(starts) - 1), minlength=len(starts))
    words = [f"{a:,}" if step == 1 else f"{a:,} to {a + step - 1:,}" for a in starts.tolist()]
    if top > starts[-1] + step - 1:
        words[-1] = f"{int(starts[-1]):,} and longer, up to {top:,}"
    drawn = layout("rows", title, height=260)
    drawn["bargap"] = 0.05
    if high - low < 12:
        drawn["xaxis"] |= {"dtick": 1}  # there is no half of a token
    if over:
        drawn["shapes"] = [
            {
                "type": "line",
                "x0": limit,
                "x1": limit,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"color": ORANGE, "width": 2, "dash": "dot"},
            }
        ]
        words_at = {"x": limit, "y": 1, "yref": "paper", "xanchor": "left", "xshift": 4}
        drawn["annotations"] = [{**words_at, "text": f"limit {limit:,}", "showarrow": False, "font": {"color": ORANGE}}]
    bars = {
        "type": "bar", "x": (starts + (step - 1) / 2).tolist(), "y": counts.tolist(), "width": step, "text": words, "textposition": "none",
        "marker": {"color": BLUE}, "hovertemplate": "%{text}: %{y:,} rows<extra></extra>", "showlegend": False,
    }  # fmt: skip
    return {"data": [bars], "layout": drawn}


def labels_chart(labels: dict[str, dict[str, int]]) -> dict[str, Any]:
    names = list(dict.fromkeys(label for counts in labels.values() for label in counts))[:30]
    shown = [escape(name if len(name) <= 30 else name[:29] + "…") for name in names]  # plotly reads some HTML in texts
    shown = [f"{text} ({n})" if shown.count(text) > 1 else text for n, text in enumerate(shown, 1)]  # bars of one name would be one bar
    data = []
    for part, counts in labels.items():
        total = max(sum(counts.values()), 1)
        data.append({
            "type": "bar", "orientation": "h", "name": part, "y": shown, "x": [100 * counts.get(name, 0) / total for name in names],
            "customdata": [counts.get(name, 0) for name in names], "marker": {"color": PART_COLOURS.get(part, GREY)},
            "hovertemplate": "%{y}: %{x:.1f} % (%{customdata:,} rows)<extra>" + part + "</extra>",
        })  # fmt: skip
    drawn = layout("", "% of the rows", height=90 + (18 + 8 * len(labels)) * len(names))
    drawn["yaxis"] |= {"autorange": "reversed", "type": "category"}
    drawn["barmode"] = "group"
    return {"data": data, "layout": drawn}


def turns_chart(turns: dict[int, int]) -> dict[str, Any]:
    drawn = layout("rows", "messages in a conversation", height=240)
    drawn["xaxis"] |= {"dtick": max(1, max(turns) // 20)}
    bars = {
        "type": "bar", "x": list(turns), "y": list(turns.values()), "marker": {"color": BLUE},
        "hovertemplate": "%{x} messages: %{y:,} rows<extra></extra>", "showlegend": False,
    }  # fmt: skip
    return {"data": [bars], "layout": drawn}
