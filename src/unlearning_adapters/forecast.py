"""What a build can tell before a clip is made: where its edit may do less than it should, or more."""

from collections.abc import Iterator, Sequence
from statistics import median

from .adapter import Direction
from .config import MAX_CALIBRATED_STRENGTH, MAX_RANK, BuildConfig
from .material import Material

LEFT_OUT = 0.01  # share of an edit that may fall to the limit of its rank unsaid
# Part of the concept. Of neutral prompts that none of its words is in, "a blueprint of a sailing ship" has 1.0 of
# "blue", and the ShapeWorld concepts' own 0.4 at most in plain words, in real language one of 160 at times 1.1.
CHANGED = 0.75
SHOWN = 3


def doubts(material: Material, config: BuildConfig, directions: Sequence[Direction], strength: float) -> Iterator[str]:
    """Say what a user should know of an adapter that may do less than it should, or more.

    Args:
        material: What the adapter was built from.
        config: How.
        directions: The direction of each group of sites.
        strength: The adapter's strength.
    """
    left_out = max(direction.left_out for direction in directions)
    if left_out > LEFT_OUT:
        yield (
            f"The edit of the method {config.method!r} has more than {MAX_RANK} rows, the limit: the best {MAX_RANK} "
            f"leave out {100 * left_out:.1f} % of it. Lower `pairs` for an exact edit."
        )
    if config.method != "ridge":
        return
    if config.strength is None and strength >= MAX_CALIBRATED_STRENGTH:
        yield (
            f"The strength is at its limit of {MAX_CALIBRATED_STRENGTH:g}: what most pairs share is less than half of "
            "what one of them says, so that words which no pair holds may survive. Add pairs, or word them more alike."
        )
    if changed := sorted(_changed(material, directions, strength), reverse=True):
        shown = ", ".join(f"{prompt!r} ({part:.1f} of it)" for part, prompt in changed[:SHOWN])
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        yield (
            f"Neutral prompts read as the concept, and change with it: {shown}{more}. Remove from `neutral` those that "
            "show it in other words, since they also keep it from being erased."
        )


def _changed(material: Material, directions: Sequence[Direction], strength: float) -> Iterator[tuple[float, str]]:
    """Yield neutral prompts with the largest part of the concept that is taken from one of their tokens."""
    parts: dict[str, list[float]] = {}
    for group, direction in enumerate(directions):
        for prompt, rows in material.neutral_texts(group):
            parts.setdefault(prompt, []).append(strength * float((rows @ direction.read[0].to(rows)).max()))
    for prompt, found in parts.items():
        if (part := median(found)) > CHANGED:
            yield part, prompt
