"""The call arguments of the ShapeWorld models."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from unlearning_adapters.pipelines.base_model import base_model_of

# Those of the embedded model, which are the defaults of its pipeline: `pipe(prompt)`.
GENERATION: dict[str, Any] = {
    "height": 64,
    "width": 64,
    "num_frames": 9,
    "num_inference_steps": 12,
    "guidance_scale": 3.0,
    "max_sequence_length": 32,
}
# Those of CastWorld, whose prompts have up to 25 words; guidance would show implied things more often than they come.
CAST_GENERATION: dict[str, Any] = {**GENERATION, "guidance_scale": 1.0, "max_sequence_length": 48}
# The same for the models of other classes, which are smaller.
OTHERS: dict[str, dict[str, Any]] = {
    "TextToVideoSDPipeline": {
        "height": 32,
        "width": 32,
        "num_frames": 5,
        "num_inference_steps": 12,
        "guidance_scale": 3.0,
    },
    "CogVideoXPipeline": {
        "height": 32,
        "width": 32,
        "num_frames": 9,
        "num_inference_steps": 12,
        "guidance_scale": 2.0,  # at 3 circles are drawn out to diamonds
        "max_sequence_length": 24,
    },
}


def generation_of(pipe: Any) -> dict[str, Any]:
    """Return the call arguments of a ShapeWorld or CastWorld model, known by its name, and none for other pipelines."""
    name = base_model_of(pipe).rpartition("/")[2]
    if name.startswith("castworld"):
        return dict(CAST_GENERATION)
    is_shapeworld = name.startswith("shapeworld")
    return dict(OTHERS.get(type(pipe).__name__, GENERATION)) if is_shapeworld else {}


def prompt_length(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return of the arguments of a call the length that prompts are padded to, which a build should share."""
    return {name: call[name] for name in ("max_sequence_length",) if name in call}


def call_defaults(**defaults: Any) -> Callable[[type], type]:
    """Give a subclass of a pipeline other defaults in its call; what a caller passes stays as it is.

    The subclass has the name of the pipeline, so that it is saved as diffusers' own and loads without this package.

    Args:
        defaults: Arguments of the call with their new defaults.

    Example:
        >>> @call_defaults(height=64, width=64)
        ... class WanPipeline(diffusers.WanPipeline):
        ...     pass
    """

    def decorate(kind: type) -> type:
        inherited: Any = kind.__call__
        signature = inspect.signature(inherited)

        @functools.wraps(inherited)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            passed = signature.bind_partial(self, *args, **kwargs).arguments
            return inherited(self, *args, **{**{n: v for n, v in defaults.items() if n not in passed}, **kwargs})

        parameters = [p.replace(default=defaults.get(p.name, p.default)) for p in signature.parameters.values()]
        call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        kind.__call__ = call  # type: ignore[method-assign]
        return kind

    return decorate
