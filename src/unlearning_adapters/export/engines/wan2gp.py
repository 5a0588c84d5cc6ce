"""Wan2GP, whose LoRA files are read by mmgp."""

from collections.abc import Mapping
from pathlib import PurePath

from .engine import Engine, Reads, Spelling
from .rows import HUNYUAN_NATIVE, LTX_2_NATIVE, WAN_NATIVE

_SOURCE = "mmgp/offload.py::load_loras_into_model"
_PREFIXES = ("diffusion_model.", "transformer.", "")


def _instructions(files: Mapping[str, str]) -> str:
    names = ", ".join(PurePath(path).name for path in files.values())
    multipliers = "1" if len(files) == 1 else "1;0 0;1"
    return f"put {names} into the loras folder of the model, choose them, multipliers: {multipliers}"


WAN2GP = Engine(
    "wan2gp",
    "Wan2GP (mmgp)",
    "8681e9f, mmgp 3.8.2",
    {
        "wan": Reads(("native",), _SOURCE, (Spelling(WAN_NATIVE, _PREFIXES),), every=True),
        "hunyuan-video": Reads(("native",), _SOURCE, (Spelling(HUNYUAN_NATIVE, _PREFIXES),), every=True),
        "ltx-2": Reads(("native",), _SOURCE, (Spelling(LTX_2_NATIVE, _PREFIXES),), every=True),
    },
    _instructions,
    strict=True,
    experts="multipliers 1;0 0;1",
)
