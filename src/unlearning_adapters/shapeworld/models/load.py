"""Load the ShapeWorld pipeline that ships with the package."""

from importlib.resources import as_file, files
from typing import Any

import torch
from diffusers import DiffusionPipeline

from unlearning_adapters.errors import DenoiserError

NAME = "shapeworld"
WEIGHTS = files(__package__) / "weights"


def load_shapeworld(dtype: torch.dtype = torch.float32) -> Any:
    """Return the embedded text-to-video pipeline, a `WanPipeline` in diffusers' own folder layout.

    Call it as `pipe(prompt, **GENERATION)`; a clip has 9 frames of 64 x 64 pixels and takes about a second on a CPU.

    Args:
        dtype: Number type of the weights; the file holds float16.

    Returns:
        A `WanPipeline` on the CPU.

    Raises:
        DenoiserError: If the package was installed without its weights.

    Example:
        >>> pipe = load_shapeworld()
        >>> frames = pipe("a red circle moves left on a black background", **GENERATION).frames[0]
    """
    with as_file(WEIGHTS) as folder:
        if not (folder / "model_index.json").is_file():
            raise DenoiserError(
                f"The ShapeWorld weights are missing from {folder.name!r} in the installed package. "
                "Reinstall it, or train them with `python -m unlearning_adapters.shapeworld.training.wan`."
            )
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
    pipe.register_to_config(_name_or_path=NAME)  # what adapters call their base, in place of a folder of this machine
    return pipe
