"""Rows of the formats that people have become turns: OpenAI's messages, ShareGPT's, TRL's, alpaca's and task files' with instructions.

    notes = Counter()
    turns, tools = from_messages({"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}, "messages", notes)
    turns[1]                                # Message("assistant", "2", trained=True)

Every function takes one row and either returns what it teaches or raises RowError with the reason. What a row has and is not
used, or is read in a way that its owner should know, is counted in `notes` under a sentence with {n} in it.

Roles and keys by their sources: OpenAI's fine-tuning format (tool_calls, role tool, the older function_call and role function,
weight), LLaMA-Factory's ShareGPT and alpaca (function_call, observation, history, system, tools as JSON text), Axolotl's
(train, training), TRL's (prompt and completion as lists of messages), `reasoning_content` of serving APIs, and
Super-NaturalInstructions (Wang et al. 2022, arXiv 2204.07705).
"""

import json
import re
from collections import Counter
from dataclasses import replace
from typing import Any

from tunesmith.data.columns import RowError, cell
from tunesmith.data.conversation import Message, ToolCall
from tunesmith.data.readers import clip, strict_json, type_name

Turns = tuple[Message, ...]
Tools = tuple[dict[str, Any], ...]

ROLES = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant",
    "tool": "tool", "function": "tool", "ipython": "tool",
}  # fmt: skip
MEANT_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "ai": "assistant"}
SHAREGPT = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant", "model": "assistant",
    "system": "system", "tool": "tool", "observation": "tool", "function_response": "tool", "function_call": "assistant",
}  # fmt: skip
THINKING = ("reasoning_content", "reasoning", "thinking")
NOT_RENDERED = ("audio", "refusal")  # what the model would have to see or say and no template writes
THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.S)


# --------------------------------------------------------------------------------------------------------------- chats


def from_messages(
    values: dict[str, Any], column: str, notes: Counter[str], *, answers: bool = True, padded: bool = False
) -> tuple[Turns, Tools]:
    """A row whose `column` is a list of turns, OpenAI's or ShareGPT's.

    answers   a trained answer must end the conversation; otherwise it may end in what is to be answered
    padded    nulls inside tool definitions and arguments were put there by a columnar file (every row has every key there)
    """
    turns = _list_of_turns(values, column)
    if column == "conversations":
        turns = [_from_sharegpt(turn, number) for number, turn in enumerate(turns, 1)]
    system = values.get("system")
    if column == "conversations" and isinstance(system, str) and system.strip() and turns[0].get("role") != "system":
        turns = [{"role": "system", "content": system}, *turns]
    return _checked_turns(_messages(turns, notes, padded), answers), tools_of(values, padded)


def from_prompt_and_completion(
    values: dict[str, Any], notes: Counter[str], *, answers: bool = True, padded: bool = False
) -> tuple[Turns, Tools]:
    """TRL's conversational prompt and completion: two lists of messages, of which the second one is trained."""
    prompt = [replace(message, trained=False) for message in _messages(_list_of_turns(values, "prompt"), notes, padded)]
    if not answers and values.get("completion") in (None, []):
        completion: list[Message] = []
    else:
        completion = _messages(_list_of_turns(values, "completion"), notes, padded)
    return _checked_turns([*prompt, *completion], answers), tools_of(values, padded)


def from_alpaca(values: dict[str, Any], notes: Counter[str], *, answers: bool = True) -> tuple[Turns, Tools]:
    """Instruction, input below it, output; the turns of `history` and the text of `system` before them. Answers of the history are trained."""
    prompt = _side(values, "instruction")
    if values.get("input") not in (None, ""):
        prompt += "\n\n" + _side(values, "input")
    absent = not answers and values.get("output") is None
    last = pair(prompt, None if absent else _side(values, "output"), answers, notes)
    system, earlier = values.get("system"), _history(values.get("history"), notes)
    if system is not None and not isinstance(system, str):
        raise RowError(f'"system" is {type_name(system)}; it should be a text')
    first = (Message("system", system, trained=False),) if system and system.strip() else ()
    return (*first, *earlier, *last), tools_of(values, padded=False)


def _history(history: Any, notes: Counter[str]) -> Turns:
    """[[user, assistant], …]: LLaMA-Factory's earlier rounds."""
    if history in (None, "", []):
        return ()
    rounds = history if isinstance(history, list) else [None]
    if not all(isinstance(one, list) and len(one) == 2 and all(isinstance(text, str) for text in one) for one in rounds):
        raise RowError('"history" should be a list of [user, assistant] pairs of texts')
    turns: list[Message] = []
    for number, (asked, answered) in enumerate(rounds, 1):
        if not asked.strip() or not answered.strip():
            raise RowError(f'round {number} of "history" has an empty {"question" if not asked.strip() else "answer"}')
        turns += [Message("user", asked, trained=False), answer(answered, notes)]
    return tuple(turns)


# -------------------------------------------------------------------------------------------------- instructions, pairs


def from_instance(values: dict[str, Any], columns: tuple[str, str], n_examples: int, notes: Counter[str], *, answers: bool = True) -> Turns:
    """One instance of a task: its definition, then `n_examples` solved ones (or all, if there are fewer), then the input; the output is the answer.

    columns   of the input and of the output
    """
    definition, given = _side(values, "definition"), _side(values, columns[0])
    parts = [definition.strip()]
    parts += [_solved(example) for example in solved_examples(values)[:n_examples]]
    parts.append(f"Input: {given}\nOutput:" if len(parts) > 1 else given)
    absent = not answers and values.get(columns[1]) in (None, "")
    return pair("\n\n".join(parts), None if absent else _side(values, columns[1]), answers, notes)


def solved_examples(values: dict[str, Any]) -> list[Any]:
    examples = values.get("positive_examples")
    return examples if isinstance(examples, list) else []


def _solved(example: Any) -> str:
    values = as_instance({"definition": "", **example}) if isinstance(example, dict) else {}
    return f"Input: {cell(values, 'input').strip()}\nOutput: {cell(values, 'output').strip()}"


def as_instance(values: dict[str, Any]) -> dict[str, Any]:
    """An instance with one output (the first) and all of them as `references`; any other row as it is."""
    if "definition" not in values or not isinstance(outputs := values.get("output"), list):
        return values
    if not outputs or not all(isinstance(output, str) for output in outputs):
        return values  # `pair` says what is wrong with the answer
    return {**values, "output": outputs[0], "references": outputs}


def pair(prompt: str, completion: str | None, answers: bool, notes: Counter[str]) -> Turns:
    if not prompt.strip():
        raise RowError("the prompt is empty")
    if completion is not None and not completion.strip():
        if answers:
            raise RowError("the answer is empty")
        completion = None
    user = Message("user", prompt, trained=False)
    return (user,) if completion is None else (user, answer(completion, notes))


def from_pair(values: dict[str, Any], columns: tuple[str, str], notes: Counter[str], *, answers: bool = True) -> Turns:
    """Two columns: what is asked and what is answered."""
    absent = not answers and values.get(columns[1]) is None
    return pair(_side(values, columns[0]), None if absent else _side(values, columns[1]), answers, notes)


def from_text(text: str, trained: bool, raw: bool) -> Turns:
    if not text.strip():
        raise RowError("the text is empty")
    return (Message("text" if raw else "user", text, trained=trained and raw),)


def _side(values: dict[str, Any], column: str) -> str:
    value = values.get(column)
    if _are_turns(value):
        raise RowError(f'"{column}" is a list of messages; put all turns into one "messages" list')
    if column == "output" and "definition" in values and isinstance(value, list):
        raise RowError('"output" should be a text or a list of texts, at least one')
    return cell(values, column)


def _are_turns(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(part, dict) and "role" in part for part in value)


def has_turns(values: dict[str, Any], column: str) -> bool:
    """Whether a column holds messages instead of a text."""
    return _are_turns(values.get(column))


# --------------------------------------------------------------------------------------------------------------- turns


def answer(text: str, notes: Counter[str], thinking: str | None = None, trained: bool = True, calls: tuple[ToolCall, ...] = ()) -> Message:
    """An assistant turn; a thought at the start of its text is kept apart from what it says."""
    if thought := THOUGHT.match(text):
        if thinking is not None:
            raise RowError("an answer has its thinking twice: in a key of its own and as <think>…</think>")
        thinking, rest = thought[1].strip("\n"), text[thought.end() :].lstrip("\n")
        if not rest.strip() and not calls:
            raise RowError("the answer is empty after its <think>…</think>")
        notes["{n} beginning with <think>…</think>: read as thinking"] += 1
        begin = thought.start(1) + len(thought[1]) - len(thought[1].lstrip("\n"))
        before, after = text[:begin], text[begin + len(thinking) : len(text) - len(rest)]
        return Message("assistant", rest, trained, thinking, calls, before_thinking=before, after_thinking=after)
    return Message("assistant", text, trained, thinking, calls)


def _list_of_turns(values: dict[str, Any], column: str) -> list[Any]:
    turns = values.get(column)
    if not isinstance(turns, list) or not turns:
        raise RowError(f'"{column}" should be a list of messages, it is {"an empty list" if turns == [] else type_name(turns)}')
    return turns


def _checked_turns(messages: list[Message], answers: bool) -> Turns:
    """One system message at most, then user and assistant in turn, tool results after calls, and a trained answer at the end."""
    expected: tuple[str, ...] = ("user",)
    for number, message in enumerate(messages, 1):
        if message.role == "system":
            if number > 1:
                raise RowError(f"message {number} is a system message; only the first may be one")
            continue
        if message.role not in expected:
            rule = "a tool result follows an answer" if message.role == "tool" else "turns alternate, user first"
            rule = "the result of the call stands before the next turn" if expected == ("tool",) else rule
            raise RowError(f"message {number} is by {message.role} where {expected[0]} should speak: {rule}")
        # an answer may call a tool in its text too, so a result may follow any answer
        after_answer = ("tool",) if message.tool_calls else ("user", "tool")
        expected = {"user": ("assistant",), "tool": ("assistant", "tool"), "assistant": after_answer}[message.role]
    last = messages[-1]
    if last.role == "system" or (answers and last.role != "assistant"):
        raise RowError(f"the last message is by {last.role}, so there is nothing to {'learn' if answers else 'answer'} after it")
    if not any(message.trained for message in messages) and (answers or last.role == "assistant"):
        raise RowError("no answer is trained: every assistant message has weight 0")
    return tuple(messages)


def _from_sharegpt(turn: Any, number: int) -> dict[str, Any]:
    """{"from": "human", "value": …} as {"role": "user", "content": …}; the value of a function_call is its JSON."""
    if not isinstance(turn, dict):
        raise RowError(f'message {number} should be {{"from": …, "value": …}}, it is {type_name(turn)}')
    if "from" not in turn:
        return turn  # some files have OpenAI's messages under ShareGPT's name
    speaker = turn["from"]
    if not isinstance(speaker, str) or speaker not in SHAREGPT:
        said = f'"{clip(speaker)}"' if isinstance(speaker, str) else type_name(speaker)
        raise RowError(f"message {number} is from {said}; known: {', '.join(SHAREGPT)}")
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    if speaker == "function_call":
        return {**rest, "role": "assistant", "content": None, "tool_calls": turn.get("value")}
    return {**rest, "role": SHAREGPT[speaker], "content": turn.get("value")}


def _messages(turns: list[Any], notes: Counter[str], padded: bool) -> list[Message]:
    seen: Counter[str] = Counter()
    names: dict[str, str] = {}  # of the tools that were called, by the id of the call
    messages = []
    for number, turn in enumerate(turns, 1):
        message = _message(turn, number, seen, names, padded)
        names |= {call.id: call.name for call in message.tool_calls if call.id is not None}
        messages.append(message)
    notes += seen  # a row that turns out bad counts for nothing
    return messages


def _message(turn: Any, number: int, notes: Counter[str], names: dict[str, str], padded: bool) -> Message:
    if not isinstance(turn, dict):
        raise RowError(f'message {number} should be {{"role": …, "content": …}}, it is {type_name(turn)}')
    role = _role(turn, number)
    given = {key: value for key, value in turn.items() if value is not None and value != "" and value != [] and value != {}}
    trained = _trained(given, role, number)
    calls = _calls(given, role, number, padded)
    content = "" if calls and turn.get("content") is None else _content(turn.get("content"), number)
    thinking = _thinking(given, role, number)
    name = None
    if role == "tool":
        name = _tool_name(given, number, names)
    used = {"role", "content", "weight", "train", "training", "tool_calls", "function_call", *THINKING}
    for key in given.keys() - used - ({"name", "tool_call_id"} if role == "tool" else set()):
        if key in NOT_RENDERED:
            raise RowError(f'message {number} has "{key}", which no template writes')
        notes[f'"{clip(key)}" of {{n}} is not used'] += 1
    if role == "assistant" and not content.strip() and not calls:
        raise RowError("the answer is empty" + (f" (message {number})" if number > 2 else ""))
    if role == "user" and not content.strip():
        raise RowError(f"message {number} is empty")
    if role == "assistant":
        return answer(content, notes, thinking, trained, calls)
    return Message(role, content, trained=False, name=name, call_id=given.get("tool_call_id") if role == "tool" else None)


def _role(turn: dict[str, Any], number: int) -> str:
    given = turn.get("role")
    if isinstance(given, str) and given in ROLES:
        return ROLES[given]
    said = f'"{clip(given)}"' if isinstance(given, str) else "missing" if "role" not in turn else type_name(given)
    meant = f'; write "{MEANT_ROLES[given]}"' if isinstance(given, str) and given in MEANT_ROLES else f"; known: {', '.join(ROLES)}"
    raise RowError(f"the role of message {number} is {said}{meant}")


def _trained(given: dict[str, Any], role: str, number: int) -> bool:
    """Answers are trained unless their weight is 0, or Axolotl's `train` or `training` is false."""
    weight = given.get("weight")
    if weight is not None and role != "assistant":
        raise RowError(f"message {number} has a weight, but only answers (assistant) are trained")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise RowError(f"the weight of message {number} is {clip(json.dumps(weight))}; it should be 0 or 1")
    trained = weight != 0
    for key in ("train", "training"):
        if key not in given:
            continue
        if not isinstance(given[key], bool):
            raise RowError(f'"{key}" of message {number} is {clip(json.dumps(given[key]))}; it should be true or false')
        if given[key] and role != "assistant":
            raise RowError(f"message {number} is to be trained, but only answers (assistant) are")
        trained = trained and given[key]
    return trained and role == "assistant"


def _thinking(given: dict[str, Any], role: str, number: int) -> str | None:
    thoughts = {key: given[key] for key in THINKING if key in given}
    if not thoughts:
        return None
    key, thought = next(iter(thoughts.items()))
    if role != "assistant":
        raise RowError(f'message {number} is by {role} and has "{key}"; only an answer (assistant) is thought about')
    if any(value != thought for value in thoughts.values()):
        raise RowError(f"message {number} has different texts in {' and '.join(thoughts)}")
    if not isinstance(thought, str):
        raise RowError(f'"{key}" of message {number} is {type_name(thought)}; it should be a text')
    return thought


def _content(content: Any, number: int) -> str:
    """A text, or text parts joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise RowError(f"the content of message {number} is {type_name(content)}; it should be a text")
    parts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(part, dict) or kind != "text" or not isinstance(part.get("text"), str):
            other = f" but {clip(kind)}" if isinstance(kind, str) and kind != "text" else ""
            raise RowError(f"message {number} has a part that is not text{other}")
        parts.append(part["text"])
    return "".join(parts)


# --------------------------------------------------------------------------------------------------------------- tools


def _calls(given: dict[str, Any], role: str, number: int, padded: bool) -> tuple[ToolCall, ...]:
    """The calls of a turn: tool_calls (also as JSON text), or the older function_call."""
    there = [key for key in ("tool_calls", "function_call") if key in given]
    if not there:
        return ()
    if role != "assistant":
        raise RowError(f'message {number} is by {role} and has "{there[0]}"; only an answer (assistant) calls tools')
    if len(there) == 2:
        raise RowError(f"message {number} has tool_calls and function_call; keep tool_calls")
    calls = _parsed(given[there[0]], f"the tool call of message {number}")
    calls = calls if isinstance(calls, list) else [calls]
    return tuple(_call(call, number, padded) for call in calls)


def _call(call: Any, number: int, padded: bool) -> ToolCall:
    call = _parsed(call, f"the tool call of message {number}")
    inner = call.get("function", call) if isinstance(call, dict) else call
    if not isinstance(call, dict) or not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"].strip():
        raise RowError(f'a tool call of message {number} should be {{"name": …, "arguments": {{…}}}}')
    identity = call.get("id")
    if identity is not None and not isinstance(identity, str):
        raise RowError(f"the id of a tool call of message {number} is {type_name(identity)}; it should be a text")
    arguments = inner.get("arguments", inner.get("parameters"))
    if arguments is None or arguments == "":
        arguments = {}
    if isinstance(arguments, str):
        parsed = _parsed(arguments, f"the arguments of the tool call of message {number}")
        arguments = parsed if isinstance(parsed, dict) else arguments
    elif not isinstance(arguments, dict):
        raise RowError(f"the arguments of a tool call of message {number} are {type_name(arguments)}; they should be an object")
    elif padded:
        arguments = without_nulls(arguments)
    return ToolCall(inner["name"], arguments, identity)


def _tool_name(given: dict[str, Any], number: int, names: dict[str, str]) -> str | None:
    """Which tool a result is of: said by the turn, or by the call whose id it names."""
    name, identity = given.get("name"), given.get("tool_call_id")
    if name is not None and not isinstance(name, str):
        raise RowError(f'"name" of message {number} is {type_name(name)}; it should be a text')
    if identity is not None and not isinstance(identity, str):
        raise RowError(f"the tool_call_id of message {number} is {type_name(identity)}; it should be a text")
    if identity is not None and names and identity not in names:
        raise RowError(f'message {number} is the result of "{clip(identity)}", and no call before it has this id')
    return name if name is not None else names.get(identity) if identity is not None else None


def tools_of(values: dict[str, Any], padded: bool) -> Tools:
    """The row's `tools` (or the older `functions`) as OpenAI's list; JSON text and bare definitions are understood too."""
    there = [key for key in ("tools", "functions") if values.get(key) not in (None, "", [], {})]
    if not there:
        return ()
    if len(there) == 2:
        raise RowError('a row has "tools" and "functions"; keep "tools"')
    found = _parsed(values[there[0]], f'"{there[0]}"')
    if found is None or found == []:
        return ()
    if not isinstance(found, list):
        raise RowError(f'"{there[0]}" should be a list of definitions, it is {type_name(found)}')
    return tuple(_tool(tool, number, there[0], padded) for number, tool in enumerate(found, 1))


def _tool(tool: Any, number: int, key: str, padded: bool) -> dict[str, Any]:
    tool = _parsed(tool, f'entry {number} of "{key}"')
    bare = isinstance(tool, dict) and "function" not in tool
    inner = (
        {name: value for name, value in tool.items() if name != "type"}
        if bare
        else tool.get("function")
        if isinstance(tool, dict)
        else None
    )
    if not isinstance(tool, dict) or not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise RowError(f'entry {number} of "{key}" has no name; it should be {{"type": "function", "function": {{"name": …}}}}')
    whole = {"type": "function", "function": inner} if bare else tool
    return without_nulls(whole) if padded else whole


def _parsed(value: Any, what: str) -> Any:
    """JSON text as what it says; anything else as it is."""
    if not isinstance(value, str):
        return value
    parsed, problem = strict_json(value)
    if problem:
        raise RowError(f"{what} is not JSON: {problem}")
    return parsed


def without_nulls(value: Any) -> Any:
    """Less every key whose value is null, at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value
