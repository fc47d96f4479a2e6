"""What this machine is: device, number format, memory, and how memory is kept.

device = pick_device("auto"); dtype = pick_dtype("auto", device)
"""

import ctypes
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import BadInput

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def keeps_memory() -> bool:
    """TUNESMITH_KEEP_MEMORY=0 gives every block back to the system when it is freed."""
    return os.environ.get("TUNESMITH_KEEP_MEMORY") != "0"


def keep_freed_memory() -> None:
    """Let the C allocator reuse large blocks instead of returning them to the system after every operation.

    Each operation of a training step allocates and frees megabytes; returned pages fault again at their next use, which cost a
    third of a CPU step where it was measured (docs/log.md). Call before torch is imported. Of tensors themselves kernels/memory.py takes
    care; this is for what libraries allocate beside them.
    """
    if not keeps_memory():
        give_back_freed_memory()
        return
    if not any(Path(__file__).with_name("kernels").glob("_native.*")):  # otherwise kernels/memory.c asks for huge pages itself
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3  # malloc.h
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)
        libc.mallopt(m_top_pad, 64 << 20)
    except (OSError, AttributeError):  # another C library: nothing to tune
        return


def give_back_freed_memory() -> bool:
    """From now on large blocks go back to the system when they are freed. False: this system's allocator cannot be told."""
    if sys.platform != "linux":
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        m_mmap_threshold = -3
        libc.mallopt(m_mmap_threshold, 128 << 10)
        libc.malloc_trim(0)
    except (OSError, AttributeError):
        return False
    return True


def pick_device(name: str = "auto") -> "torch.device":
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise BadInput(f'there is no device "{name}"', where="--device", fix="auto, cpu or cuda") from None


def sent(tensor: "Tensor", device: "torch.device") -> "Tensor":
    """On the device, without waiting for a GPU to finish what it was asked before: from memory that it can read by itself."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and not tensor.is_cuda else tensor.to(device)


def multiplies_bfloat16_fast(device: "torch.device") -> bool:
    """bfloat16 matrix products in hardware: CUDA since Ampere, CPUs with AMX or AVX-512 BF16."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("flags", 1)[-1].split("\n", 1)[0].split()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def pick_dtype(name: str, device: "torch.device") -> "torch.dtype":
    import torch

    if name == "auto":
        return torch.bfloat16 if multiplies_bfloat16_fast(device) else torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in known:
        raise BadInput(f'there is no dtype "{name}" here', where="training.dtype", fix="auto, float32 or bfloat16")
    return known[name]


def peak_memory_bytes() -> int:
    """Peak of the device's allocator on a GPU, of the process's resident memory elsewhere."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return int(torch.cuda.max_memory_allocated())
    try:
        # getrusage would count the parent's peak too: a child inherits it on Linux
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:", 1)[1].split(None, 1)[0]) * 1024
    except (OSError, IndexError):
        import psutil

        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe_machine() -> dict[str, Any]:
    """Facts for reports and `doctor`."""
    import psutil
    import torch

    device = pick_device()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "computes_in": str(pick_dtype("auto", device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }


def free_disk_bytes(path: Path) -> int:
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def memory_bytes(device: "torch.device") -> int:
    """What there is of it: of a GPU its own, of a CPU the machine's, or what this process's group may use of it (a container)."""
    import psutil
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [int(psutil.virtual_memory().total)]
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(place).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min(limits)
