"""From a conversation to token ids, and which of them are learned.

    renderer = Renderer(tokenizer)                     # the tokenizer's own chat template, or plain text without one
    [example] = renderer.render(conversation)          # ids, trained, source
    prompt = renderer.prompt_ids(conversation.prompt)  # exactly the beginning of example.ids

Four promises, each the cure of a silent failure of other tools (docs/failures.md, rows 1, 2, 4 and 5):
one render through the template that serving uses, so the training prefix is the serving prefix; what is trained comes from
comparing the ids of message prefixes, and a second method, character offsets, must agree; every trained turn ends in a trained
stop token; text inside a message never becomes a control token, so nobody can write `<|im_end|>` into a row and forge a turn.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tunesmith.data.conversation import Conversation, Message
from tunesmith.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Private-use characters stand for control-token text inside messages while the template runs.
_OPEN, _CLOSE, _FIRST = "\ue000", "\ue001", 0xE100


@dataclass(frozen=True, eq=False)
class Example:
    """ids int32 [T]; trained bool [T]: is token i learned; source "file:line"."""

    ids: npt.NDArray[np.int32]
    trained: npt.NDArray[np.bool_]
    source: str

    def __len__(self) -> int:
        return len(self.ids)


class Renderer:
    """The one place where messages become ids, in training, evaluation, generation and chat.

    mode       "chat": the tokenizer's template; "plain": text and a stop token; "auto": chat where there is a template
    eos_ids    further ids that end an answer (the model's generation config)
    n_ids      rows of the model's embedding: a tokenizer may know more tokens than its model
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerFast", mode: str = "auto", eos_ids: Iterable[int] = (), n_ids: int | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.n_ids = n_ids
        if mode == "chat" and not tokenizer.chat_template:
            raise BadInput("the tokenizer has no chat template", where="data.template: chat", fix="data.template: plain")
        self.mode = ("chat" if tokenizer.chat_template else "plain") if mode == "auto" else mode
        added = tokenizer.added_tokens_decoder
        self.special_ids = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        self._special_text = sorted({str(tokenizer.convert_ids_to_tokens(i)) for i in self.special_ids}, key=lambda t: (-len(t), t))
        self._special_pattern = re.compile("|".join(re.escape(t) for t in self._special_text)) if self._special_text else None
        self._literal: Any = None
        stops = set(eos_ids)
        if tokenizer.eos_token_id is not None:
            stops.add(int(tokenizer.eos_token_id))
        self.end_of_turn: int | None = None  # what the template writes after an answer
        if self.mode == "chat":
            self.end_of_turn = self._probe_end_of_turn()
        if self.end_of_turn is not None:
            stops.add(self.end_of_turn)
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
            return f"rendered with the tokenizer's chat template; an answer ends in {stop}"
        return f"rendered as plain text (prompt, answer); an answer ends in {stop}"

    def fingerprint(self) -> str:
        """Changes whenever the same conversation could give other ids; stored with the adapter, compared at every load."""
        parts = [
            self.mode,
            str(self.tokenizer.chat_template) if self.mode == "chat" else "",
            self.tokenizer.backend_tokenizer.to_str(),
            str(sorted(self.stop_ids)),
        ]
        return sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def least_tokens(self, conversation: Conversation) -> int:
        """A lower bound on the length, without tokenising: a row of 20 MB is refused before it costs gigabytes of offsets."""
        return sum(len(message.content) for message in conversation.messages) // self._longest_token

    @cached_property
    def _longest_token(self) -> int:
        """Characters of the longest token; a token's own spelling is never shorter than the text it stands for."""
        return max(len(token) for token in self.tokenizer.get_vocab())

    def shortened(self, conversation: Conversation, n_tokens: int) -> Conversation:
        """The conversation with every message cut far behind the first `n_tokens` tokens, for rows that are truncated anyway."""
        most = (n_tokens + 1) * self._longest_token
        return replace(conversation, messages=tuple(replace(m, content=m.content[:most]) for m in conversation.messages))

    def prompt_ids(self, messages: Sequence[Message], source: str = "the prompt") -> list[int]:
        """What the model is given before it answers: for the same messages, a prefix of what `render` returns."""
        ids = self._template(messages, True, source).ids if self.mode == "chat" else self._plain_prompt(messages, source)
        return self._known(ids, source)

    def render(self, conversation: Conversation) -> list[Example]:
        """One example; or one for each trained turn where the template rewrites earlier turns (Qwen3 drops earlier thinking)."""
        if conversation.is_text:
            return [self._text(conversation)]
        if self.mode == "plain":
            return [self._plain(conversation)]
        whole = self._chat(conversation)
        if whole is not None:
            return [whole]
        answers = [i for i, message in enumerate(conversation.messages) if message.trained]
        examples = []
        for last in answers:
            turn = tuple(Message(m.role, m.content, m.trained and i == last) for i, m in enumerate(conversation.messages[: last + 1]))
            example = self._chat(Conversation(turn, conversation.source))
            if example is None:
                raise BadInput(
                    "the chat template does not begin a conversation as it begins the prompt of its last answer",
                    where=conversation.source, fix="training and serving would differ; use another template or data.template: plain",
                )  # fmt: skip
            examples.append(example)
        return examples

    def _example(self, ids: Sequence[int], trained: Sequence[bool], source: str) -> Example:
        return Example(np.array(self._known(ids, source), dtype=np.int32), np.array(trained, dtype=np.bool_), source)

    def _known(self, ids: Sequence[int], source: str) -> list[int]:
        """The ids, if the model has an embedding for each: a tokenizer of another model may give more."""
        if self.n_ids is not None and max(ids, default=0) >= self.n_ids:
            beyond = max(ids)
            raise BadInput(
                f"the tokenizer gives {self.tokenizer.convert_ids_to_tokens(beyond)!r} the id {beyond}, and the model has {self.n_ids:,} embeddings",
                where=source, fix="use the tokenizer that belongs to the model",
            )  # fmt: skip
        return list(ids)

    # --- plain text -------------------------------------------------------------------------------------------------

    def _begin(self) -> list[int]:
        """BOS, where the tokenizer puts one before text."""
        ids = self.tokenizer("a")["input_ids"]
        bos = self.tokenizer.bos_token_id
        return [int(bos)] if bos is not None and ids and ids[0] == bos else []

    def _plain_prompt(self, messages: Sequence[Message], source: str) -> list[int]:
        text = "\n\n".join(message.content for message in messages)
        return self._begin() + self._literal_ids(_with_separator(text), source)

    def _plain(self, conversation: Conversation) -> Example:
        *prompt, answer = conversation.messages
        roles = [message.role for message in conversation.messages]
        if roles not in (["user", "assistant"], ["system", "user", "assistant"]) or not answer.trained:
            raise BadInput(
                f"without a chat template an example is one prompt and one answer, not {', '.join(roles)}",
                where=conversation.source, fix="use a model whose tokenizer has a chat template, or split the conversation",
            )  # fmt: skip
        head = self._plain_prompt(prompt, conversation.source)
        body = [*self._literal_ids(answer.content, conversation.source), self.stop_id]
        return self._example([*head, *body], [False] * len(head) + [True] * len(body), conversation.source)

    def _text(self, conversation: Conversation) -> Example:
        head = self._begin()
        body = [*self._literal_ids(conversation.messages[0].content, conversation.source), self.stop_id]
        return self._example([*head, *body], [False] * len(head) + [True] * len(body), conversation.source)

    # --- chat template ----------------------------------------------------------------------------------------------

    def _chat(self, conversation: Conversation) -> Example | None:
        """None if the template lacks the prefix property on this conversation."""
        messages, source = conversation.messages, conversation.source
        full = self._template(messages, False, source)
        ids, trained = list(full.ids), [False] * len(full.ids)
        for i, message in enumerate(messages):
            if not message.trained:
                continue
            start = len(prefix := self._template(messages[:i], True, source).ids)
            upto = full.ids if i == len(messages) - 1 else self._template(messages[: i + 1], False, source).ids
            if full.ids[:start] != prefix or full.ids[: len(upto)] != upto:
                return None
            end = self._end_of_answer(full.ids, start, len(upto))
            if end is None and i == len(messages) - 1:
                ids, trained = [*ids[: len(upto)], self.stop_id], [*trained[: len(upto)], False]
                end = len(upto) + 1
            if end is None:
                return None  # turns without an end: one example per turn, each closed by the stop token
            trained[start:end] = [True] * (end - start)
            self._agree(full, start, min(end, len(full.ids)), message, source)
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
        """Second method: the characters under the trained tokens must hold the answer (white space aside)."""
        covered = full.characters(start, end)
        if "".join(message.content.split()) not in "".join(covered.split()):
            raise BadInput(
                "the chat template drops or changes part of the answer, so something else would be trained",
                where=f"{source}: the answer begins {message.content[:40]!r}; trained would be {covered[:60]!r}",
                fix="remove what the template strips (thinking marks, for example) or use data.template: plain",
            )  # fmt: skip

    def _probe_end_of_turn(self) -> int | None:
        messages = (Message("user", "a", False), Message("assistant", "b", True))
        ids = self._template(messages, False, "a trial conversation").ids
        start = len(self._template(messages[:1], True, "a trial conversation").ids)
        for index in range(len(ids) - 1, start - 1, -1):
            if ids[index] in self.special_ids:
                return ids[index]
        return None

    def _template(self, messages: Sequence[Message], prompt: bool, source: str) -> "_Rendered":
        forged = self._special_pattern is not None and any(self._special_pattern.search(m.content) for m in messages)
        turns = [{"role": m.role, "content": self._shield(m.content, source) if forged else m.content} for m in messages]
        try:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # a template may raise anything; its own words are the best message
            raise BadInput(
                f"the chat template refuses this conversation: {error}", where=source, fix="see the template's rules for roles"
            ) from None
        assert isinstance(text, str)
        if not forged:
            encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            return _Rendered(list(encoding["input_ids"]), text, list(encoding["offset_mapping"]))
        return self._encode_pieces(text, source)

    # --- control-token text inside messages -------------------------------------------------------------------------

    def _shield(self, content: str, source: str) -> str:
        """Control-token text becomes a placeholder that no template and no tokenizer knows."""
        if _OPEN in content or _CLOSE in content:
            raise BadInput("control-token text beside private-use characters U+E000 or U+E001", where=source, fix="remove those characters")
        assert self._special_pattern is not None
        return self._special_pattern.sub(lambda m: f"{_OPEN}{chr(_FIRST + self._special_text.index(m[0]))}{_CLOSE}", content)

    def _unshield(self, text: str) -> str:
        return re.sub(f"{_OPEN}(.){_CLOSE}", lambda m: self._special_text[ord(m[1]) - _FIRST], text)

    def _encode_pieces(self, text: str, source: str) -> "_Rendered":
        """The template's own control tokens by id, everything between them as ordinary text."""
        assert self._special_pattern is not None
        pieces = re.split(f"({self._special_pattern.pattern})", text)
        self._pieces_must_equal_whole(pieces, text, source)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        plain, position = "", 0
        for n, piece in enumerate(pieces):
            if n % 2:
                ids.append(int(self.tokenizer.convert_tokens_to_ids(piece)))
                offsets.append((position, position + len(piece)))
                content = piece
            else:
                content = self._unshield(piece)
                encoding = self._literal_tokenizer().encode(content, add_special_tokens=False)
                ids += encoding.ids
                offsets += [(position + a, position + b) for a, b in encoding.offsets]
            plain += content
            position += len(content)
        return _Rendered(ids, plain, offsets)

    def _pieces_must_equal_whole(self, pieces: Sequence[str], text: str, source: str) -> None:
        """Some tokenizers treat the start of a text specially; there pieces would give other ids than the whole, so refuse."""
        backend = self.tokenizer.backend_tokenizer
        joined = chain.from_iterable(backend.encode(piece, add_special_tokens=False).ids for piece in pieces)
        if list(joined) != backend.encode(text, add_special_tokens=False).ids:
            raise BadInput(
                "a message contains control-token text, and this tokenizer cannot encode it as ordinary text",
                where=source, fix=f"remove {self._special_pattern.pattern if self._special_pattern else ''} from the message",
            )  # fmt: skip

    def _literal_tokenizer(self) -> Any:
        """A copy of the tokenizer that reads control-token text as ordinary text."""
        if self._literal is None:
            from tokenizers import Tokenizer

            self._literal = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
            self._literal.encode_special_tokens = True
        return self._literal

    def _literal_ids(self, text: str, source: str) -> list[int]:
        ids: list[int] = self._literal_tokenizer().encode(text, add_special_tokens=False).ids
        if any(i in self.special_ids for i in ids) and self.tokenizer.unk_token_id not in ids:
            raise BadInput("text of this row becomes a control token", where=source, fix="remove the control-token text")
        return ids


@dataclass(frozen=True)
class _Rendered:
    ids: list[int]
    text: str
    offsets: list[tuple[int, int]]

    def characters(self, start: int, end: int) -> str:
        spans = [span for span in self.offsets[start:end] if span[1] > span[0]]
        return self.text[spans[0][0] : max(span[1] for span in spans)] if spans else ""


def _with_separator(prompt: str) -> str:
    """A plain prompt ends in white space, so that prompt and answer do not run into one word."""
    return prompt if not prompt or prompt[-1].isspace() else prompt + "\n"
