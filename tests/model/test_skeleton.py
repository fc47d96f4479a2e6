"""A model described by one process and built by another is the same model, module for module and tensor for tensor, without memory."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import byte_level_tokenizer
from tests.model.families import FAMILIES, tiny
from tests.model.test_experts import mixture

from tunesmith.config import LoraConfig
from tunesmith.errors import MachineFailed
from tunesmith.model import skeleton
from tunesmith.model.adapters import adapter_parameters, attach, switch_of
from tunesmith.model.blocks import fuse
from tunesmith.model.load import load_model
from tunesmith.quant.scheme import Scheme, find_scheme


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    return folder


def described(path: Path, scheme: Scheme | None = None, **lora: Any) -> tuple[Any, dict[str, Any]]:
    model = load_model(str(path), "float32", scheme=scheme).model
    if lora:
        attach(model, "spam", LoraConfig(**lora), seed=0)
        switch_of(model).active = "spam"
        fuse(model)
    return model, json.loads(json.dumps(skeleton.describe(model, path)))


def assert_same_but_for_memory(built: Any, model: Any) -> None:
    assert [(name, type(m)) for name, m in built.named_modules()] == [(name, type(m)) for name, m in model.named_modules()]
    for kind in ("named_parameters", "named_buffers"):
        mine, theirs = (list(getattr(m, kind)(remove_duplicate=False)) for m in (built, model))
        assert [(n, t.shape, t.dtype, t.requires_grad) for n, t in mine] == [(n, t.shape, t.dtype, t.requires_grad) for n, t in theirs]
        assert all(t.is_meta for _, t in mine)
    assert len(list(built.parameters())) == len(list(model.parameters()))  # tied weights are tied


@pytest.mark.parametrize("quantised", [False, True], ids=["dense", "quantised"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_built_as_it_was_described(family: str, quantised: bool, tmp_path: Path):
    scheme = find_scheme("nf4", 32, double=True, embeddings=family in ("llama", "qwen2", "gemma3")) if quantised else None
    model, words = described(saved(tiny(family), tmp_path), scheme, rank=4)
    built = skeleton.build(tmp_path, words)
    assert_same_but_for_memory(built, model)
    assert adapter_parameters(built, "spam").keys() == adapter_parameters(model, "spam").keys()
    assert switch_of(built).active == "spam"


@pytest.mark.parametrize("scheme", [None, find_scheme("nf4", 32)], ids=["dense", "quantised"])
def test_so_is_a_mixture_of_experts_with_adapters_on_them(scheme: Scheme | None, tmp_path: Path):
    model, words = described(saved(mixture("qwen3_moe"), tmp_path), scheme, rank=4, targets=["q_proj", "experts.down_proj"])
    assert_same_but_for_memory(skeleton.build(tmp_path, words), model)


def test_a_head_that_the_files_hold_apart_from_tied_embeddings_stays_apart(tmp_path: Path):
    model = tiny("qwen2")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 1)
    model.config.tie_word_embeddings = False
    loaded, words = described(saved(model, tmp_path))
    assert_same_but_for_memory(skeleton.build(tmp_path, words), loaded)


def test_another_model_in_the_folder_is_noticed(tmp_path: Path):
    _, words = described(saved(tiny("llama"), tmp_path))
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(MachineFailed, match=r"config\.json is another one"):
        skeleton.build(tmp_path, words)
