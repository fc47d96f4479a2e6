"""How much memory a piece of work takes at its peak, measured in a process of its own.

    found = watched('model = load(sys.argv[1])', setup="from … import load", facts="{'held': size(model)}", arguments=[folder])
    found["grown"], found["held"]

Anonymous memory is counted: what the process allocated, without the files that it has mapped.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

SCRIPT = """
import json, sys, threading, time
from tunesmith import api

def anonymous():
    return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) * 1024

{setup}
before, peak, done = anonymous(), [0], []

def watch():
    while not done:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.0005)

thread = threading.Thread(target=watch)
thread.start()
{work}
done.append(1)
thread.join()
print(json.dumps({{"grown": peak[0] - before, **({facts})}}))
"""


def watched(work: str, *, setup: str, facts: str, arguments: Sequence[str | Path] = ()) -> dict[str, int]:
    """Bytes that anonymous memory grew by at its peak during `work`, after `setup`, and the dict of integers that `facts` makes."""
    script = SCRIPT.format(setup=setup, work=work, facts=facts)
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found
