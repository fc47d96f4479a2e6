"""`tunesmith show`: rows by line, by text, the worst, and packed ones; on the terminal, as JSON and as a page."""

import json
import re
from pathlib import Path

import pytest
from shell import finished, refused, run_here, write_jsonl

TALKS = [
    {"messages": [{"role": "user", "content": "what <b>colour</b> is it?"}, {"role": "assistant", "content": "red"}]},
    {"messages": [{"role": "user", "content": "and this <|end|>?"}, {"role": "assistant", "content": "<think>hm</think>blue"}]},
    {"messages": [{"role": "user", "content": "what is thing " * 30}, {"role": "assistant", "content": "green"}]},
]


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "talks.jsonl", TALKS)


def shown(said: str) -> list[str]:
    return re.findall(r"^(\S+): \d+ tokens", said, re.M)


def test_rows_are_shown_by_line_by_text_and_by_default_the_first(tiny: str, talks: Path):
    for arguments, expected in (
        ((), ["talks.jsonl:1"]),
        (("--row", "3", "--row", "talks.jsonl:1"), ["talks.jsonl:3", "talks.jsonl:1"]),
        (("--search", "WHAT"), ["talks.jsonl:1", "talks.jsonl:3"]),
        (("--search", "what", "--most", "1"), ["talks.jsonl:1"]),
    ):
        said = run_here("show", talks, "--model", tiny, *arguments)
        finished(said)
        assert shown(said.out) == expected


def test_the_policy_for_thinking_is_said_and_painted(tiny: str, talks: Path):
    for policy, words, learned in (
        ("keep", "learned as the beginning of the answer", "<think>hm</think>blue<|end|>"),
        ("untrained", "does not learn it", "blue<|end|>"),
        ("strip", "left out", "blue<|end|>"),
    ):
        said = run_here("show", talks, "--model", tiny, "--row", "2", "--set", f"data.thinking={policy}", "--json")
        finished(said)
        found = json.loads(said.out)
        assert any(words in line for line in found["said"])
        [example] = found["examples"]
        assert "".join(token["text"] for token in example["tokens"] if token["trained"]) == learned
        assert ("hm" in example["text"]) == (policy != "strip")


def test_what_the_limit_cuts_is_marked(tiny: str, talks: Path):
    said = run_here("show", talks, "--model", tiny, "--worst", "1", "--max-length", "40")
    finished(said)
    assert "talks.jsonl:3" in said.out
    assert "training would stop at it" in said.out
    waves = re.search(r"~(.*?)~", said.out[said.out.index("talks.jsonl:3") :], re.S)
    assert waves is not None
    assert waves[1].endswith("[<|end|>]")


def test_packed_rows_are_painted_with_their_borders(tiny: str, colours: str):
    said = run_here("show", colours, "--model", tiny, "--packed", "--step", "2", "--set", "training.micro_batch_tokens=64")
    finished(said)
    assert "step 2, row 1 of " in said.out
    borders = re.findall(r"^── (colours\.jsonl:\d+) ──$", said.out, re.M)
    assert len(borders) == len(set(borders)) == 16
    shared = run_here(
        "show", colours, "--model", tiny, "--packed", "--set", "training.micro_batch_tokens=512", "--set", "lora.dropout=0", "--json"
    )
    finished(shared)
    row = json.loads(shared.out)["examples"][0]
    assert row["source"].startswith("colours.jsonl:")
    assert "which stands there once" in row["remark"]
    assert re.search("── what the next [0-9]+ begin with ──", said.out)
    refused(run_here("show", colours, "--model", tiny, "--packed", "--step", "4"), "an epoch has 3 steps", "--step 4", "--step 1 to 3")


def test_the_page_holds_every_token_and_asks_no_network(tiny: str, talks: Path):
    Path("pages").mkdir()
    finished(run_here("show", talks, "--model", tiny, "--row", "1", "--row", "2", "--html", "pages/rows.html"))
    page = Path("pages/rows.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert "<b>colour</b>" not in page
    assert 'class="t"' in page and 'class="t k"' in page
    words = re.sub(r"<s>.*?</s>", "", page[page.index("talks.jsonl:1") :])
    assert "&lt;b&gt;colour&lt;/b&gt;" in re.sub(r"<[^>]*>", "", words)


def test_wrong_wishes_are_refused(tiny: str, talks: Path):
    show = ("show", talks, "--model", tiny)
    refused(run_here(*show, "--row", "7"), "no row starts at this line", "--row 7", "--row 3")
    refused(run_here(*show, "--search", "violet"), "no row holds this text", "violet")
    refused(run_here(*show, "--row", "1", "--search", "what"), "one way at a time", "--row --search")
    refused(run_here(*show, "--step", "2"), "--step belongs to --packed", "--step 2")
    refused(run_here("show", "nowhere.jsonl", "--model", tiny), "", "nowhere.jsonl")


def test_where_no_page_can_be_is_told_before_the_work(tiny: str, talks: Path):
    refused(run_here("show", talks, "--model", tiny, "--html", "."), "this is a folder", "--html .", "--html page.html")
    refused(run_here("check", talks, "--html", "absent/page.html"), "no such folder", "--html absent/page.html", "mkdir -p absent")
    assert not Path("absent").exists()


def test_a_long_remark_wraps_on_the_page(tiny: str, talks: Path):
    finished(run_here("show", talks, "--model", tiny, "--worst", "1", "--max-length", "40", "--html", "rows.html"))
    page = Path("rows.html").read_text(encoding="utf-8")
    assert '<p class="remark">' in page and 'class="mark"' not in page
