"""Other LoRAs in the file of an export: what they add to a layer reads the edited input.

With the edit `x' = x - M A x` of a layer and a LoRA `dW = s B_s A_s` on it, the layer gives `(W + dW) x'`. So the file
has `A_s` below `A`, and beside `B_s` the edit as it acts on both weights, `-(W + dW) M`. Were the two files loaded one
after the other, engines would add `dW x` of the unedited input, and a LoRA could bring the concept back.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from unlearning_adapters.errors import AdapterFileError, ConfigError

from .engines import ENGINES
from .layouts.fused_layers import Factors
from .names.families import family_of
from .names.header import read_any_header
from .reading import read_keys

_LINEAR1 = 4


def read_lora(file: str | Path, denoiser: str, scale: float = 1.0) -> dict[str, Factors]:
    """Return the factors of a LoRA file of others by the layers of diffusers, its alphas and a scale in them.

    Args:
        file: A safetensors file with names of diffusers, of the first releases, or of kohya.
        denoiser: Class name of the denoiser that it is for.
        scale: What multiplies it.

    Returns:
        `lora_A`, shape (r, in_features), and `scale * alpha / r * lora_B`, shape (out_features, r), in float32.

    Raises:
        AdapterNotFoundError: If there is no such file.
        AdapterFileError: If it is not safetensors, or a tensor in it is not understood.
        ConfigError: If the denoiser is of no known family.
    """
    path, family = Path(file), family_of(denoiser)
    if family is None:
        raise ConfigError(f"No names of LoRA layers are known for {denoiser or 'an unknown denoiser'}.")
    header = read_any_header(path)
    layers = _layers_in(tuple(header.shapes), family, path)
    tensors = load_file(path)
    factors: dict[str, Factors] = {}
    for layer, (paths, suffixes) in layers.items():
        lora_A, lora_B = (tensors[layer + suffix].float() for suffix in suffixes)
        alpha = tensors.get(f"{layer}.alpha")
        amount = scale * (float(alpha) / len(lora_A) if alpha is not None else 1.0)
        for part, rows in zip(paths, _rows_of(paths, lora_A, lora_B), strict=True):
            if rows.any():
                factors[part] = lora_A, amount * rows
    return factors


def _layers_in(names: tuple[str, ...], family: str, path: Path) -> dict[str, tuple[tuple[str, ...], tuple[str, str]]]:
    """Return for each layer of a file the layers of diffusers that it is, and how its factors are called."""
    for engine in (ENGINES["diffusers"], ENGINES["comfyui"], ENGINES["sglang"]):
        reads = engine.reads.get(family)
        if reads is None:
            continue
        reading = read_keys(engine, family, reads, names)
        if reading.dropped:
            continue
        layers = {}
        for down, up in engine.suffixes:
            for name in names:
                if name.endswith(down):
                    layer = name.removesuffix(down)
                    one = read_keys(engine, family, reads, [n for n in names if n in (name, layer + up)])
                    layers[layer] = one.layers, (down, up)
        return layers
    reads = ENGINES["diffusers"].reads[family]
    first, why = next(iter(read_keys(ENGINES["diffusers"], family, reads, names).dropped.items()))
    raise AdapterFileError(
        f"{str(path)!r} has the tensor {first!r}, which is not a LoRA factor of a known layer of {family} ({why}). "
        "Give a LoRA with names of diffusers, of the first release, or of kohya."
    )


def _rows_of(paths: tuple[str, ...], lora_A: Tensor, lora_B: Tensor) -> tuple[Tensor, ...]:
    """Return the rows of B that belong to each of the layers that one layer of the file is."""
    if len(paths) < _LINEAR1:
        return tuple(lora_B.chunk(len(paths)))
    width = int(lora_A.shape[1])
    return tuple(lora_B.split([width] * (_LINEAR1 - 1) + [len(lora_B) - (_LINEAR1 - 1) * width]))


def with_style(
    edit: Mapping[str, Factors], mixes: Mapping[str, Tensor], style: Mapping[str, Factors]
) -> dict[str, Factors]:
    """Return the factors of an edit and a LoRA together, the LoRA reading the edited input.

    `lora_A = [A; A_s]`, `lora_B = [-(W M) - B_s (A_s M), B_s]`.

    Args:
        edit: The factors of the edit by layer, `A` and `-(W M)`.
        mixes: `M` of each of these layers, shape (in_features, m).
        style: The factors of the LoRA by layer, its scale in `B_s`.

    Returns:
        Factors by layer, for the layers of both.
    """
    both = dict(edit)
    for path, (style_A, style_B) in style.items():
        if path not in edit:
            both[path] = style_A, style_B
            continue
        lora_A, lora_B = edit[path]
        if lora_A.shape[1] != style_A.shape[1] or len(lora_B) != len(style_B):
            raise ConfigError(
                f"The LoRA is for {path} of shape {(len(style_B), style_A.shape[1])}, and the adapter for "
                f"{(len(lora_B), lora_A.shape[1])}. Give a LoRA of the same model."
            )
        again = (style_B.double() @ (style_A.double() @ mixes[path].double())).float()
        both[path] = torch.cat([lora_A, style_A]), torch.cat([lora_B - again, style_B], dim=1)
    return both
