"""The compiled step of decoding against the torch one, both measured from float64."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tunesmith.kernels import native
from tunesmith.kernels.decode import Cache, Layer, Projection, Step, Trunk, step_reference

needs_amx = pytest.mark.skipif(native.compiled() is None or not native.compiled().has_amx, reason="a CPU without AMX")

WIDTH, FEED_FORWARD, WORDS, POSITIONS = 96, 160, 77, 40  # no multiple of 16 words


def random_trunk(
    heads=3, key_heads=1, head_width=64, rank=0, biases=False, norms_heads=False, offset=0.0, activation="silu", n_layers=2
) -> Trunk:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, std: float) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) * std

    def projection(n: int, k: int, r: int = rank, bias: bool = biases) -> Projection:
        adapter = (draw(r, k, std=k**-0.5), draw(n, r, std=r**-0.5)) if r else (None, None)
        return Projection(draw(n, k, std=k**-0.5), draw(n, std=0.5) if bias else None, *adapter)

    def norm(n: int) -> Tensor:
        return 1 - offset + draw(n, std=0.2)

    def layer() -> Layer:
        query, key = projection(n_q, WIDTH), projection(n_k, WIDTH, rank and rank + 30)
        value, out = projection(n_k, WIDTH, 0), projection(WIDTH, n_q)
        gate, up, down = projection(FEED_FORWARD, WIDTH), projection(FEED_FORWARD, WIDTH, 0), projection(WIDTH, FEED_FORWARD)
        query_norm, key_norm = (norm(head_width) if norms_heads else None for _ in range(2))
        return Layer(norm(WIDTH), query, key, value, query_norm, key_norm, out, norm(WIDTH), gate, up, down)

    n_q, n_k = heads * head_width, key_heads * head_width
    layers = tuple(layer() for _ in range(n_layers))
    return Trunk(heads, key_heads, head_width, head_width**-0.5, 1e-5, offset, activation, layers, norm(WIDTH), projection(WORDS, WIDTH, 0))


def in_dtype(value: Any, dtype: torch.dtype) -> Any:
    """All tensors of a trunk, rounded to bfloat16 whatever `dtype` is: the weights are the same on all sides."""
    if isinstance(value, Tensor):
        return value.to(torch.bfloat16).to(dtype)
    if isinstance(value, tuple):
        return tuple(in_dtype(each, dtype) for each in value)
    if isinstance(value, Trunk | Layer | Projection):
        return replace(value, **{field.name: in_dtype(getattr(value, field.name), dtype) for field in fields(value)})
    return value


def past(trunk: Trunk, dtype: torch.dtype, n_rows: int, turned: int) -> tuple[Tensor, Cache, Tensor, Tensor, Tensor, Tensor]:
    """The arguments of a step: rows of 0 to 30 tokens that stand in no order, and NaN between them."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(torch.bfloat16).to(dtype)

    position_B = torch.randint(0, 31, (n_rows,), generator=generator)
    position_B[0] = 0
    places = torch.randperm(n_rows, generator=generator)
    first_B = places * POSITIONS
    cache = Cache.empty(in_dtype(trunk, dtype), n_rows * POSITIONS)
    cache.keys_LGPW.copy_(draw(*cache.keys_LGPW.shape)), cache.values_LGPW.copy_(draw(*cache.values_LGPW.shape))
    for first, position in zip(first_B.tolist(), position_B.tolist(), strict=True):
        for held in (cache.keys_LGPW, cache.values_LGPW):
            held[:, :, first + position : first + POSITIONS] = torch.nan
    angle_TR = torch.arange(POSITIONS)[:, None] * (0.3 ** torch.arange(turned // 2)).repeat(2)
    return draw(n_rows, WIDTH), cache, first_B, position_B, *(f(angle_TR).to(torch.bfloat16).to(dtype) for f in (torch.cos, torch.sin))


KINDS = {
    "plain": {},
    "as many keys as queries": {"heads": 2, "key_heads": 2, "head_width": 32},
    "adapters": {"rank": 5},
    "biases, norms of heads": {"biases": True, "norms_heads": True, "rank": 16},
    "gemma": {"offset": 1.0, "activation": "gelu_tanh"},
}


@needs_amx
@pytest.mark.parametrize("n_rows", [1, 5, 16, 35])
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_step_is_nearer_to_float64_than_torch_in_bfloat16(kind, n_rows):
    trunk = random_trunk(**KINDS[kind])
    turned = trunk.head_width // 2 if kind == "adapters" else trunk.head_width
    exact_past, own_past, torch_past = (past(trunk, dtype, n_rows, turned) for dtype in (torch.float64, torch.bfloat16, torch.bfloat16))
    exact_BV = step_reference(in_dtype(trunk, torch.float64), *exact_past)
    torch_BV = step_reference(in_dtype(trunk, torch.bfloat16), *torch_past)
    found = Step.of(in_dtype(trunk, torch.bfloat16))(*own_past, all_logits=True)
    assert exact_BV.std() > 0.5
    off, allowed = ((side - exact_BV).abs().max() for side in (found.logits_BV, torch_BV))
    assert off <= allowed
    assert torch.equal(found.word_B, found.logits_BV.argmax(-1))
    assert torch.equal(found.most_B, found.logits_BV.amax(-1))
    for exact, own, reference in zip(*((p[1].keys_LGPW, p[1].values_LGPW) for p in (exact_past, own_past, torch_past)), strict=True):
        assert torch.equal(own.isnan(), exact.isnan())  # the newest tokens are there, and nothing else was written
        off, allowed = ((side - exact).nan_to_num().norm() for side in (own, reference))
        assert off <= 1.1 * allowed  # both are rounded to bfloat16 at the end
