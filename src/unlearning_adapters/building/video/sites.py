"""The Linear layers of a denoiser that read video tokens: queries, keys and values, feed-forwards, the last layer."""

from collections.abc import Collection
from typing import Any

from unlearning_adapters.errors import SiteError
from unlearning_adapters.pipelines.site_names import (
    FEED_FORWARD_IN,
    NOT_CALLED,
    NOT_VIDEO,
    SWAPPED_HIDDEN,
    SWAPPED_STREAMS,
    VIDEO_OUT,
    VIDEO_PROJECTION,
    VIDEO_PROJECTION_SWAPPED,
)
from unlearning_adapters.pipelines.sites import Site, denoisers, find_sites


def find_video_sites(pipe: Any, blocks: Collection[int] | None = None) -> tuple[Site, ...]:
    """Return the layers that read video tokens, in the order of the modules.

    These are the projections of self-attention (queries, keys, values), the queries of cross-attention, the first layer
    of each feed-forward, and the layer that writes the prediction. In joint and single-stream blocks some of them read
    the prompt's tokens as well. A layer that reads the prompt or a picture alone is none of them.

    Args:
        pipe: A diffusers pipeline.
        blocks: Indices of the blocks whose layers are returned; None returns all, and the last layer.

    Raises:
        DenoiserError: If the pipeline has no denoiser, or its query, key and value projections are fused.
        SiteError: If the denoiser has no such layer.

    Example:
        >>> [site.module for site in find_video_sites(pipe, blocks=[0])][:2]
        ['blocks.0.attn1.to_q', 'blocks.0.attn1.to_k']
    """
    patterns = {name: _excluded(network) for name, network in denoisers(pipe).items()}
    swapped = {name: _is_swapped(network) for name, network in denoisers(pipe).items()}
    names = [
        site.name
        for site in find_sites(pipe, "*")
        if site.kind == "hidden"
        and patterns[site.component].isdisjoint(site.module.split("."))
        and _reads_video(site, swapped[site.component])
    ]
    if not names:
        raise SiteError(
            f"No layer that reads video tokens was found in {type(pipe).__name__}: none of its Linear layers has the "
            'name of a projection, a feed-forward or an output. Build with scope="word".'
        )
    return find_sites(pipe, names, blocks)


def _excluded(network: Any) -> set[str]:
    return NOT_VIDEO | NOT_CALLED.get(type(network).__name__, set())


def _is_swapped(network: Any) -> bool:
    return any(type(module).__name__ in SWAPPED_STREAMS for module in network.modules())


def _reads_video(site: Site, swapped: bool) -> bool:
    if VIDEO_OUT.search(site.module):
        return True
    if site.block is None:
        return False
    if swapped:
        return bool(VIDEO_PROJECTION_SWAPPED.search(site.module) or SWAPPED_HIDDEN.search(site.module))
    return bool(VIDEO_PROJECTION.search(site.module) or FEED_FORWARD_IN.search(site.module))
