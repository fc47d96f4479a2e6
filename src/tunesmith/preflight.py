"""The checks of a run, as `tunesmith check` shows them and as `tunesmith train` begins with them.

    subject = subject_of("sms.tsv", ["model=acorn", "data.test=test.tsv"])            # a config, a run folder or a data file
    report = check_run(subject.run, subject.files, with_model=subject.names_model)
    refuse(report, "tunesmith check sms.yaml")        # BadInput if there are errors, with what, where and fix of each kind

No weights are read: a tokenizer, its template and two small files say all that a row's tokens depend on.
"""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.config import DataConfig, Run, load_run, validate
from tunesmith.data.checks import undecodable
from tunesmith.data.checks.check import Opened, Report, check, open_files
from tunesmith.data.checks.finding import Finding
from tunesmith.data.checks.json_answers import load_schema
from tunesmith.data.checks.quoting import unreadable
from tunesmith.data.rows import load_parts
from tunesmith.data.template import Renderer
from tunesmith.errors import BadInput
from tunesmith.model.load import find_model, load_tokenizer
from tunesmith.progress import counted
from tunesmith.starter import can_be_guessed, columns_for, settings_for
from tunesmith.training.ready import longest_example

KINDS_IN_AN_ERROR = 8


@dataclass(frozen=True)
class Subject:
    """What is to be checked, read already. names_model: somebody said which model; said: what was recognised or converted."""

    run: Run
    names_model: bool
    said: list[str]
    files: list[Opened]


def subject_of(place: str | Path, overrides: Sequence[str] = (), spelled: Mapping[str, str] | None = None) -> Subject:
    """The run that a config, a run folder or a data file means, and its files.

    overrides   as `--set` takes them; spelled: how the user wrote those that were flags
    Of a data file what can be recognised is: header and quoting, and, where the names of the columns do not say it, which of them are the
    prompt and the answer (of a folder that is one task, by its first file); what is given is kept.
    """
    path = Path(place)
    if (path / "config.yaml").is_file():
        path = path / "config.yaml"
    if path.suffix.lower() in (".yaml", ".yml"):
        run, said = load_run(path, overrides, spelled)
        return Subject(run, True, _without_output(said), open_files(run.data))
    run, said = validate({"model": "acorn", "data": {"train": str(place)}}, str(place), overrides, spelled=spelled)
    said = _without_output(said)
    if path.is_file():
        settings, words = _settings_of(path, run.data)
        run, said = _with(run, settings), [*said, *words]
    files = open_files(run.data)
    if (error := files[0].error) is not None and files[0].read is None and len({file.task for file in files}) == 1:
        settings, words = columns_for(run.data.model_copy(update={"train": str(files[0].path)}), error)
        run, said = _with(run, settings), [*said, *words]
        files = open_files(run.data)
    if all(file.read is None for file in files):
        raise _of_many(files) if path.is_dir() else files[0].error or BadInput("there is nothing to check", where=str(place))
    return Subject(run, any(text.startswith("model=") for text in overrides), said, files)


def _settings_of(path: Path, config: DataConfig) -> tuple[dict[str, Any], list[str]]:
    """How the table is written; what stops the reading of it is told by the reading itself."""
    try:
        return settings_for(config)
    except BadInput as error:
        if undecodable.is_it(error):
            with undecodable.mended(path) as copy, suppress(BadInput):
                return settings_for(config.model_copy(update={"train": str(copy)}))
    return {}, []


def _of_many(files: Sequence[Opened]) -> BadInput:
    """The first refusal of several tasks; columns are guessed for one alone."""
    error = files[0].error or BadInput("there is nothing to check", where=str(files[0].path))
    if not can_be_guessed(error):
        return error
    fix = f"{error.fix}\ncolumns are guessed for one task only: tunesmith check {shlex.quote(str(files[0].path))} says which it would take"
    return BadInput(error.what, error.where, fix)


def _without_output(said: Sequence[str]) -> list[str]:
    return [line for line in said if not line.startswith("output:")]


def _with(run: Run, settings: Mapping[str, Any]) -> Run:
    return run.model_copy(update={"data": run.data.model_copy(update=dict(settings))})


def check_run(
    run: Run, files: Sequence[Opened], *, with_model: bool = True, thorough: bool = True, with_split: bool = False
) -> Report:  # fmt: skip
    """The report on a run's data.

    with_model   render every row as its model would have it
    thorough     False: errors only, quickly
    with_split   split the rows too, which training does next anyway
    """
    schema = load_schema(Path(run.data.answer_schema)) if run.data.answer_schema is not None else None
    renderer, max_length = renderer_of(run) if with_model and thorough else (None, 512)
    report = check(files, run.data, renderer=renderer, max_length=max_length, schema=schema, thorough=thorough)
    if with_split and all(file.error is None for file in files):
        report = replace(report, findings=[*refused_split(run.data), *report.findings])
    return report


def refused(place: str, error: BadInput) -> Report:
    """The report on what could not be read at all."""
    return Report([unreadable(place, error)], [], {})


def refused_split(config: DataConfig) -> list[Finding]:
    """What training refuses once the files are read: shares that leave nothing, a part that holds all of another, a mixture that cannot be.

    Bad rows are told already, and without the search for near copies the same is refused but for parts that only near copies empty.
    """
    try:
        load_parts(config.model_copy(update={"on_bad_row": "skip", "near_duplicates": "off"}))
    except BadInput as error:
        return [Finding("refused-split", "error", 1, (error.where.replace("\n", "; ") or str(config.train),), error.what, error.fix)]
    return []


def renderer_of(run: Run) -> tuple[Renderer, int]:
    """The renderer of the run's model and the tokens of its longest example, without the model's weights."""
    from transformers import AutoConfig, GenerationConfig

    path = find_model(run.model)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True).get_text_config()
    except Exception as error:
        raise BadInput(
            f"the model's configuration is not understood: {error}", where=str(path / "config.json"), fix="see the message"
        ) from None
    has_own = (path / "generation_config.json").is_file()
    generation = GenerationConfig.from_pretrained(path, local_files_only=True) if has_own else GenerationConfig.from_model_config(config)
    eos = generation.eos_token_id
    eos_ids = set(eos) if isinstance(eos, list) else set() if eos is None else {int(eos)}
    renderer = Renderer(load_tokenizer(path), run.data.template, eos_ids, config.vocab_size, run.data.thinking)
    context = getattr(config, "max_position_embeddings", None)
    return renderer, longest_example(run.training.max_length, context if isinstance(context, int) else None)


# --- in words -----------------------------------------------------------------------------------------------------------------


def refuse(report: Report, more: str) -> None:
    """Raise the report's errors as one, each kind with its first line and remedy; `more`: the command that shows all."""
    errors = report.of("error")
    if not errors:
        return
    told = errors[:KINDS_IN_AN_ERROR]
    what = "\n       ".join(f"{_how_many(e, len(errors))}{e.reason}{f': {e.seen[0]}' if e.seen else ''}" for e in told)
    where = "\n".join(f"{e.sources[0]}{f' and {e.count - 1:,} more' if e.count > 1 else ''}" for e in told)
    more_kinds = [f"{len(errors) - len(told)} more kinds of errors"] if len(errors) > len(told) else []
    raise BadInput(what, where=where, fix="\n".join([*dict.fromkeys(e.fix for e in told), *more_kinds, f"{more} shows every row"]))


def _how_many(finding: Finding, n_kinds: int) -> str:
    return f"{counted(finding.count, 'row')}: " if finding.count > 1 or n_kinds > 1 else ""


def short_lines(report: Report, more: str) -> list[str]:
    """One line for each warning, and how to see more; nothing where there is none. Notes are for those who ask."""
    warnings = report.of("warning")
    lines = [f"warning: {counted(w.count, 'row')}: {w.reason}{f' (first: {w.sources[0]})' if w.sources else ''}" for w in warnings]
    return [*lines, f"more: {more}"] if lines else []
