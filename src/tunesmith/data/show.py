"""Rows as the model sees them: every token, whether it is learned, and what the length limit does to it.

    rows = [Row("train", conversation) for conversation in conversations]
    [row] = at_lines(rows, skipped, ["418"])                     # also "train.jsonl:418"
    rows = holding(rows, "free entry")
    picked = worst(rows, renderer, 512, n=3)                     # {row: "longest: 640 tokens", …}
    for seen in look(row, renderer, max_length=512, policy="error"):
        seen.source, seen.remark, [(token.text, token.trained, token.cut) for token in seen.tokens]

What is painted from this: paint.py on the terminal, show_page.py as a page.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tunesmith.data.conversation import Conversation
from tunesmith.data.formats import BadRow
from tunesmith.data.packing import Row as PackedRow
from tunesmith.data.template import Example, Renderer
from tunesmith.errors import BadInput, nearest
from tunesmith.progress import counted

CUT = {
    "error": "training would stop at it (data.on_too_long: error)",
    "drop": "it is left out (data.on_too_long: drop)",
    "truncate": "the rest is cut off (data.on_too_long: truncate)",
}


@dataclass(frozen=True)
class Row:
    """A row and the part that it belongs to: train, validation or test."""

    part: str
    conversation: Conversation

    @property
    def source(self) -> str:
        return self.conversation.source


@dataclass(frozen=True)
class Token:
    """id and the text it adds; control: no text can make it; cut: beyond the length limit; document: which one of a packed row."""

    id: int
    text: str
    trained: bool
    control: bool
    cut: bool = False
    document: int = 0


@dataclass(frozen=True)
class Seen:
    """An example to paint.

    remark    what there is to say of it
    sources   of its examples, more than one in a packed row
    borders   of a packed row: what is said where each document begins, by the document's number
    """

    title: str
    remark: str
    tokens: list[Token]
    sources: tuple[str, ...]
    borders: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        return self.sources[0]

    @property
    def n_trained(self) -> int:
        """Tokens that the loss counts: the first of a row is never predicted."""
        return sum(token.trained for before, token in zip(self.tokens, self.tokens[1:], strict=False) if before.document == token.document)

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)


# --- which rows -------------------------------------------------------------------------------------------------------------


def at_lines(rows: Sequence[Row], skipped: Sequence[BadRow], wanted: Sequence[str]) -> list[Row]:
    """The rows that start at these lines: "418" of the first file that has such a line, or "train.jsonl:418"."""
    by_source: dict[str, Row] = {}
    by_line: dict[int, Row] = {}
    for row in rows:
        by_source.setdefault(row.source, row)
        by_line.setdefault(_line(row.source), row)
    found = []
    for text in wanted:
        start = by_source.get(text) or (by_line.get(int(text)) if text.isdecimal() else None)
        if start is None:
            bad = next((one for one in skipped if text in (one.source, str(_line(one.source)))), None)
            if bad is not None:
                raise BadInput(bad.problem, where=bad.source, fix="repair the row; nothing is trained on it")
            raise BadInput("no row starts at this line", where=f"--row {text}", fix=_nearest_lines(list(by_source), text))
        found.append(start)
    return found


def _line(source: str) -> int:
    line = source.rpartition(":")[2]
    return int(line) if line.isdecimal() else 0


def _nearest_lines(sources: Sequence[str], wanted: str) -> str:
    """The rows around the line that was asked for, of the file that was asked for."""
    file, _, number = wanted.rpartition(":")
    files = list(dict.fromkeys(source.rpartition(":")[0] for source in sources))
    if file and file not in files:
        return f'no file is called "{file}"; {nearest(file, files)}'
    if not number.isdecimal():
        return "--row LINE, or FILE:LINE"
    lines = sorted({_line(source) for source in sources if not file or source.rpartition(":")[0] == file})
    at = bisect_right(lines, int(number))
    near = [f"{file}:{lines[i]}" if file else str(lines[i]) for i in (at - 1, at) if 0 <= i < len(lines)]
    return f"--row {' or '.join(near)}: lines where rows start"


def holding(rows: Sequence[Row], text: str) -> list[Row]:
    """Rows in which a text stands, small and capital letters alike: in a turn, a thought, or a call."""
    wanted = text.casefold()
    return [row for row in rows if wanted in _whole_text(row.conversation).casefold()]


def _whole_text(conversation: Conversation) -> str:
    parts: list[str] = []
    for message in conversation.messages:
        parts += [message.thinking or "", message.content, *(f"{call.name} {call.arguments}" for call in message.tool_calls)]
    return "\n".join(parts)


def worst(
    rows: Sequence[Row], renderer: Renderer, max_length: int, n: int, on_progress: Callable[[int], None] | None = None
) -> dict[int, str]:
    """Index of each of the `n` worst rows of every kind → why it is shown: those that cannot be rendered first, then the longest,
    those in most tokens for each word, those with the fewest learned tokens, and those that the length limit cuts off most of.
    """
    refused: dict[int, str] = {}
    measured: list[tuple[int, int, float, int, int]] = []
    for i, result in enumerate(renderer.attempt_many(row.conversation for row in rows)):
        if on_progress is not None and i % 256 == 0:
            on_progress(i)
        if isinstance(result, BadInput):
            refused[i] = f"refused: {result.what}"
            continue
        n_words = max(1, len(_whole_text(rows[i].conversation).split()))
        n_tokens = sum(len(example) for example in result)
        n_cut = 0 if rows[i].conversation.is_text else sum(int(example.trained[max_length:].sum()) for example in result)
        n_trained = sum(int(example.trained[1:].sum()) for example in result)
        measured.append((i, max(map(len, result), default=0), n_tokens / n_words, n_trained, n_cut))
    few = 0.5 * median([m[3] for m in measured]) if measured else 0.0  # where most answers are one word, none is odd
    kinds: tuple[tuple[Callable[[tuple[int, int, float, int, int]], float], Callable[[tuple[int, int, float, int, int]], str]], ...] = (
        (lambda m: -m[4], lambda m: f"cut: {m[4]:,} learned tokens lie beyond the limit" if m[4] else ""),
        (lambda m: -m[1], lambda m: f"longest: {m[1]:,} tokens"),
        (lambda m: -m[2], lambda m: f"most tokens for a word: {m[2]:.1f}"),
        (lambda m: m[3], lambda m: f"fewest learned tokens: {m[3]:,}" if m[3] <= few else ""),
    )
    found: dict[int, str] = dict(list(refused.items())[:n])
    for order, words in kinds:
        for one in sorted(measured, key=order)[:n]:
            if reason := words(one):
                found[one[0]] = f"{found[one[0]]}; {reason}" if one[0] in found else reason
    return found


# --- what they become -------------------------------------------------------------------------------------------------------


def look(row: Row, renderer: Renderer, max_length: int, policy: str, why: str = "") -> list[Seen]:
    """The examples of a row; a long raw text is painted as its first window."""
    examples = renderer.render(row.conversation)
    seen = []
    for number, example in enumerate(examples, 1):
        title = (
            f"{row.source}"
            + (f" ({row.part})" if row.part != "train" else "")
            + (f", answer {number} of {len(examples)}" if len(examples) > 1 else "")
        )
        too_long = len(example) > max_length
        if row.conversation.is_text and too_long:
            n_windows = -(-(len(example) - 1) // (max_length - 1))
            shown = Example(example.ids[:max_length], example.trained[:max_length], example.source)
            remark = f"a text of {len(example):,} tokens, cut into {n_windows:,} windows of at most {max_length:,}; the first"
            seen.append(Seen(title, _joined(remark, why), tokens_of(shown, renderer), (row.source,)))
            continue
        remark = f"longer than training.max_length = {max_length:,}: {CUT[policy]}" if too_long else ""
        seen.append(Seen(title, _joined(remark, why), tokens_of(example, renderer, max_length), (row.source,)))
    return seen


def look_packed(row: PackedRow, renderer: Renderer, title: str) -> Seen:
    """A packed row with the borders of its documents; what several begin with is one of its own."""
    texts = _texts(row.ids.tolist(), renderer)
    branches, sources = Counter(row.parent.tolist()), iter(row.sources)
    names = [f"what the next {branches[i]} begin with" if i in branches else next(sources) for i in range(len(row.parent))]
    n_shared = len(names) - len(row.sources)
    more = f", but what they begin with, which stands there once ({counted(n_shared, 'beginning')})" if n_shared else ""
    tokens = [
        Token(token, text, bool(trained), token in renderer.control.ids, document=int(document))
        for token, text, trained, document in zip(row.ids.tolist(), texts, row.trained, row.document, strict=True)
    ]
    return Seen(title, f"{counted(len(row.sources), 'document')}; none sees another{more}", tokens, row.sources, tuple(names))


def tokens_of(example: Example, renderer: Renderer, max_length: int | None = None) -> list[Token]:
    ids = example.ids.tolist()
    return [
        Token(token, text, bool(trained), token in renderer.control.ids, max_length is not None and i >= max_length)
        for i, (token, text, trained) in enumerate(zip(ids, _texts(ids, renderer), example.trained, strict=True))
    ]


def _texts(ids: Sequence[int], renderer: Renderer) -> list[str]:
    """What each token adds to the text; of a character that several tokens make, the last one adds it.

    Alone a token may read otherwise: a SentencePiece word loses its space, a byte is half a character.
    """

    def decode(start: int, stop: int) -> str:
        return str(renderer.tokenizer.decode(list(ids[start:stop]), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    texts: list[str] = []
    start = told = 0  # the text of ids[start:told] is told already
    for i in range(len(ids)):
        before, now = decode(start, told), decode(start, i + 1)
        if now.endswith("\ufffd") and i + 1 < len(ids) and i - told < 8:
            texts.append("")
            continue
        texts.append(now[len(before) :])
        start, told = told, i + 1
    return texts


def _joined(*sentences: str) -> str:
    return "; ".join(sentence for sentence in sentences if sentence)


def facts(seen: Seen) -> Mapping[str, int]:
    """Counts of a painted example, for a program and for the line above it."""
    return {"tokens": len(seen.tokens), "trained": seen.n_trained, "cut": sum(token.cut for token in seen.tokens)}
