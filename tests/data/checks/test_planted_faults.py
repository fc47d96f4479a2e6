"""Files full of faults that this test plants itself: every line is found, under its own name, and no other line is.

Each file is made of clean rows with faults between them; what a report should say is then known to the line.
"""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import byte_level_tokenizer

from tunesmith.config import DataConfig
from tunesmith.data.checks.check import Report, check, open_files
from tunesmith.data.checks.duplicates import where_they_differ
from tunesmith.data.checks.json_answers import load_schema
from tunesmith.data.template import Renderer

WORDS = (
    "apple river stone window garden winter paper silver market engine bottle castle doctor father guitar hammer island jacket kitchen ladder "
    "mirror needle orange pencil quarry rocket saddle tunnel umbrella valley wagon yellow zebra anchor basket candle desert eagle forest glacier "
    "harbour insect jungle kettle lantern meadow napkin orchard pillow quilt ribbon shovel temple uncle velvet whistle yarn acorn bridge"
).split()


def sentence(number: int, n_words: int, end: str) -> str:
    """A line of words that no other number gives; few small words, so that no language can be told."""
    return " ".join(random.Random(f"{number} {n_words}").choices(WORDS, k=n_words)).capitalize() + end


def clean_pair(number: int) -> tuple[str, str]:
    return sentence(number, 12, "?"), sentence(number + 100_000, 14, ".")


def messages(prompt: str, answer: str, system: str | None = "Answer briefly.") -> dict[str, Any]:
    head = [{"role": "system", "content": system}] if system is not None else []
    return {"messages": [*head, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


class Planted:
    """Lines of a file, and the faults of each by the name under which they should be found."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.faults: defaultdict[str, set[int]] = defaultdict(set)

    def row(self, row: Any, *faults: str) -> None:
        self.lines.append(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False))
        for fault in faults:
            self.faults[fault].add(len(self.lines))

    def write(self, path: Path) -> Path:
        path.write_text("\n".join(self.lines) + "\n", encoding="utf-8", newline="")
        return path


def lines_of(report: Report, but: Sequence[str] = ()) -> dict[str, set[int]]:
    return {f.check: {int(source.rpartition(":")[2]) for source in f.sources} for f in report.findings if f.check not in but}


def check_file(path: Path, renderer: Renderer | None = None, max_length: int = 512, **settings: Any) -> Report:
    config = DataConfig(train=str(path), **settings)
    return check(open_files(config), config, renderer=renderer, max_length=max_length)


# --- conversations ----------------------------------------------------------------------------------------------------------

REFUSED_ROWS: dict[str, list[Any]] = {
    "not-json-row": ['{"messages": [{"role": "user"', '{"messages": NaN}'],
    "repeated-key-row": ['{"messages": [], "messages": []}'],
    "unusable-character": [r'{"messages": [{"role": "user", "content": "a\ud83d"}]}', r'{"messages": [{"role": "user", "content": "a\u0000b"}]}'],
    "empty-answer": [messages("Is this empty?", ""), messages("And this one?", " \n\t ")],
    "empty-prompt": [messages("  ", "An answer to nothing.")],
    "roles-out-of-order": [
        {"messages": [{"role": "assistant", "content": "I begin."}, {"role": "user", "content": "no"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]},
        {"messages": [{"role": "user", "content": "and then?"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "late"}, {"role": "assistant", "content": "c"}]},
    ],
    "unknown-role": [{"messages": [{"role": "human", "content": "a"}, {"role": "assistant", "content": "b"}]}],
    "nothing-trained": [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}],
    "bad-weight": [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 3}]}],
    "mixed-formats": [{"prompt": "another format", "completion": "in this row"}],
    "bad-message": [{"messages": [{"role": "user", "content": 7}, {"role": "assistant", "content": "b"}]}, {"messages": ["hello"]}, {"messages": []}],
    "bad-tool-call": [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [{"id": 3}]}]}],
    "not-an-object": ["[1, 2]", '"text"'],
}  # fmt: skip

KEY = "sk-" + "proj-Ab3dE5gH1jK2mN4pQ6rS8tU0"  # in two parts, for no scanner should find keys in this file
IN_PROMPT: dict[str, list[str]] = {
    "mojibake": ["Where is the CafÃ© at the corner?", "He said â€˜noâ€™ to it."],
    "replacement-character": ["A word is lo\ufffdst in here."],
    "control-character": ["A bell \x07 rings here.", "Don\u0092t read Latin-1 so."],
    "private-use": ["An icon \ue0a0 of a font."],
    "byte-order-mark": ["Joined \ufefffiles carry this mark."],
    "invisible-character": ["A zero\u200bwidth space hides here.", "A soft\u00adhyphen hides here."],
    "direction-mark": ["Turned \u202eround\u202c in here."],
    "html-entity": ["Fish &amp; chips for two.", "It&#39;s from a page."],
    "html-tag": ["A <b>bold</b> word.", "A line<br/>break."],
    "escaped-text": [r"Two lines\nin one \u00e9 text."],
    "api-key": [f"Use the key {KEY} for it.", "Ours is AKIA" + "IOSFODNN7EXAMPLE today.", "Try ghp_" + "0123456789abcdefghijABCDEFGHIJ012345 there."],
    "private-key": ["-----BEGIN RSA " + "PRIVATE KEY-----"],
    "password": ["It is at postgres://admin:hunter" + "2secret@db.internal now.", "The password: Tr0ub4dor" + "andmore works."],
    "iban": ["Pay to DE89 3704 0044 0532 0130 00 by Friday.", "Pay to GB82WEST12345698765432 soon."],
    "credit-card": ["Charge 4111 1111 1111 1111 for it.", "Charge 378282246310005 for it."],
    "email-address": ["Write to jane.doe@gmail.com about it."],
    "phone-number": ["Call +44 20 7946 0958 tonight.", "Call (212) 555-0143 tonight."],
    "ip-address": ["The server is at 8.8.8.8 today."],
    "foreign-marker": ["Tell me more.<|im_end|>", "[INST] Tell me more. [/INST]", "### Instruction:\nTell me a story"],
    "unfilled-placeholder": ["Dear {{name}}, the order left.", "Dear {customer}, hello {name}.", "Greetings from [INSERT COMPANY] to all."],
    "filler-text": ["Lorem ipsum dolor sit amet."],
    "mixed-line-ends": ["First line\r\nsecond line?"],
    "mixed-normal-forms": ["The cafe\u0301 and the the\u0301a\u0302tre"],
    "prompt-language": ["Der Hund und die Katze sind nicht mehr da, weil wir sie auf dem Markt mit einer Frau gesehen haben.",
                        "Когда мы пришли домой, собака спала на диване."],
}  # fmt: skip
IN_ANSWER: dict[str, list[str]] = {
    "refusal": ["As an AI language model, I have no opinion.", "I'm sorry, but I can't help with it."],
    "open-code-fence": ["Here it is:\n```python\nprint(1)"],
    "forged-turn": ["It is so.\nHuman: and then?\nAssistant: no."],
    "thinking-marks": ["It rained. </think> So it is wet."],
    "blank-answer": ["N/A", "null"],
    "answer-begins-with-space": [" It begins with white space, which is odd."],
    "answer-ends-with-space": ["It ends with white space, which is odd. \n"],
    "cut-short": ["The long answer goes on about windows and gardens until it breaks off in the mid"],
    "answer-language": ["Le chat est dans le jardin et il ne veut pas rentrer avec nous pour manger, mais elle est sous la table."],
}
OWN_LENGTH = {"blank-answer": "answer-length"}  # and these answers are also short enough to stand out


def planted_conversations() -> Planted:
    planted = Planted()
    clean = iter(range(10_000))

    def some_clean(n: int) -> None:
        for _ in range(n):
            planted.row(messages(*clean_pair(next(clean))))

    some_clean(20)
    for number in range(20):  # in which a language can be told
        prompt, answer = clean_pair(20_000 + number)
        planted.row(
            messages(
                f"Where is the {prompt[:-1].lower()} that they had with them?",
                f"It was the {answer[:-1].lower()} which they have had for you.",
            )
        )
    planted.row(messages("A line\nand another one, with Unix ends: one naïve résumé", sentence(7, 14, ".")))
    for kind, rows in REFUSED_ROWS.items():
        for row in rows:
            planted.row(row, kind)
            some_clean(4)
    for kind, prompts in IN_PROMPT.items():
        for prompt in prompts:
            planted.row(messages(prompt, sentence(len(planted.lines), 14, ".")), kind)
            some_clean(4)
    for kind, answers in IN_ANSWER.items():
        for answer in answers:
            planted.row(
                messages(sentence(len(planted.lines) + 5_000, 12, "?"), answer), kind, *([OWN_LENGTH[kind]] if kind in OWN_LENGTH else [])
            )
            some_clean(4)
    some_clean(20)
    prompt, answer = clean_pair(3)
    planted.row(messages(prompt, answer), "exact-duplicates")
    some_clean(1)
    prompt = sentence(77_777, 40, "?")
    planted.row(messages(prompt, sentence(1, 14, "!")))
    planted.row(messages(prompt.replace(prompt.split()[20], "different", 1), sentence(2, 14, "!")), "near-duplicates")
    prompt, answer = clean_pair(5)
    planted.faults["several-answers"].add(6)
    planted.row(messages(prompt, sentence(3, 14, "!")), "several-answers")
    prompt, _ = clean_pair(60_000)
    planted.row(messages(prompt, prompt), "echo")
    planted.row(messages(sentence(60_001, 12, "?"), sentence(4, 14, "."), system="Answer in verse."), "odd-system-message")
    planted.row(messages(sentence(60_002, 12, "?"), sentence(5, 14, "."), system=None), "odd-system-message")
    planted.row(messages(sentence(60_003, 900, "?"), sentence(6, 14, ".")), "prompt-length", "prompt-too-long")
    planted.row(messages(sentence(60_004, 12, "?"), sentence(60_005, 900, ".")), "answer-length", "answer-cut")
    planted.row(messages("What does <|endoftext|> mean to you?", sentence(8, 14, ".")), "foreign-marker", "control-token-text")
    some_clean(10)
    return planted


def test_forty_kinds_of_faults_in_conversations_are_found_each_with_its_lines_and_nothing_else(tmp_path: Path):
    planted = planted_conversations()
    renderer = Renderer(byte_level_tokenizer())
    # the other marks of this tokenizer's template are control tokens of its own as well
    planted.faults["control-token-text"] |= {n for n, line in enumerate(planted.lines, 1) if "<|im_end|>" in line}
    report = check_file(planted.write(tmp_path / "chat.jsonl"), renderer, max_length=2_000)
    assert lines_of(report, but=["few-rows"]) == dict(planted.faults)
    assert len(planted.faults) >= 40
    errors = {f.check for f in report.of("error")}
    assert errors == {*REFUSED_ROWS, "answer-cut", "prompt-too-long"}


def test_no_secret_is_printed_whole(tmp_path: Path):
    report = check_file(planted_conversations().write(tmp_path / "chat.jsonl"))
    printed = json.dumps(report.as_json(), ensure_ascii=False)
    assert KEY[:4] in printed
    for secret in (
        KEY,
        "IOSFODNN7EXAMPLE",
        "0123456789abcdefghij",
        "hunter2",
        "andmore",
        "0532 0130",
        "WEST1234",
        "1111 1111",
        "246310005",
        "jane.doe",
        "7946 0958",
        "8.8.8.8",
    ):
        assert secret not in printed, secret


def test_rows_that_are_left_out_on_purpose_are_warnings(tmp_path: Path):
    path = planted_conversations().write(tmp_path / "chat.jsonl")
    report = check_file(path, on_bad_row="skip")
    assert report.of("error") == []
    assert set(REFUSED_ROWS) <= {f.check for f in report.of("warning")}


# --- labels -------------------------------------------------------------------------------------------------------------------


def labelled(number: int, label: str) -> dict[str, str]:
    return {"prompt": sentence(number, 10, "."), "completion": label}


def test_faults_of_labels_are_found_each_with_its_lines_and_nothing_else(tmp_path: Path):
    train, test = Planted(), Planted()
    for number in range(260):
        train.row(labelled(number, "complaint" if number % 13 else "praise"), *(["label-imbalance"] if number % 13 == 0 else []))
    for spelling in ("Complaint", "COMPLAINT", "complaint.", "complaint "):
        train.row(labelled(1_000 + len(train.lines), spelling), "label-variant")
    train.faults["answer-ends-with-space"].add(len(train.lines))
    train.row(labelled(2_000, "complaimt"), "label-typo")
    train.row(labelled(2_001, "complain"), "label-typo")
    for number in range(3):
        train.row(labelled(3_000 + number, "question"), "few-rows-per-label", "label-imbalance")
    train.faults["label-imbalance"] = set(train.faults["few-rows-per-label"])  # the rarest label is the one that is named
    train.row({"prompt": f"{sentence(4_000, 9, '.')} Label: complaint", "completion": "complaint"}, "label-in-prompt")
    train.row(labelled(21, "praise"), "contradiction")
    train.faults["contradiction"].add(22)
    for number in range(120):
        test.row(labelled(9_000 + number, "praise" if number % 2 else "complaint"))
    test.row({**labelled(30, "complaint"), "prompt": sentence(30, 10, ".").upper()}, "test-in-train")
    test.row(labelled(9_500, "refund"), "unseen-label")
    paths = train.write(tmp_path / "train.jsonl"), test.write(tmp_path / "test.jsonl")
    report = check_file(paths[0], test=str(paths[1]))
    assert lines_of(report, but=["few-test-rows"]) == {**train.faults, **test.faults}
    assert "± 7 points" in next(f.reason for f in report.findings if f.check == "few-test-rows")


def test_a_label_in_every_prompt_is_a_leak_of_every_row(tmp_path: Path):
    rows = [
        {"prompt": f"{sentence(n, 10, '.')} id-{n}-{label}", "completion": label}
        for n in range(40)
        for label in ["red" if n % 2 else "blue"]
    ]
    path = tmp_path / "leak.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert lines_of(check_file(path))["label-in-prompt"] == set(range(1, 41))


def test_one_answer_for_all_is_nothing_to_learn(tmp_path: Path):
    path = tmp_path / "one.jsonl"
    path.write_text("\n".join(json.dumps(labelled(n, "yes")) for n in range(60)))
    found = lines_of(check_file(path))
    assert found["one-label"] == found["same-answer"] == set(range(1, 61))


# --- JSON -----------------------------------------------------------------------------------------------------------------------

SCHEMA = {
    "oneOf": [
        {
            "properties": {"intent": {"const": "play"}, "song": {"type": "string"}},
            "required": ["intent", "song"],
            "additionalProperties": False,
        },
        {"properties": {"intent": {"const": "stop"}}, "required": ["intent"], "additionalProperties": False},
    ]
}


def test_faults_of_json_answers_are_found_each_with_its_lines_and_nothing_else(tmp_path: Path):
    planted = Planted()

    def row(answer: str, *faults: str) -> None:
        planted.row({"prompt": sentence(len(planted.lines), 12, "?"), "completion": answer}, *faults)

    for number in range(60):
        row(json.dumps({"intent": "play", "song": sentence(number, 3, "")}))
    row('{"intent": "stop"')
    planted.faults["open-bracket"].add(61)
    planted.faults["not-json"].add(61)
    row('{"intent": "stop"}; and so on', "not-json")
    row('{"intent": "play", "song": NaN}', "not-json")
    row('{"intent": "stop", "intent": "stop"}', "repeated-key")
    row('["play", "stop"]', "other-json-type")
    row('{"intent": "play", "song": 7}')
    row('{"intent": "stop", "song": "Yesterday"}')
    planted.faults["breaks-schema"] = set(range(61, 68))
    for number in range(200, 350):
        row(json.dumps({"intent": "play", "song": sentence(number, 3, "")}))
    path, schema = planted.write(tmp_path / "slots.jsonl"), tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    config = DataConfig(train=str(path))
    report = check(open_files(config), config, schema=load_schema(schema))
    assert lines_of(report) == dict(planted.faults)
    [broken] = report.of("error")
    assert broken.seen[5] == "song: 7 is not of type 'string'", "the complaint of the branch that was meant"


# --- tables ---------------------------------------------------------------------------------------------------------------------


def test_faults_of_a_table_are_found_each_with_its_lines(tmp_path: Path):
    lines = ["prompt,completion", *(f"{sentence(n, 8, '')},{sentence(n + 500, 9, '')}" for n in range(60))]
    lines[10] = "one cell only"
    lines[20] = '"a quote" goes on,answer'
    lines[30] = ",an answer to an empty cell"
    path = tmp_path / "table.csv"
    path.write_text("\n".join(lines))
    assert lines_of(check_file(path), but=["few-rows"]) == {"wrong-cell-count": {11}, "stray-quote": {21}, "empty-prompt": {31}}


def test_a_quote_that_swallows_lines_is_told_with_the_rows_that_other_readers_lose(tmp_path: Path):
    lines = [f"{'ham' if n % 3 else 'spam'}\t{sentence(n, 8, '')}" for n in range(60)]
    lines[20] = 'ham\t"never closed here'
    lines[23] = 'ham\tand closed" here'
    path = tmp_path / "sms.tsv"
    path.write_text("\n".join(lines) + "\n")
    settings = {"columns": ["label", "text"], "header": False, "quoting": False, "prompt": "{text}", "completion": "{label}"}
    [trap] = [f for f in check_file(path, **settings).findings if f.check == "quoting-trap"]
    assert trap.sources == ("sms.tsv:21",) and "57 rows instead of 60" in trap.reason


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_file_that_cannot_be_read_is_one_error_and_the_others_are_still_looked_at(tmp_path: Path, name: str):
    train = tmp_path / "train.jsonl"
    train.write_text("\n".join(json.dumps(labelled(n, "yes")) for n in range(60)))
    report = check_file(train, **{name: str(tmp_path / "absent.jsonl")})
    [error] = report.of("error")
    assert error.check == "unreadable-file" and "no such file" in error.reason
    assert "one-label" in lines_of(report, but=["unreadable-file"])


# --- templates ------------------------------------------------------------------------------------------------------------------


def renderer_with(template: str, bos: bool = False) -> Renderer:
    return Renderer(byte_level_tokenizer(template, bos=bos))


TWICE = "<s>{% for m in messages %}<s>{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
DROPS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'].split('SECRET')[0] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REFUSES = (
    "{% for m in messages %}{% if 'forbidden' in m['content'] %}{{ raise_exception('not this word') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "bos", "bad", "kind"),
    [
        (TWICE, True, ("any prompt", "any answer"), "double-bos"),
        (DROPS, False, ("a prompt", "an answer that SECRET ends early"), "mask-disagrees"),
        (REFUSES, False, ("a forbidden prompt", "an answer"), "template-refuses"),
    ],
)
def test_what_a_template_does_to_a_row_is_an_error_of_that_row(tmp_path: Path, template: str, bos: bool, bad: tuple[str, str], kind: str):
    rows = [messages(*clean_pair(n), system=None) for n in range(20)]
    rows[12] = messages(*bad, system=None)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    report = check_file(path, renderer_with(template, bos))
    found = {f.check: f.sources for f in report.of("error")}
    assert set(found) == {kind} and "rows.jsonl:13" in found[kind]
    if kind != "double-bos":  # which every row has
        assert found[kind] == ("rows.jsonl:13",)


@pytest.mark.parametrize("policy", ["error", "drop", "truncate"])
def test_rows_that_are_too_long_are_as_bad_as_the_policy_makes_them(tmp_path: Path, policy: str):
    rows = [messages(*clean_pair(n), system=None) for n in range(30)]
    rows[4] = messages("A short question?", sentence(1, 400, "."), system=None)
    rows[9] = messages(sentence(2, 400, "?"), "A short answer.", system=None)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    report = check_file(path, Renderer(byte_level_tokenizer()), max_length=500, on_too_long=policy)
    severities = {f.check: (f.severity, f.sources) for f in report.findings if f.check in ("answer-cut", "prompt-too-long")}
    assert severities == {
        "answer-cut": ("error" if policy == "error" else "warning", ("rows.jsonl:5",)),
        "prompt-too-long": ("warning" if policy == "drop" else "error", ("rows.jsonl:10",)),
    }


def test_a_second_process_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from tunesmith.data.checks import check as module

    path = planted_conversations().write(tmp_path / "chat.jsonl")
    renderer: Callable[[], Renderer] = lambda: Renderer(byte_level_tokenizer())  # noqa: E731
    alone = check_file(path, renderer(), max_length=2_000)
    monkeypatch.setattr(module, "ROWS_FOR_TWO", 1)
    together = check_file(path, renderer(), max_length=2_000)
    assert together.findings == alone.findings and together.lengths == alone.lengths


def test_tasks_of_a_mixture_are_looked_at_each_for_itself(tmp_path: Path):
    tasks = {"mood": "glad", "colour": "red", "size": "large"}
    for task, label in tasks.items():
        rows = [labelled(1_000 * len(task) + n, label if n % 2 else f"not {label}") for n in range(40)]
        rows[7] = {**rows[7], "completion": rows[7]["completion"].upper()}
        (tmp_path / f"{task}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = DataConfig(train=[str(tmp_path / f"{task}.jsonl") for task in tasks], held_out=["colour"])
    report = check(open_files(config), config, renderer=Renderer(byte_level_tokenizer()))
    assert report.rows == {"train": 80, "test": 40} and len(report.lengths["example"]) == 80
    variants = [f.sources for f in report.findings if f.check == "label-variant"]
    assert variants == [("mood.jsonl:8",), ("colour.jsonl:8",), ("size.jsonl:8",)]


def test_many_tasks_with_one_fault_are_told_once(tmp_path: Path):
    for task in range(6):
        rows = [{"prompt": sentence(100 * task + n, 12, "?"), "completion": sentence(9_000 + 100 * task + n, 14, ".")} for n in range(30)]
        rows[7]["completion"] = "Write to jane.doe@gmail.com about it."
        (tmp_path / f"t{task}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = DataConfig(train=str(tmp_path))
    report = check(open_files(config), config)
    assert [line for line in report.said if "30 rows" in line] == [next(line for line in report.said if line.startswith("t0.jsonl"))]
    assert "(5 files like it)" in report.said[0]
    [email] = [f for f in report.findings if f.check == "email-address"]
    assert email.count == 6 and email.sources == tuple(f"t{task}.jsonl:8" for task in range(6)) and len(email.seen) == 6
    assert email.reason.endswith("(in 6 tasks)")


def test_bytes_that_are_no_text_are_an_error_and_the_other_rows_are_looked_at(tmp_path: Path):
    lines = [json.dumps(labelled(n, "yes" if n % 2 else "no")).encode() for n in range(40)]
    lines[20] = lines[20].replace(b"yes", b"\xe9").replace(b"no", b"\xe9")
    lines[30] = b'{"prompt"'
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    report = check_file(path, on_bad_row="skip")
    found = lines_of(report, but=["few-rows"])
    assert found["not-utf-8"] == {21} and found["not-json-row"] == {31}
    assert [f.check for f in report.of("error")] == ["not-utf-8"] and report.rows == {"train": 40}


def test_thinking_is_said_with_what_becomes_of_it(tmp_path: Path):
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"<think>hm {n}</think>So it is."}]}
        for n in range(9)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert any("9 training rows with thinking: left out" in line for line in check_file(path, thinking="strip").said)


def test_answers_that_break_off_or_go_round_in_a_loop_are_found_among_short_ones(tmp_path: Path):
    planted = Planted()
    for n in range(60):
        planted.row({"prompt": sentence(n, 12, "?"), "completion": sentence(n + 5_000, 2 + n % 2, ".")})
    planted.row({"prompt": sentence(70, 12, "?"), "completion": "The river was cold because the"}, "cut-short")
    planted.row({"prompt": sentence(71, 12, "?"), "completion": "again " * 24 + "."}, "repetition")
    planted.row({"prompt": sentence(72, 12, "?"), "completion": "sea and more water " * 800 + "."}, "repetition")
    found = lines_of(check_file(planted.write(tmp_path / "rows.jsonl")))
    assert {name: found.get(name) for name in ("cut-short", "repetition")} == {"cut-short": {61}, "repetition": {62, 63}}


def test_the_rows_of_a_rare_label_are_shown_with_what_they_ask(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    rows = [labelled(n, "yes" if n % 2 else "no") for n in range(40)]
    rows[11] = {"prompt": "An odd one", "completion": "perhaps"}
    path.write_text("\n".join(map(json.dumps, rows)))
    [rare] = [f for f in check_file(path).findings if f.check == "few-rows-per-label"]
    assert rare.sources == ("rows.jsonl:12",) and rare.seen == ("'perhaps' to: An odd one",)


def test_contradictions_are_shown_from_where_they_differ():
    same = "The answer to this long question is in the end "
    assert where_they_differ(same + "yes", same + "no") == ("…the end yes", "…the end no")
    assert where_they_differ("yes", "no") == ("yes", "no")
