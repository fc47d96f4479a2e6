"""What benchmarks/gpu.py counts and compares; `--tiny` runs the rest of it."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu


def row(side, seconds, losses, grad_norms, workload="h100-8b-lora-bf16"):
    return {"workload": workload, "opponent": side, "seconds": seconds, "losses": losses, "grad_norms": grad_norms}


def test_an_8b_llama_has_so_many_weights_and_a_row_takes_so_many_operations():
    assert gpu.LLAMA_8B.base_weights == 6_979_321_856
    head = 128_256 * 4096
    products = 4 * 4 * 4096 * (6_979_321_856 + head)
    attention = 6 * 4 * 32 * 4096 * 4096**2  # 2 of 4·T²·D forward and 4 back, halved by causality
    assert gpu.LLAMA_8B.flops == products + attention


def test_a_side_is_compared_in_time_and_in_every_step():
    first = row("ours", 1.0, [11.0, 10.0], [2.0, 1.0])
    found = gpu.compared(first, row("hf-peft", 1.5, [11.0, 10.01], [2.0, 1.02]))
    assert (found["ratio"], found["agrees"]) == (1.5, True)
    assert found["worst_loss_difference"] == pytest.approx(0.001, rel=0.01)
    assert not gpu.compared(first, row("hf-peft", 1.5, [11.0, 10.01], [2.0, 1.5]))["agrees"]
    assert not gpu.compared(first, row("hf-peft", 1.5, [float("nan"), 10.0], [2.0, 1.0]))["agrees"]
    packed = gpu.compared(first, row("ours-packed", 1.1, [3.0, 3.0], [1.0, 1.0]))
    assert packed["ratio"] == 1.1
    assert "agrees" not in packed
    assert gpu.compared(first, {"opponent": "trl", "out_of_memory": True}) == {"opponent": "trl", "out_of_memory": True}


def test_what_was_measured_under_the_same_facts_is_not_measured_again(tmp_path):
    now = {"commit": "c2", "machine": {"device": "H100"}}
    old = row("trl", 2.0, [], []) | {"measured_with": {"commit": "c1"}}
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps({**now, "rows": [row("ours", 1.0, [], []), old]}))
    assert list(gpu.rows_there(path, now)) == [("h100-8b-lora-bf16", "ours")]
    assert gpu.rows_there(path, now | {"commit": "c3"}) == {}
    assert gpu.rows_there(tmp_path / "none.json", now) == {}


def test_every_side_sees_the_same_tokens_and_other_ones_at_each_step():
    shape = gpu.TINY
    assert gpu.ids_of_step(shape, 3).shape == (shape.rows, shape.tokens)
    assert (gpu.ids_of_step(shape, 3) == gpu.ids_of_step(shape, 3)).all()
    assert (gpu.ids_of_step(shape, 3) != gpu.ids_of_step(shape, 4)).any()
