"""Names, bits and defaults of the schemes, and what is refused."""

import pytest

from tunesmith.errors import BadInput
from tunesmith.quant.scheme import NAMES, Scheme, find_scheme


@pytest.mark.parametrize(
    ("given", "scheme", "words"),
    [
        ({"name": "nf4"}, Scheme("nf4", 4, 64, True), "nf4, blocks of 64, scales in 8 bits"),
        ({"name": "nf4", "double": False}, Scheme("nf4", 4, 64), "nf4, blocks of 64"),
        ({"name": "fp4", "block_size": 128}, Scheme("fp4", 4, 128, True), "fp4, blocks of 128, scales in 8 bits"),
        ({"name": "int8"}, Scheme("int8", 8, None), "int8, rows"),
        ({"name": "affine8", "block_size": 32}, Scheme("affine8", 8, 32), "affine8, blocks of 32"),
        ({"name": "int4", "clip": 98.0}, Scheme("int4", 4, 64, False, 98.0), "int4, blocks of 64, clipped at 98 %"),
        ({"name": "affine2", "double": True}, Scheme("affine2", 2, 64, True), "affine2, blocks of 64, scales in 8 bits"),
    ],
)
def test_defaults_are_filled_in(given, scheme, words):
    assert find_scheme(**given) == scheme
    assert str(scheme) == words


@pytest.mark.parametrize(
    ("given", "where", "what"),
    [
        ({"name": "nf5"}, "quantization.scheme", 'no scheme "nf5"'),
        ({"name": "int9"}, "quantization.scheme", 'no scheme "int9"'),
        ({"name": "nf4", "block_size": 16}, "quantization.block_size", "block of 16"),
        ({"name": "nf4", "block_size": 65}, "quantization.block_size", "block of 65"),
        ({"name": "nf4", "block_size": 8192}, "quantization.block_size", "block of 8192"),
        ({"name": "int4", "clip": 100.0}, "quantization.clip", "no percentile"),
        ({"name": "int4", "clip": 0.98}, "quantization.clip", "no percentile"),
        ({"name": "int4", "clip": float("nan")}, "quantization.clip", "no percentile"),
        ({"name": "nf4", "clip": 98.0}, "quantization.clip", "no clipping"),
        ({"name": "int4", "clip": 99.5}, "quantization.clip", "nothing would be clipped"),
    ],
)
def test_what_cannot_be_had_is_refused_with_a_key_and_a_way_out(given, where, what):
    with pytest.raises(BadInput, match=what) as error:
        find_scheme(**given)
    assert error.value.where == where
    assert error.value.fix


def test_the_highest_percentile_that_the_message_names_does_clip():
    assert find_scheme("int4", clip=98.4).clip == 98.4
    assert find_scheme("int4", 4096, clip=99.9).clip == 99.9
    assert find_scheme("int8", clip=99.5).clip == 99.5  # rows: longer than any block


def test_bits_per_weight_by_hand():
    assert find_scheme("nf4").bits_per_weight(4096) == pytest.approx(4 + 8 / 64 + 32 / (64 * 256))  # 4.127
    assert find_scheme("nf4", double=False).bits_per_weight(4096) == 4.5
    assert find_scheme("nf4", 32, double=False).bits_per_weight(4096) == 5
    assert find_scheme("affine4").bits_per_weight(64) == 4 + 32 / 64 + 8 / 64
    assert find_scheme("int8").bits_per_weight(1000) == 8 + 32 / 1000
    assert find_scheme("int2").bits_per_weight(128) == 2.5
    assert find_scheme("int3").bits_per_weight(64) == 4.5  # three bits are stored as four
    assert find_scheme("int6").bits_per_weight(64) == 8.5
    assert find_scheme("int4").bits_per_weight(65) == (8 * 33 + 2 * 32) / 65  # a spare half byte and a second block


def test_every_name_has_its_bits():
    assert len(NAMES) == len(set(NAMES)) == 16
    assert {name: find_scheme(name).bits for name in ("nf4", "fp4", "int2", "affine7", "int8")} == {
        "nf4": 4, "fp4": 4, "int2": 2, "affine7": 7, "int8": 8,
    }  # fmt: skip
