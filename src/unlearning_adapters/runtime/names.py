"""Names of the adapters on a pipeline."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import chain, count

from unlearning_adapters.errors import AdapterNameError

MAX_LENGTH = 100


def as_names(adapter_names: str | Sequence[str]) -> list[str]:
    """Return one name or several as a list, or raise `AdapterNameError` if one comes twice or is no text."""
    several = isinstance(adapter_names, Iterable) and not isinstance(adapter_names, (str, bytes))
    try:
        names: list[str] = list(adapter_names) if several else [adapter_names]  # type: ignore[list-item]
    except TypeError:  # an array or tensor of no dimension
        names = [adapter_names]  # type: ignore[list-item]
    if not all(isinstance(name, str) for name in names):
        raise AdapterNameError(f"Expected the name of an adapter, or several as a list, but got {adapter_names!r:.80}.")
    if len(set(names)) != len(names):
        raise AdapterNameError(f"Expected each adapter once, but got {', '.join(map(repr, names))}.")
    return names


def check_loaded(names: Sequence[str], loaded: Sequence[str]) -> None:
    """Raise `AdapterNameError` if there is no adapter of a name."""
    for name in names:
        if not isinstance(name, str) or name not in loaded:
            near = get_close_matches(str(name), loaded, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Loaded are: {', '.join(loaded) or 'none'}."
            raise AdapterNameError(f"There is no unlearning adapter {name!r} on this pipeline. {hint}")


def check_new_name(name: str, loaded: Sequence[str]) -> None:
    """Raise `AdapterNameError` if an adapter cannot get a name; the rules are PEFT's, so that names mean the same."""
    if not isinstance(name, str) or not name.strip() or "." in name or len(name) > MAX_LENGTH:
        raise AdapterNameError(
            f"Expected an adapter name of 1 to {MAX_LENGTH} characters without '.', but got {name!r:.{MAX_LENGTH}}."
        )
    if name in loaded:
        raise AdapterNameError(
            f"An unlearning adapter {name!r} is loaded already. Pass another `adapter_name`, change its strength with "
            f"set_unlearning_adapters, or delete it first."
        )


def default_name(concept: str, loaded: Sequence[str]) -> str:
    """Return the name of a concept, made valid, and made unique by a number."""
    stem = concept.replace(".", "-").strip()[: MAX_LENGTH - 10] or "adapter"
    numbered = (f"{stem}_{number}" for number in count(2))
    return next(name for name in chain([stem], numbered) if name not in loaded)
