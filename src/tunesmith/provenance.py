"""What decides a run's bits besides its config and its data: the base's files, the code, the versions, the machine and its settings.

    facts = of(run, loaded, torch.bfloat16, n_processes=1)  # "base", "machine" and "environment" of status.json
    differences(folder.status(), facts)                     # {"environment.versions.torch": ("2.13.0", "2.14.0"), "machine.threads": (1, 2)}
    since(folder.status(), facts)                           # the same in words; BadInput where the base is another one

The same config on the same data gives the same weights, bit for bit, where nothing here differs. Another number of threads adds the
parts of a sum in another order; another version, kernel or processor multiplies in another one: the weights then differ in their last
digits, and after many steps in more. Nothing here is secret: of the environment only variables by name, none that sounds like a key.
"""

import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tunesmith import __version__
from tunesmith.config import Run
from tunesmith.errors import BadInput
from tunesmith.files import sha256_of
from tunesmith.hardware import describe_machine
from tunesmith.kernels import native
from tunesmith.model.adapters import fingerprint
from tunesmith.model.load import Loaded
from tunesmith.runs import adapter_of

PACKAGES = ("triton", "transformers", "tokenizers", "safetensors", "jinja2", "numpy", "pyarrow")
PREFIXES = (
    "TUNESMITH_", "OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_", "ATEN_", "TORCH_", "PYTORCH_", "CUDA_", "CUBLAS_",
    "CUDNN_", "NVIDIA_TF32_OVERRIDE", "NCCL_", "GLOO_", "TRITON_", "PYTHONHASHSEED",
)  # fmt: skip
SET_BY_LIBRARIES = ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK")  # scikit-learn, when something imports it
SECRET = re.compile("TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)
HASHED_BYTES = 256 << 20  # of a larger file its size, and the fingerprint tells its weights: reading 140 GB would take minutes
NO_PART = {  # noted, but no bit depends on them
    "base.path", "machine.memory_bytes", "machine.cores", "machine.computes_in",
    *(f"environment.variables.TUNESMITH_{name}" for name in ("CACHE", "TRACEBACK", "KILL_AT")),
}  # fmt: skip


def of(run: Run, loaded: Loaded, dtype: torch.dtype, n_processes: int) -> dict[str, Any]:
    """What status.json keeps. loaded: before a step is taken; dtype: of the run's products; n_processes: that share a step."""
    base = {"path": str(loaded.path.absolute()), "fingerprint": fingerprint(loaded.model), "files": files_of(loaded.path)}
    if run.lora.continue_from is not None:
        base["adapter"] = files_of(adapter_of(run.lora.continue_from))
    setting = {"dtype": str(dtype).removeprefix("torch."), "processes": n_processes}
    return {"base": base, "machine": describe_machine(), "environment": environment() | setting}


def environment() -> dict[str, Any]:
    """Of this process: code, versions, kernels and variables."""
    return {
        "code": code_hash(),
        "versions": {"tunesmith": __version__, **versions(PACKAGES), "torch": torch.__version__, "cuda": torch.version.cuda or "none"},
        "kernels": native.describe(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "variables": variables(os.environ),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def variables(given: Mapping[str, str]) -> dict[str, str]:
    """Those that choose threads, kernels, precision or devices; none whose name sounds like a secret."""
    named = {name: value for name, value in sorted(given.items()) if name.startswith(PREFIXES) and not SECRET.search(name)}
    return {name: value for name, value in named.items() if name not in SET_BY_LIBRARIES}


@cache
def code_hash() -> str:
    """sha256 over this package's source and its compiled kernels, so that two states of the code differ with or without git."""
    root = Path(__file__).parent
    digest = sha256()
    sources = [path for path in root.rglob("*") if path.suffix in (".py", ".c", ".h", ".cu")]
    library = native.library_file()
    for path in sorted([*sources, *([library] if library is not None else [])]):
        digest.update(f"{path.relative_to(root).as_posix()}\0{sha256_of(path)}\n".encode())
    return digest.hexdigest()


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Name → bytes and sha256 of each file of a model folder; of files over HASHED_BYTES the bytes alone."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt"):
            n_bytes = path.stat().st_size
            found[path.name] = {"bytes": n_bytes} | ({"sha256": sha256_of(path)} if n_bytes <= HASHED_BYTES else {})
    return found


def since(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What changed since a run that goes on noted `before`, in words; another base is refused, as no weights would be those of one run."""
    was, here = before.get("base", {}).get("fingerprint"), now["base"]["fingerprint"]
    if was is not None and was != here:
        raise BadInput(
            "the base model changed since this run began", where=now["base"]["path"],
            fix=f"put the base back that was at {before['base'].get('path')}, or start a new run",
        )  # fmt: skip
    return in_words(differences(before, now))


def here_and_there(before: Mapping[str, Any]) -> list[str]:
    """What of this process is other than in the one that noted `before`, in words; nothing where that noted nothing."""
    noted = {"machine": before.get("machine"), "environment": before.get("environment")}
    now = {
        "machine": describe_machine(),
        "environment": (before.get("environment") or {}) | environment(),
    }  # dtype and processes: the config's
    return in_words(differences(noted, now))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted name → (before, now) of each fact about machine, environment and base that both hold and that bits may depend on.

    A fact that one side has not at all, as a package or a variable, is None there.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for part in ("base", "machine", "environment"):
        if isinstance(before.get(part), Mapping) and isinstance(now.get(part), Mapping):
            one, other = flat(before[part], part), flat(now[part], part)
            found |= {key: (one.get(key), other.get(key)) for key in sorted({*one, *other}) if one.get(key) != other.get(key)}
    return {key: pair for key, pair in found.items() if key not in NO_PART}


def flat(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Nested mappings as one with dotted names."""
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{name}.{key}") if isinstance(inner, Mapping) else {f"{name}.{key}": inner}
    return found


def in_words(changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """One line for each: "threads: 1 → 2"."""
    return [f"{key.partition('.')[2]}: {'not set' if was is None else was} → {'not set' if now is None else now}"
            for key, (was, now) in changed.items()]  # fmt: skip
