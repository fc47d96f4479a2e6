"""Runs in 2 and 4 processes against the same run in one: the same samples, the same steps, the same files; and what happens when one dies."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.ranks import ENVIRONMENT, TORCHRUN, apart, start, together

from tunesmith.config import Run, to_yaml, validate
from tunesmith.data.batches import StepRows
from tunesmith.data.template import Example
from tunesmith.errors import BadInput
from tunesmith.runs import RunFolder
from tunesmith.training import distributed
from tunesmith.training.checkpoint import open_valid, problem_of, steps_of
from tunesmith.training.loop import resume, train
from tunesmith.training.sharding import build_tuned

METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full", "training": {"learning_rate": 1e-3}},
    "lora": {"method": "lora", "lora": {"rank": 4}},
    "qlora": {"method": "qlora", "lora": {"rank": 4}, "quantization": {"block_size": 32, "double": True}},
}
KINDS = [(method, packing) for method in METHODS for packing in (False, True)]
FOURS = [("full", True, "full"), ("qlora", False, "none")]
STEPS = 3


def run_of(folder: Path, model: Path, name: str, method: str, packing: bool, **training: Any) -> Run:
    """Five examples a step, in several micro-batches; with 4 processes some have one more than others, and one has fewer examples."""
    rows, validation = folder / "rows.jsonl", folder / "validation.jsonl"
    if not rows.exists():
        lines = [
            json.dumps({"prompt": f"spam or ham? call {i} now {'free prize ' * (i % 4)}", "completion": "spam" if i % 3 else "ham"})
            for i in range(22)
        ]
        rows.write_text("\n".join(lines[5:]))
        validation.write_text("\n".join(lines[:5]))
    raw = {
        "model": str(model), "output": str(folder / name), "data": {"train": str(rows), "validation": str(validation)}, **METHODS[method],
        "training": {
            "steps": STEPS, "batch_size": 5, "max_length": 96, "dtype": "float32", "learning_rate": 1e-2, "validate_every": 2,
            "save_every": 1 if method == "full" else STEPS,
            "keep_checkpoints": 99, "micro_batch_tokens": 100, "packing": packing, **METHODS[method].get("training", {}), **training,
        },
    }  # fmt: skip
    return validate(raw, "test")[0]


def name_of(method: str, packing: bool, sharding: str, n: int) -> str:
    return f"{method}-{'packed' if packing else 'padded'}-{sharding}-{n}"


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of run in one process and in two, some in four; and runs of one and two that go on in two and four."""
    folder = tmp_path_factory.mktemp("ranks")
    for method, packing in KINDS:
        train(run_of(folder, tiny_model, name_of(method, packing, "none", 1), method, packing))

    def job(name: str, method: str, packing: bool, **training: Any) -> str:
        config = folder / f"{name}.yaml"
        config.write_text(to_yaml(run_of(folder, tiny_model, name, method, packing, **training)))
        return f"train:{config}"

    def jobs(n: int, kinds: list[tuple[str, bool, str]]) -> list[str]:
        return [job(name_of(method, packing, sharding, n), method, packing, sharding=sharding) for method, packing, sharding in kinds]

    grown = cut_off(folder / name_of("full", False, "none", 1), folder / "grown", after=2)
    config = grown.path / "config.yaml"
    config.write_text(config.read_text().replace("sharding: none", "sharding: full"))
    twos = [(*kind, sharding) for kind in KINDS for sharding in ("none", "full")]
    one_step = [
        job(f"bfloat16-{method}-{sharding}", method, True, sharding=sharding, dtype="bfloat16")
        for method in ("lora", "qlora")
        for sharding in ("none", "full")
    ]
    (folder / "said-2").write_text(together(2, *jobs(2, twos), f"resume:{grown.path}", *one_step))
    saved_by_2 = folder / name_of("full", True, "full", 2)
    for n in (4, 1):
        cut_off(saved_by_2, folder / f"continued-{n}", after=2)
        cut_off(saved_by_2, folder / f"ended-{n}", after=STEPS)
    together(4, *jobs(4, FOURS), f"resume:{folder / 'continued-4'}", f"resume:{folder / 'ended-4'}")
    return folder


def cut_off(run: Path, copy: Path, after: int) -> RunFolder:
    """A copy of a run as it was after a step, before its result was written."""
    shutil.copytree(run, copy)
    folder = RunFolder(copy)
    for step, path in steps_of(folder.checkpoints):
        if step > after:
            shutil.rmtree(path)
    for result in (folder.adapter, folder.model):
        shutil.rmtree(result, ignore_errors=True)
    folder.set_status(state="failed")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    [file] = [*folder.glob("adapter/adapter_model.safetensors"), *folder.glob("model/model.safetensors")]
    return load_file(file)


def assert_same_run(found: Path, expected: Path) -> None:
    """Every logged loss to 1e-5, the same trained tokens in every step, the same files with weights equal to 1e-5."""
    rows, theirs = RunFolder(found).metrics(), RunFolder(expected).metrics()
    assert [row["step"] for row in rows] == [row["step"] for row in theirs]
    for row, other in zip(rows, theirs, strict=True):
        for key in row.keys() & {"loss", "validation_loss", "trained_tokens", "tokens", "learning_rate", "grad_norm"}:
            assert row[key] == pytest.approx(other[key], rel=1e-5 if key == "grad_norm" else 0, abs=1e-5), key
    place = "model" if (expected / "model").is_dir() else "adapter"
    assert {p.name for p in (found / place).iterdir()} == {p.name for p in (expected / place).iterdir()}
    mine, other = weights(found), weights(expected)
    assert mine.keys() == other.keys()
    for name, tensor in other.items():
        torch.testing.assert_close(mine[name], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sharding", ["none", "full"])
@pytest.mark.parametrize(("method", "packing"), KINDS)
def test_two_processes_take_the_steps_of_one(runs: Path, method: str, packing: bool, sharding: str):
    assert_same_run(runs / name_of(method, packing, sharding, 2), runs / name_of(method, packing, "none", 1))


@pytest.mark.parametrize(("method", "packing", "sharding"), FOURS)
def test_so_do_four_of_which_some_have_fewer_batches(runs: Path, method: str, packing: bool, sharding: str):
    assert_same_run(runs / name_of(method, packing, sharding, 4), runs / name_of(method, packing, "none", 1))


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_sharding_the_base_changes_no_bit_of_an_adapter(runs: Path, method: str):
    replicated, sharded = (weights(runs / name_of(method, True, sharding, 2)) for sharding in ("none", "full"))
    assert all(torch.equal(sharded[name], tensor) for name, tensor in replicated.items())


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_nor_does_it_in_layers_that_are_one_step_of_autograd(runs: Path, method: str):
    """In bfloat16 (model/layers.py), of which only the first process has weights to try them on."""
    replicated, sharded = (weights(runs / f"bfloat16-{method}-{sharding}") for sharding in ("none", "full"))
    assert all(torch.equal(sharded[name], tensor) for name, tensor in replicated.items())


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_the_processes_of_a_step_share_its_examples_out(world: int):
    examples = [Example(torch.arange(3 + i).numpy(), (torch.arange(3 + i) > 0).numpy(), f"rows:{i}") for i in range(17)]
    rows = StepRows(examples, batch_size=5, seed=1, micro_batch_tokens=16)
    for step in range(8):
        shares = [source for rank in range(world) for batch in rows.micro_batches(step, rank, world) for source in batch.sources]
        assert sorted(shares) == sorted(example.source for example in rows.of_step(step))


# --- what is on the disk ---------------------------------------------------------------------------------------------------


def test_a_sharded_checkpoint_holds_the_rows_of_each_process_and_reads_as_one(runs: Path):
    folder = RunFolder(runs / name_of("full", True, "full", 2))
    found = open_valid(steps_of(folder.checkpoints)[-1][1])
    assert found is not None
    assert {p.name for p in found.path.iterdir()} == {
        "model.rank0of2.safetensors", "model.rank1of2.safetensors", "model.shards.json",
        "optimizer.rank0of2.safetensors", "optimizer.rank1of2.safetensors", "optimizer.shards.json", "state.json", "MANIFEST.json",
    }  # fmt: skip
    parts = [load_file(found.path / f"model.rank{rank}of2.safetensors") for rank in range(2)]
    whole = found.tensors("model")
    for name, tensor in whole.items():
        assert torch.equal(tensor, torch.cat([part[name] for part in parts]))
    result = weights(folder.path)
    assert all(torch.equal(whole[name], tensor) for name, tensor in result.items())
    stored = found.stored("model")
    name, tensor = max(whole.items(), key=lambda item: item[1].shape[0])
    for begin, end in ((0, 1), (3, 200), (tensor.shape[0] // 2 - 1, tensor.shape[0] // 2 + 1), (5, 5), (0, tensor.shape[0])):
        assert torch.equal(stored.rows(name, begin, end), tensor[begin:end])


def test_a_changed_bit_in_another_process_s_file_is_noticed(runs: Path, tmp_path: Path):
    copy = shutil.copytree(steps_of(runs / name_of("full", True, "full", 2) / "checkpoints")[-1][1], tmp_path / "step-00000003")
    file = copy / "optimizer.rank1of2.safetensors"
    changed = bytearray(file.read_bytes())
    changed[-3] ^= 4
    file.write_bytes(changed)
    assert problem_of(copy) == "optimizer.rank1of2.safetensors was changed"


def test_a_run_saved_on_two_goes_on_in_four_and_in_one(runs: Path, capsys: pytest.CaptureFixture[str]):
    expected = runs / name_of("full", True, "none", 1)
    assert_same_run(runs / "continued-4", expected)
    resume(RunFolder(runs / "continued-1"))
    assert "going on after step 2 of 3" in capsys.readouterr().err
    assert_same_run(runs / "continued-1", expected)


def test_what_is_restored_in_another_number_of_processes_is_equal_bit_for_bit(runs: Path):
    """A run that had ended but for its result takes no step: what it writes is what it has read."""
    resume(RunFolder(runs / "ended-1"))
    for name in ("ended-1", "ended-4"):
        expected = weights(runs / name_of("full", True, "full", 2))
        assert all(torch.equal(tensor, expected[key]) for key, tensor in weights(runs / name).items())


def test_a_run_of_one_process_goes_on_in_two_and_sharded(runs: Path):
    said = (runs / "said-2").read_text()
    assert said.count("training.sharding: none → full (sums are rounded otherwise)") == 1  # one process speaks
    assert_same_run(runs / "grown", runs / name_of("full", False, "none", 1))


def test_8_bit_moments_are_refused_where_rows_are_shared_out(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distributed, "world", lambda: 2)
    with pytest.raises(BadInput, match="8-bit moments"):
        build_tuned(run_of(tmp_path, tiny_model, "x", "full", False, sharding="full", optimizer="adamw8bit"), "x")


# --- ends -----------------------------------------------------------------------------------------------------------------


def test_a_killed_process_ends_the_job_and_the_run_goes_on(runs: Path, tiny_model: Path):
    """Rank 1 dies in the third step, by SIGKILL; two steps are saved."""
    config = runs / "killed.yaml"
    config.write_text(to_yaml(run_of(runs, tiny_model, "killed", "full", False, sharding="full")))
    job = start(2, "kill:1:step.updated:3", f"train:{config}")
    said = job.communicate(timeout=180)[1]
    folder = RunFolder(runs / "killed")
    step, last = steps_of(folder.checkpoints)[-1]
    assert job.returncode == 1 and step == 2
    assert time.time() - last.stat().st_mtime < 30  # from the last checkpoint to the end of the job
    status = folder.status()
    assert status["state"] == "failed" and status["problem"].startswith(
        "a process died or does not answer any more: rank 1 of 2, heard last "
    )
    assert status["resume_command"] == f"torchrun --nproc-per-node 2 -m tunesmith resume {folder.path}"
    assert said.count("a process died") == 1
    resume(folder)
    assert_same_run(folder.path, runs / name_of("full", False, "none", 1))


FAILING = """
from tunesmith import cli
from tunesmith.errors import BadInput, MachineFailed
from tunesmith.training import distributed

def work():
    distributed.start(20)
    with distributed.ending_together():
        rank = distributed.rank()
        assert distributed.from_first(lambda: ["read", rank]) == ["read", 0]
        assert distributed.from_all(rank ** 2) == [0, 1, 4]
        try:
            distributed.must_be_equal("the rows to train on", f"digest {rank // 2}")
        except MachineFailed as error:
            assert str(error).startswith("error: the rows to train on are not the same in all processes\\n  where: rank 2 and rank 0")
        else:
            raise AssertionError
        if rank == 0:
            distributed.barrier()
        if rank == 1:
            raise BadInput("a row is wrong", where="b.jsonl:7", fix="mend it")
        distributed.all_ranks(1.0)

cli.app = lambda **ignored: work()
cli.main()
"""


def test_an_error_of_one_process_is_the_error_of_all_and_is_said_once():
    """The first process waits for a word, the second fails, the third waits in a collective."""
    processes = apart(3, FAILING)
    said = [process.communicate(timeout=90)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2, 2], said
    assert said == ["error: a row is wrong\n  where: rank 1: b.jsonl:7\n  fix:   mend it\n", "", ""]


HANGING = """
import os, signal
from tunesmith import cli
from tunesmith.training import distributed

def work():
    distributed.start(3)
    with distributed.ending_together():
        distributed.barrier()
        if distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        distributed.all_ranks(1.0)

cli.app = lambda **ignored: work()
cli.main()
"""


def test_a_process_that_hangs_ends_the_job_after_the_limit():
    first, second = apart(2, HANGING)
    try:
        said = first.communicate(timeout=60)[1]
    finally:
        second.kill()
        second.communicate()
    assert first.returncode == 1
    assert said.startswith("error: a process died or does not answer any more: rank 1 of 2, heard last ")
    assert said.splitlines()[1] == "  where: rank 1 of 2"


# --- memory ---------------------------------------------------------------------------------------------------------------

MEASURED = """
import json, sys, threading, time
from pathlib import Path
import torch
from tunesmith.config import load_run
from tunesmith.training import distributed, sharding
from tunesmith.training.sharding import build_tuned, distribute

def anonymous():
    return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) * 1024

def watch():
    while not done:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.0005)

small, run = (load_run(Path(path))[0] for path in sys.argv[1:3])
distributed.start(60)
distribute(small, build_tuned(small, "x"))  # libraries that are loaded on first use are no part of the model
before, peak, done = anonymous(), [0], []
thread = threading.Thread(target=watch)
thread.start()
tuned, scored = distribute(run, build_tuned(run, "x"))
done.append(1)
thread.join()
held = sum(p.to_local().nbytes if hasattr(p, "to_local") else p.nbytes for p in scored.parameters())
Path(sys.argv[3], f"{distributed.rank()}.json").write_text(json.dumps({"grown": peak[0] - before, "held": held}))
distributed.barrier()
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_while_it_loads_no_process_but_the_first_holds_more_than_its_rows(tmp_path: Path, tiny_model: Path, method: str):
    """A model of 116 million weights (464 MB in float32), twelve layers of 37 MB, in four processes."""
    from tests.conftest import byte_level_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_level_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=896, intermediate_size=2432, num_hidden_layers=12, num_attention_heads=14, num_key_value_heads=14,
        max_position_embeddings=256, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    layer = sum(p.nbytes for p in model.model.layers[0].parameters())
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for name, path in (("small", tiny_model), ("large", tmp_path / "model")):
        (tmp_path / f"{name}.yaml").write_text(to_yaml(run_of(tmp_path, path, name, method, False, sharding="full")))
    script = tmp_path / "measured.py"
    script.write_text(MEASURED)
    command = [*TORCHRUN, "4", str(script), *(str(tmp_path / name) for name in ("small.yaml", "large.yaml", ""))]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (1, 2, 3):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["grown"] < found["held"] + (8 << 20) < found["held"] + layer, found  # 8 MiB: the modules themselves
