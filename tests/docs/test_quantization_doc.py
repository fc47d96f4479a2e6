"""docs/quantization.md: its examples are run, and its tables are the kept figures."""

import doctest
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "quantization.md"


def test_every_example_says_what_it_prints():
    found = doctest.testfile(str(DOCUMENT), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 40
    assert found.failed == 0


def test_the_tables_are_the_kept_figures(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    quant_table = pytest.importorskip("quant_table")
    assert quant_table.with_tables(DOCUMENT.read_text(encoding="utf-8")) == DOCUMENT.read_text(encoding="utf-8")


def test_every_scheme_is_in_the_table_for_both_models():
    table = re.search(r"<!-- table:.*?<!-- /table -->", DOCUMENT.read_text(encoding="utf-8"), flags=re.S)[0]
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in table.splitlines() if line.startswith("| ")}
    for scheme in (
        "bfloat16",
        "int8, rows",
        "affine4, blocks of 64",
        "nf4, blocks of 64, scales in 8 bits",
        "fp4, blocks of 64, scales in 8 bits",
    ):
        assert len(rows[scheme]) == 8, scheme
        assert all(cell.strip() for cell in rows[scheme])
