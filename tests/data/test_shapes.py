"""Rows of the formats that people have, as the turns that they teach: one small row of each, and the rows that must be refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from tunesmith.config import DataConfig
from tunesmith.data.conversation import Conversation, Message, ToolCall
from tunesmith.data.formats import Read, read_conversations, read_prompts
from tunesmith.errors import BadInput

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
ASKED, CALLED = Message("user", "Rain in Rome?", False), ToolCall("weather", {"city": "Rome"})


@pytest.fixture
def read(tmp_path: Path):
    """read([row, …], **data options) → Read"""

    def run(rows: list[Any], *, prompts: bool = False, **options: Any) -> Read:
        path = tmp_path / "train.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = DataConfig(train=str(path), **options)
        return read_prompts(config, path) if prompts else read_conversations(config)

    return run


def one(read: Read) -> Conversation:
    [conversation] = read.conversations
    return conversation


# --------------------------------------------------------------------------------------------------------------- tools


def openai_row() -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    return {
        "messages": [
            {"role": "user", "content": "Rain in Rome?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
            {"role": "assistant", "content": "No."},
        ],
        "tools": [WEATHER],
    }


def test_openai_tools_calls_and_results_become_turns_that_know_their_tool(read):
    conversation = one(read([openai_row()]))
    assert conversation.messages == (
        ASKED,
        Message("assistant", "", True, tool_calls=(ToolCall("weather", {"city": "Rome"}, "c1"),)),
        Message("tool", "sunny", False, name="weather", call_id="c1"),
        Message("assistant", "No.", True),
    )
    assert conversation.tools == (WEATHER,)
    assert hash(conversation.messages) and conversation.answer == "No."


def test_the_older_functions_of_openai_mean_the_same(read):
    row = {
        "messages": [
            {"role": "user", "content": "Rain in Rome?"},
            {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": '{"city": "Rome"}'}},
            {"role": "function", "name": "weather", "content": "sunny"},
            {"role": "assistant", "content": "No."},
        ],
        "functions": [WEATHER["function"]],
    }
    conversation = one(read([row]))
    assert [(m.role, m.content, m.tool_calls, m.name) for m in conversation.messages] == [
        ("user", "Rain in Rome?", (), None), ("assistant", "", (CALLED,), None), ("tool", "sunny", (), "weather"), ("assistant", "No.", (), None),
    ]  # fmt: skip
    assert conversation.tools == (WEATHER,)


def test_sharegpt_calls_and_observations_of_llama_factory_mean_the_same(read):
    row = {
        "conversations": [
            {"from": "human", "value": "Rain in Rome?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rome"}}'},
            {"from": "observation", "value": "sunny"},
            {"from": "gpt", "value": "No."},
        ],
        "system": "Be short.",
        "tools": json.dumps([WEATHER["function"]]),
    }
    conversation = one(read([row]))
    assert conversation.messages[0] == Message("system", "Be short.", False)
    assert conversation.messages[2] == Message("assistant", "", True, tool_calls=(CALLED,))
    assert [m.role for m in conversation.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert conversation.tools == (WEATHER,)


def test_a_conversation_may_end_in_a_call_and_its_reference_is_the_call_as_json(read):
    row = openai_row()
    row["messages"] = row["messages"][:2]
    assert json.loads(str(one(read([row])).answer)) == [{"name": "weather", "arguments": {"city": "Rome"}}]


def test_several_calls_of_one_turn_are_answered_in_turn(read):
    calls = [{"id": f"c{i}", "function": {"name": "weather", "arguments": {"city": city}}} for i, city in enumerate(["Rome", "Oslo"])]
    results = [{"role": "tool", "tool_call_id": f"c{i}", "content": "sunny"} for i in range(2)]
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": calls}, *results, {"role": "assistant", "content": "b"}]
    messages = one(read([{"messages": talk}])).messages
    assert [call.arguments["city"] for call in messages[1].tool_calls] == ["Rome", "Oslo"]
    assert [m.role for m in messages] == ["user", "assistant", "tool", "tool", "assistant"]


def changed(path: list[Any], value: Any) -> dict[str, Any]:
    """The row above with one thing in it changed."""
    row: Any = openai_row()
    holder = row
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return row


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (changed(["messages", 1, "tool_calls", 0, "function", "arguments"], "{city"), "the arguments of the tool call of message 2 is not JSON"),
        (changed(["messages", 1, "tool_calls", 0, "function", "arguments"], '{"a": 1, "a": 2}'), 'the key "a" is given twice'),
        (changed(["messages", 1, "tool_calls", 0, "function", "arguments"], 7), "are a number; they should be an object"),
        (changed(["messages", 1, "tool_calls", 0, "function", "name"], None), "a tool call of message 2 should be"),
        (changed(["messages", 1, "tool_calls", 0, "id"], 7), "the id of a tool call of message 2 is a number"),
        (changed(["messages", 2, "tool_call_id"], "c2"), 'the result of "c2", and no call before it has this id'),
        (changed(["messages", 2, "role"], "user"), "message 3 is by user where tool should speak: the result of the call"),
        (changed(["messages", 0, "tool_calls"], [{"name": "x"}]), 'message 1 is by user and has "tool_calls"'),
        (changed(["messages", 1, "function_call"], {"name": "x"}), "tool_calls and function_call"),
        (changed(["tools"], "[{"), '"tools" is not JSON'),
        (changed(["tools"], {"name": "x"}), '"tools" should be a list of definitions, it is an object'),
        (changed(["tools"], [{"type": "function"}]), 'entry 1 of "tools" has no name'),
        (changed(["functions"], [{"name": "x"}]), '"tools" and "functions"'),
    ],
)  # fmt: skip
def test_a_row_whose_tools_cannot_be_understood_is_refused_with_its_message(read, row, problem):
    with pytest.raises(BadInput) as caught:
        read([openai_row(), row])
    assert problem in str(caught.value) and "train.jsonl:2" in str(caught.value)


def test_nulls_that_parquet_put_into_arguments_and_tools_are_taken_out_again(tmp_path: Path):
    rows = []
    for name, argument in (("weather", "city"), ("time", "zone")):
        call = {"function": {"name": name, "arguments": {argument: "x"}}}
        tool = {"function": {"name": name, "parameters": {"properties": {argument: {"type": "string"}}}}}
        rows.append(
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [call]}], "tools": [tool]}
        )
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), path)  # which has both arguments in every row, one of them null
    found = read_conversations(DataConfig(train=str(path))).conversations
    assert [c.messages[1].tool_calls[0].arguments for c in found] == [{"city": "x"}, {"zone": "x"}]
    assert [list(c.tools[0]["function"]["parameters"]["properties"]) for c in found] == [["city"], ["zone"]]


# ------------------------------------------------------------------------------------------------------------ thinking


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_in_a_key_of_its_own_is_kept_apart_from_the_answer(read, key):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", key: "hm"}]}
    assert one(read([row])).messages[1] == Message("assistant", "b", True, thinking="hm")


def test_a_thought_at_the_start_of_an_answer_is_the_same_and_is_said(read):
    chat = [{"role": "user", "content": "a <think>x</think>"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"}]
    found = read([{"messages": chat}, {"messages": [chat[0], {"role": "assistant", "content": "b <think>"}]}])
    assert [c.messages[1] for c in found.conversations] == [
        Message("assistant", "b", True, thinking="hm"),
        Message("assistant", "b <think>", True),
    ]
    assert found.conversations[0].messages[0].content == "a <think>x</think>"
    assert "1 message beginning with <think>…</think>: read as thinking" in found.said
    pair = one(read([{"prompt": "a", "completion": "<think></think>b"}]))
    assert (pair.messages[1].thinking, pair.answer) == ("", "b")


def test_the_marks_and_the_white_space_of_a_thought_inside_an_answer_are_kept_as_they_stand(read):
    for text in ("<think>0+2</think>\n2", "\n<think>\n\n0+2\n</think>2", "<think></think>2", "<think>\n\n</think>\n\n2"):
        message = one(read([{"prompt": "1+1?", "completion": text}])).messages[1]
        assert message.content == "2" and message.thinking in ("0+2", "")
        assert f"{message.before_thinking}{message.thinking}{message.after_thinking}{message.content}" == text


@pytest.mark.parametrize(
    ("turn", "problem"),
    [
        ({"content": "<think>x</think>b", "thinking": "y"}, "has its thinking twice"),
        ({"content": "<think>x</think> \n"}, "the answer is empty after its <think>"),
        ({"content": "b", "thinking": "x", "reasoning": "y"}, "different texts in reasoning and thinking"),
        ({"content": "b", "thinking": ["x"]}, '"thinking" of message 2 is a list'),
    ],
)
def test_a_thought_that_is_not_clear_is_refused(read, turn, problem):
    with pytest.raises(BadInput, match=problem):
        read([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", **turn}]}])


# --------------------------------------------------------------------------------------- rounds, systems, who is trained


def test_alpaca_history_and_system_come_before_the_instruction(read):
    row = {"instruction": "And 2+2?", "input": "", "output": "4", "system": "Add.", "history": [["1+1?", "2"], ["0+0?", "0"]]}
    found = read([row, {**row, "history": [], "system": ""}])
    assert [(m.role, m.content, m.trained) for m in found.conversations[0].messages] == [
        ("system", "Add.", False), ("user", "1+1?", False), ("assistant", "2", True), ("user", "0+0?", False), ("assistant", "0", True),
        ("user", "And 2+2?", False), ("assistant", "4", True),
    ]  # fmt: skip
    assert [m.content for m in found.conversations[1].messages] == ["And 2+2?", "4"]
    assert "before it {system} and {history}, trained too" in found.said[0]


@pytest.mark.parametrize("history", ["x", [["a"]], [["a", None]], [["a", ""]], [7]])
def test_a_history_that_is_no_list_of_rounds_is_refused(read, history):
    with pytest.raises(BadInput, match="history"):
        read([{"instruction": "a", "output": "b", "history": history}])


@pytest.mark.parametrize("key", ["train", "training"])
def test_axolotls_marks_say_which_answers_are_trained(read, key):
    talk = [{"role": "user", "content": "a", key: False}, {"role": "assistant", "content": "b", key: False}]
    row = {"messages": [*talk, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", key: True}]}
    assert [m.trained for m in one(read([row])).messages] == [False, False, False, True]
    with pytest.raises(BadInput, match="message 1 is to be trained, but only answers"):
        read([{"messages": [{"role": "user", "content": "a", key: True}, {"role": "assistant", "content": "b"}]}])


def test_prompt_and_completion_as_lists_train_the_completion_only(read):
    earlier = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    found = read([{"prompt": earlier, "completion": [{"role": "assistant", "content": "d"}]}])
    assert [(m.content, m.trained) for m in one(found).messages] == [("a", False), ("b", False), ("c", False), ("d", True)]
    assert 'messages from "prompt" and "completion"' in found.said[0]
    assert [m.content for m in one(read([{"prompt": earlier}], prompts=True)).messages] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, 'data.prompt: "{prompt}" and data.completion: "{chosen}"'),
        ({"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "a"}]}, 'write the messages of "chosen" as'),
        ({"prompt": "a", "completion": "b", "label": True}, "keep the rows whose label is true"),
        ({"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}], "label": False}, "whose label is true"),
    ],
)  # fmt: skip
def test_preferences_and_judged_answers_are_refused_with_what_to_do(read, row, problem):
    with pytest.raises(BadInput) as caught:
        read([row])
    assert problem in caught.value.fix


def test_a_label_of_another_kind_beside_a_pair_is_just_a_column(read):
    assert one(read([{"prompt": "a", "completion": "b", "label": "spam"}])).answer == "b"


# ------------------------------------------------------------------------------------------------- tasks with instances

TASK = {
    "Contributors": ["x"],
    "Definition": ["Answer yes or no."],
    "Positive Examples": [{"input": "Is fire hot?", "output": "yes", "explanation": "It is."}],
    "Instances": [
        {"id": "1", "input": "Is ice hot?", "output": ["no", "No."]},
        {"id": "2", "input": "Is a dog an animal?", "output": ["yes"]},
    ],
}


@pytest.fixture
def task_file(tmp_path: Path):
    def run(task: dict[str, Any], **options: Any) -> Read:
        path = tmp_path / "task.json"
        path.write_text(json.dumps(task, indent=1))
        return read_conversations(DataConfig(train=str(path), **options))

    return run


def test_a_task_file_gives_an_example_for_each_instance_with_all_its_references(task_file):
    found = task_file(TASK)
    first, second = found.conversations
    assert [m.content for m in first.messages] == ["Answer yes or no.\n\nIs ice hot?", "no"]
    assert (first.fields["references"], second.fields["references"]) == (["no", "No."], ["yes"])
    assert found.format == "instances" and "positive_examples" not in first.fields
    lines = json.dumps(TASK, indent=1).splitlines()
    assert [c.source for c in found.conversations] == [f"task.json:{i}" for i, line in enumerate(lines, 1) if line == "  {" and i > 12]


def test_keys_of_a_task_may_be_small_and_in_any_order(task_file):
    turned = {"instances": TASK["Instances"], "positive_examples": TASK["Positive Examples"], "definition": "Answer yes or no."}
    assert [c.messages for c in task_file(turned).conversations] == [c.messages for c in task_file(TASK).conversations]
    assert [c.messages for c in task_file(turned, examples=1).conversations] == [
        c.messages for c in task_file(TASK, examples=1).conversations
    ]


def test_solved_examples_are_shown_before_the_input_where_that_is_asked(task_file):
    found = task_file(TASK, examples=2)
    shown = "Answer yes or no.\n\nInput: Is fire hot?\nOutput: yes\n\nInput: Is ice hot?\nOutput:"
    assert found.conversations[0].messages[0].content == shown
    assert "1 of its 1 solved examples" in found.said[0]


def test_instances_can_be_put_into_words_by_templates(task_file):
    found = task_file(TASK, prompt="{definition} {input}", completion="{output}")
    assert [m.content for m in found.conversations[0].messages] == ["Answer yes or no. Is ice hot?", "no"]


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        ({**TASK, "Instances": []}, "the file holds no rows"),
        ({**TASK, "Definition": None}, '"definition" is null'),
        ({"Instances": TASK["Instances"]}, "this is one object"),
        ({**TASK, "Instances": [{"input": "a", "output": []}]}, "at least one"),
        ({**TASK, "Instances": [{"input": "a", "output": [7]}]}, "a text or a list of texts"),
        ({**TASK, "data": [1]}, "the rows are given twice"),
    ],
)
def test_a_task_file_that_cannot_be_taught_is_refused(task_file, task, problem):
    with pytest.raises(BadInput) as caught:
        task_file(task, format="instances" if '"definition"' in problem or "texts" in problem or "least" in problem else "auto")
    assert problem in str(caught.value)


def test_examples_of_a_file_without_tasks_are_refused(read):
    with pytest.raises(BadInput, match=r"data\.examples is for task files"):
        read([{"prompt": "a", "completion": "b"}], examples=1)


def test_instances_of_the_hubs_natural_instructions_are_rows_with_a_definition(read):
    row = {"task_name": "t1", "definition": "Answer.", "inputs": "Is ice hot?", "targets": "no"}
    assert [m.content for m in one(read([row])).messages] == ["Answer.\n\nIs ice hot?", "no"]


def test_the_tasks_of_super_natural_instructions_are_read_as_they_are(shared: Path):
    folder = shared / "data/super_ni"
    for path in sorted(folder.glob("*/*.json"))[:4]:
        task = json.loads(path.read_text())
        found = read_conversations(DataConfig(train=str(path))).conversations
        assert [c.answer for c in found] == [instance["output"][0] for instance in task["instances"]]
        lines = path.read_text().splitlines()
        numbers = [int(c.source.rpartition(":")[2]) for c in found]
        assert all(lines[number - 1].strip() == "{" for number in numbers)
        assert [json.loads("{" + lines[number].rstrip(",") + "}")["id"] for number in numbers] == [i["id"] for i in task["instances"]]
