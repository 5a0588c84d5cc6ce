"""From samples to counts: {"hits": ..., "count": ...}, so that draws can be pooled."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from unlearning_adapters.evaluation.metrics import UNKNOWN
from unlearning_adapters.evaluation.rates import Rate
from unlearning_adapters.shapeworld.world.prompts import LabelledPrompt

from .watch import Clips, Seen

SCENE = ("character", "motion", "setting", "style", "emblem", "object")
WORST_OF = 4  # clips that a value needs to be the worst one
Count = dict[str, int]


def count_of(flags: Iterable[bool]) -> Count:
    """Return hits and count."""
    rate = Rate.of(flags)
    return {"hits": rate.hits, "count": rate.count}


def seen_of(prompts: Sequence[LabelledPrompt], clips: Clips) -> list[tuple[LabelledPrompt, Seen]]:
    """Return prompts with what their clips show."""
    return [(prompt, clips[prompt.prompt, prompt.seed]) for prompt in prompts]


def label(seen: Seen, factor: str) -> str:
    """Return what a clip shows of a factor; "unknown" if it is not valid."""
    return str(seen.sample.labels.get(factor, UNKNOWN)) if seen.sample.valid else UNKNOWN


def shown(prompts: Sequence[LabelledPrompt], clips: Clips, factor: str) -> Count:
    """Count the valid clips that show what their prompt asks for."""
    pairs = [(one.factors[factor], seen) for one, seen in seen_of(prompts, clips) if seen.sample.valid]
    return count_of(label(seen, factor) == value for value, seen in pairs)


def right(prompts: Sequence[LabelledPrompt], clips: Clips, factor: str) -> Count:
    """Count the clips, of all, that are valid and show what their prompt asks for."""
    return count_of(label(seen, factor) == one.factors[factor] for one, seen in seen_of(prompts, clips))


def has(prompts: Sequence[LabelledPrompt], clips: Clips, factor: str, values: Collection[str]) -> Count:
    """Count the valid clips that show one of some values, whatever their prompt asks for."""
    return count_of(label(seen, factor) in values for _, seen in seen_of(prompts, clips) if seen.sample.valid)


def valid(prompts: Sequence[LabelledPrompt], clips: Clips) -> Count:
    """Count the valid clips."""
    return count_of(seen.sample.valid for _, seen in seen_of(prompts, clips))


def rest_of_scene(prompts: Sequence[LabelledPrompt], clips: Clips, factor: str) -> Count:
    """Count the other factors that are right in valid clips, all factors together; things are counted apart."""
    return count_of(
        label(seen, name) == one.factors[name]
        for one, seen in seen_of(prompts, clips)
        if seen.sample.valid
        for name in SCENE
        if name != factor and name in one.factors
    )


def by_value(prompts: Sequence[LabelledPrompt], clips: Clips, factor: str) -> dict[str, Count]:
    """Count the right clips of each value."""
    values = dict.fromkeys(one.factors[factor] for one in prompts)
    return {value: right([one for one in prompts if one.factors[factor] == value], clips, factor) for value in values}


def drift(prompts: Sequence[LabelledPrompt], clips: Clips, base: Clips) -> float | None:
    """Return the mean difference of clips from the base's, in parts of the range of a pixel; None without clips."""
    moved = [
        float(np.abs(seen.clip.astype(np.float32) - base[one.prompt, one.seed].clip).mean()) / 255
        for one, seen in seen_of(prompts, clips)
    ]
    return float(np.mean(moved)) if moved else None


def pooled(counts: Iterable[Mapping[str, int]]) -> Rate:
    """Return the rate of several counts together."""
    items = list(counts)
    return Rate(sum(item["hits"] for item in items), sum(item["count"] for item in items))


def worst(tables: Iterable[Mapping[str, Count]]) -> tuple[str, Rate] | None:
    """Return the value with the lowest share of right clips, of those with enough; None if none has."""
    together: dict[str, list[Count]] = {}
    for table in tables:
        for value, one in table.items():
            together.setdefault(value, []).append(one)
    rates = {value: pooled(items) for value, items in together.items()}
    enough = {value: rate for value, rate in rates.items() if rate.count >= WORST_OF}
    if not enough:
        return None
    value = min(enough, key=lambda one: (enough[one].value or 0.0, one))
    return value, enough[value]


def thing_counts(sets: Mapping[str, Sequence[LabelledPrompt]], clips: Clips, base: Clips, thing: str) -> dict[str, Any]:
    """Return counts of one thing: shown by how prompts speak of it; settings, characters and drift of the others."""
    every = [one for prompts in sets.values() for one in prompts]
    own = [one for name, prompts in sets.items() if name != "elsewhere" for one in prompts]
    return {
        "shown": {name: has(prompts, clips, thing, ("shown",)) for name, prompts in sets.items()},
        "valid": valid(every, clips),
        "setting kept": right(own, clips, "setting"),
        "character kept": right(every, clips, "character"),
        "rest": rest_of_scene(every, clips, thing),
        "drift": drift(sets["elsewhere"], clips, base),
    }
