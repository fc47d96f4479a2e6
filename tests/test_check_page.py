"""The page of a check: what it says, what it draws, and that other people's text stays text."""

import json
import re
from pathlib import Path

from tunesmith.check_page import labels_chart, lengths_chart, page, verdict, write_check
from tunesmith.config import DataConfig
from tunesmith.data.checks.check import Report, check, open_files
from tunesmith.data.checks.finding import Finding

EVIL = "<script>alert(1)</script>"


def charts_of(html: str) -> dict[str, dict]:
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', html, re.S)
    return json.loads(found[1]) if found else {}


def report_of(rows: list[dict[str, str]], tmp_path: Path, **settings: object) -> Report:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config = DataConfig(train=str(path), **settings)
    return check(open_files(config), config)


def finding(n: int = 3, severity: str = "warning") -> Finding:
    sources = tuple(f"t.jsonl:{k}" for k in range(1, n + 1))
    return Finding("echo", severity, n, sources, f"reason {EVIL}", f"fix {EVIL}", tuple(f"seen {k} {EVIL}" for k in range(min(n, 50))))


def test_the_page_holds_every_finding_with_its_first_lines_and_all_charts(tmp_path: Path):
    rows = [{"prompt": f"question {n} about thing {n * 7}", "completion": "yes" if n % 9 else "no"} for n in range(90)]
    rows[5] = dict(rows[4])
    report = report_of(rows, tmp_path, test=0.2)
    html = write_check(report, tmp_path / "check.html", "rows.jsonl").read_text(encoding="utf-8")
    for found in report.findings:
        assert found.check in html and all(source in html for source in found.sources[:3])
    charts = charts_of(html)
    assert set(charts) == {"length-prompt", "length-answer", "labels"}
    assert sum(charts["length-prompt"]["data"][0]["y"]) == 90, "every row is in a bar"
    assert charts["labels"]["data"][0]["customdata"] == [80, 10]
    assert html.count('class="chart"') == 3


def test_other_peoples_text_cannot_become_markup():
    report = Report(
        [finding(), finding(80, "error")], [EVIL], {"train": 80}, [EVIL], labels={"train": {EVIL: 3, "b": 4}}, turns={2: 70, 4: 10}
    )
    html = page(report, EVIL)
    assert "<script>alert" not in html and "&lt;script&gt;alert" in html
    assert EVIL not in json.dumps(labels_chart(report.labels)["data"][0]["y"])


def test_many_lines_are_folded_and_the_rest_is_counted():
    html = page(Report([finding(80)], [], {"train": 80}), "t.jsonl")
    assert "<summary>77 more</summary>" in html and "t.jsonl:50" in html and "t.jsonl:51" not in html and "and 30 more" in html


def test_a_report_without_findings_says_so_and_draws_no_empty_chart():
    report = Report([], ["t.jsonl: JSONL, 80 rows"], {"train": 80}, lengths={"prompt": [0] * 80})
    assert verdict(report) == "nothing to complain about in 80 rows"
    html = page(report, "t.jsonl")
    assert charts_of(html) == {} and "<h2>Lengths</h2>" not in html and "<h2>Errors</h2>" not in html


def test_one_long_row_does_not_flatten_the_bars_of_the_others():
    chart = lengths_chart([10 + n % 40 for n in range(1000)] + [50_000], "tokens", limit=None)
    bars = chart["data"][0]
    assert sum(bars["y"]) == 1001 and max(bars["x"]) < 60 and bars["text"][-1].endswith("and longer, up to 50,000")


def test_the_limit_is_drawn_where_rows_exceed_it():
    over, under = (lengths_chart([10, 20, 600], "tokens", limit) for limit in (512, 1024))
    assert over["layout"]["shapes"][0]["x0"] == 512
    assert "shapes" not in under["layout"]


def test_equal_lengths_are_one_bar():
    bars = lengths_chart([7] * 30, "tokens", None)["data"][0]
    assert bars["x"] == [7.0] and bars["y"] == [30]
