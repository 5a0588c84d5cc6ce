"""The names that tell the layers of a denoiser apart, and the exceptions by class name."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from unlearning_adapters.adapter.record import COMPONENTS

SELECTIONS = ("text", "text-in-blocks", "text-projection", "image", "hidden")
CROSS_ATTENTION = {"attn2", "audio_attn2", "cross_attn", "cross_attention"}
KEY_VALUE = (("to_k", "to_v"), ("to_key", "to_value"), ("kv_linear",))
TEXT_STREAM = ("add_q_proj", "add_k_proj", "add_v_proj")  # of an attention over two streams, text and video
VIDEO_NAMES = ("to_q", "to_k", "to_v")
IMAGE_KEY_VALUE = (("add_k_proj", "add_v_proj"), ("k_img", "v_img"))  # of a cross-attention to a text and a picture

# Exceptions, by class name.
SWAPPED_STREAMS = {"Cosmos3PackedMoTAttention"}  # the text is in `to_*`, the video in `add_*`
NO_TEXT = {"UNetSpatioTemporalConditionModel"}  # Stable Video Diffusion: its cross-attention reads an image
IMAGE_PROJECTION = {  # the picture's tokens join the prompt's: edit the projection in front of them
    "HunyuanVideo15Transformer3DModel": "image_embedder.linear_1",
    "HunyuanVideoFramepackTransformer3DModel": "image_projection.up",
    "I2VGenXLUNet": "context_embedding.0",
    "MotifVideoTransformer3DModel": "image_embedder.linear_1",
}
SINGLE_STREAM = {  # blocks whose Linears read text and video at once: edit the text projection in front of them
    "CogVideoXBlock": ("patch_embed.text_proj",),
    "ConsisIDBlock": ("patch_embed.text_proj",),
    "EasyAnimateTransformerBlock": ("text_proj", "text_proj.1", "text_proj_t5", "text_proj_t5.1"),
    "HunyuanVideoSingleTransformerBlock": ("context_embedder.proj_in",),
    "HunyuanVideoTokenReplaceSingleTransformerBlock": ("context_embedder.proj_in",),
    "MiniMaxH3TransformerBlock": ("context_embedder",),
    "MotifVideoSingleTransformerBlock": ("context_embedder.linear_1",),
}
# The layer in front of all blocks that reads the rows of the text encoder first.
TEXT_PROJECTION = re.compile(
    r"condition_embedder\.text_embedder\.linear_1|(audio_)?caption_projection\.linear_1|patch_embed\.text_proj"
    r"|context_embedder(_2)?(\.proj_in|\.linear_1)?|crossattn_proj\.0|y_embedder\.y_proj\.fc1"
    r"|((video|audio)_)?text_embeddings\.in_layer|text_proj(_t5)?(\.1)?|text_embedding\.0"
    r"|time_embed\.caption_proj"
)
NOT_CALLED = {  # built so that weights of LTX-2 or Wan load, but these networks read no audio and no picture
    "SanaWMLTX2RefinerTransformer3DModel": {
        "audio_caption_projection.linear_1", "audio_attn1", "audio_attn2", "audio_ff", "audio_to_video_attn",
        "video_to_audio_attn",
    },
    "HeliosTransformer3DModel": {"add_k_proj", "add_v_proj"},
}  # fmt: skip

# Parts of a path: `attn2` inside of the first is a second self-attention over time, inside of the second not the video.
TEMPORAL = {
    "temp_attentions", "motion_modules", "transformer_in", "temporal_transformer_blocks",
    "image_latents_temporal_encoder",
}  # fmt: skip
NOT_VIDEO = {
    "token_refiner", "text_transformer_blocks", "video_text_transformer_blocks", "audio_text_transformer_blocks",
    "face_adapter", "local_facial_extractor", "perceiver_cross_attention", "motion_encoder",
}  # fmt: skip
BLOCK = re.compile(r"(?:blocks|layers)\.(\d+)\.")
ATTENTION_OUT = re.compile(r"(^|[._])(attn[12]?|attention)\.(to_out|to_out\.0|out_layer|proj)$")
FEED_FORWARD_IN = re.compile(r"(^|\.)(audio_)?(ffn?|feed_forward)\.(net\.0\.proj|in_layer|0)$|\.proj_mlp$")
SWAPPED_HIDDEN = re.compile(r"\.to_add_out$|\.mlp_moe_gen\.(gate|up)_proj$")
VIDEO_PROJECTION = re.compile(r"(^|[._])(attn\d?|attention)\.(to_q|to_k|to_v|to_query|to_key|to_value|to_qkv|qkv)$")
VIDEO_PROJECTION_SWAPPED = re.compile(r"\.add_[qkv]_proj$")
VIDEO_OUT = re.compile(r"^(proj_out|final_layer\.linear)$")


def no_denoiser(pipe: Any, parts: Mapping[str, Any]) -> str:
    """Return the error text for a pipeline whose components hold no denoiser."""
    empty = [name for name in COMPONENTS if name in parts]
    if empty and parts[empty[0]] is None:
        modular = hasattr(pipe, "load_components")
        cure = "Call pipe.load_components() first" if modular else "Load the pipeline with it"
        return f"The {empty[0]} of {type(pipe).__name__} is {'not loaded yet' if modular else 'None'}. {cure}."
    if empty:
        kind = type(parts[empty[0]]).__name__
        return f"Expected the {empty[0]} of {type(pipe).__name__} to be an nn.Module, but got {kind}. Load it again."
    return (
        f"{type(pipe).__name__} has no denoiser. Expected a component named {', '.join(COMPONENTS[:-1])} or "
        f"{COMPONENTS[-1]}, but its components are: {', '.join(map(str, parts)) or 'none'}."
    )


def nothing_found(pattern: str, networks: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return the error text for a selection that names none of the Linear layers of some denoisers."""
    classes = ", ".join(f"{name} ({type(module).__name__})" for name, module in networks.items())
    if not names:
        return f"No Linear layer was found in {classes}."
    if pattern in SELECTIONS:
        cure = "Select 'hidden' sites, which see pictures among the video, or pass" if pattern == "image" else "Pass"
        return (
            f"No {pattern} site was found in {classes}. {cure} a pattern over the names of its {len(names)} Linear "
            f"layers, such as {names[0]!r}."
        )
    return (
        f"The pattern {pattern!r} matches none of the {len(names)} Linear layers of {classes}.{nearest(pattern, names)}"
    )


def nearest(name: str, names: Sequence[str]) -> str:
    """Return a hint with the nearest names; layers that differ only in a block's index count once."""
    shapes = {re.sub(r"\.\d+\.", ".*.", candidate): candidate for candidate in reversed(names)}
    shape_of_name = re.sub(r"\.\d+\.", ".*.", name)
    near = get_close_matches(shape_of_name, list(shapes), n=3, cutoff=0.4)
    if not near:
        return f" An example of a name: {names[0]!r}." if names else ""
    return f" Nearest: {', '.join(near if '*' in name else [shapes[shape] for shape in near])}."
