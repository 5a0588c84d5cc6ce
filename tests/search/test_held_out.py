"""What a search holds out of a concept, and the same sentence without the concept."""

import re

import pytest

from unlearning_adapters.concepts.concept import Concept, Pair, list_concepts, load_concept
from unlearning_adapters.concepts.wording import find_word
from unlearning_adapters.errors import ConceptError
from unlearning_adapters.search.held_out import split_concept

PAIRS = (
    Pair("a red circle moves", "a blue circle moves"),
    Pair("a Crimson car, at night", "a green car, at night"),
    Pair("the red house", "the yellow house"),
)
CONCEPT = Concept(
    "red", PAIRS, neutral=("a dog", "a cat", "a bird", "a tree"), evaluation=("a tree of RED leaves", "a blood moon"),
    neighbours=("a pink car", "a pink dog"), words=("red", "crimson", "scarlet"),
)  # fmt: skip


def test_a_counterpart_takes_the_replacements_of_all_pairs_in_the_place_of_the_concept():
    (held_out, asked) = split_concept(CONCEPT).validation.forget
    assert held_out.prompt == "the red house"
    assert held_out.safe == ("the yellow house", "the blue house", "the green house")
    assert asked.safe == ("a tree of blue leaves", "a tree of green leaves", "a tree of yellow leaves")


def test_a_prompt_without_a_known_phrase_takes_no_part():
    split = split_concept(CONCEPT)
    assert "a blood moon" not in [item.prompt for half in (split.validation, split.test) for item in half.forget]


@pytest.mark.parametrize("name", [name for name in list_concepts() if name.startswith("shapeworld")] + ["nudity"])
def test_no_prompt_is_used_twice_and_no_counterpart_names_the_concept(name):
    concept = load_concept(name)
    split = split_concept(concept)
    halves = [{*(item.prompt for item in half.forget), *half.retain} for half in (split.validation, split.test)]
    built = {*split.concept.neutral, *(text for pair in split.concept.pairs for text in (pair.unsafe, pair.safe))}
    assert all(halves) and not halves[0] & halves[1] and not built & (halves[0] | halves[1])
    assert len(split.concept.pairs) == 5 and split.validation.forget and split.test.forget
    for item in (*split.validation.forget, *split.test.forget):
        assert 1 <= len(item.safe) <= 4
        assert not any(find_word(text, concept.words) for text in item.safe)


@pytest.mark.parametrize(
    ("concept", "text"),
    [
        (Concept("one", PAIRS[:1], neutral=("a dog",)), "at least 2 pairs whose prompts differ, .* but it has 1"),
        (Concept("bare", PAIRS), "neutral prompts or neighbours, .* but it has none. Add `neutral: shared`."),
    ],
)
def test_too_little_to_hold_out_is_an_error(concept, text):
    with pytest.raises(ConceptError, match=text):
        split_concept(concept)


def test_pairs_that_are_held_out_are_the_last_ones():
    split = split_concept(CONCEPT)
    assert split.concept.pairs == PAIRS[:2]
    assert re.search("house", split.validation.forget[0].prompt)
