"""The arms of an evaluation: states of one pipeline, each entered and left without a trace."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter
from unlearning_adapters.concepts.wording import leave_out
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.suites.suite import Case
from unlearning_adapters.runtime.verbs import (
    fuse_unlearning_adapters,
    get_active_unlearning_adapters,
    get_list_unlearning_adapters,
    load_unlearning_adapter,
    unfuse_unlearning_adapters,
    unload_unlearning_adapters,
)

Part = Literal["base", "edited", "sweep", "control", "reference"]
BASE, EDITED, RANDOM, DESTROYED = "base", "edited", "random", "destroyed"


@dataclass(frozen=True)
class Arm:
    """One state of a pipeline that is measured.

    Args:
        enter: Called with the pipeline; returns a context in which the pipeline is in that state.
        part: "base", "edited" (what is measured), "sweep" (the same at another strength), "control" (must fail) or
            "reference" (for comparison).
        title: A few words for people.
        call: Arguments of the pipeline's call that this arm adds, such as {"negative_prompt": "red"}.
        reword: What it does to each prompt; None leaves prompts alone.
        reseed: Number that is added to each seed.
        details: What a report must say about it, such as the adapter's strength and hash.
        pipe: Another pipeline, which makes the clips of this arm; None for the one that is evaluated.
    """

    enter: Callable[[Any], AbstractContextManager[Any]]
    part: Part = "edited"
    title: str = ""
    call: Mapping[str, Any] = field(default_factory=dict)
    reword: Callable[[str], str] | None = None
    reseed: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)
    pipe: Any = None

    def text(self, case: Case) -> str:
        """Return what this arm asks for in a case."""
        return case.prompt.text if self.reword is None else self.reword(case.prompt.text)


def base_arm() -> Arm:
    """Return the arm of the pipeline as it is."""
    return Arm(lambda _: contextlib.nullcontext(), "base", "base")


def adapter_arm(
    adapter: UnlearningAdapter | str | Path,
    strength: float | None = None,
    fused: bool = False,
    part: Part = "edited",
    title: str = "",
    **details: Any,
) -> Arm:
    """Return an arm with an adapter, attached or fused.

    Args:
        adapter: The adapter, or where it is.
        strength: Strength; None takes the adapter's own.
        fused: Whether to write it into the weights, which are restored bit for bit when the arm ends.
        part: What the arm is for.
        title: A few words for people; "" makes some.
        details: Further facts for the report.
    """
    edit = adapter if isinstance(adapter, UnlearningAdapter) else load_adapter(adapter)
    value = edit.strength if strength is None else edit.allowed_strength(strength)
    how = "fused" if fused else "attached"

    @contextlib.contextmanager
    def enter(pipe: Any) -> Iterator[None]:
        check_unedited(pipe)
        name = load_unlearning_adapter(pipe, edit, strength=value)
        try:
            if fused:
                fuse_unlearning_adapters(pipe, name)
            if name not in get_active_unlearning_adapters(pipe):
                raise EvaluationError(f"The adapter {name!r} was loaded but does not act. Its arm would be the base.")
            yield
        finally:
            if fused:
                unfuse_unlearning_adapters(pipe)
            unload_unlearning_adapters(pipe)

    facts = {
        "concept": edit.info.concept,
        "method": edit.info.method,
        "strength": value,
        "applied": how,
        "sites": len(edit.sites),
        "rank": edit.rank,
        "sha256": adapter_hash(edit),
        "pairs_hash": edit.info.pairs_hash,
        **details,
    }
    return Arm(enter, part, title or f"{edit.info.concept}, {how} at {value:.3g}", details=facts)


def negative_prompt_arm(text: str) -> Arm:
    """Return the base with a negative prompt, which acts only with guidance above 1."""
    title = f"base, negative prompt {text!r}"
    return Arm(
        lambda _: contextlib.nullcontext(), "reference", title, {"negative_prompt": text}, details={"negative": text}
    )


def reworded_arm(words: tuple[str, ...], replacement: str = "") -> Arm:
    """Return the base with the concept's words taken out of each prompt: what perfect forgetting could look like.

    Args:
        words: The concept's own words.
        replacement: What stands in their place.
    """
    if not words:
        raise EvaluationError("The arm without the concept's words needs `words`. Add them to the concept or suite.")
    title = (
        "base, concept's words left out" if not replacement else f"base, concept's words replaced by {replacement!r}"
    )
    return Arm(
        lambda _: contextlib.nullcontext(),
        "reference",
        title,
        reword=partial(leave_out, words=words, replacement=replacement),
        details={"words": list(words)},
    )


def reseeded_arm(offset: int = 1) -> Arm:
    """Return the base with other noise: how far two clips of one prompt are apart, the scale for all drift."""
    return Arm(
        lambda _: contextlib.nullcontext(), "reference", "base, other noise", reseed=offset, details={"reseed": offset}
    )


def check_unedited(pipe: Any) -> None:
    """Raise `EvaluationError` if the pipeline holds an adapter: an arm would then be edited twice, or the base once."""
    present = dict.fromkeys(name for names in get_list_unlearning_adapters(pipe).values() for name in names)
    if present:
        raise EvaluationError(
            f"The pipeline holds the adapter {', '.join(map(repr, present))}, so that every arm would hold it. "
            "Call unfuse_unlearning_adapters() and unload_unlearning_adapters() first; each arm brings its own."
        )


def adapter_hash(adapter: UnlearningAdapter) -> str:
    """Return the SHA-256 of an adapter's directions, and of gains and a shrinkage, if there are any, in file order."""
    digest = hashlib.sha256()
    for site, direction in adapter.directions.items():
        digest.update(site.encode())
        for matrix in (direction.read, direction.write):
            digest.update(matrix.detach().float().cpu().contiguous().numpy().tobytes())
        if direction.gain != 1:
            digest.update(direction.gain.hex().encode())
    if adapter.shrinkage:
        digest.update(f"shrinkage {adapter.shrinkage.hex()}".encode())
    return digest.hexdigest()
