"""Strengths as users give them: one for all adapters, one for each, and for each of them one per denoiser."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from unlearning_adapters.config import check_strength
from unlearning_adapters.errors import ConfigError

# A number, or by component, such as {"transformer": 1.0, "transformer_2": 0.5}; None is the one of loading.
Strength = float | Mapping[str, float | None] | None
Strengths = Strength | Sequence[Strength]


def strength_by_name(
    names: Sequence[str], strengths: Strengths, carried: Mapping[str, Sequence[str]], modules: Mapping[str, object]
) -> dict[str, dict[str, float | None]]:
    """Return the strength of each adapter, by component and name.

    Args:
        names: Names of the adapters.
        strengths: One for all, or one for each.
        carried: Names of the adapters on each component.
        modules: The denoiser that each component is.

    Raises:
        ConfigError: If one is no strength, names a component that the adapter does not edit, differs for components
            that are one module, or there is another number of strengths than of names.
    """
    each = dict(zip(names, for_each(strengths, len(names)), strict=True))
    values: dict[str, dict[str, float | None]] = {component: {} for component in carried}
    for name, strength in each.items():
        components = [component for component, loaded in carried.items() if name in loaded]
        for component, value in by_module(by_component(strength, components, name), modules, name).items():
            values[component][name] = value
    return values


def by_component(strength: Strength, components: Sequence[str], name: str) -> dict[str, float | None]:
    """Return a strength for each component; those that a mapping does not name have None.

    Args:
        strength: A number, None, or a number or None by component.
        components: The components that an adapter edits.
        name: What errors call the adapter.

    Raises:
        ConfigError: If one is out of range, or the mapping names another component.
    """
    if not isinstance(strength, Mapping):
        return dict.fromkeys(components, None if strength is None else check_strength(strength))
    for component in strength:
        if component not in components:
            raise ConfigError(
                f"The strengths of {name!r} name {component!r:.80}, but it edits {', '.join(components) or 'nothing'}. "
                "Give a strength for these, or one number for all."
            )
    strengths = {key: None if value is None else check_strength(value) for key, value in strength.items()}
    return {component: strengths.get(component) for component in components}


def by_module(
    strengths: Mapping[str, float | None], modules: Mapping[str, object], name: str
) -> dict[str, float | None]:
    """Return strengths by component, where components that are one module have one strength: the one that is given.

    Args:
        strengths: Strength by component; None where none is given.
        modules: The denoiser that each component is.
        name: What errors call the adapter.

    Raises:
        ConfigError: If components that are one module have different strengths.
    """
    values: dict[str, float | None] = {}
    for component in strengths:
        module = modules.get(component)
        same = [component, *(other for other in strengths if module is not None and modules.get(other) is module)]
        amounts = {other: strengths[other] for other in same if strengths[other] is not None}
        if len(set(amounts.values())) > 1:
            raise ConfigError(
                f"The {' and the '.join(amounts)} of this pipeline are one module, on which {name!r} cannot act at "
                f"{' and '.join(f'{amount:g}' for amount in amounts.values())}. Give one strength for all."
            )
        values[component] = next(iter(amounts.values()), None)
    return values


def for_each(strengths: Any, count: int) -> list[Strength]:
    """Return the strength of each of some adapters, as it was given: one for all, or one for each.

    Raises:
        ConfigError: If it is neither, or their number is another.
    """
    if strengths is None or isinstance(strengths, (Real, str, Mapping)):
        return [strengths] * count  # type: ignore[list-item]
    if not isinstance(strengths, (list, tuple)):
        raise ConfigError(
            "Expected one strength, a dictionary with one for each component, or a list with one for each adapter, but "
            f"got {strengths!r:.80}."
        )
    if len(strengths) != count:
        raise ConfigError(f"Expected one strength for each of {count} adapters, but got {len(strengths)} strengths.")
    return list(strengths)
