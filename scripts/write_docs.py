"""Write docs/configuration.md from the config's own descriptions, so that the two cannot differ.

    python scripts/write_docs.py
"""

from pathlib import Path

from tunesmith.config import PEER_KEYS, Run, known_keys, sections

DOCS = Path(__file__).parent.parent / "docs"


def configuration() -> str:
    lines = [
        "# Every key of a config",
        "",
        "Made by `scripts/write_docs.py` from `src/tunesmith/config.py`. Only `model`, `output` and `data.train` must be given.",
        "An unknown key is an error that names the nearest known one.",
        "",
        "| key | default | meaning and reason |",
        "|---|---|---|",
    ]
    for path, field in known_keys().items():
        default = "required" if field.is_required() else f"`{str(field.default).lower() if isinstance(field.default, bool) or field.default is None else field.default}`"
        lines.append(f"| `{path}` | {default} | {field.description} |".replace("\n", "\\n"))
    lines += ["", "## Keys of other tools", "", "They are converted, and every conversion is printed.", "", "| theirs | ours |", "|---|---|"]
    lines += [f"| `{theirs}` | `{ours}` |" for theirs, ours in sorted(PEER_KEYS.items())]
    lines += ["| `per_device_train_batch_size` (or `micro_batch_size`) × `gradient_accumulation_steps` | `training.batch_size`, and the first as `training.micro_batch_size` |", ""]
    for name, section in sections().items():
        assert name in Run.model_fields
        assert section.__doc__
    return "\n".join(lines)


if __name__ == "__main__":
    (DOCS / "configuration.md").write_text(configuration(), encoding="utf-8")
