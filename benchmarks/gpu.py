"""One LoRA step of an 8B model on one GPU: ours beside transformers + PEFT (with Liger's kernels, where they are installed) and TRL.

    python benchmarks/gpu.py                                # every workload; writes benchmarks/results/gpu.json
    python benchmarks/gpu.py --only h100-8b-fp8             # one workload, or one side: ours, hf-peft, trl, hf-bnb …
    python benchmarks/gpu.py --only ours --profile          # and where the time of a step goes, by operation
    python benchmarks/gpu.py --tiny                         # toy shapes on a CPU: tests this script, writes nothing

Nothing outside the repository is needed and no file of weights is written: each side builds a Llama of random weights on the device itself, the
same numbers from the same seeds, gets the same A (B is zero), and sees the same tokens. Rows of 4,096 tokens are computed one at a time
(`rows` of them are a step), all tokens trained, in bfloat16 with float32 adapters, AdamW and clipping. Both sides first try without computing
activations again, and with it where that does not fit.

A side runs in a process of its own, one after another: two such models do not fit beside each other. Each is a row of the results, written as
soon as it is measured; sides that are there already under the same commit, machine and versions are left out (--again measures them anew), so
that a run which was cut off goes on. A workload's first side is what the others are compared with: the ratio of the medians, and whether loss
and gradient norm of every step agree.

Sides
    ours          the product's own functions in the order in which training/loop.py calls them, with its one wait for the GPU in a step
    ours-packed   the same on rows of many documents, none of which sees another (training.packing); other losses, so only its time is compared
    hf-peft       transformers + PEFT, SDPA, adapters under bfloat16 autocast without PEFT's cast of inputs to float32, fused AdamW; with
                  Liger's RMSNorm, rotary positions, SwiGLU and fused linear cross-entropy where liger_kernel can be imported (`liger` in the row)
    trl           TRL's SFTTrainer with the same settings, where trl can be imported
    hf-bnb        hf-peft over bitsandbytes' NF4 with double quantisation
    ours-bf16     our own bfloat16 step beside that in FP8: what the format changes in time and in loss

MFU counts model FLOPs (products of the base forward and towards the input, the head, causal attention; nothing that is computed again)
against 989 TFLOP/s, the H100's dense bfloat16 rate, also where products are made in FP8.
"""

import argparse
import gc
import importlib.util
import json
import math
import statistics
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import _harness as harness

RANK, ALPHA, RATE, MAX_GRAD_NORM, SEED = 16, 32.0, 3e-4, 1.0, 0
LOGIT_SPREAD = 3.0  # as in step.py: the loss is far from ln V, and a lost norm or scale shows
N_WORDS = 64
WARM_UP_STEPS = 3  # left out of the time: Triton compiles, cuBLAS chooses, the allocator grows
PEAK_FLOPS = 989e12  # NVIDIA H100 SXM, dense bfloat16, by its datasheet
# of loss and gradient norm, as in step.py; FP8 keeps 3 bits of mantissa in weights and activations, so its own step is off by more
NOISE = {"loss": 0.005, "grad_norm": 0.03}
FP8_NOISE = {"loss": 0.02, "grad_norm": 0.15}
PROFILED = 25  # operations


@dataclass(frozen=True)
class Shape:
    width: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    rows: int
    tokens: int
    steps: int

    @property
    def base_weights(self) -> int:
        """Of all linear layers between embeddings and head."""
        head_width = self.width // self.heads
        attention = 2 * self.width**2 + 2 * self.width * self.kv_heads * head_width
        return self.layers * (attention + 3 * self.width * self.feed_forward)

    @property
    def flops(self) -> float:
        """Of a step: forward and towards the input; of attention two products forward and four back, of which half is not seen."""
        products = 4.0 * self.rows * self.tokens * (self.base_weights + self.vocabulary * self.width)
        return products + 6.0 * self.rows * self.layers * self.width * self.tokens**2


LLAMA_8B = Shape(4096, 32, 32, 8, 14_336, 128_256, rows=4, tokens=4096, steps=10)
TINY = Shape(64, 2, 4, 2, 96, 512, rows=2, tokens=64, steps=4)
DOCUMENTS = 9  # of a packed row
# a workload's sides; the first is what the others are compared with
WORKLOADS = {
    "h100-8b-lora-bf16": ("ours", "ours-packed", "hf-peft", "trl"),
    "h100-8b-qlora": ("ours", "hf-bnb"),
    "h100-8b-fp8": ("ours", "ours-bf16"),
}
STORAGE = {"h100-8b-lora-bf16": None, "h100-8b-qlora": "nf4", "h100-8b-fp8": "fp8"}

Answer = Callable[[harness.Command], harness.Reply]


# --- what all sides share -----------------------------------------------------------------------------------------------


def device_of(tiny: bool) -> Any:
    import torch

    return torch.device("cpu" if tiny else "cuda")


def make_base(shape: Shape, device: Any) -> Any:
    """A Llama of seeded weights in bfloat16, drawn on the device; a depth-scaled residual keeps its layers tame."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=shape.width, num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.feed_forward, vocab_size=shape.vocabulary, tie_word_embeddings=False, max_position_embeddings=8192,
        use_cache=False,
    )  # fmt: skip
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator_of(name, device), dtype=torch.bfloat16, device=device)
            if weight.ndim == 1:
                weight.copy_(1 + 0.1 * noise)
            elif "embed" in name:
                weight.copy_(noise)
            else:
                last_of_block = name.endswith(("o_proj.weight", "down_proj.weight"))
                spread = LOGIT_SPREAD if name.startswith("lm_head") else 1.0
                weight.copy_(noise.mul_(spread / math.sqrt(weight.shape[1] * (2 * shape.layers if last_of_block else 1))))
    return model.requires_grad_(False)


def generator_of(name: str, device: Any) -> Any:
    import torch

    return torch.Generator(device).manual_seed(SEED + zlib.crc32(name.encode()))


def start_adapters(parameters: dict[str, Any]) -> None:
    """The same A on every side, by its name; B is zero."""
    import torch

    with torch.no_grad():
        for name, parameter in parameters.items():
            if "lora_A" in name:
                bound = 1 / math.sqrt(parameter.shape[1])
                drawn = torch.rand(parameter.shape, generator=generator_of(name, parameter.device), device=parameter.device)
                parameter.copy_((2 * drawn - 1) * bound)
            else:
                parameter.zero_()


def ids_of_step(shape: Shape, step: int) -> np.ndarray:
    """int64 [rows, tokens], other ones at every step."""
    words = np.random.default_rng(SEED).choice(shape.vocabulary, N_WORDS, replace=False)
    return words[np.random.default_rng([SEED, step]).integers(N_WORDS, size=(shape.rows, shape.tokens))]


def targets() -> list[str]:
    return ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Clock:
    """Seconds of a step, from its first line to what it leaves on the GPU."""

    def __init__(self, device: Any) -> None:
        self.on_gpu = device.type == "cuda"
        self.started = self.now()

    def now(self) -> float:
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def reply(self, loss: float, grad_norm: float) -> harness.Reply:
        return {"seconds": self.now() - self.started, "loss": loss, "grad_norm": grad_norm, "peak_bytes": peak_bytes(self.on_gpu)}


def peak_bytes(on_gpu: bool) -> int:
    import torch

    return int(torch.cuda.max_memory_allocated()) if on_gpu else harness.peak_resident_bytes()


def forget_building(device: Any) -> None:
    """The peak is that of steps, not of a dense base that became another one."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def profiled(take: Callable[[], Any], device: Any) -> harness.Reply:
    """A step's operations by their own time on the device, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=kinds) as seen:
        take()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(seen.key_averages(), key=lambda event: -getattr(event, key))[:PROFILED]
    return {"profile": [{"operation": e.key[:120], "calls": e.count, "milliseconds": round(getattr(e, key) / 1e3, 3)} for e in events]}


def answering(step: Callable[[int], harness.Reply], device: Any) -> Answer:
    """Steps and profiles on request; a step that does not fit is told, not died of."""
    import torch

    def answer(command: harness.Command) -> harness.Reply:
        if "profile" in command:
            return profiled(lambda: step(command["profile"]), device)
        try:
            return step(command["step"])
        except torch.OutOfMemoryError as error:
            return {"out_of_memory": str(error).splitlines()[0]}

    return answer


# --- ours ---------------------------------------------------------------------------------------------------------------


def ours(shape: Shape, settings: dict[str, Any]) -> tuple[harness.Reply, Answer]:
    """settings   storage: of the base, None for bfloat16; packed: rows of many documents; checkpointing; tiny"""
    import tunesmith.api  # noqa: F401 - every command's entry: sets the allocator before torch is imported

    import torch  # isort: skip

    from tunesmith.config import LoraConfig, TrainingConfig
    from tunesmith.data.batches import Batch, collate, collate_row
    from tunesmith.data.packing import row_of
    from tunesmith.data.template import Example
    from tunesmith.loss import Scored
    from tunesmith.model.adapters import adapter_parameters, attach, linear_layers, switch_of
    from tunesmith.model.attention import keep_documents_apart
    from tunesmith.model.blocks import fuse
    from tunesmith.model.layers import fuse_layers, fused_forms
    from tunesmith.model.streaming import put_quantized
    from tunesmith.quant.scheme import find_scheme
    from tunesmith.quant.tensor import quantize
    from tunesmith.training.method import recompute_activations
    from tunesmith.training.optim import build_optimizer, clip_grad_norm

    device = device_of(settings["tiny"])
    model = make_base(shape, device)
    if settings["storage"] is not None:
        scheme = find_scheme(settings["storage"])
        for path, layer in linear_layers(model).items():
            put_quantized(model, path, layer).hold(quantize(layer.weight, scheme))
    training = TrainingConfig(learning_rate=RATE, max_grad_norm=MAX_GRAD_NORM, dtype="bfloat16", seed=SEED)
    attach(model, "bench", LoraConfig(rank=RANK, alpha=ALPHA), SEED)
    switch_of(model).active = "bench"
    fuse_layers(model)
    fuse(model)
    if settings["packed"]:
        keep_documents_apart(model, 0, shape.tokens)
    if settings["checkpointing"]:
        recompute_activations(model)
    parameters = adapter_parameters(model, "bench")
    start_adapters(parameters)
    optimizer = build_optimizer(parameters, training, RATE)
    scored = Scored(model, torch.bfloat16)
    model.train()
    forget_building(device)

    def batch_of(ids: np.ndarray) -> Batch:
        if not settings["packed"]:
            return collate([Example(ids, np.ones(len(ids), dtype=bool), "")])
        ends = np.sort(np.random.default_rng(int(ids[:8].sum())).choice(np.arange(2, len(ids) - 2), DOCUMENTS - 1, replace=False))
        parts = np.split(ids, ends)
        return collate_row(row_of([Example(part, np.ones(len(part), dtype=bool), "") for part in parts]))

    def step(number: int) -> harness.Reply:
        clock = Clock(device)
        batches = [batch_of(ids).to(device) for ids in ids_of_step(shape, number)]
        n_trained = sum(batch.n_trained for batch in batches)
        sums = []
        for batch in batches:
            nll = scored(batch)
            (nll.sum / n_trained).backward()
            sums.append(nll.sum.detach())
        norm = clip_grad_norm(parameters, MAX_GRAD_NORM)
        *losses, grad_norm = torch.stack([*(nll.double() for nll in sums), norm.double()]).tolist()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return clock.reply(sum(losses) / n_trained, grad_norm)

    return {"fused_layers": len(fused_forms(model))}, answering(step, device)


# --- theirs -------------------------------------------------------------------------------------------------------------


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def in_4bit(model: Any, device: Any) -> None:
    """Every linear layer but the head as bitsandbytes' NF4 with double quantisation, from the dense weight on the device."""
    import bitsandbytes as bnb
    import torch

    for path, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.Linear) and path != "lm_head":
            made = bnb.nn.Linear4bit(
                layer.in_features, layer.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4", compress_statistics=True,
                device="meta",
            )  # fmt: skip
            made.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True).to(device)
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, made)
    model.is_loaded_in_4bit = True


def with_adapters(shape: Shape, settings: dict[str, Any], device: Any) -> tuple[Any, dict[str, Any], bool]:
    """The base, in four bits if asked, with PEFT's adapters at our start; whether Liger's kernels are in it."""
    import transformers
    from peft import LoraConfig, get_peft_model

    transformers.utils.logging.disable_progress_bar()
    base = make_base(shape, device)
    if settings["storage"] is not None:
        in_4bit(base, device)
    liger = has("liger_kernel") and settings["liger"] and device.type == "cuda"
    if liger:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(model=base)  # rope, RMSNorm, SwiGLU, fused linear cross-entropy
    if settings["checkpointing"]:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets(), task_type="CAUSAL_LM"))
    parameters = {name.replace(".default.", "."): p for name, p in model.named_parameters() if p.requires_grad}
    start_adapters(parameters)
    return model.train(), parameters, liger


def theirs(shape: Shape, settings: dict[str, Any]) -> tuple[harness.Reply, Answer]:
    """The step as PEFT's documentation writes it, tuned: float32 adapters under autocast, inputs never cast to float32, one micro-batch a row."""
    import torch
    from peft.helpers import disable_input_dtype_casting

    device = device_of(settings["tiny"])
    model, parameters, liger = with_adapters(shape, settings, device)
    optimizer = torch.optim.AdamW(parameters.values(), lr=RATE, weight_decay=0.0, fused=True)
    forget_building(device)

    def step(number: int) -> harness.Reply:
        clock = Clock(device)
        losses = []
        for ids in ids_of_step(shape, number):
            ids_BT = torch.from_numpy(ids)[None].to(device, non_blocking=True)
            with torch.autocast(device.type, dtype=torch.bfloat16), disable_input_dtype_casting(model):
                loss = model(input_ids=ids_BT, labels=ids_BT).loss / shape.rows
            loss.backward()
            losses.append(loss.detach())
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters.values(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        *values, norm = torch.stack([*losses, grad_norm]).tolist()
        return clock.reply(sum(values), norm)

    return {"liger": liger}, answering(step, device)


def trl(shape: Shape, settings: dict[str, Any]) -> tuple[harness.Reply, Answer]:
    """SFTTrainer's own loop, a step of it at each command: it runs in a thread of its own and waits before each (as in step.py)."""
    import queue
    import tempfile
    import threading

    import torch
    import transformers
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    device = device_of(settings["tiny"])
    model, _, liger = with_adapters(shape, settings, device)
    commands: queue.Queue[int] = queue.Queue()
    replies: queue.Queue[harness.Reply] = queue.Queue()
    clocks: list[Clock] = []

    class InTurns(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            commands.get()
            clocks.append(Clock(device))

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:  # after the update
                replies.put(clocks[-1].reply(float(logs["loss"]), float(logs["grad_norm"])))

    steps = settings["steps"]
    rows = [{"input_ids": ids.tolist()} for n in range(steps) for ids in ids_of_step(shape, n)]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=tempfile.mkdtemp(prefix="tunesmith-trl-"), per_device_train_batch_size=1, gradient_accumulation_steps=shape.rows,
            max_steps=steps, learning_rate=RATE, lr_scheduler_type="constant", max_grad_norm=MAX_GRAD_NORM, logging_steps=1, save_strategy="no",
            report_to="none", use_cpu=device.type == "cpu", bf16=True, disable_tqdm=True, shuffle_dataset=False, max_length=shape.tokens,
            train_sampling_strategy="sequential", gradient_checkpointing=settings["checkpointing"], optim="adamw_torch_fused",
            use_liger_kernel=liger,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=words_that_nobody_uses(),
        callbacks=[InTurns()],
    )  # fmt: skip

    forget_building(device)

    def train() -> None:
        try:
            trainer.train()
        except torch.OutOfMemoryError as error:
            replies.put({"out_of_memory": str(error).splitlines()[0]})

    threading.Thread(target=train, daemon=True).start()

    def answer(command: harness.Command) -> harness.Reply:
        if "profile" in command:
            return {"profile": []}  # its loop is not ours to cut
        commands.put(command["step"])
        return replies.get()

    return {"liger": liger}, answer


def words_that_nobody_uses() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", pad_token="?", eos_token="?")


# --- the comparison -----------------------------------------------------------------------------------------------------

BUILDERS = {"ours": ours, "ours-packed": ours, "ours-bf16": ours, "hf-peft": theirs, "hf-bnb": theirs, "trl": trl}
NEEDS = {"trl": ("trl", "datasets"), "hf-bnb": ("bitsandbytes",), "hf-peft": ("peft",)}


def measure(workload: str, side: str, shape: Shape, n_steps: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """One row of results: a side in a process of its own, computing activations again only where it does not fit otherwise."""
    storage = None if side == "ours-bf16" else STORAGE[workload]
    common = {"storage": storage, "packed": side == "ours-packed", "tiny": chosen.tiny, "steps": n_steps, "liger": not chosen.no_liger}
    for checkpointing in (False, True):
        settings = common | {"checkpointing": checkpointing}
        command = [sys.executable, str(Path(__file__).resolve()), "worker", side, json.dumps(settings)]
        replies: list[harness.Reply] = []
        with harness.Worker(side, command) as worker:
            for n in range(n_steps):
                found = worker.ask({"step": n})
                if "out_of_memory" in found:
                    print(f"  {side}: {found['out_of_memory']}", flush=True)
                    break
                replies.append(found)
                print(
                    f"  {side} step {n + 1}: loss {found['loss']:.5f}, gradient norm {found['grad_norm']:.5f}, {found['seconds']:.3f} s",
                    flush=True,
                )
            else:
                seen = worker.ask({"profile": n_steps}) if chosen.profile else {}
                return row_of(workload, side, shape, replies, {**worker.started_with, "checkpointing": checkpointing, **seen}, chosen.tiny)
    return {"workload": workload, "opponent": side, "out_of_memory": True}


def row_of(workload: str, side: str, shape: Shape, replies: list[harness.Reply], facts: dict[str, Any], tiny: bool) -> dict[str, Any]:
    timed = [reply["seconds"] for reply in replies[min(WARM_UP_STEPS, len(replies) - 1) :]]
    seconds = statistics.median(timed)
    return {
        "workload": workload, "opponent": side, "seconds": round(seconds, 4), "seconds_min": round(min(timed), 4), "seconds_max": round(max(timed), 4),
        "steps_timed": len(timed), "tokens_per_second": round(shape.rows * shape.tokens / seconds, 1),
        "mfu": None if tiny else round(shape.flops / seconds / PEAK_FLOPS, 4), "tflop": round(shape.flops / 1e12, 3),
        "peak_bytes": replies[-1]["peak_bytes"], "losses": [reply["loss"] for reply in replies],
        "grad_norms": [reply["grad_norm"] for reply in replies], **facts, "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip


def compared(first: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """`other` with its ratio to the workload's first side (above 1: the first is faster), and the worst difference of any step."""
    if "out_of_memory" in first or "out_of_memory" in other:
        return other
    found = dict(other, ratio=round(other["seconds"] / first["seconds"], 4))
    if other["opponent"] == "ours-packed":
        return found
    noise = FP8_NOISE if first["workload"].endswith("fp8") else NOISE
    for key, plural in (("loss", "losses"), ("grad_norm", "grad_norms")):
        pairs = zip(first[plural], other[plural], strict=False)
        found[f"worst_{key}_difference"] = max(harness.relative_difference(mine, its) for mine, its in pairs)
    found["agrees"] = all(found[f"worst_{key}_difference"] <= noise[key] for key in noise)
    return found


def rows_there(output: Path | None, now: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """What was measured already under the same facts."""
    if output is None or not output.exists():
        return {}
    before = json.loads(output.read_text(encoding="utf-8"))
    same = all(before.get(key) == value for key, value in now.items())
    return {(row["workload"], row["opponent"]): row for row in before["rows"] if same and "measured_with" not in row}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    names = sorted({*WORKLOADS, *BUILDERS})
    parser.add_argument("--only", nargs="*", choices=names, metavar="NAME", help=f"these workloads or sides: {', '.join(names)}")
    parser.add_argument("--steps", type=int, help=f"steps of each side, of which the first {WARM_UP_STEPS} are not timed (10)")
    parser.add_argument("--profile", action="store_true", help="also the operations that take the most time in a step, into the results")
    parser.add_argument("--again", action="store_true", help="measure also what the results hold already")
    parser.add_argument("--no-liger", action="store_true", help="leave Liger's kernels out also where they are installed")
    parser.add_argument("--tiny", action="store_true", help="toy shapes on the CPU: tests this script; writes only where --output says")
    parser.add_argument("--output", type=Path, help="results file (benchmarks/results/gpu.json)")
    chosen = parser.parse_args()
    shape = TINY if chosen.tiny else LLAMA_8B
    n_steps, output = chosen.steps or shape.steps, chosen.output or (None if chosen.tiny else harness.RESULTS / "gpu.json")
    now = harness.facts()
    there = {} if chosen.again else rows_there(output, now)
    for workload, sides in WORKLOADS.items():
        if chosen.only and not {workload, *sides} & set(chosen.only):
            continue
        print(f"{workload}: {n_steps} steps each", flush=True)
        only_sides = set(chosen.only or ()) & set(sides)
        for side in sides:
            if only_sides and side not in only_sides and side != sides[0]:
                continue
            missing = [package for package in NEEDS.get(side, ()) if not has(package)]
            if missing or (workload, side) in there:
                print(f"  {side}: {'not installed: ' + ', '.join(missing) if missing else 'measured already'}", flush=True)
                continue
            try:
                row = measure(workload, side, shape, n_steps, chosen)
            except SystemExit as broken:  # a side that ends early; the others are measured all the same
                print(f"  {side}: {broken}", flush=True)
                continue
            row = row if side == sides[0] or (workload, sides[0]) not in there else compared(there[workload, sides[0]], row)
            there[workload, side] = row
            print(f"  {in_words(row)}", flush=True)
            if output is not None:
                harness.write_rows(output, [row], now)  # after each side: one that breaks costs the others nothing


def in_words(row: dict[str, Any]) -> str:
    if "out_of_memory" in row:
        return f"{row['opponent']}: does not fit"
    words = f"{row['opponent']}: {row['seconds']:.3f} s a step, {row['tokens_per_second']:,.0f} tokens/s, {row['peak_bytes'] / 1e9:.1f} GB at the peak"
    words += f", MFU {row['mfu']:.1%}" if row["mfu"] is not None else ""
    words += f"; {row['ratio']:.2f}x" if "ratio" in row else ""
    if "agrees" in row:
        worst = ", ".join(f"{key} {row[f'worst_{key}_difference']:.3%}" for key in NOISE)
        words += f"; {'agrees' if row['agrees'] else 'DOES NOT AGREE'} (worst difference: {worst})"
    for event in row.get("profile", []):
        words += f"\n    {event['milliseconds']:10.2f} ms {event['calls']:6} times  {event['operation']}"
    return words


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        _, _, side, settings = sys.argv
        chosen = json.loads(settings)
        harness.serve(lambda: BUILDERS[side](TINY if chosen["tiny"] else LLAMA_8B, chosen))
    else:
        main()
