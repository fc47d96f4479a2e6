"""The model card: run folder in, `README.md` out. Facts only, with what is not known.

write_model_card(Path("runs/sms"))  # runs/sms/README.md
"""

import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import yaml

from tunesmith.page import write_page
from tunesmith.report.facts import counts_in_words, data_files, environment, key_facts, verdict
from tunesmith.report.files import Files, read_folder
from tunesmith.report.scores import as_text, best_of, metric_order, models_of, rows_measured, tuned_of


def write_model_card(folder: Path) -> Path:
    """Write the folder's `README.md`: what was trained, on what, how it measured, and what is not known. Facts only."""
    return write_page(folder / "README.md", _card(read_folder(folder)))


def _card(files: Files) -> str:
    method, base = str(files.config.get("method", "lora")), str(files.config.get("model", "not stated"))
    head = {
        "base_model": Path(base).name if _is_folder(base) else base,  # a path of this machine says nothing to a reader elsewhere
        "library_name": "transformers" if method == "full" else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["tunesmith", method],
    }
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {_markdown(files.name)}",
        _markdown(verdict(files)),
        _list_of(
            [
                (name, value if name != "base model" else str(head["base_model"]) + (" (a local folder)" if _is_folder(base) else ""))
                for name, value in key_facts(files)
            ]
        ),
        _card_section("Measured", _card_scores(files), "No test rows were measured."),
        _card_section(
            "Training data",
            _list_of(counts_in_words(files) + data_files(files)),
            "Counts were not recorded.",
        ),
        _card_section("Use", _use(method, base), ""),
        _card_section("Command", _fence(str(files.status["command"])) if files.status.get("command") else "", "Not recorded."),
        _card_section("Versions and machine", _list_of(environment(files)), "Not recorded."),
        _card_section("Not known", "\n".join(f"- {line}" for line in _unknown(files)), ""),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _use(method: str, base: str) -> str:
    """The lines that open the result without tunesmith. The base is named by where it is, as "acorn" is no name on the hub."""
    if method == "full":
        lines = ["from transformers import AutoModelForCausalLM", "", 'model = AutoModelForCausalLM.from_pretrained("model")']
        return "From this folder `tunesmith chat .`, or with transformers:\n\n" + _fence("\n".join(lines))
    where = {"acorn": "ACORN"}.get(base, json.dumps(f"the folder of {Path(base).name}" if _is_folder(base) else base))
    lines = ["from peft import PeftModel", "from transformers import AutoModelForCausalLM"]
    lines += ["from tunesmith.model.load import ACORN  # the folder of the base, inside the package"] if base == "acorn" else []
    lines += ["", f"base = AutoModelForCausalLM.from_pretrained({where})", 'model = PeftModel.from_pretrained(base, "adapter")']
    if method == "qlora":  # over the 16-bit base the logits are off by several units
        lines[-2] = 'base = AutoModelForCausalLM.from_pretrained("base-in-few-bits")  # by bitsandbytes'
        lines = [line for line in lines if not line.startswith("from tunesmith")]
        return (
            "From this folder `tunesmith chat .`. The adapter belongs on the base in the bits that it was trained on, not on the 16-bit one: "
            f"`tunesmith quantize {base} --output base-in-few-bits` with the scheme above, then with PEFT, where bitsandbytes has the scheme:\n\n"
            + _fence("\n".join(lines))
            + "\n\nOr `tunesmith merge . --output merged`: one 16-bit model that needs neither."
        )
    return "From this folder `tunesmith chat .`, or with PEFT:\n\n" + _fence("\n".join(lines))


def _is_folder(model: str) -> bool:
    return model.startswith(("/", "~", ".")) or "\\" in model or model.count("/") > 1 or Path(model).is_dir()


def _unknown(files: Files) -> list[str]:
    lines = [
        "licence of the training data: not stated",
        "licence of the base model: not stated here; it applies to this model as well",
        "behaviour on inputs unlike the training data, in other languages or under misuse: not measured",
    ]
    if tuned_of(files, models_of(files)) is None:
        lines.insert(0, "quality of the answers: not measured on test rows")
    if not data_files(files):
        lines.append("checksums of the data files: not recorded")
    if files.status.get("state") not in (None, "trained", "done"):  # the card is written before the run is called done
        lines.insert(0, f"how it would have ended: the run is {files.status['state']}")
    return lines + [f"left out: {note}" for note in files.left_out]


def _card_scores(files: Files) -> str:
    models = models_of(files)
    if not models:
        return ""
    rows = [["metric", *map(_markdown, models)], ["---", *("---:" for _ in models)]]
    for metric in metric_order(models):
        best = best_of(metric, models)
        values = {name: _markdown(as_text(metric, metrics.get(metric))) for name, metrics in models.items()}
        rows.append([_markdown(metric), *(f"**{value}**" if name in best else value for name, value in values.items())])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return (f"On {n_rows}; bold: the best of its row.\n\n" if (n_rows := rows_measured(files)) else "") + table


def _card_section(title: str, body: str, fallback: str) -> str:
    return f"## {title}\n\n{body or fallback}" if body or fallback else ""


def _list_of(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"- {_markdown(name)}: {_markdown(value)}" for name, value in rows)


def _fence(text: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*\[\]|]|(?<!\w)_|_(?!\w)|^[#>+-])", r"\\\1", text)
