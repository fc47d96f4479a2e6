"""The shell as a test sees it, and what the tests type into it: a tiny base model, files of examples, short and long runs.

`run_here` runs a command inside this process (importing torch costs seconds); `start` and `run_there` start real processes, for
tests of signals, limits and exit codes.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

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
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


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
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    sys.argv, sys.stdin = ["tunesmith", *map(str, arguments)], StringIO(stdin)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.argv, sys.stdin = before
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Said(code, out.getvalue(), err.getvalue())


def start(*arguments: str | Path, **settings: Any) -> "subprocess.Popen[str]":
    """`tunesmith ARGUMENTS` as a process of its own, with as many threads as this one: sums of other pieces round otherwise."""
    import torch

    settings["env"] = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
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


# a short LoRA run in single precision: what a test adds to this is what it is about
SHORT = ("--set", "training.dtype=float32", "--max-length", "128", "--rank", "4", "--epochs", "1")
Train = Callable[..., Said]


def finished(said: Said) -> None:
    assert said.code == 0, said.err


LONG = (*SHORT, "--epochs", "30", "--set", "training.save_every=7", "--set", "lora.dropout=0.1", "--learning-rate", "0.01")


def wait_for_lines(path: Path, n: int, seconds: float = 60.0) -> None:
    """Until a file has `n` lines."""
    end = time.monotonic() + seconds
    while not (path.is_file() and path.read_bytes().count(b"\n") >= n):
        assert time.monotonic() < end, f"{path} has not {n} lines after {seconds} s"
        time.sleep(0.005)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
