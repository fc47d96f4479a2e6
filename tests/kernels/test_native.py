"""Which path the CPU kernels take: the library that was built, the one that is asked for, none at all."""

import importlib.util
import shutil
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from tunesmith.doctor import examine
from tunesmith.errors import BadInput
from tunesmith.kernels import native

BUILT = native.library_file()
needs_library = pytest.mark.skipif(BUILT is None, reason="no C compiler at installation")


def loaded_from(folder):
    """native.py as it behaves in another folder, where other files lie beside it."""
    copy = shutil.copy(native.__file__, folder / "native_elsewhere.py")
    spec = importlib.util.spec_from_file_location("native_elsewhere", copy)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def nothing_forced(monkeypatch):
    monkeypatch.delenv(native.VARIABLE, raising=False)


@needs_library
def test_the_library_that_was_built_is_the_one_that_this_code_calls():
    assert native.compiled() is not None, native.describe()
    assert native.describe() == f"C ({native.PATHS[native.compiled().path]})"


@needs_library
def test_a_path_can_be_forced_and_says_so(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "c-scalar")
    assert native.compiled().path == 0
    assert native.describe() == "C (plain, TUNESMITH_KERNELS=c-scalar)"
    monkeypatch.setenv(native.VARIABLE, "reference")
    assert native.compiled() is None
    assert native.describe() == "torch (TUNESMITH_KERNELS=reference)"


def test_doctor_says_which_path_is_in_use(monkeypatch):
    assert examine()["kernels"] == native.describe()
    monkeypatch.setenv(native.VARIABLE, "reference")
    assert examine()["kernels"] == "torch (TUNESMITH_KERNELS=reference)"


def test_an_unknown_path_is_refused_with_those_that_are_known(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "cuda")
    with pytest.raises(BadInput, match='no kernels "cuda"') as refused:
        native.compiled()
    assert refused.value.where == "TUNESMITH_KERNELS"
    assert "c-avx2" in refused.value.fix


def test_without_a_library_torch_does_the_work(tmp_path, monkeypatch):
    elsewhere = loaded_from(tmp_path)
    assert elsewhere.compiled() is None
    assert elsewhere.describe() == "torch (no C compiler at installation)"
    monkeypatch.setenv(native.VARIABLE, "c")
    with pytest.raises(BadInput, match="no C compiler at installation"):
        elsewhere.compiled()


def test_a_file_that_is_no_library_is_named_and_left_alone(tmp_path):
    name = f"_native{EXTENSION_SUFFIXES[0]}"
    (tmp_path / name).write_bytes(b"not a library" * 100)
    elsewhere = loaded_from(tmp_path)
    assert elsewhere.compiled() is None
    assert elsewhere.describe().startswith(f"torch ({name}: ")


@needs_library
def test_a_library_of_another_version_is_never_called(tmp_path):
    shutil.copy(BUILT, tmp_path)
    elsewhere = loaded_from(tmp_path)
    elsewhere.VERSION += 1  # as after an update without a new installation
    assert elsewhere.compiled() is None
    assert elsewhere.describe() == f"torch ({Path(BUILT).name} is of another version: install again)"
