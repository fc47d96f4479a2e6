"""Which of the possible answers the model finds likeliest: a score for closed questions that asks for no right spelling.

    possible = label_choices(references)                                     # [["ham", "spam"]] * n
    values = choice_metrics(scored, conversations, possible, accepted, renderer)
    values["choice"]                                                         # [1.0, 0.0, …]: was the likeliest one right

A model that has never seen the task writes "The answer is" where "1" was expected and scores nothing by its own words; by
likelihood it shows what it knows. Three ways to compare answers of different lengths, each a metric of its own:

    choice            log p(answer | prompt), summed over the answer's tokens and the stop token after it, as in training: the
                      probability of that answer and no longer one. The one to quote.
    choice_per_token  the same, divided by the number of tokens
    choice_pmi        log p(answer | prompt) − log p(answer | premise), the premise being the prompt without its question: what the
                      question adds. Takes away a model's liking for one label (Holtzman et al. 2021, arXiv 2104.08315: PMI_DC)

Beside them belongs what the commonest answer, every time, would reach: the majority share.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.template import Example, Renderer
from tunesmith.errors import BadInput
from tunesmith.evaluation.likelihood import log_likelihoods
from tunesmith.evaluation.sensitivity import instruction_of
from tunesmith.loss import Scored

PREMISE = "Answer:"  # a prompt that asks nothing, where the row has no instruction of its own


@dataclass(frozen=True)
class ChoiceScores:
    """Of one row's possible answers: log-likelihood after the prompt and after the premise (nats), and tokens, stop token included."""

    given_prompt: npt.NDArray[np.float64]
    given_premise: npt.NDArray[np.float64]
    n_tokens: npt.NDArray[np.int64]


def label_choices(accepted: Sequence[Sequence[str]], more: Sequence[str] = ()) -> list[list[str]]:
    """For every row the labels that any row has, in alphabetical order, with `more` that no row here happens to have."""
    labels = sorted({answer.strip() for answers in accepted for answer in answers} | {answer.strip() for answer in more})
    return [labels] * len(accepted)


def column_choices(conversations: Sequence[Conversation], column: str) -> list[list[str]]:
    """The answers that each row lists itself, in its column of this name."""
    found = []
    for conversation in conversations:
        listed = conversation.fields.get(column)
        if not isinstance(listed, list) or len(listed) < 2 or not all(isinstance(one, str) and one.strip() for one in listed):
            raise BadInput(
                f'"{column}" should list two answers or more', where=conversation.source,
                fix="evaluation.choices: the column that lists the possible answers of each row, or labels",
            )  # fmt: skip
        found.append([one.strip() for one in listed])
    return found


def choice_metrics(
    scored: Scored, conversations: Sequence[Conversation], possible: Sequence[Sequence[str]], accepted: Sequence[Sequence[str]],
    renderer: Renderer, context: int | None = None,
) -> dict[str, list[float]]:  # fmt: skip
    """1 where the likeliest of a row's possible answers is an accepted one, else 0; of equally likely ones the first is taken."""
    for conversation, answers, right in zip(conversations, possible, accepted, strict=True):
        if not {one.strip() for one in right} & set(answers):
            raise BadInput(
                f"the right answer {right[0]!r} is none of the possible answers {', '.join(answers)}", where=conversation.source,
                fix="list it among them, or leave evaluation.choices out",
            )  # fmt: skip
    scores = score_choices(scored, conversations, possible, renderer, context)
    ways = {
        "choice": [s.given_prompt for s in scores],
        "choice_per_token": [s.given_prompt / s.n_tokens for s in scores],
        "choice_pmi": [s.given_prompt - s.given_premise for s in scores],
    }
    return {
        name: [
            float(answers[int(np.argmax(score))] in {one.strip() for one in right})
            for score, answers, right in zip(of_rows, possible, accepted, strict=True)
        ]
        for name, of_rows in ways.items()
    }


def score_choices(
    scored: Scored, conversations: Sequence[Conversation], possible: Sequence[Sequence[str]], renderer: Renderer, context: int | None = None
) -> list[ChoiceScores]:
    """The scores of each row's possible answers, rendered as a training example of prompt and answer would be."""
    examples: list[Example] = []
    where: dict[str, int] = {}  # the rows of a task share its premise

    def place(conversation: Conversation, prompt: tuple[Message, ...], answer: str) -> int:
        source, tools = conversation.source, conversation.tools
        key = repr((prompt, tools, answer))
        if key not in where:
            where[key] = len(examples)
            turns = (*(replace(message, trained=False) for message in prompt), Message("assistant", answer, True))
            [example] = renderer.render(Conversation(turns, source, tools=tools))
            if context is not None and len(example) > context:
                raise BadInput(
                    f"a test row with its answer is longer than the model's {context:,} positions", where=f"{source}: {len(example):,} tokens",
                    fix="leave the row out of the test rows",
                )  # fmt: skip
            examples.append(example)
        return where[key]

    places = [
        [(place(c, c.prompt, answer), place(c, premise(c), answer)) for answer in answers]
        for c, answers in zip(conversations, possible, strict=True)
    ]
    found = log_likelihoods(scored, examples)
    result = []
    for of_row in places:
        prompted, premised = (np.array(side) for side in zip(*of_row, strict=True))
        result.append(ChoiceScores(found.sum[prompted], found.sum[premised], found.n_tokens[prompted]))
    return result


def premise(conversation: Conversation) -> tuple[Message, ...]:
    """The prompt with its question taken out: the last user turn says only the row's instruction, or nothing to the point."""
    *earlier, last = conversation.prompt
    instruction = instruction_of(conversation)
    leaves_a_question = instruction is not None and instruction in last.content and instruction != last.content.strip()
    return (*earlier, replace(last, content=str(instruction) if leaves_a_question else PREMISE))
