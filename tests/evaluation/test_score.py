"""Base and tuned model measured on the same rows, by the model's own words and by its loss."""

from pathlib import Path

import pytest
import torch
from tests.conftest import CHATML, byte_level_tokenizer

from tunesmith.config import LoraConfig
from tunesmith.data.conversation import Conversation, Message, ToolCall
from tunesmith.data.template import Renderer
from tunesmith.errors import BadInput
from tunesmith.evaluation.score import max_new_tokens_for, measure, spoken, test_rows
from tunesmith.model.adapters import adapter_parameters, attach
from tunesmith.model.load import load_model

ROWS = [("free prize", "spam"), ("lunch later", "ham"), ("call me", "ham"), ("win a prize now", "spam")]


def conversations(rows: list[tuple[str, str]]) -> list[Conversation]:
    return [Conversation((Message("user", p, False), Message("assistant", a, True)), f"f:{i}") for i, (p, a) in enumerate(rows, 1)]


@pytest.fixture
def opened(tiny_model: Path):
    loaded = load_model(str(tiny_model), "float32")
    return loaded, Renderer(loaded.tokenizer, eos_ids=loaded.eos_ids)


def test_the_loss_is_that_of_every_answer_token_once(opened):
    loaded, renderer = opened
    rows = test_rows(conversations(ROWS), renderer, loaded.context)
    measured = measure(loaded.model, rows, renderer, adapter=None, title="base")
    total, count = 0.0, 0
    for example in rows.examples:  # one row at a time, with transformers' own logits
        ids = torch.from_numpy(example.ids).long()[None]
        logs = torch.log_softmax(loaded.model(input_ids=ids).logits[0].double(), -1)
        for t in range(len(example) - 1):
            if example.trained[t + 1]:
                total, count = total - float(logs[t, ids[0, t + 1]]), count + 1
    assert measured.metrics["loss"] == pytest.approx(total / count, rel=1e-5)
    n_bytes = sum(len(answer.encode()) for _, answer in ROWS)
    assert measured.metrics["bits_per_byte"] == pytest.approx(total / 0.693147 / n_bytes, rel=1e-4)
    assert measured.metrics["accuracy"] == 0.0  # random weights know no labels
    assert 0.0 <= measured.metrics["stop_rate"] <= 1.0


def test_the_adapter_is_measured_and_not_the_base(opened):
    loaded, renderer = opened
    rows = test_rows(conversations(ROWS), renderer, loaded.context)
    base = measure(loaded.model, rows, renderer, adapter=None, title="base").metrics["loss"]
    attach(loaded.model, "tuned", LoraConfig(rank=4), seed=0)
    assert measure(loaded.model, rows, renderer, adapter="tuned", title="tuned").metrics["loss"] == base  # B = 0
    with torch.no_grad():
        for name, parameter in adapter_parameters(loaded.model, "tuned").items():
            if name.endswith("lora_B.weight"):
                parameter.fill_(0.05)
    assert measure(loaded.model, rows, renderer, adapter="tuned", title="tuned").metrics["loss"] != base
    assert measure(loaded.model, rows, renderer, adapter=None, title="base").metrics["loss"] == base


def test_raw_text_has_a_loss_and_no_answers(opened):
    loaded, renderer = opened
    rows = test_rows([Conversation((Message("text", "free lunch today", True),), "f:1")], renderer, loaded.context)
    measured = measure(loaded.model, rows, renderer, adapter=None, title="base")
    assert set(measured.metrics) == {"loss", "perplexity", "bits_per_byte"}
    assert measured.answers == []


def test_no_rows_and_rows_of_two_kinds_are_refused(opened):
    loaded, renderer = opened
    with pytest.raises(BadInput, match="no test rows"):
        test_rows([], renderer, loaded.context)
    with pytest.raises(BadInput, match="raw text and some have answers"):
        test_rows([*conversations(ROWS), Conversation((Message("text", "x", True),), "f:9")], renderer, loaded.context)


def test_answers_get_room_for_a_little_more_than_the_longest_reference(opened):
    loaded, renderer = opened
    rows = test_rows(conversations([*ROWS, ("a", "yes " * 30)]), renderer, loaded.context)
    assert rows.longest_answer_tokens < max_new_tokens_for(rows, None) < 2 * rows.longest_answer_tokens
    assert max_new_tokens_for(rows, 7) == 7


def test_every_right_answer_of_a_row_is_accepted_the_trained_one_first(opened):
    loaded, renderer = opened
    several = Conversation((Message("user", "x", False), Message("assistant", "b", True)), "f:1", {"references": ["a", "b", "c"]})
    rows = test_rows([several, *conversations(ROWS)], renderer, loaded.context)
    assert rows.accepted[0] == ("b", "a", "c")
    assert rows.accepted[1] == ("spam",)
    assert rows.references[:2] == ["b", "spam"]


OWN_MARKS = CHATML.replace("m['content']", "('[THINK]' + m.reasoning_content + '[/THINK]' if m.reasoning_content else '') + m['content']")


@pytest.mark.parametrize("template", [CHATML, OWN_MARKS])  # no thinking in it, and thinking between marks of its own
@pytest.mark.parametrize("special", [(), ("[THINK]", "[/THINK]"), ("<think>", "</think>")])
@pytest.mark.parametrize(
    "written, answer",
    [
        ("<think>\n0+2\n</think>\n\n2", "2"),
        ("0+2\n</think>\n\n2", "2"),  # the prompt ended in <think>
        ("[THINK]0+2[/THINK]2", "2"),
        ("[THINK]0+2[/THINK]\n2<|im_end|>", "2"),
        ("2", "2"),
        ("write [THINK] and [/THINK]", "write [THINK] and [/THINK]"),
        ("<think>never done", "<think>never done"),
        ("write <think> and </think>", "write <think> and </think>"),
    ],
)
def test_an_answer_is_scored_without_its_thinking(template: str, special: tuple[str, ...], written: str, answer: str):
    tokenizer = byte_level_tokenizer(template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *special]})
    for mark in special:
        answer = answer.replace(mark, "")  # control tokens in the midst of words are not read
    renderer = Renderer(tokenizer)
    assert spoken(renderer, tokenizer.encode(written, add_special_tokens=False)) == answer


def test_a_template_says_itself_what_stands_around_a_thought():
    assert Renderer(byte_level_tokenizer(OWN_MARKS)).thinking_marks == ("[THINK]", "[/THINK]")
    assert Renderer(byte_level_tokenizer(CHATML)).thinking_marks == ("<think>", "</think>")
    assert Renderer(byte_level_tokenizer(None)).thinking_marks == ("<think>", "</think>")
    opened = OWN_MARKS.replace("<|im_start|>assistant\n' }}{% endif", "<|im_start|>assistant\n[THINK]' }}{% endif")
    assert Renderer(byte_level_tokenizer(opened)).thinking_marks == ("", "[/THINK]")  # the prompt opens it


def test_a_reference_that_thinks_in_its_text_is_compared_by_what_follows(opened):
    loaded, renderer = opened
    row = Conversation((Message("user", "1+1?", False), Message("assistant", "[THINK]0+2[/THINK]2", True)), "f:1")
    rows = test_rows([row], renderer, loaded.context)
    assert (rows.references, rows.accepted) == (["2"], [("2",)])


def test_the_bytes_of_a_thought_that_is_trained_count_and_others_do_not(opened):
    loaded, _ = opened
    said = Message("assistant", "2", True, thinking="0+2")
    n_bytes = {}
    for policy in ("keep", "untrained", "strip"):
        renderer = Renderer(loaded.tokenizer, eos_ids=loaded.eos_ids, thinking=policy)
        [n_bytes[policy]] = test_rows([Conversation((Message("user", "1+1?", False), said), "f:1")], renderer, loaded.context).n_bytes
    assert n_bytes == {"keep": len("<think>\n0+2\n</think>\n\n2"), "untrained": 1, "strip": 1}


def test_an_answer_that_is_only_a_tool_call_has_bytes_too(opened):
    loaded, renderer = opened
    loaded.tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] or '') }}"
        "{% for call in m['tool_calls'] or [] %}<call>{{ call['function']['name'] }} {{ call['function']['arguments'] | tojson }}</call>"
        "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    call = Message("assistant", "", True, tool_calls=(ToolCall("lookup", {"city": "Oslo"}),))
    renderer = Renderer(loaded.tokenizer, eos_ids=loaded.eos_ids)
    rows = test_rows([Conversation((Message("user", "x", False), call), "f:1")], renderer, loaded.context)
    assert rows.n_bytes == [len('<call>lookup {"city": "Oslo"}</call>')]


def test_values_of_rows_and_their_weights_give_the_metrics_of_all(opened):
    loaded, renderer = opened
    rows = test_rows(conversations(ROWS), renderer, loaded.context)
    measured = measure(loaded.model, rows, renderer, adapter=None, title="base", max_new_tokens=4)
    for name, values in measured.values.items():
        weights = measured.weights.get(name, [1.0] * len(values))
        mean = sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
        assert mean == pytest.approx(measured.metrics[name]), name
