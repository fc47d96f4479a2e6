"""Packed rows: every document as if it were alone, in all families, forward and backward; what cannot do that is refused."""

import numpy as np
import pytest
import torch
import transformers
from families import CONFIGS, FAMILIES, GROUPED, ONE_WINDOW_ONE_FULL, VOCABULARY, WIDTH, WINDOW, assert_close, tiny

from tunesmith.config import LoraConfig
from tunesmith.data.batches import collate, collate_row
from tunesmith.data.packing import pack, row_of
from tunesmith.data.template import Example
from tunesmith.errors import BadInput
from tunesmith.loss import Scored, nll_of
from tunesmith.model.adapters import adapter_parameters, attach, using
from tunesmith.model.attention import Group, Layout, Within, attend, attend_within, block_diagonal, documents, keep_documents_apart
from tunesmith.model.blocks import fuse

LENGTHS = (23, 9, 17, 2, 9, 1)  # longer than the window of the families that have one; two alike; one alone
CPU = torch.device("cpu")
ALL = 10**6
KEPT = pytest.mark.parametrize("kept", [ALL, 700, 0], ids=["all scores kept", "those of short documents", "none"])


def examples(lengths=LENGTHS, seed=0):
    """Random tokens, about half of them trained, among them first and last ones."""
    random = np.random.default_rng(seed)
    return [Example(random.integers(3, VOCABULARY, n).astype(np.int32), random.random(n) < 0.6, f"rows:{i}") for i, n in enumerate(lengths)]


def packed_batch(rows, length=64):
    return collate_row(row_of(rows), length)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# --- the operation ----------------------------------------------------------------------------------------------------------


def document_of(lengths):
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


def within(lengths, window=None, kept=ALL):
    layout = Layout.of(document_of(lengths), CPU, kept)
    n = layout.width
    sees_LL = torch.ones(n, n, dtype=torch.bool).tril()
    return Within(layout, sees_LL.triu(1 - window) if window else sees_LL, causal=window is None)


def test_documents_of_similar_length_are_one_batch_and_every_token_has_its_slot():
    layout = Layout.of(document_of((23, 3, 40, 20)), CPU, kept_scores=7000)
    assert layout.groups == (Group(3, 48, False), Group(1, 16, True))  # 40, 23, 20 rounded up to 16s; 3. Scores: 3 · 48² + 16² > 7,000
    assert layout.longest == (26, 40)
    assert layout.token_P[layout.slot_T].tolist() == list(range(86))
    assert int(layout.real_P.sum()) == 86
    assert Layout.of(document_of((16, 16)), CPU, 0).real_P is None


WAYS = {
    "causal": {},
    "window": {"window": WINDOW},
    "soft-cap": {"softcap": 2.0},
    "sinks": {"sinks": True},
    "window, soft-cap and sinks": {"window": WINDOW, "softcap": 2.0, "sinks": True},
}


@KEPT
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_its_error_is_no_larger_than_that_of_the_reference_over_the_whole_row(way, heads, kv_heads, dtype, kept):
    options = dict(WAYS[way])
    window, T = options.pop("window", None), sum(LENGTHS)
    torch.manual_seed(0)
    # as a model hands them over: transposed views of [T, heads, width]
    given = [torch.randn(T, n, 8).to(dtype).transpose(0, 1) for n in (heads, kv_heads, kv_heads)]
    sinks_H, upstream = torch.randn(heads), torch.randn(T, heads, 8)
    options |= {"sinks_H": sinks_H} if options.pop("sinks", False) else {}

    def results(attention, dtype):
        inputs = [x.to(dtype).detach().requires_grad_() for x in given]
        answer_THD = attention(*inputs, **{k: v.to(dtype) if k == "sinks_H" else v for k, v in options.items()})
        return [answer_THD.detach(), *torch.autograd.grad((answer_THD * upstream.to(dtype)).sum(), inputs)]

    here = within(LENGTHS, window, kept)
    sees_TT = block_diagonal(document_of(LENGTHS), here.sees_LL)

    def whole_row(q, k, v, **options):
        return attend(q[None], k[None], v[None], sees_TT, 0.3, **options)[0].transpose(0, 1)

    exact = [x.double() for x in results(whole_row, torch.float64)]
    found = results(lambda q, k, v, **o: attend_within(q, k, v, here, 0.3, **o), dtype)
    reference = results(whole_row, dtype)
    for name, x, other, truth in zip(("answer", "query", "key", "value"), found, reference, exact, strict=True):
        own, allowed = float((x.double() - truth).abs().max()), float((other.double() - truth).abs().max())
        assert x.dtype == other.dtype == dtype
        assert own <= 1.5 * allowed + torch.finfo(dtype).eps * float(truth.abs().max()), name


@KEPT
def test_dropout_leaves_out_shares_and_keeps_their_mean(kept):
    torch.manual_seed(0)
    q, k = torch.zeros(2, 400, 4), torch.zeros(2, 400, 4)
    v = torch.ones(2, 400, 4)  # every token sees its past in equal shares, whose sum is 1
    answers = [attend_within(q, k, v, within((400,), kept=kept), 1.0, dropout=0.5) for _ in range(2)]
    assert not torch.equal(*answers)
    assert answers[0][200:].mean() == pytest.approx(1, abs=0.02)
    assert answers[0][200:].std() > 0.01


# --- families ---------------------------------------------------------------------------------------------------------------


def olmo2():
    return transformers.Olmo2Config(**GROUPED, tie_word_embeddings=False)


def smollm3():
    """No rotation on every other layer."""
    return transformers.SmolLM3Config(**GROUPED, no_rope_layers=[1, 0], tie_word_embeddings=True)


def granite():
    """Multipliers of embeddings, residuals, attention and logits."""
    return transformers.GraniteConfig(**GROUPED, attention_multiplier=0.2, residual_multiplier=0.7, logits_scaling=2.0)


def gpt_oss():
    """Sinks, a window, experts."""
    return transformers.GptOssConfig(
        **GROUPED, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW, layer_types=ONE_WINDOW_ONE_FULL
    )


def llama4_text():
    """Attention within chunks of six tokens of a document on one layer, over the whole document on the other."""
    return transformers.Llama4TextConfig(
        **GROUPED, head_dim=8, num_local_experts=2, intermediate_size_mlp=48, attention_chunk_size=6, moe_layers=[],
        layer_types=["chunked_attention", "full_attention"],
    )  # fmt: skip


MORE = {f.__name__: f for f in (olmo2, smollm3, granite, gpt_oss, llama4_text)}


@pytest.fixture(autouse=True, scope="module")
def _more_families():
    CONFIGS.update(MORE)
    yield
    for name in MORE:
        del CONFIGS[name]


@KEPT
@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_packed_loss_and_every_gradient_equal_those_of_padded_rows(family, kept):
    """FAILURES 20."""
    padded, packed = tiny(family).requires_grad_(True), tiny(family).requires_grad_(True)
    keep_documents_apart(packed, kept, max(LENGTHS))
    expected, found = Scored(padded)(collate(examples())), Scored(packed)(packed_batch(examples()))
    assert found.count == expected.count > 20
    assert_close(found.sum, expected.sum, what="loss")
    expected.sum.backward()
    found.sum.backward()
    theirs, ours = gradients(padded), gradients(packed)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        largest = max(float(g.abs().max()) for n, g in theirs.items() if n.split(".")[-2:] == name.split(".")[-2:])
        if float(gradient.abs().max()) > 1e-4 * largest and largest > 1e-3:  # a bias of keys has a gradient of rounding only
            assert_close(ours[name], gradient, what=name)


def test_what_one_document_answers_is_the_same_to_the_bit_whatever_stands_beside_it():
    model = tiny("llama")
    keep_documents_apart(model, ALL, 23)
    ours, others = examples(seed=0), examples(seed=1)

    def hidden(rows):
        batch = packed_batch(rows)
        with torch.no_grad(), documents(model, batch.document_BT):
            return model.base_model(input_ids=batch.ids_BT, position_ids=batch.positions_BT).last_hidden_state[0]

    one, other = hidden(ours), hidden([others[0], ours[1], *others[2:]])
    assert torch.equal(one[23:32], other[23:32])
    assert not torch.equal(one[:23], other[:23])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_activations_computed_again_see_the_same_documents(family, dtype):
    found = []
    for again in (False, True):
        model = tiny(family, dtype=dtype).requires_grad_(True)
        keep_documents_apart(model, ALL, 23)
        if again:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        Scored(model)(packed_batch(examples())).sum.backward()
        found.append(gradients(model))
    assert all(torch.equal(found[0][name], gradient) for name, gradient in found[1].items())


def test_lora_with_the_fused_mlp_learns_the_same_from_packed_rows():
    found = []
    for packing in (False, True):
        model = tiny("llama")
        attach(model, "spam", LoraConfig(rank=4), seed=0)
        for name, parameter in adapter_parameters(model, "spam").items():
            if "lora_B" in name:
                parameter.data.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
        with using(model, "spam"):
            assert fuse(model) == 2
            if packing:
                keep_documents_apart(model, ALL, 23)
            Scored(model)(packed_batch(examples()) if packing else collate(examples())).sum.backward()
        found.append({name: p.grad for name, p in adapter_parameters(model, "spam").items()})
    for name, gradient in found[0].items():
        assert_close(found[1][name], gradient, what=name)


def test_validation_packs_too():
    model, rows = tiny("qwen2"), examples(lengths=range(2, 30))
    expected = nll_of(Scored(model), rows, 64)
    keep_documents_apart(model, ALL, 30)
    found = nll_of(Scored(model), rows, 64, packing=True)
    assert len(list(pack(rows, 64))) < 10
    assert found[1] == expected[1]
    assert found[0] == pytest.approx(expected[0], rel=1e-5)


@KEPT
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "mistral"])
def test_rows_that_are_not_packed_and_generation_are_as_before(family, kept):
    model = tiny(family)
    batch = collate(examples())
    mask_BT = (torch.arange(batch.ids_BT.shape[1])[None] < torch.tensor(LENGTHS)[:, None]).long()
    inputs = {"input_ids": batch.ids_BT.flip(1), "attention_mask": mask_BT.flip(1)}  # padded on the left, as for generation

    def answers():
        with torch.no_grad():
            logits = model(**inputs).logits[mask_BT.flip(1).bool()]
        return logits, model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=[], pad_token_id=0)

    (logits, written) = answers()
    keep_documents_apart(model, kept, 23)
    now, written_now = answers()
    assert_close(now, logits)
    assert torch.equal(written_now, written)


# --- what is refused ----------------------------------------------------------------------------------------------------------


def from_config(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(std=0.3)
    return model.requires_grad_(False)


def mamba():
    return from_config(transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=1, state_size=8))


def jamba():
    """A layer of attention beside one of Mamba."""
    shape = GROUPED | {"num_experts": 2, "num_experts_per_tok": 1}
    return from_config(transformers.JambaConfig(**shape, attn_layer_offset=1, attn_layer_period=2, use_mamba_kernels=False))


def lfm2():
    """A short convolution before a layer of attention."""
    return from_config(transformers.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"]))


def deepseek_v4():
    """Attends to blocks of 128 tokens merged into one: short documents do not show it."""
    shape = GROUPED | {"num_key_value_heads": 1, "max_position_embeddings": 512}
    return from_config(transformers.DeepseekV4Config(**shape, head_dim=8, n_routed_experts=4, moe_intermediate_size=16))


def bloom():
    return from_config(transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, n_layer=1, n_head=4))


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (mamba, "what one document answers depends on the other"),
        (jamba, "what one document answers depends on the other"),
        (lfm2, "what one document answers depends on the other"),
        (bloom, "it computes attention in its own way"),
        (deepseek_v4, "."),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_family_that_mixes_documents_is_refused_and_left_as_it_was(build, why):
    model = build()
    before = model.config._attn_implementation
    with pytest.raises(BadInput, match=f"documents in one row would not stay apart in this model: .*{why}") as caught:
        keep_documents_apart(model, ALL, 300)
    assert caught.value.where == f"training.packing: true, a model of type {model.config.model_type}"
    assert caught.value.fix == "training.packing: false"
    assert model.config._attn_implementation == before
    assert not model.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_small_leak_is_found_in_any_dtype(dtype):
    model = tiny("llama", dtype=dtype)
    # each token gets a thousandth of the one before it, far below bfloat16's rounding of most
    model.model.layers[1].register_forward_pre_hook(lambda _m, inputs: (inputs[0] + 1e-3 * inputs[0].roll(1, 1), *inputs[1:]))
    with pytest.raises(BadInput, match="depends on the other"):
        keep_documents_apart(model, ALL, 23)


def test_a_model_that_counts_positions_by_itself_is_refused():
    def without_positions(_module, _inputs, keywords):
        return (), keywords | {"position_ids": None}

    learned, rotated = tiny("gpt2"), tiny("llama")
    for model in (learned, rotated):
        model.base_model.register_forward_pre_hook(without_positions, with_kwargs=True)
    with pytest.raises(BadInput, match="its answers are other ones than to each document alone"):
        keep_documents_apart(learned, ALL, 23)
    keep_documents_apart(rotated, ALL, 23)  # rotary positions are relative: nothing is wrong


def test_a_packed_row_never_reaches_a_model_that_was_not_tried():
    with pytest.raises(RuntimeError, match="keep_documents_apart"):
        Scored(tiny("llama"))(packed_batch(examples()))
