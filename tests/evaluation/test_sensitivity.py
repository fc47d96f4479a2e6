import json
from pathlib import Path

import pytest

from tunesmith.data.conversation import Conversation, Message
from tunesmith.errors import BadInput
from tunesmith.evaluation.sensitivity import consistency, must_name_tasks, read_phrasings, rephrase, rephrased, spread

DEFINITION = "Is the review good or bad?"


def instance(text: str, task: str = "sst2", **fields) -> Conversation:
    fields = fields or {"definition": f"{DEFINITION}\n", "input": text, "output": "good"}
    return Conversation((Message("user", f"{DEFINITION}\n\n{text}", False), Message("assistant", "good", True)), "f:3", fields, task)


def test_other_words_take_the_place_of_the_instruction_and_nothing_else_changes():
    asked = rephrase(instance(f"It says: {DEFINITION}"), "Did the critic like it?")
    assert asked.prompt[0].content == f"Did the critic like it?\n\nIt says: {DEFINITION}"  # the text that quotes it stays
    assert asked.answer == "good"
    assert (asked.source, asked.task, asked.fields["input"]) == ("f:3", "sst2", f"It says: {DEFINITION}")
    assert rephrase(asked, DEFINITION).messages == instance(f"It says: {DEFINITION}").messages  # and back


def test_a_phrasing_that_names_columns_makes_the_whole_question():
    row = Conversation(
        (Message("system", "Be brief.", False), Message("user", "Spam or ham?\n\nhi", False), Message("assistant", "ham", True)),
        "f:1", {"text": "hi", "label": "ham"},
    )  # fmt: skip
    asked = rephrase(row, "{text}\nIs this spam?")
    assert [m.content for m in asked.messages] == ["Be brief.", "hi\nIs this spam?", "ham"]


def test_rows_of_every_task_take_the_phrasing_of_the_same_number():
    rows = [instance("fine", "sst2"), instance("dull", "imdb")]
    first, second = rephrased(rows, {"sst2": ["A1", "A2"], "imdb": ["B1", "B2"]})
    assert [c.prompt[0].content for c in first] == ["A1\n\nfine", "B1\n\ndull"]
    assert [c.prompt[0].content for c in second] == ["A2\n\nfine", "B2\n\ndull"]
    [only] = rephrased(rows, {"": ["any task"]})
    assert [c.prompt[0].content for c in only] == ["any task\n\nfine", "any task\n\ndull"]
    with pytest.raises(BadInput, match="rows of one dataset, which have no task's name"):
        rephrased([instance("fine", task="")], {"sst2": ["of a task, and who knows whether this one"]})


def test_phrasings_of_a_task_that_no_row_is_of_are_refused():
    rows = [instance("fine", "sst2"), instance("dull", "imdb")]
    must_name_tasks({"": ["any task"], "sst2": ["A"]}, rows, "p.yaml")
    with pytest.raises(BadInput, match='of the task "sst3", and no test row is') as error:
        must_name_tasks({"": ["any task"], "sst3": ["A"]}, rows, "p.yaml")
    assert "sst2" in error.value.fix and error.value.where == "p.yaml"
    with pytest.raises(BadInput, match="the test rows are of one dataset without a name"):
        must_name_tasks({"sst2": ["A"]}, [instance("fine", "")], "p.yaml")


def test_phrasings_are_read_from_yaml_and_json(tmp_path: Path):
    (tmp_path / "p.yaml").write_text("sst2:\n- 'Good or bad?'\n- |\n  Two lines:\n  good or bad?\n")
    assert read_phrasings(tmp_path / "p.yaml") == {"sst2": ["Good or bad?", "Two lines:\ngood or bad?\n"]}
    (tmp_path / "p.json").write_text(json.dumps(["Spam? {text}", "Ham? {text}"]))
    assert read_phrasings(tmp_path / "p.json") == {"": ["Spam? {text}", "Ham? {text}"]}


@pytest.mark.parametrize(
    "text, problem",
    [
        ("just words", "a list of texts, or a list for each task"),
        ("sst2: Good or bad?", "the phrasings of sst2 should be a list of texts"),
        ("[]", "the phrasings of all rows should be a list of texts"),
        ("a: [x, y]\nb: [z]", "different numbers of phrasings: a 2, b 1"),
        ("[x, x]", "given twice"),
        ("[x", "not YAML"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, text: str, problem: str):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=problem) as error:
        read_phrasings(path)
    assert str(path) in error.value.where


def test_rows_that_a_phrasing_does_not_fit_are_refused_by_name():
    with pytest.raises(BadInput, match='no phrasing for the task "sst2"') as error:
        rephrased([instance("fine")], {"sst-2": ["A"], "imdb": ["B"]})
    assert "sst-2" in error.value.fix
    with pytest.raises(BadInput, match="holds no instruction"):
        rephrase(instance("fine", input="fine"), "A")
    with pytest.raises(BadInput, match="holds no instruction"):
        rephrase(instance("fine", definition="not in the prompt"), "A")
    with pytest.raises(BadInput, match='names the column "txt"') as error:
        rephrase(instance("fine", sentence="fine"), "A {txt}")
    assert error.value.where == "f:3"
    with pytest.raises(BadInput, match="raw text"):
        rephrase(Conversation((Message("text", "x", True),), "f:1", {"text": "x"}), "{text}")
    with pytest.raises(BadInput, match="cannot be read"):
        read_phrasings(Path("/nowhere/p.yaml"))


def test_the_spread_is_that_of_a_sample_and_consistency_counts_rows():
    assert spread([0.6, 0.7, 0.8]) == pytest.approx({"mean": 0.7, "min": 0.6, "max": 0.8, "sd": 0.1})
    assert spread([0.6])["sd"] == 0.0
    assert consistency([["a", "b", "c"], ["A ", "b", "d"], ["a", "b", "c"]]) == pytest.approx(2 / 3)
