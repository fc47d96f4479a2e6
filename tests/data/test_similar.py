"""Near copies: everything that brute force finds is found, and nothing else."""

import random
import subprocess
import sys
import time
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest

from tunesmith.data.similar import IS_SPACELESS, clusters, matches, plain, words
from tunesmith.errors import BadInput

VOCABULARY = [f"word{i}" for i in range(5000)]


def shingles(text: str) -> set[tuple[str, ...]]:
    """Words and pairs of words; pairs and triples of characters where a script has no spaces."""
    tokens, found = words(text), set()
    for place, token in enumerate(tokens):
        for size in (2, 3) if IS_SPACELESS.match(token) else (1, 2):
            found.add(tuple(tokens[place : place + size]))
    return found


def similarity(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b) if a | b else 0.0


def copies_by_hand(texts: list[str], threshold: float) -> list[int]:
    """The clusters by comparing every pair."""
    cluster = list(range(len(texts)))
    for j in range(len(texts)):
        for i in range(j):
            if plain(texts[i]) == plain(texts[j]) or similarity(texts[i], texts[j]) >= threshold:
                first, second = sorted((cluster[i], cluster[j]))
                cluster = [first if c == second else c for c in cluster]
    return cluster


def changed(text: str, n: int, rng: random.Random) -> str:
    tokens = text.split()
    for place in rng.sample(range(len(tokens)), min(n, len(tokens))):
        tokens[place] = rng.choice(VOCABULARY)
    return " ".join(tokens)


def pairs_at(threshold: float, n: int, seed: int) -> tuple[list[str], list[str]]:
    """n pairs just as similar as the threshold, or at most 0.03 more, of texts of 14 to 60 words."""
    rng = random.Random(seed)
    one: list[str] = []
    other: list[str] = []
    while len(one) < n:
        text = " ".join(rng.sample(VOCABULARY, rng.randint(14, 60)))
        n_shingles = 2 * len(text.split()) - 1  # of which each changed word replaces three
        copy = changed(text, max(1, int(n_shingles * (1 - threshold) / (1 + threshold) / 3)), rng)
        if threshold <= similarity(text, copy) < threshold + 0.03:
            one.append(text)
            other.append(copy)
    return one, other


def test_a_text_is_called_by_its_first_copy():
    assert clusters(["Win a prize now!", "lunch?", "win  a PRIZE now", "lunch"]) == [0, 1, 0, 1]
    assert matches(["lunch", "dinner"], ["breakfast", "Lunch!"]) == [1, None]


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.8, 0.9, 1.0])
def test_clusters_are_those_of_brute_force(threshold):
    rng = random.Random(0)
    texts: list[str] = []
    while len(texts) < 160:
        start = rng.choice(texts[-4:]) if texts and rng.random() < 0.6 else " ".join(rng.sample(VOCABULARY, rng.choice([3, 8, 20, 50])))
        texts.append(changed(start, rng.randint(0, 4), rng))
    expected = copies_by_hand(texts, threshold)
    assert clusters(texts, threshold) == expected
    assert 3 < len(set(expected)) < len(texts)


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9])
def test_pairs_that_just_reach_the_threshold_are_found(threshold):
    one, other = pairs_at(threshold, 400, seed=1)
    found = clusters(one + other, threshold)
    assert sum(found[i] == found[i + 400] for i in range(400)) >= 0.99 * 400
    assert sum(place is not None for place in matches(one, other, threshold)) >= 0.99 * 400


def test_pairs_below_the_threshold_are_never_joined():
    one, other = pairs_at(0.77, 400, seed=2)
    apart = [i for i in range(400) if similarity(one[i], other[i]) < 0.8]
    found = clusters([text for i in apart for text in (one[i], other[i])])
    assert found == list(range(2 * len(apart))) and len(apart) > 300


def test_a_chain_of_copies_is_one_cluster_though_its_ends_differ():
    rng = random.Random(3)
    chain = [" ".join(rng.sample(VOCABULARY, 40))]
    for _ in range(8):
        chain.append(changed(chain[-1], 2, rng))
    assert all(similarity(a, b) >= 0.8 for a, b in pairwise(chain)) and similarity(chain[0], chain[-1]) < 0.5
    assert clusters(chain) == [0] * 9
    assert clusters(chain[::-1]) == [0] * 9


def test_the_order_of_the_texts_changes_names_only():
    rng = random.Random(4)
    one, other = pairs_at(0.8, 50, seed=4)
    texts = one + other
    shuffled = rng.sample(range(100), 100)
    here, there = clusters(texts), clusters([texts[i] for i in shuffled])
    together = {frozenset(i for i in range(100) if here[i] == c) for c in here}
    assert together == {frozenset(shuffled[i] for i in range(100) if there[i] == c) for c in there}


def test_another_process_finds_the_same():
    texts = [changed("one two three four five six seven eight nine ten eleven twelve", i % 3, random.Random(i)) for i in range(60)]
    code = f"from tunesmith.data.similar import clusters; print(clusters({texts!r}, 0.6))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "77"})
    assert run.stdout.strip() == str(clusters(texts, 0.6))


def test_numbers_are_words_that_make_a_short_text_another_and_a_long_one_a_copy():
    codes = ["Your code is 1234", "Your code is 9876"]
    sums = ["What is 12 + 34?", "What is 56 + 78?", "What is 12 - 34?"]
    letter = (
        "Urgent! your mobile number has been awarded with a £2000 prize guaranteed, call {} from land line, claim 3030, valid 12hrs only"
    )
    assert clusters(codes) == [0, 1]
    assert clusters(sums) == [0, 1, 2]
    assert clusters([letter.format("09058094455"), letter.format("09061790121")]) == [0, 0]


def test_the_order_of_words_counts():
    assert clusters(["the dog bites the man", "the man bites the dog"]) == [0, 1]


def test_an_instruction_before_every_question_makes_no_copies():
    rng = random.Random(5)
    instruction = "Read the message below and say in one word whether it is spam or ham. Answer with the label and nothing else.\n\n"
    questions = [" ".join(rng.sample(VOCABULARY, 8)) for _ in range(50)]
    questions += [changed(questions[0], 0, rng) + " please", questions[1].upper()]
    assert similarity(instruction + questions[2], instruction + questions[3]) > 0.5
    assert clusters([instruction + q for q in questions], 0.5) == clusters(questions, 0.5) == [*range(50), 0, 1]


def test_an_instruction_alone_is_no_copy_of_the_questions_that_it_begins():
    rng = random.Random(6)
    instruction = "Write a short poem about the following thing and end it with a question"
    texts = [instruction, *(f"{instruction} {' '.join(rng.sample(VOCABULARY, 5))}" for _ in range(40)), instruction.upper()]
    assert clusters(texts) == [*range(41), 0]


def test_texts_without_words_are_copies_of_their_equals_only():
    assert clusters(["", "?!", "  ", "...", "?!", "\ud800"]) == [0, 1, 0, 3, 1, 5]
    assert matches(["", "?"], ["!", " "]) == [1, None]
    assert clusters([]) == [] and matches([], ["a"]) == [] and matches(["a"], []) == [None]


def test_letters_in_another_unicode_form_or_case_are_the_same():
    text = "Die Straße zum Café ist heute für alle gesperrt"
    assert (
        clusters([text, unicodedata.normalize("NFD", text), text.upper(), "Ｄｉｅ Straße zum Café ist heute für alle gesperrt"]) == [0] * 4
    )
    assert clusters(["👍", "👎", "👍 ", "नमस्ते दुनिया", "नमस्ते  दुनिया"]) == [0, 1, 0, 3, 3]


def test_scripts_without_spaces_are_compared_by_characters():
    news = "本市气象台今天上午发布暴雨预警信号请市民尽量减少外出注意交通安全"
    thai = "กรุณาติดต่อกลับที่หมายเลขนี้ภายในวันนี้เพื่อรับรางวัลใหญ่ของคุณโดยไม่มีค่าใช้จ่าย"
    texts = [
        news,
        news.replace("上午", "下午"),
        "我们明天去公园散步然后一起吃午饭你觉得怎么样呢",
        thai,
        thai.replace("วันนี้", "พรุ่งนี้"),
        "明日は晴れるでしょう",
    ]
    assert clusters(texts, 0.7) == copies_by_hand(texts, 0.7) == [0, 0, 2, 3, 3, 5]


def test_thousands_of_equal_and_of_similar_texts_do_not_cost_the_square():
    rng = random.Random(7)
    equal = ["the very same row again and again"] * 20_000
    alike = [f"{' '.join(rng.sample(VOCABULARY[:30], 12))}" for _ in range(4000)]  # thirty words in every order
    began = time.process_time()
    found = clusters(equal + alike)
    assert time.process_time() - began < 5  # all 8 million pairs would take minutes
    assert set(found[:20_000]) == {0}


def test_a_text_of_many_words_and_one_word_of_many_letters():
    rng = random.Random(8)
    book = " ".join(rng.choices(VOCABULARY, k=300_000))
    assert clusters([book, "short", book + " the end", "a" * 3_000_000, "b" * 10]) == [0, 1, 0, 3, 4]


def test_matches_prefers_an_equal_text_and_names_the_first_of_several():
    others = ["x y z", "one two three four five six seven eight", "one  TWO three four five six seven eight", "lunch"]
    assert matches(["one two three four five six seven eight!", "One two three four five six seven eight"], others) == [1, 1]


def test_progress_rises_to_the_number_of_texts():
    seen: list[int] = []
    clusters([f"a text with the number {i}" for i in range(3000)], on_progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == 3000 and len(seen) > 20
    seen.clear()
    matches([f"a text with the number {i}" for i in range(300)], ["a text"], on_progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == 300


@pytest.mark.parametrize("threshold", [0.0, 0.49, 1.01, float("nan")])
def test_a_threshold_outside_its_range_is_refused(threshold):
    with pytest.raises(BadInput, match="no threshold for near copies"):
        clusters(["a", "b"], threshold)


def test_every_near_copy_among_the_sms_messages_is_found(shared: Path):
    lines = (shared / "data/sms_spam/SMSSpamCollection.tsv").read_text(encoding="utf-8").splitlines()
    texts = list(dict.fromkeys(plain(line.split("\t", 1)[1]) for line in lines))
    sets = [shingles(text) for text in texts]
    having: dict[tuple[str, ...], list[int]] = {}
    for place, of in enumerate(sets):
        for shingle in of:
            having.setdefault(shingle, []).append(place)
    found = clusters(texts)
    n_pairs = 0
    for place, of in enumerate(sets):
        # at 0.8 two texts share all but a fifth of their shingles, so one of the rarest fifth and one more of each
        rarest = sorted(of, key=lambda shingle: len(having[shingle]))[: len(of) // 5 + 1]
        for other in {other for shingle in rarest for other in having[shingle] if other < place}:
            if len(of & sets[other]) >= 0.8 * len(of | sets[other]):
                n_pairs += 1
                assert found[place] == found[other], (texts[place], texts[other])
    assert n_pairs > 100


@pytest.mark.slow
def test_a_hundred_thousand_texts_of_a_hundred_words():
    code = """
import random, resource, time
from tunesmith.data.similar import clusters
rng = random.Random(0)
words = [f"word{int(rng.paretovariate(0.7))}" for _ in range(200_000)]  # few often, many once, as in any language
texts = [" ".join(rng.choices(words, k=100)) for _ in range(100_000)]
for i in range(0, 100_000, 10):
    texts[i] = texts[i + 1].replace(" word7 ", " word8 ")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.process_time()
clusters(texts)
print(time.process_time() - began, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, run.stdout.split())
    assert seconds < 40 and megabytes < 1000  # 11 s and 280 MB beside other work
