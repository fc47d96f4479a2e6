"""Two runs beside each other: where their losses part, how far their weights are, and on which rows they may be compared."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tunesmith.config import validate
from tunesmith.diff import Difference, Losses, Weights, compare, data_differences, losses, weights
from tunesmith.errors import BadInput
from tunesmith.runs import RunFolder
from tunesmith.training.memory import TRAINING


def run_of(path: Path, *tensors: torch.Tensor, **settings: object) -> RunFolder:
    """A finished LoRA run with these tensors as its adapter."""
    folder = RunFolder.create(validate({"model": "acorn", "output": str(path), "data": {"train": "x"}, **settings}, "test")[0])
    folder.set_status(state="done")
    if tensors:
        folder.adapter.mkdir()
        save_file({f"layer{n}": tensor for n, tensor in enumerate(tensors)}, folder.adapter / "adapter_model.safetensors")
    return folder


def logged(*values: float, validation: float | None = None) -> list[dict[str, float]]:
    rows = [{"step": n, "loss": value} for n, value in enumerate(values, 1)]
    return rows if validation is None else [*rows, {"step": len(values), "validation_loss": validation}]


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (logged(3.0, 2.0), logged(3.0, 2.0), "bit-equal at all 2 steps"),
        (logged(3.0, 2.0), logged(3.0, 2.0000000000000004), "bit-equal up to step 1; at step 2 2 and 2"),
        (logged(3.0, 2.0), logged(3.5, 2.0), "different from the beginning: at step 1 3 and 3.5"),
        (logged(3.0, 2.0), logged(3.0), "bit-equal at all 1 step that both took; 2 steps in a, 1 in b"),
        (logged(3.0, validation=1.0), logged(3.0, validation=1.5), "bit-equal up to step 1; at step 1 the validation loss is 1 and 1.5"),
        (logged(), logged(3.0), "no step is logged in both; 0 steps in a, 1 in b"),
    ],
)
def test_where_losses_part_is_told_to_the_last_bit(a, b, words):
    assert losses(a, b).words == words


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (
            logged(5.0, 4.0, 3.0, 2.0)[2:],
            logged(5.0, 4.0, 3.0, 2.0),
            "bit-equal at all 2 steps that both logged; the log of a lacks steps 1 to 2",
        ),
        (
            [*logged(3.0, 2.0, 1.0, 0.5)[::2]],
            logged(3.0, 2.0, 1.5, 0.5),
            "bit-equal at the steps that both logged up to step 1; at step 3 1 and 1.5; 3 steps in a, 4 in b; the log of a lacks step 2",
        ),
        (
            logged(3.0, 2.0)[1:],
            [row for row in logged(3.0, 2.0, 1.0) if row["step"] != 2],
            "no step is logged in both; 2 steps in a, 3 in b; the log of a lacks step 1; the log of b lacks step 2",
        ),
    ],
)
def test_steps_that_a_log_lacks_are_not_said_to_be_equal(a, b, words):
    assert losses(a, b).words == words


def test_a_file_that_was_moved_is_the_same_and_one_that_was_changed_is_not():
    a = {"/old/train.jsonl": {"rows": 8, "sha256": "aa"}, "/old/test.jsonl": {"rows": 2, "sha256": "bb"}}
    moved = {path.replace("old", "new"): facts for path, facts in a.items()}
    assert data_differences(a, moved) == {}
    changed = moved | {"/new/test.jsonl": {"rows": 1_000, "sha256": "cc"}}
    assert data_differences(a, changed) == {"/old/test.jsonl": ("2 rows, sha256 bb", "1,000 rows, sha256 cc")}
    assert data_differences(a, {"/old/train.jsonl": a["/old/train.jsonl"]}) == {"/old/test.jsonl": ("2 rows, sha256 bb", None)}


def test_the_distance_of_weights_is_relative_to_the_first_runs(tmp_path: Path):
    a = run_of(tmp_path / "a", torch.tensor([3.0, 4.0]), torch.zeros(2))
    b = run_of(tmp_path / "b", torch.tensor([3.0, 4.5]), torch.zeros(2))
    found = weights(a, b)
    assert (found.equal, found.n_tensors, found.n_different, found.only_in_one) == (False, 2, 1, 0)
    assert found.relative == pytest.approx(0.5 / 5)
    assert found.words == "weights differ by 10.00 % (‖b − a‖ / ‖a‖)"
    assert weights(a, a).words == "same weights, bit for bit"


def test_a_zero_of_another_sign_is_another_weight_and_not_a_number_is_itself(tmp_path: Path):
    a = run_of(tmp_path / "a", torch.tensor([0.0, float("nan")]))
    b = run_of(tmp_path / "b", torch.tensor([-0.0, float("nan")]))
    assert weights(a, a).equal
    assert not weights(a, b).equal
    assert json.dumps(compare(a, b).as_json(), allow_nan=False)


def test_tensors_of_other_shapes_and_runs_without_weights_are_told(tmp_path: Path):
    a, b = run_of(tmp_path / "a", torch.ones(2), torch.ones(3)), run_of(tmp_path / "b", torch.ones(2), torch.ones(4))
    assert weights(a, b).words == "weights differ (1 tensor in one of them only, or of another shape)"
    empty = run_of(tmp_path / "empty")
    empty.set_status(state="interrupted")
    assert weights(a, empty).words == "b has no weights yet (interrupted)"
    (b.adapter / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(BadInput, match="the weights cannot be read"):
        weights(a, b)


def rows(name: str, right: list[int], sources: str = "x.jsonl") -> list[dict[str, object]]:
    return [
        {"source": f"{sources}:{n}", "task": "", "references": ["yes"], "answers": {name: "yes"},
         "values": {name: {"accuracy": float(is_right)}, "base": {"accuracy": 0.0}}, "weights": {}}
        for n, is_right in enumerate(right, 1)
    ]  # fmt: skip


def test_answers_to_the_same_rows_are_paired_and_those_to_others_are_not(tmp_path: Path):
    a, b, elsewhere = (run_of(tmp_path / name, torch.ones(1)) for name in ("a", "b", "elsewhere"))
    right = {a: [1] * 10 + [0] * 30, b: [1] * 30 + [0] * 10, elsewhere: [1] * 20 + [0] * 20}
    for folder, values in right.items():
        share = {"accuracy": sum(values) / len(values)}
        of_rows = rows(folder.name, values, "other.jsonl" if folder is elsewhere else "x.jsonl")
        folder.save_evaluation({"models": {folder.name: share}}, [], of_rows)
    paired = compare(a, b).results["accuracy"]
    assert (paired.a, paired.b) == (0.25, 0.75)
    assert paired.interval is not None
    assert 0.3 < paired.interval["low"] < 0.5 < paired.interval["high"] < 0.7
    assert (paired.interval["gained"], paired.interval["lost"]) == (20, 0)
    assert compare(a, elsewhere).results["accuracy"].interval is None


def verdict(**found: object) -> str:
    nothing = {"config": {}, "data": {}, "computed": {}, "not_recorded": {}, "results": {}, "losses": Losses((1, 1), 1, None)}
    same = {"runs": ("a", "b"), "weights": Weights(None, equal=True, n_tensors=1)}
    return Difference(**{**nothing, **same, **found}).verdict  # type: ignore[arg-type]


def test_the_verdict_is_one_line_for_every_case():
    differ = Weights(None, relative=0.003, n_tensors=1, n_different=1)
    assert verdict() == "same weights, bit for bit; configs, data, base and environment equal"
    assert verdict(weights=differ, config={"training.seed": (0, 1)}) == (
        "weights differ by 0.30 % (‖b − a‖ / ‖a‖): training.seed differs; data, base and environment equal"
    )
    assert verdict(weights=differ, data={"/d/sms.tsv": ("8 rows", "9 rows")}) == (
        "weights differ by 0.30 % (‖b − a‖ / ‖a‖): data (sms.tsv) differ; configs, base and environment equal"
    )
    assert verdict(computed={"machine.threads": (1, 2), "base.fingerprint": ("a", "b")}) == (
        "same weights, bit for bit: base and threads differ; configs and data equal"
    )
    assert verdict(other_output=True) == "same weights, bit for bit; configs (but for output), data, base and environment equal"
    assert "report it" in verdict(weights=differ)
    unknown = verdict(weights=differ, not_recorded={"a": ["base", "environment"], "b": []})
    assert unknown.endswith("although configs and data equal: what is not recorded decides")
    assert all("\n" not in line for line in (verdict(), unknown))


def test_a_run_differs_from_itself_in_nothing(tmp_path: Path):
    a = run_of(tmp_path / "a", torch.ones(2))
    found = compare(a, a)
    assert (found.config, found.data, found.computed) == ({}, {}, {})
    assert found.weights.equal and not found.other_output
    assert compare(a, run_of(tmp_path / "b", torch.ones(2))).other_output


def test_micro_batches_that_were_halved_for_want_of_memory_explain_other_sums(tmp_path: Path):
    a, b = run_of(tmp_path / "a", torch.ones(2)), run_of(tmp_path / "b", torch.ones(2) + 1e-6)
    b.set_status(micro_batches={TRAINING: [{"since": 0, "tokens": 8192, "size": None}, {"since": 7, "tokens": 256, "size": None}]})
    found = compare(a, b)
    assert found.computed["environment.micro-batches as they fitted into memory"][0] == "as configured"
    assert ": micro-batches as they fitted into memory differs" in found.verdict
