"""Open a model: the embedded acorn, a local folder or a hub id, through transformers, safetensors only.

    loaded = load_model("acorn", dtype="auto", device="auto")
    loaded.model, loaded.tokenizer, loaded.path

Remote code is never run and pickles are never read: foreign.py looks at a folder before anything else does.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import BadInput, MachineFailed, nearest
from tunesmith.files import sha256_of
from tunesmith.hardware import pick_device, pick_dtype
from tunesmith.model.foreign import ModelFiles, check_model, check_tokenizer, key_of, read_facts
from tunesmith.model.foreign_json import read_object, shown
from tunesmith.model.frozen import QuantizedWeight
from tunesmith.model.quant_files import StoredLayer, fill, method_of, stored_layers
from tunesmith.names import must_be_path
from tunesmith.progress import say
from tunesmith.quant.scheme import Scheme
from tunesmith.quant.tensor import Layout

ACORN = Path(__file__).parent / "acorn"
FETCHED = [
    "*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model", "merges.txt", "vocab.*", "LICENSE*", "LICENCE*", "NOTICE*", "README.md",
]  # fmt: skip
FREEDOM, LEAST_FREE = 8, 1 << 24  # 2-bit codes are four to a byte
A_DECODER = "give a decoder: Llama, Qwen, Gemma, GPT-2 …"


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode with its tokenizer. name: what the user wrote; path: the folder that was read."""

    model: Any
    tokenizer: Any
    name: str
    path: Path
    scheme: Scheme | None = None  # of its quantised weights, where it has any

    @property
    def eos_ids(self) -> set[int]:
        """Every id that the model's own settings call an end."""
        eos = self.model.generation_config.eos_token_id if self.model.generation_config is not None else None
        return set(eos) if isinstance(eos, list) else set() if eos is None else {int(eos)}

    @property
    def n_ids(self) -> int:
        """Rows of the embedding: the ids that the model can read."""
        rows: int = self.model.get_input_embeddings().weight.shape[0]
        return rows

    @property
    def context(self) -> int | None:
        """Positions the model was made for, where its config says."""
        n = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return n if isinstance(n, int) else None


def find_model(name: str) -> Path:
    """The folder of a model; hub ids are fetched (configuration, safetensors and tokenizer files only)."""
    if name == "acorn":
        return ACORN
    must_be_path(name, "model")
    path = Path(name).expanduser()
    if path.is_dir():
        _check_folder(path)
        return path
    if path.is_file():
        raise BadInput("a model is a folder, and this is a file", where=str(path), fix=str(path.parent))
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1 or path.parent.is_dir()
    if looks_local:
        folder = path.parent if path.parent.is_dir() else Path()
        near = [str(folder / p.name) for p in folder.iterdir() if (p / "config.json").is_file()]  # Path() / "x" is "x"
        raise BadInput("there is no such model folder", where=str(path), fix=nearest(name, [*near, "acorn"]))
    from huggingface_hub import snapshot_download

    try:
        fetched = snapshot_download(
            name,
            allow_patterns=FETCHED,
            ignore_patterns=["*.bin", "*.py", "original/*"],
        )
    except Exception as error:  # the hub client has many kinds of failure; all mean the model is not here
        raise BadInput(
            f'"{name}" is neither a folder nor a model that the hub gave: {first_line(error)}', where="model",
            fix="a local folder, acorn, or a hub id (for a private model, log in first)",
        ) from None  # fmt: skip
    folder = Path(fetched)
    _check_folder(folder)
    return folder


def _check_folder(path: Path) -> None:
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise BadInput("this folder is an adapter, not a model", where=str(path), fix="name its base as the model and give --adapter")
        for inner in ("model", "adapter"):
            if (path / inner).is_dir() and (path / "config.yaml").is_file():
                raise BadInput("this folder is a run, not a model", where=str(path), fix=f"use {path / inner}")
        raise BadInput("this folder holds no model: config.json is missing", where=str(path), fix="give a folder saved by transformers")
    if (path / "adapter_config.json").is_file():  # transformers would load the base that the adapter names instead of this model
        raise BadInput("this folder holds a model and an adapter", where=str(path), fix="move the adapter's files to a folder of their own")
    check_model(path)


def first_line(error: BaseException) -> str:
    """The first line of a library's message that says something; the message may be long, or empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return shown(" ".join(lines[:2]) if lines[0].endswith(":") else lines[0], 400)


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' own warnings of a configuration: what matters of them is refused in our words."""
    from transformers.utils import logging

    loud = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(loud)


def cannot_be(error: Exception, config: Mapping[str, Any], where: str) -> BadInput:
    """What a library's error over building a model means. A KeyError is a value that it looked for in a table: its key is the user's clue."""
    key = key_of(config, error.args[0]) if isinstance(error, KeyError) and error.args else None
    if key is None:
        return BadInput(f"config.json describes a model that cannot be: {first_line(error)}", where=where, fix="copy the model again")
    return BadInput(
        f"config.json describes a model that cannot be: transformers knows no {key} called {shown(repr(error.args[0]))}",
        where=f"{where}: {key}", fix=f"the {key} that the model was made with; or copy the model again",
    )  # fmt: skip


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a folder that `find_model` gave; one that is not our own is tried in another process first."""
    from transformers import AutoTokenizer

    if path != ACORN:
        check_tokenizer(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except BaseException as error:  # whatever the tokenizer's files are lacking, the reason is in the message
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of compiled code; not Ctrl-C
            raise
        raise BadInput(
            f"the tokenizer cannot be loaded: {first_line(error)}", where=str(path), fix="the folder needs tokenizer.json"
        ) from None
    if not tokenizer.is_fast:
        raise BadInput("the tokenizer has no fast form", where=str(path), fix="convert it: the folder needs tokenizer.json")
    return tokenizer


def load_model(name: str, dtype: str = "auto", device: str = "auto", scheme: Scheme | None = None, layout: Layout = "rows") -> Loaded:
    """Weights in `dtype` on `device`, evaluation mode, gradients off until the method turns them on.

    scheme   quantise the linear layers, and embeddings and head if it says so, while loading; a folder of quantised layers keeps its own
    layout   "flat": codes as bitsandbytes' files hold them, whatever the length of the rows
    """
    path = find_model(name)
    place = pick_device(device)
    found = check_model(path)
    for line in found.said:
        say(line)
    config, stored = _read_config(path, found)
    if stored:
        _same_weights(path)
    if stored and scheme is not None:
        raise BadInput("the base is quantised already", where=str(path), fix="leave the section quantization out: its own codes are used")
    _must_fit(path, config, found, stored)
    model = _read_weights(path, config, pick_dtype(dtype, place), scheme, layout, stored)
    try:
        model.to(place)
    except torch.OutOfMemoryError:
        raise MachineFailed(
            f"the weights do not fit into the memory of {place}", where=str(path), fix="a smaller model, or --device cpu"
        ) from None
    except (RuntimeError, AssertionError) as error:  # torch's own words for a device that is not there
        raise BadInput(f"the model cannot be put on {place}: {first_line(error)}", where="--device", fix="auto, or cpu") from None
    model.eval()
    model.requires_grad_(False)
    try:
        _look_at_answers(model, path)
    except (BadInput, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # sizes that fit the files and not each other
        raise BadInput(f"the model cannot compute: {first_line(error)}", where=str(path), fix="copy or download it again") from None
    if stored and (facts := read_facts(path)):
        model._tunesmith_fingerprint = facts.get("dense_fingerprint")  # the codes no longer tell
    return Loaded(model, load_tokenizer(path), name, path, scheme_of(model))


def weights_sha256(path: Path) -> dict[str, str]:
    """Of every file of weights in a folder."""
    return {file.name: sha256_of(file) for file in sorted(path.glob("*.safetensors"))}


def _same_weights(path: Path) -> None:
    """Refuse files of codes that are not those which tunesmith.json beside them tells of; folders of other makers say nothing."""
    told = read_facts(path).get("weights_sha256")
    if told is None:
        return
    found = weights_sha256(path)
    for name in sorted(told.keys() | found.keys()):
        if told.get(name) != found.get(name):
            what = (
                "is missing"
                if name not in found
                else "is no part of this model"
                if name not in told
                else "was changed since it was written"
            )
            raise BadInput(
                f"a file of the quantised weights {what}", where=str(path / name),
                fix="copy, download or quantise the model again (if the weights are meant to be others, remove tunesmith.json)",
            )  # fmt: skip


def _read_config(path: Path, found: ModelFiles) -> tuple[Any, dict[str, StoredLayer]]:
    """The configuration, and the layers whose weights are quantised in the files."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    where = str(path / "config.json")
    method = method_of(found.config, where)
    try:
        with quietly():
            config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        for section in (config, config.get_text_config()):  # which kernels compute it is not a file's to say: some are fetched from the hub
            section._attn_implementation = section._experts_implementation = None
    except Exception as error:
        raise BadInput(
            f"the model's configuration is not understood: {first_line(error)}",
            where=where,
            fix="see the message; remote code is never run",
        ) from None
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise BadInput(f"a model of type {config.model_type} does not predict the next word", where=where, fix=A_DECODER)
    if method is None:
        return config, {}
    if method not in ("bitsandbytes", "tunesmith"):
        raise BadInput(
            f"these weights are quantised by {method}, which tunesmith does not read", where=where,
            fix="give the model that they were made from, or one quantised by bitsandbytes or tunesmith",
        )  # fmt: skip
    for section in (config, config.get_text_config()):
        if hasattr(section, "quantization_config"):
            del section.quantization_config  # transformers would look for bitsandbytes
    stored = stored_layers(found.headers)
    if not stored:
        raise BadInput("config.json calls the weights quantised, and no quantised weight is there", where=where, fix="copy the model again")
    return config, stored


def _read_weights(
    path: Path, config: Any, dtype: torch.dtype, scheme: Scheme | None, layout: Layout, stored: dict[str, StoredLayer]
) -> Any:
    """Every weight of the model from its file, and every tensor of the file used by a module that could use it."""
    import transformers

    from tunesmith.model.streaming import load_quantized, load_stored

    transformers.utils.logging.disable_progress_bar()
    # Soft-capped attention exists in transformers' eager path only; SDPA would leave the cap out without a word.
    eager = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    again = "copy or download the model again"
    settings: dict[str, Any] = {
        "config": config, "dtype": dtype, "use_safetensors": True, "trust_remote_code": False, "local_files_only": True,
        "attn_implementation": "eager" if eager else None, "output_loading_info": True, "ignore_mismatched_sizes": True,  # refused below
    }  # fmt: skip
    try:
        with quietly():  # its table of missing tensors: the error below says the same in one line
            if stored:
                model, report = load_stored(path, frozenset(stored), lambda model: fill(model, stored, path), **settings)
            elif scheme is not None:
                model, report = load_quantized(path, scheme, layout, **settings)
            else:
                model, report = transformers.AutoModelForCausalLM.from_pretrained(path, **settings)
    except BadInput as error:
        raise BadInput(error.what, error.where or str(path), error.fix) from None
    except Exception as error:
        raise BadInput(f"the weights cannot be loaded: {first_line(error)}", where=str(path), fix=again) from None
    # A bias that the file has and the model has not would be left out without a word, and so would layers beyond the number that
    # config.json names; whole modules more (a vision tower) are no loss.
    holders = {name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))}
    alike = {re.sub(r"\d+", "#", name) for name, _ in model.named_parameters()}
    unused = [key for key in report.get("unexpected_keys", ()) if key.rpartition(".")[0] in holders or re.sub(r"\d+", "#", key) in alike]
    found = {
        "missing": sorted(report.get("missing_keys", ())),
        "of another shape": sorted(str(key[0] if isinstance(key, tuple) else key) for key in report.get("mismatched_keys", ())),
        "without a place": sorted(unused),
    }
    _none_of(found, path)
    return model


def _none_of(found: Mapping[str, list[str]], path: Path) -> None:
    """BadInput if there are keys of any kind."""
    problems = [
        f"{kind}: {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if len(keys) > 3 else "") for kind, keys in found.items() if keys
    ]
    if problems:
        raise BadInput(
            "the weights do not fit the configuration: " + "; ".join(problems), where=str(path), fix="copy or download the model again"
        )


def _must_fit(path: Path, config: Any, found: ModelFiles, stored: Mapping[str, StoredLayer]) -> None:
    """Before anything of the size that config.json names is asked for: the model that it describes, without memory, beside the headers.

    A weight that the files have under the same name must be of that size; what they have not (tied, fused or renamed while loading) and
    what the model computes for itself may all together be FREEDOM times what is in them.
    """
    import transformers

    try:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(deepcopy(config), trust_remote_code=False)
    except Exception as error:
        raise cannot_be(error, found.config, str(path / "config.json")) from None
    held = {key: entry.n_values for header in found.headers.values() for key, entry in header.tensors.items()}
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    codes = {f"{name}.weight" for name in stored}
    _none_of({"of another shape": sorted(name for name, n in sizes.items() if held.get(name, n) != n and name not in codes)}, path)
    more = sum(n for name, n in sizes.items() if name not in held or name in codes) + sum(buffer.numel() for buffer in model.buffers())
    if more > FREEDOM * found.n_values + LEAST_FREE:
        raise BadInput(
            f"config.json describes a model of {sum(sizes.values()):,} weights, and its files hold {found.n_values:,} numbers",
            where=str(path / "config.json"), fix="copy or download the model again",
        )  # fmt: skip


def is_quantised(name: str) -> bool:
    """Whether the files of a model hold quantised weights."""
    place = find_model(name) / "config.json"
    return method_of(read_object(place), str(place)) is not None


def scheme_of(model: Any) -> Scheme | None:
    """The scheme of the first quantised layer."""
    return next((module.q.scheme for module in model.modules() if isinstance(module, QuantizedWeight)), None)


@torch.no_grad()
def _look_at_answers(model: Any, path: Path) -> None:
    """Every weight must be a number; and of a few ids through the model, none may depend on an id to its right.

    An encoder such as BERT loads as a "causal" model without a complaint, sees the word that it should predict, and learns to copy it.
    """
    again = "its weights are broken: copy or download the model again"
    if (name := _first_broken(model)) is not None:
        raise BadInput("a weight of the model is NaN or inf", where=f"{path}: {name}", fix=again)
    ids_BT = torch.arange(3, 11, device=model.device)[None] % model.config.get_text_config().vocab_size
    other_BT = ids_BT.clone()
    other_BT[0, -1] = ids_BT[0, 0]
    before, after = (model(input_ids=ids, use_cache=False).logits[0, :-1].float() for ids in (ids_BT, other_BT))
    if not bool(torch.isfinite(before).all()):
        raise BadInput("the model answers with NaN or inf", where=str(path), fix=f"training.dtype: float32; or {again}")
    noise = 1e-4 if model.dtype == torch.float32 else 3e-2  # a mixture of experts may round a token otherwise beside other tokens
    if float((before - after).abs().max()) > noise * float(before.abs().max()):
        raise BadInput("this model sees the words to come: it is an encoder, not a decoder", where=str(path), fix=A_DECODER)


def _first_broken(model: Any) -> str | None:
    """The first tensor with a value that is no number. A sum meets each value once and needs no memory; only a strange sum is looked into."""
    held = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    return next((name for name, t in held.items() if not bool(t.sum().isfinite()) and not bool(t.isfinite().all())), None)
