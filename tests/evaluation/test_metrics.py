import json
import math

import pytest

from tunesmith.errors import BadInput, MachineFailed
from tunesmith.evaluation.metrics import (
    INVALID,
    answer_metrics,
    commonest,
    language_metrics,
    metric_names,
    parse_json,
    row_metrics,
    same_answer,
    task_of,
    token_f1,
)


def test_the_task_follows_from_the_references():
    assert task_of(["ham", "spam", "ham", " spam "]) == "label"
    assert task_of(["1", "0", "1", "0"]) == "label"  # numbers are JSON, but no objects
    assert task_of(['{"a": 1}', "[]"]) == "json"
    assert task_of(['{"a": 1}', '{"a": NaN}']) == "text"  # NaN is not JSON
    assert task_of(["red", "green", "blue"]) == "text"  # nothing is repeated
    assert task_of(["ham", "ham", "spam"]) == "text"  # 1.5 rows each
    assert task_of(["yes " * 20] * 9) == "text"  # too long for a label
    assert task_of([str(i % 51) for i in range(500)]) == "text"  # too many labels
    assert task_of([str(i % 50) for i in range(500)]) == "label"
    with pytest.raises(BadInput, match="no reference answers"):
        task_of([])


def test_labels_are_counted_per_class_and_an_unknown_answer_is_wrong_for_all():
    references = ["ham", "ham", "ham", "spam", "spam"]
    predictions = ["ham", " ham\n", "spam", "spam", "I think it is spam"]
    metrics = answer_metrics("label", predictions, references)
    #          right  false alarms  missed
    # ham        2         0          1      2·2 / (2·2 + 0 + 1) = 4/5
    # spam       1         1          1      2·1 / (2·1 + 1 + 1) = 1/2
    assert metrics == pytest.approx({"accuracy": 3 / 5, "f1_ham": 4 / 5, "f1_spam": 1 / 2, "f1_macro": 0.65, "valid_label": 4 / 5})
    assert list(metrics) == ["accuracy", "f1_ham", "f1_spam", "f1_macro", "valid_label"]


def test_a_class_never_predicted_has_f1_zero_without_a_warning():
    assert answer_metrics("label", ["ham", "ham"], ["ham", "spam"])["f1_spam"] == 0.0
    assert answer_metrics("label", ["?", "!"], ["ham", "ham"]) == {"accuracy": 0.0, "f1_ham": 0.0, "f1_macro": 0.0, "valid_label": 0.0}


def test_many_different_labels_do_not_make_scikit_learn_warn():
    labels = [f"label {i}" for i in range(30)]
    assert answer_metrics("label", labels, labels)["f1_macro"] == 1.0
    assert answer_metrics("label", [str(i) for i in range(30)], [str(i) for i in range(30)])["f1_macro"] == 1.0


def test_labels_become_safe_metric_names_and_stay_apart():
    assert metric_names("f1_", ["not spam", "not_spam", "not-spam", "macro", "", "+", "-1", "1"], taken=["f1_macro"]) == {
        "not_spam": "f1_not_spam",  # needs no change, so it keeps its name
        "not spam": "f1_not_spam_2",
        "not-spam": "f1_not_spam_3",
        "macro": "f1_macro_2",
        "1": "f1_1",
        "-1": "f1_minus_1",
        "+": "f1_plus_sign",
        "": "f1_empty",
    }
    metrics = answer_metrics("label", ["not spam", "spam"], ["not spam", "spam"])
    assert list(metrics) == ["accuracy", "f1_not_spam", "f1_spam", "f1_macro", "valid_label"]


def test_json_is_strict():
    assert parse_json('{"a": [1, null, true]}') == {"a": [1, None, True]}
    for text in (
        "NaN",
        '{"a": Infinity}',
        '{"a": -Infinity}',
        '{"a": 1,}',
        "{'a': 1}",
        '{"a": 1} and more',
        "",
        "[" * 100_000,
    ):
        assert parse_json(text) is INVALID, text[:40]


def test_json_answers_are_equal_by_value_and_type():
    def same(prediction: str, reference: str) -> bool:
        return same_answer("json", prediction, reference)

    assert same('{"b": 1.0, "a": {"c": []}}', '{"a": {"c": []}, "b": 1}')
    assert same("null", "null")
    assert not same('{"a": true}', '{"a": 1}')
    assert not same('{"a": "1"}', '{"a": 1}')
    assert not same('{"a": {}}', '{"a": []}')
    assert not same('{"a": {}}', "{}")
    assert not same("[1, 2]", "[2, 1]")
    assert not same("[1, 1]", "[1]")
    assert not same("oops", "oops")
    deep = "[" * 900 + "]" * 900
    assert same(deep, deep)
    assert not same(deep, "[" + deep + "]")


def test_json_metrics_by_hand():
    references = [
        '{"intent": "play", "slots": {"artist": "Abba", "year": "1975"}}',
        '{"intent": "play", "slots": {"artist": ["Abba", "Toto"]}}',
        '{"intent": "rate", "slots": {"stars": "5"}}',
        '{"intent": "rate", "slots": {}}',
    ]
    predictions = [
        '{"slots": {"year": "1975", "artist": "Abba"}, "intent": "play"}',  # all right, in another order: 3 pairs of 3
        '{"intent": "play", "slots": {"artist": ["Toto", "Abba"]}}',  # order of a list: a bag in F1, a difference in exact match
        '{"intent": "play", "slots": {"stars": "4"}}',  # 0 of 2 pairs
        '{"intent": "rate", "slots": {}',  # cut off
    ]
    #                 shared   predicted   expected
    # slots           2+2+0+0   2+2+1+0    2+2+1+0       2·4 / (5 + 5)
    # with intents    3+3+0+0   3+3+2+0    3+3+2+1       2·6 / (8 + 9)
    metrics = answer_metrics("json", predictions, references)
    expected = {
        "valid_json": 3 / 4,
        "repeated_keys": 0.0,
        "exact_match": 1 / 4,
        "accuracy_intent": 2 / 4,
        "f1_slots": 8 / 10,
        "f1_fields": 12 / 17,
    }
    assert metrics == pytest.approx(expected)
    assert list(metrics) == list(expected)


def test_a_json_key_is_measured_where_the_references_have_it():
    references = ['{"kind": "a", "note": "x"}', '{"kind": "b"}']
    predictions = ['{"kind": "a", "note": "y"}', '{"kind": "b", "note": "x"}']
    metrics = answer_metrics("json", predictions, references)
    assert metrics["accuracy_kind"] == 1.0
    assert metrics["accuracy_note"] == 0.0  # of one row; the note too many in the second lowers f1_fields
    assert metrics["f1_fields"] == pytest.approx(2 * 2 / (4 + 3))


def test_invalid_json_is_wrong_everywhere_even_where_there_was_nothing_to_find():
    assert set(answer_metrics("json", ["no", "{"], ['{"tags": []}', '{"tags": []}']).values()) == {0.0}
    right = answer_metrics("json", ['{"tags": []}'], ['{"tags": []}'])
    assert right.pop("repeated_keys") == 0.0
    assert set(right.values()) == {1.0}


def test_a_key_given_twice_is_grammar_but_no_value():
    reference = '{"intent": "play", "slots": {"artist": "Abba"}}'
    twice = '{"intent": "play", "slots": {"artist": "Toto", "artist": "Abba"}}'  # Python's json would keep Abba, and call it right
    metrics = answer_metrics("json", [twice, reference], [reference, reference])
    assert metrics == {
        "valid_json": 1.0, "repeated_keys": 1 / 2, "exact_match": 1 / 2, "accuracy_intent": 1.0, "f1_slots": 1 / 2, "f1_fields": 3 / 4,
    }  # fmt: skip
    assert task_of([twice, reference, reference]) == "text"
    with pytest.raises(BadInput, match="gives a key twice"):
        answer_metrics("json", [reference], [twice])


def test_answers_of_another_json_type_are_valid_and_wrong():
    metrics = answer_metrics("json", ["5", '["play"]', "null"], ['{"intent": "play"}'] * 3)
    assert metrics == {"valid_json": 1.0, "repeated_keys": 0.0, "exact_match": 0.0, "accuracy_intent": 0.0, "f1_fields": 0.0}


def test_json_keys_without_end_get_no_metric_each():
    references = [json.dumps({f"key {i}": i}) for i in range(60)]
    assert list(answer_metrics("json", references, references)) == ["valid_json", "repeated_keys", "exact_match", "f1_fields"]


def test_a_reference_that_is_not_json_is_refused_by_its_row():
    with pytest.raises(BadInput) as error:
        answer_metrics("json", ["{}", "{}"], ["{}", "hello"])
    assert "answer 2: hello" in error.value.where


def test_words_overlap_as_in_squad():
    assert token_f1("The Eiffel Tower!", "eiffel tower") == 1.0
    assert token_f1("in Paris, France", "Paris") == pytest.approx(2 * 1 / (3 + 1))
    assert token_f1("to be or not to be", "to be") == pytest.approx(2 * 2 / (6 + 2))
    assert token_f1("Straße", "STRASSE") == 1.0
    assert token_f1("", "Paris") == 0.0
    assert token_f1("", "...") == 1.0
    metrics = answer_metrics("text", [" Paris\n", "the Rome"], ["Paris", "Rome"])
    assert metrics == pytest.approx({"exact_match": 0.5, "token_f1": 1.0, "rouge_l": (1 + 2 / 3) / 2})


def test_the_commonest_training_answer_is_the_one_to_give_every_time():
    references = ["ham", "ham", "spam"]
    assert commonest(["spam", "ham", "ham "], references) == "ham"
    assert commonest(["spam"], references) == "spam"
    assert commonest([], references) == "ham"  # of an unseen task
    assert commonest([], [("b", "a"), ("a",), ("b", "c")]) == "b"
    assert commonest(["x", "y"], references) == "x"  # of equally frequent ones the first


def test_language_metrics_of_a_uniform_guess():
    # 10 tokens guessed among 256, spelling 20 bytes: 8 bits per token, 4 per byte
    metrics = language_metrics(nll_sum=10 * math.log(256), n_tokens=10, n_bytes=20)
    assert metrics == pytest.approx({"loss": math.log(256), "perplexity": 256, "bits_per_byte": 4.0})
    assert list(language_metrics(1e6, 1, 1)) == ["loss", "bits_per_byte"]  # e^1000000 is no number
    with pytest.raises(MachineFailed, match="loss on these rows is nan"):
        language_metrics(math.nan, 1, 1)


def test_nothing_to_measure_is_refused():
    with pytest.raises(BadInput, match="1 answers for 2"):
        answer_metrics("label", ["ham"], ["ham", "spam"])
    with pytest.raises(BadInput, match="no rows"):
        answer_metrics("text", [], [])
    with pytest.raises(BadInput, match="no rows"):
        commonest([], [])
    with pytest.raises(BadInput, match="nothing was predicted"):
        language_metrics(0.0, 0, 0)


def test_of_several_right_answers_the_best_counts():
    references = [("two hours", "a few hours"), ("at noon",)]
    metrics = answer_metrics("text", ["a few hours", "noon"], references)
    assert metrics == pytest.approx({"exact_match": 1 / 2, "token_f1": (1 + 2 / 3) / 2, "rouge_l": (1 + 2 / 3) / 2})
    assert answer_metrics("text", ["two hours", "noon"], ["two hours", "at noon"])["exact_match"] == 1 / 2  # one each, as ever
    assert answer_metrics("label", ["b", "a"], [("a", "b"), ("b",)])["accuracy"] == 1 / 2
    assert answer_metrics("json", ["[2]", "[3]"], [("[1]", "[2]"), ("[1]",)])["exact_match"] == 1 / 2


@pytest.mark.parametrize(
    "task, predictions, references",
    [
        ("label", ["ham", "spam", "what?"], ["ham", "ham", "spam"]),
        ("json", ['{"a": 1}', "no", '{"a": 2}'], ['{"a": 1}', '{"a": 1}', '{"a": 1}']),
        ("text", ["the cat sat", "", "a dog"], [("a cat sat", "x"), ("y",), ("a dog",)]),
    ],
)
def test_values_of_rows_have_the_metrics_as_their_means(task, predictions, references):
    whole = answer_metrics(task, predictions, references)
    for name, values in row_metrics(task, predictions, references).items():
        assert sum(values) / 3 == pytest.approx(whole[name]), name


def test_rouge_l_looks_at_the_order_of_words_and_token_f1_does_not():
    metrics = answer_metrics("text", ["dog bites man"], ["man bites dog"])
    assert metrics["token_f1"] == 1.0
    assert metrics["rouge_l"] == pytest.approx(1 / 3)
