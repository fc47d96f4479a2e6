"""How many tokens per second a batch of answers takes beside transformers' `generate`, on the CPU, and whether both write the same.

    python benchmarks/generate.py                          # all workloads; writes benchmarks/results/generate.json
    python benchmarks/generate.py --only generate-acorn --rounds 5
    python benchmarks/generate.py --tiny                   # few tokens: tests this script, writes nothing

Sixteen prompts of 30 to 120 random tokens each, other ones in every round, are continued by 96 tokens: greedily, in bfloat16, without stop tokens. The
model is acorn, the base that comes with tunesmith (7.5M parameters), or has the shape of a 135M Llama and seeded random weights (step.py);
`-lora`: with an adapter of rank 16 on every linear layer, not merged, which both sides read from the same folder.

The opponent is `model.generate` (with PEFT for the adapter) with its key-value cache, the prompts padded on the left, our allocator settings, and
the fastest of its attention implementations (sdpa, eager) and of a few thread counts, tried in a process of its own before.

In bfloat16 two words may be as good as equal, and after one other word all words are others. So where the sides part is judged by the opponent's
own model: after what we wrote, either our word is its choice too, or its logits of the two are closer than it is to its float32 twin in that answer.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import _harness as harness
import step

ROWS, SHORTEST, LONGEST, N_NEW, ROUNDS = 16, 30, 120, 96, 7
TRIED_TOKENS = 12  # of each setting of the opponent
RANK, ALPHA, SEED = 16, 32.0, 0
B_SPREAD = 0.02  # of the adapter's B, which would be zero at its start
WARM_UP_ROUNDS = 1
OPPONENT = "transformers-generate"


@dataclass(frozen=True)
class Workload:
    name: str
    model: str  # acorn, or a shape of step.py
    adapted: bool


WORKLOADS = {
    name: Workload(name, model, name.endswith("-lora"))
    for base, model in (("acorn", "acorn"), ("135m", "step-135m-lora"))
    for name in (f"generate-{base}", f"generate-{base}-lora")
}

Answer = Callable[[harness.Command], harness.Reply]


def prompts_of(round_: int, n_words: int) -> list[list[int]]:
    draw = np.random.default_rng([SEED, round_])
    return [draw.integers(5, n_words, size=n).tolist() for n in draw.integers(SHORTEST, LONGEST + 1, size=ROWS)]


def write_workload(folder: Path, workload: Workload) -> None:
    """folder/model, and folder/adapter in PEFT's layout if there is one."""
    import shutil

    import torch

    from tunesmith.config import LoraConfig
    from tunesmith.model.adapters import adapter_parameters, attach, save_adapter
    from tunesmith.model.load import find_model, load_model

    if workload.model == "acorn":
        shutil.copytree(find_model("acorn"), folder / "model")
    else:
        step.write_model(folder / "model", step.SHAPES[workload.model])
    if workload.adapted:
        model, config = load_model(str(folder / "model"), "bfloat16").model, LoraConfig(rank=RANK, alpha=ALPHA)
        attach(model, "bench", config, SEED)
        generator = torch.Generator().manual_seed(SEED)
        for name, parameter in adapter_parameters(model, "bench").items():
            if "lora_B" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * B_SPREAD
        save_adapter(model, "bench", folder / "adapter", {}, str(folder / "model"), config)


def reply(seconds: float, tokens: list[list[int]]) -> harness.Reply:
    return {"seconds": seconds, "tokens": tokens, "peak_bytes": harness.peak_resident_bytes()}


# --- ours ---------------------------------------------------------------------------------------------------------------


def ours(folder: Path, workload: Workload, settings: dict[str, Any]) -> tuple[harness.Reply, Answer]:
    """As `tunesmith eval` and `chat` do it."""
    import tunesmith

    import torch  # isort: skip

    from tunesmith.inference.engine import generate
    from tunesmith.model.adapters import switch_of

    adapters = {"bench": folder / "adapter"} if workload.adapted else None
    model = tunesmith.load(str(folder / "model"), adapters=adapters, dtype="bfloat16").loaded.model
    if workload.adapted:
        switch_of(model).active = "bench"

    def answer(command: harness.Command) -> harness.Reply:
        started = time.perf_counter()
        answers = generate(model, command["prompts"], max_new_tokens=command["n_new"], stop_ids=frozenset(), batch_size=ROWS)
        return reply(time.perf_counter() - started, [answer.ids for answer in answers])

    return {"threads": torch.get_num_threads(), "n_words": model.get_input_embeddings().num_embeddings}, answer


# --- theirs -------------------------------------------------------------------------------------------------------------


def theirs(folder: Path, workload: Workload, settings: dict[str, Any]) -> tuple[harness.Reply, Answer]:
    """settings   threads and attention; a command may try others"""
    from tunesmith.hardware import keep_freed_memory

    keep_freed_memory()
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()

    def load(dtype: torch.dtype) -> Any:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype, use_safetensors=True)
        model.generation_config = transformers.GenerationConfig(pad_token_id=0)  # no stop tokens
        if workload.adapted:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, folder / "adapter")
        return model.eval()

    def set_up(setting: dict[str, Any]) -> None:
        torch.set_num_threads(setting.get("threads", torch.get_num_threads()))
        base.set_attn_implementation(setting.get("attention", "sdpa"))

    model = load(torch.bfloat16)
    base = model.get_base_model() if workload.adapted else model
    set_up(settings)

    @torch.inference_mode()
    def answer(command: harness.Command) -> harness.Reply:
        if "judge" in command:
            return judge(command["prompts"], command["judge"])
        set_up(command.get("try", {}) | settings)
        prompts, n_new = command["prompts"], command["n_new"]
        started = time.perf_counter()
        longest = max(map(len, prompts))
        ids_BT = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        attended_BT = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        whole_BT = model.generate(
            input_ids=ids_BT, attention_mask=attended_BT, max_new_tokens=n_new, do_sample=False, use_cache=True, pad_token_id=0
        )
        return reply(time.perf_counter() - started, whole_BT[:, longest:].tolist())

    @torch.inference_mode()
    def judge(prompts: list[list[int]], written: list[list[int]]) -> harness.Reply:
        """Of our words: how many the model chooses too, and how many of the others are further from its choice than it is from float32."""
        exact, same, unexplained = load(torch.float32), 0, 0
        for prompt, words in zip(prompts, written, strict=True):
            ids_1T = torch.tensor([prompt + words])
            exact_TV, own_TV = (m(input_ids=ids_1T, use_cache=False).logits[0, len(prompt) - 1 : -1].float() for m in (exact, model))
            gap_T = own_TV.amax(-1) - own_TV.gather(1, torch.tensor(words)[:, None])[:, 0]
            same += int((gap_T == 0).sum())
            unexplained += int((gap_T > (own_TV - exact_TV).abs().max()).sum())
        return {"same": same, "unexplained": unexplained}

    return {"threads": torch.get_num_threads()}, answer


# --- the comparison -----------------------------------------------------------------------------------------------------


def start(side: str, folder: Path, workload: Workload, settings: dict[str, Any]) -> harness.Worker:
    return harness.Worker(
        side, [sys.executable, str(Path(__file__).resolve()), "worker", side, str(folder), workload.name, json.dumps(settings)]
    )


def fastest_settings(folder: Path, workload: Workload, n_words: int) -> dict[str, Any]:
    prompts = prompts_of(ROUNDS, n_words)
    with start("theirs", folder, workload, {}) as worker:
        most = worker.started_with["threads"]
        tries = [{"threads": n, "attention": kind} for n in sorted({most, max(1, most // 2)}) for kind in ("sdpa", "eager")]
        asked = [{"prompts": prompts, "n_new": TRIED_TOKENS, "try": setting} for setting in tries for _ in range(2)]  # the first warms up
        seconds = [worker.ask(command)["seconds"] for command in asked][1::2]
    for setting, each in zip(tries, seconds, strict=True):
        print(f"  tried {setting}: {each:.3f} s")
    return tries[seconds.index(min(seconds))]


def compare(folder: Path, workload: Workload, n_rounds: int, n_new: int) -> dict[str, Any]:
    """One row of results."""
    print(f"{workload.name}: {n_rounds} rounds of {ROWS} rows by {n_new} tokens on each side, in turns", flush=True)
    write_workload(folder, workload)
    with start("ours", folder, workload, {}) as our_side:
        n_words = our_side.started_with["n_words"]
        settings = fastest_settings(folder, workload, n_words)
        with start("theirs", folder, workload, settings) as their_side:
            commands = [{"prompts": prompts_of(n, n_words), "n_new": n_new} for n in range(n_rounds)]
            pairs = list(harness.alternate({"ours": our_side, "theirs": their_side}, commands))
            judged = their_side.ask({"prompts": commands[-1]["prompts"], "judge": pairs[-1]["ours"]["tokens"]})
    if judged["unexplained"]:
        raise SystemExit(f"{judged['unexplained']} of our words are none that rounding explains; nothing is written")
    timed = pairs[min(WARM_UP_ROUNDS, len(pairs) - 1) :]
    rows = [(a, b) for pair in pairs for a, b in zip(pair["ours"]["tokens"], pair["theirs"]["tokens"], strict=True)]
    before = [next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), n_new) for a, b in rows]
    row = {
        "workload": workload.name, "opponent": OPPONENT,
        **harness.summary([p["ours"]["seconds"] for p in timed], [p["theirs"]["seconds"] for p in timed]),
        "ours_peak_bytes": pairs[-1]["ours"]["peak_bytes"], "theirs_peak_bytes": pairs[-1]["theirs"]["peak_bytes"],
        "rows": ROWS, "new_tokens": n_new, "prompt_tokens": [SHORTEST, LONGEST],
        "equal_answers": sum(n == n_new for n in before), "answers": len(before), "tokens_before_a_difference": sum(before) / len(before),
        "judged_tokens": ROWS * n_new, "judged_the_same": judged["same"], "judged_unexplained": judged["unexplained"],
        "threads_ours": our_side.started_with["threads"], "threads_theirs": settings["threads"], "attention_theirs": settings["attention"],
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    row |= {f"{side}_tokens_per_second": round(ROWS * n_new / row[f"{side}_seconds"], 1) for side in ("ours", "theirs")}
    print(
        f"  {row['ratio']:.2f}x (from {row['ratio_min']:.2f} to {row['ratio_max']:.2f}); "
        f"{row['ours_tokens_per_second']:,.0f} and {row['theirs_tokens_per_second']:,.0f} tokens/s; "
        f"peak {row['ours_peak_bytes'] / 1e9:.2f} GB and {row['theirs_peak_bytes'] / 1e9:.2f} GB\n"
        f"  {row['equal_answers']} of {row['answers']} answers are equal; of {row['judged_tokens']} tokens judged one by one "
        f"{row['judged_the_same']} are the opponent's choice too, {row['judged_unexplained']} are not explained by rounding",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", nargs="*", choices=sorted(WORKLOADS), metavar="NAME", help=f"these workloads: {', '.join(WORKLOADS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds of each side, of which the first is not timed ({ROUNDS})")
    parser.add_argument("--tiny", action="store_true", help="few tokens, which tests this script; writes only where --output says")
    parser.add_argument("--output", type=Path, help="results file (benchmarks/results/generate.json)")
    chosen = parser.parse_args()
    if chosen.rounds < 1:
        parser.error("--rounds: at least 1")
    output = chosen.output or (None if chosen.tiny else harness.RESULTS / "generate.json")
    now = harness.facts()
    for name in chosen.only or WORKLOADS:
        with tempfile.TemporaryDirectory(prefix="tunesmith-generate-") as folder:
            row = compare(Path(folder), WORKLOADS[name], chosen.rounds, 4 if chosen.tiny else N_NEW)
            if output is not None:
                harness.write_rows(output, [row], now)
                print(f"  written to {output}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        _, _, side, folder, workload, settings = sys.argv
        harness.serve(lambda: {"ours": ours, "theirs": theirs}[side](Path(folder), WORKLOADS[workload], json.loads(settings)))
    else:
        main()
