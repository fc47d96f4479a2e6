"""Texts that are nearly the same: MinHash finds the candidates, and each pair is then verified by its true similarity.

    clusters(["Win a prize now!", "lunch?", "win  a PRIZE now"])    # [0, 1, 0]: the place of the first copy of each text
    matches(train_prompts, test_prompts)                            # [None, 17, …]: where a near copy of each stands

Two texts are near copies when the Jaccard similarity |A ∩ B| / |A ∪ B| of their shingles reaches the threshold; near copies of near
copies are in one cluster. What a text is made of, and why:

- **Words**, after Unicode's compatibility form (NFKC) and case folding. Marks of the sentence (. , ; : ! ? quotes) do not count; other
  signs are words, for "12 + 34" and "12 - 34" ask different things, and a message may be nothing but "👍".
- **Shingles** are the words and the pairs of neighbours. Words alone would make "the man bites the dog" a copy of "the dog bites the man";
  runs of three alone would find no copy among messages of ten words, where one changed word breaks three runs of eight. At 0.8 one word
  may differ in 14, and three in 50.
- **Scripts without spaces** (Chinese, Japanese, Thai, Lao, Burmese, Khmer): pairs and triples of characters take the words' place.
- **Numbers are words like any other.** "Your code is 1234" and "Your code is 9876" stay two texts, and so do "What is 12 + 34?" and
  "What is 56 + 78?": there the numbers are the question, and read as one thing they would put every sum into one cluster, which no split could
  cut. A letter of 30 words with another telephone number is a copy: who has learned one knows the answer to the other.
- **Forms** count as one word: passages of five words and more that stand in many different texts (more than 100; of fewer than 500 texts more than a
  fifth, but at least 10). They are what rows are written in, such as the instruction before each question, and not something copied;
  100 equal words would otherwise make all questions near copies of each other. A letter with more copies than that is a form as well: its
  copies are compared by the words in which they differ.

A text without a word ("?!") is a near copy of nothing but the texts that equal it but for case and spacing; those are always together.

Time and memory grow with the number of words and not with the number of pairs: equal texts are one text, and where many look alike, each is compared
with its `WINDOW` nearest neighbours in a bucket, if they are not in one cluster already. In memory are about 250 bytes a text: an eighth of each
signature, enough to see which pairs are worth a closer look, and the keys of a band. The words (8 bytes each) and the signatures (512 a text) lie on disk.

Source: Broder 1997, "On the resemblance and containment of documents"; for the bands Leskovec, Rajaraman and Ullman 2014, "Mining of Massive
Datasets", section 3.4; for estimates by the last bits of a signature Li and König 2010, "b-Bit minwise hashing" (arXiv 0910.3349).
"""

import re
import unicodedata
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.digests import Places, digests, first_equal
from tunesmith.data.spool import Numbers, joined, ranges
from tunesmith.errors import BadInput

Hashes = NDArray[np.uint64]

LEAST_THRESHOLD = 0.5  # below, bands would be so short that unrelated texts share them
PERMUTATIONS = 128
MISSED = 1e-3  # of the pairs exactly as similar as the threshold, what the bands may miss (4e-3 at 0.5, where they are shortest)
FORM_WORDS, FORM_TEXTS, FORM_SHARE, FORM_LEAST = 5, 100, 0.2, 10
WINDOW = 32
SPACELESS_BIT, FORM_BIT = 1, 2
SLAB = 1 << 18  # words worked on at once
PIECE = 1 << 20  # characters cut into words at once
ESTIMATED = 4096  # pairs whose signatures are compared at once
REMEMBERED = 1 << 20  # pairs that are not looked at again
VOCABULARY = 1 << 18  # words whose hashes are kept for the next text

# Thai and Lao, Burmese, Khmer, 々〆〇, kana, Han
SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[^\W{SPACELESS}]+|[{SPACELESS}]|[^\w\s.,;:!?'\"`´‘’“”„«»…¿¡。、]")
IS_SPACELESS = re.compile(f"[{SPACELESS}]")


def plain(text: str) -> str:
    """What texts have in common that are equal but for case and spacing."""
    return " ".join(text.casefold().split())


def words(text: str) -> list[str]:
    """The words that count; of a script without spaces, its characters."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def clusters(texts: Sequence[str], threshold: float = 0.8, on_progress: Callable[[int], None] | None = None) -> list[int]:
    """For each text the place of the first member of its cluster.

    threshold     0.5 to 1: the similarity from which two texts are near copies
    on_progress   is told how much of the work is done, in texts
    No two texts are joined but through pairs of that similarity. Of the pairs that just reach it, less than 1 in 1,000 is missed (at 0.8,
    1 in 10,000), and fewer of more similar ones. Raises BadInput for another threshold.
    """
    texts_read, first = _read(texts, _in_texts(on_progress, len(texts)))
    distinct = np.unique(first)
    signed = _sign(texts_read.only(distinct), threshold, _in_texts(on_progress, len(texts)))
    roots = np.arange(len(distinct))  # of each text the first one of its cluster, as far as it is known
    refused: set[int] = set()
    for band in range(signed.n_bands):
        for one, other in _neighbours(signed.key(band), signed.key(band + 1)):
            apart = roots[one] != roots[other]
            roots = _joined(roots, _verified(signed, one[apart], other[apart], refused))
        signed.said(0.8 + 0.2 * (band + 1) / signed.n_bands)
    signed.said(1.0)
    clustered: list[int] = distinct[roots[np.searchsorted(distinct, first)]].tolist()
    return clustered


def matches(
    texts: Sequence[str], others: Sequence[str], threshold: float = 0.8, on_progress: Callable[[int], None] | None = None
) -> list[int | None]:
    """For each text the place of a near copy among the others, of an equal one if there is one; None: there is no near copy.

    threshold, on_progress   as of `clusters`
    """
    texts_read, first = _read(joined([others, texts]), _in_texts(on_progress, len(texts)))
    distinct = np.unique(first)
    n_others = int(np.searchsorted(distinct, len(others)))  # different ones; they come first
    signed = _sign(texts_read.only(distinct), threshold, _in_texts(on_progress, len(texts)))
    found = np.where(np.arange(len(distinct)) < n_others, np.arange(len(distinct)), -1)
    refused: set[int] = set()
    for band in range(signed.n_bands):
        for one, other in _neighbours(signed.key(band), signed.key(band + 1), n_others):
            open_ = found[other] < 0
            for a, b in _verified(signed, one[open_], other[open_], refused):
                found[b] = a
        signed.said(0.8 + 0.2 * (band + 1) / signed.n_bands)
    signed.said(1.0)
    of_texts = found[np.searchsorted(distinct, first[len(others) :])]
    return [place if matched else None for place, matched in zip(distinct[of_texts].tolist(), (of_texts >= 0).tolist(), strict=True)]


# Texts to words: 64 bits each, of which two say whether it is a character of a script without spaces, or a form.


@dataclass(frozen=True)
class _Words:
    """Some texts in memory: of text i the words are hashes[starts[i]:starts[i + 1]]."""

    hashes: Hashes
    starts: Places

    def text_of(self) -> Places:
        """For each word its text."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


@dataclass(frozen=True)
class _Read:
    """All texts, on disk: of text i `lengths[i]` words from `starts[i]` on."""

    words: Numbers
    starts: Places
    lengths: Places

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def n_words(self) -> int:
        return int(self.lengths.sum())

    def only(self, places: Places) -> "_Read":
        """The texts at these places, which come in order."""
        return _Read(self.words, self.starts[places], self.lengths[places])

    def slabs(self) -> Iterator[tuple[int, int, _Words]]:
        """Ranges of texts of about SLAB words, one text at least, with their words."""
        ends, first = np.cumsum(self.lengths), 0
        while first < len(self):
            before = int(ends[first - 1]) if first else 0
            end = min(max(int(np.searchsorted(ends, before + SLAB, side="right")), first + 1), len(self))
            yield first, end, self.texts(np.arange(first, end))
            first = end

    def texts(self, places: Places) -> _Words:
        """Texts at these places, which come in order."""
        lengths = self.lengths[places]
        return _Words(self.words.gathered(self.starts[places], lengths), np.concatenate([[0], np.cumsum(lengths)]))


class _Vocabulary(dict[str, int]):
    """Word → hash; the same in every process, which Python's own is not."""

    def __missing__(self, word: str) -> int:
        if len(self) >= VOCABULARY:
            self.clear()
        value = int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
        self[word] = value = (value & ~3) | (SPACELESS_BIT if IS_SPACELESS.match(word) else 0)
        return value


def _read(texts: Sequence[str], said: Callable[[float], None]) -> tuple[_Read, Places]:
    """Every text as words, and for each the place of the first that equals it but for case and spacing."""
    all_words, ends, vocabulary = Numbers(np.uint64), array("q"), _Vocabulary()

    def one_by_one() -> Iterator[str]:
        hashes = array("Q")
        for n_read, text in enumerate(texts, 1):
            for begin in range(0, len(text), PIECE):
                hashes.extend(map(vocabulary.__getitem__, words(text[begin : begin + PIECE])))
            ends.append(len(all_words) + len(hashes))
            if len(hashes) >= SLAB:
                all_words.append(np.frombuffer(hashes, np.uint64))
                hashes = array("Q")
            if n_read % 1024 == 0:
                said(0.5 * n_read / len(texts))
            yield plain(text)
        if hashes:
            all_words.append(np.frombuffer(hashes, np.uint64))

    first = first_equal(digests(one_by_one()))
    whole = np.frombuffer(ends, np.int64) if ends else np.empty(0, np.int64)
    lengths = np.diff(whole, prepend=0)
    return _Read(all_words, whole - lengths, lengths), first


def _mixed(values: Hashes) -> Hashes:
    """Every bit of the result depends on every bit of the value (Steele et al. 2014, the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _after(read: _Words, n: int) -> tuple[Hashes, NDArray[np.bool_]]:
    """For each word the one that stands n places after it, and whether there is one in the same text."""
    text_of = read.text_of()
    later, inside = np.zeros_like(read.hashes), np.zeros(len(text_of), bool)
    if len(text_of) > n:
        later[:-n] = read.hashes[n:]
        inside[:-n] = text_of[n:] == text_of[:-n]
    return later, inside


def _runs(read: _Words, n: int) -> tuple[Hashes, NDArray[np.bool_]]:
    """For each word the hash of the n words that begin with it, and whether these are in one text."""
    run = _mixed(read.hashes)
    inside = np.ones(len(run), bool)
    for k in range(1, n):
        later, inside = _after(read, k)
        run = _mixed(run + later * np.uint64(2 * k + 1))
    return run, inside


# Forms.


def _without_forms(read: _Read) -> _Read:
    """Each run of words that stand in passages common to many texts becomes one word."""
    n_texts = len(read)
    limit = min(FORM_TEXTS, max(FORM_LEAST, int(FORM_SHARE * n_texts)))
    if n_texts <= limit:
        return read
    n_counts = 1 << min(24, max(12, (4 * read.n_words).bit_length()))
    n_texts_with = np.zeros(n_counts, np.uint32)  # of a passage, by the last bits of its hash
    for _, _, slab in read.slabs():
        passages, inside = _runs(slab, FORM_WORDS)
        place = slab.text_of()[inside] * n_counts + (passages[inside] & np.uint64(n_counts - 1)).astype(np.int64)
        passage = np.sort(_unique(place) % n_counts)
        changes = np.flatnonzero(np.diff(passage, prepend=-1))
        n_texts_with[passage[changes]] += np.diff(changes, append=len(passage)).astype(np.uint32)
    if int(n_texts_with.max()) <= limit:
        return read
    hashes = Numbers(np.uint64)
    lengths: list[Places] = []
    for _, _, slab in read.slabs():
        passages, inside = _runs(slab, FORM_WORDS)
        n_with = np.where(inside, n_texts_with[passages & np.uint64(n_counts - 1)], 0)
        most = (
            n_with.copy()
        )  # of the passages that share a word with each; those of other texts do not reach it, for the last four of a text are 0
        for k in range(1, FORM_WORDS):
            most[k:] = np.maximum(most[k:], n_with[:-k])
            most[:-k] = np.maximum(most[:-k], n_with[k:])
        begins = (n_with > limit) & (2 * n_with >= most)  # "… the message: I am" is common too, but only where "… of the message:" ends
        form = begins.copy()
        for k in range(1, FORM_WORDS):
            form[k:] |= begins[:-k]
        kept, counts = _folded(slab, form)
        hashes.append(kept)
        lengths.append(counts)
    whole = np.concatenate(lengths)
    return _Read(hashes, np.cumsum(whole) - whole, whole)


def _folded(read: _Words, form: NDArray[np.bool_]) -> tuple[Hashes, Places]:
    """The words with every run of form words as one, and how many of them each text has."""
    text_of = read.text_of()
    begins = np.ones(len(form), bool)
    begins[1:] = ~(form[1:] & form[:-1] & (text_of[1:] == text_of[:-1]))
    where = np.flatnonzero(begins)
    if not len(where):
        return read.hashes, np.diff(read.starts)
    n_since = (np.arange(len(form)) - where[np.cumsum(begins) - 1]).astype(np.uint64)
    whole = np.add.reduceat(_mixed(read.hashes + n_since * np.uint64(0x9E3779B97F4A7C15)), where) & np.uint64(~3 & 2**64 - 1) | np.uint64(
        FORM_BIT
    )
    return np.where(form[where], whole, read.hashes[where]), np.bincount(text_of[where], minlength=len(read.starts) - 1)


# Words to shingles to signatures.


def _shingles(read: _Words) -> tuple[Hashes, Places]:
    """Two shingles for each word, one after the other, and where those of each text begin; the same one may come again.

    A word alone and with the next one; a character of a script without spaces with the next and the next two. Shorter where the text ends or a
    form stands, so that two texts are at least as similar in a form as without it.
    """
    spaceless = (read.hashes & np.uint64(SPACELESS_BIT)).astype(bool)
    single = _mixed(read.hashes)
    (double, has_next), (triple, has_two) = _runs(read, 2), _runs(read, 3)
    form = (read.hashes & np.uint64(FORM_BIT)).astype(bool)
    if form.any():
        beside = form.copy()
        beside[:-1] |= form[1:]
        has_next &= ~beside
        has_two &= ~beside
        has_two[:-2] &= ~form[2:]
    double = np.where(has_next, double, single)
    triple = np.where(has_two, triple, double)
    pairs = np.stack([np.where(spaceless, double, single), np.where(spaceless, triple, double)], axis=1)
    return pairs.reshape(-1), 2 * read.starts


@dataclass(frozen=True)
class _Signed:
    """Texts with their MinHash signatures of PERMUTATIONS numbers each, cut into bands of so many columns.

    signatures   on disk: of each slab of texts [permutations, texts]
    slabs        where those begin among the texts, and the number of texts
    last_bits    [texts, permutations], in memory: the last eight bits of each number
    """

    read: _Read
    signatures: Numbers
    slabs: list[int]
    last_bits: NDArray[np.uint8]
    threshold: float
    width: int
    said: Callable[[float], None]

    @property
    def n_bands(self) -> int:
        return PERMUTATIONS // self.width

    def key(self, band: int) -> Hashes:
        """Texts with one key agree in all columns of the band; a text without words has a key of its own. Bands go round."""
        key = np.full(len(self.read), band % self.n_bands, np.uint64)
        first_column = band % self.n_bands * self.width
        for first, end in pairwise(self.slabs):
            n_texts = end - first
            begin = first * PERMUTATIONS + first_column * n_texts
            columns = self.signatures.read(begin, begin + self.width * n_texts).reshape(self.width, n_texts)
            for column in columns:
                key[first:end] = _mixed(key[first:end] + column)
        return key


def _sign(texts: _Read, threshold: float, said: Callable[[float], None]) -> _Signed:
    if not LEAST_THRESHOLD <= threshold <= 1:
        raise BadInput(
            f"{threshold:g} is no threshold for near copies", where="similarity",
            fix=f"{LEAST_THRESHOLD:g} to 1; 0.8 is usual",
        )  # fmt: skip
    read = _without_forms(texts)
    factors = _mixed(np.arange(1, PERMUTATIONS + 1, dtype=np.uint64)) | np.uint64(1)
    signatures, slabs = Numbers(np.uint32), [0]
    last_bits = np.empty((len(read), PERMUTATIONS), np.uint8)
    for first, end, slab in read.slabs():
        shingles, starts = _shingles(slab)
        filled = np.flatnonzero(np.diff(starts))
        block = np.empty((PERMUTATIONS, end - first), np.uint32)
        block[:] = _mixed(np.arange(first, end, dtype=np.uint64)) >> np.uint64(32)  # of texts without words
        if len(filled):
            permuted = np.empty_like(shingles)
            for k, factor in enumerate(factors):
                np.multiply(shingles, factor, out=permuted)
                block[k, filled] = np.minimum.reduceat(permuted, starts[filled]) >> np.uint64(32)
        signatures.append(block)
        slabs.append(end)
        last_bits[first:end] = block.T.astype(np.uint8)
        said(0.5 + 0.3 * end / len(read))
    return _Signed(read, signatures, slabs, last_bits, threshold, _width(threshold), said)


def _width(threshold: float) -> int:
    """Columns of a band: as many as possible while a pair at the threshold shares one of the bands but for a chance of MISSED."""
    return max(width for width in range(3, 17) if width == 3 or (1 - threshold**width) ** (PERMUTATIONS // width) <= MISSED)


# Candidates.


def _neighbours(keys: Hashes, next_to: Hashes, n_others: int | None = None) -> Iterator[tuple[Places, Places]]:
    """Pairs of places that share a key, in rounds: neighbours first. Within a bucket, places are sorted by `next_to`, so that copies are near.

    n_others   pairs (one of the first n_others, one of the rest) only; None: pairs (smaller, larger) of all
    """
    order = np.lexsort((next_to, keys))
    ordered = keys[order]
    if n_others is None:
        starts = np.ones(len(order), bool)
        starts[1:] = ordered[1:] != ordered[:-1]
        at = np.arange(len(order)) - np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))
        for k in range(1, WINDOW + 1):
            here = np.flatnonzero(at >= k)
            if not len(here):
                return
            one, other = order[here - k], order[here]
            yield np.minimum(one, other), np.maximum(one, other)
        return
    is_other = order < n_others
    others, rest = order[is_other], order[~is_other]
    near = np.cumsum(is_other)[~is_other]  # others before each of the rest
    low, high = (np.searchsorted(ordered[is_other], ordered[~is_other], side) for side in ("left", "right"))
    for k in range(WINDOW):
        any_left = False
        for place in (near + k, near - 1 - k):
            here = np.flatnonzero((low <= place) & (place < high))
            if len(here):
                any_left = True
                yield others[place[here]], rest[here]
        if not any_left:
            return


def _verified(signed: _Signed, one: Places, other: Places, refused: set[int]) -> list[tuple[int, int]]:
    """The pairs whose true similarity reaches the threshold. `refused`: pairs seen here before that do not; new ones are added."""
    used = signed.n_bands * signed.width
    enough = signed.threshold - 4 * (signed.threshold * (1 - signed.threshold) / used) ** 0.5  # four standard deviations
    n_texts = len(signed.read)
    verified: list[tuple[int, int]] = []
    for first in range(0, len(one), ESTIMATED):
        a, b = one[first : first + ESTIMATED], other[first : first + ESTIMATED]
        # some pairs too many, as different numbers may end in the same bits, and none too few
        likely = np.count_nonzero(signed.last_bits[a] == signed.last_bits[b], axis=1) >= enough * PERMUTATIONS
        a, b = a[likely], b[likely]
        new = np.array([code not in refused for code in (a * n_texts + b).tolist()], bool)
        a, b = a[new], b[new]
        alike = _similarities(signed.read, a, b) >= signed.threshold
        verified += zip(a[alike].tolist(), b[alike].tolist(), strict=True)
        refused.update((a * n_texts + b)[~alike].tolist())
        if len(refused) > REMEMBERED:
            refused.clear()
    return verified


def _similarities(read: _Read, one: Places, other: Places) -> NDArray[np.float64]:
    """The Jaccard similarity of the shingles of each pair of texts."""
    n_words = np.cumsum(read.lengths[one] + read.lengths[other])
    similarities = np.zeros(len(one))
    first = 0
    while first < len(one):
        end = max(first + 1, int(np.searchsorted(n_words, (n_words[first - 1] if first else 0) + SLAB, side="right")))
        similarities[first:end] = _similarities_of_slab(read, one[first:end], other[first:end])
        first = end
    return similarities


def _similarities_of_slab(read: _Read, one: Places, other: Places) -> NDArray[np.float64]:
    places, local = np.unique(np.concatenate([one, other]), return_inverse=True)
    one, other = local[: len(one)], local[len(one) :]
    shingles, ends = _shingles(read.texts(places))
    values, number = np.unique(shingles, return_inverse=True)
    # a set of shingles is a range of `members`: numbers of shingles, each with its text before it as the high digit
    members = _unique(np.repeat(np.arange(len(places)), np.diff(ends)) * len(values) + number)
    begins = np.searchsorted(members, np.arange(len(places) + 1) * len(values))
    sizes = np.diff(begins)
    wanted = members[ranges(begins[one], sizes[one])] % max(len(values), 1) + np.repeat(other, sizes[one]) * len(values)
    found = np.searchsorted(members, wanted)
    shared = (found < len(members)) & (members[np.minimum(found, len(members) - 1)] == wanted)
    n_both = np.bincount(np.repeat(np.arange(len(one)), sizes[one]), weights=shared, minlength=len(one))
    return n_both / np.maximum(sizes[one] + sizes[other] - n_both, 1)


def _unique(values: Places) -> Places:
    """Values from 0 on, sorted, each once; where most differ, faster than np.unique, which hashes them."""
    values = np.sort(values)
    return values[np.flatnonzero(np.diff(values, prepend=-1))]


def _joined(roots: Places, pairs: list[tuple[int, int]]) -> Places:
    """The first text of each text's cluster after the pairs are joined."""
    if not pairs:
        return roots
    above = roots.copy()

    def root(place: int) -> int:
        while above[place] != place:
            above[place] = place = int(above[above[place]])
        return place

    for one, other in pairs:
        first, second = sorted((root(one), root(other)))
        above[second] = first
    while not np.array_equal(above, higher := above[above]):
        above = higher
    return above


def _in_texts(on_progress: Callable[[int], None] | None, n_texts: int) -> Callable[[float], None]:
    return lambda share: on_progress(int(share * n_texts)) if on_progress else None
