"""stable-diffusion.cpp."""

from collections.abc import Mapping
from pathlib import PurePath

from unlearning_adapters.export.names.naming import Rows

from .engine import Engine, Reads, Spelling, lacking
from .rows import HUNYUAN_15_NATIVE, LTX_2_NATIVE, LTX_NATIVE, WAN_NATIVE, WAN_TEXT_NATIVE, WAN_VACE_NATIVE

_SOURCE = "src/name_conversion.cpp::convert_tensor_name"
_MARKS = {"": "", "high_noise": "|high_noise|", "low_noise": ""}
_PREFIXES = ("diffusion_model.", "transformer.", "unet.")


def _reads(rows: Rows, kohya: Rows) -> Reads:
    """What it reads, and the layers whose names of kohya it can take apart: it knows some words with underscores."""
    spellings = (Spelling(rows, _PREFIXES, kohya=False), Spelling(kohya, ()))
    return Reads(("native", "kohya"), _SOURCE, spellings, every=True)


def _instructions(files: Mapping[str, str]) -> str:
    marks = " ".join(f"<lora:{_MARKS[expert]}{PurePath(path).stem}:1>" for expert, path in files.items())
    return f"--lora-model-dir {PurePath(next(iter(files.values()))).parent} and in the prompt: {marks}"


SD_CPP = Engine(
    "sd.cpp",
    "stable-diffusion.cpp",
    "97d2990",
    {
        "wan": _reads(WAN_NATIVE, WAN_TEXT_NATIVE),
        "wan-vace": _reads(WAN_VACE_NATIVE, WAN_TEXT_NATIVE),
        "hunyuan-video-1.5": _reads(HUNYUAN_15_NATIVE, HUNYUAN_15_NATIVE),
        "ltx-2": Reads(
            ("native", "diffusers"),
            _SOURCE,
            (Spelling(LTX_2_NATIVE, (*_PREFIXES, ""), kohya=False), Spelling(LTX_NATIVE, ())),
            every=True,
        ),
    },
    _instructions,
    {
        "hunyuan-video": "its text encoder for HunyuanVideo is that of 1.5: `src/conditioning/conditioner.hpp`",
        **lacking("it has no such model: `src/model.h::SDVersion`", *("ltx", "mochi", "kandinsky-5", "cogvideox")),
    },
    kohya=True,
    experts="|high_noise| before the name in the prompt",
    alpha="at rank 1 alpha / in_features, which is wrong",
)
