"""Rows in which documents continue one that they share: every example as if it were alone, in all families, forward and backward."""

import numpy as np
import pytest
import torch
from families import CONFIGS, FAMILIES, VOCABULARY, WINDOW, assert_close, tiny

from tunesmith.config import LoraConfig
from tunesmith.data.batches import collate, collate_row, grouped
from tunesmith.data.packing import computed_tokens, row_of
from tunesmith.data.template import Example
from tunesmith.loss import Scored, nll_of
from tunesmith.model.adapters import adapter_parameters, attach, using
from tunesmith.model.attention import (
    Group,
    Layout,
    Within,
    attend,
    attend_within,
    block_diagonal,
    documents,
    keep_documents_apart,
    positions_of,
    why_not_shared,
)  # fmt: skip

CPU = torch.device("cpu")
ALL = 10**6
KEPT = pytest.mark.parametrize("kept", [ALL, 500, 0], ids=["all scores kept", "those of short documents", "none"])
# two beginnings, of 13 and 21 tokens; 13 and 21 tokens besides, one alone; longer than the window of the families that have one
LENGTHS, PARENTS = (13, 9, 2, 30, 21, 5, 17, 11), (-1, 0, 0, 0, -1, 4, 4, -1)


def document_of(lengths):
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


def examples(seed=0):
    """Of two instructions and of none; the longest begins last."""
    random = np.random.default_rng(seed)
    heads = [random.integers(3, VOCABULARY, n) for n in (13, 21, 1)]
    made = []
    for i, (head, n) in enumerate([(0, 9), (1, 5), (0, 2), (2, 30), (0, 25), (1, 17), (2, 3)]):
        ids = np.concatenate([heads[head], random.integers(3, VOCABULARY, n)]).astype(np.int32)
        trained = np.concatenate([np.zeros(len(heads[head]), dtype=bool), random.random(n) < 0.6])
        trained[-1] = True
        made.append(Example(ids, trained, f"rows:{i}"))
    return made


LONGEST = max(map(len, examples()))


def batch_of(rows, sharing, length=192):
    [group] = grouped(rows, 1000, packing=True, sharing=sharing)
    assert sharing == (computed_tokens(group) < sum(map(len, rows)))
    return collate_row(row_of(group), length)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# --- the operation ----------------------------------------------------------------------------------------------------------


def test_documents_that_continue_one_are_batches_of_their_own_beside_it():
    layout = Layout.of(document_of(LENGTHS), CPU, ALL, torch.tensor(PARENTS))
    assert layout.groups == (
        Group(1, 32, True, 13, 3),  # 30 tokens after 13 shared ones
        Group(1, 32, True),  # the 21 shared ones
        Group(1, 32, True, 21, 1),  # 17 after these
        Group(1, 16, True),  # the 13 shared ones
        Group(1, 16, True),  # 11 alone
        Group(1, 16, True, 13, 3),  # 9
        Group(1, 16, True, 21, 1),  # 5
        Group(1, 16, True, 13, 3),  # 2
    )
    assert layout.longest == (0, 43)
    assert layout.width == 53
    assert layout.token_P[layout.slot_T].tolist() == list(range(sum(LENGTHS)))
    assert layout.parents is not None and layout.parents.tolist() == list(PARENTS)


def test_what_a_token_sees_and_where_it_stands():
    document_T, parent_S = document_of((2, 2, 1)), torch.tensor([-1, 0, 0])
    assert positions_of(document_T, parent_S).tolist() == [0, 1, 2, 3, 2]
    #          s  s  a  a  b
    assert block_diagonal(document_T, torch.ones(4, 4, dtype=torch.bool).tril(), parent_S).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


@pytest.mark.parametrize("wrong", [[1, -1, -1], [-1, 0, 1], [-1, 1, -1]])
def test_only_what_stands_before_and_continues_nothing_is_continued(wrong):
    with pytest.raises(ValueError, match="continues one that is not before it"):
        Layout.of(document_of((3, 4, 5)), CPU, ALL, torch.tensor(wrong))


WAYS = {
    "causal": {},
    "window": {"window": WINDOW},
    "soft-cap and sinks": {"softcap": 2.0, "sinks": True},
}


@KEPT
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_its_error_is_no_larger_than_that_of_the_reference_over_the_whole_row(way, heads, kv_heads, dtype, kept):
    options = dict(WAYS[way])
    window, T = options.pop("window", None), sum(LENGTHS)
    document_T, parent_S = document_of(LENGTHS), torch.tensor(PARENTS)
    layout = Layout.of(document_T, CPU, kept, parent_S)
    sees_LL = torch.ones(layout.width, layout.width, dtype=torch.bool).tril()
    here = Within(layout, sees_LL.triu(1 - window) if window else sees_LL, causal=window is None)
    torch.manual_seed(0)
    given = [torch.randn(T, n, 8).to(dtype).transpose(0, 1) for n in (heads, kv_heads, kv_heads)]
    sinks_H, upstream = torch.randn(heads), torch.randn(T, heads, 8)
    options |= {"sinks_H": sinks_H} if options.pop("sinks", False) else {}

    def results(attention, dtype):
        inputs = [x.to(dtype).detach().requires_grad_() for x in given]
        answer_THD = attention(*inputs, **{k: v.to(dtype) if k == "sinks_H" else v for k, v in options.items()})
        return [answer_THD.detach(), *torch.autograd.grad((answer_THD * upstream.to(dtype)).sum(), inputs)]

    sees_TT = block_diagonal(document_T, here.sees_LL, parent_S)

    def whole_row(q, k, v, **options):
        return attend(q[None], k[None], v[None], sees_TT, 0.3, **options)[0].transpose(0, 1)

    exact = [x.double() for x in results(whole_row, torch.float64)]
    found = results(lambda q, k, v, **o: attend_within(q, k, v, here, 0.3, **o), dtype)
    reference = results(whole_row, dtype)
    for name, x, other, truth in zip(("answer", "query", "key", "value"), found, reference, exact, strict=True):
        own, allowed = float((x.double() - truth).norm()), float((other.double() - truth).norm())
        assert x.dtype == other.dtype == dtype
        assert own <= 1.2 * allowed + torch.finfo(dtype).eps * float(truth.norm()), name


# --- families ---------------------------------------------------------------------------------------------------------------


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@KEPT
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_every_gradient_of_full_fine_tuning_equal_those_of_rows_that_share_nothing(family, kept):
    plain, sharing = (without_dropout(tiny(family)).requires_grad_(True) for _ in range(2))
    keep_documents_apart(sharing, kept, LONGEST)
    assert why_not_shared(sharing, LONGEST) is None
    expected, found = Scored(plain)(collate(examples())), Scored(sharing)(batch_of(examples(), True))
    assert found.count == expected.count > 30
    assert_close(found.sum, expected.sum, tolerance=2e-6, what="loss")
    expected.sum.backward()
    found.sum.backward()
    theirs, ours = gradients(plain), gradients(sharing)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        largest = max(float(g.abs().max()) for n, g in theirs.items() if n.split(".")[-2:] == name.split(".")[-2:])
        if float(gradient.abs().max()) > 1e-4 * largest and largest > 1e-3:  # a bias of keys has a gradient of rounding only
            assert_close(ours[name], gradient, what=name)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt_neox"])
def test_every_gradient_of_adapters_and_the_same_bits_again(family):
    found = []
    for sharing in (False, True, True):
        model = tiny(family)
        attach(model, "spam", LoraConfig(rank=4), seed=0)
        for name, parameter in adapter_parameters(model, "spam").items():
            if "lora_B" in name:
                parameter.data.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
        with using(model, "spam"):
            keep_documents_apart(model, ALL, LONGEST)
            Scored(model.train())(batch_of(examples(), sharing)).sum.backward()
        found.append({name: p.grad for name, p in adapter_parameters(model, "spam").items()})
    for name, gradient in found[0].items():
        assert_close(found[1][name], gradient, tolerance=5e-6, what=name)
        assert torch.equal(found[1][name], found[2][name])


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_activations_computed_again_see_the_same_documents(family):
    found = []
    for again in (False, True):
        model = tiny(family).requires_grad_(True)
        keep_documents_apart(model, ALL, LONGEST)
        if again:
            model.activation_checkpointing_enable({"use_reentrant": False})
        Scored(model.train())(batch_of(examples(), True)).sum.backward()
        found.append(gradients(model))
    assert all(torch.equal(found[0][name], gradient) for name, gradient in found[1].items())


def test_validation_shares_too():
    model = tiny("qwen2")
    expected = nll_of(Scored(model), examples(), 64)
    keep_documents_apart(model, ALL, LONGEST)
    found = nll_of(Scored(model), examples(), 64, packing=True, sharing=True)
    assert found[1] == expected[1]
    assert found[0] == pytest.approx(expected[0], rel=2e-6)


def test_rows_that_share_nothing_are_as_before():
    model = tiny("gemma3")
    keep_documents_apart(model, ALL, LONGEST)
    batch = batch_of(examples(), False)
    with torch.no_grad():
        before = Scored(model)(batch).sum
        assert why_not_shared(model, LONGEST) is None
        Scored(model)(batch_of(examples(), True))
        assert torch.equal(Scored(model)(batch).sum, before)


# --- what is refused ----------------------------------------------------------------------------------------------------------


def test_a_model_with_dropout_of_its_own_does_not_share():
    model = tiny("gpt2")
    keep_documents_apart(model, ALL, LONGEST)
    assert "dropout of its own" in why_not_shared(model, LONGEST)
    config = CONFIGS["llama"]()
    config.attention_dropout = 0.1
    dropped = type(tiny("llama"))(config).eval()
    keep_documents_apart(dropped, ALL, LONGEST)
    assert "dropout of its own" in why_not_shared(dropped, LONGEST)


def restarting(positions_BT):
    """As a family would count that looks at where documents begin, not at what it is told."""
    begins = torch.nn.functional.pad(positions_BT.diff() != 1, (1, 0), value=True)
    at = torch.arange(positions_BT.shape[1])
    return at - torch.cummax(torch.where(begins, at, 0), -1).values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_model_that_counts_positions_by_itself_does_not_share(dtype):
    def counted(_module, _inputs, keywords):
        return (), keywords | ({"position_ids": restarting(keywords["position_ids"])} if "position_ids" in keywords else {})

    model = tiny("llama", dtype=dtype)
    model.base_model.register_forward_pre_hook(counted, with_kwargs=True)
    keep_documents_apart(model, ALL, LONGEST)  # for documents that restart, nothing is wrong
    assert "other ones than to each document alone" in why_not_shared(model, LONGEST)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_leak_from_one_branch_to_the_next_is_found(dtype):
    def leaks(_module, inputs):
        """Each token gets a little of the one before it, where positions say that it is of the same document; branches look like one."""
        return (inputs[0] + 1e-3 * inputs[0].roll(1, 1) * (model.position_ids_BT > 0)[..., None], *inputs[1:])

    def note(_module, _inputs, keywords):
        n = keywords["input_ids"].shape[1]
        model.position_ids_BT = keywords.get("position_ids", torch.arange(n)[None])

    model = tiny("llama", dtype=dtype)
    model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    model.model.layers[1].register_forward_pre_hook(leaks)
    keep_documents_apart(model, ALL, LONGEST)
    assert why_not_shared(model, LONGEST) == "what one document answers depends on the other"


def test_a_row_with_shared_documents_never_reaches_a_model_that_was_not_tried():
    with pytest.raises(RuntimeError, match="keep_documents_apart"), documents(tiny("llama"), torch.zeros(1, 4, dtype=torch.int64)):
        pass
