"""ComfyUI, and kijai's WanVideoWrapper inside of it."""

from collections.abc import Mapping

from unlearning_adapters.export.names.families import FAMILIES

from .engine import Engine, Reads, Spelling, lacking
from .rows import (
    HUNYUAN_15_NATIVE,
    HUNYUAN_NATIVE,
    LTX_2_NATIVE,
    LTX_NATIVE,
    WAN_CROSS_ATTENTION_DIFFUSERS,
    WAN_NATIVE,
)

_SOURCE = "comfy/lora.py::model_lora_keys_unet"
_LATER = f"{_SOURCE} of 0.12.1"
_NATIVE = ("native", "native-for-diffusers", "kohya")


def _instructions(files: Mapping[str, str]) -> str:
    lines = [
        f"{path}: put it into models/loras; node LoraLoaderModelOnly, strength 1.0"
        + (f", on the {expert} model" if expert else "")
        for expert, path in files.items()
    ]
    return "\n".join(lines)


COMFYUI = Engine(
    "comfyui",
    "ComfyUI",
    "0.3.64",
    {
        "wan": Reads(_NATIVE, _SOURCE, (Spelling(WAN_NATIVE),), every=True),
        "wan-vace": Reads(("native", "kohya"), _SOURCE, (Spelling(FAMILIES["wan-vace"].native.rows),), every=True),
        "hunyuan-video": Reads(
            _NATIVE, _SOURCE, (Spelling(HUNYUAN_NATIVE, ("diffusion_model.", "transformer.")),), every=True
        ),
        "hunyuan-video-1.5": Reads(
            ("native", "kohya"),
            _LATER,
            (Spelling(HUNYUAN_15_NATIVE, ("diffusion_model.", "transformer.")),),
            every=True,
        ),
        "ltx": Reads(_NATIVE, _SOURCE, (Spelling(LTX_NATIVE),), every=True),
        "ltx-2": Reads(_NATIVE, _LATER, (Spelling(LTX_2_NATIVE),), every=True),
        "mochi": Reads(
            ("native", "kohya"),
            _SOURCE,
            (Spelling(FAMILIES["mochi"].native.rows, ("diffusion_model.", "")),),
            every=True,
        ),
        "kandinsky-5": Reads(
            ("native", "diffusers", "kohya"),
            _LATER,
            (Spelling(FAMILIES["kandinsky-5"].native.rows, ("diffusion_model.", "transformer.", "")),),
            every=True,
        ),
    },
    _instructions,
    lacking("it has no such model: `comfy/ldm`", "cogvideox"),
    not_run="0.3.64 has no such model, or the tests make no tiny one",
    kohya=True,
    experts="one LoRA node on each model",
)


def _wrapper_instructions(files: Mapping[str, str]) -> str:
    return "\n".join(
        f"{path}: put it into models/loras; node WanVideoLoraSelect, strength 1.0"
        + (f", into the loader of the {expert} model" if expert else "")
        for expert, path in files.items()
    )


# `attn1` of diffusers is renamed to `cross_attn`, so that a file with such names edits the wrong layers: it is not
# among the names that are read. Feed-forwards of diffusers keep their names, which no layer has.
_WRAPPED = ("diffusion_model.", "transformer.", "pipe.dit.", "base_model.model.", "")
_WRAPPER_SOURCE = "nodes_model_loading.py::standardize_lora_key_format, model_lora_keys_unet"


def _wrapped(family: str) -> Reads:
    spellings = (
        Spelling(FAMILIES[family].native.rows, _WRAPPED),
        Spelling(WAN_CROSS_ATTENTION_DIFFUSERS, _WRAPPED, kohya=False),
    )
    return Reads(("native",), _WRAPPER_SOURCE, spellings, every=True)


KIJAI = Engine(
    "kijai",
    "ComfyUI-WanVideoWrapper",
    "3317577",
    {"wan": _wrapped("wan"), "wan-vace": _wrapped("wan-vace")},
    _wrapper_instructions,
    lacking(
        "it runs Wan alone: `wanvideo/modules/model.py`",
        *("hunyuan-video", "hunyuan-video-1.5", "ltx", "ltx-2", "mochi", "kandinsky-5", "cogvideox"),
    ),
    not_run="its nodes load a whole Wan on a GPU",
    kohya=True,
    experts="one LoRA node on each model loader",
)
