"""A base model small enough that a whole command takes a second, and finished, interrupted and short runs on it.

`tiny` is a random two-layer Llama with a byte-level BPE tokenizer and a chat template of its own: everything that a base from
the hub has, at 1/50 of acorn's size.
"""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from shell import LONG, SHORT, Said, Train, colour_row, finished, run_here, save_tiny_model, wait_for_lines, write_jsonl


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the tiny base model."""
    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="session")
def other_tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base of the same shape with other weights: only a fingerprint tells them apart."""
    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=1))


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> str:
    """48 prompt/completion pairs as JSONL."""
    return str(write_jsonl(tmp_path_factory.mktemp("data") / "colours.jsonl", map(colour_row, range(48))))


@pytest.fixture
def train(tiny: str, colours: str) -> Train:
    """`tunesmith train` of the tiny model on the colours into runs/x; keywords and further arguments change that."""

    def run(*more: str | Path, model: str | Path = tiny, data: str | Path = colours, output: str | Path = "runs/x") -> Said:
        return run_here("train", "--model", model, "--data", data, "--output", output, *SHORT, *more)

    return run


@pytest.fixture(scope="session")
def trained(tiny: str, colours: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished LoRA run with test rows; tests only read it."""
    output = tmp_path_factory.mktemp("runs") / "colours"
    finished(run_here("train", "--model", tiny, "--data", colours, "--output", output, *SHORT, "--epochs", "4", "--test", "0.25"))
    return output


@pytest.fixture(scope="session")
def always(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two finished runs on one base: "red" answers red to everything, "blue" answers blue."""
    folder = tmp_path_factory.mktemp("always")
    runs = {}
    for answer in ("red", "blue"):
        data = write_jsonl(folder / f"{answer}.jsonl", ({**colour_row(n), "completion": answer} for n in range(32)))
        runs[answer] = folder / answer
        long = ("--epochs", "15", "--learning-rate", "0.01")
        finished(run_here("train", "--model", tiny, "--data", data, "--output", runs[answer], *SHORT, *long))
    return runs


@pytest.fixture
def interrupted(tiny: str, colours: str) -> Callable[..., Path]:
    """A run of 90 steps that Ctrl-C stopped after a few; in this process, by a signal to itself."""

    def run(*more: str | Path) -> Path:
        folder = Path("runs/stopped")
        metrics = folder / "metrics.jsonl"
        press = threading.Thread(target=lambda: (wait_for_lines(metrics, 9), os.kill(os.getpid(), signal.SIGINT)))
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # outside the loop the signal should not end the tests
        press.start()
        said = run_here("train", "--model", tiny, "--data", colours, "--output", folder, *LONG, *more)
        press.join()
        signal.signal(signal.SIGINT, before)
        assert said.code == 130, said.err
        return folder

    return run


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write into the folder they are called from; each test has its own, and no network is asked for a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
