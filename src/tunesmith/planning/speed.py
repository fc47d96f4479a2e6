"""How fast this machine computes, tried for half a second, and how long work would take it.

    speed = measure(torch.bfloat16, torch.device("cpu"), width=576, rows=2048)
    seconds(step.work, speed)

A step is matrix products, attention, passes over memory, the calls themselves and what a library compiles: each kind has a rate of its own,
tried on tensors of the size that a step has. (The rate of products alone would be far off: on a CPU that multiplies bfloat16 in hardware they
are a third of a small model's step.)
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from tunesmith.kernels.causal_attention import causal_attention, causal_attention_backward, is_fast
from tunesmith.kernels.rows import gate, rmsnorm
from tunesmith.planning.rehearsal import Work
from tunesmith.quant.scheme import find_scheme
from tunesmith.quant.tensor import dequantize_into, quantize

TRIAL_SECONDS = 0.03  # of each kind
ROUNDS_SECONDS = 0.2
RANK, WIDER = 16, 3  # of the layers that are tried
COLD_BYTES, MOST_LAYERS = 16 << 20, 12
MOST_FLOPS = 5 * 10**10  # of one product: a trial is over in a second
CALLS = 4  # of this kind that a call takes when modules and functions of Python stand around it


@dataclass(frozen=True)
class Speed:
    """Amounts a second: floating-point operations of products and attention by dtype, bytes of passes, weights de-quantised, calls, products compiled."""

    rates: Mapping[str, float]

    @property
    def products(self) -> float:
        return max(rate for name, rate in self.rates.items() if name.startswith("products"))


def given(tflops: float) -> Speed:
    """That of a machine of which only the rate of products is known."""
    return Speed(
        {f"{what} {dtype}": tflops * 1e12 for what in ("products", "weight products", "attention") for dtype in ("bfloat16", "float32")}
    )


def measure(dtype: torch.dtype, device: torch.device, width: int, rows: int) -> Speed:
    """width: of the model; rows: tokens of a micro-batch. Narrow and short products are slower."""
    name, width = str(dtype).removeprefix("torch."), min(max(64, width), 4096)
    wide = WIDER * width if width <= 1024 else width
    rows = max(64, min(rows, 4096, MOST_FLOPS // (2 * width * wide)))
    n = min(MOST_LAYERS, max(3, COLD_BYTES // (4 * rows * wide * dtype.itemsize)))  # layers, whose operands are more than a cache holds

    def several(*shape: int) -> list[Tensor]:  # of numbers as a layer's are: those that overflow would take their own time
        return [torch.linspace(-1, 1, math.prod(shape), device=device).view(shape).div(shape[-1] ** 0.5).to(dtype) for _ in range(n)]

    x, w, a_RK, b_NR, ones = several(rows, width), several(wide, width), several(RANK, width), several(wide, RANK), several(width)
    few = x[0][:RANK]
    call = _time(lambda: few @ a_RK[0].T, device)  # what a product takes beside its work
    rates = {"product calls": 1 / call, "our calls": 1 / _time(lambda: gate("silu", few, few), device)}
    normed, up, low, y, back = several(1), several(1), several(1), several(1), several(1)
    flops, wide_bytes, narrow_bytes = 2.0 * rows * wide * width, rows * wide * dtype.itemsize, rows * width * dtype.itemsize
    # as a layer does them, one after another: the same operation alone, over and over, would look up to twice as fast
    parts: list[tuple[str, float, int, Callable[[int], object]]] = [  # rate, amount, calls of products, work on layer i
        ("our passes", 2 * narrow_bytes, 0, lambda i: _put(normed, i, rmsnorm(x[i], ones[i], 1e-5)[0])),
        (f"products {name}", flops, 1, lambda i: _put(up, i, normed[i] @ w[i].T)),
        ("thin products", narrow_bytes, 1, lambda i: _put(low, i, normed[i] @ a_RK[i].T)),
        ("thin products", 2 * wide_bytes, 1, lambda i: up[i].addmm_(low[i], b_NR[i].T)),
        ("our passes", 3 * wide_bytes, 0, lambda i: _put(y, i, gate("silu", up[i], up[i]))),
        (f"products {name}", flops, 1, lambda i: _put(back, i, y[i] @ w[i])),
        ("passes", 3 * narrow_bytes, 0, lambda i: back[i].add_(x[i])),
        (f"weight products {name}", flops, 1, lambda i: y[i].T @ normed[i]),
        ("thin products", narrow_bytes, 1, lambda i: low[i].T @ normed[i]),
        ("passes", 3 * wide_bytes, 0, lambda i: y[i] + up[i]),
        ("slow passes", 2 * wide_bytes, 0, lambda i: silu(up[i])),
    ]
    spent = _rounds(n, parts, device)
    for rate in dict.fromkeys(kind for kind, *_ in parts):
        mine = [(amount, calls, seconds) for (kind, amount, calls, _), seconds in zip(parts, spent, strict=True) if kind == rate]
        total, calls, seconds = (sum(column) for column in zip(*mine, strict=True))
        rates[rate] = total / max(seconds - calls * call, seconds / 4)
    if dtype != torch.float32:
        x32, w32 = x[0].float(), w[0].float()
        rates["products float32"] = rates["weight products float32"] = flops / _time(lambda: x32 @ w32.T, device)
    rates[f"attention {name}"] = _attention(dtype, device, width)
    rates.setdefault("attention float32", rates[f"attention {name}"])
    large = torch.zeros(2, COLD_BYTES // 8, device=device)
    rates["updates"] = 3 * large[0].nbytes / _time(lambda: large[0].add_(large[1]), device)
    drawn = torch.Generator(device)  # not the one that training draws from
    rates["random numbers"] = up[0].numel() / _time(lambda: up[0].bernoulli_(0.1, generator=drawn), device)
    small = torch.ones(8, device=device, requires_grad=True)  # a call that autograd takes part in, as most do
    rates["calls"] = 1 / _time(lambda: small + small, device) / CALLS
    square = w[0][:width]
    codes, out = quantize(square.float(), find_scheme("nf4", 32)), torch.empty_like(square)
    rates["de-quantised"] = out.numel() / _time(lambda: dequantize_into(codes, out), device)
    if device.type == "cpu" and dtype == torch.bfloat16:
        rates["compilations"] = 1 / _compilation(x[0], w[0], a_RK[0])
    return Speed(rates)


def _put(kept: list[Tensor], i: int, made: Tensor) -> None:
    kept[i] = made


def _rounds(n: int, parts: Sequence[tuple[str, float, int, Callable[[int], object]]], device: torch.device) -> list[float]:
    """Seconds of each part on one layer, on the average of the round in which it was fastest: other work on the machine only ever adds."""
    best, ends = [math.inf] * len(parts), math.inf
    while time.perf_counter() < ends:
        spent = [0.0] * len(parts)
        for i in range(n):
            for k, (_, _, _, work) in enumerate(parts):
                begun = time.perf_counter()
                work(i)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                spent[k] += time.perf_counter() - begun
        if ends == math.inf:
            ends = time.perf_counter() + ROUNDS_SECONDS  # the first round compiles
            continue
        best = [min(a, b / n) for a, b in zip(best, spent, strict=True)]
    return best


def _attention(dtype: torch.dtype, device: torch.device, width: int) -> float:
    """FLOP/s of both passes, as our layers do it where they can."""
    heads = max(1, width // 64)
    q = torch.ones(2, heads, 256, 64, dtype=dtype, device=device, requires_grad=True)
    q_MHD, starts = q.detach().transpose(1, 2).flatten(0, 1), torch.tensor([0, 256, 512], dtype=torch.int32)

    def attention() -> None:
        if device.type == "cpu" and dtype == torch.bfloat16 and is_fast(64):
            out_MHD, lse = causal_attention(q_MHD, q_MHD, q_MHD, starts, 0.125)
            causal_attention_backward(out_MHD, q_MHD, q_MHD, q_MHD, out_MHD, lse, starts, 0.125)
        else:
            scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()  # type: ignore[no-untyped-call]

    return 7 * 2 * heads * 256 * 256 * 64 / _time(attention, device)


_tried = count()


def _compilation(x_MK: Tensor, w_NK: Tensor, a_RK: Tensor) -> float:
    """Seconds that a CPU's library takes for a product of a new shape, a wide and a thin one on the average."""
    spent = []
    for _ in range(3):
        x_nK, total = x_MK[: len(x_MK) - 1 - next(_tried) % (len(x_MK) // 2)], 0.0  # another shape each time: it keeps what it has compiled
        for weight in (w_NK, a_RK):
            times = [time.perf_counter()]
            for _ in range(2):
                x_nK @ weight.T
                times.append(time.perf_counter())
            total += max(0.0, 2 * times[1] - times[0] - times[2])
        spent.append(total / 2)
    return max(min(spent), 1e-6)


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
