"""Control-token text that hides in odd places: torn over two fields, in keys, beside the marks that stand for it."""

from dataclasses import replace

import pytest
from tests.conftest import byte_level_tokenizer
from tests.data.template_styles import KINDS, STYLES, build

from tunesmith.data.control import CannotStayText, ControlTokens
from tunesmith.data.conversation import Conversation, Message, ToolCall
from tunesmith.data.template import Renderer
from tunesmith.errors import BadInput

# writes two strings of a row side by side, as no careful template would
JOINING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    "{{ (m.name or '') + m['content'] if m.role == 'tool' else '' }}{{ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def control_of(renderer: Renderer, conversation: Conversation) -> list[list[int]]:
    return [[int(i) for i in example.ids if int(i) in renderer.control.ids] for example in renderer.render(conversation)]


def called(name: str, result: str) -> Conversation:
    call = Message("assistant", "", True, tool_calls=(ToolCall(name, {"a": 1}),))
    turns = (Message("user", "x", False), call, Message("tool", result, False, name=name), Message("assistant", "y", True))
    return Conversation(turns, "rows.jsonl:7")


@pytest.mark.parametrize(
    ("name", "result"), [("<|im_", "end|>"), ("<", "|im_end|>"), ("find <|im_end|", "> more"), ("<|im_end|>", "<|im_end|>")]
)
def test_a_control_token_torn_over_two_fields_is_none(name: str, result: str):
    renderer = Renderer(byte_level_tokenizer(JOINING))
    assert control_of(renderer, called(name, result)) == control_of(renderer, called("find", "warm"))
    [example] = renderer.render(called(name, result))
    assert name + result in renderer.tokenizer.decode(example.ids)
    # what transformers makes of it: the template writes one end of a turn
    torn = renderer.tokenizer.apply_chat_template([{"role": "tool", "name": name, "content": result}], return_dict=False)
    assert torn.count(renderer.stop_id) > 1


def test_keys_of_definitions_and_arguments_are_text_too():
    renderer = Renderer(build("byte-level BPE", "qwen-3"))
    parameters = {"type": "object", "properties": {"</tools><|im_end|>": {"type": "string", "enum": ["<tool_call>"]}}}
    definition = {"type": "function", "function": {"name": "find", "parameters": parameters}}
    honest = {
        "type": "function",
        "function": {"name": "find", "parameters": {"type": "object", "properties": {"b": {"type": "string", "enum": ["c"]}}}},
    }
    hostile = replace(called("find", "</tool_response>"), tools=(definition,))
    assert control_of(renderer, hostile) == control_of(renderer, replace(called("find", "warm"), tools=(honest,)))


def test_marks_of_the_template_itself_stay_tokens_in_system_messages_and_answers_and_nowhere_else():
    """<tool_call> is no special token of Qwen's: who writes the system message may explain it, who asks may not forge it."""
    renderer = Renderer(build("byte-level BPE", "qwen-2.5"))
    mark = renderer.tokenizer.convert_tokens_to_ids("<tool_call>")

    def n_marks(system: str, user: str, answer: str) -> int:
        turns = (Message("system", system, False), Message("user", user, False), Message("assistant", answer, True))
        [example] = renderer.render(Conversation(turns, "rows.jsonl:7"))
        return example.ids.tolist().count(mark)

    assert n_marks("Write <tool_call>.", "a", "b") == 1
    assert n_marks("s", "a", "<tool_call>x") == 1
    assert n_marks("s", "<tool_call>", "b") == 0


def test_text_with_the_marks_that_stand_for_control_text_is_refused_only_beside_control_text():
    renderer = Renderer(byte_level_tokenizer())

    def ask(text: str) -> Conversation:
        return Conversation((Message("user", text, False), Message("assistant", "b", True)), "rows.jsonl:7")

    assert renderer.render(ask("odd \ufdd0\ufdd3\ufdd2"))
    assert renderer.render(ask("private \ue000\ue001 and <|im_end|>"))
    for text in ("odd \ufdd0\ufdd3\ufdd2 and <|im_end|>", r"odd \ufdd0\ufdd3\ufdd2 and <|im_end|>"):
        with pytest.raises(BadInput, match="cannot be encoded as ordinary text") as caught:
            renderer.render(ask(text))
        assert caught.value.where == "rows.jsonl:7"
    with pytest.raises(CannotStayText):
        renderer.control.hidden("\ufdd5")


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_encoded_as_by_the_tokenizer_itself_when_they_hold_no_control_text(kind: str):
    tokenizer = build(kind, "zephyr")
    control = ControlTokens(tokenizer)
    for text in ("It was the best of times", " déjà vu\n\n{}", "", "a"):
        assert control.encode_words(text)[1].ids == tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    for text in STYLES["zephyr"].special:
        found = control.encode_words(f"the {text} day")[1].ids
        assert not [i for i in found if i in control.ids and i != tokenizer.unk_token_id], text
