"""Several processes, one step: what each computes is added up, never averaged; what ends one of them ends all.

    torchrun --nproc-per-node 2 -m tunesmith train sms.yaml

    start(limit_seconds=600)                 # join the others; nothing at all where this process is alone
    with ending_together():                  # the first error of any process is the error of all
        found = from_first(lambda: look())   # one looks, the others are told
        sum_gradients(parameters)            # the loss was divided by the trained tokens of all ranks before the backward pass,
                                             # so the ranks' gradients are parts of one sum (FAILURES 7)

Tensors travel through torch's process group, words through its key-value store. A collective waits at most `limit_seconds`; for the
first process, which may read data or measure for hours, the others wait in the store for as long as it gives signs of life. Each
process gives one a second from a thread of its own, so that one that was killed, stopped or whose machine is gone is known by rank.
"""

import atexit
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor

from tunesmith import errors
from tunesmith.errors import Interrupted, MachineFailed, TunesmithError

BEAT_SECONDS = 1.0
GONE_SECONDS = 4.0  # without a sign of life: long enough for a busy machine, short enough to name the dead while the job ends
Answer = TypeVar("Answer")


def start(limit_seconds: float = 600.0) -> None:
    """Join the other processes if torchrun started this one; MachineFailed where they do not come within the limit."""
    global _group
    n, mine = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if n == 1 or _group is not None:
        return
    limit = timedelta(seconds=limit_seconds)
    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=max(limit_seconds, 60))))
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=PrefixStore("group", store), rank=mine, world_size=n, timeout=limit)
        _group = _Group(PrefixStore("tunesmith", store), mine, n, limit_seconds)
    except (RuntimeError, ValueError) as error:
        raise MachineFailed(
            f"the {n} processes of this job did not find each other: {str(error).splitlines()[0]}", where=f"rank {mine}",
            fix="start them all with the same torchrun command; each node must reach the first one's --rdzv-endpoint",
        ) from None  # fmt: skip
    atexit.register(stop)


def stop() -> None:
    """Leave the others; the first process, which may hold their store, goes last."""
    global _group
    if _group is None:
        return
    group, _group = _group, None
    group.leave("stopped")
    with suppress(RuntimeError):
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


# --- words --------------------------------------------------------------------------------------------------------------


def from_first(find: Callable[[], Answer]) -> Answer:
    """What the first process finds, in every process; JSON carries it (tuples arrive as lists), in the first one too."""
    if _group is None:
        return find()
    key = _group.next_key("said")
    if _group.rank == 0:
        _group.store.set(key, json.dumps(find()))
    return _group.read(key)  # type: ignore[no-any-return]


def from_all(mine: Any) -> list[Any]:
    """What each process has found, by rank, in every process."""
    if _group is None:
        return [mine]
    key = _group.next_key("each")
    _group.store.set(f"{key}/{_group.rank}", json.dumps(mine))
    return [_group.read(f"{key}/{other}") for other in range(_group.world)]


def in_turn(work: Callable[[], Answer]) -> Answer:
    """The first process alone, then the others: what the first one keeps on the disk, they find."""
    if rank() == 0:
        done = work()
        barrier()
        return done
    barrier()
    return work()


def barrier() -> None:
    """Wait for all, however long one of them works, as long as it lives."""
    from_all(None)


def must_be_equal(what: str, mine: str) -> None:
    """Raises MachineFailed where a process holds something else than the first one."""
    held = from_all(mine)
    if other := [r for r, value in enumerate(held) if value != held[0]]:
        raise MachineFailed(
            f"{what} are not the same in all processes", where=f"rank {other[0]} and rank 0",
            fix="the same files, and the same versions of tunesmith and its libraries, on every node",
        )  # fmt: skip


# --- numbers ------------------------------------------------------------------------------------------------------------


def all_ranks(value: float) -> float:
    """The sum of a number over all processes."""
    return _reduced(value, dist.ReduceOp.SUM)


def largest(value: int) -> int:
    """Of a whole number over all processes."""
    return int(_reduced(value, dist.ReduceOp.MAX))


def _reduced(value: float, how: Any) -> float:
    if not dist.is_initialized():
        return value
    total = torch.tensor(value, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(total, how)
    return float(total)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add every gradient over the processes in one flat message; a process without examples adds zeros.

    Gradients of parameters that are sharded (sharding.py) have been added up in the backward pass.
    """
    trained = [p for p in parameters if not isinstance(p, DTensor)]
    if not dist.is_initialized() or not trained:
        return
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in trained])
    dist.all_reduce(flat)
    start_at = 0
    for parameter in trained:
        piece = flat[start_at : start_at + parameter.numel()].view_as(parameter)
        start_at += parameter.numel()
        if parameter.grad is None:
            parameter.grad = piece.clone()
        else:
            parameter.grad.copy_(piece)


# --- ends ---------------------------------------------------------------------------------------------------------------


@contextmanager
def ending_together() -> Iterator[None]:
    """Whatever ends one process ends all of them with the words of the one that failed first. Blocks may stand inside each other."""
    try:
        yield
    except BaseException as error:
        if _group is None or hasattr(error, "said_by"):
            raise
        ignore_signals()  # torchrun sends them to all as soon as one has ended
        shared = _group.ended(error)
        shared.said_by = _group.first_alive  # type: ignore[attr-defined]
        if shared is error:
            raise
        raise shared from None


def speaks(error: BaseException) -> bool:
    """Whether this process is the one that notes how the job ended: the first, or the first that is left."""
    return rank() == getattr(error, "said_by", 0)


def note_signal() -> None:
    """Ctrl-C or SIGTERM came, and is answered after the step; it may be that torchrun has seen a process die."""
    if _group is not None:
        _group.has_signal = True


def ignore_signals() -> None:
    """From here on this process only says how it ends."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    if _group is not None:
        _group.is_ending = True


def is_ending() -> bool:
    return _group is not None and _group.is_ending


class _Group:
    """This process among the others: the store's keys, and the thread that gives and watches signs of life."""

    def __init__(self, store: Any, rank: int, world: int, limit_seconds: float) -> None:
        self.store, self.rank, self.world, self.limit_seconds = store, rank, world, limit_seconds
        self.n_said: dict[str, int] = {}
        self.is_ending, self.ending = False, threading.Event()
        self.has_signal, self.first_alive = False, 0
        begun = time.monotonic()
        self.heard: dict[int, tuple[str, float]] = {other: ("", begun) for other in range(world) if other != rank}
        self.thread = threading.Thread(target=self._beat, name="tunesmith-heartbeat", daemon=True)
        self.thread.start()

    def next_key(self, kind: str) -> str:
        """All processes ask in the same order, so the same question has the same key."""
        self.n_said[kind] = self.n_said.get(kind, 0) + 1
        return f"{kind}/{self.n_said[kind]}"

    def read(self, key: str) -> Any:
        """Wait for a key for as long as its writer may still write it."""
        pause = 0.001
        while not self._has(key):
            if self.ending.is_set():
                raise MachineFailed("the processes of this job are ending")
            if self._has("failed"):
                raise _Failed
            # a signal may mean that torchrun has seen one die
            if self.silent(GONE_SECONDS if self.has_signal else self.limit_seconds):
                raise _Failed
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return json.loads(self.store.get(key))

    def _has(self, key: str) -> bool:
        return bool(self.store.check([key]))

    def _beat(self) -> None:
        n = 0
        while not self.ending.wait(BEAT_SECONDS):
            n += 1
            with suppress(RuntimeError):  # where the store is gone, whoever waits for something in it is told
                self.store.set(f"alive/{self.rank}", str(n))
                for other in [other for other in self.heard if self._has(f"alive/{other}")]:
                    beat = self.store.get(f"alive/{other}").decode()
                    if beat != self.heard[other][0]:
                        self.heard[other] = (beat, time.monotonic())

    def silent(self, seconds: float) -> list[int]:
        """The others that have given no sign of life for so long, and have not said that they leave."""
        now = time.monotonic()
        quiet = [other for other, (_, at) in self.heard.items() if now - at > seconds]
        return [other for other in quiet if not self._has(f"left/{other}")]

    def leave(self, how: str) -> None:
        """Say goodbye; the first process waits a little for the others, as the store may be its own."""
        with suppress(RuntimeError):
            self.store.set(f"left/{self.rank}", how)
            until = time.monotonic() + (5.0 if self.rank == 0 and not self.is_ending else 0.0)
            while time.monotonic() < until and not all(self._has(f"left/{other}") for other in self.heard):
                time.sleep(0.02)
        self.ending.set()

    def ended(self, error: BaseException) -> BaseException:
        """The error that all processes end with, given the one that this process has met."""
        try:
            self.store.set(f"left/{self.rank}", type(error).__name__)
            if isinstance(error, KeyboardInterrupt):
                told = self._dead()  # torchrun stops the others when one has died, just as a user would
                return error if told is None else self._agreed(told)
            if not self._is_echo(error):
                if not isinstance(error, Interrupted):
                    self._agreed(_as_words(error, self.rank))
                return error
            told = self._told() or self._dead()
            if told is None and self._stopped():
                return KeyboardInterrupt()
            return self._agreed(
                told or _as_words(MachineFailed(f"an exchange between the processes failed: {_first_line(error)}"), self.rank)
            )
        except RuntimeError:  # no store any more
            return MachineFailed("the first process of the job, or the one that launched it, has ended") if self._is_echo(error) else error

    def _agreed(self, told: dict[str, Any]) -> TunesmithError:
        """The error of the process that was first to tell: this one's, if no other was."""
        words = json.loads(self.store.compare_set("failed", "", json.dumps({**told, "said_by": self.first_alive})))
        self.first_alive = words["said_by"]
        return _as_error(words)

    def _is_echo(self, error: BaseException) -> bool:
        """Whether an error here only says that something happened in another process."""
        if isinstance(error, _Failed | dist.DistError):
            return True
        text = str(error)
        of_a_collective = ("gloo", "Connection closed by peer", "Connection reset", "NCCL", "ProcessGroup", "TCPStore", "Timed out waiting")
        return isinstance(error, RuntimeError) and any(words in text for words in of_a_collective)

    def _told(self) -> dict[str, Any] | None:
        """What another process has said of its error."""
        return json.loads(self.store.get("failed")) if self._has("failed") else None

    def _dead(self) -> dict[str, Any] | None:
        """The processes that have ended without a word, or do not answer; one that is merely slow to say goodbye is waited for."""
        until = time.monotonic() + GONE_SECONDS + 2 * BEAT_SECONDS
        while time.monotonic() < until and not self._has("failed"):
            if self.silent(GONE_SECONDS) or all(self._has(f"left/{other}") for other in self.heard):
                break
            time.sleep(0.1)
        if (told := self._told()) is not None:
            return told
        silent = self.silent(GONE_SECONDS)
        if not silent:
            return None
        self.first_alive = min(other for other in range(self.world) if other not in silent)
        named = f"rank{'s' if len(silent) > 1 else ''} {', '.join(map(str, silent))} of {self.world}"
        return _as_words(
            MachineFailed(
                f"a process died or does not answer any more: {named}, heard last {self._ago(silent)} ago", where=named,
                fix="see to that machine (its memory first: the system kills what takes too much)",
            ), self.rank,
        )  # fmt: skip

    def _stopped(self) -> bool:
        """Whether another process left because it was told to stop at once."""
        left = [f"left/{other}" for other in self.heard if self._has(f"left/{other}")]
        return any(self.store.get(key) == b"KeyboardInterrupt" for key in left)

    def _ago(self, others: list[int]) -> str:
        return f"{max(time.monotonic() - self.heard[other][1] for other in others):.0f} s"


class _Failed(Exception):
    """Another process has ended; which way stands in the store."""


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _as_words(error: BaseException, rank: int) -> dict[str, Any]:
    if isinstance(error, TunesmithError):
        return {"kind": type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix, "rank": rank}
    what = f"{type(error).__name__}: {_first_line(error)}"
    return {
        "kind": "TunesmithError",
        "what": what,
        "where": "",
        "fix": "run again with TUNESMITH_TRACEBACK=1 for the whole message",
        "rank": rank,
    }


def _as_error(told: Mapping[str, Any]) -> TunesmithError:
    kind = getattr(errors, told["kind"], MachineFailed)
    made = (kind if kind in (errors.BadInput, errors.GateNotMet) else MachineFailed)(told["what"], told["where"], told["fix"])
    if told["rank"] != 0 and "rank" not in made.what:
        made.where = f"rank {told['rank']}" + (f": {made.where}" if made.where else "")
    return made


_group: _Group | None = None
