"""The names of kohya's trainers, `lora_unet_` and a path with underscores; without the alpha that they write."""

from unlearning_adapters.export.names.naming import Part

from .layout import Layout
from .native import PREFIX, native_name


def _name(denoiser: str, path: str) -> Part | None:
    part = native_name(denoiser, path)
    return part and part._replace(layer="lora_unet_" + part.layer.removeprefix(PREFIX).replace(".", "_"))


KOHYA = Layout("kohya", "`lora_unet_` names of kohya", _name, (".lora_down.weight", ".lora_up.weight"))
