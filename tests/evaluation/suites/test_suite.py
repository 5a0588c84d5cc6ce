"""Suites: from concepts, YAML, JSONL and CSV, and what they refuse."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from unlearning_adapters.concepts.concept import Concept, Pair, load_concept, save_concept
from unlearning_adapters.errors import ConfigError, EvaluationError
from unlearning_adapters.evaluation.suites.file import read_suite, suite_from_dict
from unlearning_adapters.evaluation.suites.overlap import WORDS, near_prompts
from unlearning_adapters.evaluation.suites.shapeworld import shapeworld_suite
from unlearning_adapters.evaluation.suites.suite import EvaluationPrompt, PromptSet, Suite, derived_seed
from unlearning_adapters.shapeworld.world.captions import is_held_out
from unlearning_adapters.shapeworld.world.scenes import FACTORS


def forget(*texts: str) -> PromptSet:
    return PromptSet.of("forget", "forget", texts or ("a red car",))


@pytest.mark.parametrize("value", [value for values in FACTORS.values() for value in values])
def test_every_value_of_the_embedded_world_has_a_suite(value: str) -> None:
    suite = shapeworld_suite(value, 8)
    (factor,) = suite.target
    by_role = {part.role: part.prompts for part in suite.sets}
    assert all(prompt.truth[factor] == value for prompt in (*by_role["forget"], *by_role.get("paraphrase", ())))
    assert all(prompt.truth[factor] != value for prompt in by_role["neighbour"])
    assert all(factor not in prompt.truth for prompt in by_role.get("generic", ()))
    own = re.compile(rf"\b{value}\b")
    assert all(own.search(prompt.text) for prompt in by_role["forget"])
    assert not any(own.search(prompt.text) for prompt in by_role.get("paraphrase", ()))
    assert suite == shapeworld_suite(value, 8) and suite.sha256 != shapeworld_suite(value, 8, seed=1).sha256
    assert not [near for near in near_prompts(suite) if near.measure == WORDS] and not suite.sensitive


def test_prompts_of_the_embedded_world_are_held_out() -> None:
    suite = shapeworld_suite("red", 24)
    told = [prompt.text for part in suite.sets if part.role != "generic" for prompt in part.prompts]
    assert all(is_held_out(text) or "we see" in text or "there is" in text for text in told)


def test_a_concept_becomes_a_suite() -> None:
    concept = load_concept("trademarks")
    suite = read_suite("trademarks")
    assert [part.role for part in suite.sets] == ["forget", "neighbour", "unrelated"]
    assert tuple(prompt.text for prompt in suite.sets[0].prompts) == concept.evaluation
    assert [part.held_out for part in suite.sets] == [True, True, False]
    assert suite.words == concept.words and suite.sensitive and suite.factor is None
    assert set(suite.sides) == {side for pair in concept.pairs for side in (pair.unsafe, pair.safe)}
    bare = Concept("bare", (Pair("a red car", "a blue car"),))
    with pytest.raises(EvaluationError, match="no set with the role 'forget'"):
        Suite.from_concept(bare)


def test_a_suite_survives_its_file(tmp_path: Path) -> None:
    suite = shapeworld_suite("left", 3)
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite.to_dict()), encoding="utf-8")
    assert read_suite(tmp_path / "suite.yaml") == suite
    assert suite_from_dict(json.loads(json.dumps(suite.to_dict()))).sha256 == suite.sha256


def test_yaml_with_files_and_defaults(tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text("prompt,evaluation_seed,case_number,artist\na red bus,7,b-1,x\n")
    (tmp_path / "short.yaml").write_text("sets:\n  forget: [a red car]\n")
    assert read_suite(tmp_path / "short.yaml") == Suite("short", (forget(),))
    (tmp_path / "wrong.yaml").write_text("sets:\n  forget: a red car\n")
    with pytest.raises(EvaluationError, match="Expected set 1 to be a mapping with `role` and `prompts`"):
        read_suite(tmp_path / "wrong.yaml")
    (tmp_path / "my.yaml").write_text(
        "target: {colour: red}\ngeneration: {num_frames: 9}\nsets:\n"
        "  forget: {prompts: [a red car, {prompt: a red boat, seed: 3, truth: {colour: red}}]}\n"
        "  synonyms: {role: paraphrase, file: more.csv}\n"
    )
    suite = read_suite(tmp_path / "my.yaml")
    assert (suite.name, suite.generation, suite.sets[1].role) == ("my", {"num_frames": 9}, "paraphrase")
    assert suite.sets[1].prompts[0] == EvaluationPrompt("a red bus", "b-1", 7)
    assert [case.seed for case in suite.cases()] == [derived_seed("forget", "0001"), 3, 7]
    assert [case.seed for case in suite.cases([0, 1])] == [0, 1] * 3


def test_jsonl_and_csv_give_sets_by_role(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a red car", "seed": 1},
        {"prompt": "a blue car", "role": "neighbour", "truth": {"colour": "blue"}},
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "x.csv").write_text("prompt,seed,role,truth.colour\na red car,1.0,,\na blue car,,neighbour,blue\n")
    for file in ("x.jsonl", "x.csv"):
        suite = read_suite(tmp_path / file)
        assert [(part.name, part.role, len(part.prompts)) for part in suite.sets] == [
            ("forget", "forget", 1), ("neighbour", "neighbour", 1),
        ]  # fmt: skip
        assert suite.sets[0].prompts[0].seed == 1 and suite.sets[1].prompts[0].truth == {"colour": "blue"}


def test_a_concept_file_is_not_mistaken_for_a_suite(tmp_path: Path) -> None:
    concept = Concept("mine", (Pair("a red car", "a blue car"),), evaluation=("two red vans",), words=("red",))
    assert read_suite(save_concept(concept, tmp_path / "mine.yaml")) == Suite.from_concept(concept)


def test_what_a_suite_refuses(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="Expected the role of the set 'x' to be one of forget, paraphrase"):
        PromptSet.of("x", "unsafe", ["a"])
    with pytest.raises(EvaluationError, match="two prompts with the id 'a'"):
        PromptSet("x", "forget", (EvaluationPrompt("a b", "a"), EvaluationPrompt("c", "a")))
    with pytest.raises(EvaluationError, match="two sets named 'forget'"):
        Suite("s", (forget(), forget()))
    with pytest.raises(EvaluationError, match="1 to 80 letters, digits or _.-, got '../x'"):
        EvaluationPrompt("a", "../x")
    with pytest.raises(EvaluationError, match="whole number >= 0, but got -1"):
        EvaluationPrompt("a", "a", -1)
    with pytest.raises(EvaluationError, match="Unknown suite 'nonsense'"):
        read_suite("nonsense")
    with pytest.raises(ConfigError, match="Unknown key 'prompt' in set 1. Did you mean 'prompts'"):
        suite_from_dict({"sets": [{"role": "forget", "prompt": ["a"]}]})
    (tmp_path / "x.csv").write_text("words\na\n")
    with pytest.raises(EvaluationError, match="Expected a column prompt or text or caption"):
        read_suite(tmp_path / "x.csv")


def test_a_limit_draws_evenly() -> None:
    suite = Suite("s", (forget(*(f"prompt {index}" for index in range(10))),))
    assert [prompt.text for prompt in suite.limited(5).sets[0].prompts] == [f"prompt {i}" for i in (0, 2, 4, 6, 8)]
    assert suite.limited(99) == suite and replace(suite, name="t").sha256 == suite.sha256
