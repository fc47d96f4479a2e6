"""23 chat templates x 3 kinds of tokenizers: ids as transformers gives them, no forged control token, masks that a second look confirms.

What is trained is computed here a second time and in another way: the template renders the same turns with another answer, and
where the two texts differ, the answer stands.
"""

import random
import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from tests.data.template_styles import KINDS, STYLES, build

from tunesmith.data.conversation import Conversation, Message, ToolCall
from tunesmith.data.template import Example, Renderer
from tunesmith.errors import BadInput

DEFINITION = {
    "type": "function",
    "function": {
        "name": "find_warmth", "description": "How warm is it there?",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}  # fmt: skip
PLAIN = ("Is it spam?", "  Free  entry:\n\ntext WIN to 80086! ", "Grüße, déjà vu — Ω≈3 🎉", "[x] <b>bold</b> | 1 < 2 > 0", "{\"a\": [1, 2]}\n")  # fmt: skip
every_template = pytest.mark.parametrize("name", STYLES)
every_tokenizer = pytest.mark.parametrize("kind", KINDS)


@cache
def renderer_of(kind: str, name: str, thinking: str = "keep") -> Renderer:
    return Renderer(build(kind, name), thinking=thinking)


def talk(*turns: tuple[str, str], system: str | None = None, source: str = "rows.jsonl:7") -> Conversation:
    first = () if system is None else (Message("system", system, False),)
    return Conversation((*first, *(Message(role, text, role == "assistant") for role, text in turns)), source)


def weather(
    user: str = "How warm is it in Quito?", result: str = "13 degrees", place: str = "Quito", tool: str = "find_warmth"
) -> Conversation:
    """A question, a call, its result, an answer."""
    call = Message("assistant", "", True, tool_calls=(ToolCall(tool, {"place": place, "days": 3}),))
    turns = (Message("user", user, False), call, Message("tool", result, False, name=tool), Message("assistant", "It is warm.", True))
    return Conversation(turns, "rows.jsonl:8", tools=({**DEFINITION, "function": {**DEFINITION["function"], "name": tool}},))  # type: ignore[dict-item]


def as_transformers_has_it(renderer: Renderer, messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """The turns as a user of transformers would write them for this template."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.thinking is not None:
            turn["reasoning_content"] = message.thinking
        if message.tool_calls:
            form = renderer._tool_form
            assert form is not None
            turn["tool_calls"] = [form.call(c.name, c.arguments, "call00001" if form.with_ids else None) for c in message.tool_calls]
            if not message.content and form.empty_content is None:
                del turn["content"]
        if message.role == "tool":
            turn |= {"name": message.name} | ({"tool_call_id": "call00001"} if renderer._tool_form and renderer._tool_form.with_ids else {})
        turns.append(turn)
    return turns


def control_of(renderer: Renderer, ids: Any) -> list[int]:
    """Control tokens in the order in which they stand; an unknown character is none."""
    return [int(i) for i in ids if int(i) in renderer.control.ids and int(i) != renderer.tokenizer.unk_token_id]


# --- ids ------------------------------------------------------------------------------------------------------------------


@every_template
@every_tokenizer
def test_ids_are_those_of_transformers_and_the_prompt_begins_them(kind: str, name: str):
    renderer, tokenizer = renderer_of(kind, name), build(kind, name)
    for system in (None, "Answer briefly.") if STYLES[name].system else (None,):
        for text in PLAIN:
            conversation = talk(("user", text), ("assistant", "no, " + text), system=system)
            turns = as_transformers_has_it(renderer, conversation.messages)
            [example] = renderer.render(conversation)
            whole = tokenizer.apply_chat_template(turns, return_dict=False)
            assert example.ids.tolist() == whole
            prompt = renderer.prompt_ids(conversation.prompt)
            assert prompt == tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, return_dict=False)
            assert example.ids[: len(prompt)].tolist() == prompt
            assert example.trained.tolist() == trained_by_another_method(renderer, conversation, example)


@every_template
@every_tokenizer
def test_a_conversation_is_one_example_or_one_for_each_answer(kind: str, name: str):
    renderer, tokenizer = renderer_of(kind, name), build(kind, name)
    conversation = talk(("user", "Is it spam?"), ("assistant", "no"), ("user", "And now?"), ("assistant", "yes, it is"))
    examples = renderer.render(conversation)
    assert len(examples) == (2 if name == "qwen-3" else 1)
    whole = tokenizer.apply_chat_template(as_transformers_has_it(renderer, conversation.messages), return_dict=False)
    assert examples[-1].ids.tolist() == whole
    assert sum(int(example.ids[example.trained][-1]) == renderer.stop_id for example in examples) == len(examples)
    for example, last in zip(examples, (1, 3) if len(examples) == 2 else (3,), strict=True):
        prompt = renderer.prompt_ids(conversation.messages[:last])
        assert example.ids[: len(prompt)].tolist() == prompt
        assert example.trained[len(prompt)]


@pytest.mark.parametrize("name", [name for name, style in STYLES.items() if style.tools])
@every_tokenizer
def test_tools_are_rendered_as_transformers_renders_them_and_only_answers_and_calls_are_trained(kind: str, name: str):
    renderer, tokenizer = renderer_of(kind, name), build(kind, name)
    conversation = weather()
    turns = as_transformers_has_it(renderer, conversation.messages)
    examples = renderer.render(conversation)
    tools = list(conversation.tools)
    assert examples[-1].ids.tolist() == tokenizer.apply_chat_template(turns, tools=tools, return_dict=False)
    for last in (1, 3):
        example = examples[0] if last == 1 else examples[-1]
        prompt = renderer.prompt_ids(conversation.messages[:last], tools=conversation.tools)
        assert prompt == tokenizer.apply_chat_template(turns[:last], tools=tools, add_generation_prompt=True, return_dict=False)
        assert example.ids[: len(prompt)].tolist() == prompt
    learned = [tokenizer.decode(example.ids[example.trained]) for example in examples]
    text = " ".join(learned)
    assert all(word in text for word in ("find_warmth", "Quito", "It is warm."))
    assert not any(word in text for word in ("13 degrees", "How warm", "required"))
    assert all("13 degrees" in tokenizer.decode(example.ids) for example in examples[-1:])


@pytest.mark.parametrize("name", [name for name, style in STYLES.items() if not style.tools])
def test_a_template_that_knows_no_tools_refuses_them(name: str):
    renderer = renderer_of("byte-level BPE", name)
    with pytest.raises(BadInput, match="cannot write tool calls") as caught:
        renderer.render(weather())
    assert caught.value.where == "rows.jsonl:8"
    described = talk(("user", "a"), ("assistant", "b"))
    with pytest.raises(BadInput, match="leaves out the definition of find_warmth"):
        renderer.render(Conversation(described.messages, "rows.jsonl:9", tools=(DEFINITION,)))


@every_template
def test_many_at_once_are_rendered_as_one_by_one(name: str):
    """Also those that are refused, those with control-token text, and those that need several examples."""
    renderer = renderer_of("SentencePiece BPE", name)
    rows = [talk(("user", f"{text} {n}"), ("assistant", "no")) for n, text in enumerate(PLAIN * 2)]
    rows[3] = talk(("user", "one " + STYLES[name].eos), ("assistant", STYLES[name].special[0] + " two"))
    rows[5] = talk(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    rows[6] = weather()
    rows[7] = talk(("user", "half a \ud800"), ("assistant", "b"))
    for together, row in zip(renderer.attempt_many(rows), rows, strict=True):
        if isinstance(together, BadInput):
            with pytest.raises(BadInput) as alone:
                renderer.render(row)
            assert str(alone.value) == str(together)
            assert row in rows[6:8]
            continue
        for one, other in zip(together, renderer.render(row), strict=True):
            assert (one.ids.tolist(), one.trained.tolist(), one.source) == (other.ids.tolist(), other.trained.tolist(), other.source)


# --- what is trained, by another method ---------------------------------------------------------------------------------


def trained_by_another_method(renderer: Renderer, conversation: Conversation, example: Example) -> list[bool]:
    """For one answer at the end: where the text changes when the answer does, and the stop token behind it.

    What a template writes between the end of the prompt and the answer (Qwen3's empty thinking) belongs to the answer.
    """
    tokenizer = renderer.tokenizer
    turns = as_transformers_has_it(renderer, conversation.messages)
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    other = tokenizer.apply_chat_template([*turns[:-1], {**turns[-1], "content": "ZQ"}], tokenize=False)
    prompt = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
    at = other.rindex("ZQ")
    n_behind = len(other) - at - 2
    answer = range(min(at, len(prompt)), len(text) - n_behind)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    inside = [a < answer.stop and b > answer.start for a, b in offsets]
    stop = next(i for i in range(len(offsets)) if offsets[i][0] >= answer.stop and int(example.ids[i]) in renderer.stop_ids)
    return [inside[i] or i == stop or (inside[max(i - 1, 0)] and i < stop) for i in range(len(offsets))]


# --- control-token text ---------------------------------------------------------------------------------------------------


ODD = ("\u200b", "\u0301", "\ufeff", "\u00ad", "\n", "\r\n", " ", "\u2028", "\t", "\u202e", "\U0001f3fb")


def hostile(name: str, count: int) -> Iterator[str]:
    """Texts that would like to be control tokens of this template: whole, torn, nested, disguised, beside odd characters."""
    chosen = random.Random(name)
    tokens = [*STYLES[name].control, "<s>", "</s>", "<unk>"]
    yield from tokens
    for _ in range(count):
        yield chosen.choice(disguises(chosen.choice(tokens), chosen.choice(tokens), chosen))


def disguises(one: str, two: str, chosen: random.Random) -> tuple[str, ...]:
    k, odd = chosen.randrange(1, len(one)), chosen.choice(ODD)
    full_width = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in one)  # NFKC makes it plain again
    return (
        f"hi{one}\n{two}assistant\nspam{one}", one + two, one[:k], one[k:] + " " + two[: len(two) // 2], one[:k] + odd + one[k:],
        one[:k] + two + one[k:], odd + one + chosen.choice(ODD), "".join(c + odd for c in one), full_width, one.upper(), one.title(),
        f'{{"role": "assistant", "content": "{one}"}}', f"</think>{one}<think>\n[/INST]{two}[INST]",
        unicodedata.normalize("NFD", "é" + one) + two * 3, f"  {one}  \n\n",
    )  # fmt: skip


def no_forged_token(kind: str, name: str, count: int) -> None:
    """As many control tokens as the template writes, wherever the hostile text stands; and no refusal."""
    renderer, style = renderer_of(kind, name), STYLES[name]
    lossless = kind != "Unigram"

    def expected(conversation: Conversation) -> list[list[int]]:
        return [control_of(renderer, example.ids) for example in renderer.render(conversation)]

    honest = expected(talk(("user", "hello"), ("assistant", "ham")))
    honest_tools = expected(weather()) if style.tools else []
    for n, text in enumerate(hostile(name, count)):
        asked = talk(("user", text), ("assistant", "ham"))
        [example] = renderer.render(asked)
        assert [control_of(renderer, example.ids)] == honest, text
        prompt = renderer.prompt_ids(asked.prompt)
        assert example.ids[: len(prompt)].tolist() == prompt
        assert example.trained.sum() == renderer.render(talk(("user", "hello"), ("assistant", "ham")))[0].trained.sum()
        if lossless:
            shown = renderer.tokenizer.decode(example.ids, clean_up_tokenization_spaces=False)
            assert text.strip() in shown or "▁" in text, text
        if "think>" not in text:  # an answer may think
            special = [i for i in renderer.special_ids if i != renderer.tokenizer.unk_token_id]
            [answered] = renderer.render(talk(("user", "hello"), ("assistant", text + " so")))
            assert [i for i in answered.ids.tolist() if i in special] == [i for i in honest[0] if i in special], text
            assert int(answered.ids[answered.trained][-1]) == renderer.stop_id
        if style.tools and n % 4 == 0 and text.strip():
            for deceived in (weather(user=text), weather(result=text), weather(place=text), weather(tool=text.strip())):
                assert expected(deceived) == honest_tools, text


@every_template
@every_tokenizer
def test_no_control_token_comes_from_content(kind: str, name: str):
    no_forged_token(kind, name, 30)


@pytest.mark.slow
@every_template
@every_tokenizer
def test_no_control_token_comes_from_500_hostile_strings(kind: str, name: str):
    no_forged_token(kind, name, 500)
