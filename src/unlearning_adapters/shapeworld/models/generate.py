"""The call arguments of the ShapeWorld models."""

from collections.abc import Mapping
from typing import Any

from unlearning_adapters.pipelines.base_model import base_model_of

# The shipped defaults: `pipe(prompt, **GENERATION)`.
GENERATION: dict[str, Any] = {
    "height": 64,
    "width": 64,
    "num_frames": 9,
    "num_inference_steps": 12,
    "guidance_scale": 3.0,
    "max_sequence_length": 32,
}
# The same for the models of other classes, which `train_family` makes; they are smaller.
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
    """Return the call arguments of a ShapeWorld model, known by its name, and none for any other pipeline."""
    known = base_model_of(pipe).rpartition("/")[2].startswith("shapeworld")
    return dict(OTHERS.get(type(pipe).__name__, GENERATION)) if known else {}


def prompt_length(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return of the arguments of a call the length that prompts are padded to, which a build should share."""
    return {name: call[name] for name in ("max_sequence_length",) if name in call}
