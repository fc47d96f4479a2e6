"""A batch of prompts on our own decoder (kernels/decode.py): for bfloat16 models on a CPU with AMX whose layers we know; others are None here.

    batch = decoding(model, prompts, rooms)                     # None: engine.py goes on with transformers' forward and cache
    word_B = batch.first(choose, greedy=True)                   # of each prompt; choose: logits [B, V] → ids [B]
    word_B = batch.next(word_B, choose, greedy=True); batch.keep([0, 2])

Prompts are read one after another in one packed row, and each has a stretch of the cache to itself: nothing is computed for padding, and rows leave
for nothing. What a layer consists of is asked of its modules (model/layers.py); whether ours then says what the model says, of every layer, the
norm and the head, is tried once on a few tokens. The reference of all this is the model's own forward: TUNESMITH_KERNELS=reference.

Weights are used where they lie. Those in few bits become bfloat16 for as long as the answers take, if they are no more than DENSE_BYTES.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tunesmith.inference.sampling import must_be_finite
from tunesmith.kernels import decode
from tunesmith.kernels.causal_attention import is_fast
from tunesmith.kernels.decode import Cache, Projection, Step, Trunk
from tunesmith.kernels.rows import rmsnorm
from tunesmith.loss import Scored
from tunesmith.model.frozen import QuantizedLinear, QuantizedWeight, dense_weight
from tunesmith.model.layers import AGREEMENT, CHILDREN, TRIED_TOKENS, Form, form_of, fused_forms
from tunesmith.model.lora import LoraLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LINEAR = (LoraLinear, nn.Linear, QuantizedLinear)
GROWTH = 128  # tokens that a row's stretch of the cache is longer than the row, at first and whenever it is full
DENSE_BYTES = 2**30  # of a quantised model's weights as bfloat16, beside their codes
TRUNK = {"embed_tokens", "layers", "norm", "rotary_emb"}

Choose = Callable[[Tensor], Tensor]


def decoding(model: "PreTrainedModel", prompts: Sequence[Sequence[int]], rooms: Sequence[int]) -> "Decoding | None":
    """rooms: how many tokens each answer may have. Adapters are those that answer now."""
    if model.dtype != torch.bfloat16 or model.device.type != "cpu":
        return None
    form = _form_of(model)
    if form is None or not _all_is_seen(model, max(len(prompt) + room for prompt, room in zip(prompts, rooms, strict=True))):
        return None
    trunk = _trunk(model, form)
    step = None if trunk is None else Step.of(trunk)
    return None if trunk is None or step is None else Decoding(model, trunk, step, prompts, rooms)


class Decoding:
    """Rows that are being written: the cache, and of each row its stretch there and the position of its newest token."""

    leaving_share = 1.0  # a row leaves as soon as it ends

    def __init__(self, model: Any, trunk: Trunk, step: Step, prompts: Sequence[Sequence[int]], rooms: Sequence[int]) -> None:
        self.trunk, self.step, self.embed, self.prompts = trunk, step, model.get_input_embeddings(), prompts
        self.most_B = torch.tensor([len(prompt) + room for prompt, room in zip(prompts, rooms, strict=True)])
        cos_1TR, sin_1TR = model.base_model.rotary_emb(trunk.last_norm, torch.arange(int(self.most_B.max()))[None])
        self.tables = cos_1TR[0].contiguous(), sin_1TR[0].contiguous()
        self.position_B = torch.tensor([len(prompt) - 1 for prompt in prompts])
        self.cache, self.first_B = Cache.empty(trunk, 0), torch.zeros_like(self.position_B)
        self._lay_out(self.first_B)

    def first(self, choose: Choose, greedy: bool) -> Tensor:
        """The first token of each answer; the whole prompts are read."""
        ids_M = torch.tensor([token for prompt in self.prompts for token in prompt])
        position_M = torch.cat([torch.arange(len(prompt)) for prompt in self.prompts])
        lengths_B = self.position_B + 1
        starts = nn.functional.pad(lengths_B.cumsum(0), (1, 0))
        place_M = self.first_B.repeat_interleave(lengths_B) + position_M
        cos_MR, sin_MR = (table_TR[position_M] for table_TR in self.tables)
        x_MD = decode.read(self.trunk, self.embed(ids_M), self.cache, place_M, starts.int(), cos_MR, sin_MR)
        return choose(decode.logits(self.trunk, x_MD[starts[1:] - 1]))

    def next(self, word_B: Tensor, newest: int, choose: Choose, greedy: bool) -> Tensor:
        """The token after `word_B`, of each row."""
        if self.free == 0:
            self._lay_out(self.position_B + 1)
        self.position_B += 1
        self.free -= 1
        found = self.step(self.embed(word_B), self.cache, self.first_B, self.position_B, *self.tables, all_logits=not greedy)
        if found.logits_BV is not None:
            return choose(found.logits_BV)
        must_be_finite(found.most_B)
        return found.word_B

    def keep(self, rows: list[int]) -> None:
        self.first_B, self.position_B, self.most_B = self.first_B[rows], self.position_B[rows], self.most_B[rows]

    def _lay_out(self, held_B: Tensor) -> None:
        """Stretches with room for GROWTH more tokens, where answers may be so long; the tokens that are held move along."""
        stretch_B = torch.minimum(self.position_B + 1 + GROWTH, self.most_B)
        first_B = stretch_B.cumsum(0) - stretch_B
        cache = Cache.empty(self.trunk, int(stretch_B.sum()))
        for to, at, n in zip(first_B.tolist(), self.first_B.tolist(), held_B.tolist(), strict=True):
            cache.keys_LGPW[:, :, to : to + n] = self.cache.keys_LGPW[:, :, at : at + n]
            cache.values_LGPW[:, :, to : to + n] = self.cache.values_LGPW[:, :, at : at + n]
        self.cache, self.first_B, self.free = cache, first_B, GROWTH


# --- the model as the kernel wants it -------------------------------------------------------------------------------------


def _trunk(model: Any, form: Form) -> Trunk | None:
    """Its weights, with the adapters that answer now; None where some are not tensors of this process, or too many would have to be made dense."""
    layers, head = model.base_model.layers, model.get_output_embeddings()
    quantised = [m for m in (*layers.modules(), head) if isinstance(m, QuantizedLinear)]
    if sum(2 * m.n_outputs * m.n_inputs for m in quantised) > DENSE_BYTES:
        return None
    trunk = Trunk(
        form.heads, form.key_heads, form.head_width, form.scale, form.epsilon, form.offset, form.activation,
        tuple(_layer(own, form) for own in layers), model.base_model.norm.weight, _projection(head),
    )  # fmt: skip
    return trunk if decode.fits(trunk) else None


def _layer(own: Any, form: Form) -> decode.Layer:
    attention, mlp = own.self_attn, own.mlp
    query, key, value, out = (_projection(getattr(attention, name)) for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
    gate, up, down = (_projection(getattr(mlp, name)) for name in ("gate_proj", "up_proj", "down_proj"))
    query_norm, key_norm = (getattr(attention, name).weight if form.norms_heads else None for name in ("q_norm", "k_norm"))
    return decode.Layer(
        own.input_layernorm.weight, query, key, value, query_norm, key_norm, out, own.post_attention_layernorm.weight, gate, up, down
    )


def _projection(layer: Any) -> Projection:
    adapter: Any = None
    if isinstance(layer, LoraLinear):
        name, adapters = layer.switch.active, layer.adapters
        layer, adapter = layer.frozen, adapters[name] if name is not None and name in adapters else None
    weight_NK = dense_weight(layer, torch.bfloat16)
    if isinstance(layer, QuantizedWeight):
        weight_NK = weight_NK.clone()  # the next one is made in the same buffer
    if adapter is None:
        return Projection(weight_NK, layer.bias)
    return Projection(weight_NK, layer.bias, (adapter.a_RK * adapter.scale).to(torch.bfloat16), adapter.b_NR.to(torch.bfloat16))


# --- which models ---------------------------------------------------------------------------------------------------------


def _form_of(model: Any) -> Form | None:
    """Of all its layers; None where they differ, or the model is put together otherwise. It is tried once, and noted on the model."""
    base = model.base_model
    layers = getattr(base, "layers", None)
    if not isinstance(layers, nn.ModuleList) or set(base._modules) != TRUNK or any(set(layer._modules) != CHILDREN for layer in layers):
        return None
    if not isinstance(model.get_output_embeddings(), nn.Linear | QuantizedLinear):
        return None
    fused = fused_forms(layers)
    forms = {fused.get(str(number)) or form_of(layer, LINEAR, mixed=True) for number, layer in enumerate(layers)}
    form = forms.pop() if len(forms) == 1 else None
    # tables that depend on the length of what is read would be other ones for each row
    lengths_matter = getattr(base.rotary_emb, "rope_type", "dynamic") not in ("default", "linear", "yarn", "llama3")
    if form is None or not is_fast(form.head_width) or lengths_matter or getattr(base.norm, "weight", None) is None:
        return None
    if not hasattr(model, "_tunesmith_decodes"):
        model._tunesmith_decodes = _agrees(model, form)
    return form if model._tunesmith_decodes else None


def _all_is_seen(model: Any, longest: int) -> bool:
    """Whether each of so many tokens sees all before it: the cache that transformers would use knows of windows and other ways."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    kept = DynamicCache(config=model.config).layers
    return all(type(layer) is DynamicLayer or getattr(layer, "sliding_window", 0) >= longest for layer in kept)


@torch.no_grad()
def _agrees(model: Any, form: Form) -> bool:
    """Whether, to the noise of bfloat16, each layer makes of what reaches it what ours makes of it, and all else is the last norm and the head."""
    trunk = _trunk(model, form)
    if trunk is None:
        return False
    base = model.base_model
    ids_T = (3 + 5 * torch.arange(TRIED_TOKENS)) % len(trunk.head.weight_NK)
    seen: list[tuple[Tensor, Any]] = []
    hooks = [own.register_forward_hook(lambda _own, inputs, output: seen.append((inputs[0], output))) for own in base.layers]
    try:
        hidden_1TD = base(input_ids=ids_T[None], use_cache=False).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    if len(seen) != len(trunk.layers) or not all(isinstance(output, Tensor) for _, output in seen):
        return False
    embedded_TD = base.embed_tokens(ids_T)
    place_T, starts = torch.arange(TRIED_TOKENS), torch.tensor([0, TRIED_TOKENS], dtype=torch.int32)
    cos_TR, sin_TR = (table[0] for table in base.rotary_emb(embedded_TD, place_T[None]))
    for own, (x_1TD, y_1TD) in zip(trunk.layers, seen, strict=True):
        alone = decode.of_layers(trunk, own)
        y_TD = decode.read(alone, x_1TD[0], Cache.empty(alone, TRIED_TOKENS), place_T, starts, cos_TR, sin_TR)
        if not _off(y_TD - x_1TD[0], y_1TD[0] - x_1TD[0]) < AGREEMENT:
            return False
    last_TD = rmsnorm(seen[-1][1][0], trunk.last_norm, trunk.epsilon, trunk.offset)[0]
    is_the_trunk = torch.equal(seen[0][0][0], embedded_TD) and _off(last_TD, hidden_1TD[0]) < AGREEMENT
    return is_the_trunk and Scored(model).why_full_logits is None


def _off(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())
