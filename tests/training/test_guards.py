"""Numbers that are not finite touch no weight and name their rows; a loss far above its level is noted, skipped or rolled back, exactly."""

import json
import math
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tunesmith.config import Run, validate
from tunesmith.data.batches import Batch
from tunesmith.errors import Interrupted, MachineFailed
from tunesmith.loss import Nll, Scored
from tunesmith.runs import RunFolder
from tunesmith.training.checkpoint import steps_of
from tunesmith.training.guards import LEAST_RECENT, RECENT, spike_limit
from tunesmith.training.loop import _gradients, _steps, resume, train
from tunesmith.training.memory import Cuts
from tunesmith.training.optim import build_optimizer, optimizer_tensors
from tunesmith.training.ready import prepare
from tunesmith.training.resuming import State
from tunesmith.training.stopping import Stop

TIMES = {"seconds", "tokens_per_second", "peak_memory_bytes"}


def make_run(model: Path, folder: Path, output: str, rows: list[dict[str, str]], method: str = "lora", **training: Any) -> Run:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"batch_size": 4, "dtype": "float32", "learning_rate": 1e-2, "max_length": 96, "micro_batch_tokens": 100, **training}
    raw = {
        "model": str(model),
        "output": str(folder / output),
        "method": method,
        "data": {"train": str(folder / "rows.jsonl")},
        "training": settings,
    }
    if method == "qlora":
        raw["quantization"] = {"block_size": 32}
    return validate(raw if method == "full" else {**raw, "lora": {"rank": 4, "dropout": 0.1}}, "test")[0]


def calls(n: int) -> list[dict[str, str]]:
    return [{"prompt": f"spam or ham? call {i} now {'free prize ' * (i % 4)}", "completion": "spam" if i % 3 else "ham"} for i in range(n)]


def logged(folder: RunFolder) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in folder.metrics()]


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(folder.adapter / "adapter_model.safetensors")


# --- not finite -----------------------------------------------------------------------------------------------------------


@contextmanager
def spoiled(row: str, what: str, parameters: dict[str, torch.nn.Parameter], bad: float) -> Iterator[None]:
    """One number is `bad` whenever the micro-batch with this row is computed: the loss, or one entry of one trained tensor's gradient."""
    now: list[Batch] = []

    def enter(module: torch.nn.Module, inputs: Any) -> None:
        if isinstance(module, Scored):
            now[:] = [inputs[0]]

    def leave(module: torch.nn.Module, inputs: Any, nll: Nll) -> Nll | None:
        return Nll(nll.sum * bad, nll.count) if isinstance(module, Scored) and what == "loss" and row in inputs[0].sources else None

    def gradient(value: torch.Tensor) -> torch.Tensor | None:
        if what == "loss" or row not in now[0].sources:
            return None
        value = value.clone()
        value.view(-1)[value.numel() // 2] = bad
        return value

    chosen = parameters[random.Random(row).choice(sorted(name for name, p in parameters.items() if p.requires_grad))]
    hooks = torch.nn.modules.module
    handles = [
        hooks.register_module_forward_pre_hook(enter),
        hooks.register_module_forward_hook(leave),
        chosen.register_hook(gradient),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(("method", "optimizer"), [("full", "adamw"), ("lora", "adamw8bit"), ("qlora", "adamw")])
def test_fifty_numbers_that_are_not_finite_are_caught_with_weights_and_optimizer_as_they_were(
    tiny_model: Path, tmp_path: Path, method: str, optimizer: str
):
    run = make_run(tiny_model, tmp_path, "run", calls(40), method, steps=40, optimizer=optimizer, save_every=1000)
    ready, folder = prepare(run, "run"), RunFolder.create(run)
    scored, parameters = Scored(ready.tuned.loaded.model, ready.tuned.compute_dtype), ready.tuned.parameters
    moments = build_optimizer(parameters, run.training, 1e-3)
    cuts, chance = Cuts(folder, ready), random.Random(method)

    def steps(first: int) -> None:
        _steps(folder, ready, scored, moments, cuts, first, State(), Stop(), lambda: 0.0)

    def held() -> dict[str, torch.Tensor]:
        found = {**{name: p.detach() for name, p in parameters.items()}, **optimizer_tensors(moments, parameters)}
        return {name: tensor.clone() for name, tensor in found.items()}

    _gradients(ready, scored, moments, cuts, 0)
    moments.step()  # so that there are moments to lose
    moments.zero_grad(set_to_none=True)
    n_caught = 0
    for n in range(17):
        step = 2 * n + 1
        what, bad = chance.choice(["loss", "gradient"]), chance.choice([math.nan, math.inf, -math.inf])
        group = chance.choice(ready.step_rows.groups(step))
        before = held()
        with spoiled(group[0].source, what, parameters, bad), pytest.raises(MachineFailed, match="stopped before the update") as caught:
            steps(step)
        n_caught += 1
        after = held()
        assert before.keys() == after.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        named = json.loads((folder.path / f"not-finite-step-{step + 1}.json").read_text())
        assert named["rows"] == [example.source for example in group], "the micro-batch, and not the whole step"
        assert sorted(named["rows_of_step"]) == sorted(example.source for example in ready.step_rows.of_step(step))
        assert group[0].source in caught.value.where
        moments.zero_grad(set_to_none=True)
    assert n_caught == 17  # 51 in the three methods


def test_a_gradient_that_is_finite_when_it_is_computed_again_names_the_rows_of_the_step(tiny_model: Path, tmp_path: Path):
    run = make_run(tiny_model, tmp_path, "run", calls(12), steps=3)
    n = []

    def once(module: torch.nn.Module, inputs: Any, nll: Nll) -> None:
        if isinstance(module, Scored) and torch.is_grad_enabled():
            n.append(1)
            if len(n) == 4:
                nll.sum.register_hook(lambda gradient: gradient * math.nan)

    hook = torch.nn.modules.module.register_module_forward_hook(once)
    try:
        with pytest.raises(MachineFailed, match="gradient norm nan"):
            train(run)
    finally:
        hook.remove()
    [file] = (tmp_path / "run").glob("not-finite-step-*.json")
    named = json.loads(file.read_text())
    assert len(named["rows"]) == 4
    assert named["rows"] == named["rows_of_step"]


# --- spikes ---------------------------------------------------------------------------------------------------------------


def test_a_spike_is_ten_deviations_and_half_a_nat_above_the_median_of_the_last_losses():
    assert spike_limit([1.0] * (LEAST_RECENT - 1)) is None
    assert spike_limit([1.0] * LEAST_RECENT) == 1.5  # no deviation: half a nat
    losses = [2.0 + 0.1 * (-1) ** i for i in range(RECENT)]
    assert spike_limit(losses) == pytest.approx(2.0 + 10 * 1.4826 * 0.1)
    assert spike_limit([*losses[1:], 1000.0]) == pytest.approx(2.1 + 10 * 1.4826 * 0.1, abs=2)  # one spike hides no other


def test_of_noisy_falling_curves_hardly_any_loss_is_a_spike_and_planted_ones_are():
    n_false = n_found = n_planted = n_seen = 0
    for seed in range(20):
        chance = random.Random(seed)
        noise, floor = chance.choice([0.05, 0.2, 0.5]), chance.choice([0.02, 0.5, 2.0])
        curve = [(floor + 6 * math.exp(-step / 40)) * math.exp(chance.gauss(0, noise)) for step in range(500)]
        planted = {step: curve[step] + chance.choice([4.0, 8.0]) + 20 * noise * curve[step] for step in chance.sample(range(100, 500), 3)}
        recent: list[float] = []
        for step, loss in enumerate(curve):
            loss = planted.get(step, loss)
            limit = spike_limit(recent)
            is_spike = limit is not None and loss > limit
            n_false, n_found = n_false + (is_spike and step not in planted), n_found + (is_spike and step in planted)
            recent = [*recent, loss][-RECENT:]
        n_planted, n_seen = n_planted + len(planted), n_seen + len(curve)
    assert n_found == n_planted == 60
    assert n_false / n_seen <= 5e-4


SPIKE = 31  # the step whose rows are poisoned


def poisoned() -> list[dict[str, str]]:
    """Every answer is spam, but in the rows of one step, which say what nobody could foresee."""
    n, batch_size = 160, 4
    order = np.random.default_rng([0, 0]).permutation(n)
    bad = set(order[(SPIKE - 1) * batch_size : SPIKE * batch_size].tolist())
    chance = random.Random(0)
    noise = ["".join(chance.choices("qzxvjkw@#%", k=24)) for _ in range(n)]
    return [{"prompt": f"call {i}", "completion": noise[i] if i in bad else "spam"} for i in range(n)]


def spikes(folder: RunFolder) -> list[dict[str, Any]]:
    return [row for row in folder.metrics() if "spike" in row]


def spiky_run(model: Path, folder: Path, output: str, on_spike: str, **training: Any) -> Run:
    settings = {"steps": 36, "learning_rate": 2e-2, "schedule": "constant", "on_spike": on_spike, **training}
    return make_run(model, folder, output, poisoned(), **settings)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(other[name], tensor) for name, tensor in one.items())


def test_a_spike_is_said_with_its_rows_and_its_update_is_made_or_left_out(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The spike comes right after a checkpoint and is the last step: skipping and going back both end at that checkpoint."""
    bad = {f"rows.jsonl:{i + 1}" for i, row in enumerate(poisoned()) if row["completion"] != "spam"}
    for on_spike, done in [
        ("note", "noted (training.on_spike: note)"),
        ("skip", "its update is left out"),
        ("roll_back", f"back to the weights of step {SPIKE - 1}; the updates since are left out"),
    ]:
        folder = train(spiky_run(tiny_model, tmp_path, on_spike, on_spike, steps=SPIKE, save_every=10))
        [spike] = spikes(folder)
        assert (spike["step"], set(spike["rows"]), spike["then"]) == (SPIKE, bad, done)
        assert spike["spike"] > spike["limit"]
        assert (
            f"step {SPIKE}: loss {spike['spike']:.4f} is far above the last ones (more than {spike['limit']:.4f}): {done}"
            in capsys.readouterr().err
        )
        before, after = (path for step, path in steps_of(folder.checkpoints) if step >= SPIKE - 1)
        for name in ("adapter_model", "optimizer"):
            one, other = (load_file(path / f"{name}.safetensors") for path in (before, after))
            assert equal(one, other) == (on_spike != "note"), (on_spike, name)


def test_rolling_back_goes_to_the_newest_checkpoint_that_was_due_and_on_with_the_next_step(tiny_model: Path, tmp_path: Path):
    run = spiky_run(tiny_model, tmp_path, "back", "roll_back", save_every=7)
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def look(module: torch.nn.Module, inputs: Any) -> None:
        if isinstance(module, Scored):
            taken = [row["step"] for row in RunFolder(Path(run.output)).metrics() if "loss" in row]
            seen.setdefault(max(taken, default=0), {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad})

    hook = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        folder = train(run)
    finally:
        hook.remove()
    assert spikes(folder)[0]["then"] == "back to the weights of step 28; the updates since are left out"
    assert equal(seen[SPIKE], seen[28])
    assert not equal(seen[SPIKE - 1], seen[28])
    assert [row["step"] for row in folder.metrics() if "loss" in row] == list(range(1, 37))


@pytest.mark.parametrize("on_spike", ["skip", "roll_back"])
def test_a_run_with_a_spike_is_bit_equal_however_it_was_stopped(tiny_model: Path, tmp_path: Path, on_spike: str):
    """Ctrl-C leaves a checkpoint between those that are due; going back must not end at it."""
    settings = {"save_every": 9, "keep_checkpoints": 1}
    whole = train(spiky_run(tiny_model, tmp_path, "whole", on_spike, **settings))
    assert [spike["step"] for spike in spikes(whole)] == [SPIKE]
    at, stops = RunFolder(tmp_path / "stopped"), [SPIKE - 2, SPIKE - 1, SPIKE]

    def press(module: torch.nn.Module, inputs: Any) -> None:
        if isinstance(module, Scored) and torch.is_grad_enabled() and stops and sum("loss" in row for row in at.metrics()) == stops[0] - 1:
            del stops[0]
            os.kill(os.getpid(), signal.SIGINT)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(press)
    try:
        with pytest.raises(Interrupted):
            train(spiky_run(tiny_model, tmp_path, "stopped", on_spike, **settings))
        while stops:
            with pytest.raises(Interrupted):
                resume(at)
    finally:
        hook.remove()
    resume(at)
    assert logged(at) == logged(whole)
    assert equal(weights(at), weights(whole))
