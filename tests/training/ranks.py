"""Several processes for a test: torchrun starts them, and each does the same jobs, one after another.

together(2, "train:one.yaml", "resume:runs/two")        # raises where a process failed
apart(2, script, folder)                                # without torchrun: each process's exit code and output
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TUNESMITH_CACHE": "off", "HF_HUB_OFFLINE": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def together(n: int, *jobs: str, timeout: float = 180) -> str:
    """What the processes said."""
    job = start(n, *jobs)
    said = job.communicate(timeout=timeout)[1]
    assert job.returncode == 0, said[-4000:]
    return said


def start(n: int, *jobs: str) -> subprocess.Popen[str]:
    command = [*TORCHRUN, str(n), __file__, *jobs]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def apart(n: int, script: str, *arguments: str) -> list[subprocess.Popen[str]]:
    """Processes that know each other as torchrun's do, and that nobody ends when one of them has ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(n)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**ENVIRONMENT, **address, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(n)
    ]  # fmt: skip


def do(jobs: list[str]) -> None:
    from tunesmith import cli
    from tunesmith.config import load_run
    from tunesmith.runs import RunFolder
    from tunesmith.training.loop import resume, train

    def work(**ignored: object) -> None:
        for job in jobs:
            verb, _, place = job.partition(":")
            if verb == "kill":
                rank, _, point = place.partition(":")
                os.environ |= {"TUNESMITH_KILL_AT": point} if os.environ["RANK"] == rank else {}
            elif verb == "train":
                train(load_run(Path(place))[0])
            else:
                resume(RunFolder.open(place))

    cli.app = work  # type: ignore[assignment]  # errors are said as the command says them
    cli.main()


if __name__ == "__main__":
    do(sys.argv[1:])
