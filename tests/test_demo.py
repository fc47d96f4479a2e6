"""What the demo's tables say of an answer."""

from tunesmith.demo import noted, shortened


def test_json_with_a_key_given_twice_is_said_to_be_so():
    assert noted('{"a": 1,\n "a": 2}') == '{"a": 1, "a": 2}  (valid JSON, but a key is given twice)'
    assert noted('{"a": 1}') == '{"a": 1}'
    assert noted("no JSON at all") == "no JSON at all"


def test_a_long_answer_is_cut_and_stays_on_one_line():
    assert shortened("one\ntwo " * 100, most=12) == "one two one…"
