"""docs/distributed.md and examples/cluster: their commands, options and config keys exist, and their YAML and shell can be read."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.config import known_keys, load_run

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "examples" / "cluster"
DOCUMENT = ROOT / "docs" / "distributed.md"


def torchrun_options() -> set[str]:
    from torch.distributed.run import get_args_parser

    return {option for action in get_args_parser()._actions for option in action.option_strings}


def assert_a_command_of_ours(words: list[str]) -> None:
    """torchrun OPTIONS -m tunesmith COMMAND …"""
    assert words[0] == "torchrun"
    at = words.index("-m")
    assert words[at + 1] == "tunesmith"
    given = {word.partition("=")[0] for word in words[1:at] if word.startswith("--")}
    assert given <= torchrun_options(), given - torchrun_options()


def test_the_config_is_read_as_it_is():
    run, said = load_run(CLUSTER / "run.yaml")
    assert run.training.sharding == "full" and run.method == "qlora"
    assert said == []


def test_the_slurm_script_is_shell_and_calls_commands_that_exist():
    script = CLUSTER / "slurm.sbatch"
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("there is no bash here")
    assert subprocess.run([shell, "-n", str(script)], capture_output=True).returncode == 0
    text = script.read_text().replace("\\\n", " ")
    [command] = [line for line in text.splitlines() if line.startswith("srun")]
    assert_a_command_of_ours(shlex.split(command)[1:])
    assert re.findall(r"work=\((\w+) ", text) == ["resume", "train"]


@pytest.mark.parametrize(("begun", "expected"), [(False, "train run.yaml"), (True, "resume runs/x")])
def test_the_slurm_script_trains_first_and_resumes_afterwards(tmp_path: Path, begun: bool, expected: str):
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("there is no bash here")
    for name, does in (("srun", 'echo "$@"'), ("scontrol", "echo node-7; echo node-8")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    if begun:
        (tmp_path / "runs/x").mkdir(parents=True)
        (tmp_path / "runs/x/config.yaml").write_text("")
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "node-[7-8]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_PER_NODE": "4",
        "SLURM_CPUS_PER_TASK": "32", "SLURM_JOB_ID": "11",
    }  # fmt: skip
    script = [shell, str(CLUSTER / "slurm.sbatch"), "run.yaml", "runs/x"]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == (
        "torchrun --nnodes=2 --nproc-per-node=4 --rdzv-backend=c10d --rdzv-id=11 --rdzv-endpoint=node-7:29500 "
        + f"-m tunesmith {expected}\n"
    )


def kubernetes() -> dict[str, Any]:
    return {document["kind"]: document for document in yaml.safe_load_all((CLUSTER / "kubeflow-trainer.yaml").read_text())}


def test_the_kubernetes_objects_name_each_other():
    found = kubernetes()
    assert set(found) == {"PersistentVolumeClaim", "TrainingRuntime", "TrainJob"}
    job, runtime, claim = found["TrainJob"], found["TrainingRuntime"], found["PersistentVolumeClaim"]
    assert job["apiVersion"] == runtime["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    assert (job["spec"]["runtimeRef"]["kind"], job["spec"]["runtimeRef"]["name"]) == ("TrainingRuntime", runtime["metadata"]["name"])
    # the fields of the API: a typing error here would be refused by the cluster, or passed over in silence
    assert set(job["spec"]) <= {"runtimeRef", "initializer", "trainer", "runtimePatches", "suspend", "activeDeadlineSeconds", "managedBy"}
    assert set(job["spec"]["trainer"]) <= {"image", "command", "args", "env", "numNodes", "resourcesPerNode", "numProcPerNode"}
    [replicated] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert replicated["name"] == pod["containers"][0]["name"] == "node"
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_the_kubernetes_command_exists_and_its_files_are_on_the_shared_volume():
    shell, flag, script = kubernetes()["TrainJob"]["spec"]["trainer"]["command"]
    assert (shell, flag) == ("/bin/sh", "-c")
    assert subprocess.run(["/bin/sh", "-n", "-c", script], capture_output=True).returncode == 0
    assert_a_command_of_ours(shlex.split(script.rpartition("exec ")[2]))
    run = load_run(CLUSTER / "run.yaml")[0]
    assert f"[ -f {run.output}/config.yaml ]" in script and f"resume {run.output};" in script and "train /mnt/shared/run.yaml;" in script


def test_commands_and_keys_in_the_document_exist():
    text = DOCUMENT.read_text()
    for line in re.findall(r"^    (torchrun .*)$", text, flags=re.M):
        assert_a_command_of_ours(shlex.split(line.partition("#")[0]))
    keys = set(re.findall(r"`((?:training|data)\.\w+)", text))
    assert {"training.sharding", "training.heartbeat_seconds"} <= keys <= known_keys().keys()
    for path in re.findall(r"`((?:examples|tests)/[\w/.-]+)`", text):
        assert (ROOT / path).exists(), path
    for command in re.findall(r"`tunesmith (\w+)", text):
        done = subprocess.run([sys.executable, "-m", "tunesmith", command, "--help"], capture_output=True)
        assert done.returncode == 0, command
