"""What a user reads when something is wrong: what happened, where, and what to do about it.

    raise BadInput("no token of this example would be trained", where="train.jsonl:418", fix='set data.on_too_long to "drop"')

The command line prints these and exits with `exit_code`; a traceback is a defect of ours.
Exit codes: 0 done, 1 the machine failed, 2 bad input, 3 a gate that was asked for is not met, 130 interrupted and saved.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class TunesmithError(Exception):
    """An error with a place and a remedy; subclasses choose the exit code."""

    exit_code = 1

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        lines = [f"error: {self.what}"]
        if self.where:
            lines.append("  where: " + self.where.replace("\n", "\n         "))
        if self.fix:
            lines.append("  fix:   " + self.fix.replace("\n", "\n         "))
        return "\n".join(lines)


class BadInput(TunesmithError):
    """The data, the config, the model folder or the command is not what it should be."""

    exit_code = 2


class MachineFailed(TunesmithError):
    """Disk, memory, another process: nothing that the user wrote."""

    exit_code = 1


class DiskRefused(MachineFailed):
    """The system would not write. `remedy` is what would let it; whoever knows the command that goes on puts it in `fix`."""

    def __init__(self, what: str, where: str, remedy: str) -> None:
        super().__init__(what, where, f"{remedy}, then run the command again")
        self.remedy = remedy


class GateNotMet(TunesmithError):
    """A threshold that the user asked for was not reached."""

    exit_code = 3


class Interrupted(TunesmithError):
    """Stopped by the user or the system; what was saved, and the command that goes on, stand in it."""

    exit_code = 130


def nearest(word: str, known: Iterable[str], most: int = 8) -> str:
    """A fix that names the known word closest to `word`, or else the first `most` of them."""
    known = sorted(known)
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    more = f" and {len(known) - most:,} more" if len(known) > most else ""
    return f'did you mean "{close[0]}"?' if close else f"known: {', '.join(known[:most])}{more}"
