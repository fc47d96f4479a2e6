"""Our kernels as operations of torch: one name, a way to do it on each device, and shapes for those who only plan.

    rmsnorm = operation("rmsnorm(Tensor x, …) -> (Tensor, Tensor)", work, shapes)       # torch.ops.tunesmith.rmsnorm

What torch sees by name it can count: a rehearsal (planning/) runs steps on tensors that have shapes and no memory, and there `shapes`
answers. They have no derivative of their own: each is called within an autograd function that knows its backward pass.
"""

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("tunesmith", "DEF")  # type: ignore[no-untyped-call]


def operation(schema: str, work: Callable[..., Any], shapes: Callable[..., Any]) -> Any:
    """work: on real tensors of any device; shapes: new tensors like its answers, which are no views of what it gets."""
    name = schema.partition("(")[0]
    _library.define(schema)  # type: ignore[no-untyped-call]
    for device in ("CPU", "CUDA"):
        _library.impl(name, work, device)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"tunesmith::{name}", shapes, lib=_library)
    return getattr(torch.ops.tunesmith, name).default
