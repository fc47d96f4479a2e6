"""What a text that a person or a file gave may be used as: a path that a system can take, or a plain name that is never a path.

    must_be_path(run.model, "model")            # BadInput for NUL and for what is longer than any system takes
    is_plain("data-00000-of-00002.arrow")       # a file of the folder itself: no separator, no "..", nothing that a shell or Windows misreads

Names of adapters have a rule of their own (model/adapters.py), as they name modules.
"""

import re

from tunesmith.errors import BadInput

LONGEST_NAME, LONGEST_PATH = 255, 4000  # bytes; of a file's own name, and of a whole path, on Linux and macOS
PLAIN = re.compile(r"\w[\w.+@=-]{0,199}", re.ASCII)
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names that Windows gives no file


def must_be_path(text: str, where: str) -> None:
    """Refuse what every question to the system about it would end in an error of another kind."""
    try:
        data = text.encode("utf-8", "surrogateescape")  # bytes that are no text are a path, half characters are none
    except UnicodeEncodeError:
        data = b"\0"
    if b"\0" in data:
        raise BadInput("a path cannot hold this character", where=f"{where}: {text[:80]!r}", fix="remove it")
    if len(data) > LONGEST_PATH or max(len(part) for part in data.split(b"/")) > LONGEST_NAME:
        raise BadInput(
            f"a path cannot be {len(data):,} bytes long (a name in it {LONGEST_NAME} at most)",
            where=f"{where}: {text[:40]!r}…",
            fix="a shorter one",
        )


def is_plain(name: object) -> bool:
    """Whether a name from a file may be the name of a file in a known folder, on any system."""
    return isinstance(name, str) and PLAIN.fullmatch(name) is not None and DEVICES.fullmatch(name) is None
