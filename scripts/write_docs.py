"""Write what must not differ from its source: docs/configuration.md from the config, the README's table from benchmarks/results.

python scripts/write_docs.py
"""

import json
import re
from pathlib import Path
from typing import Any

from tunesmith.config import PEER_KEYS, DataEntry, Run, known_keys, sections

ROOT = Path(__file__).parent.parent
DOCS, RESULTS = ROOT / "docs", ROOT / "benchmarks" / "results"


def configuration() -> str:
    lines = [
        "# Every key of a config",
        "",
        "Made by `scripts/write_docs.py` from `src/tunesmith/config.py`. Only `model` and `data.train` must be given.",
        "Unknown keys are an error that names the nearest known ones, and so is a key that the chosen method would not read.",
        "",
        "| key | default | meaning and reason |",
        "|---|---|---|",
    ]
    for path, field in known_keys().items():
        default = (
            "`runs/NAME`"
            if path == "output"
            else "required"
            if field.is_required()
            else f"`{'null' if field.default is None else str(field.default).lower() if isinstance(field.default, bool) else field.default}`"
        )
        lines.append(f"| `{path}` | {default} | {field.description} |".replace("\n", "\\n"))
    lines += [
        "",
        "## Entries of data.train, data.validation and data.test",
        "",
        "Where one of these is a list, each entry is a path or a mapping with these keys. What an entry does not set is as in `data`;",
        "one with a `format` of its own needs none of the common `columns`, `prompt` and `completion`.",
        "",
        "| key | meaning |",
        "|---|---|",
    ]
    lines += [f"| `{key}` | {field.description or f'`data.{key}` for this entry'} |" for key, field in DataEntry.model_fields.items()]
    lines += [
        "",
        "## Keys of other tools",
        "",
        "They are converted, and every conversion is printed.",
        "",
        "| theirs | ours |",
        "|---|---|",
    ]
    lines += [f"| `{theirs}` | `{ours}` |" for theirs, ours in sorted(PEER_KEYS.items())]
    lines += [
        "| `per_device_train_batch_size` (or `micro_batch_size`) × `gradient_accumulation_steps` | `training.batch_size`, and the first as `training.micro_batch_size` |",
        "| `datasets: [{path: F, type: T, split: S}, …]` | `data.train: F:S`, or a list of entries; `format` for the types `alpaca`, `chat_template`, `sharegpt`, `completion` |",
        "| `bf16: true` or `auto`; `bf16: false`, `fp16: false` | `training.dtype`; left out |",
        "| `lora_target_linear: true` | `lora.targets: all-linear` |",
        "| `load_in_4bit: true` | `method: qlora` |",
        "| `val_set_size: 0`, `val_size: 0` | no `data.validation` |",
        "| `logging_steps` | left out: every step is logged |",
        "",
    ]
    for name, section in sections().items():
        assert name in Run.model_fields
        assert section.__doc__
    return "\n".join(lines)


def results(name: str) -> dict[str, Any]:
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else {"rows": []}


def speed_rows() -> list[dict[str, Any]]:
    """Whole jobs, steps and answers beside peers."""
    return [row for name in ("speed.json", "generate.json") for row in results(name)["rows"]]


def picture() -> str:
    """docs/speed.svg: how many times faster than each peer, as bars; a line for the range. Dark where the reader's screen is."""
    peers = [row for row in speed_rows() if row["opponent"] != "own-lora"]
    left, right, top, step = 330, 70, 30, 26
    most, width = max(row["ratio_max"] for row in peers), 900
    scale = (width - left - right) / most
    height = top + step * len(peers) + 12
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" font-size="13">',
        "<style>text{fill:#1f2328}.bar{fill:#2f81f7}.axis{stroke:#8b949e;stroke-width:1}.range{stroke:#1f2328;stroke-width:1.5}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.range{stroke:#e6edf3}.bar{fill:#388bfd}}</style>",
        "<title>Times faster than each peer on the same machine</title>",
        f'<text x="{left}" y="18">times faster (median; the line: all rounds)</text>',
    ]
    for place in range(0, int(most) + 1, 2 if most > 5 else 1):
        x = left + place * scale
        lines.append(f'<line class="axis" x1="{x:.0f}" x2="{x:.0f}" y1="{top - 4}" y2="{height - 8}" stroke-dasharray="2 4"/>')
        lines.append(f'<text x="{x:.0f}" y="{height - 0:.0f}" font-size="10" text-anchor="middle">{place}×</text>')
    for n, row in enumerate(peers):
        y = top + n * step
        low, high = (left + row[key] * scale for key in ("ratio_min", "ratio_max"))
        lines += [
            f'<text x="{left - 10}" y="{y + 14}" text-anchor="end">{row["workload"]} / {row["opponent"]}</text>',
            f'<rect class="bar" x="{left}" y="{y + 2}" width="{row["ratio"] * scale:.1f}" height="{step - 9}" rx="2"/>',
            f'<line class="range" x1="{low:.1f}" x2="{high:.1f}" y1="{y + 10.5}" y2="{y + 10.5}"/>',
            f'<text x="{max(high, left + row["ratio"] * scale) + 6:.1f}" y="{y + 15}" font-weight="600">{row["ratio"]:.1f}×</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


def measured() -> str:
    """The README's tables: real jobs with base and majority beside them, then speed beside peers."""
    jobs, speed = results("jobs.json"), results("speed.json")
    lines = [
        "| job on acorn | training rows | test rows | metric | majority | base | tuned | training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in jobs["rows"]:
        tuned = next(name for name in row["models"] if name not in ("majority", "base"))
        metrics = (
            ["f1_spam", "accuracy"]
            if row["job"].startswith("sms")
            else ["valid_json", "repeated_keys", "accuracy_intent", "exact_match", "f1_slots"]
        )
        for n, metric in enumerate(metrics):
            values = [row["models"].get(model, {}).get(metric) for model in ("majority", "base", tuned)]
            shown = ["–" if v is None else f"{v:.3f}" for v in values]
            head = [row["job"], f"{row['train_rows']:,}", f"{row['test_rows']:,}"] if n == 0 else ["", "", ""]
            seconds = f"{row['epochs']:g} epochs, {row['training_seconds']:.0f} s" if n == 0 else ""
            lines.append("| " + " | ".join([*head, f"`{metric}`", shown[0], shown[1], f"**{shown[2]}**", seconds]) + " |")
    lines += ["", "| step | opponent | ours | theirs | ratio (median, range) | peak memory |", "|---|---|---|---|---|---|"]
    for row in speed_rows():
        memory = f"{row['ours_peak_bytes'] / 2**30:.1f} against {row['theirs_peak_bytes'] / 2**30:.1f} GiB"
        ratio = f"**{row['ratio']:.2f}×** ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        lines.append(
            f"| {row['workload']} | {row['opponent']} | {row['ours_seconds']:.2f} s | {row['theirs_seconds']:.2f} s | {ratio} | {memory} |"
        )
    lines += [
        "",
        "| packed rows, beginnings computed once | tokens saved | shared | packed alone | ratio (median, range) |",
        "|---|---:|---:|---:|---|",
    ]
    for row in results("prefix.json")["rows"]:
        ratio = f"**{row['ratio']:.2f}×** ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        shown = f"{row['tokens_saved']:.0%} | {row['ours_seconds']:.3f} s | {row['theirs_seconds']:.3f} s"
        lines.append(f"| {row['workload'].removeprefix('prefix-')} | {shown} | {ratio} |")
    lines += ["", "| killed by SIGKILL | of | kills | lost | unresumable | bit-identical |", "|---|---|---:|---:|---:|---:|"]
    for row in sorted(results("torture.json")["rows"], key=lambda row: (row["opponent"] != "tunesmith", row["workload"])):
        lines.append(
            f"| {row['workload']} | {row['opponent']} | {row['kills']} | {row['lost']} | {row['unresumable']} | {row['bit_identical']} |"
        )
    machine = jobs.get("machine") or speed.get("machine") or {}
    if machine:
        lines += [
            "",
            f"{machine.get('cpu', '')}, {machine.get('cores', '?')} cores, {machine.get('computes_in', '')}; trust ratios, not seconds: the cores are shared.",
        ]
    return "\n".join(lines)


def kernels() -> str:
    """docs/quantization.md's table of the 4-bit kernels beside bitsandbytes'."""
    found = results("dequantize.json")
    lines = ["| work | opponent | ours | theirs | ratio (median, range) | share of a copy's speed |", "|---|---|---:|---:|---:|---:|"]
    for row in found["rows"]:
        share = f"{row['copy_share']:.0%}" if row.get("copy_share") else ""
        ratio = f"**{row['ratio']:.2f}×** ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        ours, theirs = f"{row['ours_seconds'] * 1e3:.2f} ms", f"{row['theirs_seconds'] * 1e3:.2f} ms"
        lines.append(f"| {row['workload']} | {row['opponent']} | {ours} | {theirs} | {ratio} | {share} |")
    return "\n".join(lines)


def planned() -> str:
    """docs/plan.md's table: what the plan said and what the runs took."""
    lines = [
        "| run | tensors: plan | measured | off | process: plan | measured | off | step, in products: plan | measured | off |",
        "|---|" + "---:|" * 9,
    ]
    for row in results("plan.json")["rows"]:
        mib = {key: f"{row[key] / 2**20:,.0f} MiB" for key in ("predicted_bytes", "account_bytes", "resident_bytes")}
        process = f"{(row['predicted_bytes'] + row['process_bytes']) / 2**20:,.0f} MiB"
        lines.append(
            f"| {row['workload'].removeprefix('plan-')}, {row['shape']} | {mib['predicted_bytes']} | {mib['account_bytes']} | {row['account_off']:+.1%} | "
            f"{process} | {mib['resident_bytes']} | {row['resident_off']:+.1%} | "
            f"{row['predicted_probes']:,.0f} | {row['taken_probes']:,.0f} | {row['time_off']:+.1%} |"
        )
    return "\n".join(lines)


def between(text: str, name: str, new: str) -> str:
    """The text with what stands between <!-- name: … --> and <!-- /name --> made anew."""
    return re.sub(rf"(<!-- {name}:.*?-->\n).*?(<!-- /{name} -->)", lambda m: f"{m[1]}{new}\n{m[2]}", text, flags=re.S)


if __name__ == "__main__":
    (DOCS / "configuration.md").write_text(configuration(), encoding="utf-8")
    (DOCS / "speed.svg").write_text(picture(), encoding="utf-8")
    for page, name, new in (
        (ROOT / "README.md", "measured", measured()),
        (DOCS / "quantization.md", "kernels", kernels()),
        (DOCS / "plan.md", "planned", planned()),
    ):
        page.write_text(between(page.read_text(encoding="utf-8"), name, new), encoding="utf-8")
