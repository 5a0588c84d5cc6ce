"""The target of an attack: a concept, prompts that name it, and prompts that leave it open.

In an embedded world the truth of each prompt is known; some of ShapeWorld ask for two bodies.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from unlearning_adapters.concepts.wording import leave_out
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.arms.generate import ClipRequest
from unlearning_adapters.evaluation.metrics import FORGET, PARAPHRASE
from unlearning_adapters.evaluation.suites.suite import Suite, derived_seed
from unlearning_adapters.evaluation.suites.world import world_pairs
from unlearning_adapters.evaluation.suites.worlds import find_value

SEED = 2028  # of the prompts
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


@dataclass(frozen=True)
class Examples:
    """Clips of a concept, made by the base.

    Args:
        requests: What was asked for; they name the concept.
        latents: Latents of shape (clips, ...), as the denoiser reads them.
        starts: Latents of the target's named prompts, in their order, for attacks that start from a clip instead of
            noise.
    """

    requests: tuple[ClipRequest, ...]
    latents: Tensor
    starts: Tensor


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


def world_target(name: str, count: int, seed: int = SEED) -> Target:
    """Return the target of a value of an embedded world, such as "red" or "castworld-otto".

    Args:
        name: Name of the value, or of its concept.
        count: Prompts of each kind.
        seed: Seed of the prompts and of their noise.

    Raises:
        EvaluationError: If no world knows it.
    """
    known = find_value(name)
    if known is None:
        raise EvaluationError(f"No embedded world has the value {name!r}. Give a suite with --suite.")
    world, value = known
    suite = world.suite(value, 2 * count, seed)  # half as many paraphrases as prompts
    target = target_of(suite, world_pairs(suite.name), count, world.filler(value))
    together = (ClipRequest(item.prompt, item.seed) for item in world.together(value, count, seed))
    return replace(target, together=tuple(together))


def _requests(suite: Suite, role: str) -> tuple[ClipRequest, ...]:
    return tuple(
        ClipRequest(case.prompt.text, case.seed) for case in suite.cases() if case.role == role and case.set != TOGETHER
    )
