"""Answers that should be JSON: whether they are, and whether they are as the given JSON Schema has it (draft 2020-12).

    not_json(table)                                 # rows whose answer cannot be parsed, where most can
    schema = load_schema(Path("schema.json"))
    breaks_schema(table, schema)                    # "slots: 'city2' was unexpected", by line

A model that is taught one broken answer in a hundred writes one in a hundred. Of JSON that any parser takes, two things are still wrong
here: a key given twice, of which every reader keeps another one, and NaN or Infinity, which Python writes and JSON does not have.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from tunesmith.data.checks.finding import Finding, Hits, found, share
from tunesmith.data.checks.table import Table
from tunesmith.data.readers import clip, type_name
from tunesmith.errors import BadInput

MOST_ARE_JSON, LEAST_ROWS = 0.8, 5


@dataclass(frozen=True)
class Schema:
    """A JSON Schema that is one, and the validator that its "$schema" names (2020-12 without it). unknown: its words that ask nothing."""

    path: Path
    validator: Any
    unknown: tuple[str, ...] = ()


def load_schema(path: Path) -> Schema:
    """Raises BadInput for a file that is no JSON Schema. References are resolved within it: nothing is fetched."""
    import jsonschema
    from jsonschema_specifications import REGISTRY

    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise BadInput(
            f"the JSON Schema cannot be read: {why}", where=str(path), fix="data.answer_schema: a file that holds a JSON Schema"
        ) from None
    if not isinstance(document, dict | bool):
        raise BadInput(f"a JSON Schema is an object, this is {type_name(document)}", where=str(path), fix="see json-schema.org")
    kind = jsonschema.validators.validator_for(document, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(document)
    except jsonschema.SchemaError as error:
        where = "/".join(map(str, error.path)) or "its top"
        raise BadInput(
            f"this is not a JSON Schema: {clip(error.message, 160)}", where=f"{path}: {where}", fix="see json-schema.org"
        ) from None
    known: frozenset[str] = _OTHER_KEYWORDS | frozenset(kind.VALIDATORS)
    unknown = _unknown_keywords(document, known)
    if isinstance(document, dict) and not set(document) & (known - _SAY_NOTHING):
        what = (
            f'no word of JSON Schema is in it: "{clip(next(iter(document)))}" is none'
            if document
            else "it is empty, so that any answer passes"
        )
        raise BadInput(f"this is not a JSON Schema: {what}", where=str(path), fix='{"type": "object", "properties": {…}, "required": […]}')
    for word in unknown:
        if close := get_close_matches(word, known, n=1, cutoff=0.8):
            raise BadInput(
                f'the JSON Schema has "{clip(word)}", which is no word of it', where=str(path), fix=f'did you mean "{close[0]}"?'
            )
    return Schema(path, kind(document, registry=REGISTRY), unknown)


# Beside what a validator looks at: what belongs to another word or tells something to the reader, in any draft.
_SAY_NOTHING = frozenset(
    "$schema $id id $comment $anchor $dynamicAnchor $recursiveAnchor $vocabulary title description default examples".split()
)
_OTHER_KEYWORDS = _SAY_NOTHING | frozenset(
    "$defs definitions if then else minContains maxContains format contentMediaType contentEncoding contentSchema deprecated readOnly "
    "writeOnly additionalItems dependencies unevaluatedItems unevaluatedProperties items nullable discriminator example".split()
)
_SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SCHEMAS = (
    "allOf anyOf oneOf prefixItems items additionalProperties additionalItems not if then else contains propertyNames "
    "unevaluatedItems unevaluatedProperties contentSchema"
).split()


def _unknown_keywords(schema: Any, known: frozenset[str]) -> tuple[str, ...]:
    """Words of a schema and of those within it that are no keywords, each once; "x-…" is anyone's own."""
    found: dict[str, None] = {}
    stack = [schema]
    while stack:
        one = stack.pop()
        if isinstance(one, list):
            stack += one
        elif isinstance(one, dict):
            found |= dict.fromkeys(word for word in one if word not in known and not word.startswith("x-"))
            stack += [inner for key in _SCHEMAS_BY_NAME if isinstance(one.get(key), dict) for inner in one[key].values()]
            stack += [one[key] for key in _SCHEMAS if key in one]
    return tuple(found)


class _NotJson(Exception):
    """The text is not JSON as RFC 8259 has it; the message says why."""


def _parse(text: str) -> tuple[Any, str]:
    """The value, and a key that is given twice ("" if none). Raises _NotJson."""
    twice: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            twice.append(next(key for key, n in Counter(key for key, _ in items).items() if n > 1))
        return found

    def constant(name: str) -> None:
        raise _NotJson(f"{name} is not a value that JSON has")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant), (twice or [""])[0]
    except json.JSONDecodeError as error:
        raise _NotJson(f"{error.msg} at column {error.pos + 1:,}: {clip(text[max(0, error.pos - 15) : error.pos + 15], 40)!r}") from None
    except (ValueError, RecursionError) as error:
        raise _NotJson(clip(str(error), 60)) from None


def are_json(table: Table) -> bool:
    """Whether most answers are JSON objects or lists; a number or a word is JSON too, but nobody means it."""
    if table.is_text:
        return False
    n_answers = sum(bool(a.strip()) for a in table.answers)
    if n_answers < LEAST_ROWS or sum(map(_looks_like_json, table.answers)) < MOST_ARE_JSON * n_answers:
        return False
    return sum(_looks_like_json(a) and _is_json(a) for a in table.answers) >= MOST_ARE_JSON * n_answers


def _looks_like_json(answer: str) -> bool:
    return answer.strip()[:1] in ("{", "[") or "```json" in answer


def _is_json(text: str) -> bool:
    try:
        _parse(text)
    except _NotJson:
        return False
    return True


def not_json(table: Table) -> list[Finding]:
    """Rows whose answer is no JSON, or gives a key twice; only where most answers are JSON."""
    if not are_json(table):
        return []
    broken, repeated, other = Hits(), Hits(), Hits()
    kinds = Counter(type(_parse(a)[0]).__name__ for a in table.answers if _is_json(a))
    for source, answer in zip(table.sources, table.answers):
        try:
            value, twice = _parse(answer)
        except _NotJson as error:
            broken.append((source, str(error)))
            continue
        if twice:
            repeated.append((source, f'"{twice}" is given twice'))
        if kinds[type(value).__name__] < 0.1 * len(table):
            other.append((source, clip(answer, 60)))
    n_valid = len(table) - len(broken)
    return [
        *found(
            "not-json",
            "warning",
            broken,
            f"the answer is not JSON, where {share(n_valid, len(table))} are",
            "repair it: the model learns to write it so",
        ),
        *found(
            "repeated-key",
            "warning",
            repeated,
            "a key is given twice in the JSON of the answer: readers keep the last one, or the first, or refuse",
            "make it a list, or keep one",
        ),
        *found(
            "other-json-type",
            "warning",
            other,
            f"the answer is another JSON type than most ({kinds.most_common(1)[0][0]})",
            "give all answers one type",
        ),
    ]


def breaks_schema(table: Table, schema: Schema) -> list[Finding]:
    """Rows whose answer is no JSON or not as the schema says: errors, for the schema is the user's own rule."""
    from referencing.exceptions import Unresolvable

    @lru_cache(maxsize=1 << 14)
    def problem_of(answer: str) -> str:
        try:
            value, twice = _parse(answer)
        except _NotJson as error:
            return f"not JSON: {error}"
        problem = _told(schema.validator.iter_errors(value))
        if problem is not None:
            return f"{'.'.join(map(str, problem.absolute_path)) or 'the answer'}: {clip(problem.message, 70)}"
        return f'"{twice}" is given twice' if twice else ""

    try:
        hits = Hits((source, problem) for source, answer in zip(table.sources, table.answers) if (problem := problem_of(answer)))
    except Unresolvable as error:
        raise BadInput(
            f"the JSON Schema refers to something that is not in it: {error.ref}", where=str(schema.path), fix="put it under $defs"
        ) from None
    except RecursionError:
        raise BadInput("the JSON Schema refers to itself without end", where=str(schema.path), fix="see its $ref") from None
    return found(
        "breaks-schema", "error", hits, f"the answer is not what {schema.path.name} asks for", "repair these answers, or the schema"
    )


def asks_nothing(schema: Schema) -> list[Finding]:
    """Words of the schema that no answer is held against."""
    hits = [(str(schema.path), f'"{word}"') for word in schema.unknown]
    reason = "words of the schema that JSON Schema does not have: nothing is checked by them"
    return found("unknown-schema-word", "warning", hits, reason, "see json-schema.org for the word that was meant")


def _told(problems: Iterable[Any]) -> Any:
    """Of several problems the one to tell; of "fits none of these schemas" that of the one which was meant, if its constants tell."""
    from jsonschema.exceptions import best_match, relevance

    found = list(problems)
    problem = max(found, key=relevance, default=None)
    while problem is not None and problem.validator in ("oneOf", "anyOf") and problem.context:
        branches: defaultdict[int, list[Any]] = defaultdict(list)
        for inner in problem.context:
            branches[inner.schema_path[0]].append(inner)
        meant = [errors for errors in branches.values() if not any(map(_is_another_kind, errors))]
        if len(meant) != 1:
            return best_match(found)
        problem = max(meant[0], key=relevance)
    return problem


def _is_another_kind(error: Any) -> bool:
    """Whether a complaint says that the value was never meant for this schema: a constant is another one, or the whole is of another type."""
    return error.validator in ("const", "enum") or (error.validator == "type" and not error.path)
