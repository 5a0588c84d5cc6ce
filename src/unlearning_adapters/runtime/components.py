"""Which denoisers of a pipeline get which parts of an adapter."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.errors import ConfigError
from unlearning_adapters.pipelines.sites import denoisers

from .strengths import Strength, by_component

Components = str | Sequence[str] | Mapping[str, str | Sequence[str]]
WANTED = (
    'Expected `components` to be names of components, or where each part of the file goes, such as {"transformer": '
    '"transformer_2"}'
)


def for_components(pipe: Any, adapter: UnlearningAdapter, components: Components | None) -> UnlearningAdapter:
    """Return the chosen components of an adapter, renamed for the denoisers that they are loaded on.

    A part for another denoiser than the file names has no stock factors, since these depend on the weights.

    Args:
        pipe: A diffusers pipeline.
        adapter: The adapter, as its file has it.
        components: Components of the file that are taken, or, by component of the file, one or several of the pipeline;
            None takes all as they are.

    Raises:
        ConfigError: If the file or the pipeline has no such component, or two parts go to one denoiser.
    """
    if components is None:
        return adapter
    targets = _targets(components)
    live, owners = denoisers(pipe), dict[str, str]()
    for source, places in targets.items():
        if source not in adapter.components:
            raise ConfigError(
                f"The adapter {adapter.info.concept!r} edits {', '.join(adapter.components)}, and not {source!r:.80}. "
                "Give one of these in `components`."
            )
        for place in places:
            if place not in live:
                raise ConfigError(
                    f"{type(pipe).__name__} has no {place!r:.80} loaded that could be edited; its denoisers are "
                    f"{', '.join(live)}. Give one of these in `components`."
                )
            if place in owners:
                raise ConfigError(f"{WANTED}, but two parts go to {place!r}: {owners[place]!r} and {source!r}.")
            owners[place] = source
    directions: dict[str, Direction] = {}
    factors = {}
    for place, source in owners.items():
        for site, direction in adapter.directions.items():
            component, _, path = site.partition(".")
            if component == source:
                directions[f"{place}.{path}"] = direction
                if place == source and site in adapter.lora_B:
                    factors[site] = adapter.lora_B[site]
    classes = adapter.info.denoisers
    info = replace(adapter.info, denoisers={place: type(live[place]).__name__ for place in owners} if classes else {})
    return replace(adapter, info=info, directions=directions, lora_B=factors)


def with_strengths(adapter: UnlearningAdapter, strengths: Mapping[str, float]) -> UnlearningAdapter:
    """Return an adapter whose default is another strength, which may differ by component.

    A file has one strength, which is the largest, and a gain for each site, which scales it to the others.

    Args:
        adapter: The adapter.
        strengths: Strength by component; one that is not among them has the largest.

    Raises:
        ConfigError: If a strength is out of range at a site.
    """
    largest = max(strengths.values())
    scaled = adapter if largest == adapter.strength else adapter.with_strength(largest)
    if len(set(strengths.values())) == 1:
        return scaled
    share = {site: strengths.get(site.partition(".")[0], largest) / largest for site in scaled.directions}
    return replace(
        scaled,
        directions={site: replace(item, gain=item.gain * share[site]) for site, item in scaled.directions.items()},
        lora_B={site: factor * share[site] for site, factor in scaled.lora_B.items()},
    )


def at_strength(adapter: UnlearningAdapter, strength: Strength) -> UnlearningAdapter:
    """Return an adapter whose default is a strength as users give it: a number, or one by component.

    Args:
        adapter: The adapter.
        strength: Where it is None, or does not name a component, the adapter's own.

    Raises:
        ConfigError: If it is out of range, or names a component that the adapter does not edit.
    """
    given = by_component(strength, adapter.components, adapter.info.concept)
    return with_strengths(adapter, {name: adapter.strength if x is None else x for name, x in given.items()})


def _targets(components: Any) -> dict[str, tuple[str, ...]]:
    if isinstance(components, str):
        components = [components]
    if isinstance(components, Mapping):
        targets = {source: (place,) if isinstance(place, str) else place for source, place in components.items()}
    elif isinstance(components, (list, tuple, set)) and all(isinstance(name, str) for name in components):
        targets = {name: (name,) for name in components}
    else:
        targets = {}
    all_lists = all(isinstance(places, (list, tuple)) and places for places in targets.values())
    if not targets or not all_lists or not all(isinstance(name, str) for places in targets.values() for name in places):
        raise ConfigError(f"{WANTED}, but got {components!r:.80}.")
    return {source: tuple(places) for source, places in targets.items()}
