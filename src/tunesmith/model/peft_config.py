"""adapter_config.json as PEFT writes it: which keys are understood, which mean nothing here, and which would change the mathematics.

    check_adapter_config(read_object(path), path, header)       # BadInput that names everything that is wrong at once

Every key of PEFT 0.21 is in a table below. One that a newer PEFT has is taken if it says nothing (null, false, empty), and refused by its
name if it says something, since it would then be left out without a word. Layers are named plainly: PEFT runs regular expressions that
a file gives it, and one that never ends ((a+)+$) hangs whoever opens the adapter.
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import BadInput
from tunesmith.model.foreign_json import shown
from tunesmith.model.headers import Header

LARGEST_RANK, LARGEST_ALPHA = 1 << 16, 1_000_000
MOST_NAMES, LONGEST_TEXT = 100_000, 4096
PLAIN = re.compile(r"\^?[A-Za-z0-9_](?:[\w.-]*\w)?", re.ASCII)  # a layer: q_proj, layers.3.mlp; ^ is PEFT's mark of a whole path
SPECIAL = re.compile(r"[\\()\[\]{}*+?|^$]")  # what only a regular expression has
FIX = "tunesmith reads plain LoRA adapters"


def check_adapter_config(config: Mapping[str, Any], place: Path, header: Header) -> None:
    """header: of the adapter's tensors, whose names say which layers it has."""
    problems = []
    if config.get("peft_type") != "LORA":
        problems.append(f"peft_type is {shown(repr(config.get('peft_type')))}, not LORA")
    for key, harmless in HARMLESS.items():
        if key in config and config[key] not in harmless:
            problems.append(f"{key} = {shown(repr(config[key]))} is not supported")
    for key, most in (("r", LARGEST_RANK), ("lora_alpha", LARGEST_ALPHA)):
        value = config.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            problems.append(f"{key} should be a positive number, not {shown(repr(value))}")
        elif value > most:
            problems.append(f"{key} is too large: it should be at most {most:,}, not {shown(repr(value))}")
        elif key == "r" and not _is_rank(value):
            problems.append(f"r should be a whole number up to {LARGEST_RANK:,}, not {value!r}")
    dropout = config.get("lora_dropout") or 0.0
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        problems.append(f"lora_dropout should be below 1, not {shown(repr(dropout))}")
    for key in ("rank_pattern", "alpha_pattern"):
        pattern, is_one = config.get(key) or {}, _is_rank if key == "rank_pattern" else is_positive
        if not isinstance(pattern, dict) or len(pattern) > MOST_NAMES or not all(is_one(value) for value in pattern.values()):
            problems.append(f"{key} should give layers positive numbers, not {shown(repr(pattern))}")
        elif other := [name for name in pattern if not PLAIN.fullmatch(name)]:
            problems.append(f"{key} holds {_no_name(other[0])}; only names of layers are read")
    for key in ("target_modules", "exclude_modules", "layers_pattern", "target_parameters"):
        problems += _names(key, config.get(key), header)
    for key, (is_right, words) in OTHERS.items():
        if config.get(key) is not None and not is_right(config[key]):
            problems.append(f"{key} should be {words}, not {shown(repr(config[key]))}")
    known = KEYS | HARMLESS.keys() | OTHERS.keys()
    newer = [key for key in config if key not in known and config[key] not in (None, False, "", [], {})]
    problems += [f"{shown(key)} = {shown(repr(config[key]), 40)} is a key that PEFT 0.21 has not" for key in newer]
    if problems:
        told = problems[:8] + ([f"and {len(problems) - 8} more"] if len(problems) > 8 else [])
        raise BadInput("this adapter cannot be used: " + "; ".join(told), where=str(place), fix=FIX)


def _names(key: str, value: Any, header: Header) -> list[str]:
    """What is wrong with names of layers: a list of them, or one, or PEFT's word for all; the tensors say what a list would hold."""
    if value in (None, "", []) or (key == "target_modules" and value == "all-linear"):
        return []
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) > MOST_NAMES:
        return [f"{key} should be names of layers, not {shown(repr(value))}"]
    other = next((name for name in names if not PLAIN.fullmatch(name) or name.startswith("^")), None)
    if other is None:
        return []
    ends = sorted({found[1] for tensor in header.tensors if (found := re.search(r"([\w-]+)\.lora_[AB]\.weight$", tensor))})
    instead = f' ("{key}": {ends[:12]} would say it)'.replace("'", '"') if key == "target_modules" and ends else ""
    is_run = ", which is never run" if SPECIAL.search(other) else ""
    return [f"{key} holds {_no_name(other)}{is_run}{instead}"]


def _no_name(text: str) -> str:
    kind = "a regular expression" if SPECIAL.search(text) else "a text that is no name of a layer"
    return f"{kind}, {shown(repr(text))}"


def is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LARGEST_ALPHA


def _is_rank(value: object) -> bool:
    return type(value) is int and 0 < value <= LARGEST_RANK


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_TEXT and value.isprintable()


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _are_numbers(value: object) -> bool:
    return all(type(one) is int and 0 <= one < 1 << 20 for one in (value if isinstance(value, list) else [value]))


# Keys that change the mathematics, with the values that mean "off". Some ways to start an adapter (PiSSA, OLoRA, CorDA, LoftQ …) also
# change the base weights, so that such an adapter means nothing on the base as it is.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None), "modules_to_save": (None, []), "bias": ("none", None), "use_qalora": (False, None),
    "trainable_token_indices": (None, []), "lora_bias": (False, None), "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []), "use_bdlora": (None, False), "arrow_config": (None,), "ensure_weight_tying": (False, None),
    "kasa_config": (None,), "monteclora_config": (None,), "velora_config": (None, {}), "lora_ga_config": (None,),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}  # fmt: skip

# Keys whose values are looked at above.
KEYS = {"peft_type", "r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules",
        "layers_pattern", "target_parameters"}  # fmt: skip

# Keys that say something true of any adapter, or nothing, with what they may be. Names of classes (auto_mapping, megatron_core) are
# PEFT's to import; nothing here does.
OTHERS: dict[str, tuple[Callable[[object], bool], str]] = {
    "task_type": (_is_text, "a text"), "peft_version": (_is_text, "a text"), "base_model_name_or_path": (_is_text, "a text"),
    "revision": (_is_text, "a text"), "inference_mode": (_is_flag, "true or false"), "fan_in_fan_out": (_is_flag, "true or false"),
    "use_rslora": (_is_flag, "true or false"), "layers_to_transform": (_are_numbers, "numbers of layers"),
    "auto_mapping": (lambda value: isinstance(value, dict), "a mapping"), "megatron_config": (lambda value: isinstance(value, dict), "a mapping"),
    "megatron_core": (_is_text, "a text"), "loftq_config": (lambda value: isinstance(value, dict), "a mapping"),
    "eva_config": (lambda value: isinstance(value, dict), "a mapping"), "corda_config": (lambda value: isinstance(value, dict), "a mapping"),
    "qalora_group_size": (_are_numbers, "a number"), "runtime_config": (lambda value: isinstance(value, dict), "a mapping"),
    "qalora_config": (lambda value: isinstance(value, dict), "a mapping"),
}  # fmt: skip


# --- tunesmith.json, which stands beside the weights of adapters and models


def check_facts(facts: Mapping[str, Any], place: Path) -> None:
    """The facts that are used later are of the kind that they are used as; BadInput else."""
    for key, (is_right, words) in FACTS.items():
        if facts.get(key) is not None and not is_right(facts[key]):
            raise BadInput(f"{key} should be {words}, not {shown(repr(facts[key]))}", where=f"{place}: {key}", fix="copy it again")
    if "renderer" in facts and facts.get("template") not in ("chat", "plain"):
        raise BadInput("template should be chat or plain", where=f"{place}: template", fix="copy it again")


FACTS: dict[str, tuple[Callable[[object], bool], str]] = {
    **dict.fromkeys(("version", "base_fingerprint", "dense_fingerprint", "renderer", "dtype", "base", "base_scheme"), (_is_text, "a text")),
    **dict.fromkeys(("prompt", "system"), (lambda value: isinstance(value, str), "a text")),
    "stop_ids": (lambda value: isinstance(value, list) and all(type(one) is int for one in value), "numbers of tokens"),
    "weights_sha256": (lambda value: isinstance(value, dict) and all(isinstance(one, str) for one in value.values()), "texts by name"),
}
