"""What long work says."""

import pytest

from tunesmith import progress as module
from tunesmith.progress import clock, counted, progress, upto


def test_a_count_of_what_is_done_moves_the_bar_by_what_is_new(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PLAIN_EVERY_SECONDS", 0.0)
    with progress("answers", 10) as bar:
        reached = upto(bar)
        reached(4)
        reached(10)
    said = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in said] == ["answers: row 4 of 10", "answers: row 10 of 10"]


def test_one_of_a_thing_is_not_several():
    assert [counted(n, "step") for n in (0, 1, 2, 1200)] == ["0 steps", "1 step", "2 steps", "1,200 steps"]


def test_clock():
    assert [clock(seconds) for seconds in (5, 65, 7260)] == ["0:05", "1:05", "2:01:00"]
