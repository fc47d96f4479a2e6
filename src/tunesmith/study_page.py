"""What quantisation loses, to look at: a study in, one self-contained page and its numbers out.

    write_study(found, Path("studies/acorn"))       # index.html, study.json

Three pictures: bits against perplexity, the error of every layer, and where the levels of a scheme stand among the weights.
"""

import math
from html import escape
from pathlib import Path
from typing import Any

from tunesmith.evaluation.quant_study import Histogram, LayerStudy, Study, packaged_text, read_text, schemes_to_study, study
from tunesmith.files import must_be_new, new_folder, write_json
from tunesmith.labels import places
from tunesmith.page import BLUE, GREY, ORANGE, document, figure, layout, section, table, write_page
from tunesmith.quant.codebook import FP4, NF4
from tunesmith.quant.scheme import Scheme, find_scheme

GREEN, PURPLE = "#3f9a5c", "#9a66d0"
FAMILIES = {"codebooks": ORANGE, "symmetric": BLUE, "asymmetric": GREEN}
DRAWN = (820.0, 320.0)  # pixels of the first chart between its axes on a wide screen
LEAST_PERCENT = 0.1  # a text of this length cannot tell less
DRAWN_AT_FIRST = ("int8", "int6", "nf4", "fp4", "int4", "int3", "int2")  # the other layers' lines are a click away in the legend


def write_study(study: Study, folder: Path) -> Path:
    """Write study.json and index.html into a folder that is there."""
    write_json(folder / "study.json", study.as_json())
    return write_page(folder / "index.html", page(study))


def write_study_of(
    model: str, output: Path, text: Path | None, block_size: int | None = None, more: Scheme | None = None, dtype: str = "bfloat16",
    embeddings: bool = False,
) -> list[str]:  # fmt: skip
    """Study a model into a new folder; returns what was found, in words."""
    must_be_new(output)
    words = read_text(text) if text is not None else packaged_text()
    found = study(model, schemes_to_study(block_size, more, embeddings), [words], dtype)
    with new_folder(output) as beside:
        beside.mkdir()
        write_study(found, beside)
    return [verdict(found), f"page: {output / 'index.html'}", f"data: {output / 'study.json'}"]


def page(study: Study) -> str:
    charts = {
        "bits": bits_and_perplexity(study),
        "layers": error_by_layer(study),
        "levels": levels_among_weights(study.histogram),
    }
    name = Path(study.model).name
    sections = [
        f"<h1>What quantisation loses: {escape(name)}</h1>",
        f'<p class="verdict">{escape(verdict(study))}</p>',
        table("facts", facts(study)),
        section(
            "Bits and perplexity",
            figure("bits", f"Towards the lower left is better. What is less than {LEAST_PERCENT:g} % stands at {LEAST_PERCENT:g} %.")
            + scheme_table(study),
        ),
        section(
            "Error by layer",
            figure(
                "layers", "Signal-to-noise ratio of each weight, in the order of the model: higher is better, one bit is worth about 6 dB."
            )
            + f"<details><summary>all {len(study.layers)} weights in figures</summary>{layer_table(study)}</details>",
        ),
        section(
            "Where the levels stand",
            figure(
                "levels",
                "All weights, each relative to the largest of its block of 64, and the levels that 4 bits offer. Where weights are many, "
                "levels should be close. The peaks at both ends are the largest weights themselves, one of each block.",
            ),
        ),
        '<noscript><p class="note">The charts need JavaScript; their numbers are in study.json.</p></noscript>',
    ]
    return document(f"quantisation of {name}", sections, charts)


# --- words and tables ---------------------------------------------------------------------------------------------------


def verdict(study: Study) -> str:
    """The default scheme in one sentence, or the first one studied."""
    usual = (find_scheme("nf4"), find_scheme("nf4", embeddings=True))
    chosen = next((s for s in study.schemes if s.scheme in usual), study.schemes[0])
    after, change = number(chosen.perplexity), percent(study.change(chosen))
    return (
        f"{chosen.name}: {chosen.figures.bits_per_weight:.3f} bits per weight, perplexity {number(study.perplexity)} → {after} ({change})"
    )


def facts(study: Study) -> list[tuple[str, str]]:
    texts = ", ".join(f"{name} ({n:,} tokens)" for name, n in study.n_tokens.items())
    with_embeddings = any(scheme.scheme.embeddings for scheme in study.schemes)
    which = "layers, embeddings and head; norms stay" if with_embeddings else "linear layers; embeddings, norms and head stay"
    outliers = sum(layer.outlier_share * layer.n_outputs * layer.n_inputs for layer in study.layers) / study.n_weights
    return [
        ("model", study.model),
        ("quantised weights", f"{study.n_weights:,} in {len(study.layers)} {which} {study.dtype}"),
        ("text", texts),
        (f"perplexity in {study.dtype}", number(study.perplexity)),
        ("outliers", f"{100 * outliers:.4f} % of the weights lie beyond 4 standard deviations of their block (normal: 0.0063 %)"),
    ]


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


def percent(change: float | None) -> str:
    return "–" if change is None else f"{100 * change:+,.2f} %".replace("-", "−")


def scheme_table(study: Study) -> str:
    clipped = any(scheme.scheme.clip is not None for scheme in study.schemes)
    head = ("scheme", "bits", "perplexity", "change", "SNR (dB)", "MSE", "worst", *(("saturated",) if clipped else ()))
    rows = [[study.dtype, "32" if study.dtype == "float32" else "16", number(study.perplexity), *["–"] * (5 if clipped else 4)]]
    for scheme in study.schemes:
        f = scheme.figures
        saturated = [f"{100 * f.saturated_share:.2f} %"] if clipped else []
        rows.append([
            scheme.name, f"{f.bits_per_weight:.3f}", number(scheme.perplexity), percent(study.change(scheme)), decibel(f.snr_dB),
            f"{f.mean_squared_error:.2e}", f"{f.worst_error:.3g}", *saturated,
        ])  # fmt: skip
    note = (
        "bits: stored for each weight, scales included. SNR: signal-to-noise ratio of all weights. MSE: mean squared error. "
        "worst: the largest error of a weight. " + ("saturated: weights beyond the range, cut to its end." if clipped else "")
    )
    return scores(head, rows) + f'<p class="note">{escape(note)}</p>'


def layer_table(study: Study) -> str:
    head = ("weight", "outputs × inputs", "outliers", *(f"{scheme.name} (dB)" for scheme in study.schemes))
    return scores(head, [[
        layer.name, f"{layer.n_outputs} × {layer.n_inputs}", f"{100 * layer.outlier_share:.3f} %",
        *(decibel(layer.figures[scheme.name].snr_dB) for scheme in study.schemes),
    ] for layer in study.layers])  # fmt: skip


def decibel(ratio: float | None) -> str:
    return "exact" if ratio is None else f"{ratio:.1f}"


def scores(head: tuple[str, ...], rows: list[list[str]]) -> str:
    """A table of figures whose first column names the row."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        for name, *cells in rows
    )
    return f'<div class="wide"><table class="scores">\n<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


# --- pictures, in plotly's words ------------------------------------------------------------------------------------------


def bits_and_perplexity(study: Study) -> dict[str, Any]:
    """One point a scheme, coloured by family; how much larger the perplexity became, on a logarithmic axis."""
    heights = {s.name: max(100 * change, LEAST_PERCENT) for s in study.schemes if (change := study.change(s)) is not None}
    bits = {s.name: s.figures.bits_per_weight for s in study.schemes if s.name in heights}
    across = (min(bits.values(), default=2.0) - 0.6, max(bits.values(), default=8.0) + 0.6)
    up = (math.log10(LEAST_PERCENT) - 0.2, math.log10(max(heights.values(), default=1.0)) + 0.2)
    names = names_among_points(study, bits, heights, across, up)
    data = []
    for family, color in FAMILIES.items():
        points = [scheme for scheme in study.schemes if scheme.name in heights and family_of(scheme.scheme) == family]
        if points:
            data.append({
                "type": "scatter", "mode": "markers+text", "name": family,
                "x": [bits[point.name] for point in points], "y": [heights[point.name] for point in points],
                "text": [short(point.scheme) for point in points], "textposition": [names[point.name] for point in points],
                "customdata": [[point.name, number(point.perplexity), percent(study.change(point))] for point in points],
                "marker": {"color": color, "size": 9}, "textfont": {"color": color}, "cliponaxis": False,
                "hovertemplate": "%{customdata[0]}<br>%{x:.3f} bits, perplexity %{customdata[1]} (%{customdata[2]})<extra></extra>",
            })  # fmt: skip
    drawn = layout("perplexity, % above the model in 16 bits", "bits per weight, scales included", height=420)
    drawn["xaxis"] |= {"range": list(across)}
    drawn["yaxis"] |= {"type": "log", "dtick": 1, "range": list(up)}
    return {"data": data, "layout": drawn}


def names_among_points(
    study: Study, bits: dict[str, float], heights: dict[str, float], across: tuple[float, float], up: tuple[float, float]
) -> dict[str, str]:
    """Where each scheme's short name stands, as plotly says it; two schemes may have the same short name."""
    points = {
        name: (
            DRAWN[0] * (bits[name] - across[0]) / (across[1] - across[0]),
            DRAWN[1] * (up[1] - math.log10(height)) / (up[1] - up[0]),
        )
        for name, height in heights.items()
    }
    shown = {s.name: short(s.scheme) for s in study.schemes}
    return places({name: (shown[name], *point) for name, point in points.items()}, *DRAWN)


def family_of(scheme: Scheme) -> str:
    return "codebooks" if scheme.is_codebook else "asymmetric" if scheme.has_zero_point else "symmetric"


def short(scheme: Scheme) -> str:
    clipped = f" clip {scheme.clip:g}" if scheme.clip is not None else ""
    return scheme.name + clipped + (" double" if scheme.double else "")


def error_by_layer(study: Study) -> dict[str, Any]:
    names = [layer.name for layer in study.layers]
    data = []
    for scheme in study.schemes:
        base = scheme.scheme.name
        dashed = "dash" if scheme.scheme.has_zero_point else "dot" if scheme.scheme.clip is not None else "solid"
        once = base in DRAWN_AT_FIRST and scheme.scheme.clip is None and (base != "nf4" or scheme.scheme.double)
        data.append({
            "type": "scatter", "mode": "lines", "name": short(scheme.scheme), "visible": True if once else "legendonly",
            "x": list(range(len(names))), "y": [layer.figures[scheme.name].snr_dB for layer in study.layers], "text": names,
            "line": {"width": 1.5, "dash": dashed, "color": hue(base)},
            "hovertemplate": f"%{{text}}: %{{y:.1f}} dB<extra>{short(scheme.scheme)}</extra>",
        })  # fmt: skip
    drawn = layout("signal-to-noise ratio (dB)", "", height=460)
    at, words = ticks(study.layers)
    drawn["xaxis"] |= {"tickmode": "array", "tickvals": at, "ticktext": words}
    drawn["legend"] = {"orientation": "v", "x": 1.01, "y": 1}
    return {"data": data, "layout": drawn}


def hue(name: str) -> str:
    """Codebooks in their own colours, the others by bits."""
    by_bits = {"8": BLUE, "6": "#2aa6a0", "5": GREY, "4": GREEN, "3": PURPLE, "2": "#d64f7a", "7": GREY}
    return {"nf4": ORANGE, "fp4": "#c79a00"}.get(name, by_bits.get(name[-1], GREY))


def ticks(layers: list[LayerStudy]) -> tuple[list[int], list[str]]:
    """Where the number of the block that a weight belongs to changes, and that number."""
    numbers = [next((part for part in layer.name.split(".") if part.isdigit()), "") for layer in layers]
    first = [i for i, number in enumerate(numbers) if i == 0 or number != numbers[i - 1]]
    every = -(-len(first) // 16)
    return first[::every], [f"block {numbers[i]}" if numbers[i] else layers[i].name for i in first[::every]]


def levels_among_weights(histogram: Histogram) -> dict[str, Any]:
    """The weights' histogram above zero, one row of marks per scheme below."""
    middles = [(low + high) / 2 for low, high in zip(histogram.edges, histogram.edges[1:], strict=False)]
    top = max(histogram.shares)
    data: list[dict[str, Any]] = [{
        "type": "bar", "name": "weights", "x": middles, "y": histogram.shares, "marker": {"color": GREY, "opacity": 0.5},
        "width": histogram.edges[1] - histogram.edges[0], "hovertemplate": "%{x:.2f}: %{y:.2%} of the weights<extra></extra>",
    }]  # fmt: skip
    rows = (("nf4", NF4, ORANGE), ("fp4", FP4, "#c79a00"), ("int4", [code / 7 for code in range(-7, 8)], GREEN))
    for n, (name, levels, color) in enumerate(rows, 1):
        data.append({
            "type": "scatter", "mode": "markers", "name": name, "x": sorted(levels), "y": [-0.07 * n * top] * len(levels),
            "marker": {"color": color, "size": 13, "symbol": "line-ns-open", "line": {"width": 2}},
            "hovertemplate": f"{name}: %{{x:.4f}}<extra></extra>",
        })  # fmt: skip
    drawn = layout("share of the weights", "weight, relative to the largest of its block", height=400)
    step = float(f"{top / 4:.0e}")
    drawn["yaxis"] |= {"tickformat": ".1%", "range": [-0.28 * top, 1.05 * top], "tickvals": [step * n for n in range(int(top / step) + 1)]}
    return {"data": data, "layout": drawn}
