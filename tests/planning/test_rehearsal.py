"""A step of shapes beside the same step of numbers: one account of both."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import transformers
from model.families import FAMILIES, GROUPED, tiny

from tunesmith.config import validate
from tunesmith.loss import Scored
from tunesmith.planning import rehearsal
from tunesmith.planning.account import Account
from tunesmith.planning.plan import config_of, optimizer_bytes
from tunesmith.planning.rehearsal import Scene, rehearse
from tunesmith.planning.shapes import example_of, rows_of
from tunesmith.training.optim import build_optimizer
from tunesmith.training.ready import prepare

LENGTH = 64


def run_of(folder, method="lora", more=None, **training):
    """A run on acorn whose rows all have about LENGTH tokens."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": "a b c " * (20 + n), "completion": "d e f"}) + "\n" for n in range(12)), encoding="utf-8")
    config = {
        "model": "acorn",
        "method": method,
        "data": {"train": str(rows)},
        "training": {"max_length": 512, "batch_size": 4, **training},
        **(more or {}),
    }
    return validate(config, "the test")[0]


def account_of_a_step(run, size):
    """Peak of the second of two steps on real tensors, as the loop takes them."""
    ready = prepare(run, "test")
    tuned = ready.tuned
    batch = example_of(size)
    with Account() as account:
        account.hold([*tuned.loaded.model.parameters(), *tuned.loaded.model.buffers()])  # kernels read codes without torch
        optimizer = build_optimizer(tuned.parameters, run.training, 1e-4)
        scored = Scored(tuned.loaded.model, tuned.compute_dtype).train()
        for _ in range(2):
            account.peak_bytes = 0
            nll = scored(batch)
            (nll.sum / nll.count).backward()
            del nll
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return account.peak_bytes, ready


def scene_of(run, ready):
    longest = max(map(len, ready.rows.train))
    return Scene(run, config_of(run.model)[0], ready.tuned.compute_dtype, True, longest)


@pytest.mark.parametrize(
    ("method", "training"),
    [
        ("lora", {}),
        ("lora", {"packing": True}),
        ("lora", {"gradient_checkpointing": True}),
        ("qlora", {"dtype": "bfloat16"}),
        ("full", {"dtype": "bfloat16"}),
        ("full", {"optimizer": "adamw8bit", "dtype": "float32", "packing": True}),
    ],
)
def test_the_peak_of_a_rehearsal_is_that_of_the_step(tmp_path, method, training):
    run = run_of(tmp_path, method, **training)
    size = replace(rows_of(4, LENGTH, 0.2, run), later=False)
    real, ready = account_of_a_step(run, size)
    step = rehearse(scene_of(run, ready), size)
    assert sum(step.peak.values()) + optimizer_bytes(run, step) == pytest.approx(real, rel=0.03)
    assert step.n_trained == sum(p.numel() for p in ready.tuned.parameters.values())


def test_kinds_are_what_they_are_called(tmp_path):
    run = run_of(tmp_path, "qlora")
    ready = prepare(run, "test")
    step = rehearse(scene_of(run, ready), rows_of(2, LENGTH, 0.2, run))
    tuned = ready.tuned
    adapters = sum(p.nbytes for p in tuned.parameters.values())
    everything = {id(t): t.nbytes for t in [*tuned.loaded.model.parameters(), *tuned.loaded.model.buffers()]}
    assert step.peak["adapters"] == adapters
    assert step.peak["gradients"] == adapters  # rows_of asks as for a later micro-batch, when they are there
    assert step.peak["weights"] == pytest.approx(sum(everything.values()) - adapters, rel=0.001)
    largest = max(
        layer.n_outputs * layer.n_inputs for layer in tuned.loaded.model.modules() if hasattr(layer, "dense") and hasattr(layer, "n_inputs")
    )
    assert step.peak["de-quantise buffer"] == largest * tuned.compute_dtype.itemsize


def test_two_short_models_tell_what_the_whole_one_would(tmp_path, monkeypatch):
    run = run_of(tmp_path, "lora")
    scene = Scene(run, config_of("acorn")[0], torch.bfloat16, False, LENGTH)
    size = rows_of(2, LENGTH, 0.2, run)
    short = rehearse(scene, size)
    assert rehearsal._cut(scene).long < scene.n_layers
    monkeypatch.setattr(rehearsal, "_cut", lambda scene: rehearsal._Cut(scene.n_layers, scene.n_layers, scene.n_layers))
    whole = rehearse(scene, size)
    assert sum(short.peak.values()) == pytest.approx(sum(whole.peak.values()), rel=0.002)
    for measure in ("products bfloat16", "attention bfloat16", "passes"):
        amounts = [sum(a for (_, name), a in step.work.items() if name == measure) for step in (short, whole)]
        assert amounts[0] == pytest.approx(amounts[1], rel=0.002), measure


def test_operations_are_those_of_the_formula(tmp_path):
    """FACTS: LoRA 4 (body) + 6 (adapters) a token, head 4 a scored position: forward and the gradient of its input."""
    run = run_of(tmp_path, "lora")
    config = config_of("acorn")[0]
    size = rows_of(4, LENGTH, 0.2, run)
    step = rehearse(Scene(run, config, torch.float32, False, LENGTH), size)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    body = sum(m.weight.numel() for path, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in path)
    head = config.vocab_size * config.hidden_size
    expected = size.computed * (4 * body + 6 * step.n_trained) + 4 * head * size.scored
    kinds = ("products float32", "weight products float32", "thin operations")
    products = sum(amount for (part, name), amount in step.work.items() if name in kinds and part != "pairs")
    assert products == pytest.approx(expected, rel=0.05)  # the first layer's input needs no gradient


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_that_can_be_trained_can_be_rehearsed(tmp_path, family):
    run = run_of(tmp_path, "lora", {"lora": {"rank": 2}})
    model = tiny(family)
    step = rehearse(Scene(run, model.config, torch.float32, True, 24), rows_of(2, 24, 1.0, run))
    dense = sum({id(p): p.nbytes for p in model.parameters()}.values())
    assert step.peak["weights"] == pytest.approx(dense, rel=0.02)
    assert (step.why_full_logits is None) == (Scored(model).why_full_logits is None)


def test_many_scored_positions_are_a_straight_line_from_few(tmp_path):
    run = run_of(tmp_path, "lora")
    scene = Scene(run, config_of("acorn")[0], torch.bfloat16, True, 1024)
    size = rows_of(3, 1024, 1.0, run)
    by_line = rehearse(scene, size)
    whole = rehearsal._rehearse(scene, size, True, 8, 8, lambda model: None)
    assert sum(by_line.peak.values()) == pytest.approx(sum(whole.peak.values()), rel=0.002)
    assert by_line.work["scored", "products bfloat16"] == pytest.approx(whole.work["scored", "products bfloat16"], rel=0.01)


def test_unlike_layers_are_repeated_as_a_whole_period():
    kinds = ["sliding_attention", "full_attention", "full_attention"] * 5
    config = transformers.Gemma2Config(**GROUPED | {"num_hidden_layers": 15}, head_dim=16, sliding_window=5, layer_types=kinds)
    cut = rehearsal._repeats("unlike", config)
    assert (cut.short, cut.long, cut.period) == (6, 9, 3)


def test_a_model_of_many_layers_is_found_to_repeat_without_building_them():
    cut = rehearsal._repeats("deep", transformers.LlamaConfig(**GROUPED | {"num_hidden_layers": 10**9}))
    assert (cut.short, cut.long, cut.period) == (2, 3, 1)


DEEP = """
import signal, torch, transformers
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the tests themselves run in a shell's background
from tunesmith import cli
from tunesmith.config import validate
from tunesmith.planning.rehearsal import Scene, rehearse
from tunesmith.planning.shapes import rows_of
run = validate({"model": "acorn", "method": "full", "output": "x", "data": {"train": "x"}, "full": {"train": ["layers"]}}, "test")[0]
config = transformers.LlamaConfig(num_hidden_layers=100_000, hidden_size=32, intermediate_size=48, num_attention_heads=4, vocab_size=96)

def work(**ignored):
    print("begun", flush=True)
    rehearse(Scene(run, config, torch.float32, True, 24), rows_of(2, 24, 1.0, run))  # by name: every layer is built

cli.app = work  # errors are said, and the process ends, as the command does it
cli.main()
"""


def test_ctrl_c_ends_a_rehearsal():
    with subprocess.Popen([sys.executable, "-c", DEEP], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None and job.stdout.readline() == "begun\n"
        time.sleep(0.5)
        job.send_signal(signal.SIGINT)
        try:
            said = job.communicate(timeout=15)[1]
        finally:
            job.kill()
    assert (job.returncode, said) == (130, "stopped at once\n")


def test_a_mixture_is_rehearsed_with_an_even_router(tmp_path):
    run = run_of(tmp_path, "lora", {"lora": {"rank": 2}})
    config = transformers.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2)
    step = rehearse(Scene(run, config, torch.float32, True, 24), rows_of(2, 24, 1.0, run))
    experts = 4 * 3 * config.hidden_size * config.intermediate_size
    assert step.largest_layer > 4 * experts
