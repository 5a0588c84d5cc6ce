"""The embedded worlds as records: their suites, and what is counted in each prompt set."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from unlearning_adapters.concepts.concept import Concept, Pair, load_concept
from unlearning_adapters.errors import ConceptError, EvaluationError
from unlearning_adapters.evaluation.arms.samples import sample_of
from unlearning_adapters.evaluation.detectors.detector import Detection, load_detector
from unlearning_adapters.evaluation.evaluate import default_detectors
from unlearning_adapters.evaluation.metrics import Sample, measure_samples, measure_sets
from unlearning_adapters.evaluation.suites.file import read_suite
from unlearning_adapters.evaluation.suites.suite import Case, Suite
from unlearning_adapters.evaluation.suites.worlds import WORLDS, find_value, suite_for, world_of
from unlearning_adapters.shapeworld.cast.captions import is_trained
from unlearning_adapters.shapeworld.cast.concepts import cast_concept
from unlearning_adapters.shapeworld.cast.roster import HELD_OUT, find_character, look_alikes, roster
from unlearning_adapters.shapeworld.cast.scenes import CastScene, render
from unlearning_adapters.shapeworld.cast.values import other_values, words_of

SHAPEWORLD, CASTWORLD = WORLDS
SETS = {
    "otto": {"forget": "forget", "neighbours": "neighbour", "description": "paraphrase",
             "held-out-description": "paraphrase", "look-alikes": "neighbour"},
    "star": {"forget": "forget", "neighbours": "neighbour"},
    "hat": {"forget": "forget", "other-words": "paraphrase", "neighbours": "neighbour", "elsewhere": "paraphrase",
            "implied": "generic", "negated": "unrelated"},
    "left": {"forget": "forget", "other-words": "paraphrase", "neighbours": "neighbour", "open": "generic"},
    "night": {"forget": "forget", "other-words": "paraphrase", "neighbours": "neighbour", "open": "generic"},
}  # fmt: skip
HELD_OUT_FORM = roster()[find_character("otto")].descriptions[HELD_OUT]
THINGS = ("hat", "umbrella", "balloon", "fall")


def suite_of(value: str, count: int = 4) -> Suite:
    return CASTWORLD.suite(value, count, 1)


@pytest.mark.parametrize("value", SETS)
def test_every_kind_of_value_has_its_sets(value: str) -> None:
    suite = suite_of(value)
    assert {part.name: part.role for part in suite.sets} == SETS[value]
    assert suite == suite_of(value) and suite.sha256 != CASTWORLD.suite(value, 4, 2).sha256
    (factor,) = suite.target
    for part in suite.sets:
        asked = {prompt.truth.get(factor) == suite.target[factor] for prompt in part.prompts}
        assert asked == {part.role in ("forget", "paraphrase")}, part.name
    assert suite.words == words_of(value) and set(suite.sides) and not suite.sensitive
    assert not set(suite.sides) & {prompt.text for part in suite.sets for prompt in part.prompts}


def test_every_value_has_a_concept_whose_pairs_are_of_the_training_and_whose_tests_are_not() -> None:
    for value in ("otto", "bars", "fall", "sways", "grain"):
        concept = load_concept(f"castworld-{value}")
        assert CASTWORLD.value_of(concept) == value and len(concept.pairs) == 8 and len(concept.neutral) > 190
        assert all(is_trained(text) for pair in concept.pairs for text in (pair.unsafe, pair.safe))
        assert all(is_trained(text) for text in concept.neutral)
        held_out = [text for text in (*concept.evaluation, *concept.neighbours) if HELD_OUT_FORM not in text]
        assert not any(is_trained(text) for text in held_out) and len(concept.evaluation) > 20
        drawn = {prompt.text for part in suite_of(value).sets for prompt in part.prompts}
        assert not drawn & {*concept.evaluation, *concept.neutral}


def test_a_concept_takes_the_stand_ins_that_it_is_given() -> None:
    pairs = cast_concept("otto", ("bobo",)).pairs
    assert all("Bobo" in pair.safe and "Otto" in pair.unsafe for pair in pairs)


def test_neighbours_are_other_values_and_look_alikes_are_apart() -> None:
    suite = suite_of("otto", 12)
    seen = {part.name: {prompt.truth["character"] for prompt in part.prompts} for part in suite.sets}
    siblings = {roster()[index].name for index in look_alikes(find_character("otto"))}
    assert seen["look-alikes"] == siblings
    assert seen["neighbours"] == set(other_values("otto")) and not seen["neighbours"] & {*siblings, "otto"}
    things = next(part for part in suite_of("hat").sets if part.name == "neighbours").prompts
    assert [dict(prompt.truth) for prompt in things[:3]] == [{"umbrella": "shown"}] * 2 + [{"balloon": "shown"}]


def test_names_lead_to_worlds() -> None:
    assert find_value("red") == find_value("shapeworld-red") == (SHAPEWORLD, "red")
    assert find_value("castworld-left") == (CASTWORLD, "left") and find_value("left") == (SHAPEWORLD, "left")
    assert find_value("otto") is find_value("castworld-red") is find_value("nudity") is None
    assert read_suite("castworld-hat").target == {"hat": "shown"}
    assert [detector.name for detector in default_detectors(suite_of("hat"))] == ["cast", "validity", "motion"]
    with pytest.raises(EvaluationError, match="Unknown suite 'otto'"):
        read_suite("otto")
    with pytest.raises(ConceptError, match="of CastWorld any value, such as castworld-otto"):
        load_concept("otto")


@pytest.mark.parametrize("name", ["castworld", "models/castworld", "shapeworld-unet", "wan", ""])
def test_pipelines_lead_to_worlds(name: str) -> None:
    class Pipe:
        config: Mapping[str, str] = {"_name_or_path": name}

    world = world_of(Pipe())
    assert (world and world.name) == {"castworld": "castworld", "models/castworld": "castworld",
                                      "shapeworld-unet": "shapeworld"}.get(name)  # fmt: skip
    length = suite_for(suite_of("hat"), Pipe(), num_frames=5).generation
    assert length["num_frames"] == 5 and length["max_sequence_length"] == (32 if name == "shapeworld-unet" else 48)


def test_a_target_of_another_world_is_refused() -> None:
    concept = Concept("mine", (Pair("a", "b"),), target={"character": "nobody"})
    with pytest.raises(ConceptError, match="CastWorld needs one factor with one of its values. Known: character: otto"):
        CASTWORLD.value_of(concept)


def samples_of(suite: Suite, seen: Callable[[Case], Mapping[str, str]]) -> list[Sample]:
    """Return what an arm shows, if its clips show what prompts ask for, no thing besides, and the changes of `seen`."""
    judge = load_detector("cast")
    found = []
    for case in suite.cases():
        labels = {**dict.fromkeys(THINGS, "absent"), **case.prompt.truth, **seen(case)}
        look = {"cast": Detection(labels=labels, valid=True).to_dict()}
        found.append(sample_of(case.key, case.role, case.prompt.truth, look, suite.target, [judge], judge))
    return found


def test_a_hat_is_counted_where_it_is_named_implied_and_negated() -> None:
    def base(case: Case) -> Mapping[str, str]:
        return {"hat": "shown"} if case.set == "implied" and int(case.prompt.id) % 2 else {}

    suite = suite_of("hat")
    before, after = samples_of(suite, base), samples_of(suite, lambda case: {"hat": "absent"})
    shown = {name: row["shown"]["value"] for name, row in measure_sets(before, suite.factor).items()}
    assert shown == {
        "forget": 1, "other-words": 1, "neighbours": 0, "elsewhere": 1, "implied": 0.5, "negated": 0,
    }  # fmt: skip
    assert {row["shown"]["value"] for row in measure_sets(after, suite.factor).values()} == {0}
    rates = measure_samples(after, suite.factor)
    assert rates.erased.value == rates.paraphrase_erased.value == rates.context_kept.value == 1
    assert {name: rate.value for name, rate in rates.neighbours.items()} == {
        "umbrella shown": 1, "balloon shown": 1, "fall shown": 1,
    }  # fmt: skip
    gone = measure_samples(samples_of(suite, lambda case: dict.fromkeys(THINGS, "absent")), suite.factor)
    assert gone.erased.value == 1 and gone.preservation.value == 0, "other things are neighbours too"


def test_damage_to_look_alikes_is_seen_apart() -> None:
    suite = suite_of("otto", 6)

    def edited(case: Case) -> Mapping[str, str]:
        return {} if case.set == "neighbours" else {"character": "bobo", "motion": "static"}

    found = samples_of(suite, edited)
    sets = measure_sets(found, suite.factor)
    assert {name: row["right"]["value"] for name, row in sets.items() if row["role"] == "neighbour"} == {
        "neighbours": 1, "look-alikes": 0,
    }  # fmt: skip
    assert sets["forget"]["shown"]["value"] == sets["description"]["shown"]["value"] == 0
    assert sets["forget"]["rest"]["value"] == 0.8, "one of five other factors is wrong"
    rates = measure_samples(found, suite.factor)
    assert rates.worst_neighbour.value == 0 and rates.paraphrase_erased.value == 1


def test_the_judge_is_a_detector_that_refuses_noise() -> None:
    judge = load_detector("cast")
    hat = judge(render(CastScene(find_character("bobo"), "left", "beach", "flat", things=("hat",))))
    assert hat.valid and hat.labels["hat"] == "shown" and hat.labels["character"] == "bobo"
    assert judge.sees_concept(hat, {"hat": "shown"}) is True and judge.sees_concept(hat, {"fall": "shown"}) is False
    junk = judge(np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8))
    assert junk.valid is False and junk.reason and not junk.labels
