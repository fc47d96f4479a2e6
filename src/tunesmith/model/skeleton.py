"""The modules of a model without its weights: described by a process that has them, built again by one that has not.

    words = describe(model, path)              # JSON: modules that are not transformers' own, parameters, buffers
    twin = build(path, words)                  # the same modules in the same order, every tensor on the device "meta"

What sharded training needs (training/sharding.py): one process loads, quantises and tries a model; the others hold nothing of it
but their share, and yet must agree with the first one on every module and on the order of every tensor.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith.errors import MachineFailed
from tunesmith.files import sha256_of
from tunesmith.model.adapters import switch_of
from tunesmith.model.blocks import LAYERS, GatedMlp
from tunesmith.model.experts import ExpertStack, expert_order
from tunesmith.model.frozen import FrozenLinear, QuantizedEmbedding, QuantizedLinear, QuantizedWeight
from tunesmith.model.lora import Adapter, LoraLinear
from tunesmith.quant.scheme import Scheme


def describe(model: Any, path: Path) -> dict[str, Any]:
    """Everything of a loaded model, with its adapters, that `build` needs besides config.json of the folder that it is from."""
    text = model.config.get_text_config()
    return {
        "config": sha256_of(path / "config.json"),
        "dtype": _name(model.dtype), "attention": text._attn_implementation, "experts": getattr(text, "_experts_implementation", None),
        "eos": getattr(model.generation_config, "eos_token_id", None), "active": switch_of(model).active,
        "fingerprint": getattr(model, "_tunesmith_fingerprint", None),
        "modules": [[path, type(module).__name__, facts] for path, module in model.named_modules() if (facts := _facts(module)) is not None],
        "parameters": _table(dict(model.named_parameters(remove_duplicate=False))),
        "buffers": _table(dict(model.named_buffers(remove_duplicate=False))),
    }  # fmt: skip


def _facts(module: nn.Module) -> dict[str, Any] | None:
    """The arguments that make one of our own modules; None for any other."""
    if isinstance(module, LoraLinear | GatedMlp):
        return {}
    if isinstance(module, FrozenLinear):
        return {"transposed": module.transposed}
    if isinstance(module, Adapter):
        return {"scale": module.scale, "dropout": module.dropout, "shapes": [list(module.a_RK.shape), list(module.b_NR.shape)]}
    if isinstance(module, ExpertStack):
        return {
            "shape": list(module.file_shape),
            "transposed": module.transposed,
            "dtype": _name(module.dtype),
            "quantized": len(module.quantized),
        }
    if isinstance(module, QuantizedWeight):
        facts: dict[str, Any] = {"sizes": [module.n_outputs, module.n_inputs], "dtype": _name(module.dtype), "layout": module.layout}
        facts["scheme"] = None if module.scheme is None else asdict(module.scheme)
        return facts | ({"transposed": module.transposed} if isinstance(module, QuantizedLinear) else {})
    return None


def _table(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Shape, dtype, whether trained; and the first name of a tensor that has several."""
    first: dict[int, str] = {}
    return {
        name: [list(t.shape), _name(t.dtype), t.requires_grad, first.setdefault(id(t), name)] for name, t in tensors.items()
    }  # fmt: skip


def build(path: Path, words: Mapping[str, Any]) -> Any:
    """The described model on the device "meta"; MachineFailed if this process, with its libraries, makes other modules of it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if sha256_of(path / "config.json") != words["config"]:
        raise MachineFailed(
            "config.json is another one than the first process has read", where=str(path), fix="the same files on every node"
        )
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    for section in (config, config.get_text_config()):
        if hasattr(section, "quantization_config"):
            del section.quantization_config
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=_dtype(words["dtype"]), trust_remote_code=False, attn_implementation=words["attention"] if words["attention"] != "tunesmith" else None
        )  # fmt: skip
        for where, kind, facts in words["modules"]:
            _put(model, where, kind, facts)
    for section in (model.config, model.config.get_text_config()):
        section._experts_implementation = words["experts"]
    _impose(model, words["parameters"], "_parameters")
    _impose(model, words["buffers"], "_buffers")
    model.generation_config.eos_token_id = words["eos"]
    model._tunesmith_fingerprint = words["fingerprint"]
    switch_of(model).active = words["active"]
    model.eval()
    mine = json.loads(json.dumps({**describe(model, path), "attention": words["attention"]}))
    if different := [key for key in words if mine[key] != words[key]]:
        raise MachineFailed(
            f"this process makes another model of {path} than the first one: its {different[0]} differ", where=str(path),
            fix="the same files, and the same version of transformers, on every node",
        )  # fmt: skip
    return model


def _put(model: Any, path: str, kind: str, facts: Mapping[str, Any]) -> None:
    """One of our modules in the place of what transformers, or a module around it, has put there."""
    parent_path, _, child = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    old: Any = getattr(parent, child, None)
    new: nn.Module
    if kind == "LoraLinear":
        new = LoraLinear(old, switch_of(model))
    elif kind == "GatedMlp":
        new = GatedMlp(*(getattr(old, name) for name in LAYERS))
    elif kind == "FrozenLinear":
        new = FrozenLinear(old)
    elif kind == "Adapter":
        (rank, k), (n, _) = facts["shapes"]
        new = Adapter(k, n, rank, facts["scale"], facts["dropout"], torch.device("meta"))
    elif kind == "ExpertStack":
        new = _put_experts(model, parent, child, facts)
    elif isinstance(old, QuantizedLinear):  # of an expert, made with its stack
        new = old
    elif kind == "QuantizedEmbedding":
        new = QuantizedEmbedding(old, path)
    else:
        n, k = facts["sizes"]
        new = QuantizedLinear(n, k, old.bias, _dtype(facts["dtype"]), facts["transposed"])
    if isinstance(new, QuantizedWeight) and facts["scheme"] is not None:
        new.scheme, new.layout = Scheme(**facts["scheme"]), facts["layout"]
    setattr(parent, child, new)


def _put_experts(model: Any, owner: Any, child: str, facts: Mapping[str, Any]) -> ExpertStack:
    owner._expert_order = expert_order(owner)
    weight = owner._parameters.pop(child)
    e, first, second = facts["shape"]
    stack = ExpertStack((e, first, second), facts["transposed"], _dtype(facts["dtype"]), switch_of(model))
    if facts["quantized"]:
        stack.make_room()
    else:
        stack.dense = weight
    return stack


def _impose(model: nn.Module, table: Mapping[str, Any], kind: str) -> None:
    """Make a model's parameters, or its buffers, those of the table, in its order."""
    made: dict[str, Any] = {}
    for module in model.modules():
        kept = {name: None for name, value in getattr(module, kind).items() if value is None}
        getattr(module, kind).clear()
        getattr(module, kind).update(kept)
    for name, (shape, dtype, trained, first) in table.items():
        if name == first:
            empty = torch.empty(shape, dtype=_dtype(dtype), device="meta")
            made[name] = nn.Parameter(empty, requires_grad=trained) if kind == "_parameters" else empty
        path, _, leaf = name.rpartition(".")
        held = getattr(model.get_submodule(path), kind)
        held.pop(leaf, None)
        held[leaf] = made[first]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found
