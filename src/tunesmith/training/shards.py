"""Tensors of which every process holds some rows: on the disk, and whole again.

    write(folder, "model", tensors, rank=0, world=2)          # model.rank0of2.safetensors; the first one model.shards.json too
    stored = Stored(folder, "model")                          # the files of any number of processes, or one file of whole tensors
    stored.shapes["lm_head.weight"]; stored.rows("lm_head.weight", 0, 24_576)
    copy_stored(stored, parameters)                           # each parameter, sharded over any number of processes or not
    whole = on_first(tensor)                                  # one tensor to the first process; None in the others

The index holds the full shape of each tensor and which rows lie in whose file; plain tensors, which all processes hold, lie in the
first one's. So a checkpoint of 2 processes is read by 4 or by 1, each reading the rows that it needs. torch's own distributed
checkpoints keep their index in a pickle, and files that someone else may have changed are never unpickled here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from tunesmith.errors import BadInput
from tunesmith.files import read_json, write_json, write_tensors


def is_sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def rows_of(n_rows: int, rank: int, world: int) -> tuple[int, int]:
    """First row of a process's part, and the one after its last: equal parts, the last ones shorter or empty (torch.chunk's rule)."""
    each = -(-n_rows // world)
    return min(rank * each, n_rows), min((rank + 1) * each, n_rows)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def file_name(name: str, rank: int, world: int) -> str:
    return f"{name}.rank{rank}of{world}.safetensors"


def write(folder: Path, name: str, tensors: Mapping[str, Tensor], rank: int, world: int) -> list[str]:
    """This process's rows, synced; returns the names of the files."""
    held = {key: local(t) for key, t in tensors.items() if rank == 0 or isinstance(t, DTensor)}
    write_tensors(folder / file_name(name, rank, world), {key: t for key, t in held.items() if t.numel() > 0 or not t.ndim})
    if rank != 0:
        return [file_name(name, rank, world)]
    index = {
        key: {
            "shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch."),
            "rows": [list(rows_of(t.shape[0], r, world)) for r in range(world)] if isinstance(t, DTensor) else None,
        }
        for key, t in tensors.items()
    }  # fmt: skip
    write_json(folder / f"{name}.shards.json", {"processes": world, "tensors": index})
    return [file_name(name, rank, world), f"{name}.shards.json"]


class Stored:
    """Tensors on the disk by name, however many processes wrote them; nothing is read before it is asked for."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, whole = folder, folder / f"{name}.safetensors"
        self.open_files: dict[str, Any] = {}
        self.parts: dict[str, list[tuple[str, int, int]]] = {}  # file, first row in the whole tensor, the one after its last
        self.shapes: dict[str, tuple[int, ...]] = {}
        if whole.is_file():
            file = self._file(whole.name)
            for key in file.keys():  # noqa: SIM118 - not a dict
                self.shapes[key] = tuple(file.get_slice(key).get_shape())
                self.parts[key] = [(whole.name, 0, self.shapes[key][0] if self.shapes[key] else 1)]
            return
        index = read_json(folder / f"{name}.shards.json")
        for key, facts in index["tensors"].items():
            self.shapes[key] = tuple(facts["shape"])
            rows = facts["rows"] or [[0, facts["shape"][0] if facts["shape"] else 1]]
            self.parts[key] = [(file_name(name, r, index["processes"]), begin, end) for r, (begin, end) in enumerate(rows)]

    def _file(self, name: str) -> Any:
        if name not in self.open_files:
            self.open_files[name] = safe_open(self.folder / name, "pt")
        return self.open_files[name]

    def rows(self, key: str, begin: int, end: int) -> Tensor:
        """Rows begin … end of a tensor, wherever they lie; of a single number, the number."""
        if not self.shapes[key]:
            number: Tensor = self._file(self.parts[key][0][0]).get_tensor(key)
            return number
        found = []
        for name, first, after in self.parts[key]:
            low, high = max(begin, first), min(end, after)
            if low < high:
                found.append(self._file(name).get_slice(key)[low - first : high - first])
        if not found:  # of a tensor so short that some processes hold nothing of it
            name, first, _ = self.parts[key][0]
            found = [self._file(name).get_slice(key)[:0]]
        return found[0] if len(found) == 1 else torch.cat(found)

    def whole(self, key: str) -> Tensor:
        shape = self.shapes[key]
        return self.rows(key, 0, shape[0] if shape else 1)

    def like(self, key: str, tensor: Tensor) -> Tensor:
        """Sharded as `tensor` is, if it is; a number, such as a count of steps, is whole everywhere."""
        if not isinstance(tensor, DTensor) or not self.shapes[key]:
            return self.whole(key)
        rows = self.rows(key, *rows_of(tensor.shape[0], dist.get_rank(), dist.get_world_size())).to(tensor.device)
        return DTensor.from_local(rows, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride())


@torch.no_grad()
def copy_stored(stored: Stored, parameters: Mapping[str, Tensor]) -> None:
    """Read every parameter; BadInput where the stored tensors are others."""
    if stored.shapes != {name: tuple(p.shape) for name, p in parameters.items()}:
        raise BadInput(
            "the checkpoint holds other tensors than this run trains",
            where=str(stored.folder),
            fix="restore config.yaml, or start a new run",
        )
    for name, parameter in parameters.items():
        local(parameter).copy_(local(stored.like(name, parameter)))


def on_first(tensor: Tensor) -> Tensor | None:
    """The whole tensor in the first process, on the CPU; None in the others, which give their rows. All must call it, in one order."""
    if not isinstance(tensor, DTensor):
        return tensor.detach().to("cpu") if not dist.is_initialized() or dist.get_rank() == 0 else None
    rank, world = dist.get_rank(), dist.get_world_size()
    each, mine = -(-tensor.shape[0] // world), tensor.to_local().detach()
    padded = mine.new_zeros(each, *tensor.shape[1:])
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in range(world)] if rank == 0 else None
    dist.gather(padded, parts, dst=0)
    if parts is None:
        return None
    return torch.cat([part.to("cpu") for part in parts])[: tensor.shape[0]]


def send_rows(whole: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """This process's rows of a tensor that the first one holds. All must call it, in one order."""
    rank, world = dist.get_rank(), dist.get_world_size()
    each = -(-shape[0] // world)
    n_bytes = torch.empty(each, *shape[1:], dtype=dtype, device="meta").nbytes
    parts = None
    if rank == 0:
        assert whole is not None
        parts = [_bytes(whole[slice(*rows_of(shape[0], r, world))].to(device), n_bytes) for r in range(world)]
    mine = torch.empty(n_bytes, dtype=torch.uint8, device=device)
    dist.scatter(mine, parts, src=0)
    begin, end = rows_of(shape[0], rank, world)
    return mine.view(dtype).view(each, *shape[1:])[: end - begin]


def send_whole(whole: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A copy of a tensor that the first process holds. All must call it, in one order."""
    n_bytes = torch.empty(shape, dtype=dtype, device="meta").nbytes
    flat = torch.empty(n_bytes, dtype=torch.uint8, device=device) if whole is None else _bytes(whole.detach().to(device), n_bytes)
    if n_bytes:
        dist.broadcast(flat, 0)
    return flat.view(dtype).view(shape)


def _bytes(tensor: Tensor, n_bytes: int) -> Tensor:
    """As bytes, which every backend can carry whatever the dtype, with zeros up to their number."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return flat if flat.numel() == n_bytes else torch.cat([flat, flat.new_zeros(n_bytes - flat.numel())])
