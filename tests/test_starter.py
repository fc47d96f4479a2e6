import json
from pathlib import Path

import pytest
import yaml

from tunesmith.config import DataConfig, Run, known_keys, load_run
from tunesmith.data import readers
from tunesmith.data.formats import read_conversations
from tunesmith.errors import BadInput
from tunesmith.starter import PROMPTS_FOR_SHARES, _table_settings, commented, write_starter


@pytest.fixture
def start(tmp_path):
    """Write `content` as a file, make a starter config for it and read it back: (data section, sentences)."""

    def make(name, content, header=None, quoting=None, model="acorn"):
        path, output = tmp_path / name, tmp_path / "made/starter.yaml"
        path.write_text(content, encoding="utf-8")
        said = write_starter(str(path), output, model, header, quoting)
        run, converted = load_run(output)
        assert converted == [] and run.data.train == str(path)
        return run, said

    return make


def rows(n=40, **columns):
    return "".join(json.dumps({name: make(i) for name, make in columns.items()}) + "\n" for i in range(n))


def test_every_key_stands_in_the_file_once_with_its_reason():
    filled = {"model": "acorn", "output": "runs/x", "data": {"train": "x.jsonl"}}
    text = commented(filled)
    assert yaml.safe_load(text) == filled, "what is not given is a comment"
    uncommented = "\n".join(line.replace("# ", "", 1) if line.lstrip().startswith("# ") else line for line in text.splitlines())
    everything = yaml.safe_load(uncommented)
    dotted = {f"{k}.{i}" for k, v in everything.items() if isinstance(v, dict) for i in v} | {
        k for k, v in everything.items() if not isinstance(v, dict)
    }
    assert dotted == set(known_keys())
    assert all(field.description in text for field in known_keys().values() if field.description)
    assert Run.model_validate(everything) == Run.model_validate(filled), "the defaults that are shown are the defaults"


def test_a_template_with_line_breaks_and_quotes_survives():
    prompt = 'Spam: yes or no?\n\n"{text}" # really'
    text = commented({"model": "m", "output": "o", "data": {"train": "t", "prompt": prompt, "columns": ["a b", "c: d"]}})
    assert yaml.safe_load(text)["data"] == {"train": "t", "prompt": prompt, "columns": ["a b", "c: d"]}


def test_recognised_columns_need_no_templates(start):
    run, said = start("qa.jsonl", rows(question=lambda i: f"what is {i}?", answer=str))
    assert (run.data.prompt, run.data.completion, run.data.validation, run.data.test) == (None, None, 0.1, 0.2)
    assert not any("guessed" in line for line in said)


def test_a_file_without_a_header_gets_names_from_what_its_columns_hold(start):
    content = "".join(f'{"spam" if i % 5 == 0 else "ham"}\t"message" {i} with stray quotes\n' for i in range(40))
    run, said = start("sms.tsv", content)
    assert (run.data.columns, run.data.header, run.data.quoting) == (["label", "text"], False, False)
    assert (run.data.prompt, run.data.completion) == ("{text}", "{label}")
    assert any(line.startswith("guessed: text is the prompt and label the answer") for line in said)
    assert 'data.header: false, as "spam" of the first line is a value of its column further down too' in said
    assert "data.quoting: false, as line 1 has a stray quote" in said


@pytest.mark.parametrize(
    ("content", "header", "quoting"),
    [
        ("label,text\n" + 'spam,"free, now"\nham,hello\n' * 20, True, True),  # a comma in quotes: quotes are quotes
        ("label,text\n" + 'spam,"one\ntwo"\nham,hello\n' * 20, True, True),  # a line end in quotes
        ("label,text\n" + 'spam,"two"\nham,"hello\n' * 21, True, False),  # a quote of every other row stays open
        ('spam,5" screen\nham,"hello\n' * 20, False, False),
        ("7,five\n8,six\n", False, True),
        ("label\nspam\nham\nspam\n", True, True),
        ('"label","text"\n' + '"spam","one"\n"ham","two"\n' * 20 + '"ham","he said "no" to it"\n' + '"spam","two"\n' * 20, True, True),
    ],
)
def test_header_and_quoting_are_found_out_from_the_rows(tmp_path, content, header, quoting):
    path = tmp_path / "rows.csv"
    path.write_text(content)
    settings, reasons = _table_settings(readers.recognise(path, DataConfig(train=str(path))), None, None)
    assert (settings.get("header", True), settings.get("quoting", True)) == (header, quoting)
    assert set(reasons) == set(settings)


def test_what_the_user_says_of_the_table_is_not_judged_again(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('spam,5" screen\nham,"hello\n' * 20)
    assert _table_settings(readers.recognise(path, DataConfig(train=str(path))), True, True) == ({}, {})


def test_the_answer_is_json_of_all_columns_that_are_left_and_a_text_is_asked_before_a_structure(start):
    make = {
        "id": lambda i: i, "text": lambda i: f"play song {i}", "intent": lambda i: "PlayMusic", "slots": lambda i: {"song": f"the song {i}"},
    }  # fmt: skip
    run, said = start("snips.jsonl", rows(**make))
    assert (run.data.prompt, run.data.completion) == ("{text}", '{"intent": {intent:json}, "slots": {slots:json}}')
    assert any("the answer is JSON of intent, slots" in line for line in said) and "not used: id" in said
    answer = read_conversations(run.data).conversations[3].answer
    assert json.loads(answer) == {"intent": "PlayMusic", "slots": {"song": "the song 3"}}


def test_the_sms_spam_collection_needs_no_options(tmp_path):
    data = Path(__file__).parents[2] / "shared/data/sms_spam/SMSSpamCollection.tsv"
    if not data.exists():
        pytest.skip("shared/data is not here")
    write_starter(str(data), tmp_path / "sms.yaml", "acorn")
    run, _ = load_run(tmp_path / "sms.yaml")
    read = read_conversations(run.data)
    assert (len(read.conversations), read.skipped, {c.answer for c in read.conversations}) == (5574, [], {"spam", "ham"})


def test_without_telling_names_the_answer_has_the_fewest_values_and_the_prompt_the_longest(start):
    run, _ = start("x.csv", "id,sort,remark\n" + "".join(f"{i},{'ab'[i % 2]},the remark number {i}\n" for i in range(40)))
    assert (run.data.prompt, run.data.completion) == ("{remark}", "{sort}")


def test_a_first_line_that_looks_like_data_is_pointed_out_to_who_says_it_is_a_header(start):
    _, said = start("x.csv", "".join(f"{'ham' if i % 2 == 0 else 'spam'},message {i}\n" for i in range(40)), header=True)
    assert any("looks like data" in line and "--no-header" in line for line in said)


def test_few_prompts_are_not_split(start):
    run, said = start("few.jsonl", rows(n=PROMPTS_FOR_SHARES - 1, prompt=str, completion=str))
    assert run.data.validation is None and run.data.test is None
    assert any("too few to hold some out" in line for line in said)


def test_unreadable_rows_are_said_with_their_line_and_the_config_leaves_them_out(start):
    run, said = start("bad.jsonl", rows(n=35, prompt=str, completion=str) + "{\n")
    assert run.data.on_bad_row == "skip" and len(read_conversations(run.data).conversations) == 35
    assert any("bad.jsonl:36" in line for line in said) and any("data.on_bad_row: skip" in line for line in said)


def test_a_file_with_nothing_to_guess_is_refused_and_nothing_is_written(start, tmp_path):
    for name, content in (("one.csv", "remark\na\nb\n"), ("empty.jsonl", "")):
        with pytest.raises(BadInput):
            start(name, content)
    assert not (tmp_path / "made").exists()


def test_an_existing_config_is_never_replaced(tmp_path):
    (tmp_path / "mine.yaml").write_text("precious")
    with pytest.raises(BadInput, match="already a file"):
        write_starter("anything", tmp_path / "mine.yaml", "acorn", True, True)
    assert (tmp_path / "mine.yaml").read_text() == "precious"


def test_a_folder_of_tasks_gets_a_config_that_reads_it_as_a_mixture(tmp_path):
    for task in ("hotels", "trains"):
        (tmp_path / "tasks").mkdir(exist_ok=True)
        (tmp_path / f"tasks/{task}.jsonl").write_text(rows(question="what is {}?".format, answer=str))
    said = write_starter(str(tmp_path / "tasks"), tmp_path / "t.yaml", "acorn")
    run, _ = load_run(tmp_path / "t.yaml")
    assert run.data.train == str(tmp_path / "tasks") and run.data.test == 0.2
    assert said[0] == "tasks: 2 datasets, each a task"


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"prompt": "why?", "chosen": "so", "rejected": "no"}, "preferences"),
        ({"prompt": "why?", "completion": "so", "label": True}, "marks good and bad answers"),
        (
            {"title": "Tea", "paragraphs": [{"context": "Tea is a drink. " * 9, "qas": [{"question": "what?"}]}]},
            "holds objects, and no column is a text",
        ),
    ],
)
def test_what_a_reader_refuses_for_its_meaning_is_not_guessed_around(start, row, what):
    content = "".join(json.dumps({k: f"{v} {i}" if isinstance(v, str) else v for k, v in row.items()}) + "\n" for i in range(40))
    with pytest.raises(BadInput, match=what):
        start("rows.jsonl", content)
