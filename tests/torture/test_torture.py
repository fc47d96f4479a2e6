"""The short form of `make torture`: every kill point once and a few random times, on LoRA runs that are measured at their end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("torture.py")


def torture(*options: str) -> str:
    """The harness as a process of its own: it forks, which a process with threads must not."""
    done = subprocess.run([sys.executable, HARNESS, *options], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.timeout(900)  # forty runs: two minutes on a machine with much else to do
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a kill is SIGKILL here, and a run a fork")
def test_a_run_killed_at_every_named_point_goes_on_to_the_same_bits():
    said = torture("--short", "--times", "0", "--random", "3", "--peer", "0")
    n_kills = int(said.split("kills: ")[1].split(",")[0])
    assert n_kills >= 36
    assert said == f"kills: {n_kills}, lost: 0, unresumable: 0, bit-identical: {n_kills}"
