"""Which folders and names are models, and what is said of those that are not."""

import json
import pickle
from pathlib import Path

import pytest
import torch
import transformers
from families import FAMILIES, VOCABULARY, ragged_rows, tiny
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from tunesmith.errors import BadInput
from tunesmith.model.load import ACORN, find_model, load_model, load_tokenizer

STORIES = Path(__file__).parents[3] / "shared/models/stories260k-hf"


def save(folder, family="llama"):
    """A complete model folder: config.json, model.safetensors, tokenizer files."""
    tiny(family).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "tiny-llama")


def opened(folder):
    return load_model(str(folder), "float32", "cpu")


def refused(folder, said):
    """The error of loading a folder: it says `said`, where, and what to do."""
    with pytest.raises(BadInput, match=said) as error:
        opened(folder)
    assert str(folder) in error.value.where
    assert error.value.fix
    assert error.value.exit_code == 2
    return error.value


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# --- what opens ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_opens_from_its_folder_with_the_logits_it_was_saved_with(family, tmp_path):
    batch, _ = ragged_rows()
    loaded = opened(save(tmp_path, family))
    with torch.no_grad():
        assert torch.equal(loaded.model(input_ids=batch.ids_BT).logits, tiny(family)(input_ids=batch.ids_BT).logits)
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.model.config._attn_implementation == ("eager" if family == "gemma2" else "sdpa")
    assert (loaded.name, loaded.path, loaded.eos_ids, loaded.context) == (str(tmp_path), tmp_path, {2}, 64)


def test_the_dtype_is_the_one_that_was_asked_for(folder):
    assert load_model(str(folder), "bfloat16", "cpu").model.dtype == torch.bfloat16
    assert load_model(str(folder), "float32", "cpu").model.dtype == torch.float32


def test_weights_in_several_files_open_and_a_missing_one_is_named(folder):
    (folder / "model.safetensors").unlink()
    tiny("llama").save_pretrained(folder, max_shard_size="20KB")
    parts = sorted(folder.glob("model-*.safetensors"))
    assert len(parts) > 2
    assert opened(folder).context == 64
    parts[1].unlink()
    refused(folder, parts[1].name)


def test_stories260k_opens_and_its_tokenizer_gives_its_text_back():
    if not STORIES.is_dir():
        pytest.skip("../shared/models/stories260k-hf is not here")
    loaded = opened(STORIES)
    text = "Once upon a time, there was a little girl."
    ids = loaded.tokenizer(text)["input_ids"]
    assert loaded.tokenizer.decode(ids, skip_special_tokens=True).strip() == text
    assert loaded.tokenizer.chat_template is None
    with torch.no_grad():
        nll = loaded.model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss
    assert nll < 2.5  # it was trained on such sentences; guessing among 512 tokens would cost 6.2


def test_acorn_is_a_name_of_its_own():
    assert find_model("acorn") == ACORN


# --- names that are no model --------------------------------------------------------------------------------------------


def test_a_misspelt_folder_is_answered_with_the_nearest_model_beside_it(folder, tmp_path):
    (tmp_path / "tiny-lamas-but-empty").mkdir()
    error = refused(tmp_path / "tiny-lama", "there is no such model folder")
    assert error.fix == f'did you mean "{folder}"?'
    with pytest.raises(BadInput, match="no such model folder") as found:
        load_model("acron")
    assert found.value.fix == 'did you mean "acorn"?'


def test_a_file_is_not_a_model(folder):
    error = refused(folder / "model.safetensors", "a model is a folder, and this is a file")
    assert error.fix == str(folder)


def test_a_hub_id_that_cannot_be_fetched_is_refused_with_what_where_and_fix(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the library reads the variable once, at its import
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match='"someone/a-model" is neither a folder nor a model that the hub gave') as error:
        load_model("someone/a-model")
    assert "\n" not in error.value.what
    assert error.value.where == "model"
    assert "a local folder, acorn, or a hub id" in error.value.fix


# --- folders that are no model ------------------------------------------------------------------------------------------


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "no safetensors weights")


def test_a_pickle_is_named_and_never_read(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(f"cos\nmkdir\n(V{folder / 'was-read'}\ntR.".encode())  # a pickle that makes a folder
    refused(folder, r"pytorch_model\.bin is a pickle and is never read")
    assert not (folder / "was-read").exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert (folder / "was-read").exists(), "the trap works"


def test_weights_under_another_name_are_named(folder):
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    refused(folder, r"consolidated\.safetensors is not a name that transformers reads")


def test_a_run_folder_is_answered_with_the_folder_inside_it(tmp_path):
    for kind in ("model", "adapter"):
        run = tmp_path / f"run-{kind}"
        (run / kind).mkdir(parents=True)
        (run / "config.yaml").write_text("model: acorn\n")
        error = refused(run, "this folder is a run, not a model")
        assert error.fix == f"use {run / kind}"


def test_an_adapter_folder_is_not_a_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    error = refused(tmp_path, "this folder is an adapter, not a model")
    assert "--adapter" in error.fix


def test_a_model_with_an_adapter_in_its_folder_is_refused_since_transformers_would_load_the_adapters_base(folder):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "someone/another"}')
    refused(folder, "holds a model and an adapter")


def test_an_empty_folder_is_not_a_model(tmp_path):
    refused(tmp_path, r"config\.json is missing")


@pytest.mark.parametrize("content", [b'{"model_type": "llama", ', b"\xff\xfe\x00{", b"", b"null", b"[1]", b'{"hidden_size": 3}'])
def test_a_broken_config_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    refused(folder, r"config\.json (cannot be read|does not name a model_type|should hold a JSON object)")


def test_a_config_of_the_wrong_types_is_refused_with_the_field(folder):
    edit_config(folder, hidden_size="wide")
    refused(folder, "'hidden_size' expected int, got str")


def test_remote_code_is_never_run(folder, tmp_path):
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    remote = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None]}
    edit_config(folder, auto_map=remote)  # transformers knows this type by itself
    opened(folder)
    edit_config(folder, model_type="of-its-own")
    refused(folder, "custom code")
    assert not ran.exists()


def test_a_tokenizer_of_remote_code_is_never_run(folder, tmp_path):
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": [None, "evil.Tokenizer"]}}))
    try:
        load_tokenizer(folder)
    except BadInput as error:
        assert error.fix
    assert not ran.exists()


# --- weights that do not fit --------------------------------------------------------------------------------------------


def test_weights_that_miss_keys_are_refused_with_the_keys(folder):
    def lose_three(tensors):
        for layer, name in ((0, "self_attn.q_proj"), (1, "mlp.up_proj"), (1, "input_layernorm")):
            del tensors[f"model.layers.{layer}.{name}.weight"]

    edit_weights(folder, lose_three)
    error = refused(folder, "do not fit the configuration: missing")
    for key in ("layers.0.self_attn.q_proj", "layers.1.mlp.up_proj", "layers.1.input_layernorm"):
        assert key in error.what


def test_a_tied_head_is_no_missing_key(tmp_path):
    folder = save(tmp_path, "qwen2")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    opened(folder)


def test_weights_of_another_shape_are_refused_with_the_key(folder):
    edit_config(folder, intermediate_size=64)
    error = refused(folder, "of another shape")
    assert "mlp.down_proj.weight" in error.what
    assert "and 3 more" in error.what


def test_a_bias_that_the_config_forgot_is_refused_and_a_whole_module_more_is_not(folder):
    edit_weights(folder, lambda tensors: tensors.update({"vision.patch.weight": torch.ones(3)}))
    opened(folder)
    edit_weights(folder, lambda tensors: tensors.update({"model.layers.1.self_attn.q_proj.bias": torch.ones(32)}))
    refused(folder, r"without a place: model\.layers\.1\.self_attn\.q_proj\.bias")


def test_a_torn_weights_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    refused(folder, "the weights cannot be loaded")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.self_attn.v_proj.weight", "model.norm.weight"])
def test_one_weight_that_is_no_number_is_refused_by_its_name(folder, name, value):
    edit_weights(folder, lambda tensors: tensors[name].view(-1)[-1:].fill_(value))
    with pytest.raises(BadInput, match="a weight of the model is NaN or inf") as caught:
        load_model(str(folder), "float32")
    assert name in caught.value.where and str(folder) in caught.value.where


def test_a_missing_tensor_is_said_by_us_alone(folder, capfd):
    edit_weights(folder, lambda tensors: tensors.pop("model.norm.weight"))
    refused(folder, r"missing: model\.norm\.weight")
    said = capfd.readouterr()
    assert "LOAD REPORT" not in said.out + said.err


def test_quantised_weights_are_refused(folder):
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(folder, "quantised by gptq")


def test_an_encoder_is_refused_as_it_sees_the_word_that_it_should_predict(tmp_path):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 0.1}
    transformers.BertLMHeadModel(transformers.BertConfig(vocab_size=VOCABULARY, **shape)).save_pretrained(tmp_path / "bert")
    refused(tmp_path / "bert", "this model sees the words to come")
    transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=VOCABULARY, d_model=32, d_ff=32, num_layers=1, num_heads=2, d_kv=16)
    ).save_pretrained(tmp_path / "t5")
    refused(tmp_path / "t5", "a model of type t5 does not predict the next word")


@pytest.mark.parametrize("lost", ["tokenizer.json", "both", "torn"])
def test_a_folder_without_a_fast_tokenizer_is_refused(folder, lost):
    if lost == "torn":
        (folder / "tokenizer.json").write_text("{")
    else:
        (folder / "tokenizer.json").unlink()
    if lost == "both":
        (folder / "tokenizer_config.json").unlink()
    refused(folder, "the tokenizer cannot be loaded")


@pytest.mark.parametrize(("device", "said"), [("tpu9", 'no device "tpu9"'), ("cuda:99", "cannot be put on cuda:99")])
def test_a_device_that_is_not_there_is_refused(folder, device, said):
    with pytest.raises(BadInput, match=said) as error:
        load_model(str(folder), "float32", device)
    assert error.value.where == "--device"
    assert error.value.fix


def test_loading_reads_and_never_writes(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    opened(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
