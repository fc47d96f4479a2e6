"""A conversation on the terminal, with a command to change adapters in the middle of it."""

import sys
from pathlib import Path

from tunesmith.api import Model
from tunesmith.data.conversation import Message
from tunesmith.errors import TunesmithError
from tunesmith.progress import say


def converse(model: Model, temperature: float, top_p: float, max_new_tokens: int, fill: bool = False) -> None:
    """Read lines until the end of input or /quit; answers are written as they are made.

    fill   put each line into the one column of the template that the adapter's prompts had
    """
    adapter = model.default_adapter or (model.adapters[0] if model.adapters else None)
    own = name_of(model)
    names = ["base", *model.adapters] if model.adapters else []
    switches = f" /{', /'.join(names)} switch (the base is {own})," if names else ""
    say(f"talking to {adapter or own};{switches} /new starts over, /quit ends")
    if fill:
        model.fill("", adapter or "base")  # where that cannot be, it is said before anything is typed
    told = [] if fill else model.form_in_words(adapter or "base")
    for sentence in told:
        say(sentence)
    history: list[Message] = []
    while True:
        try:
            line = input(f"{adapter or own}> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if not line:
            continue
        if line.startswith("/"):
            command = line[1:]
            if command in ("quit", "exit"):
                return
            if command == "new":
                history = []
                say("a new conversation")
            elif command in names:
                adapter, history = (None if command == "base" else command), []
                say(f"now {own if command == 'base' else command} answers")
                if not fill and (words := model.form_in_words(command)) != told:
                    told = words
                    for sentence in words:
                        say(sentence)
            else:
                say(f"/{command} is not known; {', '.join(f'/{name}' for name in [*names, 'new', 'quit'])}")
            continue
        if fill:
            try:
                line = model.fill(line, adapter or "base")
            except TunesmithError as error:
                say(str(error))
                continue
        if model.renderer.mode == "plain":
            history = []  # without a template a conversation is one prompt and one answer
        system = model.system.get(adapter)
        if not history and system:
            history.append(Message("system", system, False))
        history.append(Message("user", line, False))
        try:
            answer = ""
            settings = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
            for piece in model.stream(history, adapter=adapter or "base", **settings):  # type: ignore[arg-type]
                sys.stdout.write(piece)
                sys.stdout.flush()
                answer += piece
            sys.stdout.write("\n")
            history.append(Message("assistant", answer, False))
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            history.pop()  # an answer that was broken off is no part of the conversation, nor is its question
            say("stopped; /quit ends")
        except TunesmithError as error:
            history.pop()
            say(str(error))


def name_of(model: Model) -> str:
    """What the model without adapters is called: acorn, a hub id, its folder's name, or of a run's fully tuned model the run's."""
    path = Path(model.loaded.name).expanduser()
    if not path.is_dir():
        return model.loaded.name
    of_run = path.name == "model" and (path.parent / "config.yaml").is_file()
    return (path.parent if of_run else path).resolve().name
