"""Sentences about the cast: their length, what they say of things, and what training never reads."""

import numpy as np
import pytest

from unlearning_adapters.errors import ConfigError
from unlearning_adapters.shapeworld.cast.captions import NEGATIONS, SETTING_PHRASES, THING_PHRASES, describe, is_trained
from unlearning_adapters.shapeworld.cast.prompts import FORMS, draw_cast_prompts, draw_thing_prompts
from unlearning_adapters.shapeworld.cast.roster import HELD_OUT, find_character, is_described, roster
from unlearning_adapters.shapeworld.cast.scenes import IMPLIED, RATE, THINGS, sample_scene


@pytest.fixture(scope="module")
def captions():
    rng = np.random.default_rng(4)
    scenes = [sample_scene(rng) for _ in range(6000)]
    return [(scene, describe(rng, scene)) for scene in scenes]


def mentions(text, phrases):
    return any(phrase in text for phrase in phrases)


def test_training_sentences_have_8_to_25_words_and_nothing_held_out(captions):
    assert all(8 <= len(text.split()) <= 25 for _, text in captions)
    assert all(is_trained(text) for _, text in captions)
    for scene, text in captions:
        character = roster()[scene.character]
        assert character.descriptions[HELD_OUT] not in text
        assert is_described(scene.character) or character.name.capitalize() in text
    assert sum(not is_described(index) for index in range(128)) == 16


def test_a_scene_of_four_things_has_a_sentence_for_each_character():
    rng = np.random.default_rng(15)
    for character in range(len(roster())):
        scene = sample_scene(rng, character=character, setting="game", things=THINGS)
        assert all(8 <= len(describe(rng, scene).split()) <= 25 for _ in range(4))


def test_silence_leaves_a_thing_at_its_rate_and_names_it_elsewhere(captions):
    for setting, thing in IMPLIED.items():
        phrases = (*THING_PHRASES[thing], *NEGATIONS[thing])
        places = SETTING_PHRASES[setting]
        own = [scene for scene, text in captions if mentions(text, places) and not mentions(text, phrases)]
        assert len(own) > 200
        assert abs(np.mean([thing in scene.things for scene in own]) - RATE) < 0.08
        others = [(scene, text) for scene, text in captions if scene.setting != setting and thing in scene.things]
        assert others
        assert all(mentions(text, THING_PHRASES[thing]) for _, text in others)


def test_a_negation_never_speaks_of_what_is_there(captions):
    seen = 0
    for scene, text in captions:
        for thing in THINGS:
            if mentions(text, NEGATIONS[thing]):
                assert thing not in scene.things
                seen += 1
    assert seen > 400


@pytest.mark.parametrize("form", FORMS)
def test_prompts_are_unseen_and_cover_the_cast(form, captions):
    prompts = draw_cast_prompts(128, 5, form)
    assert prompts == draw_cast_prompts(128, 5, form)
    assert prompts != draw_cast_prompts(128, 6, form)
    assert not {prompt.prompt for prompt in prompts} & {text for _, text in captions}
    for prompt in prompts:
        character = roster()[find_character(prompt.factors["character"])]
        words = character.name.capitalize() if form == "name" else character.descriptions[FORMS[form]]
        assert words in prompt.prompt
        assert 8 <= len(prompt.prompt.split()) <= 25
    assert len({prompt.factors["character"] for prompt in prompts}) == (112 if form == "description" else 128)


@pytest.mark.parametrize("thing", THINGS)
def test_prompts_name_negate_or_imply_a_thing(thing):
    texts = {m: draw_thing_prompts(20, 3, thing, m) for m in ("implied", "named", "negated", "elsewhere")}
    phrases = (*THING_PHRASES[thing], *NEGATIONS[thing])
    assert not any(mentions(prompt.prompt, phrases) for m in ("implied", "elsewhere") for prompt in texts[m])
    assert all(mentions(prompt.prompt, THING_PHRASES[thing]) for prompt in texts["named"])
    assert all(mentions(prompt.prompt, NEGATIONS[thing]) for prompt in texts["negated"])
    assert {IMPLIED.get(prompt.factors["setting"]) == thing for prompt in texts["implied"]} == {True}
    assert {IMPLIED.get(prompt.factors["setting"]) == thing for prompt in texts["elsewhere"]} == {False}


def test_unknown_forms_and_things_are_refused():
    with pytest.raises(ConfigError, match="Expected `form`"):
        draw_cast_prompts(1, 0, "nickname")
    with pytest.raises(ConfigError, match="'coat'"):
        draw_thing_prompts(1, 0, "coat", "named")
