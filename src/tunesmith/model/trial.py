"""A foreign tokenizer and chat template tried out in a process of their own, with limits, before this process reads them.

    try_out(folder / "tokenizer.json", {"chat_template.jinja": text})       # BadInput if either crashes, hangs or floods the memory

Both are programs: a template loops and builds texts in a sandbox that keeps it from Python's internals but not from doing that for
ever, and a tokenizer holds regular expressions and is read by compiled code that may abort. What happens to the other process ends
there: it has seconds of processor time and a share of the memory, reads nothing but what it is given, and says how far it came.
Each text is tried once per process of ours; 0.2 s.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from tunesmith.errors import BadInput, MachineFailed
from tunesmith.model.foreign_json import read_bytes, shown

MOST_TOKENIZER_BYTES = 128 << 20  # the largest of known models, with 262,144 tokens, has 33 MB
READING_SECONDS, SECONDS_PER_BYTE = 5, 1 / (1 << 20)  # of processor time for a tokenizer; real ones take 0.05 s for each MiB
RENDERING_SECONDS = 1  # for all trial conversations; real templates take 0.02 s
READING_BYTES, BYTES_PER_BYTE = 2 << 30, 40  # of memory, as addresses
RENDERING_BYTES = 512 << 20  # more than there are before
MOST_WRITTEN = 1_000_000  # characters that a template makes of a few words
LARGEST_NUMBER = 1_000_000  # that a template names
PATIENCE_SECONDS = 120  # on the clock; nothing that is tried ever waits
OUT_OF_TIME = -27  # how a process ends that SIGPROF ended
FIX = "give another chat template (chat_template.jinja) or another model; if you trust this one, read it first"


def try_out(tokenizer: Path | None, templates: Mapping[str, str]) -> None:
    """Raises BadInput if the tokenizer file or one of the templates (name → text) does not come to a good end."""
    data, texts = read_bytes(tokenizer, MOST_TOKENIZER_BYTES) if tokenizer is not None else b"", list(templates.values())
    digest = sha256(data + b"\0" + json.dumps(texts).encode()).hexdigest()
    if digest not in _found:
        given = {"tokenizer": str(tokenizer.absolute()) if tokenizer is not None else None, "templates": texts}
        _found[digest] = _tried(json.dumps(given), len(data))
    problem = _found[digest]
    if problem is None:
        return
    number, words = problem
    if number is None:
        raise BadInput(f"the tokenizer cannot be loaded: {words}", where=str(tokenizer), fix="copy or download the model again")
    raise BadInput(f"the chat template is not used: {words}", where=list(templates)[number], fix=FIX)


Problem = tuple[int | None, str]  # the number of the template, or None for the tokenizer; what is wrong
_found: dict[str, Problem | None] = {}  # of whatever was tried, by its hash; None: nothing is wrong


def _tried(given: str, n_bytes: int) -> Problem | None:
    """n_bytes: of the tokenizer."""
    command = [sys.executable, "-P", "-m", "tunesmith.model.trial", str(n_bytes)]
    try:
        done = subprocess.run(  # noqa: S603 - our own module; what is tried goes in as text
            command, input=given.encode(), capture_output=True, timeout=PATIENCE_SECONDS, check=False
        )
        output, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        output, code = error.stdout or b"", OUT_OF_TIME
    except OSError as error:
        raise MachineFailed(f"no process can be started to try the tokenizer in: {error}", fix="free some memory") from None
    said = [json.loads(line) for line in output.splitlines() if line.endswith(b"}")]
    last: dict[str, Any] = said[-1] if said else {"at": "start"}
    if last["at"] == "end":
        return None
    if last["at"] == "start":
        words = done.stderr.decode(errors="replace").strip().splitlines()[-1:] if code != OUT_OF_TIME else ["it never began"]
        raise MachineFailed(f"the trial of the tokenizer did not begin: {shown(''.join(words), 200)}", fix="free some memory")
    return last.get("number"), last.get("words") or _ended(last["at"], code)


def _ended(at: str, code: int) -> str:
    """How a process ended that did not say so itself."""
    if code == OUT_OF_TIME:
        return f"it is not done after {'a second' if at == 'template' else 'the time that reading it may take'}"
    return "it asks for more memory than any such file needs, or ends the process that reads it"


# --- the other process ----------------------------------------------------------------------------------------------------


def main() -> None:
    """Read what is to be tried from standard input; one line for each stage that begins, the last one says how it went."""
    given = json.load(sys.stdin)
    n_bytes = int(sys.argv[1])
    say({"at": "start"})
    texts = [character * 3000 + "!" for character in "a 0.=\n-"] + ["Is this spam? 100% free, call 0800-123 now!\n\tÄpfel 東京 🙂" * 20]
    limit(READING_SECONDS + n_bytes * SECONDS_PER_BYTE, READING_BYTES + BYTES_PER_BYTE * n_bytes)
    if given["tokenizer"] is not None:
        say({"at": "tokenizer"})
        try:
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(given["tokenizer"])
            for text in texts:
                tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids)
            tokenizer.encode("a")
        except BaseException as error:  # a panic of compiled code is no Exception
            say({"at": "tokenizer", "words": shown(str(error) or type(error).__name__, 200)})
            return
    for number, template in enumerate(given["templates"]):
        say({"at": "template", "number": number})
        limit(RENDERING_SECONDS, RENDERING_BYTES, more=True)
        try:
            words = problem_of(template)
        except MemoryError:
            words = "it asks for more memory than any template needs"
        if words:
            say({"at": "template", "number": number, "words": words})
            return
    say({"at": "end"})


def say(line: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def limit(seconds: float, n_bytes: int, more: bool = False) -> None:
    """Processor time from now on, and addresses in all, or `more` than there are; where the system knows such limits."""
    if sys.platform == "win32":
        return
    import resource

    signal.setitimer(signal.ITIMER_PROF, seconds)  # nobody listens to its signal, so that it ends the process
    if more and Path("/proc/self/statm").is_file():
        n_bytes += int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (n_bytes if hard == resource.RLIM_INFINITY else min(n_bytes, hard), hard))


def problem_of(template: str) -> str:
    """What is wrong with a template, in words; nothing if trial conversations come out of it, or it refuses them as templates may."""
    from jinja2 import TemplateSyntaxError
    from jinja2.exceptions import SecurityError

    try:
        environment = sandbox()
        tree = environment.parse(template)
        if words := forbidden(tree):
            return words
        compiled = environment.from_string(template)
    except (TemplateSyntaxError, RecursionError) as error:
        return f"it cannot be read: {shown(str(error) or 'it is nested too deeply', 200)}"
    for conversation in conversations():
        try:
            written = 0
            for piece in compiled.generate(**conversation):
                written += len(piece)
                if written > MOST_WRITTEN:
                    return f"it makes more than {MOST_WRITTEN:,} characters of a few words"
        except (SecurityError, OverflowError) as error:
            return shown(str(error), 200)
        except MemoryError:
            raise
        except Exception:  # noqa: S112 - a template may refuse a conversation in any way; whether it takes the user's is seen later
            continue
    return ""


def sandbox() -> Any:
    """What transformers renders in, less what it tracks: jinja's sandbox with its loop controls, and `generation` blocks."""
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - jinja's way

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            found: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return found

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **more)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment


def forbidden(tree: Any) -> str:
    """What no template needs, wherever it stands and whether or not a trial comes by it: powers, huge numbers, Python's internals."""
    from jinja2 import nodes

    if next(tree.find_all(nodes.Pow), None) is not None:
        return "it computes powers"
    for constant in tree.find_all(nodes.Const):
        value = constant.value
        if isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:
            return f"it names the number {shown(str(value), 20)}"
    names = [node.attr for node in tree.find_all(nodes.Getattr)]
    names += [node.arg.value for node in tree.find_all(nodes.Getitem) if isinstance(node.arg, nodes.Const)]
    inner = next((name for name in names if isinstance(name, str) and name.startswith("__")), None)
    if inner is not None:
        return f"it reaches for {shown(inner)}"
    for kind in (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends):
        if next(tree.find_all(kind), None) is not None:
            return "it asks for another template"
    return ""


def conversations() -> Iterator[dict[str, Any]]:
    """What templates are tried with: turns, a system message, thinking, tools and their results, with and without an answer to begin."""
    user, answer = {"role": "user", "content": "Is it warm in Quito?"}, {"role": "assistant", "content": "Yes, it is."}
    system = {"role": "system", "content": "Be short."}
    call = {"type": "function", "id": "call00001", "function": {"name": "find_warmth", "arguments": {"place": "Quito"}}}
    called = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "24", "name": "find_warmth"}]
    tool = {
        "type": "function",
        "function": {
            "name": "find_warmth",
            "description": "The warmth of a place",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        },
    }
    thought = {**answer, "reasoning_content": "It lies on the equator, but high."}
    for turns in ([user], [user, answer], [system, user, answer, user], [user, thought], [user, *called, answer], [*[user, answer] * 10]):
        for tools in (None, [tool]):
            for begun in (True, False):
                yield {
                    "messages": turns, "tools": tools, "documents": None, "add_generation_prompt": begun, "bos_token": "<s>",
                    "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
                }  # fmt: skip


if __name__ == "__main__":
    main()
