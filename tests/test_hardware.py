"""What this machine is."""

import subprocess
import sys

import pytest
import torch

from tunesmith.errors import BadInput
from tunesmith.hardware import describe_machine, pick_device, pick_dtype


def test_an_unknown_device_or_dtype_is_refused():
    with pytest.raises(BadInput, match="no device"):
        pick_device("tpu9")
    with pytest.raises(BadInput, match="no dtype"):
        pick_dtype("float7", torch.device("cpu"))


def test_the_peak_is_this_process_and_not_its_parent():
    block = bytearray(300 << 20)  # the parent's peak
    block[:: 1 << 12] = b"x" * len(block[:: 1 << 12])
    code = "from tunesmith.hardware import peak_memory_bytes as p; import torch; print(p()); x = torch.ones(100 << 18); print(p())"
    small, large = map(int, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert 90 << 20 < large - small < 120 << 20


def test_the_machine_is_described_in_plain_facts():
    facts = describe_machine()
    assert facts["cores"] >= 1
    assert facts["memory_bytes"] > 1 << 28
    assert facts["computes_in"] in ("float32", "bfloat16")
