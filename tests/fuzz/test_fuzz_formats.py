"""The short form of `make fuzz`: a few damaged files of every kind and shape, another draw each from the long form's."""

import random
from pathlib import Path

import pytest
from tests.fuzz.fuzz_formats import fuzz_bytes, fuzz_values, seeds, shapes


@pytest.mark.parametrize("kind", seeds(), ids=lambda kind: kind[0])
def test_a_damaged_file_is_read_or_refused_with_a_reason(kind, tmp_path: Path):
    draws = random.Random(kind[0])
    for case in range(16):
        fuzz_bytes(tmp_path, kind, case, draws)


@pytest.mark.parametrize("shape", shapes().items(), ids=lambda shape: shape[0])
def test_one_odd_row_costs_itself_and_is_named_by_its_line(shape, tmp_path: Path):
    draws = random.Random(shape[0])
    for case in range(40):
        fuzz_values(tmp_path, shape, case, draws)
