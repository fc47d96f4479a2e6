"""A child that does one piece of work and may be killed: forked, so that importing torch is paid once for hundreds of runs.

    end = in_child(lambda: api.train(run), log, kill_at="step.saved:3")      # or kill_after=0.21 seconds
    end.killed, end.code, end.said

The parent must have one thread: a fork copies only the one that calls it, and locks that others hold stay locked for ever.
"""

import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import TunesmithError
from tunesmith.kill_points import VARIABLE

HUNG_SECONDS = 120.0


@dataclass(frozen=True)
class End:
    """How a child ended: by SIGKILL, or with a code and all that it printed."""

    killed: bool
    code: int
    seconds: float
    said: str


def in_child(work: Callable[[], object], log: Path, kill_at: str | None = None, kill_after: float | None = None) -> End:
    """Run `work` in a child until it ends, until it reaches a kill point, or for `kill_after` seconds."""
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        _work_and_exit(work, log, kill_at)
    status = _wait(child, kill_after if kill_after is not None else HUNG_SECONDS)
    seconds = time.monotonic() - begun
    said = log.read_text(encoding="utf-8", errors="replace")
    if kill_after is None and seconds > HUNG_SECONDS:
        raise TimeoutError(f"a run hung for {seconds:.0f} s:\n{said}")
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return End(killed, 0 if killed else os.waitstatus_to_exitcode(status), seconds, said)


def _wait(child: int, seconds: float) -> int:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _work_and_exit(work: Callable[[], object], log: Path, kill_at: str | None) -> None:
    code = 1
    try:
        to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(to, 1)
        os.dup2(to, 2)
        os.environ.pop(VARIABLE, None)
        if kill_at is not None:
            os.environ[VARIABLE] = kill_at
        work()
        code = 0
    except TunesmithError as error:
        os.write(2, f"{error}\n".encode())
        code = error.exit_code
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)
