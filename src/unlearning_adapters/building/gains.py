"""A strength per block: which factor each site takes from `BuildConfig.block_strengths`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.errors import SiteError
from unlearning_adapters.pipelines.sites import Site


def with_block_strengths(
    directions: Mapping[str, Direction], sites: Sequence[Site], factors: Mapping[int, float] | None
) -> dict[str, Direction]:
    """Return directions whose gain is the factor of their block, `x' = x - strength * factor * w (a . x)`.

    Args:
        directions: A direction per site, by name.
        sites: These sites.
        factors: A factor per block, by its index; blocks that are left out, and sites outside of blocks, take 1.

    Raises:
        SiteError: If no site is in one of the blocks.
    """
    check_blocks(factors, sites)
    by_block = factors or {}
    gains = {site.name: 1.0 if site.block is None else by_block.get(site.block, 1.0) for site in sites}
    scaled: dict[tuple[int, float], Direction] = {}  # sites that shared a direction still do within a block
    for name, item in directions.items():
        key = id(item), gains[name]
        if key not in scaled:
            scaled[key] = item if item.gain == gains[name] else replace(item, gain=gains[name])
    return {name: scaled[id(item), gains[name]] for name, item in directions.items()}


def check_blocks(factors: Mapping[int, float] | None, sites: Sequence[Site]) -> None:
    """Raise `SiteError` if a factor is that of a block in which no site is."""
    present = sorted({site.block for site in sites if site.block is not None})
    missing = sorted(set(factors or ()) - set(present))
    if missing:
        raise SiteError(
            f"`block_strengths` names block {', '.join(map(str, missing))}, and no selected site is there; "
            f"the blocks with such sites: {', '.join(map(str, present)) or 'none'}."
        )
