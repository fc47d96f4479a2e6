"""Triton's kernels on a CPU as a GPU would compute them: its interpreter cuts off what a GPU rounds to bfloat16 or FP8, so here it rounds too."""

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

    builder, float32 = interpreter.InterpreterBuilder, interpreter.tl.float32
    rounds = {interpreter.tl.bfloat16: (torch.bfloat16, np.uint16), interpreter.tl.float8e4nv: (torch.float8_e4m3fn, np.uint8)}

    def rounding(own):
        def cast(self, src, dst_type, *more):
            if src.dtype.scalar != float32 or dst_type.scalar not in rounds:
                return own(self, src, dst_type, *more)
            dtype, bits = rounds[dst_type.scalar]
            rounded = torch.from_numpy(np.ascontiguousarray(src.data)).to(dtype).view(torch.int16 if bits is np.uint16 else torch.uint8)
            return interpreter.TensorHandle(rounded.numpy().view(bits), dst_type.scalar)

        return cast

    for name in ("cast_impl", "create_fp_to_fp"):
        monkeypatch.setattr(builder, name, rounding(getattr(builder, name)))
    return "cpu"
