"""Lightricks' own ltx-core and ltx-pipelines."""

from .engine import AB, Engine, Reads, Spelling, lacking
from .rows import LTX_2_NATIVE

LTX = Engine(
    "ltx-core",
    "ltx-core",
    "1.0.0",
    {
        "ltx-2": Reads(
            ("native",),
            "ltx_core/loader/fuse_loras.py::apply_loras, sd_ops.py::LTXV_LORA_COMFY_RENAMING_MAP",
            (Spelling(LTX_2_NATIVE, ("diffusion_model.", "")),),
            every=True,
        )
    },
    lambda files: "\n".join(f"--lora {path} 1.0" for path in files.values()),
    lacking(
        "it runs LTX-2 alone: `ltx_core/model/transformer`",
        *("wan", "wan-vace", "hunyuan-video", "hunyuan-video-1.5", "ltx", "mochi", "kandinsky-5", "cogvideox"),
    ),
    suffixes=AB,
    undo="restart",
    alpha="ignored",
)
