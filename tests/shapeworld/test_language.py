"""ShapeWorld in real language: a frozen text encoder, many phrases, and an adapter that must reach unseen ones."""

from dataclasses import replace

import pytest
from benchmarks.language_concepts import language_concept
from benchmarks.language_prompts import KINDS, phrase_prompts, phrases_of

from unlearning_adapters import load_shapeworld_language
from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.building import build as builder
from unlearning_adapters.clips import to_clip
from unlearning_adapters.concepts.concept import shared_neutral
from unlearning_adapters.concepts.lint import lint_concept
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import ConfigError, DenoiserError
from unlearning_adapters.evaluation.arms.generate import ClipRequest, generate
from unlearning_adapters.methods import ridge
from unlearning_adapters.shapeworld.models import language_model
from unlearning_adapters.shapeworld.models.generate import GENERATION
from unlearning_adapters.shapeworld.world.captions import is_held_out, name_thing
from unlearning_adapters.shapeworld.world.judge import judge_clips
from unlearning_adapters.shapeworld.world.phrases import TRAINED, UNSEEN
from unlearning_adapters.shapeworld.world.scenes import FACTORS

NAMED = [(factor, value) for factor in ("colour", "shape", "motion") for value in FACTORS[factor]]


def shown(pipe, prompts):
    """What the judge sees of each prompt's factor; None for a clip that is not valid."""
    requests = [ClipRequest(prompt.prompt, prompt.seed) for prompt in prompts]
    verdicts = judge_clips(to_clip(frames) for frames in generate(pipe, requests, GENERATION, batch=16))
    return [verdict.factors if verdict.valid else None for verdict in verdicts]


def test_each_phrase_names_one_value_and_unseen_ones_are_not_trained():
    for factor, values in TRAINED.items():
        trained = [phrase for phrases in values.values() for phrase in phrases]
        unseen = [phrase for phrases in UNSEEN[factor].values() for phrase in phrases]
        assert len(set(trained)) == len(trained) and len(set(unseen)) == len(unseen)
        assert not set(trained) & set(unseen)
        assert list(values) == list(FACTORS[factor]) and all(phrases[0] == value for value, phrases in values.items())


@pytest.mark.parametrize(("factor", "value"), NAMED)
def test_kinds_share_no_phrase_and_leave_out_what_the_pairs_hold(factor, value):
    kinds = {kind: phrases_of(value, kind) for kind in KINDS}
    assert sum(map(len, kinds.values())) == len(set().union(*kinds.values()))
    assert kinds["plain"] == (value,) and min(map(len, kinds.values())) >= 1
    known = kinds["synonyms"][:2]
    assert phrases_of(value, "synonyms", known) == kinds["synonyms"][2:]


@pytest.mark.parametrize(
    ("colour", "thing"),
    [
        ("red", "a red circle"),
        ("emerald", "an emerald circle"),
        ("the colour of blood", "a circle the colour of blood"),
        ("as red as a rose", "a circle as red as a rose"),
        (None, "a circle"),
    ],
)
def test_a_colour_of_many_words_follows_the_shape(colour, thing):
    assert name_thing(colour, "circle") == thing


@pytest.mark.parametrize("value", ["red", "square", "up"])
def test_prompts_name_the_value_in_sentences_that_training_never_saw(value):
    phrases = phrases_of(value, "paraphrases") or phrases_of(value, "synonyms")
    prompts = phrase_prompts(value, phrases, 12, seed=3)
    for index, prompt in enumerate(prompts):
        assert phrases[index % len(phrases)] in prompt.prompt
        assert is_held_out(prompt.prompt) or prompt.prompt.startswith(("we see", "on a"))
    assert prompts == phrase_prompts(value, phrases, 12, seed=3) != phrase_prompts(value, phrases, 12, seed=4)


@pytest.mark.parametrize(("factor", "value"), NAMED)
def test_a_concept_has_five_pairs_of_five_phrases_and_no_doubt(factor, value):
    concept = language_concept(value)
    assert len(concept.pairs) == len(set(concept.words)) == 5
    assert all(
        word in pair.unsafe and word not in pair.safe for word, pair in zip(concept.words, concept.pairs, strict=True)
    )
    assert len(concept.neutral) == 160
    assert not [finding for finding in lint_concept(concept) if finding.error]


def test_a_missing_text_encoder_is_named(monkeypatch):
    monkeypatch.setattr(language_model, "PACKAGE", "no_such_text_encoder")
    with pytest.raises(
        DenoiserError, match=r"shapeworld-language needs the package no-such-text-encoder.*\[language\]"
    ):
        load_shapeworld_language()


def test_a_value_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="has no value 'purple'"):
        language_concept("purple")
    with pytest.raises(ConfigError, match="5 phrases or more, but the background 'black' has 2"):
        language_concept("black")


@pytest.fixture(scope="module")
def pipe():
    return load_shapeworld_language()


@pytest.fixture(scope="module")
def held_out():
    """Synonyms and paraphrases of red and of its neighbours, none of them in the pairs."""
    known = language_concept("red").words
    wanted = [*phrases_of("red", "synonyms", known), *phrases_of("red", "paraphrases", known)]
    others = [
        prompt
        for value in ("green", "blue", "yellow")
        for prompt in phrase_prompts(value, TRAINED["colour"][value], 4, 9)
    ]
    return phrase_prompts("red", wanted, 12, seed=9), others


def test_the_text_encoder_is_the_frozen_one(pipe):
    assert type(pipe.text_encoder).__name__ == "BertModel"
    assert not any(parameter.requires_grad for parameter in pipe.text_encoder.parameters())
    assert pipe.transformer.config.text_dim == pipe.text_encoder.config.hidden_size == 384


def test_the_base_knows_the_phrases(pipe, held_out):
    for prompts in held_out:
        assert (
            sum(factors == prompt.factors for factors, prompt in zip(shown(pipe, prompts), prompts, strict=True)) >= 11
        )


@pytest.mark.slow
def test_five_pairs_reach_phrases_that_they_do_not_hold(pipe, held_out):
    concept, others = held_out
    adapter = builder.build_adapter(pipe, language_concept("red"), progress=False)
    pipe.load_unlearning_adapter(adapter)
    try:
        edited, kept = shown(pipe, concept), shown(pipe, others)
    finally:
        pipe.unload_unlearning_adapters()
    assert all(factors is not None and factors["colour"] != "red" for factors in edited)
    context = [
        {**factors, "colour": ""} == {**prompt.factors, "colour": ""}
        for factors, prompt in zip(edited, concept, strict=True)
    ]
    assert sum(context) >= 11
    assert sum(factors == prompt.factors for factors, prompt in zip(kept, others, strict=True)) >= 11


@pytest.mark.slow
def test_everyday_prompts_that_show_the_concept_turn_no_neighbour_into_it(pipe, monkeypatch):
    """ "a balloon rises into the sky" is neutral to whoever writes it, and shows "up": the read must not turn round."""
    concept = language_concept("up")
    everyday = replace(concept, neutral=shared_neutral("neutral", concept.words))
    neighbours = [prompt for value in ("down", "left") for prompt in phrase_prompts(value, [value], 6, seed=9)]

    def build() -> tuple[UnlearningAdapter, str]:
        with pytest.warns(UserWarning, match="Neutral prompts read as the concept") as found:
            adapter = builder.build_adapter(pipe, everyday, progress=False)
        return adapter, "".join(str(item.message) for item in found)

    def kept(adapter: UnlearningAdapter) -> int:
        pipe.load_unlearning_adapter(adapter)
        try:
            seen = shown(pipe, neighbours)
        finally:
            pipe.unload_unlearning_adapters()
        return sum(factors == prompt.factors for factors, prompt in zip(seen, neighbours, strict=True))

    held, text = build()
    monkeypatch.setattr(ridge, "HELD", ())
    turned, _ = build()
    assert "'a balloon rises into the sky'" in text
    assert kept(held) >= 10
    assert kept(turned) <= 6


@pytest.mark.slow
def test_a_phrase_that_the_other_pairs_do_not_know_is_erased_as_well(pipe):
    """ "shape without corners" beside "circle" and "marble": one row takes the phrase away, and leaves any shape."""
    concept = language_concept("circle")
    prompts = phrase_prompts("circle", ["shape without corners"], 14, seed=631)
    with pytest.warns(UserWarning, match=r"Pair 4, .*shape without corners.* an extra row"):
        adapter = builder.build_adapter(pipe, concept, progress=False)
    plain = builder.build_adapter(pipe, concept, BuildConfig(strength=adapter.strength), progress=False)

    def circles(found: UnlearningAdapter) -> int:
        pipe.load_unlearning_adapter(found)
        try:
            return sum(factors["shape"] == "circle" for factors in shown(pipe, prompts))
        finally:
            pipe.unload_unlearning_adapters()

    assert (adapter.rank, plain.rank) == (2, 1)
    assert circles(adapter) == 0
    assert circles(plain) >= 2
