"""Triton's kernels on a CPU as a GPU would compute them: its interpreter cuts off what a GPU rounds to bfloat16, so here it rounds too."""

import numpy as np
import pytest
import torch

from tunesmith.kernels import native


def force_triton(monkeypatch):
    """Triton's kernels from now on: on the GPU, where there is one, in the interpreter elsewhere. Returns the device they are for."""
    pytest.importorskip("triton")
    monkeypatch.setenv(native.VARIABLE, "triton")
    if torch.cuda.is_available():
        return "cuda"
    from triton.runtime import interpreter

    own, bfloat16, float32 = interpreter.InterpreterBuilder.cast_impl, interpreter.tl.bfloat16, interpreter.tl.float32

    def cast(self, src, dst_type):
        if (src.dtype.scalar, dst_type.scalar) != (float32, bfloat16):
            return own(self, src, dst_type)
        numbers = np.ascontiguousarray(src.data)
        bits = numbers.view(np.uint32).astype(np.uint64)
        rounded = np.where(np.isnan(numbers), 0x7FC0, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)  # to the nearest, ties to even
        return interpreter.TensorHandle(rounded.astype(np.uint16), dst_type.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "cast_impl", cast)
    return "cpu"
