"""The command line: one command = parse, one call, print.

Results go to standard output, everything said on the way to standard error. torch is imported only by commands that compute.
"""

import errno
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, cast

import typer

from tunesmith import __version__
from tunesmith.errors import BadInput, GateNotMet, TunesmithError
from tunesmith.progress import counted, is_silent

app = typer.Typer(
    name="tunesmith", help="Fine-tune language models on your own data, full, LoRA or QLoRA, and measure what they learned.", no_args_is_help=True,
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

# UsageError, typer's own or click's: that depends on typer's version, and this name is in all of them
USAGE = cast(type[Exception], typer.BadParameter.__bases__[0])
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the config, as training.epochs=2; repeatable.")
]
DataSets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="How to read --data, as data.header=false; repeatable.")
]
Fill = Annotated[bool, typer.Option("--fill", help="Put the text into the template that the adapter's prompts had.")]
Adapters = Annotated[list[str] | None, typer.Option("--adapter", metavar="NAME=PATH", help="An adapter folder or a run; repeatable.")]


def main() -> None:
    """Run a command; errors become what / where / fix and an exit code, never a traceback."""
    # a line broken by a full pipe or an odd terminal encoding is no reason to lose a run
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with _signals_stop() as stopped:
            raise SystemExit(app(prog_name="tunesmith", standalone_mode=False) or 0)  # typer's own mode prints errors in a box
    except TunesmithError as error:
        _fail(str(error), error.exit_code, error)
    except USAGE as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help is printed
            raise SystemExit(2) from None
        _fail(str(_of_usage(error)), 2, error)
    except (KeyboardInterrupt, typer.Abort):
        _fail(_stopped(), 130)
    except SystemExit as end:
        if end.code == 130:  # typer's word for Ctrl-C inside a command
            _fail(_stopped(), 130)
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            _fail(f"error: a path is longer than the system takes\n  where: {str(error.filename)[:80]}…\n  fix:   a shorter one", 2)
        if stopped:
            _fail(_stopped(), 130)  # a library made another error of our KeyboardInterrupt
        if os.environ.get("TUNESMITH_TRACEBACK"):
            raise
        text = f"{type(error).__name__}: {error}"
        memory = isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text.lower()
        if memory:
            _fail(
                "error: out of memory\n  fix:   lower training.micro_batch_tokens or training.micro_batch_size; the step stays the same", 1
            )
        _fail(
            f"error: {text}\n  fix:   this is a defect of tunesmith; run again with TUNESMITH_TRACEBACK=1 and report what it prints",
            1,
            error,
        )


def _of_usage(error: Any) -> BadInput:
    """What typer says of a command line that it cannot read, as an error of ours."""
    command = error.ctx.command_path if error.ctx is not None else "tunesmith"
    what = error.format_message().rstrip(".")
    fix = f"{command} --help"
    if command == "tunesmith resume" and getattr(error, "option_name", "") == "--set":
        fix = f"a run goes on as its config.yaml says: edit that, then resume; {fix}"
    return BadInput(what[0].lower() + what[1:], where=command, fix=fix)


def _spelled(flags: Mapping[str, Any]) -> dict[str, str]:
    """Flags that were given, as overrides of keys → as they were typed."""
    named = {"data.train": "data", "data.answer_schema": "schema"}
    return {
        f"{key}={json.dumps(value)}": f"--{named.get(key, key.rpartition('.')[2].replace('_', '-'))} {value}"
        for key, value in flags.items()
        if value is not None
    }


@contextmanager
def _signals_stop() -> Iterator[list[int]]:
    """SIGTERM stops as Ctrl-C does, so that no command ends by a raw signal; the list holds those that came."""
    came: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    main_thread = threading.current_thread() is threading.main_thread()
    ours = {number: before for number, before in defaults.items() if main_thread and signal.getsignal(number) == before}
    for number in ours:
        signal.signal(number, stop)
    try:
        yield came
    finally:
        for number, before in ours.items():
            if signal.getsignal(number) == stop:
                signal.signal(number, before)


def _fail(text: str, code: int, error: BaseException | None = None) -> None:
    if code == 130 and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):  # what ends already should not be ended by a signal on its last lines
            signal.signal(number, signal.SIG_IGN)
    if not is_silent(error):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    if code == 130 and any(thread.name == "rehearsal" for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(code)  # the end of Python would tear a thread out of torch, which aborts the process
    raise SystemExit(code)


def _stopped() -> str:
    training = sys.argv[1:2] in (["train"], ["resume"], ["demo"])
    untouched = f"; what was saved before is untouched\n  fix:   {_command()}, or tunesmith runs: it lists runs and how to resume them"
    return "stopped at once" + (untouched if training else "")


def _command() -> str:
    return shlex.join(["tunesmith", *sys.argv[1:]])


def _print(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"tunesmith {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where the demo's runs go.")] = Path("runs/demo"),
) -> None:
    """Teach the embedded base model three small tasks and show before and after."""
    from tunesmith.demo import run_demo

    run_demo(output)


@app.command()
def init(
    data: Annotated[str, typer.Argument(help="Your examples: JSONL, JSON, CSV, TSV, Parquet, text; also .gz.")],
    output: Annotated[Path, typer.Option(help="The config to write.")] = Path("tunesmith.yaml"),
    model: Annotated[str, typer.Option(help="The base model the config names.")] = "acorn",
    header: Annotated[
        bool | None,
        typer.Option("--header/--no-header", help="CSV and TSV: the first line holds the column names; by default judged by the rows."),
    ] = None,
    quoting: Annotated[
        bool | None, typer.Option("--quoting/--no-quoting", help="CSV and TSV: quotes may hold separators; by default judged by the rows.")
    ] = None,
) -> None:
    """Look at a data file and write a commented config for it."""
    from tunesmith.starter import write_starter

    for line in write_starter(data, output, model, header, quoting):
        typer.echo(line)


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="A YAML config; or use --model and --data.")] = None,
    model: Annotated[str | None, typer.Option(help="acorn, a local folder or a hub id.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Training examples: a file, a folder of files (a mixture of tasks) or a hub dataset.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="full, lora or qlora.")] = None,
    output: Annotated[str | None, typer.Option(help="The run folder; by default runs/ and the config's or data file's name.")] = None,
    prompt: Annotated[str | None, typer.Option(help='Template of the prompt, as "Spam or ham? {text}".')] = None,
    completion: Annotated[str | None, typer.Option(help='Template of the answer, as "{label}".')] = None,
    validation: Annotated[str | None, typer.Option(help="A share or a file, for choices.")] = None,
    test: Annotated[str | None, typer.Option(help="A share or a file, for the reported figures.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the rows.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples per optimizer step.")] = None,
    learning_rate: Annotated[str | None, typer.Option(help="A number or auto.")] = None,
    rank: Annotated[int | None, typer.Option(help="LoRA rank.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of the longest example.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed.")] = None,
    sets: Sets = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Read the data, load the model, say what would happen; write nothing.")] = False,
    no_check: Annotated[bool, typer.Option("--no-check", help="Look only for what training refuses, which is quicker.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune, then measure base and tuned model on the test rows and write report.html."""
    from tunesmith.config import load_run, validate

    flags = {
        "model": model, "method": method, "output": output, "data.train": data, "data.prompt": prompt, "data.completion": completion,
        "data.validation": _share_or_file(validation), "data.test": _share_or_file(test), "training.epochs": epochs, "training.batch_size": batch_size,
        "training.learning_rate": learning_rate, "lora.rank": rank, "training.max_length": max_length, "training.seed": seed,
    }  # fmt: skip
    spelled = _spelled(flags)
    overrides = [*spelled, *(sets or [])]
    if config is not None:
        _must_be_a_config(config)
        run, said = load_run(config, overrides, spelled)
    else:
        needed = [flag for flag, value in (("--model", model), ("--data", data)) if value is None]
        if needed and not sets:
            raise BadInput(
                f"without a config, {' and '.join(needed)} must be given", where="tunesmith train",
                fix="tunesmith train CONFIG.yaml, or --model acorn --data FILE",
            )  # fmt: skip
        run, said = validate({}, "the command line", overrides, spelled=spelled)
    for line in said:
        typer.echo(line, err=True)
    from tunesmith import api

    original = _run_of(config)
    if original is not None and not any(text.startswith("output=") for text in overrides):
        original.must_be_free(original.path)  # wherever its relative output would lead from here
    look = (not no_check, _check_command(config, data, [*flags.items()], sets or []))
    if dry:
        found = api.dry_run(run, *look)
        if as_json:
            _print({"said": found})
        else:
            typer.echo("\n".join(found))
        return
    if original is not None:
        from tunesmith.provenance import here_and_there

        for line in here_and_there(original.status()):
            typer.echo(f"other than in {original.path}: {line} (sums may be rounded otherwise)", err=True)
    folder = api.train(run, _command(), *look)
    _finished(folder, as_json)
    if original is not None:
        from tunesmith.diff import compare

        typer.echo(f"against {original.path}: {compare(original, folder).verdict}", err=True)


def _run_of(config: Path | None) -> Any:
    """The run whose folder a config lies in; None for a config of its own."""
    from tunesmith.runs import RunFolder

    inside = config is not None and config.name == "config.yaml" and (config.parent / "status.json").is_file()
    return RunFolder(config.parent) if config is not None and inside else None


def _check_command(config: Path | None, data: str | None, flags: list[tuple[str, Any]], sets: list[str]) -> str:
    """The command that shows all that was found in the data of this one."""
    kept = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in flags
            if value is not None and key.startswith(("data.", "model", "training.max_length")) and key != "data.train"]  # fmt: skip
    return shlex.join(["tunesmith", "check", str(config or data or "DATA"), *(word for text in [*kept, *sets] for word in ("--set", text))])


@app.command()
def check(
    data: Annotated[str, typer.Argument(help="A config, a run folder, or a file of examples.")],
    model: Annotated[str | None, typer.Option(help="Whose tokens and template; by default the config's, for a file none.")] = None,
    prompt: Annotated[str | None, typer.Option(help='Template of the prompt, as "Spam or ham? {text}".')] = None,
    completion: Annotated[str | None, typer.Option(help='Template of the answer, as "{label}".')] = None,
    validation: Annotated[str | None, typer.Option(help="A share or a file.")] = None,
    test: Annotated[str | None, typer.Option(help="A share or a file.")] = None,
    schema: Annotated[Path | None, typer.Option(help="A JSON Schema that every answer must fulfil.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of the longest example.")] = None,
    sets: Sets = None,
    html: Annotated[Path | None, typer.Option("--html", "--output", help="Also write a page with charts.")] = None,
    lines: Annotated[int, typer.Option(min=1, help="Rows named for each finding.")] = 3,
    fail_on: Annotated[str, typer.Option(help="error: exit code 2 for errors; warning: 3 for warnings too.")] = "error",
    as_json: AsJson = False,
) -> None:
    """Look at every row: what training would refuse, what it would learn wrongly, and where."""
    if fail_on not in ("error", "warning"):
        raise BadInput("a check fails on errors, or on warnings too", where=f"--fail-on {fail_on}", fix="--fail-on error or warning")
    flags = {
        "model": model, "data.prompt": prompt, "data.completion": completion, "data.validation": _share_or_file(validation),
        "data.test": _share_or_file(test), "data.answer_schema": str(schema) if schema is not None else None, "training.max_length": max_length,
    }  # fmt: skip
    spelled = _spelled(flags)
    from tunesmith import preflight
    from tunesmith.progress import say

    _must_be_a_page(html)
    try:
        with _keys_are_set():
            subject = preflight.subject_of(data, [*spelled, *(sets or [])], spelled)
            for line in subject.said:
                say(line)
            report = preflight.check_run(subject.run, subject.files, with_model=subject.names_model, with_split=True)
    except BadInput as error:
        if as_json:
            _print({**preflight.refused(data, error).as_json(), "page": None})
        raise
    if html is not None:
        from tunesmith.check_page import write_check

        write_check(report, html, data)
    if as_json:
        _print({**report.as_json(), "said": [*subject.said, *report.said], "page": str(html) if html is not None else None})
    else:
        print_check(report, lines)
        if html is not None:
            typer.echo(f"page: {html}")
    if report.of("error"):
        raise typer.Exit(2)
    if fail_on == "warning" and (warnings := report.of("warning")):
        raise GateNotMet(f"{counted(len(warnings), 'warning')}", where=data, fix="mend the rows, or leave out --fail-on warning")


def print_check(report: Any, n_lines: int = 3) -> None:
    """The findings, worst first: what it is, how many rows, the first of them, what to do."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tunesmith.check_page import verdict

    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    for line in report.said:
        console.print(line, style="dim", markup=False)
    styles = {"error": "bold red", "warning": "yellow", "note": "cyan"}
    table = Table(box=None, show_header=False, padding=(0, 2, 1, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for finding in report.findings:
        text = Text(finding.check, style="bold")
        text.append(f"\n{finding.reason}", style="not bold")
        for source, seen in zip(finding.sources[:n_lines], [*finding.seen, *[""] * n_lines]):
            text.append(f"\n{source}", style="not bold")
            text.append(f"  {seen}" if seen else "", style="not bold dim")
        if len(finding.sources) > n_lines:
            text.append(f"\nand {len(finding.sources) - n_lines:,} more", style="not bold dim")
        text.append(f"\nfix: {finding.fix}", style="not bold green")
        table.add_row(Text(finding.severity, style=styles[finding.severity]), f"{finding.count:,}", text)
    if report.findings:
        console.print()
        console.print(table)
    for line in report.not_done:
        console.print(f"not looked at: {line}", style="dim", markup=False)
    console.print(f"{verdict(report)}, {report.seconds:.1f} s", style="bold", markup=False)


def _must_be_a_page(html: Path | None) -> None:
    """A page can be written there: known before the work."""
    if html is None:
        return
    if html.is_dir():
        raise BadInput("this is a folder, and the page is a file", where=f"--html {html}", fix=f"--html {html / 'page.html'}")
    if not html.absolute().parent.is_dir():
        raise BadInput(
            "there is no such folder for the page",
            where=f"--html {html}",
            fix=f"mkdir -p {shlex.quote(str(html.parent))}, or another --html",
        )


def _must_be_a_config(path: Path) -> None:
    """The two things that are given in its place: a run folder and a file of examples."""
    from tunesmith.data.readers import KINDS

    if path.is_dir():
        if (path / "config.yaml").is_file():
            fix = f"tunesmith resume {path}, or tunesmith train {path / 'config.yaml'} --output another"
            raise BadInput("this is a run, not a config", where=str(path), fix=fix)
        raise BadInput("this is a folder, not a config", where=str(path), fix="tunesmith init DATA writes a config")
    if path.is_file() and Path(path.name.lower().removesuffix(".gz")).suffix in KINDS:
        fix = f"tunesmith init {path} writes a config; or --data {path}"
        raise BadInput("this is a file of examples, not a config", where=str(path), fix=fix)


def _share_or_file(text: str | None) -> float | str | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return text


def _finished(folder: Any, as_json: bool) -> None:
    from tunesmith.training import distributed

    if distributed.rank() != 0:
        return
    if as_json:
        _print({"run": str(folder.path), "status": folder.status(), "evaluation": folder.evaluation()})
        return
    if evaluation := folder.evaluation():
        print_evaluation(evaluation)
    typer.echo(f"report: {folder.path / 'report.html'}")
    typer.echo(f"try:    tunesmith chat {shlex.quote(str(folder.path))}")


@app.command()
def plan(
    config: Annotated[str, typer.Argument(help="A config, a run folder, or only a model: a folder with a config.json, or that file.")],
    devices: Annotated[
        str | None, typer.Option(metavar="GB,NxGB", help="Devices by their memory, as 24,2x80, or none; by default the usual cards.")
    ] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="Of the machine, to say what the run costs.")] = None,
    tflops: Annotated[
        float | None, typer.Option(help="10^12 operations a second of matrix products to reckon with; by default measured here.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of the longest example.")] = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run would need before it is started: memory by kind, time, disk, and on which devices it fits."""
    from tunesmith import api

    spelled = _spelled({"training.max_length": max_length})
    overrides = [*spelled, *(sets or [])]
    found = api.plan(config, devices=devices, price_per_hour=price_per_hour, tflops=tflops, sets=overrides, spelled=spelled)
    if as_json:
        _print(found.as_json())
    else:
        from tunesmith.planning.table import print_plan

        print_plan(found)


@app.command()
def resume(run: Annotated[Path, typer.Argument(help="A run folder.")], as_json: AsJson = False) -> None:
    """Continue a run from its newest valid checkpoint, bit-equal to a run that never stopped."""
    from tunesmith import api

    _finished(api.resume(run), as_json)


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[str | None, typer.Option(help="Other rows than the run's own test rows: a file, or a folder of tasks.")] = None,
    sets: DataSets = None,
    adapter: Adapters = None,
    phrasings: Annotated[
        Path | None, typer.Option(help="A YAML or JSON file of other wordings of the instruction: a list, or lists by task.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="A new folder for the figures and every row's answers.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure base, tuned model and majority answer on the same rows, with intervals for what changed."""
    from tunesmith import api
    from tunesmith.runs import RunFolder

    with _keys_are_set():
        evaluation = api.evaluate(RunFolder.open(run), data, _named(adapter), sets or [], phrasings=phrasings, output=output)
    if as_json:
        _print(evaluation)
    else:
        print_evaluation(evaluation)


def print_evaluation(evaluation: dict[str, Any]) -> None:
    """Metrics down, models across, then what changed; of several tasks each by its own metric, of several phrasings their spread."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 110)
    changes = {name: against["base"] for name, against in evaluation.get("differences", {}).items() if "base" in against}
    tasks = evaluation.get("tasks", {})
    several = tasks if len(tasks) > 1 else {}
    limited = f" of {evaluation['rows_given']:,}" if "rows_given" in evaluation else ""
    rows = f"{evaluation['rows']:,}{limited} test rows" + (" (evaluation.limit)" if limited else "")
    rows += ", all tasks together" if several else f" of the task {next(iter(tasks))}" if tasks else ""
    console.print(_scores_table(rows, evaluation["models"], {name: change["overall"] for name, change in changes.items()}))
    if several:
        console.print(_tasks_table(evaluation, changes))
        macro, means = evaluation["macro"], {name: change["macro"] for name, change in changes.items()}
        console.print(_scores_table(f"mean over {len(several)} tasks", macro["models"], means))
        for metric, n in macro["n_tasks"].items():
            console.print(f"{metric}: the mean over the {n} tasks that have it", highlight=False)
    if changes:
        console.print("change: from base to tuned on the same rows, with its 95 % interval (paired bootstrap)", highlight=False)
    if "phrasings" in evaluation:
        console.print(_phrasings_table(evaluation["phrasings"], "mean over tasks" if several else "all rows"))


def _scores_table(title: str, models: dict[str, dict[str, float]], changes: dict[str, dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title=title)
    for heading in ("", *models, *_change_headings(changes)):
        table.add_column(heading, justify="right" if heading else "left")
    for metric in dict.fromkeys(metric for values in models.values() for metric in values):
        shown = [f"{values[metric]:.4f}" if values.get(metric) is not None else "–" for values in models.values()]
        table.add_row(metric, *shown, *(_change_in_words(change.get(metric)) for change in changes.values()))
    return table


def _tasks_table(evaluation: dict[str, Any], changes: dict[str, dict[str, Any]]) -> Any:
    """Of each task the metric that speaks for it, and the choice by likelihood; --json and the report have all."""
    from rich.table import Table

    table = Table(title="task by task")
    table.add_column("")
    for heading in ("rows", "metric", *evaluation["models"], *_change_headings(changes)):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for task, found in evaluation["tasks"].items():
        own = {"label": "accuracy", "json": "exact_match"}.get(found["kind"], "rouge_l")
        for metric in [own, *(m for m in ("choice",) if any(m in values for values in found["models"].values()))]:
            scores = [found["models"].get(name, {}).get(metric) for name in evaluation["models"]]
            shown = ["–" if score is None else f"{score:.3f}" for score in scores]
            of_models = [_change_in_words(change["tasks"][task].get(metric)) for change in changes.values()]
            table.add_row(*([task, f"{found['rows']:,}"] if metric == own else ["", ""]), metric, *shown, *of_models)
    return table


def _change_headings(changes: dict[str, dict[str, Any]]) -> list[str]:
    return ["change"] if len(changes) == 1 else [f"change of {name}" for name in changes]


def _change_in_words(change: dict[str, float] | None) -> str:
    if change is None:
        return "–"
    if change["low"] == change["high"] == 0:
        return "no row changed"
    return f"{change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"


def _phrasings_table(phrasings: dict[str, Any], what: str) -> Any:
    from rich.table import Table

    n = max(len(texts) for texts in phrasings["texts"].values())
    table = Table(title=f"the same rows under {n + 1} phrasings ({what})")
    for heading in ("", "metric", "as given", *(f"phrasing {number}" for number in range(1, n + 1)), "mean", "sd"):
        table.add_column(heading, justify="left" if heading in ("", "metric") else "right")
    for name, metrics in phrasings["models"].items():
        for metric, spread in metrics.items():
            table.add_row(name, metric, *(f"{value:.3f}" for value in [*spread["values"], spread["mean"], spread["sd"]]))
        table.add_row(name, f"answered alike under all: {phrasings['consistent'][name]:.1%}", end_section=True)
    return table


def _named(adapters: list[str] | None) -> dict[str, str]:
    """NAME=PATH, repeated."""
    named: dict[str, str] = {}
    for text in adapters or []:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise BadInput(f'"{text}" is not NAME=PATH', where="--adapter", fix=f"--adapter spam={text.rstrip('=')}")
        if name in named:
            raise BadInput(f'two adapters are named "{name}"', where="--adapter", fix="give each a name of its own")
        named[name] = path
    return named


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="acorn, a model folder, a hub id or a run folder.")],
    prompt: Annotated[str | None, typer.Option(help="One prompt.")] = None,
    data: Annotated[str | None, typer.Option(help="A file of prompts or examples.")] = None,
    output: Annotated[Path | None, typer.Option(help="With --data: the JSONL file to write.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file at --output.")] = False,
    sets: DataSets = None,
    fill: Fill = False,
    adapter: Adapters = None,
    use: Annotated[str | None, typer.Option(help="Which adapter answers; base for none. By default the first.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(help="0: the most likely word each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest words that make up this share.")] = 1.0,
    seed: Annotated[int, typer.Option()] = 0,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    as_json: AsJson = False,
) -> None:
    """Answer one prompt, or every row of a file."""
    if (prompt is None) == (data is None):
        raise BadInput("give --prompt or --data", where="tunesmith generate", fix='--prompt "…", or --data FILE --output preds.jsonl')
    if data is not None and output is None:
        raise BadInput("--data needs --output", where="tunesmith generate", fix="--output preds.jsonl")
    for given, option, needed in ((fill, "--fill", prompt), (bool(sets), "--set", data), (overwrite, "--overwrite", data)):
        if given and needed is None:
            raise BadInput(
                f"{option} belongs to {'--prompt' if data is not None else '--data'}", where="tunesmith generate", fix=f"leave out {option}"
            )
    from tunesmith import api
    from tunesmith.runs import RunFolder

    opened = api.load(model, _named(adapter))
    chosen = use or opened.default_adapter or (opened.adapters or ["base"])[0]
    settings = {
        "adapter": chosen,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "batch_size": batch_size,
    }
    if prompt is not None:
        asked = opened.fill(prompt, chosen) if fill else prompt
        for sentence in [] if fill else opened.form_in_words(chosen, prompt):
            typer.echo(sentence, err=True)
        answer = opened.generate([asked], **settings)[0]  # type: ignore[arg-type]
        if as_json:
            _print({"adapter": chosen, "prompt": asked, "answer": answer})
        else:
            typer.echo(answer)
        return
    assert data is not None and output is not None
    run = RunFolder.open(model).run() if (Path(model) / "config.yaml").is_file() else None
    with _keys_are_set():
        n = api.answer_file(opened, data, output, run, sets=sets or [], overwrite=overwrite, **settings)
    if as_json:
        _print({"adapter": chosen, "rows": n, "output": str(output)})
    else:
        typer.echo(f"{counted(n, 'answer')} in {output}")


@contextmanager
def _keys_are_set() -> Iterator[None]:
    """Where there is no config, an error that advises keys of one says how to give them."""
    try:
        yield
    except BadInput as error:
        if "data." in error.fix and "--set" not in error.fix:
            error.fix += "\nhere a key is given as --set 'data.columns=[label, text]'"
        raise


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="acorn, a model folder, a hub id or a run folder.")],
    adapter: Adapters = None,
    fill: Fill = False,
    temperature: Annotated[float, typer.Option(help="0: the most likely word each time.")] = 0.0,
    top_p: Annotated[float, typer.Option()] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
) -> None:
    """Talk to a model; /NAME switches to an adapter, /base to none, /new starts over, /quit ends."""
    from tunesmith import api
    from tunesmith.chat import converse

    opened = api.load(model, _named(adapter))
    converse(opened, temperature, top_p, max_new_tokens, fill)


@app.command()
def show(
    data: Annotated[str, typer.Argument(help="A config, a run folder, or a file of examples.")],
    model: Annotated[str | None, typer.Option(help="Whose tokenizer and template; by default the config's, or acorn.")] = None,
    row: Annotated[
        list[str] | None, typer.Option(metavar="LINE", help="The row that starts at this line, or FILE:LINE; repeatable.")
    ] = None,
    search: Annotated[str | None, typer.Option(help="Rows that hold this text.")] = None,
    worst: Annotated[
        int | None, typer.Option(min=1, help="This many of the longest, the oddest, the least trained and the cut rows.")
    ] = None,
    packed: Annotated[
        bool, typer.Option("--packed", help="What a step computes with training.packing, with the borders of documents.")
    ] = False,
    step: Annotated[int, typer.Option(min=1, help="With --packed: which step.")] = 1,
    most: Annotated[int, typer.Option(min=1, help="Rows shown of those that --search or --packed finds.")] = 10,
    prompt: Annotated[str | None, typer.Option(help='Template of the prompt, as "Spam or ham? {text}".')] = None,
    completion: Annotated[str | None, typer.Option(help='Template of the answer, as "{label}".')] = None,
    validation: Annotated[str | None, typer.Option(help="A share or a file.")] = None,
    test: Annotated[str | None, typer.Option(help="A share or a file.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of the longest example.")] = None,
    sets: Sets = None,
    html: Annotated[Path | None, typer.Option("--html", "--output", help="Also write a page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Paint rows token by token: what is learned, what is ignored, what the length limit cuts."""
    given = [
        flag
        for flag, value in (("--row", row), ("--search", search), ("--worst", worst), ("--packed", packed or None))
        if value is not None
    ]
    if len(given) > 1:
        raise BadInput("rows are chosen in one way at a time", where=" ".join(given), fix=given[0])
    if step != 1 and not packed:
        raise BadInput("--step belongs to --packed", where=f"--step {step}", fix="--packed too")
    flags = {
        "model": model, "data.prompt": prompt, "data.completion": completion, "data.validation": _share_or_file(validation),
        "data.test": _share_or_file(test), "training.max_length": max_length,
    }  # fmt: skip
    spelled = _spelled(flags)
    from tunesmith import paint

    _must_be_a_page(html)
    wanted = paint.Wanted(row or (), search, worst, packed, step, most)
    with _keys_are_set():
        found = paint.show(data, wanted, [*spelled, *(sets or [])], spelled, html, as_json)
    if found is not None:
        _print(found)
    elif html is not None:
        typer.echo(f"page: {html}")


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="acorn, a local folder or a hub id.")],
    output: Annotated[Path, typer.Option(help="The folder to write; it must not be there.")],
    scheme: Annotated[str | None, typer.Option(help="nf4 (default), fp4, int2 to int8, affine2 to affine8.")] = None,
    block_size: Annotated[int | None, typer.Option(help="Weights that share a scale; 64, and for 8 bits a row.")] = None,
    double: Annotated[bool | None, typer.Option("--double/--no-double", help="Keep the scales in 8 bits too.")] = None,
    clip: Annotated[float | None, typer.Option(help="Percentile of sizes beyond which weights saturate (int and affine).")] = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="The token embeddings and the head too.")] = False,
    dtype: Annotated[str, typer.Option(help="Of what is not quantised: bfloat16 or float32.")] = "bfloat16",
    study: Annotated[bool, typer.Option("--study", help="Write no model, but a page of what each scheme loses.")] = False,
    text: Annotated[Path | None, typer.Option(help="With --study: the text to measure on; else the packaged examples.")] = None,
) -> None:
    """Store a model's linear layers in few bits; or, with --study, show what that loses."""
    from tunesmith.exports.quantized import write_quantized, written_dtype
    from tunesmith.quant.scheme import find_scheme
    from tunesmith.study_page import write_study_of

    if text is not None and not study:
        raise BadInput("a text is for a study", where=f"--text {text}", fix="add --study, or leave --text out")
    if study and scheme is None and (double is not None or clip is not None):
        raise BadInput("--double and --clip belong to a scheme", where="--study", fix="--scheme int4 --clip 98: studied beside the others")
    with _flags():
        written_dtype(dtype)
        chosen = find_scheme(scheme or "nf4", block_size, double, clip, embeddings)
        if study:
            said = write_study_of(model, output, text, block_size, chosen if scheme is not None else None, dtype, embeddings)
        else:
            said = write_quantized(model, chosen, output, dtype)
    typer.echo("\n".join(said))


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(help="A run folder, or an adapter folder.")],
    output: Annotated[Path, typer.Option(help="The model folder to write; it must not be there.")],
    model: Annotated[str | None, typer.Option(help="The base, where it lies elsewhere than the run or the adapter says.")] = None,
    data: Annotated[str | None, typer.Option(help="Rows to compare on; by default the run's own test rows.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: bfloat16 or float32.")] = "bfloat16",
    scheme: Annotated[str | None, typer.Option(help="Quantise the result again, as nf4; what that costs is measured too.")] = None,
    block_size: Annotated[int | None, typer.Option(help="With --scheme: weights that share a scale.")] = None,
    double: Annotated[bool | None, typer.Option("--double/--no-double", help="With --scheme: keep the scales in 8 bits too.")] = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="With --scheme: the token embeddings and the head too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fold an adapter into its base, and measure how far the result is from base + adapter."""
    if scheme is None and (block_size is not None or double is not None or embeddings):
        what = "--block-size, --double and --embeddings belong to a scheme"
        raise BadInput(what, where="tunesmith merge", fix="--scheme nf4")
    from tunesmith import api
    from tunesmith.quant.scheme import find_scheme

    with _flags():
        chosen = find_scheme(scheme, block_size, double, embeddings=embeddings) if scheme is not None else None
        result = api.merge(run, output, model=model, data=data, dtype=dtype, scheme=chosen)
    if as_json:
        _print({"model": str(output), **result})
        return
    print_parity({**result["parity"], "the base alone": result["without_adapter"]}, result["computed_in"])
    typer.echo(f"model: {output}")
    typer.echo(f"try:   tunesmith chat {shlex.quote(str(output))}")


def print_parity(parity: dict[str, dict[str, float]], computed_in: str) -> None:
    """One line for each form of the merged model, and one for the base, as a measure. computed_in: dtype of all their products."""
    from rich.console import Console
    from rich.table import Table

    positions, answers = (next(iter(parity.values()))[key] for key in ("positions", "answers"))
    title = f"against base + adapter, computed in {computed_in}, at {positions:,} positions of which {answers:,} answer"
    table = Table(title=title, min_width=92)
    for column in ("", "max |Δlogit|", "mean KL (nats)", "top-1 agreement", "in answers"):
        table.add_column(column, justify="right" if column else "left")
    for name, found in parity.items():
        shares = (f"{found[key]:.2%}" for key in ("agreement", "answers_agreement"))
        table.add_row(name, f"{found['max_logit']:.3g}", f"{found['kl']:.3g}", *shares)
    Console(width=None if sys.stdout.isatty() else 110).print(table)


@contextmanager
def _flags() -> Iterator[None]:
    """Errors that name keys of a config name the command's flags instead."""
    try:
        yield
    except BadInput as error:
        section, _, key = error.where.partition(".")
        where = f"--{key.replace('_', '-')}" if section in ("quantization", "training") else error.where
        raise BadInput(error.what, where=where, fix=error.fix) from None


@app.command()
def runs(root: Annotated[Path, typer.Argument(help="Where to look.")] = Path("runs"), as_json: AsJson = False) -> None:
    """List run folders: state, step, figures, and how to resume."""
    from tunesmith.runs import list_runs

    found = list_runs(root)
    rows = [{"run": str(f.path), "state": f.state(), **{k: s.get(k) for k in ("step", "steps", "updated")},
             "resume_command": f.resume_command if f.state() != "done" else None, "models": f.evaluation().get("models", {})}
            for f in found for s in [f.status()]]  # fmt: skip
    if as_json:
        _print(rows)
        return
    if not rows:
        typer.echo(f"no runs below {root}")
    for line in rows:
        todo = f"  {line['resume_command']}" if line["resume_command"] and line["state"] != "running" else ""
        steps = f"step {line['step'] or 0} of {line['steps'] or '?'}"
        typer.echo(f"{line['run']}  {line['state']}  {steps}{_headline(line['models'])}  {line['updated']}{todo}")


def _headline(models: dict[str, dict[str, float]]) -> str:
    """The first figure of the task, base and tuned: "  accuracy 0.5217 → 0.9783"; nothing for a run that was not measured."""
    tuned = [values for name, values in models.items() if name not in ("base", "majority")]
    if not tuned or "base" not in models:
        return ""
    metric = next((name for name in ("accuracy", "exact_match", "loss") if name in tuned[0]), None)
    return f"  {metric} {models['base'][metric]:.4f} → {tuned[0][metric]:.4f}" if metric is not None else ""


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="A run folder.")],
    b: Annotated[Path, typer.Argument(help="Another.")],
    as_json: AsJson = False,
) -> None:
    """Say what differs between two runs: config, data, base, versions, machine, losses, results, weights."""
    from tunesmith.diff import compare, show
    from tunesmith.runs import RunFolder

    found = compare(RunFolder.open(a), RunFolder.open(b))
    if as_json:
        _print(found.as_json())
    else:
        show(found)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Describe this machine and what tunesmith would use of it, and check that it all works; exit code 1 if something does not."""
    from tunesmith.doctor import examine, in_words

    found = examine()
    if as_json:
        _print(found)
    else:
        typer.echo("\n".join(in_words(found)))
    if any(check["state"] == "fail" for check in found["checks"]):
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
