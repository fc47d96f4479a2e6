import os
import subprocess
import sys

import pytest

from tunesmith.cli import _named
from tunesmith.errors import BadInput

HEAVY = ("torch", "transformers", "tokenizers", "safetensors", "plotly", "sklearn", "pyarrow", "numpy")


def python(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("command", [[], ["train"], ["chat"]])
def test_help_imports_nothing_that_computes(command):
    code = (
        f"import sys; sys.argv = ['tunesmith', *{command!r}, '--help']\n"
        "from tunesmith.cli import main\n"
        "try: main()\n"
        f"except SystemExit as end: print('code', end.code, 'heavy', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert python(code).stdout.splitlines()[-1] == "code 0 heavy []"


def test_listing_runs_and_refusing_a_bad_config_import_nothing_that_computes_either(tmp_path):
    for arguments in (["runs", str(tmp_path)], ["train", str(tmp_path / "none.yaml")], ["train"]):
        code = (
            f"import sys; sys.argv = ['tunesmith', *{arguments!r}]\n"
            "from tunesmith.cli import main\n"
            "try: main()\n"
            "except SystemExit: pass\n"
            "print([m for m in ('torch', 'transformers') if m in sys.modules])"
        )
        assert python(code).stdout.splitlines()[-1] == "[]"


def test_a_terminal_without_unicode_is_no_reason_to_fail():
    plain = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    command = [sys.executable, "-m", "tunesmith", "train", "café.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=plain)
    assert done.returncode == 2 and "there is no such config" in done.stderr and "Traceback" not in done.stderr


def test_adapters_are_named_once_each():
    assert _named(["spam=runs/spam", "json=a=b"]) == {"spam": "runs/spam", "json": "a=b"}
    assert _named(None) == {}
    for wrong, what in ((["runs/spam"], "not NAME=PATH"), (["=x"], "not NAME=PATH"), (["a=x", "a=y"], 'two adapters are named "a"')):
        with pytest.raises(BadInput, match=what):
            _named(wrong)
