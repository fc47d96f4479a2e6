"""How good answers are, as numbers between 0 and 1: strings in, a dict of metrics out.

    task = task_of(references)                             # "label", "json" or "text"
    answer_metrics(task, predictions, references)          # {"accuracy": 0.97, "f1_ham": 0.98, "f1_spam": 0.9, …}
    row_metrics(task, predictions, references)             # {"accuracy": [1.0, 0.0, 1.0, …], …}: those that are means over rows
    commonest(training_answers, references)                # the answer to give every time: a baseline

A share of right answers says little when one class is rare: 87 % of SMS are ham, so "ham" every time is 87 % accurate and
finds no spam at all. Hence F1 per class, and the majority baseline beside every table.

The answers of a language model are free text. An answer that is no known label, or no JSON, is wrong; it is never dropped.
Where several answers are right, a row's reference is a tuple of them, and each metric takes the best.

Sources: F1 per class and macro F1 are scikit-learn's; micro F1 over pairs as in slot filling (Coucke et al. 2018, arXiv
1805.10190); token F1 as in SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250); ROUGE-L in rouge.py.
"""

import json
import math
import re
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np

from tunesmith.data.digests import digests, first_equal
from tunesmith.errors import BadInput, MachineFailed
from tunesmith.evaluation.rouge import rouge_l

Task: TypeAlias = Literal["label", "json", "text"]
Reference: TypeAlias = str | tuple[str, ...]  # the right answer of a row, or several right ones, the best known first
Pair: TypeAlias = tuple[tuple[str | int | None, ...], tuple[str, Any]]  # (path, (JSON type, value))

MOST_NAMES = 50  # labels or JSON keys that get a metric each; more would be a list, not a table
LONGEST_LABEL = 40  # characters
INVALID = object()  # what `parse_json` returns for text that is not JSON; None is JSON's null
REPEATED = object()  # the value of a key that an answer gives twice: no reader knows which one was meant, so it equals nothing


def task_of(references: Sequence[str]) -> Task:
    """Which metrics fit these reference answers.

    json    every one is a JSON object or array, no key twice
    label   few distinct ones (at most 50), short (at most 40 characters), each in two rows or more on average
    text    anything else
    """
    if not references:
        raise BadInput("there are no reference answers to choose a metric from", fix="give test rows with answers, or set evaluation.task")
    values = [parse_json(reference) for reference in references]
    if all(isinstance(value, dict | list) and not has_repeated_key(value) for value in values):
        return "json"
    labels = {reference.strip() for reference in references}
    few = len(labels) <= MOST_NAMES and len(references) >= 2 * len(labels)
    return "label" if few and all(len(label) <= LONGEST_LABEL for label in labels) else "text"


def answer_metrics(task: Task, predictions: Sequence[str], references: Sequence[Reference]) -> dict[str, float]:
    """Metrics of predicted answers against the reference answers of the same rows, each 0 (worst) to 1, in a stable order.

    label   accuracy · f1_<label> of each label in the references · f1_macro, their mean · valid_label, the share of answers that
            are one of those labels. White space around an answer is ignored; an answer outside the labels is a miss for its row.
    json    valid_json, the grammar of RFC 8259 · repeated_keys, the share of answers that give a key twice (0 is best): the grammar
            allows it, but such a value is wrong below · exact_match of the parsed values (key order ignored) · accuracy_<key> of
            each top-level key whose references are all scalars, over the rows that have it · f1_<key> of each other top-level
            key, micro F1 of its (path, value) pairs · f1_fields, micro F1 of all pairs. Invalid JSON is wrong everywhere. Lists
            of scalars are bags in the F1s; exact_match keeps their order. Keys get no metric each if there are more than 50.
    text    exact_match, white space around it ignored · token_f1, mean overlap of words (SQuAD's: case, punctuation, articles ignored)
            · rouge_l, mean overlap of words in the same order

    Of several references, labels and JSON are held against the one that the answer equals (the first if none); text takes the best
    for each metric. Names hold letters, digits and _ only ("not spam" becomes f1_not_spam), and two labels never share one.
    """
    _must_pair(predictions, references)
    if task == "text":
        return {name: math.fsum(values) / len(values) for name, values in row_metrics(task, predictions, references).items()}
    nearest = [_held_against(task, p, r) for p, r in zip(predictions, references, strict=True)]
    return _label_metrics(predictions, nearest) if task == "label" else _json_metrics(predictions, nearest)


def row_metrics(task: Task, predictions: Sequence[str], references: Sequence[Reference]) -> dict[str, list[float]]:
    """The metrics of `answer_metrics` that are means over rows, as one value per row: what two models are compared by."""
    _must_pair(predictions, references)
    pairs_of_rows = [(p, _several(r)) for p, r in zip(predictions, references, strict=True)]
    right = [float(any(same_answer(task, p, one) for one in r)) for p, r in pairs_of_rows]
    if task == "label":
        labels = {_held_against(task, p, r).strip() for p, r in pairs_of_rows}
        return {"accuracy": right, "valid_label": [float(p.strip() in labels) for p in predictions]}
    if task == "json":
        return {"valid_json": [float(parse_json(p) is not INVALID) for p in predictions], "exact_match": right}
    return {
        "exact_match": right,
        "token_f1": [max(token_f1(p, one) for one in r) for p, r in pairs_of_rows],
        "rouge_l": [max(rouge_l(p, one) for one in r) for p, r in pairs_of_rows],
    }


def _must_pair(predictions: Sequence[str], references: Sequence[Reference]) -> None:
    if len(predictions) != len(references):
        raise BadInput(
            f"{len(predictions)} answers for {len(references)} reference answers", fix="give one answer per row, in the same order"
        )
    if not references:
        raise BadInput("there are no rows to measure", fix="give at least one row with a reference answer")


def _several(reference: Reference) -> tuple[str, ...]:
    return (reference,) if isinstance(reference, str) else reference


def _held_against(task: Task, prediction: str, reference: Reference) -> str:
    """The reference that an answer equals; the first if it equals none."""
    several = _several(reference)
    return next((one for one in several if same_answer(task, prediction, one)), several[0])


def commonest(train_answers: Sequence[str], references: Sequence[Reference]) -> str:
    """The most frequent training answer (reference answer, if no training answers are known); of equally frequent ones the first."""
    answers = train_answers or [_several(reference)[0] for reference in references]
    if not answers:
        raise BadInput("there are no rows to measure", fix="give at least one row with a reference answer")
    counts = np.bincount(
        first_equal(digests(answer.strip() for answer in answers))
    )  # at the place of the first of each; they may be millions
    return answers[int(counts.argmax())].strip()


def language_metrics(nll_sum: float, n_tokens: int, n_bytes: int) -> dict[str, float]:
    """How well text is predicted, from the summed negative log-likelihood (in nats) of its tokens.

    loss           nats per predicted token
    perplexity     exp(loss); left out where that overflows (a loss above 709), as JSON has no infinity
    bits_per_byte  bits per UTF-8 byte of the text that those tokens spell: comparable between tokenizers, unlike the other two
    """
    if n_tokens <= 0 or n_bytes <= 0:
        raise BadInput(f"nothing was predicted: {n_tokens} tokens, {n_bytes} bytes", fix="give at least one row with text to predict")
    if not math.isfinite(nll_sum):
        raise MachineFailed(
            f"the model's loss on these rows is {nll_sum}", fix="its weights or activations overflow: try training.dtype: float32"
        )
    loss = nll_sum / n_tokens
    perplexity = {"perplexity": math.exp(loss)} if loss < math.log(sys.float_info.max) else {}
    return {"loss": loss, **perplexity, "bits_per_byte": nll_sum / math.log(2) / n_bytes}


def same_answer(task: Task, prediction: str, reference: str) -> bool:
    """Whether one answer is right: equal parsed values for json, equal text less outer white space otherwise."""
    if task != "json":
        return prediction.strip() == reference.strip()
    predicted, expected = parse_json(prediction), parse_json(reference)
    return predicted is not INVALID and expected is not INVALID and set(pairs(predicted)) == set(pairs(expected))


def parse_json(text: str) -> Any:
    """The value that a JSON text spells, or INVALID: also for NaN and Infinity, which Python would accept.

    A key given twice has the value REPEATED, where Python would silently keep the last.
    """
    try:
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=_object)
    except (ValueError, RecursionError):  # RecursionError: a model that repeats "[" a thousand times
        return INVALID


def _refuse(literal: str) -> Any:
    raise ValueError(f"{literal} is not JSON")


def _object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in items:
        result[key] = REPEATED if key in result else value
    return result


def has_repeated_key(value: Any) -> bool:
    return any(leaf == _typed(REPEATED) for _, leaf in pairs(value))


def pairs(value: Any, bags: bool = False) -> list[Pair]:
    """The (path, value) pairs of a JSON value's leaves.

        {"intent": "play", "slots": {"artist": ["Abba", "Toto"]}}
        (("intent",), "play")   (("slots", "artist", 0), "Abba")   (("slots", "artist", 1), "Toto")

    Two values are equal exactly when the sets of their pairs are: an empty object or array is a leaf of its own here, true is not
    1, and 1 is 1.0. With `bags`, for counting, empty ones give no pair and members of a list of scalars share the position None.
    """
    found: list[Pair] = []
    todo: list[tuple[tuple[str | int | None, ...], Any]] = [((), value)]  # a stack of our own: a value may be nested deeper than calls may
    while todo:
        path, here = todo.pop()
        if isinstance(here, dict) and here:
            todo += [((*path, key), inner) for key, inner in here.items()]
        elif isinstance(here, list) and here:
            positions = [None] * len(here) if bags and not any(isinstance(inner, dict | list) for inner in here) else range(len(here))
            todo += [((*path, position), inner) for position, inner in zip(positions, here, strict=True)]
        elif not (bags and isinstance(here, dict | list)):
            found.append((path, _typed(here)))
    return found


def _typed(leaf: Any) -> tuple[str, Any]:
    if leaf is REPEATED:
        return "repeated", None
    if isinstance(leaf, dict | list):
        return type(leaf).__name__, None
    if isinstance(leaf, bool) or leaf is None:
        return "constant", leaf
    return ("string" if isinstance(leaf, str) else "number"), leaf


def token_f1(prediction: str, reference: str) -> float:
    """Overlap of two answers as bags of words: 2 · shared / (words of one + words of the other); two empty answers agree."""
    predicted, expected = Counter(_words(prediction)), Counter(_words(reference))
    if not predicted and not expected:
        return 1.0
    return 2 * (predicted & expected).total() / (predicted.total() + expected.total())


def _words(text: str) -> list[str]:
    """Casefolded words without punctuation (removed, not split at: don't = dont) and without English articles, as SQuAD counts."""
    kept = "".join(c for c in text.casefold() if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    return [word for word in kept.split() if word not in {"a", "an", "the"}]


def metric_names(prefix: str, names: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """A metric name for each label or key, of letters, digits and _ only: {"not spam": "f1_not_spam"}.

    Names that need no change keep themselves; others that collide with them, with each other or with `taken` get _2, _3 …
    """
    used, result = set(taken), {}
    for name in sorted(set(names), key=lambda n: (_safe(n) != n, n)):
        first = candidate = prefix + _safe(name)
        number = 1
        while candidate in used:
            number += 1
            candidate = f"{first}_{number}"
        used.add(candidate)
        result[name] = candidate
    return result


def _safe(name: str) -> str:
    name = re.sub(r"^\s*-(?=\d)", "minus ", name)  # sentiment labels are often -1, 0 and 1
    safe = re.sub(r"\W+", "_", name).strip("_")
    if not safe:  # "+", "👍": by their Unicode names
        safe = re.sub(r"\W+", "_", "_".join(unicodedata.name(c, "sign") for c in name.strip()).lower())
    return safe or "empty"


def _share(hits: Iterable[bool]) -> float:
    counted = list(hits)
    return sum(counted) / len(counted)


def _label_metrics(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    from sklearn.metrics import f1_score  # half a second to import, and only labels need it

    expected, predicted = [r.strip() for r in references], [p.strip() for p in predictions]
    labels = sorted(set(expected))
    # An answer outside the labels becomes one more class, which is no label: a miss for its row, a false alarm for none.
    # Words, not numbers: scikit-learn takes many different numbers for a regression and warns.
    as_class = {label: f"label {i}" for i, label in enumerate(labels)}
    scores = f1_score(
        [as_class[label] for label in expected],
        [as_class.get(answer, "outside") for answer in predicted],
        labels=list(as_class.values()),
        average=None,
        zero_division=0.0,
    )
    f1_names = metric_names("f1_", labels, taken=["f1_macro"])
    return {
        "accuracy": _share(p == r for p, r in zip(predicted, expected, strict=True)),
        **{f1_names[label]: float(score) for label, score in zip(labels, scores, strict=True)},
        "f1_macro": float(scores.mean()),
        "valid_label": _share(answer in as_class for answer in predicted),
    }


def _json_metrics(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    expected = [parse_json(reference) for reference in references]
    predicted = [parse_json(prediction) for prediction in predictions]
    for row, value in enumerate(expected):
        if value is INVALID or has_repeated_key(value):
            problem = "is not JSON" if value is INVALID else "gives a key twice"
            shown = references[row] if len(references[row]) <= 60 else references[row][:60] + "…"
            raise BadInput(f"a reference answer {problem}", where=f"answer {row + 1}: {shown}", fix="set evaluation.task to text or label")
    result = {
        "valid_json": _share(value is not INVALID for value in predicted),
        "repeated_keys": _share(value is not INVALID and has_repeated_key(value) for value in predicted),
        "exact_match": _share(same_answer("json", p, r) for p, r in zip(predictions, references, strict=True)),
    }

    keys = list(dict.fromkeys(key for value in expected if isinstance(value, dict) for key in value))
    if len(keys) <= MOST_NAMES:
        scalar = [k for k in keys if not any(isinstance(v.get(k), dict | list) for v in expected if isinstance(v, dict))]
        accuracy_names = metric_names("accuracy_", scalar)
        f1_names = metric_names("f1_", (k for k in keys if k not in scalar), taken=["f1_fields"])
        for key in keys:
            if key in accuracy_names:
                rows = [(p, r) for p, r in zip(predicted, expected, strict=True) if isinstance(r, dict) and key in r]
                result[accuracy_names[key]] = _share(isinstance(p, dict) and key in p and _typed(p[key]) == _typed(r[key]) for p, r in rows)
            else:
                result[f1_names[key]] = _micro_f1(predicted, expected, partial(_member, key))
    result["f1_fields"] = _micro_f1(predicted, expected, lambda value: [value])
    return result


def _member(key: str, value: Any) -> list[Any]:
    return [value[key]] if isinstance(value, dict) and key in value else []


def _micro_f1(predicted: Sequence[Any], expected: Sequence[Any], part: Callable[[Any], list[Any]]) -> float:
    """2 · shared pairs / (predicted pairs + expected pairs), summed over the rows, of the `part` of each value."""

    def counted(value: Any) -> Counter[Pair]:
        return Counter(pair for inner in part(value) for pair in pairs(inner, bags=True)) if value is not INVALID else Counter()

    shared = total = 0
    for p, r in zip(predicted, expected, strict=True):
        found, wanted = counted(p), counted(r)
        shared += (found & wanted).total()
        total += found.total() + wanted.total()
    if total == 0:  # nothing to find and nothing found: right where the answer was JSON at all
        return _share(value is not INVALID for value in predicted)
    return 2 * shared / total
