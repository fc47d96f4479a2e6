"""What an AdamW step with moments in 8 bits costs beside torch's fused AdamW, over the weights of a 135M Llama, on the CPU.

    python benchmarks/optimizer.py               # 9 rounds; writes benchmarks/results/optimizer.json
    python benchmarks/optimizer.py --tiny        # toy shapes: tests this script, writes nothing

Both sides update the same seeded float32 parameters with the same gradients. The first step's updates must be equal (its moments are
not rounded yet); the row says how many bytes of state each side keeps. 8 bits save memory and cost time: this says how much of each.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _harness as harness

SHAPES = {
    "135m": [(49_152, 576)] + [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)] * 30,
    "tiny": [(64, 128)] * 3,
}
RATE, SEED = 1e-3, 0


def side(optimizer: str, shapes: str) -> tuple[harness.Reply, Callable[[harness.Command], harness.Reply]]:
    import tunesmith.api  # noqa: F401 - every command's entry: sets the allocator before torch is imported

    import torch  # isort: skip

    from tunesmith.training.adamw8bit import AdamW8bit

    generator = torch.Generator().manual_seed(SEED)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator) / 32) for shape in SHAPES[shapes]]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator) / 1000
    made: Any = (
        AdamW8bit([{"params": parameters}], lr=RATE)
        if optimizer == "ours"
        else torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)
    )

    def answer(command: harness.Command) -> harness.Reply:
        begun = time.perf_counter()
        made.step()
        seconds = time.perf_counter() - begun
        state = sum(t.nbytes for s in made.state.values() for t in s.values() if torch.is_tensor(t))
        return {"seconds": seconds, "size": float(sum(p.detach().abs().sum(dtype=torch.float64) for p in parameters)), "state_bytes": state}

    return {"threads": torch.get_num_threads()}, answer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=9, help="steps of each side, after one that is not timed (9)")
    parser.add_argument("--tiny", action="store_true", help="toy shapes that test this script; writes only where --output says")
    parser.add_argument("--output", type=Path, help="results file (benchmarks/results/optimizer.json)")
    chosen = parser.parse_args()
    if chosen.rounds < 1:
        parser.error("--rounds: at least 1")
    shapes = "tiny" if chosen.tiny else "135m"
    output = chosen.output or (None if chosen.tiny else harness.RESULTS / "optimizer.json")
    now = harness.facts()
    script = [sys.executable, str(Path(__file__).resolve()), "worker"]
    with harness.Worker("ours", [*script, "ours", shapes]) as ours, harness.Worker("torch-adamw", [*script, "torch", shapes]) as theirs:
        first, *pairs = harness.alternate({"ours": ours, "theirs": theirs}, [{"round": n} for n in range(chosen.rounds + 1)])
        threads = ours.started_with["threads"]
    difference = harness.relative_difference(first["ours"]["size"], first["theirs"]["size"])
    if difference > 1e-6:
        raise SystemExit(f"the first step differs by {difference:.2g}; nothing is written")
    n_weights = sum(rows * columns for rows, columns in SHAPES[shapes])
    row = {
        "workload": f"adamw8bit-{shapes}", "opponent": "torch-adamw",
        **harness.summary([p["ours"]["seconds"] for p in pairs], [p["theirs"]["seconds"] for p in pairs]),
        "weights": n_weights, "threads": threads, "ours_state_bytes": pairs[-1]["ours"]["state_bytes"],
        "theirs_state_bytes": pairs[-1]["theirs"]["state_bytes"], "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    print(
        f"{row['workload']} against torch-adamw: {row['ratio']:.2f}x; {row['ours_seconds']:.3f} s and {row['theirs_seconds']:.3f} s a step; "
        f"state {row['ours_state_bytes'] / n_weights:.2f} and {row['theirs_state_bytes'] / n_weights:.2f} bytes a weight"
    )
    if output is not None:
        harness.write_rows(output, [row], now)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        harness.serve(lambda: side(*sys.argv[2:4]))
    else:
        main()
