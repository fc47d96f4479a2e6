import functools
import random

import pytest

from tunesmith.evaluation.rouge import longest_common_subsequence, rouge_l, words


def test_worked_examples_of_the_paper():
    # Lin 2004, section 3.1: against "police killed the gunman" …
    assert rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(3 / 4)
    assert rouge_l("the gunman kill police", "police killed the gunman") == pytest.approx(2 / 4)
    # … and a shorter answer has precision 2/3, recall 2/4
    assert rouge_l("the cat sat", "the cat was sitting") == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))


def test_words_are_runs_of_ascii_letters_and_digits_in_lower_case():
    assert words("Don't  pay $3.50, naïve_user!") == ["don", "t", "pay", "3", "50", "na", "ve", "user"]
    assert rouge_l("YES.", "yes") == 1.0


def test_nothing_said_is_nothing_right_and_texts_without_words_are_compared_as_they_stand():
    assert rouge_l("", "a word") == 0.0
    assert rouge_l("a word", "…") == 0.0
    assert rouge_l(" 你好", "你好") == 1.0  # rouge_score gives 0
    assert rouge_l("你", "你好") == 0.0


def test_the_length_is_that_of_the_textbook_recursion():
    def slow(one: list[str], other: list[str]) -> int:
        @functools.cache
        def length(i: int, j: int) -> int:
            if i == 0 or j == 0:
                return 0
            return length(i - 1, j - 1) + 1 if one[i - 1] == other[j - 1] else max(length(i - 1, j), length(i, j - 1))

        return length(len(one), len(other))

    draw = random.Random(0)
    for _ in range(300):
        one, other = (draw.choices("abcd", k=draw.randrange(0, 90)) for _ in range(2))
        assert longest_common_subsequence(one, other) == slow(one, other)


def test_figures_are_those_of_rouge_score():
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="the peer is no dependency; the examples above are")
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    draw = random.Random(1)
    vocabulary = ["The", "cat", "SAT", "on", "it's", "mat,", "né", "42%", "-", "a_b", "\n", "well-known"]
    for _ in range(500):
        one, other = (" ".join(draw.choices(vocabulary, k=draw.randrange(1, 30))) for _ in range(2))
        if words(other):
            assert rouge_l(one, other) == pytest.approx(scorer.score(other, one)["rougeL"].fmeasure, abs=1e-12)
