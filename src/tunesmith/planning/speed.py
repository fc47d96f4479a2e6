"""How fast this machine computes, tried for half a second, and how long work would take it.

    speed = measure(torch.bfloat16, torch.device("cpu"), width=576)
    seconds(step.work, speed)

A step is matrix products, attention, passes over memory and the calls themselves: each kind has a rate of its own, tried on tensors of
the size that a step has. (The rate of products alone would be far off: on a CPU that multiplies bfloat16 in hardware they are a third
of a small model's step.)
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention, silu

from tunesmith.kernels.causal_attention import causal_attention, causal_attention_backward
from tunesmith.model.layers import is_fast
from tunesmith.planning.rehearsal import Work
from tunesmith.quant.scheme import find_scheme
from tunesmith.quant.tensor import dequantize_into, quantize

TRIAL_SECONDS = 0.03  # of each kind
ROWS = 1024
CALLS = 4  # of this kind that a call takes when modules and functions of Python stand around it


@dataclass(frozen=True)
class Speed:
    """Amounts a second: floating-point operations of products and attention by dtype, bytes of passes, weights de-quantised, calls."""

    rates: Mapping[str, float]

    @property
    def products(self) -> float:
        return max(rate for name, rate in self.rates.items() if name.startswith("products"))


def given(tflops: float) -> Speed:
    """That of a machine of which only the rate of products is known."""
    return Speed({f"{what} {dtype}": tflops * 1e12 for what in ("products", "attention") for dtype in ("bfloat16", "float32")})


def measure(dtype: torch.dtype, device: torch.device, width: int) -> Speed:
    """width: of the model, as narrow products are slower."""
    name, width = str(dtype).removeprefix("torch."), min(max(64, width), 4096)
    x, w = torch.ones(ROWS, width, dtype=dtype, device=device), torch.ones(4 * width, width, dtype=dtype, device=device)
    y = x @ w.T
    rates = {f"products {name}": 2 * y.numel() * width / _time(lambda: torch.mm(x, w.T, out=y), device)}
    if dtype != torch.float32:
        x32, w32 = x.float(), w[:width].float()
        rates["products float32"] = 2 * x32.numel() * width / _time(lambda: x32 @ w32.T, device)
    heads = max(1, width // 64)
    q = torch.ones(2, heads, 256, 64, dtype=dtype, device=device, requires_grad=True)
    q_MHD, starts = q.detach().transpose(1, 2).flatten(0, 1), torch.tensor([0, 256, 512], dtype=torch.int32)

    def attention() -> None:
        if device.type == "cpu" and dtype == torch.bfloat16 and is_fast(64):
            out_MHD, lse = causal_attention(q_MHD, q_MHD, q_MHD, starts, 0.125)
            causal_attention_backward(out_MHD, q_MHD, q_MHD, q_MHD, out_MHD, lse, starts, 0.125)
        else:
            scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()  # type: ignore[no-untyped-call]

    rates[f"attention {name}"] = 7 * 2 * heads * 256 * 256 * 64 / _time(attention, device)
    rates.setdefault("attention float32", rates[f"attention {name}"])
    rates["passes"] = 3 * y.nbytes / _time(lambda: y + y, device)
    rates["slow passes"] = 2 * y.nbytes / _time(lambda: silu(y), device)
    small = torch.ones(8, device=device, requires_grad=True)  # a call that autograd takes part in, as most do
    rates["calls"] = 1 / _time(lambda: small + small, device) / CALLS
    codes, out = quantize(w[:width].float(), find_scheme("nf4", 32)), torch.empty_like(w[:width])
    rates["de-quantised"] = out.numel() / _time(lambda: dequantize_into(codes, out), device)
    return Speed(rates)


def seconds(work: Work, speed: Speed) -> float:
    """Of work, one kind after another; a kind that was not tried takes no time."""
    return sum(amount / speed.rates.get(measure, math.inf) for (_, measure), amount in work.items())


def _time(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one go, the fastest of several: other work on the machine only ever adds."""
    work()
    best, ends = math.inf, time.perf_counter() + TRIAL_SECONDS
    while True:
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        best = min(best, now - begun)
        if now > ends:
            return best
