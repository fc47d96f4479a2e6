"""Write acorn's card: what it was trained on, how well it predicts text it never saw, and what it writes.

    python scripts/acorn_card.py --held-out alice.txt pride_and_prejudice.txt …

The figures are measured here, on the files as they ship, not copied from the training run.
"""

import argparse
import json
from pathlib import Path

import torch

from pretrain_acorn import HELD_OUT, bits_per_byte
from tunesmith.inference.engine import generate
from tunesmith.model.load import ACORN, load_model

PROMPTS = [
    "The old sailor looked at the",
    "Once upon a time there was a",
    "Name: Ada Tornquist\nTown: Bellmoor\n",
    '{"item": "lamp", "price":',
    "Monday, Tuesday,",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--held-out", type=Path, nargs="+", required=True)
    parser.add_argument("--characters", type=int, default=300_000, help="of each text")
    args = parser.parse_args()
    facts = json.loads((ACORN / "pretraining.json").read_text())
    loaded = load_model("acorn", "float32")
    model, tokenizer = loaded.model, loaded.tokenizer
    with torch.no_grad():
        facts["bits_per_byte"] = {
            p.stem: round(bits_per_byte(model, tokenizer, p.read_text(encoding="utf-8")[: args.characters]), 3) for p in args.held_out
        }
    bos = tokenizer.bos_token_id
    ids = [[bos, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in PROMPTS]
    written = generate(model, ids, max_new_tokens=40, stop_ids=frozenset({tokenizer.eos_token_id}), temperature=0.7, top_p=0.9, seed=0)
    samples = [(text, tokenizer.decode(w.ids)) for text, w in zip(PROMPTS, written, strict=True)]
    (ACORN / "pretraining.json").write_text(json.dumps(facts, indent=2) + "\n")
    config = model.config
    card = f"""---
license: apache-2.0
library_name: transformers
tags: [llama, base]
---

# acorn

A base model of {facts["parameters"]:,} parameters, small enough to ship inside a package and to fine-tune on two CPU cores in a minute. It was pre-trained
by next-word prediction and nothing else: no instructions, no task rows, no preference data. It continues text; what it can do for a task it
learns from the rows it is fine-tuned on.

| | |
|---|---|
| architecture | Llama: {config.num_hidden_layers} layers, width {config.hidden_size}, {config.num_attention_heads} heads ({config.num_key_value_heads} key-value), feed-forward {config.intermediate_size}, context {config.max_position_embeddings}, tied embeddings, bfloat16 |
| tokenizer | byte-level BPE, {config.vocab_size:,} tokens, trained on the same text; digits one by one |
| control tokens | `<|begin|>` `<|end|>` `<|system|>` `<|user|>` `<|assistant|>` `<|tool|>` `<|pad|>`, nine reserved |
| data | {facts["books"]} public-domain English books (novels, tales, history, science, how-to, speeches) and generated text (records, JSON, lists, tables, short dialogues; `scripts/acorn_text.py`), about 22 % of the tokens |
| never read | {", ".join(sorted(HELD_OUT))}: held-out books |
| tokens seen | {facts["tokens_seen"]:,} |
| time | {facts["minutes"]} minutes on 2 shared CPU cores (`scripts/pretrain_acorn.py`) |
| licence | Apache-2.0; the books are in the public domain in the United States |
{facts.get("note", "")}
## Held-out text

Bits per byte of UTF-8, windows of 1,024 tokens, the first {args.characters:,} characters of each text. None of them was trained on.

| text | bits per byte |
|---|---|
{chr(10).join(f"| {name} | {value:.3f} |" for name, value in facts["bits_per_byte"].items())}

## Samples

Temperature 0.7, top-p 0.9, seed 0; the prompt, then what it wrote.

{chr(10).join(f"> **{prompt}**{text}".replace(chr(10), chr(10) + "> ") + chr(10) for prompt, text in samples)}
It knows little about the world, repeats itself, and will state anything. It is for learning and testing fine-tuning.
"""
    (ACORN / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
