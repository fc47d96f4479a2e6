"""Several processes, one step: what each computes is added up, never averaged.

    torchrun --nproc-per-node 2 -m tunesmith train sms.yaml

The loss of a step is divided by the trained tokens of all ranks before the backward pass, so the ranks' gradients are parts
of one sum (FAILURES 7).
"""

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn


def start() -> None:
    """Join the other processes if torchrun started this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def all_ranks(value: float) -> float:
    """The sum of a number over all processes."""
    if not dist.is_initialized():
        return value
    total = torch.tensor(value, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(total)
    return float(total)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add every gradient over the processes in one flat message; a process without examples adds zeros."""
    if not dist.is_initialized():
        return
    trained = list(parameters)
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
