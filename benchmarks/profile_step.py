"""Where the time of one of our steps goes: by operation, and of matrix products by shape, with the rate that each reaches.

    python benchmarks/profile_step.py                       # step-135m-lora; also step-135m-qlora
    python benchmarks/profile_step.py step-135m-qlora --rows 30

The last line is the share of the step's own operations (model FLOPs: products of the weights, forward and backward, nothing that is computed
again) in what the machine's matrix unit does on one large product in the same minute.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import step

WARM_UP_STEPS, TIMED_STEPS = 3, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload", nargs="?", default="step-135m-lora", choices=sorted(step.SHAPES))
    parser.add_argument("--rows", type=int, default=20, help="lines of each table (20)")
    chosen = parser.parse_args()
    shape = step.SHAPES[chosen.workload]
    with tempfile.TemporaryDirectory() as folder:
        step.write_model(Path(folder), shape)
        _, take = step.ours(Path(folder), shape, {})
        for n in range(WARM_UP_STEPS):
            take({"step": n})
        seconds = sorted(take({"step": WARM_UP_STEPS + n})["seconds"] for n in range(TIMED_STEPS))[TIMED_STEPS // 2]
        tables(take, chosen.rows)
    rate = product_rate()
    n_weights = shape.layers * (
        2 * shape.width**2 + 2 * shape.width * shape.width * shape.kv_heads // shape.heads + 3 * shape.width * shape.feed_forward
    )
    flops = 4.0 * shape.rows * shape.tokens * (n_weights + shape.vocabulary * shape.width)  # forward, and towards the input
    print(
        f"{seconds:.3f} s a step, {flops / 1e12:.2f} TFLOP of the base's products: {flops / seconds / 1e12:.2f} TFLOP/s, "
        f"{flops / seconds / rate:.0%} of the {rate / 1e12:.2f} TFLOP/s of one large product"
    )


def tables(take: Any, n_rows: int) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        take({"step": WARM_UP_STEPS + TIMED_STEPS})
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=n_rows, max_name_column_width=40))
    products = [e for e in seen.key_averages(group_by_input_shape=True) if e.key in ("aten::mm", "aten::addmm_", "aten::bmm")]
    for event in sorted(products, key=lambda e: -e.self_cpu_time_total)[:n_rows]:
        left, right = [size for size in event.input_shapes if size][-3:][:2] if event.key != "aten::addmm_" else event.input_shapes[1:3]
        flops = 2.0 * left[-2] * left[-1] * right[-1] * (left[0] if len(left) == 3 else 1) * event.count
        milliseconds = event.self_cpu_time_total / 1e3
        print(
            f"{event.key:12} {left!s:>14} x {right!s:<14} {event.count:4} times {milliseconds:8.1f} ms  {flops / milliseconds / 1e9:5.2f} TFLOP/s"
        )


def product_rate() -> float:
    """FLOP/s of 2,048 x 2,048 by 2,048 in bfloat16, the fastest of many."""
    import torch

    x = torch.ones(2048, 2048, dtype=torch.bfloat16)
    y, best = x @ x, float("inf")
    for _ in range(40):
        begun = time.perf_counter()
        torch.mm(x, x, out=y)
        best = min(best, time.perf_counter() - begun)
    return 2.0 * 2048**3 / best


if __name__ == "__main__":
    sys.exit(main())
