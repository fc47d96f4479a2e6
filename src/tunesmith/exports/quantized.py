"""A quantised model as a folder: quantised while it loads, written, opened again and compared.

    for line in write_quantized("acorn", find_scheme("nf4"), Path("models/acorn-nf4")):
        print(line)

nf4, fp4 and int8 by rows become bitsandbytes' files, which transformers opens too; every other scheme, and models whose embeddings
are in few bits too, a form of our own.
"""

import gc
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith import __version__
from tunesmith.errors import BadInput, MachineFailed
from tunesmith.files import must_be_new, new_folder, read_json, write_json, write_text
from tunesmith.model.adapters import fingerprint
from tunesmith.model.frozen import QuantizedLinear
from tunesmith.model.load import Loaded, find_model, is_quantised, load_model, weights_sha256
from tunesmith.model.quant_files import method_of, save_quantized
from tunesmith.progress import say
from tunesmith.quant.scheme import Scheme
from tunesmith.training.method import quantised_words

PAPERS = ("licen[cs]e*", "notice*", "copying*", "use_policy*")  # taken along as they are
N_PROBES, PROBE_TOKENS = 4, 32


def write_quantized(name: str, scheme: Scheme, output: Path, dtype: str = "bfloat16") -> list[str]:
    """Quantise a model into a new folder, whole or not at all; returns what was done, in words.

    dtype   of what is not quantised
    """
    must_be_new(output)
    written_dtype(dtype)
    must_be_for_files(scheme, "--scheme fp8")
    if is_quantised(name):
        raise BadInput("this model is quantised already", where=name, fix="give the model that it was made from")
    if find_model(name).resolve() in output.absolute().resolve().parents:
        raise BadInput("the output lies inside the model's own folder", where=str(output), fix="--output beside it, or elsewhere")
    loaded = load_model(name, dtype, scheme=scheme, layout="flat" if scheme.is_codebook and scheme.in_bitsandbytes else "rows")
    compute: torch.dtype = loaded.model.dtype
    ragged = _their_limits(loaded.model, scheme)
    lacking = "embeddings in few bits" if scheme.embeddings else "experts in few bits" if scheme.in_bitsandbytes else "such scheme"
    said = [line.removeprefix("base in ") for line in quantised_words(loaded.model)]
    logits, bytes_before = probe_logits(loaded), weights_bytes(loaded.path)
    say(f"writing {output}")
    with new_folder(output) as beside:
        save_quantized(loaded.model, beside, compute)
        loaded.tokenizer.save_pretrained(beside)
        keep_facts(loaded, beside)
        copy_papers(loaded.path, beside, f"Quantised by tunesmith from {Path(name).name}: {scheme}.")
        del loaded  # one model in memory at a time
        gc.collect()
        say("opening what was written")
        difference = float((probe_logits(load_model(str(beside), dtype)) - logits).abs().max())
        if difference != 0:
            raise MachineFailed(
                f"what was written does not answer as what was quantised: logits differ by {difference:.3g}", where=str(output),
                fix="try again; if it stays so, this is a defect: please report it",
            )  # fmt: skip
        bytes_after = weights_bytes(beside)
        theirs = method_of(read_json(beside / "config.json")) == "bitsandbytes"
    return [
        *said,
        f"weights on disk: {bytes_before / 2**20:,.1f} MiB before, {bytes_after / 2**20:,.1f} MiB after",
        f"opened again: {N_PROBES * PROBE_TOKENS} probe tokens get the same logits, bit for bit",
        "opens in tunesmith and in transformers with bitsandbytes" + ragged
        if theirs
        else f"opens in tunesmith only: bitsandbytes has no {lacking}",
    ]


def must_be_for_files(scheme: Scheme, where: str) -> None:
    """FP8 keeps each weight twice, for two directions of a product: coded while a model loads, and no smaller in a file than bfloat16."""
    if scheme.is_float8:
        raise BadInput(
            "fp8 is coded while a model loads, and not kept in files", where=where, fix="int8; or quantization.scheme: fp8 of a run"
        )


def written_dtype(name: str) -> torch.dtype:
    """Of dense weights in a folder that is written; said before any work begins. "auto" would depend on the machine that writes."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in known:
        raise BadInput(f'weights are written in no dtype "{name}" here', where=f"--dtype {name}", fix="float32 or bfloat16")
    return known[name]


def _their_limits(model: Any, scheme: Scheme) -> str:
    """Warnings about layers that bitsandbytes' AVX-512 code reads wrongly or not at all (docs/quantization.md).

    Wrongly: rows of a multiple of 16 weights, and not of the block. Not at all, in evaluation on CPUs with bfloat16 instructions: layers whose
    outputs are no multiple of 32.
    """
    layers = [m for m in model.modules() if isinstance(m, QuantizedLinear)] if scheme.is_codebook else []
    block = scheme.block_size or 1
    odd = sorted({m.n_inputs for m in layers if m.n_inputs % block and m.n_inputs % 16 == 0})
    uneven = sorted({m.n_outputs for m in layers if m.n_outputs % 32})
    words = f", whose AVX-512 code reads rows of {odd[0]} in blocks of {block} wrongly: take blocks that divide the rows" if odd else ""
    if uneven:
        words += f"; its AVX-512 bfloat16 code stops at layers of {uneven[0]} outputs, no multiple of 32 (its GPU code does not)"
    return words


def keep_facts(loaded: Loaded, folder: Path) -> None:
    """tunesmith.json of the model before (how prompts are rendered), its fingerprint, as adapters of the dense base fit its codes too, and
    what the written files hold, as any code is a possible one: nothing else would tell a damaged one."""
    place = loaded.path / "tunesmith.json"
    facts = read_json(place) if place.is_file() else {}
    own = {"version": __version__, "dense_fingerprint": fingerprint(loaded.model), "weights_sha256": weights_sha256(folder)}
    write_json(folder / "tunesmith.json", {**facts, **own})


def weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@torch.no_grad()
def probe_logits(loaded: Loaded) -> Tensor:
    """float32 logits on the CPU of a few rows of random ids, the same rows every time."""
    length = min(PROBE_TOKENS, loaded.context or PROBE_TOKENS)
    ids_BT = torch.randint(0, loaded.n_ids, (N_PROBES, length), generator=torch.Generator().manual_seed(0))
    model: Any = loaded.model
    logits: Tensor = model(input_ids=ids_BT.to(model.device), use_cache=False).logits
    return logits.float().cpu()


def copy_papers(source: Path, folder: Path, note: str) -> None:
    """Licences as they are; the model card with a note on top, since its figures are those of the model before."""
    for file in source.iterdir():
        if file.is_file() and any(fnmatch(file.name.lower(), pattern) for pattern in PAPERS):
            shutil.copyfile(file, folder / file.name)
    card = source / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
        head, end, body = text.partition("\n---\n") if text.startswith("---\n") else ("", "", text)
        write_text(folder / card.name, f"{head}{end}\n> {note} What follows is the card of that model.\n\n{body.lstrip()}")
