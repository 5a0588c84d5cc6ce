"""`NeutralCache`: what text sites read of neutral prompts, on disk, so that later builds need not run them again.

A folder belongs to one base, one set of sites and one set of settings. The cache of another base raises an error.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unlearning_adapters.errors import ConfigError
from unlearning_adapters.pipelines.activations import Recording
from unlearning_adapters.pipelines.base_model import base_model_of, base_revision_of
from unlearning_adapters.pipelines.sites import Site, denoisers

CACHE_NAME = "neutral.safetensors"
FORMAT = "unlearning-adapters neutral cache 1"
VALUES_PER_WEIGHT = 16  # that tell a base from its fine-tunes, which change all weights


class NeutralCache:
    """Neutral prompts that were recorded, in `neutral.safetensors` of a folder.

    Args:
        folder: The folder; it is made when something is written.

    Example:
        >>> adapter = build_adapter(pipe, concept, neutral_cache="neutral-wan")  # records the prompts, and keeps them
        >>> other = build_adapter(pipe, other_concept, neutral_cache="neutral-wan")  # only those that are missing
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        if not isinstance(folder, (str, os.PathLike)) or not str(folder).strip():
            raise ConfigError(f"Expected `neutral_cache` to be a folder, but got {folder!r:.80}.")
        self.file = Path(folder) / CACHE_NAME
        if Path(folder).exists() and not Path(folder).is_dir():
            raise ConfigError(f"Expected `neutral_cache` to be a folder, but {str(folder)!r:.300} is a file.")

    def read(self, made: Mapping[str, Any]) -> dict[str, Recording]:
        """Return the recording of each prompt; none if there is no cache yet.

        Args:
            made: With what this build records (`made_with`).

        Raises:
            ConfigError: If the cache is of another base or other settings, or no cache.
        """
        if not self.file.exists():
            return {}
        try:
            with safe_open(self.file, framework="pt") as tensors:
                header = tensors.metadata() or {}
                if header.get("format") != FORMAT:
                    raise ConfigError(f"{str(self.file)!r:.300} is not a neutral cache. {_CURE}")
                self._check(json.loads(header["made_with"]), made)
                prompts, groups = json.loads(header["prompts"]), json.loads(header["groups"])
                names = sorted(tensors.keys(), key=lambda name: int(name.rpartition(".")[2]))
                rows, lengths = (
                    [tensors.get_tensor(name) for name in names if name.startswith(part)]
                    for part in ("rows", "lengths")
                )
            return _parted(prompts, groups, rows, lengths, header["padded"] == "true")
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
            if isinstance(error, ConfigError):
                raise
            reason = " ".join(str(error).split())
            raise ConfigError(f"The neutral cache {str(self.file)!r:.300} cannot be read: {reason}. {_CURE}") from error

    def write(self, made: Mapping[str, Any], held: Mapping[str, Recording]) -> None:
        """Write the recording of each prompt, in place of what was there.

        Args:
            made: With what they were recorded.
            held: A recording of each prompt alone, all of the same sites.
        """
        first = next(iter(held.values()))
        tensors = {}
        for group in range(len(first.rows)):
            rows = [each.rows[group][0] for each in held.values()]
            tensors[f"rows.{group}"] = torch.cat(rows)
            tensors[f"lengths.{group}"] = torch.tensor([len(part) for part in rows], dtype=torch.int64, device="cpu")
        header = {
            "format": FORMAT,
            "made_with": json.dumps(made),
            "prompts": json.dumps(list(held)),
            "groups": json.dumps(dict(first.groups)),
            "padded": json.dumps(any(each.padded for each in held.values())),
        }
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=self.file.parent, suffix=".part", delete=False) as part:
                pass
            try:
                save_file(tensors, part.name, header)
                Path(part.name).replace(self.file)  # at once: another build may read it
            finally:
                Path(part.name).unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"Cannot write the neutral cache {str(self.file)!r:.300}: {error}. Choose another folder."
            ) from error

    def _check(self, held: Mapping[str, Any], made: Mapping[str, Any]) -> None:
        for name in dict.fromkeys((*made, *held)):
            if held.get(name) != made.get(name):
                raise ConfigError(
                    f"The neutral cache {str(self.file)!r:.300} is stale: its {name} is {_short(held.get(name))}, and "
                    f"here it is {_short(made.get(name))}. {_CURE}"
                )


_CURE = "Delete it, or give another folder."


def made_with(pipe: Any, sites: Sequence[Site], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return all on which it depends what sites read of a prompt, as plain JSON types.

    Args:
        pipe: A diffusers pipeline.
        sites: The sites.
        settings: Settings of the recording.

    Raises:
        ConfigError: If a setting is more than numbers and texts, so that it cannot be kept.
    """
    networks = denoisers(pipe)
    try:
        plain = json.loads(json.dumps(dict(settings), sort_keys=True))
    except TypeError as error:
        raise ConfigError(
            "A neutral cache keeps settings of numbers and texts, and `call_kwargs` hold more than that. Leave "
            "`neutral_cache` out."
        ) from error
    return {
        "base": base_model_of(pipe),
        "revision": base_revision_of(next(iter(networks.values()))),
        "pipeline": type(pipe).__name__,
        "sites": [site.name for site in sites],
        **{f"setting {name!r}": value for name, value in plain.items()},
        "weights": _fingerprint(pipe, sites),
    }


def _fingerprint(pipe: Any, sites: Sequence[Site]) -> str:
    """Return a digest of a few values of each weight that text passes on its way to the sites, and their dtypes.

    The weights of the sites themselves are left out, in which an adapter or a LoRA may be fused, and what LoRAs add.
    """
    digest = hashlib.sha256()
    prefixes = {f"{site.name}." for site in sites}
    networks = denoisers(pipe)
    for component, module in sorted(pipe.components.items()):
        if not isinstance(module, nn.Module) or not (component in networks or component.startswith("text_encoder")):
            continue
        for path, weight in module.named_parameters():
            name = f"{component}.{path}".replace(".base_layer", "").replace("._orig_mod", "")
            if "lora_" in name or any(name.startswith(site) for site in prefixes):
                continue
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(_some_values(weight.detach()))
    return digest.hexdigest()


def _some_values(weight: Tensor) -> bytes:
    if weight.is_meta or type(weight.data) is not Tensor or not weight.numel():
        return b""  # offloaded or quantised: its name, dtype and shape are all that is compared
    step = max(1, weight.numel() // VALUES_PER_WEIGHT)
    flat = weight.as_strided((weight.numel(),), (1,)) if weight.is_contiguous() else weight.reshape(-1)
    return flat[::step].to("cpu", torch.float64).numpy().tobytes()


def _parted(
    prompts: Sequence[str], groups: Mapping[str, int], rows: Sequence[Tensor], lengths: Sequence[Tensor], padded: bool
) -> dict[str, Recording]:
    parts = [each.split(counts.tolist()) for each, counts in zip(rows, lengths, strict=True)]
    if any(len(part) != len(prompts) for part in parts) or set(groups.values()) != set(range(len(parts))):
        raise ValueError("its parts do not fit")
    if any(each.dtype != torch.float32 or not bool(torch.isfinite(each).all()) for each in rows):
        raise ValueError("its rows are not finite numbers in float32")
    return {
        prompt: Recording(tuple((part[index],) for part in parts), dict(groups), padded=padded)
        for index, prompt in enumerate(prompts)
    }


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
