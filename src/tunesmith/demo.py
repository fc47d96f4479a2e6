"""The tour: three small tasks taught to the embedded base model, measured, and answered side by side on one base.

make demo, or: tunesmith demo
"""

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import tunesmith.examples
from tunesmith.api import load, train
from tunesmith.config import load_run
from tunesmith.data.rows import load_parts
from tunesmith.evaluation.metrics import has_repeated_key, parse_json
from tunesmith.progress import clock, say
from tunesmith.runs import RunFolder

TASKS = ("spam", "traffic", "support")


def run_demo(output: Path) -> None:
    """Train one LoRA adapter per task into `output`, then show what base and adapters answer to the same prompts."""
    begun = time.monotonic()
    folder = _new_folder(output)
    examples = Path(next(iter(tunesmith.examples.__path__)))
    console = Console(width=None if Console().is_terminal else 110)
    finished: dict[str, RunFolder] = {}
    for number, task in enumerate(TASKS, 1):
        run, _ = load_run(examples / f"{task}.yaml", [f"output={folder / task}", f"data.train={examples / f'{task}.jsonl'}"])
        say(f"\n{number} of {len(TASKS)}: {task} (examples/{task}.yaml)")
        finished[task] = train(run, command=f"tunesmith train examples/{task}.yaml")
        console.print(_before_after(task, finished[task]))
    console.print(_side_by_side(finished))
    first = finished[TASKS[0]].path
    console.print(
        "next:\n"
        f"  tunesmith chat acorn {' '.join(f'--adapter {t}={f.path}' for t, f in finished.items())}\n"
        f"  open {first / 'report.html'} in a browser\n"
        f"  tunesmith show {first / 'config.yaml'} --row 1      the tokens of an example: trained, ignored, special\n"
        "  tunesmith init YOUR-FILE                            a config for your own data\n",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    console.print(f"three adapters on one base in {clock(time.monotonic() - begun)}")


def _new_folder(output: Path) -> Path:
    """`output`, or output-2, output-3 …: an earlier demo is never overwritten."""
    n, folder = 1, output
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        n += 1
        folder = output.with_name(f"{output.name}-{n}")
    return folder


def _before_after(task: str, folder: RunFolder) -> Table:
    evaluation = folder.evaluation()
    models = evaluation["models"]
    table = Table(title=f"{task}: {evaluation['rows']} test rows that training never saw")
    table.add_column("")
    for name in models:
        table.add_column({"majority": "always the commonest", "base": "acorn before"}.get(name, "after LoRA"), justify="right")
    for metric in models["base"]:
        if metric not in ("loss", "perplexity"):
            table.add_row(metric, *(f"{values[metric]:.3f}" if metric in values else "–" for values in models.values()))
    if any("repeated_keys" in values for values in models.values()):
        table.caption = "repeated_keys: the share of JSON answers that give a key twice; 0 is best"
    return table


def _side_by_side(finished: dict[str, RunFolder]) -> Table:
    """The same prompts to the base and to every adapter: one base in memory, the adapter chosen per call."""
    model = load("acorn", {task: folder.path for task, folder in finished.items()})
    table = Table(title="one base, three adapters: the same prompts to each", show_lines=True)
    for column in ("prompt", "acorn (base)", *finished):
        table.add_column(column, overflow="fold")
    for folder in finished.values():
        test = load_parts(folder.run().data).test[0]
        prompt = test.messages[-2].content
        answers = [model.generate([prompt], max_new_tokens=40)[0]]
        answers += [model.generate([prompt], adapter=name, max_new_tokens=60)[0] for name in finished]
        table.add_row(shortened(prompt), *(noted(text) for text in answers))
    return table


def noted(answer: str) -> str:
    """An answer on one line; of JSON that gives a key twice, which readers understand differently, it is said."""
    return shortened(answer) + ("  (valid JSON, but a key is given twice)" if has_repeated_key(parse_json(answer)) else "")


def shortened(text: str, most: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"
