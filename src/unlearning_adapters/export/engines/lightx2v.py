"""LightX2V."""

import json
from collections.abc import Mapping

from .engine import Engine, Reads, Spelling, lacking
from .rows import LTX_2_NATIVE, WAN_NATIVE, WAN_VACE_NATIVE

_SOURCE = "lightx2v/utils/lora_loader.py::LoRALoader.apply_lora"
_PREFIXES = ("diffusion_model.", "model.", "unet.", "")
# Its runner calls no LoRA loader, `lora_configs` leaves the model without weights, and names of the
# layers that `switch_lora` compares begin with `diffusion_model.blocks`.
_NO_HUNYUAN = "its runner loads none: `lightx2v/models/runners/hunyuan_video/hunyuan_video_15_runner.py`"


def _instructions(files: Mapping[str, str]) -> str:
    configs: list[dict[str, object]] = [
        {**({"name": f"{expert}_model"} if expert else {}), "path": path, "strength": 1.0}
        for expert, path in files.items()
    ]
    return f'"lora_configs": {json.dumps(configs)}'


LIGHTX2V = Engine(
    "lightx2v",
    "LightX2V",
    "f8aee98",
    {
        "wan": Reads(("native",), _SOURCE, (Spelling(WAN_NATIVE, _PREFIXES),), every=True),
        "wan-vace": Reads(("native",), _SOURCE, (Spelling(WAN_VACE_NATIVE, _PREFIXES),), every=True),
        "ltx-2": Reads(("native",), _SOURCE, (Spelling(LTX_2_NATIVE, _PREFIXES),), every=True),
    },
    _instructions,
    {
        "hunyuan-video-1.5": _NO_HUNYUAN,
        **lacking(
            "it has no such model: `lightx2v/models/networks`",
            *("hunyuan-video", "ltx", "mochi", "kandinsky-5", "cogvideox"),
        ),
    },
    not_run="the tests make no weights of it",
    experts="high_noise_model and low_noise_model in lora_configs",
    undo="restart",
)
