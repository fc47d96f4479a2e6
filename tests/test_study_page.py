"""The page of a quantisation study: what it says, and that it loads nothing and runs nobody's text."""

import json

import pytest
from tests.report.made_runs import ATTACK, Page

from tunesmith.evaluation.quant_study import Damage, Histogram, LayerStudy, SchemeStudy, Study
from tunesmith.quant.scheme import find_scheme
from tunesmith.study_page import write_study


def made(model="acorn", perplexities=(20.0, 21.0, 4000.0, None)):
    """A study of two layers and four schemes with round numbers."""
    schemes = [find_scheme("int8"), find_scheme("nf4"), find_scheme("int4", clip=98), find_scheme("int2")]
    damages = [Damage(1000, n_bytes, 100.0, error, 0.5, saturated) for n_bytes, error, saturated in
               ((1000, 0.01, 0), (516, 1.0, 0), (563, 2.0, 15), (313, 50.0, 0))]  # fmt: skip
    figures = {str(scheme): damage.figures() for scheme, damage in zip(schemes, damages, strict=True)}
    return Study(
        model=model, dtype="bfloat16", n_weights=2000, n_tokens={"text.txt": 20_000}, loss=3.0, perplexity=20.0, perplexities={"text.txt": 20.0},
        schemes=[SchemeStudy(s, str(s), figures[str(s)], 3.0, p, {"text.txt": p}) for s, p in zip(schemes, perplexities, strict=True)],
        layers=[LayerStudy(f"model.layers.{i}.mlp.up_proj", 50, 20, 0.001, figures) for i in range(2)],
        histogram=Histogram([-1.0, 0.0, 1.0], [0.25, 0.75]),
    )  # fmt: skip


def test_the_page_says_what_each_scheme_costs(tmp_path):
    page = Page(write_study(made(), tmp_path))
    assert page.open == []  # well-formed
    text = " ".join(page.text.split())
    for fact in (
        "nf4, blocks of 64, scales in 8 bits: 4.128 bits per weight, perplexity 20.00 → 21.00 (+5.00 %)",
        "2,000 in 2 linear layers", "text.txt (20,000 tokens)", "0.1000 %", "+19,900.00 %", "1.50 %", "–",
        "model.layers.1.mlp.up_proj", "50 × 20", "20.0",
    ):  # fmt: skip
        assert fact in text, fact
    assert json.loads((tmp_path / "study.json").read_text())["perplexity"] == 20


def test_without_clipping_no_column_of_saturation(tmp_path):
    study = made()
    study.schemes.pop(2)
    assert "saturated" not in Page(write_study(study, tmp_path)).text


def test_the_pictures_hold_the_numbers(tmp_path):
    charts = Page(write_study(made(), tmp_path)).charts
    codebooks, symmetric = charts["bits"]["data"]
    assert (codebooks["x"], codebooks["y"]) == ([4.128], [pytest.approx(5)])
    assert symmetric["y"] == [0.1, pytest.approx(19_900)]  # int8 lost nothing; int2 has no number
    assert [line["y"][0] for line in charts["layers"]["data"]] == [40, 20, pytest.approx(16.99, abs=0.01), pytest.approx(3.01, abs=0.01)]
    bars, nf4, fp4, int4 = charts["levels"]["data"]
    assert (bars["x"], bars["y"]) == ([-0.5, 0.5], [0.25, 0.75])
    assert [len(marks["x"]) for marks in (nf4, fp4, int4)] == [16, 16, 15]
    assert nf4["x"][0] == -1 and nf4["x"][-1] == 1


def test_the_page_loads_nothing_and_text_of_others_stays_text(tmp_path):
    page = Page(write_study(made(model=ATTACK), tmp_path))
    assert page.open == []
    assert page.loads == []
    assert len(page.scripts) == 3
    assert ATTACK in page.text


def test_names_of_neighbouring_points_stand_apart(tmp_path):
    study = made(perplexities=(20.5, 20.5, 20.5, 90.0))  # at 8, 4.128, 4.504 and 2.504 bits: nf4 and int4 are neighbours
    codebooks, symmetric = Page(write_study(study, tmp_path)).charts["bits"]["data"]
    assert codebooks["textposition"] + symmetric["textposition"] == ["middle left", "middle right", "middle right", "middle right"]
