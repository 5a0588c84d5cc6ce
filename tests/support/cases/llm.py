"""Tiny whole pipelines whose prompts are read by a language model: EasyAnimate, Sana, Kandinsky, Motif."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    AutoencoderKL,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLMagvit,
    DPMSolverMultistepScheduler,
    EasyAnimateControlPipeline,
    EasyAnimateInpaintPipeline,
    EasyAnimatePipeline,
    EasyAnimateTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    Kandinsky5I2IPipeline,
    Kandinsky5I2VPipeline,
    Kandinsky5T2IPipeline,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
    Kandinsky6TI2VAPipeline,
    Kandinsky6Transformer3DModel,
    MotifVideoImage2VideoPipeline,
    MotifVideoPipeline,
    MotifVideoTransformer3DModel,
    SanaImageToVideoPipeline,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
)
from diffusers.models.autoencoders.autoencoder_mmaudio import MMAudioVAE
from diffusers.models.autoencoders.mmaudio_vocoder import MMAudioVocoder
from diffusers.pipelines.kandinsky6 import pipeline_kandinsky6_ti2va as kandinsky_6
from tiny import tiny_tokenizer, tiny_wan_vae
from tiny_denoisers import EASY_ANIMATE, KANDINSKY, MOTIF, SANA
from tiny_encoders import (
    CHAT,
    WIDTH,
    clip_encoder,
    clip_tokenizer,
    gemma_encoder,
    made,
    qwen_vision_encoder,
    siglip,
    t5_gemma_encoder,
    word_tokenizer,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from whole import NEUTRAL, Broken, Whole

PICTURE = "<|image_pad|>"
MARKS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", PICTURE)


def easy_parts(**changes: Any) -> dict[str, Any]:
    blocks = {
        f"{side}_block_types": (f"Spatial{side.title()}Block3D",) + (f"SpatialTemporal{side.title()}Block3D",) * 3
        for side in ("down", "up")
    }
    vae = AutoencoderKLMagvit(
        **blocks, block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        spatial_group_norm=False,
    )  # fmt: skip
    tokenizer = word_tokenizer(extra=MARKS, chat_template=CHAT)
    config = {**EASY_ANIMATE, "num_attention_heads": 8, "text_embed_dim": WIDTH, **changes}
    return {
        "text_encoder": qwen_vision_encoder(tokenizer),
        "tokenizer": tokenizer,
        "transformer": EasyAnimateTransformer3DModel(**config),
        "vae": vae,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


@made
def make_easy_animate() -> Any:
    return EasyAnimatePipeline(**easy_parts())


@made
def make_easy_animate_inpaint() -> Any:
    return EasyAnimateInpaintPipeline(**easy_parts(in_channels=12, resize_inpaint_mask_directly=False))


@made
def make_easy_animate_control() -> Any:
    return EasyAnimateControlPipeline(**easy_parts(in_channels=12))


def sana_parts() -> dict[str, Any]:
    config = {
        **SANA, "in_channels": 16, "out_channels": 16, "num_attention_heads": 6, "num_cross_attention_heads": 6,
        "cross_attention_dim": 72, "caption_channels": WIDTH,
    }  # fmt: skip
    return {
        "text_encoder": gemma_encoder(),
        "tokenizer": word_tokenizer(),
        "transformer": SanaVideoTransformer3DModel(**config),
        "vae": tiny_wan_vae(),
    }


@made
def make_sana() -> Any:
    return SanaVideoPipeline(**sana_parts(), scheduler=DPMSolverMultistepScheduler())


@made
def make_sana_image() -> Any:
    return SanaImageToVideoPipeline(**sana_parts(), scheduler=FlowMatchEulerDiscreteScheduler())


class Processor:
    """A Qwen-VL processor without its videos, which need torchvision."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.pictures = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=64)
        self.image_token_id = tokenizer.convert_tokens_to_ids(PICTURE)

    def __call__(self, text: list[str], images: Any = None, videos: None = None, **options: Any) -> Any:
        assert videos is None
        read = self.tokenizer(text, **options)
        if images is not None:  # of 8 x 8 pixels: one token
            read.update(self.pictures(images=images, return_tensors="pt"))
            read["mm_token_type_ids"] = (read["input_ids"] == self.image_token_id).int()
        return read

    def decode(self, ids: Any) -> str:
        return self.tokenizer.decode(ids)


def kandinsky_parts(model: type = Kandinsky5Transformer3DModel, **changes: Any) -> dict[str, Any]:
    tokenizer = word_tokenizer(extra=MARKS, padding_side="right")
    blocks = {f"{side}_block_types": (f"HunyuanVideo{side.title()}Block3D",) * 4 for side in ("down", "up")}
    vae = AutoencoderKLHunyuanVideo(
        **blocks, latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    config = {
        **KANDINSKY,
        "in_text_dim": WIDTH,
        "in_text_dim2": 16,
        "model_dim": 128,
        "axes_dims": (4, 2, 2),
        **changes,
    }
    return {
        "text_encoder": qwen_vision_encoder(tokenizer),
        "tokenizer": Processor(tokenizer),
        "text_encoder_2": clip_encoder(16),
        "tokenizer_2": clip_tokenizer(),
        "transformer": model(**config),
        "vae": vae,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
    }


def cropped(pipe: Any) -> Any:
    """Cut the template off where it ends for the tiny tokenizer."""
    front = pipe.prompt_template.partition("{}")[0]
    pipe.prompt_template_encode_start_idx = len(pipe.tokenizer.tokenizer(front).input_ids)
    return pipe


@made
def make_kandinsky_5() -> Any:
    return cropped(Kandinsky5T2VPipeline(**kandinsky_parts()))


@made
def make_kandinsky_5_image() -> Any:
    return cropped(Kandinsky5I2VPipeline(**kandinsky_parts(visual_cond=True)))


@made
def make_kandinsky_5_still() -> Any:
    pipe = cropped(Kandinsky5T2IPipeline(**kandinsky_parts()))
    pipe.resolutions = [(32, 32)]  # those of the real model take seconds
    return pipe


@made
def make_kandinsky_5_edit() -> Any:
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=2,
    )  # fmt: skip
    pipe = cropped(Kandinsky5I2IPipeline(**{**kandinsky_parts(visual_cond=True), "vae": vae}))
    pipe.resolutions = [(32, 32)]
    return pipe


@made
def make_kandinsky_6() -> Any:
    config = {"in_audio_dim": 4, "out_audio_dim": 4, "visual_token_type_num_embeddings": 2}
    made_of = kandinsky_parts(Kandinsky6Transformer3DModel, **config)
    front = kandinsky_6._PROMPT_TEMPLATE.partition("{}")[0]
    made_of["tokenizer"] = Processor(word_tokenizer(front, kandinsky_6._QWEN_CROP_START, MARKS, padding_side="right"))
    hearing = MMAudioVAE(
        mel_bins=8, latent_channels=4, hidden_channels=16, channel_multipliers=(1, 1), layers_per_block=1, n_fft=64,
        hop_length=32, sample_rate=800,
    )  # fmt: skip
    return Kandinsky6TI2VAPipeline(**made_of, audio_vae=hearing, vocoder=MMAudioVocoder(num_mels=8))


def motif_parts(**changes: Any) -> dict[str, Any]:
    config = {
        **MOTIF, "in_channels": 33, "out_channels": 16, "patch_size": 1, "num_attention_heads": 8,
        "text_embed_dim": WIDTH, **changes,
    }  # fmt: skip
    return {
        "text_encoder": t5_gemma_encoder(),
        "tokenizer": tiny_tokenizer(),
        "transformer": MotifVideoTransformer3DModel(**config),
        "vae": tiny_wan_vae(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "guider": AdaptiveProjectedGuidance(),
    }


@made
def make_motif() -> Any:
    return MotifVideoPipeline(**motif_parts())


@made
def make_motif_image() -> Any:
    return MotifVideoImage2VideoPipeline(
        **motif_parts(image_embed_dim=16), feature_extractor=siglip(16, 16)["feature_extractor"]
    )


SIZE = {"height": 16, "width": 16, "num_inference_steps": 2}
EASY = {**SIZE, "num_frames": 5, "negative_prompt": ""}
SANA_CALL = {"height": 32, "width": 32, "frames": 5, "num_inference_steps": 2, "max_sequence_length": 16,
             "use_resolution_binning": False}  # fmt: skip
KANDINSKY_CALL = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2, "max_sequence_length": 32}
STILL = {"height": 32, "width": 32, "num_inference_steps": 2}
MOTIF_CALL = {**SIZE, "num_frames": 5, "max_sequence_length": 16}
MASKED = {"video": torch.zeros(1, 3, 5, 16, 16), "mask_video": torch.full((1, 1, 5, 16, 16), 255.0)}

PLAIN = {"negative_prompt": NEUTRAL[1]}
NEGATIVE = "has a long negative prompt by default: give it to the builder as a neutral prompt too"

CASES = (
    Whole("EasyAnimatePipeline", "EasyAnimate", make_easy_animate, EASY),
    Whole("EasyAnimateInpaintPipeline", "EasyAnimate", make_easy_animate_inpaint, {**EASY, **MASKED},
          takes="video and mask"),
    Broken("EasyAnimateControlPipeline", "EasyAnimate", make_easy_animate_control,
           {**EASY, "control_video": torch.zeros(1, 3, 5, 16, 16)}, TypeError,
           "EasyAnimateControlPipeline.encode_prompt() got an unexpected keyword argument 'text_encoder_index'",
           "diffusers 0.42.1 raises TypeError on every call"),
    Whole("SanaVideoPipeline", "Sana-Video", make_sana, SANA_CALL),
    Whole("SanaImageToVideoPipeline", "Sana-Video", make_sana_image, SANA_CALL, takes="image", pictures=True),
    Whole("Kandinsky5T2VPipeline", "Kandinsky 5", make_kandinsky_5, KANDINSKY_CALL, run=PLAIN, remarks=NEGATIVE),
    Whole("Kandinsky5I2VPipeline", "Kandinsky 5", make_kandinsky_5_image, {**KANDINSKY_CALL, "num_frames": 17},
          run=PLAIN, takes="image", pictures=True, remarks=NEGATIVE),
    Whole("Kandinsky5T2IPipeline", "Kandinsky 5", make_kandinsky_5_still, STILL),
    Whole("Kandinsky5I2IPipeline", "Kandinsky 5", make_kandinsky_5_edit, STILL, takes="image", pictures=True,
          remarks="run with a stand-in for its processor, whose videos need torchvision"),
    Whole("Kandinsky6TI2VAPipeline", "Kandinsky 6", make_kandinsky_6, KANDINSKY_CALL, run=PLAIN,
          remarks=NEGATIVE),
    Whole("Kandinsky6TI2VAPipeline", "Kandinsky 6", make_kandinsky_6, KANDINSKY_CALL, run=PLAIN, variant="image",
          takes="image", pictures=True, remarks=NEGATIVE),
    Whole("MotifVideoPipeline", "Motif-Video", make_motif, MOTIF_CALL),
    Whole("MotifVideoImage2VideoPipeline", "Motif-Video", make_motif_image, MOTIF_CALL, takes="image", pictures=True),
)  # fmt: skip
