"""One self-contained page: sections, tables and charts that ask no network for anything.

    charts = {"loss": {"data": [...], "layout": layout("loss", "step", height=340)}}           # plotly's own words
    write_page(path, document("sms", ["<h1>sms</h1>", section("Learning", figure("loss", "Loss over steps."))], charts))

Text of other people goes through html.escape before it comes here; what the charts draw is JSON in which no < survives; and the
page's own policy forbids it every request, so that text cannot load anything. A page with charts holds the chart library (5 MB).
"""

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tunesmith.files import write_text

STYLE = """
:root {
  color-scheme: light dark;
  --text: #1c2024; --soft: #60666d; --line: #d9dde1; --card: #f5f6f8; --page: #fff; --good: #12733a; --bad: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root { --text: #e8eaed; --soft: #9aa2ab; --line: #3a4047; --card: #1e2226; --page: #14171a; --good: #6fd08c; --bad: #ff8a80; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; font: 16px/1.5 system-ui, sans-serif; }
body { color: var(--text); background: var(--page); overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 .6rem; font-size: 1.2rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem; }
figure { margin: 0 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1.2rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
pre { margin: .5rem 0; padding: .7rem .9rem; background: var(--card); border-radius: .4rem; white-space: pre-wrap; font-size: .875rem; }
summary { cursor: pointer; color: var(--soft); }
.verdict { margin: .4rem 0 1rem; font-size: 1.25rem; font-weight: 600; }
.note, .source, figcaption { color: var(--soft); font-size: .875rem; }
.chart { width: 100%; }
.wide { overflow-x: auto; }
.scores { overflow-wrap: normal; }
.scores th, .scores td { white-space: nowrap; }
.scores th:not(:first-child), .scores td { text-align: right; }
.scores tbody th, .facts th { font-weight: 400; }
.scores tbody th.long { white-space: normal; overflow-wrap: anywhere; min-width: 9rem; }
.facts th { color: var(--soft); max-width: 15rem; overflow-wrap: break-word; }
.better { color: var(--good); }
.worse { color: var(--bad); }
.mark { font-weight: 600; white-space: nowrap; }
ul { padding-left: 1.2rem; font-variant-numeric: tabular-nums; }
article { margin: 0 0 1rem; padding: .7rem .9rem; background: var(--card); border-radius: .4rem; break-inside: avoid; }
article pre { padding: 0; margin: .2rem 0 .6rem; background: none; }
dl { display: grid; grid-template-columns: minmax(4.5rem, max-content) 1fr; gap: .25rem 1rem; margin: 0; }
dt { color: var(--soft); max-width: 10rem; }
dd { margin: 0; white-space: pre-wrap; min-width: 0; }
@media (max-width: 30rem) { .scores { font-size: .875rem; } th, td { padding-right: .7rem; } }
@media print {
  :root { --text: #000; --soft: #444; --line: #bbb; --card: #f5f6f8; --page: #fff; --good: #12733a; --bad: #b3261e; }
  body { max-width: none; padding: 0; font-size: 12px; }
  figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""

# Charts take the paper's width when printed, and folded text is unfolded.
SCRIPT = """
const charts = JSON.parse(document.getElementById("charts").textContent);
const options = {responsive: true, displayModeBar: false};
for (const [id, chart] of Object.entries(charts)) Plotly.newPlot(id, chart.data, chart.layout, options);
matchMedia("print").addEventListener("change", () => { for (const id in charts) Plotly.Plots.resize(id); });
addEventListener("beforeprint", () => { for (const fold of document.querySelectorAll("details")) fold.open = true; });
"""

BLUE, ORANGE, GREY = "#3987e5", "#e8710a", "#8a8f95"  # each at least 3:1 against both the white and the dark page


def write_page(path: Path, text: str) -> Path:
    """Whoever reads meanwhile sees the old page or the new one."""
    write_text(path, re.sub("[\ud800-\udfff]", "\ufffd", text))  # a model may emit half a character
    return path


def document(title: str, sections: Sequence[str], charts: Mapping[str, Any]) -> str:
    """The page. sections: HTML, empty ones are left out; charts: plotly's data and layout by the id of their figure."""
    scripts = ""
    if charts:
        from plotly.offline import get_plotlyjs

        data = f'<script type="application/json" id="charts">{script_json(charts)}</script>'
        scripts = f"{data}\n<script>{get_plotlyjs()}</script>\n<script>{SCRIPT}</script>"
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} · tunesmith</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{chr(10).join(section for section in sections if section)}
</main>
{scripts}
</body>
</html>
"""


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element: no < or > in it could end the element or open a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII, so U+2028 is escaped already
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def section(title: str, body: str, fallback: str = "") -> str:
    body = body or (f'<p class="note">{escape(fallback)}</p>' if fallback else "")
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


def table(css: str, rows: Sequence[tuple[str, str]]) -> str:
    body = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>\n' for name, value in rows)
    return f'<div class="wide"><table class="{css}">\n{body}</table></div>' if rows else ""


def bullets(css: str, lines: Sequence[str]) -> str:
    return f'<ul class="{css}">\n' + "".join(f"<li>{escape(line)}</li>\n" for line in lines) + "</ul>\n" if lines else ""


def figure(identifier: str, caption: str) -> str:
    return f'<figure>\n<div class="chart" id="{identifier}"></div>\n<figcaption>{escape(caption)}</figcaption>\n</figure>'


def layout(title: str, x_title: str, height: int) -> dict[str, Any]:
    """A chart's layout in the page's manner; `title` names the vertical axis."""
    grid = "rgba(128,128,128,0.25)"
    axis = {"gridcolor": grid, "linecolor": grid, "zeroline": False, "automargin": True}
    return {
        "height": height,
        "margin": {"l": 10, "r": 10, "t": 40, "b": 10},
        "paper_bgcolor": "rgba(0,0,0,0)",  # the page shows through, light or dark
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": GREY, "family": "system-ui, sans-serif", "size": 13},
        "hovermode": "closest",
        "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"},
        "title": {"text": title, "x": 0, "xref": "container", "xanchor": "left", "y": 0.98, "yanchor": "top", "font": {"size": 13}},
        "xaxis": axis | {"title": {"text": x_title, "font": {"size": 13}}},
        "yaxis": dict(axis),
    }
