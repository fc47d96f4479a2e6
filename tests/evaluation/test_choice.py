"""Choosing among possible answers by likelihood, against transformers' own logits, one candidate at a time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.template import Renderer
from tunesmith.errors import BadInput
from tunesmith.evaluation.choice import PREMISE, choice_metrics, column_choices, label_choices, premise, score_choices
from tunesmith.evaluation.likelihood import log_likelihoods
from tunesmith.loss import Scored, nll_of
from tunesmith.model.load import load_model

LABELS = ["ham", "spam", "a prize message"]  # one much longer than the others
INSTRUCTION = "spam or ham"


@pytest.fixture
def opened(tiny_model: Path):
    loaded = load_model(str(tiny_model), "float32")
    return Scored(loaded.model).eval(), Renderer(loaded.tokenizer, eos_ids=loaded.eos_ids)


def row(text: str, answer: str, number: int = 1, **fields) -> Conversation:
    return Conversation((Message("user", text, False), Message("assistant", answer, True)), f"f:{number}", fields)


ROWS = [
    row(f"{INSTRUCTION}\n\n{text}", answer, n, definition=f" {INSTRUCTION} ")
    for n, (text, answer) in enumerate([("free prize", "spam"), ("lunch", "ham"), ("call me now today", "ham"), ("win", "spam")], 1)
]


def by_hand(scored: Scored, renderer: Renderer, question: str, answer: str) -> tuple[float, int]:
    """log p(answer and its stop token | question), by the logits of one plain forward pass."""
    prompt = renderer.prompt_ids([Message("user", question, False)])
    ids = [*prompt, *renderer.tokenizer(answer, add_special_tokens=False)["input_ids"], renderer.stop_id]
    with torch.no_grad():
        logs = torch.log_softmax(scored.model(input_ids=torch.tensor([ids])).logits[0].double(), dim=-1)
    return sum(float(logs[t - 1, ids[t]]) for t in range(len(prompt), len(ids))), len(ids) - len(prompt)


def test_every_score_is_that_of_the_whole_answer_with_its_stop_token(opened):
    scored, renderer = opened
    found = score_choices(scored, ROWS, [LABELS] * 4, renderer)
    for conversation, scores in zip(ROWS, found, strict=True):
        for answer, log, log_of_premise, n in zip(LABELS, scores.given_prompt, scores.given_premise, scores.n_tokens, strict=True):
            expected, n_tokens = by_hand(scored, renderer, conversation.prompt[0].content, answer)
            assert log == pytest.approx(expected, rel=1e-5)
            assert n == n_tokens
            assert log_of_premise == pytest.approx(by_hand(scored, renderer, INSTRUCTION, answer)[0], rel=1e-5)


def test_answers_are_compared_under_the_tools_that_their_row_offers(opened):
    scored, renderer = opened
    renderer.tokenizer.chat_template = (
        "{% for t in tools or [] %}{{ t['function']['name'] }} {% endfor %}" + renderer.tokenizer.chat_template
    )
    renderer = Renderer(renderer.tokenizer)
    tools = ({"type": "function", "function": {"name": "find_spam", "description": "", "parameters": {}}},)
    [without], [offered] = (score_choices(scored, [replace(ROWS[0], tools=given)], [["ham", "spam"]], renderer) for given in ((), tools))
    assert not np.allclose(without.given_prompt, offered.given_prompt)
    assert not np.allclose(without.given_premise, offered.given_premise)


def test_the_three_ways_of_choosing_are_told_apart_and_counted_per_row(opened):
    scored, renderer = opened
    accepted = [("spam",), ("ham",), ("ham", "spam"), ("a prize message",)]
    values = choice_metrics(scored, ROWS, [LABELS] * 4, accepted, renderer)
    sums, means, pmi = [], [], []
    for conversation in ROWS:
        logs = [by_hand(scored, renderer, conversation.prompt[0].content, answer) for answer in LABELS]
        free = [by_hand(scored, renderer, INSTRUCTION, answer)[0] for answer in LABELS]
        sums.append(LABELS[int(np.argmax([log for log, _ in logs]))])
        means.append(LABELS[int(np.argmax([log / n for log, n in logs]))])
        pmi.append(LABELS[int(np.argmax([log - before for (log, _), before in zip(logs, free, strict=True)]))])
    for name, picked in (("choice", sums), ("choice_per_token", means), ("choice_pmi", pmi)):
        assert values[name] == [float(answer in right) for answer, right in zip(picked, accepted, strict=True)], name
    assert sums != means  # the long label wins per token: a test of one would not do for the other


def test_the_premise_is_the_instruction_where_the_row_has_one_and_asks_nothing_otherwise():
    assert premise(ROWS[0])[0].content == INSTRUCTION
    assert premise(row("free prize", "spam"))[0].content == PREMISE
    assert premise(row(INSTRUCTION, "spam", instruction=INSTRUCTION))[0].content == PREMISE  # nothing but the instruction
    system = Conversation((Message("system", "s", False), *ROWS[0].messages), "f:1", ROWS[0].fields)
    assert [m.content for m in premise(system)] == ["s", INSTRUCTION]


def test_possible_answers_are_all_labels_or_what_each_row_lists():
    assert label_choices([("ham",), ("spam ", "junk")], more=["eggs", "ham"]) == [["eggs", "ham", "junk", "spam"]] * 2
    rows = [row("odd one?", "b", options=["a", "b"]), row("odd one?", "z", options=["x", "y", "z"])]
    assert column_choices(rows, "options") == [["a", "b"], ["x", "y", "z"]]
    with pytest.raises(BadInput, match='"options" should list two answers') as error:
        column_choices([*rows, row("?", "a", 7, options="a or b")], "options")
    assert error.value.where == "f:7"


def test_a_right_answer_that_is_not_possible_is_refused_by_row(opened):
    scored, renderer = opened
    with pytest.raises(BadInput, match="'spam' is none of the possible answers ham, eggs") as error:
        choice_metrics(scored, ROWS[3:], [["ham", "eggs"]], [("spam",)], renderer)
    assert error.value.where == "f:4"
    with pytest.raises(BadInput, match="longer than the model's 8 positions"):
        score_choices(scored, ROWS, [LABELS] * 4, renderer, context=8)


def test_likelihoods_of_examples_add_up_to_the_loss_in_any_batching(opened):
    scored, renderer = opened
    examples = [
        example
        for n, text in enumerate(["free", "lunch later today", "call"] * 3)
        for example in renderer.render(row(text, "ham " * n + "spam"))
    ]
    whole = log_likelihoods(scored, examples)
    total, count = nll_of(scored, examples, 8192)
    assert -whole.sum.sum() == pytest.approx(total, rel=1e-5)
    assert whole.n_tokens.sum() == count
    alone = log_likelihoods(scored, examples, micro_batch_tokens=1)
    assert whole.sum == pytest.approx(alone.sum, rel=1e-5)
    scored.why_full_logits = "pretend that the head does more than multiply"
    assert log_likelihoods(scored, examples).sum == pytest.approx(whole.sum, rel=1e-5)
