"""The layers of a model, from its folder or a list of their names; imports no torch."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unlearning_adapters.errors import AdapterNotFoundError, ConfigError

from .families import FAMILIES
from .header import read_any_header

_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.")
_INDEX = ".safetensors.index.json"


@dataclass(frozen=True)
class ModelLayers:
    """Names of the layers of a model.

    Args:
        raw: As the model names them.
        paths: As diffusers names them, as far as they have a name in its family.
    """

    raw: frozenset[str]
    paths: frozenset[str]

    def lacks(self, paths: Sequence[str]) -> str | None:
        """Return the first of these layers of diffusers that the model does not have."""
        return next((path for path in paths if path not in self.paths), None)

    def has_raw(self, path: str, underscores: bool = False) -> bool:
        """Whether the model has a layer of this name, or of one that is this name once its dots are underscores."""
        return path in (frozenset(name.replace(".", "_") for name in self.raw) if underscores else self.raw)


def model_layers(names: Iterable[str], family: str) -> ModelLayers:
    """Return the layers of a model of a family from the names of its weights.

    Args:
        names: Names of the weights, such as "blocks.0.cross_attn.k.weight", with or without the prefix of a checkpoint.
        family: Its family.
    """
    naming = FAMILIES[family].native
    raw = set()
    for name in names:
        prefix = next((each for each in _PREFIXES if name.startswith(each)), "")
        raw.add(name.removeprefix(prefix).removesuffix(".weight"))
    paths = {path for name in raw for path in (naming.layers(name) or (name,))}
    return ModelLayers(frozenset(raw), frozenset(paths))


def weights_at(model: str | Path) -> tuple[str, ...]:
    """Return the names of the weights of a model.

    Args:
        model: A folder with safetensors files or their index, one such file, or a JSON file with a list of names, or an
            object whose keys are the names.

    Raises:
        AdapterNotFoundError: If there is nothing of the kind.
        ConfigError: If the JSON file holds something else.
    """
    path = Path(model)
    if path.is_dir():
        return _weights_in(path)
    if not path.is_file():
        raise AdapterNotFoundError(f"No model at {str(path)!r}. Give its folder, a safetensors file or a list of keys.")
    if path.suffix == ".safetensors":
        return tuple(read_any_header(path).shapes)
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{str(path)!r} is not JSON ({error}). Give a list of the names of the weights.") from error
    keys = keys.get("weight_map", keys) if isinstance(keys, dict) else keys
    if not isinstance(keys, (list, dict)) or not all(isinstance(key, str) for key in keys):
        raise ConfigError(f"{str(path)!r} holds no list of names, nor an object with them as keys.")
    return tuple(keys)


def _weights_in(folder: Path) -> tuple[str, ...]:
    inner = folder / "transformer"
    folder = inner if inner.is_dir() else folder
    names: dict[str, None] = {}
    for index in sorted(folder.glob(f"*{_INDEX}")):
        names.update(dict.fromkeys(weights_at(index)))
    for file in sorted(folder.glob("*.safetensors")):
        names.update(dict.fromkeys(read_any_header(file).shapes))
    if not names:
        raise AdapterNotFoundError(f"No safetensors file in {str(folder)!r}. Give the folder of the denoiser.")
    return tuple(names)
