"""Weights in few bits and back: every scheme, both layouts, ragged ends, and what is refused."""

import pytest
import torch

from tunesmith.errors import BadInput
from tunesmith.quant.scheme import NAMES, find_scheme
from tunesmith.quant.tensor import dequantize, dequantize_into, dequantize_rows, from_tensors, pack, quantize, stored_shapes, unpack

EVERY = [find_scheme(name) for name in NAMES]
DOUBLED = [find_scheme(name, double=True) for name in ("nf4", "fp4", "int4", "affine3", "int8", "affine8")]
CLIPPED = [find_scheme("int4", clip=90), find_scheme("affine8", clip=99)]
SHAPES = [(3, 64), (4, 172), (5, 65), (2, 33), (1, 128), (7, 130)]  # 172, 65 and 130 end in a ragged block, 33 is one


def weight(n=8, k=200, seed=0, dtype=torch.float32):
    return (torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * 0.05).to(dtype)


def one_of_each_code(scheme):
    """[2, codes]: every code of a scheme, upwards and downwards."""
    levels = scheme.levels
    codes = torch.arange(levels.lowest, levels.highest + 1, dtype=torch.int8 if levels.signed else torch.uint8)
    return torch.stack([codes, codes.flip(0)])


# --- by hand ------------------------------------------------------------------------------------------------------------


def test_int4_by_hand():
    x = torch.zeros(1, 64)
    x[0, :4] = torch.tensor([7.0, -7.0, 1.4, 0.4])
    q = quantize(x, find_scheme("int4"))
    assert q.scales.values().tolist() == [1.0]
    assert q.codes[0, :2].tolist() == [0xE0, 0x87]  # codes 7 -7 | 1 0, counted from -7, the first in the high half
    assert dequantize(q)[0, :4].tolist() == [7, -7, 1, 0]


def test_nf4_by_hand():
    x = torch.zeros(1, 64)
    x[0, :4] = torch.tensor([-2.0, 2.0, 0.9, 0.0])
    q = quantize(x, find_scheme("nf4", double=False))
    assert q.scales.values().tolist() == [2.0]
    assert q.codes[0, :2].tolist() == [0x0F, 0xC7]  # 0.9 is 0.45 of the largest: nearest is 0.4407, code 12
    assert dequantize(q)[0, :4].tolist() == pytest.approx([-2, 2, 2 * 0.44070983, 0])


@pytest.mark.parametrize("scheme", [s for s in EVERY if not s.is_codebook], ids=str)
def test_packed_codes_come_back_as_they_were(scheme):
    codes = one_of_each_code(scheme)
    packed = pack(codes, scheme)
    assert packed.shape[1] == -(-codes.shape[1] // scheme.codes_per_byte)
    assert torch.equal(unpack(packed, scheme, codes.shape[1]), codes)


# --- round trips --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [*EVERY, *DOUBLED, *CLIPPED], ids=str)
def test_a_weight_comes_back_as_close_as_its_bits_allow(scheme):
    w = weight(64, 256)
    back = dequantize(quantize(w, scheme))
    snr_dB = 10 * torch.log10(w.square().sum() / (w - back).square().sum()).item()
    least = {2: 2.5, 3: 11, 4: 17, 5: 24, 6: 30, 7: 36, 8: 41}[scheme.bits]  # about 6 dB a bit
    assert snr_dB > (least if scheme.clip is None else 8)


@pytest.mark.parametrize("scheme", [*EVERY, *DOUBLED], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_row_is_coded_for_itself_and_ragged_ends_are_blocks_of_their_own(scheme, shape):
    w = weight(*shape)
    whole = quantize(w, scheme)
    assert {name: (tuple(t.shape), t.dtype) for name, t in whole.tensors().items()} == stored_shapes(scheme, shape, "rows")
    if not scheme.double:  # second-level scales are shared by rows
        rows = torch.cat([dequantize(quantize(row[None], scheme)) for row in w])
        assert torch.equal(dequantize(whole), rows)
    if scheme.block_size is not None and shape[1] > 64:
        end = quantize(w[:, 64:].contiguous(), find_scheme(scheme.name, double=False))
        start = quantize(w, find_scheme(scheme.name, double=False))
        assert torch.equal(dequantize(start)[:, 64:], dequantize(end))


@pytest.mark.parametrize("scheme", [*EVERY, *DOUBLED], ids=str)
def test_both_layouts_hold_the_same_codes_where_the_block_divides_the_row(scheme):
    if scheme.block_size is None:
        scheme = find_scheme(scheme.name, 64, scheme.double)
    w = weight(6, 128)
    rows, flat = quantize(w, scheme, "rows"), quantize(w, scheme, "flat")
    assert torch.equal(dequantize(rows), dequantize(flat))
    assert torch.equal(rows.codes.flatten(), flat.codes.flatten())
    assert flat.codes.shape[0] == 1


@pytest.mark.parametrize("scheme", [find_scheme("nf4"), find_scheme("int4"), find_scheme("affine8")], ids=str)
def test_16_bit_weights_are_read_and_written_exactly(scheme):
    w = weight(dtype=torch.bfloat16)
    q = quantize(w, scheme)
    assert torch.equal(quantize(w.float(), scheme).codes, q.codes)
    assert torch.equal(dequantize(q, torch.bfloat16), dequantize(q).bfloat16())
    buffer = torch.full((8, 200), torch.nan, dtype=torch.bfloat16)
    assert dequantize_into(q, buffer) is buffer
    assert torch.equal(buffer, dequantize(q, torch.bfloat16))


@pytest.mark.parametrize("scheme", [*EVERY, *DOUBLED], ids=str)
def test_blocks_of_zeros_come_back_as_zeros(scheme):
    w = weight(4, 128)
    w[1], w[2, 64:] = 0, 0
    back = dequantize(quantize(w, scheme))
    assert not back[1].any() and not back[2, 64:].any()
    assert back[0].any()
    assert not dequantize(quantize(torch.zeros(2, 64), scheme)).any()


def test_clipping_gives_up_the_outlier_for_the_others():
    w = weight(1, 64)
    w[0, 9] = 5.0
    plain, clipped = (dequantize(quantize(w, find_scheme("int4", clip=clip))) for clip in (None, 98))
    others = torch.arange(64) != 9
    assert (plain - w)[0, others].square().mean() > 20 * (clipped - w)[0, others].square().mean()
    assert plain[0, 9] == 5 and clipped[0, 9] < 0.2


@pytest.mark.parametrize("layout", ["rows", "flat"])
@pytest.mark.parametrize("scheme", [*EVERY, *DOUBLED, *CLIPPED], ids=str)
def test_rows_alone_are_those_of_the_whole_weight_bit_for_bit(scheme, layout):
    rows = torch.tensor([5, 0, 5, 3, 299])
    for k in (
        128,
        172,
        65,
        34,
        30,
    ):  # blocks that divide the row; ragged ones, which cross rows in layout flat; an odd row; less than a block
        q = quantize(weight(300, k), scheme, layout)  # 300 rows: scales of several second-level groups
        for dtype in (torch.float32, torch.bfloat16):
            assert torch.equal(dequantize_rows(q, rows, dtype), dequantize(q, dtype)[rows]), k
        assert torch.equal(dequantize_rows(q, rows.int()), dequantize(q)[rows])
        assert dequantize_rows(q, rows[:0]).shape == (0, k)


def test_only_the_rows_that_are_asked_for_are_made(monkeypatch):
    made = []
    monkeypatch.setattr(
        "tunesmith.quant.tensor.dequantize_into", lambda q, out, real=dequantize_into: made.append(len(out)) or real(q, out)
    )
    for layout in ("rows", "flat"):
        dequantize_rows(quantize(weight(300, 128), find_scheme("nf4"), layout), torch.tensor([7, 8]))
    assert made == [2, 2]


@pytest.mark.parametrize("scheme", [find_scheme("int8"), find_scheme("int3"), find_scheme("affine4", double=True)], ids=str)
def test_pieces_of_a_weight_are_coded_as_the_whole(scheme, monkeypatch):
    w = weight(50, 172)
    whole = quantize(w, scheme)
    monkeypatch.setattr("tunesmith.quant.tensor.CACHED", 7 * 172)
    in_pieces = quantize(w, scheme)
    assert all(torch.equal(tensor, in_pieces.tensors()[name]) for name, tensor in whole.tensors().items())
    assert torch.equal(dequantize(in_pieces), affine_by_hand(whole, w.shape))


def affine_by_hand(q, shape):
    """Every weight from its code, the scale of its block and the zero point, one by one."""
    n, k = shape
    codes, block = unpack(q.codes, q.scheme, k), q.scheme.block_size or k
    at = torch.arange(n)[:, None] * -(-k // block) + torch.arange(k)[None] // block
    zeros = 0 if q.zeros is None else q.zeros[at].float()
    return (codes.float() - zeros) * q.scales.values()[at]


# --- storage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [*EVERY, *DOUBLED], ids=str)
def test_bits_per_weight_are_those_that_are_stored(scheme):
    q = quantize(weight(256, 128), scheme)
    offset_bits = 32 if scheme.double else 0  # one number a weight matrix
    assert 8 * q.nbytes - offset_bits == scheme.bits_per_weight(128) * 256 * 128


@pytest.mark.parametrize("scheme", [*EVERY, *DOUBLED], ids=str)
@pytest.mark.parametrize("layout", ["rows", "flat"])
def test_stored_tensors_are_all_that_is_needed(scheme, layout):
    w = weight(5, 172)
    q = quantize(w, scheme, layout)
    again = from_tensors(scheme, (5, 172), layout, q.tensors())
    assert torch.equal(dequantize(again), dequantize(q))
    assert q.nbytes == sum(t.nbytes for t in q.tensors().values())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("codes", lambda t: t[:, :-1]),
        ("codes", lambda t: t.to(torch.int32)),
        ("scales", lambda t: t[:-1]),
        ("scales", lambda t: t.float()),
        ("groups", lambda t: torch.cat([t, t])),
        ("groups", lambda t: None),
        ("offset", lambda t: t[None]),
        ("zeros", lambda t: None),
        ("zeros", lambda t: t.float()),
        ("more", lambda t: torch.zeros(1)),
    ],
)
def test_tensors_that_do_not_belong_together_are_refused_by_name(name, change):
    scheme = find_scheme("affine4", double=True)
    tensors = quantize(weight(), scheme).tensors()
    changed = {**tensors, name: change(tensors.get(name))}
    with pytest.raises(BadInput, match=f'"{name}"') as error:
        from_tensors(scheme, (8, 200), "rows", {key: t for key, t in changed.items() if t is not None})
    assert "quantise again" in error.value.fix


@pytest.mark.parametrize("scheme", [*EVERY, *DOUBLED, *CLIPPED], ids=str)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(scheme, broken):
    w = weight()
    w[3, 190] = broken
    with pytest.raises(BadInput, match="NaN or infinite") as error:
        quantize(w, scheme, where="layers.3.up_proj")
    assert error.value.where == "layers.3.up_proj"


# --- bitsandbytes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(64, 128), (5, 72), (3, 172), (7, 33)], ids=str)
def test_flat_codes_and_scales_are_those_of_bitsandbytes(name, shape):
    functional = pytest.importorskip("bitsandbytes.functional")
    w = weight(*shape)
    codes, state = functional.quantize_4bit(w, blocksize=64, quant_type=name)
    q = quantize(w, find_scheme(name, double=False), "flat")
    assert torch.equal(q.codes.flatten(), codes.flatten())
    assert torch.equal(q.scales.stored, state.absmax)
    codes, state = functional.quantize_4bit(w, blocksize=64, quant_type=name, compress_statistics=True)
    doubled = quantize(w, find_scheme(name), "flat")
    assert torch.equal(doubled.codes.flatten(), codes.flatten())
    assert torch.allclose(doubled.scales.groups, state.state2.absmax, rtol=1e-6)
    exact = q.scales.values()
    theirs = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    assert bool(((doubled.scales.values() - exact).abs() <= (theirs - exact).abs() + 1e-8).all())


def test_8_bit_rows_are_those_of_bitsandbytes_but_for_ties():
    functional = pytest.importorskip("bitsandbytes.functional")
    w = weight(16, 128).half()  # which it reads alone
    codes, largest, _ = functional.int8_vectorwise_quant(w)
    q = quantize(w, find_scheme("int8"))
    assert torch.allclose(q.scales.stored * 127, largest.float())
    assert int((q.codes.int() - codes.int()).abs().max()) <= 1
    assert (q.codes != codes).float().mean() < 0.001
