"""`select_sites`: the sites of the settings, or those that read what the pairs differ in."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.concepts.pair import Pair
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import ConceptError
from unlearning_adapters.pipelines.probes import measure_sites
from unlearning_adapters.pipelines.running.fitting import Fitting
from unlearning_adapters.pipelines.running.partial_run import PartialRun
from unlearning_adapters.pipelines.sites import Site, denoisers, find_sites

_MEASURABLE = {"text": "text", "text-in-blocks": "text", "image": "image"}


def select_sites(
    pipe: Any, concept: Concept, pairs: Sequence[Pair], config: BuildConfig, call_kwargs: Mapping[str, Any] | None
) -> tuple[Site, ...]:
    """Return the sites of `config.sites`; by default those that read what the pairs differ in.

    The default is "text" if prompts differ, and "image" if pictures differ and the pipeline has layers that read the
    picture alone. Where the structure of a denoiser shows no such layers they are measured, since it may be of a kind
    that is not known.

    Args:
        pipe: A diffusers pipeline.
        concept: What is to be forgotten.
        pairs: Those of its pairs that are used.
        config: Selection and blocks.
        call_kwargs: Further arguments of the pipeline's call.

    Raises:
        ConceptError: If the pipeline takes nothing in which the pairs differ.
        SiteError: If the selection names no site.
    """
    denoisers(pipe)
    run = PartialRun(pipe, call_kwargs, any_video=True)
    by_image = any(pair.image_differs for pair in pairs) and run.image is not None
    by_text = any(pair.text_differs for pair in pairs) and run.takes_prompt
    if not (by_image or by_text):
        raise ConceptError(_nothing_taken(pipe, concept, run))
    every = {site.name: site for site in find_sites(pipe, "*")}
    kinds = {site.kind for site in every.values()}
    selection = (config.sites,) if isinstance(config.sites, str) else config.sites
    parts = selection or tuple(kind for kind, differs in (("text", by_text), ("image", by_image)) if differs)
    fitting = Fitting(pipe, call_kwargs)
    measured = {
        part: _measured(pipe, part, config, fitting)
        for part in parts
        if part in _MEASURABLE and _MEASURABLE[part] not in kinds
    }
    if selection is None and measured.get("image") == ():
        if not by_text:
            raise ConceptError(f'{_no_image_layer(pipe, concept)} Build with sites="hidden".')
        _warn_of_pictures(pipe, concept)
        parts = ("text",)
    structural = tuple(part for part in parts if not measured.get(part))
    sites = find_sites(pipe, structural, config.blocks) if structural else ()
    by_name = {site.name: site for part in (sites, *measured.values()) for site in part}
    return tuple(by_name[name] for name in every if name in by_name)


def without_unread_pictures(
    pipe: Any, concept: Concept, pairs: Sequence[Pair], sites: Sequence[Site], names: Collection[str]
) -> Sequence[Site]:
    """Return sites without the image sites of a pipeline that has such layers, and calls none of them.

    Args:
        pipe: A diffusers pipeline.
        concept: What is to be forgotten.
        pairs: Those of its pairs that are used.
        sites: The sites that were chosen by the pairs.
        names: Names of the sites that read something in a run.

    Raises:
        ConceptError: If the pairs differ in pictures alone.
    """
    images = [site for site in sites if site.kind == "image"]
    if not images or any(site.name in names for site in images):
        return sites
    if not any(pair.text_differs for pair in pairs):
        raise ConceptError(f'{_no_image_layer(pipe, concept)} Build with sites="hidden".')
    _warn_of_pictures(pipe, concept)
    return [site for site in sites if site.kind != "image"]


def _measured(pipe: Any, part: str, config: BuildConfig, fitting: Fitting) -> tuple[Site, ...]:
    measured = fitting.run(lambda arguments: measure_sites(pipe, _MEASURABLE[part], call_kwargs=arguments))
    in_blocks = tuple(site for site in measured if site.block is not None)
    # What is refined in front of the blocks is read again inside of them.
    sites = in_blocks if in_blocks or part == "text-in-blocks" else measured
    return tuple(site for site in sites if config.blocks is None or site.block in config.blocks)


def _nothing_taken(pipe: Any, concept: Concept, run: PartialRun) -> str:
    name = type(pipe).__name__
    if "prompt_embeds" in run.accepted and not run.takes_prompt:
        return f"{name} takes `prompt_embeds` and no prompt, as half of a pipeline. Build on the whole pipeline."
    takes = " and ".join(
        name for name, accepts in (("a prompt", run.takes_prompt), ("a picture", run.image is not None)) if accepts
    )
    return (
        f"{name} takes {takes or 'neither prompt nor picture'}, and the pairs of {concept.name!r} do not differ in "
        f"that. Add {'`unsafe_image` and `safe_image`' if run.image else 'prompts'} that differ."
    )


def _no_image_layer(pipe: Any, concept: Concept) -> str:
    return (
        f"The pairs of {concept.name!r} differ in their pictures, but {type(pipe).__name__} has no layer that reads "
        "the picture alone: it enters among the latents of the video, or the tokens of the prompt."
    )


def _warn_of_pictures(pipe: Any, concept: Concept) -> None:
    warnings.warn(
        f"{_no_image_layer(pipe, concept)} Only text sites are edited; to remove what only the picture shows, build "
        'with sites="hidden".',
        stacklevel=5,
    )
