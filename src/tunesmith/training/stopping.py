"""How a run ends before its end: a signal after this step, a second one at once, an error; whatever it is stands in its status.

with signals() as stop, end_noted(folder, stop):
    stop.patient = True                  # from here on the steps look at stop.asked themselves
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from tunesmith.errors import Interrupted, MachineFailed, TunesmithError
from tunesmith.progress import say
from tunesmith.runs import RunFolder, now
from tunesmith.training import checkpoint, distributed

TORCHRUN_SECONDS = 3.0  # one Ctrl-C reaches a process twice: from the terminal, and from torchrun, which passes its own on


class Stop:
    """asked: a signal came. patient: the steps look for it themselves. hurried: KeyboardInterrupt was raised. ending: no more is heeded."""

    asked = patient = hurried = ending = False
    asked_at = 0.0


@contextmanager
def signals() -> Iterator[Stop]:
    """Ctrl-C and SIGTERM ask for a stop after the current step; the second one, or one where there is no step to end, stops at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.ending or distributed.is_ending():
            return
        if stop.asked and distributed.world() > 1 and time.monotonic() - stop.asked_at < TORCHRUN_SECONDS:
            return
        if stop.asked or not stop.patient:
            stop.asked = stop.hurried = True
            raise KeyboardInterrupt
        stop.asked, stop.asked_at = True, time.monotonic()
        if distributed.world() > 1:
            distributed.note_signal()
            return  # whichever it was, the end says it
        with suppress(RuntimeError):  # the signal came in the middle of another line to the same stream
            say("stopping after this step and saving; once more stops at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items() if not distributed.is_ending() else ():
            signal.signal(number, handler)


@contextmanager
def end_noted(folder: RunFolder, stop: Stop) -> Iterator[None]:
    """Whatever ends the run stands in its status; a stop after a step has already said so itself."""
    try:
        yield
    except Interrupted:
        raise
    except BaseException as error:
        # a library may have made another error of our KeyboardInterrupt
        at_once = isinstance(error, KeyboardInterrupt) or (stop.hurried and not hasattr(error, "said_by"))
        if at_once:
            stop.ending = True
            if folder.status().get("state") == "trained":
                raise unmeasured(folder) from None
        if isinstance(error, MachineFailed) and hasattr(error, "said_by") and folder.resume_command not in error.fix:
            error.fix += f", then {folder.resume_command}"
        problem = error.what if isinstance(error, TunesmithError) else str(error).strip().split("\n")[0] or type(error).__name__
        ended = {"state": "interrupted", "problem": None} if at_once else {"state": "failed", "problem": problem}
        if distributed.speaks(error):
            with suppress(MachineFailed):  # where the disk is full, what is being raised says so
                folder.set_status(**ended, resume_command=folder.resume_command, ended=now())
        if not at_once:
            raise
        raise stopped_at_once(folder) from None


def stopped_at_once(folder: RunFolder) -> Interrupted:
    """What is said where a step was not waited for."""
    saved = what_is_saved(folder)
    again = "" if checkpoint.steps_of(folder.checkpoints) else ", so it begins again"
    return Interrupted(f"stopped at once; {saved}{again}", where=str(folder.path), fix=folder.resume_command)


def what_is_saved(folder: RunFolder) -> str:
    """In words, for the end of a sentence about what went wrong."""
    kept = [step for step, _ in checkpoint.steps_of(folder.checkpoints)]
    return f"the steps up to {kept[-1]:,} are saved" if kept else "nothing was saved yet"


def unmeasured(folder: RunFolder) -> Interrupted:
    """What is said where Ctrl-C comes after the last step; `resume` measures and reports."""
    return Interrupted("training is finished and saved; measuring was stopped", where=str(folder.path), fix=folder.resume_command)
