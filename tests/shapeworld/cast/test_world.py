"""CastWorld: its cast, its scenes, and the judge that reads them back."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from unlearning_adapters.errors import ConfigError
from unlearning_adapters.shapeworld.cast.judge import STATIC, UNKNOWN, judge_cast_clip, judge_cast_clips
from unlearning_adapters.shapeworld.cast.roster import PARTS, find_character, look_alikes, roster
from unlearning_adapters.shapeworld.cast.scenes import (
    FACTORS,
    FRAMES,
    IMPLIED,
    MOTIONS,
    RATE,
    SETTINGS,
    STYLES,
    THINGS,
    CastScene,
    render,
    sample_scene,
    without_foreground,
)
from unlearning_adapters.shapeworld.cast.sprites import EMBLEMS, OBJECTS
from unlearning_adapters.shapeworld.models.language_model import load_text_encoder

FIELDS = ("body", "coat", "accent", "marking", "ears", "face")


def looks(character):
    return tuple(getattr(character, name) for name in FIELDS)


def test_there_are_128_characters_with_names_and_looks_of_their_own():
    cast = roster()
    assert len(cast) == len({character.name for character in cast}) == len(set(map(looks, cast))) == 128
    assert all(find_character(character.name) == index for index, character in enumerate(cast))


def test_look_alikes_differ_in_one_part_alone():
    for index, character in enumerate(roster()):
        others = [roster()[other] for other in look_alikes(index)]
        assert len(others) == 3
        for other in others:
            assert [n for n in FIELDS if getattr(character, n) != getattr(other, n)] == [character.part]
    assert Counter(character.part for character in roster()) == dict.fromkeys(PARTS, 32)


def test_names_have_one_to_three_word_pieces():
    tokenizer, _ = load_text_encoder()
    counts = [len(tokenizer(character.name, add_special_tokens=False).input_ids) for character in roster()]
    assert Counter(counts) == {1: 50, 2: 50, 3: 28}


def test_descriptions_fit_one_character_and_do_not_name_it():
    forms = [character.descriptions for character in roster()]
    assert len({text for texts in forms for text in texts}) == 3 * 128
    assert not any(c.name in text for c, texts in zip(roster(), forms, strict=True) for text in texts)


def test_the_same_seed_draws_the_same_clip_and_things_come_at_their_rates():
    first, second = (sample_scene(np.random.default_rng(7)) for _ in range(2))
    assert first == second
    assert np.array_equal(render(first), render(second))
    rng = np.random.default_rng(1)
    scenes = [sample_scene(rng, setting=setting) for setting in IMPLIED for _ in range(500)]
    for setting, thing in IMPLIED.items():
        shown = np.mean([thing in scene.things for scene in scenes if scene.setting == setting])
        assert abs(shown - RATE) < 0.07


def test_the_judge_reads_every_character_and_every_factor():
    rng = np.random.default_rng(21)
    scenes = [sample_scene(rng, character=index) for index in range(128)]
    readings = judge_cast_clips(render(scene) for scene in scenes)
    assert all(reading.valid for reading in readings)
    right = {
        name: np.mean([r.factors[name] == s.factors[name] for s, r in zip(scenes, readings, strict=True)])
        for name in FACTORS
    }
    assert min(right.values()) >= 0.98
    seen = {value for scene in scenes for value in (scene.motion, scene.setting, scene.style, *scene.things)}
    assert seen == {*MOTIONS, *SETTINGS, *STYLES, *THINGS}


def test_the_judge_reads_every_emblem_on_every_object():
    scene = sample_scene(np.random.default_rng(3), style="flat", things=())
    for emblem in EMBLEMS:
        for kind in OBJECTS:
            reading = judge_cast_clip(render(replace(scene, emblem=emblem, object=kind)))
            assert (reading.factors["emblem"], reading.factors["object"]) == (emblem, kind)


@pytest.mark.parametrize("thing", THINGS)
def test_a_thing_changes_its_factor_alone(thing):
    scene = CastScene(37, "left", "snow", "flat", "heart", "sign")
    without, with_it = (judge_cast_clip(render(replace(scene, things=things))).factors for things in ((), (thing,)))
    assert (without[thing], with_it[thing]) == ("absent", "shown")
    assert {**without, thing: ""} == {**with_it, thing: ""}


def junk(kind):
    rng = np.random.default_rng(0)
    clip = render(sample_scene(rng)).astype(float)
    noise = rng.standard_normal(clip.shape)
    clips = {
        "noise": rng.integers(0, 256, clip.shape),
        "soft noise": 128 + 40 * noise,
        "black": np.zeros(clip.shape),
        "white": np.full(clip.shape, 255),
        "one colour": np.broadcast_to(clip[:, :1, :1], clip.shape),
        "an empty setting": without_foreground(sample_scene(rng)),
        "destroyed by noise": clip + 90 * noise,
        "inverted": 255 - clip,
        "shuffled": rng.permuted(clip.reshape(FRAMES, -1, 3), axis=1).reshape(clip.shape),
    }
    return np.clip(clips[kind], 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "kind",
    ["noise", "soft noise", "black", "white", "one colour", "an empty setting", "destroyed by noise", "inverted",
     "shuffled"],
)  # fmt: skip
def test_junk_is_not_valid_and_shows_nothing(kind):
    reading = judge_cast_clip(junk(kind))
    assert not reading.valid
    assert reading.reason
    assert set(reading.factors.values()) == {UNKNOWN}


def test_a_stranger_is_unknown_and_what_stands_still_is_static():
    clip = render(CastScene(5, "left", "snow", "flat"))
    assert judge_cast_clip(np.repeat(clip[4:5], FRAMES, axis=0)).factors["motion"] == STATIC
    # A grey block of the size of a body: a scene, but nobody of the cast.
    stranger = without_foreground(CastScene(5, "left", "snow", "flat"))
    stranger[:, 26:54, 12:36] = 60
    reading = judge_cast_clip(stranger)
    assert reading.valid
    assert reading.factors["character"] == UNKNOWN


def test_a_mix_of_two_look_alikes_is_unknown():
    scene = CastScene(4, "jumps", "snow", "flat")
    pair = [render(replace(scene, character=index)).astype(float) for index in (4, 6)]
    assert judge_cast_clip(np.rint(sum(pair) / 2).astype(np.uint8)).factors["character"] == UNKNOWN


def test_what_is_no_clip_is_refused():
    with pytest.raises(ConfigError, match="uint8 of shape"):
        judge_cast_clip(np.zeros((9, 32, 32, 3), np.uint8))
    with pytest.raises(ConfigError, match="no character 'nobody'"):
        find_character("nobody")
