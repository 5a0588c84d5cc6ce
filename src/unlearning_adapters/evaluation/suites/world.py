"""What an embedded world is to evaluation, attacks and search: a record that every world fills in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearning_adapters.concepts.concept import Concept, load_concept
from unlearning_adapters.errors import ConceptError
from unlearning_adapters.shapeworld.world.prompts import LabelledPrompt

from .suite import EvaluationPrompt, PromptSet, Suite

SEED = 2027  # of the prompts of suites; pairs, the demo, attacks and benchmarks use other ones


@dataclass(frozen=True)
class World:
    """A small world whose prompts have a known truth that its judge reads.

    Args:
        name: Name of its model, and what names of its concepts begin with, such as "shapeworld".
        title: Its name in sentences.
        targets: Factor and value of everything that can be erased, by name: {"red": {"colour": "red"}}.
        call: Arguments of the call of its model.
        detectors: Names of the detectors of its suites; the first is its judge.
        suite: Function from a name of `targets`, a number of prompts of the larger sets, and a seed, to its suite.
        reference: Function from a name to another one, the concept that was not erased beside it in attacks.
        second: Function from a name to another one, whose adapter is stacked on it in attacks.
        filler: Function from a name to what stands in its place where prompts leave it open.
        together: Function from a name, a number and a seed to prompts that ask for it beside something else; none
            where scenes hold one body.
        short_names: Whether "red" alone stands for the suite of "shapeworld-red".
    """

    name: str
    title: str
    targets: Mapping[str, Mapping[str, str]]
    call: Mapping[str, Any]
    detectors: tuple[str, ...]
    suite: Callable[[str, int, int], Suite]
    reference: Callable[[str], str]
    second: Callable[[str], str]
    filler: Callable[[str], str]
    together: Callable[[str, int, int], Sequence[LabelledPrompt]]
    short_names: bool = False

    def concept_name(self, value: str) -> str:
        """Return the name of the concept and of the suite of a value: "shapeworld-red"."""
        return f"{self.name}-{value}"

    def value_of(self, concept: Concept) -> str:
        """Return the name of what a concept is about, such as "red".

        Raises:
            ConceptError: If it has no `target`, or one that the world does not know.
        """
        if not concept.target:
            ((factor, name),) = next(iter(self.targets.values())).items()
            raise ConceptError(
                f"The concept {concept.name!r} has no `target`, so that the judge cannot tell whether it is shown. "
                f"Choose a {self.name} concept of `unlearn concepts`, or add `target: {{{factor}: {name}}}` to your "
                "file."
            )
        for value, target in self.targets.items():
            if target == dict(concept.target):
                return value
        by_factor: dict[str, list[str]] = {}
        for target in self.targets.values():
            for factor, name in target.items():
                by_factor.setdefault(factor, []).append(name)
        known = "; ".join(f"{factor}: {', '.join(names[:12])}" for factor, names in by_factor.items())
        raise ConceptError(
            f"The `target` of the concept {concept.name!r} is {dict(concept.target)}, and {self.title} needs one "
            f"factor with one of its values. Known: {known}."
        )


def prompt_set(name: str, role: str, prompts: Sequence[LabelledPrompt]) -> PromptSet:
    """Return labelled prompts as a set of a suite, numbered from 1, with their seeds and their truth."""
    rows = tuple(
        EvaluationPrompt(item.prompt, f"{index:04d}", item.seed, dict(item.factors))
        for index, item in enumerate(prompts, start=1)
    )
    return PromptSet(name, role, rows)


def world_pairs(name: str) -> tuple[tuple[str, str], ...]:
    """Return unsafe and safe side of each pair of a concept, such as "shapeworld-red"; none if it does not ship."""
    try:
        pairs = load_concept(name).pairs
    except ConceptError:  # a value without a shipped concept
        return ()
    return tuple((pair.unsafe, pair.safe) for pair in pairs)


def sides_of(name: str) -> tuple[str, ...]:
    """Return each side of the pairs of a concept once."""
    return tuple(dict.fromkeys(side for pair in world_pairs(name) for side in pair))
