"""Folders that somebody else made: every hostile one is refused in a moment with what, where and fix, and the good one opens."""

import json
import os
import shutil
import struct
import time
from pathlib import Path

import peft
import pytest
import torch
import transformers
from families import VOCABULARY, tiny
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from tunesmith.config import LoraConfig
from tunesmith.errors import BadInput
from tunesmith.model import trial
from tunesmith.model.adapters import adapter_names, adapter_parameters, attach, load_adapter, read_adapter, save_adapter
from tunesmith.model.foreign import check_config, check_model
from tunesmith.model.load import ACORN, load_model

CONFIG = LoraConfig(rank=4, targets=["q_proj", "down_proj"])
Q = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
SECONDS = 1.0

# --- how a good folder is made a bad one ------------------------------------------------------------------------------------


def json_with(name, **changes):
    """Keys of a JSON file set to other values."""

    def change(folder):
        value = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(value | changes))

    return change


def adapter_json(**changes):
    return json_with("adapter_config.json", **changes)


def written(name, content):
    """A file with these bytes."""

    def change(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def linked(name, to):
    """A link in place of a file."""

    def change(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(to)

    return change


def piped(name):
    def change(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def tensors_with(name, edit):
    """Tensors of a safetensors file changed by `edit`."""

    def change(folder):
        tensors = load_file(folder / name)
        edit(tensors)
        save_file(tensors, folder / name, metadata={"format": "pt"})

    return change


def header_with(name, edit, tail=b""):
    """The header of a safetensors file changed by `edit`; it may return bytes to stand in its place."""

    def change(folder):
        raw = (folder / name).read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8 : 8 + length])
        text = edit(header)
        text = text if isinstance(text, bytes) else json.dumps(header).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :] + tail)

    return change


def length_of(name, length):
    """Another length of the header than the true one."""

    def change(folder):
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(struct.pack("<Q", length) + raw[8:])

    return change


def moved(old, new):
    return lambda folder: (folder / old).rename(folder / new)


def both(*changes):
    def change(folder):
        for one in changes:
            one(folder)

    return change


def set_to(key, field, value):
    """A change of a header: one field of one tensor."""

    def edit(header):
        header[key][field] = value

    return edit


def twice(text, key):
    """JSON text with a key in it that stands twice."""
    return text.replace(f'"{key}"', f'"{key}": 1, "{key}"', 1)


WEIGHTS = "adapter_model.safetensors"
SECRET = "root:x:0:0"  # the beginning of /etc/passwd: must stand in no message

ADAPTERS = {
    # adapter_config.json as a file
    "config: not JSON": (written("adapter_config.json", "peft_type: LORA"), "adapter_config.json cannot be read"),
    "config: a list": (written("adapter_config.json", "[]"), "should hold a JSON object"),
    "config: empty": (written("adapter_config.json", ""), "cannot be read"),
    "config: not UTF-8": (written("adapter_config.json", b"\xff\xfe{}"), "cannot be read"),
    "config: nested 100,000 deep": (written("adapter_config.json", "[" * 100_000), "nested too deeply"),
    "config: nested 60 deep": (written("adapter_config.json", '{"a":' * 60 + "1" + "}" * 60), "nested too deeply"),
    "config: 17 MB": (written("adapter_config.json", '{"a": "' + "x" * (17 << 20) + '"}'), "longer than 16,777,216 bytes"),
    "config: a key twice": (lambda f: written("adapter_config.json", twice((f / "adapter_config.json").read_text(), "r"))(f), "r stands there twice"),
    "config: a number of 5,000 digits": (written("adapter_config.json", '{"r": ' + "9" * 5000 + "}"), "cannot be read"),
    "config: half a character": (written("adapter_config.json", '{"peft_type": "\\ud800"}'), "half a character"),
    "config: a pipe": (piped("adapter_config.json"), "adapter_config.json is no ordinary file"),
    "config: a link to /etc/passwd": (linked("adapter_config.json", "/etc/passwd"), "link that leads out of the folder"),
    "config: a link to /dev/zero": (linked("adapter_config.json", "/dev/zero"), "adapter_config.json is no ordinary file"),
    "config: a link to itself": (linked("adapter_config.json", "adapter_config.json"), "has no adapter_config.json"),
    "config: missing": (lambda f: (f / "adapter_config.json").unlink(), "has no adapter_config.json"),
    # its values
    "another kind of adapter": (adapter_json(peft_type="IA3"), "peft_type is 'IA3', not LORA"),
    "a kind that is none": (adapter_json(peft_type={"a": []}), "not LORA"),
    "rank zero": (adapter_json(r=0), "r should be a positive number"),
    "rank below zero": (adapter_json(r=-8), "r should be a positive number"),
    "rank of a million": (adapter_json(r=999_999), "r is too large: it should be at most 65,536, not 999999"),
    "rank of 10^30": (adapter_json(r=10**30), "r is too large"),
    "rank one half": (adapter_json(r=0.5), "r should be a whole number"),
    "rank a text": (adapter_json(r="__import__('os')"), "r should be a positive number"),
    "rank true": (adapter_json(r=True), "r should be a positive number"),
    "rank another than the file's": (adapter_json(r=8), "the rank of lora_A is 4, adapter_config.json says 8"),
    "alpha NaN": (written("adapter_config.json", '{"peft_type": "LORA", "r": 4, "lora_alpha": NaN}'), "lora_alpha should be a positive number"),
    "alpha 1e999": (written("adapter_config.json", '{"peft_type": "LORA", "r": 4, "lora_alpha": 1e999}'), "lora_alpha should be a positive number"),
    "alpha 1e308": (adapter_json(lora_alpha=1e308), r"lora_alpha is too large: it should be at most 1,000,000, not 1e\+308"),
    "dropout of one": (adapter_json(lora_dropout=1.0), "lora_dropout should be below 1"),
    "dropout a list": (adapter_json(lora_dropout=[0.1]), "lora_dropout should be below 1"),
    "a regular expression that never ends": (adapter_json(target_modules=r"(a+)+$"), r"regular expression, '\(a\+\)\+\$', which is never run"),
    "a regular expression in a list": (adapter_json(target_modules=["q_proj", ".*"]), "regular expression, '.*'"),
    "a regular expression to leave out": (adapter_json(exclude_modules="(x|x)*y"), "exclude_modules holds a regular expression"),
    "a regular expression of layers": (adapter_json(layers_pattern="(a*)*"), "layers_pattern holds a regular expression"),
    "a regular expression of ranks": (adapter_json(rank_pattern={"(a+)+$": 4}), "rank_pattern holds a regular expression"),
    "a regular expression of alphas": (adapter_json(alpha_pattern={r"^model\.(.*)*x": 4}), "alpha_pattern holds a regular expression"),
    "a path for a layer": (adapter_json(target_modules=["../../q_proj"]), "target_modules holds a text that is no name of a layer, '../../q_proj'"),
    "layers as numbers": (adapter_json(target_modules=[1, 2]), "target_modules should be names of layers"),
    "layers as a mapping": (adapter_json(target_modules={"q_proj": 1}), "target_modules should be names of layers"),
    "a hundred thousand and one layers": (adapter_json(target_modules=["q"] * 100_001), "target_modules should be names of layers"),
    "a rank pattern of texts": (adapter_json(rank_pattern={"q_proj": "4"}), "rank_pattern should give layers positive numbers"),
    "a rank pattern as a list": (adapter_json(rank_pattern=["q_proj"]), "rank_pattern should give layers positive numbers"),
    "numbers of layers below zero": (adapter_json(layers_to_transform=[-1]), "layers_to_transform should be numbers of layers"),
    "a layer that neither file nor base has": (adapter_json(layers_to_transform=[99999]), "adapter_config.json leaves it out .*layers_to_transform"),
    "one layer of the two in the file": (adapter_json(layers_to_transform=0), r"layers\.1\.\S+: the file has it, and adapter_config.json leaves it out"),
    "numbers of something else": (adapter_json(layers_to_transform=[0, 1], layers_pattern="h"), "leaves it out .*layers_pattern"),
    "names of fewer layers": (adapter_json(target_modules=["q_proj"]), "mlp.down_proj: the file has it, and adapter_config.json leaves it out"),
    "a layer that is left out": (adapter_json(exclude_modules=["q_proj"]), "leaves it out .*exclude_modules"),
    "a base that is no text": (adapter_json(base_model_name_or_path=["a"]), "base_model_name_or_path should be a text"),
    "a base that clears the screen": (adapter_json(base_model_name_or_path="\x1b[2Jgood"), "base_model_name_or_path should be a text"),
    "a base that reads backwards": (adapter_json(base_model_name_or_path="a\u202eb"), "base_model_name_or_path should be a text"),
    "DoRA": (adapter_json(use_dora=True), "use_dora = True is not supported"),
    "modules saved whole": (adapter_json(modules_to_save=["lm_head"]), "modules_to_save"),
    "a start that changes the base": (adapter_json(init_lora_weights="pissa"), "init_lora_weights = 'pissa' is not supported"),
    "an option of a newer PEFT": (adapter_json(use_better_lora=True), "use_better_lora = True is a key that PEFT 0.21 has not"),
    "a key of control characters": (adapter_json(**{"\x1b[2J": 1}), "is a key that PEFT 0.21 has not"),
    # adapter_model.safetensors as a file
    "weights: missing, a pickle there": (moved(WEIGHTS, "adapter_model.bin"), "adapter_model.bin is a pickle and is never read"),
    "weights: a pickle of that name": (written(WEIGHTS, b"\x80\x04\x95cos\nsystem\n(S'id'\ntR."), "weights cannot be read"),
    "weights: a link to /etc/passwd": (linked(WEIGHTS, "/etc/passwd"), "link that leads out of the folder"),
    "weights: a pipe": (piped(WEIGHTS), "adapter_model.safetensors is no ordinary file"),
    "weights: a folder": (lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()), "adapter_model.safetensors is no ordinary file"),
    "weights: empty": (written(WEIGHTS, b""), "weights cannot be read: the file is empty"),
    "weights: of five bytes": (written(WEIGHTS, b"\x00" * 5), "the file is 5 bytes long, too short for a header"),
    "header: of 2^63 bytes": (length_of(WEIGHTS, 2**63 - 1), "its header should be 9,223,372,036,854,775,807 bytes long"),
    "header: of no bytes": (length_of(WEIGHTS, 0), "its header should be 0 bytes long"),
    "header: longer than the limit": (written(WEIGHTS, struct.pack("<Q", 17 << 20) + b" " * (17 << 20)), "more than 16,777,216"),
    "header: nested 100,000 deep": (header_with(WEIGHTS, lambda h: b"[" * 100_000), "nested too deeply"),
    "header: a list": (header_with(WEIGHTS, lambda h: b"[]"), "no JSON object"),
    "header: a tensor twice": (header_with(WEIGHTS, lambda h: twice(json.dumps(h), A).encode()), "stands there twice"),
    "header: metadata that is no text": (header_with(WEIGHTS, lambda h: h.update(__metadata__={"a": [1]})), "its metadata should be texts"),
    "header: a dtype that is none": (header_with(WEIGHTS, set_to(A, "dtype", "F31")), "of a dtype that is none: 'F31'"),
    "header: a shape that overflows": (header_with(WEIGHTS, set_to(A, "shape", [2**61, 2**61])), "should take"),
    "header: a shape of 2^64": (header_with(WEIGHTS, set_to(A, "shape", [2**64 + 4, 32])), "is no list of sizes"),
    "header: a shape below zero": (header_with(WEIGHTS, set_to(A, "shape", [-4, -32])), "is no list of sizes"),
    "header: a shape of a hundred dimensions": (header_with(WEIGHTS, set_to(A, "shape", [1] * 100)), "is no list of sizes"),
    "header: a shape that is not its bytes": (header_with(WEIGHTS, set_to(A, "shape", [4, 31])), "should take 496 bytes, and 512 are there"),
    "header: offsets behind the file": (header_with(WEIGHTS, set_to(A, "data_offsets", [0, 10**15])), "lies outside the file"),
    "header: offsets the wrong way round": (header_with(WEIGHTS, set_to(A, "data_offsets", [512, 0])), "lies outside the file"),
    "header: two tensors in one place": (
        header_with(WEIGHTS, lambda h: h.update({B: {**h[A], "shape": [32, 4]}})), "overlaps another tensor|hole before",
    ),
    "header: bytes that belong to no tensor": (header_with(WEIGHTS, lambda h: None, tail=b"hidden"), "6 bytes at its end belong to no tensor"),
    "header: a name of control characters": (header_with(WEIGHTS, lambda h: h.update({"\x1b[2J": h.pop(A)})), "a tensor cannot be called"),
    "header: a name of 5,000 characters": (header_with(WEIGHTS, lambda h: h.update({"a" * 5000: h.pop(A)})), "a tensor cannot be called"),
    # its tensors
    "tensors: NaN": (tensors_with(WEIGHTS, lambda t: t[B][1].fill_(float("nan"))), "holds NaN or inf in .*q_proj.lora_B"),
    "tensors: infinite": (tensors_with(WEIGHTS, lambda t: t[A].fill_(float("inf"))), "holds NaN or inf in .*q_proj.lora_A"),
    "tensors: times 10^30": (tensors_with(WEIGHTS, lambda t: [t[k].mul_(1e30) for k in t]), "with this adapter the model answers with NaN or inf"),
    "tensors: whole numbers": (tensors_with(WEIGHTS, lambda t: t.update({A: t[A].int()})), "should hold real numbers, not I32"),
    "tensors: one more": (tensors_with(WEIGHTS, lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(2, 2)})), "unexpected tensor"),
    "tensors: one less": (tensors_with(WEIGHTS, lambda t: t.pop(B)), "q_proj: lora_B is missing"),
    "tensors: a layer that the base has not": (
        tensors_with(WEIGHTS, lambda t: t.update({k.replace("layers.0", "layers.9"): v.clone() for k, v in t.items() if "layers.0" in k})),
        "the model has no layer model.layers.9",
    ),
    "tensors: as wide as another base": (tensors_with(WEIGHTS, lambda t: t.update({A: torch.ones(4, 4096)})), "lora_A is 4×4096, the layer 32×32"),
    "tensors: none": (tensors_with(WEIGHTS, lambda t: t.clear()), "missing"),
    "tensors: of no size": (tensors_with(WEIGHTS, lambda t: t.update({A: torch.ones(0, 32), B: torch.ones(32, 0)})), "the rank of lora_A is 0"),
    "tensors: without effect": (tensors_with(WEIGHTS, lambda t: [t[k].zero_() for k in t if "lora_B" in k]), "it would change nothing"),
    # tunesmith.json
    "facts: another base": (json_with("tunesmith.json", base_fingerprint="0" * 32), "whose weights are not these"),
    "facts: a fingerprint that is none": (json_with("tunesmith.json", base_fingerprint=[1]), "base_fingerprint should be a text"),
    "facts: a system message of numbers": (json_with("tunesmith.json", system=7), "system should be a text"),
    "facts: a renderer without its form": (json_with("tunesmith.json", renderer="a"), "template should be chat or plain"),
    "facts: torn": (written("tunesmith.json", "{"), "tunesmith.json cannot be read"),
    "facts: a link out of the folder": (linked("tunesmith.json", "/etc/passwd"), "link that leads out of the folder"),
}  # fmt: skip


@pytest.fixture(scope="module")
def base():
    return tiny("llama")


@pytest.fixture(scope="module")
def good_adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign") / "adapter"
    model = tiny("llama")
    attach(model, "good", CONFIG, seed=0)
    for key, parameter in adapter_parameters(model, "good").items():
        if "lora_B" in key:
            parameter.data.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    save_adapter(model, "good", folder, {}, "a-base", CONFIG)
    return folder


@pytest.fixture
def adapter(good_adapter, tmp_path):
    return shutil.copytree(good_adapter, tmp_path / "adapter")


def refused_in_a_moment(open_it, said, seconds):
    """The error of opening a folder: it says `said`, where and what to do, in one screen, and nothing of what a link led to."""
    begun = time.monotonic()
    with pytest.raises(BadInput, match=said) as error:
        open_it()
    took = time.monotonic() - begun
    assert took < seconds
    assert error.value.where and error.value.fix and error.value.exit_code == 2
    text = str(error.value)
    assert len(text) < 3000
    assert SECRET not in text
    assert all(character.isprintable() or character == "\n" for character in text)
    return error.value


def test_the_good_adapter_opens(adapter):
    model = tiny("llama")
    load_adapter(model, "good", adapter)
    assert adapter_names(model) == ["good"]


def test_there_are_sixty_hostile_adapters_and_thirty_models():
    assert len(ADAPTERS) >= 60
    assert len(MODELS) >= 30


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_hostile_adapter_is_refused_in_less_than_a_second(name, adapter, base):
    change, said = ADAPTERS[name]
    change(adapter)
    refused_in_a_moment(lambda: load_adapter(base, "bad", adapter), said, SECONDS)
    assert adapter_names(base) == []


def test_an_expression_is_answered_with_the_list_that_would_say_it(adapter):
    adapter_json(target_modules=r".*(q_proj|down_proj)")(adapter)
    with pytest.raises(BadInput, match=r'"target_modules": \["down_proj", "q_proj"\] would say it'):
        read_adapter(adapter)
    adapter_json(target_modules=["down_proj", "q_proj"])(adapter)
    read_adapter(adapter)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"model.layers.1.self_attn.q_proj": 5}},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers", "use_rslora": True},
        {"target_modules": ["q_proj", "down_proj"], "exclude_modules": ["down_proj"], "lora_dropout": 0.1},
    ],
    ids=["two layers", "all-linear with patterns", "one of the layers", "all but"],
)
def test_what_peft_writes_opens(options, tmp_path, base):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, **options)
    peft.get_peft_model(tiny("llama"), config).save_pretrained(tmp_path)
    assert read_adapter(tmp_path).shapes
    load_adapter(tiny("llama"), "theirs", tmp_path)


def test_keys_of_a_newer_peft_that_say_nothing_are_taken(adapter):
    adapter_json(use_better_lora=False, better_config=None, better_layers=[], better_pattern={})(adapter)
    read_adapter(adapter)


# --- models ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good_model(tmp_path_factory):
    """config.json, model.safetensors, a tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("foreign") / "model"
    tiny("llama").save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def model(good_model, tmp_path):
    return shutil.copytree(good_model, tmp_path / "model")


MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"
EMBEDDING = "model.embed_tokens.weight"


def sharded(folder):
    (folder / MODEL).unlink()
    tiny("llama").save_pretrained(folder, max_shard_size="20KB")


def index_with(edit):
    """A model in parts whose index was changed."""

    def change(folder):
        sharded(folder)
        index = json.loads((folder / INDEX).read_text())
        edit(index)
        (folder / INDEX).write_text(json.dumps(index))

    return change


def renamed_in_index(name):
    def edit(index):
        index["weight_map"] = {key: name if i == 0 else file for i, (key, file) in enumerate(index["weight_map"].items())}

    return edit


def tokenizer_with(**changes):
    return json_with("tokenizer.json", **changes)


def template(text):
    return written("chat_template.jinja", text)


def config_with(**changes):
    return json_with("config.json", **changes)


LOOP = "{% for i in range(9999) %}{% for j in range(9999) %}{% for k in range(9999) %}{% endfor %}{% endfor %}{% endfor %}"
MODELS = {
    # config.json
    "hidden_size of 10^12": (config_with(hidden_size=10**12), "hidden_size is 1,000,000,000,000, and the weights are"),
    "vocab_size of 10^12": (config_with(vocab_size=10**12), "vocab_size is 1,000,000,000,000"),
    "a billion layers": (config_with(num_hidden_layers=10**9), "num_hidden_layers is 1,000,000,000"),
    "a million layers": (config_with(num_hidden_layers=10**6), "num_hidden_layers is 1,000,000"),
    "one layer of two": (config_with(num_hidden_layers=1), r"without a place: model\.layers\.1\."),
    "layers below zero": (config_with(num_hidden_layers=-5), "num_hidden_layers is -5"),
    "no layers": (config_with(num_hidden_layers=0), "num_hidden_layers is 0, and it should be a whole number above zero"),
    "a layer and a half": (config_with(num_hidden_layers=1.5), "num_hidden_layers is 1.5, and it should be a whole number above zero"),
    "no heads": (config_with(num_attention_heads=0), "num_attention_heads is 0"),
    "no heads for keys": (config_with(num_key_value_heads=0), "num_key_value_heads is 0"),
    "heads for keys that do not divide": (config_with(num_key_value_heads=3), "num_key_value_heads is 3, which does not divide num_attention_heads, 4"),
    "heads of a width below zero": (config_with(head_dim=-1), "head_dim is -1"),
    "a context of nothing": (config_with(max_position_embeddings=0), "max_position_embeddings is 0"),
    "an empty vocabulary": (config_with(vocab_size=0), "vocab_size is 0"),
    "a dtype that is none": (config_with(dtype="object"), "dtype should be a kind of real numbers, not 'object'"),
    "positions of an unknown kind": (
        config_with(rope_parameters={"rope_type": "evil", "rope_theta": 1e4}), "transformers knows no rope_type called 'evil'",
    ),
    "an unknown activation": (config_with(hidden_act="evil"), "transformers knows no hidden_act called 'evil'"),
    "an end outside the vocabulary": (config_with(eos_token_id=999_999_999), "eos_token_id is 999,999,999, and the model's vocabulary has 96 tokens"),
    "one of two ends outside the vocabulary": (json_with("generation_config.json", eos_token_id=[2, 96]), "eos_token_id is 96, and"),
    "a size of 10^30": (config_with(max_position_embeddings=10**30), "max_position_embeddings is 1000000.*, which no model has"),
    "a vocabulary of a million": (config_with(vocab_size=1_000_000, hidden_size=32), "of another shape: .*embed_tokens"),
    "heads that do not divide": (config_with(num_attention_heads=7, num_key_value_heads=7), "not a multiple of the number of attention heads"),
    "a size as a text": (config_with(hidden_size="wide"), "expected int, got str"),
    "a size as a list": (config_with(hidden_size=[32]), "hidden_size"),
    "an unknown type": (config_with(model_type="evil"), "transformers has no model of type 'evil'"),
    "a type that is a path": (config_with(model_type="../../evil"), "transformers has no model of type"),
    "a type that is no text": (config_with(model_type=["llama"]), "does not name a model_type"),
    "remote code of an unknown type": (
        config_with(model_type="evil", auto_map={"AutoModelForCausalLM": "evil.Model"}), "custom code, which is never run",
    ),
    "classes that are no names": (config_with(architectures=["os.system('id')"]), "architectures should be names of classes"),
    "kernels of the hub": (config_with(attn_implementation="someone/evil-kernel"), "names code of the hub, someone/evil-kernel"),
    "code for generation": (config_with(custom_generate="someone/evil"), "custom_generate names code for generation"),
    "weights of another name": (config_with(transformers_weights="../../evil.safetensors"), "names a file of weights of its own"),
    "an end that is no number": (json_with("generation_config.json", eos_token_id="</s>"), "eos_token_id should be the number of a token"),
    "an end that is a mapping": (json_with("generation_config.json", eos_token_id={"a": 1}), "eos_token_id should be the number of a token"),
    "ends in lists in lists": (config_with(eos_token_id=[[1]]), "eos_token_id should be the number of a token"),
    "an end of 10^12": (config_with(eos_token_id=10**12), "eos_token_id should be the number of a token"),
    "weights quantised by another": (config_with(quantization_config={"quant_method": "../evil"}), "quantised by"),
    "config: a link out of the folder": (linked("config.json", "/etc/passwd"), "link that leads out of the folder"),
    "config: a pipe": (piped("config.json"), "config.json is missing"),
    "a licence that is a link to a secret": (lambda f: (f / "LICENSE").symlink_to("/etc/passwd"), "link that leads out of the folder"),
    "config: nested deep": (written("config.json", '{"model_type": "llama", "a": ' + "[" * 99999), "nested too deeply"),
    # weights
    "only a pickle": (both(moved(MODEL, "pytorch_model.bin")), "pytorch_model.bin is a pickle and is never read"),
    "only a checkpoint": (moved(MODEL, "model.ckpt"), "model.ckpt is a pickle and is never read"),
    "a folder in place of the weights": (lambda f: ((f / MODEL).unlink(), (f / MODEL).mkdir()), "model.safetensors is no ordinary file"),
    "a weight of 10^15 numbers": (header_with(MODEL, set_to(EMBEDDING, "shape", [10**9, 10**6])), "should take"),
    "weights that overlap": (header_with(MODEL, lambda h: h.update({EMBEDDING: h["lm_head.weight"]})), "overlaps|hole"),
    "a part that is a link out of the folder": (linked(MODEL, "/etc/passwd"), "link that leads out of the folder"),
    "parts of another kind beside": (written("shard-00000-model-00001-of-00001.safetensors", b""), "part of a distributed checkpoint"),
    "an adapter beside": (written("adapter_config.json", '{"base_model_name_or_path": "someone/evil"}'), "a model and an adapter"),
    "index: a path": (index_with(renamed_in_index("../../../etc/passwd")), "names a file that cannot be one of the folder"),
    "index: a whole path": (index_with(renamed_in_index("/etc/passwd.safetensors")), "names a file that cannot be one of the folder"),
    "index: a pickle": (index_with(renamed_in_index("pytorch_model.bin")), "names a file that cannot be one of the folder"),
    "index: a name with NUL": (index_with(renamed_in_index("a\0.safetensors")), "names a file that cannot be one of the folder"),
    "index: a number": (index_with(renamed_in_index(7)), "names a file that cannot be one of the folder"),
    "index: a part that is not there": (index_with(renamed_in_index("gone.safetensors")), "a part of the weights is missing: gone"),
    "index: a tensor in another part": (
        index_with(lambda i: i["weight_map"].update({EMBEDDING: i["weight_map"]["model.norm.weight"]})), "which has no such tensor",
    ),
    "index: a part too many": (
        both(sharded, lambda f: shutil.copy(sorted(f.glob("model-*"))[0], f / "model-00099-of-00099.safetensors")), "is no part of the model",
    ),
    "index: no map": (index_with(lambda i: i.pop("weight_map")), "should have metadata, and name the file of each weight"),
    "NaN in a weight": (tensors_with(MODEL, lambda t: t["model.norm.weight"][0].fill_(float("nan"))), "is NaN or inf"),
    # tokenizer
    "tokenizer: not JSON": (written("tokenizer.json", "{"), "the tokenizer cannot be loaded"),
    "tokenizer: nested deep": (written("tokenizer.json", "[" * 100_000), "the tokenizer cannot be loaded"),
    "tokenizer: another type": (tokenizer_with(model=[1]), "the tokenizer cannot be loaded"),
    "tokenizer: one that panics": (
        tokenizer_with(model={"type": "WordLevel", "vocab": {"w": 0}, "unk_token": "w"}, decoder={"type": "Strip", "content": "w", "start": 0, "stop": 5}),
        "the tokenizer cannot be loaded: index out of bounds",
    ),
    "tokenizer: one that aborts": (
        tokenizer_with(padding={"strategy": {"Fixed": 10**10}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}),
        "it asks for more memory than any such file needs",
    ),
    "tokenizer: an expression that never ends": (
        tokenizer_with(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}),
        "the tokenizer cannot be loaded",
    ),
    "tokenizer: remote code": (
        both(lambda f: (f / "tokenizer.json").unlink(), json_with("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}, tokenizer_class="T")),
        "the tokenizer cannot be loaded",
    ),
    "tokenizer: a link out of the folder": (linked("tokenizer.json", "/etc/passwd"), "link that leads out of the folder"),
    # chat template
    "template: a loop of 10^12": (template("{% for i in range(10**12) %}{% endfor %}"), "it computes powers"),
    "template: a loop of 1,000,000,000": (template("{% for i in range(1000000000) %}{% endfor %}"), "it names the number 1000000000"),
    "template: 10 GB of text": (template("{% set x = 'a' * 100000 %}{{ (x * 100000)|length }}"), "it asks for more memory"),
    "template: doubled sixty times": (
        template("{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"),
        "it asks for more memory|it is not done after a second",  # on a busy machine time runs out first
    ),
    "template: Python's internals": (template("{{ cycler.__init__.__globals__.os.popen('id').read() }}"), "it reaches for __"),
    "template: another file": (template("{% include '/etc/passwd' %}"), "it asks for another template"),
    "template: two megabytes": (template("{# " + "x" * (2 << 20) + " #}"), "longer than"),
    "template: no template": (template("{% for %}"), "it cannot be read"),
    "template: texts of another type": (
        both(lambda f: (f / "chat_template.jinja").unlink(), json_with("tokenizer_config.json", chat_template=[{"name": 1}])), "texts with names",
    ),
    "template: one in a folder of templates": (
        lambda f: ((f / "additional_chat_templates").mkdir(), (f / "additional_chat_templates" / "tools.jinja").write_text("{{ 9**9**9 }}")),
        "it computes powers",
    ),
}  # fmt: skip


def test_the_good_model_opens(model):
    assert load_model(str(model), "float32", "cpu").context == 64


@pytest.mark.parametrize("name", MODELS)
def test_a_hostile_model_is_refused_before_it_costs_anything(name, model):
    change, said = MODELS[name]
    (model / "evil.py").write_text(f"open({str(model / 'ran')!r}, 'w')\nModel = T = object\n")
    change(model)
    refused_in_a_moment(lambda: load_model(str(model), "float32", "cpu"), said, 3 * SECONDS)
    assert not (model / "ran").exists()


def test_a_template_that_loops_for_ever_is_ended_after_a_second_of_work(model):
    template(LOOP)(model)
    refused_in_a_moment(lambda: load_model(str(model), "float32", "cpu"), "it is not done after a second", 10 * SECONDS)


def test_a_template_that_refuses_some_conversations_is_taken(model):
    template("{% if messages[0].role == 'system' or tools %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}")(model)
    load_model(str(model), "float32", "cpu")


def test_code_that_a_known_model_does_not_need_is_left_alone_and_that_is_said(model, capsys):
    ran = model / "ran"
    (model / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config_with(auto_map={"AutoModelForCausalLM": "evil.Model"})(model)
    json_with("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]})(model)
    load_model(str(model), "float32", "cpu")
    said = capsys.readouterr().err
    assert "transformers' own llama is used" in said
    assert "tokenizer_config.json names code of its own" in said
    assert not ran.exists()


def test_the_layout_of_a_hub_cache_opens_and_a_link_past_its_blobs_does_not(model, tmp_path):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(model.iterdir())):
        file.rename(blobs / f"{number:04}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:04}")
    load_model(str(snapshot), "float32", "cpu")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../../secret.json")
    (tmp_path / "secret.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BadInput, match="leads out of the folder"):
        check_model(snapshot)


def test_a_folder_that_is_itself_a_link_opens(model, tmp_path):
    (tmp_path / "latest").symlink_to(model)
    load_model(str(tmp_path / "latest"), "float32", "cpu")


def test_a_config_without_weights_is_held_to_what_any_model_may_have(model):
    (model / MODEL).unlink()
    assert check_config(model)["hidden_size"] == 32
    for changes in ({"num_hidden_layers": 10**9}, {"hidden_size": 10**12}, {"vocab_size": -7}, {"model_type": "evil"}):
        (model / "config.json").write_text(json.dumps(json.loads((ACORN / "config.json").read_text()) | changes))
        with pytest.raises(BadInput, match=r"which no model has|no model of type|a whole number above zero"):
            check_config(model)
        with pytest.raises(BadInput):
            check_config((model / "config.json").rename(model / "other.json"))


def test_our_own_model_passes_every_check():
    assert check_model(ACORN).said == ()
    trial.try_out(ACORN / "tokenizer.json", {"acorn": (ACORN / "chat_template.jinja").read_text()})
