"""Which rows are shown, and what is painted of them."""

import pytest
from tests.conftest import byte_level_tokenizer
from tests.data.template_styles import build

from tunesmith.data.conversation import Conversation, Message, ToolCall
from tunesmith.data.formats import BadRow
from tunesmith.data.packing import pack
from tunesmith.data.show import Row, Token, at_lines, holding, look, look_packed, tokens_of, worst
from tunesmith.data.template import Renderer
from tunesmith.errors import BadInput


def row(line: int, question: str, answer: str, part: str = "train", **more: object) -> Row:
    turns = (Message("user", question, False), Message("assistant", answer, True, **more))  # type: ignore[arg-type]
    return Row(part, Conversation(turns, f"rows.jsonl:{line}"))


def painted(tokens: list[Token]) -> str:
    """Learned tokens in brackets, cut ones in waves."""
    return "".join(f"~{t.text}~" if t.cut else f"[{t.text}]" if t.trained else t.text for t in tokens)


def test_rows_are_found_by_the_line_where_they_start():
    rows = [row(1, "a", "b"), row(5, "c", "d"), row(9, "e", "f")]
    assert at_lines(rows, [], ["5", "rows.jsonl:9"]) == rows[1:]
    with pytest.raises(BadInput, match="no row starts at this line") as caught:
        at_lines(rows, [], ["6"])
    assert caught.value.fix.startswith("--row 5 or 9")
    with pytest.raises(BadInput, match="the answer is empty") as caught:
        at_lines(rows, [BadRow("rows.jsonl:7", "the answer is empty")], ["7"])
    assert caught.value.where == "rows.jsonl:7"


def test_the_lines_that_are_suggested_are_of_the_file_that_was_asked_for():
    others = [Row("train", Conversation(row(1, "a", "b").conversation.messages, f"other.jsonl:{line}")) for line in (6, 7)]
    rows = [row(1, "a", "b"), row(5, "c", "d"), row(9, "e", "f"), *others]
    for wanted, fix in (("rows.jsonl:6", "--row rows.jsonl:5 or rows.jsonl:9"), ("row.jsonl:6", 'did you mean "rows.jsonl"?')):
        with pytest.raises(BadInput, match="no row starts at this line") as caught:
            at_lines(rows, [], [wanted])
        assert fix in caught.value.fix


def test_a_search_looks_into_turns_thoughts_and_calls():
    rows = [
        row(1, "Free ENTRY now", "spam"), row(2, "lunch?", "ham", thinking="no free entry here"),
        row(3, "Where?", "", tool_calls=(ToolCall("look", {"for": "free entry"}),)), row(4, "entry, free", "ham"),
    ]  # fmt: skip
    assert [one.source for one in holding(rows, "free entry")] == ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3"]


def test_the_worst_rows_are_named_with_their_reasons():
    rows = [row(n, f"the message number {n} is this", "yes it is a message") for n in range(8)]
    rows[2] = row(2, "the message " * 120, "yes it is a message")
    rows[3] = row(3, "x" * 60, "yes it is a message")
    rows[4] = row(4, "the message is this", "a")
    rows[5] = row(5, "the message is this", "the answer is " * 30)
    rows[6] = Row("train", Conversation((Message("user", "half \ud800", False), Message("assistant", "b", True)), "rows.jsonl:6"))
    reasons = worst(rows, Renderer(byte_level_tokenizer()), max_length=80, n=1)
    assert set(reasons) == {6, 5, 2, 3, 4}
    assert reasons[6].startswith("refused: a message holds half a character")
    assert reasons[5].startswith("cut: ")
    assert "longest: " in reasons[2]
    assert "most tokens for a word" in reasons[3]
    assert "fewest learned tokens: 2" in reasons[4]


def test_what_lies_beyond_the_length_limit_is_painted_as_cut():
    renderer = Renderer(byte_level_tokenizer())
    [whole] = look(row(1, "a", "spam"), renderer, 100, "error")
    n = len(whole.tokens)
    assert (whole.remark, painted(whole.tokens)) == (
        "", "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n" + "".join(f"[{t.text}]" for t in whole.tokens if t.trained) + "\n"
    )  # fmt: skip
    [cut] = look(row(1, "a", "spam"), renderer, n - 2, "truncate")
    assert [token.cut for token in cut.tokens] == [False] * (n - 2) + [True] * 2
    assert cut.remark == f"longer than training.max_length = {n - 2}: the rest is cut off (data.on_too_long: truncate)"


def test_a_long_text_is_painted_as_its_first_window():
    text = Row("validation", Conversation((Message("text", "the answer is this " * 20, True),), "book.txt:1"))
    [seen] = look(text, Renderer(byte_level_tokenizer()), 16, "error")
    assert len(seen.tokens) == 16
    assert seen.title == "book.txt:1 (validation)"
    assert "windows of at most 16" in seen.remark


@pytest.mark.parametrize("kind", ["byte-level BPE", "SentencePiece BPE"])
def test_token_texts_join_to_the_text_whatever_a_token_reads_like_alone(kind: str):
    """A SentencePiece word alone loses its space, and a character may be several bytes."""
    renderer = Renderer(build(kind, "chatml"))
    [example] = renderer.render(row(1, "Grüße 🎉 aus Köln, yes", " déjà vu ").conversation)
    tokens = tokens_of(example, renderer)
    text = "".join(token.text for token in tokens)
    assert text == "<|im_start|>user\nGrüße 🎉 aus Köln, yes<|im_end|>\n<|im_start|>assistant\n déjà vu <|im_end|>\n"
    assert "".join(token.text for token in tokens if token.trained) == " déjà vu <|im_end|>"
    assert [token.text for token in tokens if token.control] == ["<|im_start|>", "<|im_end|>"] * 2


def test_a_packed_row_shows_its_documents():
    renderer = Renderer(byte_level_tokenizer())
    rows = [row(n, "the message " * n, "yes") for n in (1, 2, 3)]
    [packed] = pack([example for one in rows for example in renderer.render(one.conversation)], 500)
    seen = look_packed(packed, renderer, "row 1")
    assert seen.sources == ("rows.jsonl:3", "rows.jsonl:2", "rows.jsonl:1")
    for number, source in enumerate(seen.sources):
        [alone] = look(next(one for one in rows if one.source == source), renderer, 500, "error")
        assert [(t.id, t.trained) for t in seen.tokens if t.document == number] == [(t.id, t.trained) for t in alone.tokens]
    assert seen.n_trained == sum(look(one, renderer, 500, "error")[0].n_trained for one in rows)
