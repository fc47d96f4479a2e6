"""What a run depends on is noted by name, and nothing secret is."""

import copy
from pathlib import Path

import pytest

from tunesmith import provenance
from tunesmith.errors import BadInput

NOTED = {
    "base": {"path": "/models/acorn", "fingerprint": "ab", "files": {"config.json": {"bytes": 2, "sha256": "cd"}}},
    "machine": {"cpu": "two cores", "threads": 2, "memory_bytes": 8 << 30},
    "environment": {"versions": {"torch": "2.13.0"}, "kernels": "C (AVX2)", "variables": {}},
}


def changed(*path: str, to: object) -> dict:
    facts = copy.deepcopy(NOTED)
    inner = facts
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return facts


def test_of_the_environment_only_what_chooses_threads_precision_or_devices_is_noted_and_no_secret():
    given = {
        "OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "0", "TUNESMITH_KERNELS": "torch", "PYTORCH_ALLOC_CONF": "x",
        "HF_TOKEN": "s3cret", "TUNESMITH_API_KEY": "s3cret", "TORCH_HUB_PASSWORD": "s3cret", "NCCL_AUTH": "s3cret", "HOME": "/home/me",
    }  # fmt: skip
    assert list(provenance.variables(given)) == ["CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTORCH_ALLOC_CONF", "TUNESMITH_KERNELS"]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (NOTED, []),
        (changed("machine", "threads", to=1), ["threads: 2 → 1"]),
        (changed("environment", "versions", "torch", to="2.14.0"), ["versions.torch: 2.13.0 → 2.14.0"]),
        (changed("environment", "variables", to={"OMP_NUM_THREADS": "1"}), ["variables.OMP_NUM_THREADS: not set → 1"]),
        (changed("base", "files", "config.json", "sha256", to="ef"), ["files.config.json.sha256: cd → ef"]),
        (changed("machine", "memory_bytes", to=1), []),  # no bit depends on it, nor on where the base lies
        (changed("base", "path", to="/elsewhere"), []),
    ],
)
def test_only_what_bits_may_depend_on_is_a_difference(facts, words):
    assert provenance.since(NOTED, facts) == words


def test_another_base_is_refused_and_a_run_of_an_older_version_goes_on():
    with pytest.raises(BadInput, match="the base model changed") as caught:
        provenance.since(NOTED, changed("base", "fingerprint", to="zz"))
    assert "/models/acorn" in caught.value.fix
    assert provenance.since({"machine": {"threads": 2}}, NOTED) == ["cpu: not set → two cores"]


def test_every_file_of_a_base_is_noted_but_those_that_nothing_reads(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    (tmp_path / "README.md").write_text("words")
    found = provenance.files_of(tmp_path)
    assert list(found) == ["config.json", "model.safetensors"]
    assert found["model.safetensors"] == {"bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}


def test_of_this_process_everything_is_known():
    here = provenance.environment()
    assert {"tunesmith", "torch", "transformers", "tokenizers", "numpy"} <= set(here["versions"])
    assert len(here["code"]) == 64 and here["kernels"] and here["vector_instructions"]
