"""One save of a checkpoint fails at each of its calls in turn, for each reason; prints what became of the checkpoints as JSON.

    LD_PRELOAD=faults.so python failing_writes.py FOLDER faults.so

Started by test_faults.py. "once" is a disk that hiccups, "from then on" one that stays full.
"""

import ctypes
import errno
import json
import re
import shutil
import sys
from pathlib import Path

import torch

from tunesmith import hardware
from tunesmith.errors import DiskRefused
from tunesmith.files import clear_leftovers
from tunesmith.training.checkpoint import newest_valid, problem_of, save, steps_of

assert hardware  # imported before anything fails
REASONS = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EFBIG", "EDQUOT")}


def save_step(root: Path, step: int) -> None:
    weights = {"a": torch.full((30, 50), float(step)), "b": torch.arange(7)}
    save(root, step, {"model": weights, "optimizer": {"a.step": torch.tensor(float(step))}}, {"note": "x"}, keep=2, best=1)


def begin(root: Path) -> None:
    """Checkpoints of steps 1 to 3, of which 1 is the best."""
    made = root.with_name("made")
    if not made.is_dir():
        for step in (1, 2, 3):
            save_step(made, step)
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(made, root)


def problem_after(root: Path, refused: DiskRefused | None) -> str | None:
    """What is wrong after a save of step 4 that failed, in words: old checkpoints, what was said, what is left behind."""
    steps = [step for step, _ in steps_of(root)]
    if any(problem_of(path) for _, path in steps_of(root)):
        return f"a damaged checkpoint is listed: {steps}"
    found, broken = newest_valid(root)
    if found is None or found.step not in (3, 4) or broken:
        return f"step 3 is lost: {steps}, {broken}"
    if 1 not in steps:
        return "the best is gone"
    if refused is None:
        return None if found.step == 4 else "nothing was said, and nothing was saved"
    if not re.search(r"\(6,060 bytes needed, [\d,]+ free\)", refused.where):
        return f"it does not say the bytes: {refused}"
    clear_leftovers(root)
    left = [path.name for path in root.iterdir() if not re.fullmatch(r"step-\d{8}", path.name)]
    return f"left behind: {left}" if left else None


def main() -> None:
    root, library = Path(sys.argv[1]).resolve() / "checkpoints", ctypes.CDLL(sys.argv[2])
    begin(root)
    library.arm(bytes(root), 0, 0, 0)
    save_step(root, 4)
    n_calls = library.calls()
    tried, refusals, problems = 0, 0, []
    for name, code in REASONS.items():
        for from_then_on in (0, 1):
            for nth in range(1, n_calls + 1):
                begin(root)
                library.arm(bytes(root), nth, code, from_then_on)
                refused = None
                try:
                    save_step(root, 4)
                except DiskRefused as error:
                    refused = error
                except Exception as error:
                    problems.append(f"{name} at call {nth}: {type(error).__name__}: {error}")
                library.calls()
                tried += 1
                refusals += refused is not None
                problem = problem_after(root, refused)
                if problem:
                    problems.append(f"{name} at call {nth}{' and after' if from_then_on else ''}: {problem}")
    print(json.dumps({"calls": n_calls, "tried": tried, "refused": refusals, "problems": problems}))


if __name__ == "__main__":
    main()
