"""What quantisation loses, in numbers: by hand for one weight, and for a whole model against its de-quantised weights."""

import json
import math

import pytest
import torch

from tunesmith.errors import BadInput
from tunesmith.evaluation.quant_study import (
    N_BINS,
    Damage,
    Text,
    damage,
    examples_of,
    measure,
    n_saturated,
    outlier_share,
    packaged_text,
    read_text,
    relative_counts,
    schemes_to_study,
    study,
    weights_of,
)
from tunesmith.model.load import load_model
from tunesmith.quant.scheme import find_scheme
from tunesmith.quant.tensor import dequantize, quantize

INT4, NF4 = find_scheme("int4"), find_scheme("nf4")
TEXT = Text("words", "the a spam ham free win call me now later lunch today message is this " * 40)


def block(*values):
    """One block of 64: these values, then zeros."""
    x = torch.zeros(1, 64)
    x[0, : len(values)] = torch.tensor(values)
    return x


# --- one weight ---------------------------------------------------------------------------------------------------------


def test_the_damage_of_one_block_by_hand():
    found = damage(block(7.0, -7.0, 1.4, 0.4), INT4)  # codes 7, -7, 1, 0
    assert (found.n_weights, found.n_bytes) == (64, 32 + 4)
    assert found.squared_weight == pytest.approx(49 + 49 + 1.96 + 0.16)
    assert found.squared_error == pytest.approx(0.16 + 0.16)
    assert found.worst_error == pytest.approx(0.4)
    figures = found.figures()
    assert figures.bits_per_weight == 4.5
    assert figures.mean_squared_error == pytest.approx(0.32 / 64)
    assert figures.snr_dB == pytest.approx(10 * math.log10(100.12 / 0.32), rel=1e-4)


def test_what_is_kept_exactly_has_no_ratio():
    assert damage(block(7.0, -7.0, 1.0), INT4).figures().snr_dB is None
    assert damage(block(), NF4).figures().snr_dB is None


def test_damages_add_up_to_that_of_the_whole():
    w = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    parts, whole = damage(w[:2], INT4) + damage(w[2:], INT4), damage(w, INT4)
    assert (parts.n_weights, parts.n_bytes, parts.worst_error) == (whole.n_weights, whole.n_bytes, whole.worst_error)
    assert parts.squared_error == pytest.approx(whole.squared_error)
    assert Damage() + whole == whole


def test_only_clipping_saturates_and_each_clipped_outlier_counts_once():
    w = torch.randn(8, 172, generator=torch.Generator().manual_seed(0)) * 0.02
    w[:, 5] = 1.0  # one outlier in the first block of each row
    clipped = find_scheme("int4", clip=98.0)
    assert n_saturated(w[:, :64], clipped) == 8
    assert n_saturated(w, INT4) == n_saturated(w, NF4) == 0
    assert damage(w, clipped).figures().saturated_share == n_saturated(w, clipped) / w.numel() > 8 / w.numel()


def test_outliers_lie_beyond_four_standard_deviations_of_their_own_block():
    quiet, loud = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))[:, None]
    assert outlier_share(torch.cat([quiet, 1000 * loud], 1)) == 0  # large beside the other block, not in its own
    assert outlier_share(block(1.0)) == 1 / 64
    assert outlier_share(torch.zeros(2, 64)) == 0


def test_the_histogram_holds_every_weight_once_and_the_largest_at_the_ends():
    w = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    counts = relative_counts(w)
    assert (len(counts), int(counts.sum())) == (N_BINS, 400)
    assert counts[0] + counts[-1] >= 8  # one of each block
    assert relative_counts(torch.zeros(1, 64))[N_BINS // 2] == 64


# --- texts and schemes --------------------------------------------------------------------------------------------------


def test_the_packaged_text_has_messages_of_every_kind():
    text = packaged_text()
    assert len(text.content) > 100_000
    first = text.content.splitlines()[:3]
    assert len(set(first)) == 3


@pytest.mark.parametrize(("content", "what"), [(b"\xff\xfe words", "not UTF-8"), (b" \n ", "empty"), (None, "cannot be read")])
def test_a_text_that_is_none_is_refused(content, what, tmp_path):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=what) as error:
        read_text(path)
    assert str(path) in error.value.where and error.value.fix


def test_one_more_scheme_is_studied_once_and_blocks_may_be_chosen():
    usual = schemes_to_study()
    assert len(usual) == len(set(usual)) == 13
    assert schemes_to_study(None, NF4) == usual
    clipped = find_scheme("int4", clip=98)
    assert schemes_to_study(None, clipped) == [*usual, clipped]
    assert {scheme.block_size for scheme in schemes_to_study(32)} == {32, None}


def test_a_text_is_cut_at_its_tokens_and_every_one_but_the_first_is_predicted_once(tiny_model):
    loaded = load_model(str(tiny_model), "float32")  # 256 positions
    examples = examples_of(TEXT, loaded, 500)
    assert [len(example) for example in examples] == [256, 246]
    assert sum(int(example.trained[1:].sum()) for example in examples) == 500


# --- the whole model ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(tiny_model):
    return study(str(tiny_model), [find_scheme("int8"), NF4, find_scheme("int2")], [TEXT, Text("more", TEXT.content[::-1])], n_tokens=600)


def test_the_perplexity_of_a_scheme_is_that_of_the_dequantised_weights(found, tiny_model):
    loaded = load_model(str(tiny_model), "bfloat16")
    examples = {name: examples_of(text, loaded, 600) for name, text in (("words", TEXT), ("more", Text("more", TEXT.content[::-1])))}
    _, perplexity, by_text = measure(loaded, examples)
    assert (found.perplexity, found.perplexities) == (perplexity, by_text)
    for _, weight_NK in weights_of(loaded.model):
        weight_NK.data.copy_(dequantize(quantize(weight_NK, NF4), torch.bfloat16))
    _, perplexity, by_text = measure(loaded, examples)
    of_nf4 = found.schemes[1]
    assert of_nf4.perplexity == pytest.approx(perplexity, rel=2e-3)
    assert of_nf4.perplexities == pytest.approx(by_text, rel=2e-3)
    assert found.change(of_nf4) == of_nf4.perplexity / found.perplexity - 1


def test_fewer_bits_lose_more_in_every_layer(found):
    names = [scheme.name for scheme in found.schemes]
    assert names == ["int8, rows", "nf4, blocks of 64, scales in 8 bits", "int2, blocks of 64"]
    assert len(found.layers) == 14  # two blocks of seven
    for layer in found.layers:
        ratios = [layer.figures[name].snr_dB for name in names]
        assert ratios == sorted(ratios, reverse=True) and ratios[0] > 35 > 15 > ratios[2]
    assert [scheme.figures.bits_per_weight for scheme in found.schemes] == sorted(
        (scheme.figures.bits_per_weight for scheme in found.schemes), reverse=True
    )
    assert found.n_weights == sum(layer.n_outputs * layer.n_inputs for layer in found.layers)
    assert sum(found.histogram.shares) == pytest.approx(1)
    assert found.n_tokens == {"words": 600, "more": 600}


def test_the_numbers_are_strict_json(found):
    again = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert again["schemes"][1]["scheme"] == {"name": "nf4", "bits": 4, "block_size": 64, "double": True, "clip": None, "embeddings": False}
    assert again["layers"][0]["figures"]["int8, rows"]["snr_dB"] == found.layers[0].figures["int8, rows"].snr_dB
