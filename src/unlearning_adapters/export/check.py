"""How much of a LoRA file on disk an engine reads; imports no torch."""

from pathlib import Path

from unlearning_adapters.adapter.missing import is_path
from unlearning_adapters.errors import ConfigError

from .engines import engine_named, reads_of
from .names.families import FAMILIES, family_of
from .names.header import read_any_header
from .names.model_layers import model_layers, weights_at
from .reading import Reading, guess_family, read_keys

_PEFT_FILE, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_STOCK_FILE = "pytorch_lora_weights.safetensors"


def check_lora(file: str | Path, *, engine: str, family: str | None = None, model: str | Path | None = None) -> Reading:
    """Return how much of a LoRA file an engine reads, from its header alone.

    Args:
        file: Any safetensors file, or a folder with a LoRA of PEFT or diffusers.
        engine: Name of the engine, one of `ENGINES`.
        family: Family of the model, such as "wan"; by default what the file's own record or its names say.
        model: The model, so that a layer that it lacks counts as not read: a folder with safetensors files, one such
            file, or a JSON file with the names of its weights.

    Returns:
        What is read, and why the rest is not.

    Raises:
        AdapterFileError: If it is not a safetensors file.
        AdapterNotFoundError: If there is no such file, or no model.
        ConfigError: If the engine or the family is unknown, or the engine serves no model of the family.

    Example:
        >>> check_lora("style.safetensors", engine="comfyui").summary
        '240 of 240 keys are read by ComfyUI 0.3.64'
    """
    program = engine_named(engine)
    for name, value in (("file", file), ("model", model)):
        if not is_path(value) and (value is not None or name == "file"):
            raise ConfigError(f"Expected `{name}` to be a path, but got {value!r:.80}.")
    path = _file_in(Path(file))
    header = read_any_header(path)
    model_family = family or family_of(header.denoiser or "") or guess_family(header.shapes)
    if not isinstance(model_family, str) or model_family not in FAMILIES:
        subject = (
            "is for no model whose layers are known" if model_family is None else f"cannot be for {model_family!r}"
        )
        raise ConfigError(f"{str(path)!r} {subject}. Name its family, one of {', '.join(FAMILIES)}.")
    reads = reads_of(program, model_family)
    layers = None if model is None else model_layers(weights_at(model), model_family)
    if reads.layouts == ("peft-folder",) and not (path.with_name(_PEFT_CONFIG).is_file() and path.name == _PEFT_FILE):
        why = f"it reads a folder with {_PEFT_CONFIG} and {_PEFT_FILE} alone"
        return Reading(program, model_family, (), dict.fromkeys(header.shapes, why), ())
    return read_keys(program, model_family, reads, header.shapes, layers)


def _file_in(path: Path) -> Path:
    """Return the file of a folder that holds the factors."""
    if path.is_dir():
        return next((path / name for name in (_PEFT_FILE, _STOCK_FILE) if (path / name).is_file()), path)
    return path
