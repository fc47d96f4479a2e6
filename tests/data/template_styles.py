"""Chat templates in the style of the public model families, and the three kinds of tokenizers they are used with.

    tokenizer = build("byte-level BPE", STYLES["qwen3"])

Each template was written for these tests after the format that the family documents: its control tokens, its order, its quirks
(Phi-3 swallows the white space after a control token, Gemma has no system turn, DeepSeek-R1 drops thinking, Mistral puts the tools
before the last question and forgets the system message once that is answered). The tokenizers are trained on a few sentences, so that
they have real merges and real pieces.
"""

import json
from dataclasses import dataclass
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Style:
    """special: control tokens, `bos` and `eos` among them; structure: added tokens that are not special, as Qwen's <tool_call>."""

    template: str
    special: tuple[str, ...]
    eos: str
    bos: str | None = None
    structure: tuple[str, ...] = ()
    system: bool = True
    tools: bool = False
    thinking: str = "as text"  # "apart": from reasoning_content; "dropped"
    rstrip: bool = False

    @property
    def control(self) -> tuple[str, ...]:
        return (*self.special, *self.structure)


CHATML = """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

LLAMA_3 = """{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""

LLAMA_31 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = '' %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}
{%- if tools %}{{- 'Environment: ipython\n' }}{%- endif %}
{{- 'Cutting Knowledge Date: December 2023\n\n' + system + '<|eot_id|>' }}
{%- if tools %}
{%- set first = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{{- '<|start_header_id|>user<|end_header_id|>\n\nGiven the following functions, answer with a JSON for a function call.\n\n' }}
{%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\n\n' }}{%- endfor %}
{{- first + '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role not in ['tool', 'ipython'] and not message.tool_calls %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- elif message.tool_calls %}
{%- if message.tool_calls | length != 1 %}{{- raise_exception('This model only supports single tool-calls at once!') }}{%- endif %}
{%- set call = message.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{{- '{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson }}{{- '}<|eot_id|>' }}
{%- else %}
{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' }}
{%- if message.content is mapping or message.content is iterable and message.content is not string %}{{- message.content | tojson }}
{%- else %}{{- message.content }}{%- endif %}
{{- '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""

MISTRAL_1 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] + '\n\n' %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = '' %}{%- endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles must alternate user/assistant') }}{%- endif %}
{%- if message['role'] == 'user' %}{{- ' [INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}
{%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}
{%- endfor %}"""

MISTRAL_3 = """{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set turns = messages[1:] %}
{%- else %}{%- set turns = messages %}{%- endif %}
{%- set users = turns | selectattr('role', 'equalto', 'user') | list %}
{{- bos_token }}
{%- for message in turns %}
{%- if message['role'] == 'user' %}
{%- if tools and message == users[-1] %}
{{- '[AVAILABLE_TOOLS] [' }}
{%- for tool in tools %}{{- tool | tojson }}{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}
{{- '][/AVAILABLE_TOOLS]' }}
{%- endif %}
{%- if loop.last and system is defined %}{{- '[INST] ' + system + '\n\n' + message['content'] + '[/INST]' }}
{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}
{%- elif message.tool_calls is defined and message.tool_calls is not none %}
{{- '[TOOL_CALLS] [' }}
{%- for call in message.tool_calls %}
{%- if call.id is not defined or call.id | length != 9 %}{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{%- endif %}
{{- '{"name": "' + call.function.name + '", "arguments": ' }}{{- call.function.arguments | tojson }}{{- ', "id": "' + call.id + '"}' }}
{%- if not loop.last %}{{- ', ' }}{%- endif %}
{%- endfor %}
{{- ']' + eos_token }}
{%- elif message['role'] == 'assistant' %}{{- ' ' + message['content'] | trim + eos_token }}
{%- elif message['role'] == 'tool' %}
{{- '[TOOL_RESULTS] {"content": ' + message.content | string + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- endif %}
{%- endfor %}"""

GEMMA_2 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}
{%- for message in messages %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}"""

GEMMA_3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{%- set first = messages[0]['content'] + '\n\n' %}{%- set turns = messages[1:] %}
{%- else %}{%- set first = '' %}{%- set turns = messages %}{%- endif %}
{%- for message in turns %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}
{%- if message['content'] is string %}{{- message['content'] | trim }}
{%- else %}{%- for item in message['content'] %}{{- item['text'] | trim }}{%- endfor %}{%- endif %}
{{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}"""

PHI_3 = """{%- for message in messages %}
{{- '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}"""

PHI_4 = """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant<|im_sep|>' }}{%- endif %}"""

ZEPHYR = """{%- for message in messages %}
{{- '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}
{%- if loop.last and add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}
{%- endfor %}"""

DEEPSEEK_2 = """{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{{- 'User: ' + message['content'] + '\n\n' }}
{%- elif message['role'] == 'assistant' %}{{- 'Assistant: ' + message['content'] + eos_token }}
{%- else %}{{- message['content'] + '\n\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'Assistant:' }}{%- endif %}"""

DEEPSEEK_3 = """{%- set ns = namespace(system='', results=false) %}
{%- for message in messages %}{%- if message['role'] == 'system' %}{%- set ns.system = message['content'] %}{%- endif %}{%- endfor %}
{{- bos_token + ns.system }}
{%- if tools %}{{- '\n## Tools\n' }}{%- for tool in tools %}{{- tool.function | tojson }}{{- '\n' }}{%- endfor %}{%- endif %}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{{- '<｜User｜>' + message['content'] }}
{%- elif message['role'] == 'assistant' and message['content'] is not defined %}
{{- '<｜Assistant｜><｜tool▁calls▁begin｜>' if not ns.results else '<｜tool▁calls▁begin｜>' }}
{%- for call in message['tool_calls'] %}
{{- '<｜tool▁call▁begin｜>' + call['type'] + '<｜tool▁sep｜>' + call['function']['name'] + '\n```json\n' }}
{{- call['function']['arguments'] + '\n```<｜tool▁call▁end｜>' }}
{%- endfor %}
{{- '<｜tool▁calls▁end｜>' + eos_token }}{%- set ns.results = false %}
{%- elif message['role'] == 'assistant' %}
{{- ('' if ns.results else '<｜Assistant｜>') + message['content'] + eos_token }}{%- set ns.results = false %}
{%- elif message['role'] == 'tool' %}
{{- '<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜><｜tool▁outputs▁end｜>' }}
{%- set ns.results = true %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt and not ns.results %}{{- '<｜Assistant｜>' }}{%- endif %}"""

DEEPSEEK_R1 = """{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'system' %}{{- message['content'] }}
{%- elif message['role'] == 'user' %}{{- '<｜User｜>' + message['content'] }}
{%- else %}
{%- set content = message['content'] %}
{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}
{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<｜Assistant｜>' }}{%- endif %}"""

QWEN_TOOLS = """{%- if tools %}
{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
{{- '# Tools\n\nYou may call one or more functions.\n\nTheir signatures are within <tools></tools>:\n<tools>' }}
{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\n</tools>\n\nReturn each call as JSON:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}"""
QWEN_CALLS = """{%- for call in message.tool_calls %}
{%- if (loop.first and content) or not loop.first %}{{- '\n' }}{%- endif %}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}{{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}
{%- endfor %}"""
QWEN_RESULT = """{%- elif message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

QWEN_25 = (
    QWEN_TOOLS
    + """
{%- for message in messages %}
{%- set content = message.content %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) or (message.role == 'assistant' and not message.tool_calls) %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\n' }}{%- if content %}{{- content }}{%- endif %}
"""
    + QWEN_CALLS
    + "{{- '<|im_end|>\n' }}\n"
    + QWEN_RESULT
)

QWEN_3 = (
    QWEN_TOOLS
    + """
{%- set ns = namespace(seeking=true, last_question=messages | length - 1) %}
{%- for message in messages[::-1] %}
{%- if ns.seeking and message.role == 'user' %}{%- set ns.seeking = false %}{%- set ns.last_question = messages | length - 1 - loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
{%- set content = message.content if message.content is string else '' %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
{%- elif message.role == 'assistant' %}
{%- set thinking = '' %}
{%- if message.reasoning_content is string %}{%- set thinking = message.reasoning_content %}
{%- elif '</think>' in content %}
{%- set thinking = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{%- if loop.index0 > ns.last_question and (loop.last or thinking) %}
{{- '<|im_start|>assistant\n<think>\n' + thinking.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
{%- else %}{{- '<|im_start|>assistant\n' + content }}{%- endif %}
"""
    + QWEN_CALLS
    + "{{- '<|im_end|>\n' }}\n"
    + QWEN_RESULT
)

VICUNA = """{%- for message in messages %}
{%- if message['role'] == 'system' %}{{- message['content'] + ' ' }}
{%- elif message['role'] == 'user' %}{{- 'USER: ' + message['content'] + ' ' }}
{%- else %}{{- 'ASSISTANT: ' + message['content'] + eos_token }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}"""

ALPACA = """{%- for message in messages %}
{%- if message['role'] == 'system' %}{{- message['content'] + '\n\n' }}
{%- elif message['role'] == 'user' %}{{- '### Instruction:\n' + message['content'] + '\n\n' }}
{%- else %}{{- '### Response:\n' + message['content'] + eos_token + '\n\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '### Response:\n' }}{%- endif %}"""

COMMAND_R = """{{- bos_token }}
{%- for message in messages %}
{%- set speaker = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'}[message['role']] %}
{{- '<|START_OF_TURN_TOKEN|><|' + speaker + '_TOKEN|>' + message['content'].strip() + '<|END_OF_TURN_TOKEN|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{%- endif %}"""

OPENCHAT = """{{- bos_token }}
{%- for message in messages %}
{{- 'GPT4 Correct ' + message['role'].title() + ': ' + message['content'] + '<|end_of_turn|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'GPT4 Correct Assistant:' }}{%- endif %}"""

STARCHAT = """{%- for message in messages %}
{{- '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}"""

SMOLLM_3 = """{{- '<|im_start|>system\n## Metadata\n\nReasoning Mode: /think\n\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- endif %}
{%- if tools %}
{{- '\n### Tools\n<tools>\n' }}{%- for tool in tools %}{{- tool | string + '\n' }}{%- endfor %}{{- '</tools>\n' }}
{%- endif %}
{{- '<|im_end|>\n' }}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\n' + (message.content if message.content is string else '').lstrip('\n') }}
{%- if message.tool_calls %}
{%- for call in message.tool_calls %}{{- '<tool_call>\n' }}{{- call.function | tojson }}{{- '\n</tool_call>' }}{%- endfor %}
{%- endif %}
{{- '<|im_end|>\n' }}
{%- elif message.role == 'tool' %}{{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

GRANITE = """{%- if tools %}
{{- '<|start_of_role|>tools<|end_of_role|>' }}{{- tools | tojson(indent=4) }}{{- '<|end_of_text|>\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|start_of_role|>' + ('tool_response' if message.role == 'tool' else message.role) + '<|end_of_role|>' }}
{%- if message.tool_calls %}{{- '<|tool_call|>' }}
{%- for call in message.tool_calls %}{{- {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}{%- endfor %}
{%- endif %}
{{- message.content + '<|end_of_text|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"""

TULU = """{%- for message in messages %}
{%- if message['role'] == 'assistant' %}
{{- '<|assistant|>\n' + message['content'] + eos_token + ('' if loop.last else '\n') }}
{%- else %}{{- '<|' + message['role'] + '|>\n' + message['content'] + '\n' }}{%- endif %}
{%- if loop.last and add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}
{%- endfor %}"""

IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HEADERS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>")
TURNS = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
ROLES = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
BARS = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
SENTENCE = "<｜end▁of▁sentence｜>"
CALLS = tuple(f"<｜tool▁{name}｜>" for name in (
    "calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep", "outputs▁begin", "outputs▁end", "output▁begin", "output▁end"
))  # fmt: skip
S = ("<unk>", "<s>", "</s>")
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
INST = ("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
COHERE = ("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")

STYLES = {
    "chatml": Style(CHATML, IM, "<|im_end|>"),
    "llama-3": Style(LLAMA_3, HEADERS, "<|eot_id|>", "<|begin_of_text|>"),
    "llama-3.1": Style(LLAMA_31, HEADERS, "<|eot_id|>", "<|begin_of_text|>", tools=True),
    "mistral-1": Style(MISTRAL_1, S, "</s>", "<s>"),
    "mistral-3": Style(MISTRAL_3, (*S, *INST), "</s>", "<s>", system=False, tools=True),
    "gemma-2": Style(GEMMA_2, TURNS, "<eos>", "<bos>", system=False),
    "gemma-3": Style(GEMMA_3, TURNS, "<eos>", "<bos>"),
    "phi-3": Style(PHI_3, ROLES, "<|endoftext|>", rstrip=True),
    "phi-4": Style(PHI_4, (*IM, "<|im_sep|>"), "<|im_end|>"),
    "zephyr": Style(ZEPHYR, S, "</s>", "<s>"),
    "deepseek-2": Style(DEEPSEEK_2, BARS, SENTENCE, "<｜begin▁of▁sentence｜>"),
    "deepseek-3": Style(DEEPSEEK_3, (*BARS, *CALLS), SENTENCE, "<｜begin▁of▁sentence｜>", tools=True),
    "deepseek-r1": Style(DEEPSEEK_R1, BARS, SENTENCE, "<｜begin▁of▁sentence｜>", structure=("<think>", "</think>"), thinking="dropped"),
    "qwen-2.5": Style(QWEN_25, IM, "<|im_end|>", structure=TAGS[:4], tools=True),
    "qwen-3": Style(QWEN_3, IM, "<|im_end|>", structure=TAGS, tools=True, thinking="apart"),
    "vicuna": Style(VICUNA, S, "</s>", "<s>"),
    "alpaca": Style(ALPACA, S, "</s>", "<s>"),
    "command-r": Style(COMMAND_R, COHERE, "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>"),
    "openchat": Style(OPENCHAT, (*S, "<|end_of_turn|>"), "<|end_of_turn|>", "<s>"),
    "starchat": Style(STARCHAT, ROLES, "<|end|>"),
    "smollm-3": Style(SMOLLM_3, IM, "<|im_end|>", structure=TAGS, tools=True),
    "granite": Style(GRANITE, ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>"), "<|end_of_text|>", tools=True),
    "tulu": Style(TULU, ("<|endoftext|>",), "<|endoftext|>"),
}

TEXT = """It was the best of times, it was the worst of times; a message is spam or it is not. Free entry in 2 a weekly
competition: text WIN to 80086 now! Are you coming to lunch later today? {"name": "find_warmth", "arguments": {"place": "Quito", "days": 3}}
The user asks and the assistant answers; the system says how. <b>bold</b> [links] | tables | and a # heading. Yes, no, perhaps.
def call(me): return "back" if 1 < 2 and 3 > 2 else None    # four spaces\tand a tab. Grüße aus Köln, déjà vu, naïve café. Ω ≈ 3,14.
"""


def byte_level() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False))
    return backend


def sentencepiece() -> Tokenizer:
    """SentencePiece's BPE with byte fallback as Llama 2 and Mistral have it: a leading space before the first word, bytes for the rest."""
    backend = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = TEXT.replace("<b>", "").split()  # merges within words, as SentencePiece learns them
    trainer = trainers.BpeTrainer(vocab_size=520, special_tokens=first, show_progress=False)
    backend.train_from_iterator(words, trainer)
    parts = backend.to_str()
    return Tokenizer.from_str(_without_added(parts, keep=("<unk>", "<s>", "</s>")))


def unigram() -> Tokenizer:
    """T5's and XLM-R's kind: no bytes, so characters may be unknown; it normalises, and "<s>" is a piece of its vocabulary."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False)
    backend.train_from_iterator([TEXT], trainer)
    return backend


def _without_added(parts: str, keep: tuple[str, ...]) -> str:
    read = json.loads(parts)
    read["added_tokens"] = [token for token in read["added_tokens"] if token["content"] in keep]
    return json.dumps(read)


KINDS = {"byte-level BPE": byte_level, "SentencePiece BPE": sentencepiece, "Unigram": unigram}


@cache
def _trained(kind: str) -> str:
    return KINDS[kind]().to_str()


@cache
def build(kind: str, name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a kind with the control tokens and the template of a style."""
    style = STYLES[name]
    special = [AddedToken(text, special=True, normalized=False, rstrip=style.rstrip) for text in style.special]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(kind)), bos_token=style.bos, eos_token=style.eos, additional_special_tokens=special,
        unk_token=None if kind == "byte-level BPE" else "<unk>",
    )  # fmt: skip
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in style.structure])
    tokenizer.chat_template = style.template
    return tokenizer
