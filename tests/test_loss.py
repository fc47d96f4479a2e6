"""The one number of training: a sum over trained tokens, whatever surrounds them and however they were cut."""

import numpy as np
import pytest
import torch
import transformers

from tunesmith.config import LoraConfig
from tunesmith.data.batches import IGNORED, Batch, StepRows, collate, cut
from tunesmith.data.template import Example
from tunesmith.loss import Nll, Scored
from tunesmith.model.adapters import adapter_parameters, attach, using
from tunesmith.model.attention import keep_documents_apart

VOCABULARY = 64


def tiny():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    model = transformers.LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(std=0.15)
    return model


def example(text, source="rows:1"):
    """One token per letter; capitals are trained: "askANSWER"."""
    ids = [ord(letter) % VOCABULARY for letter in text]
    return Example(np.array(ids, np.int32), np.array([letter.isupper() for letter in text]), source)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(found, expected, tolerance=1e-6):
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        worst, largest = float((gradient - expected[name]).abs().max()), float(expected[name].abs().max())
        assert worst <= tolerance * largest, f"{name}: off by {worst / largest:.1e} of the largest"


def test_the_loss_is_the_sum_of_minus_log_probability_over_the_trained_tokens():
    #  tokens     a    s    k    N    O
    #  labels     -    -    N    O    -      the answer at each position is the next token
    model, batch = tiny(), collate([example("askNO")])
    with torch.no_grad():
        found = Scored(model)(batch)
        log_p_TV = torch.log_softmax(model(input_ids=batch.ids_BT).logits[0].double(), -1)
    n, o = batch.ids_BT[0, 3], batch.ids_BT[0, 4]
    assert isinstance(found, Nll)
    assert found.count == 2
    assert float(found.sum) == pytest.approx(float(-log_p_TV[2, n] - log_p_TV[3, o]), rel=1e-6)


def test_the_same_row_twice_has_twice_the_sum_and_twice_the_count():
    scored = Scored(tiny())
    with torch.no_grad():
        once, twice = scored(collate([example("askANSWER")])), scored(collate([example("askANSWER")] * 2))
    assert twice.count == 2 * once.count == 12
    assert float(twice.sum) == pytest.approx(2 * float(once.sum), rel=1e-6)


def test_padding_is_invisible_whatever_its_length_and_its_token():
    #  a s k Y E S . . .        . is padding
    #  t e l l m e N O W
    rows = [example("askYES"), example("tellmeNOW")]
    model = tiny()
    scored = Scored(model)
    batch = collate(rows)
    expected = sum(float(scored(collate([row])).sum.detach()) for row in rows)
    assert float(scored(batch).sum.detach()) == pytest.approx(expected, rel=1e-6)
    for pad, more in ((0, 0), (7, 0), (63, 5)):
        ids_BT = torch.nn.functional.pad(batch.ids_BT, (0, more))
        labels_BT = torch.nn.functional.pad(batch.labels_BT, (0, more), value=IGNORED)
        for row, kept in enumerate(rows):
            ids_BT[row, len(kept) :] = pad
        padded = scored(Batch(ids_BT, labels_BT, batch.n_trained, batch.sources))
        assert padded.count == batch.n_trained
        assert float(padded.sum.detach()) == pytest.approx(expected, rel=1e-6)


# Six rows of one optimizer step: long and short, with many trained tokens and few.
STEP = [
    example(text, f"rows:{n}") for n, text in enumerate(["aB", "askmeANYTHING", "whoareyouI", "xYZ", "onewordsecondwordTHIRDWORD", "qA"], 1)
]
CUTS = {
    "one by one": [[0], [1], [2], [3], [4], [5]],
    "two and four": [[0, 5], [1, 2, 3, 4]],
    "five and one": [[0, 1, 2, 3, 5], [4]],
    "in another order": [[4, 0], [5, 3], [2, 1]],
}


def step_gradients(groups, lora=False):
    """One optimizer step, cut into micro-batches: every sum is divided by the trained tokens of the whole step."""
    model = tiny()
    if lora:
        attach(model, "spam", LoraConfig(rank=4), seed=0)
        for name, parameter in adapter_parameters(model, "spam").items():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    scored = Scored(model)
    n_trained = sum(int(row.trained[1:].sum()) for group in groups for row in group)
    with using(model, "spam" if lora else None):
        for group in groups:
            nll = scored(collate(group))
            (nll.sum / n_trained).backward()
    return gradients(model)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", CUTS)
def test_any_cut_into_micro_batches_gives_the_gradient_of_the_whole_step(name, lora):
    #  micro-batch        trained tokens
    #  aB qA                    2          a mean of means would count each of these
    #  askmeANYTHING …         30          as much as fifteen of those
    groups = [[STEP[i] for i in group] for group in CUTS[name]]
    assert sorted(row.source for group in groups for row in group) == [row.source for row in STEP]
    assert_same_gradients(step_gradients(groups, lora), step_gradients([STEP], lora))


def test_a_mean_of_means_would_be_another_gradient():
    model = tiny()
    scored = Scored(model)
    groups = [[STEP[i] for i in group] for group in CUTS["five and one"]]
    for group in groups:
        nll = scored(collate(group))
        (nll.sum / nll.count / len(groups)).backward()
    with pytest.raises(AssertionError, match="of the largest"):
        assert_same_gradients(gradients(model), step_gradients([STEP]), tolerance=0.05)


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("micro_batch_tokens", [1, 20, 60, 10_000])
def test_the_cuts_that_the_loop_makes_give_the_gradient_of_the_whole_step(micro_batch_tokens, packing):
    groups = cut(STEP, micro_batch_tokens)
    assert_same_gradients(step_gradients(groups), step_gradients([STEP]))
    rows = StepRows(STEP, batch_size=len(STEP), seed=0, micro_batch_tokens=micro_batch_tokens, packing=packing)
    batches = rows.micro_batches(0)
    model = tiny()
    if packing:
        keep_documents_apart(model, kept_scores=10**6, longest=25)
    scored = Scored(model)
    n_trained = sum(batch.n_trained for batch in batches)
    for batch in batches:
        (scored(batch).sum / n_trained).backward()
    assert_same_gradients(gradients(model), step_gradients([STEP]), tolerance=5e-6)


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_two_processes_of_which_each_has_a_share_sum_to_the_gradient_of_one(packing):
    rows = StepRows(STEP, batch_size=len(STEP), seed=0, micro_batch_tokens=30, packing=packing)
    n_trained = sum(batch.n_trained for rank in range(2) for batch in rows.micro_batches(0, rank, 2))
    model = tiny()
    if packing:
        keep_documents_apart(model, kept_scores=10**6, longest=25)
    scored = Scored(model)
    for rank in range(2):
        for batch in rows.micro_batches(0, rank, 2):
            (scored(batch).sum / n_trained).backward()
    assert_same_gradients(gradients(model), step_gradients([STEP]), tolerance=5e-6)


def test_a_batch_with_nothing_trained_counts_nothing_and_moves_nothing():
    model = tiny()
    nll = Scored(model)(collate([example("nothing")]))
    assert nll.count == 0
    assert float(nll.sum.detach()) == 0
    nll.sum.backward()
    assert not any(bool(gradient.any()) for gradient in gradients(model).values())


def test_float32_masters_computed_in_bfloat16_get_float32_gradients_near_the_exact_ones():
    exact, rough = tiny(), tiny()
    found = Scored(rough, torch.bfloat16)(collate(STEP))
    expected = Scored(exact)(collate(STEP))
    assert found.sum.dtype == torch.float32
    assert float(found.sum.detach()) == pytest.approx(float(expected.sum.detach()), rel=0.02)
    assert float(found.sum.detach()) != float(expected.sum.detach()), "the products should be in bfloat16"
    found.sum.backward()
    expected.sum.backward()
    for name, gradient in gradients(exact).items():
        other = dict(rough.named_parameters())[name].grad
        assert other.dtype == torch.float32
        assert torch.cosine_similarity(other.flatten(), gradient.flatten(), dim=0) > 0.99, name


def test_only_trained_positions_reach_the_head():
    model = tiny()
    seen = []
    scored = Scored(model)
    handle = model.lm_head.register_forward_hook(lambda *_: seen.append("all positions"))
    scored(collate(STEP)).sum.backward()
    handle.remove()
    assert not seen
    assert scored.why_full_logits is None
