"""Open a model: the embedded acorn, a local folder or a hub id, through transformers, safetensors only.

    loaded = load_model("acorn", dtype="auto", device="auto")
    loaded.model, loaded.tokenizer, loaded.path

Remote code is never run and pickles are never read.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import BadInput, nearest
from tunesmith.hardware import pick_device, pick_dtype

ACORN = Path(__file__).parent / "acorn"


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode with its tokenizer. name: what the user wrote; path: the folder that was read."""

    model: Any
    tokenizer: Any
    name: str
    path: Path

    @property
    def eos_ids(self) -> set[int]:
        """Every id that the model's own settings call an end."""
        eos = self.model.generation_config.eos_token_id if self.model.generation_config is not None else None
        return set(eos) if isinstance(eos, list) else set() if eos is None else {int(eos)}

    @property
    def context(self) -> int | None:
        """Positions the model was made for, where its config says."""
        n = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return n if isinstance(n, int) else None


def find_model(name: str) -> Path:
    """The folder of a model; hub ids are fetched (configuration, safetensors and tokenizer files only)."""
    if name == "acorn":
        return ACORN
    path = Path(name).expanduser()
    if path.is_dir():
        _check_folder(path)
        return path
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1 or path.parent.is_dir()
    if looks_local:
        folder = path.parent if path.parent.is_dir() else Path()
        near = [str(folder / p.name) if str(folder) != "." else p.name for p in folder.iterdir() if p.is_dir() and (p / "config.json").exists()]
        raise BadInput("there is no such model folder", where=str(path), fix=nearest(name, [*near, "acorn"]))
    from huggingface_hub import snapshot_download

    try:
        fetched = snapshot_download(
            name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model", "merges.txt", "vocab.*"], ignore_patterns=["*.bin", "*.py", "original/*"]
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
    if not any(path.glob("*.safetensors")):
        pickled = sorted(p.name for p in path.glob("*.bin"))
        more = f"; {pickled[0]} is a pickle and is never read" if pickled else ""
        raise BadInput(f"this folder holds no safetensors weights{more}", where=str(path), fix="save the model with save_pretrained of a current transformers")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"config.json cannot be read: {error}", where=str(path), fix="copy or download the model again") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise BadInput("config.json does not name a model_type", where=str(path), fix="give a folder saved by transformers")


def first_line(error: Exception) -> str:
    """Of a library's message, which may be long, or empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def load_tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, use_fast=True)
    except Exception as error:  # whatever the tokenizer's files are lacking, the reason is in the message
        raise BadInput(f"the tokenizer cannot be loaded: {first_line(error)}", where=str(path), fix="the folder needs tokenizer.json") from None
    if not tokenizer.is_fast:
        raise BadInput("the tokenizer has no fast form", where=str(path), fix="convert it: the folder needs tokenizer.json")
    return tokenizer


def load_model(name: str, dtype: str = "auto", device: str = "auto") -> Loaded:
    """Weights in `dtype` on `device`, evaluation mode, gradients off until the method turns them on."""
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    path = find_model(name)
    place = pick_device(device)
    transformers.utils.logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        raise BadInput(f"the model's configuration is not understood: {first_line(error)}", where=str(path / "config.json"), fix="see the message; remote code is never run") from None
    # Soft-capped attention exists in transformers' eager path only; SDPA would leave the cap out without a word.
    eager = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=pick_dtype(dtype, place), use_safetensors=True, trust_remote_code=False,
            attn_implementation="eager" if eager else None, output_loading_info=True,
        )  # fmt: skip
    except Exception as error:
        raise BadInput(f"the weights cannot be loaded: {first_line(error)}", where=str(path), fix="copy or download the model again") from None
    problems = [f"{kind.replace('_', ' ')}: {', '.join(str(key) for key in list(report[kind])[:3])}" for kind in ("missing_keys", "mismatched_keys") if report.get(kind)]
    if problems:
        raise BadInput("weights do not fit the configuration: " + "; ".join(problems), where=str(path), fix="copy or download the model again")
    model.to(place)
    model.eval()
    model.requires_grad_(False)
    return Loaded(model, load_tokenizer(path), name, path)
