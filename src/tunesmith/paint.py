"""One example as the model sees it: every token, and whether it is trained, ignored or a control token.

tunesmith show sms.yaml --row 418
"""

import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tunesmith.config import apply_overrides, load_run, validate
from tunesmith.data.formats import read_conversations
from tunesmith.data.template import Renderer
from tunesmith.errors import BadInput
from tunesmith.model.load import find_model, load_tokenizer

STYLES = {"trained": "black on green", "ignored": "dim", "control": "bold magenta", "trained control": "bold white on dark_green"}


def show_example(data: str, row: int, model: str | None, sets: list[str]) -> None:
    """Print the example of a row (from 1, in file order), painted; plain marks where there are no colours.

    data    a data file, a config or a run folder
    model   whose tokenizer; None: the one that the config names, or acorn
    """
    place = Path(data)
    if (place / "config.yaml").is_file():
        place = place / "config.yaml"
    if place.suffix in (".yaml", ".yml"):
        run, _ = load_run(place, sets)
    else:
        run, _ = validate(apply_overrides({"model": "acorn", "output": "unused", "data": {"train": data}}, sets), "--set")
    config, model = run.data, model or run.model
    read = read_conversations(config)
    if row > len(read.conversations):
        raise BadInput(f"there are {len(read.conversations):,} examples", where=f"--row {row}", fix=f"--row 1 to {len(read.conversations)}")
    conversation = read.conversations[row - 1]
    renderer = Renderer(load_tokenizer(find_model(model)), config.template)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    for line in (*read.said, renderer.describe()):
        console.print(line, style="dim", markup=False)
    for example in renderer.render(conversation):
        n_trained = int(example.trained[1:].sum())
        console.print(f"\n{example.source}: {len(example)} tokens, {n_trained} trained", style="bold", markup=False)
        painted = Text()
        for i, token in enumerate(example.ids.tolist()):
            control, trained = token in renderer.special_ids, bool(example.trained[i])
            kind = "trained control" if control and trained else "control" if control else "trained" if trained else "ignored"
            text = renderer.tokenizer.decode([token], clean_up_tokenization_spaces=False)
            if not console.is_terminal:
                text = f"[{text}]" if trained else text  # without colours, trained tokens stand in brackets
            painted.append(text, STYLES[kind])
        console.print(painted)
    legend = Text("\n")
    for kind, style in STYLES.items():
        legend.append(f" {kind} ", style)
        legend.append(" ")
    console.print(legend if console.is_terminal else Text("\ntrained tokens stand in [brackets]"))
