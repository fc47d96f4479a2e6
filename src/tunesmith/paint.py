"""One example as the model sees it: every token, and whether it is trained, ignored or a control token.

tunesmith show sms.yaml --row 418
"""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from tunesmith.config import load_run, validate
from tunesmith.data.formats import read_conversations
from tunesmith.data.template import Example, Renderer
from tunesmith.errors import BadInput
from tunesmith.model.load import find_model, load_tokenizer

STYLES = {"trained": "black on green", "ignored": "dim", "control": "bold magenta", "trained control": "bold white on dark_green"}


def _examples_of(data: str, row: int, model: str | None, sets: list[str]) -> tuple[list[Example], Renderer, list[str]]:
    """The examples that a row (from 1, in file order) becomes, what they were rendered with, and what was said on the way.

    data    a data file, a config or a run folder
    model   whose tokenizer; None: the one that the config names, or acorn
    """
    place = Path(data)
    if (place / "config.yaml").is_file():
        place = place / "config.yaml"
    if place.suffix in (".yaml", ".yml"):
        run, _ = load_run(place, sets)
    else:
        run, _ = validate({"model": "acorn", "data": {"train": data}}, data, sets)
    config, model = run.data, model or run.model
    read = read_conversations(config)
    if row > len(read.conversations):
        raise BadInput(f"there are {len(read.conversations):,} examples", where=f"--row {row}", fix=f"--row 1 to {len(read.conversations)}")
    conversation = read.conversations[row - 1]
    renderer = Renderer(load_tokenizer(find_model(model)), config.template)
    return renderer.render(conversation), renderer, [*read.said, renderer.describe()]


def example_tokens(data: str, row: int, model: str | None, sets: list[str]) -> dict[str, Any]:
    """A row's tokens for a program: {"said", "examples": [{"source", "tokens": [{"id", "text", "trained", "control"}]}]}."""
    examples, renderer, said = _examples_of(data, row, model, sets)
    return {
        "said": said,
        "examples": [
            {
                "source": example.source,
                "tokens": [
                    {"id": token, "text": _text_of(renderer, token), "trained": trained, "control": token in renderer.special_ids}
                    for token, trained in zip(example.ids.tolist(), example.trained.tolist(), strict=True)
                ],
            }
            for example in examples
        ],
    }


def _text_of(renderer: Renderer, token: int) -> str:
    return str(renderer.tokenizer.decode([token], clean_up_tokenization_spaces=False))


def show_example(data: str, row: int, model: str | None, sets: list[str]) -> None:
    """Print the example of a row, painted; plain marks where there are no colours. Arguments as of `_examples_of`."""
    examples, renderer, said = _examples_of(data, row, model, sets)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    for line in said:
        console.print(line, style="dim", markup=False)
    for example in examples:
        n_trained = int(example.trained[1:].sum())
        console.print(f"\n{example.source}: {len(example)} tokens, {n_trained} trained", style="bold", markup=False)
        painted = Text()
        for i, token in enumerate(example.ids.tolist()):
            control, trained = token in renderer.special_ids, bool(example.trained[i])
            kind = "trained control" if control and trained else "control" if control else "trained" if trained else "ignored"
            text = _text_of(renderer, token)
            if not console.is_terminal:
                text = f"[{text}]" if trained else text  # without colours, trained tokens stand in brackets
            painted.append(text, STYLES[kind])
        console.print(painted)
    legend = Text("\n")
    for kind, style in STYLES.items():
        legend.append(f" {kind} ", style)
        legend.append(" ")
    console.print(legend if console.is_terminal else Text("\ntrained tokens stand in [brackets]"))
