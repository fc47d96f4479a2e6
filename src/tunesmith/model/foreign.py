"""A folder that somebody else made, checked before anything else reads it.

    found = check_model(folder)          # config.json as a dict, the weights' headers, what is not used, in words
    found = check_adapter(folder)        # the same of adapter_config.json

Whatever is wrong is a BadInput with what, where and fix, and is found without a tensor: from JSON read with care (foreign_json.py), from
the headers of the weights (headers.py) and from names. Only *.safetensors, JSON, templates and tokenizer vocabularies are ever opened;
pickles (*.bin, *.pt, *.ckpt …) and Python files are not, whatever a configuration says of them. A file is looked for by a plain name in
the folder itself, and a link counts as the file only if it stays there, or in the blobs of the hub cache that the folder belongs to.
What a tokenizer and its template do when they run is tried apart (trial.py). docs/security.md says what is not protected against.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import BadInput
from tunesmith.model.foreign_json import AGAIN, MOST_BYTES, read_bytes, read_object, shown
from tunesmith.model.headers import Header, read_header
from tunesmith.model.peft_config import check_adapter_config, check_facts
from tunesmith.model.trial import MOST_TOKENIZER_BYTES, try_out
from tunesmith.names import is_plain

UNREADABLE = "the weights cannot be loaded"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
CONVERT = 'in Python, with a model you trust: AutoModelForCausalLM.from_pretrained("…").save_pretrained("…") writes safetensors'
CONVERT_ADAPTER = "save it with PEFT as safetensors: in Python, with an adapter you trust, PeftModel.from_pretrained(…).save_pretrained(…)"
JSON_FILES = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")  # read beside config.json
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tekken.json", "*.model")
REAL = ("F16", "BF16", "F32", "F64")
TEMPLATES = "additional_chat_templates"
MOST_TEMPLATE_BYTES = 1 << 20

# Keys of config.json. A layer is a loop of Python's and at least one tensor; a size is an allocation.
LAYERS = re.compile(r"(num|n)_(\w+_)?(layers?|blocks|experts|codebooks)|depths?|\w+_layers")
SIZES = re.compile(r"(num|n|d)_\w+|\w*(size|dim|dims|rank|heads|groups|channels|width|inner|embd|hidden|units|features)")
LEAST_LAYERS, LEAST_SIZE, LARGEST = 1024, 1 << 20, 1 << 53  # up to the first two whatever the weights hold; nothing is above the last
NAMED_CODE = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation",
              "_experts_implementation_internal")  # fmt: skip
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "hidden_size", "n_embd", "d_model", "vocab_size", "intermediate_size", "head_dim",
          "num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "max_position_embeddings", "n_positions")  # fmt: skip
DTYPES, DTYPE = ("dtype", "torch_dtype"), re.compile(r"auto|(torch\.)?(bfloat16|float(16|32|64|8_\w+))")
IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "decoder_start_token_id")


@dataclass(frozen=True)
class ModelFiles:
    """A model folder that may be opened. headers: of each file of its weights; said: what of it is not used."""

    config: dict[str, Any]
    headers: dict[Path, Header]
    said: tuple[str, ...] = ()

    @property
    def n_values(self) -> int:
        return sum(header.n_values for header in self.headers.values())


@dataclass(frozen=True)
class AdapterFiles:
    config: dict[str, Any]
    facts: dict[str, Any]
    header: Header


# ------------------------------------------------------------------------------------------------------------------ adapters


def check_adapter(folder: Path) -> AdapterFiles:
    """adapter_config.json, adapter_model.safetensors and, where it is there, tunesmith.json."""
    config_path, weights_path = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    for path in (config_path, weights_path):
        if not is_file_of(folder, path.name):
            _must_be_no_other(path)
            pickled = next((p.name for p in sorted(folder.iterdir()) if p.suffix.lower() in PICKLES), None)
            more = f" ({pickled} is a pickle and is never read)" if pickled and path == weights_path else ""
            raise BadInput(f"the adapter folder has no {path.name}{more}", where=str(folder), fix=CONVERT_ADAPTER)
    config = read_object(config_path)
    facts = read_facts(folder)
    header = read_header(weights_path, "the adapter's weights cannot be read")
    check_adapter_config(config, config_path, header)
    if strange := next((key for key, entry in header.tensors.items() if entry.dtype not in REAL), None):
        raise BadInput(f"{strange} should hold real numbers, not {header.tensors[strange].dtype}", where=str(weights_path), fix=AGAIN)
    return AdapterFiles(config, facts, header)


def read_facts(folder: Path) -> dict[str, Any]:
    """tunesmith.json of an adapter or a model: what it was trained on, and how its prompts were rendered; empty where there is none."""
    place = folder / "tunesmith.json"
    if not is_file_of(folder, place.name):
        return {}
    facts = read_object(place)
    check_facts(facts, place)
    return facts


# -------------------------------------------------------------------------------------------------------------------- models


def check_model(folder: Path) -> ModelFiles:
    """config.json, the weights and everything beside them that transformers would read."""
    config_path = folder / "config.json"
    if not is_file_of(folder, config_path.name):
        raise BadInput("this folder holds no model: config.json is missing", where=str(folder), fix="give a folder saved by transformers")
    config = read_object(config_path)
    headers = read_headers(folder)
    said = _check_config(config, config_path, headers, _vocabulary(config))
    for name in JSON_FILES:
        if is_file_of(folder, name):
            value = read_object(folder / name)
            said += _check_config(value, folder / name, headers, _vocabulary(config))
    read_facts(folder)
    for path in folder.iterdir():  # a licence that is a link to a key of yours would be copied beside a merged model
        if path.is_symlink() and path.is_file():
            must_be_own(folder, path.name)
    for pattern in VOCABULARIES:
        for path in folder.glob(pattern):
            if is_file_of(folder, path.name) and path.stat().st_size > MOST_TOKENIZER_BYTES:
                raise BadInput(f"{path.name} is longer than {MOST_TOKENIZER_BYTES:,} bytes", where=str(path), fix=AGAIN)
    return ModelFiles(config, headers, tuple(dict.fromkeys(said)))


def check_config(path: Path) -> dict[str, Any]:
    """A model's config.json alone, in its folder or by its path; its weights need not be there, and a size may be what any model's may."""
    if path.is_dir() and not is_file_of(path, "config.json"):
        raise BadInput("this folder holds no model: config.json is missing", where=str(path), fix="give a folder saved by transformers")
    place = path / "config.json" if path.is_dir() else path
    config = read_object(place)
    _check_config(config, place, {}, _vocabulary(config), "config.json")
    return config


def check_tokenizer(folder: Path) -> None:
    """The tokenizer and every template of a folder whose files passed `check_model`, tried in another process."""
    place = folder / "tokenizer.json"
    try_out(place if is_file_of(folder, place.name) else None, dict(_templates(folder)))


def _templates(folder: Path) -> Iterator[tuple[str, str]]:
    """Name → text of every chat template that transformers would take from a folder."""
    config = read_object(folder / "tokenizer_config.json") if is_file_of(folder, "tokenizer_config.json") else {}
    inline, where = config.get("chat_template"), f"{folder / 'tokenizer_config.json'}: chat_template"
    several = inline if isinstance(inline, list) else [{"name": "", "template": inline}] if inline is not None else []
    for named in several:
        if not isinstance(named, dict) or not isinstance(named.get("template"), str) or not isinstance(named.get("name"), str):
            raise BadInput("chat_template should be a text, or texts with names", where=where, fix=AGAIN)
        yield f"{where} {shown(named['name'])}".rstrip(), named["template"]
    files = [folder / "chat_template.jinja"] if is_file_of(folder, "chat_template.jinja") else []
    if (folder / TEMPLATES).is_dir():
        inner = sorted(path.name for path in (folder / TEMPLATES).glob("*.jinja"))
        files += [folder / TEMPLATES / name for name in inner if is_file_of(folder, f"{TEMPLATES}/{name}")]
    for path in files:
        try:
            yield str(path), read_bytes(path, MOST_TEMPLATE_BYTES).decode("utf-8")
        except UnicodeDecodeError:
            raise BadInput(f"{path.name} is no text in UTF-8", where=str(path), fix=AGAIN) from None


# --- names and links


def is_file_of(folder: Path, name: str) -> bool:
    """Whether the folder has an ordinary file of this name; BadInput if the name is a link that leads out of it."""
    if not (folder / name).is_file():
        return False
    must_be_own(folder, name)
    return True


def _must_be_no_other(path: Path) -> None:
    """BadInput where a folder, a pipe or a device stands under the name of a file."""
    if path.exists() and not path.is_file():
        raise BadInput(f"{path.name} is no ordinary file", where=str(path), fix=AGAIN)


def must_be_own(folder: Path, name: str) -> None:
    """A link may lead to another file of the folder, or to the blobs beside the snapshots of a hub cache."""
    home, real = folder.resolve(), (folder / name).resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(real.is_relative_to(allowed) for allowed in homes):
        raise BadInput(
            f"{shown(name)} is a link that leads out of the folder", where=f"{folder / name} → {real}",
            fix="copy the file into the folder, or name the folder that it lies in",
        )  # fmt: skip


def read_headers(folder: Path) -> dict[Path, Header]:
    """Of the files that hold the model, as transformers chooses them: model.safetensors, or the parts that its index names."""
    if alien := next((path.name for path in sorted(folder.glob("shard-*.safetensors"))), None):
        raise BadInput(
            f"{shown(alien)} is a part of a distributed checkpoint, which transformers would read in place of {WEIGHTS}", where=str(folder),
            fix="move such files to a folder of their own, or save the model whole with save_pretrained",
        )  # fmt: skip
    if is_file_of(folder, WEIGHTS):
        headers = {folder / WEIGHTS: read_header(folder / WEIGHTS, UNREADABLE)}
    else:
        _must_be_no_other(folder / WEIGHTS)
        headers = _parts(folder)
    seen: dict[str, Path] = {}
    for path, header in headers.items():
        for key in header.tensors:
            if key in seen:
                raise BadInput(f"{key} stands in two files: {seen[key].name} and {path.name}", where=str(path), fix=AGAIN)
            seen[key] = path
    if not seen:
        raise BadInput(f"{UNREADABLE}: there is no tensor in them", where=str(next(iter(headers))), fix=AGAIN)
    return headers


def _parts(folder: Path) -> dict[Path, Header]:
    """The parts of a model that is cut into several files."""
    if not is_file_of(folder, INDEX):
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICKLES)
        named = sorted(path.name for path in folder.glob("*.safetensors"))
        more = f"; {shown(named[0])} is not a name that transformers reads" if named else ""
        more = f"; {shown(pickled[0])} is a pickle and is never read" if pickled else more
        raise BadInput(
            f"this folder holds no safetensors weights ({WEIGHTS}, or {INDEX} and its parts){more}", where=str(folder), fix=CONVERT
        )
    place = folder / INDEX
    index = read_object(place, 4 * MOST_BYTES)
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names or not isinstance(index.get("metadata"), dict):
        raise BadInput(f"{INDEX} should have metadata, and name the file of each weight in weight_map", where=str(place), fix=AGAIN)
    for name in names.values():
        if not is_plain(name) or not name.endswith(".safetensors"):
            raise BadInput(f"{INDEX} names a file that cannot be one of the folder: {shown(repr(name))}", where=str(place), fix=AGAIN)
    parts = sorted(set(names.values()))
    if missing := [name for name in parts if not is_file_of(folder, name)]:
        more = f" and {len(missing) - 1:,} more of {len(parts):,} parts" if len(missing) > 1 else ""
        raise BadInput(f"a part of the weights is missing: {missing[0]}{more}", where=str(place), fix=AGAIN)
    numbered = re.compile(re.sub(r"\d{5}", r"\\d{5}", re.escape(parts[0])))
    if extra := sorted(path.name for path in folder.glob("*.safetensors") if numbered.fullmatch(path.name) and path.name not in parts):
        raise BadInput(f"{extra[0]} is no part of the model: {INDEX} does not name it", where=str(place), fix=AGAIN)
    headers = {folder / name: read_header(folder / name, UNREADABLE) for name in parts}
    if absent := next((key for key, name in names.items() if key not in headers[folder / name].tensors), None):
        raise BadInput(f"{INDEX} looks for {shown(absent)} in {names[absent]}, which has no such tensor", where=str(place), fix=AGAIN)
    return headers


# --- configurations


def _check_config(config: Mapping[str, Any], place: Path, headers: Mapping[Path, Header], vocabulary: int, name: str = "") -> list[str]:
    """config.json and its sisters: no code, no other files, no size that the weights cannot have. Returns what is not used, in words.

    vocabulary   how many tokens config.json names, 0 if it does not say; name: of which file the content is, where it is called otherwise
    """
    name = name or place.name
    n_tensors = sum(len(header.tensors) for header in headers.values())
    largest = max((header.largest_size for header in headers.values()), default=0)
    of_model = name in ("config.json", "generation_config.json")
    if name == "config.json":
        _check_sizes(config, place)
    for key, value in _leaves(config):
        if isinstance(value, int) and not isinstance(value, bool) and of_model:
            most = LARGEST
            if LAYERS.fullmatch(key):
                most = max(LEAST_LAYERS, n_tensors)
            elif SIZES.fullmatch(key):
                most = max(LEAST_SIZE, largest)
            if value > most or value < -LARGEST or (most < LARGEST and value < -1):
                raise BadInput(
                    f"{shown(key)} is {value:,}, and the weights are {n_tensors:,} tensors, the largest size in them {largest:,}"
                    if most < LARGEST and headers else f"{shown(key)} is {shown(str(value), 40)}, which no model has",
                    where=f"{place}: {shown(key)}", fix=AGAIN,
                )  # fmt: skip
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if key in IDS and of_model and not all(type(one) is int and -1 <= one < 1 << 31 for one in ids):
            raise BadInput(f"{key} should be the number of a token, not {shown(repr(value))}", where=f"{place}: {key}", fix=AGAIN)
        if key == "eos_token_id" and of_model and vocabulary and (far := next((one for one in ids if one >= vocabulary), None)) is not None:
            raise BadInput(  # no answer would ever end
                f"{key} is {far:,}, and the model's vocabulary has {vocabulary:,} tokens", where=f"{place}: {key}",
                fix=f"the id of the token that ends an answer, below {vocabulary:,}; tokenizer_config.json names the token",
            )  # fmt: skip
        if key in NAMED_CODE and isinstance(value, str) and not value.isidentifier():
            raise BadInput(
                f"{key} names code of the hub, {shown(value)}, which is never fetched or run", where=f"{place}: {key}", fix=f"remove {key}"
            )
    for key in ("transformers_weights", "custom_generate"):
        if config.get(key) is not None:
            names = "a file of weights" if key == "transformers_weights" else "code for generation"
            raise BadInput(
                f"{key} names {names} of its own, {shown(repr(config[key]))}, which is not used", where=f"{place}: {key}",
                fix=f"remove {key}; code is never run, and weights are in {WEIGHTS} or its parts",
            )  # fmt: skip
    said = []
    if name == "config.json":
        said += _check_type(config, place)
        if (place.parent / "custom_generate").is_dir():
            said.append("custom_generate/ holds code for generation, which is never run")
    elif name == "tokenizer_config.json" and config.get("auto_map") is not None:
        said.append(f"{name} names code of its own (auto_map), which is never run: transformers' class is used")
    return said


def _check_sizes(config: Mapping[str, Any], place: Path) -> None:
    """What every model has at least one of, and its dtype; other texts and lists are left to transformers, which knows each family's types."""
    for section in (config, config.get("text_config")):
        if not isinstance(section, Mapping):
            continue
        for key in COUNTS:
            value = section.get(key)
            if isinstance(value, int | float) and (type(value) is not int or value < 1):
                raise BadInput(
                    f"{key} is {shown(json.dumps(value), 40)}, and it should be a whole number above zero", where=f"{place}: {key}",
                    fix=f"the {key} that the model was made with; or {AGAIN}",
                )  # fmt: skip
        for key in DTYPES:
            kind = section.get(key)
            if kind is not None and not isinstance(kind, Mapping) and not (isinstance(kind, str) and DTYPE.fullmatch(kind)):
                raise BadInput(
                    f"{key} should be a kind of real numbers, not {shown(repr(kind))}", where=f"{place}: {key}",
                    fix="bfloat16, float16 or float32",
                )  # fmt: skip
        heads, groups = section.get("num_attention_heads"), section.get("num_key_value_heads")
        if type(heads) is int and type(groups) is int and heads % groups:
            raise BadInput(
                f"num_key_value_heads is {groups:,}, which does not divide num_attention_heads, {heads:,}",
                where=f"{place}: num_key_value_heads", fix=f"the numbers that the model was made with; or {AGAIN}",
            )  # fmt: skip


def _vocabulary(config: Mapping[str, Any]) -> int:
    """The largest vocabulary that a configuration names: a model of several parts has several."""
    return max((value for key, value in _leaves(config) if key == "vocab_size" and type(value) is int), default=0)


def _check_type(config: Mapping[str, Any], place: Path) -> list[str]:
    """A model of transformers' own registry; code that a configuration names beside such a type is not used, and that is said."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind, classes = config.get("model_type"), config.get("architectures")
    if not isinstance(kind, str):
        raise BadInput("config.json does not name a model_type", where=str(place), fix="give a folder saved by transformers")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(one, str) and one.isidentifier() for one in classes)):
        raise BadInput(f"architectures should be names of classes, not {shown(repr(classes))}", where=str(place), fix=AGAIN)
    with_code = config.get("auto_map") is not None
    if kind not in CONFIG_MAPPING_NAMES:
        raise BadInput(
            f"transformers has no model of type {shown(repr(kind))}" + (": custom code, which is never run, would be needed" if with_code else ""),
            where=f"{place}: model_type", fix="give a model that transformers has itself" + ("; auto_map is not heeded" if with_code else ""),
        )  # fmt: skip
    return [f"config.json names code of its own (auto_map), which is never run: transformers' own {kind} is used"] if with_code else []


def key_of(config: Mapping[str, Any], value: object) -> str | None:
    """The key of a configuration that a text stands under, so that a library's word for it can be shown with its place."""
    return next((key for key, other in _leaves(config) if isinstance(value, str) and other == value), None)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every number, text and null of a JSON value with the key that it stands under; ids of tokens whole."""
    if key in IDS:
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, key)
    else:
        yield key, value
