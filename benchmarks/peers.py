"""Environments of the opponents that do not share ours, made from the package index.

    python benchmarks/peers.py            # all that are missing, in .peers/

Each is a virtual environment with pinned versions; a benchmark starts its worker with `python(name)`.
"""

import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / ".peers"
PACKAGES = {"trl": ["torch==2.13.0", "transformers==5.23.0", "peft==0.21.2", "bitsandbytes==0.50.2", "trl==1.16.0"]}


def python(name: str) -> Path:
    """The interpreter of an opponent's environment."""
    found = FOLDER / name / "bin" / "python"
    if not found.exists():
        raise SystemExit(f"the environment of {name} is not there; python benchmarks/peers.py makes it")
    return found


def make(name: str) -> None:
    venv.create(FOLDER / name, with_pip=True, clear=True)
    subprocess.run([python(name), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES[name]], check=True)


if __name__ == "__main__":
    for name in PACKAGES:
        if not (FOLDER / name / "bin" / "python").exists():
            sys.stdout.write(f"{name}: {', '.join(PACKAGES[name])}\n")
            make(name)
