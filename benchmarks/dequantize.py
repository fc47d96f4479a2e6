"""How long NF4 weights take to become bfloat16 and back beside bitsandbytes, on the CPU, and whether both get the same numbers.

    python benchmarks/dequantize.py                    # every workload and opponent, 15 rounds; writes benchmarks/results/dequantize.json
    python benchmarks/dequantize.py --only 135m        # workloads whose name contains this
    python benchmarks/dequantize.py --tiny             # toy shapes: tests this script, writes nothing

A workload is a list of weights, each quantised in blocks of 64: one large matrix, or the 210 linear layers of a 135M Llama one after
the other, as a forward pass reads them. Ours writes into one buffer that is used again, as training does; bitsandbytes returns a new
tensor each time, as its API does. Before any timing both sides must give the same codes and the same values, bit for bit. Only with
double quantisation (scales in 8 bits) the values may differ a little: bitsandbytes codes about one scale in a thousand by a level that
is not the nearest.

A round is a pass of ours, a copy and a pass of theirs. The copy moves as many bytes as our pass reads and writes (codes and scales in,
numbers out), between buffers of half that size each: `copy_share` is its time over ours, the part of the memory's speed that is used.

Opponents
    bitsandbytes         functional.dequantize_4bit and quantize_4bit as they come
    bitsandbytes-tuned   the same with our allocator settings, under which the new tensors are not new memory each time
"""

import argparse
import statistics
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _harness as harness

OPPONENTS = ("bitsandbytes", "bitsandbytes-tuned")
BLOCK, SEED = 64, 0
DOUBLE_NOISE = 1e-4  # relative, in the mean size of all values: far above what one scale in a thousand can do
LEAST_SECONDS = 0.1  # passes are repeated for so long and averaged
LLAMA_135M = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)] * 30
SHAPES = {"4096x4096": [(4096, 4096)], "4096x11008": [(4096, 11008)], "135m": LLAMA_135M, "tiny": [(64, 128), (8, 192)]}
Pass = Callable[[], None]


def weights(name: str) -> list[Any]:
    """Seeded bfloat16 matrices, the same for both sides."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    return [(torch.randn(shape, generator=generator) / 32).bfloat16() for shape in SHAPES[name]]


def seconds_of(one_pass: Pass) -> float:
    """Mean seconds of a pass."""
    begun, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begun) < LEAST_SECONDS or count == 0:
        one_pass()
        count += 1
    return elapsed / count


def fingerprint(codes: list[Any], values: list[Any]) -> harness.Reply:
    """Checksums of the bits, and the mean size of the values."""
    import torch

    def checksum(tensors: list[Any]) -> int:
        total = 0
        for tensor in tensors:
            total = zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().tobytes(), total)
        return total

    size = sum(float(v.abs().sum(dtype=torch.float64)) for v in values) / sum(v.numel() for v in values)
    return {"codes": checksum(codes), "values": checksum(values), "size": size}


# --- the two sides --------------------------------------------------------------------------------------------------------


def ours(workload: str) -> tuple[harness.Reply, Callable[[harness.Command], harness.Reply]]:
    from tunesmith.hardware import keep_freed_memory

    keep_freed_memory()
    import torch

    from tunesmith.quant.scheme import find_scheme
    from tunesmith.quant.tensor import dequantize_into, quantize

    job, shapes, levels = workload.split("-")
    scheme = find_scheme("nf4", BLOCK, double=levels == "double")
    given = weights(shapes)
    stored = [quantize(weight_NK, scheme) for weight_NK in given]
    buffer = torch.empty(max(weight.numel() for weight in given), dtype=torch.bfloat16)
    buffers = [buffer[: weight.numel()].view(weight.shape) for weight in given]
    n_bytes = [q.nbytes + weight.nbytes for q, weight in zip(stored, given)]
    sources = [torch.ones(n // 2, dtype=torch.uint8) for n in n_bytes]
    target = torch.ones(max(n_bytes) // 2, dtype=torch.uint8)

    def dequantize_all() -> None:
        for q, out_NK in zip(stored, buffers):
            dequantize_into(q, out_NK)

    def quantize_all() -> None:
        for weight_NK in given:
            quantize(weight_NK, scheme)

    def copy_all() -> None:
        for source in sources:
            target[: len(source)].copy_(source)

    def answer(command: harness.Command) -> harness.Reply:
        if "check" in command:
            values = [dequantize_into(q, torch.empty_like(weight)) for q, weight in zip(stored, given)]
            return fingerprint([q.codes for q in stored], values)
        if job == "quantize":
            return {"seconds": seconds_of(quantize_all)}
        return {"seconds": seconds_of(dequantize_all), "copy_seconds": seconds_of(copy_all)}

    from tunesmith.kernels.native import describe

    return {"threads": torch.get_num_threads(), "kernels": describe(), "bytes": sum(n_bytes)}, answer


def theirs(workload: str, tuned: bool) -> tuple[harness.Reply, Callable[[harness.Command], harness.Reply]]:
    if tuned:
        from tunesmith.hardware import keep_freed_memory

        keep_freed_memory()
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    job, shapes, levels = workload.split("-")
    settings = {"blocksize": BLOCK, "quant_type": "nf4", "compress_statistics": levels == "double"}
    given = weights(shapes)
    stored = [quantize_4bit(weight_NK, **settings) for weight_NK in given]

    def dequantize_all() -> None:
        for codes, state in stored:
            dequantize_4bit(codes, state)

    def quantize_all() -> None:
        for weight_NK in given:
            quantize_4bit(weight_NK, **settings)

    def answer(command: harness.Command) -> harness.Reply:
        if "check" in command:
            return fingerprint([q for q, _ in stored], [dequantize_4bit(q, state) for q, state in stored])
        return {"seconds": seconds_of(quantize_all if job == "quantize" else dequantize_all)}

    return {"threads": torch.get_num_threads()}, answer


# --- the comparison -------------------------------------------------------------------------------------------------------


def compare(workload: str, opponent: str, rounds: int) -> dict[str, Any]:
    """One row of results; ends the program if the two sides differ."""
    script = [sys.executable, str(Path(__file__).resolve()), "worker"]
    print(f"{workload} against {opponent}: {rounds} rounds")
    with (
        harness.Worker("ours", [*script, "ours", workload]) as our_side,
        harness.Worker(opponent, [*script, opponent, workload]) as their_side,
    ):
        sides = {"ours": our_side, "theirs": their_side}
        [checked] = harness.alternate(sides, [{"check": True}])
        mine, other = checked["ours"], checked["theirs"]
        size_difference = harness.relative_difference(mine["size"], other["size"])
        double = workload.endswith("-double")
        if mine["codes"] != other["codes"] or size_difference > DOUBLE_NOISE or not (double or mine["values"] == other["values"]):
            raise SystemExit(f"{workload}: the two sides differ: {checked}; nothing is written")
        pairs = list(harness.alternate(sides, [{"round": n} for n in range(rounds + 1)]))[1:]  # the first touches memory
    seconds = [pair["ours"]["seconds"] for pair in pairs]
    row: dict[str, Any] = {
        "workload": workload, "opponent": opponent, **harness.summary(seconds, [pair["theirs"]["seconds"] for pair in pairs]),
        "kernels": our_side.started_with["kernels"], "threads": our_side.started_with["threads"], "same_bits": mine["values"] == other["values"],
        "weights": sum(rows * columns for rows, columns in SHAPES[workload.split("-")[1]]),
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    said = f"  {row['ratio']:.2f}x (from {row['ratio_min']:.2f} to {row['ratio_max']:.2f}); "
    said += f"{1e3 * row['ours_seconds']:.2f} ms and {1e3 * row['theirs_seconds']:.2f} ms"
    if "copy_seconds" in pairs[0]["ours"]:
        n_bytes = our_side.started_with["bytes"]
        copies = [pair["ours"]["copy_seconds"] for pair in pairs]
        row["ours_bytes_per_second"] = round(n_bytes / statistics.median(seconds))
        row["copy_bytes_per_second"] = round(n_bytes / statistics.median(copies))
        row["copy_share"] = round(statistics.median(copy / own for copy, own in zip(copies, seconds)), 4)
        said += f"; {row['ours_bytes_per_second'] / 1e9:.1f} GB/s, {row['copy_share']:.0%} of a copy"
    print(said, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--opponent", choices=OPPONENTS, help="one opponent instead of both")
    parser.add_argument("--rounds", type=int, default=15, help="of each side (15)")
    parser.add_argument("--tiny", action="store_true", help="toy shapes that test this script; writes only where --output says")
    parser.add_argument("--output", type=Path, help="results file (benchmarks/results/dequantize.json)")
    chosen = parser.parse_args()
    if chosen.rounds < 1:
        parser.error("--rounds: at least 1")
    names = [name for name in SHAPES if (name == "tiny") == chosen.tiny]
    workloads = [f"dequantize-{name}-{levels}" for name in names for levels in ("plain", "double")]
    workloads = [w for w in [*workloads, *(f"quantize-{name}-plain" for name in names)] if chosen.only in w]
    if not workloads:
        parser.error(f'--only: no workload contains "{chosen.only}"')
    output = chosen.output or (None if chosen.tiny else harness.RESULTS / "dequantize.json")
    now = {**harness.facts(), "versions": harness.versions((*harness.PACKAGES, "bitsandbytes"))}
    for workload in workloads:
        for opponent in (chosen.opponent,) if chosen.opponent else OPPONENTS:
            row = compare(workload, opponent, chosen.rounds)
            if output is not None:
                harness.write_rows(output, [row], now)  # after each: a broken later one costs nothing


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        _, _, side, workload = sys.argv
        harness.serve(lambda: ours(workload) if side == "ours" else theirs(workload, tuned=side == "bitsandbytes-tuned"))
    else:
        main()
