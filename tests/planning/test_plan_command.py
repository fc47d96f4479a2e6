"""`tunesmith plan`: a table for people, JSON for programs (test_plan.py), errors with what, where and fix."""

import json
import sys

import pytest

from tunesmith import cli


@pytest.fixture
def plan(tmp_path, monkeypatch, capsys):
    """Runs the command on a small config; returns its exit code, standard output and standard error."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"a b c {n}", "completion": "d"}) + "\n" for n in range(20)), encoding="utf-8")
    path = tmp_path / "job.yaml"
    path.write_text(f"model: acorn\ndata: {{train: {rows}}}\ntraining: {{epochs: 1}}\noutput: {tmp_path / 'run'}\n", encoding="utf-8")

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["tunesmith", "plan", str(path), *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    return command


def test_the_table_names_kinds_methods_and_devices(plan, tmp_path):
    code, shown, _ = plan("--devices", "2x24", "--price-per-hour", "2")
    assert code == 0
    for word in (
        "weights",
        "optimizer",
        "activations",
        "peak",
        "time of 2 steps",
        "cost",
        "2 x 24 GB",
        "full",
        "qlora",
        "lora fits 2 x 24 GB",
    ):
        assert word in shown, word
    assert not (tmp_path / "run").exists()  # nothing is written


def test_errors_have_a_place_and_a_remedy(plan):
    code, _, told = plan("--devices", "H100")
    assert code == 2
    assert told.startswith('error: "H100" is no device')
    assert "where: --devices H100" in told
    assert "fix: " in told
