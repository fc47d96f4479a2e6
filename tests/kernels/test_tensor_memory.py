"""Memory of large tensors: whatever is allocated and freed in whatever order, contents stay, and what is freed is used again."""

import subprocess
import sys
import textwrap
import threading

import pytest
import torch

from tunesmith.kernels import memory

pytestmark = pytest.mark.skipif(not memory.keep_tensors(), reason="without compiled kernels, or not on Linux")


def in_a_process(code: str, **env: str) -> str:
    script = "import tunesmith.api, torch\nfrom tunesmith.kernels import memory\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env={"PATH": "", **env}, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def play(seed: int, rounds: int = 3_000) -> None:
    draw = torch.Generator().manual_seed(seed)
    held: list[tuple[torch.Tensor, float]] = []
    for i in range(rounds):
        if len(held) > 40 or (held and torch.rand(1, generator=draw) < 0.5):
            tensor, value = held.pop(int(torch.randint(len(held), (1,), generator=draw)))
            assert float(tensor[0]) == float(tensor[-1]) == value
        else:
            size = int(10 ** (1 + 5 * torch.rand(1, generator=draw)))
            tensor = torch.empty(size)
            assert tensor.data_ptr() % 64 == 0
            tensor[0] = tensor[-1] = value = float(seed + i)
            held.append((tensor, value))


def test_contents_stay_whatever_the_order() -> None:
    play(seed=0)


def test_threads_share_it() -> None:
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            play(seed, 1_000)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(100_000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_what_is_freed_is_used_again() -> None:
    """Steps of ten tensors each, of another length every time: no more is held than the largest step took, and what lies between."""
    output = in_a_process("""
        torch.manual_seed(0)
        for step in range(200):
            n = int(torch.randint(500, 1000, (1,)))
            step = [torch.ones(n, width) for width in (256, 512, 768, 1024, 1536) * 2]
            most = sum(t.nbytes for t in step)
            del step
        held, used = memory.state()
        print(held, used)
    """)
    held, used = map(int, output.split())
    assert used == 0
    assert held < 1.5 * 1000 * 4 * 2 * (256 + 512 + 768 + 1024 + 1536)


def test_not_wanted() -> None:
    assert in_a_process("kept = torch.ones(10**6); print(*memory.state())", TUNESMITH_KEEP_MEMORY="0").split() == ["0", "0"]


def test_shared_with_numpy() -> None:
    array = torch.arange(1_000_000).numpy()  # the tensor is gone, its memory is not
    others = [torch.zeros(1_000_000, dtype=torch.int64) for _ in range(4)]
    assert array[-1] == 999_999
    tensor = torch.from_numpy(array.copy())
    del array, others
    assert int(tensor[-1]) == 999_999


def test_a_limit_is_an_error_of_torch_as_before() -> None:
    output = in_a_process("""
        import resource
        torch.ones(10**6)
        now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 400 * 2**20, -1))
        parts = [torch.ones(2_000_000) for _ in range(20)]
        del parts
        print(torch.ones(60_000_000).numel())  # fits only where the parts were
        try:
            torch.ones(200_000_000)
        except RuntimeError as error:
            print("can't allocate memory" in str(error))
    """)
    assert output.split() == ["60000000", "True"]


def test_a_child_process_goes_on_with_it() -> None:
    output = in_a_process("""
        import os
        torch.set_num_threads(1)  # OpenMP threads do not survive a fork
        kept = torch.arange(1_000_000)
        child = os.fork()
        if not child:
            more = torch.ones(1_000_000)
            os._exit(0 if int(kept[-1]) == 999_999 and float(more.sum()) == 1_000_000 else 1)
        print(os.waitpid(child, 0)[1])
    """)
    assert output.split() == ["0"]
