"""JSON that somebody else wrote: read whole or refused, whatever it holds.

    config = read_object(folder / "config.json")            # a dict, or BadInput with what, where and fix
    header = parsed(raw, where=str(path))                   # bytes that were read already

Python's own reader takes a key that stands twice (two readers of one file would then see two files), falls over deep nesting with an
error of another kind, and hands out half characters that no later print can write. Only ordinary files are opened: a pipe would never
end, a device neither.
"""

import json
from pathlib import Path
from typing import Any

from tunesmith.errors import BadInput

MOST_BYTES = 16 << 20  # of a configuration; the largest of real models, with a name for each of 20,000 labels, have one
MOST_DEPTH = 32  # of lists and mappings in each other; real ones have 6
SHOWN = 80  # characters of a foreign text in a message
AGAIN = "copy or download it again"


def read_object(path: Path, most_bytes: int = MOST_BYTES, fix: str = AGAIN) -> dict[str, Any]:
    """The JSON object in a file; BadInput where there is none."""
    value = parsed(read_bytes(path, most_bytes, fix), str(path), fix)
    if not isinstance(value, dict):
        raise BadInput(f"{path.name} should hold a JSON object", where=str(path), fix=fix)
    return value


def read_bytes(path: Path, most_bytes: int, fix: str = AGAIN) -> bytes:
    """All of an ordinary file, if it is no longer than `most_bytes`."""
    try:
        if not path.is_file():  # false of pipes and devices too
            raise BadInput(f"{path.name} is no ordinary file", where=str(path), fix=fix)
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise BadInput(f"{path.name} cannot be read: {error.strerror or error}", where=str(path), fix=fix) from None
    if len(data) > most_bytes:
        raise BadInput(f"{path.name} is longer than {most_bytes:,} bytes", where=str(path), fix=fix)
    return data


def parsed(data: bytes, where: str, fix: str = AGAIN) -> Any:
    """The value of JSON text in UTF-8."""
    name = Path(where).name
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_once)
        _look_into(value)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits are ValueErrors too
        words = "it is nested too deeply" if isinstance(error, RecursionError) else shown(str(error), 200)
        raise BadInput(f"{name} cannot be read: {words}", where=where, fix=fix) from None
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} stands there twice")
    return found


def _look_into(value: Any) -> None:
    """Raise ValueError for half characters and for what is nested deeper than any reader needs; no recursion, as depth is the point."""
    level = [value]
    for _ in range(MOST_DEPTH):
        texts = [item for item in level if isinstance(item, str)]
        texts += [key for item in level if isinstance(item, dict) for key in item]
        try:
            "".join(texts).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("it holds half a character (a lone surrogate)") from None
        inner = [list(item.values()) if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [item for items in inner for item in items]
        if not level:
            return
    raise ValueError("it is nested too deeply")


def shown(text: str, most: int = SHOWN) -> str:
    """A foreign text fit for a message: one line, no control or direction characters, not long."""
    kept = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[: most + 1])
    return kept if len(kept) <= most else kept[:most] + "…"
