"""The lint says what is doubtful in a concept, one line each, and has nothing to say of the shipped ones."""

import json

import pytest

from unlearning_adapters.cli import main as cli
from unlearning_adapters.concepts.concept import (
    Concept,
    Pair,
    concept_template,
    list_concepts,
    load_concept,
    save_concept,
)
from unlearning_adapters.concepts.lint import FEWEST, Finding, differences, lint_concept

PAIRS = (
    Pair("a red ball rolls down a hill", "a blue ball rolls down a hill"),
    Pair("two crimson cars wait at a gate", "two green cars wait at a gate"),
    Pair("an old scarlet kite over the sea", "an old yellow kite over the sea"),
    Pair("someone folds a red letter", "someone folds a white letter"),
    Pair("smoke above one crimson roof", "smoke above one grey roof"),
)
COUNTED = {
    "neutral": tuple(f"a tree number {number} in the wind" for number in range(20)),
    "evaluation": tuple(f"this is scene {number}, all of it in red light" for number in range(20)),
    "neighbours": tuple(f"an orange of kind {number}" for number in range(5)),
}


def concept(pairs: tuple[Pair, ...] = PAIRS, **changes: object) -> Concept:
    return Concept("red", pairs, **{"words": ("red", "crimson", "scarlet"), **COUNTED, **changes})


def only(found: list[Finding]) -> str:
    assert len(found) == 1 and "\n" not in str(found[0]), found
    return str(found[0])


@pytest.mark.parametrize("name", list_concepts())
def test_there_is_nothing_to_say_of_a_shipped_concept(name) -> None:
    assert lint_concept(load_concept(name)) == []


def test_there_is_nothing_to_say_of_a_good_concept() -> None:
    assert lint_concept(concept()) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"evaluation": (*COUNTED["evaluation"][1:], "A red ball rolls down a hill!")},
            "error: 'A red ball rolls down a hill!' is held out, but 'a red ball rolls down a hill' is used "
            "(similarity "
            "1.00). Word it in another way.",
        ),
        (
            {"evaluation": (*COUNTED["evaluation"][1:], "one scarlet ball rolls down a hill")},
            "error: 'one scarlet ball rolls down a hill' is held out, but it is 'a red ball rolls down a hill' "
            "with another "
            "word of the concept (similarity 0.86). Word it in another way.",
        ),
        (
            {"neighbours": (*COUNTED["neighbours"][1:], "two green cars wait at the gate")},
            "error: 'two green cars wait at the gate' is held out, but 'two green cars wait at a gate' is used "
            "(similarity "
            "0.75). Word it in another way.",
        ),
        (
            {"neighbours": (*COUNTED["neighbours"][1:], "a tree number 3 in the wind")},
            "error: 'a tree number 3 in the wind' is held out, but 'a tree number 3 in the wind' is used "
            "(similarity 1.00). "
            "Word it in another way.",
        ),
        (
            {"neighbours": (*COUNTED["neighbours"][1:], "a Scarlet pimpernel in bloom")},
            "error: The neighbour 'a Scarlet pimpernel in bloom' names the concept ('scarlet' is in `words`), "
            "and cannot "
            "survive it. Move it to `evaluation`.",
        ),
        (
            {"words": ("red", "scarlet"), "pairs": PAIRS[:4] + (Pair("smoke above one rosy roof", PAIRS[4].safe),)},
            "error: The unsafe side of pair 2 holds none of `words`: 'two crimson cars wait at a gate'.",
        ),
        (
            {"words": ()},
            "warning: It has no `words`, so that nothing can tell whether a side names the concept. Add them.",
        ),
        (
            {"pairs": (*PAIRS[:4], Pair("smoke above one crimson roof", "fog above one grey house"))},
            "warning: The sides of pair 5 differ in 2 places: 'smoke' and 'fog'; 'crimson roof' and 'grey "
            "house'. Only the "
            "concept should differ.",
        ),
        (
            {"pairs": (*PAIRS[:4], Pair("a red one", "a quiet evening in a small town near the sea one"))},
            "warning: The sides of pair 5 differ in 9 words together: 'a red one'. Only the concept should differ.",
        ),
        (
            {"pairs": (*PAIRS, Pair("a red ball rolls down a long hill", "a blue ball rolls down a long hill"))},
            "warning: Pairs 1 and 6 are nearly alike (similarity 0.86): 'a red ball rolls down a long hill'. "
            "Vary the scene.",
        ),
        ({"pairs": PAIRS[:4]}, "warning: It has 4 of `pairs`, and 5 are a good number."),
        ({"neutral": ()}, "warning: It has 0 of `neutral`, and 20 are a good number."),
        ({"evaluation": COUNTED["evaluation"][:19]}, "warning: It has 19 of `evaluation`, and 20 are a good number."),
        ({"neighbours": ()}, "warning: It has 0 of `neighbours`, and 5 are a good number."),
    ],
)
def test_each_doubt_is_one_line(changes, text) -> None:
    found = [str(item) for item in lint_concept(concept(**changes))]
    assert found and found[0].startswith(text) and all("\n" not in item for item in found)
    assert len(found) == (2 if "holds none of" in text else 1)


def test_a_prompt_in_both_lists_and_errors_first() -> None:
    both = concept(neighbours=("a blue sky at noon",), evaluation=(*COUNTED["evaluation"], "A  blue sky at noon"))
    found = lint_concept(both)
    assert [item.error for item in found] == [True, False]
    assert str(found[0]).startswith("error: 'a blue sky at noon' is in `evaluation` and in `neighbours`. Leave it")


def test_articles_do_not_count_and_several_words_do() -> None:
    assert differences(Pair("an orange car", "a red car")) == [("orange", "red")]
    assert differences(Pair("the nude man sits", "the man sits")) == [("nude", "")]
    assert differences(Pair("a b c d e", "a x c y e")) == [("b", "x"), ("d", "y")]


def test_the_template_has_few_prompts_and_no_error(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text(concept_template("mine"))
    found = lint_concept(load_concept(tmp_path / "mine.yaml"))
    assert not any(item.error for item in found)
    assert {str(item).split("`")[1] for item in found} == {"evaluation", "neighbours"}
    assert set(FEWEST) == {"pairs", "neutral", "evaluation", "neighbours"}


def test_the_command_prints_a_line_each_and_its_exit_code_tells_of_errors(tmp_path, capsys) -> None:
    good = save_concept(concept(), tmp_path / "good.yaml")
    doubtful = save_concept(concept(PAIRS[:4]), tmp_path / "doubtful.yaml")
    bad = save_concept(concept(neighbours=("a red nose",)), tmp_path / "bad.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text(
        "words: [red]\npairs:\n  - {unsafe: a red ball, safe: a Red box}\n"  # a safe side that names the concept
    )
    assert cli.main(["concepts", "lint", str(good), str(doubtful)]) == 0
    out = capsys.readouterr().out
    assert out == "red: nothing to say\nred: warning: It has 4 of `pairs`, and 5 are a good number.\n"
    assert cli.main(["concepts", "lint", str(good), str(bad), str(broken), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["errors"] == 2 and [len(item["findings"]) for item in told["concepts"]] == [0, 2, 1]
    assert cli.main(["concepts", "lint", str(broken)]) == 1
    line = capsys.readouterr().out
    assert line.startswith(
        f"{broken}: error: {broken}: The safe side of entry 1 of `pairs` names the concept ('red' is"
    )
    assert line.count("\n") == 1
    assert cli.main(["concepts", "lint", "nudty"]) == 1
    assert "Did you mean 'nudity'?" in capsys.readouterr().out
    assert cli.main(["concepts", "lint"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{name}: nothing to say" for name in list_concepts()]
