"""What a long job says while it works: a moving bar on a terminal, a plain line now and then elsewhere.

    with progress("training", total=300, unit="step") as bar:
        bar.advance(1, "loss 0.31")

Everything goes to standard error; standard output is for results that a program may read.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

PLAIN_EVERY_SECONDS = 10.0


def say(text: str) -> None:
    """One line for the reader, to standard error; of several processes, which all say the same, the first one's."""
    if not is_first():
        return
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def is_first() -> bool:
    """Whether this process speaks for those that torchrun started with it; alone it does."""
    return os.environ.get("RANK", "0") == "0"


def is_silent(error: BaseException | None) -> bool:
    """Whether another process says an error: the one that speaks for all where all know it, else the first of each machine."""
    said_by = getattr(error, "said_by", None)
    if said_by is not None:
        return str(said_by) != os.environ.get("RANK", "0")
    return os.environ.get("LOCAL_RANK", "0") != "0"


class Bar(Protocol):
    def advance(self, n: int, note: str = "") -> None: ...


def upto(bar: Bar) -> Callable[[int], None]:
    """For work that says how much is done rather than how much more."""
    seen = 0

    def reached(n: int) -> None:
        nonlocal seen
        bar.advance(n - seen)
        seen = n

    return reached


class _Silent:
    def advance(self, n: int, note: str = "") -> None: ...


class _Plain:
    def __init__(self, title: str, total: int, unit: str, done: int) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, done
        self.at_start = done  # a resumed run's speed is that of its own steps
        self.begun = self.said = time.monotonic()

    def advance(self, n: int, note: str = "") -> None:
        self.done += n
        now = time.monotonic()
        if now - self.said >= PLAIN_EVERY_SECONDS or (self.done >= self.total and self.said > self.begun):
            self.said = now
            left = (now - self.begun) / (self.done - self.at_start) * (self.total - self.done)
            say(f"{self.title}: {self.unit} {self.done:,} of {self.total:,}{', ' + note if note else ''}, {clock(left)} left")


@contextmanager
def progress(title: str, total: int, unit: str = "row", done: int = 0) -> Iterator[Bar]:
    """A bar for `total` units of work of which `done` are behind us; without a title (all processes but the first) it is silent."""
    if not title or not is_first():
        yield _Silent()
        return
    if not sys.stderr.isatty():
        yield _Plain(title, total, unit, done)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=total, completed=done, note="")

        class Rich:
            def advance(self, n: int, note: str = "") -> None:
                bars.update(task, advance=n, note=note)

        yield Rich()


def counted(n: int, thing: str) -> str:
    """ "1 step", "1,200 steps"."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def clock(seconds: float) -> str:
    """1:05 or 2:01:00."""
    whole = int(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
