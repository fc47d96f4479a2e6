"""The checks over real data, as they are: what is known of them is found, and nothing is called an error that is none."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tunesmith.config import DataConfig
from tunesmith.data.checks.check import Report, check, open_files
from tunesmith.data.checks.json_answers import load_schema
from tunesmith.preflight import check_run, subject_of

SMS = {"columns": ["label", "text"], "header": False, "quoting": False, "prompt": "Spam or ham?\n\n{text}", "completion": "{label}"}
SLOTS = {"prompt": "{text}", "completion": '{"intent": {intent:json}, "slots": {slots:json}}'}


def looked_at(path: Path, schema: Path | None = None, **settings: object) -> Report:
    config = DataConfig(train=str(path), **settings)
    return check(open_files(config), config, schema=load_schema(schema) if schema is not None else None)


def counts(report: Report) -> dict[str, int]:
    return {finding.check: finding.count for finding in report.findings}


def test_the_sms_collection_has_403_copies_a_quoting_trap_and_one_frequent_label(shared: Path):
    path = shared / "data/sms_spam/SMSSpamCollection.tsv"
    report = looked_at(path, **SMS)
    assert report.of("error") == [] and report.rows == {"train": 5574}
    assert counts(report)["exact-duplicates"] == 403
    [trap] = [f for f in report.findings if f.check == "quoting-trap"]
    assert "5,572 rows instead of 5,574" in trap.reason
    [balance] = [f for f in report.findings if f.check == "label-imbalance"]
    assert balance.count == 747 and "'ham' is the label of 87 %" in balance.reason
    assert report.labels == {"train": {"ham": 4827, "spam": 747}}
    [entities] = [f for f in report.findings if f.check == "html-entity"]
    lines = path.read_text(encoding="utf-8").split("\n")
    expected = [n for n, line in enumerate(lines, 1) if any(mark in line for mark in ("&lt;", "&gt;", "&amp;"))]
    assert entities.sources == tuple(f"{path.name}:{n}" for n in expected) and len(expected) > 300


def test_how_the_sms_collection_is_written_is_recognised_and_said(shared: Path):
    subject = subject_of(shared / "data/sms_spam/SMSSpamCollection.tsv")
    said = "\n".join(subject.said)
    assert "data.header: false" in said and "data.quoting: false" in said and "text is the prompt and label the answer" in said
    report = check_run(subject.run, subject.files, with_model=subject.names_model)
    assert counts(report)["exact-duplicates"] == 403 and "--model" in report.not_done[0]


def test_the_rows_of_snips_that_break_its_schema_and_those_in_both_files_are_named(shared: Path):
    folder = shared / "data/snips_slots"
    report = looked_at(folder / "train.jsonl", folder / "schema.json", validation=str(folder / "validate.jsonl"), **SLOTS)
    train, held = (
        [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        for name in ("train.jsonl", "validate.jsonl")
    )
    broken = report.of("error")[0]
    lists = [n for n, row in enumerate(train, 1) if any(isinstance(value, list) for value in row["slots"].values())]
    assert broken.sources == tuple(f"train.jsonl:{n}" for n in lists) and len(lists) == 61
    assert broken.seen[0] == "slots.object_name: ['How', 'White Teeth'] is not of type 'string'"
    known = {" ".join(row["text"].casefold().split()) for row in train}
    both = [n for n, row in enumerate(held, 1) if " ".join(row["text"].casefold().split()) in known]
    [overlap] = [f for f in report.findings if f.check == "validation-in-train"]
    assert overlap.sources == tuple(f"validate.jsonl:{n}" for n in both) and both
    assert counts(report)["validation-near-train"] > 0
    held_lists = [n for n, row in enumerate(held, 1) if any(isinstance(value, list) for value in row["slots"].values())]
    assert [f.sources for f in report.of("error")[1:]] == ([tuple(f"validate.jsonl:{n}" for n in held_lists)] if held_lists else [])


@pytest.mark.parametrize("name", ["instruction-data.json", "instruction-data-with-preference.json"])
def test_instructions_that_are_clean_have_no_error_and_few_warnings(shared: Path, name: str):
    report = looked_at(shared / "data/instruct_llms_from_scratch" / name)
    assert report.of("error") == [] and report.rows["train"] == 1100
    assert {f.check for f in report.of("warning")} <= {"answer-language", "exact-duplicates"}, counts(report)


def test_questions_of_xquad_have_no_error(shared: Path):
    report = looked_at(shared / "data/xquad_en/questions.jsonl", prompt="{question}", completion="{answers:json}")
    assert report.of("error") == [] and {f.check for f in report.of("warning")} == {"exact-duplicates", "contradiction"}


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_the_tasks_of_super_ni_have_no_error_and_warnings_of_known_kinds_only(shared: Path, part: str):
    seen: Counter[str] = Counter()
    for path in sorted((shared / "data/super_ni" / part).glob("*.json"))[:: 4 if part == "train" else 1]:
        report = looked_at(path)
        assert report.of("error") == [], path.name
        seen.update(f.check for f in report.of("warning"))
    # the first three rows of each kind and task were read: mojibake, soft hyphens and entities of the sources, answers without a full stop,
    # labels that hardly occur
    assert set(seen) <= {
        "mojibake", "invisible-character", "control-character", "html-entity", "private-use", "few-rows-per-label", "phone-number", "cut-short",
    }  # fmt: skip
