"""Tiny whole pipelines of Wan-Animate 2; apart from the others, for its attention is compiled for some 20 seconds."""

from __future__ import annotations

from typing import Any

from cases.modular import wan
from cases.wan import VIDEO
from diffusers import (
    WanAnimate2DistilledModularPipeline,
    WanAnimate2ModularPipeline,
    WanAnimate2Transformer3DModel,
)
from tiny import TEXT_DIM
from tiny_denoisers import ANIMATE_2
from tiny_parts import made
from transformers import CLIPVisionConfig, CLIPVisionModel

from whole import Whole


def animate_2(maker: Any) -> Any:
    vision = CLIPVisionConfig(
        hidden_size=32, projection_dim=32, num_hidden_layers=2, num_attention_heads=2, image_size=224,
        intermediate_size=16, patch_size=112,
    )  # fmt: skip
    transformer = made(WanAnimate2Transformer3DModel, **{**ANIMATE_2, "text_dim": TEXT_DIM, "text_len": 16})
    for block in transformer.blocks:  # only the video is returned, and its random decoder hides small changes
        block.cross_attn.to_v.weight.mul_(30)
    return wan(maker, transformer=transformer, image_encoder=made(CLIPVisionModel, vision))


CALL = {
    "driving_video": VIDEO, "height": 16, "width": 16, "num_inference_steps": 2, "max_sequence_length": 16,
    "segment_frame_length": 5,
}  # fmt: skip
RUN = {"output": "videos", "output_type": "np"}
CASES = (
    Whole("WanAnimate2ModularPipeline", "Wan", lambda: animate_2(WanAnimate2ModularPipeline), CALL, RUN,
          takes="image and driving video", pictures=True, skip=1),
    Whole("WanAnimate2DistilledModularPipeline", "Wan", lambda: animate_2(WanAnimate2DistilledModularPipeline), CALL,
          RUN, takes="image and driving video", pictures=True, skip=1),
)  # fmt: skip
