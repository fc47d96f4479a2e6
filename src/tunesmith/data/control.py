"""Text of control tokens inside messages stays text, so nobody can write `<|im_end|>` into a row and forge a turn.

    control = ControlTokens(tokenizer, template)
    control.written_in(message.content)                   # True: "say <|im_end|> twice"
    turns = control.hidden(turns)                         # marks that neither the template nor the tokenizer knows
    encoding = control.encode(text_of_the_template)       # its own control tokens as tokens, the marked ones as words

The template runs over marks instead of control text, so what it writes itself can be told from what a message holds. Then
everything is encoded in one piece by a copy of the tokenizer in which the control tokens have other names: the names stand where
the template wrote them, and the words of a message mean nothing to it. One piece, because many tokenizers treat the first word of
a text specially (SentencePiece's leading space), and tokens may swallow the white space beside them (Phi-3's).
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tunesmith.data.conversation import THINKING_MARKS

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerFast

# Unicode's noncharacters: never assigned, not white space, left alone by every normalisation.
_HIDDEN, _NAMED, _END, _ZERO, _BASE = "\ufdd0", "\ufdd1", "\ufdd2", 0xFDD3, 16
_DIGITS = f"[{chr(_ZERO)}-{chr(_ZERO + _BASE - 1)}]+"
_HIDDEN_MARK, _NAME = re.compile(f"{_HIDDEN}({_DIGITS}){_END}"), re.compile(f"{_NAMED}({_DIGITS}){_END}")
_ESCAPED = re.compile(r"\\ufdd0(?:\\ufd[de][0-9a-f])+", re.IGNORECASE)  # a mark in ASCII JSON, or as Python writes a dict
_OURS = re.compile(f"[{_HIDDEN}{_NAMED}{_END}{chr(_ZERO)}-{chr(_ZERO + _BASE - 1)}]")


class CannotStayText(Exception):
    """This text cannot be encoded with its control-token text as words; the message says why."""


class ControlTokens:
    """The tokens that only a template may write: the special ones, and added ones that stand in the template itself.

    template   its source; tokens such as Qwen's <tool_call> are ordinary to the tokenizer and structure to the template
    ids        of all of them
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", template: str = "") -> None:
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        added = tokenizer.added_tokens_decoder
        self.special_ids = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        structural = {i for i, token in added.items() if token.content in template and not token.content.isspace()}
        self.ids = frozenset(self.special_ids | structural)
        self._id_of: dict[str, int] = {str(tokenizer.convert_ids_to_tokens(i)): i for i in sorted(self.ids)}
        self._texts = sorted(self._id_of, key=lambda text: (-len(text), text))  # the longest match counts, as in the tokenizer
        whole_words = {token.content for token in added.values() if token.single_word}
        special = [text for text in self._texts if self._id_of[text] in self.special_ids and text not in THINKING_MARKS]
        self._everything = _Pattern(self._texts, whole_words)
        self._special = _Pattern(special, whole_words)
        # a character that the tokenizer does not know forges nothing, unless "unknown" is what ends a text too (GPT-2)
        unknown = tokenizer.unk_token_id
        self._cutting = {i for i, token in added.items() if not token.normalized}
        self._counted = self.ids - ({unknown} - {tokenizer.bos_token_id, tokenizer.eos_token_id})

    def written_in(self, value: Any, by_owner: bool = False) -> bool:
        """Whether a string anywhere in `value` holds the text of a control token, or a part of one at either end.

        by_owner   system messages and answers: those who write them may use the marks that are no special tokens (<tool_call>)
        """
        pattern = self._special if by_owner else self._everything
        if isinstance(value, str):
            return pattern.written_in(value)
        return any(pattern.written_in(text) for text in _strings(value))

    def hidden(self, value: Any, by_owner: bool = False) -> Any:
        """`value` with a mark in the place of each control text in its strings, however deep they lie, keys included."""
        if isinstance(value, str):
            if _OURS.search(value) or _ESCAPED.search(value):
                raise CannotStayText("beside it stand characters from U+FDD0 to U+FDE2, which are none")
            pattern = self._special if by_owner else self._everything
            return pattern.replaced(value, lambda text: _HIDDEN + self._mark_of(text) + _END)
        if isinstance(value, Mapping):
            return {self.hidden(key): self.hidden(item) for key, item in value.items()}
        return [self.hidden(item) for item in value] if isinstance(value, list | tuple) else value

    def encode(self, text: str, compare: bool = True) -> tuple[str, "Encoding"]:
        """A template's text with hidden marks as (the text that was encoded, its encoding); raises CannotStayText.

        compare   before the marks are taken away, the tokenizer itself must give the same ids
        """
        text = _ESCAPED.sub(lambda mark: mark[0].encode().decode("unicode_escape"), text)
        named = self._everything.replaced_whole(text, lambda found: _NAMED + self._mark_of(found) + _END)
        if (
            compare
            and self._renamed.encode(named, add_special_tokens=False).ids != self._backend.encode(text, add_special_tokens=False).ids
        ):
            raise CannotStayText("this tokenizer does not find the template's control tokens where they stand")
        final = _HIDDEN_MARK.sub(lambda mark: self._text_of(mark[1]), named)
        return final, self._renamed.encode(final, add_special_tokens=False)

    def encode_words(self, text: str) -> tuple[str, "Encoding"]:
        """Plain text in which nothing is a control token."""
        return text, self._renamed.encode(text, add_special_tokens=False)

    def named(self, text: str) -> str:
        """What stands for a control token in the text that `encode` returned; other texts as they are."""
        return _NAMED + self._mark_of(text) + _END if text in self._id_of else text

    def restored(self, text: str) -> str:
        """A part of the text that `encode` returned, with control tokens under their own names."""
        return _NAME.sub(lambda name: self._text_of(name[1]), text) if _NAMED in text else text

    def written(self, text: str, named: bool = False) -> list[str]:
        """The control tokens that the template wrote, in order; `named`: in a text that `encode` returned."""
        found = [self._text_of(name) for name in _NAME.findall(text)] if named else self._everything.whole.findall(text)
        return [text for text in found if self._id_of[text] in self._counted]

    def positions(self, ids: list[int]) -> list[int]:
        """Where control tokens stand."""
        counted = self._counted
        return [position for position, i in enumerate(ids) if i in counted]

    def id_of(self, text: str) -> int:
        return self._id_of[text]

    def cuts(self, text: str) -> bool:
        """Whether what follows this control token is tokenised without regard to what stands before it: so for all usual ones."""
        return self._id_of[text] in self._cutting

    def _mark_of(self, text: str) -> str:
        """A number in digits of our own; parts of control texts are numbered after the whole ones."""
        number, digits = self._numbers[text], ""
        while not digits or number:
            number, digit = divmod(number, _BASE)
            digits = chr(_ZERO + digit) + digits
        return digits

    def _text_of(self, digits: str) -> str:
        number = 0
        for digit in digits:
            number = number * _BASE + ord(digit) - _ZERO
        return self._numbered[number]

    @cached_property
    def _numbered(self) -> list[str]:
        parts = {part for text in self._texts for k in range(1, len(text)) for part in (text[:k], text[k:])}
        return [*self._texts, *sorted(parts - set(self._texts))]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {text: number for number, text in enumerate(self._numbered)}

    @cached_property
    def _renamed(self) -> "Tokenizer":
        """The tokenizer with its control tokens under names that no text holds: the same ids for everything else.

        Its vocabulary and its merges are renamed too: a Unigram model would find the piece "<s>" in a text by itself.
        """
        from tokenizers import Tokenizer

        names = {text: _NAMED + self._mark_of(text) + _END for text in self._texts}
        parts = json.loads(self._backend.to_str())
        for token in parts["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        model = parts["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(piece, piece): i for piece, i in model["vocab"].items()}
        else:
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        if model.get("unk_token") is not None:
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        if "merges" in model:
            pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
            model["merges"] = [pair for pair in pairs if not names.keys() & {*pair, "".join(pair)}]
        parts["truncation"] = parts["padding"] = None
        return Tokenizer.from_str(json.dumps(parts))


class _Pattern:
    """Whole texts anywhere, and the beginning of one at the end of a string or the end of one at the beginning.

    The parts matter where a template joins two strings: "<|im_" and "end|>" in neighbouring fields.
    """

    def __init__(self, texts: list[str], whole_words: set[str]) -> None:
        alternatives = (rf"(?<!\w){re.escape(text)}(?!\w)" if text in whole_words else re.escape(text) for text in texts)
        self.whole = re.compile("|".join(alternatives) if texts else "(?!)")
        self._starts = {text[:k] for text in texts for k in range(1, len(text))}
        self._ends = {text[k:] for text in texts for k in range(1, len(text))}
        self._first, self._last = {text[0] for text in texts}, {text[-1] for text in texts}
        self._longest = max(map(len, texts), default=0)

    def written_in(self, text: str) -> bool:
        return self.whole.search(text) is not None or self._end_at(text) > 0 or self._start_at(text) < len(text)

    def replaced(self, text: str, by: Any) -> str:
        """Each whole text replaced, and the parts at both ends."""
        text = self.replaced_whole(text, by)
        if end := self._end_at(text):
            lead = len(text) - len(text.lstrip())
            text = text[:lead] + by(text[lead:end]) + text[end:]
        if (start := self._start_at(text)) < len(text):
            stop = len(text.rstrip())
            text = text[:start] + by(text[start:stop]) + text[stop:]
        return text

    def replaced_whole(self, text: str, by: Any) -> str:
        return self.whole.sub(lambda found: by(found[0]), text)

    def _end_at(self, text: str) -> int:
        """Index after the longest end of a control text with which `text` begins, white space aside; 0 without one."""
        stripped = text.lstrip()
        head = stripped[: self._longest]
        if self._last.isdisjoint(head):
            return 0
        lead = len(text) - len(stripped)
        return next((lead + k for k in range(len(head), 0, -1) if head[k - 1] in self._last and head[:k] in self._ends), 0)

    def _start_at(self, text: str) -> int:
        """Index where the longest beginning of a control text at the end of `text` starts, white space aside; its length without one."""
        stripped = text.rstrip()
        tail = stripped[-self._longest :] if self._longest else ""
        if self._first.isdisjoint(tail):
            return len(text)
        offset = len(stripped) - len(tail)
        return next((offset + k for k in range(len(tail)) if tail[k] in self._first and tail[k:] in self._starts), len(text))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
