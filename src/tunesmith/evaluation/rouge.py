"""ROUGE-L: how much of a text another one says in the same order, by their longest common subsequence of words.

    rouge_l("the cat sat", "the cat was sitting")         # 2 of 3 words, 2 of 4 words: F = 2 · 2 / (3 + 4) = 0.571
    rouge_l(answer, reference)                            # of several references take the best: metrics.row_metrics

Words are runs of a–z and 0–9 in lower case, as Google's rouge_score splits them (without its optional stemmer), so that figures
compare with those of papers. It follows that an accent splits a word and that other scripts have no words at all; two texts of
which the reference has none are compared as they stand, where rouge_score would call even equal ones 0.

Sources: Lin 2004, "ROUGE: a package for automatic evaluation of summaries", section 3.1 (F with equal weight of precision and
recall); the length of the subsequence by bits of one long integer, Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
"""

import re
from collections import defaultdict
from collections.abc import Sequence


def rouge_l(prediction: str, reference: str) -> float:
    """F-measure of the longest common subsequence, 0 to 1: 2 · length / (words of one + words of the other)."""
    predicted, expected = words(prediction), words(reference)
    if not expected:
        return float(prediction.strip() == reference.strip())
    return 2 * longest_common_subsequence(predicted, expected) / (len(predicted) + len(expected))


def words(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower())


def longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Its length. Bit j of `open_` is 1 until the subsequence that ends at word j of `other` grew past that of word j − 1."""
    places: defaultdict[str, int] = defaultdict(int)
    for place, word in enumerate(other):
        places[word] |= 1 << place
    full = (1 << len(other)) - 1
    open_ = full
    for word in one:
        matched = open_ & places.get(word, 0)
        open_ = ((open_ + matched) | (open_ - matched)) & full
    return len(other) - open_.bit_count()
