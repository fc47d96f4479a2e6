"""Several tasks in one evaluation: each measured by what fits it, their mean, and what tuning changed with its interval.

    tasks = task_rows(conversations, train_answers, run.evaluation, renderer, context)       # one TaskRows for each task
    measured = {"base": measure_tasks(model, tasks, …, adapter=None), "sms": measure_tasks(model, tasks, …, adapter="sms")}
    evaluation = summary(tasks, measured)
    evaluation["tasks"]["sst2"]["models"]["base"]["accuracy"]
    evaluation["macro"]["models"]["sms"]["rouge_l"]                                          # mean over tasks, each counted once
    evaluation["differences"]["sms"]["base"]["macro"]["rouge_l"]                             # {"value", "low", "high"}

Rows that come from one dataset are one task without a name, and the evaluation then has no "tasks" and no "macro". One task that has
a name (the only one that was held out of several) is measured as it would be among others; only "macro" is missing.

A task with a name also gets exact_match, token_f1 and rouge_l, whatever its kind, so that there is something to take the
mean of. An answer may be as long as its own task's longest reference: one task that asks for essays does not make a model ramble
in all others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.config import EvaluationConfig
from tunesmith.data.conversation import Conversation
from tunesmith.data.mixture import by_task
from tunesmith.data.spool import column
from tunesmith.data.template import Renderer
from tunesmith.errors import BadInput
from tunesmith.evaluation import score
from tunesmith.evaluation.bootstrap import Interval, mcnemar, paired_difference
from tunesmith.evaluation.choice import column_choices, label_choices
from tunesmith.evaluation.metrics import MOST_NAMES, Task, answer_metrics, commonest, language_metrics, row_metrics, task_of
from tunesmith.evaluation.score import Measured, TestRows
from tunesmith.evaluation.sensitivity import consistency, spread

RIGHT_OR_WRONG = {"accuracy", "exact_match", "choice", "choice_per_token", "choice_pmi"}  # of a row: McNemar's test fits
BASELINES = ("majority", "base")


@dataclass(frozen=True)
class TaskRows:
    """The rows of one task, and how they are measured.

    kind      which metrics fit: label, json or text
    choices   possible answers of each row, None where likelihood chooses nothing; same_choices: all rows have the same ones
    majority  the commonest training answer (the commonest reference of an unseen task)
    """

    name: str
    rows: TestRows
    kind: Task
    choices: list[list[str]] | None
    majority: str

    @property
    def same_choices(self) -> bool:
        return self.choices is not None and all(choices == self.choices[0] for choices in self.choices)


def task_rows(
    conversations: Sequence[Conversation],
    training: Sequence[Conversation],
    config: EvaluationConfig,
    renderer: Renderer,
    context: int | None,
) -> list[TaskRows]:
    """The test rows, task by task. training: rows whose answers say what is common and which labels there are; may be empty."""
    groups = by_task(conversations)
    answers = {name: column(len(rows), (c.answer for c in rows if c.answer is not None)) for name, rows in by_task(training).items()}
    if not groups:
        score.test_rows([], renderer, context)  # refuses, with the reason
    found = []
    for name, members in groups.items():
        rows = score.test_rows(members, renderer, context)
        kind = (task_of(rows.references) if config.task == "auto" else config.task) if rows.prompts else "text"
        known = answers.get(name, [])
        choices = _choices(rows, kind, known, config.choices, named=any(groups))
        found.append(TaskRows(name, rows, kind, choices, commonest(known, rows.references) if rows.prompts else ""))
    with_prompts = [task for task in found if task.rows.prompts]
    if with_prompts and len(with_prompts) < len(found):
        where = with_prompts[0].rows.conversations[0].source
        raise BadInput("some test rows are raw text and some have answers", where=where, fix="test on one kind at a time")
    return found


def _choices(rows: TestRows, kind: Task, known: Sequence[str], asked: str, named: bool) -> list[list[str]] | None:
    if not rows.prompts or asked == "none" or (asked in ("auto", "labels") and kind != "label") or (asked == "auto" and not named):
        return None
    if asked not in ("auto", "labels"):
        return column_choices(rows.conversations, asked)
    return label_choices(rows.accepted, _names(known))


def _names(answers: Sequence[str]) -> Sequence[str]:
    """The different answers, if they are few enough to be names."""
    names: set[str] = set()
    for answer in answers:
        names.add(answer)
        if len(names) > MOST_NAMES:
            return ()
    return sorted(names)


def measure_tasks(
    model: Any,
    tasks: Sequence[TaskRows],
    renderer: Renderer,
    config: EvaluationConfig,
    *,
    adapter: str | None,
    title: str,
    context: int | None,
) -> dict[str, Measured]:
    """Each task's rows measured on one model (score.measure)."""
    found = {}
    for task in tasks:
        measured = score.measure(
            model, task.rows, renderer, adapter=adapter, title=" ".join(filter(None, [title, task.name])), task=task.kind,
            max_new_tokens=config.max_new_tokens, batch_size=config.batch_size, choices=task.choices, context=context,
        )  # fmt: skip
        found[task.name] = _with_text_metrics(measured, task) if have_names(tasks) else measured
    return found


def have_names(tasks: Sequence[TaskRows]) -> bool:
    """Whether the rows say which task they are of; the rows of one dataset do not."""
    return any(task.name for task in tasks)


def majority(tasks: Sequence[TaskRows]) -> dict[str, Measured]:
    """What the commonest answer of each task, every time, would be measured as; empty for one task of free text or raw text."""
    if not tasks[0].rows.prompts or (len(tasks) == 1 and tasks[0].kind == "text" and tasks[0].choices is None):
        return {}
    found = {}
    for task in tasks:
        answers = [task.majority] * len(task.rows.prompts)
        metrics, values = answer_metrics(task.kind, answers, task.rows.accepted), row_metrics(task.kind, answers, task.rows.accepted)
        if task.same_choices:
            values["choice"] = row_metrics("label", answers, task.rows.accepted)["accuracy"]
            metrics["choice"] = _mean(values["choice"])
        measured = Measured(metrics, answers, [], values, {})
        found[task.name] = _with_text_metrics(measured, task) if have_names(tasks) else measured
    return found


def _with_text_metrics(measured: Measured, task: TaskRows) -> Measured:
    """Whatever its kind; where both know a metric (a JSON answer's exact match) the kind's own stays."""
    if not measured.answers:
        return measured
    text = row_metrics("text", measured.answers, task.rows.accepted)
    metrics = {name: _mean(values) for name, values in text.items()}
    return Measured(metrics | measured.metrics, measured.answers, measured.stopped, text | measured.values, measured.weights)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# --- one dict of all --------------------------------------------------------------------------------------------------------


def summary(tasks: Sequence[TaskRows], measured: Mapping[str, Mapping[str, Measured]]) -> dict[str, Any]:
    """What evaluation.json keeps, made of each model's measurements of each task.

    rows, task, models     all rows together: the metrics that every task has
    tasks                  of each task rows, kind, majority_share and models
    macro                  means over several tasks of the metrics that every task has; choice over those tasks that have it (n_tasks)
    differences            [tuned model][base or majority]: overall, macro and tasks, each metric with its 95 % interval
    """
    several = len(tasks) > 1
    kinds = {task.kind for task in tasks}
    found: dict[str, Any] = {
        "rows": sum(len(task.rows.conversations) for task in tasks),
        "task": kinds.pop() if not several else "text",
        "models": {name: _overall(of_tasks) for name, of_tasks in measured.items()},
    }
    if have_names(tasks):
        found["tasks"] = {
            task.name: {
                "rows": len(task.rows.conversations),
                "kind": task.kind,
                "majority_share": _mean(row_metrics("text", [task.majority] * len(task.rows.prompts), task.rows.accepted)["exact_match"])
                if task.rows.prompts
                else None,
                "models": {name: of_tasks[task.name].metrics for name, of_tasks in measured.items() if task.name in of_tasks},
            }
            for task in tasks
        }
    if several:
        found["macro"] = macro({name: {task: m.metrics for task, m in of_tasks.items()} for name, of_tasks in measured.items()})
    tuned = [name for name in measured if name not in BASELINES]
    against = [name for name in ("base", "majority") if measured.get(name)]
    if tuned and against:
        found["differences"] = {name: {other: differences(measured[other], measured[name]) for other in against} for name in tuned}
    return found


def _overall(of_tasks: Mapping[str, Measured]) -> dict[str, float]:
    """Metrics over all rows: those of the only task, or what every task has a value per row of."""
    if len(of_tasks) == 1:
        return next(iter(of_tasks.values())).metrics
    values, weights = pooled(of_tasks)
    metrics: dict[str, float] = {}
    if "loss" in values:
        nats = sum(v * w for v, w in zip(values["loss"], weights["loss"], strict=True))
        metrics = language_metrics(nats, int(sum(weights["loss"])), int(sum(weights["bits_per_byte"])))
    return metrics | {name: _mean(of_rows) for name, of_rows in values.items() if name not in weights}


def pooled(of_tasks: Mapping[str, Measured]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Values of all rows, for the metrics that every task has, and the weights of those whose mean is weighted."""
    names = [name for name in next(iter(of_tasks.values())).values if all(name in m.values for m in of_tasks.values())]
    values = {name: [value for m in of_tasks.values() for value in m.values[name]] for name in names}
    weighted = [name for name in names if all(name in m.weights for m in of_tasks.values())]
    return values, {name: [weight for m in of_tasks.values() for weight in m.weights[name]] for name in weighted}


def macro(models: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Means over tasks, of models → tasks → metrics. n_tasks: of how many tasks, where that is not all of them."""
    result: dict[str, Any] = {"models": {}, "n_tasks": {}}
    for name, of_tasks in models.items():
        metrics = dict.fromkeys(metric for values in of_tasks.values() for metric in values if metric != "perplexity")
        means = {}
        for metric in metrics:
            there = [values[metric] for values in of_tasks.values() if metric in values]
            if len(there) < len(of_tasks) and metric not in RIGHT_OR_WRONG:
                continue  # the F1 of a label, or a key of some task's JSON
            means[metric] = _mean(there)
            if len(there) < len(of_tasks):
                result["n_tasks"][metric] = len(there)
        result["models"][name] = means
    return result


def differences(before: Mapping[str, Measured], after: Mapping[str, Measured]) -> dict[str, Any]:
    """What changed from one model to another on the same rows, with 95 % intervals (bootstrap.py): overall, in the mean over tasks, per task.

    A metric whose rows are right or wrong also has gained, lost and p: McNemar's test. The intervals are of one metric each: of
    twenty that show nothing, one is expected to exclude zero.
    """
    each = {task: _of_task(before[task], after[task]) for task in after}
    if len(each) == 1:
        return {"overall": next(iter(each.values())), **({"tasks": each} if any(each) else {})}
    (values_before, _), (values_after, weights) = pooled(before), pooled(after)
    shared = [name for name in values_after if name in values_before]
    overall = {name: _change(values_before[name], values_after[name], weights.get(name), name) for name in shared}
    means = {}
    for name in dict.fromkeys(name for of_task in each.values() for name in of_task):
        there = {task: after[task] for task in each if name in each[task]}
        if len(there) == len(each) or name in RIGHT_OR_WRONG:  # else the F1 of a label, or a key of some task's JSON
            (rows_before, _), (rows_after, rows_weights) = pooled({task: before[task] for task in there}), pooled(there)
            groups = [task for task, m in there.items() for _ in m.values[name]]
            interval = paired_difference(rows_before[name], rows_after[name], groups=groups, weights=rows_weights.get(name))
            means[name] = as_json(interval)
    return {"overall": overall, "macro": means, "tasks": each}


def _of_task(before: Measured, after: Measured) -> dict[str, Any]:
    shared = [name for name in after.values if name in before.values]
    return {name: _change(before.values[name], after.values[name], after.weights.get(name), name) for name in shared}


def _change(before: Sequence[float], after: Sequence[float], weights: Sequence[float] | None, name: str) -> dict[str, Any]:
    change = as_json(paired_difference(before, after, weights=weights))
    if name not in RIGHT_OR_WRONG:
        return change
    test = mcnemar(before, after)
    return change | {"gained": test.gained, "lost": test.lost, "p": test.p}


def as_json(interval: Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def phrasing_summary(phrasings: Mapping[str, Sequence[str]], measured: Sequence[Mapping[str, Mapping[str, Measured]]]) -> dict[str, Any]:
    """How scores vary over phrasings. measured: of the rows as they stand, then of each phrasing.

    texts        the phrasings, by task
    models       [model][metric]: values of each phrasing, as they stand first, mean, min, max, sd; over several tasks of the macro mean
    tasks        the same for each task, where there are several
    consistent   [model]: share of rows answered in the same words under all phrasings
    """
    names = [name for name in measured[0] if name != "majority"]  # which does not read the question
    task_names = list(measured[0][names[0]])
    several = len(task_names) > 1

    def whole(name: str) -> list[Mapping[str, float]]:
        if not several:
            return [of_models[name][task_names[0]].metrics for of_models in measured]
        return [macro({name: {task: m.metrics for task, m in of_models[name].items()}})["models"][name] for of_models in measured]

    found: dict[str, Any] = {
        "texts": {task: list(texts) for task, texts in phrasings.items()},
        "models": {name: _spreads(whole(name)) for name in names},
        "consistent": {
            name: consistency([[answer for m in of_models[name].values() for answer in m.answers] for of_models in measured])
            for name in names
        },
    }
    if several:
        found["tasks"] = {
            task: {name: _spreads([of_models[name][task].metrics for of_models in measured]) for name in names} for task in task_names
        }
    return found


def _spreads(metrics: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    shared = [name for name in metrics[0] if all(name in each for each in metrics)]
    return {name: {"values": (values := [each[name] for each in metrics]), **spread(values)} for name in shared}


def row_records(tasks: Sequence[TaskRows], measured: Mapping[str, Mapping[str, Measured]]) -> list[dict[str, Any]]:
    """One record per row: where it is, what was right, what each model answered and its value of each metric (evaluation-rows.jsonl)."""
    records = []
    for task in tasks:
        of_models = {name: of_tasks[task.name] for name, of_tasks in measured.items() if task.name in of_tasks}
        weights = next((m.weights for name, m in of_models.items() if m.weights), {})
        for row, conversation in enumerate(task.rows.conversations):
            records.append(
                {
                    "source": conversation.source, "task": task.name,
                    "references": list(task.rows.accepted[row]) if task.rows.prompts else [],
                    "answers": {name: m.answers[row] for name, m in of_models.items() if m.answers and name != "majority"},
                    "values": {name: {metric: of_rows[row] for metric, of_rows in m.values.items()} for name, m in of_models.items()},
                    "weights": {metric: of_rows[row] for metric, of_rows in weights.items()},
                }
            )  # fmt: skip
    return records


def measured_of(records: Sequence[Mapping[str, Any]], name: str) -> dict[str, Measured]:
    """One model's measurements by task, as `differences` takes them, from what row_records wrote; empty if it was not measured."""
    found: dict[str, Measured] = {}
    for record in records:
        if name not in record["values"]:
            return {}
        measured = found.setdefault(record["task"], Measured({}, [], [], {}, {}))
        for into, values in ((measured.values, record["values"][name]), (measured.weights, record["weights"])):
            for metric, value in values.items():
                into.setdefault(metric, []).append(value)
    return found
