"""`unlearn inspect`: what an adapter file says about itself."""

import re
from collections import Counter
from typing import Any

from unlearning_adapters.cli import options
from unlearning_adapters.cli.command import CommandResult, command


@command("inspect", "show what an adapter file says about itself")
@options.adapter
def inspect(adapter: str) -> CommandResult:
    """Show what the header of an adapter file says."""
    from unlearning_adapters.adapter.file import inspect_adapter

    header = inspect_adapter(adapter)
    info, sites = header["info"], header["sites"]
    base = " ".join(part for part in (info.get("base_model"), info.get("base_revision")) if part) or "unknown"
    denoisers = [f"{name} ({kind})" for name, kind in info.get("denoisers", {}).items()]
    shrinkage = f", shrinkage {header['shrinkage']:.3g} in a stack" if header["shrinkage"] else ""
    rows = {
        "concept": ": ".join(part for part in (info["concept"], info.get("description")) if part),
        "method": f"{info['method']}, strength {info['strength']:.3g}{_gains(sites)}, rank {header['rank']}{shrinkage}",
        "base": base + (f" ({info['pipeline']})" if info.get("pipeline") else ""),
        "denoisers": ", ".join(denoisers or header["components"]),
        "versions": ", ".join(f"{name} {number}" for name, number in info.get("versions", {}).items()) or "unknown",
        "size": f"{header['bytes']:,} bytes, {len(sites)} sites",
    }
    lines = [header["file"], *(f"  {name:<10} {value}" for name, value in rows.items())]
    alike = Counter(
        (re.sub(r"\b\d+\b", "*", site["name"]), site["in_features"], site["out_features"]) for site in sites
    )
    lines += [f"  {count:>6} x   {name} ({width} -> {out})" for (name, width, out), count in alike.items()]
    return CommandResult(header, "\n".join(lines))


def _gains(sites: list[dict[str, Any]]) -> str:
    """Return the range of the factors by which sites multiply the strength; "" if all are 1."""
    gains = [site["gain"] for site in sites]
    span = " to ".join(dict.fromkeys(f"{gain:.3g}" for gain in (min(gains), max(gains))))
    return "" if set(gains) == {1.0} else f" (times {span}, by site)"
