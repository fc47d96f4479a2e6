"""What full and LoRA fine-tuning differ in: which tensors are trained, and which files they become. The loop sees neither.

tuned = build(run, name="spam")
tuned.parameters            # name in the checkpoint → float32 tensor with a gradient
tuned.save(folder / "adapter", facts)
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith import __version__
from tunesmith.config import QuantizationConfig, Run
from tunesmith.errors import BadInput
from tunesmith.files import new_folder, write_json
from tunesmith.hardware import pick_device, pick_dtype
from tunesmith.kernels import float8
from tunesmith.model.adapters import adapter_parameters, arithmetic, attach, fingerprint, load_adapter, save_adapter, switch_of
from tunesmith.model.blocks import fuse
from tunesmith.model.experts import ExpertStack, expert_parameters
from tunesmith.model.frozen import QuantizedWeight
from tunesmith.model.layers import fuse_layers, keep_inputs
from tunesmith.model.load import Loaded, is_quantised, load_model
from tunesmith.quant.scheme import find_scheme
from tunesmith.runs import adapter_of
from tunesmith.training import distributed
from tunesmith.training.shards import on_first

TRIED_TOKENS = 48  # on which a model shows that it computes its activations twice alike


@dataclass(frozen=True)
class Tuned:
    """A model whose chosen tensors are trained.

    adapter         name of the active adapter; None for full fine-tuning
    weights_file    stem of the checkpoint's weights file
    compute_dtype   of the matrix products; masters are float32
    said            the arithmetic, in words
    """

    loaded: Loaded
    parameters: dict[str, nn.Parameter]
    adapter: str | None
    weights_file: str
    compute_dtype: torch.dtype
    said: list[str]
    write: Callable[[Path, Mapping[str, Any], Mapping[str, Tensor]], None]

    def save(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """The first process writes the files of the tuned model in place of `folder`, whole or not at all; all must call it."""
        state = {} if self.adapter is not None else self._whole_state()
        if distributed.rank() != 0:
            return
        with new_folder(folder, sum(p.nbytes for p in self.parameters.values())) as beside:
            self.write(beside, facts, state)
            self.loaded.tokenizer.save_pretrained(beside)

    def _whole_state(self) -> dict[str, Tensor]:
        """Every tensor of the model in the dtype of its products, in the first process; where they are sharded, one after another."""
        model, seen, state = self.loaded.model, dict[int, Tensor | None](), dict[str, Tensor]()
        for name, value in model.state_dict(keep_vars=True).items():
            if id(value) not in seen:
                seen[id(value)] = on_first(value)
            whole = seen[id(value)]
            if whole is not None:
                state[name] = whole.to(self.compute_dtype) if whole.is_floating_point() else whole
        return state


def build(run: Run, name: str, device: str = "auto") -> Tuned:
    """Load the base and make ready what `run.method` trains.

    device   where the weights go; products are made in what suits the device that trains
    """
    compute = pick_dtype(run.training.dtype, pick_device())
    if run.method == "full":
        loaded = load_model(run.model, "float32", device)
        if loaded.scheme is not None:
            raise BadInput(
                f"the base is quantised ({loaded.scheme}), and codes cannot be trained", where=f"model: {run.model}",
                fix="method: qlora, or the model that it was made from",
            )  # fmt: skip
        tuned = _full(run, loaded, compute)
    else:
        if run.method == "qlora" and run.quantization.scheme.lower() == "fp8":
            float8.must_multiply(pick_device(), "quantization.scheme: fp8")
        tuned = _lora(run, load_base(run, str(compute).removeprefix("torch."), device), compute, name)
    if run.training.gradient_checkpointing:
        loaded = tuned.loaded
        n_tokens = min(TRIED_TOKENS, loaded.context or TRIED_TOKENS)
        kept = _input_gradient(loaded.model, n_tokens)
        recompute_activations(loaded.model)
        must_be_equal_when_recomputed(kept, _input_gradient(loaded.model, n_tokens))
    return tuned


def recompute_activations(model: Any) -> None:
    """Keep the input of each layer only, and run it once more in the backward pass (Chen et al. 2016, arXiv 1604.06174)."""
    if not model.supports_gradient_checkpointing:
        raise BadInput("this model cannot compute its activations again", where="training.gradient_checkpointing", fix="leave it out")
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable  # before transformers 5.23
    enable({"use_reentrant": False})  # the older form gives frozen layers' inputs no gradient (FAILURES 23)
    keep_inputs(model)


def must_be_equal_when_recomputed(kept: Tensor, again: Tensor) -> None:
    """Raises BadInput where a model's second forward is another one than its first (random attention, say): its gradients would be of neither."""
    off = float((again - kept).norm() / kept.norm())
    if not off <= 0.01:
        raise BadInput(
            f"this model's activations are other ones when they are computed again (its gradients are off by {off:.1%})",
            where="training.gradient_checkpointing", fix="leave it out",
        )  # fmt: skip


def _input_gradient(model: Any, n_tokens: int = TRIED_TOKENS) -> Tensor:
    """Of a weighted sum of what the trunk makes of a few ids in training, with the dropout of one seed, with respect to their embeddings."""
    embedded: list[Tensor] = []

    def cut_off(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # some families go on in place

    table, was_training = model.get_input_embeddings(), model.training
    ids = (3 + 5 * torch.arange(n_tokens, device=table.weight.device))[None] % table.weight.shape[0]
    hook = table.register_forward_hook(cut_off)
    try:
        with torch.random.fork_rng([ids.device] if ids.is_cuda else []), torch.enable_grad():
            torch.manual_seed(0)
            hidden = model.train().base_model(input_ids=ids, use_cache=False)[0].float()
            weights = torch.linspace(-1, 1, hidden.numel(), device=hidden.device).view_as(hidden)
            [gradient] = torch.autograd.grad((weights * hidden).sum(), embedded[:1])
    finally:
        hook.remove()
        model.train(was_training)
    return gradient.float()


def load_base(run: Run, dtype: str, device: str = "auto") -> Loaded:
    """The base that adapters of this run belong on: quantised as the run says if its method is qlora."""
    section = run.quantization
    chosen = section != QuantizationConfig()  # a saved config spells the defaults out
    if run.method != "qlora" or (is_quantised(run.model) and not chosen):
        return load_model(run.model, dtype, device)
    scheme = find_scheme(section.scheme, section.block_size, section.double, section.clip, section.embeddings)
    return load_model(run.model, dtype, device, scheme=scheme)


def _lora(run: Run, loaded: Loaded, compute: torch.dtype, name: str) -> Tuned:
    model, config = loaded.model, run.lora
    if config.continue_from is not None:
        found = load_adapter(model, name, adapter_of(config.continue_from), trainable=True)
        if (found.config["r"], float(found.config["lora_alpha"]), bool(found.config.get("use_rslora"))) != (
            config.rank,
            config.resolved_alpha,
            config.rslora,
        ):
            raise BadInput(
                f"the adapter to continue has rank {found.config['r']}, alpha {found.config['lora_alpha']:g}; this run asks for rank {config.rank}, "
                f"alpha {config.resolved_alpha:g}", where=f"lora.continue_from: {config.continue_from}",
                fix=f"lora: {{rank: {found.config['r']}, alpha: {found.config['lora_alpha']:g}, rslora: {str(bool(found.config.get('use_rslora'))).lower()}}}",
            )  # fmt: skip
        said = [f"continuing from the adapter {config.continue_from}"]
    else:
        said = arithmetic(attach(model, name, config, run.training.seed), config.rank)
    said += experts_left_out(model, name)
    said += quantised_words(model)
    switch_of(model).active = name
    fuse_layers(model)
    fuse(model)
    parameters = adapter_parameters(model, name)
    # a hub id or acorn by name; a folder by its whole path, so that PEFT finds it from anywhere
    base = str(loaded.path.absolute()) if Path(loaded.name).expanduser().is_dir() else loaded.name

    def write(folder: Path, facts: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        save_adapter(model, name, folder, facts, base, config)

    return Tuned(loaded, parameters, name, "adapter_model", compute, said, write)


def experts_left_out(model: nn.Module, name: str) -> list[str]:
    """That a mixture's experts, most of its weights, have no adapter, and what would give them one."""
    stacks = {path: module._modules.get(inner) for path, (module, inner, _) in expert_parameters(model).items()}
    ends = sorted(
        {
            ".".join(path.split(".")[-2:])
            for path, stack in stacks.items()
            if not isinstance(stack, ExpertStack) or name not in stack.adapters
        }
    )
    return [f"experts are not adapted; lora.targets: [{', '.join(ends)}, …] would adapt them too"] if ends else []


def quantised_words(model: nn.Module) -> list[str]:
    """What the base's quantised weights take, in words; nothing for a dense base. A weight that two layers share counts once."""
    layers = list({m.q.codes.data_ptr(): m for m in model.modules() if isinstance(m, QuantizedWeight)}.values())
    if not layers:
        return []
    n_weights, n_bytes = sum(layer.n_outputs * layer.n_inputs for layer in layers), sum(layer.q.nbytes for layer in layers)
    scheme = layers[0].q.scheme
    rest = "norms stay" if scheme.embeddings else "embeddings, norms and head stay"
    return [
        f"base in {scheme}: {n_weights:,} weights of {len(layers)} layers in {n_bytes / 2**20:,.1f} MiB "
        f"({8 * n_bytes / n_weights:.3f} bits each); {rest} {str(layers[0].dtype).removeprefix('torch.')}"
    ]


def _full(run: Run, loaded: Loaded, compute: torch.dtype) -> Tuned:
    model = loaded.model
    every = dict(model.named_parameters())
    chosen = {name: every[name] for name in named_part(model, every, run.full.train)}
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    n_trained, n_all = sum(p.numel() for p in chosen.values()), sum(p.numel() for p in every.values())
    said = [
        f"{n_trained:,} of {n_all:,} weights and biases trained ({n_trained / n_all:.2%}), float32 masters, products in {str(compute).removeprefix('torch.')}"
    ]
    base_fingerprint = fingerprint(model)
    if compute == torch.bfloat16 and not (run.training.sharding == "full" and distributed.world() > 1):  # casts are whole weights
        fuse_layers(model)

    def write(folder: Path, facts: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        folder.mkdir(parents=True)
        model.save_pretrained(folder, state_dict=dict(state))
        config_path = folder / "config.json"
        config = json.loads(config_path.read_text(encoding="utf-8"))
        write_json(config_path, {**config, "dtype": str(compute).removeprefix("torch.")})
        write_json(folder / "tunesmith.json", {"version": __version__, "base": loaded.name, "base_fingerprint": base_fingerprint, **facts})

    return Tuned(loaded, chosen, None, "model", compute, said, write)


def named_part(model: nn.Module, every: Mapping[str, nn.Parameter], part: str | int | list[str]) -> list[str]:
    """Parameter names that `full.train` means."""
    if part == "all":
        return list(every)
    if part == "biases":
        names = [name for name in every if name.endswith("bias")]
        if not names:
            raise BadInput(
                "this model has no biases", where="full.train: biases", fix="full.train: all, a number of last layers, or patterns"
            )
        return names
    if isinstance(part, int):
        stacks = {path: m for path, m in model.named_modules() if isinstance(m, nn.ModuleList)}
        path, layers = max(stacks.items(), key=lambda item: len(item[1]))
        if part > len(layers):
            raise BadInput(f"this model has {len(layers)} layers", where=f"full.train: {part}", fix=f"full.train: at most {len(layers)}")
        last = tuple(f"{path}.{i}." for i in range(len(layers) - part, len(layers)))
        return [name for name in every if name.startswith(last)]
    assert isinstance(part, list)
    unused = [pattern for pattern in part if not any(fnmatchcase(name, pattern) for name in every)]
    if unused or not part:
        raise BadInput(
            f"no parameter matches {', '.join(unused) or 'an empty list'}", where="full.train",
            fix=f"names look like {', '.join(list(every)[:2])}; * stands for anything",
        )  # fmt: skip
    return [name for name in every if any(fnmatchcase(name, pattern) for pattern in part)]
