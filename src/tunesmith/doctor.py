"""What this machine is, which versions are installed, and whether they fit together: the first thing to send with a report of a defect.

    found = examine()
    found["torch"], found["kernels"], found["threads"]          # facts
    found["checks"][0]                                          # {"name": "threads", "state": "note", "found": "…", "fix": "…"}

A check that fails is something that stops or spoils a run here (the command then ends with exit code 1); a note is something that
makes it slower, or that one should know. Nothing is asked of the network, and no secret is told.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

from tunesmith import __version__
from tunesmith.errors import TunesmithError
from tunesmith.hardware import describe_machine, free_disk_bytes

PACKAGES = (
    "torch", "triton", "transformers", "tokenizers", "safetensors", "numpy", "pydantic", "pyarrow", "peft", "bitsandbytes", "tensorboard",
)  # fmt: skip
GIB = 1 << 30
LITTLE_MEMORY, LITTLE_DISK, NO_DISK = 2 * GIB, 5 * GIB, GIB // 10
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Check:
    """state: "ok"; "note": slower or worth knowing; "fail": stops or spoils a run. fix: what to do, where there is something to do."""

    name: str
    state: Literal["ok", "note", "fail"]
    found: str
    fix: str = ""


def examine() -> dict[str, Any]:
    """Facts by name, and "checks": a list of what each Check says."""
    facts: dict[str, Any] = {"tunesmith": __version__, "free_disk_bytes": free_disk_bytes(Path())}
    facts |= {package: _version(package) for package in PACKAGES}
    try:
        import torch

        from tunesmith import provenance
    except Exception as error:  # a torch that is broken may fail in any way
        why = str(error).strip().split("\n")[0]
        broken = Check("torch", "fail", f"it cannot be imported: {why}", "install it again, as requirements.lock says")
        return facts | {"checks": [asdict(broken)]}
    facts |= describe_machine()
    kernels = check_kernels()
    facts |= {"torch": torch.__version__, "kernels": kernels.found, "code": provenance.code_hash()}
    facts["variables"] = provenance.variables(os.environ)
    checks = [
        kernels,
        check_number_format(facts["computes_in"], facts["device"] != "cpu"),
        check_threads(facts["threads"], facts["cores"], cpu_quota(), os.environ.get("OMP_NUM_THREADS")),
        check_memory(available_memory_bytes()),
        check_disk(facts["free_disk_bytes"]),
        *check_caches(),
        check_gpu(),
    ]
    return facts | {"checks": [asdict(check) for check in checks]}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def in_words(found: Mapping[str, Any]) -> list[str]:
    """Facts, then checks with their remedies, as lines to print."""
    lines = []
    for key, value in found.items():
        if key != "checks":
            shown = ", ".join(f"{k}={v}" for k, v in value.items()) or "none" if isinstance(value, Mapping) else value
            lines.append(f"{key:<16} {f'{value / GIB:,.1f} GiB' if key.endswith('_bytes') else shown}")
    lines += ["", "checks"]
    for check in found["checks"]:
        lines.append(f"{check['state']:<5} {check['name']:<16} {check['found']}")
        if check["fix"]:
            lines.append(f"{'':<5} {'':<16} fix: {check['fix']}")
    return lines


# --- the checks -------------------------------------------------------------------------------------------------------------


def check_kernels() -> Check:
    from tunesmith.kernels import native

    try:
        words = native.describe()
    except TunesmithError as error:
        return Check("kernels", "fail", f"{error.where}: {error.what}", error.fix)
    if words.startswith("C "):
        return Check("kernels", "ok", words)
    if os.environ.get(native.VARIABLE):
        return Check("kernels", "note", words, f"unset {native.VARIABLE}: torch alone is slower")
    return Check(
        "kernels", "note", words, "install a C compiler with OpenMP, then tunesmith again: 4-bit weights and the 8-bit optimizer are faster"
    )


def check_number_format(computes_in: str, on_gpu: bool) -> Check:
    if computes_in == "bfloat16":
        return Check("number format", "ok", "bfloat16, in hardware")
    fix = "" if on_gpu else "none is needed; processors with AMX or AVX-512 BF16, and GPUs since Ampere, multiply in half the bits"
    return Check("number format", "note", f"{computes_in}: bfloat16 is not multiplied fast here", fix)


def check_threads(threads: int, cores: int, quota: float | None, variable: str | None) -> Check:
    """threads: torch's; cores: that this process may run on; quota: cores that its container may use, where that is limited."""
    usable = min(cores, math.ceil(quota)) if quota is not None else cores
    limited = f" (the container may use {quota:g})" if quota is not None and quota < cores else ""
    words = f"{threads} on {cores} {'core' if cores == 1 else 'cores'}{limited}"
    if threads > usable:
        return Check("threads", "note", words, f"OMP_NUM_THREADS={usable}: more threads than cores wait for each other")
    if threads < usable and variable is not None:
        return Check("threads", "note", words, f"unset OMP_NUM_THREADS to use all {usable} cores")
    return Check("threads", "ok", words)


def check_memory(available: int) -> Check:
    words = f"{available / GIB:.1f} GiB free"
    if available >= LITTLE_MEMORY:
        return Check("memory", "ok", words)
    return Check("memory", "note", words, "close other programs, or a small training.micro_batch_tokens and method: qlora")


def check_disk(free: int) -> Check:
    words = f"{free / GIB:,.1f} GiB free here"
    if free >= LITTLE_DISK:
        return Check("disk", "ok", words)
    return Check("disk", "note" if free >= NO_DISK else "fail", words, "free some space: a run keeps its newest and its best checkpoint")


def check_caches() -> list[Check]:
    """The folders outside runs that are written to: rows that were tokenized, models of the hub."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from tunesmith.data.spool import VARIABLE, cache_folder

    checks = []
    for name, folder, variable in (("cache of rows", cache_folder(), VARIABLE), ("cache of models", Path(HF_HUB_CACHE), "HF_HOME")):
        if folder is None:
            checks.append(Check(name, "ok", f"off ({variable})"))
        elif problem := why_not_writable(folder):
            checks.append(Check(name, "note", f"{folder}: {problem}", f"{variable}=FOLDER names one that can be written to"))
        else:
            checks.append(Check(name, "ok", str(folder)))
    return checks


def check_gpu() -> Check:
    """One product on it: a torch that was built for other devices sees the GPU, and fails at the first kernel."""
    import torch

    built = f"torch {torch.__version__}"
    if not torch.cuda.is_available():
        if not Path("/dev/nvidia0").exists():
            return Check("GPU", "ok", f"none; {built} computes on the CPU")
        why = "was built without CUDA" if torch.version.cuda is None else "cannot use it"
        return Check(
            "GPU", "fail", f"one is here, and {built} {why}", "a build of torch with CUDA, and a driver that nvidia-smi answers for"
        )
    name = torch.cuda.get_device_name()
    try:
        ones = torch.ones(16, 16, device="cuda", dtype=torch.bfloat16)
        right = float((ones @ ones).sum()) == 16**3
        free, total = torch.cuda.mem_get_info()
    except RuntimeError as error:
        return Check(
            "GPU", "fail", f"{name}: {str(error).strip().splitlines()[0]}", "nvidia-smi says what holds it; or another build of torch"
        )
    if not right:
        return Check("GPU", "fail", f"{name}: a product came out wrong", "do not train on it: the device or its driver is faulty")
    words = f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, CUDA {torch.version.cuda}"
    if free < 0.9 * total - GIB:
        return Check("GPU", "note", words, "nvidia-smi names the processes that hold the rest")
    return check_gpu_kernels(words, *gpu_kernels())


def gpu_kernels() -> tuple[bool, bool, bool]:
    """Whether Triton, torch's flash attention within documents, and products in FP8 are at hand on this GPU."""
    import torch

    from tunesmith.kernels import flash_attention, float8, native

    return native.uses_triton("cuda"), flash_attention.is_at_hand(64), float8.multiplies(torch.device("cuda", torch.cuda.current_device()))


def check_gpu_kernels(words: str, triton: bool, flash: bool, fp8: bool) -> Check:
    """words: of the GPU itself. Without the first two, layers are the families' own; FP8 is for those who ask for it."""
    ways = {"Triton": triton, "flash attention within documents": flash, "FP8": fp8}
    words = f"{words}; " + ", ".join(f"{'' if here else 'no '}{way}" for way, here in ways.items())
    if not triton:
        return Check(
            "GPU", "note", words, "pip install triton, and no TUNESMITH_KERNELS=reference: fused layers and 4-bit weights are faster"
        )
    if not flash:
        return Check("GPU", "note", words, "a GPU since Ampere and torch's own CUDA build: layers are not fused without it")
    return Check("GPU", "ok", words)


# --- what they look at --------------------------------------------------------------------------------------------------------


def cpu_quota(root: Path = CGROUP) -> float | None:
    """Cores that the container may use on average; None where it is not limited. Both layouts of Linux control groups."""
    try:
        if (root / "cpu.max").is_file():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def available_memory_bytes(root: Path = CGROUP) -> int:
    """What the system has left, or the container's limit leaves, whichever is less."""
    import psutil

    system: int = psutil.virtual_memory().available
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            return min(system, int((root / limit).read_text()) - int((root / used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return system


def why_not_writable(folder: Path) -> str | None:
    """None if a file can be made there, or in the nearest folder above that is there; the file is gone again."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"cannot be written to ({(error.strerror or str(error)).lower()})"
