"""Neutral prompts that several builds share are recorded once: the same inputs are read alike by the same sites."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from unlearning_adapters.pipelines.activations import Recording, record
from unlearning_adapters.pipelines.sites import Site

_SHARED: ContextVar[dict[Any, Recording] | None] = ContextVar("shared neutral recordings", default=None)


@contextmanager
def shared_neutral() -> Iterator[None]:
    """Let all builds inside, which have to be of one pipeline that is not changed, share neutral recordings."""
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)


def record_neutral(
    pipe: Any, prompts: Sequence[str], sites: Sequence[Site], *, images: Sequence[Any], **settings: Any
) -> Recording:
    """Return what sites read for neutral prompts, from an earlier build if it recorded just the same.

    Args:
        pipe: A diffusers pipeline.
        prompts: The prompts.
        sites: The sites.
        images: Picture of each prompt or None; with pictures nothing is shared.
        settings: As for `record`.
    """
    shared = _SHARED.get()
    if shared is None or any(image is not None for image in images):
        return record(pipe, prompts, sites, images=images, **settings)
    # How far the run goes and what is shown meanwhile does not change what is read.
    given = {name: value for name, value in settings.items() if name not in ("progress", "description")}
    key = id(pipe), tuple(prompts), tuple(sites), _frozen(given)
    if key not in shared:
        shared[key] = record(pipe, prompts, sites, images=images, **settings)
    return shared[key]


def _frozen(value: Any) -> Any:
    """Return settings as something that can be a key; what cannot is told apart by its identity."""
    if isinstance(value, Mapping):
        return tuple((name, _frozen(item)) for name, item in sorted(value.items()))
    if isinstance(value, (list, tuple, range)):
        return tuple(map(_frozen, value))
    return value if value is None or isinstance(value, (bool, int, float, str)) else id(value)
