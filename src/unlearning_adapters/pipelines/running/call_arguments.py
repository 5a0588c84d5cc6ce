"""The arguments of a pipeline's call: which it takes, which a build sets, the smallest video, and why a call failed."""

import inspect
import math
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import Any

from torch import nn

from unlearning_adapters.config import check_keys
from unlearning_adapters.errors import ConfigError, DenoiserError
from unlearning_adapters.pipelines.sites import denoisers

REQUIRED = inspect.Parameter.empty
OWN = object()  # in place of an argument: the pipeline's own default
STEPS = "num_inference_steps"
SCHEDULE = {"sigmas", "timesteps"}
IMAGE_ARGUMENTS = ("image", "cond_image")
# Guidance, each kind at the value that switches it off.
GUIDANCE_OFF = {
    "guidance_scale": 1.0,
    "min_guidance_scale": 1.0,
    "max_guidance_scale": 1.0,
    "audio_guidance_scale": 1.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "pag_scale": 0.0,
}
# What stands in the place of the prompts and seeds that a build passes, and how many videos each makes.
PROMPTS = {
    "prompt", "prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask", "prompt_embeds_mask", "generator",
}  # fmt: skip
COUNTS = {"num_videos_per_prompt", "num_images_per_prompt"}
# What only the user can give, beside a prompt and a picture.
MEDIA = {
    "video", "mask", "mask_video", "control_video", "conditioning_frames", "controls", "pose_video", "face_video",
    "driving_video", "id_vit_hidden", "id_cond", "conditions", "reference_conditions", "action", "c2w", "intrinsics",
    "sana_latent", "latents", "keyframes_latents", "keyframe_positions", "audio_latents",
}  # fmt: skip
ESSENTIAL = ("text_encoder", "tokenizer", "scheduler", "vae")  # starts of names of components
OPTIONAL = {"latents", "audio_latents"}  # which most pipelines draw themselves
SPATIAL_FACTORS = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_scale_factor")
TEMPORAL_FACTORS = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")
BOUND_BY_CONFIG = {"max_sequence_length": "max_text_seq_length", "video_length": "video_length"}  # of the denoiser
SIDE_MULTIPLE = 32  # some pipelines refuse other sizes
UNET_SIDE = 8  # latents of a UNet are halved three times
FEW_STEPS = 4  # enough that both denoisers of Wan 2.2 are called (measured for shifts 3 to 12)
MAX_SAID = 200  # characters of a pipeline's error that are repeated: some print a whole tensor


def call_defaults(pipe: Any) -> dict[str, Any]:
    """Return the arguments of a pipeline's call with their defaults; `REQUIRED` stands for those without one.

    Raises:
        DenoiserError: If the pipeline cannot be called.
    """
    blocks: Any = getattr(pipe, "blocks", None)
    if hasattr(blocks, "input_names"):  # a modular pipeline
        return {item.name: REQUIRED if item.required else item.default for item in blocks.inputs if item.name}
    if not callable(pipe):
        raise DenoiserError(f"Expected a pipeline of diffusers, but {type(pipe).__name__} cannot be called.")
    parameters = inspect.signature(pipe).parameters
    return {name: item.default for name, item in parameters.items() if item.kind is not item.VAR_KEYWORD}


def check_call(pipe: Any, arguments: Mapping[str, Any], accepted: set[str]) -> None:
    """Raise `ConfigError` if arguments of a call are unknown, or stand in the way of the prompts of a build."""
    check_keys(f"call_kwargs for {type(pipe).__name__}", arguments, accepted)
    for name, value in arguments.items():
        if name in PROMPTS and value is not None:
            raise ConfigError(
                f"`{name}` in call_kwargs would take the place of the prompts and seeds that a build passes one "
                "after the other. Leave it out."
            )
        if name in COUNTS and value is not None and not (isinstance(value, Real) and value == 1):
            raise ConfigError(f"Expected `{name}` in call_kwargs to be 1, but got {value!r:.80}. Leave it out.")


def check_complete(pipe: Any, call: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if a call lacks an argument that has no default."""
    if hasattr(pipe, "blocks"):  # a modular pipeline says "required" of what its own blocks make
        return
    required = [name for name, default in call_defaults(pipe).items() if default is REQUIRED]
    if missing := ", ".join(f"`{name}`" for name in required if name not in call):
        raise ConfigError(
            f"{type(pipe).__name__} cannot be run without {missing}, which no build can make up: pass what it needs in "
            "call_kwargs (--call)."
        )


def no_guidance(accepted: Collection[str]) -> dict[str, float]:
    """Return the arguments that switch guidance off."""
    if "true_cfg_scale" in accepted:  # `guidance_scale` is then an embedding that the denoiser was trained with
        return {"true_cfg_scale": 1.0}
    return GUIDANCE_OFF


def small_video(pipe: Any) -> dict[str, Any]:
    """Return arguments for the smallest video that pipelines of most kinds accept, and few steps."""
    network = next(iter(denoisers(pipe).values()))
    config: Any = getattr(network, "config", None)
    config = config if isinstance(config, Mapping) else {}  # a module that is not of diffusers may have any other
    few: dict[str, Any] = {STEPS: FEW_STEPS, "use_resolution_binning": False, "image_crf": 0}
    few |= {name: config[key] for name, key in BOUND_BY_CONFIG.items() if config.get(key)}
    if config.get("use_learned_positional_embeddings"):  # bound to one size
        return few
    patch = config.get("patch_size") or 1
    patch = patch[-1] if isinstance(patch, (list, tuple)) else patch
    if "unet" in pipe.components:
        patch = UNET_SIDE
    side = math.lcm(_factor(pipe, SPATIAL_FACTORS, 8) * int(patch), SIDE_MULTIPLE)
    frames = _factor(pipe, TEMPORAL_FACTORS, 1) + 1
    if hasattr(pipe, "min_duration"):  # MiniMax H3 refuses shorter videos
        frames = math.ceil(pipe.min_duration * pipe.fps)
    return {"height": side, "width": side, "num_frames": frames, **few}


def _factor(pipe: Any, names: Sequence[str], default: int) -> int:
    values = (getattr(pipe, name, None) for name in names)
    return next((int(value) for value in values if isinstance(value, (int, float)) and value >= 1), default)


def failed_call(pipe: Any, error: Exception, arguments: Mapping[str, Any]) -> str:
    """Return the error text for a call of the user's pipeline that failed: the error, what is missing, and the cure.

    Args:
        pipe: The pipeline.
        error: What its call raised.
        given: The arguments that it was called with.
    """
    text = " ".join(str(error).split())
    short = text if len(text) <= MAX_SAID else f"{text[: MAX_SAID - 3]}..."
    sentence = f"A run of {type(pipe).__name__} failed with {type(error).__name__}{f': {short}' if short else ''}"
    return f"{sentence}{'' if sentence.endswith(('.', '!', '?')) else '.'} {_cure(pipe, text, arguments)}"


def broken_part(pipe: Any) -> str:
    """Return the error text for a part without which no call of a pipeline can work, or nothing if all seem whole."""
    optional = {*getattr(type(pipe), "_optional_components", ()), *getattr(pipe, "_optional_components", ())}
    parts = {name: part for name, part in pipe.components.items() if name not in optional}
    # What was deleted is the entry of the pipeline's configuration, a library and a class.
    missing = {
        name: "None" if part is None else "deleted"
        for name, part in parts.items()
        if (part is None or isinstance(part, (list, tuple))) and name.startswith(ESSENTIAL)
    }
    if missing:
        are, kinds = "is" if len(missing) == 1 else "are", dict.fromkeys(missing.values())
        return f"Load the pipeline with all of its parts: {', '.join(missing)} {are} {' or '.join(kinds)}."
    for name, part in parts.items():
        if isinstance(part, nn.Module) and any(_holds_nothing(module) for module in part.modules()):
            return f"Load it again: weights of its {name} are on the meta device, and hold no numbers."
    return ""


def _holds_nothing(module: nn.Module) -> bool:
    offloaded = "_hf_hook" in vars(module) or "_diffusers_hook" in vars(module)
    return not offloaded and any(value.is_meta for value in module.parameters(recurse=False))


def _cure(pipe: Any, text: str, arguments: Mapping[str, Any]) -> str:
    if broken := broken_part(pipe):
        return broken
    defaults = call_defaults(pipe)
    if "text_model" in text and "clip_skip" in defaults.keys() - arguments.keys():
        return "With transformers 5 its default fails: pass `clip_skip=None` in call_kwargs (--call)."
    missing_media = [name for name in defaults if name in MEDIA and name not in arguments]
    missing_media = [name for name in missing_media if name not in OPTIONAL or f"`{name}`" in text]
    if missing_media:
        names = ", ".join(f"`{name}`" for name in missing_media)
        return f"It takes {names}, which no build can make up: pass what it needs in call_kwargs (--call)."
    return "Pass the arguments of a call that works in call_kwargs (--call)."
