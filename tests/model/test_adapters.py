"""Adapters on a model: several on one base, the sizes in words, and every file that must not be loaded."""

import json

import peft
import pytest
import torch
from families import VOCABULARY, ragged_rows, tiny
from safetensors.torch import load_file, save_file

from tunesmith.config import LoraConfig
from tunesmith.errors import BadInput
from tunesmith.loss import Scored
from tunesmith.model.adapters import (
    Layer,
    adapted_layers,
    adapter_names,
    adapter_parameters,
    arithmetic,
    attach,
    choose_targets,
    fingerprint,
    linear_layers,
    load_adapter,
    read_adapter,
    save_adapter,
    switch_of,
    using,
)  # fmt: skip

CONFIG = LoraConfig(rank=4, targets=["q_proj", "down_proj"])
PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"


def trained(model, name, config=CONFIG, seed=0):
    """An adapter whose B is not zero, as after some training."""
    layers = attach(model, name, config, seed)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in adapter_parameters(model, name).items():
        if "lora_B" in key:
            parameter.data.normal_(std=0.2, generator=generator)
    return layers


@pytest.fixture
def folder(tmp_path):
    """A good adapter for tiny("llama"): rank 4 on q_proj and down_proj."""
    model = tiny("llama")
    trained(model, "spam")
    save_adapter(model, "spam", tmp_path / "adapter", {"rows": 7}, "a-base", CONFIG)
    return tmp_path / "adapter"


def logits(model, name=None):
    batch, _ = ragged_rows()
    with torch.no_grad(), using(model, name):
        return model(input_ids=batch.ids_BT).logits


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def refused(folder, said, model=None):
    """The error of loading a folder: what, where, fix; the model is left as it was."""
    model = model if model is not None else tiny("llama")
    before = logits(model)
    with pytest.raises(BadInput, match=said) as error:
        load_adapter(model, "spam", folder)
    assert str(folder) in error.value.where
    assert error.value.fix
    assert adapter_names(model) == []
    assert torch.equal(logits(model), before)
    return error.value


# --- several on one base ------------------------------------------------------------------------------------------------


def test_several_adapters_live_on_one_base_and_are_chosen_per_call():
    model = tiny("llama")
    base = logits(model)
    trained(model, "spam", seed=1)
    trained(model, "traffic", LoraConfig(rank=2, targets=["v_proj", "down_proj"]), seed=2)
    trained(model, "json", LoraConfig(rank=3, targets="all-linear", rslora=True), seed=3)
    assert sorted(adapter_names(model)) == ["json", "spam", "traffic"]
    answers = {name: logits(model, name) for name in (None, "spam", "traffic", "json")}
    assert torch.equal(answers.pop(None), base)
    for name, answer in answers.items():
        assert (answer - base).abs().max() > 0.1
        # alone on a fresh base, the same answer
        alone = tiny("llama")
        config = {"spam": CONFIG, "traffic": LoraConfig(rank=2, targets=["v_proj", "down_proj"]), "json": LoraConfig(rank=3, rslora=True)}[
            name
        ]
        trained(alone, name, config, seed={"spam": 1, "traffic": 2, "json": 3}[name])
        assert torch.equal(logits(alone, name), answer)


def test_a_choice_ends_with_its_block_even_after_an_error():
    model = tiny("llama")
    trained(model, "spam")
    trained(model, "traffic", seed=2)
    with using(model, "spam"):
        with using(model, "traffic"):
            assert switch_of(model).active == "traffic"
            with pytest.raises(ZeroDivisionError), using(model, None):
                assert switch_of(model).active is None
                _ = 1 / 0
            assert switch_of(model).active == "traffic"
        assert switch_of(model).active == "spam"
    assert switch_of(model).active is None


def test_an_unknown_adapter_is_answered_with_the_nearest():
    model = tiny("llama")
    trained(model, "spam")
    trained(model, "traffic", seed=2)
    with pytest.raises(BadInput, match='no adapter "trafic"') as error, using(model, "trafic"):
        pass
    assert error.value.fix == 'did you mean "traffic"?'


def test_training_one_adapter_leaves_the_base_and_the_other_adapter_as_they_are():
    model = tiny("llama")
    trained(model, "spam")
    trained(model, "traffic", seed=2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    batch, _ = ragged_rows()
    with using(model, "spam"):
        Scored(model)(batch).sum.backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if ".adapters.spam." in name}


def test_putting_a_second_adapter_on_leaves_the_first_trainable_and_the_base_frozen():
    model = tiny("llama").requires_grad_(True)
    trained(model, "spam")
    trained(model, "traffic", seed=2)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if ".adapters." in n
    }


def test_a_name_is_given_once():
    model = tiny("llama")
    trained(model, "spam")
    with pytest.raises(BadInput, match='already an adapter "spam"'):
        attach(model, "spam", CONFIG, seed=1)


@pytest.mark.parametrize("name", ["../spam", "a/b", "a\\b", ".", "..", "a.b", "", " ", "-", "spam\n", "C:", "x" * 65, "naïve"])
def test_a_name_that_looks_like_a_path_is_refused(name, folder):
    model = tiny("llama")
    for put in (lambda: attach(model, name, CONFIG, seed=0), lambda: load_adapter(model, name, folder)):
        with pytest.raises(BadInput, match="cannot name an adapter") as error:
            put()
        assert error.value.fix
    assert adapter_names(model) == []


def test_the_same_seed_starts_the_same_adapter_whatever_was_drawn_before():
    one, two = tiny("llama"), tiny("llama")
    attach(one, "spam", CONFIG, seed=3)
    torch.manual_seed(99)
    attach(two, "spam", CONFIG, seed=3)
    for a, b in zip(adapter_parameters(one, "spam").values(), adapter_parameters(two, "spam").values(), strict=True):
        assert torch.equal(a, b)


# --- which layers -------------------------------------------------------------------------------------------------------


def test_all_linear_is_every_linear_layer_but_the_head():
    names = list(linear_layers(tiny("llama")))
    assert len(names) == 2 * 7
    assert not any("lm_head" in name for name in names)
    model = tiny("llama")
    trained(model, "spam")
    assert list(linear_layers(model)) == names, "layers that carry adapters are still counted, once"


def test_targets_are_ends_of_paths_and_never_parts_of_words():
    model = tiny("llama")
    assert choose_targets(model, ["layers.1.mlp.up_proj"]) == ["model.layers.1.mlp.up_proj"]
    assert choose_targets(model, ["model.layers.0.self_attn.q_proj"]) == ["model.layers.0.self_attn.q_proj"]
    with pytest.raises(BadInput, match="no linear layer is named proj"):
        choose_targets(model, ["proj"])


def test_an_unknown_target_is_answered_with_the_nearest_and_all_that_there_are():
    with pytest.raises(BadInput, match="no linear layer is named q_prj") as error:
        attach(tiny("llama"), "spam", LoraConfig(targets=["v_proj", "q_prj"]), seed=0)
    assert error.value.where == "lora.targets"
    assert 'did you mean "q_proj"?' in error.value.fix
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in error.value.fix


def test_no_target_at_all_is_refused():
    with pytest.raises(BadInput, match="no layer is named") as error:
        attach(tiny("llama"), "spam", LoraConfig(targets=[]), seed=0)
    assert "all-linear" in error.value.fix


def test_the_head_is_no_target():
    with pytest.raises(BadInput, match="no linear layer is named lm_head"):
        attach(tiny("llama"), "spam", LoraConfig(targets=["lm_head"]), seed=0)


def test_a_rank_larger_than_a_layer_is_refused_and_the_model_stays_as_it_was():
    #  q_proj is 32×32; k_proj is 16×32 (two heads of keys for four of queries)
    model = tiny("llama")
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(BadInput, match=r"rank 20 is larger than the layer: model\.layers\.0\.self_attn\.k_proj is 16×32") as error:
        attach(model, "spam", LoraConfig(rank=20), seed=0)
    assert error.value.where == "lora.rank"
    assert "at most 16" in error.value.fix
    assert [name for name, _ in model.named_modules()] == before
    attach(model, "spam", LoraConfig(rank=16), seed=0)


# --- arithmetic ---------------------------------------------------------------------------------------------------------


def test_the_arithmetic_of_a_layer_reads_as_in_the_textbook():
    [line, total] = arithmetic([Layer("model.layers.0.self_attn.q_proj", 4096, 4096)], rank=16)
    assert line.startswith("4096×4096 = 16,777,216 frozen; A 16×4096 + B 4096×16 = 131,072 trained (0.78%)")
    assert total == "together 16,777,216 frozen in adapted layers, 131,072 trained (0.78%)"


def test_the_arithmetic_counts_what_is_there():
    model = tiny("llama")
    layers = trained(model, "spam", LoraConfig(rank=4))
    *lines, total = arithmetic(layers, 4)
    #  largest first: gate and up 48×32, then down 32×48, q and o 32×32, k and v 16×32; two layers of each
    assert [line.split(" = ")[0] for line in lines] == ["48×32", "32×48", "32×32", "16×32"]
    assert [line.rpartition("; ")[2] for line in lines] == ["4 such layers", "2 such layers", "4 such layers", "4 such layers"]
    frozen = sum(layer.frozen.weight.numel() for layer in adapted_layers(model, "spam").values())
    n_trained = sum(p.numel() for p in adapter_parameters(model, "spam").values())
    assert f"{frozen:,} frozen" in total
    assert f"{n_trained:,} trained" in total
    assert n_trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


# --- files: what is kept ------------------------------------------------------------------------------------------------


def test_a_saved_adapter_comes_back_bit_for_bit_with_its_facts(folder):
    saved, back = tiny("llama"), tiny("llama")
    trained(saved, "spam")
    found = load_adapter(back, "again", folder)
    assert torch.equal(logits(back, "again"), logits(saved, "spam"))
    assert found.facts["rows"] == 7
    assert found.facts["base_fingerprint"] == fingerprint(back)
    assert not any(p.requires_grad for p in adapter_parameters(back, "again").values())


def test_an_adapter_to_be_trained_on_is_loaded_trainable(folder):
    model = tiny("llama")
    load_adapter(model, "spam", folder, trainable=True)
    assert all(p.requires_grad for p in adapter_parameters(model, "spam").values())


def test_names_without_peft_s_prefix_are_read_too(folder):
    expected = tiny("llama")
    load_adapter(expected, "spam", folder)

    def strip(tensors):
        for key in list(tensors):
            tensors[key.removeprefix("base_model.model.")] = tensors.pop(key)

    edit_weights(folder, strip)
    model = tiny("llama")
    load_adapter(model, "spam", folder)
    assert torch.equal(logits(model, "spam"), logits(expected, "spam"))


def test_an_adapter_that_learned_nothing_is_not_saved(tmp_path):
    model = tiny("llama")
    attach(model, "spam", CONFIG, seed=0)
    with pytest.raises(BadInput, match="every B of the adapter is zero: nothing was learned"):
        save_adapter(model, "spam", tmp_path, {}, "a-base", CONFIG)


def test_the_fingerprint_is_of_the_base_alone_and_the_same_in_either_dtype():
    model = tiny("llama", dtype=torch.bfloat16)
    plain = fingerprint(model)
    assert fingerprint(tiny("llama", dtype=torch.bfloat16).float()) == plain
    trained(model, "spam")
    assert fingerprint(model) == plain
    assert fingerprint(tiny("llama", seed=1)) != plain
    changed = tiny("llama", dtype=torch.bfloat16)
    changed.model.norm.weight.data[3] += 1
    assert fingerprint(changed) != plain


# --- files: what is refused ---------------------------------------------------------------------------------------------


def test_an_adapter_of_another_base_is_refused_in_one_error_that_names_every_mismatch(tmp_path):
    model, config = tiny("gpt2"), LoraConfig(rank=4)
    trained(model, "spam", config)
    save_adapter(model, "spam", tmp_path, {}, "gpt2-tiny", config)
    error = refused(tmp_path, "does not fit this base model")
    assert "the model has no layer transformer.h.0.attn.c_attn" in error.what
    assert "the model has no layer transformer.h.0.mlp.c_proj" in error.what
    assert error.what.count("\n") == 9  # eight, then how many more
    assert " more" in error.what
    assert "gpt2-tiny" in error.fix


def test_every_layer_of_another_width_is_named(folder):
    wide = torch.zeros(4, 48)

    def widen(tensors):
        for layer in (0, 1):
            tensors[f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_A.weight"] = wide.clone()

    edit_weights(folder, widen)
    error = refused(folder, "does not fit")
    for layer in (0, 1):
        assert f"model.layers.{layer}.self_attn.q_proj: lora_A is 4×48, the layer 32×32" in error.what


def test_other_weights_of_the_same_shape_are_told_apart_by_their_fingerprint(folder):
    error = refused(folder, "it was trained on a-base, whose weights are not these", tiny("llama", seed=1))
    assert error.what.count("\n") == 1


def test_an_adapter_of_peft_has_no_fingerprint_and_is_taken(folder):
    (folder / "tunesmith.json").unlink()
    load_adapter(tiny("llama", seed=1), "spam", folder)


def set_all(part, value):
    def change(tensors):
        for key in tensors:
            if part in key:
                tensors[key].fill_(value)

    return change


BROKEN = {
    "NaN in one number": (lambda t: t[f"{PREFIX}.lora_B.weight"][3].fill_(float("nan")), "holds NaN or inf"),
    "inf in A": (set_all("lora_A", float("inf")), "holds NaN or inf"),
    "all of B zero": (set_all("lora_B", 0.0), "every B of this adapter is zero: it would change nothing"),
    "lora_B missing": (lambda t: t.pop(f"{PREFIX}.lora_B.weight"), "q_proj: lora_B is missing"),
    "lora_A missing": (lambda t: t.pop(f"{PREFIX}.lora_A.weight"), "q_proj: lora_A is missing"),
    "a layer missing": (
        lambda t: [t.pop(f"{PREFIX}.lora_{side}.weight") for side in "AB"],
        r"model\.layers\.0\.self_attn\.q_proj: promised by target_modules and missing",
    ),
    "nothing": (lambda t: t.clear(), "promised by target_modules and missing"),
    "a tensor more": (
        lambda t: t.update({"base_model.model.model.norm.weight": torch.ones(32)}),
        r"unexpected tensor base_model\.model\.model\.norm",
    ),
    "DoRA's magnitudes": (lambda t: t.update({f"{PREFIX}.lora_magnitude_vector": torch.ones(32)}), "unexpected tensor"),
    "an embedding's": (
        lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, VOCABULARY)}),
        "unexpected tensor .*lora_embedding_A",
    ),
    "the head's": (
        lambda t: t.update({f"base_model.model.lm_head.lora_{s}.weight": torch.ones(4, 4) for s in "AB"}),
        "lm_head is the output head, which tunesmith does not adapt",
    ),
    "A and B of other ranks": (lambda t: t.update({f"{PREFIX}.lora_A.weight": torch.ones(3, 32)}), "A and B have different ranks"),
    "another rank than its config": (
        lambda t: t.update({f"{PREFIX}.lora_A.weight": torch.ones(3, 32), f"{PREFIX}.lora_B.weight": torch.ones(32, 3)}),
        "the rank of lora_A is 3, adapter_config.json says 4",
    ),
    "rank zero": (
        lambda t: t.update({f"{PREFIX}.lora_A.weight": torch.ones(0, 32), f"{PREFIX}.lora_B.weight": torch.ones(32, 0)}),
        "the rank of lora_A is 0",
    ),
    "rank larger than the layer": (
        lambda t: t.update({f"{PREFIX}.lora_A.weight": torch.ones(4096, 32), f"{PREFIX}.lora_B.weight": torch.ones(32, 4096)}),
        "the rank of lora_A is 4096, the layer 32×32",
    ),
    "the same layer twice": (
        lambda t: t.update({f"{PREFIX}.lora_A.weight".removeprefix("base_model.model."): torch.ones(4, 32)}),
        "lora_A is there twice",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_weights_that_are_not_those_of_a_whole_lora_adapter_are_refused(folder, name):
    change, said = BROKEN[name]
    edit_weights(folder, change)
    refused(folder, said)


@pytest.mark.parametrize(
    "change",
    [
        {"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True},
        {"peft_type": "IA3"}, {"peft_type": None}, {"layer_replication": [[0, 2]]}, {"trainable_token_indices": [3]}, {"use_qalora": True},
        {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"init_lora_weights": "pissa_niter_4"},
        {"target_parameters": ["w"]}, {"kasa_config": {"beta": 1}},
        {"r": 0}, {"r": -4}, {"r": "4"}, {"r": None}, {"r": True}, {"lora_alpha": 0}, {"lora_alpha": "32"}, {"lora_alpha": None},
        {"lora_dropout": "high"}, {"lora_dropout": 1.5}, {"rank_pattern": {"q_proj": "4"}}, {"alpha_pattern": ["q_proj"]},
        {"alpha_pattern": {"(a+)+$": 3}}, {"rank_pattern": {r"model\.layers\.0\..*": 8}},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_asks_for_more_than_plain_lora_is_refused(folder, change):
    edit_config(folder, **change)
    [key] = change
    refused(folder, key)


def test_several_things_in_one_config_are_named_in_one_error(folder):
    edit_config(folder, use_dora=True, bias="all", r=None)
    error = refused(folder, "this adapter cannot be used")
    assert all(word in error.what for word in ("use_dora", "bias", "r should be"))


def test_alpha_as_nan_or_infinite_is_refused(folder):
    for value in ("NaN", "Infinity", "1e999"):
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text()) | {"lora_alpha": 77}
        path.write_text(json.dumps(config).replace("77", value))
        refused(folder, "lora_alpha should be a positive number")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe{", b'"r"'])
@pytest.mark.parametrize("name", ["adapter_config.json", "tunesmith.json"])
def test_a_broken_json_is_refused(folder, name, content):
    (folder / name).write_bytes(content)
    refused(folder, name.replace(".", r"\."))


def test_torn_weights_are_refused(folder):
    path = folder / "adapter_model.safetensors"
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(folder, "the adapter's weights cannot be read")


def test_a_folder_that_is_not_there_or_lacks_a_file_is_refused(folder, tmp_path):
    with pytest.raises(BadInput, match="no such adapter folder"):
        read_adapter(tmp_path / "nowhere")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refused(folder, r"no adapter_model\.safetensors \(adapter_model\.bin is a pickle and is never read\)")
    (folder / "adapter_config.json").unlink()
    refused(folder, r"no adapter_config\.json")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning")
@pytest.mark.parametrize(
    "variant", [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["q_proj", "lm_head"]}], ids=str
)
def test_what_peft_really_writes_for_its_variants_is_refused(variant, tmp_path):
    config = peft.LoraConfig(**({"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False} | variant))
    torch.manual_seed(0)
    peft.get_peft_model(tiny("llama"), config).save_pretrained(tmp_path)
    refused(tmp_path, "not supported|output head")


def test_a_second_adapter_of_the_same_name_is_refused_and_the_first_stays(folder):
    model = tiny("llama")
    load_adapter(model, "spam", folder)
    before = logits(model, "spam")
    with pytest.raises(BadInput, match='already an adapter "spam"') as error:
        load_adapter(model, "spam", folder)
    assert "NAME=PATH" in error.value.fix
    assert torch.equal(logits(model, "spam"), before)
