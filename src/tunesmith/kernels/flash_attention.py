"""The contract of causal_attention.py on a GPU: torch's own flash attention for documents of any lengths side by side.

Called by causal_attention.py with tensors that `suits`. The two operations of torch are those that torch.nn.attention.varlen.varlen_attn
stands on (torch 2.10 and later); called directly, the forward pass hands out the sums of its softmaxes and the backward pass is a function of
its own, as our fused layers need both. It adds the gradients of queries up in no fixed order: two runs differ in their last bits.
"""

from functools import cache

import torch
from torch import Tensor

MOST_HEAD_WIDTH = 256


@cache
def is_at_hand(head_width: int) -> bool:
    """Whether this GPU and this build of torch have it for heads of such a width."""
    return (
        head_width % 8 == 0
        and head_width <= MOST_HEAD_WIDTH
        and torch.cuda.is_available()
        and torch.cuda.get_device_capability() >= (8, 0)
        and torch.backends.cuda.is_flash_attention_available()
        and _works(head_width)
    )


@torch.no_grad()
def _works(head_width: int) -> bool:
    """A few tokens there and back, two heads to a key: what a build of torch cannot do is known before a layer relies on it."""
    query_MHD, key_MGD = (torch.ones(5, n, head_width, dtype=torch.bfloat16, device="cuda") for n in (2, 1))
    starts = torch.tensor([0, 2, 5], dtype=torch.int32, device="cpu")
    try:
        out_MHD, lse_HM = forward(query_MHD, key_MGD, key_MGD, starts, 0.1, 0)
        gradients = backward(out_MHD, query_MHD, key_MGD, key_MGD, out_MHD, lse_HM, starts, 0.1, 0)
        return lse_HM.shape == (2, 5) and all(x.shape == y.shape for x, y in zip(gradients, (query_MHD, key_MGD, key_MGD), strict=True))
    except RuntimeError:
        return False


def suits(*tensors: Tensor) -> bool:
    return all(t.is_cuda and t.dtype in (torch.bfloat16, torch.float16) and t.stride(-1) == 1 for t in tensors) and is_at_hand(
        tensors[0].shape[-1]
    )


def forward(query_MHD: Tensor, key_MGD: Tensor, value_MGD: Tensor, starts: Tensor, scale: float, window: int) -> tuple[Tensor, Tensor]:
    there, longest = on_device(starts, query_MHD.device)
    out_MHD, lse_HM, *_ = torch.ops.aten._flash_attention_forward(
        query_MHD, key_MGD, value_MGD, there, there, longest, longest, 0.0, True, False, scale=scale, window_size_left=_left(window),
        window_size_right=0,
    )  # fmt: skip
    return out_MHD, lse_HM


def backward(
    d_out_MHD: Tensor, query_MHD: Tensor, key_MGD: Tensor, value_MGD: Tensor, out_MHD: Tensor, lse_HM: Tensor, starts: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    there, longest = on_device(starts, query_MHD.device)
    no_dropout = torch.empty(2, dtype=torch.uint64, device=query_MHD.device)  # the state of its generator
    dq, dk, dv = torch.ops.aten._flash_attention_backward(
        d_out_MHD, query_MHD, key_MGD, value_MGD, out_MHD, lse_HM, there, there, longest, longest, 0.0, True, no_dropout, no_dropout.new_empty(0),
        scale=scale, window_size_left=_left(window), window_size_right=0,
    )  # fmt: skip
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


def _left(window: int) -> int:
    """Tokens before its own that each one sees; -1: all."""
    return window - 1 if window else -1


def on_device(starts: Tensor, device: torch.device) -> tuple[Tensor, int]:
    """`starts` on the device, and the length of the longest document: made at the first call of a batch, noted on it for all layers.

    The lengths are known to the processor, so nobody waits for the GPU.
    """
    noted: tuple[Tensor, int] | None = getattr(starts, "_tunesmith_there", None)
    if noted is None or noted[0].device != device:
        there = starts.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else starts.to(device)
        noted = starts._tunesmith_there = there, int(starts.diff().max())  # type: ignore[attr-defined]
    return noted
