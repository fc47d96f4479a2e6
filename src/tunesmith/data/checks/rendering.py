"""What the renderer makes of every row, and what it refuses: the lengths, and the errors that training would stop at.

    seen = render_all(conversations, renderer, max_length=512)
    seen.tokens[417], seen.trained_tokens[417]       # of the longest example that row 418 becomes
    findings(seen, sources, config, max_length)      # too long, cut answers, stop token missing, double BOS, template …

The renderer itself compares the training prefix with the serving prefix, and the mask by a second method (data/template.py); a row
in which they disagree is refused there. Here every row is rendered, so that all such rows are known before the first step.
"""

from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tunesmith.config import DataConfig
from tunesmith.data.checks.finding import MOST_SEEN, Finding, Hit, Hits, Severity, around, found
from tunesmith.data.conversation import Conversation
from tunesmith.data.template import Example, Renderer
from tunesmith.errors import BadInput

Counts: TypeAlias = NDArray[np.int32]  # one for each row

GIANT_CHARACTERS = 1_000_000  # of a row that is too long in any case; tokenising it would cost gigabytes


@dataclass
class Rendered:
    """What rendering showed, by the row's place; 0 tokens where a row could not be rendered.

    tokens           of the longest example that the row becomes
    trained_tokens   of these, what is learned: the answers and their stop tokens
    refused          what and fix of the error → the rows
    """

    tokens: Counts
    trained_tokens: Counts
    cut: Counts  # tokens of its answer that the limit cuts off; -1: it fits
    cut_whole: Counts  # tokens of a prompt that leaves no room for the answer; -1: it leaves some
    giants: Counts  # characters; -1: no giant
    refused: dict[tuple[str, str], "Refused"] = field(default_factory=dict)
    no_stop: "array[int]" = field(default_factory=lambda: array("q"))
    double_bos: "array[int]" = field(default_factory=lambda: array("q"))
    never_trained: "array[int]" = field(default_factory=lambda: array("q"))


@dataclass
class Refused:
    """Rows that cannot be rendered for one reason, and what is to be said of the first of them."""

    rows: "array[int]" = field(default_factory=lambda: array("q"))
    details: list[str] = field(default_factory=list)


def nothing_rendered(n_rows: int) -> Rendered:
    tokens, trained, cut, cut_whole, giants = (np.full(n_rows, n, np.int32) for n in (0, 0, -1, -1, -1))
    return Rendered(tokens, trained, cut, cut_whole, giants)


def render_all(
    conversations: Sequence[Conversation], renderer: Renderer, max_length: int, on_progress: Callable[[int], None] | None = None
) -> Rendered:
    """Render every row; on_progress is told how many are done."""
    seen = nothing_rendered(len(conversations))
    taken: deque[tuple[int, bool]] = deque()  # rows that the renderer has and did not give back, and whether they are raw text

    def usual() -> Iterator[Conversation]:
        for n, conversation in enumerate(conversations):
            if _is_giant(conversation, renderer, max_length):
                seen.giants[n] = _n_characters(conversation)
            else:
                taken.append((n, conversation.is_text))
                yield conversation

    for result in renderer.attempt_many(usual()):
        n, is_text = taken.popleft()
        if isinstance(result, BadInput):
            _refuse(seen, n, result)
        else:
            for example in result:
                _look_at(seen, n, example, is_text, renderer, max_length)
        if on_progress is not None and n % 512 == 0:
            on_progress(n)
    return seen


def _refuse(seen: Rendered, n: int, error: BadInput) -> None:
    what = _without_details(error.what)
    refused = seen.refused.setdefault((what, error.fix), Refused())
    refused.rows.append(n)
    if len(refused.details) < MOST_SEEN:
        refused.details.append(error.what if what != error.what else error.where.partition(": ")[2])


def _n_characters(conversation: Conversation) -> int:
    return sum(len(message.content) for message in conversation.messages)


def _is_giant(conversation: Conversation, renderer: Renderer, max_length: int) -> bool:
    many = not conversation.is_text and _n_characters(conversation) > GIANT_CHARACTERS
    return many and renderer.least_tokens(conversation) > max_length


def _look_at(seen: Rendered, n: int, example: Example, is_text: bool, renderer: Renderer, max_length: int) -> None:
    """What one example of row n shows."""
    places = np.flatnonzero(example.trained[1:]) + 1
    first = int(places[0]) if len(places) else len(example)
    if len(example) > seen.tokens[n]:
        seen.tokens[n], seen.trained_tokens[n] = len(example), len(places)
    if not len(places):
        seen.never_trained.append(n)
        return
    bos = renderer.tokenizer.bos_token_id
    if int(example.ids[places[-1]]) not in renderer.stop_ids:
        seen.no_stop.append(n)
    if bos is not None and bos not in renderer.stop_ids and int((example.ids == bos).sum()) > 1:
        seen.double_bos.append(n)
    if len(example) > max_length and not is_text:  # texts are cut into windows, and nothing is lost
        if first >= max_length:
            seen.cut_whole[n] = first
        else:
            seen.cut[n] = int((places >= max_length).sum())


def findings(seen: Rendered, sources: Sequence[str], trained_on: Sequence[bool], config: DataConfig, max_length: int) -> list[Finding]:
    """What the rows' tokens show; the policy for long rows (data.on_too_long) decides how bad those are.

    trained_on   False for test rows: those are answered whatever their length, as far as the model can read their prompt
    """
    policy = config.on_too_long
    is_trained_on = np.fromiter(trained_on, bool, len(trained_on))
    cut, whole = (np.flatnonzero((rows >= 0) & is_trained_on).tolist() for rows in (seen.cut, seen.cut_whole))
    long_tests = np.flatnonzero((seen.cut_whole >= 0) & ~is_trained_on).tolist()
    severity: Severity = "error" if policy == "error" else "warning"
    longest = int(seen.tokens.max(initial=0))
    what_then = {
        "error": "training would stop here",
        "drop": "they are left out (data.on_too_long: drop)",
        "truncate": "the answer is cut off there",
    }[policy]
    remedy = f"training.max_length: {longest}" + ('; or data.on_too_long: "drop" or "truncate"' if policy == "error" else "")

    def hits(rows: Sequence[int], words: Callable[[int], str] = lambda n: "") -> Iterator[Hit]:
        return ((sources[n], words(n)) for n in sorted(set(rows)))

    result: list[Finding] = []
    for (what, fix), refused in seen.refused.items():
        told = zip_longest(map(sources.__getitem__, refused.rows), refused.details, fillvalue="")
        result += found(_refusal_kind(what), "error", told, what, fix)
    return [
        *result,
        *found(
            "answer-cut",
            severity,
            hits(cut, lambda n: f"{seen.tokens[n]:,} tokens; {seen.cut[n]:,} of the answer lie beyond {max_length}"),
            f"longer than training.max_length = {max_length}, so that the answer does not fit: {what_then}",
            remedy,
        ),
        *found(
            "prompt-too-long",
            "error" if policy == "truncate" else severity,
            hits(whole, lambda n: f"the prompt alone has {seen.cut_whole[n]:,} tokens"),
            f"the prompt is longer than training.max_length = {max_length}: no token of the answer would be trained",
            remedy if policy != "truncate" else f'training.max_length: {longest}, or data.on_too_long: "drop"',
        ),
        *found(
            "test-prompt-too-long",
            "warning",
            hits(long_tests, lambda n: f"the prompt alone has {seen.cut_whole[n]:,} tokens"),
            f"the prompt of a test row is longer than the {max_length} tokens that training examples may have: nothing like it is learned",
            "look at them; training.max_length",
        ),
        *found(
            "giant-row",
            severity,
            hits(np.flatnonzero(seen.giants >= 0).tolist(), lambda n: f"{seen.giants[n]:,} characters"),
            f"far longer than training.max_length = {max_length}: {what_then}",
            'look at the row: often many rows in one; data.on_too_long: "drop" or "truncate" lets the others train',
        ),
        *found(
            "no-trained-token",
            "error",
            hits(seen.never_trained),
            "no token of this example would be trained",
            "it has no answer with weight 1",
        ),
        *found(
            "no-stop-token",
            "error",
            hits(seen.no_stop),
            "the answer does not end in a trained stop token: the model would never learn to stop",
            "repair the chat template, or use data.template: plain",
        ),
        *found(
            "double-bos",
            "error",
            hits(seen.double_bos),
            "more than one BOS token, as serving never has it",
            "the chat template writes BOS twice: repair it",
        ),
    ]


def _without_details(what: str) -> str:
    """The sentence without what differs from row to row, so that rows of one kind come together."""
    head, colon, _ = what.partition(": ")
    return head if colon and head.startswith("the chat template refuses") else what


def _refusal_kind(what: str) -> str:
    kinds = (
        ("drops or changes", "mask-disagrees"),
        ("more than one BOS", "double-bos"),
        ("does not begin a conversation", "prefix-differs"),
        ("control", "control-token-text"),
        ("private-use", "control-token-text"),
        ("template refuses", "template-refuses"),
        ("embeddings", "unknown-token-id"),
        ("without a chat template", "not-one-turn"),
    )
    return next((kind for words, kind in kinds if words in what), "not-rendered")


def control_token_text(conversations: Sequence[Conversation], contents: Sequence[str], renderer: Renderer) -> list[Finding]:
    """The text of the model's own control tokens inside messages: kept as ordinary text here, real turns in most other tools.

    contents   what all messages of each row say (`Table.contents`)
    """
    control = [str(renderer.tokenizer.convert_ids_to_tokens(i)) for i in renderer.special_ids]
    signs = {text[0] for text in control if text}
    hits = Hits()
    for n, all_messages in enumerate(contents):
        if not any(sign in all_messages for sign in signs):
            continue
        conversation = conversations[n]
        for message in conversation.messages:
            content = message.content
            if any(sign in content for sign in signs) and renderer.control.written_in(content):
                at, token = min(((content.find(text), text) for text in control if text in content), default=(0, ""))
                hits.append((conversation.source, f"{message.role}: {around(content, at, at + len(token))}"))
                break
    return found(
        "control-token-text",
        "warning",
        hits,
        "text of the model's own control tokens inside a message: here it stays text, but other tools make real turns of it",
        "remove it, unless it is what the row is about",
    )
