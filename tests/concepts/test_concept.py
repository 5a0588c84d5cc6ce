import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unlearning_adapters.concepts.concept import (
    Concept,
    Overlap,
    Pair,
    concept_template,
    list_concepts,
    load_concept,
    overlap,
    save_concept,
    shared_neutral,
)
from unlearning_adapters.concepts.wording import find_word, tokens
from unlearning_adapters.errors import ConceptError, ConfigError
from unlearning_adapters.shapeworld.world.captions import WORDS, is_held_out, vocabulary
from unlearning_adapters.shapeworld.world.scenes import FACTORS

PAPER = ("copyrighted-characters", "graphic-violence", "nudity", "public-figures", "trademarks")
TARGETS = {
    f"shapeworld-{value}": (factor, value) for factor in ("colour", "shape", "motion") for value in FACTORS[factor]
}
RED = {"name": "red", "pairs": [{"unsafe": "a red ball", "safe": "a blue ball"}]}
HELD_OUT_TEMPLATE = re.compile(r"we see .+ that |.+ there is .+ which ")


def words_of(factor: str, value: str) -> set[str]:
    """The single words that tell a value from the others, such as "top" of "to the top"."""
    own = {word for phrase in WORDS[factor][value] for word in phrase.split()}
    return own - {"to", "the"}


def factors_of(caption: str) -> dict[str, str]:
    """The factor values that a caption names, those of the first body if it has two."""
    caption = re.sub(r" and an? \w+ \w+", "", caption)
    return {
        factor: value
        for factor in FACTORS
        for value in FACTORS[factor]
        if find_word(caption, sorted(words_of(factor, value)))
    }


def difference(pair: Pair) -> tuple[list[str], list[str]]:
    """What is left of both sides without the words that they share at the start and at the end."""
    unsafe, safe = pair.unsafe.split(), pair.safe.split()
    while unsafe and safe and unsafe[0] == safe[0]:
        unsafe, safe = unsafe[1:], safe[1:]
    while unsafe and safe and unsafe[-1] == safe[-1]:
        unsafe, safe = unsafe[:-1], safe[:-1]
    return unsafe, safe


# The shipped packs.


def test_the_shipped_concepts_are_those_of_the_paper_and_every_shapeworld_value():
    assert list_concepts() == tuple(sorted((*PAPER, *TARGETS)))


@pytest.mark.parametrize("name", [*PAPER, *TARGETS])
def test_a_shipped_concept_is_complete_and_its_held_out_prompts_are_held_out(name):
    concept = load_concept(name)
    assert concept.name == name
    assert concept.description.endswith(".")
    assert len(concept.pairs) >= 8
    assert len(concept.evaluation) >= 20
    assert len(concept.neighbours) >= 10
    assert len(concept.neutral) >= (200 if name in PAPER else 100)
    assert overlap(concept) == []
    held_out = {*concept.evaluation, *concept.neighbours}
    assert len(held_out) == len(concept.evaluation) + len(concept.neighbours)
    assert not held_out & set(concept.neutral)
    assert not any(find_word(prompt, concept.words) for prompt in concept.neighbours)


@pytest.mark.parametrize("name", PAPER)
def test_the_pairs_of_the_paper_s_concepts_differ_in_the_concept_alone(name):
    concept = load_concept(name)
    for pair in concept.pairs:
        unsafe, safe = difference(pair)
        assert find_word(" ".join(unsafe), concept.words), pair
        assert 1 <= len(unsafe) <= 3 and 1 <= len(safe) <= 3, pair
    named = [prompt for prompt in concept.evaluation if find_word(prompt, concept.words)]
    assert len(named) >= 0.7 * len(concept.evaluation)
    assert len({find_word(prompt, concept.words) for prompt in named}) >= 8  # synonyms


def test_the_shared_neutral_set_is_large_and_only_prompts_with_the_concept_s_words_are_dropped():
    everyday = shared_neutral()
    assert len(everyday) == len(set(everyday)) >= 200
    assert shared_neutral("shared") == everyday
    for name in PAPER:
        assert load_concept(name).neutral == everyday
    kept = shared_neutral("neutral", ["Paper plane", "owl"])
    assert set(everyday) - set(kept) == {"a paper plane glides through a room", "an owl turns its head"}
    dropped = set(everyday) - set(shared_neutral("neutral", ["green", "blue", "sheep bell"]))
    assert {"a greenhouse full of ferns", "a blueprint of a sailing ship"} < dropped
    assert all(re.search(r"\b(green|blue)", prompt) for prompt in dropped)
    first_words = [tokens(prompt)[0] for prompt in everyday]
    with pytest.raises(ConceptError, match="Each prompt of the neutral set 'neutral' holds one of `words`: a, an"):
        shared_neutral("neutral", sorted(set(first_words)))


@pytest.mark.parametrize(("name", "target"), TARGETS.items())
def test_shapeworld_packs_speak_the_language_of_the_captions(name, target):
    factor, value = target
    concept = load_concept(name)
    assert dict(concept.target) == {factor: value}
    assert set(concept.words) == words_of(factor, value)
    prompts = [*concept.neutral, *concept.evaluation, *concept.neighbours]
    prompts += [side for pair in concept.pairs for side in (pair.unsafe, pair.safe)]
    assert {word for prompt in prompts for word in tokens(prompt)} <= set(vocabulary())


@pytest.mark.parametrize(("name", "target"), TARGETS.items())
def test_shapeworld_pairs_differ_in_one_word_and_the_first_five_spread_over_the_rest(name, target):
    factor, value = target
    concept = load_concept(name)
    others = {word: other for other in FACTORS[factor] if other != value for word in words_of(factor, other)}
    replaced = []
    for pair in concept.pairs:
        unsafe, safe = difference(pair)
        assert len(unsafe) == len(safe) == 1, pair
        assert unsafe[0] in concept.words
        replaced.append(others[safe[0]])
    assert set(replaced[:5]) == set(others.values())
    assert max(map(replaced.count, replaced)) == 3
    first = [pair.unsafe for pair in concept.pairs[:5]]
    named = [[phrase for phrase in WORDS[factor][value] if find_word(prompt, [phrase])] for prompt in first]
    assert len({max(phrases, key=len) for phrases in named}) >= 3  # the plain word and two synonyms
    shown = [factors_of(prompt) for prompt in first]
    for other in {"colour", "shape", "motion"} - {factor}:
        assert {values[other] for values in shown} == set(FACTORS[other])
    assert {values["background"] for values in shown} == {"black", "white"}


@pytest.mark.parametrize(("name", "target"), TARGETS.items())
def test_shapeworld_evaluation_is_of_unseen_captions_and_unseen_combinations(name, target):
    factor, value = target
    concept = load_concept(name)
    for prompt in (*concept.evaluation, *concept.neighbours):
        assert is_held_out(prompt) or HELD_OUT_TEMPLATE.match(prompt), prompt
        assert len(factors_of(prompt)) == 4, prompt
    assert len(concept.evaluation) >= 24
    shown = [factors_of(prompt) for prompt in concept.evaluation]
    assert {values[factor] for values in shown} == {value}
    assert {find_word(prompt, concept.words) for prompt in concept.evaluation} == set(concept.words)
    for other in set(FACTORS) - {factor}:
        counts = [sum(values[other] == choice for values in shown) for choice in FACTORS[other]]
        assert max(counts) - min(counts) <= 1
    trained = [factors_of(pair.unsafe) for pair in concept.pairs]
    assert not [values for values in shown if values in trained]
    near = [factors_of(prompt)[factor] for prompt in concept.neighbours]
    assert {choice: near.count(choice) for choice in near} == {v: 5 for v in FACTORS[factor] if v != value}


@pytest.mark.parametrize(("name", "target"), TARGETS.items())
def test_shapeworld_neutral_prompts_leave_the_value_out_and_keep_every_other(name, target):
    factor, value = target
    neutral = load_concept(name).neutral
    assert not any(factors_of(prompt).get(factor) == value for prompt in neutral)
    assert not any(is_held_out(prompt) or HELD_OUT_TEMPLATE.match(prompt) for prompt in neutral)
    for other, choices in FACTORS.items():
        for choice in choices:
            count = sum(find_word(prompt, sorted(words_of(other, choice))) is not None for prompt in neutral)
            assert count >= 15 or (other, choice) == (factor, value), (other, choice)


# Finding and reading.


@pytest.mark.parametrize("short", ["red", "circle", "left"])
def test_a_shapeworld_value_is_a_short_name(short):
    assert load_concept(short) == load_concept(f"shapeworld-{short}")


def test_an_unknown_name_names_the_nearest_ones_and_lists_all():
    with pytest.raises(ConceptError, match=r"Unknown concept 'nudty'\. Did you mean 'nudity'\? Shipped: copyrighted"):
        load_concept("nudty")
    with pytest.raises(ConceptError, match=r"Unknown concept 'gren'\. Did you mean 'green'"):
        load_concept("gren")
    with pytest.raises(ConceptError, match=r"Unknown concept 'qqq'\. Shipped: .*Or give a \.yaml or \.jsonl file"):
        load_concept("qqq")
    with pytest.raises(ConceptError, match="Unknown concept 'neutral'"):
        load_concept("neutral")
    for name in ("otto", "castworld-Otto"):
        with pytest.raises(ConceptError, match=f"Unknown concept '{name}'. Did you mean 'castworld-otto'"):
            load_concept(name)
    with pytest.raises(ConceptError, match="name of a concept or a file, but got 5"):
        load_concept(5)


def test_a_folder_of_that_name_is_not_taken_for_a_file(tmp_path, monkeypatch):
    (tmp_path / "otto").mkdir()  # such as that of the adapter
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConceptError, match="Did you mean 'castworld-otto'"):
        load_concept("otto")


def test_a_yaml_file_gives_an_equal_concept(tmp_path):
    path = tmp_path / "no-ball.yaml"
    path.write_text(
        "description: Balls.\nwords: [ball]\ntarget: {shape: circle}\n"
        "pairs:\n  - {unsafe: no ball, safe: no}\n  - {unsafe: 'a ball: red', safe: 'a box: red'}\n"
        "neutral: [a tree]\nevaluation: [two balls]\nneighbours: [an egg]\n"
    )
    expected = Concept(
        name="no-ball",
        description="Balls.",
        words=("ball",),
        target={"shape": "circle"},
        pairs=(Pair("no ball", "no"), Pair("a ball: red", "a box: red")),  # "no" stays a text
        neutral=("a tree",),
        evaluation=("two balls",),
        neighbours=("an egg",),
    )
    assert load_concept(path) == load_concept(str(path)) == expected


def test_a_jsonl_file_gives_an_equal_concept(tmp_path):
    path = tmp_path / "ball.jsonl"
    path.write_text(
        '\ufeff{"unsafe": "a ball", "safe": "a box"}\r\n\r\n{"neutral": "a tree"}\n{"neutral": "shared"}\n'
        '{"word": "ball"}\n{"word": "sheep"}\n{"evaluation": "two balls"}\n{"neighbour": "an egg"}\n',
        encoding="utf-8",
    )
    concept = load_concept(path)
    assert concept.name == "ball"
    assert concept.pairs == (Pair("a ball", "a box"),)
    assert concept.neutral == ("a tree", *shared_neutral("neutral", ["ball", "sheep"]))
    assert len(concept.neutral) < 1 + len(shared_neutral())
    assert (concept.words, concept.evaluation, concept.neighbours) == (("ball", "sheep"), ("two balls",), ("an egg",))


def test_images_are_relative_to_the_file_and_must_exist(tmp_path):
    for name in ("with.png", "without.png"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    path = tmp_path / "ball.jsonl"
    path.write_text('{"unsafe": "a", "safe": "a", "unsafe_image": "with.png", "safe_image": "./without.png"}')
    (pair,) = load_concept(path).pairs
    assert pair == Pair("a", "a", str(tmp_path / "with.png"), str(tmp_path / "without.png"))
    (tmp_path / "without.png").unlink()
    with pytest.raises(ConceptError, match=r"ball\.jsonl: The `safe_image` of entry 1 of `pairs` is missing"):
        load_concept(path)


def test_the_template_loads_as_it_is(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(concept_template("no-balloon"))
    concept = load_concept(path)
    assert concept.name == "no-balloon"
    assert len(concept.pairs) == 5
    assert overlap(concept) == []
    assert set(shared_neutral()) - set(concept.neutral) == {"a balloon rises into the sky"}
    with pytest.raises(ConceptError, match=r"name of a concept to be 1 to 100 letters.*but got '\.\./x'"):
        concept_template("../x")


@settings(max_examples=60, deadline=None, database=None)
@given(
    st.lists(
        st.text(max_size=12).filter(str.strip),
        min_size=2,
        max_size=6,
        unique_by=lambda x: " ".join(x.split()).casefold(),
    )
)
def test_saving_and_loading_gives_an_equal_concept(tmp_path_factory, texts):
    first, *rest = texts
    concept = Concept(
        "a b", [Pair(first, rest[0])], neutral=rest, evaluation=texts, description=first, target={"x": "y"}
    )
    path = save_concept(concept, tmp_path_factory.mktemp("saved") / "concept.yaml")
    shared = {"shared", "neutral", "shapeworld-neutral"}
    assert load_concept(path) == concept or shared & set(rest)
    assert load_concept(path).pairs_hash == concept.pairs_hash


def test_what_must_stay_is_named_in_the_sentences_of_the_pairs():
    pairs = [
        Pair("Otto walks in the rain", "a dog walks in the rain"),
        Pair("in the rain, Otto waves", "in the rain, a dog waves"),
        Pair("Otto sings and Otto waves", "a dog sings and a dog waves"),  # two places
        Pair("a park with Otto", "a park"),  # no words on the safe side
    ]
    concept = Concept("otto", pairs, neutral=["Luna walks in the rain", "a street"], words=["Otto"])
    kept = concept.retaining(["Luna", "the old cat"])
    assert kept.neutral == (
        "Luna walks in the rain", "a street", "in the rain, Luna waves",
        "the old cat walks in the rain", "in the rain, the old cat waves",
    )  # fmt: skip
    assert replace(kept, neutral=concept.neutral) == concept == concept.retaining([])
    other = Concept("mabel", [Pair("Mabel runs", "a dog runs")])
    assert other.retaining(["Luna"], like=concept).neutral == ("Luna walks in the rain", "in the rain, Luna waves")


def test_what_must_stay_is_checked():
    concept = Concept("otto", [Pair("Otto sings and Otto waves", "a dog sings and a dog waves")], words=["Otto"])
    with pytest.raises(ConceptError, match=r"No pair of 'otto' differs in one place alone.* Add prompts that name"):
        concept.retaining(["Luna"])
    with pytest.raises(ConceptError, match=r"Entry 2 of `values` names the concept \('otto' is in `words`\)"):
        concept.retaining(["Luna", "old Otto"])
    with pytest.raises(ConceptError, match="`values`"):
        concept.retaining("Luna")
    with pytest.raises(ConceptError, match="Expected `like` to be a Concept, but got 'red'"):
        concept.retaining(["Luna"], like="red")
    wordless = Concept("otto", [Pair("Otto walks", "a dog walks"), Pair("Karl waves", "a cat waves")])
    for name in ("Otto", " otto", "Karl"):
        with pytest.raises(ConceptError, match=f"'{name.strip()}' cannot stay, for a pair of 'otto' erases it"):
            wordless.retaining([name])


def test_what_must_stay_is_put_only_where_a_concept_is_named():
    cat = Concept(
        "cat", [Pair("a walk with a cat", "a walk without a cat"), Pair("a cat", "a dog")], words=["with a cat"]
    )
    assert cat.retaining(["bird"]).neutral == ("a bird",)
    with pytest.raises(ConceptError, match="No pair of 'cat' differs in one place alone, which names the concept"):
        replace(cat, pairs=cat.pairs[:1]).retaining(["bird"])
    # Sentences of another concept may name this one.
    red, circle = load_concept("red"), load_concept("circle")
    kept = circle.retaining(["purple"], like=red).neutral[len(circle.neutral) :]
    assert 0 < len(kept) < len(red.pairs) and not any("circle" in prompt for prompt in kept)


def test_a_prompt_that_must_stay_is_listed_once():
    concept = Concept(
        "otto", [Pair("Otto Walks", "a dog Walks"), Pair("Karl walks", "a cat walks")], neutral=["luna walks"]
    )
    assert concept.retaining([" Luna"]).neutral == ("luna walks",)


@pytest.mark.parametrize(
    ("unsafe", "safe", "value", "prompt"),
    [
        ("一只红色的猫", "一只蓝色的猫", "绿色", "一只绿色的猫"),
        ("小红在跑", "小蓝在跑", "小绿", "小绿在跑"),
        ("一位红衣女子", "一位蓝衣女子", "绿", "一位绿衣女子"),
        ("एक लाल गेंद", "एक नीली गेंद", "हरी", "एक हरी गेंद"),
        ("un e\u0301le\u0301phant court", "un cheval court", "âne", "un âne court"),
        ("ein roter Ball", "ein blauer Ball", "grüner", "ein grüner Ball"),
    ],
)
def test_what_must_stay_is_named_in_other_languages(unsafe, safe, value, prompt):
    assert Concept("x", [Pair(unsafe, safe)]).retaining([value]).neutral == (prompt,)


def test_words_are_found_where_no_spaces_stand():
    with pytest.raises(ConceptError, match="Entry 1 of `neutral` names the concept"):
        Concept("red", [Pair("一只红色的猫", "一只蓝色的猫")], neutral=["一只红色的鸟"], words=["红色"])
    with pytest.raises(ConceptError, match="Entry 1 of `neutral` names the concept"):
        Concept("red", [Pair("लाल गेंद", "नीली गेंद")], neutral=["एक लाल पक्षी"], words=["लाल"])
    assert find_word("a reddish bird", ["red"]) is None and find_word("लालटेन", ["लाल"]) is None


def test_a_shipped_concept_survives_saving(tmp_path):
    concept = load_concept("trademarks")
    assert load_concept(save_concept(concept, tmp_path / "x.yml")) == concept
    with pytest.raises(ConceptError, match=r"x\.json: a concept is saved as YAML"):
        save_concept(concept, tmp_path / "x.json")
    picture = Image.new("RGB", (1, 1))
    drawn = replace(concept, pairs=(Pair("a", "b", picture, picture),))
    with pytest.raises(ConceptError, match="Cannot write a picture of type Image. Save it and give its path"):
        save_concept(drawn, tmp_path / "y.yaml")
    assert not (tmp_path / "y.yaml").exists()


def test_the_hash_follows_the_pairs():
    concept = load_concept("red")
    assert re.fullmatch(r"[0-9a-f]{64}", concept.pairs_hash)
    assert replace(concept, evaluation=()).pairs_hash == concept.pairs_hash
    assert replace(concept, pairs=concept.pairs[:5]).pairs_hash != concept.pairs_hash


# Refusals.


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"pair": []}, r"Unknown key 'pair' in a concept\. Did you mean 'pairs'\?"),
        ({"pairs": []}, "'red' to have at least one pair, but it has none"),
        ({"pairs": "a ball"}, r"Expected `pairs` to be a list, but got 'a ball'\. Write each entry after a dash"),
        (
            {"pairs": ["a ball"]},
            "Expected entry 1 of `pairs` to be a mapping with `unsafe` and `safe`, but got 'a ball'",
        ),
        ({"pairs": [*RED["pairs"], {"unsafe": "a"}]}, r"The safe prompt of entry 2 of `pairs` is missing\. Add `safe:"),
        ({"pairs": [{"unsafe": "a", "save": "b"}]}, r"Unknown key 'save' in entry 1 of `pairs`\. Did you mean 'safe'"),
        ({"pairs": [{"unsafe": "a", "safe": 5}]}, "Entry 1 of `pairs`: Expected the safe prompt .*, but got 5"),
        ({"pairs": [{"unsafe": " ", "safe": "b"}]}, "Entry 1 of `pairs`: Expected the unsafe prompt .*, but got ' '"),
        ({"pairs": [{"unsafe": "A  ball", "safe": "a ball"}]}, "Entry 1 of `pairs`: Both sides of a pair are the same"),
        ({"pairs": [{"unsafe": "a", "safe": "\ud800"}]}, "Entry 1 of `pairs`: Expected the safe prompt"),
        ({"pairs": [{"unsafe": "a", "safe": "b", "safe_image": "x"}]}, "only one side has an image"),
        (
            {"pairs": [{"unsafe": "a", "safe": "b", "safe_image": 1, "unsafe_image": 1}]},
            "a path or a PIL image, but got 1",
        ),
        (
            {"pairs": [*RED["pairs"], {"unsafe": "A red ball ", "safe": "a blue ball"}]},
            "Entry 2 of `pairs` repeats entry 1",
        ),
        ({"neutral": ["a", {"b": "c"}]}, "Expected entry 2 of `neutral` .* got {'b': 'c'}. Put quotes around a text"),
        ({"neutral": "everyday"}, "Unknown neutral set 'everyday'. Known: neutral, shapeworld-neutral"),
        ({"neutral": 5}, "Expected `neutral` to be a list, but got 5"),
        ({"evaluation": ["x", "y", " X"]}, r"Entry 3 of `evaluation` repeats entry 1: ' X'\. Remove one of them"),
        ({"neighbours": [""]}, "Expected entry 1 of `neighbours` to be a text that is not empty, but got ''"),
        ({"words": {"red": "x"}}, "Expected `words` to be a list, but got {'red': 'x'}"),
        (
            {"words": ["BLUE"]},
            r"The safe side of entry 1 of `pairs` names the concept \('blue' is in `words`\): 'a blue",
        ),
        (
            {"words": ["red"], "neutral": ["a Red car"]},
            r"Entry 1 of `neutral` names the concept \('red' is in `words`\)",
        ),
        ({"target": "red"}, r"Expected `target` to be a factor and its value, {colour: red}; got 'red'"),
        ({"target": {"colour": ["red"]}}, "Expected `target` to be a factor and its value"),
        ({"description": ["x"]}, r"Expected `description` to be a text, but got \['x'\]"),
        ({"name": ""}, "Expected the name of a concept to be 1 to 100 letters"),
        ({"name": "a/b"}, "but got 'a/b'"),
    ],
)
def test_a_bad_concept_is_refused_with_the_entry_and_the_cure(change, text):
    Concept.from_dict(RED)
    with pytest.raises((ConceptError, ConfigError), match=text) as caught:
        Concept.from_dict({**RED, **change})
    assert "\n" not in str(caught.value)


def test_a_concept_in_code_is_checked_as_well():
    with pytest.raises(ConceptError, match="Expected entry 1 of `pairs` to be a Pair, but got 'a'"):
        Concept("x", ["a", "b"])
    with pytest.raises(ConceptError, match="Expected `neutral` to be a list, but got tensor"):
        Concept("x", [Pair("a", "b")], neutral=torch.tensor(1.0))
    with pytest.raises(ConceptError, match="Expected `neutral` to be a list, but got 'a tree'"):
        Concept("x", [Pair("a", "b")], neutral="a tree")
    with pytest.raises(ConceptError, match="a mapping with `name` and `pairs`, but got None"):
        Concept.from_dict(None)
    with pytest.raises(ConceptError, match="The concept has no `pairs`. Add it"):
        Concept.from_dict({"name": "x"})
    picture, other = Image.new("RGB", (2, 2)), Image.new("RGB", (2, 2), "red")
    with pytest.raises(ConceptError, match="Both sides of a pair are the same"):
        Pair("a", "a", picture, picture.copy())
    assert len(Concept("x", [Pair("a", "a", other, picture), Pair("a", "a", picture, other)]).pairs) == 2


@pytest.mark.parametrize(
    ("text", "error", "expected"),
    [
        ("pears: []", ConfigError, r"bad\.yaml: Unknown key 'pears' in a concept\. Did you mean 'pairs'"),
        ("- a\n- b", ConceptError, r"bad\.yaml: Expected keys such as `pairs:`, but got \['a', 'b'\]"),
        ("", ConceptError, r"bad\.yaml: Expected keys such as `pairs:`, but got None"),
        ("name: x", ConceptError, r"bad\.yaml: The concept has no `pairs`"),
        (
            "pairs:\n  - unsafe: a\n    safe: b\n  - unsafe: c\n    safe: c\n",
            ConceptError,
            r"bad\.yaml: Entry 2 of `pairs`:",
        ),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, error, expected):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(error, match=expected):
        load_concept(path)


def test_a_file_that_is_missing_or_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ConceptError, match=r"none\.yaml: there is no such file"):
        load_concept(tmp_path / "none.yaml")
    with pytest.raises(ConceptError, match=r"none\.jsonl: there is no such file"):
        load_concept("none.jsonl")
    path = tmp_path / "pairs.txt"
    path.write_text("x")
    for source in (path, str(path)):
        with pytest.raises(ConceptError, match=r"expected a \.yaml, \.yml or \.jsonl file, but got the suffix '\.txt'"):
            load_concept(source)


# The lint.


def test_overlap_finds_equal_and_near_prompts_and_nothing_else():
    concept = Concept(
        "red",
        [Pair("a red ball rolls down a hill", "a blue ball rolls down a hill")],
        neutral=["a tree in the wind"],
        evaluation=[
            "A red ball, rolls down a hill!",
            "a red ball rolls down the hill",
            "crimson toys lie on the grass",
        ],
        neighbours=["a tree in the wind", "a tree in the rain"],
    )
    found = overlap(concept)
    assert [item.similarity for item in found] == sorted((item.similarity for item in found), reverse=True)
    red, blue = concept.pairs[0].unsafe, concept.pairs[0].safe
    exact, near = concept.evaluation[:2]
    assert Overlap(exact, red, 1.0) in found
    assert Overlap("a tree in the wind", "a tree in the wind", 1.0) in found
    assert Overlap(near, red, 6 / 7) in found
    assert {item.held_out for item in found} == {exact, near, "a tree in the wind"}
    assert {item.held_out for item in overlap(concept, threshold=0.9)} == {exact, "a tree in the wind"}
    assert Overlap(exact, blue, 5 / 7) in overlap(concept, threshold=0.5)
    assert str(Overlap("x", "y", 0.8)) == "'x' is held out, but 'y' is used (similarity 0.80)"
