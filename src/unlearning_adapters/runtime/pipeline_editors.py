"""The editors of a pipeline's denoisers, and checks of the adapters on them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from torch import nn

from unlearning_adapters.errors import AdapterNameError, FuseError
from unlearning_adapters.pipelines.running.call_lock import held
from unlearning_adapters.pipelines.sites import denoisers

from .editor import Editor, editor_of


def editors_of(pipe: Any) -> dict[str, Editor]:
    """Return the editor of each denoiser, by component.

    Raises:
        DenoiserError: If the pipeline has no denoiser.
    """
    return _editors(denoisers(pipe))


@contextmanager
def locked_editors(pipe: Any) -> Iterator[dict[str, Editor]]:
    """Yield the editors of a pipeline's denoisers, which no other thread changes meanwhile."""
    networks = denoisers(pipe)
    with held(networks.values()):
        yield _editors(networks)


def _editors(networks: Mapping[str, nn.Module]) -> dict[str, Editor]:
    by_module = {id(network): editor_of(network) for network in networks.values()}  # components may share one
    return {component: by_module[id(network)] for component, network in networks.items()}


def loaded_names(editors: Mapping[str, Editor]) -> list[str]:
    """Return the names of all adapters that are loaded, in the order of loading."""
    return list(dict.fromkeys(name for editor in editors.values() for name in editor.stack.loaded))


def check_loaded(names: Sequence[str], loaded: Sequence[str]) -> None:
    """Raise `AdapterNameError` if there is no adapter of a name."""
    for name in names:
        if not isinstance(name, str) or name not in loaded:
            near = get_close_matches(str(name), loaded, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Loaded are: {', '.join(loaded) or 'none'}."
            raise AdapterNameError(f"There is no unlearning adapter {name!r} on this pipeline. {hint}")


def check_not_fused(editors: Mapping[str, Editor], names: Sequence[str], done: str) -> None:
    """Raise `FuseError` if one of these adapters is fused; `done` is what was to be done with it."""
    fused = [name for name in names if any(name in editor.stack.fused for editor in editors.values())]
    if fused:
        raise FuseError(
            f"The adapter {fused[0]!r} is fused into the weights and cannot be {done}. "
            "Call unfuse_unlearning_adapters() first."
        )
