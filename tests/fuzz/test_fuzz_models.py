"""The short form of `make fuzz` for models: a few damaged files of every kind, in a process of their own, as one may end it."""

import os
import subprocess
import sys
from pathlib import Path


def test_a_damaged_model_adapter_or_checkpoint_is_refused_with_a_reason_or_opens_whole():
    script = Path(__file__).with_name("fuzz_models.py")
    online = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script, "48", "1"], capture_output=True, text=True, env=online, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert "no crash, no hang, no code run" in done.stdout
    for kind in ("model", "parts", "nf4", "int4", "adapter", "checkpoints"):
        assert f"{kind}: refused" in done.stdout
