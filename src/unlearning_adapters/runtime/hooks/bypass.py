"""Detect code that goes around an edited layer, and warn or raise."""

import os
import sys
import warnings
from collections.abc import Sequence
from types import FrameType

from torch import nn

from unlearning_adapters.errors import ConfigError, DenoiserError

from .places import is_bypassed, is_wrapped, module_at
from .registry import is_covered, registered

STRICT = "UNLEARNING_ADAPTERS_STRICT"
# Not the user's code: a warning names the line that calls these.
LIBRARIES = {"unlearning_adapters", "torch", "diffusers", "transformers", "accelerate", "peft", "contextlib"}
CURE = "Call fuse_unlearning_adapters(), which edits the weights, or take away what goes around the layers."


def is_strict(strict: bool) -> bool:
    """Whether an edit that does not act is an error: by the caller's choice, or by the environment variable."""
    return strict or os.environ.get(STRICT, "0").lower() not in ("", "0", "false", "no", "off")


def check_strict(strict: object) -> None:
    """Raise `ConfigError` if `strict` is neither True, False nor None; a text such as "no" would count as True."""
    if strict is not None and not isinstance(strict, bool):
        raise ConfigError(f"Expected `strict` to be True, False or None, but got {strict!r:.80}.")


def cause_at(denoiser: nn.Module, path: str) -> str:
    """Return what goes around the layer at a path, as far as it can be told."""
    module = module_at(denoiser, path)
    if module is None:
        return "the layer is gone"
    if is_bypassed(denoiser, path):
        return "its attention has its query, key and value projections fused"
    if registered(module) is None and not is_wrapped(module):
        return "the hook was taken off the layer"
    if is_covered(module):
        return "the forward of the layer was replaced after the adapter was loaded"
    if name := foreign_processor(denoiser, path):
        return f"the attention processor {name} does not call the layer"
    return "nothing called the layer: its block was left out, or code goes around it"


def foreign_processor(denoiser: nn.Module, path: str) -> str:
    """Return the class of the attention processor that a layer is called by, if it is not one of diffusers; else ""."""
    parent = path.rpartition(".")[0]
    processor = getattr(module_at(denoiser, parent) if parent else None, "processor", None)
    foreign = processor is not None and not type(processor).__module__.startswith("diffusers.")
    return type(processor).__name__ if foreign else ""


def tell_of_bypass(
    denoiser: nn.Module, paths: Sequence[str], sites: int, names: Sequence[str], told: set[str], strict: bool
) -> None:
    """Warn once per cause that layers whose edits act were not called, or raise.

    Args:
        denoiser: The network.
        paths: Paths of these layers.
        sites: Number of all layers whose edits act.
        names: Names of the adapters that act.
        told: Causes that were told before; this one is added.
        strict: Whether to raise, each time.

    Raises:
        DenoiserError: If `strict`.
    """
    cause = cause_at(denoiser, paths[0])
    text = (
        f"{len(paths)} of the {sites} layers of {type(denoiser).__name__} that {', '.join(map(repr, names))} edit"
        f"{'s' if len(names) == 1 else ''} were not called, so that the concept is not removed there; the first is "
        f"{paths[0]!r}: {cause}. {CURE}"
    )
    if strict:
        raise DenoiserError(text)
    if cause not in told:
        told.add(cause)
        warnings.warn(text, stacklevel=level_of_user())


def level_of_user() -> int:
    """Return the `stacklevel`, as of the caller, of the innermost line that belongs to none of the libraries."""
    frame: FrameType | None = sys._getframe(2)
    level = 2
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] not in LIBRARIES:
            return level
        frame, level = frame.f_back, level + 1
    return 2
