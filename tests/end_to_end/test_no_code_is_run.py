"""A whole life of a run, in a process in which every pickle explodes and every open file, process and connection is noted."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, os, pickle, _pickle, shutil, sys
model, data, output = sys.argv[1:4]
noted = {"opened": [], "processes": [], "network": []}

def note(event, arguments):
    if event == "pickle.find_class":
        raise SystemExit("a pickle was read")
    if event == "open" and isinstance(arguments[0], (str, bytes)) and os.fsdecode(arguments[0]).startswith(model):
        noted["opened"].append(os.path.basename(os.fsdecode(arguments[0])))
    if event == "subprocess.Popen":
        noted["processes"].append(" ".join(map(str, arguments[1])))
    if event in ("socket.connect", "socket.getaddrinfo"):
        noted["network"].append(str(arguments))

import torch, transformers, tunesmith
from tunesmith import api
from tunesmith.errors import TunesmithError
sys.addaudithook(note)

def explode(*given, **named):
    raise SystemExit("a pickle was asked for")

class Exploding:  # a class, as libraries derive from it
    __init__ = explode

for module in (pickle, _pickle):
    module.load, module.loads, module.Unpickler = explode, explode, Exploding
torch.load = explode

training = {"epochs": 1, "max_length": 128, "dtype": "float32", "save_every": 1, "keep_checkpoints": 3}
run = tunesmith.train({"model": model, "output": output, "data": {"train": data, "test": 0.25}, "lora": {"rank": 4}, "training": training})
first = run.evaluation()["models"]
newest = max(run.checkpoints.iterdir())
shutil.rmtree(newest)
run.set_status(state="interrupted")
again = tunesmith.resume(output)
assert again.evaluation()["models"] == first and max(run.checkpoints.iterdir()) == newest
opened = tunesmith.load(model, adapters={"mine": output})
assert opened.generate(["what colour is thing 3?"], adapter="mine", max_new_tokens=2)
tunesmith.load(model).add_adapter("bare", run.adapter)
api.merge(output, output + "-merged")
print(json.dumps(noted))
"""
READ = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "model.safetensors", "tunesmith.json", "README.md",
}  # fmt: skip


def test_a_run_is_trained_saved_resumed_measured_and_merged_without_a_pickle_a_line_of_foreign_code_or_the_network(tiny, colours, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    ran = tmp_path / "ran"
    for name in ("evil.py", "modeling.py", "custom_generate/generate.py"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(f"open({str(ran)!r}, 'w')\nModel = Config = Tokenizer = generate = object\n")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (model / name).write_bytes(f"cos\nmkdir\n(V{ran}\ntR.".encode())  # a pickle that makes a folder
    for name, map_ in (
        ("config.json", {"AutoModelForCausalLM": "evil.Model"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Tokenizer", None]}),
    ):
        config = json.loads((model / name).read_text())
        files = {
            "vocab_file": "/etc/passwd",
            "tokenizer_file": "/etc/passwd",
            "special_tokens_map_file": "/etc/passwd",
            "name_or_path": "someone/else",
        }
        (model / name).write_text(
            json.dumps(config | {"auto_map": map_} | (files if name != "config.json" else {"_name_or_path": "someone/else"}))
        )
    command = [sys.executable, "-c", SCRIPT, str(model), colours, str(tmp_path / "runs" / "x")]
    online = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TUNESMITH_CACHE": "off", "OMP_NUM_THREADS": "1"}  # HF_HUB_OFFLINE is not set
    done = subprocess.run(command, capture_output=True, text=True, env=online, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    noted = json.loads(done.stdout.splitlines()[-1])
    assert not ran.exists()
    assert "config.json" in noted["opened"], "the hook works"
    assert set(noted["opened"]) <= READ
    assert noted["network"] == []
    assert all("-m tunesmith.model.trial" in process for process in noted["processes"]), noted["processes"]
    assert not any(Path(tmp_path / "runs").rglob("*.bin"))
