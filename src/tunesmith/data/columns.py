"""Text made from a row's columns: `data.prompt`, `data.completion` and `data.system`.

    template = compile_template("Spam or ham?\\n\\n{text}", columns=["text", "label"])
    template.fill({"text": "hi", "label": "ham"})     # "Spam or ham?\\n\\nhi"

`{name}` inserts a text as it is and any other value as JSON; `{name:json}` inserts every value as JSON. Braces around anything
that is neither a column nor an identifier are literal, so that a template can be JSON itself:
`{"intent": {intent:json}, "slots": {slots}}`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.readers import clip, listed

PLACEHOLDER = re.compile(r"\{([^{}\n]+)\}")


class RowError(Exception):
    """One row cannot be used; the message says why."""


@dataclass(frozen=True)
class Template:
    """Literal texts, and columns with whether they are inserted as JSON."""

    parts: tuple[str | tuple[str, bool], ...]

    @property
    def columns(self) -> list[str]:
        return [part[0] for part in self.parts if not isinstance(part, str)]

    def fill(self, values: dict[str, Any]) -> str:
        return "".join(part if isinstance(part, str) else cell(values, *part) for part in self.parts)


def compile_template(text: str, columns: Sequence[str]) -> Template:
    """Raises KeyError(name) at a placeholder that is no column."""
    parts: list[str | tuple[str, bool]] = []
    end = 0
    for match in PLACEHOLDER.finditer(text):
        name, as_json = match[1], False
        if name not in columns and name.endswith(":json"):
            name, as_json = name.removesuffix(":json"), True
        if name not in columns:
            if not name.isidentifier():
                continue
            raise KeyError(name)
        parts += [text[end : match.start()], (name, as_json)]
        end = match.end()
    return Template((*parts, text[end:]))


def placeholders(template: str) -> list[str]:
    """Everything in braces, a column or not."""
    return [match[1].removesuffix(":json") for match in PLACEHOLDER.finditer(template)]


def columns_of(template: str) -> list[str]:
    """The columns that a template names, each once, as far as they can be told without a file."""
    return list(dict.fromkeys(name for name in placeholders(template) if name.isidentifier()))


def filled(template: str, values: dict[str, Any]) -> str:
    """The template with these columns put in."""
    return compile_template(template, list(values)).fill(values)


def looks_filled(template: str, text: str) -> bool:
    """Whether a text could be the template with its columns put in."""
    parts = compile_template(template, columns_of(template)).parts
    return re.fullmatch("".join(re.escape(part) if isinstance(part, str) else ".*" for part in parts), text, re.S) is not None


def cell(values: dict[str, Any], column: str, as_json: bool = False) -> str:
    """A column's value as text; RowError where there is none."""
    value = values.get(column)
    if value is None:
        raise RowError(
            f'"{clip(column)}" is {"null" if column in values else "missing"}; this row has {listed(list(values)) or "no columns"}'
        )
    return value if isinstance(value, str) and not as_json else json.dumps(value, ensure_ascii=False)


def quoted(template: str) -> str:
    return json.dumps(clip(template, 120).replace("\\n", "\n"), ensure_ascii=False)
