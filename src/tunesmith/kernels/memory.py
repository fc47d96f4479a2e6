"""Memory of large tensors on a CPU: kept when a tensor is freed, and found again by the next one (memory.c).

    keep_tensors()         # once torch is in the process
    state()                # (bytes held, bytes in use)

A training step allocates and frees its tensors anew, and rows of other lengths make them a little larger or smaller each time. glibc's
allocator seldom finds room for such an aligned block in the gaps that others have left: the process grew by 25 MiB with each step, and a
fifth to a third of the step went into pages that the system had to clear first (docs/log.md). Here freed blocks are joined with their
neighbours and used again, so after a few steps no page is new.
"""

import ctypes

from tunesmith.hardware import keeps_memory
from tunesmith.kernels.native import loaded


def keep_tensors() -> bool:
    """False where it is not wanted, or not possible: without compiled kernels, on other systems than Linux."""
    library = loaded()
    return keeps_memory() and library is not None and bool(library.tunesmith_memory_keep())


def state() -> tuple[int, int]:
    """Bytes held for large tensors, and of these in use."""
    held, used = ctypes.c_int64(), ctypes.c_int64()
    library = loaded()
    if library is not None:
        library.tunesmith_memory_state(ctypes.byref(held), ctypes.byref(used))
    return held.value, used.value
