"""A quantised model as a folder: what is taken along, what is said, and that nothing is left of a failure."""

import json
from pathlib import Path

import pytest
import torch
from tests.conftest import save_tiny_model
from tests.end_to_end.shell import tree
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.api import merge
from tunesmith.config import LoraConfig
from tunesmith.errors import BadInput
from tunesmith.exports.quantized import write_quantized
from tunesmith.model.adapters import adapter_parameters, attach, fingerprint, load_adapter, save_adapter
from tunesmith.model.load import load_model
from tunesmith.quant.scheme import find_scheme
from tunesmith.study_page import write_study_of

NF4 = find_scheme("nf4")


@pytest.fixture
def source(tiny_model, tmp_path):
    """A model of its own with a licence and a card."""
    folder = tmp_path / "source"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_the_folder_holds_codes_tokenizer_licence_and_a_card_that_says_what_was_done(source, tmp_path):
    (source / "LICENSE.txt").write_text("as you like")
    (source / "NOTICE").write_text("by us")
    (source / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n\nIt scores 0.9.\n")
    (source / "tunesmith.json").write_text(json.dumps({"template": "auto"}))
    (source / "notes.md").write_text("private")
    output = tmp_path / "models/new/q"
    said = write_quantized(str(source), NF4, output)
    names = set(tree(output))
    assert {"model.safetensors", "config.json", "tokenizer.json", "LICENSE.txt", "NOTICE", "README.md", "tunesmith.json"} <= names
    assert "notes.md" not in names
    card = (output / "README.md").read_text()
    note = "> Quantised by tunesmith from source: nf4, blocks of 64, scales in 8 bits. What follows is the card of that model."
    assert card == f"---\nlicense: mit\n---\n\n{note}\n\n# Tiny\n\nIt scores 0.9.\n"
    assert load_model(str(output)).scheme == NF4
    assert list(output.parent.iterdir()) == [output]  # nothing beside it
    assert "bits each" in said[0] and "MiB after" in said[1] and "bit for bit" in said[2] and "bitsandbytes" in said[3]


@pytest.mark.parametrize(("name", "bits"), [("nf4", "4.1"), ("int8", "8.4"), ("affine3", "4.6")])
def test_what_is_said_is_what_was_written(tiny_model, tmp_path, name, bits):
    said = write_quantized(str(tiny_model), find_scheme(name), tmp_path / "q", "float32")
    assert f"({bits}" in said[0] and "stay float32" in said[0]
    assert ("only" in said[3]) == (name == "affine3")


def test_an_output_that_is_there_is_left_alone(tiny_model, tmp_path):
    (tmp_path / "folder" / "of mine").mkdir(parents=True)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for output in (tmp_path / "folder", tmp_path / "file", tmp_path / "link"):
        with pytest.raises(BadInput, match="something at the output"):
            write_quantized(str(tiny_model), NF4, output)
    assert tree(tmp_path)["file"] == b"mine"


def test_a_quantised_model_is_refused(tiny_model, tmp_path):
    write_quantized(str(tiny_model), NF4, tmp_path / "once")
    with pytest.raises(BadInput, match="quantised already") as error:
        write_quantized(str(tmp_path / "once"), NF4, tmp_path / "twice")
    assert error.value.fix
    assert not (tmp_path / "twice").exists()


def test_weights_that_are_not_finite_leave_nothing_behind(source, tmp_path):
    model = LlamaForCausalLM.from_pretrained(source)
    model.model.layers[0].mlp.up_proj.weight.data[3, 7] = torch.nan
    model.save_pretrained(source)
    with pytest.raises(BadInput, match="NaN or infinite") as error:
        write_quantized(str(source), NF4, tmp_path / "q")
    assert "up_proj" in error.value.where
    assert list(tmp_path.iterdir()) == [source]


def test_a_place_that_cannot_be_written_is_said_before_anything_is_left(tiny_model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="no folder can be made") as error:
        write_quantized(str(tiny_model), NF4, tmp_path / "file" / "q")
    assert "file/q" in error.value.where
    assert tree(tmp_path) == {"file": b""}


@pytest.mark.parametrize("place", ["file/q", "file/deep/q", "/proc/none/q"])
def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path, monkeypatch, place):
    """Before the model is looked for, of which there is none; merging and studying begin with the same look."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    begin = [
        lambda output: write_quantized("nowhere", NF4, output), lambda output: merge("nowhere", output),
        lambda output: write_study_of("nowhere", output, None),
    ]  # fmt: skip
    for work in begin:
        with pytest.raises(BadInput, match="no folder can be made") as error:
            work(Path(place))
        assert place in error.value.where
    assert tree(tmp_path) == {"file": b""}


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    with pytest.raises(BadInput, match="no such model"):
        write_quantized(str(tmp_path / "nowhere"), NF4, tmp_path / "new/deep/q")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float16", "auto", "half"])
def test_a_dtype_that_is_not_written_is_refused_before_the_work(tmp_path, dtype):
    with pytest.raises(BadInput, match=f'no dtype "{dtype}"') as error:
        write_quantized("nowhere", NF4, tmp_path / "q", dtype)
    assert (error.value.where, error.value.fix) == (f"--dtype {dtype}", "float32 or bfloat16")


@pytest.mark.parametrize("name", ["nf4", "int8", "affine3"])
def test_embeddings_are_stored_in_few_bits_on_request(tiny_model, tmp_path, name):
    scheme = find_scheme(name, embeddings=True)
    said = write_quantized(str(tiny_model), scheme, tmp_path / "with", "float32")
    write_quantized(str(tiny_model), find_scheme(name), tmp_path / "without", "float32")
    assert "embeddings too: 82,752 weights of 15 layers" in said[0] and "norms stay float32" in said[0]  # 333 x 64 more, tied: once
    assert said[-1] == "opens in tunesmith only: bitsandbytes has no embeddings in few bits"
    loaded = load_model(str(tmp_path / "with"), "float32")
    assert loaded.scheme == scheme
    sizes = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("with", "without")]
    assert sizes[0] < sizes[1] - 333 * 64 * 2


def test_a_folder_whose_weights_were_put_there_later_is_refused(tiny_model, tmp_path):
    """tunesmith.json names the dense weights that the codes were made from: it must be those codes."""
    other = save_tiny_model(tmp_path / "other", seed=1)
    for source, folder in ((tiny_model, "one"), (other, "two")):
        write_quantized(str(source), NF4, tmp_path / folder, "float32")
    assert fingerprint(load_model(str(tmp_path / "one"), "float32").model) == fingerprint(load_model(str(tiny_model), "float32").model)
    (tmp_path / "one/model.safetensors").write_bytes((tmp_path / "two/model.safetensors").read_bytes())
    with pytest.raises(BadInput, match="was changed since it was written") as refused:
        load_model(str(tmp_path / "one"), "float32")
    assert refused.value.where.endswith("one/model.safetensors")


@pytest.mark.parametrize("scheme", ["nf4", "int8", "affine3"])
def test_one_flipped_bit_among_codes_is_noticed(tiny_model, tmp_path, scheme):
    """Any code is a possible one: nothing in the file itself could tell."""
    write_quantized(str(tiny_model), find_scheme(scheme), tmp_path / "q", "float32")
    file = tmp_path / "q/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 4
    file.write_bytes(content)
    with pytest.raises(BadInput, match="was changed since it was written"):
        load_model(str(tmp_path / "q"), "float32")


def test_nothing_is_written_into_the_model_that_it_is_made_from(tiny_model):
    before = tree(tiny_model)
    with pytest.raises(BadInput, match="inside the model's own folder"):
        write_quantized(str(tiny_model), NF4, tiny_model / "inside")
    assert tree(tiny_model) == before


def test_layers_at_which_bitsandbytes_stops_are_warned_of(tmp_path):
    source = save_tiny_model(tmp_path / "source")
    LlamaForCausalLM(LlamaConfig.from_pretrained(source, intermediate_size=72)).save_pretrained(source)
    said = write_quantized(str(source), find_scheme("nf4", 64), tmp_path / "codes", "float32")
    assert "stops at layers of 72 outputs, no multiple of 32" in said[-1]


def test_an_adapter_of_the_dense_base_fits_the_folder_of_its_codes(tiny_model, tmp_path):
    model = load_model(str(tiny_model), "float32").model
    attach(model, "x", LoraConfig(rank=4), seed=0)
    for parameter in adapter_parameters(model, "x").values():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    save_adapter(model, "x", tmp_path / "adapter", {}, str(tiny_model), LoraConfig(rank=4))
    write_quantized(str(tiny_model), find_scheme("nf4", 32), tmp_path / "codes", "float32")
    opened = load_model(str(tmp_path / "codes"), "float32").model
    load_adapter(opened, "x", tmp_path / "adapter")
    other = save_tiny_model(tmp_path / "other", seed=1)
    write_quantized(str(other), find_scheme("nf4", 32), tmp_path / "other-codes", "float32")
    with pytest.raises(BadInput, match="whose weights are not these"):
        load_adapter(load_model(str(tmp_path / "other-codes"), "float32").model, "x", tmp_path / "adapter")


def test_blocks_that_bitsandbytes_has_not_become_files_of_our_own(tiny_model, tmp_path):
    said = write_quantized(str(tiny_model), find_scheme("nf4", 48), tmp_path / "48", "float32")
    assert said[-1] == "opens in tunesmith only: bitsandbytes has no such scheme"
    assert json.loads((tmp_path / "48/config.json").read_text())["quantization_config"]["quant_method"] == "tunesmith"


def test_rows_that_do_not_divide_into_blocks_are_said_to_be_read_wrongly_elsewhere(tiny_model, tmp_path):
    said = write_quantized(str(tiny_model), find_scheme("nf4", 64), tmp_path / "64", "float32")
    assert "AVX-512 code reads rows of 96 in blocks of 64 wrongly" in said[-1]


def test_rows_that_bitsandbytes_reads_right_are_not_warned_of(tmp_path):
    source = save_tiny_model(tmp_path / "source")
    config = LlamaConfig.from_pretrained(source, intermediate_size=64)
    LlamaForCausalLM(config).save_pretrained(source)
    said = write_quantized(str(source), find_scheme("nf4", 64), tmp_path / "codes", "float32")
    assert said[-1] == "opens in tunesmith and in transformers with bitsandbytes"
