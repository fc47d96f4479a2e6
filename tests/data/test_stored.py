"""Examples on disk come back as they were, whatever their order, and a damaged file is noticed."""

import numpy as np
import pytest

from tunesmith.data.stored import FILES, StoredExamples, write_examples
from tunesmith.data.template import Example
from tunesmith.errors import BadInput


def example(ids, trained, source):
    return Example(np.array(ids, dtype=np.int32), np.array(trained, dtype=np.bool_), source)


EXAMPLES = [
    example([5, 6, 7, 2], [0, 0, 1, 1], "train.jsonl:1"),
    example([9], [1], "données.jsonl:2"),  # nothing is learned: its only token has none before it
    example([1 << 20, 3, 2], [1, 1, 0], "train.jsonl:30"),
]


def test_what_was_written_comes_back(tmp_path):
    assert write_examples(tmp_path / "rows", iter(EXAMPLES)) == 3
    stored = StoredExamples(tmp_path / "rows")
    assert len(stored) == 3
    for found, given in zip(stored, EXAMPLES, strict=True):
        assert found.source == given.source
        assert found.ids.tolist() == given.ids.tolist() and found.ids.dtype == np.int32
        assert found.trained.tolist() == given.trained.tolist() and found.trained.dtype == np.bool_
    assert [e.source for e in stored[1:]] == [e.source for e in EXAMPLES[1:]]
    assert stored[-1].source == "train.jsonl:30"
    with pytest.raises(IndexError):
        stored[3]


def test_lengths_and_learned_tokens_are_known_without_reading_examples(tmp_path):
    write_examples(tmp_path / "rows", EXAMPLES)
    stored = StoredExamples(tmp_path / "rows")
    assert stored.lengths.tolist() == [4, 1, 3]
    assert stored.n_trained.tolist() == [int(e.trained[1:].sum()) for e in EXAMPLES] == [2, 0, 1]


def test_no_examples_are_a_sequence_too(tmp_path):
    assert write_examples(tmp_path / "rows", []) == 0
    stored = StoredExamples(tmp_path / "rows")
    assert len(stored) == 0 and list(stored) == [] and stored.n_trained.tolist() == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["shorter", "gone"])
def test_a_file_that_does_not_fit_the_others_is_refused(tmp_path, name, damage):
    write_examples(tmp_path / "rows", EXAMPLES)
    file = tmp_path / "rows" / name
    content = file.read_bytes()
    file.unlink()
    if damage == "shorter":
        file.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadInput, match="stored examples"):
        StoredExamples(tmp_path / "rows")
