"""Rows on the terminal: every token painted as learned, ignored, a control token, or cut off.

tunesmith show sms.yaml --row 418
tunesmith show sms.yaml --search "free entry" --html rows.html
tunesmith show sms.yaml --worst 3
tunesmith show sms.yaml --packed                # rows of a packed step, with the borders of their documents
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from tunesmith import preflight
from tunesmith.config import Run
from tunesmith.data.batches import StepRows, shared_share
from tunesmith.data.conversation import has_thinking
from tunesmith.data.formats import BadRow
from tunesmith.data.packing import row_of
from tunesmith.data.rows import THINKING, load_parts, load_rows
from tunesmith.data.show import Row, Seen, at_lines, facts, holding, look, look_packed, worst
from tunesmith.data.template import Renderer
from tunesmith.errors import BadInput
from tunesmith.progress import counted, progress
from tunesmith.show_page import write_rows
from tunesmith.training.ready import PADDING_STEPS, may_share

STYLES = {
    "trained": "black on green", "ignored": "dim", "control": "bold magenta", "trained control": "bold white on dark_green", "cut": "strike red",
}  # fmt: skip
MOST_TOKENS = 4000  # of an example on the terminal


@dataclass(frozen=True)
class Wanted:
    """Which rows: lines, a text they hold, the worst of each kind, or those of a packed step; by default the first row.

    most   rows that are shown of those that hold the text, or of a packed step
    """

    lines: Sequence[str] = ()
    text: str | None = None
    worst: int | None = None
    packed: bool = False
    step: int = 1
    most: int = 10


def show(
    data: str, wanted: Wanted, overrides: Sequence[str], spelled: dict[str, str], html: Path | None, as_json: bool
) -> dict[str, Any] | None:
    """Show rows of a data file, a config or a run folder; returns what a program reads if `as_json`.

    Raises BadInput for rows that are not there or cannot be rendered, unless they are looked for as the worst.
    """
    subject = preflight.subject_of(data, overrides, spelled)
    renderer, max_length = preflight.renderer_of(subject.run)
    said = list(subject.said)
    if wanted.packed:
        seen, more = _packed(subject.run, renderer, max_length, wanted)
        said += more
    else:
        said.append(renderer.describe())
        for opened in subject.files:
            if opened.error is not None:
                raise opened.error
            said += opened.read.said if opened.read is not None else []
        rows = [Row(opened.part, c) for opened in subject.files if opened.read is not None for c in opened.read.conversations]
        skipped = [bad for opened in subject.files if opened.read is not None for bad in opened.read.skipped]
        seen, more = _chosen(rows, skipped, renderer, max_length, subject.run.data.on_too_long, wanted)
        said += more
    if html is not None:
        write_rows(seen, said, html, data)
    if as_json:
        return as_data(seen, said, html)
    paint(seen, said)
    return None


def _chosen(
    rows: Sequence[Row], skipped: Sequence[BadRow], renderer: Renderer, max_length: int, policy: str, wanted: Wanted
) -> tuple[list[Seen], list[str]]:
    if not rows:
        raise BadInput(
            "no row can be shown", where=skipped[0].source if skipped else "the data", fix=skipped[0].problem if skipped else "give rows"
        )
    said: list[str] = []
    if wanted.lines:
        picked = [(row, "") for row in at_lines(rows, skipped, wanted.lines)]
    elif wanted.text is not None:
        found = holding(rows, wanted.text)
        if not found:
            raise BadInput(
                "no row holds this text", where=f"--search {wanted.text!r}", fix="fewer words; small and capital letters are alike"
            )
        said.append(
            f'{counted(len(found), "row")} with "{wanted.text}"' + (f", the first {wanted.most:,} here" if len(found) > wanted.most else "")
        )
        picked = [(row, "") for row in found[: wanted.most]]
    elif wanted.worst is not None:
        with progress("rendering", len(rows)) as bar:
            reasons = worst(rows, renderer, max_length, wanted.worst, lambda n: bar.advance(256))
        said.append(f"the worst of {counted(len(rows), 'row')}; a few are always the longest, which need not be wrong")
        picked = [(rows[i], why) for i, why in reasons.items()]
    else:
        picked = [(rows[0], "")]
        said.append(f"the first of {counted(len(rows), 'row')}; --row LINE, --search TEXT or --worst 3 show others")
    if any(has_thinking(row.conversation) for row, _ in picked):
        said.append(f"thinking: {THINKING[renderer.thinking]} (data.thinking: {renderer.thinking})")
    seen: list[Seen] = []
    for row, why in picked:
        try:
            seen += look(row, renderer, max_length, policy, why)
        except BadInput as error:
            if wanted.worst is None:
                raise
            seen.append(Seen(row.source, f"refused: {error.what}; {error.fix}", [], (row.source,)))
    return seen, said


def _packed(run: Run, renderer: Renderer, max_length: int, wanted: Wanted) -> tuple[list[Seen], list[str]]:
    """The rows that a step would compute with training.packing, whether or not the config has it."""
    rows = load_rows(load_parts(run.data), run.data, max_length, renderer)
    training = run.training
    steps = StepRows(rows.train, training.batch_size, training.seed, training.micro_batch_tokens, None, True, training.batch_tokens)
    n_steps = steps.steps_of_epoch(0)
    if wanted.step > n_steps:
        raise BadInput(f"an epoch has {counted(n_steps, 'step')}", where=f"--step {wanted.step}", fix=f"--step 1 to {n_steps}")
    as_packed = run.model_copy(update={"training": training.model_copy(update={"packing": True})})
    shared = shared_share(steps, range(min(n_steps, PADDING_STEPS)))
    packed = list(map(row_of, replace(steps, sharing=may_share(as_packed, shared)).groups(wanted.step - 1)))
    n_examples = sum(len(row.sources) for row in packed)
    words = f"{counted(n_examples, 'example')} in {counted(len(packed), 'row')} of at most {training.micro_batch_tokens:,} tokens"
    said = [*rows.said, f"step {wanted.step}: {words}"]
    if len(packed) > wanted.most:
        said.append(f"the first {'row' if wanted.most == 1 else counted(wanted.most, 'row')} here")
    titles = (f"step {wanted.step}, row {number} of {len(packed)}" for number in range(1, len(packed) + 1))
    return [look_packed(row, renderer, title) for row, title in zip(packed[: wanted.most], titles, strict=False)], said


def as_data(seen: Sequence[Seen], said: Sequence[str], html: Path | None) -> dict[str, Any]:
    """{"said", "examples": [{"source", "remark", "text", "tokens": [{"id", "text", "trained", "control"}], …}]}."""
    return {
        "said": list(said),
        "page": str(html) if html is not None else None,
        "examples": [
            {
                "source": one.source, "documents": list(one.sources), "title": one.title, "remark": one.remark, "counts": facts(one), "text": one.text,
                "tokens": [{"id": t.id, "text": t.text, "trained": t.trained, "control": t.control} for t in one.tokens],
            }
            for one in seen
        ],
    }  # fmt: skip


def paint(seen: Sequence[Seen], said: Sequence[str]) -> None:
    """Print examples; plain marks where there are no colours: learned tokens in [brackets], cut ones in ~waves~."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    for line in said:
        console.print(line, style="dim", markup=False)
    for one in seen:
        counts = facts(one)
        cut = f", {counts['cut']:,} beyond the limit" if counts["cut"] else ""
        console.print(
            f"\n{one.title}: {counted(counts['tokens'], 'token')}, {counts['trained']:,} trained{cut}", style="bold", markup=False
        )
        if one.remark:
            console.print(one.remark, style="yellow", markup=False)
        console.print(_painted(one, console.is_terminal))
    legend = Text("\n")
    for kind, style in STYLES.items():
        legend.append(f" {kind} ", style)
        legend.append(" ")
    plain = Text("\ntrained tokens stand in [brackets], tokens beyond the limit in ~waves~")
    console.print(legend if console.is_terminal else plain)


def _painted(one: Seen, colours: bool) -> Text:
    painted = Text()
    for i, token in enumerate(one.tokens[:MOST_TOKENS]):
        if len(one.borders) > 1 and (i == 0 or token.document != one.tokens[i - 1].document):
            painted.append(f"{'' if i == 0 else chr(10)}── {one.borders[token.document]} ──\n", "bold cyan")
        kind = (
            "trained control"
            if token.control and token.trained
            else "control"
            if token.control
            else "trained"
            if token.trained
            else "ignored"
        )
        text = token.text
        if not colours:
            begins = token.cut and not one.tokens[i - 1].cut
            ends = token.cut and (i + 1 == len(one.tokens) or not one.tokens[i + 1].cut)
            text = f"{'~' if begins else ''}{f'[{text}]' if token.trained else text}{'~' if ends else ''}"
        painted.append(text, STYLES["cut" if token.cut else kind])
    if len(one.tokens) > MOST_TOKENS:
        painted.append(f"\n… and {len(one.tokens) - MOST_TOKENS:,} more tokens", "bold")
    return painted
