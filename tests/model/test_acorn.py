"""The embedded base is what its card says, and every other tool can open it."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.template import Renderer
from tunesmith.model.load import ACORN, load_model


def test_it_is_small_and_its_dimensions_are_multiples_of_64():
    assert sum(path.stat().st_size for path in ACORN.iterdir()) <= 16_000_000
    with safe_open(ACORN / "model.safetensors", "pt") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
    assert sum(torch.Size(shape).numel() for shape in shapes) <= 8_000_000
    assert all(n % 64 == 0 for shape in shapes for n in shape)
    config = json.loads((ACORN / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["max_position_embeddings"] >= 1024


def test_transformers_opens_it_without_us():
    model = AutoModelForCausalLM.from_pretrained(ACORN, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(ACORN)
    assert model.config.vocab_size == len(tokenizer)
    assert 4096 <= len(tokenizer) <= 8192
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], add_generation_prompt=True, return_dict=False)
    assert tokenizer.decode(ids) == "<|begin|><|user|>hello<|end|><|assistant|>"


def test_text_survives_the_tokenizer():
    tokenizer = load_model("acorn").tokenizer
    for text in ("Free entry!! Call 08712 now £1.50", '{"a": [1, 2.5, null], "ü": "é 漢字 🎉"}', "  two  spaces\n\ttab\r\n"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"], skip_special_tokens=False) == text


def test_its_template_marks_turns_and_trains_answers():
    loaded = load_model("acorn")
    renderer = Renderer(loaded.tokenizer, eos_ids=loaded.eos_ids)
    [example] = renderer.render(Conversation((Message("user", "a", False), Message("assistant", "b", True)), "x:1"))
    assert loaded.tokenizer.decode(example.ids) == "<|begin|><|user|>a<|end|><|assistant|>b<|end|>"
    assert loaded.tokenizer.decode(example.ids[example.trained]) == "b<|end|>"


def test_it_predicts_a_book_it_never_read(shared: Path):
    """Far better than its tokenizer alone: 12.6 bits for a token of about 3.7 bytes would be 3.4 bits a byte."""
    loaded = load_model("acorn")
    text = (shared / "data/lm_text/alice.txt").read_text(encoding="utf-8")[20_000:40_000]
    ids = torch.tensor([loaded.tokenizer(text, add_special_tokens=False)["input_ids"][:1024]])
    with torch.no_grad():
        loss = loaded.model(input_ids=ids, labels=ids).loss.item()
    n_bytes = len(loaded.tokenizer.decode(ids[0]).encode())
    assert loss / 0.6931 * (ids.shape[1] - 1) / n_bytes < 1.75
