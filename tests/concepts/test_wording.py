import pytest

from unlearning_adapters.concepts.wording import check_prompts, find_word, is_prompt, plain, show, similarity, tokens
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
