"""ComfyUI, and kijai's WanVideoWrapper inside of it."""

from collections.abc import Mapping

from unlearning_adapters.export.names.families import FAMILIES

from .engine import Engine, Reads, Spelling
from .rows import HUNYUAN_15_NATIVE, HUNYUAN_NATIVE, LTX_2_NATIVE, LTX_NATIVE, WAN_NATIVE

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
    kohya=True,
    experts="one LoRA node on each model",
)


def _wrapper_instructions(files: Mapping[str, str]) -> str:
    return "\n".join(
        f"{path}: put it into models/loras; node WanVideoLoraSelect, strength 1.0"
        + (f", into the loader of the {expert} model" if expert else "")
        for expert, path in files.items()
    )


KIJAI = Engine(
    "kijai",
    "ComfyUI-WanVideoWrapper",
    "721cd65",
    {
        "wan": Reads(
            ("native",), "nodes_model_loading.py::standardize_lora_key_format", (Spelling(WAN_NATIVE),), every=True
        )
    },
    _wrapper_instructions,
    experts="one LoRA node on each model loader",
)
