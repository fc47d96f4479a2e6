"""Quantised models on disk: ours back as they were, bitsandbytes' both ways, and files that are not what they say."""

import json
import logging
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.conftest import byte_level_tokenizer
from tests.model.families import FAMILIES, tiny
from tests.model.test_experts import MIXTURES, mixture
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.errors import BadInput
from tunesmith.model.adapters import linear_layers
from tunesmith.model.experts import ExpertStack
from tunesmith.model.frozen import QuantizedLinear
from tunesmith.model.load import load_model
from tunesmith.model.quant_files import method_of, save_quantized
from tunesmith.quant.scheme import find_scheme
from tunesmith.quant.tensor import dequantize, quantize

SCHEMES = {
    "nf4": find_scheme("nf4"), "fp4": find_scheme("fp4", double=False), "int8": find_scheme("int8"), "int4": find_scheme("int4"),
    "affine3": find_scheme("affine3", double=True), "int2": find_scheme("int2", 32), "int8 blocks": find_scheme("int8", 64),
    "nf4, embeddings": find_scheme("nf4", embeddings=True), "int8, embeddings": find_scheme("int8", embeddings=True),
}  # fmt: skip
IDS = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(0))
PROJECTION = "model.layers.0.mlp.up_proj"


def save_llama(folder, inner=128, **more):
    """Rows of 64 and `inner` weights. bitsandbytes' AVX-512 path misreads rows of 80, 96, 144 …; 128 and 172 are read rightly."""
    torch.manual_seed(0)
    tokenizer = byte_level_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=inner, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.1, tie_word_embeddings=True, **more,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("models") / "dense")


def write(dense, folder, scheme, dtype="bfloat16"):
    loaded = load_model(str(dense), dtype, scheme=scheme, layout="flat" if scheme.is_codebook and scheme.in_bitsandbytes else "rows")
    save_quantized(loaded.model, folder, loaded.model.dtype)
    loaded.tokenizer.save_pretrained(folder)
    return loaded


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, use_cache=False).logits.float()


# --- our own way back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_what_was_written_opens_with_the_same_codes_and_answers(dense, tmp_path, scheme, dtype):
    written = write(dense, tmp_path, scheme, dtype)
    opened = load_model(str(tmp_path), dtype)
    assert opened.scheme == written.scheme == scheme
    before = {name: layer.q.tensors() for name, layer in linear_layers(written.model).items()}
    for name, layer in linear_layers(opened.model).items():
        assert isinstance(layer, QuantizedLinear)
        assert all(torch.equal(tensor, before[name][key]) for key, tensor in layer.q.tensors().items()), name
    assert torch.equal(logits(opened.model), logits(written.model))
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o044  # others may read it


def test_rows_that_the_block_does_not_divide_are_written_in_the_flat_layout(tmp_path):
    ragged = save_llama(tmp_path / "ragged", 172)
    with pytest.raises(BadInput, match="do not divide"):
        save_quantized(load_model(str(ragged), "bfloat16", scheme=SCHEMES["nf4"]).model, tmp_path / "rows", torch.bfloat16)
    written = write(ragged, tmp_path / "flat", SCHEMES["nf4"])
    opened = load_model(str(tmp_path / "flat"), "bfloat16")
    assert torch.equal(logits(opened.model), logits(written.model))
    layer = opened.model.model.layers[1].mlp.down_proj
    exact = load_model(str(ragged), "bfloat16").model.model.layers[1].mlp.down_proj.weight
    assert torch.equal(dequantize(layer.q), dequantize(quantize(exact, SCHEMES["nf4"], "flat")))


@pytest.mark.parametrize("embeddings", [False, True], ids=["linear layers", "embeddings too"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back(family, embeddings, tmp_path):
    tiny(family).save_pretrained(tmp_path / "dense")
    byte_level_tokenizer().save_pretrained(tmp_path / "dense")
    written = write(tmp_path / "dense", tmp_path / "stored", find_scheme("nf4", 32, embeddings=embeddings), "float32")
    opened = load_model(str(tmp_path / "stored"), "float32")
    assert opened.scheme == written.scheme
    ties, before = (m.get_output_embeddings().weight is m.get_input_embeddings().weight for m in (tiny(family), tiny(family)))
    if embeddings:
        assert opened.model.get_output_embeddings().shares(opened.model.get_input_embeddings()) == ties == before
    assert opened.model.all_tied_weights_keys == tiny(family).all_tied_weights_keys
    assert sum(p.nbytes for p in opened.model.parameters()) == sum(p.nbytes for p in written.model.parameters())
    with torch.no_grad():
        assert torch.equal(opened.model(IDS % 96).logits, written.model(IDS % 96).logits)


def test_embeddings_in_few_bits_are_files_of_our_own_and_a_tied_weight_is_there_once(dense, tmp_path):
    write(dense, tmp_path, SCHEMES["nf4, embeddings"])
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["scheme"]["embeddings"]) == ("tunesmith", True)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert {"model.embed_tokens.weight", "model.embed_tokens.weight.scales"} <= names
    assert not any(name.startswith("lm_head") or "stored_" in name for name in names)


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("scheme", [find_scheme("nf4", 32), find_scheme("affine5", 32)], ids=str)
def test_experts_in_few_bits_come_back(family, scheme, tmp_path):
    mixture(family).save_pretrained(tmp_path / "dense")
    byte_level_tokenizer().save_pretrained(tmp_path / "dense")
    written = write(tmp_path / "dense", tmp_path / "stored", scheme, "float32")
    opened = load_model(str(tmp_path / "stored"), "float32")
    assert any(isinstance(module, ExpertStack) for module in opened.model.modules())
    assert method_of(json.loads((tmp_path / "stored/config.json").read_text())) == "tunesmith"  # bitsandbytes has none
    with torch.no_grad():
        assert torch.equal(opened.model(IDS % 96).logits, written.model(IDS % 96).logits)


def test_a_model_without_quantised_layers_and_one_with_two_schemes_are_refused(dense, tmp_path):
    plain = load_model(str(dense), "bfloat16")
    with pytest.raises(BadInput, match="no layer of this model is quantised"):
        save_quantized(plain.model, tmp_path, torch.bfloat16)
    mixed = load_model(str(dense), "bfloat16", scheme=SCHEMES["nf4"])
    up = mixed.model.model.layers[0].mlp.up_proj
    up.hold(quantize(plain.model.model.layers[0].mlp.up_proj.weight, SCHEMES["int4"]))
    with pytest.raises(BadInput, match="several schemes"):
        save_quantized(mixed.model, tmp_path, torch.bfloat16)


def test_a_quantised_folder_is_not_quantised_once_more(dense, tmp_path):
    write(dense, tmp_path, SCHEMES["nf4"])
    with pytest.raises(BadInput, match="quantised already"):
        load_model(str(tmp_path), "bfloat16", scheme=SCHEMES["nf4"])


def test_opening_says_nothing_of_tensors_that_are_used(dense, tmp_path, caplog):
    write(dense, tmp_path, SCHEMES["nf4"])
    with caplog.at_level(logging.WARNING):
        load_model(str(tmp_path), "bfloat16")
    assert "UNEXPECTED" not in caplog.text


# --- bitsandbytes -------------------------------------------------------------------------------------------------------

THEIRS = {
    "nf4 nested": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "8 bits": {"load_in_8bit": True},
}


def logits_there(theirs, ids=IDS):
    """With gradients: without, bitsandbytes' CPU path packs the codes anew, rounds otherwise and refuses widths such as 172."""
    return theirs(input_ids=ids, use_cache=False).logits.float().detach()


def in_transformers(folder, **settings):
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **settings).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", THEIRS.values(), ids=THEIRS)
def test_what_bitsandbytes_saved_opens_and_answers_as_there(dense, tmp_path, settings):
    more = {"bnb_4bit_compute_dtype": torch.bfloat16} if "load_in_4bit" in settings else {}
    theirs = in_transformers(dense, quantization_config=transformers.BitsAndBytesConfig(**settings, **more))
    theirs.save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    ours = load_model(str(tmp_path), "bfloat16")
    assert ours.scheme.double == ("bnb_4bit_use_double_quant" in settings)
    expected = logits_there(theirs)
    # its 8-bit products round the activations to 8 bits as well; a bfloat16 has 8 bits
    noise = 0.05 if "load_in_8bit" in settings else 2**-7
    assert float((logits(ours.model) - expected).abs().max()) <= noise * float(expected.abs().max())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["nf4", "fp4", "int8"])
def test_what_we_wrote_opens_in_transformers_with_bitsandbytes_and_answers_as_here(tmp_path, name):
    written = write(save_llama(tmp_path / "dense", 172), tmp_path / "ours", SCHEMES[name])
    theirs = in_transformers(tmp_path / "ours")
    kind = "Linear8bitLt" if name == "int8" else "Linear4bit"
    assert type(theirs.model.layers[0].mlp.up_proj).__name__ == kind
    expected = logits(written.model)
    noise = 0.05 if name == "int8" else 2**-7
    assert float((logits_there(theirs) - expected).abs().max()) <= noise * float(expected.abs().max())


@pytest.mark.filterwarnings("ignore")
def test_conv1d_weights_and_their_biases_travel_too(tmp_path):
    tiny("gpt2").bfloat16().save_pretrained(tmp_path / "dense")
    byte_level_tokenizer().save_pretrained(tmp_path / "dense")
    written = write(tmp_path / "dense", tmp_path / "ours", find_scheme("nf4", 32))
    ids = IDS % 96
    with torch.no_grad():
        expected = written.model(ids).logits
        assert torch.equal(load_model(str(tmp_path / "ours"), "bfloat16").model(ids).logits, expected)
    found = logits_there(in_transformers(tmp_path / "ours"), ids)
    assert float((found - expected).abs().max()) <= 2**-6 * float(expected.abs().max())


# --- files that are not what they say -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(dense, tmp_path_factory):
    """Folders by scheme, to be copied before they are damaged."""
    root = tmp_path_factory.mktemp("stored")
    for name in ("nf4", "int8", "affine3", "nf4, embeddings"):
        write(dense, root / name, SCHEMES[name])
    write(dense, root / "int3", find_scheme("int3"))
    return root


def copy(folder, to):
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def change_tensor(short, change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        key = next(k for k in sorted(tensors) if k.startswith(f"{PROJECTION}.{short}"))
        changed = change(tensors.pop(key))
        save_file({**tensors, **({} if changed is None else {key: changed})}, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def change_state(**changes):
    def change(packed):
        state = json.loads(bytes(packed.tolist())) | changes
        return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)

    return change_tensor("weight.quant_state", change)


def change_scheme(**changes):
    def damage(folder):
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config["quantization_config"]["scheme"] |= changes
        path.write_text(json.dumps(config))

    return damage


def change_config(*keys, **changes):
    """Of config.json's quantization_config, or of a part of it."""

    def damage(folder):
        path = folder / "config.json"
        config = json.loads(path.read_text())
        part = config["quantization_config"]
        for key in keys:
            part = part[key]
        part |= changes
        path.write_text(json.dumps(config))

    return damage


def set_section(value):
    def damage(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": value}))

    return damage


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def add_bias(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, f"{PROJECTION}.bias": torch.ones(128)}, folder / "model.safetensors", metadata={"format": "pt"})


NAN = torch.nan
DAMAGE = {
    "truncated": ("nf4", truncate, "cannot be loaded"),
    "a bias too many": ("nf4", add_bias, "without a place"),
    "other levels": ("nf4", change_tensor("weight.quant_map", lambda t: t.flip(0)), "levels in this file"),
    "other nested levels": ("nf4", change_tensor("weight.nested_quant_map", lambda t: t * 2), "levels in this file"),
    "levels missing": ("nf4", change_tensor("weight.quant_map", lambda t: None), "levels in this file"),
    "another shape": ("nf4", change_state(shape=[64, 128]), r"shape \(64, 128\)"),
    "an odd block": ("nf4", change_state(blocksize=63), "blocks of 63"),
    "an unknown type": ("nf4", change_state(quant_type="nf5"), "nf5"),
    "another block": ("nf4", change_state(blocksize=128), '"scales" should be'),
    "an infinite offset": ("nf4", change_state(nested_offset=1e999), "NaN or infinite"),
    "no state": ("nf4", change_tensor("weight.quant_state", lambda t: torch.zeros(9, dtype=torch.uint8)), "quant_state cannot be read"),
    "codes missing": ("nf4", change_tensor("weight", lambda t: None), "missing"),
    "codes cut off": ("nf4", change_tensor("weight", lambda t: t[:-64].contiguous()), '"codes" should be'),
    "scales missing": ("nf4", change_tensor("weight.absmax", lambda t: None), "missing"),
    "a scale of NaN": ("nf4", change_tensor("weight.nested_absmax", lambda t: t * NAN), "NaN or infinite"),
    "8 bits, rows missing": ("int8", change_tensor("weight", lambda t: t[1:].contiguous()), '"codes" should be'),
    "8 bits, a scale of NaN": ("int8", change_tensor("SCB", lambda t: t * NAN), "NaN or infinite"),
    "8 bits, rows in another order": ("int8", change_tensor("weight_format", lambda t: t + 1), "another order"),
    "another scheme": ("affine3", change_scheme(name="affine5"), "scheme that is none"),
    "fewer bits": ("affine3", change_scheme(bits=2), "scheme that is none"),
    "an unknown key": ("affine3", change_scheme(speed=3), "does not describe the scheme"),
    "zero points missing": ("affine3", change_tensor("weight.zeros", lambda t: None), '"zeros" should be'),
    "second scales missing": ("nf4", change_tensor("weight.nested_absmax", lambda t: None), "nested_absmax is missing"),
    "8 bits, scales of another kind": ("int8", change_tensor("SCB", lambda t: (t * 1000).int()), "SCB should hold real numbers"),
    "impossible zero points": ("affine3", change_tensor("weight.zeros", lambda t: t * 0 + 200), "none of affine3"),
    "impossible codes": ("affine3", change_tensor("weight", lambda t: t * 0 + 255), "none of affine3"),
    "scales below zero": ("int8", change_tensor("SCB", lambda t: -t), "none of int8"),
    "zero points of another kind": ("affine3", change_tensor("weight.zeros", lambda t: t.float()), '"zeros" should be'),
    "weight_format of another shape": ("int8", change_tensor("weight_format", lambda t: t.repeat(3)), r"one whole number, not \(3,\)"),
    "weight_format of another kind": ("int8", change_tensor("weight_format", lambda t: t.float()), "one whole number"),
    "a dtype that is none": ("nf4", change_state(dtype="int3"), 'dtype that is none: "int3"'),
    "a second dtype that is none": ("nf4", change_state(nested_dtype="int3"), 'dtype that is none: "int3"'),
    "no dtype": ("nf4", change_state(dtype=None), 'dtype that is none: "None"'),
}


SAID_OTHERWISE = {
    "another codebook": ("nf4", change_config(bnb_4bit_quant_type="fp4"), "says .*fp4.*, and model.layers.* is in nf4"),
    "scales in 32 bits": ("nf4", change_config(bnb_4bit_use_double_quant=False), "use_double_quant: False.*scales in 8 bits"),
    "8 bits over 4": ("nf4", change_config(load_in_4bit=False, load_in_8bit=True), "load_in_8bit: True.* is in nf4"),
    "4 bits over 8": ("int8", change_config(load_in_4bit=True, load_in_8bit=False, bnb_4bit_quant_type="nf4"), "is in int8"),
    "other levels of as many bits": ("int3", change_config("scheme", name="int4", bits=4), "says int4.* and model.safetensors int3"),
    "another block": ("affine3", change_config("scheme", block_size=128), "blocks of 128.* and model.safetensors affine3, blocks of 64"),
    "no embeddings": ("nf4, embeddings", change_config("scheme", embeddings=False), "scales in 8 bits, and model.safetensors .*embeddings too"),
    "embeddings": ("affine3", change_config("scheme", embeddings=True), "embeddings too, and model.safetensors affine3"),
    "a scheme in one word": ("affine3", change_config(scheme="affine3"), "'affine3' should be a mapping"),
    "no scheme": ("affine3", change_config(scheme=None), "None should be a mapping"),
    "a number as a name": ("affine3", change_config("scheme", name=3), "name cannot be 3"),
    "bits in words": ("affine3", change_config("scheme", bits="3"), "bits cannot be '3'"),
    "half a block": ("affine3", change_config("scheme", block_size=32.5), r"block_size cannot be 32\.5"),
    "a yes": ("affine3", change_config("scheme", double="yes"), "double cannot be 'yes'"),
    "an unknown name": ("affine3", change_config("scheme", name="affine9"), 'a scheme that is none: there is no scheme "affine9"'),
    "a block of 7": ("affine3", change_config("scheme", block_size=7), "a scheme that is none: a block of 7"),
    "several keys": ("affine3", change_config("scheme", speed=3, colour="red"), "colour is no key of it; speed is no key of it"),
    "one word for all": ("affine3", set_section("affine3"), "in a mapping .* not 'affine3'"),
    "nothing": ("affine3", set_section({}), "in a mapping .* not {}"),
    "no method": ("affine3", change_config(quant_method=None), "quantised by None, which tunesmith does not read"),
    "another method": ("affine3", change_config(quant_method="bitsandbytes"), 'quant_method: "tunesmith"'),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID_OTHERWISE.values(), ids=SAID_OTHERWISE)
def test_a_config_that_says_something_else_than_the_files_is_refused_at_its_own_place(stored, tmp_path, case):
    name, damage, what = case
    folder = copy(stored / name, tmp_path / "damaged")
    damage(folder)
    with pytest.raises(BadInput, match=what) as error:
        load_model(str(folder), "bfloat16")
    assert error.value.fix
    if "quant_method" not in what:
        assert error.value.where.startswith(f"{folder / 'config.json'}")


def test_a_file_without_the_name_of_its_scheme_and_a_config_without_embeddings_are_those_of_an_older_version(stored, tmp_path):
    folder = copy(stored / "affine3", tmp_path / "older")
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]["scheme"]["embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load_model(str(folder), "bfloat16").scheme == SCHEMES["affine3"]


@pytest.mark.parametrize("case", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_refused_with_what_where_and_a_way_out(stored, tmp_path, case):
    name, damage, what = case
    folder = copy(stored / name, tmp_path / "damaged")
    damage(folder)
    with pytest.raises(BadInput, match=what) as error:
        load_model(str(folder), "bfloat16")
    assert str(folder) in error.value.where
    assert error.value.fix
    assert Path(error.value.where.split(": ")[0]).exists()
