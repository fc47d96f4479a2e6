"""Every Triton kernel is compiled for an H100, down to machine code: its compiler needs no GPU, and the interpreter accepts what it does not."""

import os
import subprocess
import sys

import pytest

# run apart, as the interpreter of the other tests (tests/conftest.py) takes the place of the compiler in a process
COMPILE = """
import importlib
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

B, F, L, I = "*bf16", "*fp32", "*i64", "i32"
KERNELS = {
    "rows_triton": {
        "_rmsnorm": (dict(x=B, added=B, weight=B, y=B, inverse=F, sum=B), [dict(ADDS=True, ROWS=1, WIDTH=4096), dict(ADDS=False, ROWS=32, WIDTH=128)]),
        "_rmsnorm_backward": (
            dict(dy=B, x=B, inverse=F, weight=B, added=B, dx=B, parts=F),
            [dict(ADDS=True, WANTS_WEIGHT=True, ROWS=4, WIDTH=1024), dict(ADDS=False, WANTS_WEIGHT=False, ROWS=1, WIDTH=4096)],
        ),
        "_rotate": (dict(x=B, cos=B, sin=B), [dict(BACK=False, ROWS=64, HALF=64), dict(BACK=True, ROWS=64, HALF=64)]),
        "_gate": (dict(gate=B, up=B, y=B), [dict(GELU=False, BLOCK=1024), dict(GELU=True, BLOCK=1024)]),
        "_gate_backward": (dict(dy=B, gate=B, up=B, d_gate=B, d_up=B), [dict(GELU=False, BLOCK=1024), dict(GELU=True, BLOCK=1024)]),
        "_cross_entropy": (dict(logits=B, target=L, nll=F), [dict(GRADIENT=True, BLOCK=8192), dict(GRADIENT=False, BLOCK=4096)]),
    },
    "float8_triton": {"_quantize_rows": (dict(x=B, codes="*fp8e4nv", scale=F), [dict(BLOCK=4096)])},
    "blocks_4bit_triton": {
        "_dequantize": (
            dict(codes="*u8", levels=F, absmax="*u8", table=F, groups=F, out=B), [dict(BLOCK=64, BYTES=1024, NESTED=True)]
        )
    },
}
NUMBERS = {"epsilon": "fp32", "offset": "fp32", "sign": "fp32"}
for module, kernels in KERNELS.items():
    found = importlib.import_module(f"tunesmith.kernels.{module}")
    for name, (pointers, variants) in kernels.items():
        kernel = getattr(found, name)
        for constants in variants:
            given = dict(constants, **({"added_ptr": None} if constants.get("ADDS") is False else {}))
            signature = {
                argument: "constexpr" if argument in given else pointers.get(argument.removesuffix("_ptr"), NUMBERS.get(argument, I))
                for argument in kernel.arg_names
            }
            constants_at = {(kernel.arg_names.index(argument),): value for argument, value in given.items()}
            aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind not in ("constexpr", "fp32")}
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants_at, attrs=aligned)
            made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
            assert made.asm["cubin"], name
            assert "v4" in made.asm["ptx"] or "v2" in made.asm["ptx"] or name == "_dequantize", name  # several numbers in one load
            print(name)
"""


def test_every_kernel_compiles_for_an_h100(tmp_path):
    pytest.importorskip("triton")
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILE], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(done.stdout.split()) >= {
        "_rmsnorm",
        "_rmsnorm_backward",
        "_rotate",
        "_gate",
        "_gate_backward",
        "_cross_entropy",
        "_quantize_rows",
    }
