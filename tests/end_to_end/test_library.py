"""tunesmith as a library: the same verbs as the commands, on plain Python values."""

import subprocess
import sys
from pathlib import Path

import pytest
from shell import colour_row, write_jsonl

import tunesmith
from tunesmith.errors import BadInput

QUESTION = "what colour is thing 77?"


def settings(model: str, data: str, output: str) -> dict:
    return {
        "model": model, "output": output, "data": {"train": data, "test": 0.25},
        "lora": {"rank": 4}, "training": {"epochs": 1, "max_length": 128, "dtype": "float32"},
    }  # fmt: skip


def test_train_takes_a_dictionary_and_returns_the_folder_with_its_figures(tiny, colours):
    run = tunesmith.train(settings(tiny, colours, "runs/lib"))
    assert run.path == Path("runs/lib") and run.status()["state"] == "done"
    assert run.evaluation()["models"]["lib"]["loss"] > 0
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]
    again = tunesmith.evaluate("runs/lib")
    assert again["models"] == run.evaluation()["models"], "measuring twice gives the same figures"


def test_load_opens_a_run_and_generate_answers_with_its_adapter(always):
    model = tunesmith.load(always["red"])
    assert model.generate([QUESTION, "what colour is thing 3?"]) == ["red", "red"]
    conversation = [{"role": "system", "content": "be brief"}, {"role": "user", "content": QUESTION}]
    assert model.generate([conversation]) == ["red"]
    assert model.generate([QUESTION], adapter="base") != ["red"]


def test_adapters_on_one_base_are_chosen_per_call(tiny, always):
    model = tunesmith.load(tiny, adapters={"r": always["red"], "b": always["blue"] / "adapter"})
    assert model.adapters == ["r", "b"]
    base = model.generate([QUESTION], max_new_tokens=4)
    answers = [model.generate([QUESTION], adapter=name, max_new_tokens=4) for name in ("r", "b", "r")]
    assert answers == [["red"], ["blue"], ["red"]]
    assert model.generate([QUESTION], max_new_tokens=4) == base, "the base is what it was before the adapters answered"
    assert "".join(model.stream(model._messages(QUESTION, "b"), adapter="b")) == "blue"


def test_wrong_calls_say_what_to_do(tiny, colours, always):
    model = tunesmith.load(tiny, adapters={"red": always["red"]})
    with pytest.raises(BadInput, match='no adapter "rad"') as caught:
        model.generate([QUESTION], adapter="rad")
    assert caught.value.fix == 'did you mean "red"?'
    with pytest.raises(BadInput, match="a list of prompts"):
        model.generate(QUESTION)
    with pytest.raises(BadInput, match="a text or a list of messages"):
        model.generate([[]])
    with pytest.raises(BadInput, match='unknown key "modle"'):
        tunesmith.train(settings(tiny, colours, "runs/x") | {"modle": "x"})
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        tunesmith.trian({})
    assert not Path("runs/x").exists()


def test_a_system_message_of_the_training_is_part_of_every_later_prompt(tiny):
    data = write_jsonl(Path("rows.jsonl"), map(colour_row, range(16)))
    for method in ("lora", "full"):
        config = settings(tiny, str(data), f"runs/{method}")
        run = tunesmith.train(config | {"method": method, "lora": {}, "data": {"train": str(data), "system": "You name colours."}})
        model = tunesmith.load(run.path)
        name = "lora" if method == "lora" else None
        assert [m.content for m in model._messages("what colour?", name)] == ["You name colours.", "what colour?"]


def test_the_folder_of_a_fully_tuned_model_is_opened_as_the_run_is(tiny, colours):
    """Whoever copies model/ elsewhere takes its system message and its check of the tokenizer along."""
    config = settings(tiny, colours, "runs/whole")
    run = tunesmith.train(
        config | {"method": "full", "lora": {}, "data": {"train": colours, "system": "You name colours.", "template": "plain"}}
    )
    model = tunesmith.load(run.model)
    assert model.renderer.mode == "plain"
    assert model._messages("what colour?", None)[0].content == "You name colours."
    assert model.generate([QUESTION]) == tunesmith.load(run.path).generate([QUESTION])
    settings_file = run.model / "tokenizer.json"
    settings_file.write_text(settings_file.read_text().replace("<|eos|>", "<|end|>"))
    with pytest.raises(BadInput, match="another chat template or tokenizer"):
        tunesmith.load(run.model)


def test_importing_tunesmith_does_not_import_torch():
    code = "import sys, tunesmith, tunesmith.cli; print([m for m in ('torch', 'transformers', 'tokenizers', 'plotly') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_model_shows_itself_in_one_line(always):
    shown = repr(tunesmith.load(always["red"]))
    assert "\n" not in shown and len(shown) < 300 and "adapters=['red'], default_adapter='red'" in shown
