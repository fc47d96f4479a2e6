"""Text that a wrong encoding, a copy from a page or an invisible character has broken.

    mojibake("CafÃ© im Regen")             # "CafÃ© → Café"
    replacement("a caf\\ufffd here")        # "a caf� here"

A model learns such text as it stands: "Ã©" becomes its way of writing "é". Most texts are ASCII or hold nothing suspicious, and
one look tells so: every function begins with it.
"""

import re
import unicodedata
from collections.abc import Sequence

from tunesmith.data.checks.finding import Finding, Hits, TextCheck, around, found
from tunesmith.data.checks.table import BETWEEN, Table

# Bytes 0x80 to 0x9f are read as these characters by Windows (cp1252) and as themselves by Latin-1; 0xa0 to 0xff are the same in both.
_CP1252 = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
_LEAD = "ÂÃÄÅÐÑØÙàáâãäåæçèéêëìíîïð"  # as which the first byte of a two- to four-byte character is read
_BESIDE_WORDS = "‘’“”‚„–—…»«"  # what may follow a capital Ã of Portuguese
_BROKEN = re.compile(f"[{_LEAD}][\u0080-\u00bf{_CP1252}]+")
_REPLACEMENT = re.compile("\ufffd")
_C1 = re.compile("[\u0080-\u009f]")
_C0 = re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]")
_PRIVATE = re.compile("[\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd]")
_INVISIBLE = re.compile("[\u200b\u2060\u00ad\u180e]|(?<=[A-Za-z])[\u200c\u200d]+(?=[A-Za-z])")
_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")
_MARKS = re.compile("[\u0300-\u036f]")
_ESCAPED = re.compile(r"\\u[0-9a-fA-F]{4}|\\x[89a-fA-F][0-9a-fA-F]|\\r\\n|(?:(?<=[.!?,;])|(?<=\\n))\\n|\\n(?=[A-Z0-9\s-]|\\n|$)")
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|hellip|[lr]squo|[lr]dquo|[mn]dash|copy|euro|pound|#\d{2,6}|#[xX][0-9a-fA-F]{2,6});")
_TAG = re.compile(
    r"</?(?:p|br|hr|div|span|a|b|i|u|em|strong|font|img|ul|ol|li|table|tr|td|th|tbody|h[1-6]|script|style|html|body|head|iframe)"
    r"(?:\s+[\w:-]+\s*=[^<>]{0,300})?\s*/?>",
    re.I,
)


def mojibake(text: str) -> str:
    """UTF-8 that was read as Windows-1252 or Latin-1: the bytes, read again as UTF-8, give fewer and other characters.

    "PÅ”" at the end of a quotation is such a sequence too, by chance: a single one counts only if no writing would have it.
    """
    if text.isascii():
        return ""
    by_chance = ""
    for match in _BROKEN.finditer(text):
        repaired = _read_again(match[0])
        if repaired is None:
            continue
        shown = f"{around(text, match.start(), match.end(), 12)} → {repaired}"
        if _no_writing(text, match):
            return shown
        if any(character not in _BESIDE_WORDS for character in match[0][1:]):
            if by_chance:
                return shown
            by_chance = shown
    return ""


def _no_writing(text: str, match: re.Match[str]) -> bool:
    first, second = match[0][0], match[0][1]
    if _C1.search(match[0]):
        return True
    if first in "ÃÂ":
        before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
        return second not in _BESIDE_WORDS or after.isalpha() or not before.isupper()
    return (first == "â" and second in "€‚„†ˆ™œ") or match[0].startswith(("ï»¿", "ï¿½", "ðŸ"))


def _read_again(run: str) -> str | None:
    raw = bytearray()
    for character in run:
        try:
            raw += character.encode("cp1252")
        except UnicodeEncodeError:
            if ord(character) > 0xFF:
                return None
            raw.append(ord(character))  # the five bytes that cp1252 leaves open
    for end in range(len(raw), 1, -1):  # what follows the broken character may be whole: "Ã©”"
        try:
            return raw[:end].decode("utf-8")
        except UnicodeDecodeError:
            continue
    return None


def replacement(text: str) -> str:
    return "" if text.isascii() else _first(_REPLACEMENT, text)


def control(text: str) -> str:
    """Control characters but for tab and line ends; those of 0x80 to 0x9f are Windows quotes read as Latin-1."""
    match = _C0.search(text) or (None if text.isascii() else _C1.search(text))
    return f"U+{ord(match[0]):04X} in {around(text, match.start(), match.end()).translate(_SHOWN)}" if match else ""


_SHOWN = {code: f"⟨{code:02X}⟩" for code in [*range(9), 11, 12, *range(14, 32), *range(127, 160)]}


def private_use(text: str) -> str:
    return "" if text.isascii() else _named(_PRIVATE, text)


def byte_order_mark(text: str) -> str:
    return "U+FEFF" if not text.isascii() and "\ufeff" in text else ""


def invisible(text: str) -> str:
    """Zero-width space, word joiner, soft hyphen; joiners only between Latin letters (Persian, Hindi and emoji need them)."""
    return "" if text.isascii() else _named(_INVISIBLE, text)


def direction(text: str) -> str:
    return "" if text.isascii() else _named(_DIRECTION, text)


def decomposed(text: str) -> str:
    """Letters and accents apart (NFD) that have one character together (NFC)."""
    if text.isascii() or not _MARKS.search(text) or unicodedata.is_normalized("NFC", text):
        return ""
    return next((f"{word} (written as {len(word)} characters)" for word in text.split() if not unicodedata.is_normalized("NFC", word)), "")


def entity(text: str) -> str:
    return _first(_ENTITY, text) if "&" in text else ""


def tag(text: str) -> str:
    return _first(_TAG, text) if "<" in text else ""


def escaped(text: str) -> str:
    r"""Line breaks and characters that were escaped once too often: "\n" as two characters, and no true line break beside them."""
    return _first(_ESCAPED, text) if "\\" in text and "\n" not in text and "`" not in text else ""


def _first(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return around(text, match.start(), match.end()) if match else ""


def _named(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return f"U+{ord(match[0][0]):04X} after {text[max(0, match.start() - 20) : match.start()]!r}" if match else ""


REPAIR = "repair the encoding where the file was made"
CHECKS = (
    TextCheck(
        "mojibake",
        "warning",
        mojibake,
        "UTF-8 was read as another encoding, and the model would learn to write it so",
        f"{REPAIR}, or with ftfy",
    ),
    TextCheck("replacement-character", "warning", replacement, "U+FFFD stands where a character was lost", REPAIR),
    TextCheck("control-character", "warning", control, "control characters, which no reader sees and the model learns", "remove them"),
    TextCheck("private-use", "warning", private_use, "private-use characters: icons of a font that means nothing elsewhere", "remove them"),
    TextCheck(
        "byte-order-mark", "warning", byte_order_mark, "a byte order mark inside the text, as from files joined end to end", "remove U+FEFF"
    ),
    TextCheck(
        "invisible-character", "warning", invisible, "invisible characters: equal words become different tokens", "remove them", habit=True
    ),
    TextCheck(
        "direction-mark",
        "warning",
        direction,
        "marks that turn the direction of writing: what is read is not what is learned",
        "remove them, unless the language needs them",
        habit=True,
    ),
    TextCheck("html-entity", "warning", entity, "HTML entities left over from a page", "html.unescape", habit=True),
    TextCheck(
        "html-tag", "warning", tag, "HTML tags left over from a page", "take the text out of the page, unless HTML is the task", habit=True
    ),
    TextCheck(
        "escaped-text",
        "warning",
        escaped,
        r"backslash escapes (\n, \u00e9) as text: escaped once too often",
        "unescape the column once",
        habit=True,
    ),
)


def mixed_line_ends(table: Table) -> list[Finding]:
    r"""Rows whose lines end in \r\n or \r in a file where others end in \n, or both in one row."""
    kinds = bytearray()  # of each row: 1 has \n alone, 2 has \r, 3 both
    for text in table.contents:
        text = text.replace(BETWEEN, "\x1f")
        has_dos = "\r" in text
        has_unix = "\n" in text and "\n" in text.replace("\r\n", "")
        kinds.append(has_unix + 2 * has_dos)
    n_unix, n_dos, n_both = (kinds.count(kind) for kind in (1, 2, 3))
    told = (2, 3) if n_dos <= n_unix or not (n_unix or n_both) else (3,)
    hits = ((source, r"\r\n") for source, kind in zip(table.sources, kinds) if kind in told)
    if n_dos and not n_unix and not n_both:
        return found("windows-line-ends", "note", hits, r"lines end in \r\n: one more token at every line end", r"replace \r\n by \n")
    return found(
        "mixed-line-ends", "warning", hits, r"lines end in \r\n here and in \n elsewhere: the model learns both", r"replace \r\n by \n"
    )


def mixed_normal_forms(table: Table) -> list[Finding]:
    """Accented letters as one character in some rows and as two in others."""
    apart = Hits()
    n_together = 0
    for source, contents in zip(table.sources, table.contents):
        if contents.isascii():
            continue
        texts = [text for text in contents.split(BETWEEN) if not text.isascii()]
        shown = next((s for s in map(decomposed, texts) if s), "")
        if shown:
            apart.append((source, shown))
        elif any(_has_accents(text) for text in texts):
            n_together += 1
    reason = "letters and their accents are separate characters (NFD)" + (
        f", and one character in {n_together:,} other rows: the same word becomes different tokens" if n_together else ""
    )
    return found(
        "mixed-normal-forms" if n_together else "decomposed-accents",
        "warning" if n_together else "note",
        apart,
        reason,
        "unicodedata.normalize('NFC', text)",
    )


def _has_accents(text: str) -> bool:
    return any("\u00c0" <= character <= "\u024f" for character in text)


def table_checks(table: Table) -> Sequence[Finding]:
    return [*mixed_line_ends(table), *mixed_normal_forms(table)]
