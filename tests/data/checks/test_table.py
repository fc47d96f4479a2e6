"""Columns of many rows, and what is found out about them without keeping them all."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data import spool
from tunesmith.data.checks.duplicates import contradictory
from tunesmith.data.checks.finding import MOST_SEEN, Hits, Lines, found
from tunesmith.data.checks.label_set import COVERED_SHARE, MOST_LABELS, canonical, labels_of
from tunesmith.data.checks.table import SHARED_LINE_ROWS, Table, majority
from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.spool import OnDisk, Texts, packed, unpacked


def rows_of(pairs: list[tuple[str, str]]) -> list[Conversation]:
    return [
        Conversation((Message("system", f"Be {n % 2}.", False), Message("user", asked, False), Message("assistant", said, True)), f"a.jsonl:{n}")
        for n, (asked, said) in enumerate(pairs, 1)
    ]  # fmt: skip


SOURCES = ["a.jsonl:1", "b/c.csv:20", "a.jsonl:3", "no line", "a:007", "x:", ":5", "d:99999999999999999999", "a.jsonl:1"]


def test_lines_are_the_texts_that_were_put_in():
    lines = Lines(SOURCES)
    assert lines == tuple(SOURCES) and tuple(SOURCES) == lines and lines != SOURCES[1:] and lines[2:4] == ("a.jsonl:3", "no line")
    assert list(lines) == SOURCES and lines[-1] == "a.jsonl:1"


def test_a_finding_has_every_line_and_what_stood_at_the_first_of_them():
    hits = Hits((f"a:{n}", f"what {n}") for n in range(1000))
    [finding] = found("x", "note", hits, "why", "fix")
    assert finding.count == len(finding.sources) == 1000 and finding.seen == tuple(f"what {n}" for n in range(MOST_SEEN))
    assert found("x", "note", iter([]), "why", "fix") == []


@given(st.lists(st.sampled_from("aab"), max_size=30))
def test_the_text_that_most_have_is_found_in_one_pass(texts):
    common = Counter(texts).most_common(1)
    if common and common[0][1] > len(texts) / 2:
        assert majority(texts) == common[0][0]


@given(st.lists(st.sampled_from(["Yes", "yes ", "no", "", *"abcdefgh", "a longer answer, that is no label of anything"]), max_size=60))
def test_labels_are_told_as_soon_as_there_are_too_many_and_not_otherwise(answers):
    every = Counter(map(canonical, answers))
    repeated = {label: n for label, n in every.items() if n >= 3 and label}
    are_labels = repeated and len(repeated) <= MOST_LABELS and sum(repeated.values()) >= COVERED_SHARE * len(answers)
    short = sum(len(answer) <= 40 for answer in answers) >= 0.97 * len(answers)
    assert labels_of(answers) == (every if len(answers) >= 6 and are_labels and short else None)


def test_the_lines_that_many_prompts_share_are_left_out_whether_the_table_is_large_or_small(monkeypatch):
    draw = random.Random(0)
    form = ["Sort this message.", "Say spam or ham.", ""]
    pairs = [("\n".join([*form, f"message {n} {draw.random()}", f"line {n // (SHARED_LINE_ROWS - 1)}"]), "ham") for n in range(600)]
    own = [asked.removeprefix("\n".join(form) + "\nmessage ") for asked, _ in pairs]
    assert list(Table("train", "a", rows_of(pairs)).own) == own
    monkeypatch.setattr(spool, "MANY_ROWS", 10)
    large = Table("train", "a", OnDisk(packed, unpacked, rows_of(pairs)))
    assert isinstance(large.prompts, Texts) and list(large.own) == own
    assert list(large.answers) == ["ham"] * 600 and large.sources[599] == "a.jsonl:600" and set(large.systems) == {"Be 0.", "Be 1."}


def test_each_contradicting_row_names_the_first_that_says_otherwise():
    said = ["x", "x", "y", "x", "z", "x"]
    rows = [
        Conversation((Message("user", "Why?", False), Message("assistant", f"because {a}", True)), f"a:{n}") for n, a in enumerate(said, 1)
    ]
    [finding] = contradictory(Table("train", "a", rows))
    assert finding.sources == tuple(f"a:{n}" for n in range(1, 7))
    assert [what.split("; ")[1].split(": '")[0] for what in finding.seen] == ["a:3", "a:3", "a:1", "a:3", "a:1", "a:3"]
