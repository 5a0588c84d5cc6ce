import pytest

from unlearning_adapters.concepts.wording import (
    NEAR,
    changed_places,
    check_prompts,
    find_word,
    is_prompt,
    leave_out,
    near_sides,
    plain,
    show,
    similarity,
    tokens,
)
from unlearning_adapters.errors import ConceptError


def test_words_are_found_whole_in_any_case_and_as_phrases():
    assert find_word("A Red  car", ["red"]) == "red"
    assert find_word("a bored man", ["red"]) is None
    assert find_word("scarlet-red", ["red"]) == "red"
    assert find_word("a car\n without   clothes", ["naked", "Without Clothes"]) == "without clothes"
    assert find_word("the Redwood tree", ["red"]) is None
    assert find_word("the Redwood tree", ["red"], whole=False) == "red"
    assert find_word("a bored man", ["red"], whole=False) is None
    assert find_word("the C++ logo", ["c++"]) == "c++"
    assert find_word("anything", []) is None


def test_words_are_left_out_whole_and_in_any_case():
    assert leave_out("a Red circle near a redder square", ("red", "crimson")) == "a circle near a redder square"
    assert leave_out("a red disc", ("disc",), "shape") == "a red shape"
    assert leave_out("a cherry red car", ("red", "cherry red")) == "a car"  # the longer phrase first
    assert leave_out("a car without\n clothes", ("Without Clothes",)) == "a car"
    assert leave_out("the C++ logo", ("c++",), r"\1") == r"the \1 logo"


def test_a_prompt_without_the_words_or_with_nothing_else_stays_as_it_is():
    for text in ("a  blue car", "red", " RED  red"):
        assert leave_out(text, ("red",)) == text
    assert leave_out("a  red car", ()) == "a  red car"


@pytest.mark.parametrize(
    ("one", "other", "changed"),
    [
        ("a red car", "a blue car", [("red", "blue")]),
        ("a red car moves", "a car stands", [("red", ""), ("moves", "stands")]),
        ("a car", "a big red car", [("", "big red")]),
        ("a car", "a car", []),
    ],
)
def test_the_places_in_which_two_sides_differ(one, other, changed):
    left, right = one.split(), other.split()
    assert [(" ".join(left[old]), " ".join(right[new])) for old, new in changed_places(left, right)] == changed


def test_sides_that_a_prompt_nearly_repeats_the_nearest_first():
    sides = ("a red car on a road", "a red car", "a dog")
    assert near_sides("A red car!", sides) == [("a red car", 1.0)]
    assert near_sides("a red car on the road", sides, least=0.4) == [(sides[0], 5 / 6), (sides[1], 3 / 6)]
    assert near_sides("a red car on the road", sides) == [(sides[0], 5 / 6)] and NEAR == 0.75


def test_similarity_is_the_share_of_common_words():
    assert similarity("a red ball", "A ball, red!") == 1.0
    assert similarity("a red ball", "a blue ball") == pytest.approx(2 / 4)
    assert similarity("red", "blue") == 0.0
    assert similarity("a b", "b c") == similarity("b c", "a b")


def test_texts_are_compared_and_shown_on_one_line():
    assert plain(" A\n Red  Ball ") == "a red ball"
    assert tokens("A cat's toy, 2 balls") == ["a", "cat", "s", "toy", "2", "balls"]
    assert show("a\nb") == r"'a\nb'"
    assert len(show("x" * 1000)) == 100


@pytest.mark.parametrize("value", ["", " \n", None, 5, b"a", "half a character \ud83d"])
def test_what_is_no_prompt(value):
    assert not is_prompt(value)
    with pytest.raises(ConceptError, match="Expected entry 2 of `x` to be a text that is not empty, but got "):
        check_prompts("x", ["a", value])


def test_a_list_of_prompts_is_a_tuple_without_repeats():
    assert check_prompts("x", (text for text in "ab")) == ("a", "b")
    with pytest.raises(ConceptError, match="Entry 3 of `x` repeats entry 1: 'A'. Remove one of them."):
        check_prompts("x", ["a", "b", "A"])
    with pytest.raises(ConceptError, match="Expected `x` to be a list, but got 'ab'. Write each entry after a dash."):
        check_prompts("x", "ab")
