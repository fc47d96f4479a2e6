"""A run made concrete: its data read and rendered, its model loaded, its steps counted; nothing is written yet.

ready = prepare(run, "spam")
ready.tuned.parameters, ready.step_rows.micro_batches(0), ready.timetable.steps
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from tunesmith.config import Run
from tunesmith.data.batches import StepRows, lengths_of, padding_share, shared_share
from tunesmith.data.cache import RowsCache
from tunesmith.data.rows import Rows, load_parts, load_rows
from tunesmith.data.template import Renderer
from tunesmith.errors import BadInput
from tunesmith.hardware import pick_device
from tunesmith.kernels.causal_attention import is_fast
from tunesmith.model.attention import keep_documents_apart, why_not_shared
from tunesmith.model.layers import fused_forms
from tunesmith.progress import counted
from tunesmith.training import distributed
from tunesmith.training.method import Tuned
from tunesmith.training.optim import learning_rate
from tunesmith.training.sharding import Attention, build_tuned, distribute_attention, is_on

DEFAULT_MAX_LENGTH = 512
KEPT_SCORE_BYTES = 1 << 30  # for rows of 256 tokens, a model of some ten million parameters
PADDING_STEPS = 100  # of which the padding is counted before the first, and what shared beginnings save
WORTH_PACKING = 0.1  # share of what is computed: packing that saves less costs no less beside the products
LEAST_SAVED = 0.02  # share of the tokens: below, shared beginnings are not worth another way of computing


@dataclass(frozen=True)
class Timetable:
    """How many steps a run takes, and at which of them something is due; `rate` is the highest learning rate."""

    steps: int
    validate_every: int
    save_every: int
    rate: float


@dataclass(frozen=True)
class Ready:
    """A run with its data checked and its model loaded, before the first step.

    padding   share of what its first steps compute that is no token, "unpacked" and "packed"
    shared    share of the tokens of its first steps that are not computed, as other examples of their row begin with the same
    """

    run: Run
    tuned: Tuned
    renderer: Renderer
    rows: Rows
    step_rows: StepRows
    timetable: Timetable
    padding: dict[str, float]
    shared: float
    said: list[str]


def prepare(run: Run, name: str) -> Ready:
    """Load everything a run needs and say what it found; nothing is written."""
    distributed.start()
    torch.manual_seed(run.training.seed)
    kept = RowsCache(run.data)
    # before the model: a wrong path should not cost the loading of it; the other processes read what the first one has kept, or again
    parts = load_parts(run.data) if kept.is_empty and distributed.rank() == 0 else None
    tuned = build_tuned(run, name)
    renderer = Renderer(tuned.loaded.tokenizer, run.data.template, tuned.loaded.eos_ids, tuned.loaded.n_ids, run.data.thinking)
    max_length = longest_example(run.training.max_length, tuned.loaded.context)
    rows = distributed.in_turn(
        lambda: kept.rows(renderer, max_length, make=lambda: load_rows(parts or load_parts(run.data), run.data, max_length, renderer))
    )
    distributed.must_be_equal("the rows to train on", _digest(rows, renderer))
    training = run.training
    step_rows = StepRows(
        rows.train, training.batch_size, training.seed, training.micro_batch_tokens, training.micro_batch_size, training.packing is True,
        training.batch_tokens,
    )  # fmt: skip
    steps_per_epoch = step_rows.steps_of_epoch(0)
    steps = training.steps or step_rows.steps_of(training.epochs)
    rate, reason = learning_rate(run, tuned.loaded.model.config.get_text_config().hidden_size)
    timetable = Timetable(
        steps, run.training.validate_every or min(steps, steps_per_epoch), run.training.save_every or min(steps, steps_per_epoch), rate
    )
    longest = int(max(lengths_of(part).max(initial=0) for part in (rows.train, rows.validation)))
    padding = padding_of(step_rows, steps)
    shared = shared_share(step_rows, range(min(steps, PADDING_STEPS))) if training.packing else 0.0
    packing = is_worth_packing(run, padding, shared) if training.packing == "auto" else training.packing
    attention = distribute_attention(run, tuned.loaded.model, lambda: _attention_for(tuned, longest, run, packing, shared))
    step_rows = replace(step_rows, packing=attention.packed, sharing=attention.sharing)
    said = [
        *rows.said,
        *tuned.said,
        *attention.said,
        *_padding_in_words(padding, step_rows.packing),
        reason,
        _steps_in_words(steps, step_rows),
    ]
    return Ready(run, tuned, renderer, rows, step_rows, timetable, padding, shared if step_rows.sharing else 0.0, said)


def _digest(rows: Rows, renderer: Renderer) -> str:
    """Of what decides the order and the content of examples: files, tokenizer with its template, and every length."""
    digest = sha256(renderer.fingerprint().encode())
    for path, facts in sorted(rows.files.items()):
        digest.update(f"{Path(path).name} {facts['sha256']} ".encode())
    for part in (rows.train, rows.validation):
        digest.update(lengths_of(part).tobytes())
    return digest.hexdigest()


def _steps_in_words(steps: int, rows: StepRows) -> str:
    n_examples, per_epoch = len(rows.examples), rows.steps_of_epoch(0)
    size = counted(min(rows.batch_size, n_examples), "example")
    if rows.batch_tokens is not None:
        n_longer = int((lengths_of(rows.examples) > rows.batch_tokens).sum())
        size = f"at most {counted(rows.batch_tokens, 'token')}"
        size += f" ({counted(n_longer, 'longer example')} by themselves)" if n_longer else ""
    return f"{counted(steps, 'step')} of {size}; {counted(per_epoch, 'step')} {'sees' if per_epoch == 1 else 'see'} every example once"


def padding_of(rows: StepRows, steps: int) -> dict[str, float]:
    """Share of what the first steps compute that is no token, "unpacked" and "packed"."""
    first = range(min(steps, PADDING_STEPS))
    return {name: padding_share(replace(rows, packing=name == "packed"), first) for name in ("unpacked", "packed")}


def is_worth_packing(run: Run, padding: Mapping[str, float], shared: float) -> bool:
    """What packing: auto stands for, if the model keeps the examples of a row apart; micro-batches of so many examples are not rows of tokens."""
    left = (1 - padding["unpacked"]) / (1 - padding["packed"]) * (1 - shared if may_share(run, shared) else 1)
    return run.training.micro_batch_size is None and (left <= 1 - WORTH_PACKING or run.training.share_prefixes is True)


def _padding_in_words(share: Mapping[str, float], packing: bool) -> list[str]:
    if packing:
        return [f"{share['packed']:.1%} of what is computed is padding; without packing it would be {share['unpacked']:.1%}"]
    return [f"{share['unpacked']:.1%} of what is computed is padding; training.packing: true would leave {share['packed']:.1%}"]


def _attention_for(tuned: Tuned, longest: int, run: Run, packed: bool, shared: float) -> Attention:
    """How attention is computed: within each example of a packed row; and on a CPU with its scores kept where they are few.

    packed   whether rows shall be; shared: what shared beginnings would save then
    """
    model = tuned.loaded.model
    device = pick_device() if is_on(run) else model.device
    is_fused, text = bool(fused_forms(model)), model.config.get_text_config()
    found = partial(attention_way, text, run, longest, device.type == "cpu", is_fused, tuned.compute_dtype)
    way, kept = found(packed)
    if way == "apart":
        try:
            keep_documents_apart(model, kept, longest)
        except BadInput as error:
            if run.training.packing is True or run.training.share_prefixes is True:
                raise
            padded = _attention_for(tuned, longest, run, False, shared)
            return replace(padded, said=[f"rows are padded and not packed: {error.what}", *padded.said])
        said, sharing = _sharing_for(model, longest, run, shared)
        return Attention(["packed rows: tried on this model, no example sees another", *said], True, sharing)
    if way == "rows":
        try:
            keep_documents_apart(model, kept, longest)
            return Attention(["attention is computed row by row by compiled code, tried on this model"], False, False)
        except BadInput:  # a family that computes attention in its own way
            way, kept = scores_way(text, run, longest)
    if way == "eager":
        model.set_attn_implementation("eager")
        words = f"attention scores are kept (at most {kept / 2**20:,.0f} MiB): faster than flash attention for short rows on a CPU"
        return Attention([words], False, False)
    return Attention([], False, False)


def may_share(run: Run, shared: float) -> bool:
    """Whether examples of a packed row are to share their beginnings, which would save `shared` of the tokens, if the model can do it."""
    asked = run.training.share_prefixes
    noise = run.method != "full" and run.lora.dropout > 0
    return run.training.packing is not False and not noise and (asked is True or (asked == "auto" and shared >= LEAST_SAVED))


def _sharing_for(model: Any, longest: int, run: Run, shared: float) -> tuple[list[str], bool]:
    """Whether they do, with its reason. Raises BadInput where the config insists and the model cannot."""
    if not may_share(run, shared):
        noise = run.training.share_prefixes == "auto" and shared >= LEAST_SAVED
        saved = f"{shared:.1%} of the tokens would be saved by shared beginnings, which dropout forbids (lora.dropout: 0)"
        return ([saved] if noise else []), False
    why = why_not_shared(model, longest)
    if why is not None and run.training.share_prefixes is True:
        raise BadInput(
            f"examples of this model cannot share their beginnings: {why}", where=f"training.share_prefixes: true, a model of type {model.config.model_type}",
            fix="training.share_prefixes: auto",
        )  # fmt: skip
    if why is not None:
        return [f"beginnings of examples are not shared: {why}"], False
    return [f"what examples of a row begin with is computed once, which saves {shared:.1%} of the tokens: tried on this model"], True


def attention_way(config: Any, run: Run, longest: int, on_cpu: bool, fused: bool, compute: torch.dtype, packed: bool) -> tuple[str, int]:
    """("apart" or "rows", scores of a head kept in each layer), ("eager", bytes of all scores kept) or ("own", 0): as the model does it itself.

    torch's flash attention has a backward pass that is several times slower on a CPU. Packed rows choose document by document, padded ones
    once; the same mathematics either way. `fused` layers (model/layers.py) have an attention of their own.
    """
    score_bytes = _score_bytes(config, run)
    if packed:
        return "apart", KEPT_SCORE_BYTES // score_bytes if on_cpu else 0
    if fused or not on_cpu or config._attn_implementation != "sdpa":
        return "own", 0
    heads = getattr(config, "num_attention_heads", 0)
    width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    if compute == torch.bfloat16 and width and is_fast(width):
        return "rows", KEPT_SCORE_BYTES // score_bytes
    return scores_way(config, run, longest)


def scores_way(config: Any, run: Run, longest: int) -> tuple[str, int]:
    """("eager", bytes of all scores kept) where they are few, otherwise ("own", 0)."""
    most_bytes = run.training.micro_batch_tokens * longest * _score_bytes(config, run)
    return ("eager", most_bytes) if most_bytes <= KEPT_SCORE_BYTES else ("own", 0)


def _score_bytes(config: Any, run: Run) -> int:
    """Of one score in each head and layer: float32, bf16, bf16; Mamba has no heads."""
    n_kept = 1 if run.training.gradient_checkpointing else config.num_hidden_layers
    return 8 * n_kept * int(getattr(config, "num_attention_heads", 1))


def longest_example(asked: int | None, context: int | None) -> int:
    """Tokens of the longest example: as asked if the model was made for it, otherwise 512 or what the model was made for."""
    if asked is None:
        return min(DEFAULT_MAX_LENGTH, context or DEFAULT_MAX_LENGTH)
    if context is not None and asked > context:
        raise BadInput(
            f"the model was made for {context:,} positions", where=f"training.max_length: {asked}", fix=f"training.max_length: {context}"
        )
    return asked


def serving_facts(ready: Ready) -> dict[str, Any]:
    """What must be equal when the tuned model answers (FAILURES 1)."""
    renderer, run, scheme = ready.renderer, ready.run, ready.tuned.loaded.scheme
    return {
        "renderer": renderer.fingerprint(), "template": renderer.mode, "stop_ids": sorted(renderer.stop_ids),
        "prompt": run.data.form, "system": run.data.system, "dtype": run.training.dtype,
        "base_scheme": None if scheme is None else str(scheme),
    }  # fmt: skip
