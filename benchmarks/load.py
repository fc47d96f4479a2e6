"""How long a model of 1B weights takes to become NF4 while it loads, beyond reading it, and beside transformers + bitsandbytes.

    python benchmarks/load.py                    # 5 rounds; writes benchmarks/results/load.json (2 GB of temporary files)
    python benchmarks/load.py --tiny             # a toy shape: tests this script, writes nothing

A Llama 2,048 wide with 16 layers and seeded random weights in bfloat16, files in the page cache. A round is a load by each side in
turn; each side frees what it loaded before its next turn. Both quantised sides use blocks of 64 and double quantisation, and hold the
same codes (their checksums are compared).

Opponents
    own-dense    our own load in bfloat16: the difference is what quantising costs
    hf-bnb       transformers with bitsandbytes' load_in_4bit
"""

import argparse
import gc
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _harness as harness

OPPONENTS = ("own-dense", "hf-bnb")
SHAPES = {"1b": (2048, 16, 8192, 32_000), "tiny": (64, 2, 128, 512)}  # width, layers, feed-forward, vocabulary
SEED = 0


def write_model(folder: Path, name: str) -> None:
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    width, layers, feed_forward, vocabulary = SHAPES[name]
    config = LlamaConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=16, num_key_value_heads=8, intermediate_size=feed_forward,
        vocab_size=vocabulary, tie_word_embeddings=True, max_position_embeddings=2048,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(SEED)
    LlamaForCausalLM(config).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"?": 0}, unk_token="?")), unk_token="?").save_pretrained(folder)


def timed(load: Callable[[], Any], codes_of: Callable[[Any], list[Any]]) -> Callable[[harness.Command], harness.Reply]:
    """Answers each command with the seconds of one load and a checksum of the codes."""

    def answer(command: harness.Command) -> harness.Reply:
        gc.collect()
        begun = time.perf_counter()
        model = load()
        seconds = time.perf_counter() - begun
        checksum = 0
        for codes in codes_of(model):
            checksum = zlib.crc32(codes.contiguous().view(-1).numpy().tobytes(), checksum)
        return {"seconds": seconds, "codes": checksum, "peak_bytes": harness.peak_resident_bytes()}

    return answer


def ours(folder: Path, quantised: bool) -> tuple[harness.Reply, Callable[[harness.Command], harness.Reply]]:
    import tunesmith.api  # noqa: F401 - every command's entry: sets the allocator before torch is imported

    from tunesmith.model.frozen import QuantizedLinear  # isort: skip
    from tunesmith.model.load import load_model
    from tunesmith.quant.scheme import find_scheme

    scheme = find_scheme("nf4", 64, double=True) if quantised else None

    def codes_of(model: Any) -> list[Any]:
        return [layer.q.codes for _, layer in sorted(model.named_modules()) if isinstance(layer, QuantizedLinear)]

    return {}, timed(lambda: load_model(str(folder), "bfloat16", "cpu", scheme).model, codes_of)


def bitsandbytes(folder: Path) -> tuple[harness.Reply, Callable[[harness.Command], harness.Reply]]:
    import torch
    from bitsandbytes.nn import Linear4bit
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16, device_map="cpu")

    def codes_of(model: Any) -> list[Any]:
        return [layer.weight.data for _, layer in sorted(model.named_modules()) if isinstance(layer, Linear4bit)]

    return {}, timed(load, codes_of)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", choices=OPPONENTS, help="one opponent instead of both")
    parser.add_argument("--rounds", type=int, default=5, help="loads of each side, after one that is not timed (5)")
    parser.add_argument("--tiny", action="store_true", help="a toy shape that tests this script; writes only where --output says")
    parser.add_argument("--output", type=Path, help="results file (benchmarks/results/load.json)")
    chosen = parser.parse_args()
    if chosen.rounds < 1:
        parser.error("--rounds: at least 1")
    name = "tiny" if chosen.tiny else "1b"
    output = chosen.output or (None if chosen.tiny else harness.RESULTS / "load.json")
    now = {**harness.facts(), "versions": harness.versions((*harness.PACKAGES, "bitsandbytes"))}
    with tempfile.TemporaryDirectory(prefix="tunesmith-load-") as folder:
        write_model(Path(folder), name)
        n_weights = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) // 2
        for opponent in (chosen.only,) if chosen.only else OPPONENTS:
            script = [sys.executable, str(Path(__file__).resolve()), "worker", folder]
            with harness.Worker("ours", [*script, "ours"]) as our_side, harness.Worker(opponent, [*script, opponent]) as their_side:
                sides = {"ours": our_side, "theirs": their_side}
                pairs = list(harness.alternate(sides, [{"round": n} for n in range(chosen.rounds + 1)]))[1:]
            if opponent == "hf-bnb" and pairs[0]["ours"]["codes"] != pairs[0]["theirs"]["codes"]:
                raise SystemExit("the two sides hold different codes; nothing is written")
            row = {
                "workload": f"load-{name}-nf4", "opponent": opponent,
                **harness.summary([p["ours"]["seconds"] for p in pairs], [p["theirs"]["seconds"] for p in pairs]),
                "weights": n_weights, "ours_peak_bytes": pairs[-1]["ours"]["peak_bytes"], "theirs_peak_bytes": pairs[-1]["theirs"]["peak_bytes"],
                "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }  # fmt: skip
            print(
                f"{row['workload']} against {opponent}: {row['ratio']:.2f}x (from {row['ratio_min']:.2f} to {row['ratio_max']:.2f}); "
                f"{row['ours_seconds']:.2f} s and {row['theirs_seconds']:.2f} s for {n_weights / 1e9:.2f}B weights",
                flush=True,
            )
            if output is not None:
                harness.write_rows(output, [row], now)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        _, _, given, side = sys.argv
        harness.serve(lambda: bitsandbytes(Path(given)) if side == "hf-bnb" else ours(Path(given), quantised=side == "ours"))
    else:
        main()
