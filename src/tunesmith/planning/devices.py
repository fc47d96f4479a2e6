"""Devices that a plan is asked for by their memory: "24" is a card of 24 GB, "2x80" two of 80 GB.

    device_of("2x80").usable_bytes        # of each: without what the driver, the libraries and the gaps between tensors take

Several devices share the weights as `training.sharding: full` has it (training/sharding.py): each keeps its part, and gathers what it computes with.
"""

import re
from dataclasses import dataclass

from tunesmith.errors import BadInput

COMMON = ("8", "12", "16", "24", "40", "48", "80", "141")  # GB
# Cards of "24 GB" have 24 GiB, give or take a percent; CUDA's context and cuBLAS's workspaces take up to 1 GiB outside the tensors, and of
# the rest the allocator loses some to gaps.
CONTEXT_BYTES, USED_WELL = 1 << 30, 0.95


@dataclass(frozen=True)
class Device:
    """count devices of `gigabytes` each."""

    gigabytes: float
    count: int = 1

    @property
    def name(self) -> str:
        return f"{f'{self.count} x ' if self.count > 1 else ''}{self.gigabytes:g} GB"

    @property
    def usable_bytes(self) -> float:
        return USED_WELL * (self.gigabytes * 2**30 - CONTEXT_BYTES)


def device_of(text: str) -> Device:
    """Raises BadInput for what is no size."""
    found = re.fullmatch(r"(?:(\d+) ?[x×*] ?)?(\d+(?:\.\d+)?) ?(?:gi?b)?", text.strip().lower())
    if found is None or not (1 <= int(found[1] or 1) <= 4096 and 1 < float(found[2]) <= 4096):
        raise BadInput(
            f'"{text}" is no device',
            where=f"--devices {text}",
            fix="gigabytes of memory, as 24; several as 2x80; 16,24,2x80 for some of them; none",
        )
    return Device(float(found[2]), int(found[1] or 1))


def devices_of(text: str | None) -> list[Device]:
    """A list such as "16,24,2x80"; by default the common ones; "none": none."""
    if text is not None and text.strip().lower() == "none":
        return []
    return [device_of(part) for part in (text.split(",") if text is not None else COMMON)]
