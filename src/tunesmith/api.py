"""What the commands and the library both call.

    import tunesmith
    run = tunesmith.train("sms.yaml")                      # training, then evaluation, then report
    run.evaluation()["models"]["sms"]["f1_spam"]
    model = tunesmith.load("acorn", adapters={"spam": "runs/sms/adapter"})
    model.generate(["Is this message spam or ham? Free entry!"], adapter="spam")

Errors are TunesmithError with what, where and fix; nothing here prints to standard output.
"""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tunesmith.examples
from tunesmith import hardware

hardware.keep_freed_memory()  # before torch


from tunesmith.config import DataConfig, Run, load_run, must_be_read, validate  # noqa: E402
from tunesmith.data.cache import LEAST_EXAMPLES, RowsCache  # noqa: E402
from tunesmith.data.checks.check import Report, open_files  # noqa: E402
from tunesmith.data.columns import columns_of, filled, looks_filled  # noqa: E402
from tunesmith.data.conversation import Conversation, Message  # noqa: E402
from tunesmith.data.formats import read_prompts  # noqa: E402
from tunesmith.data.mixture import evenly  # noqa: E402
from tunesmith.data.rows import load_parts  # noqa: E402
from tunesmith.data.sources import read_part, sources_of  # noqa: E402
from tunesmith.data.template import Renderer  # noqa: E402
from tunesmith.errors import BadInput, MachineFailed, nearest  # noqa: E402
from tunesmith.evaluation import score, sensitivity, tasks  # noqa: E402
from tunesmith.exports import merged  # noqa: E402
from tunesmith.exports.parity import probe_rows  # noqa: E402
from tunesmith.exports.quantized import written_dtype  # noqa: E402
from tunesmith.files import must_be_new, sha256_of  # noqa: E402
from tunesmith.inference import engine  # noqa: E402
from tunesmith.kernels import memory  # noqa: E402
from tunesmith.kernels.native import compiled  # noqa: E402
from tunesmith.kill_points import reached  # noqa: E402
from tunesmith.model.adapters import AdapterFile, adapter_names, fingerprint, load_adapter, read_adapter, using  # noqa: E402
from tunesmith.model.foreign import read_facts  # noqa: E402
from tunesmith.model.load import Loaded, is_quantised, load_model  # noqa: E402
from tunesmith.names import must_be_path  # noqa: E402
from tunesmith.planning import plan as planning  # noqa: E402
from tunesmith.planning.devices import devices_of  # noqa: E402
from tunesmith.preflight import check_run, refuse, renderer_of, short_lines, subject_of  # noqa: E402
from tunesmith.progress import progress, say, upto  # noqa: E402
from tunesmith.quant.scheme import Scheme, scheme_of_words  # noqa: E402
from tunesmith.report.card import write_model_card  # noqa: E402
from tunesmith.report.page import write_report  # noqa: E402
from tunesmith.runs import RunFolder, adapter_of, now, save_evaluation  # noqa: E402
from tunesmith.training import distributed, loop, resuming, stopping  # noqa: E402
from tunesmith.training.method import load_base  # noqa: E402
from tunesmith.training.ready import prepare  # noqa: E402

memory.keep_tensors()

Prompt = str | Sequence[Mapping[str, str] | Message]
SAMPLES_KEPT = 24  # answers shown in the report
RESERVED = ("base", "majority", "new", "quit", "exit")  # other models of an evaluation, and commands of chat


def as_run(config: Run | str | Path | Mapping[str, Any]) -> Run:
    """A run from a file, a mapping or a run; conversions of other tools' keys are said aloud."""
    if isinstance(config, Run):
        must_be_read(config)
        return config
    run, said = validate(config, "the config") if isinstance(config, Mapping) else load_run(config)
    for line in said:
        say(line)
    return run


def train(config: Run | str | Path | Mapping[str, Any], command: str = "", check: bool = True, more: str = "") -> RunFolder:
    """Fine-tune, measure before and after on the test rows, write the report; returns the run folder.

    check   look at all of the data first, say what is doubtful, refuse what is wrong; False: refuse only
    more    the command that shows what was found
    """
    run = as_run(config)
    compiled()  # a path of kernels that is not there should not cost the work before the first step
    distributed.start(run.training.heartbeat_seconds)
    with distributed.ending_together():
        if distributed.rank() == 0:
            RunFolder.must_be_free(Path(run.output).expanduser().absolute())  # before the minutes that a look at large data takes
        _look_at_data(run, check, more or f"tunesmith check {config if isinstance(config, str | Path) else run.data.train}")
        _say_plan(run)
        return _complete(RunFolder(Path(run.output).expanduser()), lambda: loop.train(run, command))


def _say_plan(run: Run) -> None:
    """What the run will need, by the first process; BadInput where that is far more than there is."""
    for line in distributed.from_first(lambda: planning.before(run)):
        if distributed.rank() == 0:
            say(line)


def plan(
    config: Run | str | Path | Mapping[str, Any], *, devices: str | None = None, price_per_hour: float | None = None, tflops: float | None = None,
    sets: Sequence[str] = (), spelled: Mapping[str, str] | None = None,
) -> planning.Plan:  # fmt: skip
    """Memory, time and disk of a run before it is started, by each method, and where it fits.

    config    a config, a run folder, or only a model: a folder with a config.json, or that file; no weights are needed
    devices   "24,2x80": by gigabytes of memory, several as 2x80; "none"; by default the usual cards
    tflops    10^12 operations a second of matrix products to reckon with, in place of this machine's own rates
    sets      as `--set` takes them: "training.max_length=2048"; spelled: how the user wrote those that were flags
    """
    wanted = devices_of(devices)
    if isinstance(config, Run | Mapping):
        return planning.make(as_run(config), wanted, price_per_hour, tflops)
    path = Path(config)
    place = path / "config.yaml" if (path / "config.yaml").is_file() else path
    if path.suffix in (".yaml", ".yml") or place != path:
        run, said = load_run(place, sets, spelled)
        for line in said:
            say(line)
        return planning.make(run, wanted, price_per_hour, tflops)
    run, _ = validate({"model": str(config), "data": {"train": "none"}}, str(config), sets, spelled=spelled)
    return planning.make(run, wanted, price_per_hour, tflops, has_rows=any(text.startswith("data.train=") for text in sets))


def _look_at_data(run: Run, thorough: bool, more: str) -> None:
    """The checks that a run begins with, by the first process alone; raises BadInput where the data are not to be trained on."""
    if distributed.rank() != 0 or not (thorough or run.data.answer_schema):
        return
    kept = RowsCache(run.data)
    renderer, max_length = renderer_of(run) if thorough else (None, 0)
    schema = sha256_of(Path(run.data.answer_schema)) if run.data.answer_schema and Path(run.data.answer_schema).is_file() else None
    key = {"check": renderer.fingerprint() if renderer else None, "max_length": max_length, "schema": schema, "more": more}
    lines = kept.noted(key)
    if lines is None:
        report = check_run(run, open_files(run.data), thorough=thorough)
        refuse(report, more)
        lines = short_lines(report, more) if thorough else []
        if sum(report.rows.values()) >= LEAST_EXAMPLES:
            kept.note(key, lines)
    for line in lines:
        say(line)


def check(place: str | Path, *, sets: Sequence[str] = (), **settings: Any) -> Report:
    """Look at every row of a config's data, or of a data file; returns what was found, worst first.

    sets       as `--set` takes them: "data.header=false"
    settings   model, and keys of data: validation="validation.jsonl", answer_schema="schema.json"
    """
    given = [f"{key if key == 'model' else f'data.{key}'}={json.dumps(value)}" for key, value in settings.items() if value is not None]
    subject = subject_of(place, [*given, *sets])
    report = check_run(subject.run, subject.files, with_model=subject.names_model, with_split=True)
    return replace(report, said=[*subject.said, *report.said])


def resume(path: str | Path) -> RunFolder:
    """Continue a run that was stopped, then measure and report.

    Of a run that is done nothing is left to do, and that is no error: whoever starts jobs anew cannot know that one ended as it was killed.
    """
    resuming.mend_config(RunFolder(Path(path)))
    folder = RunFolder.open(path)
    distributed.start(folder.run().training.heartbeat_seconds)
    with distributed.ending_together():
        state = distributed.from_first(lambda: folder.status().get("state"))
        if state not in ("trained", "done"):
            return _complete(folder, lambda: loop.resume(folder))
        for line in resuming.config_changes(folder, folder.run(), resuming.newest(folder)[0]):
            say(line)
        if state == "trained":  # stopped while it was being measured
            return _complete(folder, lambda: folder)
        more = f"model: {folder.model}" if folder.run().method == "full" else f"lora.continue_from: {folder.path}"
        say(f"this run is done, and nothing is left to do; to train further: a new run with {more}")
        return folder


def _complete(folder: RunFolder, work: Callable[[], RunFolder]) -> RunFolder:
    """Do the training, then measure and report. A stop after the last step, wherever it comes, leaves a run that can be measured later."""
    try:
        folder = work()
        if distributed.rank() == 0:
            with folder.only_process(), folder.named_in_disk_errors():
                if folder.run().data.has_test:
                    evaluate(folder)  # writes card and report too
                else:
                    write_model_card(folder.path)
                    write_report(folder.path)
                reached("report.written")
                # last: a run whose report could not be written is not done, and resume writes it
                folder.set_status(state="done", problem=None, ended=now(), resume_command=None)
    except BaseException as error:
        if _was_stopped(error) and folder.status().get("state") == "trained":
            raise stopping.unmeasured(folder) from None
        if _was_stopped(error) and folder.state() == "killed" and distributed.rank() == 0:
            # its folder was just made, and nobody was there yet to note the stop
            with suppress(MachineFailed):
                folder.set_status(state="interrupted", ended=now())
            raise stopping.stopped_at_once(folder) from None
        raise
    distributed.barrier()
    return folder


def _was_stopped(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error; a library may have made another one of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def evaluate(
    folder: RunFolder | str | Path, data: str | None = None, adapters: Mapping[str, str] | None = None, sets: Sequence[str] = (), *,
    phrasings: sensitivity.Phrasings | str | Path | None = None, output: str | Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Base, tuned model and majority answer on the same rows; kept in the run folder unless other data were named.

    folder      a run or its path
    data        another file, or a folder of tasks, instead of the run's own test rows
    adapters    further adapters on the same base, by name
    sets        how to read `data` where that is not as the run's own rows: data.header=false
    phrasings   the same rows asked in other words too (sensitivity.py): texts by task, or a file of them; by default the further
                ones of data.prompt, where that is a list
    output      a new folder for evaluation.json and evaluation-rows.jsonl
    Returns {"rows": n, "task": ..., "models": {"majority": {metric: value}, "base": {...}, NAME: {...}}, "differences": {...}}, and
    with tasks "tasks" and "macro" (evaluation/tasks.py), with phrasings "phrasings"; where evaluation.limit
    took some of the rows, "rows_given" is how many there are.
    """
    folder = folder if isinstance(folder, RunFolder) else RunFolder.open(folder)
    run = folder.run()
    if output is not None:
        must_be_new(Path(output))
    named = _with_own(folder, run, adapters)
    conversations, training = _rows_to_measure(folder, run, data, sets)
    where = "phrasings"
    if isinstance(phrasings, str | Path):
        where, phrasings = str(phrasings), sensitivity.read_phrasings(Path(phrasings))
    if phrasings is None:
        phrasings = _phrasings_of(run)
    else:
        sensitivity.must_name_tasks(phrasings, conversations, where)
    n_given, conversations = len(conversations), evenly(conversations, run.evaluation.limit)
    of_all = f" of {n_given:,}" if len(conversations) < n_given else ""
    variants = [conversations, *(sensitivity.rephrased(conversations, phrasings) if phrasings else [])]
    base = _open(run.model, run, run.training.dtype, run.data.template)
    for name, path in named.items():
        base.add_adapter(
            name, path, own=name == own_name(folder)
        )  # before anything is measured: a wrong adapter should not cost the minutes of the others
    rendered = [tasks.task_rows(rows, training, run.evaluation, base.renderer, base.loaded.context) for rows in variants]
    measured: list[dict[str, dict[str, score.Measured]]] = [
        {"majority": found} if (found := tasks.majority(rows)) else {} for rows in rendered
    ]

    def measure(opened: "Model", adapter: str | None, name: str) -> None:
        limited = f"{of_all} rows (evaluation.limit)" if of_all else " rows"
        say(f"measuring {name} on {len(conversations):,}{limited}" + (f", in {len(variants)} phrasings" if len(variants) > 1 else ""))
        for rows, found in zip(rendered, measured, strict=True):
            found[name] = tasks.measure_tasks(
                opened.loaded.model, rows, opened.renderer, run.evaluation, adapter=adapter, title=name, context=base.loaded.context
            )

    measure(base, None, "base")
    if run.method == "full":
        measure(load(str(folder.model), dtype=run.training.dtype, template=run.data.template), None, own_name(folder))
    for name in named:
        measure(base, name, name)
    as_given = rendered[0]
    evaluation = tasks.summary(as_given, measured[0])
    if of_all:
        evaluation["rows_given"] = n_given
    if phrasings:
        evaluation["phrasings"] = tasks.phrasing_summary(phrasings, measured)
    records = tasks.row_records(as_given, measured[0])
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)
        save_evaluation(Path(output), evaluation, records)
    if data is None and not adapters:
        folder.save_evaluation(evaluation, _samples(as_given, records), records)
        write_model_card(folder.path)
        write_report(folder.path)
    return evaluation


def _rows_to_measure(
    folder: RunFolder, run: Run, data: str | None, sets: Sequence[str]
) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
    """The rows of `data` or the run's test rows, and the training rows, whose commonest answer is a baseline (none of other data)."""
    if data is not None:
        return read_part(_reading(run, data, sets), "test", name_alone=True).conversations, []
    if sets:
        raise BadInput("--set says how to read --data", where=f"--set {sets[0]}", fix="give --data FILE too")
    if not run.data.has_test:
        raise BadInput("this run has no test rows", where=str(folder.path / "config.yaml"), fix="--data FILE, or data.test in the next run")
    parts = load_parts(run.data)
    return parts.test, parts.train


def _phrasings_of(run: Run) -> sensitivity.Phrasings | None:
    """The further phrasings of data.prompt, by task; test rows are asked in the words of the first."""
    sources, _ = sources_of(run.data, "train")
    further = {source.task: source.config.phrasings[1:] for source in sources}
    if not any(further.values()):
        return None
    if len({len(texts) for texts in further.values()}) > 1:
        say("the tasks have different numbers of phrasings, so only the first of each is measured; --phrasings FILE names others")
        return None
    return further


def own_name(folder: RunFolder) -> str:
    """What a run's result is called beside the base and other adapters; runs/base must not pass for the base."""
    return f"{folder.name}-run" if folder.name in RESERVED else folder.name


def _with_own(folder: RunFolder, run: Run, adapters: Mapping[str, str | Path] | None) -> dict[str, str | Path]:
    """The adapters to put on a run's base by name, its own first; refuses a run that has no result yet."""
    place = folder.model if run.method == "full" else folder.adapter
    if not place.is_dir():
        raise BadInput(f"this run has no {place.name} yet", where=str(place), fix=f"tunesmith resume {folder.path}")
    named, own = dict(adapters or {}), own_name(folder)
    if own in named:
        where = f"--adapter {own}={named[own]}"
        raise BadInput(f'"{own}" is the name of the run itself', where=where, fix="give the adapter another name")
    return named if run.method == "full" else {own: folder.adapter, **named}


def _samples(rows: Sequence[tasks.TaskRows], records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows for a reader, spread evenly over all."""
    conversations = [conversation for task in rows for conversation in task.rows.conversations]
    if not rows[0].rows.prompts:
        return []
    kept = range(0, len(records), max(1, len(records) // SAMPLES_KEPT))
    return [
        {
            "source": records[i]["source"], "prompt": "\n\n".join(m.content for m in conversations[i].prompt),
            "reference": records[i]["references"][0], "answers": records[i]["answers"],
            **({"task": records[i]["task"], "references": records[i]["references"]} if tasks.have_names(rows) else {}),
        }
        for i in list(kept)[:SAMPLES_KEPT]
    ]  # fmt: skip


# --- a model to talk to -------------------------------------------------------------------------------------------------


@dataclass(repr=False)
class Model:
    """A loaded base and the adapters on it. default_adapter answers where a call names none; "base" names the base alone.

    system   the system message that each adapter (None: the base) was taught with
    forms    and the template of its prompts: "Spam or ham?\\n\\n{text}"
    """

    loaded: Loaded
    renderer: Renderer
    default_adapter: str | None = None
    system: dict[str | None, str | None] = field(default_factory=dict)
    forms: dict[str | None, str | None] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Model({self.loaded.name!r}, adapters={self.adapters}, default_adapter={self.default_adapter!r})"

    @property
    def adapters(self) -> list[str]:
        return adapter_names(self.loaded.model)

    def add_adapter(self, name: str, path: str | Path, own: bool = False) -> None:
        """Put one more adapter on the base; its prompts must be rendered as in its training.

        own   this is the base of the adapter's own run: in other bits than it was trained on it is not the one, and refused
        """
        if name in RESERVED:
            raise BadInput(
                f'an adapter cannot be called "{name}": the word has another meaning', where=str(path), fix="give it another name"
            )
        must_be_path(str(path), "--adapter")
        folder = adapter_of(path)
        found = read_adapter(folder)
        facts = found.facts
        # before anything that differs between two bases, as their tokenizers do
        if facts.get("base_fingerprint") not in (None, fingerprint(self.loaded.model)):
            base = found.config.get("base_model_name_or_path")
            raise BadInput(
                f"this adapter does not fit this base model: it was trained on {base or 'another base'}, whose weights are not these",
                where=f"{folder} on {self.loaded.name}", fix=f"load the base it was trained on{f' ({base})' if base else ''}, or copy the adapter again",
            )  # fmt: skip
        if "renderer" in facts:
            renderer = Renderer(self.loaded.tokenizer, facts["template"], self.loaded.eos_ids, self.loaded.n_ids)
            if renderer.fingerprint() != facts["renderer"]:
                raise BadInput(
                    "this adapter was trained with another chat template or tokenizer", where=str(folder),
                    fix="use the tokenizer files in the adapter folder with its base, or train again",
                )  # fmt: skip
            if renderer.mode != self.renderer.mode:
                if self.adapters:
                    raise BadInput(
                        f"this adapter's prompts are {renderer.mode}, those of the others {self.renderer.mode}",
                        where=str(folder),
                        fix="load it alone",
                    )
                self.renderer = renderer
        other_bits = _in_other_bits(facts, self.loaded)
        if other_bits is not None and own:
            raise BadInput(
                f"the adapter {other_bits}", where=f"{folder} on {self.loaded.name}",
                fix=f"put the base back; or, to use the adapter on this one: --adapter NAME={folder} with the base as the model",
            )  # fmt: skip
        load_adapter(self.loaded.model, name, folder)
        if other_bits is not None:
            say(f"{name} {other_bits}, so answers may differ a little")
        self.system[name] = _fixed_text(facts.get("system"))
        self.forms[name] = facts.get("prompt")

    def form(self, adapter: str | None = None) -> str | None:
        """The template of the prompts that an adapter learned; of the base the one that all adapters here share, as it is compared with them."""
        name = self.chosen(adapter)
        shared = set(self.forms.values()) - {None}
        return self.forms.get(name) or (next(iter(shared)) if name is None and len(shared) == 1 else None)

    def fill(self, text: str, adapter: str | None = None) -> str:
        """The whole prompt that `text` makes in the one column of the template; BadInput where it has none or several."""
        form = self.form(adapter)
        columns = columns_of(form) if form is not None else []
        if form is None or len(columns) != 1:
            what = "was trained without a template" if form is None else f"has the columns {', '.join(columns) or '(none)'} in its template"
            name = self.chosen(adapter) or ("base" if self.adapters else "this model")
            raise BadInput(f"{name} {what}", where="--fill", fix="leave out --fill and type the whole prompt")
        return filled(form, {columns[0]: text})

    def form_in_words(self, adapter: str | None = None, prompt: str | None = None) -> list[str]:
        """That prompts of a certain form are expected, unless `prompt` is one of them."""
        form = self.form(adapter)
        columns = columns_of(form) if form is not None else []
        if form is None or form == f"{{{columns[0] if columns else ''}}}" or (prompt is not None and looks_filled(form, prompt)):
            return []
        or_fill = f", or with --fill only {{{columns[0]}}}" if len(columns) == 1 else ""
        name = self.chosen(adapter) or ("the adapter" if self.adapters else "this model")
        return [f"{name} was trained on prompts of the form {json.dumps(form, ensure_ascii=False)}; type the whole prompt{or_fill}"]

    def generate(
        self, prompts: Sequence[Prompt], *, adapter: str | None = None, max_new_tokens: int = 128, temperature: float = 0.0, top_p: float = 1.0,
        seed: int = 0, batch_size: int = 64, tools: Sequence[Sequence[Mapping[str, Any]]] = (), on_progress: Callable[[int], None] | None = None,
    ) -> list[str]:  # fmt: skip
        """Answers to prompts (a text, or a list of {"role", "content"}) by the base or one adapter, chosen per call.

        tools   for each prompt the definitions of the functions that its answer may call; none: no prompt has any
        """
        if isinstance(prompts, str):
            raise BadInput("prompts should be a list of prompts, not one text", where="generate", fix="generate([prompt])[0]")
        if tools and len(tools) != len(prompts):
            raise BadInput(
                f"there are {len(prompts):,} prompts and tools for {len(tools):,}", where="generate", fix="tools=[…] for each prompt"
            )
        name, of_each = self.chosen(adapter), tools or [()] * len(prompts)
        ids = [
            self.renderer.prompt_ids(self._messages(prompt, name), f"prompt {n}", defined)
            for n, (prompt, defined) in enumerate(zip(prompts, of_each, strict=True), 1)
        ]
        with self._answering(name):
            written = engine.generate(
                self.loaded.model, ids, max_new_tokens=max_new_tokens, stop_ids=self.renderer.stop_ids, temperature=temperature,
                top_p=top_p, seed=seed, batch_size=batch_size, on_progress=on_progress,
            )  # fmt: skip
        return [score.decode(self.renderer, answer.ids) for answer in written]

    def stream(
        self,
        messages: Sequence[Message],
        *,
        adapter: str | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """One answer as pieces of text, as they are written."""
        adapter = self.chosen(adapter)
        ids = self.renderer.prompt_ids(messages)
        written: list[int] = []
        shown = ""
        with self._answering(adapter):
            for token in engine.stream(
                self.loaded.model,
                ids,
                max_new_tokens=max_new_tokens,
                stop_ids=self.renderer.stop_ids,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
            ):
                written.append(token)
                text = score.decode(self.renderer, written)
                if not text.endswith("\ufffd"):  # half of a character: wait for the rest
                    yield text[len(shown) :]
                    shown = text

    def chosen(self, adapter: str | None) -> str | None:
        """The adapter that a call means: None is the default one, "base" is none."""
        return None if adapter == "base" else adapter if adapter is not None else self.default_adapter

    def _answering(self, name: str | None) -> Any:
        if name is not None and name not in self.adapters:
            raise BadInput(
                f'there is no adapter "{name}" on this model', fix=nearest(name, self.adapters) if self.adapters else "--adapter NAME=PATH"
            )
        return using(self.loaded.model, name)

    def _messages(self, prompt: Prompt, adapter: str | None) -> list[Message]:
        given = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        turns: list[Message] = []
        for turn in given:
            if isinstance(turn, Mapping) and all(isinstance(turn.get(key), str) for key in ("role", "content")):
                turns.append(Message(turn["role"], turn["content"], False))
            elif isinstance(turn, Message):
                turns.append(turn)
        if not turns or len(turns) < len(given):
            raise BadInput("a prompt is a text or a list of messages", where=repr(prompt)[:80], fix='[{"role": "user", "content": "…"}]')
        system = self.system.get(adapter)
        return [Message("system", system, False), *turns] if system is not None and turns[0].role != "system" else turns


def load(model: str | Path, adapters: Mapping[str, str | Path] | None = None, dtype: str = "auto", template: str = "auto") -> Model:
    """Open a base model, a full fine-tuned model or a run folder (its base with its adapter as the default), plus named adapters."""
    name = str(model)
    must_be_path(name, "model")
    path = Path(name)
    default: str | None = None
    named = dict(adapters or {})
    of_run: Run | None = None
    if (path / "config.yaml").is_file():
        folder = RunFolder.open(path)
        run = folder.run()
        named = _with_own(folder, run, named)
        template, dtype = run.data.template, run.training.dtype
        if run.method == "full":
            name = str(folder.model)
        else:
            name, default, of_run = run.model, own_name(folder), run
    opened = _open(name, of_run, dtype, template)
    for adapter, place in named.items():
        opened.add_adapter(adapter, place, own=adapter == default)
    opened.default_adapter = default
    return opened


def _open(name: str, run: Run | None, dtype: str, template: str, scheme: Scheme | None = None) -> Model:
    """The model `name`, stored as the run stores its base (or by `scheme`), rendered as its own training did."""
    facts = _training_facts(Path(name))
    if template == "auto":
        template = facts.get("template", "auto")
    loaded = load_base(run, dtype) if run is not None else load_model(name, dtype, scheme=scheme)
    opened = Model(loaded, Renderer(loaded.tokenizer, template, loaded.eos_ids, loaded.n_ids))
    if facts.get("renderer", opened.renderer.fingerprint()) != opened.renderer.fingerprint():
        raise BadInput(
            "this model was trained with another chat template or tokenizer", where=name,
            fix="restore the tokenizer files that were saved with it, or train again",
        )  # fmt: skip
    opened.system[None] = _fixed_text(facts.get("system"))  # a fully tuned model was taught with it too
    opened.forms[None] = facts.get("prompt")
    return opened


def _training_facts(folder: Path) -> dict[str, Any]:
    """What full fine-tuning wrote beside its weights; empty for any other model."""
    return read_facts(folder) if folder.is_dir() else {}


def _fixed_text(system: str | None) -> str | None:
    """A system message that is the same for every row; one with columns in braces cannot be said without a row."""
    return None if system is None or columns_of(system) else system


# --- an adapter folded into its base --------------------------------------------------------------------------------------


def merge(
    run: str | Path, output: str | Path, *, model: str | None = None, data: str | None = None, dtype: str = "bfloat16",
    scheme: Scheme | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Fold the adapter of a run, or of an adapter folder, into its base: a model of its own, compared with base + adapter.

    model    the base, where it lies elsewhere than the run or the adapter says
    data     rows to compare on; by default the run's test rows, else its training rows, else some of tunesmith's examples
    scheme   quantise the result again; what that costs is measured too
    Returns what RUN/merge.json keeps.
    """
    must_be_new(Path(output))
    written = written_dtype(dtype)
    place, folder = Path(run), None
    if place.name == "adapter" and (place.parent / "config.yaml").is_file():
        place = place.parent
    if (place / "config.yaml").is_file():
        folder = RunFolder.open(place)
        if folder.run().method == "full":
            raise BadInput("a fully tuned model has no adapter: there is nothing to merge", where=str(place), fix=f"use {folder.model}")
        place = Path(_with_own(folder, folder.run(), None)[own_name(folder)])
    elif (place / "config.json").is_file() and not (place / "adapter_config.json").is_file():
        what = "this is a model, not an adapter: there is nothing to merge"
        raise BadInput(what, where=str(place), fix="give a run or its adapter folder")
    found = read_adapter(place)
    settings = folder.run() if folder is not None else None
    conversations, source = _to_compare_on(settings, data)
    opened = _its_base(found, settings, model)
    opened.add_adapter(name := own_name(folder) if folder is not None else "adapter", place)
    facts = {
        "renderer": opened.renderer.fingerprint(), "template": opened.renderer.mode, "stop_ids": sorted(opened.renderer.stop_ids),
        **{key: value for key, value in found.facts.items() if key not in ("version", "base_fingerprint")}, "merged": str(place),
    }  # fmt: skip
    rows = probe_rows(conversations, opened.renderer, opened.loaded)
    say(f"comparing on {len(rows):,} rows of {source}")
    return merged.merge(opened.loaded, name, opened.renderer, rows, Path(output), facts, written, scheme)


def _its_base(found: AdapterFile, run: Run | None, model: str | None) -> Model:
    """The base that an adapter was trained on, in the bits that it was trained on; anything else is refused (FAILURES 6)."""
    name = model or (run.model if run is not None else found.config.get("base_model_name_or_path"))
    if not name:
        raise BadInput("the adapter does not say which base it belongs to", where=str(found.folder), fix="--model BASE")
    if model is None and run is None and name != "acorn" and not _is_folder(name):
        raise BadInput(
            f"the adapter belongs to {name}, and nothing is opened or fetched because a file names it", where=str(found.folder),
            fix=f"--model {shlex.quote(name)}, if you trust it",
        )  # fmt: skip
    taught = found.facts.get("base_scheme")
    scheme = scheme_of_words(taught) if taught is not None and not is_quantised(name) else None
    template = run.data.template if run is not None else "auto"
    opened = _open(name, None, found.facts.get("dtype", "auto"), template, scheme)
    if "base_scheme" not in found.facts:
        say(f"the adapter does not say in which bits its base was stored; folded into {name} as it is")
    elif (other_bits := _in_other_bits(found.facts, opened.loaded)) is not None:
        raise BadInput(f"the adapter {other_bits}", where=name, fix="--model: the base that it was trained on")
    return opened


def _is_folder(name: str) -> bool:
    """Whether a text is the whole path of a folder of this machine."""
    try:
        return Path(name).is_absolute() and Path(name).is_dir()
    except (OSError, ValueError):  # no path at all
        return False


def _in_other_bits(facts: Mapping[str, Any], loaded: Loaded) -> str | None:
    """In words, if an adapter was trained on a base that is stored otherwise; None if not, or if its facts do not say."""
    taught, here = facts.get("base_scheme"), None if loaded.scheme is None else str(loaded.scheme)
    if "base_scheme" not in facts or taught == here:
        return None
    return f"was trained on a base in {taught or '16 bits'}, and this one is in {here or '16 bits'}"


def _to_compare_on(run: Run | None, data: str | None) -> tuple[Sequence[Conversation], str]:
    """Rows for a comparison of two models, and what they are in words."""
    if data is not None:
        return read_part(_reading(run, data, ()), "test").conversations, data
    if run is not None:
        parts = load_parts(run.data)
        return (parts.test, "the run's test rows") if parts.test else (parts.train, "the run's training rows (it has no test rows)")
    examples = Path(next(iter(tunesmith.examples.__path__)))
    config, _ = load_run(examples / "support.yaml", [f"data.train={examples / 'support.jsonl'}"])
    return load_parts(config.data).test, "tunesmith's own examples (--data FILE names better ones)"


def answer_file(
    model: Model, data: str, output: Path, run: Run | None, *, sets: Sequence[str] = (), overwrite: bool = False, **settings: Any
) -> int:
    """Answer every row of a file; the result has one JSON line for each, in order. Returns the number of rows.

    output      replaced only if `overwrite` says so, and never the file of prompts itself; its folder is made before the answers are
    sets        how to read the file where that is not as the run's own: data.header=false
    """
    from tunesmith.files import explain_disk, write_text

    if output.is_dir() or (output.exists() and Path(data).exists() and output.samefile(data)):
        kind = "is a folder" if output.is_dir() else "is the file of prompts"
        raise BadInput(f"the output {kind}", where=str(output), fix="--output preds.jsonl")
    if output.exists() and not overwrite:
        raise BadInput("there is already a file of this name", where=str(output), fix="another --output, or --overwrite")
    with explain_disk(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    read = read_prompts(_reading(run, data, sets), data)
    for line in read.said:
        say(line)
    prompts, tools = [_asked(c) for c in read.conversations], [c.tools for c in read.conversations]
    with progress("answers", len(prompts)) as bar:
        answers = model.generate(prompts, tools=tools, on_progress=upto(bar), **settings)
    rows = [
        {"source": c.source, "answer": a, **({"reference": c.answer} if c.answer is not None else {})}
        for c, a in zip(read.conversations, answers, strict=True)
    ]
    write_text(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)


def _reading(run: Run | None, data: str, sets: Sequence[str]) -> DataConfig:
    """How to read a file of other rows: as the run reads its own, less what `--set data.…` says."""
    own = run.data if run is not None else DataConfig(train=data)
    here: dict[str, Any] = {"train": data, "validation": None, "test": data, "held_out": []}
    raw = {"model": "acorn", "data": {**own.model_dump(mode="json"), **here}}
    (before, _), (after, said) = validate(raw, data), validate(raw, data, sets)
    if after.model_copy(update={"data": before.data, "output": before.output}) != before:
        raise BadInput(
            "only keys of data can be set here", where=" ".join(f"--set {text}" for text in sets), fix="as --set data.header=false"
        )
    for line in said:
        if sets and not line.startswith("output:"):
            say(line)
    return after.data


def _asked(conversation: Conversation) -> tuple[Message, ...]:
    return conversation.prompt if conversation.answer is not None else conversation.messages


def dry_run(config: Run, check: bool = True, more: str = "") -> list[str]:
    """Everything that happens before the first step, without writing: data looked at and rendered, model loaded, sizes said.

    check, more   as of `train`
    """
    _look_at_data(config, check, more or f"tunesmith check {config.data.train}")
    said = prepare(config, "dry-run").said
    if (Path(config.output) / "config.yaml").is_file():
        said = [*said, f"{config.output} already holds a run: choose another output before training"]
    return said
