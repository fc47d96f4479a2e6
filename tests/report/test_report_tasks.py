"""Several tasks stand beside their mean, phrasings beside their spread, changes beside their intervals."""

import json

import pytest
from tests.report.made_runs import METRICS, STATUS, Page, run_folder, whole_run

from tunesmith.report.card import write_model_card
from tunesmith.report.page import write_report


def interval(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


SEVERAL = {
    "rows": 600,
    "task": "text",
    "models": {"majority": {"rouge_l": 0.3}, "base": {"rouge_l": 0.05, "loss": 5.0}, "sms": {"rouge_l": 0.35, "loss": 3.0}},
    "tasks": {
        "sst<2>": {
            "rows": 300,
            "kind": "label",
            "majority_share": 0.5,
            "models": {
                "majority": {"accuracy": 0.5, "choice": 0.5},
                "base": {"accuracy": 0.0, "choice": 0.52},
                "sms": {"accuracy": 0.61, "choice": 0.63},
            },
        },
        "copy": {
            "rows": 300,
            "kind": "text",
            "majority_share": 0.01,
            "models": {"majority": {"rouge_l": 0.1}, "base": {"rouge_l": 0.1}, "sms": {"rouge_l": 0.09}},
        },
    },
    "macro": {
        "models": {"majority": {"rouge_l": 0.3}, "base": {"rouge_l": 0.05, "choice": 0.52}, "sms": {"rouge_l": 0.35, "choice": 0.63}},
        "n_tasks": {"choice": 1},
    },
    "differences": {
        "sms": {
            "base": {
                "overall": {"rouge_l": interval(0.3, 0.26, 0.341), "loss": interval(-2, -2.1, -1.9)},
                "macro": {"rouge_l": interval(0.3, 0.25, 0.35), "choice": interval(0.11, 0.04, 0.18)},
                "tasks": {
                    "sst<2>": {"accuracy": interval(0.61, 0.55, 0.67), "choice": interval(0.11, 0.04, 0.18)},
                    "copy": {"rouge_l": interval(-0.01, -0.03, 0.012)},
                },
            }
        }
    },
    "phrasings": {
        "texts": {"sst<2>": ["Good or <b>bad</b>?"], "copy": ["Say it again."]},
        "models": {
            "base": {"rouge_l": {"values": [0.05, 0.03], "mean": 0.04, "min": 0.03, "max": 0.05, "sd": 0.014}},
            "sms": {"rouge_l": {"values": [0.35, 0.31], "mean": 0.33, "min": 0.31, "max": 0.35, "sd": 0.028}},
        },
        "tasks": {"sst<2>": {"sms": {"accuracy": {"values": [0.61, 0.57], "mean": 0.59, "min": 0.57, "max": 0.61, "sd": 0.0283}}}},
        "consistent": {"base": 0.9, "sms": 0.625},
    },
}


def test_changes_stand_beside_their_intervals_and_tasks_beside_their_mean(tmp_path):
    page = Page(write_report(run_folder(tmp_path, status=STATUS, metrics=METRICS, evaluation=SEVERAL)))
    assert page.open == []
    assert "rouge_l 0.05 → 0.35 in the mean over 2 tasks, change +0.30 [+0.25, +0.35]" in page.text
    assert "+0.300 [+0.260, +0.341]" in page.text  # all rows
    assert "−2.000 [−2.100, −1.900]" in page.text
    for row in ("sst<2>300accuracy0.5000.0000.610+0.610 [+0.550, +0.670]", "sst<2>300choice0.5000.5200.630+0.110 [+0.040, +0.180]",
                "copy300rouge_l0.1000.1000.090−0.010 [−0.030, +0.012]", "mean over 2 tasksrouge_l0.3000.0500.350",
                "mean over 1 taskchoice"):  # fmt: skip
        assert row in page.text, row
    written = (tmp_path / "sms" / "report.html").read_text()
    assert '<td class="better">+0.610 [' in written
    assert "<td>−0.010 [" in written  # an interval around zero is neither better nor worse
    unchanged = {"sms": {"base": {"overall": {"rouge_l": interval(0, 0, 0)}}}}
    (tmp_path / "sms" / "evaluation.json").write_text(json.dumps({**SEVERAL, "differences": unchanged}))
    assert "(no row changed)" in Page(write_report(tmp_path / "sms")).text


def test_the_chart_of_tasks_holds_both_scores_and_the_interval_of_the_change_and_no_markup(tmp_path):
    page = Page(write_report(run_folder(tmp_path, status=STATUS, metrics=METRICS, evaluation=SEVERAL)))
    chart = page.charts["task-chart"]
    drawn = {trace["name"]: trace for trace in chart["data"]}
    assert drawn["base"]["x"] == [0.0, 0.1]
    assert drawn["tuned"]["x"] == [0.61, 0.09]
    assert drawn["majority"]["x"] == [0.5, 0.1]
    assert drawn["tuned"]["error_x"]["arrayminus"] == pytest.approx([0.06, 0.02])
    assert drawn["tuned"]["error_x"]["array"] == pytest.approx([0.06, 0.022])
    assert chart["layout"]["yaxis"]["ticktext"] == ["sst·2·, accuracy", "copy, rouge_l"]


def test_rows_that_a_limit_left_out_are_told(tmp_path):
    folder = whole_run(tmp_path)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").write_text(json.dumps(evaluation | {"rows": 40, "rows_given": 1300}))
    assert "on 40 of 1,300 test rows (evaluation.limit)" in Page(write_report(folder)).text
    assert "On 40 of 1,300 test rows (evaluation.limit); bold" in write_model_card(folder).read_text()


def test_phrasings_are_shown_with_their_spread(tmp_path):
    page = Page(write_report(run_folder(tmp_path, status=STATUS, metrics=METRICS, evaluation=SEVERAL)))
    assert "sms, rouge_l0.3500.3100.3300.3100.3500.028" in page.text
    assert "sms answers 62% of the rows alike under all phrasings" in page.text
    assert "Good or <b>bad</b>?" in page.text  # as text
    assert "sms, accuracy0.6100.5700.5900.5700.6100.028" in page.text


def test_figures_of_tasks_that_are_broken_do_not_stop_the_page(tmp_path):
    broken = {
        **SEVERAL,
        "tasks": {"a": None, "b": {"models": {"sms": 3}}},
        "differences": {"sms": []},
        "phrasings": {"models": {"sms": [1]}},
    }
    assert Page(write_report(run_folder(tmp_path, evaluation=broken))).open == []
