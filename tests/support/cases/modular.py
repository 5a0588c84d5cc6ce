"""Tiny whole modular pipelines: the same networks, put together from blocks."""

from __future__ import annotations

from typing import Any

from cases import ltx
from cases.cosmos import cosmos_3
from cases.wan import CHANNELS, IMAGE_KEYS, LONG, MASK, VACE, VIDEO, denoiser, two
from diffusers import (
    ClassifierFreeGuidance,
    Cosmos3DistilledModularPipeline,
    Cosmos3OmniModularPipeline,
    EchoModularPipeline,
    FlowMatchEulerDiscreteScheduler,
    HeliosDMDScheduler,
    HeliosModularPipeline,
    HeliosPyramidDistilledModularPipeline,
    HeliosPyramidModularPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
    LTX2ModularPipeline,
    LTX25ModularPipeline,
    LTXModularPipeline,
    Wan22Image2VideoModularPipeline,
    Wan22ModularPipeline,
    Wan22VaceModularPipeline,
    WanImage2VideoModularPipeline,
    WanModularPipeline,
    WanVACETransformer3DModel,
)
from tiny import CALL
from tiny_denoisers import HELIOS
from tiny_parts import clip_vision, made, quiet, wan_parts

from whole import Whole

LATENTS = {"output": "latents", "output_type": "np"}  # "latent" is refused
VIDEOS = {"output": "videos"}
BOTH = {"output": ["videos", "audio"]}
HISTORY = {
    "has_multi_term_memory_patch": True, "guidance_cross_attn": True, "zero_history_timestep": True,
    "is_amplify_history": False,
}  # fmt: skip


def modular(maker: Any, **parts: Any) -> Any:
    """A modular pipeline from components; those that it makes from a config alone are left to it."""
    pipe = maker()
    known = {item.name for item in pipe.blocks.expected_components}
    pipe.update_components(**{name: part for name, part in parts.items() if name in known})
    return quiet(pipe)


def wan(maker: Any, **parts: Any) -> Any:
    return modular(maker, **wan_parts(**parts))


def wan_22(maker: Any, *args: Any, **changes: Any) -> Any:
    pair = two(*args, **changes)
    del pair["boundary_ratio"]
    return wan(maker, **pair)


def ltx_modular() -> LTXModularPipeline:
    return modular(LTXModularPipeline, **ltx.ltx().components)


def ltx2(maker: Any) -> Any:
    return modular(maker, **ltx.ltx2_parts(per_token=True))


def helios(maker: Any, scheduler: Any, **parts: Any) -> Any:
    return wan(
        maker,
        **parts,
        scheduler=scheduler,
        transformer=made(HeliosTransformer3DModel, **{**HELIOS, **CHANNELS, **HISTORY}),
    )


def cosmos(maker: Any, **parts: Any) -> Any:
    pipe = modular(maker, **{**cosmos_3().components, **parts})
    pipe.update_components(enable_safety_checker=False)
    if maker is Cosmos3DistilledModularPipeline:
        pipe.update_components(distilled_sigmas=[1.0, 0.5])
    return pipe


ECHO_CALL = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16, "sigmas": [1.0, 0.5, 0.0]}
COSMOS_CALL = {
    "height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 2, "use_system_prompt": False,
    "add_resolution_template": False, "add_duration_template": False,
}  # fmt: skip
CASES = (
    Whole("WanModularPipeline", "Wan", lambda: wan(WanModularPipeline, transformer=denoiser()), CALL, LATENTS),
    Whole("WanImage2VideoModularPipeline", "Wan",
          lambda: wan(WanImage2VideoModularPipeline, transformer=denoiser(in_channels=36, **IMAGE_KEYS),
                      **clip_vision()),
          LONG, LATENTS, takes="image", pictures=True, spared=0.4),
    Whole("Wan22ModularPipeline", "Wan", lambda: wan_22(Wan22ModularPipeline), CALL, LATENTS),
    Whole("Wan22Image2VideoModularPipeline", "Wan",
          lambda: wan_22(Wan22Image2VideoModularPipeline, in_channels=36), CALL, LATENTS, takes="image", pictures=True),
    Whole("Wan22VaceModularPipeline", "Wan",
          lambda: wan_22(Wan22VaceModularPipeline, WanVACETransformer3DModel, **VACE),
          {**CALL, "video": VIDEO, "mask": MASK}, LATENTS, takes="video and mask", batch_size=1),
    Whole("LTXModularPipeline", "LTX", ltx_modular, ltx.CALL, LATENTS),
    Whole("LTX2ModularPipeline", "LTX-2", lambda: ltx2(LTX2ModularPipeline), ltx.LTX_2_CALL, BOTH),
    Whole("LTX25ModularPipeline", "LTX-2", lambda: ltx2(LTX25ModularPipeline), ltx.LTX_2_CALL, BOTH),
    Whole("EchoModularPipeline", "LTX-2", lambda: ltx2(EchoModularPipeline), ECHO_CALL, BOTH),
    Whole("HeliosModularPipeline", "Helios",
          lambda: helios(HeliosModularPipeline,
                         HeliosScheduler(stage_range=[0, 1], stages=1, use_dynamic_shifting=True)),
          {**CALL, "num_frames": 9}, LATENTS),
    Whole("HeliosPyramidModularPipeline", "Helios",
          lambda: helios(HeliosPyramidModularPipeline, HeliosScheduler(stages=2, stage_range=[0, 0.5, 1], gamma=0.3)),
          {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 16,
           "pyramid_num_inference_steps_list": [1, 1]}, LATENTS),
    Whole("HeliosPyramidDistilledModularPipeline", "Helios",
          lambda: helios(HeliosPyramidDistilledModularPipeline,
                         HeliosDMDScheduler(stages=2, stage_range=[0, 0.5, 1], gamma=0.3),
                         guider=ClassifierFreeGuidance(guidance_scale=1.0)),
          {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 16,
           "pyramid_num_inference_steps_list": [1, 1]}, LATENTS),
    Whole("Cosmos3OmniModularPipeline", "Cosmos", lambda: cosmos(Cosmos3OmniModularPipeline), COSMOS_CALL, VIDEOS,
          batch_size=1),
    Whole("Cosmos3DistilledModularPipeline", "Cosmos",
          lambda: cosmos(Cosmos3DistilledModularPipeline, scheduler=FlowMatchEulerDiscreteScheduler()),
          COSMOS_CALL, VIDEOS, batch_size=1),
)  # fmt: skip
