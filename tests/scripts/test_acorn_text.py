import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT / "scripts"))

import acorn_text  # noqa: E402

CONTROL = [acorn_text.END, acorn_text.SYSTEM, acorn_text.USER, acorn_text.ASSISTANT]


def thirteen_grams(text):
    """Every run of 13 words, letters and digits only, in lower case."""
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + 13]) for i in range(len(words) - 12)}


def all_strings(value):
    """A row as text: its strings and keys in order, as an answer in JSON would show them."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def jsonl_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def generated():
    """Three million characters, as documents; words never run from one into the next."""
    return list(acorn_text.documents(seed=0, n_characters=3_000_000))


@pytest.fixture(scope="module")
def generated_grams(generated):
    return set().union(*map(thirteen_grams, generated))


def shared_with(grams, texts):
    return sorted(set().union(*map(thirteen_grams, texts)) & grams)


def test_the_same_seed_gives_the_same_text_and_another_seed_another():
    def text(seed):
        return list(acorn_text.documents(seed, 50_000))

    assert text(3) == text(3)
    assert text(3) != text(4)


def test_lengths_add_up_to_what_was_asked_for(generated):
    total = sum(map(len, generated))
    assert 3_000_000 <= total < 3_000_000 + len(generated[-1])


def test_control_tokens_quotes_and_braces_occur_often(generated):
    text = "\n".join(generated)
    for mark in [*CONTROL, '"', "{", "}", "[", "]", ":", ",", "\n- ", "true", "|"]:
        assert text.count(mark) > 300, mark


def test_records_in_json_can_be_read_back(generated):
    lines = [
        line for text in generated[:3000] for line in text.split("\n") if line.startswith('{"') and line.endswith("}") and "<|" not in line
    ]
    assert len(lines) > 500
    readable = 0
    for line in lines:
        try:
            json.loads(line)
            readable += 1
        except json.JSONDecodeError:
            pass  # two records on one line
    assert readable / len(lines) > 0.99


def test_the_scan_finds_a_planted_sentence():
    planted = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    grams = thirteen_grams("before it: " + planted.upper().replace(" ", ", "))
    assert len(shared_with(grams, ["", planted, "one two three"])) == 2


def test_generated_text_shares_no_13_words_in_a_row_with_the_examples(generated_grams):
    files = sorted((ROOT / "examples").glob("*.jsonl"))
    assert [path.name for path in files] == ["spam.jsonl", "support.jsonl", "traffic.jsonl"]
    for path in files:
        texts = ["\n".join(map(all_strings, row.values())) for row in jsonl_rows(path)]
        assert any(thirteen_grams(text) for text in texts)
        assert shared_with(generated_grams, texts) == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not here: the public task data were not scanned")
def test_generated_text_shares_no_13_words_in_a_row_with_the_task_data(generated_grams):
    sms = (SHARED / "data/sms_spam/SMSSpamCollection.tsv").read_text(encoding="utf-8").splitlines()
    snips = [row for name in ("train", "validate") for row in jsonl_rows(SHARED / f"data/snips_slots/{name}.jsonl")]
    assert len(sms) == 5574
    assert len(snips) > 10_000
    texts = [line.partition("\t")[2] for line in sms]
    texts += [row["text"] + "\n" + json.dumps({"intent": row["intent"], "slots": row["slots"]}, ensure_ascii=False) for row in snips]
    assert shared_with(generated_grams, texts) == []
