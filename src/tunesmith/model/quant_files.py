"""Quantised models on disk: bitsandbytes' formats both ways, and one of our own for what bitsandbytes has not.

stored = stored_layers(headers)                   # what a folder holds quantised, from its headers alone
fill(model, stored, path)                         # codes into the model's QuantizedWeight layers
save_quantized(model, folder)                     # config.json, model.safetensors

scheme             tensors of layer X                                                              who reads it
nf4, fp4           X.weight [N·K/2, 1] uint8, X.weight.absmax, .quant_map, .quant_state…, .nested_…   transformers + bitsandbytes
int8 rows          X.weight [N, K] int8, X.SCB [N] = 127 · scale, X.weight_format                    transformers + bitsandbytes
all others         X.weight (codes), X.weight.scales, .groups, .offset, .zeros                       tunesmith

"All others" is also nf4, fp4 and int8 where the embeddings are in few bits too, which bitsandbytes has not: then every layer has that
form. What a file holds and what config.json says of it must agree: a file of our own form names its scheme in its metadata.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tunesmith.errors import BadInput
from tunesmith.files import as_disk_error, explain_disk, make_readable, read_json, write_json
from tunesmith.kernels.blocks_4bit import GROUP
from tunesmith.model.experts import ExpertStack
from tunesmith.model.foreign_json import parsed, read_object
from tunesmith.model.frozen import QuantizedWeight
from tunesmith.model.headers import Header
from tunesmith.quant.codebook import codebook, dynamic_map
from tunesmith.quant.scheme import Scheme, find_scheme
from tunesmith.quant.tensor import QTensor, from_tensors, unpack

STATE = "quant_state.bitsandbytes__"  # and nf4 or fp4: a tensor whose bytes are JSON
DTYPES = {"float32", "bfloat16", "float16", "float64"}
SCHEME_KEYS = {
    "name": (str,),
    "bits": (int,),
    "block_size": (int, NoneType),
    "double": (bool,),
    "clip": (int, float, NoneType),
    "embeddings": (bool,),
}
MOST_STATE_BYTES = 1 << 16  # of that JSON; bitsandbytes writes some 200
AGAIN = "the file is damaged: copy, download or quantise it again"
NAMED = "tunesmith.scheme"  # in the metadata of a file
UNWEIGHTED_INT8 = 127.0  # bitsandbytes keeps the largest size of a row, we keep the step


@dataclass(frozen=True)
class StoredLayer:
    """Where a layer's tensors lie: short name → file. Short names as in the table above, less the layer's path."""

    tensors: dict[str, Path]


def method_of(config: Mapping[str, Any], where: str = "config.json") -> str | None:
    """quant_method of a config.json, if its weights are quantised."""
    section = _section(config, where)
    return str(section.get("quant_method", "unnamed")) if section is not None else None


def _section(config: Mapping[str, Any], where: str) -> Mapping[str, Any] | None:
    """quantization_config, wherever it stands."""
    inner = config.get("text_config")
    places = [config, inner] if isinstance(inner, Mapping) else [config]
    found = next((value for place in places if (value := place.get("quantization_config")) is not None), None)
    if found is not None and (not isinstance(found, Mapping) or not found):
        raise BadInput(f"config.json should describe in a mapping how its weights are quantised, not {found!r}",
                       where=f"{where}: quantization_config", fix=AGAIN)  # fmt: skip
    return found


def stored_layers(headers: Mapping[Path, Header]) -> dict[str, StoredLayer]:
    """Every quantised layer of a model, by module path. headers: of the files of its weights, no others."""
    files = {key: file for file, header in headers.items() for key in header.tensors}
    layers = {}
    for key in files:
        name = None
        for mark in (f".weight.{STATE}nf4", f".weight.{STATE}fp4", ".SCB", ".weight.scales"):
            if key.endswith(mark):
                name = key.removesuffix(mark)
        if name is not None:
            inner = {
                full.removeprefix(f"{name}."): file
                for full, file in files.items()
                if full.startswith(f"{name}.") and not full.endswith(".bias")
            }
            layers[name] = StoredLayer(inner)
    return layers


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, "pt") as handle:
            yield handle
    except SafetensorError as error:
        raise BadInput(f"the file cannot be read: {error}", where=str(file), fix=AGAIN) from None


def fill(model: nn.Module, layers: Mapping[str, StoredLayer], folder: Path) -> None:
    """Read the codes of every stored layer into its QuantizedWeight; BadInput where config.json says something else than the files."""
    place = folder / "config.json"
    section = _section(read_object(place), str(place)) or {}
    scheme = _scheme_of(section, place) if section.get("quant_method") == "tunesmith" else None
    for file in {file for stored in layers.values() for file in stored.tensors.values()}:
        with _opened(file) as handle:
            named = (handle.metadata() or {}).get(NAMED)
        if scheme is not None and named not in (None, str(scheme)):
            raise BadInput(f"config.json says {scheme}, and {file.name} {named}", where=f"{place}: quantization_config.scheme", fix=AGAIN)
    for name, stored in layers.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, QuantizedWeight)
        tensors = {}
        for short, file in stored.tensors.items():
            with _opened(file) as handle:
                tensors[short] = handle.get_tensor(f"{name}.{short}")
        try:
            q = _from_file(tensors, (layer.n_outputs, layer.n_inputs), scheme)
        except BadInput as error:
            raise BadInput(error.what, where=f"{next(iter(stored.tensors.values()))}: {name}", fix=error.fix or AGAIN) from None
        except KeyError as error:
            raise BadInput(f"the tensor {error} is missing", where=f"{folder}: {name}", fix=AGAIN) from None
        said, found = (str(scheme), str(q.scheme)) if scheme is not None else _as_bitsandbytes_says(section, q.scheme)
        if said != found:
            raise BadInput(f"config.json says {said}, and {name} is in {q.scheme}", where=f"{place}: quantization_config", fix=AGAIN)
        layer.hold(q)


def _as_bitsandbytes_says(section: Mapping[str, Any], scheme: Scheme) -> tuple[str, str]:
    """What a config.json says of every layer, and what it should say of a layer in `scheme`; keys of the other width mean nothing."""
    keys = ["load_in_4bit", "load_in_8bit"]
    if section.get("load_in_4bit"):
        keys += ["bnb_4bit_quant_type", "bnb_4bit_use_double_quant"]
    expected = describe(scheme, torch.bfloat16)
    said, found = (", ".join(f"{key}: {of.get(key)}" for key in keys if key in section) for of in (section, expected))
    return said, found


def _from_file(tensors: Mapping[str, Tensor], shape: tuple[int, int], scheme: Scheme | None) -> QTensor:
    """scheme: of layers in our own form, as config.json has it."""
    if any(short.startswith(f"weight.{STATE}") for short in tensors):
        q = _from_bitsandbytes_4bit(tensors, shape)
    elif "SCB" in tensors:
        q = _from_bitsandbytes_8bit(tensors, shape)
    elif scheme is None:
        raise BadInput('config.json should say quant_method: "tunesmith" of such weights', fix=AGAIN)
    else:
        named = {("codes" if short == "weight" else short.removeprefix("weight.")): tensor for short, tensor in tensors.items()}
        q = from_tensors(scheme, shape, "rows", named)
    scales = (q.scales.stored, q.scales.groups, q.scales.offset)
    if not all(bool(torch.isfinite(part).all()) for part in scales if part is not None):
        raise BadInput("a scale of the quantised weight is NaN or infinite", fix=AGAIN)
    if not _is_possible(q):
        raise BadInput(f"the codes, zero points or scales in this file are none of {q.scheme.name}", fix=AGAIN)
    return q


def _is_possible(q: QTensor) -> bool:
    """Whether `quantize` could have made this: codes and zero points within their levels, no scale below zero."""
    if not q.scheme.double and bool((q.scales.stored < 0).any()):  # a doubled scale near zero may come out just below it
        return False
    if q.scheme.is_codebook:
        return True  # each of 16 codes has a level
    levels = q.scheme.levels
    codes = unpack(q.codes, q.scheme, q.rows_cols[1])
    within = bool((codes >= levels.lowest).all()) and bool((codes <= levels.highest).all())
    return within and (q.zeros is None or bool((q.zeros <= levels.highest).all()))


def _scheme_of(section: Mapping[str, Any], place: Path) -> Scheme:
    """The scheme that our part of a config.json describes."""
    where, found = f"{place}: quantization_config.scheme", section.get("scheme")
    if not isinstance(found, Mapping):
        raise BadInput(f"config.json does not describe the scheme: {found!r} should be a mapping", where=where, fix=AGAIN)
    wrong = [f"{key} {'is no key of it' if key not in SCHEME_KEYS else 'is missing'}" for key in found.keys() ^ SCHEME_KEYS.keys()]
    wrong = [what for what in wrong if what != "embeddings is missing"]  # older files
    wrong += [f"{key} cannot be {found[key]!r}" for key, kinds in SCHEME_KEYS.items() if key in found and type(found[key]) not in kinds]
    if wrong:
        raise BadInput(f"config.json does not describe the scheme: {'; '.join(sorted(wrong))}", where=where, fix=AGAIN)
    scheme = Scheme(**found)
    try:
        checked = find_scheme(scheme.name, scheme.block_size, scheme.double, scheme.clip, scheme.embeddings)
    except BadInput as error:
        raise BadInput(f"config.json describes a scheme that is none: {error.what}", where=where, fix=AGAIN) from None
    if checked != scheme:
        raise BadInput(f"config.json describes a scheme that is none: {scheme.bits} bits of {checked}", where=where, fix=AGAIN)
    return scheme


def _from_bitsandbytes_4bit(tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> QTensor:
    packed = next(tensor for short, tensor in tensors.items() if short.startswith(f"weight.{STATE}"))
    if packed.numel() > MOST_STATE_BYTES or packed.dtype != torch.uint8:
        raise BadInput("bitsandbytes' quant_state cannot be read: it is no JSON of the expected form", fix=AGAIN)
    try:
        state = parsed(packed.numpy().tobytes(), "quant_state")
        name, block = str(state["quant_type"]), int(state["blocksize"])
        declared, nested = tuple(state["shape"]), "nested_offset" in state or any("nested" in short for short in tensors)
        group, offset = int(state.get("nested_blocksize", GROUP)), float(state.get("nested_offset", 0.0))
        dtypes = {str(state["dtype"]), str(state.get("nested_dtype", "float32"))}
    except (ValueError, KeyError, TypeError, OverflowError, BadInput) as error:
        words = f"{error} is missing" if isinstance(error, KeyError) else "it is no JSON of the expected form"
        raise BadInput(f"bitsandbytes' quant_state cannot be read: {words}", fix=AGAIN) from None
    if name not in ("nf4", "fp4") or declared != shape or block < 2 or block % 2:
        raise BadInput(f"the file says {name}, blocks of {block}, shape {declared}; the layer is {shape}", fix=AGAIN)
    if unknown := sorted(dtypes - DTYPES):
        raise BadInput(f'the quant_state names a dtype that is none: "{unknown[0]}"', fix=AGAIN)
    maps = [(tensors.get("weight.quant_map"), codebook(name).levels_16)]
    maps += [(tensors.get("weight.nested_quant_map"), dynamic_map())] if nested else []
    if (
        any(found is None or found.shape != ours.shape or not torch.allclose(found.float(), ours, atol=1e-6) for found, ours in maps)
        or group != GROUP
    ):
        raise BadInput(
            "the levels in this file are not those of bitsandbytes' nf4 and fp4", fix="give a model saved by bitsandbytes or tunesmith"
        )
    scales, groups = tensors.get("weight.absmax"), tensors.get("weight.nested_absmax")
    if scales is None or (nested and groups is None):
        raise BadInput(f"{'absmax' if scales is None else 'nested_absmax'} is missing", fix=AGAIN)
    if not nested and not scales.is_floating_point():
        raise BadInput(f"absmax should hold real numbers, not {scales.dtype}", fix=AGAIN)
    scheme = Scheme(name, 4, block, double=nested)
    named = {"codes": tensors["weight"].contiguous().view(torch.uint8).reshape(1, -1), "scales": scales}
    if nested and groups is not None:
        named |= {"groups": groups, "offset": torch.tensor(offset, dtype=torch.float32)}
    else:
        named["scales"] = named["scales"].float()
    return from_tensors(scheme, shape, "flat", named)


def _from_bitsandbytes_8bit(tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> QTensor:
    weight_format = tensors.get("weight_format")
    if weight_format is not None and (weight_format.numel() != 1 or weight_format.is_floating_point()):
        raise BadInput(f"weight_format should be one whole number, not {tuple(weight_format.shape)} of {weight_format.dtype}", fix=AGAIN)
    if weight_format is not None and int(weight_format) != 0:
        raise BadInput("this 8-bit file keeps its rows in another order", fix="save it again with a current bitsandbytes")
    if not tensors["SCB"].is_floating_point():
        raise BadInput(f"SCB should hold real numbers, not {tensors['SCB'].dtype}", fix=AGAIN)
    named = {"codes": tensors["weight"], "scales": tensors["SCB"].float() / UNWEIGHTED_INT8}
    return from_tensors(Scheme("int8", 8, None), shape, "rows", named)


# --- writing ------------------------------------------------------------------------------------------------------------


def save_quantized(model: Any, folder: Path, compute: torch.dtype) -> None:
    """Weights and config.json of a model with quantised layers; those that bitsandbytes has in its format."""
    from huggingface_hub import save_torch_state_dict

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedWeight)}
    if not layers:
        raise BadInput("no layer of this model is quantised", fix="quantise it first")
    schemes = {layer.q.scheme for layer in layers.values()}
    if len(schemes) != 1:
        raise BadInput("the layers of this model are quantised by several schemes", fix="quantise it again by one")
    [scheme] = schemes
    experts = any(isinstance(module, ExpertStack) for module in model.modules())
    state = {
        name: tensor for name, tensor in model.state_dict().items() if not any(name.startswith(f"{layer}.stored_") for layer in layers)
    }
    tied = model.config.get_text_config().tie_word_embeddings and "lm_head.weight" in state
    if tied:
        del state["lm_head.weight"]
    table = model.get_input_embeddings()
    layers = {name: layer for name, layer in layers.items() if layer is table or not layer.shares(table)}
    for name, layer in layers.items():
        state |= {f"{name}.{short}": tensor.contiguous() for short, tensor in to_file(layer.q, compute).items()}
    with explain_disk(folder, sum(tensor.nbytes for tensor in state.values())):
        folder.mkdir(parents=True, exist_ok=True)
        model.config.save_pretrained(folder)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(folder)
        try:
            save_torch_state_dict(state, folder, safe_serialization=True, metadata={"format": "pt", NAMED: str(scheme)})
        except SafetensorError as error:
            raise as_disk_error(error) from error
        for file in folder.glob("*.safetensors"):
            make_readable(file)
        config = read_json(folder / "config.json")
        config |= {"quantization_config": describe(scheme, compute, experts), "dtype": str(compute).removeprefix("torch.")}
        write_json(folder / "config.json", config)


def to_file(q: QTensor, compute: torch.dtype) -> dict[str, Tensor]:
    """Tensors of a layer by short name, as the table above says."""
    if q.scheme.is_codebook and q.scheme.in_bitsandbytes:
        flat = _flat(q)
        settings: dict[str, Any] = {
            "quant_type": q.scheme.name,
            "blocksize": q.scheme.block_size,
            "dtype": str(compute).removeprefix("torch."),
            "shape": list(q.shape),
        }
        tensors = {
            "weight": flat.codes.reshape(-1, 1), "weight.absmax": flat.scales.stored,
            "weight.quant_map": codebook(q.scheme.name).levels_16.clone(),
        }  # fmt: skip
        if flat.scales.groups is not None and flat.scales.offset is not None:
            settings |= {"nested_blocksize": GROUP, "nested_dtype": "float32", "nested_offset": float(flat.scales.offset)}
            tensors |= {"weight.nested_absmax": flat.scales.groups, "weight.nested_quant_map": dynamic_map().clone()}
        tensors[f"weight.{STATE}{q.scheme.name}"] = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)
        return tensors
    if q.scheme.in_bitsandbytes:
        return {"weight": q.codes, "SCB": q.scales.stored * UNWEIGHTED_INT8, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return {("weight" if name == "codes" else f"weight.{name}"): tensor for name, tensor in q.tensors().items()}


def _flat(q: QTensor) -> QTensor:
    """The same codes with blocks over the flattened weight, which is what bitsandbytes reads; only where nothing changes by it."""
    k = q.shape[1]
    if q.layout == "flat":
        return q
    assert q.scheme.block_size is not None
    if k % q.scheme.block_size:
        raise BadInput(
            f"rows of {k} weights do not divide into blocks of {q.scheme.block_size}: bitsandbytes' files run over the ends of rows",
            fix="quantise for a file with layout flat",
        )
    return QTensor(q.scheme, q.shape, "flat", q.codes.reshape(1, -1), q.scales, None)


def describe(scheme: Scheme, compute: torch.dtype, experts: bool = False) -> dict[str, Any]:
    """quantization_config of config.json. experts: in few bits too, which bitsandbytes has not."""
    if experts:
        return {"quant_method": "tunesmith", "scheme": asdict(scheme)}
    if scheme.is_codebook and scheme.in_bitsandbytes:
        return {
            "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": scheme.name,
            "bnb_4bit_use_double_quant": scheme.double, "bnb_4bit_compute_dtype": str(compute).removeprefix("torch."),
            "bnb_4bit_quant_storage": "uint8", "llm_int8_skip_modules": None,
        }  # fmt: skip
    if scheme.in_bitsandbytes:
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": False,
            "load_in_8bit": True,
            "llm_int8_threshold": 6.0,
            "llm_int8_skip_modules": None,
        }
    return {"quant_method": "tunesmith", "scheme": asdict(scheme)}
