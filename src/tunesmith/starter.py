"""A first config for a data file: what was recognised, filled in, and every other key with its default and reason as a comment.

    tunesmith init SMSSpamCollection.tsv --no-header
"""

from pathlib import Path
from typing import Any

import yaml

from tunesmith.config import DataConfig, Run, known_keys, sections
from tunesmith.data.formats import read_conversations
from tunesmith.errors import BadInput
from tunesmith.files import write_text


def write_starter(data: str, output: Path, model: str, header: bool, quoting: bool) -> list[str]:
    """Write the config and return what to tell the user; an existing file is never replaced."""
    if output.exists():
        raise BadInput("there is already a file of this name", where=str(output), fix="--output another.yaml")
    settings: dict[str, Any] = {} if header else {"header": False}
    if not quoting:
        settings["quoting"] = False
    said: list[str] = []
    try:
        read = read_conversations(DataConfig(train=data, on_bad_row="skip", **settings))
        said += read.said
        if read.skipped:
            said.append(f"{len(read.skipped):,} rows cannot be read; the first: {read.skipped[0].source}: {read.skipped[0].problem}")
        n_rows = len(read.conversations)
    except BadInput as error:
        if not any(word in error.fix for word in ("data.prompt", "data.columns")):
            raise
        said.append(f"{error.what}: fill in the lines marked TODO")
        settings |= {"prompt": "TODO: {column}", "completion": "{other_column}"}
        if not header:
            settings["columns"] = ["TODO", "names"]
        n_rows = 0
    name = Path(data).name.split(".")[0]
    filled: dict[str, Any] = {
        "model": model, "method": "lora", "output": f"runs/{name}",
        "data": {"train": data, **settings, **({"validation": 0.1, "test": 0.2} if n_rows >= 30 or n_rows == 0 else {})},
    }  # fmt: skip
    write_text(output, commented(filled))
    return [*said, f"{output} written; next: tunesmith train {output} --dry-run"]


def commented(filled: dict[str, Any]) -> str:
    """YAML in which given keys stand and every other key is a comment with its default."""
    lines: list[str] = []
    known, parts = known_keys(), sections()
    for name, field in Run.model_fields.items():
        if name in parts:
            lines += ["", f"{name}:" if filled.get(name) else f"# {name}:"]
            for key in parts[name].model_fields:
                lines.append(_line(f"{name}.{key}", known[f"{name}.{key}"], filled.get(name, {}), key, "  "))
        else:
            lines.append(_line(name, field, filled, name, ""))
    return "\n".join(lines).strip() + "\n"


def _line(path: str, field: Any, filled: dict[str, Any], key: str, indent: str) -> str:
    given = key in filled
    value = filled[key] if given else field.default
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000).strip().removesuffix("...").strip()
    return f"{indent}{'' if given else '# '}{key}: {text}".ljust(44) + f"  # {field.description}"
