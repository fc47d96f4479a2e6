"""What the renderer makes of every row, and what it refuses: the lengths, and the errors that training would stop at.

    seen = render_all(conversations, renderer, max_length=512)
    seen.tokens[417], seen.trained_tokens[417]       # of the longest example that row 418 becomes
    findings(seen, sources, config, max_length)      # too long, cut answers, stop token missing, double BOS, template …

The renderer itself compares the training prefix with the serving prefix, and the mask by a second method (data/template.py); a row
in which they disagree is refused there. Here every row is rendered, so that all such rows are known before the first step.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tunesmith.config import DataConfig
from tunesmith.data.checks.finding import Finding, Hit, Severity, around, found
from tunesmith.data.conversation import Conversation
from tunesmith.data.template import Example, Renderer
from tunesmith.errors import BadInput

GIANT_CHARACTERS = 1_000_000  # of a row that is too long in any case; tokenising it would cost gigabytes


@dataclass
class Rendered:
    """What rendering showed, by the row's place; 0 tokens where a row could not be rendered.

    tokens           of the longest example that the row becomes
    trained_tokens   of these, what is learned: the answers and their stop tokens
    refused          row → what, where and fix of the error
    """

    tokens: list[int] = field(default_factory=list)
    trained_tokens: list[int] = field(default_factory=list)
    refused: dict[int, tuple[str, str, str]] = field(default_factory=dict)
    no_stop: list[int] = field(default_factory=list)
    double_bos: list[int] = field(default_factory=list)
    never_trained: list[int] = field(default_factory=list)
    cut: dict[int, int] = field(default_factory=dict)  # row → tokens of its answer that the limit cuts off
    cut_whole: dict[int, int] = field(default_factory=dict)  # row → tokens of a prompt that leaves no room for the answer
    giants: dict[int, int] = field(default_factory=dict)  # row → characters


def render_all(
    conversations: Sequence[Conversation], renderer: Renderer, max_length: int, on_progress: Callable[[int], None] | None = None
) -> Rendered:
    """Render every row; on_progress is told how many are done."""
    n_rows = len(conversations)
    seen = Rendered([0] * n_rows, [0] * n_rows)
    giants = {n for n, conversation in enumerate(conversations) if _is_giant(conversation, renderer, max_length)}
    seen.giants = {n: _n_characters(conversations[n]) for n in giants}
    usual = [n for n in range(n_rows) if n not in giants]
    results = renderer.attempt_many(conversations[n] for n in usual)
    for done, (n, result) in enumerate(zip(usual, results, strict=True)):
        if isinstance(result, BadInput):
            seen.refused[n] = (result.what, result.where, result.fix)
        else:
            for example in result:
                _look_at(seen, n, example, conversations[n].is_text, renderer, max_length)
        if on_progress is not None and done % 512 == 0:
            on_progress(done)
    return seen


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
    cut, whole = ([n for n in rows if trained_on[n]] for rows in (seen.cut, seen.cut_whole))
    long_tests = [n for n in seen.cut_whole if not trained_on[n]]
    severity: Severity = "error" if policy == "error" else "warning"
    longest = max(seen.tokens, default=0)
    what_then = {
        "error": "training would stop here",
        "drop": "they are left out (data.on_too_long: drop)",
        "truncate": "the answer is cut off there",
    }[policy]
    remedy = f"training.max_length: {longest}" + ('; or data.on_too_long: "drop" or "truncate"' if policy == "error" else "")

    def hits(rows: Sequence[int], words: Callable[[int], str] = lambda n: "") -> list[Hit]:
        return [(sources[n], words(n)) for n in sorted(set(rows))]

    by_problem: defaultdict[tuple[str, str], list[Hit]] = defaultdict(list)
    for n, (what, where, fix) in sorted(seen.refused.items()):
        by_problem[(_without_details(what), fix)].append((sources[n], what if _without_details(what) != what else where.partition(": ")[2]))
    result: list[Finding] = []
    for (what, fix), refused_hits in by_problem.items():
        result += found(_refusal_kind(what), "error", refused_hits, what, fix)
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
            hits(list(seen.giants), lambda n: f"{seen.giants[n]:,} characters"),
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


def control_token_text(conversations: Sequence[Conversation], renderer: Renderer) -> list[Finding]:
    """The text of the model's own control tokens inside messages: kept as ordinary text here, real turns in most other tools."""
    control = [str(renderer.tokenizer.convert_ids_to_tokens(i)) for i in renderer.special_ids]
    signs = {text[0] for text in control if text}
    hits: list[Hit] = []
    for conversation in conversations:
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
