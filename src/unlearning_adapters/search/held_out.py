"""The prompts that judge a search: prompts that no build saw, each with the same sentence without the concept.

The words that carry the concept, and what takes their place, are read off the pairs: where two sides differ, the one
side holds a phrase of the concept and the other its replacement.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.concepts.pair import Pair
from unlearning_adapters.concepts.wording import changed_places, find_word, leave_out, plain
from unlearning_adapters.config import DEFAULT_PAIRS
from unlearning_adapters.errors import ConceptError

COUNTERPARTS = 4  # per prompt, at most
SIDE = 8  # prompts of each kind that validate, and as many that test


@dataclass(frozen=True)
class HeldOut:
    """A prompt that names the concept, and the same sentence with other words in its place.

    Args:
        prompt: Names the concept.
        safe: One or more counterparts; an edit may land on any of them, or between them.
    """

    prompt: str
    safe: tuple[str, ...]


@dataclass(frozen=True)
class ProxyPrompts:
    """The prompts of one measurement.

    Args:
        forget: Prompts that name the concept, with their counterparts.
        retain: Neutral prompts, and neighbours, whose prediction must not change.
    """

    forget: tuple[HeldOut, ...]
    retain: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """A concept without what is held out of it, and the two halves of that, which share no prompt.

    Args:
        concept: The concept that adapters are built from.
        validation: The prompts by which settings are chosen.
        test: The prompts by which the choice is checked; none if there are too few.
    """

    concept: Concept
    validation: ProxyPrompts
    test: ProxyPrompts


def split_concept(concept: Concept) -> Split:
    """Hold out what settings are judged by: pairs behind the first five, evaluation prompts, neutral ones, neighbours.

    Of the evaluation prompts, the neighbours and the held-out neutral prompts every second one validates and the others
    test. An evaluation prompt takes part if a phrase of the concept is found in it.

    Args:
        concept: At least two pairs whose prompts differ; one of four or fewer is held out of a short list.

    Raises:
        ConceptError: If there are too few pairs, or no neutral prompt and no neighbour.
    """
    pairs = tuple(pair for pair in concept.pairs if pair.text_differs)
    if len(pairs) < 2:
        raise ConceptError(
            f"Expected the concept {concept.name!r} to have at least 2 pairs whose prompts differ, so that one can be "
            f"held out of the build, but it has {len(pairs)}. Add pairs."
        )
    count = min(DEFAULT_PAIRS, len(pairs) - max(1, len(pairs) // 4))
    neutral = concept.neutral[:: max(1, len(concept.neutral) // (2 * SIDE))][: min(2 * SIDE, len(concept.neutral) // 2)]
    retain = [_alternate(concept.neighbours, SIDE // 2), _alternate(neutral, SIDE)]
    if not any(len(first) for first, _ in retain):
        raise ConceptError(
            f"Expected the concept {concept.name!r} to have neutral prompts or neighbours, by which a search sees what "
            "else an edit changes, but it has none. Add `neutral: shared`."
        )
    phrases = _replacements(pairs)
    with_concept = [_held_out(pair.unsafe, pair.safe, phrases, concept.words) for pair in pairs[count:]]
    evaluation = [_held_out(prompt, None, phrases, concept.words) for prompt in concept.evaluation]
    validation, test = _alternate([item for item in evaluation if item.safe], SIDE)
    return Split(
        replace(concept, pairs=pairs[:count], neutral=tuple(p for p in concept.neutral if p not in neutral)),
        ProxyPrompts(
            (*with_concept, *validation)[: 2 * SIDE], tuple(prompt for first, _ in retain for prompt in first)
        ),
        ProxyPrompts(tuple(test), tuple(prompt for _, second in retain for prompt in second)),
    )


def _alternate(items: Sequence, limit: int) -> tuple[tuple, tuple]:  # type: ignore[type-arg]
    return tuple(items[::2][:limit]), tuple(items[1::2][:limit])


def _replacements(pairs: Sequence[Pair]) -> dict[str, list[str]]:
    """Return the phrases of the concept, and all replacements of all of them, the most frequent first."""
    changes = [change for pair in pairs for change in _changes(pair.unsafe, pair.safe)]
    safe = [plain(new) for _, new in changes]
    ranked = sorted(dict.fromkeys(safe), key=lambda phrase: -safe.count(phrase))
    return {plain(old): ranked for old, _ in changes}


def _changes(unsafe: str, safe: str) -> Iterator[tuple[str, str]]:
    """Yield the phrases in which two sentences differ."""
    one, other = unsafe.split(), safe.split()
    for old, new in changed_places(one, other):
        if one[old] and other[new]:
            yield " ".join(one[old]).strip(",."), " ".join(other[new]).strip(",.")


def _held_out(prompt: str, safe: str | None, phrases: dict[str, list[str]], words: Sequence[str]) -> HeldOut:
    by_phrase = {**phrases, **{plain(word): next(iter(phrases.values()), []) for word in words}}
    phrase = next((old for old in sorted(by_phrase, key=len, reverse=True) if find_word(prompt, [old])), None)
    texts = [] if safe is None else [safe]
    if phrase is not None:
        texts += [leave_out(prompt, [phrase], new) for new in by_phrase[phrase]]
    clean = [text for text in texts if not find_word(text, words) and plain(text) != plain(prompt)]
    return HeldOut(prompt, tuple({plain(text): text for text in clean}.values())[:COUNTERPARTS])
