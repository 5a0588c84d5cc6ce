"""stable-diffusion.cpp."""

from collections.abc import Mapping
from pathlib import PurePath

from .engine import Engine, Reads, Spelling, lacking
from .rows import HUNYUAN_15_NATIVE, LTX_2_NATIVE, WAN_NATIVE, WAN_VACE_NATIVE

_SOURCE = "src/name_conversion.cpp::convert_tensor_name"
_MARKS = {"": "", "high_noise": "|high_noise|", "low_noise": ""}
_PREFIXES = ("diffusion_model.", "transformer.", "unet.")


def _instructions(files: Mapping[str, str]) -> str:
    marks = " ".join(f"<lora:{_MARKS[expert]}{PurePath(path).stem}:1>" for expert, path in files.items())
    return f"--lora-model-dir {PurePath(next(iter(files.values()))).parent} and in the prompt: {marks}"


SD_CPP = Engine(
    "sd.cpp",
    "stable-diffusion.cpp",
    "97d2990",
    {
        "wan": Reads(("native", "kohya"), _SOURCE, (Spelling(WAN_NATIVE, _PREFIXES),), every=True),
        "wan-vace": Reads(("native", "kohya"), _SOURCE, (Spelling(WAN_VACE_NATIVE, _PREFIXES),), every=True),
        "hunyuan-video-1.5": Reads(("native", "kohya"), _SOURCE, (Spelling(HUNYUAN_15_NATIVE, _PREFIXES),), every=True),
        "ltx-2": Reads(("native", "diffusers"), _SOURCE, (Spelling(LTX_2_NATIVE, (*_PREFIXES, "")),), every=True),
    },
    _instructions,
    {
        "hunyuan-video": "its text encoder for HunyuanVideo is that of 1.5: `src/conditioning/conditioner.hpp`",
        **lacking("it has no such model: `src/model.h::SDVersion`", *("ltx", "mochi", "kandinsky-5", "cogvideox")),
    },
    not_run="it is C++",
    kohya=True,
    experts="|high_noise| before the name in the prompt",
    alpha="at rank 1 alpha / in_features, which is wrong",
)
