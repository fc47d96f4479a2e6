"""Doctor tells what a report of a defect needs, and of everything that is not as it should be what to do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith import doctor
from tunesmith.doctor import GIB, check_disk, check_gpu_kernels, check_memory, check_number_format, check_threads


def test_facts_and_checks_are_there_and_are_json():
    found = doctor.examine()
    assert {"tunesmith", "python", "torch", "transformers", "threads", "kernels", "code", "variables"} <= set(found)
    assert {check["name"] for check in found["checks"]} == {
        "kernels", "number format", "threads", "memory", "disk", "cache of rows", "cache of models", "GPU"
    }  # fmt: skip
    assert json.loads(json.dumps(found)) == found
    said = "\n".join(doctor.in_words(found))
    assert all(check["name"] in said and check["found"] in said and check["fix"] in said for check in found["checks"])


@pytest.mark.parametrize(
    ("check", "state", "found", "fix"),
    [
        (check_threads(2, 2, None, None), "ok", "2 on 2 cores", ""),
        (check_threads(1, 2, None, "1"), "note", "1 on 2 cores", "unset OMP_NUM_THREADS"),
        (check_threads(4, 8, None, None), "ok", "4 on 8 cores", ""),  # torch counts cores, not hyper-threads
        (check_threads(64, 64, 3.5, None), "note", "the container may use 3.5", "OMP_NUM_THREADS=4"),
        (check_threads(8, 2, None, "8"), "note", "8 on 2 cores", "OMP_NUM_THREADS=2"),
        (check_memory(8 * GIB), "ok", "8.0 GiB", ""),
        (check_memory(GIB), "note", "1.0 GiB", "qlora"),
        (check_disk(10 * GIB), "ok", "10.0 GiB", ""),
        (check_disk(GIB), "note", "1.0 GiB", "free some space"),
        (check_disk(1000), "fail", "0.0 GiB", "free some space"),
        (check_number_format("bfloat16", False), "ok", "bfloat16", ""),
        (check_number_format("float32", False), "note", "float32", "AMX"),
        (check_gpu_kernels("H100", True, True, True), "ok", "H100; Triton, flash attention within documents, FP8", ""),
        (check_gpu_kernels("A100", True, True, False), "ok", "no FP8", ""),
        (check_gpu_kernels("V100", True, False, False), "note", "no flash attention", "Ampere"),
        (check_gpu_kernels("A100", False, True, False), "note", "no Triton", "pip install triton"),
    ],
)
def test_each_state_of_the_machine_has_its_words_and_its_remedy(check, state, found, fix):
    assert check.state == state
    assert found in check.found
    assert (fix in check.fix) if fix else check.fix == ""


def test_the_limits_of_a_container_are_read_in_both_layouts(tmp_path: Path):
    new, old, free, none = (tmp_path / name for name in ("new", "old", "free", "none"))
    for folder in (new, old / "cpu", old / "memory", free, none):
        folder.mkdir(parents=True)
    (new / "cpu.max").write_text("350000 100000\n")
    (new / "memory.max").write_text("2000\n")
    (new / "memory.current").write_text("500\n")
    (old / "cpu/cpu.cfs_quota_us").write_text("200000\n")
    (old / "cpu/cpu.cfs_period_us").write_text("100000\n")
    (old / "memory/memory.limit_in_bytes").write_text("3000\n")
    (old / "memory/memory.usage_in_bytes").write_text("500\n")
    (free / "cpu.max").write_text("max 100000\n")
    (free / "memory.max").write_text("max\n")
    assert [doctor.cpu_quota(folder) for folder in (new, old, free, none)] == [3.5, 2.0, None, None]
    assert [doctor.available_memory_bytes(folder) for folder in (new, old)] == [1500, 2500]
    assert min(doctor.available_memory_bytes(folder) for folder in (free, none)) > 1 << 20


def test_a_cache_that_cannot_be_written_to_is_told_with_the_variable_that_moves_it(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "file" / "rows"))
    rows, _ = doctor.check_caches()
    assert (rows.state, rows.fix) == ("note", "TUNESMITH_CACHE=FOLDER names one that can be written to")
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "not" / "yet" / "there"))
    assert doctor.check_caches()[0].state == "ok"
    assert not (tmp_path / "not").exists()


def test_kernels_that_are_asked_for_and_not_there_fail(monkeypatch):
    monkeypatch.setenv("TUNESMITH_KERNELS", "cuda")
    check = doctor.check_kernels()
    assert check.state == "fail"
    assert 'no kernels "cuda"' in check.found and "c-avx2" in check.fix
    monkeypatch.setenv("TUNESMITH_KERNELS", "reference")
    assert doctor.check_kernels().state == "note"


def test_a_torch_that_cannot_be_imported_is_a_finding_and_no_crash(tmp_path: Path):
    (tmp_path / "torch.py").write_text("raise OSError('libgomp.so.1: cannot open shared object file')")
    code = "import sys; sys.argv = ['tunesmith', 'doctor']; from tunesmith.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "fail  torch" in done.stdout and "libgomp.so.1" in done.stdout
    assert "Traceback" not in done.stderr
