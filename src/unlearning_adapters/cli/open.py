"""Opens what the command line names: pipelines, suites and measured results."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from unlearning_adapters.adapter.missing import why_unreadable
from unlearning_adapters.errors import ConfigError, UnlearningError

SHAPEWORLD, CASTWORLD = "shapeworld", "castworld"
# Models by the name of their loader; that of CastWorld lies in a checkout.
LOADERS = {
    SHAPEWORLD: "unlearning_adapters.shapeworld.models.load:load_shapeworld",
    "shapeworld-language": "unlearning_adapters.shapeworld.models.language_model:load_shapeworld_language",
    CASTWORLD: "unlearning_adapters.shapeworld.models.cast:load_castworld",
}
CLIPS = 24  # prompts of each set of ShapeWorld and CastWorld
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
FILMS = (".mp4", ".gif")


def open_pipeline(source: str, dtype: str | None = None, device: str | None = None) -> Any:
    """Return a pipeline.

    Args:
        source: "shapeworld", "shapeworld-language" or "castworld", a local folder, or a Hub repository.
        dtype: Number type of its weights; None takes float32 for these three and on a CPU, otherwise bfloat16.
        device: Where it runs, such as "cuda"; None takes a GPU if there is one.

    Raises:
        ConfigError: If it cannot be opened, or there is no such device.
    """
    import torch

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    wide = source in LOADERS or place.startswith("cpu")
    try:
        return _load_pipeline(source, getattr(torch, dtype or ("float32" if wide else "bfloat16"))).to(place)
    except UnlearningError:
        raise
    except Exception as error:  # diffusers and the Hub's client have errors of a dozen kinds for the same thing
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"Cannot open the pipeline {source!r} on {place!r}: {reason[:240].rstrip('.')}. "
            "Give 'shapeworld', 'castworld', a folder in diffusers' layout, or a Hub repository 'org/name'."
        ) from error


def opened(value: Any) -> Any:
    """Return the picture, or the frames of the clip, that a value names; any other value as it is."""
    suffix = Path(value).suffix.lower() if isinstance(value, str) else ""
    if suffix not in (*PICTURES, *FILMS):
        return value
    if reason := why_unreadable(Path(value)):
        raise ConfigError(f"--call names the file {value!r}, but {reason}. Check the path.")
    from diffusers.utils import load_image, load_video

    try:
        return load_image(value) if suffix in PICTURES else load_video(value)
    except Exception as error:  # PIL's and imageio's, of a dozen kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"--call names {value!r}, which cannot be opened ({reason[:200]}). Check the file."
        ) from error


def open_suite(source: Any, clips: int | None = None) -> Any:
    """Return the suite of a concept, or the one that `--suite` names.

    Args:
        source: A `Concept`, its name, or what `--suite` takes.
        clips: Prompts of each set at most; None takes all, and 24 on ShapeWorld and CastWorld.
    """
    from unlearning_adapters.evaluation.suites.file import read_suite
    from unlearning_adapters.evaluation.suites.suite import Suite
    from unlearning_adapters.evaluation.suites.world import SEED
    from unlearning_adapters.evaluation.suites.worlds import find_value

    if known := find_value(getattr(source, "name", source)):
        world, value = known
        return world.suite(value, clips or CLIPS, SEED)
    suite = read_suite(source) if isinstance(source, str) else Suite.from_concept(source)
    return suite if clips is None else suite.limited(clips)


def read_result(path: str) -> Any:
    """Return the content of a result.json.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"Cannot read the measured result {path!r}: {error}. Give a result.json.") from error


def _load_pipeline(source: str, dtype: Any) -> Any:
    from diffusers import DiffusionPipeline

    if source in LOADERS:
        module, _, name = LOADERS[source].partition(":")
        return getattr(import_module(module), name)(dtype)
    folder = Path(source)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise ConfigError(f"{source!r} holds no pipeline in diffusers' layout: there is no model_index.json in it.")
    return DiffusionPipeline.from_pretrained(source, dtype=dtype)
