"""Does instruction tuning teach a model to follow instructions, or only what answers look like? Trained, measured, written down.

    python scripts/super_ni_experiment.py --data ../shared/data/super_ni --runs runs/super_ni --seeds 0 1 2
    python scripts/super_ni_experiment.py                        # no training: the page again from the figures that are kept

For every seed two runs of docs/experiments/instruction-tuning.yaml, alike but for one thing: the first trains on the 40 tasks as
they are; in the second, the control, each row stands under the definition of another task, drawn by seed. The control sees the
same inputs, the same answers and the same definitions, as often; what it cannot learn is that the definition says what to do. What the first run gains over
the control is owed to instructions, what the control gains over the base to the form of the answers.

Both are measured on six tasks that neither saw, under their own definitions and three paraphrases of each
(docs/experiments/super-ni-phrasings.yaml). Runs that are there already are used, runs that stopped go on: after an interruption, start it again.
Figures go to docs/experiments/instruction-tuning.json, the page is docs/experiments/instruction-tuning.md.
"""

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from _harness import facts  # noqa: E402
from tunesmith import api  # noqa: E402
from tunesmith.config import load_run  # noqa: E402
from tunesmith.data.conversation import Conversation  # noqa: E402
from tunesmith.data.sources import read_part  # noqa: E402
from tunesmith.evaluation.bootstrap import detectable_difference, paired_difference  # noqa: E402
from tunesmith.evaluation.rouge import rouge_l  # noqa: E402
from tunesmith.evaluation.tasks import as_json  # noqa: E402
from tunesmith.files import write_json  # noqa: E402
from tunesmith.progress import say  # noqa: E402
from tunesmith.runs import RunFolder, save_evaluation  # noqa: E402

PLACE = ROOT / "docs" / "experiments"
CONFIG, PHRASINGS = PLACE / "instruction-tuning.yaml", PLACE / "super-ni-phrasings.yaml"
FIGURES, PAGE = PLACE / "instruction-tuning.json", PLACE / "instruction-tuning.md"
ARMS = ("instructions", "shuffled")
METRICS = ("rouge_l", "exact_match", "choice", "choice_pmi", "bits_per_byte")
OWN = {"label": "accuracy", "json": "exact_match", "text": "rouge_l"}
DISCORDANT = 0.2  # share of rows that only one of two models has right, for the statement on what can be found
BEGIN, END = "<!-- figures: made by scripts/super_ni_experiment.py -->", "<!-- /figures -->"


# --- the control ----------------------------------------------------------------------------------------------------------


def shuffled_copies(train: Path, to: Path, seed: int) -> int:
    """Write the task files of `train` with every row under the definition of another task; returns how many rows there are.

    The definitions are dealt out among all rows, so each is used exactly as often as before. A row that is dealt its own swaps with
    another row, drawn at random, for which the swap is no loss.
    """
    files = sorted(train.glob("*.json"))
    tasks = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    owner = [number for number, task in enumerate(tasks) for _ in task["instances"]]
    if 2 * max(len(task["instances"]) for task in tasks) > len(owner):
        raise SystemExit(f"one task of {train} has more than half of all rows: they cannot all stand under other definitions")
    dealt = list(owner)
    draw = random.Random(seed)
    draw.shuffle(dealt)
    for row in range(len(owner)):
        while dealt[row] == owner[row]:
            other = draw.randrange(len(owner))
            if dealt[other] != owner[row] and dealt[row] != owner[other]:
                dealt[row], dealt[other] = dealt[other], dealt[row]
    to.mkdir(parents=True, exist_ok=True)
    row = 0
    for path, task in zip(files, tasks, strict=True):
        lines = []
        for instance in task["instances"]:
            definition = tasks[dealt[row]]["definition"]
            lines.append(
                json.dumps({"definition": definition, "input": instance["input"], "output": instance["output"]}, ensure_ascii=False)
            )
            row += 1
        (to / f"{path.stem}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(owner)


# --- runs -----------------------------------------------------------------------------------------------------------------


def trained(arm: str, seed: int, data: Path, runs: Path, sets: Sequence[str]) -> RunFolder:
    """The run of this arm and seed: made, continued or only opened."""
    output = runs / f"{arm}-{seed}"
    if (output / "config.yaml").is_file():
        folder = RunFolder.open(output)
        return folder if folder.status().get("state") == "done" else api.resume(output)
    train = data / "train"
    if arm == "shuffled":
        train = runs / f"shuffled-tasks-{seed}"
        say(f"{shuffled_copies(data / 'train', train, seed):,} rows under the definition of another task in {train}")
    config, _ = load_run(CONFIG, [f"data.train={train}", f"output={output}", f"training.seed={seed}", *sets])
    return api.train(config)


def measured(folders: Mapping[str, RunFolder], data: Path, output: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All runs on the same unseen rows, each row's values with them: one evaluation where adapters share a base, else one for each."""
    if not (output / "evaluation.json").is_file():
        first, *others = folders.values()
        if first.run().method != "full":
            adapters = {folder.name: str(folder.path) for folder in others}
            api.evaluate(first, str(data / "heldout"), adapters, phrasings=PHRASINGS, output=output)
        else:
            each = [output / name for name in folders]
            for place, folder in zip(each, folders.values(), strict=True):
                api.evaluate(folder, str(data / "heldout"), phrasings=PHRASINGS, output=place)
            evaluation = merged([json.loads((place / "evaluation.json").read_text(encoding="utf-8")) for place in each])
            save_evaluation(output, evaluation, together([records_of(place) for place in each]))
    return json.loads((output / "evaluation.json").read_text(encoding="utf-8")), records_of(output)


def together(of_each: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Records of the same rows as one list: values of all models."""
    return [
        {**same[0], "values": {name: values for record in same for name, values in record["values"].items()}}
        for same in zip(*of_each, strict=True)
    ]


def merged(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Evaluations of the same rows as one: models of all."""
    whole = evaluations[0]
    for other in evaluations[1:]:
        whole["models"] |= other["models"]
        whole["macro"]["models"] |= other["macro"]["models"]
        for task, found in other["tasks"].items():
            whole["tasks"][task]["models"] |= found["models"]
            whole["phrasings"]["tasks"][task] |= other["phrasings"]["tasks"][task]
        whole["phrasings"]["models"] |= other["phrasings"]["models"]
        whole["phrasings"]["consistent"] |= other["phrasings"]["consistent"]
    return whole


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "evaluation-rows.jsonl").read_text(encoding="utf-8").splitlines()]


# --- figures --------------------------------------------------------------------------------------------------------------


def compared(records: Sequence[Mapping[str, Any]], arms: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Differences between base and arms, each arm a row's mean over its seeds: macro over tasks, and per task.

    arms   arm → names of its models
    Returns {"instructions − base": {"macro": {metric: interval}, "tasks": {task: {metric: interval}}}, …}.
    """
    sides = {"base": ["base"], **arms}
    pairs = [(arm, "base") for arm in arms] + ([("instructions", "shuffled")] if set(ARMS) <= set(arms) else [])
    return {
        f"{after} − {before}": {
            "macro": {metric: _difference(records, sides[before], sides[after], metric) for metric in METRICS},
            "tasks": {
                task: {
                    metric: _difference([r for r in records if r["task"] == task], sides[before], sides[after], metric)
                    for metric in (*METRICS, "accuracy")
                    if any(metric in r["values"]["base"] for r in records if r["task"] == task)
                }
                for task in dict.fromkeys(r["task"] for r in records)
            },
        }
        for after, before in pairs
    }


def _difference(records: Sequence[Mapping[str, Any]], before: Sequence[str], after: Sequence[str], metric: str) -> dict[str, float]:
    rows = [r for r in records if metric in r["values"]["base"]]
    sides = [[statistics.fmean(r["values"][name][metric] for name in names) for r in rows] for names in (before, after)]
    weights = [r["weights"][metric] for r in rows] if metric in rows[0]["weights"] else None
    return as_json(paired_difference(*sides, groups=[r["task"] for r in rows], weights=weights))


def copying(conversations: Sequence[Conversation]) -> dict[str, float]:
    """ROUGE-L of giving the input back, per task: what a paraphrase is worth must be seen beside it."""
    scores: dict[str, list[float]] = {}
    for c in conversations:
        right = c.fields.get("references") or [c.answer or ""]
        scores.setdefault(c.task, []).append(max(rouge_l(str(c.fields["input"]), one) for one in right))
    return {task: statistics.fmean(values) for task, values in scores.items()}


def figures(data: Path, runs: Path, seeds: Sequence[int], sets: Sequence[str]) -> dict[str, Any]:
    begun = time.monotonic()
    folders = {f"{arm}-{seed}": trained(arm, seed, data, runs, sets) for seed in seeds for arm in ARMS}
    training_seconds = {name: folder.status().get("seconds") for name, folder in folders.items()}
    began_measuring = time.monotonic()
    evaluation, records = measured(folders, data, runs / f"heldout-{'-'.join(map(str, seeds))}")
    first = next(iter(folders.values()))
    heldout = first.run().data.model_copy(update={"train": str(data / "heldout"), "validation": None})
    arms = {arm: [name for name in folders if name.startswith(arm)] for arm in ARMS}
    n_rows = min(found["rows"] for found in evaluation["tasks"].values())
    return {
        "facts": facts(),
        "config": first.run().model_dump(mode="json", include={"model", "method", "lora", "training"}),
        "seeds": list(seeds),
        "counts": {name: (folder.status().get("data") or {}).get("counts") for name, folder in folders.items()},
        "training_seconds": training_seconds,
        "evaluation_seconds": round(time.monotonic() - began_measuring, 1),
        "seconds": round(time.monotonic() - begun, 1),
        "rows": evaluation["rows"],
        "tasks": evaluation["tasks"],
        "macro": evaluation["macro"],
        "arms": arms,
        "differences": compared(records, arms),
        "phrasings": evaluation["phrasings"],
        "copying": copying(read_part(heldout, "train").conversations),
        "detectable": {"rows": n_rows, "difference": least if math.isfinite(least := detectable_difference(n_rows, DISCORDANT)) else None},
    }


# --- the page -------------------------------------------------------------------------------------------------------------


def page(found: Mapping[str, Any]) -> str:
    """The figures as Markdown, with what they say in words that follow from them."""
    parts = [
        f"## Result\n\n{verdict(found)}\n\n{what_it_knows(found)}",
        _setting(found),
        "### Mean over the six unseen tasks",
        _macro_table(found),
    ]
    parts += ["### Task by task", _task_table(found), "### What the difference is owed to", _difference_table(found)]
    parts += ["### The same rows in other words", _phrasing_table(found)]
    return "\n\n".join(parts)


def verdict(found: Mapping[str, Any], metric: str = "rouge_l") -> str:
    """The three questions, answered by whether an interval contains zero."""
    gain, control, owed = (found["differences"][name]["macro"][metric] for name in (
        "instructions − base", "shuffled − base", "instructions − shuffled"))  # fmt: skip
    lines = [
        f"- **Is there a gain on unseen tasks?** {_yes(gain)}: {metric} {_words(gain)} in the mean over tasks.",
        f"- **Does the control gain too?** {_yes(control)}: {_words(control)} under shuffled definitions.",
        f"- **Is the gain larger than the control's?** {_yes(owed)}: by {_words(owed)}.",
    ]
    if gain["low"] <= 0:
        conclusion = "No gain on unseen tasks is shown by these rows."
    elif owed["low"] > 0:
        conclusion = "A part of the gain is owed to the instructions: rows that stand under foreign definitions do not teach it."
    else:
        conclusion = (
            "What was learned is the form of the answers, not the instruction: the same rows under foreign definitions teach as much."
        )
    return "\n".join([*lines, "", f"**{conclusion}**"])


def what_it_knows(found: Mapping[str, Any], metric: str = "rouge_l") -> str:
    """Beside the gain: whether the right label became likelier, whether the score is worth anything, and how it hangs on the wording."""
    models, names = found["macro"]["models"], found["arms"]["instructions"]
    choice = found["differences"]["instructions − base"]["macro"]["choice"]
    tuned = statistics.fmean(models[name][metric] for name in names)
    majority = models["majority"][metric]
    spreads = [found["phrasings"]["models"][name][metric] for name in names]
    low, high = (statistics.fmean(spread[end] for spread in spreads) for end in ("min", "max"))
    lines = [
        f"- **Is the right label likelier than before, whatever form it is asked in?** {_yes(choice)}: choice {_words(choice)}."
        + ("" if choice["low"] > 0 else " So the gain is in answering in the form that the definition asks for, not in solving the task."),
        f"- **Is it more than the commonest answer scores?** {'Yes' if tuned > majority else 'No'}: {metric} {tuned:.3f}, and {majority:.3f}.",
        f"- **Does it hang on the wording?** Between {low:.3f} and {high:.3f} over the phrasings of one instruction.",
    ]
    return "\n".join(lines)


def _yes(interval: Mapping[str, float]) -> str:
    return "Yes" if interval["low"] > 0 else "No, it falls" if interval["high"] < 0 else "Not shown"


def _words(interval: Mapping[str, float]) -> str:
    if interval["low"] == interval["high"] == 0:
        return "no row changed"
    return f"{interval['value']:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}]"


def _setting(found: Mapping[str, Any]) -> str:
    config, machine = found["config"], found["facts"].get("machine", {})
    method = config["method"] + (f", rank {config['lora']['rank']}" if config["method"] != "full" else "")
    first = next(iter(found["counts"].values())) or {}
    dropped = ", ".join(f"{name} {(counts or {}).get('too_long_dropped', 0)}" for name, counts in found["counts"].items())
    seconds = [s for s in found["training_seconds"].values() if s]
    return "\n".join(
        [
            f"- {config['model']}, {method}, {config['training']['epochs']:g} epochs of {first.get('train', 0):,} training rows, "
            f"{len(found['seeds'])} seed{'s' if len(found['seeds']) > 1 else ''} ({', '.join(map(str, found['seeds']))})",
            f"- rows left out because definition and input together are longer than {config['training']['max_length']} tokens: {dropped}",
            f"- {found['rows']:,} rows of six unseen tasks; brackets: 95 % intervals, paired bootstrap over rows within tasks. They speak of "
            "other rows of these six tasks, neither of other tasks nor of other seeds; an arm's row counts with its mean over the seeds",
            *(
                [
                    f"- with {found['detectable']['rows']} rows of a task, of which {DISCORDANT:.0%} change, a difference in accuracy below "
                    f"{found['detectable']['difference']:.3f} would often be missed"
                ]
                if found["detectable"]["difference"]
                else []
            ),
            *([f"- {statistics.median(seconds):.0f} s of training a run on {machine.get('cpu', 'a CPU')}"] if seconds else []),
        ]
    )


def _of_arm(models: Mapping[str, Mapping[str, float]], names: Sequence[str], metric: str) -> str:
    values = [models[name][metric] for name in names if metric in models.get(name, {})]
    if not values:
        return "–"
    each = f" ({', '.join(f'{value:.3f}' for value in values)})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{each}"


def _macro_table(found: Mapping[str, Any]) -> str:
    arms, models = found["arms"], found["macro"]["models"]
    lines = [f"| metric | majority | base | {' | '.join(arms)} |", "|---|---:|---:|" + "---:|" * len(arms)]
    for metric in METRICS:
        n = found["macro"]["n_tasks"].get(metric)
        cells = [_of_arm(models, names, metric) for names in (["majority"], ["base"], *arms.values())]
        lines.append(f"| `{metric}`{f' ({n} tasks)' if n else ''} | {' | '.join(cells)} |")
    return "\n".join(lines) + ("\n\nIn parentheses each seed." if len(found["seeds"]) > 1 else "")


def _task_table(found: Mapping[str, Any]) -> str:
    arms = found["arms"]
    head = f"| task | metric | majority | copying the input | base | {' | '.join(arms)} | instructions − base | instructions − shuffled |"
    lines = [head, "|---|---|---:|---:|---:|" + "---:|" * len(arms) + "---:|---:|"]
    for task, of_task in found["tasks"].items():
        own = OWN[of_task["kind"]]
        for metric in [own, *(["choice"] if "choice" in of_task["models"]["base"] else [])]:
            cells = [_of_arm(of_task["models"], names, metric) for names in (["majority"], ["base"], *arms.values())]
            cells.insert(1, f"{found['copying'][task]:.3f}" if metric == "rouge_l" else "")
            changes = [
                _words(found["differences"][name]["tasks"][task][metric]) for name in ("instructions − base", "instructions − shuffled")
            ]
            lines.append(f"| {task if metric == own else ''} | `{metric}` | {' | '.join([*cells, *changes])} |")
    return "\n".join(lines)


def _difference_table(found: Mapping[str, Any]) -> str:
    lines = ["| metric, mean over tasks | " + " | ".join(found["differences"]) + " |", "|---|" + "---:|" * len(found["differences"])]
    for metric in METRICS:
        cells = [_words(difference["macro"][metric]) for difference in found["differences"].values()]
        lines.append(f"| `{metric}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\nOf `bits_per_byte` lower is better."


def _phrasing_table(found: Mapping[str, Any]) -> str:
    phrasings = found["phrasings"]
    n = max(len(texts) for texts in phrasings["texts"].values())
    lines = [
        f"| model | metric | as given | {' | '.join(map(str, range(1, n + 1)))} | mean | min | max | sd |",
        "|---|---|" + "---:|" * (n + 5),
    ]
    for name, metrics in phrasings["models"].items():
        for metric in METRICS[:4]:
            if (spread := metrics.get(metric)) is None:
                continue
            shown = [*spread["values"], *(spread[key] for key in ("mean", "min", "max", "sd"))]
            lines.append(f"| {name} | `{metric}` | " + " | ".join(f"{value:.3f}" for value in shown) + " |")
    alike = "; ".join(f"{name} {share:.0%}" for name, share in phrasings["consistent"].items())
    return "\n".join(lines) + f"\n\nMeans over the six tasks. Rows answered alike under all {n + 1} phrasings: {alike}."


def with_figures(document: str, found: Mapping[str, Any]) -> str:
    """The page with what stands between the marks made anew."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{page(found)}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with train/ and heldout/; without it nothing is trained")
    parser.add_argument("--runs", type=Path, default=Path("runs/super_ni"), help="where the runs go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--set", dest="sets", action="append", default=[], metavar="KEY=VALUE", help="a key of the config, as training.steps=50"
    )
    parser.add_argument("--figures", type=Path, default=FIGURES)
    given = parser.parse_args()
    if given.data is not None:
        write_json(given.figures, figures(given.data, given.runs, given.seeds, given.sets))
    found = json.loads(given.figures.read_text(encoding="utf-8"))
    if given.figures == FIGURES:
        PAGE.write_text(with_figures(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    print(page(found))


if __name__ == "__main__":
    main()
