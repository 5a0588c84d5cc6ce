"""The ports to Apple's MLX: mlx-gen and mlx-video-with-audio."""

from collections.abc import Mapping

from .engine import Engine, Reads, Spelling
from .rows import LTX_2_NATIVE, WAN_ATTENTION_DIFFUSERS, WAN_IMAGE_DIFFUSERS, WAN_NATIVE

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
                    (*WAN_NATIVE, *WAN_ATTENTION_DIFFUSERS, *WAN_IMAGE_DIFFUSERS),
                    ("diffusion_model.", "transformer.", ""),
                ),
            ),
        )
    },
    lambda files: "--lora-paths " + " ".join(files.values()) + " --lora-scales" + " 1.0" * len(files),
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
            ("native",), "mlx_video/lora/apply.py", (Spelling(WAN_NATIVE, ("diffusion_model.", "")),), every=True
        ),
        "ltx-2": Reads(
            ("native",), "mlx_video/lora/apply.py", (Spelling(LTX_2_NATIVE, ("diffusion_model.", "")),), every=True
        ),
    },
    _mlx_video,
    experts="--lora-high and --lora-low",
    undo="restart",
)
