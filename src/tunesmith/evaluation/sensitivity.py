"""The same rows under other words: how much of a score is owed to the phrasing of the instruction.

    texts = read_phrasings(Path("phrasings.yaml"))              # {"sst2": ["Is this review good or bad?", …], …}, or one list for all
    variants = rephrased(conversations, texts)                  # one list of conversations for each phrasing
    spread([0.71, 0.64, 0.70])                                  # {"mean": 0.683, "min": 0.64, "max": 0.71, "sd": 0.038}

A model that was tuned on one wording may know that wording and not the task. Scores of one phrasing are one draw from many; their
spread over phrasings says how far to trust it (Sclar et al. 2024, arXiv 2310.11324; Mizrahi et al. 2024, arXiv 2401.00595).

A phrasing is either a template that names columns, as data.prompt does, and makes the whole last user turn; or other words for the
row's instruction (its column "instruction", or "definition" of a task file), which are put in its place and leave the rest as it is.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from tunesmith.config import parse_yaml
from tunesmith.data.columns import columns_of
from tunesmith.data.conversation import Conversation
from tunesmith.data.formats import phrased
from tunesmith.errors import BadInput, nearest

Phrasings: TypeAlias = Mapping[str, Sequence[str]]  # by task; "" is for rows of any task
INSTRUCTIONS = ("instruction", "definition")  # columns


def read_phrasings(path: Path) -> dict[str, list[str]]:
    """Phrasings of a YAML or JSON file: a list, or lists by task. Every task has equally many, so that the n-th of all make one score."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"the phrasings cannot be read: {error}", where=str(path), fix="a YAML or JSON file in UTF-8") from None
    given = parse_yaml(text, str(path))  # JSON is YAML
    by_task = {"": given} if isinstance(given, list) else given
    example = 'as: {"sst2": ["Is this review good or bad?", "Say whether the critic liked the film."]}, or one list for all rows'
    if not isinstance(by_task, dict) or not by_task:
        raise BadInput("a file of phrasings holds a list of texts, or a list for each task", where=str(path), fix=example)
    for task, texts in by_task.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(one, str) and one.strip() for one in texts):
            raise BadInput(f"the phrasings of {task or 'all rows'} should be a list of texts", where=str(path), fix=example)
        if len(set(texts)) < len(texts):
            raise BadInput(f"a phrasing of {task or 'all rows'} is given twice", where=str(path), fix="leave one out")
    counts = {str(task): len(texts) for task, texts in by_task.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{task} {n}" for task, n in counts.items())
        raise BadInput(f"the tasks have different numbers of phrasings: {listed}", where=str(path), fix="give each as many")
    return {str(task): list(texts) for task, texts in by_task.items()}


def must_name_tasks(phrasings: Phrasings, conversations: Sequence[Conversation], where: str) -> None:
    """Refuse phrasings of a task that no row is of: under a mistyped name they would be left unread, or read for another task."""
    tasks = dict.fromkeys(conversation.task for conversation in conversations)
    if unknown := [name for name in phrasings if name and name not in tasks]:
        named = [task for task in tasks if task]
        raise BadInput(
            f'the phrasings are of the task "{unknown[0]}", and ' + ("no test row is" if named else "the test rows are of one dataset without a name"),
            where=where, fix=nearest(unknown[0], named) if named else "a list for all rows, without a task's name",
        )  # fmt: skip


def rephrased(conversations: Sequence[Conversation], phrasings: Phrasings, where: str = "the phrasings") -> list[list[Conversation]]:
    """The rows in the words of the first phrasing, of the second, and so on.

    Refused where a task has no phrasing, and where a row does not hold the instruction or the columns that a phrasing needs.
    """
    tasks = dict.fromkeys(conversation.task for conversation in conversations)
    default = phrasings.get("")
    for task in tasks:
        if task not in phrasings and default is None:
            what = f'the task "{task}"' if task else "rows of one dataset, which have no task's name"
            raise BadInput(
                f"there is no phrasing for {what}", where=where, fix=nearest(task, list(phrasings)) if task else "a list for all rows"
            )
    n = len(next(iter(phrasings.values())))
    return [[rephrase(c, phrasings.get(c.task, default or ())[number]) for c in conversations] for number in range(n)]


def rephrase(conversation: Conversation, phrasing: str) -> Conversation:
    """The row asked in other words; its answer stays."""
    if conversation.is_text:
        raise BadInput("raw text has no instruction to put in other words", where=conversation.source, fix="measure it without phrasings")
    columns = columns_of(phrasing)
    if columns:
        missing = [column for column in columns if conversation.fields.get(column) is None]
        if missing:
            raise BadInput(
                f'a phrasing names the column "{missing[0]}", which this row does not have', where=conversation.source,
                fix=nearest(missing[0], list(conversation.fields)) if conversation.fields else "a phrasing of the instruction names no column",
            )  # fmt: skip
        return phrased(conversation, phrasing)
    instruction, turns = instruction_of(conversation), conversation.messages
    at = next((i for i, m in enumerate(turns) if instruction is not None and not m.trained and instruction in m.content), None)
    if instruction is None or at is None:
        raise BadInput(
            'this row holds no instruction to put in other words: no column "instruction" or "definition" whose text is in its prompt',
            where=conversation.source, fix='give templates that name columns: "Spam or ham? {text}"',
        )  # fmt: skip
    content = turns[at].content.replace(instruction, phrasing.strip(), 1)
    fields = {**conversation.fields, **{name: phrasing.strip() for name in INSTRUCTIONS if name in conversation.fields}}
    return replace(conversation, messages=(*turns[:at], replace(turns[at], content=content), *turns[at + 1 :]), fields=fields)


def instruction_of(conversation: Conversation) -> str | None:
    """What the row's task asks for, as its column says; None where it has no such column."""
    found = next((conversation.fields[name] for name in INSTRUCTIONS if isinstance(conversation.fields.get(name), str)), None)
    return found.strip() or None if found is not None else None


def spread(scores: Sequence[float]) -> dict[str, float]:
    """Mean, ends and sample standard deviation of one metric over phrasings.

    The rows are the same under each, so rows that are hard for all do not widen it; but a difference between two phrasings has the
    error of these rows (bootstrap.paired_difference), and with few rows a part of the spread is that.
    """
    sd = statistics.stdev(scores) if len(scores) > 1 else 0.0
    return {"mean": statistics.fmean(scores), "min": min(scores), "max": max(scores), "sd": sd}


def consistency(answers: Sequence[Sequence[str]]) -> float:
    """Share of rows that were answered in the same words (but for case and white space) under every phrasing.

    answers   of each phrasing, the answers to all rows
    """
    rows = [{" ".join(answer.casefold().split()) for answer in of_row} for of_row in zip(*answers, strict=True)]
    return sum(len(different) == 1 for different in rows) / len(rows)
