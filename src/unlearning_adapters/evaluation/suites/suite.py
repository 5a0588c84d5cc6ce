"""The prompts of an evaluation: sets with a role each, the same for every arm."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.concepts.wording import is_prompt, show
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.metrics import FORGET, NEIGHBOUR, ROLES, UNRELATED


@dataclass(frozen=True)
class EvaluationPrompt:
    """One prompt of a set.

    Args:
        text: What the pipeline is asked for.
        id: Name of the prompt within its set; file names are made from it.
        seed: Seed of its noise; None derives one from the set and the id.
        truth: What the prompt asks for, by factor, such as {"colour": "green"}, for detectors that give labels.
        image: Picture for an image-to-video pipeline (a path), "" for none.
        call: Arguments of the pipeline's call for this prompt alone.
    """

    text: str
    id: str
    seed: int | None = None
    truth: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    call: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not is_prompt(self.text):
            raise EvaluationError(f"Expected a prompt to be a text with words, but got {show(self.text)}.")
        if not isinstance(self.id, str) or not re.fullmatch(r"\w[\w.-]{0,79}", self.id):
            raise EvaluationError(f"Expected the id of a prompt to be 1 to 80 letters, digits or _.-, got {self.id!r}.")
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0):
            raise EvaluationError(f"Expected the seed of a prompt to be a whole number >= 0, but got {self.seed!r}.")


@dataclass(frozen=True)
class PromptSet:
    """Prompts for one purpose.

    Args:
        name: Name of the set.
        role: "forget" (they name the concept, and no pair holds them), "paraphrase" (synonyms and other ways to ask for
            it), "neighbour" (near things that must survive), "unrelated" (anything else) or "generic" (they leave the
            concept's factor open, such as "a circle" where the concept is red).
        prompts: The prompts.
        held_out: Whether they are held out, that is, not used by the build.
        source: File that they were read from, with its checksum; "" if they are the suite's own.
    """

    name: str
    role: str
    prompts: tuple[EvaluationPrompt, ...]
    held_out: bool = True
    source: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"\w[\w.-]{0,39}", self.name):
            raise EvaluationError(
                f"Expected the name of a set to be 1 to 40 letters, digits or _.-, got {self.name!r}."
            )
        if self.role not in ROLES:
            raise EvaluationError(
                f"Expected the role of the set {self.name!r} to be one of {', '.join(ROLES)}, but got {self.role!r}."
            )
        object.__setattr__(self, "prompts", tuple(self.prompts))
        if not self.prompts:
            raise EvaluationError(f"The set {self.name!r} has no prompts. Leave it out, or add some.")
        ids = [prompt.id for prompt in self.prompts]
        for index, name in enumerate(ids):
            if name in ids[:index]:
                raise EvaluationError(f"The set {self.name!r} has two prompts with the id {name!r}. Rename one.")

    @classmethod
    def of(cls, name: str, role: str, texts: Iterable[str], held_out: bool = True) -> "PromptSet":
        """Make a set of plain texts, numbered from 1."""
        prompts = (EvaluationPrompt(text, f"{index:04d}") for index, text in enumerate(texts, start=1))
        return cls(name, role, tuple(prompts), held_out)


@dataclass(frozen=True)
class Case:
    """One clip to make in every arm: a prompt of a set, with a seed."""

    set: str
    role: str
    prompt: EvaluationPrompt
    seed: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Set, prompt id and seed."""
        return self.set, self.prompt.id, self.seed


@dataclass(frozen=True)
class Suite:
    """All prompts of one evaluation.

    Args:
        name: Name for people.
        sets: Prompt sets; at least one has the role "forget".
        target: The factor and the value that is to be forgotten, such as {"colour": "red"}, for detectors that give
            labels; empty if a score tells.
        generation: Arguments of the pipeline's call, such as {"num_frames": 49}.
        words: The concept's own words, for the arm that leaves them out.
        sides: Prompts that the adapter was built from, for the check that no test repeats them.
        sensitive: Whether frames that show the concept are blurred in the report.
    """

    name: str
    sets: tuple[PromptSet, ...]
    target: Mapping[str, str] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    sides: tuple[str, ...] = ()
    sensitive: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "sets", tuple(self.sets))
        names = [part.name for part in self.sets]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise EvaluationError(f"The suite {self.name!r} has two sets named {name!r}. Rename one.")
        if not any(part.role == FORGET for part in self.sets):
            raise EvaluationError(
                f"The suite {self.name!r} has no set with the role 'forget': without prompts that name the concept "
                "there is nothing to measure. Add held-out prompts, in a concept file under `evaluation`."
            )
        if len(self.target) > 1:
            raise EvaluationError(f"Expected a target of one factor, but got {dict(self.target)}.")

    @classmethod
    def from_concept(cls, concept: Concept, generation: Mapping[str, Any] | None = None, limit: int = 0) -> "Suite":
        """Return the suite of a concept: its evaluation prompts, its neighbours, and its neutral prompts.

        The neutral prompts took part in the build, which the report says; they are there for drift and for the
        detectors' false positives.

        Args:
            concept: The concept; it needs `evaluation`.
            generation: Arguments of the pipeline's call.
            limit: Largest number of prompts of each set, 0 for all.
        """
        parts = (
            ("forget", FORGET, concept.evaluation, True),
            ("neighbours", NEIGHBOUR, concept.neighbours, True),
            ("neutral", UNRELATED, concept.neutral, False),
        )
        sets = [
            PromptSet.of(name, role, texts[: limit or None], held_out) for name, role, texts, held_out in parts if texts
        ]
        sides = dict.fromkeys(side for pair in concept.pairs for side in (pair.unsafe, pair.safe))
        return cls(concept.name, tuple(sets), concept.target, generation or {}, tuple(concept.words), tuple(sides))

    @property
    def factor(self) -> str | None:
        """The factor that the concept is a value of, None without a target."""
        return next(iter(self.target), None)

    @property
    def sha256(self) -> str:
        """Hash of all that decides what is asked for: prompts, roles, seeds, truth, target."""
        text = json.dumps([[asdict(part) for part in self.sets], dict(self.target)], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def cases(self, seeds: Sequence[int] | None = None) -> Iterator[Case]:
        """Yield every clip to make, set by set.

        Args:
            seeds: Seeds with which each prompt is run; None takes each prompt's own.
        """
        for part in self.sets:
            for prompt in part.prompts:
                first_seed = prompt.seed if prompt.seed is not None else derived_seed(part.name, prompt.id)
                for seed in [first_seed] if seeds is None else seeds:
                    yield Case(part.name, part.role, prompt, seed)

    def limited(self, count: int) -> "Suite":
        """Return the same suite with at most `count` prompts of each set, evenly drawn and not chosen."""
        return replace(self, sets=tuple(replace(part, prompts=_even(part.prompts, count)) for part in self.sets))

    def to_dict(self) -> dict[str, Any]:
        """Return the suite as plain JSON types, which `read_suite` reads back."""
        sets = [
            {
                **asdict(part),
                "prompts": [{k: v for k, v in asdict(p).items() if v or k == "seed"} for p in part.prompts],
            }
            for part in self.sets
        ]
        return {
            "name": self.name,
            "sets": sets,
            "target": dict(self.target),
            "generation": dict(self.generation),
            "words": list(self.words),
            "sides": list(self.sides),
            "sensitive": self.sensitive,
        }


def derived_seed(*parts: str) -> int:
    """Return a seed made from texts, the same on every machine."""
    return int.from_bytes(hashlib.sha256("/".join(parts).encode()).digest()[:4], "big") % 2**31


def _even(prompts: tuple[EvaluationPrompt, ...], count: int) -> tuple[EvaluationPrompt, ...]:
    if count < 1:
        raise EvaluationError(f"Expected at least 1 prompt of each set, but got {count}.")
    most = min(count, len(prompts))
    return tuple(prompts[index * len(prompts) // most] for index in range(most))
