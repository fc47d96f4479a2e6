"""A run, as the user writes it and as the run folder keeps it.

    run = load_run("sms.yaml", overrides=["training.epochs=2"])
    run.training.batch_size                      # every default filled in
    Path("config.yaml").write_text(to_yaml(run)) # what the run folder keeps; loads to the same run

Unknown keys are an error that names the nearest known ones; keys of other tools are converted and the conversion is
returned as text to print; a setting that the chosen method would not read is an error too. The descriptions below are the
documentation: docs/configuration.md and `tunesmith init` are made from them.
"""

import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_serializer, model_validator

from tunesmith.errors import BadInput, nearest
from tunesmith.names import must_be_path

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w-]*(?:\.\d[\w-]*)*(?:/\w[\w.-]*)?(?::[\w.-]+)?")  # no file: no extension
Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Similarity = Annotated[float, Field(ge=0.5, le=1.0)]  # below, MinHash would take unrelated texts for candidates


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = _members(cls.model_fields[str(info.field_name)].annotation)
        # it would pass for 1; "off" is false in YAML 1.1
        if isinstance(value, bool) and kinds & {int, float} and not kinds & {bool, "off"}:
            raise ValueError("should be a number")
        return value


def _members(annotation: Any) -> set[Any]:
    """The types and literal values that a field may have."""
    inner = get_args(annotation)
    return {annotation} if not inner else set().union(*(_members(one) for one in inner)) if get_origin(annotation) is not list else {list}


Format = Literal["auto", "messages", "pairs", "alpaca", "instances", "text"]


class DataEntry(Section):
    """One of several datasets: where it is, and what of `data` is otherwise for it than for the others (None: nothing is)."""

    path: str = Field(description="a file, a folder or a hub name, as in data.train")
    task: str | None = Field(None, min_length=1, description="what the dataset is called; by default as its file")
    weight: float = Field(1.0, gt=0, description="how much more often than data.mixing says its rows are trained on")
    limit: int | None = Field(None, ge=1, description="this many of its rows at most, chosen by hash")
    format: Format | None = None
    columns: list[str] | None = None
    header: bool | None = None
    quoting: bool | None = None
    prompt: str | list[str] | None = None
    completion: str | None = None
    system: str | None = None
    examples: int | None = Field(None, ge=0)

    @model_serializer(mode="wrap")
    def _given_keys(self, all_keys: Any) -> dict[str, Any]:
        return {key: value for key, value in all_keys(self).items() if value is not None}

    def settings(self) -> dict[str, Any]:
        """The keys of `data` that this entry sets. A format of its own needs none of the common columns and templates."""
        own = {key: value for key in DataConfig.model_fields if (value := getattr(self, key, None)) is not None and key != "limit"}
        return own if self.format in (None, "pairs") else {"prompt": None, "completion": None, "columns": None} | own


class DataConfig(Section):
    """Where the examples are and how a row becomes one."""

    train: str | list[str | DataEntry] = Field(
        description="a file (JSONL, JSON, CSV, TSV, Parquet, Arrow or text, also .gz), a folder of them, a hub dataset (owner/name:split), "
        "or a list of these: a mixture of tasks, each by its path or as {path, task, weight, limit, format, prompt …}"
    )
    validation: Share | str | list[str | DataEntry] | None = Field(
        None, description="a share of train, or files as in train; used for choices: best checkpoint, early stopping"
    )
    test: Share | str | list[str | DataEntry] | None = Field(
        None, description="a share of train, or files as in train; used for the reported figures only"
    )
    held_out: list[str] = Field([], description="names of tasks in train that are never trained on: their rows are test rows")
    mixing: Literal["proportional", "equal", "temperature"] = Field(
        "proportional", description="a task's share of the training rows: as its number of rows, the same for all, or rows^(1/temperature)"
    )
    temperature: float = Field(2.0, ge=1, description="of data.mixing: temperature; 1 is proportional, a large one nearly equal")
    cap: int | None = Field(None, ge=1, description="rows of a task that data.mixing counts at most (Raffel et al. 2020, arXiv 1910.10683)")
    format: Format = Field("auto", description="auto: recognised from the first rows and said aloud")
    columns: list[str] | None = Field(None, description="column names, for CSV and TSV without a header")
    header: bool = Field(True, description="CSV and TSV: the first line holds the column names")
    quoting: bool = Field(True, description='CSV and TSV: "…" may hold separators and line ends; false for files with stray quotes')
    prompt: str | list[str] | None = Field(
        None,
        description='what the model is given, with columns in braces: "Spam or ham?\\n\\n{text}"; {name:json} inserts as JSON; '
        "of a list of phrasings each training row takes one, by a hash of its content, and the test rows the first",
    )
    completion: str | None = Field(None, description='what it should answer: "{label}"')
    system: str | None = Field(None, description="a system message put before each conversation that has none")
    examples: int = Field(0, ge=0, description="task files with instances: positive_examples shown before each input")
    template: Literal["auto", "chat", "plain"] = Field(
        "auto", description="chat: the tokenizer's own template; plain: text and a stop token; auto: chat if the tokenizer has a template"
    )
    thinking: Literal["keep", "strip", "untrained"] = Field(
        "keep",
        description="what answers think first (<think>…</think>): keep: learned with the answer; strip: left out; untrained: shown, not learned",
    )
    on_too_long: Literal["error", "drop", "truncate"] = Field(
        "error", description="an example longer than training.max_length; drop and truncate are counted"
    )
    on_bad_row: Literal["error", "skip"] = Field("error", description="a row that cannot be read; skip counts them")
    answer_schema: str | None = Field(
        None,
        description="a file with a JSON Schema (draft 2020-12) that every answer must fulfil: rows that break it stop the run, by line",
    )
    duplicates: Literal["keep", "drop"] = Field("keep", description="rows equal to an earlier one; kept ones never straddle a split")
    near_duplicates: Similarity | Literal["off"] = Field(
        0.8,
        description="prompts that share this much of their words and word pairs are near copies: they stay in one split, and training rows "
        "nearly asking what a held-out file asks are removed, counted; off: only prompts equal but for case and spacing",
    )
    group_by: str | None = Field(
        None,
        description="a column such as author or document: rows with one value stay in one split, and are removed beside a held-out file",
    )
    limit: int | None = Field(
        None,
        ge=1,
        description="train on this many rows only, chosen by hash and in the labels' proportions; validation and test stay whole",
    )
    stratify: bool = Field(True, description="splits by share keep the proportions of the labels when answers are labels")

    @field_validator("train", "validation", "test")
    @classmethod
    def _home(cls, value: Any) -> Any:
        if isinstance(value, list) and not value:
            raise ValueError("should name at least one file")
        return each_path(value, lambda path: str(Path(path).expanduser()) if path.startswith("~") else path)

    @field_validator("validation", "test")
    @classmethod
    def _weightless(cls, value: Any) -> Any:
        if any(isinstance(entry, DataEntry) and entry.weight != 1 for entry in (value if isinstance(value, list) else ())):
            raise ValueError("a weight is for data.train: every row is measured once")
        return value

    @field_validator("near_duplicates", mode="before")
    @classmethod
    def _on_or_off(cls, value: Any) -> Any:
        if isinstance(value, bool):  # YAML 1.1 reads on and off as true and false
            return cls.model_fields["near_duplicates"].default if value else "off"
        if value != "off" and not (isinstance(value, int | float) and 0.5 <= value <= 1):
            raise ValueError("should be off, or a share from 0.5 to 1")
        return value

    @field_validator("prompt")
    @classmethod
    def _phrasings(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and (not value or len(set(value)) < len(value)):
            raise ValueError("should be one text, or a list of different ones")
        return value

    @property
    def phrasings(self) -> tuple[str, ...]:
        """The templates of the prompt; the first is the one that is evaluated."""
        return () if self.prompt is None else (self.prompt,) if isinstance(self.prompt, str) else tuple(self.prompt)

    @property
    def form(self) -> str | None:
        """The template that the prompts of all datasets have, in its first phrasing; None where there is none."""
        own = isinstance(self.train, list) and any(isinstance(e, DataEntry) and (e.prompt or e.format) for e in self.train)
        return self.phrasings[0] if self.phrasings and not own else None

    @property
    def has_test(self) -> bool:
        return self.test is not None or bool(self.held_out)


def each_path(value: Any, change: Callable[[str], str]) -> Any:
    """`data.train`, `data.validation` or `data.test` with every path in it changed; a share or None stays."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [e.model_copy(update={"path": change(e.path)}) if isinstance(e, DataEntry) else each_path(e, change) for e in value]
    return value


def first_path(config: DataConfig) -> str:
    """The path of data.train, or the first of several: where a complaint about all of it points."""
    first = config.train if isinstance(config.train, str) else config.train[0]
    return first if isinstance(first, str) else first.path


def is_hub_name(path: str) -> bool:
    """Whether a path that is not there may name a dataset of the hub: owner/name, owner/name/subset, each also with :split."""
    return HUB_NAME.fullmatch(path) is not None and not Path(path.rpartition(":")[0] or path).exists() and not Path(path).exists()


class LoraConfig(Section):
    """W = W0 + (alpha / rank) B A on a frozen base; B = 0 at the start (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = Field(16, ge=1, description="width of the update; 8 to 64 is usual")
    alpha: float | None = Field(None, gt=0, description="scale of the update is alpha / rank; by default 2 * rank")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="on the adapter's input while training")
    targets: Literal["all-linear"] | list[str] = Field(
        "all-linear",
        description="every linear layer but the head, or names such as [q_proj, v_proj]; a mixture's experts only by name: "
        "[q_proj, experts.gate_up_proj, experts.down_proj]",
    )
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead (Kalajdzievski 2023, arXiv 2312.03732)")
    continue_from: str | None = Field(None, description="a run or an adapter folder to start from instead of B = 0")

    @property
    def resolved_alpha(self) -> float:
        return self.alpha if self.alpha is not None else 2.0 * self.rank


class QuantizationConfig(Section):
    """How `method: qlora` stores the base (Dettmers et al. 2023, arXiv 2305.14314); docs/quantization.md shows what each scheme loses."""

    scheme: str = Field(
        "nf4", description="nf4, fp4; int2 … int8: symmetric; affine2 … affine8: with a zero point; fp8: multiplied as it is (H100)"
    )
    block_size: int | None = Field(
        None, description="weights that share a scale, 32 to 4096; by default 64 (int8 and affine8: a whole row)"
    )
    double: bool | None = Field(None, description="keep the scales in 8 bits too; by default for nf4 and fp4")
    clip: float | None = Field(
        None, description="int and affine schemes: percentile of sizes beyond which weights saturate; by default none"
    )
    embeddings: bool = Field(False, description="the token embeddings and the head too; by default they stay in 16 bits")


class FullConfig(Section):
    """Which weights full fine-tuning updates."""

    train: Literal["all", "biases"] | Annotated[int, Field(ge=1)] | list[str] = Field(
        "all", description="all; biases; a number: the last N layers; or patterns of parameter names, as [model.layers.7.*, lm_head.*]"
    )


class TrainingConfig(Section):
    """The optimizer's steps."""

    epochs: float = Field(3.0, gt=0, description="passes over the training rows")
    steps: int | None = Field(None, ge=1, description="optimizer steps; overrides epochs")
    batch_size: int = Field(16, ge=1, description="examples per optimizer step, however they are cut into micro-batches or over processes")
    batch_tokens: int | None = Field(
        None, ge=1, description="instead of batch_size: a step takes the next examples while they are at most this many tokens together"
    )
    packing: bool | Literal["auto"] = Field(
        "auto",
        description="examples side by side in rows of up to micro_batch_tokens, no attention from one to another: the same steps without padding; "
        "auto: where padding would be a tenth of what is computed, and the model keeps examples apart",
    )
    share_prefixes: bool | Literal["auto"] = Field(
        "auto",
        description="with packing: what examples of a row begin with (a system message, an instruction) is computed once, with the same loss and "
        "gradients; auto: where it saves tokens and a trial of the model agrees; true: or the run is refused",
    )
    micro_batch_size: int | None = Field(None, ge=1, description="examples computed at once; by default as many as fit micro_batch_tokens")
    micro_batch_tokens: int = Field(8192, ge=1, description="tokens, padding included, computed at once; memory grows with it")
    gradient_checkpointing: bool = Field(
        False, description="compute each layer's activations again in the backward pass: far less memory, about a third more time"
    )
    learning_rate: float | Literal["auto"] = Field(
        "auto", description="auto: a rule whose reason is printed (LoRA about 10 x full fine-tuning)"
    )
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        "adamw",
        description="adamw8bit: its two moments in 8 bits each (Dettmers et al. 2022, arXiv 2110.02861): 2 bytes a trained value, not 8",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="of the learning rate after the warm-up, down to zero")
    warmup: float = Field(0.05, ge=0, description="below 1: share of all steps; otherwise steps")
    weight_decay: float = Field(0.0, ge=0, description="decoupled (AdamW), on matrices only")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW, decay of the first moment")
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW, decay of the second moment")
    epsilon: float = Field(1e-8, gt=0, description="AdamW, added to the root of the second moment")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    max_length: int | None = Field(
        None,
        ge=8,
        description="tokens of the longest example (see data.on_too_long); by default 512, or what the model was made for if less",
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="of the order, of dropout and of the adapter's start")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the computation; masters are float32; auto: bfloat16 where the machine multiplies it fast"
    )
    validate_every: int | None = Field(None, ge=1, description="steps; by default once per epoch")
    save_every: int | None = Field(None, ge=1, description="steps; by default once per epoch")
    keep_checkpoints: int = Field(2, ge=1, description="newest ones kept, besides the best")
    early_stopping: int | None = Field(None, ge=1, description="stop after this many validations without a better one")
    tensorboard: bool = Field(False, description="also write RUN/tensorboard (needs the extra tunesmith[tensorboard])")
    on_spike: Literal["note", "skip", "roll_back"] = Field(
        "note",
        description="a loss far above those of the last 64 steps is noted; skip: and its update left out; roll_back: and the weights go back "
        "to the newest checkpoint of save_every or the best one, without the steps since",
    )
    sharding: Literal["none", "full"] = Field(
        "none",
        description="of several processes (torchrun): none, each holds the whole model; full, each holds a part of every weight (PyTorch's FSDP2) "
        "and gathers a layer while it computes",
    )
    heartbeat_seconds: float = Field(
        600.0, ge=1, description="of several processes: one that gives no sign of life, or comes to no exchange, for so long ends the job"
    )

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _rate(cls, value: Any) -> Any:
        try:  # YAML 1.1 reads 1e-4 as text
            rate = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else 0.0
        except ValueError:
            rate = 0.0
        if value != "auto" and not 0 < rate < 10:
            raise ValueError("should be auto or a number above 0 and below 10")
        return value if value == "auto" else rate


class EvaluationConfig(Section):
    """How the tuned model is measured on the test rows when training ends."""

    task: Literal["auto", "label", "json", "text"] = Field("auto", description="which metrics fit; auto: from the reference answers")
    max_new_tokens: int | None = Field(None, ge=1, description="of an answer; by default a little more than the longest reference")
    limit: int | None = Field(None, ge=1, description="rows measured (the first ones, evenly from each task); by default all")
    batch_size: int = Field(64, ge=1, description="prompts answered at once")
    choices: str = Field(
        "auto",
        description="answers that are also compared by likelihood: labels (where the references are labels), a column that lists each row's, or "
        "none; auto: labels where rows have the name of a task, as those of several have",
    )


class Run(Section):
    """Everything that decides what a run does."""

    model: str = Field(description="acorn (the embedded base), a local folder, or a hub id")
    method: Literal["full", "lora", "qlora"] = Field(
        "lora", description="full: every weight; lora: adapters on a frozen base; qlora: on a 4-bit base"
    )
    output: str = Field("", description="the run folder; by default runs/ and the name of the config (without one, of data.train)")
    data: DataConfig
    lora: LoraConfig = LoraConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    full: FullConfig = FullConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="before")
    @classmethod
    def _named_after_its_data(cls, raw: Any) -> Any:
        data = raw.get("data") if isinstance(raw, Mapping) else None
        train = data.get("train") if isinstance(data, Mapping) else getattr(data, "train", None)
        first = train[0] if isinstance(train, list) and train else train
        first = first.get("path") if isinstance(first, Mapping) else getattr(first, "path", first)  # not validated yet
        return {**raw, "output": default_output(first)} if isinstance(first, str) and raw.get("output") is None else raw

    @field_validator("model", "output")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("should not be empty")
        return value


def default_output(name: str) -> str:
    """The run folder of a config or a data file that names none."""
    return f"runs/{Path(name).name.partition(':')[0].split('.')[0] or 'run'}"


# Keys of Axolotl, LLaMA-Factory, TRL/transformers, PEFT, Unsloth and torchtune, and where they go here.
PEER_KEYS: dict[str, str] = {
    "base_model": "model", "model_name_or_path": "model", "model_name": "model", "output_dir": "output",
    "finetuning_type": "method", "adapter": "method", "dataset": "data.train", "train_file": "data.train", "validation_file": "data.validation",
    "val_set_size": "data.validation", "max_samples": "data.limit", "val_size": "data.validation",
    "lora_r": "lora.rank", "lora_rank": "lora.rank", "r": "lora.rank",
    "lora_alpha": "lora.alpha", "lora_dropout": "lora.dropout", "lora_target": "lora.targets", "lora_target_modules": "lora.targets",
    "target_modules": "lora.targets", "use_rslora": "lora.rslora", "peft_use_rslora": "lora.rslora", "lora_model_dir": "lora.continue_from",
    "adapter_name_or_path": "lora.continue_from", "num_train_epochs": "training.epochs", "num_epochs": "training.epochs",
    "max_steps": "training.steps", "warmup_ratio": "training.warmup", "warmup_steps": "training.warmup", "lr": "training.learning_rate",
    "lr_scheduler": "training.schedule", "lr_scheduler_type": "training.schedule", "cutoff_len": "training.max_length",
    "sequence_len": "training.max_length", "max_seq_length": "training.max_length", "max_seq_len": "training.max_length",
    "gradient_clipping": "training.max_grad_norm", "sample_packing": "training.packing", "neat_packing": "training.packing", "optim": "training.optimizer",
    "bnb_4bit_quant_type": "quantization.scheme", "quantization_type": "quantization.scheme",
    "bnb_4bit_use_double_quant": "quantization.double", "double_quantization": "quantization.double", "bnb_4bit_compute_dtype": "training.dtype",
    "adam_beta1": "training.beta1", "adam_beta2": "training.beta2", "adam_epsilon": "training.epsilon", "eval_steps": "training.validate_every",
    "save_steps": "training.save_every", "save_total_limit": "training.keep_checkpoints", "early_stopping_patience": "training.early_stopping",
}  # fmt: skip
PEER_OPTIMIZERS = {
    "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw",
    "adamw_8bit": "adamw8bit", "adamw_bnb_8bit": "adamw8bit", "paged_adamw_8bit": "adamw8bit",
}  # fmt: skip
PEER_DATA_TYPES = {
    "alpaca": "alpaca",
    "chat_template": "messages",
    "sharegpt": "messages",
    "completion": "text",
}  # Axolotl's datasets: type
PEER_BATCH = {"per_device_train_batch_size", "micro_batch_size", "gradient_accumulation_steps", "train_batch_size"}


def known_keys() -> dict[str, Any]:
    """Every key, dotted, with its pydantic field."""
    keys: dict[str, Any] = {}
    for name, field in Run.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            keys |= {f"{name}.{inner}": inner_field for inner, inner_field in section.model_fields.items()}
        else:
            keys[name] = field
    return keys


def sections() -> dict[str, type[Section]]:
    return {
        name: field.annotation
        for name, field in Run.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }


def _by_last_part() -> dict[str, str]:
    """ "epochs" → "training.epochs"; of two keys with one name the first, as data.limit before evaluation.limit."""
    names: dict[str, str] = {}
    for path in known_keys():
        names.setdefault(path.rpartition(".")[2], path)
    return names | {"batch_size": "training.batch_size"}


def _meant(path: str) -> str | None:
    """The key of ours that a key means, known, ours without its section or another tool's; None for an unknown one."""
    known = known_keys()
    if path in known or path in sections():
        return path
    section, _, name = path.rpartition(".")
    return PEER_KEYS.get(name) or (None if section else _by_last_part().get(name))


def _translate(key: str, value: Any) -> tuple[dict[str, Any], str] | None:
    """A key of another tool that is more than a renaming: (settings of ours, or why there are none); None for any other key.

    Raises BadInput where the key means something that is not done here.
    """
    if key == "adapter" and value is None:  # Axolotl: "leave blank to train all parameters"
        return {"method": "full"}, ""
    if value is None and (key in PEER_KEYS or key in PEER_BATCH):
        return {}, "it is empty"
    if key == "logging_steps":
        return {}, "every step is logged"
    if key == "lora_target_linear":
        return ({"lora.targets": "all-linear"}, "") if value else ({}, "lora.targets says which layers")
    if key in ("bf16", "fp16") and not value:
        return {}, "training.dtype decides"
    if key == "bf16" and value in (True, "auto"):
        return {"training.dtype": "auto" if value == "auto" else "bfloat16"}, ""
    if key == "fp16":
        raise BadInput("float16 is not computed in", where=f"fp16: {value}", fix="training.dtype: bfloat16, float32 or auto")
    if key in ("val_set_size", "val_size") and value == 0 and value is not False:
        return {"data.validation": None}, ""
    if key == "load_in_4bit":
        return ({"method": "qlora"}, "") if value else ({}, "the base is quantised by method: qlora only")
    if key == "quantization_bit" and value == 4:  # LLaMA-Factory
        return {"method": "qlora"}, ""
    if key == "bnb_4bit_quant_storage":
        return {}, "codes are kept as bytes"
    if key == "bnb_4bit_compute_dtype" and str(value).removeprefix("torch.") == "float16":
        raise BadInput("float16 is not computed in", where=f"{key}: {value}", fix="training.dtype: bfloat16, float32 or auto")
    if key == "load_in_8bit" or (key == "quantization_bit" and value == 8):
        if value:
            fix = "method: qlora with quantization.scheme: int8"
            raise BadInput("8-bit bases have another form here", where=f"{key}: {value}", fix=fix)
        return {}, "the base is quantised by method: qlora only"
    if key == "template" and value not in ("auto", "chat", "plain"):
        raise BadInput(
            "prompts are rendered by the tokenizer's own template",
            where=f"template: {value}",
            fix="leave it out, or data.template: chat or plain",
        )
    if key == "datasets":
        return _datasets(value), ""
    return None


def _datasets(value: Any) -> dict[str, Any]:
    """Axolotl's `datasets: [{path: F, type: T}, …]` as data.train: one file, or a list of entries."""
    entries = [_dataset(entry) for entry in (value if isinstance(value, list) else [value])]
    if not entries:
        raise BadInput("there is no dataset", where="datasets", fix="data.train: FILE")
    if len(entries) > 1:
        return {"data.train": [entry["path"] if list(entry) == ["path"] else entry for entry in entries]}
    return {"data.train" if key == "path" else f"data.{key}": inner for key, inner in entries[0].items()}


def _dataset(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("path"), str):
        raise BadInput(f"this entry has no path: {entry!r}"[:200], where="datasets", fix="data.train: FILE")
    kind, path = entry.get("type"), entry["path"]
    split = entry.get("split")
    rest = {key: inner for key, inner in entry.items() if key not in ("path", "type", "ds_type", "split") and inner is not None}
    if rest or (kind is not None and (not isinstance(kind, str) or kind not in PEER_DATA_TYPES)):
        what = ", ".join(map(str, rest)) or f"type {kind}"
        fix = f"data.train: {path}, and data.format, or data.prompt and data.completion, for what a row is"
        raise BadInput(f"{what} cannot be converted", where="datasets", fix=fix)
    path = f"{path}:{split}" if isinstance(split, str) else path
    return {"path": path} if kind is None else {"path": path, "format": PEER_DATA_TYPES[kind]}


def _renamed(path: str, value: Any) -> Any:
    """A value of another tool in our words."""
    if path == "lora.targets" and value in ("all", "all_linear", ["all"], ["all-linear"]):
        return "all-linear"
    if path == "lora.targets" and isinstance(value, str) and value != "all-linear":
        return [part.strip() for part in value.split(",")]
    if path == "training.schedule" and value == "constant_with_warmup":
        return "constant"
    if path == "training.optimizer" and isinstance(value, str):
        return PEER_OPTIMIZERS.get(value, value)
    if path == "training.dtype" and isinstance(value, str):
        return value.removeprefix("torch.")
    return value


def convert_peer_keys(raw: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str], list[BadInput]]:
    """Move keys of other tools to ours: (the config, each move in words to be printed, keys that nothing is known of)."""
    said: list[str] = []
    problems: list[BadInput] = []
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in raw.items()}

    def put(path: str, value: Any, was: str, given: Any) -> None:
        section, _, key = path.rpartition(".")
        holder = result.setdefault(section, {}) if section else result
        if not isinstance(holder, dict):
            return  # validation will name the section that is not a mapping
        if key in holder and holder[key] != value:
            raise BadInput(f"{was} and {path} disagree: {value!r} and {holder[key]!r}", where=where, fix=f"keep {path}")
        holder[key] = value
        said.append(f"converted {was}: {_in_words(given)} → {path}: {_in_words(value)}")

    for holder_name in (None, *sections()):
        holder = result if holder_name is None else result.get(holder_name)
        if not isinstance(holder, dict):
            continue
        own = set(Run.model_fields) if holder_name is None else set(sections()[holder_name].model_fields)
        _convert_batch(holder, own, where, put)
        for key in [k for k in holder if k in own]:  # our key with another tool's word for its value
            path, given = key if holder_name is None else f"{holder_name}.{key}", holder[key]
            if (meant := _renamed(path, given)) != given:
                del holder[key]
                put(path, meant, path, given)
        for key in [k for k in holder if k not in own]:
            try:
                translated = _translate(str(key), holder[key])
            except BadInput as error:
                problems.append(BadInput(f"{error.where}: {error.what}", where=where, fix=error.fix))
                continue
            path = PEER_KEYS.get(key) or (_by_last_part().get(key) if holder_name is None else None)
            if translated is None and path is None:
                full = key if holder_name is None else f"{holder_name}.{key}"
                problems.append(BadInput(f'unknown key "{full}"', where=where, fix=_did_you_mean(str(full))))
                continue
            given = holder.pop(key)
            settings, why = translated if translated is not None else ({path: _renamed(str(path), given)}, "")
            for ours, value in settings.items():
                put(str(ours), value, key, given)
            if not settings:
                said.append(f"left out {key}: {_in_words(given)}, as {why}")
    return result, said, problems


def _in_words(value: Any) -> str:
    return {True: "true", False: "false", None: "none"}[value] if value is None or isinstance(value, bool) else str(value)


def _convert_batch(holder: dict[str, Any], own: set[str], where: str, put: Any) -> None:
    """Micro-batch × accumulation is the number of examples per step."""
    batch = {key: holder[key] for key in PEER_BATCH & set(holder) if key not in own or "gradient_accumulation_steps" in holder}
    batch = {key: value for key, value in batch.items() if value is not None}
    if not batch:
        return
    for key in batch:
        del holder[key]
    micro = batch.get("per_device_train_batch_size", batch.get("micro_batch_size", batch.get("train_batch_size")))
    accumulation = batch.get("gradient_accumulation_steps", 1)
    product = " × ".join(f"{value}" for value in (micro, accumulation) if value is not None)
    was = " × ".join(sorted(batch, reverse=True))
    if not isinstance(accumulation, int) or not isinstance(micro, int | None):
        raise BadInput(f"{was} should be whole numbers, not {product}", where=where, fix="training.batch_size: 16")
    if micro is None:
        raise BadInput(
            "gradient_accumulation_steps without a micro-batch size does not say how many examples a step has",
            where=where, fix="training.batch_size: examples per optimizer step",
        )  # fmt: skip
    put("training.batch_size", micro * accumulation, was, product)
    put("training.micro_batch_size", micro, was.split(" × ")[0], micro)


def _did_you_mean(path: str) -> str:
    """The nearest key: of the same section, of any, of another tool's, in this order; else where the keys are listed."""
    section, _, name = path.rpartition(".")
    names = _by_last_part()
    if path in known_keys():  # "training.epochs: 2" at the top of a file
        return f'write "{section}:" and below it, indented, "{name}: …"'
    if name in names or name in PEER_KEYS:
        return f'did you mean "{names.get(name) or PEER_KEYS[name]}"?'
    own = {key: f"{section}.{key}" for key in sections()[section].model_fields} if section in sections() else {}
    everywhere = {**PEER_KEYS, **names, **{key: key for key in Run.model_fields}}
    for pool, cutoff in ((own, 0.6), (everywhere, 0.8)):
        if close := get_close_matches(name, pool, n=1, cutoff=cutoff):
            return f'did you mean "{pool[close[0]]}"?'
    return "leave it out; docs/configuration.md lists every key"


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key given twice is an error, not the last one."""


def _mapping_without_repeats(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = f"line {key_node.start_mark.line + 1}"
        if not isinstance(key, Hashable):
            raise BadInput("a key is a word, and this one is a list or a mapping", where=line, fix="key: value")
        if key in seen:
            raise BadInput(f'the key "{key}" is given twice', where=line, fix="keep one of them")
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_repeats)


def parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise BadInput(f"this is not YAML: {problem.removeprefix('but ')}", where=place, fix=_yaml_fix(error, problem)) from None
    except RecursionError:
        raise BadInput("this is nested too deeply to be a config", where=where, fix="tunesmith init DATA writes one") from None
    except BadInput as error:
        raise BadInput(error.what, where=f"{where}, {error.where}", fix=error.fix) from None


def _yaml_fix(error: yaml.YAMLError, problem: str) -> str:
    """What usually is behind a complaint of the YAML reader."""
    context, begin = getattr(error, "context", None) or "", getattr(error, "context_mark", None)
    if "<stream end>" in problem and "flow" in context and begin is not None:
        return f"close what line {begin.line + 1} opens with {'[' if 'sequence' in context else '{'}"
    for sign, fix in (
        ("'\\t'", "indent with spaces"), ("another document", "one config in a file: leave the line --- out"), ("for the tag", "leave the !tag out"),
        ("recursive", "leave the & and * out"), ("undefined alias", "put the text in quotes: outside of them * names an anchor"),
        ("special characters", "the file holds bytes that are no text: write it again"),
    ):  # fmt: skip
        if sign in problem:
            return fix
    return "quote text that holds : { } [ ] # or starts with a sign"


def validate(
    raw: Any, where: str, overrides: Sequence[str] = (), name: str | None = None, spelled: Mapping[str, str] | None = None
) -> tuple[Run, list[str]]:
    """A run from plain data, and what to print: what was converted from other tools' keys, and the output if none was given.

    where       a file, or what else to call the data in an error
    overrides   as `--set` takes them; they win over `raw`, whichever tool's keys either is in
    name        of the default output: runs/NAME; by default that of data.train
    spelled     an override → how the user wrote it, where that was not `--set`
    """
    if not isinstance(raw, Mapping):
        raise BadInput("a config is a mapping of keys to values", where=where, fix="see docs/configuration.md, or run tunesmith init DATA")
    converted, said, problems = convert_peer_keys(raw, where)
    if overrides:
        more, also_said, also_problems = convert_peer_keys(_given(raw, overrides), "--set")
        converted, said = _merged(converted, more), [*said, *also_said]
        problems += [BadInput(p.what, where=_set_by(_key_of(p), overrides, spelled) or p.where, fix=p.fix) for p in also_problems]
    converted = {key: {} if value is None and key in sections() else value for key, value in converted.items()}
    unnamed = converted.get("output") is None
    if unnamed and name is not None:
        converted["output"] = default_output(name)

    def set_by(path: str) -> str | None:
        return _set_by(path, overrides, spelled)

    run, wrong = _validated(converted, where, set_by)
    found = [(_key_of(p), p) for p in problems] + list(wrong.items())
    if run is not None:
        for key, path in _paths_of(run):
            try:
                must_be_path(path, set_by(key) or f"{where}: {key}")
            except BadInput as error:
                found.append((key, error))
        given = list(converted.get("quantization") or ()) if isinstance(converted.get("quantization"), Mapping) else []
        found += [(keys[0], p) for keys, p in _conflicts(run, where, set_by, given) if not wrong.keys() & set(keys)]
    if found or run is None:
        raise _all_of(found)
    return run, [*said, f"output: {run.output}"] if unnamed else said


def _paths_of(run: Run) -> list[tuple[str, str]]:
    """(key, text) of every setting that is a path, or a path or a name."""
    single = {
        "model": run.model,
        "output": run.output,
        "data.answer_schema": run.data.answer_schema,
        "lora.continue_from": run.lora.continue_from,
    }
    found = [(key, path) for key, path in single.items() if path is not None]
    for part in ("train", "validation", "test"):
        value = getattr(run.data, part)
        items = value if isinstance(value, list) else [value] if isinstance(value, str) else []
        found += [(f"data.{part}", item if isinstance(item, str) else item.path) for item in items]
    return found


def _validated(converted: Mapping[str, Any], where: str, set_by: Callable[[str], str | None]) -> tuple[Run | None, dict[str, BadInput]]:
    """The run, and what is wrong with it by key. What is wrong is left out of the run, so that conflicts of the rest are found at once;
    None where too little is left. Keys that are not known are told already.
    """
    try:
        return Run.model_validate(converted), {}
    except ValidationError as error:
        groups: dict[str, list[Any]] = {}
        for problem in error.errors():
            unknown = problem["type"] == "extra_forbidden" and not any(isinstance(part, int) for part in problem["loc"])
            groups.setdefault("" if unknown else _path_of(problem), []).append(problem)
    unknown_keys = {".".join(str(part) for part in problem["loc"][:2]) for problem in groups.pop("", [])}
    wrong = {}
    for path, problems in groups.items():
        found = _problem_of(problems, path, where)
        wrong[path] = BadInput(found.what, where=set_by(path) or where, fix=found.fix)
    rest: dict[str, Any] = {key: dict(value) if isinstance(value, Mapping) else value for key, value in converted.items()}
    for path in (*wrong, *unknown_keys):
        section, _, key = path.rpartition(".")
        (rest.get(section, {}) if section else rest).pop(key, None)
    rest = {"model": "acorn", **rest, "data": {"train": "", **rest.get("data", {})}}
    try:
        return Run.model_validate(rest), wrong
    except ValidationError:
        return None, wrong


def must_be_read(run: Run) -> None:
    """Refuse settings that this run would not look at, or that contradict each other (FAILURES 22)."""
    if found := [(keys[0], problem) for keys, problem in _conflicts(run, "the run", lambda path: None)]:
        raise _all_of(found)


def _conflicts(
    run: Run, where: str, set_by: Callable[[str], str | None], given: Sequence[str] = ()
) -> Iterator[tuple[tuple[str, ...], BadInput]]:
    """(keys that it is about, the problem) of each setting that would not be read; a saved run spells out its defaults: those are no setting.

    given   keys of the section quantization that were written down, with whatever value
    """
    method, training, data = run.method, run.training, run.data
    idle = {"full": ("lora", "quantization"), "lora": ("full", "quantization"), "qlora": ("full",)}[method]
    paths = [path for name in idle for path in _changed(name, getattr(run, name))]
    everything = set(QuantizationConfig.model_fields)
    if not paths and method != "qlora" and given and set(given) not in (everything, everything - {"embeddings"}):  # as saved runs had them
        paths = [f"quantization.{sorted(given)[0]}"]
    if paths:
        other = {"lora": "lora", "quantization": "qlora", "full": "full"}[paths[0].partition(".")[0]]
        yield (paths[0], "method"), BadInput(
            f"method {method} does not read {', '.join(paths)}", where=set_by(paths[0]) or where,
            fix=f"method: {other}, or leave {'it' if len(paths) == 1 else 'them'} out",
        )  # fmt: skip
    if training.batch_tokens is not None and training.batch_size != TrainingConfig.model_fields["batch_size"].default:
        yield ("training.batch_tokens", "training.batch_size"), BadInput(
            f"a step has training.batch_size: {training.batch_size} examples or training.batch_tokens: {training.batch_tokens}, not both",
            where=set_by("training.batch_tokens") or set_by("training.batch_size") or where, fix="leave one of them out",
        )  # fmt: skip
    if (training.packing is True or training.share_prefixes is True) and training.micro_batch_size is not None:
        yield ("training.micro_batch_size", "training.packing"), BadInput(
            "packed rows are cut by tokens, so training.micro_batch_size would not be read",
            where=set_by("training.micro_batch_size") or set_by("training.packing") or where,
            fix="training.micro_batch_tokens bounds a row; a step of packed rows, as other tools count it, is training.batch_tokens",
        )  # fmt: skip
    if training.share_prefixes is True and not training.packing:
        yield ("training.share_prefixes", "training.packing"), BadInput(
            "beginnings are shared by examples in one row, and rows are not packed", where=set_by("training.share_prefixes") or where,
            fix="training.packing: true, or leave it out",
        )  # fmt: skip
    if training.share_prefixes is True and method != "full" and run.lora.dropout > 0:
        yield ("training.share_prefixes", "lora.dropout"), BadInput(
            "examples that share their beginning would share the noise of dropout there", where=set_by("training.share_prefixes") or where,
            fix="lora.dropout: 0, or training.share_prefixes: auto",
        )  # fmt: skip
    for key, needed in (("temperature", data.mixing == "temperature"), ("cap", data.mixing != "equal")):
        path = f"data.{key}"
        if not needed and getattr(data, key) != DataConfig.model_fields[key].default:
            yield (path, "data.mixing"), BadInput(
                f"data.mixing: {data.mixing} does not read {path}", where=set_by(path) or where,
                fix="data.mixing: temperature, or leave it out",
            )  # fmt: skip
    held = ("data.validation", "data.test", "data.held_out")
    if data.group_by is not None and data.validation is None and not data.has_test:
        yield ("data.group_by", *held), BadInput(
            "data.group_by without rows held out has no effect", where=set_by("data.group_by") or where,
            fix="data.validation: 0.1, or leave it out",
        )  # fmt: skip
    for key in ("early_stopping", "validate_every") if data.validation is None else ():
        path = f"training.{key}"
        if getattr(training, key) is not None:
            yield (path, "data.validation"), BadInput(
                f"{path} without validation rows has no effect", where=set_by(path) or where, fix="data.validation: 0.1, or leave it out",
            )  # fmt: skip


def _changed(name: str, section: Section) -> list[str]:
    return [f"{name}.{key}" for key, field in type(section).model_fields.items() if getattr(section, key) != field.default]


def _key_of(problem: BadInput) -> str:
    """The key that a problem of convert_peer_keys begins with."""
    return problem.what.split('"')[1] if '"' in problem.what else problem.what.partition(":")[0]


def _set_by(path: str, overrides: Sequence[str], spelled: Mapping[str, str] | None) -> str | None:
    """The option that set a key, as the user wrote it; None if none did."""
    for override in reversed(overrides):
        given = override.partition("=")[0]
        if path in (given, _meant(given)) or path.startswith(f"{given}.") or given.startswith(f"{path}."):
            return (spelled or {}).get(override, f"--set {override}")
    return None


def _all_of(found: Sequence[tuple[str, BadInput]]) -> BadInput:
    """One error for all, with the key that each is about: nobody wants to mend a config one key at a time."""
    if len(found) == 1:
        return found[0][1]
    unknown = [key for key, p in found if p.what.startswith("unknown key")]
    names = ", ".join(f'"{key}"' for key in unknown)
    whats = [f"unknown key{'' if len(unknown) == 1 else 's'} {names}"] if unknown else []
    whats += [p.what for _, p in found if not p.what.startswith("unknown key")]
    fixes: dict[str, list[str]] = {}
    for key, problem in found:
        fixes.setdefault(problem.fix, []).append(key)
    told = [fix if fix.startswith(f"{keys[0]}:") else f"{', '.join(keys)}: {fix}" for fix, keys in fixes.items()]
    places = list(dict.fromkeys(problem.where for _, problem in found))
    return BadInput("\n       ".join(whats), where="\n".join(places), fix="\n".join(told))


def _path_of(problem: Any) -> str:
    """The key that a complaint of pydantic is about; it adds the names of union members to a location ("float", "constrained-str")."""
    location = [str(part) for part in problem["loc"]]
    path = location[0] if location[0] in known_keys() or len(location) == 1 else ".".join(location[:2])
    return "data.train" if path == "data" and problem["type"] == "missing" else path


def _problem_of(problems: Sequence[Any], path: str, where: str) -> BadInput:
    """What pydantic says of one key, which may be something of each member of a union, as one error of ours."""
    known, problem = known_keys(), problems[0]
    if problem["type"] == "missing":
        return BadInput(f'"{path}" is missing', where=where, fix=_describe(known, path))
    given = problem.get("input")
    inside = [e for e in problems if any(isinstance(part, int) for part in e["loc"])]
    if isinstance(given, list) and inside:
        return _problem_of_entry(max(inside, key=lambda e: len(e["loc"])), path, where)
    if path in sections() and not isinstance(given, Mapping):
        key = {"quantization": "scheme", "data": "train", "lora": "rank", "training": "epochs"}.get(path) or next(
            iter(sections()[path].model_fields)
        )
        fix = f"{path}.{key}: {given}" if path in ("quantization", "data") else f"{path}.{key}: …; docs/configuration.md lists the others"
        return BadInput(f'"{path}" is a section with keys of its own and cannot be {given!r}', where=where, fix=fix)
    message = problem["msg"].removeprefix("Value error, ")
    choices = {e["ctx"]["expected"] for e in problems if "expected" in e.get("ctx", {})}
    if choices:
        others = ["a list"] if any(e["type"] == "list_type" for e in problems) else []
        message = "should be " + " or ".join([*sorted(choices), *others])
    fix = _describe(known, path)
    if problem["type"] == "string_type" and not isinstance(given, Mapping | list | None):
        fix = f'in quotes it is text: {path.rpartition(".")[2]}: "{given}"'  # YAML took it for a number, a date, yes or no
    shown = "empty" if given is None else repr(given) if isinstance(given, str | list | Mapping) else str(given)
    shown = shown.lower() if isinstance(given, bool) else shown
    return BadInput(f'"{path}" cannot be {shown}: {message[0].lower() + message[1:]}', where=where, fix=fix)


def _problem_of_entry(problem: Any, path: str, where: str) -> BadInput:
    """A fault inside a list, as of datasets: named by the entry and its key."""
    place = next(index for index, part in enumerate(problem["loc"]) if isinstance(part, int))
    entry = f'entry {problem["loc"][place] + 1} of "{path}"'
    key = next((str(part) for part in problem["loc"][place + 1 :] if part in DataEntry.model_fields), "")
    given = repr(problem["input"])[:80]
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        return BadInput(f'{entry} has the unknown key "{key}"', where=where, fix=nearest(key, DataEntry.model_fields))
    if problem["type"] == "missing":
        return BadInput(f"{entry} has no {key}: {given}", where=where, fix=f"{path}: [{{{key}: FILE}}]")
    message = problem["msg"].removeprefix("Value error, ")
    known = known_keys()
    fix = DataEntry.model_fields[key].description if key else None
    return BadInput(
        f"{f'{key} of ' if key else ''}{entry} cannot be {given}: {message[0].lower() + message[1:]}",
        where=where,
        fix=f"{key}: {fix}" if fix else _describe(known, f"data.{key}" if key else path),
    )


def _describe(known: Mapping[str, Any], path: str) -> str:
    field = known.get(path)
    return f"{path}: {field.description}" if field is not None and field.description else f"see docs/configuration.md for {path}"


def _value_of(path: str, text: str, where: str) -> Any:
    """Text read as YAML; but for a key that takes text (or a list), "{label}" is that text and not a YAML mapping."""
    field = known_keys().get(_meant(path) or path)
    kind = None if field is None else field.annotation
    texts, paths = str | list[str] | None, DataConfig.model_fields["train"].annotation
    only_text = kind in (str, str | None, texts, paths)
    try:
        value = parse_yaml(text, where)
    except BadInput:
        if only_text:
            return text
        raise
    if isinstance(value, list) and (kind == paths or (kind == texts and all(isinstance(one, str) for one in value))):
        return value
    return value if not only_text or value is None or isinstance(value, str) else text


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`--set training.epochs=2`: dotted key, value read as YAML."""
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in raw.items()}
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise BadInput(f'"{override}" does not set a key', where="--set", fix="--set training.epochs=2")
        section, _, key = path.rpartition(".")
        holder = result.setdefault(section, {}) if section else result
        if not isinstance(holder, dict):
            raise BadInput(f'"{section}" is not a section', where=f"--set {override}", fix=nearest(section, sections()))
        holder[key] = _value_of(path, text, f"--set {override}")
    return result


def _given(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The overrides as a config of their own. Keys that only mean something together are completed from `raw`."""
    given = apply_overrides({}, overrides)
    theirs = {key for key in PEER_BATCH if key in raw}
    if PEER_BATCH & set(given) == {"micro_batch_size"} and not theirs:  # beside our own keys it is ours, not Axolotl's
        given["training"] = {**given.get("training", {}), "micro_batch_size": given.pop("micro_batch_size")}
    elif PEER_BATCH & set(given):
        given = {**{key: raw[key] for key in theirs}, **given}
    return given


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of `above` win; a section is merged key by key."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            result[key] = {**under, **value}
        elif under is None or not isinstance(value, Mapping):
            result[key] = value  # otherwise what should be a section is none, and validation names it
    return result


def load_run(path: str | Path, overrides: Sequence[str] | None = None, spelled: Mapping[str, str] | None = None) -> tuple[Run, list[str]]:
    """The run that a YAML file describes, with `--set` overrides, and what was converted, in words; see `validate`."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise BadInput(
            "there is no such config", where=str(path), fix=nearest(path.name, near) if near else "tunesmith init DATA writes one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"the config cannot be read: {error}", where=str(path), fix="a config is a YAML file in UTF-8") from None
    return validate(parse_yaml(text, str(path)), str(path), overrides or (), path.name, spelled)


def with_absolute_paths(run: Run) -> Run:
    """The run as its folder keeps it: local files by their whole path, so that `eval` and `resume` work from any folder."""

    def whole(path: str | None) -> str | None:
        return str(Path(path).expanduser().absolute()) if path is not None else None

    def whole_or_hub(path: str) -> str:
        return path if is_hub_name(path) else str(Path(path).expanduser().absolute())

    data = {key: each_path(getattr(run.data, key), whole_or_hub) for key in ("train", "validation", "test")}
    data["answer_schema"] = whole(run.data.answer_schema)
    model = whole(run.model) if run.model != "acorn" and Path(run.model).expanduser().exists() else run.model
    lora = run.lora.model_copy(update={"continue_from": whole(run.lora.continue_from)})
    output = str(Path(run.output).expanduser())
    return run.model_copy(update={"model": model, "output": output, "data": run.data.model_copy(update=data), "lora": lora})


def to_yaml(run: Run) -> str:
    """The run with every default written out; `load_run` of it gives an equal run."""
    return yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=1000)
