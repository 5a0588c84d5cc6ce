"""`build_warnings`: warn where an edit may remove too little of the concept, or may change too much else."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.config import MAX_CALIBRATED_STRENGTH, MAX_RANK, BuildConfig
from unlearning_adapters.methods.registry import METHODS

from .inputs import BuildInputs

LEFT_OUT = 0.01  # share of an edit that may fall to the limit of its rank unsaid
# Parts of the concept. "a blueprint of a sailing ship" has 1.0 of "blue"; the neutral prompts that the ShapeWorld
# concepts come with have 0.4 at most, and in real language a few of 160 up to 1.3.
CHANGED = 0.75
SHOWN = 3


def build_warnings(
    inputs: BuildInputs,
    config: BuildConfig,
    directions: Sequence[Direction],
    strength: float,
    outliers: Sequence[int],
    survivors: Mapping[int, float],
) -> Iterator[str]:
    """Yield a warning where an adapter may remove too little of the concept, or may change too much else.

    Args:
        inputs: What the adapter was built from.
        config: Settings of the build.
        directions: The direction of each group of sites.
        strength: The adapter's strength.
        outliers: Indices of the outlier pairs that got an extra row (`with_outlier_rows`).
        survivors: For each pair that loses less than half of the concept, its index and the part that is removed.
    """
    left_out = max(direction.left_out for direction in directions)
    if left_out > LEFT_OUT:
        yield (
            f"The edit of the method {config.method!r} has more than {MAX_RANK} rows, the limit: the best {MAX_RANK} "
            f"leave out {100 * left_out:.1f} % of it. Lower `pairs` for an exact edit."
        )
    if not METHODS[config.method].calibrates or config.strength is not None:
        return
    if strength >= MAX_CALIBRATED_STRENGTH:
        yield (
            f"The strength is at its limit of {MAX_CALIBRATED_STRENGTH:g}: what most pairs share is less than half of "
            "what one of them says, so that words which no pair holds may survive. Add pairs, or word them more alike."
        )
    for pair in outliers:
        yield (
            f"Pair {pair + 1}, {inputs.pairs[pair].unsafe!r}, is an outlier: it shows the concept in another way than "
            "the others. It got an extra row, which moves other prompts more. Word it more like them to avoid that."
        )
    for pair, part in survivors.items():
        yield (
            f"The edit removes {max(0.0, part):.0%} of what pair {pair + 1} shows, {inputs.pairs[pair].unsafe!r}: "
            "the others show it in another way. Word it more like them, or build an adapter of such pairs, and stack "
            "the two."
        )
    if changed := sorted(_changed(inputs, config, directions, strength), reverse=True):
        examples = ", ".join(f"{prompt!r} ({part:.1f} of it)" for part, prompt in changed[:SHOWN])
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        yield (
            f"Neutral prompts read as the concept, and change with it: {examples}{more}. Remove from `neutral` those "
            "that show it in other words, since they also keep it from being erased."
        )


def _changed(
    inputs: BuildInputs, config: BuildConfig, directions: Sequence[Direction], strength: float
) -> Iterator[tuple[float, str]]:
    """Yield neutral prompts with the largest part of the concept that is taken from one of their tokens."""
    parts: dict[str, list[float]] = {}
    for group, direction in enumerate(directions):
        read = direction.read.sum(0) if config.rank == 1 else direction.read[0]
        for prompt, rows in inputs.neutral_texts(group):
            parts.setdefault(prompt, []).append(strength * float((rows @ read.to(rows)).max()))
    for prompt, values in parts.items():
        if (part := median(values)) > CHANGED:
            yield part, prompt
