"""Training through four bits is LoRA on the weights that the codes stand for, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tunesmith
from tunesmith.config import validate
from tunesmith.errors import BadInput
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


def dequantised_copy(tiny_model: Path, folder: Path, scheme: str) -> Path:
    """The dense model whose weights are exactly what the codes stand for."""
    quantised = load_model(str(tiny_model), "float32", scheme=find_scheme(scheme, 32))
    dense = load_model(str(tiny_model), "float32").model
    for name, layer in linear_layers(quantised.model).items():
        dense.get_submodule(name).weight.data = dequantize(layer.q)
    dense.save_pretrained(folder)
    quantised.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("scheme", ["nf4", "int4", "affine3"])
def test_the_loss_curve_is_that_of_lora_on_the_dequantised_weights(tiny_model: Path, tmp_path: Path, scheme: str):
    qlora = run_of(tmp_path, "qlora", tiny_model, "qlora", quantization={"scheme": scheme, "block_size": 32})
    lora = run_of(tmp_path, "lora", dequantised_copy(tiny_model, tmp_path / "dense", scheme), "lora")
    assert losses(qlora)[-1] < 0.7 * losses(qlora)[0]
    torch.testing.assert_close(losses(qlora), losses(lora), rtol=1e-5, atol=1e-5)


def test_a_run_is_opened_on_the_base_it_was_trained_on(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = run_of(tmp_path, "q", tiny_model, "qlora", quantization={"block_size": 32})
    opened = tunesmith.load(folder.path)
    assert str(opened.loaded.scheme) == "nf4, blocks of 32, scales in 8 bits"
    capsys.readouterr()
    tunesmith.load(str(tiny_model), adapters={"q": folder.path})
    assert "trained on a base in nf4, blocks of 32" in capsys.readouterr().err, "another storage is allowed, and never silent"


def test_a_base_that_was_saved_quantised_trains_and_keeps_its_own_codes(tiny_model: Path, tmp_path: Path):
    quantised = load_model(str(tiny_model), "float32", scheme=find_scheme("nf4", 32))
    save_quantized(quantised.model, tmp_path / "stored", torch.float32)
    load_tokenizer(tiny_model).save_pretrained(tmp_path / "stored")
    stored = run_of(tmp_path, "stored-run", tmp_path / "stored", "qlora")
    streamed = run_of(tmp_path, "streamed-run", tiny_model, "qlora", quantization={"block_size": 32})
    torch.testing.assert_close(losses(stored), losses(streamed), rtol=1e-6, atol=1e-6)
    with pytest.raises(BadInput, match="codes cannot be trained"):
        run_of(tmp_path, "full", tmp_path / "stored", "full")
    with pytest.raises(BadInput, match="quantised already"):
        run_of(tmp_path, "again", tmp_path / "stored", "qlora", quantization={"scheme": "fp4"})
