"""What a layout of a LoRA file is: the names of its tensors, and how they lie on disk; imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass

from unlearning_adapters.export.names.naming import Part

# Which layer of the file a layer of a class of denoisers is, None if the layout has no name for it.
Names = Callable[[str, str], Part | None]


@dataclass(frozen=True)
class Layout:
    """How a LoRA file names its tensors.

    Args:
        name: Its name in `LAYOUTS`.
        summary: One line for people.
        names: From the class of a denoiser and the path of a layer in it, as diffusers names both, to the layer of the
            file, its prefix included. None for a layer, or a denoiser, that has no name in this layout.
        suffixes: What follows the layer's name, for the factors A and B.
        companions: Whether layers of zeros are added without which diffusers' converters do not know the file.
        folder: Whether it is a folder of PEFT, with an `adapter_config.json` beside the tensors.
    """

    name: str
    summary: str
    names: Names
    suffixes: tuple[str, str] = (".lora_A.weight", ".lora_B.weight")
    companions: bool = False
    folder: bool = False
