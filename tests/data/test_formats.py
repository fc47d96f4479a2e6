import gzip
import json
import time
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tunesmith.config import DataConfig
from tunesmith.data.conversation import Message
from tunesmith.data.formats import Read, read_conversations, read_prompts
from tunesmith.errors import BadInput

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real data are not here")
SPAM = {"prompt": "Spam or ham?\n\n{text}", "completion": "{label}"}


@pytest.fixture
def read(tmp_path):
    """read("train.csv", content, **data options) → Read"""

    def run(name: str, content: str | bytes, *, prompts: bool = False, **options: object) -> Read:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        config = DataConfig(train=str(path), **options)
        return read_prompts(config, path) if prompts else read_conversations(config)

    return run


@pytest.fixture
def refused(read):
    """The what/where/fix with which a file is refused, as one text."""

    def run(name: str, content: str | bytes, **options: object) -> str:
        with pytest.raises(BadInput) as caught:
            read(name, content, **options)
        assert caught.value.what and caught.value.where and caught.value.fix
        return str(caught.value)

    return run


def turns(read: Read) -> list[list[tuple[str, str, bool]]]:
    return [[(m.role, m.content, m.trained) for m in c.messages] for c in read.conversations]


def lines(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# ---------------------------------------------------------------------------------------------------------- the formats


def test_messages_become_turns_and_only_answers_of_weight_one_are_trained(read):
    row = {"messages": [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "3", "weight": 0},
        {"role": "user", "content": [{"type": "text", "text": "Su"}, {"type": "text", "text": "re?"}]},
        {"role": "assistant", "content": "2", "weight": 1},
    ]}  # fmt: skip
    found = read("train.jsonl", lines(row))
    assert turns(found) == [
        [
            ("system", "Be short.", False),
            ("user", "1+1?", False),
            ("assistant", "3", False),
            ("user", "Sure?", False),
            ("assistant", "2", True),
        ]
    ]
    assert (found.format, found.n_rows, found.said) == ("messages", 1, ["train.jsonl: JSONL, 1 row, messages"])
    assert found.conversations[0].fields == {}


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "an empty list"),
        ("hello", "it is a text"),
        (["hello"], "message 1 should be"),
        ([{"role": "user", "content": "a"}], "the last message is by user"),
        ([{"role": "assistant", "content": "a"}], "message 1 is by assistant where user should speak"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "message 2 is by user where assistant should speak"),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], "message 2 is a system message"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": None}], "the content of message 2 is null"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": " \n"}], "the answer is empty"),
        ([{"role": "user", "content": " "}, {"role": "assistant", "content": "a"}], "message 1 is empty"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}], "no answer is trained"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}], "the weight of message 2 is 0.5"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": True}], "the weight of message 2 is true"),
        ([{"role": "user", "content": "a", "weight": 1}, {"role": "assistant", "content": "b"}], "message 1 has a weight"),
        ([{"role": "bot", "content": "a"}], 'the role of message 1 is "bot"'),
        ([{"content": "a"}], "the role of message 1 is missing"),
        ([{"role": "tool", "content": "a"}], "message 1 is by tool where user should speak: a tool result follows an answer"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "a part that is not text but image_url"),
        ([{"role": "user", "content": "a", "thinking": "hm"}, {"role": "assistant", "content": "b"}], 'is by user and has "thinking"'),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "audio": {"id": "x"}}],
            'has "audio", which no template writes',
        ),
    ],
)
def test_messages_that_cannot_be_taught_are_bad_rows(refused, messages, problem):
    assert problem in refused("train.jsonl", lines({"messages": messages}))


def test_sharegpt_conversations_become_messages_and_that_is_said(read):
    talk = [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]
    found = read("train.jsonl", lines(
        {"conversations": talk}, {"conversations": [{"from": "system", "value": "Be short."}, *talk]}, {"conversations": talk, "system": "Add."},
        {"conversations": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]},
    ))  # fmt: skip
    pair = [("user", "1+1?", False), ("assistant", "2", True)]
    assert turns(found) == [pair, [("system", "Be short.", False), *pair], [("system", "Add.", False), *pair], pair]
    assert found.format == "messages" and "ShareGPT: human → user, gpt → assistant" in found.said[0]


@pytest.mark.parametrize(
    ("talk", "problem"),
    [
        ([{"from": "narrator", "value": "a"}], 'message 1 is from "narrator"; known: human, user, gpt'),
        ([{"from": "observation", "value": "a"}], "message 1 is by tool where user should speak"),
        ([{"from": "gpt", "value": "a"}], "message 1 is by assistant where user should speak"),
        ([{"from": "human", "value": "a"}, {"from": "gpt"}], "the content of message 2 is null"),
        (["a"], "message 1 should be"),
        ([], '"conversations" should be a list of messages, it is an empty list'),
    ],
)
def test_a_sharegpt_row_that_cannot_be_taught_is_a_bad_row(refused, talk, problem):
    assert problem in refused("train.jsonl", lines({"conversations": talk}))


def test_a_role_of_another_tool_is_told_by_its_name_here(refused):
    row = {"messages": [{"role": "human", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert 'the role of message 1 is "human"; write "user"' in refused("train.jsonl", lines(row))


def test_parts_of_messages_that_are_not_used_are_said(read):
    messages = [{"role": "user", "content": "a", "name": "Ann"}, {"role": "assistant", "content": "b", "weight": None, "tool_calls": None}]
    assert '"name" of 1 message is not used' in read("train.jsonl", lines({"messages": messages})).said


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [("prompt", "completion"), ("question", "answer"), ("input", "output"), ("instruction", "response"), ("prompt", "response")],
)
def test_pairs_are_recognised_by_their_column_names_and_said_aloud(read, prompt, completion):
    found = read("train.jsonl", lines({"id": 7, prompt: "a", completion: "b"}))
    assert turns(found) == [[("user", "a", False), ("assistant", "b", True)]]
    assert found.said == [
        f'train.jsonl: JSONL, 1 row, columns id, {prompt}, {completion} → prompt "{{{prompt}}}", completion "{{{completion}}}"'
    ]
    assert found.conversations[0].fields == {"id": 7, prompt: "a", completion: "b"}


def test_alpaca_puts_the_input_under_the_instruction(read):
    with_input, empty, without = (
        {"instruction": "Add.", "input": "1+1", "output": "2"},
        {"instruction": "Greet.", "input": ""},
        {"instruction": "Go."},
    )
    found = read("train.json", json.dumps([with_input, {**empty, "output": "Hi"}, {**without, "output": "Gone"}]))
    assert [c.messages[0].content for c in found.conversations] == ["Add.\n\n1+1", "Greet.", "Go."]
    assert found.format == "alpaca"


def test_raw_text_is_one_trained_turn_per_row_and_one_per_txt_file(read):
    assert turns(read("train.jsonl", lines({"text": "a b"}, {"text": "c"}))) == [[("text", "a b", True)], [("text", "c", True)]]
    book = read("book.txt", "one\n\ntwo\n")
    assert turns(book) == [[("text", "one\n\ntwo\n", True)]]
    assert book.said == ["book.txt: text, 1 row, raw text"]


def test_text_beside_other_columns_is_raw_text_only_on_request(read, refused):
    rows = lines({"text": "win money", "label": "spam"})
    error = refused("train.jsonl", rows)
    assert 'data.prompt: "{text}"' in error and 'data.completion: "{label}"' in error and "data.format: text" in error
    assert turns(read("train.jsonl", rows, format="text")) == [[("text", "win money", True)]]


def labelled(*missing: int, n: int = 60) -> list[dict]:
    return [{"text": f"text {i}", "label": None if i in missing else "spam"} for i in range(n)]


def as_parquet(tmp_path: Path, rows: list[dict]) -> bytes:
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "made.parquet")
    return (tmp_path / "made.parquet").read_bytes()


@pytest.mark.parametrize("missing", [0, 7, 59])
def test_one_label_that_is_null_does_not_make_a_labelled_file_raw_text(refused, tmp_path, missing: int):
    rows = labelled(missing)
    for name, content in (("train.jsonl", lines(*rows)), ("train.parquet", as_parquet(tmp_path, rows))):
        assert "the columns do not say which is the prompt" in refused(name, content)
    without_key = [*rows[:missing], {"text": "no label here"}, *rows[missing + 1 :]]
    assert "the columns do not say which is the prompt" in refused("train.jsonl", lines(*without_key))


def test_a_column_that_is_null_in_every_row_looked_at_does_not_count_until_it_is_not(read, refused, tmp_path):
    assert read("train.parquet", as_parquet(tmp_path, [{"text": "a", "meta": None}, {"text": "b", "meta": None}])).format == "text"
    late = lines(*labelled(*range(150), n=160))
    assert "mixed formats: this row has label beside its text, the file is text" in refused("train.jsonl", late)
    assert len(read("train.jsonl", late, on_bad_row="skip").skipped) == 10


def test_one_row_with_a_column_more_is_a_bad_row_of_a_file_of_text(refused):
    error = refused("train.jsonl", lines({"text": "a"}, {"text": "b"}, {"text": "c", "name": "x"}))
    assert "mixed formats: this row has name beside its text, the file is text" in error and "train.jsonl:3" in error


def test_a_null_in_the_first_row_does_not_choose_other_columns_for_all(read):
    first = {"instruction": None, "input": "1+1", "output": "2"}
    whole = {"instruction": "Add.", "input": "1+1", "output": "2"}
    found = read("train.jsonl", lines(first, whole, whole), on_bad_row="skip")
    assert (found.format, len(found.conversations), [bad.source for bad in found.skipped]) == ("alpaca", 2, ["train.jsonl:1"])
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "prompt": None, "completion": None}
    pair = {"messages": None, "prompt": "a", "completion": "b"}
    assert read("train.jsonl", lines(pair, chat, chat), on_bad_row="skip").format == "messages"


def test_columns_that_alpaca_does_not_use_are_said(read):
    [said] = read("train.jsonl", lines({"instruction": "a", "output": "b", "chosen": "c", "rejected": "d"})).said
    assert said.endswith("; not used: chosen, rejected")


@pytest.mark.parametrize("options", [{}, {"prompt": "{prompt}", "completion": "{completion}"}])
def test_values_that_are_no_text_in_a_column_of_text_are_counted(read, options: dict):
    prompts = ["a", 12, "b", ["c", "d"]]
    found = read("train.jsonl", lines(*({"prompt": prompt, "completion": 7} for prompt in prompts)), **options)
    assert [c.messages[0].content for c in found.conversations] == ["a", "12", "b", '["c", "d"]']
    assert found.said[1:] == ['train.jsonl: 2 values of "prompt" are no text and written as JSON; the first at train.jsonl:2']


@pytest.mark.parametrize("quoting", [True, False])
def test_a_table_whose_lines_end_in_cr_alone_is_refused_with_the_command_that_repairs_it(read, refused, quoting: bool):
    error = refused("train.csv", "text,label\rwin,spam\rlunch,ham\r", quoting=quoting, **SPAM)
    assert "the lines of this table end in CR alone" in error and "tr '\\r' '\\n' < " in error and "train.lf.csv" in error
    assert read("train.csv", "text,label\r\nwin,spam\r\n", quoting=quoting, **SPAM).n_rows == 1


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz"])
def test_json_lines_that_end_in_cr_alone_are_read_and_it_is_said(read, name: str):
    rows = [json.dumps({"prompt": f"é {i}", "completion": "x" * 9000}) for i in range(20)]  # longer than what is read at once
    content = "\r".join([*rows, "", "{broken", '{"prompt": "last", "completion": "y"}\r']).encode()
    found = read(name, gzip.compress(content) if name.endswith(".gz") else content, on_bad_row="skip")
    assert [c.source for c in found.conversations] == [f"{name}:{n}" for n in [*range(1, 21), 23]]
    assert [c.prompt[0].content for c in found.conversations[:2]] == ["é 0", "é 1"]
    assert [bad.source for bad in found.skipped] == [f"{name}:22"]
    assert any("CR alone" in line for line in found.said)


def test_a_carriage_return_inside_one_object_is_white_space(read):
    whole = read("train.jsonl", '{"messages": [\r{"role": "user", "content": "a"},\r{"role": "assistant", "content": "b"}\r]}')
    assert [c.source for c in whole.conversations] == ["train.jsonl:1"] and whole.conversations[0].answer == "b"
    assert not any("CR" in line for line in whole.said)


def test_a_tsv_whose_first_line_lost_its_tab_is_not_cut_at_commas(read):
    text = "o, wörld\nspam\thello, wörld\nham\tlunch, today\n"
    found = read("train.tsv", text, columns=["label", "text"], header=False, quoting=False, on_bad_row="skip", **SPAM)
    assert [c.answer for c in found.conversations] == ["spam", "ham"] and [bad.source for bad in found.skipped] == ["train.tsv:1"]


def test_a_row_of_another_format_is_a_bad_row(read, refused):
    pair = {"prompt": "a", "completion": "b"}
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    error = refused("train.jsonl", lines(pair, pair, chat))
    assert "mixed formats: this row is messages, the file is pairs (prompt, completion)" in error and "train.jsonl:3" in error
    found = read("train.jsonl", lines(pair, {"question": "a", "answer": "b"}, pair), on_bad_row="skip")
    assert [(bad.source, bad.problem) for bad in found.skipped] == [
        ("train.jsonl:2", "mixed formats: this row is pairs (question, answer), the file is pairs (prompt, completion)")
    ]


# ------------------------------------------------------------------------------------------------------------ templates


def test_templates_insert_texts_as_they_are_and_other_values_as_json(read):
    row = {"text": " Add Zoë ", "intent": "Add", "slots": {"artist": "Zoë"}, "n": 2, "my column": "x"}
    found = read(
        "train.jsonl",
        lines(row),
        prompt='{text}|{n}|{my column}|{"a": 1}|{}',
        completion='{"intent": {intent:json}, "i": "{intent}", "slots": {slots}}',
    )
    assert found.conversations[0].messages[0].content == ' Add Zoë |2|x|{"a": 1}|{}'
    assert found.conversations[0].messages[1].content == '{"intent": "Add", "i": "Add", "slots": {"artist": "Zoë"}}'


def test_a_system_template_comes_first_unless_the_row_has_a_system_message(read):
    found = read("train.csv", "text,label,lang\nhi,ham,en\n", **SPAM, system="Answer in {lang}.")
    assert turns(found)[0][0] == ("system", "Answer in en.", False)
    own = [{"role": "system", "content": "mine"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    found = read("train.jsonl", lines({"messages": own}, {"messages": own[1:]}), system="yours")
    assert [t[0][1] for t in turns(found)] == ["mine", "yours"]


def test_a_placeholder_that_is_no_column_names_the_nearest_one(refused):
    error = refused("train.csv", "text,label\nhi,ham\n", prompt="{txt}", completion="{label}")
    assert "{txt}, which is no column" in error and "columns text, label" in error and 'did you mean "text"?' in error
    assert "header" not in error


def test_a_missing_header_is_guessed_from_columns_that_look_like_data(refused):
    for options in (SPAM, {}):
        error = refused("train.tsv", "ham\tGo until jurong point, crazy, available only there\nspam\tWin\n", **options)
        assert "data.header: false and data.columns: [label, text]" in error


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"prompt": "{text}"}, "data.prompt without data.completion"),
        ({"completion": "{label}"}, "data.completion without data.prompt"),
        ({"prompt": "{text}", "completion": "label"}, "data.completion names no column"),
        ({**SPAM, "format": "messages"}, "data.format is messages"),
        ({"format": "messages"}, 'no column "messages"'),
        ({"format": "text", "system": "x"}, "raw text has no system message"),
        ({"header": False}, "needs column names"),
        ({"columns": ["a", "b"]}, "data.header is true"),
        ({"columns": ["a", "a"], "header": False}, 'two columns are called "a"'),
        ({**SPAM, "columns": ["label"], "header": False}, "2 cells where the 1 columns"),
    ],
)
def test_options_that_contradict_the_file_are_refused(refused, options, problem):
    assert problem in refused("train.csv", "text,label\nhi,ham\n", **options)


def test_a_null_or_missing_cell_is_a_bad_row(read):
    found = read("train.jsonl", lines({"text": "a", "label": "b"}, {"text": None, "label": "b"}, {"label": "b"}), **SPAM, on_bad_row="skip")
    assert [bad.problem for bad in found.skipped] == ['"text" is null; this row has text, label', '"text" is missing; this row has label']


# ----------------------------------------------------------------------------------------------------- tables and lines


def test_a_row_keeps_the_line_where_it_starts_even_after_cells_of_several_lines(read):
    found = read("train.csv", 'text,label\n"one\ntwo, ""x""\n",spam\n\n  b ,ham\r\n', **SPAM)
    assert [(c.source, c.fields["text"]) for c in found.conversations] == [("train.csv:2", 'one\ntwo, "x"\n'), ("train.csv:6", "  b ")]
    assert "1 row spans several lines by quotes, the first at line 2" in found.said[1]
    assert found.said[0] == 'train.csv: CSV, 2 rows, columns text, label → prompt "Spam or ham?\\n\\n{text}", completion "{label}"'


def test_without_quoting_a_line_is_a_row_and_a_quote_a_character(read):
    found = read("train.tsv", 'ham\t"a" b\nspam\t"c\nham\td"\r\n', **SPAM, columns=["label", "text"], header=False, quoting=False)
    assert [c.fields["text"] for c in found.conversations] == ['"a" b', '"c', 'd"']


def test_a_quote_that_swallows_the_file_is_found_where_it_opens(refused):
    rows = "".join(f"row {i},ham\n" for i in range(5000))
    for tail in ("", 'x,"y"\n'):
        error = refused("train.csv", "text,label\nfine,ham\n" + '"open,ham\n' + rows + tail, **SPAM, on_bad_row="skip")
        assert "train.csv:3" in error and "data.quoting: false" in error
    assert "still open at the end of the file" in refused("train.csv", 'text,label\nfine,ham\n"a\nb",x\n"open,ham\n', **SPAM)


def test_a_stray_quote_costs_its_own_row_not_the_ones_it_would_swallow(read):
    found = read("train.csv", 'text,label\n"x" y,ham\n"a,ham\nb,ham\nc" d,ham\ne,ham\n', **SPAM, on_bad_row="skip")
    assert [bad.source for bad in found.skipped] == ["train.csv:2", "train.csv:3"]
    assert [c.fields["text"] for c in found.conversations] == ["b", 'c" d', "e"]


def test_a_row_with_too_few_or_too_many_cells_is_bad_with_its_line(refused):
    for row, n in (("hi", "1 cell"), ("a,b,ham", "3 cells")):
        error = refused("train.csv", f"text,label\nhi,ham\n{row}\n", **SPAM)
        assert f"{n} where the 2 columns text, label are expected" in error and "train.csv:3" in error


def test_semicolons_separate_where_the_first_line_has_no_comma(read):
    found = read("train.csv", "text;label\nwell, hi;ham\n", **SPAM)
    assert found.conversations[0].fields == {"text": "well, hi", "label": "ham"}
    assert "CSV separated by ';'" in found.said[0]


def test_json_documents_give_the_line_of_each_object(read):
    rows = '[\n  {"prompt": "a",\n   "completion": "b"},\n\n  {"prompt": "c", "completion": "d"}]\n'
    assert [c.source for c in read("a.json", rows).conversations] == ["a.json:2", "a.json:5"]
    wrapped = '{"version": [1, {"data": []}],\n "data": ' + rows + ',\n "end": null}'
    assert [c.source for c in read("b.json", wrapped).conversations] == ["b.json:3", "b.json:6"]


def test_json_that_holds_one_object_a_line_is_read_and_said(read):
    found = read("a.json", lines({"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}))
    assert [c.source for c in found.conversations] == ["a.json:1", "a.json:2"]
    assert "a.json: one object a line, read as JSONL" in found.said


def test_a_line_separator_inside_a_string_ends_no_line(read):
    found = read("train.jsonl", '{"prompt": "a\u2028b\x85c", "completion": "d"}\r\n\n{"prompt": "e", "completion": "f"}')
    assert [(c.source, c.messages[0].content) for c in found.conversations] == [("train.jsonl:1", "a\u2028b\x85c"), ("train.jsonl:3", "e")]


def test_parquet_rows_are_numbered_and_typed(read, tmp_path):
    table = pa.table({"q": ["a", "b"], "a": [1.5, 2.0], "tags": [["x"], []], "day": pa.array([1, 2], pa.date32())})
    parquet.write_table(table, tmp_path / "made.parquet")
    content = (tmp_path / "made.parquet").read_bytes()
    for name, packed in (("t.parquet", content), ("t.parquet.gz", gzip.compress(content)), ("t.table", content)):
        found = read(name, packed, prompt="{q}{tags}{day}", completion="{a}")
        assert [(c.source, c.messages[0].content, c.answer) for c in found.conversations] == [
            (f"{name}:1", 'a["x"]1970-01-02', "1.5"), (f"{name}:2", "b[]1970-01-03", "2.0"),
        ]  # fmt: skip


def test_nan_in_parquet_is_a_bad_row_and_null_is_absent(read, tmp_path):
    rows = [
        {"instruction": "a", "input": None, "output": "b", "score": 1.0},
        {"instruction": "a", "input": "c", "output": "b", "score": float("nan")},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "made.parquet")
    found = read("t.parquet", (tmp_path / "made.parquet").read_bytes(), on_bad_row="skip")
    assert turns(found) == [[("user", "a", False), ("assistant", "b", True)]]
    assert [(bad.source, bad.problem) for bad in found.skipped] == [("t.parquet:2", 'nan in "score" is not a number')]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", lines({"text": "hé", "label": "ham"})),
        ("t.ndjson", lines({"text": "hé", "label": "ham"})),
        ("t.json", json.dumps([{"text": "hé", "label": "ham"}])),
        ("t.csv", "text,label\nhé,ham\n"),
        ("t.tsv", "text\tlabel\nhé\tham\n"),
        ("records", "text\tlabel\nhé\tham\n"),
        ("t.data", lines({"text": "hé", "label": "ham"})),
    ],
)
def test_every_kind_reads_the_same_also_packed_and_with_a_byte_order_mark(read, name, content):
    expected = [Message("user", "Spam or ham?\n\nhé", False), Message("assistant", "ham", True)]
    for suffix, packed in (("", content.encode()), ("", b"\xef\xbb\xbf" + content.encode()), (".gz", gzip.compress(content.encode()))):
        found = read(name + suffix, packed, **SPAM)
        assert [list(c.messages) for c in found.conversations] == [expected]
        assert any("judging by the content" in sentence for sentence in found.said) == (name in ("records", "t.data"))


# ------------------------------------------------------------------------------------------------ damage, as users bring it


def test_one_broken_line_in_ten_thousand_is_named_or_skipped_with_a_count(read, refused):
    rows = [json.dumps({"prompt": f"q{i}", "completion": "a"}) for i in range(10_000)]
    rows[4321] = rows[4321][:-4]
    content = "\n".join(rows)
    error = refused("train.jsonl", content)
    assert "train.jsonl:4322" in error and "not JSON" in error and "data.on_bad_row: skip" in error
    found = read("train.jsonl", content, on_bad_row="skip")
    assert (len(found.conversations), found.n_rows) == (9_999, 10_000)
    assert [bad.source for bad in found.skipped] == ["train.jsonl:4322"]
    assert "1 of 10,000 rows skipped, the first at train.jsonl:4322" in found.said[-1]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"prompt": "a\\ud800b", "completion": "c"}', "half of a surrogate pair (\\ud800)"),
        ('{"prompt": "a", "completion": "b", "x": NaN}', "NaN is not a value that JSON has"),
        ('{"prompt": "a", "completion": "b", "x": -Infinity}', "-Infinity is not a value"),
        ('{"prompt": "a", "completion": "b", "x": 1e999}', 'inf in "x" is not a number'),
        ('{"prompt": "a", "prompt": "b", "completion": "c"}', 'the key "prompt" is given twice'),
        ('{"prompt": "a\\u0000", "completion": "b"}', 'a NUL character in "prompt"'),
        ('["prompt", "completion"]', "a row should be an object {…}, this is a list"),
        ('{"prompt": "a", "completion": "b"} {}', "not JSON: Extra data"),
        ('{"prompt": "a", "completion": ' + "9" * 5000 + "}", "thousands of digits"),
        ('{"prompt": "a", "completion": ' + "[" * 200 + "]" * 200 + "}", "nested more than 100 deep"),
        ('{"prompt": "a", "completion": ' + "[" * 99_999 + "]" * 99_999 + "}", "nested"),
        ('{"prompt": "a", "completion": " "}', "the answer is empty"),
        ('{"prompt": [{"role": "user", "content": "a"}], "completion": "b"}', "mixed formats: this row is messages"),
        ('{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}', "a list of messages"),
    ],
)
def test_a_bad_line_of_json_is_refused_with_its_reason_and_its_line(read, refused, line, problem):
    content = lines({"prompt": "a", "completion": "b"}) + line + "\n"
    error = refused("train.jsonl", content)
    assert problem in error and "train.jsonl:2" in error
    error.encode()  # a report must be able to hold it
    assert problem in read("train.jsonl", content, on_bad_row="skip").skipped[0].problem


def test_the_same_faults_inside_a_json_document_cost_one_row(read):
    good = '{"prompt": "a", "completion": "b"}'
    rows = f'[{good},\n {{"prompt": NaN, "completion": "b"}},\n {{"prompt": "a", "prompt": "b"}}, 7,\n {good}]'
    found = read("a.json", rows, on_bad_row="skip")
    assert [bad.source for bad in found.skipped] == ["a.json:2", "a.json:3", "a.json:3"]
    assert len(found.conversations) == 2


@pytest.mark.parametrize(
    "content",
    ['[{"a": 1}, {"a": ', '[{"a": 1} {"a": 2}]', '[{"a": 1},]', '{"data": [{"a": 1}', '[{"a": 1}] x', '{"data": 1}', "7", "[]", "{}"],
)
def test_a_broken_json_document_is_never_half_read(refused, content):
    assert "a.json" in refused("a.json", content, on_bad_row="skip", prompt="{a}", completion="{a}")


def test_a_nul_byte_in_a_table_is_a_bad_row(read):
    for quoting in (True, False):
        found = read("train.csv", "text,label\na\0,ham\nb,ham\n", **SPAM, quoting=quoting, on_bad_row="skip")
        assert [(bad.source, bad.problem) for bad in found.skipped] == [("train.csv:2", 'a NUL character in "text"')]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf16_is_named_with_the_command_that_rewrites_it(refused, encoding):
    error = refused("train.csv", "text,label\nhi,ham\n".encode(encoding), **SPAM, on_bad_row="skip")
    assert "the file is UTF-" in error and "byte " in error and "iconv -f UTF-" in error and "train.utf8.csv" in error


def test_a_byte_that_is_not_utf8_is_named_by_line_and_offset(refused):
    error = refused("train.csv.gz", gzip.compress("text,label\nhi,ham\ncafé,ham\n".encode("latin-1")), **SPAM, on_bad_row="skip")
    assert "byte 0xe9 is out of place" in error and "train.csv.gz:3: byte 21 of the file" in error and "gunzip -c" in error


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.csv", "t.tsv", "t.txt", "t.jsonl.gz", "t.unknown", "t.parquet"])
def test_empty_files_and_blank_files_are_refused(refused, name):
    pack = gzip.compress if name.endswith(".gz") else bytes
    assert "the file is empty" in refused(name, pack(b""))
    if name != "t.parquet":
        assert "only blank lines" in refused(name, pack(b"\n \n\r\n"))


def test_a_header_alone_is_no_row(refused):
    assert "the file holds no rows" in refused("t.csv", "text,label\n", **SPAM)


def test_cut_and_corrupt_archives_are_refused(refused):
    packed = gzip.compress("".join(f"row {i},ham\n" for i in range(9999)).encode())
    for damaged in (packed[:-9], packed[:3000], packed[:3000] + b"\0\0\0\0" + packed[3004:], packed + b"more", b"text,label\nhi,ham\n"):
        assert "cut short or damaged" in refused("t.csv.gz", damaged, columns=["text", "label"], header=False, **SPAM)
    assert "this is a gzip file" in refused("t.csv", packed, **SPAM)


def test_corrupt_parquet_is_refused(refused, tmp_path):
    parquet.write_table(pa.table({"text": ["a"] * 999, "label": ["b"] * 999}), tmp_path / "made.parquet")
    content = (tmp_path / "made.parquet").read_bytes()
    for damaged in (content[:-5], content[: len(content) // 2], b"PAR1" * 9, b"text"):
        assert "Parquet file cannot be read" in refused("t.parquet", damaged, **SPAM)


def test_a_missing_file_names_its_nearest_neighbour_and_a_folder_its_files(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}")
    for name, hint in (
        ("trian.jsonl", 'did you mean "train.jsonl"?'),
        ("", "name one file in it: train.jsonl"),
        ("no/such.csv", "there is no folder"),
    ):
        with pytest.raises(BadInput) as caught:
            read_conversations(DataConfig(train=str(tmp_path / name)))
        assert hint in caught.value.fix


def test_a_row_of_twenty_megabytes_is_read_in_seconds(read):
    text = "word " * 4_000_000
    started = time.monotonic()
    for name, content in (
        ("t.jsonl", lines({"text": text, "label": "ham"})), ("t.json", json.dumps([{"text": text, "label": "ham"}])),
        ("t.csv", f'text,label\n"{text}",ham\n'), ("t.tsv", f"text\tlabel\n{text}\tham\n"),
    ):  # fmt: skip
        assert read(name, content, prompt="{text}", completion="{label}").conversations[0].messages[0].content == text
    assert time.monotonic() - started < 20


def test_a_file_of_bad_rows_only_is_refused_even_when_bad_rows_are_skipped(refused):
    error = refused("train.jsonl", "oops\n" * 300, on_bad_row="skip")
    assert "none of the 300 rows can be used" in error and "train.jsonl:1" in error


# -------------------------------------------------------------------------------------------------------------- prompts


def test_prompts_need_no_answer_but_keep_the_one_they_have(read):
    found = read("p.csv", "text\nhi\n", prompts=True, **SPAM)
    assert turns(found) == [[("user", "Spam or ham?\n\nhi", False)]]
    found = read("p.csv", "text,label\nhi,\nyo,ham\n", prompts=True, **SPAM)
    assert [c.answer for c in found.conversations] == [None, "ham"]
    found = read("p.jsonl", lines({"prompt": "a"}, {"prompt": "b", "completion": "c"}), prompts=True)
    assert [c.answer for c in found.conversations] == [None, "c"]
    asked, answered = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    found = read(
        "p.jsonl", lines({"messages": [asked]}, {"messages": [asked, answered, asked]}, {"messages": [asked, answered]}), prompts=True
    )
    assert [len(c.prompt) for c in found.conversations] == [1, 1, 1]


def test_a_text_file_of_prompts_has_one_in_each_line_and_fills_the_template(read, refused):
    assert turns(read("p.txt", "one\n\n two\r\n", prompts=True)) == [[("user", "one", False)], [("user", " two", False)]]
    found = read("p.txt", "one\n", prompts=True, **SPAM)
    assert turns(found) == [[("user", "Spam or ham?\n\none", False)]]
    assert found.conversations[0].source == "p.txt:1"
    assert turns(read("p.txt", "Once upon\n", prompts=True, format="text")) == [[("text", "Once upon", False)]]
    assert "can fill only one" in refused("p.txt", "one\n", prompts=True, prompt="{a} {b}")


# ------------------------------------------------------------------------------------------------------------ real files


@needs_shared
def test_the_sms_collection_has_5574_rows_without_quoting_and_loses_none_with_it():
    table = {"train": str(SHARED / "sms_spam" / "SMSSpamCollection.tsv"), "columns": ["label", "text"], "header": False, **SPAM}
    found = read_conversations(DataConfig(**table, quoting=False))
    assert (len(found.conversations), sum(c.answer == "spam" for c in found.conversations)) == (5574, 747)
    assert found.conversations[-1].source == "SMSSpamCollection.tsv:5574"
    with pytest.raises(BadInput, match="goes on after its closing quote") as caught:
        read_conversations(DataConfig(**table))
    assert caught.value.where.endswith(":283") and "data.quoting: false" in caught.value.what
    skipping = read_conversations(DataConfig(**table, on_bad_row="skip"))
    assert skipping.n_rows == 5574 == len(skipping.conversations) + len(skipping.skipped)


@needs_shared
def test_snips_becomes_text_to_json():
    found = read_conversations(
        DataConfig(
            train=str(SHARED / "snips_slots" / "train.jsonl"), prompt="{text}", completion='{"intent": {intent:json}, "slots": {slots}}'
        )
    )
    assert len(found.conversations) == 13_784
    assert all(json.loads(c.answer) == {"intent": c.fields["intent"], "slots": c.fields["slots"]} for c in found.conversations)


@needs_shared
def test_instruction_files_are_alpaca():
    found = read_conversations(DataConfig(train=str(SHARED / "instruct_llms_from_scratch" / "instruction-data.json")))
    assert (found.format, found.n_rows) == ("alpaca", 1100)
