"""From a conversation to token ids, and which of them are learned.

    renderer = Renderer(tokenizer)                     # the tokenizer's own chat template, or plain text without one
    [example] = renderer.render(conversation)          # ids, trained, source
    examples = renderer.render_many(conversations)     # the same for each, tokenised together: several times as fast
    prompt = renderer.prompt_ids(conversation.prompt, tools=conversation.tools)     # exactly the beginning of example.ids

Four promises, each the cure of a silent failure of other tools (docs/failures.md, rows 1, 2, 4 and 5):
one render through the template that serving uses, so the training prefix is the serving prefix; what is trained comes from
comparing the ids of message prefixes, and a second method, character offsets, must agree; every trained turn ends in a trained
stop token; text inside a message never becomes a control token (data/control.py). They hold for tool calls, their results and
definitions as for words: a call is part of the answer, a result is not, and what the template leaves out is an error.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tunesmith.data.control import CannotStayText, ControlTokens
from tunesmith.data.conversation import THINKING_MARKS, Conversation, Message, split_thinking
from tunesmith.errors import BadInput

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerFast

TOGETHER, TOGETHER_CHARACTERS = 256, 1_000_000  # conversations tokenised at once: more are no faster
LONGEST_TAIL = (
    100  # characters between the last control token of a prompt and its end whose ids are kept: "assistant\n", not a whole question
)
OWNERS = ("system", "assistant")  # whose words may hold marks that are no special tokens, as a system message that explains <tool_call>
TRIAL = "a trial conversation"


@dataclass(frozen=True, eq=False)
class Example:
    """ids int32 [T]; trained bool [T]: is token i learned; source "file:line".

    shared   tokens at its beginning that a packed row may take from its neighbours that begin with the same (data/packing.py)
    """

    ids: npt.NDArray[np.int32]
    trained: npt.NDArray[np.bool_]
    source: str
    shared: int = 0

    def __len__(self) -> int:
        return len(self.ids)


class Renderer:
    """The one place where messages become ids, in training, evaluation, generation and chat.

    mode       "chat": the tokenizer's template; "plain": text and a stop token; "auto": chat where there is a template
    eos_ids    further ids that end an answer (the model's generation config)
    n_ids      rows of the model's embedding: a tokenizer may know more tokens than its model
    thinking   what an answer begins with between <think> and </think>: "keep" trains it as part of the answer, "untrained" leaves it
               in the context only, "strip" leaves it out
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerFast", mode: str = "auto", eos_ids: Iterable[int] = (), n_ids: int | None = None, thinking: str = "keep"
    ) -> None:  # fmt: skip
        self.tokenizer = tokenizer
        self.n_ids = n_ids
        self.thinking = thinking
        template = tokenizer.chat_template
        if mode == "chat" and not template:
            raise BadInput("the tokenizer has no chat template", where="data.template: chat", fix="data.template: plain")
        self.mode = ("chat" if template else "plain") if mode == "auto" else mode
        self._source = "\n".join(template.values()) if isinstance(template, dict) else str(template or "")
        self.control = ControlTokens(tokenizer, self._source if self.mode == "chat" else "")
        self.special_ids = self.control.special_ids
        self._backend = tokenizer.backend_tokenizer
        self._forget_settings()
        self._tails: dict[str, list[int]] = {}
        stops = set(eos_ids)
        if tokenizer.eos_token_id is not None:
            stops.add(int(tokenizer.eos_token_id))
        self.end_of_turn: int | None = None  # what the template writes after an answer
        if self.mode == "chat":
            self.end_of_turn = self._probe_end_of_turn()
            stops |= {end for end in (self.end_of_turn, self._probe_end_of_calls()) if end is not None}
        if not stops:
            raise BadInput(
                "the tokenizer has no stop token: the model could never learn to stop",
                where="tokenizer_config.json",
                fix="give it an eos_token",
            )
        self.stop_ids = frozenset(stops)
        eos = tokenizer.eos_token_id
        self.stop_id = self.end_of_turn if self.end_of_turn is not None else int(eos) if eos is not None else min(stops)

    def describe(self) -> str:
        stop = self.tokenizer.convert_ids_to_tokens(self.stop_id)
        if self.mode == "chat":
            dated = ", which writes today's date into prompts" if "strftime_now" in self._source else ""
            return f"rendered with the tokenizer's chat template{dated}; an answer ends in {stop}"
        return f"rendered as plain text (prompt, answer); an answer ends in {stop}"

    def fingerprint(self) -> str:
        """Changes whenever the same conversation could give other ids; stored with the adapter, compared at every load."""
        self._forget_settings()
        parts = [
            self.mode,
            str(self.tokenizer.chat_template) if self.mode == "chat" else "",
            self._backend.to_str(),
            str(sorted(self.stop_ids)),
        ]
        return sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def least_tokens(self, conversation: Conversation) -> int:
        """A lower bound on the length, without tokenising: a row of 20 MB is refused before it costs gigabytes of offsets."""
        return sum(len(self._by_policy(message).content) for message in conversation.messages) // self._longest_token

    @cached_property
    def _longest_token(self) -> int:
        """Characters of the longest token; a token's own spelling is never shorter than the text it stands for."""
        return max(len(token) for token in self.tokenizer.get_vocab())

    def shortened(self, conversation: Conversation, n_tokens: int) -> Conversation:
        """The conversation with every message cut far behind the first `n_tokens` tokens, for rows that are truncated anyway."""
        most = (n_tokens + 1) * self._longest_token
        cut = (
            replace(m, content=m.content[:most], thinking=m.thinking[:most] if m.thinking else m.thinking) for m in conversation.messages
        )
        return replace(conversation, messages=tuple(cut))

    def prompt_ids(self, messages: Sequence[Message], source: str = "the prompt", tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """What the model is given before it answers: for the same messages and tools, a prefix of what `render` returns."""
        if self.mode == "plain":
            _must_be_words(messages, tools, source)
            return self._known([*self._begin, *self._one(self._words(_plain_prompt(messages), source)).ids], source)
        view = self._view(self._turns(messages, tools, source), None, True, source)
        return self._known(self._one(view).ids, source)

    # --- whole conversations ------------------------------------------------------------------------------------------

    def render(self, conversation: Conversation) -> list[Example]:
        """One example; or one for each trained turn where the template rewrites earlier turns (Qwen3 drops earlier thinking)."""
        return self.render_many([conversation])[0]

    def render_many(self, conversations: Sequence[Conversation]) -> list[list[Example]]:
        """The examples of each conversation; raises what the first one that cannot be rendered raises."""
        found = []
        for result in self.attempt_many(conversations):
            if isinstance(result, BadInput):
                raise result
            found.append(result)
        return found

    def attempt_many(self, conversations: Iterable[Conversation]) -> Iterator[list[Example] | BadInput]:
        """For each conversation, in order, its examples or why there are none."""
        together: list[Conversation] = []
        n_characters = 0
        for conversation in conversations:
            together.append(conversation)
            n_characters += sum(len(message.content) for message in conversation.messages)
            if len(together) == TOGETHER or n_characters > TOGETHER_CHARACTERS:
                yield from self._attempt(together)
                together, n_characters = [], 0
        yield from self._attempt(together)

    def _attempt(self, conversations: Sequence[Conversation]) -> list[list[Example] | BadInput]:
        views: list[list[_View] | BadInput] = []
        for conversation in conversations:
            try:
                views.append(self._views(conversation))
            except BadInput as error:
                views.append(error)
        n_encoded = 2 if self.mode == "plain" else 1
        encoded = iter(self._encoded([view for row in views if isinstance(row, list) for view in row[:n_encoded]]))
        found: list[list[Example] | BadInput] = []
        for conversation, row in zip(conversations, views, strict=True):
            if isinstance(row, BadInput):
                found.append(row)
                continue
            rendered = [next(encoded) for _ in row[:n_encoded]]
            try:
                found.append(self._examples(conversation, row, [_good(one) for one in rendered]))
            except BadInput as error:
                found.append(error)
        return found

    def _views(self, conversation: Conversation) -> list["_View"]:
        """The texts that the ids and what is trained follow from: in chat the whole, then its beginnings as `_chat` takes them."""
        messages, source = conversation.messages, conversation.source
        if conversation.is_text:
            return [self._words(messages[0].content, source)]
        if self.mode == "plain":
            return self._plain_views(conversation)
        turns = self._turns(messages, conversation.tools, source)
        views = [self._view(turns, None, False, source)]
        for i, message in enumerate(messages):
            if message.trained:
                views.append(self._view(turns, i, True, source))
                if i < len(messages) - 1:
                    views.append(self._view(turns, i + 1, False, source))
        return views

    def _examples(self, conversation: Conversation, views: Sequence["_View"], rendered: Sequence["_Rendered"]) -> list[Example]:
        if conversation.is_text:
            return [self._words_example([], rendered[0].ids, 0, conversation.source)]
        if self.mode == "plain":
            return [self._plain(conversation, *rendered)]
        example = self._chat(conversation, rendered[0], views[1:])
        return [example] if example is not None else [self._last_answer(one) for one in _one_per_answer(conversation)]

    def _last_answer(self, conversation: Conversation) -> Example:
        whole, *beginnings = self._views(conversation)
        example = self._chat(conversation, self._one(whole), beginnings)
        if example is None:
            has_system = any(message.role == "system" for message in conversation.messages)
            other = "put the system message into the first question, or use" if has_system else "use"
            raise BadInput(
                "the chat template does not begin a conversation as it begins the prompt of its last answer",
                where=conversation.source, fix=f"training and serving would differ; {other} another template or data.template: plain",
            )  # fmt: skip
        return example

    def _example(self, ids: Sequence[int], trained: npt.NDArray[np.bool_], source: str) -> Example:
        return Example(np.array(self._known(ids, source), dtype=np.int32), trained, source)

    def _known(self, ids: Sequence[int], source: str) -> list[int]:
        """The ids, if the model has an embedding for each: a tokenizer of another model may give more."""
        if self.n_ids is not None and max(ids, default=0) >= self.n_ids:
            beyond = max(ids)
            raise BadInput(
                f"the tokenizer gives {self.tokenizer.convert_ids_to_tokens(beyond)!r} the id {beyond}, and the model has {self.n_ids:,} embeddings",
                where=source, fix="use the tokenizer that belongs to the model",
            )  # fmt: skip
        return list(ids)

    # --- texts to ids -------------------------------------------------------------------------------------------------

    def _encoded(self, views: Sequence["_View"]) -> list["_Rendered | BadInput"]:
        """All texts tokenised: those without control-token text together, the others by the tokenizer that reads it as words."""
        self._forget_settings()
        ordinary = [view.text for view in views if not view.guarded]
        together: Iterator[Encoding] | None
        try:
            together = iter(self._backend.encode_batch(ordinary, add_special_tokens=False))
        except (TypeError, UnicodeError):  # half a character (a lone surrogate): whose, is seen one by one
            together = None
        found: list[_Rendered | BadInput] = []
        for view in views:
            encoding = next(together) if together is not None and not view.guarded else None
            try:
                rendered = self._checked(view, view.text, encoding) if encoding is not None else None
                # where normalisation makes control text of other text (＜s＞), only the careful way keeps it words
                rendered = rendered or self._checked(view, *self._encode(view)) or self._carefully(view)
                if rendered is None:
                    raise _not_words("a control token would come from other text", view.source)
                found.append(rendered)
            except BadInput as error:
                found.append(error)
        return found

    def _forget_settings(self) -> None:
        """Truncation and padding may be stored in tokenizer.json, and transformers leaves there what its last call was asked for."""
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = False

    def _checked(self, view: "_View", text: str, encoding: "Encoding") -> "_Rendered | None":
        """None if the control tokens are not those, and no more, that the template wrote: the last word, whatever led to it."""
        ids = encoding.ids
        written = self.control.written(text, view.guarded) if view.template_wrote else []
        positions = self.control.positions(ids)
        if [ids[i] for i in positions] != [self.control.id_of(one) for one in written]:
            return None
        return _Rendered(text, encoding, ids, view.guarded, written, positions)

    def _carefully(self, view: "_View") -> "_Rendered | None":
        if not view.template_wrote:
            return self._checked(view, *self.control.encode_words(view.text))
        return self._checked(replace(view, guarded=True), *self.control.encode(view.text, compare=False))

    def _encode(self, view: "_View") -> tuple[str, "Encoding"]:
        """One text on its own; returns it as it was encoded."""
        try:
            if not view.guarded:
                return view.text, self._backend.encode(view.text, add_special_tokens=False)
            return self.control.encode(view.text) if view.template_wrote else self.control.encode_words(view.text)
        except CannotStayText as error:
            raise _not_words(str(error), view.source) from None
        except (TypeError, UnicodeError):
            raise BadInput("a message holds half a character (a lone surrogate)", where=view.source, fix="remove it") from None

    def _beginning(self, whole: "_Rendered", view: "_View") -> list[int]:
        """The ids of a text that the template wrote, mostly a beginning of `whole`.

        Then only what follows its last control token is tokenised: what stands before one is tokenised as if nothing followed.
        """
        if view.guarded or whole.guarded or not whole.text.startswith(view.text):
            return self._one(view).ids
        written = self.control.written(view.text)
        n = len(written)
        if not n or written != whole.written[:n] or not self.control.cuts(written[-1]):
            return self._one(view).ids
        tail = view.text[view.text.rindex(written[-1]) :]
        if len(tail) > LONGEST_TAIL:
            return self._one(view).ids
        if tail not in self._tails:
            self._tails[tail] = self._one(_View(tail, True, False, view.source)).ids
        return whole.ids[: whole.positions[n - 1]] + self._tails[tail]

    def _one(self, view: "_View") -> "_Rendered":
        return _good(self._encoded([view])[0])

    # --- plain text ---------------------------------------------------------------------------------------------------

    @cached_property
    def _begin(self) -> list[int]:
        """BOS, where the tokenizer puts one before text."""
        ids = self.tokenizer("a")["input_ids"]
        bos = self.tokenizer.bos_token_id
        return [int(bos)] if bos is not None and ids and ids[0] == bos else []

    def _words(self, text: str, source: str) -> "_View":
        return _View(text, False, self.control.written_in(text), source)

    def _plain_views(self, conversation: Conversation) -> list["_View"]:
        *prompt, answer = map(self._by_policy, conversation.messages)
        source, roles = conversation.source, [message.role for message in conversation.messages]
        _must_be_words(conversation.messages, conversation.tools, source)
        if roles not in (["user", "assistant"], ["system", "user", "assistant"]) or not answer.trained:
            raise BadInput(
                f"without a chat template an example is one prompt and one answer, not {', '.join(roles)}",
                where=source, fix="use a model whose tokenizer has a chat template, or split the conversation",
            )  # fmt: skip
        return [self._words(_plain_prompt(prompt), source), self._words(_with_thinking(answer), source)]

    def _plain(self, conversation: Conversation, prompt: "_Rendered", answer: "_Rendered") -> Example:
        n_thought = 0
        if self.thinking == "untrained":
            thought, content = split_thinking(_with_thinking(conversation.messages[-1]))
            n_thought = answer.token_behind(len(answer.text) - len(content), 0) if thought is not None else 0
        return self._words_example(prompt.ids, answer.ids, n_thought, conversation.source)

    def _words_example(self, prompt: Sequence[int], answer: Sequence[int], n_thought: int, source: str) -> Example:
        ids = [*self._begin, *prompt, *answer, self.stop_id]
        trained = np.zeros(len(ids), dtype=np.bool_)
        trained[len(ids) - 1 - len(answer) + n_thought :] = True
        return self._example(ids, trained, source)

    # --- chat template ------------------------------------------------------------------------------------------------

    def _chat(self, conversation: Conversation, full: "_Rendered", beginnings: Sequence["_View"]) -> Example | None:
        """None if the template lacks the prefix property on this conversation."""
        messages, source = conversation.messages, conversation.source
        ids, others = full.ids, iter(beginnings)
        spans: list[tuple[Message, int, int]] = []
        for i, message in enumerate(messages):
            if not message.trained:
                continue
            prefix = self._beginning(full, next(others))
            upto = full.ids if i == len(messages) - 1 else self._beginning(full, next(others))
            if ids[: len(prefix)] != prefix or ids[: len(upto)] != upto:
                return None
            end = self._end_of_answer(ids, len(prefix), len(upto))
            if end is None and i == len(messages) - 1:
                ids = [*ids, self.stop_id]
                end = len(ids)
            if end is None:
                return None  # turns without an end: one example per turn, each closed by the stop token
            spans.append((message, len(prefix), end))
        text = full.text if not full.guarded else self.control.restored(full.text)
        self._nothing_left_out(conversation, text)
        trained = np.zeros(len(ids), dtype=np.bool_)
        for message, start, end in spans:
            first = self._after_thinking(full, start, message, source) if self.thinking == "untrained" else start
            trained[first:end] = True
            self._agree(full, first, min(end, len(full.ids)), message, source)
        bos = self.tokenizer.bos_token_id
        if bos is not None and bos not in self.stop_ids and ids.count(bos) > 1:
            raise BadInput(
                "the rendered example has more than one BOS token", where=source, fix="the chat template writes BOS twice: repair it"
            )
        return self._example(ids, trained, source)

    def _end_of_answer(self, ids: Sequence[int], start: int, stop: int) -> int | None:
        """Index after the stop token that closes the answer in ids[start:stop]; None if the template writes none."""
        for index in range(stop - 1, start - 1, -1):
            if ids[index] in self.stop_ids or (self.end_of_turn is None and ids[index] in self.special_ids):
                return index + 1
        return None

    def _agree(self, full: "_Rendered", start: int, end: int, message: Message, source: str) -> None:
        """Second method: the characters under the trained tokens must hold the answer and its calls (white space aside)."""
        covered = self.control.restored(full.characters(start, end))
        message = self._by_policy(message)
        content = split_thinking(message.content)[1] if self.thinking == "untrained" else message.content
        parts = [content, message.thinking or ""] if self.thinking == "keep" else [content]
        missing = next((part for part in parts if part.strip() not in covered and _bare(part) not in _bare(covered)), None)
        if missing is None and message.tool_calls:
            called = (text for call in message.tool_calls for text in _leaves([call.name, call.arguments]))
            missing = next((text for text in called if not _holds(covered, text)), None)
        if missing is None:
            return
        thinks = message.thinking is not None or split_thinking(message.content)[0] is not None
        raise BadInput(
            "the chat template drops or changes part of the answer, so something else would be trained",
            where=f"{source}: the answer has {missing[:40]!r}; trained would be {covered[:60]!r}",
            fix=("data.thinking: strip, or a chat template that writes thinking" if thinks
                 else "remove what the template strips (thinking marks, for example) or use data.template: plain"),
        )  # fmt: skip

    def _nothing_left_out(self, conversation: Conversation, text: str) -> None:
        """Questions, results and definitions must stand in the text: a model cannot heed a system message that its template forgets."""
        for number, message in enumerate(conversation.messages, 1):
            if message.role != "assistant" and message.content.strip() not in text and not _holds(text, message.content):
                raise BadInput(
                    f"the chat template leaves out or changes message {number}, by {message.role}",
                    where=f"{conversation.source}: it begins {message.content[:40]!r}",
                    fix="put its words into a user message, or use a model whose template knows them",
                )  # fmt: skip
        for tool in conversation.tools:
            definition = tool.get("function", tool)
            if isinstance(definition, Mapping) and isinstance(name := definition.get("name"), str) and not _holds(text, name):
                raise BadInput(
                    f"the chat template leaves out the definition of {name[:60]}", where=conversation.source,
                    fix="describe the tools in a system message, or use a model whose template knows tools",
                )  # fmt: skip

    def _after_thinking(self, full: "_Rendered", start: int, message: Message, source: str) -> int:
        """Index of the first token behind the thinking of the answer that begins at token `start`."""
        thought, _ = split_thinking(_with_thinking(message))
        if thought is None:
            return start
        begin = full.first_character(start)
        at = full.text.find(thought.strip(), begin)
        if at < 0:
            raise BadInput(
                "the chat template drops or changes the thinking of this answer", where=source,
                fix="data.thinking: strip, or a chat template that writes thinking",
            )  # fmt: skip
        at += len(thought.strip())
        for mark in ("<think>", self._after_thought):  # the first only where nothing was thought
            at += len(full.text[at:]) - len(full.text[at:].lstrip())
            for written in (self.control.named(mark), mark):
                if written and full.text.startswith(written, at) and (mark != "<think>" or not thought.strip()):
                    at += len(written)
                    break
        at += len(full.text[at:]) - len(full.text[at:].lstrip())
        return full.token_behind(at, start)

    # --- what the template understands ----------------------------------------------------------------------------------

    def _probe_end_of_turn(self) -> int | None:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        ids = self._one(self._view(_Turns(turns), None, False, TRIAL)).ids
        start = len(self._one(self._view(_Turns(turns), 1, True, TRIAL)).ids)
        for index in range(len(ids) - 1, start - 1, -1):
            if ids[index] in self.special_ids:
                return ids[index]
        return None

    def _probe_end_of_calls(self) -> int | None:
        """The control token that closes a turn of calls; some templates have one of its own, at which a server must stop too."""
        form = self._tool_form if "tool_calls" in self._source else None
        if form is None:
            return None
        text = self._trial([{"role": "user", "content": "a"}, form.trial_turn()])
        last = next(reversed(self.control.written(text)), None)
        if last is None or not text.rstrip().endswith(last) or self.control.id_of(last) not in self.special_ids:
            return None
        return self.control.id_of(last)

    def _trial(self, turns: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        """What the template makes of trial turns; nothing if it refuses them."""
        try:
            return self._view(_Turns(turns, tools), None, False, TRIAL).text
        except BadInput:
            return ""

    @cached_property
    def _thinks(self) -> bool:
        """Whether the template takes thinking apart from the content; if not, it goes into the content between its marks."""
        return _TRIAL_THOUGHT in self._trial(_trial_of_thinking)

    @cached_property
    def _after_thought(self) -> str:
        """What stands between thinking and answer: </think>, or the template's own mark."""
        text = self._trial(_trial_of_thinking)
        behind = text.partition(_TRIAL_THOUGHT)[2].partition(_TRIAL_ANSWER)[0].strip()
        return behind or "</think>"

    @cached_property
    def thinking_marks(self) -> tuple[str, str]:
        """What stands before and after a thought in an answer that the model writes itself; before: "" where the prompt opens it already."""
        if self.mode != "chat" or not self._thinks:
            return THINKING_MARKS
        before = self._trial(_trial_of_thinking).partition(_TRIAL_THOUGHT)[0]
        prompt = self._view(_Turns(_trial_of_thinking), 1, True, TRIAL).text
        return before.removeprefix(commonprefix([before, prompt])).strip(), self._after_thought  # noqa: RUF071 - texts, not paths

    @cached_property
    def _tool_form(self) -> "_ToolForm | None":
        """How the template wants calls: tried in the order of how usual it is; None if it knows no tools."""
        for with_ids in (False, True):
            for arguments_as_text in (False, True):
                for empty_content in ("", None):
                    form = _ToolForm(arguments_as_text, empty_content, with_ids)
                    result = {"role": "tool", "name": "find_warmth", "content": "lukewarm"}
                    if with_ids:
                        result["tool_call_id"] = "call00001"
                    text = self._trial([{"role": "user", "content": "a"}, form.trial_turn(), result, {"role": "assistant", "content": "b"}])
                    wanted = all(word in text for word in ("find_warmth", "place", "Quito", "lukewarm"))
                    if wanted and "None" not in text and str(_TRIAL_ARGUMENTS) not in text and '\\"place' not in text:
                        return form
        return None

    # --- turns as the template gets them --------------------------------------------------------------------------------

    def _by_policy(self, message: Message) -> Message:
        """The message without its thinking where that is to be stripped."""
        if self.thinking != "strip" or message.role != "assistant":
            return message
        thought, content = split_thinking(message.content)
        if thought is None and message.thinking is None:
            return message
        return replace(message, content=content if thought is not None else message.content, thinking=None)

    def _turns(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], source: str) -> "_Turns":
        """The messages as transformers has them, with marks in the place of control-token text if there is any."""
        control = self.control
        guarded = any(_has_control_text(message, control) for message in messages) or (len(tools) > 0 and control.written_in(list(tools)))
        if any(message.tool_calls or message.role == "tool" for message in messages) and self._tool_form is None:
            raise BadInput(
                "the chat template cannot write tool calls and their results", where=source,
                fix="use a model whose template knows tools, or write the calls into the answers as text",
            )  # fmt: skip

        def safe(value: Any, by_owner: bool = False) -> Any:
            try:
                return control.hidden(value, by_owner) if guarded else value
            except CannotStayText as error:
                raise _not_words(str(error), source) from None

        turns: list[dict[str, Any]] = []
        open_calls: list[tuple[str, str | None]] = []  # of the last answer: name and id, as long as no result came
        n_calls = 0
        for given in messages:
            message = self._by_policy(given)
            content, owner = safe(message.content, message.role in OWNERS), message.role in OWNERS
            turn: dict[str, Any] = {"role": message.role, "content": content}
            if message.thinking is not None:
                if self._thinks:
                    turn["reasoning_content"] = safe(message.thinking, owner)
                else:
                    turn["content"] = message.before_thinking + safe(message.thinking, owner) + message.after_thinking + content
            if message.tool_calls and (form := self._tool_form) is not None:
                open_calls, calls = [], []
                for call in message.tool_calls:
                    n_calls += 1
                    identifier = call.id or (f"call{n_calls:05d}" if form.with_ids else None)
                    open_calls.append((call.name, identifier))
                    calls.append(form.call(safe(call.name), safe(call.arguments), safe(identifier)))
                turn["tool_calls"] = calls
                if not turn["content"] and form.empty_content is None:
                    del turn["content"]
            elif message.role == "tool":
                answered = next((call for call in open_calls if message.name in (None, call[0])), None)
                if answered is not None:
                    open_calls.remove(answered)
                identifier = message.call_id or (answered[1] if answered is not None else None)
                turn |= {key: safe(text) for key, text in (("name", message.name), ("tool_call_id", identifier)) if text is not None}
            turns.append(turn)
        return _Turns(turns, safe(list(tools)) if tools else None, guarded)

    def _view(self, turns: "_Turns", n: int | None, prompt: bool, source: str) -> "_View":
        """The template's text of the first `n` turns (None: of all), with the beginning of an answer if `prompt`."""
        try:
            text = self.tokenizer.apply_chat_template(turns.turns[:n], turns.tools, tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # a template may raise anything; its own words are the best message
            raise BadInput(
                f"the chat template refuses this conversation: {error}", where=source, fix="see the template's rules for roles"
            ) from None
        assert isinstance(text, str)
        return _View(text, True, turns.guarded, source)


@dataclass(frozen=True)
class _Turns:
    """Turns and tool definitions for the template. guarded: control-token text in them is hidden behind marks."""

    turns: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    guarded: bool = False


@dataclass(frozen=True)
class _ToolForm:
    """What differs between templates that know tools; transformers leaves a content of None away."""

    arguments_as_text: bool
    empty_content: str | None
    with_ids: bool

    def call(self, name: str, arguments: Any, identifier: str | None) -> dict[str, Any]:
        """As OpenAI has it, with the arguments as this template takes them."""
        as_text = self.arguments_as_text and not isinstance(arguments, str)
        function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False) if as_text else arguments}
        return {"type": "function", "function": function} | ({"id": identifier} if identifier is not None else {})

    def trial_turn(self) -> dict[str, Any]:
        call = self.call("find_warmth", _TRIAL_ARGUMENTS, "call00001" if self.with_ids else None)
        return {"role": "assistant", "tool_calls": [call]} | ({"content": ""} if self.empty_content == "" else {})


@dataclass(frozen=True)
class _View:
    """A text to tokenise. guarded: it holds control-token text that must stay text."""

    text: str
    template_wrote: bool
    guarded: bool
    source: str


class _Rendered:
    """A text as it was encoded, its ids, the control tokens that the template wrote, and where they stand."""

    def __init__(self, text: str, encoding: "Encoding", ids: list[int], guarded: bool, written: list[str], positions: list[int]) -> None:
        self.text, self.ids, self.guarded, self.written, self.positions = text, ids, guarded, written, positions
        self._encoding = encoding

    def characters(self, start: int, end: int) -> str:
        spans = [span for i in range(start, end) if (span := self._encoding.token_to_chars(i)) is not None and span[1] > span[0]]
        return self.text[spans[0][0] : max(span[1] for span in spans)] if spans else ""

    def first_character(self, token: int) -> int:
        spans = (self._encoding.token_to_chars(i) for i in range(token, len(self.ids)))
        return next((span[0] for span in spans if span is not None and span[1] > span[0]), len(self.text))

    def token_behind(self, character: int, start: int) -> int:
        """The first token from `start` on that covers characters from `character` on."""
        spans = ((i, self._encoding.token_to_chars(i)) for i in range(start, len(self.ids)))
        return next((i for i, span in spans if span is not None and span[1] > character), len(self.ids))


_TRIAL_THOUGHT, _TRIAL_ANSWER, _TRIAL_ARGUMENTS = "a quiet thought", "a loud answer", {"place": "Quito"}
_trial_of_thinking: list[dict[str, Any]] = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": _TRIAL_ANSWER, "reasoning_content": _TRIAL_THOUGHT},
]


def _good(rendered: "_Rendered | BadInput") -> "_Rendered":
    if isinstance(rendered, BadInput):
        raise rendered
    return rendered


def _one_per_answer(conversation: Conversation) -> list[Conversation]:
    """For each trained turn the conversation up to it, in which it alone is trained."""
    messages = conversation.messages
    return [
        replace(conversation, messages=tuple(replace(m, trained=m.trained and i == last) for i, m in enumerate(messages[: last + 1])))
        for last, message in enumerate(messages)
        if message.trained
    ]


def _has_control_text(message: Message, control: ControlTokens) -> bool:
    owner = message.role in OWNERS
    if control.written_in(message.content, owner) or (message.thinking is not None and control.written_in(message.thinking, owner)):
        return True
    named = [message.name, message.call_id, *((call.name, call.id, call.arguments) for call in message.tool_calls)]
    return control.written_in(named) if message.tool_calls or message.name or message.call_id else False


def _not_words(problem: str, source: str) -> BadInput:
    return BadInput(
        f"control-token text in this row cannot be encoded as ordinary text: {problem}", where=source, fix="remove it from the row"
    )


def _must_be_words(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], source: str) -> None:
    if tools or any(message.tool_calls or message.role == "tool" for message in messages):
        raise BadInput(
            "tools have no form in plain text", where=source,
            fix="use a model whose tokenizer has a chat template that knows tools, or write definitions and calls into the text",
        )  # fmt: skip


def _plain_prompt(messages: Sequence[Message]) -> str:
    """Ends in white space, so that prompt and answer do not run into one word."""
    prompt = "\n\n".join(message.content for message in messages)
    return prompt if not prompt or prompt[-1].isspace() else prompt + "\n"


def _with_thinking(message: Message) -> str:
    """The content with the thinking before it, where that is kept apart."""
    if message.thinking is None:
        return message.content
    return message.before_thinking + message.thinking + message.after_thinking + message.content


def _bare(text: str) -> str:
    return "".join(text.split())


def _holds(text: str, part: str) -> bool:
    """Whether a part stands in a text, as it is or as JSON has it, white space aside."""
    return any(_bare(form) in _bare(text) for form in (part, json.dumps(part, ensure_ascii=False)[1:-1], json.dumps(part)[1:-1]))


def _leaves(value: Any) -> Iterator[str]:
    """Every name, text and number of a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield json.dumps(value)
