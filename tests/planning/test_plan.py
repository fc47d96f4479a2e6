"""What is said before a run: of each method, of devices, from a config alone."""

import json
import math
import time

import pytest

import tunesmith
from tunesmith.config import validate
from tunesmith.errors import BadInput
from tunesmith.model.load import ACORN
from tunesmith.planning import plan as planning
from tunesmith.planning.speed import Speed, seconds

LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "tie_word_embeddings": False,
    "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama_70b(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama-70b")
    (folder / "config.json").write_text(json.dumps(LLAMA_70B), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("job") / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": "a b c " * (1 + n % 7), "completion": "d e"}) + "\n" for n in range(40)), encoding="utf-8"
    )
    return path


def config(rows, **more):
    return {
        "model": "acorn",
        "data": {"train": str(rows)},
        "training": {"batch_size": 8, "epochs": 2},
        "output": str(rows.parent / "run"),
        **more,
    }


@pytest.fixture(scope="module")
def found(rows):
    return tunesmith.plan(config(rows), devices="2,4,2x4,8", price_per_hour=3.6)


def test_can_70_billion_parameters_be_trained_on_two_cards_of_80_gigabytes(llama_70b):
    sets = ["training.max_length=512", "training.batch_size=1"]
    found = tunesmith.plan(llama_70b, devices="24,80,2x80", sets=sets, tflops=400, price_per_hour=10)
    assert found.methods["qlora"].memory.kinds["weights"] / 1e9 == pytest.approx(
        39.5, abs=0.2
    )  # 68.5 billion x 4.127 bits, embeddings in 16
    assert found.methods["full"].n_trained == 70_553_706_496
    two_cards = found.fits("2x80")
    assert two_cards["qlora"].rows >= 1  # yes, in 4 bits
    assert two_cards["full"].rows == 0
    assert found.fits("24")["qlora"].rows == 0
    assert found.fits("80")["qlora"].rows < two_cards["qlora"].rows
    assert found.fits("80")["lora"].rows == 0
    # 4 x body + 6 x adapters + 4 x head, and attention
    assert found.methods["lora"].flops == pytest.approx(512 * (4 * 69.5e9 + 6 * 0.207e9), rel=0.03)
    assert found.methods["lora"].step_seconds == pytest.approx(found.methods["lora"].flops / 400e12, rel=0.01)
    assert "rows are not looked at" in found.said[0]


def test_the_real_rows_are_counted_where_they_are_there(found):
    assert found.n_examples == 40
    assert found.n_steps == 10
    assert 40 * 5 < found.epoch_tokens < 40 * 60
    assert found.longest < 60
    lora = found.methods["lora"]
    assert lora.seconds == pytest.approx(10 * lora.step_seconds)


def test_methods_stand_side_by_side_and_cost_what_they_should(found):
    full, lora, qlora = (found.methods[name] for name in ("full", "lora", "qlora"))
    assert full.memory.peak > lora.memory.peak > qlora.memory.peak
    assert full.memory.kinds["optimizer"] == 8 * full.n_trained
    assert full.checkpoint_bytes == 12 * full.n_trained
    assert lora.memory.kinds["adapters"] == 4 * lora.n_trained
    assert found.cost("lora") == pytest.approx(lora.seconds / 1000)
    assert json.loads(json.dumps(found.as_json()))["methods"]["lora"]["memory"]["peak"] == int(lora.memory.peak)


def test_more_devices_and_more_memory_never_fit_less(found):
    most = {name: fit["full"].rows for name, fit in found.devices.items()}
    assert 10 < most["2 GB"] < most["4 GB"] <= most["2 x 4 GB"] < most["8 GB"]
    assert most["8 GB"] < found.fits("8")["lora"].rows <= found.fits("8")["qlora"].rows


def test_a_run_of_which_no_rows_are_there_is_planned_as_long_as_they_may_be(tmp_path):
    found = tunesmith.plan(config(tmp_path / "nowhere.jsonl", training={"max_length": 64, "steps": 5}), devices="none")
    assert found.longest == 64
    assert found.n_examples is None
    assert "nowhere.jsonl" in found.said[0]
    assert found.methods["lora"].seconds == pytest.approx(5 * found.methods["lora"].step_seconds)


@pytest.mark.parametrize(
    ("arguments", "where", "fix"),
    [
        ({"devices": "A100"}, "--devices A100", "2x80"),
        ({"price_per_hour": -1.0}, "--price-per-hour -1", "price of an hour"),
        ({"tflops": 0.0}, "--tflops 0", "operations a second"),
        ({"tflops": math.inf}, "--tflops inf", "operations a second"),
        ({"price_per_hour": math.nan}, "--price-per-hour nan", "price of an hour"),
    ],
)
def test_what_makes_no_sense_is_refused(rows, arguments, where, fix):
    with pytest.raises(BadInput) as refused:
        tunesmith.plan(config(rows), **arguments)
    assert refused.value.where == where
    assert fix in refused.value.fix
    assert "devices" in arguments or "should be a finite number above zero" in refused.value.what


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"hidden_size": -256}, "hidden_size"),
        ({"vocab_size": 10**15}, "vocab_size"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"intermediate_size": -3}, "intermediate_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": -1}, "head_dim"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"rope_parameters": {"rope_type": "evil", "rope_theta": 1e4}}, "rope_type"),
    ],
)
def test_a_config_that_no_model_has_is_refused_before_anything_is_built(changes, key, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads((ACORN / "config.json").read_text()) | changes))
    begun = time.monotonic()
    for model in (tmp_path, path):
        with pytest.raises(BadInput) as refused:
            tunesmith.plan({"model": str(model), "data": {"train": "none.jsonl"}}, tflops=10.0)
        assert key in refused.value.what
        assert refused.value.where.endswith(f": {key}")
        assert refused.value.fix
    assert time.monotonic() - begun < 5


def test_a_plan_needs_a_model(rows, tmp_path):
    with pytest.raises(BadInput) as refused:
        tunesmith.plan({"data": {"train": str(rows)}})
    assert "model" in refused.value.what
    with pytest.raises(BadInput) as refused:
        tunesmith.plan(tmp_path)
    assert "config.json" in refused.value.what
    with pytest.raises(BadInput):
        tunesmith.plan(tmp_path / "no.json")


def test_before_a_run_a_line_says_what_it_takes(rows):
    [line] = planning.before(validate(config(rows), "the test")[0])
    assert line.startswith("plan: about ")
    assert "of memory at its peak" in line
    assert "of training" in line
    assert "of disk" in line


def test_a_run_far_beyond_the_memory_is_refused_before_its_model_is_loaded(llama_70b, rows):
    run = validate(config(rows, model=str(llama_70b), method="full"), "the test")[0]
    if planning.memory_bytes(planning.pick_device()) > 400 * 2**30:
        pytest.skip("this machine might do it")
    with pytest.raises(BadInput) as refused:
        planning.before(run)
    assert "GiB that this machine has" in refused.value.what
    assert "method: qlora" in refused.value.fix
    assert "training.gradient_checkpointing: true" in refused.value.fix


def test_a_model_that_cannot_be_planned_is_trained_without_a_plan(rows, tmp_path):
    assert planning.before(validate(config(rows, model=str(tmp_path / "gone.json")), "the test")[0])[0].startswith("no plan: ")


def test_time_is_the_sum_of_what_each_kind_of_work_takes():
    work = {("tokens", "products bfloat16"): 2e12, ("scored", "products bfloat16"): 1e12, ("pairs", "passes"): 1e9, ("fixed", "calls"): 100}
    assert seconds(work, Speed({"products bfloat16": 1e12, "passes": 1e9, "calls": 100})) == pytest.approx(5)
    assert seconds(work, Speed({"products bfloat16": 1e12})) == pytest.approx(3)
