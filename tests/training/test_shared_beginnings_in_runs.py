"""training.share_prefixes in real runs: the same steps with fewer tokens, said aloud; refused where it cannot be."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.conftest import byte_level_tokenizer
from tests.training.test_loop import losses, make_run, weights

from tunesmith.config import Run
from tunesmith.data.packing import computed_tokens
from tunesmith.errors import BadInput
from tunesmith.planning import shapes
from tunesmith.planning.plan import _rows
from tunesmith.training.loop import train
from tunesmith.training.ready import prepare

LORA = {"method": "lora", "lora": {"rank": 4}}


def packed(model: Path, folder: Path, output: str = "run", share: Any = "auto", **changes: Any) -> Run:
    training = {"packing": True, "share_prefixes": share, "micro_batch_tokens": 120, **changes.pop("training", {})}
    return make_run(model, folder, output, **(LORA | changes), training=training)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_run_is_the_same_with_fewer_tokens(tiny_model: Path, tmp_path: Path, method: str):
    changes = {
        "lora": LORA,
        "qlora": {**LORA, "method": "qlora", "quantization": {"block_size": 32}},
        "full": {"method": "full", "lora": {}},
    }[method]
    rate = 1e-3 if method == "full" else 1e-2
    plain, shared = (
        train(packed(tiny_model, tmp_path, str(share), share, **changes, training={"steps": 6, "learning_rate": rate})) for share in (False, "auto")
    )  # fmt: skip
    assert plain.status()["shared_beginnings"] == 0
    assert shared.status()["shared_beginnings"] > 0.15
    for a, b in zip(losses(plain), losses(shared), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(shared)[name], tensor, rtol=0, atol=1e-5)


def test_steps_are_cut_into_rows_whose_computed_tokens_fit_the_budget(tiny_model: Path, tmp_path: Path):
    ready = prepare(packed(tiny_model, tmp_path), "x")
    assert ready.step_rows.sharing
    groups = [group for step in range(5) for group in ready.step_rows.groups(step)]
    assert all(computed_tokens(group) <= 120 for group in groups)
    assert any(sum(map(len, group)) > 120 for group in groups)  # more examples than would fit otherwise
    assert any("is computed once, which saves" in line for line in ready.said)


def test_dropout_forbids_it_and_that_is_said(tiny_model: Path, tmp_path: Path):
    ready = prepare(packed(tiny_model, tmp_path, lora={"rank": 4, "dropout": 0.1}), "x")
    assert not ready.step_rows.sharing
    assert any("would be saved by shared beginnings, which dropout forbids (lora.dropout: 0)" in line for line in ready.said)
    with pytest.raises(BadInput, match="share the noise of dropout") as caught:
        packed(tiny_model, tmp_path, share=True, lora={"rank": 4, "dropout": 0.1})
    assert "lora.dropout: 0" in caught.value.fix


def test_without_packed_rows_nothing_is_shared(tiny_model: Path, tmp_path: Path):
    padded = {"packing": False}
    assert not prepare(make_run(tiny_model, tmp_path, **LORA, training=padded), "x").step_rows.sharing
    with pytest.raises(BadInput, match="rows are not packed"):
        make_run(tiny_model, tmp_path, **LORA, training={**padded, "share_prefixes": True})
    with pytest.raises(BadInput, match="packed rows are cut by tokens"):
        make_run(tiny_model, tmp_path, **LORA, training={"micro_batch_size": 2, "share_prefixes": True})


def test_who_asks_for_shared_beginnings_has_packed_rows_too(tiny_model: Path, tmp_path: Path):
    rows = prepare(make_run(tiny_model, tmp_path, **LORA, training={"share_prefixes": True}), "x").step_rows
    assert rows.packing and rows.sharing


def test_a_model_that_cannot_is_left_to_plain_packing_or_refused(tmp_path: Path):
    tokenizer = byte_level_tokenizer()
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=128, **ends)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    ready = prepare(packed(tmp_path / "gpt2", tmp_path), "x")
    assert not ready.step_rows.sharing
    assert any("beginnings of examples are not shared: it has dropout of its own" in line for line in ready.said)
    with pytest.raises(BadInput, match="cannot share their beginnings") as caught:
        prepare(packed(tmp_path / "gpt2", tmp_path, share=True), "x")
    assert caught.value.where == "training.share_prefixes: true, a model of type gpt2"


def test_the_plan_counts_the_rows_that_are_computed(tiny_model: Path, tmp_path: Path):
    known = {share: _rows(packed(tiny_model, tmp_path, share=share), quickly=False) for share in (False, "auto")}
    plain, shared = (sum(size.computed for size in one.batches.sizes) for one in known.values() if one is not None)
    assert shared < 0.9 * plain
    run = packed(tiny_model, tmp_path)
    ready = prepare(run, "x")
    for group in ready.step_rows.groups(0):
        size = shapes._size(group, True, False, 96)
        batch, rehearsed = ready.step_rows.collated(group), shapes.example_of(size)
        assert rehearsed.ids_BT.shape == batch.ids_BT.shape
        assert rehearsed.n_trained == batch.n_trained
        assert rehearsed.parent_S is not None and batch.parent_S is not None
        assert rehearsed.parent_S.tolist() == batch.parent_S.tolist()
        assert rehearsed.document_BT is not None and batch.document_BT is not None
        assert rehearsed.document_BT.tolist() == batch.document_BT.tolist()
        lengths, parents = batch.document_BT[0].bincount(), batch.parent_S
        before = torch.where(parents < 0, 0, lengths[parents.clamp(min=0)])
        is_padding = torch.arange(len(lengths)) >= len(group) + len(set(parents.tolist()) - {-1})
        assert size.pairs == int((lengths * (lengths + 2 * before))[~is_padding].sum())
