"""What every scheme costs on real models and texts: measured, kept, and written into docs/quantization.md.

    python scripts/quant_table.py --model acorn ../shared/models/stories260k-hf --text ../shared/data/lm_text
    python scripts/quant_table.py --why acorn --text ../shared/data/lm_text     # which weights NF4's loss comes from
    python scripts/quant_table.py --embeddings acorn --text ../shared/data/lm_text   # what it costs to quantise embeddings and head too
    python scripts/quant_table.py                                               # no measurement: the tables from the figures that are kept

Figures go to benchmarks/results/quantization.json; the document's tables stand between marks. Of each .txt file in the folder the
first tokens are read. On two cores acorn takes ten minutes, and as long for --why.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from _harness import facts  # noqa: E402
from tunesmith.evaluation.quant_study import N_TOKENS, Study, Text, examples_of, measure, read_text, schemes_to_study, study  # noqa: E402
from tunesmith.files import write_json  # noqa: E402
from tunesmith.model.adapters import linear_layers  # noqa: E402
from tunesmith.model.load import load_model  # noqa: E402
from tunesmith.progress import say  # noqa: E402
from tunesmith.quant.scheme import Scheme, find_scheme  # noqa: E402
from tunesmith.quant.tensor import dequantize, quantize  # noqa: E402
from tunesmith.study_page import number, percent  # noqa: E402

RESULTS, DOCUMENT = ROOT / "benchmarks" / "results" / "quantization.json", ROOT / "docs" / "quantization.md"
MORE = [find_scheme("nf4", 32), find_scheme("int4", clip=98)]
NF4 = find_scheme("nf4")
N_TURNED, TURNED = 8, "all, the signs of random rows turned before and after"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", nargs="+", default=[])
    parser.add_argument("--why", metavar="MODEL")
    parser.add_argument("--embeddings", metavar="MODEL")
    parser.add_argument("--text", type=Path, help="a folder of .txt files")
    parser.add_argument("--tokens", type=int, default=N_TOKENS, help="of each text")
    given = parser.parse_args()
    if (given.model or given.why or given.embeddings) and given.text is None:
        parser.error("--model, --why and --embeddings need --text")
    texts = [read_text(file) for file in sorted(given.text.glob("*.txt")) if file.name != "SOURCE.txt"] if given.text else []
    for model in given.model:
        now = facts()
        keep("models", Path(model).name, {**figures(study(model, [*schemes_to_study(), *MORE], texts, n_tokens=given.tokens)), **now})
    if given.why:
        now = facts()
        keep("why", Path(given.why).name, {"rows": why(given.why, texts, given.tokens), **now})
    if given.embeddings:
        now = facts()
        keep("embeddings", Path(given.embeddings).name, {"rows": with_embeddings(given.embeddings, texts, given.tokens), **now})
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(document: str) -> str:
    """The document with the tables of the kept figures."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    for mark, table in (("table", scheme_table(kept)), ("why", why_table(kept)), ("embeddings", embeddings_table(kept))):
        document = re.sub(rf"(<!-- {mark}:.*?-->\n).*?(<!-- /{mark} -->)", lambda m, t=table: f"{m[1]}{t}\n{m[2]}", document, flags=re.S)  # type: ignore[misc]
    return document


def keep(part: str, name: str, value: dict[str, Any]) -> None:
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    write_json(RESULTS, {**kept, part: {**kept.get(part, {}), name: value}})


# --- every scheme ---------------------------------------------------------------------------------------------------------


def figures(found: Study) -> dict[str, Any]:
    """Of a study what the table needs: every scheme, no single layers."""
    base = {"scheme": found.dtype, "bits_per_weight": 16.0, "mean_squared_error": 0.0, "perplexity": found.perplexity, "change": 0.0}
    rows = [
        {
            "scheme": scheme.name, "bits_per_weight": scheme.figures.bits_per_weight, "snr_dB": scheme.figures.snr_dB,
            "mean_squared_error": scheme.figures.mean_squared_error, "worst_error": scheme.figures.worst_error,
            "perplexity": scheme.perplexity, "change": found.change(scheme), "perplexities": scheme.perplexities,
        }
        for scheme in found.schemes
    ]  # fmt: skip
    return {"n_weights": found.n_weights, "n_tokens": found.n_tokens, "rows": [{**base, "perplexities": found.perplexities}, *rows]}


def scheme_table(kept: dict[str, Any]) -> str:
    models = kept["models"]
    head = ["scheme", *(f"{name}: {column}" for name in models for column in ("bits", "mean squared error", "perplexity", "change"))]
    rows = {name: {row["scheme"]: row for row in model["rows"]} for name, model in models.items()}
    body = []
    for scheme in dict.fromkeys(scheme for of_model in rows.values() for scheme in of_model):
        cells = []
        for of_model in rows.values():
            row = of_model.get(scheme)
            cells += ["–"] * 4 if row is None else [
                f"{row['bits_per_weight']:.3f}".removesuffix(".000"), f"{row['mean_squared_error']:.1e}" if row["mean_squared_error"] else "0",
                number(row["perplexity"]), percent(row["change"]) if row["bits_per_weight"] < 16 else "–",
            ]  # fmt: skip
        body.append([scheme, *cells])
    said = "; ".join(
        f"{name}: {model['n_weights']:,} weights, {sum(model['n_tokens'].values()):,} tokens of {len(model['n_tokens'])} texts, commit {model['commit'][:12]}"
        for name, model in models.items()
    )
    return markdown(head, body) + f"\n\n{said}. Perplexity is that of all tokens together; products in bfloat16."


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# --- embeddings and head in few bits --------------------------------------------------------------------------------------


def with_embeddings(model: str, texts: Sequence[Text], n_tokens: int) -> list[dict[str, Any]]:
    """Bytes of all weights and perplexity, with the linear layers alone in few bits and with embeddings and head too."""
    rows: list[dict[str, Any]] = []
    for scheme in (None, *(find_scheme(name, embeddings=too) for name in ("int8", "nf4") for too in (False, True))):
        loaded = load_model(model, "bfloat16", scheme=scheme)
        _, perplexity, _ = measure(loaded, {text.name: examples_of(text, loaded, n_tokens) for text in texts})
        n_bytes = sum(tensor.nbytes for tensor in loaded.model.parameters())  # a tied weight counts once
        rows.append({"scheme": "bfloat16" if scheme is None else str(scheme), "bytes": n_bytes, "perplexity": perplexity})
        say(f"{rows[-1]['scheme']}: {n_bytes:,} bytes, perplexity {perplexity:.2f}")
    return rows


def embeddings_table(kept: dict[str, Any]) -> str:
    tables = []
    for name, found in kept.get("embeddings", {}).items():
        dense = found["rows"][0]
        body = [
            [
                row["scheme"], f"{16 * row['bytes'] / dense['bytes']:.3f}".removesuffix(".000"), f"{row['bytes']:,}", number(row["perplexity"]),
                percent(row["perplexity"] / dense["perplexity"] - 1) if row is not dense else "–",
            ]
            for row in found["rows"]
        ]  # fmt: skip
        tables.append(markdown([name, "all weights, bits each", "bytes in memory", "perplexity", "change"], body))
    return "\n\n".join(tables)


# --- where the loss of NF4 comes from -------------------------------------------------------------------------------------


def why(model: str, texts: Sequence[Text], n_tokens: int) -> list[dict[str, Any]]:
    """Change of perplexity with a part of the weights quantised, and with errors of the same size that point elsewhere."""
    loaded = load_model(model, "bfloat16")
    layers: dict[str, Any] = linear_layers(loaded.model)
    exact = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    examples = {text.name: examples_of(text, loaded, n_tokens) for text in texts}
    rows: list[dict[str, Any]] = []

    @torch.no_grad()
    def look(what: str, stored: Callable[[str, Tensor], Tensor]) -> float:
        for name, layer in layers.items():
            layer.weight.copy_(stored(name, exact[name]))
        _, perplexity, by_text = measure(loaded, examples)
        row = {"what": what, "perplexity": perplexity, "perplexities": by_text}
        base = rows[0] if rows else row
        row["change"] = perplexity / base["perplexity"] - 1
        row["changes"] = {name: by_text[name] / base["perplexities"][name] - 1 for name in by_text}
        rows.append(row)
        say(f"{what}: {percent(row['change'])}")
        return float(row["change"])

    def where(chosen: Callable[[str], bool], scheme: Scheme = NF4) -> Callable[[str, Tensor], Tensor]:
        return lambda name, w: dequantize(quantize(w, scheme), w.dtype) if chosen(name) else w

    look("16 bits", lambda name, w: w)
    look("all in nf4, blocks of 64", where(lambda name: True))
    for block in (32, 128, 256):
        look(f"all, blocks of {block}", where(lambda name: True, find_scheme("nf4", block)))
    for kind in dict.fromkeys(name.rpartition(".")[2] for name in layers):
        look(f"only {kind}", where(lambda name, kind=kind: name.endswith(f".{kind}")))  # type: ignore[misc]
    blocks = dict.fromkeys(re.sub(r"(\.\d+\.).*", r"\1", name) for name in layers)
    losses = {block: look(f"only {block[:-1]}", where(lambda name, block=block: name.startswith(block))) for block in blocks}  # type: ignore[misc]
    worst = max(losses, key=lambda block: losses[block])
    inside = {name: look(f"only {name}", where(lambda n, name=name: n == name)) for name in layers if name.startswith(worst)}  # type: ignore[misc]
    one = max(inside, key=lambda name: inside[name])
    look(f"all but {one}", where(lambda name: name != one))
    for seed in range(N_TURNED):
        generator = torch.Generator().manual_seed(seed)

        def turned(name: str, w: Tensor, generator: torch.Generator = generator) -> Tensor:
            sign_N1 = (torch.randint(0, 2, (len(w), 1), generator=generator) * 2 - 1).to(w.dtype)
            return sign_N1 * dequantize(quantize(w * sign_N1, NF4), w.dtype)

        look(f"{TURNED} ({seed + 1})", turned)
    return rows


def why_table(kept: dict[str, Any]) -> str:
    tables = []
    for name, found in kept.get("why", {}).items():
        texts = list(found["rows"][0]["perplexities"])
        rows = [(row["what"], [row["change"], *(row["changes"][text] for text in texts)]) for row in found["rows"][1:]]
        body = [[what, *map(percent, changes)] for what, changes in rows if not what.startswith(TURNED)]
        draws = list(zip(*(changes for what, changes in rows if what.startswith(TURNED)), strict=True))
        body.append([f"{TURNED}: mean of {N_TURNED}", *(percent(statistics.fmean(column)) for column in draws)])
        body.append(["… from … to", *(f"{percent(min(column))} … {percent(max(column))}" for column in draws)])
        tables.append(markdown([f"{name}, nf4 with doubled scales", "all texts", *(Path(text).stem for text in texts)], body))
    return "\n\n".join(tables)


if __name__ == "__main__":
    main()
