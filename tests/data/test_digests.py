"""Equal texts have one digest, in whatever order they come."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.digests import digest, digests, first_equal, ranked, where_found

TEXTS = st.lists(st.sampled_from(["", "a", "b", "a ", "ä", "\ud800", "long " * 50]), max_size=30)


@given(TEXTS)
def test_each_text_is_led_to_the_first_that_equals_it(texts):
    assert first_equal(digests(texts)).tolist() == [texts.index(text) for text in texts]


@given(TEXTS, TEXTS)
def test_texts_are_found_among_others(wanted, among):
    assert where_found(digests(wanted), digests(among)).tolist() == [among.index(text) if text in among else -1 for text in wanted]


def test_the_order_is_that_of_the_digests_as_bytes_and_of_equal_ones_the_earlier_comes_first():
    texts = [str(random.Random(i).random()) for i in range(200)] * 2
    order = ranked(digests(texts)).tolist()
    assert order == sorted(range(400), key=lambda place: (digest(texts[place]), place))
    assert digests([]).shape == (0, 2) and first_equal(digests([])).tolist() == [] and digests(texts).dtype == np.uint64
