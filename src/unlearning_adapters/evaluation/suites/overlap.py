"""Test prompts that are too near to the pairs of the build: in their words, and in what they mean."""

from collections.abc import Iterator
from dataclasses import dataclass

from unlearning_adapters.concepts.wording import near_sides
from unlearning_adapters.evaluation.metrics import FORGET, GENERIC, UNRELATED

from .sentences import MODEL, sentence_vectors
from .suite import PromptSet, Suite

WORDS, MEANING = "words in common", f"cosine of {MODEL}"
# Of eight restatements in the same words seven are at 0.957 to 0.993, some of which share too few words for Jaccard;
# four with synonyms are at 0.79 to 0.86. Held-out forget prompts of the shipped concepts of real video reach 0.68. Of
# 288 of ShapeWorld, whose world is small, one reaches 0.954: it names thing, motion and background of a pair.
SAME = 0.95


@dataclass(frozen=True)
class Near:
    """A test prompt, the side of a pair that is nearest to it, and how near it is.

    Args:
        prompt: The test prompt.
        side: The side of a pair.
        value: Jaccard similarity of their words, or the cosine of their sentence vectors.
        measure: Which of them, `WORDS` or `MEANING`.
    """

    prompt: str
    side: str
    value: float
    measure: str


def near_prompts(suite: Suite) -> list[Near]:
    """Return held-out prompts that are too near to a pair, each once; by their words first.

    By meaning only those of the role "forget" are judged: a paraphrase is meant to mean what a pair says, and to the
    model a neighbour ("a blue circle", "moves right") is nearly the same as what it is a neighbour of.

    Args:
        suite: The suite.
    """
    near = list(_by_words(suite))
    listed = {item.prompt for item in near}
    for part in suite.sets:
        if part.held_out and part.role == FORGET:
            near += [item for item in _by_meaning(part, suite) if item.value >= SAME and item.prompt not in listed]
    return near


def nearest_of_sets(suite: Suite) -> dict[str, Near]:
    """Return for each held-out set that names or borders on the concept its prompt that is nearest to a pair.

    By meaning; empty without the package of the sentence vectors.

    Args:
        suite: The suite.
    """
    by_set: dict[str, Near] = {}
    for part in suite.sets:
        if part.held_out and part.role not in (UNRELATED, GENERIC):
            nearest = max(_by_meaning(part, suite), key=lambda item: item.value, default=None)
            by_set |= {} if nearest is None else {part.name: nearest}
    return by_set


def _by_words(suite: Suite) -> Iterator[Near]:
    """Yield held-out prompts that share too many words with a side of a pair, each with the most similar side."""
    for part in suite.sets:
        for prompt in part.prompts if part.held_out and part.role not in (UNRELATED, GENERIC) else ():
            for side, value in near_sides(prompt.text, suite.sides)[:1]:
                yield Near(prompt.text, side, round(value, 3), WORDS)


def _by_meaning(part: PromptSet, suite: Suite) -> Iterator[Near]:
    """Yield each prompt of a set with the side of a pair whose meaning is nearest."""
    if not suite.sides or (sides := sentence_vectors(suite.sides)) is None:
        return
    prompts = sentence_vectors(tuple(prompt.text for prompt in part.prompts))
    assert prompts is not None  # the package is there
    values, places = (prompts @ sides.T).max(dim=1)
    for prompt, value, place in zip(part.prompts, values.tolist(), places.tolist(), strict=True):
        yield Near(prompt.text, suite.sides[place], round(value, 3), MEANING)
