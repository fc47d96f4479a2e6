"""Two things at once on two cores: a function runs in a forked copy of this process while this one goes on.

    work = beside(lambda: render_all(conversations, renderer, 512), when=len(conversations) >= 5_000)
    …                                   # near duplicates, meanwhile
    seen = work.result()                # what the function returned

A copy needs nothing sent to it, for it has the rows already; only the result comes back. Where there is no fork, for a small job, and
where the copy did not come to its end, the function runs here when its result is asked for: the answer is the same.
"""

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class Beside(Generic[T]):
    """A job that may be under way in a copy of this process."""

    work: Callable[[], T]
    process: BaseProcess | None = None
    receiver: Connection | None = None

    def result(self) -> T:
        if self.process is None or self.receiver is None:
            return self.work()
        try:
            value: T = self.receiver.recv()
        except EOFError:  # the copy was ended, by the memory killer for example
            return self.work()
        finally:
            self.receiver.close()
            self.process.join()
        return value

    def stop(self) -> None:
        """End the copy, if the job is not wanted any more."""
        if self.process is not None and self.process.is_alive():
            self.process.terminate()


def beside(work: Callable[[], T], when: bool) -> Beside[T]:
    """Begin `work` in a copy of this process; in this one, when its result is asked for, unless `when`."""
    if not when or sys.platform in ("win32", "darwin") or (os.cpu_count() or 1) < 2:
        return Beside(work)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that the user started
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        receiver.close()
        sender.send(work())
        sender.close()

    process = context.Process(target=run, daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12 on: the copy uses none of the other threads' locks
        process.start()
    sender.close()
    return Beside(work, process, receiver)
