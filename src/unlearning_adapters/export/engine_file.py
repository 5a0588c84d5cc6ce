"""A LoRA that an engine reads as a whole: zeros where it fuses layers, and nothing that it would drop."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from unlearning_adapters.errors import EngineError

from .engines.engine import Engine, Reads
from .layouts.fused_layers import Factors
from .layouts.layout import Layout
from .names.families import FAMILIES, family_of
from .names.naming import expand
from .reading import read_keys

_BUILT = ', sites="text-in-blocks" (--sites text-in-blocks)'


@dataclass(frozen=True)
class EngineFile:
    """What is written for an engine.

    Args:
        factors: LoRA factors by the layers of diffusers.
        keys_read: Number of tensors that the engine reads, None without an engine.
        left_out: Layers that it would not read.
    """

    factors: Mapping[str, Factors]
    keys_read: int | None
    left_out: tuple[str, ...]


def fit_to_engine(
    factors: Mapping[str, Factors], engine: Engine, reads: Reads, layout: Layout, denoiser: str, force: bool
) -> EngineFile:
    """Return what an engine reads of LoRA factors, with zeros beside those that it reads together alone.

    Raises:
        EngineError: If the engine would not read all factors and `force` is False, or if it would read none.
    """
    whole = _completed(factors, reads)
    tensors: dict[str, list[str]] = {}
    left_out: dict[str, str] = {}
    for path in whole:
        part = layout.names(denoiser, path)
        if part is None:
            left_out[path] = f"it has no name in the layout {layout.name!r}"
        else:
            tensors.setdefault(part.layer, []).append(path)
    names = [layer + suffix for layer in tensors for suffix in layout.suffixes]
    reading = read_keys(engine, str(family_of(denoiser)), reads, names)
    for layer, paths in tensors.items():
        why = reading.dropped.get(layer + layout.suffixes[0])
        left_out.update(dict.fromkeys(paths if why else (), str(why)))
    left_out = {path: why for path, why in left_out.items() if path in factors}
    rest = {path: pair for path, pair in whole.items() if path not in left_out}
    if left_out and not (force and rest):
        raise EngineError(_refusal(engine, reads, layout, factors, left_out))
    return EngineFile(rest, len(reading.read), tuple(left_out))


def _completed(factors: Mapping[str, Factors], reads: Reads) -> dict[str, Factors]:
    """Return the factors, with zeros for the parts that are missing of layers which the engine has as one."""
    whole = dict(factors)
    for pattern in reads.whole:
        for path, (lora_A, lora_B) in factors.items():
            index = next((part for part in path.split(".") if part.isdecimal()), "")
            parts = [part.replace("N", index) for part in expand(pattern)]
            if path in parts:
                for part in parts:
                    whole.setdefault(part, (torch.zeros_like(lora_A[:1]), torch.zeros_like(lora_B[:, :1])))
    return whole


def _prepares(path: str) -> bool:
    """Tell whether a layer prepares the prompt in front of the blocks."""
    return any(path in family.embedders for family in FAMILIES.values())


def _refusal(
    engine: Engine, reads: Reads, layout: Layout, factors: Mapping[str, Factors], left_out: Mapping[str, str]
) -> str:
    first, why = next(iter(left_out.items()))
    problem = f"{engine.title} {engine.version} would not read {len(left_out)} of {len(factors)} layers"
    if layout.name not in reads.layouts:
        return f"{problem} in the layout {layout.name!r}, such as {first} ({why}). Use {' or '.join(reads.layouts)}."
    rest = (
        "Pass force=True (--force) to leave them out, which keeps what they remove; or build the adapter without them"
        f"{_BUILT if all(_prepares(path) for path in left_out) else ''}; "
        if len(left_out) < len(factors)
        else ""
    )
    return f"{problem}, such as {first}: {why}. {rest}or write a fused checkpoint with export_fused (--fused)."
