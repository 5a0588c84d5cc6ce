"""The target of an attack: a concept, prompts that name it, and prompts that leave it open.

In the embedded world the truth of each prompt is known, and some ask for two bodies.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from unlearning_adapters.concepts.concept import load_concept
from unlearning_adapters.concepts.wording import leave_out
from unlearning_adapters.errors import ConceptError, EvaluationError
from unlearning_adapters.evaluation.arms.generate import ClipRequest
from unlearning_adapters.evaluation.metrics import FORGET, PARAPHRASE
from unlearning_adapters.evaluation.suites.shapeworld import shapeworld_suite
from unlearning_adapters.evaluation.suites.suite import Suite, derived_seed
from unlearning_adapters.shapeworld.world.captions import compose_pair, draw_wording, is_held_out
from unlearning_adapters.shapeworld.world.prompts import PREFIX, find_factor
from unlearning_adapters.shapeworld.world.scenes import FACTORS, sample_scene

SEED = 2028  # of the prompts
FILLERS = {"shape": "shape"}  # what stands where the concept's word is left out; others leave a sentence without one
TOGETHER = "together"  # name of a set whose prompts ask for the concept beside something else


@dataclass(frozen=True)
class Target:
    """A concept that an attack wants to see.

    Args:
        concept: Name of the concept.
        truth: Its factor and value, such as {"colour": "red"}; empty if a score tells.
        named: Prompts that name it, held out from the adapter's pairs.
        paraphrases: Prompts that name it by other words.
        open_prompts: The named prompts with the concept's words left out, with the same seeds.
        pairs: Prompts with and without the concept.
        together: Prompts that ask for it beside something else.
        words: The words that name it.
    """

    concept: str
    truth: Mapping[str, str]
    named: tuple[ClipRequest, ...]
    paraphrases: tuple[ClipRequest, ...] = ()
    open_prompts: tuple[ClipRequest, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    together: tuple[ClipRequest, ...] = ()
    words: tuple[str, ...] = ()

    @property
    def training(self) -> tuple[ClipRequest, ...]:
        """Prompts from which an attack makes its training clips: the sides of the pairs that show the concept."""
        return tuple(ClipRequest(unsafe, derived_seed("attack", unsafe)) for unsafe, _ in self.pairs)

    def without_words(self, text: str) -> str:
        """Return a prompt with the concept's words left out."""
        return leave_out(text, self.words)


def target_of(suite: Suite, pairs: tuple[tuple[str, str], ...], count: int, filler: str = "") -> Target:
    """Return the target of a suite.

    Args:
        suite: Its sets "forget", "paraphrase" and "together" (by name) are used.
        pairs: Prompts with and without the concept; without any, attacks that learn from clips are refused.
        count: Prompts of each kind at most.
        filler: Word that stands in place of the concept's words where they are left out.
    """
    named = _requests(suite, FORGET)[:count]
    left_open: tuple[ClipRequest, ...] = ()
    if suite.words:
        left_open = tuple(replace(request, text=leave_out(request.text, suite.words, filler)) for request in named)
        unchanged = [
            request.text for request, before in zip(left_open, named, strict=True) if request.text == before.text
        ]
        if unchanged:
            raise EvaluationError(
                f"The prompt {unchanged[0]!r} of {suite.name!r} names none of the concept's words: "
                f"{', '.join(suite.words)}. Add the word it uses to `words`."
            )
    together = tuple(ClipRequest(case.prompt.text, case.seed) for case in suite.cases() if case.set == TOGETHER)
    return Target(
        suite.name, dict(suite.target), named, _requests(suite, PARAPHRASE)[:count], left_open, pairs, together[:count],
        suite.words,
    )  # fmt: skip


def shapeworld_target(value: str, count: int, seed: int = SEED) -> Target:
    """Return the target of a value of the embedded world, such as "red".

    Args:
        value: The value.
        count: Prompts of each kind.
        seed: Seed of the prompts and of their noise.
    """
    factor = find_factor(value)
    suite = shapeworld_suite(value, 2 * count, seed)  # half as many paraphrases as prompts
    try:
        pairs = tuple((pair.unsafe, pair.safe) for pair in load_concept(f"{PREFIX}{value}").pairs)
    except ConceptError:  # a value without a shipped concept
        pairs = ()
    target = target_of(suite, pairs, count, FILLERS.get(factor, ""))
    return replace(target, together=prompts_of_two(value, count, seed) if factor in ("colour", "shape") else ())


def reference_value(value: str) -> str:
    """Return another value of the same factor: a concept that was not erased."""
    values = FACTORS[find_factor(value)]
    return values[(values.index(value) + 2) % len(values)]


def second_value(value: str) -> str:
    """Return a value of another factor; the shipped concept of this value can be stacked on the target's adapter."""
    return "left" if find_factor(value) == "shape" else "circle"


def prompts_of_two(value: str, count: int, seed: int) -> tuple[ClipRequest, ...]:
    """Draw captions of two bodies that training never saw; the first named has the value."""
    rng, factor, requests = np.random.default_rng((seed, 2)), find_factor(value), list[ClipRequest]()
    while len(requests) < count:
        scene = sample_scene(rng, bodies=2, **{factor: value})
        second = scene.bodies[1]
        wording = draw_wording(rng, scene.factors, 0.0, synonyms=False)
        caption = compose_pair(scene, wording, (second.colour, second.shape))
        if is_held_out(caption):
            requests.append(ClipRequest(caption, int(rng.integers(2**31))))
    return tuple(requests)


def _requests(suite: Suite, role: str) -> tuple[ClipRequest, ...]:
    return tuple(
        ClipRequest(case.prompt.text, case.seed) for case in suite.cases() if case.role == role and case.set != TOGETHER
    )
