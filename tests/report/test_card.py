"""The model card states facts and what is not known, and its lines open the result."""

from typing import Any

import pytest
import yaml
from tests.report.made_runs import RUN, STATUS, run_folder, whole_run

from tunesmith.report.card import write_model_card


def test_the_model_card_states_facts_and_what_is_not_known(tmp_path):
    card = write_model_card(whole_run(tmp_path)).read_text(encoding="utf-8")
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "base_model": "acorn",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["tunesmith", "lora"],
    }
    for fact in (
        "# sms",
        "f1_spam 0.00 → 0.95 on 1,034 test rows",
        "- method: LoRA, rank 8, alpha 16, on all-linear",
        "| f1_spam | 0.000 | 0.000 | **0.950** |",
        "- rows read: 5,574\n- skipped: could not be read: 0\n- dropped: equal to an earlier row: 403\n",
        "- left out by data.limit: 1\n- training rows: 3,722\n",
        "- trained tokens per epoch: 7,444\n",
        f"- sms.tsv: sha256 {'ab' * 32}",
        "```\ntunesmith train sms.yaml\n```",
        "- tunesmith: 0.1.0",
        "- licence of the training data: not stated",
    ):
        assert fact in body, fact


def test_the_model_card_of_a_full_run_on_a_local_folder_keeps_the_path_to_itself(tmp_path):
    folder = whole_run(tmp_path)
    (folder / "config.yaml").write_text(yaml.safe_dump(RUN | {"method": "full", "model": str(tmp_path / "my-base")}))
    card = write_model_card(folder).read_text(encoding="utf-8")
    assert "base_model: my-base\nlibrary_name: transformers\n" in card
    assert "- base model: my-base (a local folder)" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize(("state", "unknown"), [("trained", False), ("done", False), ("interrupted", True)])
def test_how_a_run_would_have_ended_is_unknown_only_if_it_did_not(tmp_path, state, unknown):
    card = write_model_card(run_folder(tmp_path, status=STATUS | {"state": state})).read_text(encoding="utf-8")
    assert ("how it would have ended" in card) == unknown


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own
def test_the_card_opens_the_adapter_in_peft(tmp_path):
    """PEFT alone would look for "acorn" on the hub."""
    from transformers import AutoModelForCausalLM

    peft = pytest.importorskip("peft", reason="peft is not installed")
    import tunesmith
    from tunesmith.config import LoraConfig
    from tunesmith.model.adapters import adapter_parameters, attach, save_adapter

    folder = whole_run(tmp_path)
    model = tunesmith.load("acorn", dtype="float32").loaded.model
    attach(model, "sms", config := LoraConfig(rank=2, targets=["q_proj"]), seed=0)
    for parameter in adapter_parameters(model, "sms").values():
        parameter.data.fill_(0.01)  # an adapter that learned nothing is not saved
    save_adapter(model, "sms", folder / "adapter", {}, "acorn", config)
    card = write_model_card(folder).read_text(encoding="utf-8")
    code = card.partition("or with PEFT:\n\n```\n")[2].partition("\n```")[0]
    names: dict[str, Any] = {}
    exec(code.replace('"adapter"', repr(str(folder / "adapter"))), names)
    assert isinstance(names["model"], peft.PeftModel)
    assert isinstance(names["base"], type(AutoModelForCausalLM.from_pretrained(tunesmith.model.load.ACORN)))
