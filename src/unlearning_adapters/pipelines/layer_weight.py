"""The weight that a layer shows: a tensor, or what stands in its place."""

from typing import Any

from torch import nn

from unlearning_adapters.errors import DenoiserError


def layer_weight(layer: nn.Module) -> Any:
    """Return the attribute `weight` of a layer, or None if it has none.

    Raises:
        DenoiserError: If the layer cannot compute it, such as a parametrization that was made by half.
    """
    try:
        return getattr(layer, "weight", None)
    except Exception as error:  # whatever a parametrization raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DenoiserError(
            f"The weight of a {type(layer).__name__} cannot be read ({reason[:200]}). Load the pipeline again."
        ) from error
