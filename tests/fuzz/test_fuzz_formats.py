"""The short form of `make fuzz`: the same few damaged files of every kind and shape each time."""

from pathlib import Path

import pytest
from tests.fuzz.fuzz_formats import fuzz, kinds, shapes


@pytest.mark.parametrize("kind", [kind.name for kind in kinds()])
def test_a_damaged_file_is_read_or_refused_with_a_reason(kind, tmp_path: Path):
    outcomes = fuzz(tmp_path, 16, kind=kind)
    assert outcomes.total() >= 16


@pytest.mark.parametrize("shape", shapes())
def test_an_odd_row_costs_itself_and_is_named_by_its_line(shape, tmp_path: Path):
    outcomes = fuzz(tmp_path, 16, shape=shape)
    assert outcomes[f"odd {shape}", "read, rows skipped"] >= 4
