"""Tiny whole pipelines of models built like Wan: ChronoEdit, AnyFlow, SkyReels V2 and Helios."""

from __future__ import annotations

from typing import Any

from cases.wan import CHANNELS, IMAGE_KEYS, LONG, VIDEO
from diffusers import (
    AnyFlowFARPipeline,
    AnyFlowFARTransformer3DModel,
    AnyFlowPipeline,
    AnyFlowTransformer3DModel,
    ChronoEditPipeline,
    ChronoEditTransformer3DModel,
    FlowMapEulerDiscreteScheduler,
    HeliosPipeline,
    HeliosPyramidPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
    SkyReelsV2DiffusionForcingImageToVideoPipeline,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2DiffusionForcingVideoToVideoPipeline,
    SkyReelsV2ImageToVideoPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
)
from tiny import CALL
from tiny_denoisers import ANY_FLOW, HELIOS, WAN
from tiny_parts import clip_vision, made, quiet, wan_parts

from whole import Whole


def kin(maker: Any, denoiser: Any, config: dict[str, Any], **parts: Any) -> Any:
    """A pipeline with Wan's VAE and text encoder, and a denoiser of its own."""
    return quiet(
        maker(**wan_parts(transformer=made(denoiser, **{**config, **CHANNELS, **parts.pop("changes", {})}), **parts))
    )


def chrono_edit() -> ChronoEditPipeline:
    changes = {"in_channels": 36, "rope_temporal_skip_len": 2, **IMAGE_KEYS}
    return kin(ChronoEditPipeline, ChronoEditTransformer3DModel, WAN, changes=changes, **clip_vision())


def any_flow(maker: Any = AnyFlowPipeline, denoiser: Any = AnyFlowTransformer3DModel, **changes: Any) -> Any:
    scheduler = FlowMapEulerDiscreteScheduler(num_train_timesteps=1000, shift=5.0)
    return kin(maker, denoiser, ANY_FLOW, changes=changes, scheduler=scheduler)


def skyreels(maker: Any, **parts: Any) -> Any:
    scheduler = UniPCMultistepScheduler(flow_shift=5.0, use_flow_sigmas=True)
    return kin(maker, SkyReelsV2Transformer3DModel, WAN, scheduler=scheduler, **parts)


def helios(maker: Any, scheduler: HeliosScheduler) -> Any:
    history = {"has_multi_term_memory_patch": True, "guidance_cross_attn": True, "zero_history_timestep": True,
               "is_amplify_history": False}  # fmt: skip
    return kin(maker, HeliosTransformer3DModel, HELIOS, changes=history, scheduler=scheduler)


def pyramid() -> HeliosPyramidPipeline:
    # With the default gamma of 1/3 the covariance of its noise is singular, which a CPU refuses.
    return helios(HeliosPyramidPipeline, HeliosScheduler(stages=2, stage_range=[0, 0.5, 1], gamma=0.3))


FORCING = {**CALL, "num_frames": 9, "base_num_frames": 5, "overlap_history": 1}
CASES = (
    Whole("ChronoEditPipeline", "ChronoEdit", chrono_edit, LONG, variant="image keys", takes="image", pictures=True,
          spared=0.4),
    Whole("AnyFlowPipeline", "AnyFlow", any_flow, CALL),
    Whole("AnyFlowFARPipeline", "AnyFlow",
          lambda: any_flow(AnyFlowFARPipeline, AnyFlowFARTransformer3DModel, chunk_partition=(1, 1),
                           compressed_patch_size=(1, 4, 4), full_chunk_limit=3), CALL),
    Whole("SkyReelsV2Pipeline", "SkyReels V2", lambda: skyreels(SkyReelsV2Pipeline), CALL),
    Whole("SkyReelsV2ImageToVideoPipeline", "SkyReels V2",
          lambda: skyreels(SkyReelsV2ImageToVideoPipeline, changes={"in_channels": 36, **IMAGE_KEYS}, **clip_vision()),
          LONG, variant="image keys", takes="image", pictures=True, spared=0.4),
    Whole("SkyReelsV2DiffusionForcingPipeline", "SkyReels V2", lambda: skyreels(SkyReelsV2DiffusionForcingPipeline),
          FORCING),
    Whole("SkyReelsV2DiffusionForcingImageToVideoPipeline", "SkyReels V2",
          lambda: skyreels(SkyReelsV2DiffusionForcingImageToVideoPipeline), CALL, takes="image", pictures=True),
    Whole("SkyReelsV2DiffusionForcingVideoToVideoPipeline", "SkyReels V2",
          lambda: skyreels(SkyReelsV2DiffusionForcingVideoToVideoPipeline), {**FORCING, "video": VIDEO}, takes="video"),
    Whole("HeliosPipeline", "Helios",
          lambda: helios(HeliosPipeline, HeliosScheduler(stage_range=[0, 1], stages=1, use_dynamic_shifting=True)),
          {**CALL, "num_frames": 9}),
    Whole("HeliosPyramidPipeline", "Helios", pyramid, {"height": 32, "width": 32, "num_frames": 9,
          "max_sequence_length": 16, "pyramid_num_inference_steps_list": [1, 1]}),
)  # fmt: skip
