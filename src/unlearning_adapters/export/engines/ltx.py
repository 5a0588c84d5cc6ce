"""Lightricks' own ltx-core and ltx-pipelines."""

from .engine import Engine, Reads, Spelling
from .rows import LTX_2_NATIVE

LTX = Engine(
    "ltx-core",
    "ltx-core",
    "1.0.0",
    {
        "ltx-2": Reads(
            ("native",),
            "ltx_core/loader/fuse_loras.py::apply_loras",
            (Spelling(LTX_2_NATIVE, ("diffusion_model.", "")),),
            every=True,
        )
    },
    lambda files: "\n".join(f"--lora {path} 1.0" for path in files.values()),
    undo="restart",
    alpha="ignored",
)
