"""docs/mixtures.md: its examples are run."""

import doctest
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "mixtures.md"


def test_every_example_of_a_mixture_says_what_it_prints():
    found = doctest.testfile(str(DOCUMENT), module_relative=False, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert found.attempted > 10
    assert found.failed == 0
