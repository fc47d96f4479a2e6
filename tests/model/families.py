"""Tiny random models of nine families, each with what is particular to it, on rows longer than its window.

    model = tiny("gemma2"); rows = ragged_rows()

float32; weights are large enough that the loss is far from ln V: at ln V a model that ignores its input would pass every test.
"""

from copy import deepcopy
from functools import cache

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.data.batches import IGNORED, Batch

VOCABULARY, WIDTH, LAYERS = 96, 32, 2
WINDOW = 5  # rows below have up to 23 tokens
LENGTHS = (23, 9, 17)

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = SHAPE | {"num_key_value_heads": 2}
ONE_WINDOW_ONE_FULL = ["sliding_attention", "full_attention"]


def llama():
    return transformers.LlamaConfig(**GROUPED, tie_word_embeddings=False)


def mistral():
    return transformers.MistralConfig(**GROUPED, tie_word_embeddings=False, sliding_window=WINDOW)


def qwen2():
    """Biases on q, k and v; tied head."""
    return transformers.Qwen2Config(**GROUPED, tie_word_embeddings=True)


def qwen3():
    """Norms on q and k; heads wider than hidden_size / heads."""
    return transformers.Qwen3Config(**GROUPED, head_dim=16, tie_word_embeddings=True)


def gemma2():
    """Both soft-caps, low enough to bend; a window on every other layer; tied."""
    return transformers.Gemma2Config(
        **GROUPED, head_dim=16, query_pre_attn_scalar=16, sliding_window=WINDOW, layer_types=ONE_WINDOW_ONE_FULL,
        attn_logit_softcapping=2.0, final_logit_softcapping=3.0, tie_word_embeddings=True,
    )  # fmt: skip


def gemma3():
    return transformers.Gemma3TextConfig(
        **GROUPED, head_dim=16, query_pre_attn_scalar=16, sliding_window=WINDOW, layer_types=ONE_WINDOW_ONE_FULL, tie_word_embeddings=True
    )


def phi3():
    """One product for q, k and v, one for gate and up; half of each head is rotated."""
    return transformers.Phi3Config(**GROUPED, partial_rotary_factor=0.5, sliding_window=WINDOW, tie_word_embeddings=False)


def gpt2():
    """Conv1D, which keeps weights as inputs x outputs; learned positions; biases; tied."""
    return transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )


def gpt_neox():
    """A quarter of each head is rotated; attention and MLP side by side; biases."""
    return transformers.GPTNeoXConfig(**SHAPE, rotary_pct=0.25, use_parallel_residual=True, tie_word_embeddings=False)


CONFIGS = {f.__name__: f for f in (llama, mistral, qwen2, qwen3, gemma2, gemma3, phi3, gpt2, gpt_neox)}
FAMILIES = list(CONFIGS)


@cache
def _built(family, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                # matrices large; norms and biases away from the ones and zeros in which a mistake would hide
                parameter.normal_(std=0.3) if parameter.ndim == 2 else parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def tiny(family, seed=0, dtype=torch.float32):
    """A fresh copy each time: adapters change a model."""
    return deepcopy(_built(family, seed)).to(dtype)


def ragged_rows(lengths=LENGTHS, seed=0):
    """Right-padded rows of random tokens, about half of them trained: our Batch, and ids, mask and labels as transformers wants them."""
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask_BT, theirs_BT = torch.zeros_like(ids_BT), torch.full_like(ids_BT, IGNORED)
    for row, length in enumerate(lengths):
        ids_BT[row, :length] = torch.randint(3, VOCABULARY, (length,), generator=generator)
        mask_BT[row, :length] = 1
        trained_T = torch.rand(length, generator=generator) < 0.5
        trained_T[0], trained_T[-1] = False, True  # a first token is nobody's next one
        theirs_BT[row, :length][trained_T] = ids_BT[row, :length][trained_T]
    # theirs: the token itself, shifted inside the model; ours: the token after each position
    ours_BT = torch.full_like(theirs_BT, IGNORED)
    ours_BT[:, :-1] = theirs_BT[:, 1:]
    n_trained = int((ours_BT != IGNORED).sum())
    batch = Batch(ids_BT, ours_BT, n_trained, tuple(f"rows:{i}" for i in range(len(lengths))))
    return batch, {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": theirs_BT}


def their_summed_loss(model, inputs, n_trained):
    """transformers' own loss, which is a mean over the trained tokens, as the sum that ours is."""
    return model(**inputs, use_cache=False).loss * n_trained


def assert_close(found, expected, tolerance=1e-5, what=""):
    """Equal to `tolerance` relative to the largest number of `expected`, which must not be zero."""
    largest = float(expected.detach().abs().max())
    assert found.shape == expected.shape, what
    assert largest > 0, f"{what}: nothing to compare"
    worst = float((found.detach() - expected.detach()).abs().max())
    assert worst <= tolerance * largest, f"{what}: off by {worst / largest:.1e} of the largest"


def linear_paths(model):
    """Every linear layer but the head, found without our code."""
    head = model.get_output_embeddings()
    return [path for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head]
