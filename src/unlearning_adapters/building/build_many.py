"""Build the adapters of many concepts on one pipeline."""

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

from tqdm import tqdm

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.pipelines.running.call_lock import reading
from unlearning_adapters.pipelines.sites import denoisers

from .build import build_adapter
from .inputs import check_arguments, check_concepts
from .shared_neutral import shared_neutral


def build_adapters(
    pipe: Any,
    concepts: Iterable[Concept],
    config: BuildConfig = BuildConfig(),  # noqa: B008 - frozen
    *,
    progress: bool = True,
    call_kwargs: Mapping[str, Any] | None = None,
    neutral_cache: str | PathLike[str] | None = None,
) -> list[UnlearningAdapter]:
    """Build an adapter for each concept; the neutral prompts of all of them are recorded once.

    Each adapter is the one that `build_adapter` builds: bit for bit where all concepts have the same neutral prompts.
    If some concepts have different neutral prompts, the text encoder reads these in other batches than in a single
    build, and the adapters differ by its rounding, as with another `batch_size`.

    Args:
        pipe: A diffusers pipeline.
        concepts: What is to be forgotten.
        config: Settings of the build.
        progress: Whether to show a progress bar over the concepts.
        call_kwargs: Further arguments of the pipeline's call while activations are recorded.
        neutral_cache: As for `build_adapter`.

    Returns:
        An adapter per concept, in their order; the pipeline is not edited yet.

    Raises:
        ConceptError: As `build_adapter`.
        ConfigError: As `build_adapter`.
        DenoiserError: As `build_adapter`.
        SiteError: As `build_adapter`.

    Example:
        >>> red, circle = build_adapters(pipe, [load_concept("shapeworld-red"), load_concept("shapeworld-circle")])
    """
    checked = check_concepts(concepts)
    for each in checked:
        check_arguments(each, config, call_kwargs)
    ahead = [prompt for each in checked for prompt in each.neutral]
    with reading(denoisers(pipe).values()), shared_neutral(ahead, neutral_cache):
        return [
            build_adapter(pipe, each, config, progress=progress and len(checked) == 1, call_kwargs=call_kwargs)
            for each in tqdm(checked, desc="Concepts", unit="concept", disable=not progress or len(checked) == 1)
        ]
