"""Training through four bits is LoRA on the weights that the codes stand for, and nothing else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import save_tiny_model

import tunesmith
from tunesmith.api import evaluate
from tunesmith.config import validate
from tunesmith.errors import BadInput
from tunesmith.exports.quantized import write_quantized
from tunesmith.model.adapters import linear_layers
from tunesmith.model.load import load_model, load_tokenizer
from tunesmith.model.quant_files import save_quantized
from tunesmith.quant.scheme import find_scheme
from tunesmith.quant.tensor import dequantize
from tunesmith.runs import RunFolder
from tunesmith.training.loop import train


def rows_file(folder: Path) -> str:
    rows = [{"prompt": f"spam or ham? call {i}", "completion": "spam" if i % 3 else "ham"} for i in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


def run_of(folder: Path, name: str, model: Path, method: str, **more: Any) -> RunFolder:
    raw = {
        "model": str(model), "output": str(folder / name), "method": method, "data": {"train": rows_file(folder)},
        "training": {"epochs": 3, "batch_size": 4, "dtype": "float32", "learning_rate": 5e-3, "max_length": 96},
        **({"lora": {"rank": 4}} if method != "full" else {}), **more,
    }  # fmt: skip
    return train(validate(raw, "test")[0])


def losses(folder: RunFolder) -> torch.Tensor:
    return torch.tensor([row["loss"] for row in folder.metrics() if "loss" in row])


def dequantised_copy(tiny_model: Path, folder: Path, scheme: str, embeddings: bool) -> Path:
    """The dense model whose weights are exactly what the codes stand for."""
    quantised = load_model(str(tiny_model), "float32", scheme=find_scheme(scheme, 32, embeddings=embeddings))
    dense = load_model(str(tiny_model), "float32").model
    for name, layer in linear_layers(quantised.model).items():
        dense.get_submodule(name).weight.data = dequantize(layer.q)
    if embeddings:
        dense.get_input_embeddings().weight.data = dequantize(quantised.model.get_input_embeddings().q)  # tied: the head's too
    dense.save_pretrained(folder)
    quantised.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("embeddings", [False, True], ids=["linear layers", "embeddings too"])
@pytest.mark.parametrize("scheme", ["nf4", "int4", "affine3"])
def test_the_loss_curve_is_that_of_lora_on_the_dequantised_weights(tiny_model: Path, tmp_path: Path, scheme: str, embeddings: bool):
    qlora = run_of(tmp_path, "qlora", tiny_model, "qlora", quantization={"scheme": scheme, "block_size": 32, "embeddings": embeddings})
    lora = run_of(tmp_path, "lora", dequantised_copy(tiny_model, tmp_path / "dense", scheme, embeddings), "lora")
    assert losses(qlora)[-1] < 0.7 * losses(qlora)[0]
    torch.testing.assert_close(losses(qlora), losses(lora), rtol=1e-5, atol=1e-5)


def test_a_run_is_opened_on_the_base_it_was_trained_on(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = run_of(tmp_path, "q", tiny_model, "qlora", quantization={"block_size": 32})
    opened = tunesmith.load(folder.path)
    assert str(opened.loaded.scheme) == "nf4, blocks of 32, scales in 8 bits"
    capsys.readouterr()
    tunesmith.load(str(tiny_model), adapters={"q": folder.path})
    assert "trained on a base in nf4, blocks of 32" in capsys.readouterr().err, "another storage is allowed, and never silent"


def test_a_run_with_embeddings_in_few_bits_is_opened_on_the_same(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = run_of(tmp_path, "q", tiny_model, "qlora", quantization={"block_size": 32, "embeddings": True})
    words = "nf4, blocks of 32, scales in 8 bits, embeddings too"
    assert json.loads((folder.adapter / "tunesmith.json").read_text())["base_scheme"] == words
    opened = tunesmith.load(folder.path)
    assert str(opened.loaded.scheme) == words
    assert len(opened.generate(["spam or ham? call 1"], max_new_tokens=4)) == 1
    capsys.readouterr()
    tunesmith.load(tiny_model, adapters={"q": folder.path})
    assert f"trained on a base in {words}, and this one is in 16 bits" in capsys.readouterr().err
    with pytest.raises(BadInput, match=r"method lora does not read quantization\.embeddings"):
        run_of(tmp_path, "l", tiny_model, "lora", quantization={"embeddings": True})


def test_a_config_that_an_older_version_spelled_out_still_opens(tiny_model: Path):
    raw = {"model": str(tiny_model), "method": "lora", "data": {"train": "rows.jsonl"}}
    older = {"scheme": "nf4", "block_size": None, "double": None, "clip": None}
    assert validate({**raw, "quantization": older}, "test")[0].method == "lora"
    with pytest.raises(BadInput, match="does not read quantization"):
        validate({**raw, "quantization": {"scheme": "nf4"}}, "test")


@pytest.mark.parametrize("case", ["other weights", "other bits", "other weights beside the old facts"])
def test_a_run_is_not_measured_on_a_base_that_took_the_place_of_its_own(tiny_model: Path, tmp_path: Path, case: str):
    """Its figures would be said to be the run's."""
    base, other = tmp_path / "base", save_tiny_model(tmp_path / "other", seed=1)
    write_quantized(str(tiny_model), find_scheme("nf4", 32), base, "float32")
    folder = run_of(tmp_path, "q", base, "qlora")
    tunesmith.load(folder.path)
    write_quantized(str(tiny_model if case == "other bits" else other), find_scheme("int8" if case == "other bits" else "nf4", 32),
                    tmp_path / "new", "float32")  # fmt: skip
    if case == "other weights beside the old facts":
        shutil.copy(tmp_path / "new" / "model.safetensors", base)
    else:
        shutil.rmtree(base)
        (tmp_path / "new").rename(base)
    what = {
        "other bits": "in nf4, blocks of 32.* this one is in int8", "other weights": "whose weights are not these",
        "other weights beside the old facts": "was changed since it was written",
    }[case]  # fmt: skip
    for use in (lambda: tunesmith.load(folder.path), lambda: evaluate(folder, data=str(tmp_path / "rows.jsonl"))):
        with pytest.raises(BadInput, match=what) as error:
            use()
        assert str(base) in error.value.where
        if case != "other weights beside the old facts":
            assert str(folder.adapter) in error.value.where and "base" in error.value.fix


def test_a_base_that_was_saved_quantised_trains_and_keeps_its_own_codes(tiny_model: Path, tmp_path: Path):
    quantised = load_model(str(tiny_model), "float32", scheme=find_scheme("nf4", 32))
    save_quantized(quantised.model, tmp_path / "stored", torch.float32)
    load_tokenizer(tiny_model).save_pretrained(tmp_path / "stored")
    stored = run_of(tmp_path, "stored-run", tmp_path / "stored", "qlora")
    streamed = run_of(tmp_path, "streamed-run", tiny_model, "qlora", quantization={"block_size": 32})
    torch.testing.assert_close(losses(stored), losses(streamed), rtol=1e-6, atol=1e-6)
    with pytest.raises(BadInput, match="codes cannot be trained"):
        run_of(tmp_path, "full", tmp_path / "stored", "full")
    with_embeddings = tmp_path / "embeddings"
    write_quantized(str(tiny_model), find_scheme("nf4", 32, embeddings=True), with_embeddings, "float32")
    with pytest.raises(BadInput, match="embeddings too\\), and codes cannot be trained"):
        run_of(tmp_path, "full-too", with_embeddings, "full")
    with pytest.raises(BadInput, match="quantised already"):
        run_of(tmp_path, "again", tmp_path / "stored", "qlora", quantization={"scheme": "fp4"})
