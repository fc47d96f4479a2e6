"""Every instant at which a run can be killed on purpose has a name, stands in the code, and kills there."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.kill_points import POINTS, VARIABLE

SOURCE = Path(__file__).parent.parent / "src" / "tunesmith"
LOOP = "from tunesmith.kill_points import reached\nfor n in range(3): print(n, flush=True); reached('step.saved')"


def names_in_the_code() -> list[str]:
    calls = [
        node for path in sorted(SOURCE.rglob("*.py")) for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)
    ]
    return [ast.literal_eval(call.args[0]) for call in calls if isinstance(call.func, ast.Name) and call.func.id == "reached" and call.args]


def test_every_point_in_the_code_is_registered_and_every_registered_one_is_in_the_code_once():
    points = [name for name in names_in_the_code() if isinstance(name, str)]
    assert sorted(points) == sorted(POINTS)


@pytest.mark.parametrize(("asked", "seen"), [("step.saved", "0\n"), ("step.saved:3", "0\n1\n2\n")])
def test_a_process_dies_by_sigkill_where_the_environment_asks(asked: str, seen: str):
    done = subprocess.run([sys.executable, "-c", LOOP], env={**os.environ, VARIABLE: asked}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, seen)


@pytest.mark.parametrize("asked", [None, "step.saved:4", "step.begun"])
def test_a_process_lives_on_where_nothing_or_something_else_is_asked(asked: str | None):
    env = {key: value for key, value in os.environ.items() if key != VARIABLE} | ({VARIABLE: asked} if asked else {})
    assert subprocess.run([sys.executable, "-c", LOOP], env=env, capture_output=True, text=True).returncode == 0
