"""LightX2V."""

import json
from collections.abc import Mapping

from unlearning_adapters.export.names.naming import Rows

from .engine import Engine, Reads, Spelling
from .rows import HUNYUAN_15_NATIVE, LTX_2_NATIVE, WAN_NATIVE

_SOURCE = "lightx2v/utils/lora_loader.py::LoRALoader.apply_lora"
_PREFIXES = ("diffusion_model.", "model.", "unet.", "")
_SPLIT: Rows = (
    ("transformer_blocks.N.attn.to_{q,k,v}", "double_blocks.N.img_attn_{q,k,v}"),
    ("transformer_blocks.N.attn.add_{q,k,v}_proj", "double_blocks.N.txt_attn_{q,k,v}"),
    *(row for row in HUNYUAN_15_NATIVE if "qkv" not in row[1]),
)


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
        "hunyuan-video-1.5": Reads(("split",), _SOURCE, (Spelling(_SPLIT, _PREFIXES),), every=True),
        "ltx-2": Reads(("native",), _SOURCE, (Spelling(LTX_2_NATIVE, _PREFIXES),), every=True),
    },
    _instructions,
    experts="high_noise_model and low_noise_model in lora_configs",
    undo="restart",
)
