"""Load the ShapeWorld pipeline that ships with the package, or another one from a folder."""

from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from unlearning_adapters.errors import DenoiserError

from .wan import WanPipeline

NAME = "shapeworld"
WEIGHTS = files(__package__) / "weights"


# Modules of the classes that a ShapeWorld model may have.
CLASSES = {"WanPipeline": "wan", "TextToVideoSDPipeline": "unet", "CogVideoXPipeline": "cogvideox"}


def load_shapeworld(dtype: torch.dtype = torch.float32, *, model: str | Path | None = None) -> Any:
    """Return a ShapeWorld pipeline, whose call needs a prompt only; a clip takes about a second on a CPU.

    The embedded one is a `WanPipeline` in diffusers' own folder layout, whose clips have 9 frames of 64 x 64 pixels.

    Args:
        dtype: Number type of the weights; the file holds float16.
        model: Folder of another ShapeWorld model, such as those in the repository's `models`; None takes the embedded
            one.

    Returns:
        A pipeline on the CPU.

    Raises:
        DenoiserError: If the folder holds no ShapeWorld model, or the package was installed without its weights.

    Example:
        >>> pipe = load_shapeworld()
        >>> frames = pipe("a red circle moves left on a black background").frames[0]
    """
    if model is not None:
        return _class_in(Path(model)).from_pretrained(model, dtype=dtype, local_files_only=True)
    with as_file(WEIGHTS) as folder:
        if not (folder / "model_index.json").is_file():
            raise DenoiserError(
                f"The ShapeWorld weights are missing from {folder.name!r} in the installed package. "
                "Reinstall it, or train them with `python -m unlearning_adapters.shapeworld.training.wan`."
            )
        pipe = WanPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
    pipe.register_to_config(_name_or_path=NAME)  # what adapters call their base, in place of a folder of this machine
    return pipe


def _class_in(folder: Path) -> Any:
    """Return the class of the model in a folder, with the call arguments of ShapeWorld models as defaults."""
    if not (folder / "model_index.json").is_file():
        raise DenoiserError(f"{str(folder)!r} holds no pipeline: there is no model_index.json. Give another folder.")
    name = str(DiffusionPipeline.load_config(folder)["_class_name"])
    if name not in CLASSES:
        raise DenoiserError(
            f"{str(folder)!r} holds a {name}, and ShapeWorld models are {', '.join(CLASSES)}. "
            "Load it with diffusers' `from_pretrained`."
        )
    return getattr(import_module(f".{CLASSES[name]}", __package__), name)
