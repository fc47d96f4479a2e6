"""What a run would need before it is started: memory by kind, time, disk; for each method side by side, and on which devices it fits.

    plan = make(run, devices=["24", "2x80"], price_per_hour=2.5)
    plan.methods["qlora"].memory.peak, plan.methods["qlora"].seconds, plan.fits("24")["qlora"]
    for line in before(run): say(line)           # the short form, at the start of every training

A model's config.json is enough: no weights are read, and without rows or a tokenizer every example is taken to be as long as it may be.
The bytes are those of tensors, from a rehearsal of the step (rehearsal.py). What a process needs besides, and what is assumed of
devices that are not here, stands in the constants below.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from tunesmith.config import Run
from tunesmith.data.batches import StepRows, lengths_of, shared_share, windows
from tunesmith.data.cache import RowsCache
from tunesmith.data.rows import load_parts, load_rows
from tunesmith.data.sources import read_part, sources_of
from tunesmith.data.template import Example
from tunesmith.errors import BadInput
from tunesmith.hardware import free_disk_bytes, give_back_freed_memory, memory_bytes, pick_device, pick_dtype
from tunesmith.kernels.adamw8bit import BLOCK
from tunesmith.kernels.linear_nll import CHUNK_TOKENS
from tunesmith.kernels.memory import keep_tensors
from tunesmith.model.foreign import check_config
from tunesmith.model.load import A_DECODER, ACORN, first_line, quietly
from tunesmith.planning import shapes, speed
from tunesmith.planning.devices import Device, device_of
from tunesmith.planning.rehearsal import Scene, Step, Work, line, rehearse
from tunesmith.preflight import renderer_of
from tunesmith.progress import clock, counted
from tunesmith.training.ready import DEFAULT_MAX_LENGTH, PADDING_STEPS, is_worth_packing, longest_example, may_share, padding_of

METHODS = ("full", "lora", "qlora")
# What a process on a CPU grows by besides tensors, as measured (benchmarks/plan.py, docs/plan.md): code of libraries, tokenizer, rows, ...
PROCESS_BYTES = 100 << 20  # ... and trials before the first step,
TRIAL_BYTES = 66 << 20  # of which that of an attention of ours, with 16-bit weights, compiles products of its own
GAPS = 0.015  # of the peak, between blocks of memory that is kept (kernels/memory.py)
PRODUCT_BYTES = 690 << 10  # of a compiled bfloat16 product: oneDNN keeps one for each shape it meets ...
MOST_PRODUCTS = 1024  # ... and this many (ONEDNN_PRIMITIVE_CACHE_CAPACITY)
FAR_BEYOND = 1.5  # times the memory there is: refused before the model is loaded
TIGHT = 0.4  # of a machine's memory: from there on freed memory is given back at once where kernels/memory.py cannot keep it without gaps
SAMPLE = 512  # examples whose lengths `before` looks at
SMALL_DATA_BYTES = 4 << 20  # of files that it reads at all


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors. kinds: at the fullest moment of a training step; the others: in all, each at a moment of its own, 0: never comes.

    validation   between two steps; saving: when the result is written; measuring: when base and tuned model answer the test rows
    mapped       of the model's file, which stays mapped for what is not quantised: the system can drop it at any time, so it is in no sum
    process      that the process grows by besides tensors, on a CPU: in no sum, an estimate
    """

    kinds: Mapping[str, float]
    validation: float
    saving: float
    measuring: float
    mapped: float
    process: float

    @property
    def training(self) -> float:
        return sum(self.kinds.values())

    @property
    def peak(self) -> float:
        return max(self.training, self.validation, self.saving, self.measuring)


@dataclass(frozen=True)
class Method:
    """Of one method on this machine.

    n_trained, flops    values that are trained; floating-point operations of a step, on the average
    step_seconds        of a step on the average; seconds: of all steps, None where their number is not known
    checkpoint_bytes    of one checkpoint; disk_bytes: of all that are kept, one more being written, and the result
    """

    memory: Memory
    n_trained: int
    flops: float
    step_seconds: float
    seconds: float | None
    checkpoint_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class Fit:
    """The most rows of `length` tokens that a device holds at once; 0: none. recomputed: with gradient_checkpointing only."""

    length: int
    rows: int
    recomputed: bool
    bytes: float


@dataclass(frozen=True)
class Plan:
    """methods and devices by name; tokens of an epoch are None where the rows are not known; said: what was found and assumed."""

    model: str
    chosen: str
    methods: dict[str, Method]
    devices: dict[str, dict[str, Fit]]
    memory_bytes: int
    free_disk_bytes: int
    products_per_second: float
    n_steps: int | None
    n_examples: int | None
    epoch_tokens: int | None
    longest: int
    price_per_hour: float | None
    said: list[str]

    def fits(self, device: str) -> dict[str, Fit]:
        return self.devices[device_of(device).name]

    def cost(self, method: str) -> float | None:
        seconds = self.methods[method].seconds
        return None if seconds is None or self.price_per_hour is None else seconds / 3600 * self.price_per_hour

    def as_json(self) -> dict[str, Any]:
        methods = {
            name: {**asdict(m), "memory": {**{k: int(v) for k, v in asdict(m.memory).items() if k != "kinds"}, "training": int(m.memory.training),
                                           "peak": int(m.memory.peak), "kinds": {k: int(v) for k, v in m.memory.kinds.items()}}, "cost": self.cost(name)}
            for name, m in self.methods.items()
        }  # fmt: skip
        return {**asdict(self), "methods": methods}


# --- the plan -------------------------------------------------------------------------------------------------------------


def make(
    run: Run, devices: Sequence[Device] = (), price_per_hour: float | None = None, tflops: float | None = None, has_rows: bool = True
) -> Plan:  # fmt: skip
    """All that is known before a run.

    devices          to fit the methods to
    price_per_hour   of the machine, for `Plan.cost`
    tflops           of matrix products that a step reaches, in place of this machine's own rates
    has_rows         False: data.train names nothing

    Raises BadInput where the model is none that can be trained, or the chosen method cannot be had.
    """
    _must_be_positive(price_per_hour, "--price-per-hour", "the price of an hour, as 2.5")
    _must_be_positive(tflops, "--tflops", "10^12 operations a second, as 300")
    config, said = config_of(run.model)
    known = _known(run, config, "all" if has_rows else "none")
    run = known.run
    said += known.said
    rehearsals = _Rehearsals(run, config, known, pick_dtype(run.training.dtype, pick_device()), pick_device().type == "cpu")
    rates = rehearsals.machine_speed(pick_device()) if tflops is None else speed.given(tflops)
    found: dict[str, Method] = {}
    fits: dict[str, dict[str, Fit]] = {device.name: {} for device in devices}
    for method in [run.method, *(m for m in METHODS if m != run.method)]:
        try:
            found[method] = rehearsals.method(method, rates)
            if devices:
                for device, fit in zip(devices, rehearsals.fits(method, devices), strict=True):
                    fits[device.name][method] = fit
        except BadInput as error:
            if method == run.method:
                raise
            said.append(f"{method} cannot be had: {error.what}")
    steps = known.batches.n_steps if known.rows_known or run.training.steps else None
    return Plan(
        run.model, run.method, {m: found[m] for m in METHODS if m in found}, fits, memory_bytes(pick_device()),
        free_disk_bytes(Path(run.output).expanduser().absolute()), rates.products, steps, known.n_examples, known.epoch_tokens,
        known.batches.longest, price_per_hour, said,
    )  # fmt: skip


def _must_be_positive(value: float | None, flag: str, fix: str) -> None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise BadInput(f"{value:g} should be a finite number above zero", where=f"{flag} {value:g}", fix=fix)


def config_of(model: str) -> tuple[Any, list[str]]:
    """The configuration of a model by name, folder or config.json, without its weights; and what to say of it."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    path = ACORN if model == "acorn" else Path(model).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        raise BadInput(
            "this folder holds no model: config.json is missing", where=str(path), fix="a folder with a config.json; weights are not needed"
        )
    looks_local = path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1 or path.suffix == ".json"
    if looks_local and not path.exists():
        raise BadInput("there is no such model", where=str(path), fix="acorn, a folder with a config.json, that file, or a hub id")
    if path.exists():
        check_config(path)
    else:
        path = _fetched(model)
    try:
        with quietly():
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        raise BadInput(
            f"the model's configuration is not understood: {first_line(error)}",
            where=model,
            fix="see the message; remote code is never run",
        ) from None
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise BadInput(f"a model of type {config.model_type} does not predict the next word", where=model, fix=A_DECODER)
    said = []
    for section in (config, config.get_text_config()):
        if hasattr(section, "quantization_config"):
            del section.quantization_config
            said = ["the weights are quantised already; they are planned for as the scheme of `quantization`, and as dense weights"]
    return config, said


def _fetched(model: str) -> Path:
    """The checked config.json of a hub id."""
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(model, "config.json"))
    except Exception as error:  # the hub client has many kinds of failure; all mean the model is not here
        raise BadInput(
            f'"{model}" is neither a folder nor a model that the hub gave: {first_line(error)}', where="model",
            fix="acorn, a folder with a config.json, that file, or a hub id (for a private model, log in first)",
        ) from None  # fmt: skip
    check_config(path)
    return path


def packed(run: Run, packing: bool) -> Run:
    """`run` with it decided whether rows are packed."""
    return run.model_copy(update={"training": run.training.model_copy(update={"packing": packing})})


# --- the rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Known:
    """Of the data: what is known, or assumed; and the run, of which it is decided whether rows are packed."""

    run: Run
    batches: shapes.Batches
    validation: list[shapes.Size]  # of its micro-batches, the largest first
    scored_share: float
    rows_known: bool
    n_examples: int | None
    epoch_tokens: int | None
    said: list[str]


def _known(run: Run, config: Any, look_at: Literal["all", "some", "none"]) -> _Known:
    """The lengths of the real rows, where data and tokenizer are there; some: no more than a second's look."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    max_length = longest_example(run.training.max_length, context if isinstance(context, int) else None)
    why = "none are given"
    try:
        if look_at != "none":
            if (found := _rows(run, look_at == "some")) is not None:
                return found
            why = "they are many"
    except BadInput as error:
        why = f"{error.what} ({error.where})" if error.where else error.what
    run = packed(run, run.training.packing is True)  # rows of one length need no padding
    batches = shapes.assumed(run, max_length)
    reason = (
        f"training.max_length: {max_length}"
        if run.training.max_length is not None
        else f"{DEFAULT_MAX_LENGTH} tokens, or what the model was made for"
    )
    said = [f"rows are not looked at: {why}; every example is taken to have {max_length:,} tokens ({reason}), all trained"]
    several = max(1, run.training.micro_batch_tokens // max_length)
    validation = [shapes.rows_of(several, max_length, 1.0, run)] if run.data.validation is not None else []
    return _Known(run, batches, validation, 1.0, False, None, None, said)


def _rows(run: Run, quickly: bool) -> _Known | None:
    """None: too many for a quick look, and not kept from an earlier one."""
    renderer, max_length = renderer_of(run)
    kept = RowsCache(run.data)
    rows = kept.find(renderer, max_length)
    if rows is None and not quickly:
        rows = load_rows(load_parts(run.data), run.data, max_length, renderer)
    if rows is not None:
        return _of_rows(run, rows.train, rows.validation, len(rows.train))
    sources, _ = sources_of(run.data, "train")
    if sum(file.stat().st_size for source in sources for file in source.files if file.is_file()) > SMALL_DATA_BYTES:
        return None
    conversations = read_part(run.data, "train").conversations
    some = [conversations[i] for i in range(0, len(conversations), -(-len(conversations) // SAMPLE))]
    examples = [window for made in renderer.render_many(some) for example in made for window in windows(example, max_length)]
    return _of_rows(run, examples, examples if run.data.validation is not None else [], len(conversations), "of which some were looked at")


def _of_rows(run: Run, train: Sequence[Example], validation: Sequence[Example], n_examples: int, more: str = "") -> _Known:
    """train: all of `n_examples`, or some."""
    training, times = run.training, n_examples / len(train)
    rows = StepRows(
        train, training.batch_size, training.seed, training.micro_batch_tokens, training.micro_batch_size, training.packing is True,
        training.batch_tokens,
    )  # fmt: skip
    n_steps = training.steps or rows.steps_of(training.epochs)
    shared = shared_share(rows, range(min(n_steps, PADDING_STEPS))) if training.packing else 0.0
    if training.packing == "auto":
        rows = replace(rows, packing=is_worth_packing(run, padding_of(rows, n_steps), shared))
    rows = replace(rows, sharing=rows.packing and may_share(run, shared))  # the model is not asked here
    run = packed(run, rows.packing)
    batches = shapes.of_rows(rows, n_steps)
    steps = training.steps or max(1, math.ceil(rows.steps_of(training.epochs) * times))
    n_tokens = int(lengths_of(train).sum() * times)
    lengths, scored = (sum(n) for n in zip(*((sum(s.lengths), s.scored) for s in batches.sizes), strict=True))
    said = [
        f"{counted(n_examples, 'example')}, {more or f'{n_tokens:,} tokens an epoch'}, the longest {batches.longest:,}; {scored / lengths:.0%} of them trained"
    ]
    if rows.sharing:
        said.append(f"what examples of a row begin with is computed once, which saves {shared:.1%} of the tokens, if the model can do it")
    of_validation = shapes.of_validation(run, validation, rows.sharing) if len(validation) else []
    return _Known(run, replace(batches, n_steps=steps), of_validation, scored / lengths, True, n_examples, n_tokens, said)


# --- a method -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rehearsals:
    """Steps of one run, its model and its rows, by whichever method."""

    run: Run
    config: Any
    known: _Known
    compute: torch.dtype
    on_cpu: bool
    on_devices: dict[tuple[str, int, bool], Step] = field(default_factory=dict)  # by method, rows and whether recomputed

    def _scene(self, method: str, on_cpu: bool, recompute: bool | None = None, compute: torch.dtype | None = None) -> Scene:
        training = self.run.training
        if recompute is not None:
            training = training.model_copy(update={"gradient_checkpointing": recompute})
        run = self.run.model_copy(update={"method": method, "training": training})
        return Scene(run, self.config, compute or self.compute, on_cpu, self.known.batches.longest)

    def machine_speed(self, device: torch.device) -> speed.Speed:
        """Of this machine, tried on tensors as large as the run's."""
        sizes = self.known.batches.sizes
        return speed.measure(self.compute, device, self.config.get_text_config().hidden_size, sum(s.computed for s in sizes) // len(sizes))

    def method(self, method: str, rates: speed.Speed) -> Method:
        scene, batches = self._scene(method, self.on_cpu), self.known.batches
        sizes = shapes.fullest(batches.largest)
        steps = [rehearse(scene, size) for size in sizes]
        moments = [optimizer_bytes(self.run, step) for step in steps]
        fullest, optimizer = max(zip(steps, moments, strict=True), key=lambda pair: sum(pair[0].peak.values()))
        kinds = {**fullest.peak, "optimizer": optimizer}
        n_trained = round(fullest.n_trained)
        work = work_of(batches, sizes[0], steps[0].work)
        flops = sum(
            amount
            for (_, measure), amount in work.items()
            if measure.startswith(("products", "weight products", "thin operations", "attention"))
        )
        update = n_trained * (40 if self.run.training.optimizer == "adamw" else 28)  # bytes read and written by clipping and the optimizer
        compiled = self._compiled(fullest, batches.sizes) / max(len(batches.sizes), batches.n_steps)
        seconds = speed.seconds({**work, ("fixed", "updates"): update, ("fixed", "compilations"): compiled}, rates)
        checkpoint = 4 * n_trained + optimizer
        n_kept = self.run.training.keep_checkpoints + 1 + bool(self.known.validation)
        result = 4 * n_trained if method != "full" else kinds["weights"] / 4 * self.compute.itemsize
        known_steps = batches.n_steps if self.known.rows_known or self.run.training.steps else None
        return Method(
            self._memory(scene, kinds, optimizer, fullest.n_quantised, fullest), n_trained, flops, seconds,
            None if known_steps is None else known_steps * seconds, round(checkpoint), round(checkpoint * n_kept + result),
        )  # fmt: skip

    def _memory(self, scene: Scene, kinds: Mapping[str, float], optimizer: float, n_quantised: float, fullest: Step) -> Memory:
        held = kinds["weights"] + kinds["adapters"]
        validation = measuring = 0.0
        n_products = self._compiled(fullest, self.known.batches.sizes)
        if self.known.validation:
            step = rehearse(scene, self.known.validation[0], trains=False)
            validation = sum(step.peak.values()) + optimizer
            n_products += self._compiled(step, self.known.validation)
        copy_in_16_bits = kinds["weights"] / 4 * self.compute.itemsize if scene.run.method == "full" and self.compute.itemsize < 4 else 0.0
        if self.run.data.has_test:
            measuring = self._measuring(scene, held)
        in_file = str(getattr(self.config, "dtype", "")).removeprefix("torch.") == str(self.compute).removeprefix(
            "torch."
        )  # otherwise it is converted, and the file let go
        mapped = n_quantised * self.compute.itemsize if self.on_cpu and in_file else 0.0
        process = 0.0
        if self.on_cpu:
            process = PROCESS_BYTES + TRIAL_BYTES * (fullest.apart and scene.run.method != "full")
            process += PRODUCT_BYTES * min(MOST_PRODUCTS, n_products)
            process += GAPS * sum(kinds.values())
        return Memory(kinds, validation, held + optimizer + copy_in_16_bits, measuring, mapped, process)

    def _compiled(self, step: Step, sizes: Sequence[shapes.Size]) -> int:
        """Products that differ among micro-batches of these sizes."""
        tokens = {size.computed if size.packed else (size.computed, len(size.lengths)) for size in sizes}
        lengths = {size.lengths if size.packed else (size.computed, len(size.lengths)) for size in sizes}
        return step.products * len(tokens) + step.products_of_pairs * len(lengths)

    def _measuring(self, scene: Scene, held: float) -> float:
        """Models as they are loaded for it, prompts of one batch and their cache; an estimate, as what is answered is not known."""
        n_rows, length = self.run.evaluation.batch_size, self.known.batches.longest
        text = self.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or getattr(text, "num_attention_heads", 1)
        width = getattr(text, "head_dim", None) or text.hidden_size // getattr(text, "num_attention_heads", 1)
        cache = (
            2
            * text.num_hidden_layers
            * heads
            * width
            * self.compute.itemsize
            * n_rows
            * (length + (self.run.evaluation.max_new_tokens or 32))
        )
        one = packed(scene.run, False)
        step = rehearse(Scene(one, self.config, self.compute, self.on_cpu, length), shapes.rows_of(n_rows, length, 0.0, one), trains=False)  # fmt: skip
        passing = sum(step.peak.values()) - step.peak["weights"] - step.peak["adapters"]
        models = 2 * held / 4 * self.compute.itemsize if scene.run.method == "full" else held  # full: the base beside the tuned one
        return float(models + passing + cache)

    # --- devices

    def fits(self, method: str, devices: Sequence[Device]) -> list[Fit]:
        """The most rows as long as the longest that each device holds."""
        length = self.known.batches.longest
        compute = torch.bfloat16 if self.run.training.dtype == "auto" else self.compute
        wanted = self.run.training.gradient_checkpointing
        least = min(8, max(1, -(-CHUNK_TOKENS // max(1, round(self.known.scored_share * (length - 1))))))

        def rehearsed(method: str, n: int, recompute: bool) -> Step:
            key = (method, n, recompute)
            if key not in self.on_devices:
                scene = self._scene(method, False, recompute, compute)
                size = shapes.rows_of(n, length, self.known.scored_share, scene.run)
                # scored positions of one chunk of the head: what more of them take is added below
                self.on_devices[key] = rehearse(scene, replace(size, scored=min(size.scored, CHUNK_TOKENS)))
            return self.on_devices[key]

        def ends(recompute: bool) -> tuple[Step, Step]:
            few = rehearsed(method, least, recompute)
            if method == "qlora":  # each row adds what it adds to LoRA: only the weights differ
                return few, line(rehearsed("lora", least, recompute), rehearsed("lora", 2 * least, recompute), 1.0, few)
            return few, rehearsed(method, 2 * least, recompute)

        found = []
        for device in devices:
            for recompute in dict.fromkeys((wanted, True)):
                fit = self._fit(method, device, length, least, ends(recompute), recompute and not wanted)
                if fit.rows:
                    break
            found.append(fit)
        return found

    def _fit(self, method: str, device: Device, length: int, least: int, ends: tuple[Step, Step], recomputed: bool) -> Fit:
        most, needed = math.inf, 0.0
        for phase in ends[0].phases:
            few, many = (self._on_device(method, device, step, phase) for step in ends)
            each = (many - few) / least
            constant = few - each * least
            # of a scored position its state, the gradient of it, and that once more while it is scaled
            slope = max(1.0, each + 6 * self.known.scored_share * length * self.config.get_text_config().hidden_size)
            most, needed = min(most, (device.usable_bytes - constant) / slope), max(needed, constant + slope)
        rows = max(0, min(math.floor(most), MOST_TOKENS // length))
        return Fit(length, rows, recomputed and rows > 0, needed)

    def _on_device(self, method: str, device: Device, step: Step, phase: str) -> float:
        """Bytes on each of them in a phase of the step."""
        kinds = step.phases[phase]
        buffer = kinds["de-quantise buffer"]  # the threads of forward and backward have one each
        total = sum(kinds.values()) + optimizer_bytes(self.run, step) + buffer
        if device.count == 1:
            return total
        shared = kinds["weights"] + (kinds["gradients"] + optimizer_bytes(self.run, step) if method == "full" else 0)
        gathered = 2 * step.largest_layer + step.outside + (step.largest_layer if method == "full" else 0)
        return total - shared + shared / device.count + gathered


MOST_TOKENS = 1 << 20  # of a micro-batch: more than that nobody wants


def optimizer_bytes(run: Run, step: Step) -> float:
    """Of both moments: float32, or 8 bits and a scale for each block in large tensors (training/adamw8bit.py)."""
    if run.training.optimizer == "adamw":
        return 8 * step.n_trained
    return 8 * step.n_trained_small + (2 + 8 / BLOCK) * (step.n_trained - step.n_trained_small)


def work_of(batches: shapes.Batches, rehearsed: shapes.Size, work: Work) -> Work:
    """Of a step on the average, from the work of one micro-batch."""
    n = batches.n_seen
    factors = {
        "tokens": sum(size.computed for size in batches.sizes) / rehearsed.computed / n,
        "pairs": sum(size.pairs for size in batches.sizes) / rehearsed.pairs / n,
        "scored": sum(size.scored for size in batches.sizes) / max(1, rehearsed.scored) / n,
        "fixed": len(batches.sizes) / n,
    }
    return {(part, measure): amount * factors[part] for (part, measure), amount in work.items()}


# --- before a run ---------------------------------------------------------------------------------------------------------


def before(run: Run) -> list[str]:
    """A line or two about the run that begins now. Raises BadInput where it would need far more memory than there is.

    A model that cannot be planned is trained without one.
    """
    try:
        config, _ = config_of(run.model)
        known = _known(run, config, "some")
        run = known.run
        device = pick_device()
        rehearsals = _Rehearsals(run, config, known, pick_dtype(run.training.dtype, device), device.type == "cpu")
        method = rehearsals.method(run.method, rehearsals.machine_speed(device))
    except BadInput as error:
        return [f"no plan: {error.what}"]
    there = memory_bytes(device)
    needed = method.memory.peak + (method.memory.process + resident_bytes() if device.type == "cpu" else 0)
    where = "this machine has" if device.type == "cpu" else f"{device} has"
    words = f"about {gib(needed)} of memory at its peak, of {gib(there)} that {where}"
    fix = ", ".join(remedies(run, known.batches))
    if needed > FAR_BEYOND * there:
        raise BadInput(
            f"this run would need {words}", where=f"{run.method} on {run.model}, {largest_in_words(known.batches)}",
            fix=f"{fix}; tunesmith plan shows what fits where",
        )  # fmt: skip
    duration = f"about {clock(method.seconds)} of training" if method.seconds is not None else f"{method.step_seconds:.2g} s a step"
    if device.type == "cpu" and needed > TIGHT * there and not keep_tensors() and give_back_freed_memory():
        words += " (so freed memory is given back at once, which takes time)"
    lines = [
        f"plan: {words}; {duration}; {gib(method.disk_bytes)} of disk"
        + ("" if known.rows_known else " (rows not looked at: as long as they may be)")
    ]
    if needed > there:
        lines.append(f"warning: that is more memory than there is; {fix}")
    if method.disk_bytes > (free := free_disk_bytes(Path(run.output).expanduser().absolute())):
        lines.append(f"warning: {gib(free)} of disk are free; training.keep_checkpoints: 1, or another output")
    return lines


def remedies(run: Run, batches: shapes.Batches) -> list[str]:
    """What would take less memory, the cheapest first."""
    training, largest = run.training, max(size.computed for size in batches.largest)
    smaller = max(batches.longest, largest // 4)
    found = [f"training.micro_batch_tokens: {smaller}"] if smaller < largest else []
    found += ["training.gradient_checkpointing: true"] if not training.gradient_checkpointing else []
    found += {"full": ["method: lora", "method: qlora"], "lora": ["method: qlora"], "qlora": []}[run.method]
    found += ["training.optimizer: adamw8bit"] if run.method == "full" and training.optimizer == "adamw" else []
    return found or ["a smaller model"]


def largest_in_words(batches: shapes.Batches) -> str:
    largest = max(batches.largest, key=lambda size: size.computed)
    return f"{counted(largest.computed, 'token')} at once"


def resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def gib(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:,.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:,.0f} MiB"
