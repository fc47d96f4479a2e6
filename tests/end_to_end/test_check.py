"""`tunesmith check`, and the look at the data that `tunesmith train` begins with, as a user types them."""

import json
import shlex
from pathlib import Path

import pytest
from shell import SHORT, Train, colour_row, finished, refused, run_here, write_jsonl

import tunesmith

SCHEMA = {"type": "object", "required": ["colour"]}


def faulty(name: str = "faulty.jsonl") -> Path:
    """40 rows of which line 3 is a copy, line 7 holds a key and line 9 is no JSON."""
    rows = [colour_row(n) for n in range(40)]
    rows[2] = rows[1]
    rows[6] = {"prompt": "use AKIA" + "IOSFODNN7EXAMPLE for it", "completion": "red"}
    path = write_jsonl(Path(name), rows)
    lines = path.read_text().split("\n")
    lines[8] = '{"prompt": "cut'
    path.write_text("\n".join(lines))
    return path


def test_errors_end_a_check_with_2_and_every_finding_names_its_lines():
    said = run_here("check", faulty())
    assert said.code == 2 and "Traceback" not in said.err
    assert "not-json-row" in said.out and "faulty.jsonl:9" in said.out
    assert "exact-duplicates" in said.out and "faulty.jsonl:3" in said.out
    assert "api-key" in said.out and "faulty.jsonl:7" in said.out and "IOSFODNN7" not in said.out
    assert "1 error, " in said.out and "not looked at: lengths in tokens" in said.out


def test_json_is_printed_alone_and_has_every_line():
    said = run_here("check", faulty(), "--json")
    printed = json.loads(said.out)
    assert said.code == 2 and printed["rows"] == {"train": 40} and printed["counts"]["errors"] == 1
    found = {f["check"]: f["sources"] for f in printed["findings"]}
    assert found["not-json-row"] == ["faulty.jsonl:9"] and found["api-key"] == ["faulty.jsonl:7"]
    assert any("JSONL, 40 rows" in line for line in printed["said"])


def test_warnings_end_a_check_with_0_or_with_3_where_that_is_asked_for(colours):
    write_jsonl(Path("twice.jsonl"), [colour_row(n % 30) for n in range(40)])
    assert run_here("check", "twice.jsonl").code == 0
    refused(run_here("check", "twice.jsonl", "--fail-on", "warning"), "warning", "twice.jsonl", "mend the rows", code=3)
    refused(run_here("check", "twice.jsonl", "--fail-on", "everything"), "fails on errors", "--fail-on", "--fail-on error or warning")


def test_with_a_model_lengths_are_tokens_and_rows_over_the_limit_are_errors(tiny):
    Path("pages").mkdir()
    write_jsonl(Path("long.jsonl"), [*map(colour_row, range(30)), {"prompt": "why? " * 200, "completion": "so"}])
    said = run_here("check", "long.jsonl", "--model", tiny, "--max-length", "64", "--html", "pages/check.html")
    assert said.code == 2 and "prompt-too-long" in said.out and "long.jsonl:31" in said.out
    page = Path("pages/check.html").read_text(encoding="utf-8")
    assert "tokens of the prompt" in page and "long.jsonl:31" in page
    finished(run_here("check", "long.jsonl", "--model", tiny, "--max-length", "64", "--set", "data.on_too_long=drop"))


def test_a_config_is_checked_as_it_would_be_trained(tiny, colours):
    Path("run.yaml").write_text(f"model: {tiny}\ndata: {{train: {colours}, test: 0.25}}\ntraining: {{max_length: 128}}\n")
    said = run_here("check", "run.yaml")
    finished(said)
    assert "rendered with the tokenizer's chat template" in said.out and "few-test-rows" in said.out


def test_which_columns_are_meant_is_guessed_and_said():
    write_jsonl(Path("spam.jsonl"), ({"text": f"message number {n}", "label": "spam" if n % 3 else "ham"} for n in range(40)))
    said = run_here("check", "spam.jsonl")
    finished(said)
    assert "guessed: text is the prompt and label the answer" in said.err
    assert 'prompt "{text}", completion "{label}"' in said.out


@pytest.mark.parametrize(
    ("arguments", "what", "where", "fix"),
    [
        (("absent.jsonl",), "no such file", "absent.jsonl", "did you mean"),
        (("run.yaml",), "no such config", "run.yaml", "tunesmith init"),
        (("rows.jsonl", "--schema", "absent.json"), "JSON Schema cannot be read", "absent.json", "JSON Schema"),
        (("rows.jsonl", "--schema", "wrong.json"), "not a JSON Schema", "wrong.json", "json-schema.org"),
        (("rows.jsonl", "--schema", "slip.json"), '"propertys", which is no word of it', "slip.json", 'did you mean "properties"?'),
        (("rows.jsonl", "--schema", "none.json"), 'no word of JSON Schema is in it: "foo"', "none.json", '"type": "object"'),
        (("rows.jsonl", "--schema", "far.json"), "refers to something that is not in it", "far.json", "$defs"),
        (("rows.jsonl", "--set", "data.nonsense=1"), 'unknown key "data.nonsense"', "--set data.nonsense=1", "docs/configuration.md"),
    ],
)
def test_bad_input_is_told_in_three_lines(arguments, what, where, fix):
    write_jsonl(Path("rows.jsonl"), ({"prompt": f"thing {n}?", "completion": json.dumps({"colour": n})} for n in range(30)))
    Path("wrong.json").write_text('{"type": "nothing"}')
    Path("slip.json").write_text('{"type": "object", "propertys": {}}')
    Path("none.json").write_text('{"foo": 1}')
    Path("far.json").write_text('{"$ref": "https://example.com/schema.json"}')
    said = run_here("check", *arguments)
    assert said.code == 2 and "Traceback" not in said.err + said.out
    assert what in said.err + said.out and fix in said.err + said.out
    assert "[Errno" not in said.err and "data.schema" not in said.err


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (("--test", "0.6", "--validation", "0.6"), "leave nothing to train on"),
        (("--validation", "rows.jsonl"), "every training row is also in the validation or test file"),
        (("--test", "0.2", "--set", "data.group_by=author"), 'no row has the column "author"'),
    ],
)
def test_a_split_that_training_refuses_is_an_error(settings, what):
    write_jsonl(Path("rows.jsonl"), map(colour_row, range(40)))
    said = run_here("check", "rows.jsonl", *settings, "--json")
    [error] = [f for f in json.loads(said.out)["findings"] if f["severity"] == "error"]
    assert said.code == 2 and error["check"] == "refused-split" and what in error["reason"]
    assert "different prompts to learn from" not in said.out or "0.6" not in settings


def test_a_file_that_is_refused_is_a_finding_for_a_program_too():
    write_jsonl(Path("pairs.jsonl"), ({"prompt": f"thing {n}?", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(40)))
    said = run_here("check", "pairs.jsonl", "--json")
    [finding] = json.loads(said.out)["findings"]
    assert said.code == 2 and finding["severity"] == "error" and "preferences" in finding["reason"] and "preferences" in said.err


def test_one_stray_quote_among_quoted_cells_is_an_error_of_its_line():
    rows = ['"text","label"', *(f'"message number {n}","{"spam" if n % 3 else "ham"}"' for n in range(60))]
    rows[40] = '"he said "no" to it","ham"'
    Path("rows.csv").write_text("\n".join(rows))
    said = run_here("check", "rows.csv")
    assert said.code == 2 and "stray-quote" in said.out and "rows.csv:41" in said.out


def test_one_bad_byte_does_not_hide_how_a_table_is_written_nor_its_other_rows():
    lines = [f"{'spam' if n % 3 else 'ham'}\tmessage number {n} to you".encode() for n in range(150)]
    lines[120] += b" caf\xe9"
    Path("sms.tsv").write_bytes(b"\n".join(lines))
    said = run_here("check", "sms.tsv")
    assert said.code == 2 and "not-utf-8" in said.out and "sms.tsv:121" in said.out
    assert "data.header: false" in said.err and "150 rows, columns label, text" in said.out


def test_a_folder_whose_columns_say_nothing_is_told_that_a_file_alone_is_guessed():
    Path("tasks").mkdir()
    for task in "ab":
        write_jsonl(Path(f"tasks/{task}.jsonl"), ({"text": f"message {n}", "remark": f"so {n}"} for n in range(20)))
    refused(run_here("check", "tasks"), "columns do not say", "tasks/a.jsonl", "columns are guessed for one task only")


# --- train ------------------------------------------------------------------------------------------------------------------


def test_training_repeats_the_errors_all_at_once_and_does_not_begin(train: Train):
    path = faulty()
    lines = path.read_text().split("\n")
    lines[19] = json.dumps({"prompt": "and this?", "completion": "  "})
    path.write_text("\n".join(lines))
    said = train(data=path)
    refused(said, "the row cannot be read as JSON", "faulty.jsonl:9\n         faulty.jsonl:20", "data.on_bad_row: skip")
    assert "the answer is empty" in said.err and "tunesmith check faulty.jsonl" in said.err
    assert not Path("runs/x").exists()


def test_training_says_each_warning_in_a_line_with_the_command_that_shows_more(train: Train):
    write_jsonl(Path("twice.jsonl"), [colour_row(n % 30) for n in range(40)])
    said = train("--dry-run", data="twice.jsonl")
    finished(said)
    [line] = [line for line in said.err.split("\n") if line.startswith("warning: 10 rows: rows equal to an earlier one")]
    assert "(first: twice.jsonl:31)" in line
    assert "more: tunesmith check twice.jsonl" in said.err


def test_the_command_that_shows_more_finds_the_same(train: Train, tiny):
    write_jsonl(Path("twice.jsonl"), [colour_row(n % 30) for n in range(40)])
    said = train("--dry-run", "--validation", "0.2", data="twice.jsonl")
    command = next(line for line in said.err.split("\n") if line.startswith("more: ")).removeprefix("more: tunesmith ")
    shown = run_here(*shlex.split(command))
    finished(shown)
    assert "exact-duplicates" in shown.out and "rendered with" in shown.out


def test_no_check_is_quiet_but_refuses_what_the_schema_forbids(train: Train):
    write_jsonl(
        Path("rows.jsonl"),
        ({"prompt": f"thing {n}?", "completion": json.dumps({"color" if n == 11 else "colour": "red"})} for n in range(40)),
    )
    Path("schema.json").write_text(json.dumps(SCHEMA))
    broken = train("--no-check", "--set", "data.answer_schema=schema.json", data="rows.jsonl")
    refused(
        broken,
        "the answer is not what schema.json asks for: the answer: 'colour' is a required property",
        "rows.jsonl:12",
        "tunesmith check",
    )
    quiet = train("--no-check", "--dry-run", data="rows.jsonl")
    finished(quiet)
    assert "warning" not in quiet.err


def test_the_library_returns_the_report(tiny):
    report = tunesmith.check(faulty(), model=tiny, sets=["data.on_bad_row=skip"])
    assert report.unit == "tokens" and report.rows == {"train": 40} and report.of("error") == []
    assert {f.check for f in report.findings} >= {"not-json-row", "exact-duplicates", "api-key"}


def test_a_run_that_was_checked_trains(tiny, colours):
    finished(run_here("train", "--model", tiny, "--data", colours, "--output", "runs/y", *SHORT, "--set", "training.steps=2"))
    assert Path("runs/y/adapter").is_dir()
