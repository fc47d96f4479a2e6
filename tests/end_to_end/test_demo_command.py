"""The tour a newcomer takes: `make torture` runs it, as it takes a minute or two."""

from pathlib import Path

import pytest

from tunesmith.demo import TASKS, run_demo
from tunesmith.runs import RunFolder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_adapters_learn_their_tasks_and_the_base_knows_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run_demo(tmp_path / "demo")
    for task, metric in zip(TASKS, ("f1_spam", "f1_macro", "valid_json"), strict=True):
        models = RunFolder(tmp_path / "demo" / task).evaluation()["models"]
        assert models[task][metric] > 0.8 > 0.3 > models["base"][metric]
        assert (tmp_path / "demo" / task / "report.html").stat().st_size > 100_000
    assert "one base, three adapters" in capsys.readouterr().out
