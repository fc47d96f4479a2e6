"""A decoder layer as one step of autograd: what lies between its matrix products is done in one pass each, and little is kept.

    fuse_layers(model)     # after adapters were put on, before blocks.fuse; fused_forms(model): which ones are

A layer is norm → q, k, v → (norms of the heads) → rotary positions → attention → out, + its input; norm → gate, up → activation → down,
+ that. `forward` and `backward` below are that, written out. Of each token these are kept for the backward pass: the two sums, q, k, v,
what attention answers, gate and up, and each adapter's low-rank input; what norms and activation make of them is computed again. After
`keep_inputs(model)` (gradient checkpointing) the layer's input alone is kept, and all but its last product computed again.

Full fine-tuning goes the same way: masters in float32 are cast once for both passes, the sums stay in float32 as under autocast, and the
gradients of weights are float32 when they leave their product.

Which norms, activation and biases a layer has is asked of its modules; whether the whole is then what the layer itself computes, is tried
on a few tokens, answer and gradient (`_agrees`). Families whose layers are put together otherwise keep their own forward. So does a
single call that this is not for: a cache, a mask of another kind than "all of its document up to itself".

Children keep their names, so files, optimizer state and sharding see the same tensors. The fast path is bfloat16 on a CPU with AMX or on a GPU
with Triton (kernels/rows.py, kernels/causal_attention.py); its reference is the family's own code.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from tunesmith.kernels import rows, thin
from tunesmith.kernels.causal_attention import causal_attention, causal_attention_backward, is_fast
from tunesmith.kernels.weight_gradient import weight_gradient
from tunesmith.model.attention import Layout, Within
from tunesmith.model.lora import LoraLinear

TRIED_TOKENS = 24
AGREEMENT = 0.03  # of bfloat16 with bfloat16, in what the layer adds to its input; a part left out is off by several times that

CHILDREN = {"input_layernorm", "post_attention_layernorm", "self_attn", "mlp"}
QUERY_KEY_VALUE, GATE_UP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")


# --- projections of one input ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Projection:
    """What multiplies (a frozen weight, or a `Dense` one) and, if it is adapted, A, B and their scale; if it is trained itself, its parameters."""

    frozen: Any
    a_RK: Tensor | None = None
    b_NR: Tensor | None = None
    scale: float = 0.0
    dropout: float = 0.0
    seed: int = 0
    weight_NK: Tensor | None = None
    bias_N: Tensor | None = None

    def dropped(self, x_MK: Tensor, onto: Tensor | None = None) -> Tensor:
        """What A sees of x, or the gradient of it."""
        return rows.dropout(x_MK, self.dropout, self.seed, onto)


class Stack:
    """Weights and biases of plain linear layers of one input in bfloat16, one below the other, so that one product does for all.

    Made at first use and let go of after the backward pass: nothing that the next step changes is ever found here.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.layers = layers
        self.sizes = [layer.out_features for layer in layers]
        self._weight_NK: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """[N of all, K]."""
        if self._weight_NK is None:
            first = self.layers[0].weight
            if len(self.layers) == 1 and first.dtype == torch.bfloat16:
                return first.detach()
            self._weight_NK = first.new_empty(sum(self.sizes), first.shape[1], dtype=torch.bfloat16)
            with torch.no_grad():
                for part, layer in zip(torch.split(self._weight_NK, self.sizes), self.layers, strict=True):
                    part.copy_(layer.weight)
        return self._weight_NK

    def mm(self, x_MK: Tensor) -> list[Tensor]:
        """x @ W.T + bias of each layer; they lie side by side."""
        biases = [layer.bias for layer in self.layers]
        bias_N = None
        if any(bias is not None for bias in biases):
            each = [x_MK.new_zeros(n) if bias is None else bias.detach() for n, bias in zip(self.sizes, biases, strict=True)]
            bias_N = torch.cat(each).to(x_MK.dtype)
        y_MN = nn.functional.linear(x_MK, self.weight, bias_N)
        return [y_MN] if len(self.sizes) == 1 else list(torch.split(y_MN, self.sizes, 1))

    def drop(self) -> None:
        self._weight_NK = None


@dataclass(frozen=True)
class Dense:
    """One layer of a stack, as a frozen weight answers."""

    stack: Stack
    index: int

    def mm(self, x_MK: Tensor) -> Tensor:
        layer = self.stack.layers[self.index]
        bias_N = None if layer.bias is None else layer.bias.detach().to(x_MK.dtype)
        return nn.functional.linear(x_MK, self.weight, bias_N)

    def mm_t(self, dy_MN: Tensor, onto: Tensor | None = None) -> Tensor:
        return torch.mm(dy_MN, self.weight) if onto is None else onto.addmm_(dy_MN, self.weight)

    @property
    def weight(self) -> Tensor:
        return torch.split(self.stack.weight, self.stack.sizes)[self.index]


def _stack(projections: Sequence[Projection]) -> Stack | None:
    """That of all of them, where nothing else is among them."""
    stacks = {id(p.frozen.stack): p.frozen.stack for p in projections if isinstance(p.frozen, Dense) and p.a_RK is None}
    stack: Stack | None = next(iter(stacks.values()), None)
    return stack if len(stacks) == 1 and stack is not None and len(stack.layers) == len(projections) else None


def _adapted(projections: Sequence[Projection]) -> list[Any]:
    return [p for p in projections if p.a_RK is not None]


def _each(low_MR: Tensor, adapted: Sequence[Any]) -> list[Tensor]:
    """The columns of each projection."""
    return list(torch.split(low_MR, [p.b_NR.shape[1] for p in adapted], 1))


def low_of(x_MK: Tensor, projections: Sequence[Projection]) -> Tensor | None:
    """x times all scaled A, side by side; None without any."""
    adapted = _adapted(projections)
    if not adapted:
        return None
    xs = [p.dropped(x_MK) for p in adapted] if any(p.dropout for p in adapted) else [x_MK]
    return thin.products(xs, [p.a_RK for p in adapted], [p.scale for p in adapted], transposed=True)


def project(x_MK: Tensor, projections: Sequence[Projection]) -> tuple[list[Tensor], Tensor | None]:
    """Each projection of x; and x times all scaled A, side by side, which the backward pass needs: one thin product instead of several."""
    if (stack := _stack(projections)) is not None:
        return stack.mm(x_MK), None
    low_MR, adapted = low_of(x_MK, projections), _adapted(projections)
    outputs = [p.frozen.mm(x_MK) for p in projections]
    if low_MR is not None:
        ys = [y for p, y in zip(projections, outputs, strict=True) if p.a_RK is not None]
        thin.add_(ys, _each(low_MR, adapted), [p.b_NR for p in adapted], [1.0] * len(adapted), transposed=True)
    return outputs, low_MR


def towards_input(dy_MN: Sequence[Tensor], projections: Sequence[Projection], wants_dx: bool = True) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x (None unless wanted), and of its low-rank products."""
    dx_MK, d_low_MR, adapted = None, None, _adapted(projections)
    if adapted:
        dys = [dy for p, dy in zip(projections, dy_MN, strict=True) if p.a_RK is not None]
        d_low_MR = thin.products(dys, [p.b_NR for p in adapted], [1.0] * len(adapted), transposed=False)
    if not wants_dx:
        return None, d_low_MR
    for p, dy in zip(projections, dy_MN, strict=True):
        dx_MK = p.frozen.mm_t(dy, onto=dx_MK)
    if d_low_MR is not None and any(p.dropout for p in adapted):
        for p, d_low in zip(adapted, _each(d_low_MR, adapted), strict=True):
            dx_MK = p.dropped(thin.products([d_low], [p.a_RK], [p.scale], transposed=False), onto=dx_MK)
    elif d_low_MR is not None and dx_MK is not None:
        thin.add_([dx_MK], _each(d_low_MR, adapted), [p.a_RK for p in adapted], [p.scale for p in adapted], transposed=False)
    return dx_MK, d_low_MR


def of_adapters(
    dy_MN: Sequence[Tensor], x_MK: Tensor, low_MR: Tensor | None, d_low_MR: Tensor | None, projections: Sequence[Projection]
) -> list[Tensor | None]:
    """Gradients of A and B of each projection in turn; None, None of one without."""
    adapted = _adapted(projections)
    if low_MR is None or d_low_MR is None:
        return [None, None] * len(projections)
    scales = [p.scale for p in adapted]
    if any(p.dropout for p in adapted):
        of_a = thin.gradients(_each(d_low_MR, adapted), [p.dropped(x_MK) for p in adapted], scales, transposed=False)
    elif len(set(scales)) == 1:  # x is read once
        [together] = thin.gradients([d_low_MR], [x_MK], scales[:1], transposed=False)
        of_a = list(torch.split(together, [p.b_NR.shape[1] for p in adapted]))
    else:
        of_a = thin.gradients(_each(d_low_MR, adapted), [x_MK] * len(adapted), scales, transposed=False)
    dys = [dy for p, dy in zip(projections, dy_MN, strict=True) if p.a_RK is not None]
    of_b = thin.gradients(_each(low_MR, adapted), dys, [1.0] * len(adapted), transposed=True)
    pairs = iter(zip(of_a, of_b, strict=True))
    return [of_it for p in projections for of_it in (next(pairs) if p.a_RK is not None else (None, None))]


def of_weights(dy_MN: Sequence[Tensor], x_MK: Tensor, projections: Sequence[Projection]) -> list[Tensor]:
    """Gradients of the weights and biases that are trained, in turn."""
    gradients = []
    for p, dy in zip(projections, dy_MN, strict=True):
        if p.weight_NK is not None:
            gradients.append(weight_gradient(dy, x_MK).to(p.weight_NK.dtype))
        if p.bias_N is not None:
            gradients.append(dy.sum(0, dtype=torch.float32).to(p.bias_N.dtype))
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
    def projections(self) -> list[Projection]:
        return [*self.query_key_value, *self.out, *self.gate_up, *self.down]

    def drop_casts(self) -> None:
        for p in self.projections:
            if isinstance(p.frozen, Dense):
                p.frozen.stack.drop()

    @property
    def trained(self) -> list[Tensor | None]:
        adapters = [tensor for p in self.projections for tensor in (p.a_RK, p.b_NR)]
        weights = [tensor for p in self.projections for tensor in (p.weight_NK, p.bias_N) if tensor is not None]
        norms = [weight for weight in (self.before_attention, self.before_mlp, self.query_norm, self.key_norm) if _is_trained(weight)]
        return [*adapters, *weights, *norms]


def _is_trained(weight: Tensor | None) -> bool:
    return weight is not None and weight.requires_grad


@dataclass(frozen=True)
class Tokens:
    """How the rows of a batch lie: rotary tables [M, R] of each token, where documents start, and which continue which (kernels/causal_attention.py).

    layout, shape   of what they were made: of a packed row or none, rows and tokens
    """

    cos_MR: Tensor
    sin_MR: Tensor
    starts: Tensor
    parents: Tensor | None
    layout: Layout | None
    shape: torch.Size


def forward(
    x_MD: Tensor, parts: Parts, form: Form, tokens: Tokens, answers: bool = True
) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:  # fmt: skip
    """The layer's answer (None unless wanted), and what its backward pass needs."""
    wide = x_MD.dtype == torch.float32  # the sums are, products never
    normed_MD, inverse_1, _ = rows.rmsnorm(x_MD, parts.before_attention, form.epsilon, form.offset, narrow=wide)
    (q_MN, k_MN, v_MN), low_qkv = project(normed_MD, parts.query_key_value)
    del normed_MD
    q, k, v = _heads(q_MN, form), _heads(k_MN, form), _heads(v_MN, form)
    q_turned, k_turned = _turned(q, parts.query_norm, form, tokens), _turned(k, parts.key_norm, form, tokens)
    seen_MHW, lse = causal_attention(q_turned, k_turned, v, tokens.starts, form.scale, parents=tokens.parents)
    if not form.norms_heads:
        q, k = q_turned, k_turned  # otherwise they are turned again
    del q_turned, k_turned
    [out_MD], low_out = project(seen_MHW.flatten(1), parts.out)
    normed_MD, inverse_2, middle_MD = rows.rmsnorm(x_MD, parts.before_mlp, form.epsilon, form.offset, added_MD=out_MD, narrow=wide)
    del out_MD
    (gate_MF, up_MF), low_gate_up = project(normed_MD, parts.gate_up)
    del normed_MD
    y_MD, low_down = None, None
    if answers:
        [y_MD], low_down = project(rows.gate(form.activation, gate_MF, up_MF), parts.down)
        y_MD = middle_MD + y_MD if wide else y_MD.add_(middle_MD)
    kept = (x_MD, inverse_1, q, k, v, seen_MHW, lse, middle_MD, inverse_2, gate_MF, up_MF, low_qkv, low_out, low_gate_up, low_down)
    return y_MD, kept


def backward(
    dy_MD: Tensor, kept: Sequence[Any], parts: Parts, form: Form, tokens: Tokens, wants_dx: bool
) -> tuple[Tensor | None, list[Tensor | None]]:  # fmt: skip
    """Gradients of the layer's input (None unless wanted), and of `Parts.trained`."""
    x_MD, inverse_1, q, k, v, seen_MHW, lse, middle_MD, inverse_2, gate_MF, up_MF, low_qkv, low_out, low_gate_up, low_down = kept
    dy_MD = dy_MD.contiguous()
    wide, narrow_dy_MD = x_MD.dtype == torch.float32, dy_MD.bfloat16()
    # one pass makes the gradients of gate and up, and the input of `down` again: A of `down` waits for it
    d_inner_MF, d_low = towards_input([narrow_dy_MD], parts.down)
    assert d_inner_MF is not None
    inner_MF, d_gate_MF, d_up_MF = rows.gate_backward_(form.activation, d_inner_MF, gate_MF, up_MF)
    low_down = low_of(inner_MF, parts.down) if low_down is None else low_down
    of_down = of_adapters([narrow_dy_MD], inner_MF, low_down, d_low, parts.down)
    down_weights = of_weights([narrow_dy_MD], inner_MF, parts.down)
    del inner_MF, d_inner_MF, narrow_dy_MD
    d_normed_MD, d_low = towards_input([d_gate_MF, d_up_MF], parts.gate_up)
    normed_MD, _, _ = rows.rmsnorm(middle_MD, parts.before_mlp, form.epsilon, form.offset, narrow=wide)
    of_gate_up = of_adapters([d_gate_MF, d_up_MF], normed_MD, low_gate_up, d_low, parts.gate_up)
    gate_up_weights = of_weights([d_gate_MF, d_up_MF], normed_MD, parts.gate_up)
    del d_gate_MF, d_up_MF, normed_MD
    assert d_normed_MD is not None
    d_middle_MD, of_second_norm = rows.rmsnorm_backward(
        d_normed_MD, middle_MD, inverse_2, parts.before_mlp, form.offset, added_MD=dy_MD, wants_weight=parts.before_mlp.requires_grad
    )
    narrow_d_middle_MD = d_middle_MD.bfloat16()
    d_seen_MN, d_low = towards_input([narrow_d_middle_MD], parts.out)
    of_out = of_adapters([narrow_d_middle_MD], seen_MHW.flatten(1), low_out, d_low, parts.out)
    out_weights = of_weights([narrow_d_middle_MD], seen_MHW.flatten(1), parts.out)
    del narrow_d_middle_MD
    assert d_seen_MN is not None
    q_turned = _turned(q, parts.query_norm, form, tokens) if form.norms_heads else q
    k_turned = _turned(k, parts.key_norm, form, tokens) if form.norms_heads else k
    dq, dk, dv = causal_attention_backward(
        _heads(d_seen_MN, form), q_turned, k_turned, v, seen_MHW, lse, tokens.starts, form.scale, parents=tokens.parents
    )
    del q_turned, k_turned, d_seen_MN
    dq, of_query_norm = _turned_back(dq, q, parts.query_norm, form, tokens)
    dk, of_key_norm = _turned_back(dk, k, parts.key_norm, form, tokens)
    d_qkv = [d.flatten(1) for d in (dq, dk, dv)]
    d_normed_MD, d_low = towards_input(d_qkv, parts.query_key_value, wants_dx or parts.before_attention.requires_grad)
    normed_MD, _, _ = rows.rmsnorm(x_MD, parts.before_attention, form.epsilon, form.offset, narrow=wide)
    of_qkv = of_adapters(d_qkv, normed_MD, low_qkv, d_low, parts.query_key_value)
    qkv_weights = of_weights(d_qkv, normed_MD, parts.query_key_value)
    dx_MD, of_first_norm = None, None
    if d_normed_MD is not None:
        dx_MD, of_first_norm = rows.rmsnorm_backward(
            d_normed_MD, x_MD, inverse_1, parts.before_attention, form.offset, d_middle_MD, parts.before_attention.requires_grad
        )
    adapters = [*of_qkv, *of_out, *of_gate_up, *of_down]
    weights = [*qkv_weights, *out_weights, *gate_up_weights, *down_weights]
    norms = [of_norm for of_norm in (of_first_norm, of_second_norm, of_query_norm, of_key_norm) if of_norm is not None]
    return dx_MD if wants_dx else None, [*adapters, *weights, *norms]


def _heads(x_MN: Tensor, form: Form) -> Tensor:
    return x_MN.view(len(x_MN), -1, form.head_width)


def _turned(x_MHW: Tensor, weight_W: Tensor | None, form: Form, tokens: Tokens) -> Tensor:
    """Normed where the family does it (a copy), and turned by the token's position (in place where there is no copy)."""
    if weight_W is not None:
        x_MHW = rows.rmsnorm(x_MHW.flatten(0, 1), weight_W, form.epsilon, form.offset)[0].view(x_MHW.shape)
    return rows.rotate_(x_MHW, tokens.cos_MR, tokens.sin_MR)


def _turned_back(d_MHW: Tensor, x_MHW: Tensor, weight_W: Tensor | None, form: Form, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
    """The gradients of `_turned` towards x, where norms copied it, and towards the weight, where it is trained."""
    d_MHW = rows.rotate_(d_MHW, tokens.cos_MR, tokens.sin_MR, back=True)
    if weight_W is None:
        return d_MHW, None
    x = x_MHW.flatten(0, 1)
    _, inverse, _ = rows.rmsnorm(x, weight_W, form.epsilon, form.offset)
    dx, d_weight_W = rows.rmsnorm_backward(d_MHW.flatten(0, 1), x, inverse, weight_W, form.offset, wants_weight=weight_W.requires_grad)
    return dx.view(d_MHW.shape), d_weight_W


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, parts: Parts, form: Form, tokens: Tokens, keeps: bool, *_trained: Tensor | None) -> Tensor:
        y_MD, kept = forward(x_MD, parts, form, tokens)
        ctx.save_for_backward(*(kept if keeps else [x_MD]))
        ctx.of = parts, form, tokens, keeps
        if not keeps:
            parts.drop_casts()
        assert y_MD is not None
        return y_MD

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        parts, form, tokens, keeps = ctx.of
        kept = ctx.saved_tensors if keeps else forward(ctx.saved_tensors[0], parts, form, tokens, answers=False)[1]
        dx_MD, gradients = backward(upstream[0], kept, parts, form, tokens, ctx.needs_input_grad[0])
        parts.drop_casts()
        return dx_MD, None, None, None, None, *gradients


# --- as transformers calls it ---------------------------------------------------------------------------------------------


class Fused:
    """In the place of a layer's forward; `own` is what stood there.

    keeps   what the backward pass needs; otherwise the input alone, from which it is computed again
    """

    def __init__(self, layer: nn.Module, form: Form) -> None:
        self.layer, self.form, self.own, self.keeps = layer, form, layer.forward, True

    def __call__(self, hidden_states: Tensor, *arguments: Any, **named: Any) -> Any:
        parts = self.parts(hidden_states)
        tokens = None if arguments or parts is None else self.tokens(hidden_states, **named)
        if parts is None or tokens is None:
            own = partial(self.own, **named)
            if self.keeps or not self.layer.training:
                return own(hidden_states, *arguments)
            again: Any = self.layer._gradient_checkpointing_func
            return again(own, hidden_states, *arguments)
        x_MD = hidden_states.reshape(-1, hidden_states.shape[-1])
        with torch.autocast("cpu", enabled=False):  # dtypes are as they are meant here
            if torch.is_grad_enabled():
                keeps = self.keeps or not self.layer.training
                y_MD: Tensor = _Layer.apply(x_MD, parts, self.form, tokens, keeps, *parts.trained)  # type: ignore[no-untyped-call]
            else:
                y_MD = forward(x_MD, parts, self.form, tokens)[0]  # type: ignore[assignment]
        return y_MD.view(hidden_states.shape)

    def parts(self, x: Tensor) -> Parts | None:
        """Projections with the adapters that answer now; None where the layer itself must do it."""
        wide = x.dtype == torch.float32 and torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        if not (wide or x.dtype == torch.bfloat16) or (wide and x.device.type != "cpu") or not is_fast(self.form.head_width, x.device.type):
            return None
        attention, mlp = self.layer.get_submodule("self_attn"), self.layer.get_submodule("mlp")
        training = self.layer.training
        if training and getattr(attention, "attention_dropout", None):
            return None
        found = {
            name: projection
            for module, names in ((attention, QUERY_KEY_VALUE), (attention, ("o_proj",)), (mlp, GATE_UP), (mlp, ("down_proj",)))
            for name, projection in zip(names, _projections([module.get_submodule(name) for name in names], x.dtype, training), strict=True)
        }
        if None in found.values() or (x.device.type != "cpu" and any(p is not None and p.dropout for p in found.values())):
            return None  # noise from counters is compiled for CPUs
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
            tokens = cos_BTR._tunesmith_tokens = Tokens(
                cos_MR, sin_MR, starts, None if layout is None else layout.parents, layout, x.shape[:2]
            )
        return tokens


def _projections(layers: Sequence[nn.Module], dtype: torch.dtype, training: bool) -> list[Projection | None]:
    """Of layers of one input, whose sums are of this dtype."""
    dense = [layer for layer in layers if type(layer) is nn.Linear and layer.weight.dtype == dtype]
    stack = Stack(dense)
    return [
        _dense(layer, Dense(stack, dense.index(layer)))
        if type(layer) is nn.Linear and layer in dense
        else _projection(layer, dtype, training)
        for layer in layers
    ]


def _dense(layer: nn.Linear, frozen: Dense) -> Projection:
    weight_NK, bias_N = (tensor if _is_trained(tensor) else None for tensor in (layer.weight, layer.bias))
    return Projection(frozen, weight_NK=weight_NK, bias_N=bias_N)


def _projection(layer: nn.Module, dtype: torch.dtype, training: bool) -> Projection | None:
    if not isinstance(layer, LoraLinear) or layer.frozen.weight.dtype == torch.float32 or dtype == torch.float32:
        return None
    name = layer.switch.active
    if name is None or name not in layer.adapters:
        return Projection(layer.frozen)
    adapter: Any = layer.adapters[name]
    probability = adapter.dropout if training else 0.0
    return Projection(layer.frozen, adapter.a_RK, adapter.b_NR, adapter.scale, probability, _seed() if probability else 0)


def _seed() -> int:
    """Of one layer's noise, drawn from torch's generator: a function of the step, as that is."""
    drawn = torch.randint(1 << 62, ())
    return 0 if isinstance(drawn, FakeTensor) else int(drawn)


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


def keep_inputs(model: nn.Module) -> None:
    """From now on fused layers keep their input alone for the backward pass; transformers' way of doing it is switched off for them.

    After `gradient_checkpointing_enable`, whose function serves the calls that a layer must answer by itself.
    """
    for module in model.modules():
        fused = getattr(module, "_tunesmith_fused", None)
        if isinstance(fused, Fused) and getattr(module, "gradient_checkpointing", False):
            module.gradient_checkpointing = False  # type: ignore[assignment]
            fused.keeps = False


def fused_forms(model: nn.Module) -> dict[str, Form]:
    """Of the fused layers, by their path."""
    fused = {path: getattr(module, "_tunesmith_fused", None) for path, module in model.named_modules()}
    return {path: found.form for path, found in fused.items() if isinstance(found, Fused)}


@torch.no_grad()
def form_of(layer: nn.Module, linear_types: tuple[type[nn.Module], ...] = (LoraLinear, nn.Linear), mixed: bool = False) -> Form | None:
    """What the layer's modules say of themselves; None where they are others, or its projections of other types."""
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
    children = list(linear.values())
    if others or not all(isinstance(child, linear_types) for child in children) or not (mixed or len(set(map(type, children))) == 1):
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
    heads, key_heads = (_n_outputs(linear[name]) / width for name in ("q_proj", "k_proj"))
    if norms_heads and any(norm is None or norm.weight.shape != (width,) for norm in norms[2:]):  # of all heads at once (OLMo 2)
        return None
    if heads != int(heads) or key_heads != int(key_heads) or heads % key_heads:
        return None
    return Form(int(heads), int(key_heads), width, scale, epsilon, offset, activation, norms_heads)


def _n_outputs(layer: Any) -> int:
    layer = getattr(layer, "frozen", layer)
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.n_outputs)


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
    masters = layer.get_submodule("input_layernorm").weight.dtype == torch.float32
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=masters):
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
    answers, trained = [], [p for name, p in fused.layer.named_parameters() if p.requires_grad and ".adapters." not in name]
    for way in (own, fused):
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            y = way(leaf, **named)
        if not isinstance(y, Tensor):
            return False
        dx, *of_trained = torch.autograd.grad(y, [leaf, *trained], upstream)
        answers.append(((y - x).detach(), dx - upstream, of_trained))  # without what is carried along, in which a difference would drown
    (y, dx, of_trained), (found_y, found_dx, found_trained) = answers
    least = 0.01 * max((float(gradient.norm()) for gradient in of_trained), default=0.0)  # of one that is nearly zero noise is all there is
    return all(_off(*pair) < AGREEMENT for pair in ((found_y, y), (found_dx, dx))) and all(
        _off(found, expected, least) < AGREEMENT for found, expected in zip(found_trained, of_trained, strict=True)
    )


def _off(found: Tensor, expected: Tensor, least: float = 0.0) -> float:
    """Relative to the size of what is expected, or to `least` where that is more."""
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=least))
