"""tunesmith: fine-tune language models on your own data, full, LoRA or QLoRA, and measure what they learned.

import tunesmith
run = tunesmith.train("sms.yaml")
tunesmith.load("runs/sms").generate(["Is this message spam or ham? Call now to win!"])
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["check", "evaluate", "load", "merge", "plan", "resume", "train"]

if TYPE_CHECKING:
    from tunesmith.api import check, evaluate, load, merge, plan, resume, train


def __getattr__(name: str) -> Any:
    """The verbs are imported at first use: they bring torch, which takes seconds."""
    if name in __all__:
        from tunesmith import api

        return getattr(api, name)
    raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
