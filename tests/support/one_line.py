"""What `build_adapter(pipe, concept)`, the line of README, needs beside pipeline and concept, by pipeline class."""

# What only the user can give; tests/whole/test_one_line.py sees that the refusal names each, docs/pipelines.md has it.
NEEDS = {
    "AnimateDiffControlNetPipeline": ("conditioning_frames",),
    "AnimateDiffSparseControlNetPipeline": ("conditioning_frames",),
    "AnimateDiffVideoToVideoControlNetPipeline": ("video", "conditioning_frames"),
    "AnimateDiffVideoToVideoPipeline": ("video",),
    "CogVideoXFunControlPipeline": ("control_video",),
    "CogVideoXVideoToVideoPipeline": ("video",),
    "ConsisIDPipeline": ("id_vit_hidden", "id_cond"),
    "I2VGenXLPipeline": ("clip_skip=None",),
    "LTX2DFRTemporalRefinePipeline": ("latents", "keyframes_latents", "keyframe_positions", "audio_latents"),
    "LucyEditPipeline": ("video",),
    "SanaWMLTX2Refiner": ("sana_latent", "fps"),
    "SanaWMPipeline": ("c2w", "action"),
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": ("video",),
    "VideoToVideoSDPipeline": ("video",),
    "WanAnimate2DistilledModularPipeline": ("driving_video",),
    "WanAnimate2ModularPipeline": ("driving_video",),
    "WanAnimatePipeline": ("pose_video", "face_video"),
    "WanVideoToVideoPipeline": ("video",),
}
# Arguments that a tiny model needs and the real one does not: its picture has other tokens than the template counts.
OF_TINY = {"HunyuanVideoImageToVideoPipeline": ("prompt_template",)}


def one_line(pipeline: str, tested: str) -> str:
    """Return the cell of docs/pipelines.md: whether the line builds, or what it needs."""
    if tested != "whole":
        return ""
    needs = " and ".join(f"`{name}`" for name in NEEDS.get(pipeline, ()))
    return f"needs {needs}" if needs else "yes"
