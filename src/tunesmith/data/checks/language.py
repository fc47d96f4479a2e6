"""Rows in another language than most, told by their script and, in Latin letters, by the small words that every sentence has.

    language_of("Der Zug ist nicht mehr da und wir warten auf den nächsten")       # "German"
    language_of("ok, 42!")                                                         # "": too little to tell

A guess by counting, not a classifier: it speaks only where it is sure, which takes four different small words of one language and
twice as many as of any other. Most short rows stay undecided, and undecided rows are never complained about.
"""

import re
from collections import Counter

from tunesmith.data.checks.finding import Finding, found, share
from tunesmith.data.checks.table import Table
from tunesmith.data.readers import clip

# The commonest short words of each language, less those that several of these languages share.
_WORDS: dict[str, frozenset[str]] = {
    "English": frozenset(
        (
            "the of and is that it was for on are with they this have from had by but what were we when your can there an "
            "which their will would been has more if who them then these so him about her our than some could other into "
            "its"
        ).split()
    ),
    "German": frozenset(
        (
            "der und ist nicht das ein eine ich zu den von mit sich auf dem auch es wie wird bei einer nach aus wenn nur "
            "werden oder aber über zum haben kann noch wir sie sind dass durch im um einen"
        ).split()
    ),
    "French": frozenset(
        (
            "le les des est et une dans qui pour pas que sur au avec ce il plus par je vous nous sont mais cette être aux "
            "ont elle leur ces même aussi où ou sans fait deux"
        ).split()
    ),
    "Spanish": frozenset(
        (
            "el los las una por con para es del que se lo como más pero sus su al está ha son muy también fue hay este esta "
            "entre cuando sin sobre desde todo nos ya porque"
        ).split()
    ),
    "Italian": frozenset(
        (
            "il di che è non un per una sono con del della si dei nel gli alla anche più come le al da ma questo questa ha "
            "essere delle degli nella molto perché stato ci"
        ).split()
    ),
    "Portuguese": frozenset(
        (
            "o os as do da em um uma não para com é por mais dos das ao foi são ele ela seu sua está como mas também pelo "
            "pela muito já nos isso você ser tem"
        ).split()
    ),
    "Dutch": frozenset(
        (
            "het een van en dat niet zijn op te aan voor met er maar om hij ze ook als wordt bij nog naar uit deze dan haar "
            "worden heeft kan door wat geen"
        ).split()
    ),
    "Swedish": frozenset(
        (
            "och att det som en är på för inte av till han med jag har den ett var om sig men kan från vi när också efter där hade eller"
        ).split()
    ),
    "Polish": frozenset(
        ("nie się na że jest do to jak ale za po tak przez od dla był oraz jego czy które który być tylko są już może ma").split()
    ),
    "Turkish": frozenset(("bir ve bu için ile da de çok ne daha gibi olarak en var ama kadar sonra olan değil mi her o ki").split()),
    "Indonesian": frozenset(
        (
            "yang dan di itu dengan untuk tidak ini dari dalam akan pada juga saya ke karena ada mereka sudah bisa oleh atau kita lebih"
        ).split()
    ),
}
_SCRIPTS = (
    ("Japanese", re.compile("[\u3040-\u30ff]")),  # kana first: Japanese holds Chinese characters too
    ("Korean", re.compile("[\uac00-\ud7af\u1100-\u11ff]")),
    ("Chinese", re.compile("[\u4e00-\u9fff\u3400-\u4dbf]")),
    ("Cyrillic script", re.compile("[\u0400-\u04ff]")),
    ("Arabic script", re.compile("[\u0600-\u06ff\u0750-\u077f]")),
    ("Hebrew", re.compile("[\u0590-\u05ff]")),
    ("Greek", re.compile("[\u0370-\u03ff]")),
    ("Devanagari script", re.compile("[\u0900-\u097f]")),
    ("Thai", re.compile("[\u0e00-\u0e7f]")),
)
_EDGES = ".,;:!?\"'()[]«»„“”…-"
MOST_WORDS = 400  # of a text; more change nothing
LEAST_WORDS, MARGIN = 4, 2  # different small words, and how many times as many as of the next language
MAIN_SHARE, MOST_OTHERS = 0.8, 0.2  # of the rows whose language can be told


def language_of(text: str) -> str:
    """The language or script of a text; "" where it cannot be told."""
    if not text.isascii():
        sample = text[:4000]
        letters = sum(map(str.isalpha, sample))
        for name, pattern in _SCRIPTS:
            n = len(pattern.findall(sample))
            if n >= 4 and n >= 0.3 * letters:
                return name
    words = {word.strip(_EDGES) for word in text[:20_000].casefold().split()[:MOST_WORDS]}
    if len(words) < LEAST_WORDS:
        return ""
    best, second, name = 0, 0, ""
    for language, small in _WORDS.items():
        n = len(words & small)
        if n > best:
            best, second, name = n, best, language
        elif n > second:
            second = n
    return name if best >= LEAST_WORDS and best >= MARGIN * second else ""


def mixed_languages(table: Table) -> list[Finding]:
    """Rows whose prompt, or whose answer, is in another language than at least four fifths of those that can be told."""
    findings: list[Finding] = []
    for side, texts in (("prompt", table.own), ("answer", table.answers)):
        languages = [language_of(text) if text else "" for text in texts]
        counts = Counter(language for language in languages if language)
        if not counts:
            continue
        [(main, n_main), *others] = counts.most_common()
        n_known = counts.total()
        if not others or n_main < MAIN_SHARE * n_known or n_main < 10:
            continue
        hits = (
            (source, f"{language}: {clip(text, 60)}")
            for source, text, language in zip(table.sources, texts, languages)
            if language and language != main
        )
        names = ", ".join(f"{name} {n:,}" for name, n in others[:4])
        findings += found(
            f"{side}-language",
            "warning",
            hits,
            f"the {side} seems to be in another language ({names}) than {share(n_main, n_known)} of the others ({main})",
            "look at them; keep them only if the model is to know these languages",
        )
    return findings
