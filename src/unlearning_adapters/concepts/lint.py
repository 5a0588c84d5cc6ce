"""Check a concept: held-out prompts that repeat a pair, and pairs that differ in more than the concept."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from .concept import Concept, overlap
from .pair import Pair
from .wording import NEAR, changed_places, find_word, leave_out, plain, show, similarity, tokens

ALIKE = 0.8  # similarity of two pairs, from which on the second adds little
FEWEST = {"pairs": 5, "evaluation": 20, "neighbours": 5, "neutral": 20}
LONGEST = 6  # words in which the sides of a pair may differ
ARTICLES = frozenset({"a", "an"})  # change with the word that follows


@dataclass(frozen=True)
class Finding:
    """An error or a warning about a concept.

    Args:
        error: Whether it makes the result of a build or an evaluation wrong. If not, it is a warning.
        text: One line.
    """

    error: bool
    text: str

    def __str__(self) -> str:
        return f"{'error' if self.error else 'warning'}: {self.text}"


def lint_concept(concept: Concept) -> list[Finding]:
    """Find what is doubtful in a concept.

    Errors: a held-out prompt that repeats a side of a pair or a neutral prompt, also if only the concept's word is
    another one; an unsafe side without one of the concept's words; a neighbour with one; a prompt in both held-out
    lists. (A safe side, or a neutral prompt, with one of the concept's words is an error of `load_concept` already.)

    Warnings: a pair whose sides differ in more than one place, or in many words; two pairs that are nearly alike; no
    `words`; few prompts of a kind.

    Args:
        concept: The concept.

    Returns:
        Errors, then warnings; empty if the concept passes.
    """
    problems = [*_held_out(concept), *_words(concept), *_pairs(concept), *_counts(concept)]
    return sorted(problems, key=lambda item: not item.error)


def _held_out(concept: Concept) -> Iterator[Finding]:
    for item in overlap(concept):
        yield Finding(True, f"{item}. Word it in another way.")
    reported = {item.held_out for item in overlap(concept)}
    for prompt in concept.evaluation:
        for pair in concept.pairs if concept.words and prompt not in reported else ():
            near = similarity(_masked(prompt, concept.words), _masked(pair.unsafe, concept.words))
            if near >= NEAR and find_word(prompt, concept.words):
                text = f"{show(prompt)} is held out, but it is {show(pair.unsafe)} with another word of the concept"
                yield Finding(True, f"{text} (similarity {near:.2f}). Word it in another way.")
                break
    both = {plain(prompt) for prompt in concept.evaluation} & {plain(prompt) for prompt in concept.neighbours}
    for text in sorted(both):
        yield Finding(True, f"{show(text)} is in `evaluation` and in `neighbours`. Leave it in one of them.")


def _words(concept: Concept) -> Iterator[Finding]:
    if not concept.words:
        yield Finding(False, "It has no `words`, so that nothing can tell whether a side names the concept. Add them.")
        return
    for number, pair in enumerate(concept.pairs, start=1):
        if pair.unsafe_image is None and not find_word(pair.unsafe, concept.words):
            text = f"The unsafe side of pair {number} holds none of `words`: {show(pair.unsafe)}."
            yield Finding(True, f"{text} Name the concept in it, or add its word.")
    for prompt in concept.neighbours:
        word = find_word(prompt, concept.words)
        if word:
            text = f"The neighbour {show(prompt)} names the concept ({word!r} is in `words`), and cannot survive it."
            yield Finding(True, f"{text} Move it to `evaluation`.")


def _pairs(concept: Concept) -> Iterator[Finding]:
    for number, pair in enumerate(concept.pairs, start=1):
        places = differences(pair)
        if len(places) > 1:
            text_of_places = "; ".join(f"{one or 'nothing'!r} and {other or 'nothing'!r}" for one, other in places)
            text = f"The sides of pair {number} differ in {len(places)} places: {text_of_places}."
            yield Finding(False, f"{text} Only the concept should differ.")
        longest = max((len(side.split()) for place in places for side in place), default=0)
        if longest > LONGEST:
            text = f"The sides of pair {number} differ in {longest} words together: {show(pair.unsafe)}."
            yield Finding(False, f"{text} Only the concept should differ.")
    for (first, one), (second, other) in combinations(enumerate(concept.pairs, start=1), 2):
        near = min(similarity(one.unsafe, other.unsafe), similarity(one.safe, other.safe))
        if near >= ALIKE and one.unsafe_image is None:
            text = f"Pairs {first} and {second} are nearly alike (similarity {near:.2f}): {show(other.unsafe)}."
            yield Finding(False, f"{text} Vary the scene.")


def _counts(concept: Concept) -> Iterator[Finding]:
    for name, fewest in FEWEST.items():
        count = len(getattr(concept, name))
        if count < fewest:
            yield Finding(False, f"It has {count} of `{name}`, and {fewest} are a good number.")


def differences(pair: Pair) -> list[tuple[str, str]]:
    """Return the places in which the sides of a pair differ, as the words of both; `a` and `an` are the same."""
    unsafe, safe = tokens(pair.unsafe), tokens(pair.safe)
    alike = [["a" if word in ARTICLES else word for word in side] for side in (unsafe, safe)]
    return [(" ".join(unsafe[old]), " ".join(safe[new])) for old, new in changed_places(*alike)]


def _masked(text: str, words: Sequence[str]) -> str:
    """Return a prompt with each word of the concept replaced by one and the same."""
    return leave_out(plain(text), [plain(word) for word in words], "_")
