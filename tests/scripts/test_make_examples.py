import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from tunesmith.config import load_run

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import make_examples  # noqa: E402


def rows(name):
    return [json.loads(line) for line in (ROOT / "examples" / name).read_text(encoding="utf-8").splitlines()]


def test_the_script_writes_the_files_of_examples_byte_for_byte(tmp_path):
    make_examples.write_all(tmp_path)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted(path.name for path in (ROOT / "examples").glob("*.jsonl"))
    for name in written:
        assert (tmp_path / name).read_bytes() == (ROOT / "examples" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("name", "text", "label", "counts"),
    [
        ("spam.jsonl", "text", "label", {"spam": 300, "ham": 300}),
        ("traffic.jsonl", "report", "category", dict.fromkeys(["accident", "congestion", "roadworks", "weather", "closure", "clear"], 100)),
    ],
)
def test_labels_are_balanced_and_no_text_occurs_twice(name, text, label, counts):
    assert Counter(row[label] for row in rows(name)) == counts
    assert len({row[text].casefold() for row in rows(name)}) == len(rows(name)) == 600


def test_every_product_and_order_number_can_be_copied_from_its_message():
    support = rows("support.jsonl")
    assert len({row["message"].casefold() for row in support}) == len(support) == 900
    for row in support:
        answer = row["answer"]
        assert list(answer) == ["product", "issue", "urgency", "order"]
        assert answer["product"] in row["message"]
        assert answer["order"] is None or answer["order"] in row["message"]
    assert len({row["answer"]["product"] for row in support}) > 800
    n_without_order = sum(row["answer"]["order"] is None for row in support)
    assert 0.2 < n_without_order / 900 < 0.3
    for key, n_kinds in (("issue", 8), ("urgency", 3)):
        counts = Counter(row["answer"][key] for row in support)
        assert len(counts) == n_kinds
        assert max(counts.values()) < 1.1 * min(counts.values())


def test_no_choice_or_slot_is_left_in_a_text():
    for name, key in (("spam.jsonl", "text"), ("traffic.jsonl", "report"), ("support.jsonl", "message")):
        for row in rows(name):
            assert not set(row[key]) & set("[]{}|_"), row[key]
            assert row[key] == row[key].strip()


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_config_loads_and_points_at_its_data(path):
    run, converted = load_run(path)
    assert converted == []
    assert run.model == "acorn"
    assert (ROOT / run.data.train).is_file()
    assert run.method == ("full" if path.stem == "full" else "lora")
