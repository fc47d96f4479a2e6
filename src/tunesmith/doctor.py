"""What this machine is and which versions are installed: the first thing to send with a report of a defect."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.hardware import describe_machine, free_disk_bytes
from tunesmith.kernels import native

PACKAGES = ("torch", "triton", "transformers", "tokenizers", "safetensors", "pydantic", "peft", "bitsandbytes", "tensorboard")


def examine() -> dict[str, Any]:
    facts: dict[str, Any] = {
        "tunesmith": __version__,
        **describe_machine(),
        "free_disk_bytes": free_disk_bytes(Path()),
        "kernels": native.describe(),
    }
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts
