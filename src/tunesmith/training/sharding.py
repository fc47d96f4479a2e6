"""A model whose weights are spread over the processes: PyTorch's FSDP2 around each layer and around Scored.

    training: {sharding: full}

    tuned = build_tuned(run, name)              # the first process loads; the others build the same modules without memory
    tuned, scored = distribute(run, tuned)      # each process receives its rows, tensor by tensor, and wraps
    batches = as_many_for_all(batches, scored)  # each forward gathers weights from all processes, so all must make it
    nll = scored(batch)                         # the one module that is called: past it no weight would be gathered

Every tensor of the base is cut by its first dimension; a layer's are gathered while it computes and dropped again. Codes and scales of
a quantised base are frozen parameters and travel as they are, in a few bits. What LoRA trains is small, stays whole in each process and
has its gradients added up as without sharding; full fine-tuning trains the rows, and their gradients are added up (never averaged: the
denominator of a step is global) where they are scattered.

Source: Zhao et al. 2023 (arXiv 2304.11277); torch.distributed.fsdp.fully_shard.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard

from tunesmith.config import Run
from tunesmith.data.batches import Batch
from tunesmith.data.template import Example
from tunesmith.errors import BadInput
from tunesmith.hardware import pick_device
from tunesmith.loss import Scored, empty_batch, nll_of
from tunesmith.model import skeleton
from tunesmith.model.adapters import adapter_parameters, fingerprint
from tunesmith.model.attention import switch_over
from tunesmith.model.frozen import QuantizedWeight
from tunesmith.model.layers import Form, fused_forms, put_form
from tunesmith.model.load import Loaded, find_model, load_tokenizer, scheme_of
from tunesmith.training import distributed
from tunesmith.training.distributed import from_first, largest
from tunesmith.training.method import Tuned, build, recompute_activations
from tunesmith.training.shards import send_rows, send_whole


def is_on(run: Run) -> bool:
    """Whether this run's weights are spread; one process alone holds them all, whatever its config says."""
    return run.training.sharding == "full" and distributed.world() > 1


def build_tuned(run: Run, name: str) -> Tuned:
    """The model with what is trained of it. With sharding the first process alone has weights, in the memory of the CPU."""
    if not is_on(run):
        return build(run, name)
    if run.method == "full" and run.training.optimizer == "adamw8bit":
        raise BadInput(
            "the blocks of 8-bit moments run across the rows that processes share", where="training.optimizer: adamw8bit, training.sharding: full",
            fix="training.optimizer: adamw (its moments are sharded too), or training.sharding: none",
        )  # fmt: skip
    whole = build(run, name, device="cpu") if distributed.rank() == 0 else None
    words = from_first(lambda: _words(whole))
    if whole is not None:
        return whole
    path = find_model(run.model)
    model = skeleton.build(path, words["model"])
    loaded = Loaded(model, load_tokenizer(path), run.model, path, scheme_of(model))
    for place, form in words["fused"].items():
        put_form(model.get_submodule(place), Form(**form))
    if run.training.gradient_checkpointing:
        recompute_activations(model)
    named, adapter = dict(model.named_parameters()), words["adapter"]
    parameters = {n: named[n] for n in words["trained"]} if adapter is None else adapter_parameters(model, adapter)
    compute: torch.dtype = getattr(torch, words["compute_dtype"])
    return Tuned(loaded, parameters, adapter, words["weights_file"], compute, [], _write_nothing)


def _words(tuned: Tuned | None) -> dict[str, Any]:
    """What the first process says of its model to the others."""
    assert tuned is not None
    model = tuned.loaded.model
    model._tunesmith_fingerprint = fingerprint(model)  # its weights will not lie together again
    return {
        "model": skeleton.describe(model, tuned.loaded.path), "trained": list(tuned.parameters), "adapter": tuned.adapter, "weights_file": tuned.weights_file,
        "compute_dtype": str(tuned.compute_dtype).removeprefix("torch."), "fused": {at: asdict(form) for at, form in fused_forms(model).items()},
    }  # fmt: skip


def _write_nothing(folder: Path, facts: Any, state: Any) -> None:
    raise RuntimeError("only the first process writes")


def distribute(run: Run, tuned: Tuned) -> tuple[Tuned, Scored]:
    """The module that is called, around the model as `training.sharding` wants it; `tuned` with the parameters that are trained now."""
    model = tuned.loaded.model
    if not is_on(run):
        return tuned, Scored(model, tuned.compute_dtype)
    why = from_first(lambda: Scored(model, tuned.compute_dtype).why_full_logits)
    scored = Scored(model, tuned.compute_dtype, ask=lambda _: why)
    shard(scored, pick_device())
    named = dict(model.named_parameters())
    trained = adapter_parameters(model, tuned.adapter) if tuned.adapter is not None else {name: named[name] for name in tuned.parameters}
    return replace(tuned, parameters=trained), scored


def shard(scored: Scored, device: torch.device) -> None:
    """Spread the weights of the first process over all, one layer after another; nobody else ever holds more than its rows of them."""
    model = scored.model
    mesh = init_device_mesh(device.type, (distributed.world(),))
    first = distributed.rank() == 0
    for module in model.modules():
        if isinstance(module, QuantizedWeight):
            module.forget()
    trains_adapters = any(".adapters." in name and p.requires_grad for name, p in model.named_parameters())
    places = _places(scored)
    whole: set[nn.Parameter] = set()
    for old in [p for p in scored.parameters() if (trains_adapters and p.requires_grad) or p.ndim == 0 or p.numel() == 0]:
        moved = send_whole(old.detach() if first else None, tuple(old.shape), old.dtype, device)
        kept = nn.Parameter(moved, requires_grad=old.requires_grad)
        _put(places[id(old)], kept)
        whole.add(kept)
    for module in scored.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = send_whole(buffer if first else None, tuple(buffer.shape), buffer.dtype, device)
    for unit in [*_layers(model), scored]:
        _spread(unit, mesh, whole, device)
    for module in scored.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # a sum; gloo has no product before it, so both calls
            module.set_force_sum_reduction_for_comms(True)
    scored.set_reduce_scatter_unused_params(True)  # type: ignore[operator]  # an expert that no token of this process has chosen


def _spread(unit: nn.Module, mesh: DeviceMesh, whole: set[nn.Parameter], device: torch.device) -> None:
    """Cut the tensors of one layer, or what is left around the layers, and wrap it."""
    first, places = distributed.rank() == 0, _places(unit)
    cut = [p for p in unit.parameters() if p not in whole and not isinstance(p, DTensor)]
    parts = [send_rows(p.detach() if first else None, tuple(p.shape), p.dtype, device) for p in cut]
    fully_shard(unit, mesh=mesh, ignored_params=whole)
    if first:
        return  # fully_shard has cut them here
    for old, part in zip(cut, parts, strict=True):
        held = DTensor.from_local(part, mesh, [Shard(0)], run_check=False, shape=old.shape, stride=old.stride())
        _put(places[id(old)], nn.Parameter(held, requires_grad=old.requires_grad))


def _places(module: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Where each parameter stands: a tied one in several modules."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for inner in module.modules():
        for name, parameter in inner._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((inner, name))
    return places


def _put(places: list[tuple[nn.Module, str]], parameter: nn.Parameter) -> None:
    for module, name in places:
        module._parameters[name] = parameter


def _layers(model: nn.Module) -> list[nn.Module]:
    """The members of every list of modules that lies in no other: the layers of the trunk."""
    lists = [path for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    return [layer for path in outer for layer in model.get_submodule(path).children()]


def n_missing(scored: Scored, n_batches: int) -> int:
    """With sharding, how many batches fewer this process has than the one with most; empty ones fill up."""
    return largest(n_batches) - n_batches if isinstance(scored, FSDPModule) else 0


def as_many_for_all(batches: list[Batch], scored: Scored) -> list[Batch]:
    """With sharding, as many batches as the process with most has; the ones added hold no trained token and change no sum."""
    return [*batches, *[empty_batch() for _ in range(n_missing(scored, len(batches)))]]


def nll_of_share(
    scored: Scored, examples: Sequence[Example], micro_batch_tokens: int, packing: bool, sharing: bool = False
) -> tuple[float, int]:  # fmt: skip
    """Summed loss and trained tokens of this process's share of the examples."""
    share = examples[distributed.rank() :: distributed.world()]
    found = nll_of(scored, share, micro_batch_tokens, packing, sharing, partial(n_missing, scored))
    if isinstance(scored, FSDPModule):
        scored.reshard()  # no backward follows: the weights around the layers are whole still, and would be used as they are now
    return found


@dataclass(frozen=True)
class Attention:
    """The way that was chosen, in words; whether rows are packed, and whether examples of a row share their beginnings."""

    said: list[str]
    packed: bool
    sharing: bool


def distribute_attention(run: Run, model: Any, choose: Callable[[], Attention]) -> Attention:
    """`choose` tries ways of attention on a model that has weights. A model without follows the first process; of several with, one that
    cannot share keeps all from it.
    """
    if not is_on(run):
        found = choose()
        return replace(found, packed=not largest(int(not found.packed)), sharing=not largest(int(not found.sharing)))

    def chosen() -> tuple[dict[str, Any], str, int | None]:
        found = choose()
        return asdict(found), model.config.get_text_config()._attn_implementation, getattr(model, "_tunesmith_kept_scores", None)

    words, way, kept_scores = from_first(chosen)
    if distributed.rank() != 0 and kept_scores is not None:
        switch_over(model, kept_scores)
    elif distributed.rank() != 0:
        model.set_attn_implementation(way)
    return Attention(**words)
