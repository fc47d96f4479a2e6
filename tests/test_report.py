import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.config import Run, to_yaml
from tunesmith.errors import BadInput
from tunesmith.page import script_json
from tunesmith.report import write_model_card, write_report

RUN = {"model": "acorn", "method": "lora", "output": "runs/sms", "data": {"train": "sms.tsv", "test": 0.2}, "lora": {"rank": 8}}
STATUS = {
    "state": "done",
    "step": 3,
    "steps": 3,
    "seconds": 241.3,
    "command": "tunesmith train sms.yaml",
    "resume_command": "tunesmith resume runs/sms",
    "version": "0.1.0",
    "machine": {"cpu": "two cores", "memory_bytes": 8 * 2**30, "torch": "2.13.0"},
    "data": {
        "said": ["sms.tsv: TSV with the columns label, text"],
        "counts": {
            "read": 5574,
            "skipped": 0,
            "duplicates_dropped": 403,
            "overlap_removed": 0,
            "left_out_by_limit": 1,
            "train": 3722,
            "validation": 414,
            "test": 1034,
            "trained_tokens_per_epoch": 7444,
            "tokens_per_epoch": 99999,
        },
        "files": {"sms.tsv": "ab" * 32},
    },
    "arithmetic": ["256×256 = 65,536 frozen; A 8×256 + B 256×8 = 4,096 trained (6.25 %)"],
    "learning_rate_reason": "learning rate 0.0014: LoRA takes about 10 × the rate of full fine-tuning",
    "best_step": 2,
    "parameters": {"trained": 4096, "total": 65536},
}
METRICS = [
    {"step": 1, "loss": 2.5, "learning_rate": 1e-3, "tokens_per_second": 900.0, "peak_memory_bytes": 2**20},
    {"step": 2, "loss": 1.5, "learning_rate": 5e-4, "tokens_per_second": 1100.0, "peak_memory_bytes": 2**21},
    {"step": 2, "validation_loss": 1.25},
]
EVALUATION = {
    "rows": 1034,
    "task": "label",
    "models": {
        "majority": {"accuracy": 0.87, "f1_ham": 0.93, "f1_spam": 0.0},
        "base": {"accuracy": 0.1, "f1_ham": 0.2, "f1_spam": 0.0, "loss": 7.0},
        "sms": {"accuracy": 0.99, "f1_ham": 0.99, "f1_spam": 0.95, "loss": 0.1},
    },
}
SAMPLES = [
    {"source": "sms.tsv:4", "prompt": "Spam or ham?\n\nYou WON!", "reference": "spam", "answers": {"base": "the man", "sms": "spam\n"}},
]


def run_folder(tmp_path: Path, **files: Any) -> Path:
    """A run folder named sms with config.yaml and the given files: dicts as .json, lists as .jsonl, text as it is."""
    folder = tmp_path / "sms"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(Run.model_validate(RUN)))
    for name, content in files.items():
        if isinstance(content, str):
            (folder / f"{name}.jsonl").write_text(content)
        elif isinstance(content, list):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        else:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def whole_run(tmp_path: Path) -> Path:
    return run_folder(tmp_path, status=STATUS, metrics=METRICS, evaluation=EVALUATION, samples=SAMPLES)


class Page(HTMLParser):
    """Visible text, the attributes that could load something, and the content of each script."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.loads, self.scripts, self.open = "", [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.open.append(tag) if tag not in ("meta", "br") else None
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.scripts += [""] if tag == "script" else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.text += data

    @property
    def charts(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


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


ATTACK = '</script></pre></title><script>alert("x")</script><img src=x onerror=alert(1)> & \'"'


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


def test_the_model_card_states_facts_and_what_is_not_known(tmp_path):
    card = write_model_card(whole_run(tmp_path)).read_text(encoding="utf-8")
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "base_model": "acorn",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["tunesmith", "lora"],
    }
    for fact in (
        "# sms",
        "f1_spam 0.00 → 0.95 on 1,034 test rows",
        "- method: LoRA, rank 8, alpha 16, on all-linear",
        "| f1_spam | 0.000 | 0.000 | **0.950** |",
        "- rows read: 5,574\n- skipped: could not be read: 0\n- dropped: equal to an earlier row: 403\n",
        "- left out by data.limit: 1\n- training rows: 3,722\n",
        "- trained tokens per epoch: 7,444\n",
        f"- sms.tsv: sha256 {'ab' * 32}",
        "```\ntunesmith train sms.yaml\n```",
        "- tunesmith: 0.1.0",
        "- licence of the training data: not stated",
    ):
        assert fact in body, fact


def test_the_model_card_of_a_full_run_on_a_local_folder_keeps_the_path_to_itself(tmp_path):
    folder = whole_run(tmp_path)
    (folder / "config.yaml").write_text(yaml.safe_dump(RUN | {"method": "full", "model": str(tmp_path / "my-base")}))
    card = write_model_card(folder).read_text(encoding="utf-8")
    assert "base_model: my-base\nlibrary_name: transformers\n" in card
    assert "- base model: my-base (a local folder)" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize("write", [write_report, write_model_card])
def test_every_count_is_said_once_and_in_words(tmp_path, write):
    text = write(whole_run(tmp_path)).read_text(encoding="utf-8").split("config.yaml, every default")[0]
    assert text.count("rained tokens per epoch") == 1
    assert not re.search("duplicates_dropped|overlap_removed|tokens_per_epoch|left_out_by_limit", text)


def test_the_rate_is_named_once_under_its_chart(tmp_path):
    text = Page(write_report(whole_run(tmp_path))).text
    assert "Learning rate 0.0014: LoRA takes about 10 × the rate of full fine-tuning." in text
    assert "Learning rate. learning rate" not in text


@pytest.mark.parametrize(("state", "unknown"), [("trained", False), ("done", False), ("interrupted", True)])
def test_how_a_run_would_have_ended_is_unknown_only_if_it_did_not(tmp_path, state, unknown):
    card = write_model_card(run_folder(tmp_path, status=STATUS | {"state": state})).read_text(encoding="utf-8")
    assert ("how it would have ended" in card) == unknown


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own
def test_the_card_opens_the_adapter_in_peft(tmp_path):
    """PEFT alone would look for "acorn" on the hub."""
    from transformers import AutoModelForCausalLM

    peft = pytest.importorskip("peft", reason="peft is not installed")
    import tunesmith
    from tunesmith.config import LoraConfig
    from tunesmith.model.adapters import adapter_parameters, attach, save_adapter

    folder = whole_run(tmp_path)
    model = tunesmith.load("acorn", dtype="float32").loaded.model
    attach(model, "sms", config := LoraConfig(rank=2, targets=["q_proj"]), seed=0)
    for parameter in adapter_parameters(model, "sms").values():
        parameter.data.fill_(0.01)  # an adapter that learned nothing is not saved
    save_adapter(model, "sms", folder / "adapter", {}, "acorn", config)
    card = write_model_card(folder).read_text(encoding="utf-8")
    code = card.partition("or with PEFT:\n\n```\n")[2].partition("\n```")[0]
    names: dict[str, Any] = {}
    exec(code.replace('"adapter"', repr(str(folder / "adapter"))), names)
    assert isinstance(names["model"], peft.PeftModel)
    assert isinstance(names["base"], type(AutoModelForCausalLM.from_pretrained(tunesmith.model.load.ACORN)))


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
