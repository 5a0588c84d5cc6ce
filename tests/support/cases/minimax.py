"""A tiny whole MiniMax-H3 pipeline: text, sound and video in one sequence of tokens."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLMiniMaxH3,
    AutoencoderKLMiniMaxH3Audio,
    MiniMaxH3ModularPipeline,
    MiniMaxH3Transformer3DModel,
)
from diffusers.schedulers import MiniMaxH3Scheduler
from tiny_denoisers import MINIMAX
from tiny_encoders import WIDTH, made, qwen_text, word_tokenizer
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from whole import Whole


class Processor:
    """As much of the Qwen 3 VL processor as a prompt without pictures needs."""

    def create_mm_token_type_ids(self, ids: list[list[int]]) -> list[list[int]]:
        return [[0] * len(row) for row in ids]


def text_encoder() -> Any:
    """The pipeline reads the 50th layer."""
    text = {**qwen_text(WIDTH), "num_hidden_layers": 51, "head_dim": 16}
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH,
        "deepstack_visual_indexes": [],
    }  # fmt: skip
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision))


@made
def make_minimax() -> Any:
    vae = AutoencoderKLMiniMaxH3(
        latent_channels=4, block_out_channels=(8, 16), layers_per_block=1, spatial_downsample_factors=(2, 2),
        temporal_downsample_factors=(2, 2), norm_num_groups=8, decoder_num_layers=1, decoder_num_attention_heads=2,
        decoder_attention_head_dim=8, decoder_num_register_tokens=2, decoder_ffn_mult=2, latents_mean=(0.0,) * 4,
        latents_std=(1.0,) * 4,
    )  # fmt: skip
    audio_vae = AutoencoderKLMiniMaxH3Audio(
        encoder_dim=4, encoder_rates=(2, 2), latent_dim=36, latent_channels=6, num_attention_heads=2, decoder_dim=16,
        decoder_rates=(2, 2), decoder_kernel_sizes=(4, 4), resblock_kernel_sizes=(3, 7),
        resblock_dilation_sizes=((1, 3), (1, 3)), latents_mean=[0.0] * 6, latents_std=[1.0] * 6,
    )  # fmt: skip
    pipe = MiniMaxH3ModularPipeline()
    pipe.update_components(
        text_encoder=text_encoder(),
        tokenizer=word_tokenizer(),
        processor=Processor(),
        transformer=MiniMaxH3Transformer3DModel(**{**MINIMAX, "text_dim": WIDTH}),
        vae=vae,
        audio_vae=audio_vae,
        scheduler=MiniMaxH3Scheduler(shift=12.0),
        audio_scheduler=MiniMaxH3Scheduler(shift=3.0),
    )
    for block in pipe.transformer.transformer_blocks:
        block.attn.to_out[0].weight.data.mul_(30)  # a few words among hundreds of rows of sound
    return pipe


CASES = (
    Whole("MiniMaxH3ModularPipeline", "MiniMax-H3", make_minimax, {"num_inference_steps": 3, "height": 8, "width": 8},
          run={"output": ["latents", "audio_latents"], "output_type": "np"}, batch_size=1,
          remarks="takes one prompt a call: build with `batch_size=1`"),
)  # fmt: skip
