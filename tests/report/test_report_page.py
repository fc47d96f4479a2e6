"""The page of a run says what it learned, on what and how, shows text of others as text, and loads nothing."""

import json
import re

import pytest
import yaml
from tests.report.made_runs import ATTACK, EVALUATION, METRICS, RUN, STATUS, Page, run_folder, whole_run

from tunesmith.errors import BadInput
from tunesmith.page import script_json
from tunesmith.report.card import write_model_card
from tunesmith.report.page import write_report


def test_the_page_says_what_was_learned_on_what_and_how(tmp_path):
    page = Page(write_report(whole_run(tmp_path)))
    assert page.open == []  # well-formed
    for fact in (
        "f1_spam 0.00 → 0.95 on 1,034 test rows",
        "LoRA, rank 8, alpha 16, on all-linear",
        "4,096 of 65,536 (6.25 %)",
        "3 of 3, best at 2",
        "4 min 1 s",
        "1,000 tokens/s",
        "2 MiB",
        "sms.tsv: TSV with the columns label, text",
        "3,722",
        "ab" * 32,
        "A 8×256 + B 256×8",
        "tunesmith train sms.yaml",
        "2.13.0",
        "8.00 GiB",
        "about 10 × the rate",
        "max_grad_norm: 1.0",
    ):
        assert fact in page.text, fact


def test_the_table_shows_the_best_in_bold_and_the_change(tmp_path):
    html = write_report(whole_run(tmp_path)).read_text(encoding="utf-8")
    row = {line.split("</th>")[0].split(">")[-1]: line for line in html.splitlines() if line.startswith('<tr><th scope="row">')}
    assert row["f1_spam"].endswith('<td>0.000</td><td>0.000</td><td><strong>0.950</strong></td><td class="better">+0.950</td></tr>')
    # lower is better for the loss, and the majority baseline has none
    assert row["loss"].endswith('<td>–</td><td>7.000</td><td><strong>0.100</strong></td><td class="better">−6.900</td></tr>')


def test_sample_answers_are_marked_right_or_wrong(tmp_path):
    text = " ".join(Page(write_report(whole_run(tmp_path))).text.split())
    assert "expectedspam base✗ wrong the man sms✓ right spam" in text


def test_json_answers_are_right_whatever_the_order_of_their_keys(tmp_path):
    samples = [{"prompt": "?", "reference": '{"a": 1, "b": 2}', "answers": {"sms": '{"b": 2, "a": 1}'}}]
    folder = run_folder(tmp_path, evaluation=EVALUATION | {"task": "json"}, samples=samples)
    assert "✓ right" in Page(write_report(folder)).text


def test_the_charts_hold_the_recorded_numbers(tmp_path):
    charts = Page(write_report(whole_run(tmp_path))).charts
    loss, validation = charts["loss-chart"]["data"]
    assert (loss["x"], loss["y"]) == ([1, 2], [2.5, 1.5])
    assert (validation["x"], validation["y"]) == ([2], [1.25])
    assert charts["rate-chart"]["data"][0]["y"] == [1e-3, 5e-4]
    assert charts["loss-chart"]["layout"]["shapes"][0]["x0"] == 2


def test_a_step_run_again_after_a_resume_counts_once_and_long_runs_are_averaged(tmp_path):
    steps = [{"step": step, "loss": 9.0} for step in range(1, 11)] + [{"step": step, "loss": 2.0} for step in range(1, 6001)]
    lines = Page(write_report(run_folder(tmp_path, metrics=steps))).charts["loss-chart"]["data"]
    assert [line["name"] for line in lines] == ["loss, mean of 4 steps", "mean of 204 steps"]
    assert len(lines[0]["x"]) == 1500
    assert lines[0]["x"][-1] == 6000
    assert set(lines[0]["y"]) == set(lines[1]["y"]) == {2.0}


def test_the_page_loads_nothing(tmp_path):
    path = write_report(whole_run(tmp_path))
    page = Page(path)
    assert page.loads == []
    assert len(page.scripts) == 3  # the data, the chart library once, six lines of ours
    assert "default-src 'none'" in path.read_text(encoding="utf-8")


def test_text_of_others_stays_text(tmp_path):
    status = STATUS | {
        "state": "interrupted",
        "command": ATTACK,
        "resume_command": ATTACK,
        "version": ATTACK,
        "machine": {ATTACK: ATTACK},
        "data": {"said": [ATTACK], "counts": {ATTACK: ATTACK}, "files": {ATTACK: ATTACK}},
        "arithmetic": [ATTACK],
        "learning_rate_reason": ATTACK,
        "best_step": ATTACK,
    }
    metrics = [*METRICS, {"step": 3, "loss": ATTACK, "learning_rate": 0.0, ATTACK: 1}, {"step": ATTACK, "loss": 1.0}]
    evaluation = {"rows": 2, "task": "text", "models": {"base": {ATTACK: 0.5}, ATTACK: {ATTACK: 1.0, "token_f1": ATTACK}}}
    samples = [{"source": ATTACK, "prompt": ATTACK + "x" * n, "reference": ATTACK, "answers": {ATTACK: ATTACK}} for n in (0, 5000)]
    folder = run_folder(tmp_path, status=status, metrics=metrics, evaluation=evaluation, samples=samples)
    (folder / "config.yaml").write_text(yaml.safe_dump(RUN | {"model": ATTACK}))

    page = Page(write_report(folder))
    assert page.open == []
    assert page.loads == []
    assert len(page.scripts) == 3
    assert page.text.count('<script>alert("x")</script>') > 15
    assert page.charts["loss-chart"]["data"][0]["y"] == [2.5, 1.5]

    card = write_model_card(folder).read_text(encoding="utf-8")
    assert "<script>" not in card.replace(f"```\n{ATTACK}\n```", "").split("\n---\n", 1)[1]


def test_data_in_a_script_cannot_end_it():
    text = script_json({"name": "</script><!-- & \u2028"})
    assert not re.search("[<>&\u2028]", text)
    assert json.loads(text) == {"name": "</script><!-- & \u2028"}
    with pytest.raises(ValueError):
        script_json(float("nan"))


def test_a_run_of_which_only_the_config_is_left_gets_a_page_and_a_card(tmp_path):
    folder = run_folder(tmp_path)
    page = Page(write_report(folder))
    assert "Nothing was measured yet." in page.text
    assert page.scripts == []  # no charts, no chart library
    assert "not measured on test rows" in write_model_card(folder).read_text()


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("failed", "The run failed at step 2 of 9."),
        ("interrupted", "The run was interrupted at step 2 of 9."),
        ("running", "The run is under way"),
    ],
)
def test_an_unfinished_run_says_so(tmp_path, state, sentence):
    status = STATUS | {"state": state, "step": 2, "steps": 9}
    page = Page(write_report(run_folder(tmp_path, status=status, metrics=METRICS)))
    assert sentence in page.text
    assert ("tunesmith resume runs/sms" in page.text) == (state != "running")


def test_without_test_rows_the_losses_speak(tmp_path):
    assert "validation loss 1.250 → 1.250; no answers were measured" in Page(write_report(run_folder(tmp_path, metrics=METRICS))).text


def test_half_a_line_and_numbers_that_are_not_finite_are_left_out_and_told(tmp_path):
    metrics = '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n{"step": 3, "lo'
    folder = run_folder(tmp_path, metrics=metrics, evaluation=[])
    (folder / "evaluation.json").write_text("{broken")
    page = Page(write_report(folder))
    assert "metrics.jsonl: 1 line not readable, the first at metrics.jsonl:3" in page.text
    assert "evaluation.json: not readable" in page.text
    assert page.charts["loss-chart"]["data"][0]["y"] == [2.0]


def test_half_a_character_does_not_stop_the_page(tmp_path):
    folder = run_folder(tmp_path, samples=[{"prompt": "p", "reference": "r", "answers": {"sms": "\ud83d"}}])
    assert "\ufffd" in Page(write_report(folder)).text


def test_a_folder_without_a_config_is_no_run_folder(tmp_path):
    for write in (write_report, write_model_card):
        with pytest.raises(BadInput, match="no run folder"):
            write(tmp_path)


@pytest.mark.parametrize("write", [write_report, write_model_card])
def test_every_count_is_said_once_and_in_words(tmp_path, write):
    text = write(whole_run(tmp_path)).read_text(encoding="utf-8").split("config.yaml, every default")[0]
    assert text.count("rained tokens per epoch") == 1
    assert not re.search("duplicates_dropped|overlap_removed|tokens_per_epoch|left_out_by_limit", text)


def test_the_rate_is_named_once_under_its_chart(tmp_path):
    text = Page(write_report(whole_run(tmp_path))).text
    assert "Learning rate 0.0014: LoRA takes about 10 × the rate of full fine-tuning." in text
    assert "Learning rate. learning rate" not in text


def test_what_the_run_was_computed_with_stands_on_the_page(tmp_path):
    status = STATUS | {
        "base": {"fingerprint": "ab12"},
        "environment": {"code": "cd34", "versions": {"tunesmith": "0.1.0", "numpy": "2.4.6"}, "variables": {"OMP_NUM_THREADS": "1"}},
        "changed": ["threads: 2 → 1"],
    }
    text = " ".join(Page(write_report(run_folder(tmp_path, status=status))).text.split())
    assert text.count("tunesmith0.1.0") == 1
    for fact in ("numpy2.4.6", "OMP_NUM_THREADS1", "codecd34", "fingerprint of the baseab12", "changed meanwhilethreads: 2 → 1"):
        assert fact in text, fact
