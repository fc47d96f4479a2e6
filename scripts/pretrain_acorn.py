"""Pre-train acorn, the embedded base model: next-word prediction on public-domain books and generated text.

    python scripts/pretrain_acorn.py --books books.tar.xz --output src/tunesmith/model/acorn --tokens 50e6

Books named in HELD_OUT are never read: they measure. The tokenizer is trained on the same text. Runs on a GPU if
there is one; two quiet CPU cores see about 30 million tokens an hour. Weights are kept in fp32, multiplied in bf16, and saved in
bf16. Muon for the matrices (Jordan et al. 2024; torch.optim.Muon), AdamW for the rest; a trapezoid schedule over the tokens, so
that the run may be paused (SIGSTOP) and shared cores change nothing but the time.
"""

import argparse
import json
import math
import random
import re
import tarfile
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from acorn_text import ASSISTANT, BOS, END, SYSTEM, USER, documents

HELD_OUT = {"alice_in_wonderland", "pride_and_prejudice", "grimms_fairy_tales"}
PAD, TOOL = "<|pad|>", "<|tool|>"
CONTROL = [PAD, BOS, END, SYSTEM, USER, ASSISTANT, TOOL, *(f"<|reserved_{n}|>" for n in range(9))]
VOCABULARY = 6144
PHASES = [(0.55, 256), (0.85, 512), (math.inf, 1024)]  # until this share of the tokens: tokens in a window
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant', 'tool'] %}"
    "{{ raise_exception('acorn knows the roles system, user, assistant and tool, not ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# digits one by one, words with their leading space, runs of other signs, white space: splits that JSON and prose share
SPLIT = r"\p{N}| ?\p{L}+|'(?:s|t|re|ve|m|ll|d)| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def read_books(archive: Path) -> dict[str, str]:
    books = {}
    with tarfile.open(archive, "r:xz") as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            slug = Path(member.name).stem
            if member.isfile() and slug not in HELD_OUT:
                stream = tar.extractfile(member)
                assert stream is not None
                books[slug] = unwrap(stream.read().decode("utf-8"))
    return books


def unwrap(text: str) -> str:
    """Lines broken at 70 columns become paragraphs; short lines (verse, lists, headings) stay as they are."""
    paragraphs = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        lines = [line.strip() for line in block.split("\n") if line.strip()]
        if not lines:
            continue
        wrapped = sum(len(line) > 55 for line in lines[:-1]) >= 0.7 * max(1, len(lines) - 1)
        paragraphs.append((" " if wrapped else "\n").join(lines))
    return "\n\n".join(paragraphs)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    from tokenizers import Regex

    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=CONTROL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=END, pad_token=PAD, model_max_length=1024,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT, TOOL], clean_up_tokenization_spaces=False,
    )  # fmt: skip
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def encode_marked(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Ids of generated documents, BOS first and END last; the marks in them are control tokens here."""
    bos, end = tokenizer.convert_tokens_to_ids(BOS), tokenizer.convert_tokens_to_ids(END)
    encoded = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    return [[bos, *e.ids, *([] if e.ids and e.ids[-1] == end else [end])] for e in encoded]


def book_stream(tokenizer: PreTrainedTokenizerFast, books: dict[str, str]) -> np.ndarray:
    bos, end = tokenizer.convert_tokens_to_ids(BOS), tokenizer.convert_tokens_to_ids(END)
    ids: list[int] = []
    for text in books.values():
        ids += [bos, *tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids, end]
    return np.array(ids, dtype=np.int32)


def generated_stream(tokenizer: PreTrainedTokenizerFast, seed: int, n_characters: int) -> np.ndarray:
    rows = encode_marked(tokenizer, list(documents(seed, n_characters)))
    return np.array([i for row in rows for i in row], dtype=np.int32)


class Windows:
    """Windows of T+1 ids without end: books and generated text in their shares, reshuffled at every pass."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, books: np.ndarray, generated_share: float, seed: int) -> None:
        self.tokenizer, self.books, self.share = tokenizer, books, generated_share
        self.random = random.Random(seed)
        self.generated_seed = 1000 * seed
        self.pool: dict[int, list[np.ndarray]] = {}
        self.passes = 0

    def _refill(self, length: int) -> None:
        n_generated = int(len(self.books) * self.share / (1 - self.share))
        self.generated_seed += 1
        generated = generated_stream(self.tokenizer, self.generated_seed, int(n_generated * 2.6))[:n_generated]
        pool = []
        for stream in (self.books, generated):
            start = self.random.randrange(length)  # other window borders at every pass
            pool += [stream[i : i + length + 1] for i in range(start, len(stream) - length - 1, length)]
        self.random.shuffle(pool)
        self.pool[length] = pool
        self.passes += 1

    def batch(self, rows: int, length: int) -> Tensor:
        picked = []
        for _ in range(rows):
            if not self.pool.get(length):
                self._refill(length)
            picked.append(self.pool[length].pop())
        return torch.from_numpy(np.stack(picked)).long()


def loss_of(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden)
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def bits_per_byte(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str, length: int = 1024) -> float:
    """Bits to code the text, in disjoint windows, per byte of UTF-8."""
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(BOS), *tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids])
    total, device = 0.0, next(model.parameters()).device
    for start in range(0, len(ids) - 1, length):
        window = ids[start : start + length + 1][None].to(device)
        total += loss_of(model, window).item() * (window.shape[1] - 1)
    return total / math.log(2) / len(text.encode("utf-8"))


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # a config of its own: saving changes it, and a compiled model would be compiled anew
    copy = LlamaForCausalLM(deepcopy(model.config))
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--books", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tokens", type=float, default=50e6, help="to see in this run")
    parser.add_argument("--held-out-text", type=Path, nargs="*", default=[])
    parser.add_argument("--step-tokens", type=int, default=8192)
    parser.add_argument("--micro-tokens", type=int, default=4096)
    parser.add_argument("--generated-share", type=float, default=0.22)
    parser.add_argument("--log", type=Path, default=Path("pretrain.jsonl"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--resume", type=Path, default=None, help="a folder this script saved: go on from its weights, tokenizer and tokens_seen"
    )
    parser.add_argument("--tokens-before", type=int, default=0, help="with --resume: tokens seen so far; the schedule begins anew")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    books = read_books(args.books)
    if args.resume is not None:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.resume)
    else:
        tokenizer = train_tokenizer([*books.values(), *documents(seed=7, n_characters=6_000_000)])
    stream = book_stream(tokenizer, books)
    print(
        f"{len(books)} books, {len(stream):,} tokens, {sum(len(t.encode()) for t in books.values()) / len(stream):.2f} bytes a token",
        flush=True,
    )

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=704, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=1024, tie_word_embeddings=True, rope_theta=10000.0,
        rms_norm_eps=1e-5, initializer_range=0.02, attention_dropout=0.0, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(device)
    if args.resume is not None:
        model.load_state_dict(LlamaForCausalLM.from_pretrained(args.resume, dtype=torch.float32).state_dict())
    n_parameters = sum(p.numel() for p in model.parameters())
    print(f"{n_parameters:,} parameters", flush=True)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    matrix_ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in matrix_ids]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    peak = {id(muon): 4e-3, id(adam): 4e-3}
    step_loss = torch.compile(loss_of, dynamic=False) if args.compile else loss_of

    windows = Windows(tokenizer, stream, args.generated_share, args.seed)
    begun, tokens, step = time.monotonic(), args.tokens_before, 0
    progress, length_now, compute_seconds = 0.0, 0, 0.0
    last_saved = begun
    with args.log.open("a") as log:
        while progress < 1.0:
            length = next(length for until, length in PHASES if progress < until)
            # materialised scores are faster than CPU flash attention on short rows, and need more memory on long ones
            if length != length_now:
                model.set_attn_implementation("eager" if length <= 512 and device == "cpu" else "sdpa")
                length_now = length
            rows, micro = args.step_tokens // length, max(1, args.micro_tokens // length)
            scale = min(1.0, progress / 0.02 + 0.02) * min(1.0, (1.0 - progress) / 0.5 + 0.01)
            for optimizer in (muon, adam):
                for group in optimizer.param_groups:
                    group["lr"] = peak[id(optimizer)] * scale
            total, started = 0.0, time.process_time()
            for _ in range(rows // micro):
                loss = step_loss(model, windows.batch(micro, length).to(device)) / (rows // micro)
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in (muon, adam):
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            tokens += rows * length
            step += 1
            seconds = time.monotonic() - begun
            compute_seconds += time.process_time() - started
            progress = (tokens - args.tokens_before) / args.tokens
            if step % 20 == 0:
                line = {
                    "step": step,
                    "tokens": tokens,
                    "loss": round(total, 4),
                    "scale": round(scale, 3),
                    "tokens_per_second": round((tokens - args.tokens_before) / seconds),
                    "minutes": round(seconds / 60, 2),
                    "core_minutes": round(compute_seconds / 60, 2),
                    "passes": windows.passes,
                }
                log.write(json.dumps(line) + "\n")
                log.flush()
                print(line, flush=True)
            if time.monotonic() - last_saved > 600:
                save(model, tokenizer, args.output)
                last_saved = time.monotonic()
    save(model, tokenizer, args.output)
    facts = {
        "tokens_seen": tokens,
        "steps": step,
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "core_minutes": round(compute_seconds / 60, 1),
        "parameters": n_parameters,
        "books": len(books),
        "passes": windows.passes,
        "bits_per_byte": {},
    }
    model.eval()
    for path in args.held_out_text:
        facts["bits_per_byte"][path.stem] = round(bits_per_byte(model, tokenizer, path.read_text(encoding="utf-8")[:300_000]), 4)
    (args.output / "pretraining.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
