"""Test prompts near to the pairs: by words, and by meaning where the optional package is there."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evaluation_runs import red_suite, synthetic

from unlearning_adapters.concepts.wording import NEAR, similarity
from unlearning_adapters.evaluation.reports.markdown import to_markdown
from unlearning_adapters.evaluation.reports.page import write_page
from unlearning_adapters.evaluation.suites import sentences
from unlearning_adapters.evaluation.suites.overlap import MEANING, SAME, WORDS, near_prompts, nearest_of_sets
from unlearning_adapters.evaluation.suites.sentences import PACKAGE, sentence_vectors
from unlearning_adapters.evaluation.suites.suite import PromptSet, Suite

SIDES = ("Buzz Lightyear flying through a bedroom", "a red car drives down the street", "a toy in a bedroom")
RESTATED = "in a bedroom, Buzz Lightyear is flying around"
COPIED = "a red car drives down a street."
SYNONYMS = "a red automobile drives along the road"


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without the package."""
    monkeypatch.setitem(sys.modules, PACKAGE, None)  # what an import of a missing package meets
    monkeypatch.setattr(sentences, "_known", {})
    sentences._load.cache_clear()
    yield
    sentences._load.cache_clear()


def suite_of(*texts: str, role: str = "forget", **settings: object) -> Suite:
    sets = [PromptSet.of("asked", role, texts, **settings)]  # type: ignore[arg-type]
    sets += [] if role == "forget" else [PromptSet.of("forget", "forget", ["a bowl of soup"])]
    return Suite("s", tuple(sets), sides=SIDES)


def test_a_restatement_with_too_few_common_words_is_found_by_its_meaning() -> None:
    assert max(similarity(RESTATED, side) for side in SIDES) < NEAR
    (found,) = near_prompts(suite_of(RESTATED, SYNONYMS, "a bowl of soup"))
    assert (found.prompt, found.side, found.measure) == (RESTATED, SIDES[0], MEANING)
    assert SAME <= found.value < 1


def test_what_both_measures_find_is_named_once_by_its_words() -> None:
    found = near_prompts(suite_of(RESTATED, COPIED))
    assert [(item.prompt, item.measure) for item in found] == [(COPIED, WORDS), (RESTATED, MEANING)]


@pytest.mark.parametrize("role", ["paraphrase", "neighbour", "generic", "unrelated"])
def test_other_roles_are_judged_by_words_alone(role: str) -> None:
    suite = suite_of(RESTATED, role=role)
    assert near_prompts(suite) == []
    told = nearest_of_sets(suite)
    assert ("asked" in told) == (role in ("paraphrase", "neighbour"))
    assert "asked" not in told or told["asked"].value >= SAME


def test_prompts_of_the_build_are_not_judged() -> None:
    suite = suite_of(RESTATED, held_out=False)
    assert near_prompts(suite) == [] and nearest_of_sets(suite) == {}
    assert nearest_of_sets(replace(suite_of(RESTATED), sides=())) == {}


def test_shapeworlds_held_out_prompts_are_near_and_not_the_same() -> None:
    suite = red_suite(24)
    assert near_prompts(suite) == []
    assert 0.7 < nearest_of_sets(suite)["forget"].value < SAME


def test_vectors_do_not_depend_on_the_padding_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "a very long sentence about a small boat on a wide lake under a cloudy sky in the morning"
    together = sentence_vectors((SYNONYMS, long))
    monkeypatch.setattr(sentences, "_known", {})
    torch.manual_seed(3)
    expected, _ = torch.rand(1), torch.manual_seed(3)
    sentences._load.cache_clear()
    alone = sentence_vectors((SYNONYMS,))
    assert torch.equal(torch.rand(1), expected)  # loading draws nothing from the global generator
    torch.testing.assert_close(alone[0], together[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2))
    assert together[0] @ together[1] < 0.5


def test_without_the_package_words_are_compared_and_nothing_else(absent: None, tmp_path: Path) -> None:
    assert sentence_vectors(SIDES) is None
    assert [item.measure for item in near_prompts(suite_of(RESTATED, COPIED))] == [WORDS]
    report = synthetic(tmp_path, suite=red_suite(1))
    assert report.data["nearest"] == {} and "nearest to a pair" not in to_markdown(report.data)


def test_a_report_says_which_measure_found_what(tmp_path: Path) -> None:
    suite = red_suite(2)
    side = next(text for text in suite.sides if text.startswith("a red ") and " drifts " in text)
    thing, place = side.split(" on ")
    restated = f"on {place} there is {' which drifts '.join(thing.split(' drifts '))}"
    first, second = suite.sets[0].prompts
    asked = (replace(first, text=restated), replace(second, text=f"{side}."))
    report = synthetic(tmp_path, suite=replace(suite, sets=(replace(suite.sets[0], prompts=asked), *suite.sets[1:])))
    assert [(item[0], item[3]) for item in report.data["overlap"]] == [(f"{side}.", WORDS), (restated, MEANING)]
    cautions = " ".join(report.data["cautions"])
    assert f"The test prompt {restated!r} is near to a pair, {side!r} ({MEANING}: 0.9" in cautions
    assert f"The test prompt '{side}.' is near to a pair, {side!r} ({WORDS}: 1.00)." in cautions
    nearest = report.data["nearest"]
    assert list(nearest) == ["forget", "neighbours"] and nearest["forget"]["side"] == side
    line = f"- nearest to a pair in neighbours: {nearest['neighbours']['value']:.2f} ({MEANING})"
    assert line in to_markdown(report.data).splitlines()
    assert "nearest to the pairs" in write_page(report, tmp_path).read_text(encoding="utf-8")
    older = {name: value for name, value in json.loads(json.dumps(report.data)).items() if name != "nearest"}
    assert "nearest to a pair" not in to_markdown(older)


def test_the_model_is_loaded_once_and_only_if_there_is_something_to_compare() -> None:
    sentences._load.cache_clear()
    assert near_prompts(replace(suite_of(RESTATED), sides=())) == []
    assert sentences._load.cache_info().misses == 0
    for _ in range(2):
        near_prompts(suite_of(RESTATED))
    assert sentences._load.cache_info().misses == 1
