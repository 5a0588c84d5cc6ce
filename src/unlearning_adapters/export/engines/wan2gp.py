"""Wan2GP, whose LoRA files are read by mmgp."""

from collections.abc import Mapping
from pathlib import PurePath

from .engine import Engine, Reads, Spelling, lacking
from .rows import HUNYUAN_NATIVE, KANDINSKY_NATIVE, LTX_2_NATIVE, LTX_NATIVE, WAN_NATIVE

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
        # `vace_blocks` are renamed where they have no prefix, which is not what the layout writes.
        "wan-vace": Reads(("native",), _SOURCE, (Spelling(WAN_NATIVE, _PREFIXES),)),
        "hunyuan-video": Reads(("native",), _SOURCE, (Spelling(HUNYUAN_NATIVE, _PREFIXES),), every=True),
        "ltx": Reads(("native",), _SOURCE, (Spelling(LTX_NATIVE, _PREFIXES),), every=True),
        "kandinsky-5": Reads(("native",), _SOURCE, (Spelling(KANDINSKY_NATIVE, _PREFIXES),), every=True),
        "ltx-2": Reads(("native",), _SOURCE, (Spelling(LTX_2_NATIVE, _PREFIXES),), every=True),
    },
    _instructions,
    {
        "hunyuan-video-1.5": "not clear: q, k and v are cut at 3072 rows, the width of 1.0, and 1.5 has 2048: "
        "`hyvideo/modules/models.py::get_linear_split_map`",
        **lacking("it has no such model: `models`", "mochi", "cogvideox"),
    },
    not_run="it needs a GPU; its loader, mmgp, was run on Wan",
    strict="tensors",
    experts="multipliers 1;0 0;1",
)
