"""Answers of our own decoder: whose it is, that it says what the model says, and that nothing but the speed tells it from transformers' way."""

from functools import cache
from typing import Any

import pytest
import torch
import transformers
from tests.model.families import CONFIGS

from tunesmith.config import LoraConfig
from tunesmith.errors import TunesmithError
from tunesmith.inference import decoding as ours
from tunesmith.inference.decoding import Decoding, decoding
from tunesmith.inference.engine import generate, stream
from tunesmith.kernels import native
from tunesmith.model.adapters import adapter_parameters, attach, switch_of, using
from tunesmith.model.blocks import fuse
from tunesmith.model.layers import fuse_layers, fused_forms
from tunesmith.model.load import load_model

needs_amx = pytest.mark.skipif(native.compiled() is None or not native.compiled().has_amx, reason="a CPU without AMX")

NO_STOP: frozenset[int] = frozenset()
N_NEW = 20


def gemma():
    """Norms that add 1 to their weights, tanh-GELU, embeddings times the root of the width."""
    shape = CONFIGS["llama"]().to_dict()
    return transformers.GemmaConfig(
        **{key: value for key, value in shape.items() if key in transformers.GemmaConfig().to_dict() and key != "model_type"}
    )


def wide_mistral():
    return transformers.MistralConfig(**CONFIGS["mistral"]().to_dict() | {"sliding_window": 30})


DECODED = {**{name: CONFIGS[name] for name in ("llama", "qwen2", "qwen3")}, "gemma": gemma, "wide_mistral": wide_mistral}


def in_whole_tiles(config: Any) -> Any:
    config.head_dim, config.intermediate_size, config.max_position_embeddings = 32, 64, 64
    return config


@cache
def built(family: str, adapted: bool = False) -> dict[torch.dtype, Any]:
    """The same weights, rounded to bfloat16, in both dtypes; large enough that logits are far from flat."""
    models = {}
    for dtype in (torch.float32, torch.bfloat16):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(in_whole_tiles({**CONFIGS, **DECODED}[family]()), dtype=torch.float32)
            for parameter in model.requires_grad_(False).parameters():
                parameter.normal_(std=0.2) if parameter.ndim == 2 else parameter.add_(torch.randn_like(parameter) * 0.2)
            models[dtype] = model.to(torch.bfloat16).to(dtype).eval()
            models[dtype].generation_config.eos_token_id = None
            if adapted:
                adapt(models[dtype])
    return models


def adapt(model: Any, name: str = "x", rank: int = 4) -> None:
    attach(model, name, LoraConfig(rank=rank), seed=rank)
    generator = torch.Generator().manual_seed(rank)
    for key, parameter in adapter_parameters(model, name).items():
        if "lora_B" in key:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    switch_of(model).active = name


def prompts_of(lengths: tuple[int, ...] = (3, 17, 1, 9, 9, 24, 2, 12)) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 96, (length,), generator=generator).tolist() for length in lengths]


PROMPTS = prompts_of()


def is_decoded(model: Any, longest: int = 25) -> bool:
    with torch.inference_mode():
        return decoding(model, PROMPTS[:1], [longest - len(PROMPTS[0])]) is not None


# --- what it says ---------------------------------------------------------------------------------------------------------


@needs_amx
@pytest.mark.parametrize("adapted", [False, True], ids=["base", "adapter"])
@pytest.mark.parametrize("family", [name for name in DECODED if name != "wide_mistral"])
def test_tokens_differ_from_the_models_own_only_where_that_cannot_tell_them_apart(family, adapted):
    """After what we wrote, the model's own greedy choice is our token, or its logits of both are closer than it is to float32 in this answer."""
    exact, own = (built(family, adapted)[dtype] for dtype in (torch.float32, torch.bfloat16))
    assert is_decoded(own)
    answers = generate(own, PROMPTS, max_new_tokens=N_NEW, stop_ids=NO_STOP)
    gaps, errors, n_words = [], [], set()
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids_1T = torch.tensor([prompt + answer.ids])
        exact_TV, own_TV = (model(input_ids=ids_1T, use_cache=False).logits[0, len(prompt) - 1 : -1].float() for model in (exact, own))
        written_T1 = torch.tensor(answer.ids)[:, None]
        gaps.append(own_TV.amax(-1) - own_TV.gather(1, written_T1)[:, 0])
        errors.append((own_TV - exact_TV).abs().max().expand(N_NEW))
        n_words |= set(answer.ids)
    gap, error = torch.cat(gaps), torch.cat(errors)
    assert bool((gap <= error).all()), (gap - error).max()
    assert float((gap == 0).float().mean()) > 0.9
    assert len(n_words) > 20, "answers should not repeat a few tokens"


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "gpt_neox", "mistral"])
def test_in_float32_tokens_are_those_of_transformers(family):
    model = built(family)[torch.float32]
    for prompt, answer in zip(PROMPTS, generate(model, PROMPTS, max_new_tokens=N_NEW, stop_ids=NO_STOP), strict=True):
        expected = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=N_NEW, pad_token_id=0)[0, len(prompt) :]
        assert answer.ids == expected.tolist()


@needs_amx
@pytest.mark.parametrize("how", [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 3}], ids=["greedy", "drawn"])
def test_an_answer_does_not_depend_on_the_rows_beside_it_nor_on_when_they_leave(how):
    stop_ids = frozenset(range(0, 96, 6))
    answers = [
        generate(built("qwen3", True)[torch.bfloat16], PROMPTS, max_new_tokens=N_NEW, stop_ids=stop_ids, batch_size=n, **how)
        for n in (1, 3, 64)
    ]
    assert answers[0] == answers[1] == answers[2]
    assert len({len(answer.ids) for answer in answers[0]}) > 2, "rows should end at different steps"
    assert any(answer.stopped for answer in answers[0])
    assert (
        list(stream(built("qwen3", True)[torch.bfloat16], PROMPTS[0], max_new_tokens=N_NEW, stop_ids=stop_ids, **how)) == answers[0][0].ids
    )


@needs_amx
def test_drawn_tokens_are_those_that_the_models_own_logits_would_have_drawn(monkeypatch):
    """The same random numbers, one a token; a few draws fall between two tokens and may go either way."""
    model, how = built("llama")[torch.bfloat16], {"max_new_tokens": 2, "stop_ids": NO_STOP, "temperature": 1.0}
    many = [[*prompt, token] for prompt in PROMPTS for token in range(3, 40)]
    found = [answer.ids for answer in generate(model, many, **how)]
    monkeypatch.setenv(native.VARIABLE, "reference")
    expected = [answer.ids for answer in generate(model, many, **how)]
    assert sum(a == b for a, b in zip(found, expected, strict=True)) > 0.75 * len(many)


@needs_amx
def test_a_full_stretch_of_the_cache_is_laid_out_anew(monkeypatch):
    model, how = built("llama")[torch.bfloat16], {"max_new_tokens": N_NEW, "stop_ids": frozenset(range(0, 96, 9))}
    expected = generate(model, PROMPTS, **how)
    monkeypatch.setattr(ours, "GROWTH", 3)
    assert generate(model, PROMPTS, **how) == expected


@needs_amx
def test_answers_end_where_the_context_ends():
    prompts = prompts_of((63, 60, 5, 34))
    answers = generate(built("llama")[torch.bfloat16], prompts, max_new_tokens=40, stop_ids=NO_STOP)
    assert [len(answer.ids) for answer in answers] == [1, 4, 40, 30]


@needs_amx
def test_the_base_and_any_adapter_answer_by_the_switch():
    model = adapted_model()
    adapt(model, "y", rank=3)
    answers = {}
    for name in (None, "x", "y"):
        with using(model, name):
            answers[name] = generate(model, PROMPTS, max_new_tokens=N_NEW, stop_ids=NO_STOP)
    assert answers[None] == generate(built("llama")[torch.bfloat16], PROMPTS, max_new_tokens=N_NEW, stop_ids=NO_STOP)
    assert answers[None] != answers["x"] != answers["y"]


def adapted_model() -> Any:
    built.cache_clear()
    return built("llama", True)[torch.bfloat16]


@needs_amx
def test_a_model_that_was_fused_for_training_answers_the_same():
    model = adapted_model()
    expected = generate(model, PROMPTS, max_new_tokens=N_NEW, stop_ids=NO_STOP)
    fuse_layers(model)
    fuse(model)
    assert len(fused_forms(model)) == 2
    del model._tunesmith_decodes
    assert is_decoded(model)
    assert generate(model, PROMPTS, max_new_tokens=N_NEW, stop_ids=NO_STOP) == expected


@needs_amx
def test_weights_in_few_bits_are_made_dense_for_the_answers_while_they_are_few(tmp_path, monkeypatch):
    built("llama")[torch.bfloat16].save_pretrained(tmp_path)
    copy_tokenizer(tmp_path)
    model = load_model(str(tmp_path), "bfloat16", scheme=nf4()).model
    adapt(model)
    assert is_decoded(model)
    answers = generate(model, PROMPTS, max_new_tokens=N_NEW, stop_ids=NO_STOP)
    monkeypatch.setattr(ours, "DENSE_BYTES", 1000)
    assert not is_decoded(model)
    theirs = generate(model, PROMPTS, max_new_tokens=N_NEW, stop_ids=NO_STOP)
    same = [sum(a == b for a, b in zip(one.ids, other.ids, strict=True)) for one, other in zip(answers, theirs, strict=True)]
    assert sum(same) > 0.6 * N_NEW * len(PROMPTS)  # a near tie changes all that follows


def nf4() -> Any:
    from tunesmith.quant.scheme import find_scheme

    return find_scheme("nf4", 32)


def copy_tokenizer(folder: Any) -> None:
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", eos_token="?").save_pretrained(folder)


def test_logits_that_are_not_finite_stop_the_answer():
    model = adapted_model()
    generate(model, PROMPTS[:2], max_new_tokens=2, stop_ids=NO_STOP)
    model.lm_head.weight[7] = torch.nan
    with pytest.raises(TunesmithError, match="logits are not finite"):
        generate(model, PROMPTS[:2], max_new_tokens=2, stop_ids=NO_STOP)
    built.cache_clear()


# --- whose it is ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "phi3", "gpt2", "gpt_neox", "mistral"])
def test_other_families_go_transformers_way(family):
    assert not is_decoded(built(family)[torch.bfloat16])


@needs_amx
def test_float32_and_the_reference_go_transformers_way(monkeypatch):
    assert is_decoded(built("llama")[torch.bfloat16])
    assert not is_decoded(built("llama")[torch.float32])
    monkeypatch.setenv(native.VARIABLE, "reference")
    assert not is_decoded(built("llama")[torch.bfloat16])


@needs_amx
def test_rows_longer_than_a_window_go_transformers_way():
    model = built("wide_mistral")[torch.bfloat16]
    assert is_decoded(model, longest=30)
    assert not is_decoded(model, longest=31)


@needs_amx
@pytest.mark.parametrize("changed", ["positions", "head", "embedding"])
def test_a_model_that_computes_something_else_goes_transformers_way(changed):
    """The trial itself: each is described as a Llama is."""
    built.cache_clear()
    model = built("llama")[torch.bfloat16]
    if changed == "positions":  # as every fourth layer of SmolLM3
        for layer in model.model.layers:
            own = layer.forward
            layer.forward = lambda x, position_embeddings, own=own, **named: own(
                x, position_embeddings=(torch.ones_like(position_embeddings[0]), torch.zeros_like(position_embeddings[1])), **named
            )
    elif changed == "head":  # a soft-cap
        own_forward = model.forward

        def capped(**named: Any) -> Any:
            answer = own_forward(**named)
            answer.logits = 30 * torch.tanh(answer.logits / 30)
            return answer

        model.forward = capped
    else:
        model.model.layers[0].register_forward_pre_hook(lambda _layer, inputs: (inputs[0] * 1.1,))
    assert not is_decoded(model)
    built.cache_clear()


@needs_amx
def test_acorn_is_decoded_as_users_load_it():
    import tunesmith

    model = tunesmith.load("acorn", dtype="bfloat16")
    assert isinstance(decoding(model.loaded.model, [[5, 6, 7]], [4]), Decoding)
