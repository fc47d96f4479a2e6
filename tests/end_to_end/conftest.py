"""A base model small enough that a whole command takes a second, files of examples to go with it, and the shell as a test sees it.

`tiny` is a random two-layer Llama with a byte-level BPE tokenizer and a chat template of its own: everything that a base from
the hub has, at 1/50 of acorn's size. `run_here` runs a command inside this process (importing torch costs seconds);
`tests/end_to_end/test_interrupt.py` and a few others start real processes, because signals and exit codes are what they test.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTROL = ["<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
COLOURS = ("red", "blue", "green")


def colour_row(number: int) -> dict[str, str]:
    """Row `number` of a task with short prompts and one-word answers; no two prompts are equal."""
    return {"prompt": f"what colour is thing {number}?", "completion": COLOURS[number % 3]}


def save_tiny_model(folder: Path, seed: int = 0, hidden: int = 64) -> Path:
    """Save a random Llama of 2 layers with its tokenizer, as transformers saves it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator((" ".join(colour_row(n).values()) for n in range(200)), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|bos|>", eos_token="<|eos|>", pad_token="<|pad|>", chat_template=TEMPLATE
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


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


@dataclass(frozen=True)
class Said:
    """What a command left behind: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str


def run_here(*arguments: str | Path, stdin: str = "") -> Said:
    """`tunesmith ARGUMENTS` in this process, through the same `main` as the shell's command, errors and exit codes included."""
    from tunesmith.cli import main

    out, err = StringIO(), StringIO()
    before = sys.argv, sys.stdin
    sys.argv, sys.stdin = ["tunesmith", *map(str, arguments)], StringIO(stdin)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.argv, sys.stdin = before
    return Said(code, out.getvalue(), err.getvalue())


def start(*arguments: str | Path, **settings: Any) -> "subprocess.Popen[str]":
    """`tunesmith ARGUMENTS` as a process of its own."""
    settings["env"] = {**os.environ, "OMP_NUM_THREADS": "1", **settings.get("env", {})}
    command = [sys.executable, "-m", "tunesmith", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)


def run_there(*arguments: str | Path, **settings: Any) -> Said:
    """`tunesmith ARGUMENTS` as a process of its own, waited for."""
    process = start(*arguments, **settings)
    out, err = process.communicate(timeout=120)
    return Said(process.returncode, out, err)


def refused(said: Said, what: str, where: str = "", fix: str = "", code: int = 2) -> None:
    """The three lines of an error, each with the words that matter, and no traceback."""
    assert said.code == code, said
    assert "Traceback" not in said.err + said.out
    lines = said.err[said.err.index("error: ") :]
    assert lines.count("error: ") == 1
    first, _, rest = lines.partition("\n  where: ")
    place, _, remedy = rest.partition("\n  fix:   ")
    assert what in first, said.err
    assert where in place and place.strip(), said.err
    assert fix in remedy and remedy.strip(), said.err


TrainTiny = Callable[..., Said]


@pytest.fixture
def train_tiny(tiny: str, colours: str, tmp_path: Path) -> TrainTiny:
    """A short LoRA run into `output`; every further argument is passed on."""

    def train(output: str | Path, *more: str | Path, data: str | Path = colours, model: str | Path = tiny) -> Said:
        fixed = ("--set", "training.dtype=float32", "--max-length", "128", "--rank", "4", "--epochs", "1")
        return run_here("train", "--model", model, "--data", data, "--output", output, *fixed, *more)

    return train


@pytest.fixture(scope="session")
def trained(tiny: str, colours: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the colours with test rows; tests only read it."""
    output = tmp_path_factory.mktemp("runs") / "colours"
    said = run_here(
        "train", "--model", tiny, "--data", colours, "--output", output, "--test", "0.25", "--rank", "4", "--epochs", "4", "--max-length", "128",
        "--set", "training.dtype=float32", "--prompt", "{prompt}", "--completion", "{completion}",
    )  # fmt: skip
    assert said.code == 0, said.err
    return output


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write into the folder they are called from; each test has its own, and no network is asked for a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
