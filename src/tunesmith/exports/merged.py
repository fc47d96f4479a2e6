"""An adapter folded into its base: a plain transformers folder that answers as base and adapter together do.

    fold(model, "spam", torch.bfloat16)                    # in place, a layer at a time: W = W0 + scale · B A
    done = merge(loaded, "spam", renderer, rows, Path("merged"), facts, torch.bfloat16)
    done["parity"]["bfloat16"]                             # measured on the folder that was written

W0 is the weight that the adapter was trained on. Of a quantised base that is what the codes stand for, not the weight that they
were made from: an adapter learned to correct the former's errors too, and on the latter it corrects errors that are not there
(FAILURES 6). The sum is made in float32 and rounded once. It is not quantised again unless asked for: new codes round the update
away where it is smaller than half a step, which is why that loss is measured and said.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith import __version__
from tunesmith.data.template import Example, Renderer
from tunesmith.errors import BadInput, MachineFailed
from tunesmith.exports.parity import Parity, compare, keep_logits
from tunesmith.exports.quantized import copy_papers, keep_facts
from tunesmith.files import as_disk_error, explain_disk, make_readable, must_be_new, new_folder, write_json
from tunesmith.hardware import free_disk_bytes
from tunesmith.model.adapters import adapted_layers, fingerprint, using
from tunesmith.model.experts import ExpertStack
from tunesmith.model.frozen import FrozenLinear, QuantizedEmbedding, QuantizedWeight
from tunesmith.model.load import Loaded, load_model
from tunesmith.model.lora import LoraLinear
from tunesmith.model.quant_files import save_quantized
from tunesmith.progress import progress, say
from tunesmith.quant.scheme import Scheme

SHARD = "5GB"  # of one safetensors file


def merge(
    loaded: Loaded, adapter: str, renderer: Renderer, rows: Sequence[Example], output: Path, facts: Mapping[str, Any], dtype: torch.dtype,
    scheme: Scheme | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write base + adapter as a model of its own into `output`, read it again, and measure how far it is from what it was made of.

    rows     what both are compared on
    facts    kept in tunesmith.json: how the adapter's prompts were rendered
    dtype    of the folder's weights; with `scheme` of those that are not quantised
    Consumes the model: its weights are given back before the written ones are read. Returns what merge.json keeps.
    """
    must_be_new(output)
    computed = _name(loaded.model.dtype)
    words = f"{loaded.name} ({loaded.scheme}, de-quantised)" if loaded.scheme is not None else loaded.name
    facts = {"version": __version__, "base": loaded.name, "base_fingerprint": fingerprint(loaded.model), **facts}
    with using(loaded.model, adapter):
        before = keep_logits(loaded.model, rows)
    without = compare(before, loaded.model, rows)
    n_layers = fold(loaded.model, adapter, dtype)
    say(f"{n_layers} layers of the adapter folded into {words} in float32, rounded to {_name(dtype)}")
    parity: dict[str, Parity] = {}
    n_bytes = sum(p.nbytes for p in loaded.model.parameters())
    _room_for(output, n_bytes if scheme is None else 2 * n_bytes)
    with explain_disk(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(output, n_bytes) as beside:
        dense = beside if scheme is None else beside.with_name(f"{beside.name}-dense")  # codes are made from the folder that is measured
        try:
            _save(loaded, dense, facts)
            loaded.model.to("meta")  # its memory is free, whoever still holds it
            parity[_name(dtype)] = _measure(dense, computed, renderer, before, rows)
            if scheme is not None:
                _quantize(dense, beside, scheme, dtype)
                parity[str(scheme)] = _measure(beside, computed, renderer, before, rows)
        finally:
            if dense != beside:
                shutil.rmtree(dense, ignore_errors=True)
        result = {
            "base": words, "layers": n_layers, "dtype": _name(dtype), "scheme": None if scheme is None else str(scheme),
            "computed_in": computed, "rows": len(rows), "parity": {name: asdict(found) for name, found in parity.items()},
            "without_adapter": asdict(without),
        }  # fmt: skip
        write_json(beside / "merge.json", result)
    for form, found in parity.items():
        if found.kl > 0.5 * without.kl:
            say(
                f"in {form} the model lies {found.kl / without.kl:.0%} as far from base + adapter as the base alone does: what the adapter taught "
                "is largely rounded away; keep the adapter beside its base, or merge into more bits"
            )
    return result


@torch.no_grad()
def fold(model: Any, adapter: str, dtype: torch.dtype) -> int:
    """Plain layers of `dtype` in place of every layer that carries adapters or holds codes; returns how many the adapter changed.

    Besides the model itself, two float32 weights of one layer are the most that is in memory.
    """
    changed, computed = len(adapted_layers(model, adapter)), model.dtype
    head = model.get_output_embeddings()
    tied = isinstance(head, QuantizedWeight) and head.shares(model.get_input_embeddings())
    kinds = LoraLinear | ExpertStack | QuantizedWeight
    outer = [path for path, module in model.named_modules() if isinstance(module, kinds)]  # names: modules would keep every weight alive
    outer = [path for path in outer if not any(path.startswith(f"{other}.") for other in outer)]
    with progress("folding", len(outer), "layer") as bar:
        for path in outer:
            owner, _, name = path.rpartition(".")
            _put_back(model.get_submodule(owner), name, adapter, dtype, empty=tied and model.get_submodule(path) is head)
            bar.advance(1)
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    for parameter in model.parameters():
        if parameter.dtype == computed:  # transformers keeps some in float32 whatever the others are
            parameter.data = parameter.data.to(dtype)
    return changed


def _put_back(owner: nn.Module, name: str, adapter: str, dtype: torch.dtype, empty: bool) -> None:
    """The layer, or the 3-D weight of experts, as transformers has it, and W0 + scale · B A in it. empty: it will get another's weight."""
    layer: Any = getattr(owner, name)
    if isinstance(layer, ExpertStack):
        weight = torch.empty(layer.file_shape, dtype=dtype, device=next(layer.parameters()).device)
        for expert in range(layer.n_experts):
            share = layer.share(adapter, expert) if adapter in layer.adapters else None
            weight_NK = _sum(layer.frozen(expert), share)
            weight[expert] = weight_NK.T if layer.transposed else weight_NK
        del owner._modules[name]
        owner.register_parameter(name, nn.Parameter(weight, requires_grad=False))
        return
    if isinstance(layer, QuantizedEmbedding):
        setattr(owner, name, layer.plain(layer.dense(torch.float32).to(dtype, copy=True)))
        return
    frozen, share = layer, None
    if isinstance(layer, LoraLinear):
        frozen = layer.frozen
        if adapter in layer.adapters:
            found: Any = layer.adapters[adapter]
            share = found.a_RK, found.b_NR, found.scale
    with torch.device("meta"):
        n, k = frozen.n_outputs, frozen.n_inputs
        plain: Any = Conv1D(n, k) if frozen.transposed else nn.Linear(k, n, bias=frozen.bias is not None)
    if not empty:
        weight_NK = _sum(frozen, share)
        rounded = (weight_NK.T if frozen.transposed else weight_NK).to(dtype, copy=True, memory_format=torch.contiguous_format)
        plain.weight = nn.Parameter(rounded, requires_grad=False)
    if frozen.bias is not None:
        plain.bias = frozen.bias
    setattr(owner, name, plain.train(layer.training))


def _sum(frozen: Any, share: tuple[Tensor, Tensor, float] | None) -> Tensor:
    """W0 + scale · B A in float32 [N, K]; of a quantised layer valid until the next one is read. share: A, B, scale.

    W0 is not rounded to the dtype of the products on its way, as it was while the adapter was trained: then an update smaller than
    half a step of that dtype would always be rounded away, and now it is kept on average (docs/log.md: half the loss or less).
    """
    if isinstance(frozen, QuantizedWeight):
        weight_NK = frozen.dense(torch.float32)
    elif isinstance(frozen, FrozenLinear):
        weight_NK = (frozen.weight.T if frozen.transposed else frozen.weight).float()
    else:
        weight_NK = frozen.weight_NK.float()
    if share is None:
        return weight_NK
    a_RK, b_NR, scale = share
    return torch.addmm(weight_NK, b_NR.float(), a_RK.float(), alpha=scale)


def _save(loaded: Loaded, folder: Path, facts: Mapping[str, Any]) -> None:
    """config.json, generation_config.json, weights, tokenizer and its template, the base's licence, tunesmith.json."""
    try:
        loaded.model.save_pretrained(folder, max_shard_size=SHARD)
    except SafetensorError as error:
        raise as_disk_error(error) from error
    for file in folder.glob("*.safetensors"):
        make_readable(file)
    loaded.tokenizer.save_pretrained(folder)
    copy_papers(loaded.path, folder, f"An adapter was folded into {Path(loaded.name).name} by tunesmith.")
    write_json(folder / "tunesmith.json", facts)


def _quantize(dense: Path, folder: Path, scheme: Scheme, dtype: torch.dtype) -> None:
    loaded = load_model(str(dense), _name(dtype), scheme=scheme, layout="flat" if scheme.is_codebook and scheme.in_bitsandbytes else "rows")
    save_quantized(loaded.model, folder, dtype)
    loaded.tokenizer.save_pretrained(folder)
    keep_facts(loaded, folder)
    copy_papers(dense, folder, f"Quantised again: {scheme}.")


def _room_for(folder: Path, n_bytes: int) -> None:
    """Before gigabytes are written that cannot all be."""
    if (free := free_disk_bytes(folder)) < n_bytes:
        raise MachineFailed(
            f"there is no room for the merged model: {n_bytes:,} bytes needed", where=f"{folder} ({free:,} free)",
            fix="free some space, or an --output elsewhere",
        )  # fmt: skip


def _measure(folder: Path, computed: str, renderer: Renderer, before: Sequence[Tensor], rows: Sequence[Example]) -> Parity:
    """What a reader of the folder gets, against the logits that were kept."""
    loaded = load_model(str(folder), computed)
    if Renderer(loaded.tokenizer, renderer.mode, loaded.eos_ids, loaded.n_ids).fingerprint() != renderer.fingerprint():
        raise BadInput("the tokenizer on disk is not the one in memory", where=str(folder), fix="this is a defect: please report it")
    return compare(before, loaded.model, rows)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
