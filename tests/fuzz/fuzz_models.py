"""Damaged models, adapters and checkpoints: whatever is in a file, opening it gives what was there, or an error with what, where and fix.

    python tests/fuzz/fuzz_models.py [CASES] [SEED]          # part of `make fuzz`; CASES files in all, spread over the kinds

hypothesis draws a file of a good folder and a damage: *bytes* (flipped, cut, repeated, spliced with awkward ones), *JSON* (a value
replaced by an odd one, removed, repeated or added, anywhere in it; also in the header of a safetensors file), or both. Then

- there is no crash, panic, hang or flood of memory: this process is limited, watches the clock, and its tests run it apart;
- there is no traceback: an error is a TunesmithError with what, where and fix, in characters that a terminal can bear;
- no code runs: Python files and pickles that lie in every folder make a folder when they are read, and it is never made;
- what opens is whole: finite numbers, and the tensors bit for bit those of the good folder unless the damage lies in the numbers
  of a file that keeps no checksum of them. A quantised folder and a checkpoint do keep one.
"""

import json
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

from tunesmith.config import LoraConfig
from tunesmith.data.conversation import Message
from tunesmith.data.template import Renderer
from tunesmith.errors import TunesmithError
from tunesmith.exports.quantized import write_quantized
from tunesmith.model.adapters import adapter_parameters, attach, load_adapter, save_adapter
from tunesmith.model.load import load_model
from tunesmith.quant.scheme import find_scheme
from tunesmith.training import checkpoint

SECONDS, MEMORY = 20, 3 << 30  # of one case; addresses beyond those there are when all is imported
GROWTH = 1 << 30  # bytes that the process may have needed more at its worst
AWKWARD = [
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"', b"\\", b"\n", b",", b"{", b"}", b"[", b"]", b":", b"\\ud800", b"NaN", b"-Infinity",
    b"1e999", b"null", b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"__metadata__", b"\xff" * 8, b"\x00\x00\x00\x00\x00\x00\x00\x80", b"../", b"\x80\x04",
]  # fmt: skip
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 3, 0.5, 2**31, 2**63, 10**12, 10**30, -(10**12), float("nan"), float("inf"), "", "x", "\0", "../../etc/passwd",
    "/etc/passwd", "\x1b[2J", "\u202e", "(a+)+$", ".*", "evil.Model", "someone/evil--evil.Model", "{{ cycler.__init__.__globals__ }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "float64", "int8", "cuda", "eager", "someone/kernel", [], [[]],
    [None], [1, 2], ["q_proj"], {}, {"a": None}, {"": {}}, [0] * 1000, "a" * 10000, {"type": "Split"}, {"quant_method": "tunesmith"}, "F64", "I4",
    [2**62, 2**62], [-1, 8], [0, 0],
    # parts of a tokenizer at which the library that reads them panics, aborts or takes its time
    {"type": "Strip", "content": "w", "start": 10**18, "stop": 5}, {"type": "Precompiled", "precompiled_charsmap": "/////w=="},
    {"strategy": {"Fixed": 10**10}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"},
    {"type": "Split", "pattern": {"Regex": "(a|a|aa)+b"}, "behavior": "Isolated", "invert": False},
]  # fmt: skip
TEMPLATES = [
    b"{{ 9**9**9 }}", b"{% set x = 'a' * 1000000 %}{{ (x * 100000)|length }}", b"{% for a in range(99999) %}{% for b in range(99999) %}", b"{% endfor %}",
    b"{{ cycler.__init__.__globals__.os.mkdir('x') }}", b"{% include 'evil' %}", b"{{ '%1000000000d'|format(1) }}", b"{% macro a() %}{{ a() }}{% endmacro %}",
]  # fmt: skip
KEYS = ["auto_map", "custom_generate", "quantization_config", "attn_implementation", "transformers_weights", "use_dora", "r", "hidden_size",
        "num_hidden_layers", "chat_template", "eos_token_id", "weight_map", "__metadata__", "shape", "rope_scaling", "is_decoder"]  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A good folder; `opened` gives its tensors by name. checked: names of files whose every number is kept a checksum of."""

    folder: Path
    files: tuple[str, ...]
    opened: Callable[[Path], dict[str, torch.Tensor] | None]
    checked: tuple[str, ...] = ()


# --- good folders -----------------------------------------------------------------------------------------------------------


def good_folders(root: Path) -> dict[str, Kind]:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, bos_token_id=None, eos_token_id=2, tie_word_embeddings=False, initializer_range=0.3,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(40)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} w2 {% endfor %}"
    for name in ("model", "parts"):
        model.save_pretrained(root / name, max_shard_size="20KB" if name == "parts" else "5GB")
        tokenizer.save_pretrained(root / name)
    for name, scheme in (("nf4", find_scheme("nf4", 32)), ("int4", find_scheme("int4", 32))):
        write_quantized(str(root / "model"), scheme, root / name, "float32")
    base = load_model(str(root / "model"), "float32", "cpu").model
    attach(base, "mine", lora := LoraConfig(rank=2, targets=["q_proj", "down_proj"]), seed=0)
    for parameter in adapter_parameters(base, "mine").values():
        parameter.data.normal_()
    save_adapter(base, "mine", root / "adapter", {"template": "plain", "renderer": "x"}, "a-base", lora)
    tensors = load_file(root / "adapter" / "adapter_model.safetensors")
    checkpoint.save(root / "checkpoints", 3, {"adapter_model": tensors, "optimizer": tensors}, {"steps": 9, "state": {}}, 2, None)
    trap = root / "ran"
    for folder in (root / name for name in ("model", "parts", "nf4", "int4", "adapter")):
        (folder / "evil.py").write_text(f"import os; os.makedirs({str(trap)!r}); Model = object\n")
        for name in ("pytorch_model.bin", "adapter_model.bin"):
            (folder / name).write_bytes(f"cos\nmkdir\n(V{trap}\ntR.".encode())
    beside = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
    parts = tuple(sorted(path.name for path in (root / "parts").glob("model-*.safetensors"))[:2])
    saved = tuple(f"step-00000003/{path.name}" for path in sorted((root / "checkpoints" / "step-00000003").iterdir()))
    return {
        "model": Kind(root / "model", (*beside, "model.safetensors"), opened_model),
        "parts": Kind(root / "parts", ("model.safetensors.index.json", *parts), opened_model),
        "nf4": Kind(root / "nf4", ("config.json", "tunesmith.json", "model.safetensors"), opened_model, ("model.safetensors",)),
        "int4": Kind(root / "int4", ("config.json", "tunesmith.json", "model.safetensors"), opened_model, ("model.safetensors",)),
        "adapter": Kind(root / "adapter", ("adapter_config.json", "adapter_model.safetensors", "tunesmith.json"), opened_adapter(base)),
        "checkpoint": Kind(root / "checkpoints", saved, opened_checkpoint, saved),
    }


def opened_model(folder: Path) -> dict[str, torch.Tensor]:
    loaded = load_model(str(folder), "float32", "cpu")
    renderer = Renderer(loaded.tokenizer, "auto", loaded.eos_ids, loaded.n_ids)
    assert all(0 <= one < loaded.n_ids for one in renderer.prompt_ids([Message("user", "w3 w4 aaaaaaaaaaaaaaaaaaaaaaaa", False)]))
    return {name: tensor for name, tensor in loaded.model.state_dict().items() if not name.endswith(".dense")}


def opened_adapter(base: Any) -> Callable[[Path], dict[str, torch.Tensor]]:
    def opened(folder: Path) -> dict[str, torch.Tensor]:
        try:
            load_adapter(base, "foreign", folder)
            return {name: parameter.detach().clone() for name, parameter in adapter_parameters(base, "foreign").items()}
        finally:
            for module in base.modules():
                if hasattr(module, "adapters") and "foreign" in module.adapters:
                    del module.adapters["foreign"]

    return opened


def opened_checkpoint(folder: Path) -> dict[str, torch.Tensor] | None:
    found, broken = checkpoint.newest_valid(folder)
    assert found is not None or broken
    if found is None:
        return None
    assert found.state["steps"] == 9
    return {f"{name}.{key}": tensor for name in ("adapter_model", "optimizer") for key, tensor in found.tensors(name).items()}


# --- damage ---------------------------------------------------------------------------------------------------------------------


def damaged(data: st.DataObject, name: str, content: bytes) -> bytes:
    """The content with one to three damages drawn."""
    for _ in range(data.draw(st.integers(1, 3), "damages")):
        kinds = {".json": ["bytes", "value", "value"], ".jinja": ["bytes", "text"]}.get(
            Path(name).suffix, ["bytes", "header", "header", "number"]
        )
        how = data.draw(st.sampled_from(kinds), "what is damaged")
        if how == "bytes":
            content = damaged_bytes(data, content)
        elif how == "value":
            content = damaged_json(data, content)
        elif how == "text":
            at = data.draw(st.sampled_from([0, len(content)]), "at")
            content = content[:at] + data.draw(st.sampled_from(TEMPLATES), "template") + content[at:]
        elif how == "number" and content:
            at = len(content) - 1 - data.draw(st.integers(0, min(len(content), 2000) - 1), "from the end")
            content = content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :]
        elif len(content) > 8:
            length = min(struct.unpack("<Q", content[:8])[0], len(content) - 8)
            header = damaged_json(data, content[8 : 8 + length])
            content = struct.pack("<Q", len(header)) + header + content[8 + length :]
    return content


def damaged_bytes(data: st.DataObject, content: bytes) -> bytes:
    end = len(content)
    at = data.draw(st.one_of(st.integers(0, min(end, 300)), st.integers(0, end)), "at")
    n = data.draw(st.sampled_from([1, 2, 8, 50]), "n")
    how = data.draw(st.sampled_from(["flip", "cut", "repeat", "splice", "end"]), "how")
    if how == "flip" and at < end:
        return content[:at] + bytes([content[at] ^ (1 << data.draw(st.integers(0, 7), "bit"))]) + content[at + 1 :]
    if how == "cut":
        return content[:at] + content[at + n :]
    if how == "repeat":
        return content[: at + n] + content[at:]
    if how == "end":
        return content[:at]
    return content[:at] + data.draw(st.sampled_from(AWKWARD), "awkward") + content[at:]


def damaged_json(data: st.DataObject, content: bytes) -> bytes:
    """A value replaced, removed, repeated or added somewhere; what is no JSON any more is damaged as bytes."""
    try:
        value = json.loads(content)
        assert isinstance(value, dict | list) and value
    except (ValueError, RecursionError, AssertionError):
        return damaged_bytes(data, content)
    holder: Any = value
    while True:
        places = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        place = data.draw(st.sampled_from(places), "place")
        inner = holder[place]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans(), "stop here"):
            break
        holder = inner
    how = data.draw(st.sampled_from(["replace", "replace", "remove", "swap", "add"]), "how")
    if how == "replace":
        holder[place] = data.draw(st.one_of(st.sampled_from(ODD), st.integers(-5, 70)), "odd")
    elif how == "remove":
        del holder[place]
    elif how == "swap":
        holder[place], holder[places[0]] = holder[places[0]], holder[place]
    elif isinstance(holder, dict):
        holder[data.draw(st.sampled_from(KEYS), "key")] = data.draw(st.sampled_from(ODD), "odd")
    else:
        holder.append(data.draw(st.sampled_from(ODD), "odd"))
    return json.dumps(value, ensure_ascii=data.draw(st.booleans(), "ascii")).encode("utf-8", "surrogatepass")


# --- one case ---------------------------------------------------------------------------------------------------------------------


class Slow(BaseException):
    """Not an Exception, so that nothing on the way takes it for a bad file."""


def _ring(number: int, frame: Any) -> None:
    raise Slow(f"not done after {SECONDS} seconds")


def one_case(kind: Kind, good: dict[str, torch.Tensor], name: str, content: bytes, root: Path) -> str:
    """What became of the damaged file: "refused", "opened" or "the same"; an AssertionError if it is not as promised."""
    folder = root / "case" / kind.folder.name
    shutil.rmtree(folder.parent, ignore_errors=True)
    shutil.copytree(kind.folder, folder)
    changed = content != (folder / name).read_bytes()
    (folder / name).write_bytes(content)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        found = kind.opened(folder)
    except TunesmithError as error:
        text = str(error)
        assert error.what and error.where and error.fix, text
        assert len(text) < 5000 and all(character.isprintable() or character == "\n" for character in text), ascii(text)
        return "refused"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert not (root / "ran").exists(), "code was run"
    if found is None:
        return "refused"
    assert all(bool(tensor.isfinite().all()) for tensor in found.values() if tensor.is_floating_point())
    assert found.keys() == good.keys()
    same = all(tensor.shape == good[key].shape and torch.equal(tensor, good[key]) for key, tensor in found.items())
    may_differ = name.endswith(".safetensors") and name not in kind.checked
    assert same or may_differ, "other tensors were opened than were saved"
    return "opened" if changed else "the same"


def _try(kind: Kind, good: dict[str, torch.Tensor] | None, file: str, cases: int, start: str, root: Path, counted: Counter[str]) -> None:
    """`cases` damages of one file; the folder of one that breaks a promise is kept."""

    @seed(start)
    @settings(
        max_examples=max(1, cases), deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    @given(st.data())
    def run(data: st.DataObject) -> None:
        content = damaged(data, file, (kind.folder / file).read_bytes())
        try:
            counted[f"{kind.folder.name}: {one_case(kind, good or {}, file, content, root)}"] += 1
        except BaseException as error:
            kept = Path(tempfile.mkdtemp(prefix="fuzz-")) / "case"
            shutil.copytree(root / "case", kept)
            sys.stderr.write(f"{file} ({kept}): {type(error).__name__}: {error}\n")
            raise

    run()


def fuzz(cases: int, start: int) -> Counter[str]:
    """Draw and try `cases` files; returns how many of each outcome, by kind of folder."""
    counted: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        kinds = good_folders(root)
        good = {name: kind.opened(kind.folder) for name, kind in kinds.items()}
        choices = [(name, file) for name, kind in kinds.items() for file in kind.files]
        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, most))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        for number, (name, file) in enumerate(choices):
            each = cases // len(choices) + (number < cases % len(choices))
            _try(kinds[name], good[name], file, each, f"{start} {name} {file}", root, counted)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        assert grown < GROWTH, f"{grown:,} bytes more were needed at the worst"
    return counted


def main() -> int:
    cases, start = (int(argument) for argument in (*sys.argv[1:], *("400", "0")[len(sys.argv) - 1 :]))
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _ring)
    try:
        counted = fuzz(cases, start)
    except BaseException:
        traceback.print_exc(limit=-12)
        return 1
    for line, n in sorted(counted.items()):
        print(f"{line} {n:,}")
    print(f"{sum(counted.values()):,} damaged files: no crash, no hang, no code run, nothing opened that was not whole")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
