"""A decoder layer as one step of autograd: what lies between its matrix products is done in one pass each, and little is kept.

    fuse_layers(model)     # after adapters were put on, before blocks.fuse; fused_forms(model): which ones are

A layer is norm → q, k, v → (norms of the heads) → rotary positions → attention → out, + its input; norm → gate, up → activation → down,
+ that. `forward` and `backward` below are that, written out. Of each token these are kept for the backward pass: the two sums, q, k, v,
what attention answers, gate and up, and each adapter's low-rank input; what norms and activation make of them is computed again.

Which norms, activation and biases a layer has is asked of its modules; whether the whole is then what the layer itself computes, is tried
on a few tokens, answer and gradient (`_agrees`). Families whose layers are put together otherwise keep their own forward. So does a
single call that this is not for: adapter dropout, a cache, a mask of another kind than "all of its document up to itself".

Children keep their names, so files, optimizer state and sharding see the same tensors. The fast path is bfloat16 on a CPU with AMX or on a GPU
with Triton (kernels/rows.py, kernels/causal_attention.py); its reference is the family's own code.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from tunesmith.kernels import rows
from tunesmith.kernels.causal_attention import causal_attention, causal_attention_backward, is_fast
from tunesmith.model.attention import Layout, Within
from tunesmith.model.lora import LoraLinear

TRIED_TOKENS = 24
AGREEMENT = 0.03  # of bfloat16 with bfloat16, in what the layer adds to its input; a part left out is off by several times that

CHILDREN = {"input_layernorm", "post_attention_layernorm", "self_attn", "mlp"}
QUERY_KEY_VALUE, GATE_UP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")


# --- projections of one input ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Projection:
    """A frozen weight and, if it is adapted, A, B and their scale."""

    frozen: Any
    a_RK: Tensor | None = None
    b_NR: Tensor | None = None
    scale: float = 0.0


def _scaled_a(projections: Sequence[Projection], dtype: torch.dtype) -> Tensor | None:
    """scale · A of all projections of one input, one below the other; scaled before the cast, so rounded once."""
    stacked = [p.a_RK * p.scale for p in projections if p.a_RK is not None]
    return torch.cat(stacked).to(dtype) if stacked else None


def project(x_MK: Tensor, projections: Sequence[Projection]) -> tuple[list[Tensor], Tensor | None]:
    """Each projection of x; and x times all scaled A, side by side, which the backward pass needs: one thin product instead of several."""
    a_RK = _scaled_a(projections, x_MK.dtype)
    low_MR = None if a_RK is None else x_MK @ a_RK.T
    outputs, at = [], 0
    for p in projections:
        y_MN = p.frozen.mm(x_MK)
        if p.b_NR is not None and low_MR is not None:
            rank = p.b_NR.shape[1]
            y_MN.addmm_(low_MR[:, at : at + rank], p.b_NR.to(x_MK.dtype).T)
            at += rank
        outputs.append(y_MN)
    return outputs, low_MR


def towards_input(dy_MN: Sequence[Tensor], projections: Sequence[Projection], wants_dx: bool = True) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x (None unless wanted) and of its low-rank products."""
    dtype, dx_MK = dy_MN[0].dtype, None
    lows = [dy @ p.b_NR.to(dtype) for p, dy in zip(projections, dy_MN, strict=True) if p.b_NR is not None]
    d_low_MR = torch.cat(lows, 1) if lows else None
    if wants_dx:
        a_RK = _scaled_a(projections, dtype)
        if d_low_MR is not None and a_RK is not None:
            dx_MK = d_low_MR @ a_RK
        for p, dy in zip(projections, dy_MN, strict=True):
            dx_MK = p.frozen.mm_t(dy, onto=dx_MK)
    return dx_MK, d_low_MR


def of_adapters(
    dy_MN: Sequence[Tensor], x_MK: Tensor, low_MR: Tensor | None, d_low_MR: Tensor | None, projections: Sequence[Projection]
) -> list[Tensor | None]:
    """Gradients of A and B of each projection in turn; None, None of one without."""
    d_scaled_a_RK = None if d_low_MR is None else d_low_MR.T @ x_MK
    gradients: list[Tensor | None] = []
    at = 0
    for p, dy in zip(projections, dy_MN, strict=True):
        if p.b_NR is None or low_MR is None or d_scaled_a_RK is None:
            gradients += [None, None]
            continue
        rows_of_p = slice(at, at + p.b_NR.shape[1])
        gradients += [d_scaled_a_RK[rows_of_p].float().mul_(p.scale), (dy.T @ low_MR[:, rows_of_p]).float()]
        at = rows_of_p.stop
    return gradients


# --- the layer ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """What a layer computes beside its projections; offset: what its norms add to their weights (Gemma: 1)."""

    heads: int
    key_heads: int
    head_width: int
    scale: float
    epsilon: float
    offset: float
    activation: rows.Activation
    norms_heads: bool


@dataclass(frozen=True)
class Parts:
    """Projections and norm weights of a layer, by what they do."""

    query_key_value: tuple[Projection, ...]
    out: tuple[Projection]
    gate_up: tuple[Projection, ...]
    down: tuple[Projection]
    before_attention: Tensor
    before_mlp: Tensor
    query_norm: Tensor | None
    key_norm: Tensor | None

    @property
    def trained(self) -> list[Tensor | None]:
        return [tensor for p in (*self.query_key_value, *self.out, *self.gate_up, *self.down) for tensor in (p.a_RK, p.b_NR)]


@dataclass(frozen=True)
class Tokens:
    """How the rows of a batch lie: rotary tables [M, R] of each token, and where documents start (kernels/causal_attention.py).

    layout, shape   of what they were made: of a packed row or none, rows and tokens
    """

    cos_MR: Tensor
    sin_MR: Tensor
    starts: Tensor
    layout: Layout | None
    shape: torch.Size


def forward(x_MD: Tensor, parts: Parts, form: Form, tokens: Tokens) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The layer's answer, and what its backward pass needs."""
    normed_MD, inverse_1, _ = rows.rmsnorm(x_MD, parts.before_attention, form.epsilon, form.offset)
    (q_MN, k_MN, v_MN), low_qkv = project(normed_MD, parts.query_key_value)
    del normed_MD
    q, k, v = _heads(q_MN, form), _heads(k_MN, form), _heads(v_MN, form)
    q_turned, k_turned = _turned(q, parts.query_norm, form, tokens), _turned(k, parts.key_norm, form, tokens)
    seen_MHW, lse = causal_attention(q_turned, k_turned, v, tokens.starts, form.scale)
    if not form.norms_heads:
        q, k = q_turned, k_turned  # otherwise they are turned again
    del q_turned, k_turned
    [out_MD], low_out = project(seen_MHW.flatten(1), parts.out)
    normed_MD, inverse_2, middle_MD = rows.rmsnorm(x_MD, parts.before_mlp, form.epsilon, form.offset, added_MD=out_MD)
    del out_MD
    (gate_MF, up_MF), low_gate_up = project(normed_MD, parts.gate_up)
    del normed_MD
    [y_MD], low_down = project(rows.gate(form.activation, gate_MF, up_MF), parts.down)
    kept = (x_MD, inverse_1, q, k, v, seen_MHW, lse, middle_MD, inverse_2, gate_MF, up_MF, low_qkv, low_out, low_gate_up, low_down)
    return y_MD.add_(middle_MD), kept


def backward(
    dy_MD: Tensor, kept: Sequence[Any], parts: Parts, form: Form, tokens: Tokens, wants_dx: bool
) -> tuple[Tensor | None, list[Tensor | None]]:  # fmt: skip
    """Gradients of the layer's input (None unless wanted), and of `Parts.trained`."""
    x_MD, inverse_1, q, k, v, seen_MHW, lse, middle_MD, inverse_2, gate_MF, up_MF, low_qkv, low_out, low_gate_up, low_down = kept
    dy_MD = dy_MD.contiguous()
    # one pass makes the gradients of gate and up, and the input of `down` again: A of `down` waits for it
    d_inner_MF, d_low = towards_input([dy_MD], parts.down)
    assert d_inner_MF is not None
    inner_MF, d_gate_MF, d_up_MF = rows.gate_backward_(form.activation, d_inner_MF, gate_MF, up_MF)
    of_down = of_adapters([dy_MD], inner_MF, low_down, d_low, parts.down)
    del inner_MF, d_inner_MF
    d_normed_MD, d_low = towards_input([d_gate_MF, d_up_MF], parts.gate_up)
    normed_MD, _, _ = rows.rmsnorm(middle_MD, parts.before_mlp, form.epsilon, form.offset)
    of_gate_up = of_adapters([d_gate_MF, d_up_MF], normed_MD, low_gate_up, d_low, parts.gate_up)
    del d_gate_MF, d_up_MF, normed_MD
    assert d_normed_MD is not None
    d_middle_MD, _ = rows.rmsnorm_backward(d_normed_MD, middle_MD, inverse_2, parts.before_mlp, form.offset, added_MD=dy_MD)
    d_seen_MN, d_low = towards_input([d_middle_MD], parts.out)
    of_out = of_adapters([d_middle_MD], seen_MHW.flatten(1), low_out, d_low, parts.out)
    assert d_seen_MN is not None
    q_turned = _turned(q, parts.query_norm, form, tokens) if form.norms_heads else q
    k_turned = _turned(k, parts.key_norm, form, tokens) if form.norms_heads else k
    dq, dk, dv = causal_attention_backward(_heads(d_seen_MN, form), q_turned, k_turned, v, seen_MHW, lse, tokens.starts, form.scale)
    del q_turned, k_turned, d_seen_MN
    dq, dk = _turned_back(dq, q, parts.query_norm, form, tokens), _turned_back(dk, k, parts.key_norm, form, tokens)
    d_qkv = [d.flatten(1) for d in (dq, dk, dv)]
    d_normed_MD, d_low = towards_input(d_qkv, parts.query_key_value, wants_dx)
    normed_MD, _, _ = rows.rmsnorm(x_MD, parts.before_attention, form.epsilon, form.offset)
    of_qkv = of_adapters(d_qkv, normed_MD, low_qkv, d_low, parts.query_key_value)
    dx_MD = None
    if d_normed_MD is not None:
        dx_MD, _ = rows.rmsnorm_backward(d_normed_MD, x_MD, inverse_1, parts.before_attention, form.offset, added_MD=d_middle_MD)
    return dx_MD, [*of_qkv, *of_out, *of_gate_up, *of_down]


def _heads(x_MN: Tensor, form: Form) -> Tensor:
    return x_MN.view(len(x_MN), -1, form.head_width)


def _turned(x_MHW: Tensor, weight_W: Tensor | None, form: Form, tokens: Tokens) -> Tensor:
    """Normed where the family does it (a copy), and turned by the token's position (in place where there is no copy)."""
    if weight_W is not None:
        x_MHW = rows.rmsnorm(x_MHW.flatten(0, 1), weight_W, form.epsilon, form.offset)[0].view(x_MHW.shape)
    return rows.rotate_(x_MHW, tokens.cos_MR, tokens.sin_MR)


def _turned_back(d_MHW: Tensor, x_MHW: Tensor, weight_W: Tensor | None, form: Form, tokens: Tokens) -> Tensor:
    """The gradient of `_turned` towards x, where norms copied it."""
    d_MHW = rows.rotate_(d_MHW, tokens.cos_MR, tokens.sin_MR, back=True)
    if weight_W is None:
        return d_MHW
    x = x_MHW.flatten(0, 1)
    _, inverse, _ = rows.rmsnorm(x, weight_W, form.epsilon, form.offset)
    return rows.rmsnorm_backward(d_MHW.flatten(0, 1), x, inverse, weight_W, form.offset)[0].view(d_MHW.shape)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, parts: Parts, form: Form, tokens: Tokens, *_trained: Tensor | None) -> Tensor:
        y_MD, kept = forward(x_MD, parts, form, tokens)
        ctx.save_for_backward(*kept)
        ctx.of = parts, form, tokens
        return y_MD

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        parts, form, tokens = ctx.of
        dx_MD, gradients = backward(upstream[0], ctx.saved_tensors, parts, form, tokens, ctx.needs_input_grad[0])
        return dx_MD, None, None, None, *gradients


# --- as transformers calls it ---------------------------------------------------------------------------------------------


class Fused:
    """In the place of a layer's forward; `own` is what stood there."""

    def __init__(self, layer: nn.Module, form: Form) -> None:
        self.layer, self.form, self.own = layer, form, layer.forward

    def __call__(self, hidden_states: Tensor, *arguments: Any, **named: Any) -> Any:
        parts = self.parts(hidden_states)
        tokens = None if arguments or parts is None else self.tokens(hidden_states, **named)
        if parts is None or tokens is None:
            return self.own(hidden_states, *arguments, **named)
        x_MD = hidden_states.reshape(-1, hidden_states.shape[-1])
        if torch.is_grad_enabled():
            y_MD: Tensor = _Layer.apply(x_MD, parts, self.form, tokens, *parts.trained)  # type: ignore[no-untyped-call]
        else:
            y_MD, _ = forward(x_MD, parts, self.form, tokens)
        return y_MD.view(hidden_states.shape)

    def parts(self, x: Tensor) -> Parts | None:
        """Projections with the adapters that answer now; None where the layer itself must do it."""
        if x.dtype != torch.bfloat16 or not is_fast(self.form.head_width, x.device.type):
            return None
        attention, mlp = self.layer.get_submodule("self_attn"), self.layer.get_submodule("mlp")
        training = self.layer.training
        if training and getattr(attention, "attention_dropout", None):
            return None
        found = {
            name: _projection(module.get_submodule(name), training)
            for module, names in ((attention, (*QUERY_KEY_VALUE, "o_proj")), (mlp, (*GATE_UP, "down_proj")))
            for name in names
        }
        if None in found.values():
            return None
        each: Any = found
        query_norm, key_norm = (getattr(attention, name).weight if self.form.norms_heads else None for name in ("q_norm", "k_norm"))
        layer: Any = self.layer
        return Parts(
            tuple(each[name] for name in QUERY_KEY_VALUE), (each["o_proj"],), tuple(each[name] for name in GATE_UP), (each["down_proj"],),
            layer.input_layernorm.weight, layer.post_attention_layernorm.weight, query_norm, key_norm,
        )  # fmt: skip

    def tokens(
        self, x: Tensor, attention_mask: Any = None, position_embeddings: tuple[Tensor, Tensor] | None = None, position_ids: Any = None,
        past_key_values: Any = None, use_cache: bool = False, **others: Any,
    ) -> Tokens | None:  # fmt: skip
        """None where the layer itself must do it."""
        if (
            position_embeddings is None
            or past_key_values is not None
            or any(value is not None and value is not False for value in others.values())
        ):
            return None
        layout = attention_mask.layout if isinstance(attention_mask, Within) and attention_mask.causal else None
        if attention_mask is not None and layout is None:
            return None
        cos_BTR: Any = position_embeddings[0]
        tokens: Tokens | None = getattr(
            cos_BTR, "_tunesmith_tokens", None
        )  # all layers of a forward pass get the same tables, and keep one copy
        if tokens is None or tokens.layout is not layout or tokens.shape != x.shape[:2]:
            cos_MR, sin_MR = (table.expand(x.shape[0], -1, -1).flatten(0, 1) for table in position_embeddings)
            # without a layout: rows of one document each, padded on the right if at all
            starts = torch.arange(0, len(cos_MR) + 1, x.shape[1], dtype=torch.int32) if layout is None else layout.starts
            tokens = cos_BTR._tunesmith_tokens = Tokens(cos_MR, sin_MR, starts, layout, x.shape[:2])
        return tokens


def _projection(layer: nn.Module, training: bool) -> Projection | None:
    if not isinstance(layer, LoraLinear) or layer.frozen.weight.dtype == torch.float32:
        return None
    name = layer.switch.active
    if name is None or name not in layer.adapters:
        return Projection(layer.frozen)
    adapter: Any = layer.adapters[name]
    if adapter.dropout > 0 and training:
        return None
    return Projection(layer.frozen, adapter.a_RK, adapter.b_NR, adapter.scale)


# --- which layers ---------------------------------------------------------------------------------------------------------


def fuse_layers(model: Any) -> None:
    """Fuse those layers of a trunk that are put together like this; each kind of them is tried once."""
    kinds: dict[tuple[type, Form], bool] = {}
    for layer in model.modules():
        form = form_of(layer) if set(layer._modules) == CHILDREN else None
        if form is None or not is_fast(form.head_width, layer.input_layernorm.weight.device.type):
            continue
        kind = (type(layer), form)
        if kind not in kinds:
            kinds[kind] = _agrees(model, layer, form)
        if kinds[kind]:
            put_form(layer, form)


def put_form(layer: Any, form: Form) -> None:
    """The same for a layer of which it is known, and which may have no weights yet.

    As a subclass, not as a `forward` of the instance: transformers wraps the forward of every subclass of a layer, to recompute it.
    """
    layer._tunesmith_fused = Fused(layer, form)
    layer.__class__ = _fused_class(type(layer))


def _fused_class(own: Any) -> type:
    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        return self._tunesmith_fused(*arguments, **named)

    return type(own.__name__, (own,), {"forward": forward, "__module__": own.__module__})


def fused_forms(model: nn.Module) -> dict[str, Form]:
    """Of the fused layers, by their path."""
    fused = {path: getattr(module, "_tunesmith_fused", None) for path, module in model.named_modules()}
    return {path: found.form for path, found in fused.items() if isinstance(found, Fused)}


@torch.no_grad()
def form_of(layer: nn.Module) -> Form | None:
    """What the layer's modules say of themselves; None where they are others."""
    attention, mlp = layer._modules["self_attn"], layer._modules["mlp"]
    assert attention is not None and mlp is not None
    norms_heads = "q_norm" in attention._modules
    linear = {
        name: part._modules.get(name)
        for part, names in ((attention, (*QUERY_KEY_VALUE, "o_proj")), (mlp, (*GATE_UP, "down_proj")))
        for name in names
    }
    others = {name for name, child in (*attention.named_children(), *mlp.named_children()) if name not in linear} - {
        "q_norm",
        "k_norm",
        "act_fn",
    }
    if others or not all(isinstance(child, LoraLinear) for child in linear.values()):
        return None
    norms = [layer._modules[name] for name in ("input_layernorm", "post_attention_layernorm")]
    norms += [attention._modules.get(name) for name in ("q_norm", "k_norm")] if norms_heads else []
    forms = {_norm_of(norm) for norm in norms}
    width, scale, activation = (
        getattr(attention, "head_dim", None),
        getattr(attention, "scaling", None),
        _activation_of(getattr(mlp, "act_fn", None)),
    )
    if len(forms) != 1 or None in forms or not isinstance(width, int) or not isinstance(scale, float) or activation is None:
        return None
    [(epsilon, offset)] = forms  # type: ignore[misc]
    frozen: Any = {name: child.frozen for name, child in linear.items() if isinstance(child, LoraLinear)}
    heads, key_heads = frozen["q_proj"].n_outputs / width, frozen["k_proj"].n_outputs / width
    if norms_heads and any(norm is None or norm.weight.shape != (width,) for norm in norms[2:]):  # of all heads at once (OLMo 2)
        return None
    if heads != int(heads) or key_heads != int(key_heads) or heads % key_heads:
        return None
    return Form(int(heads), int(key_heads), width, scale, epsilon, offset, activation, norms_heads)


def _norm_of(norm: nn.Module | None) -> tuple[float, float] | None:
    """Epsilon and offset of an RMSNorm, which it is asked for by a few numbers."""
    weight, epsilon = getattr(norm, "weight", None), getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if norm is None or weight is None or not isinstance(epsilon, float) or set(dict(norm.named_parameters())) != {"weight"}:
        return None
    if isinstance(weight, FakeTensor):
        return epsilon, 0.0
    x = torch.linspace(-2, 3, 2 * weight.numel(), dtype=weight.dtype, device=weight.device).view(2, -1)
    found = norm(x)
    for offset in (0.0, 1.0):
        if _off(rows.rmsnorm_reference(x, weight, epsilon, offset)[0], found) < 0.01:
            return epsilon, offset
    return None


def _activation_of(function: Callable[[Tensor], Tensor] | None) -> rows.Activation | None:
    x = torch.linspace(-6, 6, 101)
    if function is None:
        return None
    found = function(x)
    ones = torch.ones_like(x)
    return next((kind for kind in rows.KINDS if torch.allclose(rows.gate_reference(kind, x, ones), found, atol=1e-6)), None)


class _Reached(Exception):
    pass


def _agrees(model: Any, layer: nn.Module, form: Form) -> bool:
    """Whether the layer as it is and as it would be give the same answer and gradient, to the noise of bfloat16, on a few tokens."""
    if any(isinstance(parameter, FakeTensor) for parameter in layer.parameters()):
        return True  # a rehearsal (planning/): there are no numbers to compare
    was_training, before = model.training, model.config.get_text_config()._attn_implementation
    model.eval()
    if before != "sdpa":
        model.set_attn_implementation("sdpa")  # of which the mask is None
    try:
        named = _reaches(model, layer)
        return named is not None and _same(layer.forward, Fused(layer, form), **named)
    finally:
        model.train(was_training)
        if before != "sdpa":
            model.set_attn_implementation(before)


def _reaches(model: Any, layer: nn.Module) -> dict[str, Any] | None:
    """What a layer is called with for a row of a few ids; None where it is not by name."""
    seen: dict[str, Any] = {}

    def catch(_layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.update(named, arguments=arguments)
        raise _Reached

    table = model.get_input_embeddings()
    ids = ((3 + 5 * torch.arange(TRIED_TOKENS, device=table.weight.device)) % table.weight.shape[0])[None]
    hook = layer.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with torch.no_grad():
            model.base_model(input_ids=ids, use_cache=False)
    except _Reached:
        pass
    finally:
        hook.remove()
    if len(seen.get("arguments", ())) != 1:
        return None
    [seen["hidden_states"]] = seen.pop("arguments")
    return seen


def _same(own: Callable[..., Any], fused: Fused, hidden_states: Tensor, **named: Any) -> bool:
    x = hidden_states
    x = (x + float(x.float().std()) * torch.linspace(-1, 1, x.numel(), device=x.device).view(x.shape)).to(x.dtype)
    if fused.parts(x) is None or fused.tokens(x, **named) is None:
        return False
    upstream = torch.linspace(-1, 2, x.numel(), dtype=x.dtype, device=x.device).view(x.shape)
    answers = []
    for way in (own, fused):
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            y = way(leaf, **named)
        if not isinstance(y, Tensor):
            return False
        [dx] = torch.autograd.grad(y, leaf, upstream)
        answers.append(((y - x).detach(), dx - upstream))  # without what is carried along, in which a difference would drown
    return all(_off(found, expected) < AGREEMENT for expected, found in zip(*answers, strict=True))


def _off(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())
