"""Which tensors are alive, when, and how many bytes they take: every storage that an operation makes or reads, until it is freed.

    with Account() as account:
        train(run)
    account.peak_bytes

It sees real tensors and those of a rehearsal (rehearsal.py) alike, which is how the plan is tested: the same account of both. What an
operation needs inside itself, and memory that the allocator keeps, is no tensor and not in it.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Event:
    """A storage comes (bytes above zero) or goes; `phase`: what the work called itself at that moment."""

    storage: int
    bytes: int
    phase: str


class Account(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every tensor storage within the block. run: how an operation is done; by default as it is."""

    def __init__(self, run: Callable[[Any, Any, Any], Any] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = ""
        self.live_bytes = self.peak_bytes = 0
        self.events: list[Event] = []
        self._run = run or (lambda operation, args, kwargs: operation(*args, **kwargs))
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}  # address → the storage there and its number
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = self._run(func, args, kwargs)
        for tensor in tensors_in(args, *kwargs.values(), result):
            self.number_of(tensor)
        return result

    def number_of(self, tensor: Tensor) -> int:
        """The number of a tensor's storage, which is noted if it was not known."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        known = self._known.get(address)
        if known is not None and known[0]() is not None:
            return known[1]
        self._count += 1
        # what is on no device has no memory, whatever its storage says: a model is built of such tensors before its weights are read
        number, n_bytes = self._count, 0 if tensor.device.type == "meta" else storage.nbytes()

        def gone(reference: Any) -> None:
            if (held := self._known.get(address)) is not None and held[0] is reference:
                del self._known[address]
            self._note(number, -n_bytes)

        self._known[address] = (weakref.ref(storage, gone), number)
        self._note(number, n_bytes)
        return number

    def hold(self, tensors: Iterable[Tensor]) -> set[int]:
        """Numbers of the storages of these tensors, which are part of the account from now on."""
        return {self.number_of(tensor) for tensor in tensors}

    def _note(self, number: int, n_bytes: int) -> None:
        self.live_bytes += n_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self.events.append(Event(number, n_bytes, self.phase))


def peaks(events: Iterable[Event], kind_of: Callable[[int, str], str]) -> dict[str, dict[str, int]]:
    """For each phase the bytes alive by kind at the moment when most were alive.

    kind_of   storage and the phase in which it came → kind
    """
    kinds: dict[int, str] = {}
    live: dict[str, int] = {}
    most: dict[str, int] = {}
    found: dict[str, dict[str, int]] = {}
    total = 0
    for event in events:
        if event.bytes >= 0 and event.storage not in kinds:
            kinds[event.storage] = kind_of(event.storage, event.phase)
        kind = kinds[event.storage]
        live[kind] = live.get(kind, 0) + event.bytes
        total += event.bytes
        if total > most.get(event.phase, -1):
            most[event.phase] = total
            found[event.phase] = dict(live)
    return found


def tensors_in(*values: Any) -> Iterator[Tensor]:
    """Every tensor of an operation's arguments or results, also inside lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(*value)
