from functools import cache

import pytest
import torch
import transformers

from tunesmith.errors import BadInput
from tunesmith.inference.engine import context_length, generate, stream

VOCABULARY, CONTEXT = 96, 64
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
}
NO_STOP: frozenset[int] = frozenset()


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, intermediate_size=64, num_key_value_heads=2))


def qwen3():
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SHAPE, intermediate_size=64, num_key_value_heads=2, head_dim=16))


def gemma3():
    """Five tokens of window, shorter than most prompts below; one layer in two sees everything."""
    config = transformers.Gemma3TextConfig(
        **SHAPE,
        intermediate_size=64,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
    )
    return transformers.Gemma3ForCausalLM(config)


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, tie_word_embeddings=False)
    )


def gpt_neox():
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SHAPE, intermediate_size=64))


@cache
def tiny(build):
    """A random model in float32 whose weights are large enough that its logits are far from flat."""
    torch.manual_seed(0)
    model = build().eval()
    # nothing of the configs' own ids takes part: transformers would stop at an eos id of their choosing
    model.generation_config.eos_token_id = model.generation_config.bos_token_id = None
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.3)
    return model


def random_prompts(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def by_transformers(model, prompt, max_new_tokens, stop_ids):
    """What transformers' own greedy search adds to one prompt, cut before its stop token."""
    out = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(stop_ids) or None, pad_token_id=0,
    )[0, len(prompt) :].tolist()  # fmt: skip
    ended = bool(out) and out[-1] in stop_ids
    return out[:-1] if ended else out, ended


FAMILIES = [llama, qwen3, gemma3, gpt2, gpt_neox]
PROMPTS = random_prompts([3, 17, 1, 9, 9, 24, 2, 12])


@pytest.mark.parametrize("build", FAMILIES)
def test_logits_are_far_from_flat_so_that_equal_tokens_mean_something(build):
    logits_TV = tiny(build)(torch.tensor(PROMPTS[1:2])).logits[0]
    assert logits_TV.std() > 0.5
    assert logits_TV.argmax(-1).unique().numel() > 5


@pytest.mark.parametrize("build", FAMILIES)
@pytest.mark.parametrize("stop_ids", [NO_STOP, frozenset(range(0, VOCABULARY, 7))], ids=["without stop tokens", "with stop tokens"])
def test_greedy_tokens_equal_those_of_transformers_for_each_prompt_alone(build, stop_ids):
    model = tiny(build)
    expected = [by_transformers(model, prompt, 20, stop_ids) for prompt in PROMPTS]
    for batch_size in (1, 3, 64):
        answers = generate(model, PROMPTS, max_new_tokens=20, stop_ids=stop_ids, batch_size=batch_size)
        assert [(answer.ids, answer.stopped) for answer in answers] == expected
    if stop_ids:
        assert len({len(ids) for ids, _ in expected}) > 2, "rows should end at different steps"
    else:
        assert len({token for ids, _ in expected for token in ids}) > 20, "answers should not repeat a few tokens"


@pytest.mark.parametrize("build", FAMILIES)
def test_sampled_tokens_depend_on_the_seed_and_the_row_and_not_on_the_batch(build):
    def sampled(seed, **how):
        return [
            answer.ids
            for answer in generate(tiny(build), PROMPTS, max_new_tokens=12, stop_ids=stop, temperature=0.9, top_p=0.95, seed=seed, **how)
        ]

    stop = frozenset(range(0, VOCABULARY, 9))
    first = sampled(5)
    assert sampled(5) == first
    assert sampled(5, batch_size=1) == first
    assert sampled(5, batch_size=3) == first
    assert sampled(6) != first


def test_the_window_of_gemma_is_short_enough_to_matter():
    model, prompt = tiny(gemma3), PROMPTS[5]
    config = transformers.Gemma3TextConfig(**(model.config.to_dict() | {"sliding_window": 64}))
    wide = transformers.Gemma3ForCausalLM(config).eval()
    wide.load_state_dict(model.state_dict())
    answers = [generate(m, [prompt], max_new_tokens=12, stop_ids=NO_STOP)[0].ids for m in (model, wide)]
    assert answers[0] != answers[1]


def test_equal_prompts_in_one_batch_draw_different_answers():
    answers = generate(tiny(llama), [PROMPTS[3]] * 6, max_new_tokens=12, stop_ids=NO_STOP, temperature=1.0)
    assert len({tuple(answer.ids) for answer in answers}) == 6


def test_a_stop_token_ends_the_answer_and_is_not_part_of_it():
    free = generate(tiny(llama), PROMPTS[:1], max_new_tokens=10, stop_ids=NO_STOP)[0]
    assert len(free.ids) == 10
    assert not free.stopped
    stop = free.ids[4]
    cut = generate(tiny(llama), PROMPTS[:1], max_new_tokens=10, stop_ids=frozenset({stop}))[0]
    assert cut.ids == free.ids[: free.ids.index(stop)]
    assert cut.stopped


def test_padding_may_be_any_token():
    answers = [generate(tiny(gpt2), PROMPTS, max_new_tokens=8, stop_ids=NO_STOP, pad_id=pad) for pad in (0, 95)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("build", [llama, gpt2])  # gpt2's table of positions has no row past the end
def test_an_answer_ends_where_the_context_ends(build):
    prompts = random_prompts([CONTEXT - 1, CONTEXT - 4, 5, CONTEXT - 30])
    answers = generate(tiny(build), prompts, max_new_tokens=40, stop_ids=NO_STOP)
    assert [len(answer.ids) for answer in answers] == [1, 4, 40, 30]
    assert not any(answer.stopped for answer in answers)
    alone = [generate(tiny(build), [prompt], max_new_tokens=40, stop_ids=NO_STOP)[0] for prompt in prompts]
    assert answers == alone


def test_a_stream_gives_the_same_tokens_one_by_one():
    stop = frozenset(range(0, VOCABULARY, 9))
    for how in ({}, {"temperature": 0.8, "top_p": 0.9, "seed": 3}):
        whole = generate(tiny(gemma3), PROMPTS[1:2], max_new_tokens=15, stop_ids=stop, **how)[0]
        tokens = stream(tiny(gemma3), PROMPTS[1], max_new_tokens=15, stop_ids=stop, **how)
        assert list(tokens) == whole.ids


def test_a_stream_leaves_gradients_on_in_the_code_that_reads_it():
    for _ in stream(tiny(llama), PROMPTS[0], max_new_tokens=3, stop_ids=NO_STOP):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def test_progress_counts_the_answered_prompts_up_to_all_of_them():
    seen: list[int] = []
    generate(tiny(llama), PROMPTS, max_new_tokens=20, stop_ids=frozenset(range(0, VOCABULARY, 7)), batch_size=3, on_progress=seen.append)
    assert seen == sorted(set(seen))
    assert seen[-1] == len(PROMPTS)


def test_no_prompts_give_no_answers():
    assert generate(tiny(llama), [], max_new_tokens=5, stop_ids=NO_STOP) == []


def test_a_model_without_a_limit_of_context_is_not_limited():
    config = transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)
    torch.manual_seed(0)
    model = transformers.BloomForCausalLM(config).eval()
    assert context_length(model) is None
    assert len(generate(model, PROMPTS, max_new_tokens=3, stop_ids=NO_STOP)[0].ids) == 3


@pytest.mark.parametrize(
    ("prompts", "how", "said"),
    [
        ([[1], []], {}, "the prompt is empty"),
        ([[1], [2] * CONTEXT], {}, "the prompt has 64 tokens and the model's context is 64"),
        ([[1, VOCABULARY]], {}, "the model knows 0 to 95"),
        ([[1, -1]], {}, "the model knows 0 to 95"),
        ([[1]], {"temperature": -1.0}, "temperature is -1.0"),
        ([[1]], {"top_p": 0.0}, "top_p is 0.0"),
        ([[1]], {"top_p": 1.5}, "top_p is 1.5"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ([[1]], {"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_prompts_and_settings_are_refused_with_place_and_remedy(prompts, how, said):
    with pytest.raises(BadInput, match=said) as refused:
        generate(tiny(llama), prompts, **({"max_new_tokens": 4, "stop_ids": NO_STOP} | how))
    assert refused.value.where
    assert refused.value.fix
    if "prompt" in said and len(prompts) == 2:
        assert refused.value.where == "prompt 2 of 2"


def test_a_model_in_training_mode_is_refused():
    model = llama().train()
    with pytest.raises(ValueError, match=r"model\.eval"):
        generate(model, [[1]], max_new_tokens=2, stop_ids=NO_STOP)
