"""The facts about a run that its page and its card share: the verdict, the key figures, counts of rows, files, environment.

verdict(files)                          # "f1_spam 0.00 → 0.95 on 1,034 test rows"
key_facts(files)                        # [("base model", "acorn"), ("method", "LoRA, rank 16, …"), …]
"""

import re
import statistics
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunesmith.progress import counted
from tunesmith.report.curves import curve_of
from tunesmith.report.files import Files, finite, mapping, texts_of
from tunesmith.report.scores import as_text, change_of, headline, interval_in_words, models_of, rows_measured, tuned_of


def verdict(files: Files) -> str:
    """One sentence: "f1_spam 0.00 → 0.95 on 1,034 test rows", or what can be said without test rows."""
    models, state = models_of(files), files.status.get("state")
    tuned = tuned_of(files, models)
    at = f" at step {files.status.get('step')} of {files.status.get('steps')}" if files.status.get("steps") is not None else ""
    if state == "failed":
        problem = files.status.get("problem")
        return f"The run failed{at}: {problem}" if problem else f"The run failed{at}."
    if state in {"interrupted", "running"} and tuned is None:
        return f"The run was interrupted{at}." if state == "interrupted" else f"The run is under way{at}."
    metric = headline(files.evaluation.get("task"), models, tuned) if tuned else None
    means = mapping(mapping(files.evaluation.get("macro")).get("models"))
    if tuned and (mean := finite(mapping(means.get(tuned)).get("rouge_l"))) is not None:
        change = interval_in_words(change_of(files, tuned, "macro", "rouge_l"), digits=2)
        of_base = as_text("rouge_l", mapping(means.get("base")).get("rouge_l"), 2)
        n_tasks = counted(len(mapping(files.evaluation.get("tasks"))), "task")
        return f"rouge_l {of_base} → {mean:.2f} in the mean over {n_tasks}{f', change {change}' if change else ''}"
    if tuned and metric:
        where = f" on {n_rows}" if (n_rows := rows_measured(files)) else ""
        before = finite(mapping(models.get("base")).get(metric))
        after = as_text(metric, models[tuned][metric], 2)
        return f"{metric} {after}{where}" if before is None else f"{metric} {as_text(metric, before, 2)} → {after}{where}"
    for key, words in (("validation_loss", "validation loss"), ("loss", "training loss")):
        curve = curve_of(files.steps, key)
        if curve:
            values = [value for _, value in curve]
            fell = f"{values[0]:.3f} → {min(values) if key == 'validation_loss' else values[-1]:.3f}"
            return f"{words} {fell}; no answers were measured on test rows"
    return "Nothing was measured yet."


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _bytes(n: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if n < 1024:
            return f"{n:,.0f} {unit}"
        n /= 1024
    return f"{n:,.2f} GiB"


def moment_of(value: Any) -> str | None:
    number = finite(value)
    if number is not None:
        return datetime.fromtimestamp(number, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return value if isinstance(value, str) else None


def _method(files: Files) -> str:
    method = str(files.config.get("method", "lora"))
    if method == "full":
        part = mapping(files.config.get("full")).get("train", "all")
        return "full fine-tuning" if part == "all" else f"full fine-tuning of a part ({part})"
    lora = mapping(files.config.get("lora"))
    rank = lora.get("rank", 16)
    alpha = lora.get("alpha") if lora.get("alpha") is not None else 2 * rank if isinstance(rank, int) else "2 · rank"
    scale = ", rsLoRA scaling" if lora.get("rslora") else ""
    targets = lora.get("targets", "all-linear")
    on = ", ".join(map(str, targets)) if isinstance(targets, list) else targets
    return (
        f"{'QLoRA' if method == 'qlora' else 'LoRA'}, rank {rank}, alpha {alpha:g}{scale}, on {on}"
        if isinstance(alpha, int | float)
        else method
    )


def key_facts(files: Files) -> list[tuple[str, str]]:
    """The few figures that one looks for first; only those that are known."""
    status, facts = files.status, [("base model", str(files.config.get("model", "not stated"))), ("method", _method(files))]
    parameters = mapping(status.get("parameters"))
    trained, total = finite(parameters.get("trained")), finite(parameters.get("total"))
    if trained is not None and total:
        facts.append(("trained parameters", f"{trained:,.0f} of {total:,.0f} ({100 * trained / total:.2f} %)"))
    if status.get("steps") is not None:
        best = f", best at {status['best_step']}" if status.get("best_step") is not None else ""
        facts.append(("optimizer steps", f"{status.get('step')} of {status.get('steps')}{best}"))
    seconds = finite(status.get("seconds"))
    if seconds is not None:
        facts.append(("time", _duration(seconds)))
    speed = [value for _, value in curve_of(files.steps, "tokens_per_second")]
    if speed:
        facts.append(("speed", f"{statistics.median(speed):,.0f} tokens/s (median step)"))
    memory = [value for _, value in curve_of(files.steps, "peak_memory_bytes")]
    if memory:
        facts.append(("peak memory", _bytes(max(memory))))
    return facts


COUNT_WORDS = {
    "read": "rows read",
    "skipped": "skipped: could not be read",
    "duplicates_dropped": "dropped: equal to an earlier row",
    "overlap_removed": "removed: the held-out rows contain them",
    "left_out_by_limit": "left out by data.limit",
    "train": "training rows",
    "validation": "validation rows (used for choices)",
    "test": "test rows (measured only)",
    "text_windows": "windows that long texts were cut into",
    "too_long_dropped": "dropped: longer than training.max_length",
    "too_long_truncated": "cut at training.max_length",
    "tokens_per_epoch": "tokens per epoch",
    "trained_tokens_per_epoch": "trained tokens per epoch",
}


def counts_in_words(files: Files) -> list[tuple[str, str]]:
    """Counts in words, in the order in which rows went; what a later version may count keeps its own name."""
    counts = mapping(mapping(files.status.get("data")).get("counts"))
    ordered = [key for key in COUNT_WORDS if key in counts] + [key for key in counts if key not in COUNT_WORDS]
    return [(COUNT_WORDS.get(key, str(key)), count_as_text(counts[key])) for key in ordered]


def count_as_text(value: Any) -> str:
    return f"{value:,}" if finite(value) is not None else str(value)


def data_files(files: Files) -> list[tuple[str, str]]:
    """(name, checksum in words) of the data files, from {"name": "sha256"}, {"name": {"sha256": …}} or a list of {"path", "sha256"}."""
    listed = mapping(files.status.get("data")).get("files")
    entries: list[tuple[Any, Any]] = (
        list(listed.items()) if isinstance(listed, Mapping) else [(None, e) for e in listed or [] if isinstance(e, Mapping)]
    )
    found = []
    for name, entry in entries:
        inner = mapping(entry)
        sha = inner.get("sha256") if inner else entry
        path = inner.get("path") or inner.get("name") or name
        found.append((Path(str(path)).name, f"sha256 {sha}" if re.fullmatch("[0-9a-f]{64}", str(sha)) else "sha256 not recorded"))
    return found


def environment(files: Files) -> list[tuple[str, str]]:
    """What the run was computed with, as provenance.py noted it."""
    noted = [*mapping(files.status.get("machine")).items(), *mapping(files.status.get("environment")).items()]
    rows: dict[str, str] = {"tunesmith": str(files.status["version"])} if files.status.get("version") else {}
    for key, value in noted:
        rows |= dict(_described(inner, given) for inner, given in (value if isinstance(value, Mapping) else {key: value}).items())
    base = mapping(files.status.get("base")).get("fingerprint")
    changed = [("changed meanwhile", line) for line in texts_of(files.status.get("changed"))]
    return [*rows.items(), *([("fingerprint of the base", str(base))] if base else []), *changed]


def _described(key: Any, value: Any) -> tuple[str, str]:
    name, number = str(key), finite(value)
    if number is not None and name.endswith("_bytes"):
        return name.removesuffix("_bytes").replace("_", " "), _bytes(number)
    words = ", ".join(map(str, value)) if isinstance(value, list) else "not known" if value is None else str(value)
    return (name if name.isupper() else name.replace("_", " ")), words
