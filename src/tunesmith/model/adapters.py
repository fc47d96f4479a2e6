"""Adapters on a model: put on, choose, save and load in PEFT's layout.

    attach(model, "spam", LoraConfig(rank=16), seed=0)
    with using(model, "spam"): logits = model(ids).logits      # None: the base
    save_adapter(model, "spam", folder, facts); load_adapter(model, "traffic", other_folder)

An adapter folder holds adapter_config.json and adapter_model.safetensors as PEFT writes them (vLLM and others read the same)
and tunesmith.json: what it was trained on and how its prompts were rendered. Every mismatch is found before a weight is used
and all are reported in one error.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith import __version__
from tunesmith.config import LoraConfig
from tunesmith.errors import BadInput, nearest
from tunesmith.files import write_json, write_tensors
from tunesmith.model.experts import ExpertStack, expert_order, expert_parameters, put_stack
from tunesmith.model.foreign import check_adapter
from tunesmith.model.frozen import FrozenLinear, QuantizedLinear, QuantizedWeight
from tunesmith.model.lora import Adapter, LoraLinear, Switch

PEFT_PREFIX = "base_model.model."
_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight")  # a tensor's name: the layer's path and the side


LARGE_PRODUCT = 1e4  # of the norms of A and B, with the scale: training ends near 1 to 100


@dataclass(frozen=True)
class Layer:
    """One layer that an adapter changes, in numbers; a stack of experts counts for `n_experts` of them."""

    name: str
    n_inputs: int
    n_outputs: int
    n_experts: int = 1


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every nn.Linear, Conv1D and QuantizedLinear but the output head, by module path; layers that carry adapters already included."""
    head = output_head(model)
    inside = {id(m.frozen) for m in model.modules() if isinstance(m, LoraLinear)}
    inside |= {id(layer) for m in model.modules() if isinstance(m, ExpertStack) for layer in m.quantized}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D | QuantizedLinear | LoraLinear) and module is not head and id(module) not in inside
    }


def output_head(model: nn.Module) -> nn.Module | None:
    """The layer that makes logits, where the model says which it is."""
    head = getattr(model, "get_output_embeddings", None)
    found: nn.Module | None = head() if head is not None else None
    return found


def choose_targets(model: nn.Module, targets: str | list[str]) -> list[str]:
    """Module paths that `lora.targets` means: all-linear, or names that match a path or its end; experts only by name."""
    if targets == "all-linear":
        return list(linear_layers(model))
    layers = [*linear_layers(model), *expert_parameters(model)]
    wanted = [targets] if isinstance(targets, str) else targets
    chosen = [name for name in layers if any(_matches(name, target) for target in wanted)]
    unused = [target for target in wanted if not any(_matches(name, target) for name in layers)]
    ends = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
    if unused:
        raise BadInput(
            f"no linear layer is named {', '.join(unused)}", where="lora.targets",
            fix=f"{nearest(unused[0], ends.split(', '))} (this model has: {ends})",
        )  # fmt: skip
    if not chosen:
        raise BadInput("no layer is named", where="lora.targets", fix=f"all-linear, or some of: {ends}")
    return chosen


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def switch_of(model: nn.Module) -> Switch:
    """The model's switch, made at the first call."""
    switch = getattr(model, "_tunesmith_switch", None)
    if switch is None:
        switch = Switch()
        model._tunesmith_switch = switch  # type: ignore[assignment]
    assert isinstance(switch, Switch)
    return switch


@contextmanager
def using(model: nn.Module, name: str | None) -> Iterator[None]:
    """Within the block the model answers with this adapter; None is the base."""
    if name is not None and name not in adapter_names(model):
        raise BadInput(f'there is no adapter "{name}" on this model', fix=nearest(name, adapter_names(model)))
    switch = switch_of(model)
    before, switch.active = switch.active, name
    try:
        yield
    finally:
        switch.active = before


def adapter_names(model: nn.Module) -> list[str]:
    names: dict[str, None] = {}
    for module in model.modules():
        if isinstance(module, LoraLinear | ExpertStack):
            names |= dict.fromkeys(module.adapters)
    return list(names)


def adapted_layers(model: nn.Module, name: str) -> dict[str, LoraLinear | ExpertStack]:
    return {path: m for path, m in model.named_modules() if isinstance(m, LoraLinear | ExpertStack) and name in m.adapters}


def peft_paths(model: nn.Module, paths: Iterable[str]) -> dict[str, str]:
    """How PEFT calls each adapted layer. A stack of experts is named by its module; of several in one, the first is the innermost."""
    experts, result = expert_parameters(model), {}
    adapted = set(paths)
    for path in adapted:
        result[path] = path
        if path in experts:
            module, name, _ = experts[path]
            owner = path.rpartition(".")[0]
            order = expert_order(module)
            later = [other for other in order[order.index(name) + 1 :] if f"{owner}.{other}" in adapted]
            result[path] = owner + ".base_layer" * len(later)
    return result


def adapter_parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Trained tensors by their name in PEFT's file."""
    parameters: dict[str, nn.Parameter] = {}
    layers = adapted_layers(model, name)
    named = peft_paths(model, layers)
    for path, layer in layers.items():
        adapter: Any = layer.adapters[name]
        parameters[f"{PEFT_PREFIX}{named[path]}.lora_A.weight"] = adapter.a_RK
        parameters[f"{PEFT_PREFIX}{named[path]}.lora_B.weight"] = adapter.b_NR
    return parameters


def attach(model: nn.Module, name: str, config: LoraConfig, seed: int) -> list[Layer]:
    """Put a new adapter on the chosen layers; the model's output does not change, as B is zero. Freezes the base."""
    _check_name(name)
    if name in adapter_names(model):
        raise BadInput(f'there is already an adapter "{name}" on this model', fix="choose another name")
    paths = choose_targets(model, config.targets)
    scale = config.resolved_alpha / (math.sqrt(config.rank) if config.rslora else config.rank)
    layers = _put(model, name, dict.fromkeys(paths, config.rank), dict.fromkeys(paths, scale), config.dropout)
    generator = torch.Generator().manual_seed(seed)
    for layer in adapted_layers(model, name).values():
        _adapter(layer, name).start(generator)
    return layers


def _put(model: nn.Module, name: str, ranks: Mapping[str, int], scales: Mapping[str, float], dropout: float) -> list[Layer]:
    """Replace the named layers (once) and give each an adapter of zeros; a rank that does not fit leaves the model as it was."""
    modules, experts = linear_layers(model), expert_parameters(model)
    if dropout and (named := [path for path in ranks if path in experts]):
        raise BadInput(f"experts cannot be adapted with dropout: {named[0]}", where=f"lora.dropout: {dropout}", fix="lora.dropout: 0")
    for path, rank in ranks.items():
        n, k = layer_sizes(modules[path]) if path in modules else _expert_sizes(experts[path])
        if rank > min(n, k):
            raise BadInput(
                f"rank {rank} is larger than the layer: {path} is {n}×{k}", where="lora.rank",
                fix=f"lora.rank: at most {min(n, k)}, or leave this layer out with lora.targets",
            )  # fmt: skip
    for parameter in _base_parameters(model).values():
        parameter.requires_grad_(False)
    layers = []
    for path, rank in ranks.items():
        if path in experts:
            layers.append(_put_on_experts(model, path, name, rank, scales[path]))
            continue
        module = modules[path]
        if not isinstance(module, LoraLinear):
            wrapped = LoraLinear(module if isinstance(module, QuantizedLinear) else FrozenLinear(module), switch_of(model))
            wrapped.train(module.training)
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, wrapped)
            module = wrapped
        frozen: Any = module.frozen
        module.adapters[name] = Adapter(frozen.n_inputs, frozen.n_outputs, rank, scales[path], dropout, frozen.weight.device)
        layers.append(Layer(path, frozen.n_inputs, frozen.n_outputs))
    return layers


def _put_on_experts(model: nn.Module, path: str, name: str, rank: int, scale: float) -> Layer:
    owner, inner, transposed = expert_parameters(model)[path]
    stack: Any = getattr(owner, inner)
    if not isinstance(stack, ExpertStack):
        stack = ExpertStack.of(stack, transposed, switch_of(model))
        put_stack(model, path, stack)
    stack.add_adapter(name, rank, scale, next(model.parameters()).device)
    return Layer(path, stack.n_inputs, stack.n_outputs, stack.n_experts)


def _expert_sizes(found: tuple[nn.Module, str, bool]) -> tuple[int, int]:
    """Outputs and inputs of one expert."""
    owner, name, transposed = found
    value: Any = getattr(owner, name)
    first, second = value.file_shape[1:] if isinstance(value, ExpertStack) else value.shape[1:]
    return (second, first) if transposed else (first, second)


def _n_experts(found: tuple[nn.Module, str, bool]) -> int:
    owner, name, _ = found
    value: Any = getattr(owner, name)
    return value.n_experts if isinstance(value, ExpertStack) else int(value.shape[0])


def _check_name(name: str) -> None:
    """A name is a label, never a path or a module path."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise BadInput(f'"{name}" cannot name an adapter', fix="letters, digits, - and _, at most 64")


def arithmetic(layers: list[Layer], rank: int) -> list[str]:
    """The sizes in words: one line for each shape, then the total."""
    counts: dict[tuple[int, int], int] = {}
    for layer in layers:
        shape = (layer.n_outputs, layer.n_inputs)
        counts[shape] = counts.get(shape, 0) + layer.n_experts
    lines, frozen_total, trained_total = [], 0, 0
    for (n, k), count in sorted(counts.items(), key=lambda item: -item[0][0] * item[0][1]):
        frozen, trained = n * k, rank * (n + k)
        frozen_total, trained_total = frozen_total + count * frozen, trained_total + count * trained
        lines.append(
            f"{n}×{k} = {frozen:,} frozen; A {rank}×{k} + B {n}×{rank} = {trained:,} trained ({trained / frozen:.2%}); {count} such layers"
        )
    lines.append(f"together {frozen_total:,} frozen in adapted layers, {trained_total:,} trained ({trained_total / frozen_total:.2%})")
    return lines


# --- files --------------------------------------------------------------------------------------------------------------


def fingerprint(model: nn.Module) -> str:
    """Names, shapes and a sample of every base weight: equal for the same base, other for a base that only looks alike.

    A base that was quantised, while it was loaded or into a folder, has the fingerprint of its dense weights: an adapter fits both.
    """
    recorded = getattr(model, "_tunesmith_fingerprint", None)
    if isinstance(recorded, str):
        return recorded
    digest = blake2b(digest_size=16)
    samples: dict[str, tuple[tuple[int, ...], Tensor]] = {
        name: (tuple(p.shape), sample_of(p)) for name, p in _base_parameters(model).items()
    }
    head = output_head(model)
    tied = isinstance(head, QuantizedWeight) and head.shares(cast(Any, model).get_input_embeddings())
    for path, layer in model.named_modules():
        if isinstance(layer, ExpertStack):
            weight = layer.dense
            experts_sample = layer.sample if layer.sample is not None else sample_of(weight) if weight is not None else torch.zeros(0)
            samples[path] = (layer.file_shape, experts_sample)
        elif isinstance(layer, QuantizedWeight) and ".quantized." not in path and not (layer is head and tied):
            sizes = (layer.n_outputs, layer.n_inputs)
            sample = layer.sample if layer.sample is not None else sample_of(layer.dense(torch.float32))
            samples[f"{path.removesuffix('.frozen')}.weight"] = (sizes[::-1] if getattr(layer, "transposed", False) else sizes, sample)
    for name, (shape, sample) in sorted(samples.items()):
        digest.update(f"{name}{shape}".encode())
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def sample_of(weight: Tensor) -> Tensor:
    """Up to 64 values of a weight as it lies in its file, bfloat16 on the CPU."""
    return weight.detach().flatten()[:: max(1, weight.numel() // 64)][:64].to("cpu", torch.bfloat16)


def _base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by the names they had before adapters were put on."""
    return {n.replace(".frozen.", "."): p for n, p in model.named_parameters() if not re.search(r"\.adapters\.|\.stored_|\.dense$", n)}


def save_adapter(model: nn.Module, name: str, folder: Path, facts: Mapping[str, Any], base: str, config: LoraConfig) -> None:
    """Write the adapter in PEFT's layout, then open what was written: shapes as configured, B not all zero (FAILURES 19)."""
    layers = adapted_layers(model, name)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "adapter_model.safetensors", {k: p.detach() for k, p in adapter_parameters(model, name).items()})
    write_json(folder / "adapter_config.json", peft_config(model, name, base, config))
    write_json(folder / "tunesmith.json", {"version": __version__, "base_fingerprint": fingerprint(model), **facts})
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a dict
        moved = any(bool(file.get_tensor(key).any()) for key in shapes if key.endswith("lora_B.weight"))
    expected = {key: tuple(p.shape) for key, p in adapter_parameters(model, name).items()}
    if shapes != expected or not layers:
        raise BadInput("the adapter on disk is not the one in memory", where=str(folder), fix="this is a defect: please report it")
    if not moved:
        raise BadInput("every B of the adapter is zero: nothing was learned", where=str(folder), fix="raise training.learning_rate")


def peft_config(model: nn.Module, name: str, base: str, config: LoraConfig) -> dict[str, Any]:
    adapted = adapted_layers(model, name)
    experts = sorted(path for path, layer in adapted.items() if isinstance(layer, ExpertStack))
    layers = {path: layer for path, layer in adapted.items() if isinstance(layer, LoraLinear)}
    ends = sorted({path.rpartition(".")[2] for path in layers})
    # PEFT matches the end of a path: short names only if they mean these layers and no other module
    inside = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, LoraLinear))
    others = [path for path, _ in model.named_modules() if path not in layers and not path.startswith(inside)]
    exact = not any(_matches(path, end) for path in others for end in ends)
    # an adapter that came from a file may have its own rank and scale in each layer
    ranks = {path: _adapter(layer, name).a_RK.shape[0] // getattr(layer, "n_experts", 1) for path, layer in adapted.items()}
    divisors = {path: math.sqrt(rank) if config.rslora else rank for path, rank in ranks.items()}
    alphas = {path: _adapter(layer, name).scale * divisors[path] for path, layer in adapted.items()}
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": config.rank,
        "lora_alpha": config.resolved_alpha, "lora_dropout": config.dropout, "use_rslora": config.rslora,
        "target_modules": ends if exact else sorted(layers),
        "target_parameters": experts or None, "bias": "none", "inference_mode": True, "modules_to_save": None,
        "fan_in_fan_out": any(layer.frozen.transposed for layer in layers.values()), "init_lora_weights": True,
        "rank_pattern": {path: rank for path, rank in ranks.items() if rank != config.rank},
        "alpha_pattern": {path: alpha for path, alpha in alphas.items() if not math.isclose(alpha, config.resolved_alpha)},
    }  # fmt: skip


def _adapter(layer: LoraLinear | ExpertStack, name: str) -> Adapter:
    adapter = layer.adapters[name]
    assert isinstance(adapter, Adapter)
    return adapter


@dataclass(frozen=True)
class AdapterFile:
    """A folder that passed every check that needs no model."""

    folder: Path
    config: dict[str, Any]
    facts: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]


def read_adapter(folder: Path) -> AdapterFile:
    """Open an adapter folder, ours or PEFT's; refuses what this version would ignore."""
    if (folder / "config.yaml").is_file() and (folder / "adapter").is_dir():
        raise BadInput("this folder is a run, not an adapter", where=str(folder), fix=f"use {folder / 'adapter'}")
    if not folder.is_dir():
        raise BadInput("there is no such adapter folder", where=str(folder), fix="a run keeps its adapter in RUN/adapter")
    found = check_adapter(folder)
    return AdapterFile(folder, found.config, found.facts, {key: entry.shape for key, entry in found.header.tensors.items()})


def load_adapter(model: nn.Module, name: str, folder: Path, trainable: bool = False) -> AdapterFile:
    """Put the adapter of a folder on the model under `name`; refuses one that was made for another base or has no effect."""
    _check_name(name)
    if name in adapter_names(model):
        raise BadInput(
            f'there is already an adapter "{name}" on this model', where=str(folder), fix="--adapter NAME=PATH with another name"
        )
    found = read_adapter(folder)
    modules, experts = linear_layers(model), expert_parameters(model)
    named = [path for path in experts if any(_matches(path, str(target)) for target in found.config.get("target_parameters") or [])]
    ours = {theirs: path for path, theirs in peft_paths(model, named).items()}
    head = next((path for path, module in model.named_modules() if module is output_head(model)), None)
    ranks: dict[str, int] = {}
    seen: set[tuple[str, str]] = set()
    problems: list[str] = []
    unknown = [target for target in found.config.get("target_parameters") or [] if not any(_matches(path, str(target)) for path in experts)]
    if unknown:
        problems.append(f"target_parameters = {unknown!r} is not supported: the model has no experts of that name")
    for key, shape in found.shapes.items():
        match = _KEY.fullmatch(key)
        if match is None or len(shape) != 2:
            problems.append(f"unexpected tensor {key} {shape}")
            continue
        path, side = ours.get(match[1], match[1]), match[2]
        module = modules.get(path)
        if module is None and path not in experts:
            reason = f"{path} is the output head, which tunesmith does not adapt"
            problems.append(reason if path == head else f"the model has no layer {path}")
            continue
        if (path, side) in seen:
            problems.append(f"{path}: lora_{side} is there twice")
        seen.add((path, side))
        n, k = layer_sizes(module) if module is not None else _expert_sizes(experts[path])
        rank = (shape[0] if side == "A" else shape[1]) // (1 if module is not None else _n_experts(experts[path]))
        expected = _by_layer(found.config.get("rank_pattern"), path, found.config["r"])
        if not 0 < rank <= min(n, k):
            problems.append(f"{path}: the rank of lora_{side} is {rank}, the layer {n}×{k}")
        elif rank != expected:
            problems.append(f"{path}: the rank of lora_{side} is {rank}, adapter_config.json says {expected:g}")
        whole = (shape[0] if side == "A" else shape[1]) == rank * (1 if module is not None else _n_experts(experts[path]))
        if not whole or (shape[1] if side == "A" else shape[0]) != (k if side == "A" else n):
            problems.append(f"{path}: lora_{side} is {shape[0]}×{shape[1]}, the layer {n}×{k}")
        if ranks.setdefault(path, rank) != rank:
            problems.append(f"{path}: A and B have different ranks")
        other = key.replace(f"lora_{side}", "lora_B" if side == "A" else "lora_A")
        if other not in found.shapes:
            problems.append(f"{path}: lora_{'B' if side == 'A' else 'A'} is missing")
    promised = _promised(found.config, modules)
    if promised is not None:
        problems += [f"{path}: promised by target_modules and missing" for path in promised if path not in ranks]
        strange = [path for path in ranks if path in modules and path not in promised]
        problems += [f"{path}: the file has it, and adapter_config.json leaves it out ({_narrowed_by(found.config)})" for path in strange]
    recorded = found.facts.get("base_fingerprint")
    if not problems and recorded and recorded != fingerprint(model):
        problems.append(f"it was trained on {found.config.get('base_model_name_or_path')}, whose weights are not these")
    if not ranks and not problems:
        problems.append("it holds no layer")
    if problems:
        shown = problems[:8] + ([f"and {len(problems) - 8} more"] if len(problems) > 8 else [])
        base = found.config.get("base_model_name_or_path")
        raise BadInput(
            "this adapter does not fit this base model:\n  " + "\n  ".join(shown), where=str(folder),
            fix=f"load the base it was trained on{f' ({base})' if base else ''}, or copy the adapter again",
        )  # fmt: skip
    scales = {path: _scale(found.config, path, rank) for path, rank in ranks.items()}
    tensors = _read_tensors(folder / "adapter_model.safetensors")
    bad = [key for key, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise BadInput(f"the adapter holds NaN or inf in {bad[0]}", where=str(folder), fix="train it again or use an earlier checkpoint")
    if not any(bool(tensor.any()) for key, tensor in tensors.items() if "lora_B" in key):
        raise BadInput("every B of this adapter is zero: it would change nothing", where=str(folder), fix="use a trained adapter")
    _put(model, name, ranks, scales, float(found.config.get("lora_dropout") or 0.0))
    bare = {key.removeprefix(PEFT_PREFIX): tensor for key, tensor in tensors.items()}
    with torch.no_grad():
        for key, parameter in adapter_parameters(model, name).items():
            parameter.copy_(bare[key.removeprefix(PEFT_PREFIX)])
            parameter.requires_grad_(trainable)
    if not _can_answer(model, name):
        for layer in adapted_layers(model, name).values():
            del layer.adapters[name]
        raise BadInput(
            "with this adapter the model answers with NaN or inf: its values are too large", where=str(folder),
            fix="train it again, with a lower training.learning_rate, or use an earlier checkpoint",
        )  # fmt: skip
    return found


@torch.no_grad()
def _can_answer(model: Any, name: str) -> bool:
    """Whether a few ids through the adapted model give numbers. Tried only where a product is far larger than those of any training."""
    adapters = [_adapter(layer, name) for layer in adapted_layers(model, name).values()]
    if all(abs(one.scale) * float(one.a_RK.norm()) * float(one.b_NR.norm()) < LARGE_PRODUCT for one in adapters):
        return True
    ids_BT = torch.arange(3, 11, device=model.device)[None] % model.config.get_text_config().vocab_size
    with using(model, name):
        return bool(torch.isfinite(model(input_ids=ids_BT, use_cache=False).logits).all())


def layer_sizes(module: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a linear layer of any kind."""
    layer: Any = module.frozen if isinstance(module, LoraLinear) else module
    if isinstance(layer, FrozenLinear | QuantizedLinear):
        return layer.n_outputs, layer.n_inputs
    rows, columns = layer.weight.shape
    return (columns, rows) if isinstance(layer, Conv1D) else (rows, columns)


def _scale(config: Mapping[str, Any], path: str, rank: int) -> float:
    """alpha / r, with PEFT's per-layer alpha_pattern and rsLoRA."""
    alpha = _by_layer(config.get("alpha_pattern"), path, config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_layer(pattern: Mapping[str, float] | None, path: str, default: float) -> float:
    """The number that PEFT's rank_pattern or alpha_pattern gives a layer: the first name that fits; ^ means the whole path."""
    for name, value in (pattern or {}).items():
        if path == name.removeprefix("^") or (not name.startswith("^") and _matches(path, name)):
            return float(value)
    return float(default)


def _promised(config: Mapping[str, Any], modules: Mapping[str, nn.Module]) -> list[str] | None:
    """Layers that adapter_config.json names, which are those of the file, no more and no fewer; None where it names them by one text.

    As PEFT chooses them: a whole path always counts; the end of one only in the layers, and not in the modules, that other keys tell.
    """
    targets, excluded = config.get("target_modules"), config.get("exclude_modules") or []
    if not isinstance(targets, list) or not isinstance(excluded, list):
        return None
    numbers = config.get("layers_to_transform")
    chosen = None if numbers in (None, []) else numbers if isinstance(numbers, list) else [numbers]
    before = config.get("layers_pattern") or []
    names = "|".join(map(re.escape, [before] if isinstance(before, str) else before)) or r"[^.]*"
    number = re.compile(rf".*\.(?:{names})\.(\d+)\.")

    def is_chosen(path: str) -> bool:
        found = number.match(path)
        return chosen is None or (found is not None and int(found[1]) in chosen)

    wanted = [path for path in modules if path in targets or (is_chosen(path) and any(_matches(path, str(target)) for target in targets))]
    return [path for path in wanted if not any(_matches(path, str(name)) for name in excluded)]


def _narrowed_by(config: Mapping[str, Any]) -> str:
    """The keys that say which layers an adapter has."""
    keys = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    return ", ".join(key for key in keys if config.get(key) not in (None, [], ""))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 - not a dict
