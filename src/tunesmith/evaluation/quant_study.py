"""What quantisation loses: of each weight by itself, and of the whole model on a text.

    found = study("acorn", schemes_to_study(), [packaged_text()])
    found.schemes[0].bits_per_weight, found.schemes[0].perplexity, found.perplexity    # the last one: 16 bits
    found.layers[3].figures["int4, blocks of 64"].snr_dB

A weight's error says little by itself (a layer may not matter), and perplexity does not say where it comes from: hence both.
Signal-to-noise ratio: 10 · log10(Σ w² / Σ (w − w')²); one bit more is worth about 6 dB.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import tunesmith.examples
from tunesmith.data.batches import windows
from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.template import Example, Renderer
from tunesmith.errors import BadInput
from tunesmith.evaluation.metrics import language_metrics
from tunesmith.kernels.blocks_4bit import LEAST_SCALE
from tunesmith.loss import Scored, nll_of
from tunesmith.model.adapters import linear_layers
from tunesmith.model.experts import expert_parameters
from tunesmith.model.load import Loaded, load_model
from tunesmith.model.streaming import blocks_must_fit, token_tables
from tunesmith.progress import say
from tunesmith.quant import affine
from tunesmith.quant.scheme import DEFAULT_BLOCK, Scheme, find_scheme
from tunesmith.quant.tensor import affine_scale, dequantize, quantize, spans

N_TOKENS = 20_000  # of each text: enough for two figures of a perplexity, and half a minute a scheme on two cores
LONGEST_WINDOW = 1024
OUTLIER_SIGMAS = 4.0  # of a normal distribution, 6 weights in 100,000 lie farther out
N_BINS = 96

STUDIED: tuple[tuple[str, bool | None], ...] = (
    ("int8", None), ("affine8", None), ("int6", None), ("int5", None), ("int4", None), ("affine4", None), ("nf4", False), ("nf4", True),
    ("fp4", True), ("int3", None), ("affine3", None), ("int2", None), ("affine2", None),
)  # fmt: skip


@dataclass(frozen=True)
class Text:
    """A name for tables, and the words."""

    name: str
    content: str


@dataclass(frozen=True)
class Damage:
    """What a scheme does to weights, as sums, so that weights add up."""

    n_weights: int = 0
    n_bytes: int = 0
    squared_weight: float = 0.0
    squared_error: float = 0.0
    worst_error: float = 0.0
    n_saturated: int = 0

    def __add__(self, other: "Damage") -> "Damage":
        return Damage(
            self.n_weights + other.n_weights, self.n_bytes + other.n_bytes, self.squared_weight + other.squared_weight,
            self.squared_error + other.squared_error, max(self.worst_error, other.worst_error), self.n_saturated + other.n_saturated,
        )  # fmt: skip

    def figures(self) -> "Figures":
        kept = self.squared_weight > 0 and self.squared_error > 0
        return Figures(
            bits_per_weight=8 * self.n_bytes / self.n_weights,
            mean_squared_error=self.squared_error / self.n_weights,
            snr_dB=10 * math.log10(self.squared_weight / self.squared_error) if kept else None,
            worst_error=self.worst_error,
            saturated_share=self.n_saturated / self.n_weights,
        )


@dataclass(frozen=True)
class Figures:
    """Damage, divided. snr_dB is None where nothing was lost; errors are in the unit of the weight, or its square."""

    bits_per_weight: float
    mean_squared_error: float
    snr_dB: float | None
    worst_error: float
    saturated_share: float


@dataclass(frozen=True)
class LayerStudy:
    """One weight under every scheme. outlier_share: weights beyond 4 standard deviations of their block of 64."""

    name: str
    n_outputs: int
    n_inputs: int
    outlier_share: float
    figures: dict[str, Figures]


@dataclass(frozen=True)
class SchemeStudy:
    """The whole model under one scheme; perplexities by text, and of all texts' tokens together (None: too large for a number)."""

    scheme: Scheme
    name: str
    figures: Figures
    loss: float
    perplexity: float | None
    perplexities: dict[str, float | None]


@dataclass(frozen=True)
class Histogram:
    """Shares of all weights relative to the largest of their block of 64; bin i reaches from edges[i] to edges[i + 1]."""

    edges: list[float]
    shares: list[float]


@dataclass(frozen=True)
class Study:
    model: str
    dtype: str
    n_weights: int
    n_tokens: dict[str, int]
    loss: float
    perplexity: float | None
    perplexities: dict[str, float | None]
    schemes: list[SchemeStudy]
    layers: list[LayerStudy]
    histogram: Histogram

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def change(self, scheme: SchemeStudy) -> float | None:
        """How much larger the perplexity became: 0.02 is 2 %."""
        if scheme.perplexity is None or self.perplexity is None:
            return None
        return scheme.perplexity / self.perplexity - 1


# --- what to study ------------------------------------------------------------------------------------------------------


def schemes_to_study(block_size: int | None = None, more: Scheme | None = None, embeddings: bool = False) -> list[Scheme]:
    """The usual schemes from 8 to 2 bits, those that go by blocks with `block_size`; and one more. All with the embeddings, or none."""
    usual = [
        find_scheme(name, None if name in ("int8", "affine8") else block_size, double, embeddings=embeddings) for name, double in STUDIED
    ]
    return usual if more is None or more in usual else [*usual, more]


def packaged_text() -> Text:
    """The texts of the packaged examples, one of each kind after the other: short messages, which acorn never read."""
    folder = Path(next(iter(tunesmith.examples.__path__)))
    columns = []
    for file in sorted(folder.glob("*.jsonl")):
        rows = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
        columns.append([next(iter(row.values())) for row in rows])
    mixed = chain.from_iterable(zip_longest(*columns))
    return Text("the packaged examples", "\n".join(text for text in mixed if text is not None))


def read_text(path: Path) -> Text:
    """A text file in UTF-8."""
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"the text is not UTF-8: byte {error.start:,} cannot be read", where=str(path), fix="save it as UTF-8") from None
    except OSError as error:
        raise BadInput(f"the text cannot be read: {error.strerror}", where=str(path), fix="--text FILE, a file of plain text") from None
    if not content.strip():
        raise BadInput("the text is empty", where=str(path), fix="--text FILE, some pages of plain text")
    return Text(path.name, content)


# --- one weight ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def damage(weight_NK: Tensor, scheme: Scheme, where: str = "") -> Damage:
    """Quantise a weight and compare."""
    q = quantize(weight_NK, scheme, where=where)
    exact_NK = weight_NK.float()
    error_NK = dequantize(q) - exact_NK
    return Damage(
        n_weights=weight_NK.numel(),
        n_bytes=q.nbytes,
        squared_weight=float(exact_NK.square().sum(dtype=torch.float64)),
        squared_error=float(error_NK.square().sum(dtype=torch.float64)),
        worst_error=float(error_NK.abs().max()),
        n_saturated=n_saturated(weight_NK, scheme),
    )


def n_saturated(weight_NK: Tensor, scheme: Scheme) -> int:
    """Weights that took an end of the range because they lie beyond it: only clipping makes any, and codebooks do not clip."""
    if scheme.is_codebook or scheme.clip is None:
        return 0
    n = 0
    for columns, _, size in spans(weight_NK.shape[1], scheme.block_size):
        x_GB = weight_NK[:, columns].reshape(-1, size)
        n += int(affine.saturated(x_GB, scheme.levels, *affine_scale(x_GB, scheme)).sum())
    return n


@torch.no_grad()
def outlier_share(weight_NK: Tensor) -> float:
    """Weights farther than 4 standard deviations from the mean of their block."""
    n = 0
    for columns, _, size in spans(weight_NK.shape[1], DEFAULT_BLOCK):
        x_GB = weight_NK[:, columns].reshape(-1, size).float()
        far_GB = (x_GB - x_GB.mean(1, keepdim=True)).abs() > OUTLIER_SIGMAS * x_GB.std(1, correction=0, keepdim=True)
        n += int(far_GB.sum())
    return n / weight_NK.numel()


@torch.no_grad()
def relative_counts(weight_NK: Tensor) -> Tensor:
    """How many weights lie in each of the histogram's bins, relative to the largest of their block."""
    counts = torch.zeros(N_BINS, dtype=torch.float64)
    for columns, _, size in spans(weight_NK.shape[1], DEFAULT_BLOCK):
        x_GB = weight_NK[:, columns].reshape(-1, size).float()
        relative_GB = x_GB / x_GB.abs().amax(1, keepdim=True).clamp(min=LEAST_SCALE)
        counts += torch.histc(relative_GB, N_BINS, -1.0, 1.0).cpu()
    return counts


# --- the whole model ----------------------------------------------------------------------------------------------------


def study(name: str, schemes: Sequence[Scheme], texts: Sequence[Text], dtype: str = "bfloat16", n_tokens: int = N_TOKENS) -> Study:
    """Load the model in 16 bits and once for each scheme, as anyone else would, and measure all on the first tokens of each text."""
    dense = load_model(name, dtype)
    if dense.scheme is not None:
        raise BadInput(
            f"this model is quantised already ({dense.scheme})", where=str(dense.path), fix="give the model that it was made from"
        )
    for scheme in schemes:  # before the minutes of work
        blocks_must_fit(dense.model, scheme)
    examples = {text.name: examples_of(text, dense, n_tokens) for text in texts}
    layers, totals, counts = [], {str(scheme): Damage() for scheme in schemes}, torch.zeros(N_BINS, dtype=torch.float64)
    for path, weight_NK in weights_of(dense.model, any(scheme.embeddings for scheme in schemes)):
        done = {str(scheme): damage(weight_NK, scheme, path) for scheme in schemes}
        totals = {scheme: total + done[scheme] for scheme, total in totals.items()}
        counts += relative_counts(weight_NK)
        figures = {scheme: found.figures() for scheme, found in done.items()}
        layers.append(LayerStudy(path, len(weight_NK), weight_NK.shape[1], outlier_share(weight_NK), figures))
    loss, perplexity, perplexities = measure(dense, examples)
    say(f"{dtype}: perplexity {_shown(perplexity)}")
    del dense
    found = []
    for scheme in schemes:
        figures_of_all = totals[str(scheme)].figures()
        measured = measure(load_model(name, dtype, scheme=scheme), examples)
        found.append(SchemeStudy(scheme, str(scheme), figures_of_all, *measured))
        say(f"{scheme}: {figures_of_all.bits_per_weight:.3f} bits per weight, perplexity {_shown(measured[1])}")
    histogram = Histogram(torch.linspace(-1, 1, N_BINS + 1).tolist(), (counts / counts.sum()).tolist())
    n_predicted = {text: sum(len(example) - 1 for example in parts) for text, parts in examples.items()}
    n_weights = next(iter(totals.values())).n_weights
    return Study(name, dtype, n_weights, n_predicted, loss, perplexity, perplexities, found, layers, histogram)


def weights_of(model: nn.Module, embeddings: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Every weight [N, K] that a scheme quantises, by path; experts of a mixture one by one, a weight that two layers share once."""
    tables = {id(layer.weight): (path, layer) for path, layer in reversed(token_tables(model).items())} if embeddings else {}
    for path, layer in (*reversed(tables.values()), *linear_layers(model).items()):
        weight: Any = layer.weight
        yield path, weight.T.contiguous() if isinstance(layer, Conv1D) else weight
    for path, (_, _, transposed) in expert_parameters(model).items():
        for expert, weight in enumerate(model.get_parameter(path)):
            yield f"{path}[{expert}]", weight.T.contiguous() if transposed else weight


def examples_of(text: Text, loaded: Loaded, n_tokens: int) -> list[Example]:
    """The first tokens of a text in windows that the model can read; every token but the first is predicted once."""
    renderer = Renderer(loaded.tokenizer, "plain", loaded.eos_ids, loaded.n_ids)
    words = renderer.shortened(Conversation((Message("text", text.content, True),), text.name), n_tokens)
    whole = renderer.render(words)[0]
    first = Example(whole.ids[: n_tokens + 1], whole.trained[: n_tokens + 1], text.name)
    return windows(first, min(loaded.context or LONGEST_WINDOW, LONGEST_WINDOW))


def measure(loaded: Loaded, examples: dict[str, list[Example]]) -> tuple[float, float | None, dict[str, float | None]]:
    """Loss and perplexity over all texts, and perplexity of each."""
    scored, perplexities, total, count = Scored(loaded.model).eval(), {}, 0.0, 0
    for text, parts in examples.items():
        nll, n = nll_of(scored, parts, 4096)
        perplexities[text] = _perplexity(nll, n)
        total, count = total + nll, count + n
    return total / count, _perplexity(total, count), perplexities


def _perplexity(nll: float, n: int) -> float | None:
    return language_metrics(nll, n, 1).get("perplexity")


def _shown(perplexity: float | None) -> str:
    return "too large for a number" if perplexity is None else f"{perplexity:,.3f}"
