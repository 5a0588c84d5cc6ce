"""The ports to Apple's MLX: mlx-gen and mlx-video-with-audio."""

from collections.abc import Mapping

from .engine import A_B_DOWN_UP, Engine, Reads, Spelling, lacking
from .rows import WAN_ATTENTION_DIFFUSERS, WAN_IMAGE_DIFFUSERS, WAN_NATIVE

_OTHERS = ("wan-vace", "hunyuan-video", "hunyuan-video-1.5", "ltx", "mochi", "kandinsky-5", "cogvideox")
_OPTIONS = {"": "--lora", "high_noise": "--lora-high", "low_noise": "--lora-low"}


def _mlx_video(files: Mapping[str, str]) -> str:
    return " ".join(f"{_OPTIONS[expert]} {path} 1.0" for expert, path in files.items())


MLX_GEN = Engine(
    "mlx-gen",
    "mlx-gen",
    "0.38.0",
    {
        "wan": Reads(
            ("native", "kohya"),
            "mflux/models/wan/weights/wan_lora_mapping.py::WanLoRAMapping.get_mapping",
            (
                Spelling(
                    WAN_NATIVE, ("diffusion_model.", "base_model.model.diffusion_model.", "base_model.model.", "")
                ),
                Spelling(
                    (*WAN_ATTENTION_DIFFUSERS, *WAN_IMAGE_DIFFUSERS),
                    ("transformer.", "base_model.model.transformer.", "base_model.model.", ""),
                    kohya=False,
                ),
            ),
        )
    },
    lambda files: "--lora-paths " + " ".join(files.values()) + " --lora-scales" + " 1.0" * len(files),
    lacking("it has no such model: `mflux/models`", *_OTHERS, "ltx-2"),
    embedders=False,
    kohya=True,
    undo="restart",
)
MLX_VIDEO = Engine(
    "mlx-video",
    "mlx-video-with-audio",
    "0.1.37",
    {
        "wan": Reads(
            ("native",),
            "mlx_video/lora/apply.py::_normalize_wan_lora_key",
            (Spelling(WAN_NATIVE, ("model.diffusion_model.", "diffusion_model.", "base_model.model.", "model.", "")),),
            every=True,
        )
    },
    _mlx_video,
    {
        "ltx-2": "its commands for LTX-2 take no LoRA: `mlx_video/generate.py`, `mlx_video/generate_av.py`",
        **lacking("it has no such model: `mlx_video/models`", *_OTHERS),
    },
    suffixes=A_B_DOWN_UP,
    experts="--lora-high and --lora-low",
    undo="restart",
)
