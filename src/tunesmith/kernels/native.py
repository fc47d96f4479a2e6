"""Compiled kernels: one shared library beside this file, called through ctypes, or none.

    native = compiled()                                        # None: use torch
    native.library.tunesmith_quantize_4bit(native.path, ...)

The library is an optional extension (pyproject.toml): built at installation where there is a C compiler with OpenMP, and only then.
It knows nothing of Python or torch, so it fits every version of both. It is loaded after torch, and so shares torch's OpenMP threads.

    pip install -e . --no-deps --no-build-isolation            # builds it again after a change of a .c file
    TUNESMITH_KERNELS=reference                                    # or c, c-avx2, c-scalar: forces a path, for tests and comparisons
    TUNESMITH_KERNELS=triton TRITON_INTERPRET=1                    # a GPU's kernels on a CPU, number by number: for tests without a GPU
"""

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

import torch  # its OpenMP library must be in the process before ours asks for one

from tunesmith.errors import BadInput

VARIABLE = "TUNESMITH_KERNELS"
VERSION = 5  # of the library's signatures: tunesmith_version() in blocks_4bit.c
PATHS = ("plain", "AVX2", "AVX-512")  # by the number that the library knows them by
FORCED = {"c-scalar": 0, "c-avx2": 1}


@dataclass(frozen=True)
class Compiled:
    library: ctypes.CDLL
    path: int  # index into PATHS
    has_amx: bool


def compiled() -> Compiled | None:
    """The library and the path to ask it for, or None where torch does the work.

    Raises BadInput if TUNESMITH_KERNELS asks for what is not there.
    """
    return _choose(os.environ.get(VARIABLE, ""))


def uses_triton(device_type: str) -> bool:
    """Whether Triton's kernels work on tensors of such a device.

    On a GPU they do wherever Triton is installed; on a CPU only where TUNESMITH_KERNELS=triton asks for its interpreter.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "reference" or (device_type != "cuda" and (device_type != "cpu" or wanted != "triton")):
        return False
    _choose(wanted)  # refuses what is not there
    return has_triton()


@cache
def has_triton() -> bool:
    return find_spec("triton") is not None


def describe() -> str:
    """Which path CPU kernels take, and why: "C (AVX-512)", "torch (no C compiler at installation)"."""
    native, wanted = compiled(), os.environ.get(VARIABLE, "")
    forced = f"{VARIABLE}={wanted}" if wanted else ""
    if native is not None:
        return f"C ({', '.join(filter(None, (PATHS[native.path], forced)))})"
    library = _load()
    return f"torch ({forced or library})"


def loaded() -> ctypes.CDLL | None:
    """The library for what is no arithmetic, and so the same whatever TUNESMITH_KERNELS forces."""
    library = _load()
    return None if isinstance(library, str) else library


def library_file() -> Path | None:
    """Where the library lies, if it was built."""
    beside = (Path(__file__).with_name(f"_native{suffix}") for suffix in EXTENSION_SUFFIXES)
    return next((path for path in beside if path.is_file()), None)


@cache
def _choose(wanted: str) -> Compiled | None:
    if wanted not in ("", "reference", "c", *FORCED, "triton"):
        raise BadInput(
            f'there are no kernels "{wanted}"', where=VARIABLE, fix=f"one of reference, c, {', '.join(FORCED)}, triton, or nothing"
        )
    if wanted == "triton" and os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
        raise BadInput(
            "Triton's kernels need a GPU, or its interpreter", where=f"{VARIABLE}=triton", fix="TRITON_INTERPRET=1 as well, or nothing"
        )
    if wanted in ("reference", "triton"):
        return None
    library = _load()
    if isinstance(library, str):
        if wanted:
            raise BadInput(f"the compiled kernels cannot be used: {library}", where=f"{VARIABLE}={wanted}", fix="reference, or nothing")
        return None
    best = int(library.tunesmith_best_path())
    path = FORCED.get(wanted, best)
    if path > best:
        raise BadInput(f"this processor has no {PATHS[path]}", where=f"{VARIABLE}={wanted}", fix="c-scalar, c or reference, or nothing")
    return Compiled(library, path, path == 2 and bool(library.tunesmith_has_amx()))


@cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    found = library_file()
    if found is None:
        return "no C compiler at installation"
    try:
        library = ctypes.CDLL(str(found))
        version = int(library.tunesmith_version())
    except (OSError, AttributeError) as error:
        return f"{found.name}: {error}"
    if version != VERSION:  # its functions take other arguments
        return f"{found.name} is of another version: install again"
    pointer, integer, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    shape, number = [long, long, long], ctypes.c_float
    rows: list[type[ctypes.c_void_p] | type[ctypes.c_int64]] = [pointer, long]  # where, and how far to the next
    library.tunesmith_dequantize_4bit.argtypes = [integer, integer, *shape, *[pointer] * 6, number, integer, pointer]
    library.tunesmith_quantize_4bit.argtypes = [integer, integer, *shape, pointer, integer, *[pointer] * 4]
    library.tunesmith_adamw8bit.argtypes = [integer, integer, long, *[pointer] * 13]
    library.tunesmith_rmsnorm.argtypes = [integer, integer, long, long, number, number, integer, integer, *[pointer] * 6]
    library.tunesmith_rmsnorm_back.argtypes = [integer, integer, long, long, number, integer, integer, *[pointer] * 7]
    library.tunesmith_rotary.argtypes = [integer, integer, *[long] * 5, pointer, pointer, pointer, integer, number]
    library.tunesmith_gate.argtypes = [integer, integer, integer, *shape, pointer, pointer, pointer]
    library.tunesmith_gate_back.argtypes = [integer, integer, integer, *shape, *[pointer] * 5]
    library.tunesmith_dropout.argtypes = [integer, integer, long, long, ctypes.c_uint64, ctypes.c_uint32, number, pointer, pointer, pointer]
    library.tunesmith_cross_entropy.argtypes = [integer, integer, long, long, pointer, pointer, integer, pointer]
    library.tunesmith_attention_forward.argtypes = [integer, pointer, pointer, *[long] * 5, number, *rows * 4, pointer]
    library.tunesmith_attention_backward.argtypes = [integer, pointer, pointer, *[long] * 5, number, *rows * 5, pointer, *rows * 3]
    library.tunesmith_thin_products.argtypes = [integer, long, long, pointer, integer]
    library.tunesmith_thin_gradients.argtypes = [integer, long, long, pointer]
    library.tunesmith_weight_gradient.argtypes = [integer, *shape, *rows * 2, pointer, integer]
    library.tunesmith_memory_state.argtypes = [pointer, pointer]
    library.tunesmith_decode_step.argtypes = [integer, pointer, pointer, long, *[pointer] * 6]
    for name in (
        "dequantize_4bit",
        "quantize_4bit",
        "adamw8bit",
        "rmsnorm",
        "rmsnorm_back",
        "rotary",
        "gate",
        "gate_back",
        "dropout",
        "memory_state",
    ):
        getattr(library, f"tunesmith_{name}").restype = None
    return library
