"""Instants at which a run can be killed on purpose, so that a test can prove that it loses nothing there.

    reached("checkpoint.in-place")            # does nothing, unless a test asked for a kill there

    TUNESMITH_KILL_AT=checkpoint.in-place     tunesmith train sms.yaml     # dies by SIGKILL at the first save
    TUNESMITH_KILL_AT=checkpoint.in-place:7   tunesmith train sms.yaml     # at the seventh

Kills at random times hit the long phases of a run; the instants that matter are microseconds long, and these names reach them.
SIGKILL runs no handler and no `finally`, as a power cut or the out-of-memory killer does not either. `make torture` kills runs at
every name of POINTS and compares what `resume` ends in with the run that never stopped.
"""

import os
import signal
from collections import Counter
from collections.abc import Callable

VARIABLE = "TUNESMITH_KILL_AT"

# name → what is on the disk then
POINTS = {
    "create.folder-made": "a run folder that holds nothing",
    "create.config-written": "a run folder with its config and no status",
    "file.half-written": "half of a file, beside its place",
    "file.before-rename": "a whole file, beside its place",
    "file.renamed": "the file in its place, its folder not synced",
    "folder.filled": "a whole folder, beside its place",
    "folder.moved-aside": "two whole folders, the old and the new one, and neither in its place",
    "folder.renamed": "the new folder in its place, the old one beside it",
    "folder.taken-out": "a folder that is no longer wanted, under a name that nobody reads",
    "log.half-a-line": "a line of metrics.jsonl without its end",
    "log.written": "a line of a step that no checkpoint holds",
    "start.prepared": "data read and model loaded; nothing new is written",
    "start.forgotten": "a log that ends where the checkpoint stands",
    "start.restored": "weights and optimizer read back",
    "step.begun": "the last step is whole",
    "step.backward": "gradients in memory",
    "step.before-update": "gradients are finite and clipped",
    "step.updated": "weights in memory that no file holds",
    "step.logged": "the step is logged, and neither measured nor saved",
    "step.measured": "the validation loss is logged, and not saved",
    "step.saved": "a checkpoint, and a status that does not know it",
    "checkpoint.folder-made": "an empty folder beside the checkpoint's place",
    "checkpoint.tensors-written": "some of its files",
    "checkpoint.files-written": "all of its files, and no manifest",
    "checkpoint.manifest-written": "all that a checkpoint is, under another name",
    "checkpoint.in-place": "the new checkpoint, and every older one",
    "checkpoint.one-removed": "the new checkpoint, and some of those that retention gives up",
    "finish.begun": "the last checkpoint; the result is not written",
    "finish.written": "the result, and a status that does not know it",
    "finish.noted": "the status says trained",
    "measure.answers-written": "evaluation.json without its rows",
    "measure.written": "measured, and no report",
    "report.written": "everything, and a status that does not say done",
}

times_reached: Counter[str] = Counter()


def reached(name: str, leaving: Callable[[], object] | None = None) -> None:
    """Kill this process if the environment asks for it here.

    leaving   called before the kill: what a process that dies in the middle of its next call would leave behind
    """
    times_reached[name] += 1
    asked = os.environ.get(VARIABLE)
    if asked is None:
        return
    at, _, nth = asked.partition(":")
    if at == name and times_reached[name] == int(nth or 1):
        if leaving is not None:
            leaving()
        os.kill(os.getpid(), signal.SIGKILL)
