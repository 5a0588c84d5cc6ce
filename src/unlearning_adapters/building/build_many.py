"""Build the adapters of many concepts on one pipeline."""

from collections.abc import Iterable, Mapping
from typing import Any

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.config import BuildConfig

from .build import build_adapter
from .shared_neutral import shared_neutral


def build_adapters(
    pipe: Any,
    concepts: Iterable[Concept],
    config: BuildConfig = BuildConfig(),  # noqa: B008 - frozen
    *,
    progress: bool = True,
    call_kwargs: Mapping[str, Any] | None = None,
) -> list[UnlearningAdapter]:
    """Build an adapter for each concept; neutral prompts that concepts share are recorded once.

    Each adapter is the one that `build_adapter` builds, bit for bit.

    Args:
        pipe: A diffusers pipeline.
        concepts: What is to be forgotten.
        config: How.
        progress: Whether to show progress bars.
        call_kwargs: Further arguments of the pipeline's call while activations are recorded.

    Returns:
        An adapter per concept, in their order; the pipeline is not edited yet.

    Raises:
        ConceptError: As `build_adapter`.
        DenoiserError: As `build_adapter`.
        SiteError: As `build_adapter`.

    Example:
        >>> red, circle = build_adapters(pipe, [load_concept("shapeworld-red"), load_concept("shapeworld-circle")])
    """
    with shared_neutral():
        return [build_adapter(pipe, each, config, progress=progress, call_kwargs=call_kwargs) for each in concepts]
