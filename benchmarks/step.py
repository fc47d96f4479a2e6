"""How long one step of LoRA, QLoRA or full fine-tuning takes beside transformers + PEFT, on the CPU, and whether both compute the same.

    python benchmarks/step.py                          # all pairs; writes benchmarks/results/speed.json
    python benchmarks/step.py --only hf-peft --steps 5
    python benchmarks/step.py --only step-1b-lora       # also by workload
    python benchmarks/step.py --only step-135m-lora/trl-default
    python benchmarks/step.py --tiny                   # a toy shape: tests this script, writes nothing

The model has the shape of a 135M Llama (width 576, 30 layers, 9 heads over 3, 49,152 words, tied), or of one of 1.2B (2,048, 16, 32 over 8,
128,256), and seeded random weights, with logits spread so that the loss is far from ln V: a lost norm or scale would show. Every linear
layer gets LoRA of rank 16; a step takes 4 x 512 tokens (2 x 512), all trained, in bfloat16 with float32 adapters, AdamW and clipping. Both sides read
the same files, start from the same A (B is zero), see the same tokens, and are compared in loss and gradient norm at every step. For
QLoRA the base is NF4 in blocks of 64 with double quantisation on both sides. Full fine-tuning trains every weight, on our side as float32 masters
with products in bfloat16; without gradient checkpointing on both sides.

Opponents
    trl-default     TRL's SFTTrainer with LoRA as it comes: float32 base under autocast, gradient checkpointing; ours as it comes, without.
                    In an environment of its own, made by benchmarks/peers.py
    trl-bnb         the same on a base of bitsandbytes' four bits
    hf-peft         transformers + PEFT as they come
    hf-peft-tuned   the same with what a careful user could add: our allocator settings, and the fastest of a few thread counts
                    with and without autocast (tried in a process of its own before)
    hf-bnb          transformers + PEFT + bitsandbytes as PEFT's guide has it: prepare_model_for_kbit_training, with its
                    gradient checkpointing and its float32 norms and embeddings; ours with gradient checkpointing too
    hf-bnb-tuned    the same without that preparation, with our allocator settings and the fastest threads and autocast
    hf-tuned        full: transformers with float32 masters under bfloat16 autocast, our allocator settings, fused AdamW, the fastest threads
    hf-bf16-tuned   full: the same with everything in bfloat16, weights and moments too: less memory to pass over, and updates that are rounded
    own-lora        our own LoRA step over the bfloat16 base: what four bits cost in time (the losses differ, as the weights do)
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import _harness as harness
import peers

PAIRS = [
    ("step-135m-lora", "trl-default"), ("step-135m-qlora", "trl-bnb"), ("step-135m-lora", "hf-peft"), ("step-135m-lora", "hf-peft-tuned"),
    ("step-135m-qlora", "hf-bnb"), ("step-135m-qlora", "hf-bnb-tuned"), ("step-135m-qlora", "own-lora"),
    ("step-1b-lora", "trl-default"), ("step-1b-qlora", "trl-bnb"), ("step-135m-full", "hf-tuned"), ("step-135m-full", "hf-bf16-tuned"),
]  # fmt: skip
RANK, ALPHA, RATE, MAX_GRAD_NORM, SEED = 16, 32.0, 3e-4, 1.0, 0
FULL_RATE = (
    3e-5  # a tenth, as the rule of training/optim.py has it: at LoRA's, gradient norms of this random model fall from 108 to 5 in six steps
)
WARM_UP_STEPS = 2  # compared in value, left out of the time: they build oneDNN's kernels and touch memory for the first time
LOGIT_SPREAD = 3.0  # standard deviation of the logits: the first loss is about ln V + 3² / 2
N_WORDS = 64  # the text uses so few of the vocabulary that 20 steps can learn which: the loss must fall on both sides
# Largest differences that pass. Measured with 30 layers of width 192 at this rate, in 20 steps: loss 0.06 % between the sides (each up to
# 0.3 % from float32), gradient norm 0.7 % (each up to 1.3 % from float32). At 1e-3 the random model met a step so ill-conditioned that the
# norms were 9 % apart and 11 % (ours) and 22 % (theirs) from float32: hence the lower rate. The first loss knows no update yet.
FIRST_LOSS_NOISE, LOSS_NOISE, GRAD_NORM_NOISE = 0.001, 0.005, 0.03


@dataclass(frozen=True)
class Shape:
    """A Llama, and the rows and tokens of one step."""

    workload: str
    method: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    rows: int
    tokens: int
    steps: int = 20

    @property
    def rate(self) -> float:
        return FULL_RATE if self.method == "full" else RATE


SHAPES = {
    shape.workload: shape
    for method in ("lora", "qlora", "full")
    for shape in (
        Shape(f"step-135m-{method}", method, 576, 30, 9, 3, 1536, 49_152, 4, 512),
        Shape(f"step-1b-{method}", method, 2048, 16, 32, 8, 8192, 128_256, 2, 512, 6),
        Shape(f"step-tiny-{method}", method, 64, 3, 4, 2, 128, 512, 2, 64),
    )
}

Answer = Callable[[harness.Command], harness.Reply]


# --- what both sides share ----------------------------------------------------------------------------------------------


def write_model(folder: Path, shape: Shape) -> None:
    """Seeded weights in bfloat16 with a tokenizer that nobody uses; a depth-scaled residual keeps 30 random layers tame."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    transformers.utils.logging.disable_progress_bar()
    config = LlamaConfig(
        hidden_size=shape.width, num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.feed_forward, vocab_size=shape.vocabulary, tie_word_embeddings=True, max_position_embeddings=2048,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                weight.copy_(1 + 0.1 * noise)
            elif "embed" in name:
                weight.copy_(noise * LOGIT_SPREAD / math.sqrt(shape.width))
            else:
                last_of_block = name.endswith(("o_proj.weight", "down_proj.weight"))
                weight.copy_(noise / math.sqrt(weight.shape[1] * (2 * shape.layers if last_of_block else 1)))
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", pad_token="?", eos_token="?").save_pretrained(folder)


def ids_of_step(shape: Shape, step: int) -> np.ndarray:
    """int64 [rows, tokens], other ones at every step."""
    words = np.random.default_rng(SEED).choice(shape.vocabulary, N_WORDS, replace=False)
    return words[np.random.default_rng([SEED, step]).integers(N_WORDS, size=(shape.rows, shape.tokens))]


def reply(seconds: float, loss: float, grad_norm: float) -> harness.Reply:
    return {"seconds": seconds, "loss": loss, "grad_norm": grad_norm, "peak_bytes": harness.peak_resident_bytes()}


# --- ours ---------------------------------------------------------------------------------------------------------------


def ours(folder: Path, shape: Shape, settings: dict[str, Any]) -> tuple[harness.Reply, Answer]:
    """The product's own functions in the order in which training/loop.py calls them."""
    import tunesmith.api  # noqa: F401 - every command's entry: sets the allocator before torch is imported

    import torch  # isort: skip

    from tunesmith.config import DataConfig, LoraConfig, Run, TrainingConfig
    from tunesmith.data.batches import collate
    from tunesmith.data.template import Example
    from tunesmith.files import write_tensors
    from tunesmith.loss import Scored
    from tunesmith.training.method import build
    from tunesmith.training.optim import build_optimizer, clip_grad_norm

    training = TrainingConfig(
        learning_rate=shape.rate,
        max_grad_norm=MAX_GRAD_NORM,
        dtype="bfloat16",
        seed=SEED,
        gradient_checkpointing=settings.get("checkpointing", False),
    )
    lora = LoraConfig(rank=RANK, alpha=ALPHA)
    method = settings.get("method", shape.method)
    tuned = build(
        Run(model=str(folder), method=method, output="none", data=DataConfig(train="none"), lora=lora, training=training), "bench"
    )
    if shape.method != "full" and not (folder / "start.safetensors").exists():
        write_tensors(folder / "start.safetensors", tuned.parameters)
    scored = Scored(tuned.loaded.model, tuned.compute_dtype)
    optimizer = build_optimizer(tuned.parameters, training, shape.rate)

    def step(command: harness.Command) -> harness.Reply:
        started = time.perf_counter()
        tuned.loaded.model.train()
        batch = collate([Example(ids, np.ones(len(ids), dtype=bool), "") for ids in ids_of_step(shape, command["step"])])
        nll = scored(batch)
        (nll.sum / batch.n_trained).backward()
        loss = float(nll.sum.detach()) / batch.n_trained
        grad_norm = float(clip_grad_norm(tuned.parameters, training.max_grad_norm))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return reply(time.perf_counter() - started, loss, grad_norm)

    return {"threads": torch.get_num_threads()}, step


# --- theirs -------------------------------------------------------------------------------------------------------------


def started(model: Any, folder: Path) -> list[Any]:
    """Its trained parameters, now those that our side began with."""
    import torch
    from safetensors.torch import load_file

    trained = {name.replace(".default.", "."): p for name, p in model.named_parameters() if p.requires_grad}
    start = load_file(folder / "start.safetensors")
    if trained.keys() != start.keys():
        raise SystemExit(f"the two sides adapt different layers: {sorted(trained.keys() ^ start.keys())[:4]}")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(start[name])
    return list(trained.values())


def whole(folder: Path, settings: dict[str, Any]) -> Any:
    """Every weight trained, as float32 masters where autocast multiplies in bfloat16; both sides read the same file."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    dtype = torch.float32 if settings["autocast"] else torch.bfloat16
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    model.config.use_cache = False
    return model


def with_adapters(folder: Path, shape: Shape, settings: dict[str, Any]) -> Any:
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    transformers.utils.logging.disable_progress_bar()
    quantised = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
    base = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, use_safetensors=True, quantization_config=quantised if shape.method == "qlora" else None
    )
    base.config.use_cache = False  # as transformers' Trainer does
    if settings.get("prepared"):
        base = prepare_model_for_kbit_training(base)
    return get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"))


def theirs(folder: Path, shape: Shape, settings: dict[str, Any]) -> tuple[harness.Reply, Answer]:
    """The step as PEFT's documentation writes it.

    settings   keep_memory: our allocator settings; threads: their number; autocast: run the forward under bfloat16 autocast;
               prepared: as PEFT's guide prepares a quantised base
    """
    if settings.get("keep_memory"):
        from tunesmith.hardware import keep_freed_memory

        keep_freed_memory()
    import torch
    from torch import nn

    if "threads" in settings:
        torch.set_num_threads(settings["threads"])
    model = whole(folder, settings) if shape.method == "full" else with_adapters(folder, shape, settings)
    parameters = list(model.parameters()) if shape.method == "full" else started(model, folder)
    optimizer = torch.optim.AdamW(parameters, lr=shape.rate, weight_decay=0.0, fused=True)
    model.train()

    def gradients(number: int, autocast: bool) -> float:
        ids = torch.from_numpy(ids_of_step(shape, number))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        return float(loss.detach())

    def answer(command: harness.Command) -> harness.Reply:
        if "try" in command:  # time a setting without an update
            torch.set_num_threads(command["try"]["threads"])
            seconds = []
            for _ in range(2):  # the first warms up
                started = time.perf_counter()
                gradients(0, command["try"]["autocast"])
                seconds.append(time.perf_counter() - started)
                optimizer.zero_grad(set_to_none=True)
            return {"seconds": seconds[-1]}
        started = time.perf_counter()
        loss = gradients(command["step"], settings.get("autocast", False))
        grad_norm = float(nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return reply(time.perf_counter() - started, loss, grad_norm)

    return {"threads": torch.get_num_threads()}, answer


def trl(folder: Path, shape: Shape, settings: dict[str, Any]) -> tuple[harness.Reply, Answer]:
    """TRL's SFTTrainer as it comes (a float32 base under bfloat16 autocast, gradient checkpointing), a step of it at each command.

    The trainer runs in a thread of its own and waits before each step, so that what is timed is its own loop, from fetching the rows to the
    update. Its first step reads A from the file; its schedule is constant, as ours is.
    """
    import queue
    import threading

    import torch
    import transformers
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    transformers.utils.logging.disable_progress_bar()
    commands: queue.Queue[harness.Command] = queue.Queue()
    replies: queue.Queue[harness.Reply] = queue.Queue()
    steps = settings["steps"]
    seen: dict[str, float] = {}

    class InTurns(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            commands.get()
            seen["begun"] = time.perf_counter()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:  # after the update
                replies.put(reply(time.perf_counter() - seen["begun"], float(logs["loss"]), float(logs["grad_norm"])))

    quantised = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
    rows = [{"input_ids": ids.tolist()} for n in range(steps) for ids in ids_of_step(shape, n)]
    trainer = SFTTrainer(
        model=str(folder),
        args=SFTConfig(
            output_dir=str(folder / "trl"), per_device_train_batch_size=shape.rows, max_steps=steps, learning_rate=RATE, lr_scheduler_type="constant",
            max_grad_norm=MAX_GRAD_NORM, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, shuffle_dataset=False,
            train_sampling_strategy="sequential", model_init_kwargs={"quantization_config": quantised} if shape.method == "qlora" else None,
        ),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[InTurns()],
    )  # fmt: skip
    started(trainer.model, folder)
    threading.Thread(target=trainer.train, daemon=True).start()

    def answer(command: harness.Command) -> harness.Reply:
        commands.put(command)
        return replies.get()

    return {"threads": torch.get_num_threads()}, answer


# --- the comparison -----------------------------------------------------------------------------------------------------


def start(side: str, folder: Path, shape: Shape, settings: dict[str, Any]) -> harness.Worker:
    script, python = str(Path(__file__).resolve()), str(peers.python("trl")) if side == "trl" else sys.executable
    return harness.Worker(side, [python, script, "worker", side, str(folder), shape.workload, json.dumps(settings)])


def tuned_settings(folder: Path, shape: Shape, opponent: str) -> dict[str, Any]:
    """The opponent's fastest setting; found in a process that is thrown away, so that trying leaves no trace in its peak."""
    ways = [opponent == "hf-tuned"] if shape.method == "full" else [False, True]
    with start("theirs", folder, shape, {"keep_memory": True, "autocast": ways[0]}) as worker:
        most = worker.started_with["threads"]
        tries = [{"threads": threads, "autocast": autocast} for threads in sorted({most, max(1, most // 2)}) for autocast in ways]
        timed = [(worker.ask({"try": setting})["seconds"], setting) for setting in tries]
    for seconds, setting in timed:
        print(f"  tried {setting}: {seconds:.3f} s")
    return {"keep_memory": True, **min(timed, key=lambda item: item[0])[1]}


def compare(opponent: str, folder: Path, shape: Shape, n_steps: int) -> dict[str, Any]:
    """One row of results; ends the program at the first step where the two sides differ by more than noise."""
    print(f"{shape.workload} against {opponent}: {n_steps} steps each, in turns")
    pairs: list[dict[str, harness.Reply]] = []
    with start("ours", folder, shape, {"checkpointing": opponent == "hf-bnb"}) as our_side:  # first: it writes the A that both start from
        settings = (
            tuned_settings(folder, shape, opponent) if opponent.endswith("-tuned") else {"prepared": True} if opponent == "hf-bnb" else {}
        )
        settings |= {"method": "lora"} if opponent == "own-lora" else {"steps": n_steps} if opponent.startswith("trl") else {}
        their_name = {"own-lora": "ours", "trl-default": "trl", "trl-bnb": "trl"}.get(opponent, "theirs")
        with start(their_name, folder, shape, settings) as their_side:
            commands = [{"step": n} for n in range(n_steps)]
            for n, pair in enumerate(harness.alternate({"ours": our_side, "theirs": their_side}, commands)):
                mine, other = pair["ours"], pair["theirs"]
                print(
                    f"  step {n + 1}: loss {mine['loss']:.5f} / {other['loss']:.5f}, "
                    f"gradient norm {mine['grad_norm']:.5f} / {other['grad_norm']:.5f}, "
                    f"{mine['seconds']:.3f} s / {other['seconds']:.3f} s = {other['seconds'] / mine['seconds']:.2f}x",
                    flush=True,
                )
                for key, noise in (("loss", LOSS_NOISE if n else FIRST_LOSS_NOISE), ("grad_norm", GRAD_NORM_NOISE)):
                    difference = harness.relative_difference(mine[key], other[key])
                    if opponent != "own-lora" and not difference <= noise:
                        raise SystemExit(f"step {n + 1}: {key} differs by {difference:.3%}, more than {noise:.1%}; nothing is written")
                pairs.append(pair)
    first, last = pairs[0], pairs[-1]
    worst = {key: max(harness.relative_difference(p["ours"][key], p["theirs"][key]) for p in pairs) for key in ("loss", "grad_norm")}
    timed = pairs[min(WARM_UP_STEPS, len(pairs) - 1) :]
    row = {
        "workload": shape.workload, "opponent": opponent,
        **harness.summary([p["ours"]["seconds"] for p in timed], [p["theirs"]["seconds"] for p in timed]),
        "ours_peak_bytes": last["ours"]["peak_bytes"], "theirs_peak_bytes": last["theirs"]["peak_bytes"],
        "loss_ours": last["ours"]["loss"], "loss_theirs": last["theirs"]["loss"],
        "grad_norm_ours": last["ours"]["grad_norm"], "grad_norm_theirs": last["theirs"]["grad_norm"],
        "first_loss_ours": first["ours"]["loss"], "first_loss_theirs": first["theirs"]["loss"],
        "steps_compared": len(pairs), "worst_loss_difference": worst["loss"], "worst_grad_norm_difference": worst["grad_norm"],
        "tokens_per_step": shape.rows * shape.tokens, "threads_ours": our_side.started_with["threads"],
        "threads_theirs": settings.get("threads", their_side.started_with["threads"]), "autocast_theirs": settings.get("autocast", False),
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    print(
        f"  {row['ratio']:.2f}x (from {row['ratio_min']:.2f} to {row['ratio_max']:.2f}); "
        f"{row['ours_seconds']:.3f} s and {row['theirs_seconds']:.3f} s a step; "
        f"peak {row['ours_peak_bytes'] / 1e9:.2f} GB and {row['theirs_peak_bytes'] / 1e9:.2f} GB\n"
        f"  worst difference in {len(pairs)} steps: loss {worst['loss']:.4%}, gradient norm {worst['grad_norm']:.4%}",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    names = sorted({name for pair in PAIRS for name in (*pair, "/".join(pair))})
    parser.add_argument("--only", nargs="*", choices=names, metavar="NAME", help=f"these opponents, workloads or pairs: {', '.join(names)}")
    parser.add_argument("--steps", type=int, help="steps of each side, of which the first two are not timed (20; 1B: 6)")
    parser.add_argument("--tiny", action="store_true", help="a toy shape that tests this script; writes only where --output says")
    parser.add_argument("--output", type=Path, help="results file (benchmarks/results/speed.json)")
    chosen = parser.parse_args()
    if chosen.steps is not None and chosen.steps < 1:
        parser.error("--steps: at least 1")
    output = chosen.output or (None if chosen.tiny else harness.RESULTS / "speed.json")
    now = harness.facts()
    pairs = [pair for pair in PAIRS if not chosen.only or {*pair, "/".join(pair)} & set(chosen.only)]
    for workload, opponent in pairs:
        shape = SHAPES[workload.replace("135m", "tiny").replace("1b", "tiny") if chosen.tiny else workload]
        with tempfile.TemporaryDirectory(prefix="tunesmith-step-") as folder:
            write_model(Path(folder), shape)
            row = compare(opponent, Path(folder), shape, chosen.steps or shape.steps)
            if output is not None:
                harness.write_rows(output, [row], now)  # after each opponent: a broken second one costs nothing
                print(f"  written to {output}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        _, _, side, folder, workload, settings = sys.argv
        harness.serve(lambda: {"ours": ours, "theirs": theirs, "trl": trl}[side](Path(folder), SHAPES[workload], json.loads(settings)))
    else:
        main()
