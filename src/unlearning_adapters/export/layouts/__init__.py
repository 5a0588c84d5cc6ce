"""The layouts of LoRA files, by name. A further layout is a file of this folder and a line of this table."""

from collections.abc import Mapping

from unlearning_adapters.errors import ConfigError

from .diffusers import DIFFUSERS
from .kohya import KOHYA
from .layout import Layout
from .native import NATIVE, NATIVE_FOR_DIFFUSERS
from .peft_folder import PEFT_FOLDER
from .sglang import SGLANG
from .split import SPLIT
from .tensorrt_llm import TENSORRT_LLM

__all__ = ["LAYOUTS", "Layout", "layout_named"]

LAYOUTS: Mapping[str, Layout] = {
    "diffusers": DIFFUSERS,
    "native": NATIVE,
    "native-for-diffusers": NATIVE_FOR_DIFFUSERS,
    "sglang": SGLANG,
    "split": SPLIT,
    "tensorrt-llm": TENSORRT_LLM,
    "peft-folder": PEFT_FOLDER,
    "kohya": KOHYA,
}
ALIASES = {"comfyui": "native"}


def layout_named(name: str) -> Layout:
    """Return a layout of the table.

    Args:
        name: Its name, or "comfyui", the first name of "native".

    Raises:
        ConfigError: If there is none of this name.
    """
    layout = LAYOUTS.get(ALIASES.get(name, name))
    if layout is None:
        raise ConfigError(f"Expected `layout` to be one of {', '.join(LAYOUTS)}, but got {name!r}.")
    return layout
