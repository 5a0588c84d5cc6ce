"""What an attack wants to see again: a concept, the prompts that name it, and prompts that leave it open."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.metrics import FORGET, PARAPHRASE
from unlearning_adapters.evaluation.suites.suite import Suite, derived_seed

TOGETHER = "together"  # name of a set whose prompts ask for the concept beside something else
BLANKS = re.compile(r"\s+")


@dataclass(frozen=True)
class Ask:
    """One clip to make.

    Args:
        text: The prompt.
        seed: Seed of its noise.
        embeds: What the denoiser reads in place of the prompt, of shape (1, tokens, width); None encodes the prompt.
        latents: Latents to start from, of shape (1, ...); None draws noise.
    """

    text: str
    seed: int
    embeds: Tensor | None = None
    latents: Tensor | None = None


@dataclass(frozen=True)
class Target:
    """A concept that an attack wants to see.

    Args:
        concept: Name of the concept.
        truth: Its factor and value, such as {"colour": "red"}; empty if a score tells.
        named: Prompts that name it, held out from the adapter's pairs.
        paraphrases: Prompts that name it by other words.
        opened: The named prompts with the concept's words left out, with the same seeds.
        pairs: Prompts with and without the concept.
        together: Prompts that ask for it beside something else.
    """

    concept: str
    truth: Mapping[str, str]
    named: tuple[Ask, ...]
    paraphrases: tuple[Ask, ...] = ()
    opened: tuple[Ask, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    together: tuple[Ask, ...] = ()
    words: tuple[str, ...] = field(default=())

    @property
    def training(self) -> tuple[Ask, ...]:
        """Prompts of which an attack takes its own clips: the sides of the pairs that show the concept."""
        return tuple(Ask(unsafe, derived_seed("attack", unsafe)) for unsafe, _ in self.pairs)

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
    named = _asks(suite, FORGET)[:count]
    opened: tuple[Ask, ...] = ()
    if suite.words:
        opened = tuple(replace(ask, text=leave_out(ask.text, suite.words, filler)) for ask in named)
        unchanged = [ask.text for ask, before in zip(opened, named, strict=True) if ask.text == before.text]
        if unchanged:
            raise EvaluationError(
                f"The prompt {unchanged[0]!r} of {suite.name!r} names none of the concept's words: "
                f"{', '.join(suite.words)}. Add the word it uses to `words`."
            )
    together = tuple(Ask(case.prompt.text, case.seed) for case in suite.cases() if case.set == TOGETHER)
    return Target(
        suite.name, dict(suite.target), named, _asks(suite, PARAPHRASE)[:count], opened, pairs, together[:count],
        suite.words,
    )  # fmt: skip


def leave_out(text: str, words: tuple[str, ...], filler: str = "") -> str:
    """Return a prompt with some words left out, or replaced by one."""
    choices = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return BLANKS.sub(" ", re.sub(rf"(?<!\w)(?:{choices})(?!\w)", filler, text, flags=re.IGNORECASE)).strip() or text


def _asks(suite: Suite, role: str) -> tuple[Ask, ...]:
    return tuple(
        Ask(case.prompt.text, case.seed) for case in suite.cases() if case.role == role and case.set != TOGETHER
    )
