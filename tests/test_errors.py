"""What a user reads."""

from tunesmith.errors import nearest


def test_the_nearest_name_is_proposed_and_of_many_others_only_the_first_are_listed():
    assert nearest("colors", ["colours", "shapes"]) == 'did you mean "colours"?'
    assert nearest("x", ["long name", "other name"]) == "known: long name, other name"
    assert nearest("x", [f"file {n:02}" for n in range(30)]) == "known: " + ", ".join(f"file {n:02}" for n in range(8)) + " and 22 more"
