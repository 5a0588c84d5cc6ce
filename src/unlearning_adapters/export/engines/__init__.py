"""The engines that take LoRA files for video models. A further one is a file of this folder and a line of the table."""

from collections.abc import Mapping
from pathlib import Path

from unlearning_adapters.errors import ConfigError

from .comfyui import COMFYUI, KIJAI
from .diffsynth import DIFFSYNTH
from .diffusers import DIFFUSERS, XDIT
from .engine import Engine, Reads
from .fastvideo import FASTVIDEO
from .lightx2v import LIGHTX2V
from .ltx import LTX
from .mlx import MLX_GEN, MLX_VIDEO
from .sd_cpp import SD_CPP
from .sglang import SGLANG
from .tensorrt_llm import TENSORRT_LLM
from .vllm_omni import VLLM_OMNI, VLLM_OMNI_REQUEST
from .wan2gp import WAN2GP

__all__ = ["ENGINES", "Engine", "Reads", "engine_named", "instructions", "reads_of"]

ENGINES: Mapping[str, Engine] = {
    engine.name: engine
    for engine in (
        DIFFUSERS,
        COMFYUI,
        KIJAI,
        SGLANG,
        VLLM_OMNI,
        VLLM_OMNI_REQUEST,
        FASTVIDEO,
        DIFFSYNTH,
        LIGHTX2V,
        SD_CPP,
        WAN2GP,
        XDIT,
        TENSORRT_LLM,
        LTX,
        MLX_GEN,
        MLX_VIDEO,
    )
}
ALIASES = {"mlx": "mlx-video", "stable-diffusion.cpp": "sd.cpp"}


def engine_named(name: str) -> Engine:
    """Return an engine of the table.

    Raises:
        ConfigError: If there is none of this name.
    """
    engine = ENGINES.get(ALIASES.get(name, name)) if isinstance(name, str) else None
    if engine is None:
        raise ConfigError(f"Expected `engine` to be one of {', '.join(ENGINES)}, but got {name!r:.80}.")
    return engine


def reads_of(engine: Engine, family: str) -> Reads:
    """Return what an engine reads of a family.

    Raises:
        ConfigError: If it reads no LoRA of it.
    """
    reads = engine.reads.get(family)
    if reads is None:
        raise ConfigError(
            f"{engine.title} {engine.version} reads LoRA files of {', '.join(engine.reads)}, but none of {family} "
            f"({engine.lacks[family]}). Choose another engine, or write a fused checkpoint with export_fused."
        )
    return reads


def instructions(engine: Engine, reads: Reads, files: Mapping[str, Path], folder: bool = False) -> str:
    """Return the line, flag, JSON or node that loads files.

    Args:
        engine: The engine.
        reads: What it reads of the family.
        files: The files, by what users call the denoiser ("" if there is one).
        folder: Whether the folders of the files are what is loaded.
    """
    places = {expert: str(path.parent if folder else path) for expert, path in files.items()}
    return (reads.instructions or engine.instructions)(places)
