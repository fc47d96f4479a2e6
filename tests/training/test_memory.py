"""Memory that runs out, really and by injection: the micro-batch halves, the step is the same one, each row is in it once.

The real limit is RLIMIT_AS in a process of its own; injected failures are raised by hooks on the model's forward, as an allocator would.
"""

import gc
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tunesmith.config import Run, to_yaml, validate
from tunesmith.data.batches import Batch, StepRows, tokens_of
from tunesmith.data.template import Example
from tunesmith.errors import MachineFailed
from tunesmith.loss import Scored
from tunesmith.runs import RunFolder
from tunesmith.training.checkpoint import open_valid, steps_of
from tunesmith.training.loop import _gradients, resume, train
from tunesmith.training.memory import Cuts, attempt, is_out_of_memory, largest_micro_batches
from tunesmith.training.optim import build_optimizer
from tunesmith.training.ready import prepare

TIMES = {"seconds", "tokens_per_second", "peak_memory_bytes"}
REFUSED = (  # as this machine's libraries have said it under a limit
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: MemoryError(),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 19 bytes."),
    lambda: RuntimeError("could not create a primitive"),
    lambda: RuntimeError("std::bad_alloc"),
)  # fmt: skip


def write_rows(path: Path, n: int = 40, n_words: int = 4) -> Path:
    rows = [
        {"prompt": f"spam or ham? call {i} now {'free prize ' * (i % 5 * n_words // 4)}", "completion": "spam" if i % 3 else "ham"}
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_run(
    model: Path, folder: Path, output: str = "run", method: str = "lora", lora: dict[str, Any] | None = None, n_rows: int = 40, n_words: int = 4,
    **training: Any,
) -> Run:  # fmt: skip
    settings = {
        "steps": 4, "batch_size": 12, "max_length": 96, "dtype": "float32", "learning_rate": 1e-2, "save_every": 1, "validate_every": 2,
        "keep_checkpoints": 99, **training,
    }  # fmt: skip
    if "batch_tokens" in settings:
        del settings["batch_size"]
    data = {"train": str(write_rows(folder / f"rows-{n_rows}-{n_words}.jsonl", n_rows, n_words)), "validation": 0.2}
    raw = {"model": str(model), "output": str(folder / output), "method": method, "data": data, "training": settings}
    if method == "qlora":
        raw["quantization"] = {"block_size": 32}
    return validate(raw if method == "full" else {**raw, "lora": {"rank": 4, **(lora or {})}}, "test")[0]


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    [file] = [*folder.path.glob("adapter/adapter_model.safetensors"), *folder.path.glob("model/model.safetensors")]
    return load_file(file)


def logged(folder: RunFolder) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in folder.metrics()]


def same_but_for_rounding(one: RunFolder, other: RunFolder) -> None:
    for a, b in zip(logged(one), logged(other), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(other)[name], tensor, rtol=1e-4, atol=1e-6)


def bit_equal(one: RunFolder, other: RunFolder) -> None:
    assert logged(one) == logged(other)
    assert all(torch.equal(weights(other)[name], tensor) for name, tensor in weights(one).items())


@contextmanager
def refusing(when: Callable[[Batch], bool], chance: random.Random | None = None) -> Iterator[list[Batch]]:
    """Memory is refused for the batches that `when` says, after their forward pass or in the middle of the backward one; they are listed."""
    refused: list[Batch] = []
    chance = chance or random.Random(0)

    def fail(_: torch.Tensor) -> None:
        raise chance.choice(REFUSED)()

    def hook(module: torch.nn.Module, inputs: Any, nll: Any) -> None:
        if isinstance(module, Scored) and when(inputs[0]):
            refused.append(inputs[0])
            if nll.sum.requires_grad and chance.random() < 0.5:
                nll.sum.register_hook(fail)
            else:
                fail(nll.sum)

    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        yield refused
    finally:
        handle.remove()


def number(at: int, seen: list[Batch]) -> Callable[[Batch], bool]:
    """The batch that is computed after `at` others; all are listed in `seen`."""

    def when(batch: Batch) -> bool:
        seen.append(batch)
        return len(seen) == at + 1

    return when


# --- the same step, cut smaller -------------------------------------------------------------------------------------------


@pytest.fixture
def quick_collection() -> Iterator[None]:
    """What the imported libraries hold is not looked at again at each failure."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(
    ("method", "packing", "n_refusals"), [("lora", False, 13), ("lora", True, 13), ("full", False, 12), ("full", True, 12)]
)
def test_fifty_refusals_at_random_micro_batches_give_the_same_gradients_with_each_row_once(
    tiny_model: Path, tmp_path: Path, quick_collection: None, method: str, packing: bool, n_refusals: int
):
    chance = random.Random(f"{method} {packing}")
    run = make_run(tiny_model, tmp_path, method=method, micro_batch_tokens=300, packing=packing, steps=30)
    ready, folder = prepare(run, "run"), RunFolder.create(run)
    scored, parameters = Scored(ready.tuned.loaded.model), ready.tuned.parameters
    optimizer = build_optimizer(parameters, run.training, 1e-3)
    scored.train()
    for n in range(n_refusals):
        step = chance.randrange(30)
        folder.set_status(micro_batches=None)
        _, n_trained, losses = _gradients(ready, scored, optimizer, Cuts(folder, ready), step)
        expected = {name: p.grad.clone() for name, p in parameters.items()}
        optimizer.zero_grad(set_to_none=True)

        at = chance.choice([i for i, group in enumerate(ready.step_rows.groups(step)) if len(group) > 1])
        seen: list[Batch] = []
        with refusing(number(at, seen), chance) as refused:
            batches, n_again, again = _gradients(ready, scored, optimizer, Cuts(folder, ready), step)
        assert len(refused) == 1, n
        assert n_again == n_trained
        assert float(sum(again)) == pytest.approx(float(sum(losses)), rel=1e-5)
        rows = Counter(example.source for example in ready.step_rows.of_step(step))
        assert Counter(source for batch in batches for source in batch.sources) == rows
        assert Counter(source for batch in seen[at + 1 :] for source in batch.sources) == rows, "computed once each"
        assert len(batches) > len(losses)
        for name, parameter in parameters.items():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("packing", [False, True])
def test_a_run_that_ran_out_of_memory_ends_in_the_same_weights_says_so_once_and_stays_halved(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], packing: bool
):
    whole = train(make_run(tiny_model, tmp_path, "whole", packing=packing))
    capsys.readouterr()
    computed: list[int] = []
    most = 300 if packing else 400  # what the examples begin with stands in a packed row once

    def when(batch: Batch) -> bool:
        computed.append(batch.ids_BT.numel())
        return len(RunFolder(tmp_path / "less").metrics()) >= 2 and torch.is_grad_enabled() and batch.ids_BT.numel() > most

    with refusing(when) as refused:
        less = train(make_run(tiny_model, tmp_path, "less", packing=packing))
    same_but_for_rounding(whole, less)
    [said] = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert said.startswith("out of memory in step 4: at most") and said.endswith("from here on, and again")
    assert len(refused) == 1
    kept = less.status()["micro_batches"]
    assert [cut["since"] for cut in kept["training"]] == [0, 3]
    assert [cut["since"] for cut in kept["validation"]] == [0]
    assert max(n for n in computed[-3:]) <= most


def test_a_resumed_run_is_cut_as_before_from_the_same_step_on_and_bit_equal(tiny_model: Path, tmp_path: Path):
    at = tmp_path / "whole"

    def when(batch: Batch) -> bool:
        return at.exists() and len(RunFolder(at).metrics()) >= 3 and batch.ids_BT.numel() > 400

    with refusing(when) as refused:
        whole = train(make_run(tiny_model, tmp_path, "whole", lora={"dropout": 0.2}))
    assert refused
    for stop in (0, 1, 2, 3):
        stopped = RunFolder(tmp_path / f"stopped-{stop}")
        shutil.copytree(whole.path, stopped.path)
        for step, path in steps_of(stopped.checkpoints):
            if step > stop:
                shutil.rmtree(path)
        stopped.set_status(state="interrupted")
        resume(stopped)  # nothing is refused now: it knows
        bit_equal(whole, stopped)


def test_a_config_that_asks_for_other_micro_batches_is_obeyed(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tiny_model, tmp_path)
    ready, folder = prepare(run, "run"), RunFolder.create(run)
    Cuts(folder, ready).halve("training", 0, ready.step_rows.groups(0), "step 1")
    assert Cuts(folder, ready).rows(0).micro_batch_tokens < 600
    assert "as they have fitted into memory before: at most" in capsys.readouterr().err
    other = prepare(make_run(tiny_model, tmp_path, micro_batch_tokens=1000), "run")
    assert Cuts(folder, other).rows(0).micro_batch_tokens == 1000
    assert "the config has changed since" in capsys.readouterr().err


def test_a_number_of_examples_at_once_is_halved_too(tiny_model: Path, tmp_path: Path):
    run = make_run(tiny_model, tmp_path, micro_batch_size=8)
    ready, folder = prepare(run, "run"), RunFolder.create(run)
    cuts = Cuts(folder, ready)
    for n_most in (4, 2, 1):
        cuts.halve("training", 0, cuts.rows(0).groups(0), "step 1")
        assert max(map(len, cuts.rows(0).groups(0))) == n_most
    with pytest.raises(MachineFailed, match="one example alone does not fit"):
        cuts.halve("training", 0, cuts.rows(0).groups(0), "step 1")


def test_one_example_that_does_not_fit_ends_the_run_with_what_would_help_and_the_checkpoints_as_they_were(tiny_model: Path, tmp_path: Path):
    at = tmp_path / "run"
    with (
        refusing(lambda _: len(RunFolder(at).metrics()) >= 3),
        pytest.raises(MachineFailed, match="one example alone does not fit") as caught,
    ):
        train(make_run(tiny_model, tmp_path))
    assert caught.value.what.endswith("; the steps up to 2 are saved")
    assert "rows-40-4.jsonl:" in caught.value.where and "tokens" in caught.value.where
    for words in (
        "training.gradient_checkpointing: true, then tunesmith resume",
        "in a new run training.max_length below",
        "method: qlora",
    ):
        assert words in caught.value.fix
    folder = RunFolder(at)
    assert folder.status()["state"] == "failed"
    assert folder.status()["micro_batches"]["training"] == [{"since": 0, "tokens": 8192, "size": None}], "small pieces did not help"
    assert [step for step, path in steps_of(folder.checkpoints) if open_valid(path)] == [1, 2]
    resume(folder)


def test_a_validation_that_does_not_fit_is_halved_by_itself(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    whole = train(make_run(tiny_model, tmp_path, "whole"))
    at = tmp_path / "less"
    with refusing(lambda batch: len(RunFolder(at).metrics()) == 2 and not torch.is_grad_enabled() and len(batch.sources) > 4) as refused:
        less = train(make_run(tiny_model, tmp_path, "less"))
    assert len(refused) == 1
    same_but_for_rounding(whole, less)
    kept = less.status()["micro_batches"]
    assert ([cut["since"] for cut in kept["training"]], [cut["since"] for cut in kept["validation"]]) == ([0], [0, 2])
    assert "out of memory in the validation after step 2: at most" in capsys.readouterr().err


def test_memory_that_runs_out_where_no_micro_batch_is_to_blame_ends_the_run_in_words(tiny_model: Path, tmp_path: Path):
    def fail(*_: Any) -> None:
        raise REFUSED[2]()

    hook = register_optimizer_step_pre_hook(fail)
    try:
        with pytest.raises(MachineFailed, match=r"out of memory: .*alloc_cpu") as caught:
            train(make_run(tiny_model, tmp_path))
    finally:
        hook.remove()
    assert "then tunesmith resume" in caught.value.fix
    assert RunFolder(tmp_path / "run").status()["state"] == "failed"


def test_what_is_no_want_of_memory_is_raised_as_it_is():
    assert all(is_out_of_memory(refusal()) for refusal in REFUSED)
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("could not create a primitive"), KeyError("x")):
        assert not is_out_of_memory(error)

    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        attempt(fail, Scored.__new__(Scored))


# --- a real limit ---------------------------------------------------------------------------------------------------------

LIMITED = """
import gc, json, os, resource, sys
from pathlib import Path
import torch
from tunesmith.config import load_run
from tunesmith.errors import TunesmithError
from tunesmith.loss import Scored
from tunesmith.runs import RunFolder
from tunesmith.training.loop import train

SOFT, HARD = resource.getrlimit(resource.RLIMIT_AS)

def run_with_limit(path, n_logged, mib):
    # once so many lines are logged, the process may take so many MiB more than it has
    run, at = load_run(path)[0], []

    def limit(module, inputs):
        if isinstance(module, Scored) and not at and len(RunFolder(Path(run.output)).metrics()) >= n_logged:
            at.append(int(open("/proc/self/status").read().split("VmSize:")[1].split()[0]) * 1024 + mib * 2**20)
            resource.setrlimit(resource.RLIMIT_AS, (at[0], HARD))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(limit)
    try:
        train(run)
    except TunesmithError as error:
        print(type(error).__name__, error.what, file=sys.stderr)
    finally:
        hook.remove()
        resource.setrlimit(resource.RLIMIT_AS, (SOFT, HARD))

gc.freeze()
for asked in json.loads(sys.argv[1]):
    if os.fork() == 0:  # each begins with the memory of a process that has computed nothing
        run_with_limit(*asked)
        sys.stderr.flush()
        os._exit(0)
    os.wait()
"""
FREED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}  # so that a limit means what is in use


def with_limits(runs: list[tuple[Run, int, int]], folder: Path) -> list[str]:
    """What a process says that makes these runs, each with a limit of so many MiB from so many logged lines on."""
    asked = []
    for run, n_logged, mib in runs:
        config = folder / f"{Path(run.output).name}.yaml"
        config.write_text(to_yaml(run))
        asked.append((str(config), n_logged, mib))
    environment = {**os.environ, **FREED_AT_ONCE, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", LIMITED, json.dumps(asked)], capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr.splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc")
def test_under_a_real_limit_the_same_steps_are_taken_in_smaller_pieces_or_the_run_ends_in_words(tiny_model: Path, tmp_path: Path):
    many = {"n_rows": 160, "batch_size": 128, "micro_batch_tokens": 50_000, "validate_every": 3, "steps": 3, "save_every": 2}
    long = {"n_rows": 8, "n_words": 100, "batch_size": 2, "max_length": 256}
    later, never = (make_run(tiny_model, tmp_path, name, **settings) for name, settings in (("later", many), ("never", long)))
    said = with_limits([(later, 2, 10), (never, 0, 3)], tmp_path)
    halved = [line.split(":")[0] for line in said if line.startswith("out of memory in")]
    assert halved[0] == "out of memory in step 3"
    assert halved[-1] == "out of memory in the largest micro-batch of the run, tried beforehand"
    assert said[-1] == "MachineFailed one example alone does not fit into memory; nothing was saved yet"
    assert RunFolder(tmp_path / "never").status()["state"] == "failed"
    assert RunFolder(tmp_path / "later").status()["micro_batches"]["training"][-1]["since"] == 2
    same_but_for_rounding(train(make_run(tiny_model, tmp_path, "whole", **many)), RunFolder(tmp_path / "later"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc")
def test_under_any_limit_a_run_ends_in_the_same_weights_or_in_words(tiny_model: Path, tmp_path: Path, method: str):
    settings = {"method": method, "batch_size": 128, "micro_batch_tokens": 50_000, "validate_every": 3, "steps": 3, "n_rows": 160}
    limits = range(2, 48, 5)
    said = with_limits([(make_run(tiny_model, tmp_path, f"limit-{mib}", **settings), mib % 2 * 2, mib) for mib in limits], tmp_path)
    assert not [line for line in said if "Traceback" in line or "Fatal" in line]
    whole = train(make_run(tiny_model, tmp_path, "whole", **settings))
    states = {mib: RunFolder(tmp_path / f"limit-{mib}") for mib in limits}
    ended = {mib: folder.status()["state"] for mib, folder in states.items()}
    assert set(ended.values()) <= {"trained", "failed"}
    assert len([line for line in said if line.startswith("MachineFailed")]) == list(ended.values()).count("failed")
    for mib, folder in states.items():
        if ended[mib] == "trained":
            same_but_for_rounding(whole, folder)
    halved = [mib for mib, folder in states.items() if ended[mib] == "trained" and folder.status().get("micro_batches")]
    assert len(halved) >= 4, ended


# --- the largest first ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "full"])
def test_trying_the_largest_micro_batch_first_changes_no_number(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
):
    with_it_seen: list[Batch] = []
    without_seen: list[Batch] = []
    settings: dict[str, Any] = {
        "method": method,
        "lora": {"dropout": 0.3},
        "batch_tokens": 300,
        "micro_batch_tokens": 150,
        "optimizer": "adamw8bit",
    }
    with refusing(number(-1, with_it_seen)):
        with_it = train(make_run(tiny_model, tmp_path, "with", **settings))
    monkeypatch.setattr("tunesmith.training.loop.try_largest", lambda *_: None)
    with refusing(number(-1, without_seen)):
        without = train(make_run(tiny_model, tmp_path, "without", **settings))
    bit_equal(without, with_it)
    n_more = len(with_it_seen) - len(without_seen)
    assert 2 <= n_more <= 3, "one or two micro-batches, and a batch of the validation"
    assert with_it_seen[0].ids_BT.numel() >= max(batch.ids_BT.numel() for batch in without_seen if batch.ids_BT.shape[1] % 32 == 0)


def examples_of(lengths: list[int]) -> list[Example]:
    return [Example(np.ones(n, dtype=np.int32), np.ones(n, dtype=bool), f"rows:{i}") for i, n in enumerate(lengths)]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("batch_tokens", [None, 700])
@pytest.mark.parametrize("world", [1, 3])
def test_the_largest_micro_batch_is_that_of_all_steps(packing: bool, batch_tokens: int | None, world: int):
    for seed in range(4):
        lengths = random.Random(seed).choices([5, 20, 60, 130, 250], weights=[9, 6, 4, 2, 1], k=120)
        rows = StepRows(examples_of(lengths), 7, seed, micro_batch_tokens=200, packing=packing, batch_tokens=batch_tokens)
        steps = range(11, rows.steps_of(3))
        groups, several = largest_micro_batches(rows, steps, world)
        every = [group for step in steps for rank in range(world) for group in rows.groups(step, rank, world)]
        assert tokens_of(groups[0], packing) == max(tokens_of(group, packing) for group in every)
        assert max(len(group[0]) for group in groups) == max(len(group[0]) for group in every)
        assert several


def test_the_largest_micro_batch_is_found_without_opening_every_example():
    class Opened(list[Example]):
        n = 0

        def __getitem__(self, i: Any) -> Any:
            Opened.n += 1
            return super().__getitem__(i)

    examples = Opened(examples_of(random.Random(0).choices(range(10, 400), k=30_000)))
    rows = StepRows(examples, 16, 0, micro_batch_tokens=2000)
    groups, _ = largest_micro_batches(rows, range(rows.steps_of(2)), 1)
    assert Opened.n < 5000
    assert max(len(group[0]) for group in groups) == 399
    assert tokens_of(groups[0], packing=False) > 0.99 * 2000


# --- several processes ----------------------------------------------------------------------------------------------------

ONE_OF_TWO = """
import sys
import torch
from tunesmith.config import load_run
from tunesmith.loss import Scored
from tunesmith.runs import RunFolder
from tunesmith.training import distributed
from tunesmith.training.loop import train

run, n = load_run(sys.argv[1])[0], []

def refuse(module, inputs, nll):
    if isinstance(module, Scored) and torch.is_grad_enabled() and distributed.rank() == 1:
        n.append(1)
        if len(n) in (1, 6):
            raise torch.OutOfMemoryError("CUDA out of memory")

torch.nn.modules.module.register_module_forward_hook(refuse)
train(run)
"""


@pytest.mark.slow
def test_where_one_of_two_processes_runs_out_of_memory_both_halve_and_none_waits_for_ever(tiny_model: Path, tmp_path: Path):
    whole = train(make_run(tiny_model, tmp_path, "whole", micro_batch_tokens=400))
    config, script = tmp_path / "two.yaml", tmp_path / "one_of_two.py"
    config.write_text(to_yaml(make_run(tiny_model, tmp_path, "two", micro_batch_tokens=400)))
    script.write_text(ONE_OF_TWO)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29747", str(script), str(config)],
        capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert len([line for line in done.stderr.splitlines() if "out of memory in" in line]) == 2
    same_but_for_rounding(whole, RunFolder(tmp_path / "two"))
