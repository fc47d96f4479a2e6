"""What each check of one text must see, and what it must not: ordinary text with the same signs in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.checks import answers, encoding, language, markers, secrets
from tunesmith.data.checks.check import TEXT_CHECKS
from tunesmith.data.checks.finding import masked, share
from tunesmith.data.checks.label_set import canonical, labels_of
from tunesmith.data.checks.labels import slips_of
from tunesmith.data.checks.lengths import outliers
from tunesmith.data.checks.size import detectable_points, interval_points

ORDINARY = [
    "Grüße aus Köln, ça va? Señor Müller wohnt in der Straße. Smörgåsbord, naïve, coöperate, Ærø, Łódź, Đà Nẵng.",
    "“Curly quotes”, ‘single ones’ — dashes – and … an ellipsis; 5 € or £3, 20 °C ± 1, ½ cup, µm, ×, ÷, № 5.",
    "He wrote “PÅ” and “AMANHÔ; the «café»… was «fermé»; ESPAÑA; ÀÉÎÕÜ; 5 Å; Ø; Ð; naïve… «é».",
    "نمی‌خواهم (with the joiner that Persian needs), क्षत्रिय, 日本語、한국어, ไทย, עברית, Ελληνικά, Русский.",
    "A family 👨‍👩‍👧 and a flag 🏳️‍🌈, thumbs 👍🏽.",
    "AT&T, R&D, Q&A; a && b; x &= y; fish & chips.",
    "1 < 2 and 3 > 2; if a<b then c>d; List<String> names; a <- b; <3; vector<int> v; x << 2.",
    r"The path C:\new\table, LaTeX \nabla and \theta, the regex \d+\.\d+.",
    "Version 1.2.3.4 of it; section 1.2.3.4; localhost 127.0.0.1, 10.0.0.7, 192.168.1.1 and 0.1.2.3.",
    "Order 4111-1111-1111-1112 is no card, nor is 1234567812345678, nor ISBN 978-3-16-148410-0.",
    "In 1984-2024 there were 1,234,567 of them; 2024-11-22 10:30:15; 3.14159265358979; 12 34 56.",
    "DE89 3704 0044 0532 0130 01 has wrong check digits. FR is France, GB82 is not an account.",
    "Write to someone@example.com or a@b; follow @jane; the decorator @property; 5 @ 3 pounds.",
    "My password is secret. The password must have eight characters. Reset your password: click here.",
    "The skeleton task-force sk-ip; hf_hub_download; the AKIA bird; ghp is an acronym; eyJ is not a token.",
    "An f-string f'{value}' and {x: 1}, {1, 2}, the set {a, b}, \\frac{1}{2}, ${HOME is open, a[i], x[0][1], [1], [sic], [...]",
    "## Results\n\nThe **response** was good.\n\n# Instructions for use\n\n- one\n- two",
    "Q: what is it?\nHe said: Human beings talk. User friendly. The Assistant: a novel.",
    "I think so. Thinking aloud helps. <thinker>",
    "I'm sorry, I can't come tonight. Sorry, I'm not able to make it. I cannot believe it!",
    "AI will change the world, as an AI researcher would say. My friend is an air hostess.",
    "Todo lists help. To do: nothing. todo.txt. XXX, xxx and Loremar.",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_no_complaint(text: str):
    assert {check.name: what for check in TEXT_CHECKS if (what := check.find(text))} == {}


@pytest.mark.parametrize(
    ("find", "text", "told"),
    [
        (encoding.mojibake, "Das ist schÃ¶n", "→ ö"),
        (encoding.mojibake, "It â€™s", "→ ’"),
        (encoding.mojibake, "5 Â£", "→ £"),
        (encoding.decomposed, "cafe\u0301 au lait", "5 characters"),
        (encoding.control, "a\x92b".encode("latin-1").decode("latin-1"), "U+0092"),
        (encoding.invisible, "ab\u200dcd", "U+200D"),
        (encoding.entity, "&#x27;", "&#x27;"),
        (encoding.tag, '<a href="x">here</a>', "<a href"),
        (secrets.api_key, "sk-ant-" + "api03-abcdefghijklmnop1234", "sk-a… (33 characters)"),
        (secrets.api_key, "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0." + "abcDEF123_-x", "JSON web token"),
        (secrets.card, "6011 1111 1111 1117", "6011…"),
        (secrets.iban, "NL91ABNA0417164300", "NL91…"),
        (secrets.phone, "0711/123456", "0711…"),
        (encoding.mojibake, "Ã–sterreich", "→ Ö"),
        (encoding.mojibake, "ÐŸÑ€Ð¸Ð²ÐµÑ‚", "→ р"),
        (encoding.escaped, r"One.\nTwo", r"\n"),
        (encoding.escaped, r"caf\u00e9", r"\u00e9"),
        (secrets.phone, "+49 711 123456", "+49 …"),
        (secrets.password, "mysql://root:hunter" + "2@localhost/db", "in a URL"),
        (secrets.password, "pwd=abc123" + "XYZ", "pwd="),
        (markers.foreign_marker, "<start_of_turn>user", "<start_of_turn>"),
        (markers.foreign_marker, "### Response:\nParis", "### Response"),
        (markers.unfilled, "Hello {{ user.name }}!", "user.name"),
        (answers.refusal, "As a large language model, I", "As a large language model"),
        (answers.refusal, "I cannot fulfill your request.", "I cannot fulfill"),
    ],
)
def test_what_should_be_seen_is_seen(find, text: str, told: str):
    assert told in find(text) and told


@given(st.text(max_size=300))
def test_no_text_breaks_a_check_and_plain_letters_are_never_complained_about(text: str):
    for check in TEXT_CHECKS:
        assert isinstance(check.find(text), str)
    letters = "".join(c for c in text if c.isascii() and c.isalpha())
    assert not any(check.find(f"{letters} and so on.") for check in TEXT_CHECKS if check.name not in ("filler-text", "api-key"))


@given(st.text(alphabet="äöüßéèêñçåøœ€£“”’–", min_size=1, max_size=20))
def test_any_text_read_with_the_wrong_encoding_is_seen(text: str):
    broken = text.encode("utf-8").decode("latin-1")
    assert encoding.mojibake(f"so: {broken}.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat that was on the mat is not there, and they have left with it.", "English"),
        ("Der Hund ist nicht mehr da und wir haben ihn auf der Straße gesehen.", "German"),
        ("Le chat est dans la maison et il ne veut pas sortir avec nous.", "French"),
        ("El perro está en la casa pero no quiere salir con los otros porque hay lluvia.", "Spanish"),
        ("今日はとても天気がいいです", "Japanese"),
        ("今天天气非常好我们去公园", "Chinese"),
        ("Сегодня очень хорошая погода", "Cyrillic script"),
        ("ok lah see u 2moro", ""),
        ("42", ""),
        ("La la la, de facto per se", ""),
    ],
)
def test_a_language_is_told_only_where_it_is_sure(text: str, expected: str):
    assert language.language_of(text) == expected


def test_labels_are_told_from_free_text_and_their_spellings_are_one():
    assert labels_of(["Spam", "spam ", "SPAM", "ham"] * 5) == {"spam": 15, "ham": 5}
    assert labels_of([f"an answer of its own, number {n}" for n in range(50)]) is None
    assert labels_of(['{"a": 1}'] * 20) is None
    assert canonical(" Not_Spam. ") == canonical("not spam")


def test_a_slip_is_near_a_frequent_label_and_a_number_never_is():
    counts = labels_of(["positive"] * 50 + ["negative"] * 50 + ["postive", "negatvie", "neutral"] + ["10"] * 40 + ["11"])
    assert counts is not None and slips_of(counts) == {"postive": "positive", "negatvie": "negative"}


def test_outliers_stand_far_from_the_middle_of_many():
    usual = [50 + n % 60 for n in range(200)]
    assert outliers(usual) == []
    assert outliers([*usual, 5_000, 2]) == [200, 201]
    assert outliers([1, 1, 1, 1_000]) == [], "four rows have no usual length"


def test_what_rows_can_tell_apart_is_the_textbook_figure():
    assert interval_points(100, 0.5) == pytest.approx(9.8)
    assert detectable_points(400, 0.8) == pytest.approx(7.92, abs=0.01)


def test_shares_and_secrets_are_short():
    assert [share(1, 3), share(1, 30), share(1, 3000), share(0, 3)] == ["33 %", "3.3 %", "< 0.1 %", "0.0 %"]
    assert masked("abcdefghij") == "abcd… (10 characters)"
