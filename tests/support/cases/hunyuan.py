"""Tiny whole pipelines of HunyuanVideo: text, image, SkyReels, FramePack, and HunyuanVideo 1.5."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanSkyreelsImageToVideoPipeline,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video as text_to_video
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video_image2video as image_to_video
from tiny_denoisers import HUNYUAN, HUNYUAN_15
from tiny_encoders import (
    CHAT,
    WIDTH,
    clip_encoder,
    clip_tokenizer,
    llama_encoder,
    llava_encoder,
    made,
    qwen_encoder,
    siglip,
    t5_encoder,
    word_tokenizer,
)
from transformers import ByT5Tokenizer, CLIPImageProcessor

from whole import Whole

# Wide enough to keep all words but one.
TEXT = {"num_attention_heads": 16, "patch_size": 1, "text_embed_dim": WIDTH}
MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>")


def template_tokenizer(template: dict[str, Any]) -> Any:
    """A tokenizer for which a pipeline's own template has the length that the pipeline cuts off."""
    return word_tokenizer(template["template"].partition("{}")[0], template["crop_start"], MARKS, padding_side="right")


def parts(model: type = HunyuanVideoTransformer3DModel, **changes: Any) -> dict[str, Any]:
    blocks = {f"{side}_block_types": (f"HunyuanVideo{side.title()}Block3D",) * 4 for side in ("down", "up")}
    vae = AutoencoderKLHunyuanVideo(
        **blocks, latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    return {
        "text_encoder": llama_encoder(),
        "tokenizer": template_tokenizer(text_to_video.DEFAULT_PROMPT_TEMPLATE),
        "text_encoder_2": clip_encoder(8),
        "tokenizer_2": clip_tokenizer(),
        "transformer": model(**{**HUNYUAN, **TEXT, **changes}),
        "vae": vae,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
    }


@made
def make_text() -> HunyuanVideoPipeline:
    return HunyuanVideoPipeline(**parts())


@made
def make_skyreels() -> HunyuanSkyreelsImageToVideoPipeline:
    return HunyuanSkyreelsImageToVideoPipeline(**parts(in_channels=8))


@made
def make_framepack() -> HunyuanVideoFramepackPipeline:
    shapes = {"patch_size": 2, "has_image_proj": True, "image_proj_dim": 16, "has_clean_x_embedder": True}
    return HunyuanVideoFramepackPipeline(**parts(HunyuanVideoFramepackTransformer3DModel, **shapes), **siglip(16))


def image_template() -> dict[str, Any]:
    """The pipeline's own template, with the lengths of the tiny tokenizer and of the tiny LLaVA's pictures."""
    text = image_to_video.DEFAULT_PROMPT_TEMPLATE["template"]
    ids = word_tokenizer(extra=MARKS)(text.partition("{}")[0]).input_ids
    start = ids.index(word_tokenizer(extra=MARKS).convert_tokens_to_ids("<image>"))
    places = {"image_emb_start": start, "image_emb_end": start + 16, "image_emb_len": 16}
    return {"template": text, "crop_start": len(ids), **places}


@made
def make_image() -> HunyuanVideoImageToVideoPipeline:
    made = parts(in_channels=9, image_condition_type="latent_concat")
    tokenizer = word_tokenizer(extra=MARKS, padding_side="right")
    llava = llava_encoder(tokenizer.convert_tokens_to_ids("<image>"))
    size = {"height": 32, "width": 32}
    processor = CLIPImageProcessor(size=size, crop_size=size)
    return HunyuanVideoImageToVideoPipeline(
        **{**made, "tokenizer": tokenizer, "text_encoder": llava}, image_processor=processor
    )


def parts_15(**changes: Any) -> dict[str, Any]:
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(16, 16), layers_per_block=1, spatial_compression_ratio=4,
        temporal_compression_ratio=2, downsample_match_channel=False, upsample_match_channel=False,
    )  # fmt: skip
    letters = ByT5Tokenizer()
    return {
        "text_encoder": qwen_encoder(),
        "text_encoder_2": t5_encoder(letters),
        "tokenizer_2": letters,
        "transformer": HunyuanVideo15Transformer3DModel(
            **{**HUNYUAN_15, **TEXT, "in_channels": 9, "text_embed_2_dim": WIDTH, **changes}
        ),
        "vae": vae,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "guider": ClassifierFreeGuidance(),
    }


def chat_tokenizer(before: int = 0) -> Any:
    """A tokenizer whose chats have some tokens in front."""
    marks = ("<|im_start|>", "<|im_end|>")
    return word_tokenizer(extra=marks, chat_template="<s>" * before + CHAT, padding_side="right")


def template_length(pipe: Any) -> int:
    """How many tokens stand before the user's words."""
    front = [{"role": "system", "content": pipe.system_message}, {"role": "user", "content": ""}]
    return len(chat_tokenizer().apply_chat_template(front, return_dict=True).input_ids) - 1


def shortened(pipe: Any) -> Any:
    """Cut the template off where it ends for the tiny tokenizer, and prompts at fewer tokens than a real pipeline."""
    pipe.prompt_template_encode_start_idx = template_length(pipe)
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length, pipe.vision_num_semantic_tokens = 24, 16, 16
    return pipe


@made
def make_text_15() -> HunyuanVideo15Pipeline:
    return shortened(HunyuanVideo15Pipeline(tokenizer=chat_tokenizer(), **parts_15()))


@made
def make_image_15() -> HunyuanVideo15ImageToVideoPipeline:
    seeing = siglip(12)
    return shortened(
        HunyuanVideo15ImageToVideoPipeline(tokenizer=chat_tokenizer(), **parts_15(task_type="i2v"), **seeing)
    )


class HunyuanVideo15ModularPipeline(diffusers.HunyuanVideo15ModularPipeline):
    """The real one with prompts cut at fewer tokens."""

    tokenizer_max_length, tokenizer_2_max_length, vision_num_semantic_tokens = 24, 16, 16


@made
def make_modular_15() -> Any:
    pipe = HunyuanVideo15ModularPipeline()
    tokenizer = chat_tokenizer(pipe.prompt_template_encode_start_idx - template_length(pipe))
    parts = {**parts_15(), "tokenizer": tokenizer}
    known = {item.name for item in pipe.blocks.expected_components}
    pipe.update_components(**{name: part for name, part in parts.items() if name in known})
    return pipe


SIZE = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 2}
WORDS = {"max_sequence_length": 16}
PACKED = {**SIZE, **WORDS, "height": 32, "width": 32, "num_frames": 9, "latent_window_size": 3}

CASES = (
    Whole("HunyuanVideoPipeline", "HunyuanVideo", make_text, {**SIZE, **WORDS}),
    Whole("HunyuanVideoImageToVideoPipeline", "HunyuanVideo", make_image,
          {**SIZE, **WORDS, "prompt_template": image_template()}, takes="image", pictures=True),
    Whole("HunyuanSkyreelsImageToVideoPipeline", "HunyuanVideo", make_skyreels, {**SIZE, **WORDS},
          takes="image", pictures=True),
    Whole("HunyuanVideoFramepackPipeline", "FramePack", make_framepack, PACKED, takes="image", pictures=True),
    Whole("HunyuanVideo15Pipeline", "HunyuanVideo 1.5", make_text_15, SIZE),
    Whole("HunyuanVideo15ModularPipeline", "HunyuanVideo 1.5", make_modular_15, SIZE,
          run={"output": "latents", "output_type": "np"}),
    Whole("HunyuanVideo15ImageToVideoPipeline", "HunyuanVideo 1.5", make_image_15,
          {"num_frames": 5, "num_inference_steps": 2}, takes="image", pictures=True),
)  # fmt: skip
