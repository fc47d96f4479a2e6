"""An adapter folded into its base: the same answers as base + adapter, whatever the base is stored in."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import byte_level_tokenizer, save_tiny_model
from tests.memory import needs_proc, watched
from tests.model.families import FAMILIES, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, MixtralConfig

import tunesmith
from tunesmith.api import merge
from tunesmith.config import LoraConfig, validate
from tunesmith.data.template import Example
from tunesmith.errors import BadInput
from tunesmith.exports.merged import fold
from tunesmith.exports.parity import compare, keep_logits
from tunesmith.exports.quantized import write_quantized
from tunesmith.model.adapters import adapter_parameters, attach, linear_layers, load_adapter, using
from tunesmith.model.frozen import QuantizedWeight
from tunesmith.model.load import load_model
from tunesmith.quant.scheme import Scheme, find_scheme, scheme_of_words
from tunesmith.quant.tensor import dequantize, quantize
from tunesmith.runs import RunFolder
from tunesmith.training.loop import train

NF4, WITH_EMBEDDINGS = find_scheme("nf4", 32), find_scheme("nf4", 32, embeddings=True)


def trained(model: Path, folder: Path, name: str, **changes: Any) -> RunFolder:
    """A short run that really learned something."""
    rows = folder / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"spam or ham? call {i}", "completion": ("spam", "ham")[i % 2]}) + "\n" for i in range(24))
    )
    raw: dict[str, Any] = {
        "model": str(model), "output": str(folder / name), "data": {"train": str(rows), "test": 0.25, "system": "be brief"},
        "lora": {"rank": 4}, "training": {"steps": 8, "batch_size": 8, "max_length": 96, "dtype": "float32", "learning_rate": 1e-2},
    }  # fmt: skip
    if changes.get("method") == "full":
        del raw["lora"]
    return train(validate({**raw, **changes}, "test")[0])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """One run of each method on one base; tests only read them."""
    folder = tmp_path_factory.mktemp("merge")
    base = save_tiny_model(folder / "base")
    return {
        "lora": trained(base, folder, "lora", method="lora"),
        "qlora": trained(base, folder, "qlora", method="qlora", quantization={"block_size": 32}),
        "embeddings": trained(base, folder, "embeddings", method="qlora", quantization={"block_size": 32, "embeddings": True}),
    }


def base_of(run: RunFolder) -> Path:
    return Path(run.run().model)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.randint(5, 90, (3, 40), generator=torch.Generator().manual_seed(0))).logits.float()


def some_rows(n_ids: int) -> list[Example]:
    generator = torch.Generator().manual_seed(4)
    rows = [torch.randint(3, n_ids, (n,), generator=generator).numpy() for n in (20, 9, 31)]
    return [Example(ids, ids > n_ids // 2, f"row {i}") for i, ids in enumerate(rows)]


# --- equal to base + adapter ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "qlora", "embeddings"])
def test_merged_logits_are_those_of_base_and_adapter(runs: dict[str, RunFolder], tmp_path: Path, method: str):
    """FAILURES 6: the sum is made on the weights that the adapter was trained on."""
    result = merge(runs[method].path, tmp_path / "merged", dtype="float32")
    assert result["parity"]["float32"]["max_logit"] < 1e-5
    assert result["parity"]["float32"]["agreement"] == 1.0
    assert result["without_adapter"]["kl"] > 0.1, "the adapter does something"
    opened = tunesmith.load(runs[method].path)
    with using(opened.loaded.model, method):
        expected = logits(opened.loaded.model)
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    plain, report = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)  # transformers alone
    assert not any(report.values())
    torch.testing.assert_close(logits(plain), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_16_bit_weight_is_the_float32_sum_rounded_once(runs: dict[str, RunFolder], tmp_path: Path, method: str):
    result = merge(runs[method].path, tmp_path / "merged")
    found, base = load_file(tmp_path / "merged" / "model.safetensors"), load_file(base_of(runs[method]) / "model.safetensors")
    adapter = load_file(runs[method].adapter / "adapter_model.safetensors")
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()} == {n: (t.shape, torch.bfloat16) for n, t in base.items()}
    for name, weight in base.items():
        a, b = (adapter.get(f"base_model.model.{name.removesuffix('.weight')}.lora_{side}.weight") for side in "AB")
        if a is not None and method == "qlora":
            weight = dequantize(quantize(weight, NF4))
        expected = weight if a is None else weight + 8 / 4 * b @ a  # alpha / rank
        torch.testing.assert_close(found[name].float(), expected.bfloat16().float(), rtol=2**-8, atol=0)  # other sums may round otherwise
        assert (found[name].float() == expected.bfloat16().float()).float().mean() > 0.99
    parity = result["parity"]["bfloat16"]
    assert 0 < parity["max_logit"] < 0.1 and parity["kl"] < 1e-4 < result["without_adapter"]["kl"]
    assert json.loads((tmp_path / "merged" / "merge.json").read_text()) == result


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_weights_are_those_of_pefts_merge_and_unload(runs: dict[str, RunFolder], tmp_path: Path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    merge(runs["lora"].path, tmp_path / "merged", dtype="float32")
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_of(runs["lora"])), runs["lora"].adapter)
    expected = theirs.merge_and_unload().state_dict()
    for name, tensor in load_file(tmp_path / "merged" / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scheme", [None, NF4, WITH_EMBEDDINGS], ids=["dense", "nf4", "nf4, embeddings too"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_folded(family: str, scheme: Scheme | None, tmp_path: Path):
    """Conv1D (GPT-2), biases, tied and untied heads, fused projections: names and shapes are the base's, answers the adapter's."""
    tiny(family).save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)  # any: ids go in and logits come out
    loaded = load_model(str(tmp_path), "float32", scheme=scheme)
    attach(loaded.model, "x", LoraConfig(rank=4, alpha=4), seed=0)
    for parameter in adapter_parameters(loaded.model, "x").values():
        parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    rows = some_rows(96)
    with using(loaded.model, "x"):
        before = keep_logits(loaded.model, rows)
    assert compare(before, loaded.model, rows).max_logit > 0.1
    n_layers = fold(loaded.model, "x", torch.float32)
    assert n_layers == len(linear_layers(loaded.model))
    parity = compare(before, loaded.model, rows)
    assert parity.max_logit < 2e-5 * max(float(kept.abs().max()) for kept in before)
    assert (parity.positions, parity.agreement) == (19 + 8 + 30, 1.0)
    base = tiny(family).state_dict()
    assert {n: t.shape for n, t in loaded.model.state_dict().items()} == {n: t.shape for n, t in base.items()}
    biases = [name for name in base if name.endswith("bias") and base[name].is_floating_point()]
    assert all(torch.equal(loaded.model.state_dict()[name], base[name]) for name in biases)


@pytest.mark.parametrize("scheme", [None, NF4], ids=["dense", "nf4"])
def test_experts_are_folded_one_by_one(scheme: Scheme | None, tmp_path: Path):
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3) if parameter.ndim > 1 else parameter.data.fill_(1.0)
    model.save_pretrained(tmp_path / "base")
    byte_level_tokenizer().save_pretrained(tmp_path / "base")
    loaded = load_model(str(tmp_path / "base"), "float32", scheme=scheme)
    attach(loaded.model, "x", LoraConfig(rank=2, targets=["q_proj", "experts.gate_up_proj", "experts.down_proj"]), seed=0)
    for parameter in adapter_parameters(loaded.model, "x").values():
        parameter.data.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    rows = some_rows(96)
    with using(loaded.model, "x"):
        before = keep_logits(loaded.model, rows)
    assert compare(before, loaded.model, rows).max_logit > 0.1
    assert fold(loaded.model, "x", torch.float32) == 3
    assert compare(before, loaded.model, rows).max_logit < 1e-4
    loaded.model.save_pretrained(tmp_path / "merged")  # under the names of the file, an expert each
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == load_file(tmp_path / "base" / "model.safetensors").keys()
    assert compare(before, AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), rows).max_logit < 1e-4


# --- what it costs otherwise ----------------------------------------------------------------------------------------------


def test_a_qlora_adapter_on_the_dense_base_is_measurably_worse(runs: dict[str, RunFolder], tmp_path: Path):
    """What PEFT's merge_and_unload does when the base is loaded again in 16 bits (FAILURES 6)."""
    ours = merge(runs["qlora"].path, tmp_path / "merged")["parity"]["bfloat16"]
    opened = tunesmith.load(runs["qlora"].path)
    rows = some_rows(opened.loaded.n_ids)
    with using(opened.loaded.model, "qlora"):
        before = keep_logits(opened.loaded.model, rows)
    dense = load_model(str(base_of(runs["qlora"])), "float32")
    load_adapter(dense.model, "qlora", runs["qlora"].adapter)
    fold(dense.model, "qlora", torch.float32)
    theirs = compare(before, dense.model, rows)
    assert theirs.kl > 100 * ours["kl"]
    assert theirs.max_logit > 10 * ours["max_logit"]
    with pytest.raises(BadInput, match="trained on a base in nf4, blocks of 32, scales in 8 bits, and this one is in int8"):
        quantised = tmp_path / "int8"
        write_quantized(str(base_of(runs["qlora"])), find_scheme("int8"), quantised)
        merge(runs["qlora"].adapter, tmp_path / "other", model=str(quantised))


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_quantising_again_says_what_it_loses(runs: dict[str, RunFolder], tmp_path: Path, method: str):
    result = merge(runs[method].path, tmp_path / "merged", scheme=NF4)
    sixteen, four = result["parity"]["bfloat16"], result["parity"][str(NF4)]
    assert four["kl"] > 100 * sixteen["kl"] and four["max_logit"] > sixteen["max_logit"]
    assert load_model(str(tmp_path / "merged")).scheme == NF4
    facts = json.loads((tmp_path / "merged" / "tunesmith.json").read_text())
    assert tunesmith.load(tmp_path / "merged").renderer.fingerprint() == facts["renderer"]
    assert [path.name for path in tmp_path.iterdir()] == ["merged"], "the 16-bit weights it was made from are gone"


def test_new_codes_of_a_qlora_model_are_the_old_ones_and_that_is_said(
    runs: dict[str, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """W0 lies on the levels: an update smaller than half a gap is rounded away everywhere, not on average."""
    gentle = {"steps": 8, "batch_size": 8, "max_length": 96, "dtype": "float32", "learning_rate": 1e-3}
    run = trained(base_of(runs["qlora"]), tmp_path, "gentle", method="qlora", quantization={"block_size": 32}, training=gentle)
    result = merge(run.path, tmp_path / "merged", scheme=NF4)
    assert result["parity"][str(NF4)]["kl"] > 0.5 * result["without_adapter"]["kl"] > 100 * result["parity"]["bfloat16"]["kl"]
    assert "what the adapter taught is largely rounded away" in capsys.readouterr().err
    loaded, base = load_model(str(tmp_path / "merged")), load_model(str(base_of(run)), scheme=NF4, layout="flat")
    old, new = (torch.cat([layer.q.codes.flatten() for layer in linear_layers(m.model).values()]) for m in (base, loaded))
    assert (old == new).float().mean() > 0.9


# --- what survives --------------------------------------------------------------------------------------------------------


def test_the_merged_folder_answers_as_the_run_with_its_template_and_system_message(runs: dict[str, RunFolder], tmp_path: Path):
    merge(runs["lora"].path, tmp_path / "merged", dtype="float32")
    run, merged = tunesmith.load(runs["lora"].path), tunesmith.load(tmp_path / "merged", dtype="float32")
    prompts = [f"spam or ham? call {i}" for i in range(6)]
    assert merged.generate(prompts, max_new_tokens=8) == run.generate(prompts, max_new_tokens=8)
    assert merged.system[None] == "be brief"
    for name in ("generation_config.json", "tokenizer.json", "chat_template.jinja", "tunesmith.json", "model.safetensors"):
        assert (tmp_path / "merged" / name).stat().st_mode & 0o444 == 0o444, name
    tokenizer = tmp_path / "merged" / "chat_template.jinja"
    tokenizer.write_text(tokenizer.read_text() + " ")
    with pytest.raises(BadInput, match="another chat template or tokenizer"):
        tunesmith.load(tmp_path / "merged")


def test_tied_embeddings_stay_tied(runs: dict[str, RunFolder], tmp_path: Path):
    """FAILURES 18."""
    for method, run in runs.items():
        merge(run.path, tmp_path / method)
        assert "lm_head.weight" not in load_file(tmp_path / method / "model.safetensors")
        model = load_model(str(tmp_path / method)).model
        assert model.config.tie_word_embeddings
        assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()


@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_and_their_embeddings_survive_training_and_merging(tied: bool, tmp_path: Path):
    """FAILURES 18: a base whose tokenizer was extended and whose embedding was resized, to more rows than there are tokens."""
    tokenizer = byte_level_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, tie_word_embeddings=tied, initializer_range=0.1, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]}, replace_extra_special_tokens=False)
    tokenizer.add_tokens(["Zwölf"])
    n_rows = model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64).weight.shape[0]
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    run = trained(tmp_path / "base", tmp_path, "run")
    result = merge(run.path, tmp_path / "merged", dtype="float32")
    assert result["parity"]["float32"]["max_logit"] < 1e-5
    saved = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert len(saved) == len(tokenizer) < n_rows
    for text in ("<|tool|>", "Zwölf", "ham<|tool|>Zwölf"):
        assert saved(text).input_ids == tokenizer(text).input_ids
    merged = load_model(str(tmp_path / "merged"), "float32").model
    assert merged.get_input_embeddings().weight.shape[0] == merged.config.vocab_size == n_rows
    assert torch.equal(merged.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert torch.equal(merged.get_output_embeddings().weight, model.get_output_embeddings().weight)


def test_embeddings_in_few_bits_are_merged_as_what_their_codes_stand_for(runs: dict[str, RunFolder], tmp_path: Path):
    """Adapters know that their base's embeddings were in few bits, and which: a folder of theirs alone is merged onto the same."""
    base = load_file(base_of(runs["embeddings"]) / "model.safetensors")["model.embed_tokens.weight"]
    expected = dequantize(quantize(base, WITH_EMBEDDINGS))
    for n, place in enumerate((runs["embeddings"].path, runs["embeddings"].adapter)):
        result = merge(place, tmp_path / str(n), dtype="float32")
        assert result["base"].endswith("(nf4, blocks of 32, scales in 8 bits, embeddings too, de-quantised)")
        found = load_file(tmp_path / str(n) / "model.safetensors")
        assert torch.equal(found["model.embed_tokens.weight"], expected)
        assert "lm_head.weight" not in found
    stored = tmp_path / "stored"
    write_quantized(str(base_of(runs["qlora"])), NF4, stored, "float32")
    with pytest.raises(BadInput, match="embeddings too, and this one is in nf4, blocks of 32, scales in 8 bits\n"):
        merge(runs["embeddings"].adapter, tmp_path / "other", model=str(stored))


def test_a_merged_model_is_written_in_few_bits_with_its_embeddings_on_request(runs: dict[str, RunFolder], tmp_path: Path):
    result = merge(runs["lora"].path, tmp_path / "merged", scheme=WITH_EMBEDDINGS)
    assert list(result["parity"]) == ["bfloat16", str(WITH_EMBEDDINGS)]
    assert load_model(str(tmp_path / "merged")).scheme == WITH_EMBEDDINGS


def test_an_adapter_folder_is_merged_onto_the_base_that_it_names_in_the_bits_of_its_training(runs: dict[str, RunFolder], tmp_path: Path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in runs["qlora"].adapter.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    expected = merge(runs["qlora"].path, tmp_path / "one")["parity"]
    for n, base in enumerate((None, str(base_of(runs["qlora"])))):
        found = merge(moved, tmp_path / f"two-{n}", model=base, data=str(runs["qlora"].path.parent / "rows.jsonl"))
        assert found["base"].endswith("(nf4, blocks of 32, scales in 8 bits, de-quantised)")
        assert found["parity"]["bfloat16"]["max_logit"] < 3 * expected["bfloat16"]["max_logit"]
        one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", f"two-{n}"))
        assert all(torch.equal(two[name], tensor) for name, tensor in one.items())


def test_a_foreign_adapter_is_merged_onto_the_base_it_is_given(
    runs: dict[str, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    save_file(load_file(runs["lora"].adapter / "adapter_model.safetensors"), foreign / "adapter_model.safetensors")
    config = json.loads((runs["lora"].adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": None}
    (foreign / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="does not say which base") as caught:
        merge(foreign, tmp_path / "out")
    assert caught.value.fix == "--model BASE"
    merge(foreign, tmp_path / "out", model=str(base_of(runs["lora"])))
    said = capsys.readouterr().err
    assert "does not say in which bits" in said and "tunesmith's own examples" in said
    merge(runs["lora"].path, tmp_path / "own")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("own", "out"))
    for name, tensor in one.items():  # without facts the base is read in the machine's own dtype, here perhaps bfloat16
        torch.testing.assert_close(two[name], tensor, rtol=2**-6, atol=1e-3)


@pytest.mark.parametrize("scheme", ["nf4", "int8", "affine4"])
def test_the_words_of_a_scheme_say_all_of_it(scheme: str):
    more = find_scheme(scheme, embeddings=True), find_scheme(scheme, 32, True, embeddings=True)
    for found in (find_scheme(scheme), find_scheme(scheme, 128, True), find_scheme(scheme, 32, False), *more):
        assert scheme_of_words(str(found)) == found
    clipped = find_scheme("int4", 256, clip=99.0)
    assert scheme_of_words(str(clipped)) == clipped
    with pytest.raises(BadInput, match="describes no scheme"):
        scheme_of_words("four bits")


# --- memory ---------------------------------------------------------------------------------------------------------------


@needs_proc
def test_folding_takes_the_16_bit_weights_and_a_layer_in_float32_and_no_second_model(tmp_path: Path):
    """The largest layer is the embedding, which is in few bits too and tied to the head."""
    vocabulary = 8192
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=384, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=6, num_key_value_heads=6,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    found = watched(
        'fold(model, "x", torch.bfloat16)',
        setup="""
import torch
from tunesmith.config import LoraConfig
from tunesmith.exports.merged import fold
from tunesmith.model.adapters import attach
from tunesmith.model.load import load_model
from tunesmith.quant.scheme import find_scheme
model = load_model(sys.argv[1], "bfloat16", scheme=find_scheme("nf4", embeddings=True)).model
attach(model, "x", LoraConfig(rank=4), seed=0)
codes = sum(p.nbytes for n, p in model.named_parameters() if ".stored_" in n)""",
        facts='{"codes": codes}', arguments=[tmp_path],
    )  # fmt: skip
    sixteen_bits, layer = (8 * (4 * 384 * 384 + 3 * 384 * 1536) + vocabulary * 384) * 2, vocabulary * 384 * 4
    assert found["grown"] < sixteen_bits + layer + 10e6, f"{found}: two float32 models would be {4 * sixteen_bits:,}"


# --- refused --------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_merged_is_refused(runs: dict[str, RunFolder], tiny_model: Path, tmp_path: Path):
    full = trained(base_of(runs["lora"]), tmp_path, "full", method="full", training={"steps": 1, "max_length": 96})
    other = save_tiny_model(tmp_path / "other", seed=7)
    unfinished = RunFolder.create(runs["lora"].run().model_copy(update={"output": str(tmp_path / "unfinished")}))
    there = tmp_path / "there"
    (there / "something").mkdir(parents=True)
    cases = [
        ((full.path, tmp_path / "out"), {}, "nothing to merge", f"use {full.model}"),
        ((full.model, tmp_path / "out"), {}, "nothing to merge", "adapter folder"),
        ((runs["lora"].path, there), {}, "at the output already", "another --output"),
        ((runs["lora"].path, tmp_path / "out"), {"model": str(other)}, "whose weights are not these", "load the base it was trained on"),
        ((unfinished.path, tmp_path / "out"), {}, "no adapter yet", "tunesmith resume"),
        ((tmp_path / "nowhere", tmp_path / "out"), {}, "no such adapter folder", "RUN/adapter"),
        # before anything is read, of which nothing is there
        ((tmp_path / "nowhere", tmp_path / "out"), {"dtype": "float16"}, 'no dtype "float16"', "float32 or bfloat16"),
        ((tmp_path / "nowhere", tmp_path / "out"), {"dtype": "auto"}, 'no dtype "auto"', "float32 or bfloat16"),
    ]
    for arguments, settings, what, fix in cases:
        with pytest.raises(BadInput, match=what) as caught:
            merge(*arguments, **settings)
        assert caught.value.where, what
        assert fix in caught.value.fix, what
        assert not (tmp_path / "out").exists()


def test_codes_never_remain_in_a_folded_model(runs: dict[str, RunFolder]):
    """Also layers that carry no adapter are de-quantised."""
    model = load_model(str(base_of(runs["lora"])), "float32", scheme=NF4).model
    attach(model, "x", LoraConfig(rank=2, targets=["q_proj"]), seed=0)
    assert fold(model, "x", torch.bfloat16) == 2
    assert not any(isinstance(module, QuantizedWeight) for module in model.modules())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
