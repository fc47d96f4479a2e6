"""Whether answers are labels, and which spellings are one label.

labels_of(["Spam", "spam ", "ham", …])        # Counter({"ham": 4827, "spam": 747}), or None where answers are free text
canonical("SPAM. ")                           # "spam"
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

MOST_LABELS, LONGEST_LABEL = 50, 40
SHORT_SHARE, COVERED_SHARE = 0.97, 0.9  # of the answers are short; and belong to a label of at least three rows


@lru_cache(maxsize=1 << 12)
def canonical(label: str) -> str:
    """What the spellings of one label have in common: no case, no spacing, no punctuation around it."""
    text = unicodedata.normalize("NFKC", label).casefold()
    return " ".join(re.sub(r"[\s_-]+", " ", text.strip(" \t\r\n.,;:!?\"'`*()[]")).split())


def labels_of(answers: Sequence[str]) -> Counter[str] | None:
    """Labels by their canonical form, if the answers are labels: few, short and repeated; None otherwise."""
    if len(answers) < 6:
        return None
    n_short = n_json = 0
    for answer in answers:
        n_short += len(answer) <= LONGEST_LABEL and "\n" not in answer.strip()
        n_json += answer.lstrip()[:1] in ("{", "[")
    if n_short < SHORT_SHARE * len(answers) or n_json > 0.5 * len(answers):  # free text; JSON, however few different ones
        return None
    counts: Counter[str] = Counter()
    most = MOST_LABELS + (1 - COVERED_SHARE) * len(answers)  # different ones that labels leave room for
    for answer in answers:
        counts[canonical(answer)] += 1
        if len(counts) > most:
            return None
    repeated = {label: n for label, n in counts.items() if n >= 3 and label}
    if not repeated or len(repeated) > MOST_LABELS or sum(repeated.values()) < COVERED_SHARE * len(answers):
        return None
    return counts
