"""A LoRA on disk: one safetensors file, or PEFT's folder with its configuration."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearning_adapters.adapter.draft import write_whole
from unlearning_adapters.adapter.file import file_at
from unlearning_adapters.adapter.header import encode_lora_header
from unlearning_adapters.errors import AdapterFileError

from .layouts.fused_layers import Factors
from .layouts.layout import Layout

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_NO_WORD = re.compile(r"[^A-Za-z0-9.-]+")


def lora_name(concepts: Sequence[str], expert: str) -> str:
    """Return the name of a file that tells people what is in it.

    Args:
        concepts: Concept of each adapter; several were solved jointly, which the name says.
        expert: "high_noise" or "low_noise", or "" for a model with one denoiser.

    Example:
        >>> lora_name(["red", "left"], "high_noise")
        'without-red-left-joint_high_noise.safetensors'
    """
    words = [_NO_WORD.sub("-", concept).strip("-.") or "concept" for concept in concepts]
    joint = ["joint"] if len(words) > 1 else []
    return "-".join(["without", *words[:4], *joint])[:120] + (f"_{expert}" if expert else "") + ".safetensors"


def place_of(destination: str | Path, layout: Layout, name: str | None) -> Path:
    """Return the path of the file to write.

    Args:
        destination: What the user gives: a file, or a folder.
        layout: The layout; that of PEFT needs a folder.
        name: Name of the file in a folder, None for the one that diffusers looks for.

    Raises:
        AdapterFileError: If something is there already, or the destination is of another kind.
    """
    path = Path(destination)
    if layout.folder:
        if path.suffix == ".safetensors":
            raise AdapterFileError(f"The layout {layout.name!r} is a folder, and {str(path)!r} a file. Name a folder.")
        path = path / PEFT_FILE
    else:
        path = path / name if name is not None and path.suffix != ".safetensors" else file_at(path)
    for each in (path, *([path.with_name(PEFT_CONFIG)] if layout.folder else [])):
        if each.exists():
            raise AdapterFileError(f"{str(each)!r} exists already and was not changed. Choose another folder or file.")
    return path


def named_tensors(factors: Mapping[str, Factors], suffixes: tuple[str, str]) -> tuple[dict[str, Tensor], int]:
    """Return the file's tensors, padded with zeros to one rank: diffusers of before August 2026 needs one."""
    rank = max(len(lora_A) for lora_A, _ in factors.values())
    tensors: dict[str, Tensor] = {}
    for layer, (lora_A, lora_B) in factors.items():
        missing = rank - len(lora_A)
        tensors[layer + suffixes[0]] = torch.nn.functional.pad(lora_A, (0, 0, 0, missing)).contiguous()
        tensors[layer + suffixes[1]] = torch.nn.functional.pad(lora_B, (0, missing)).contiguous()
    return tensors, rank


def write_lora(
    path: Path, layout: Layout, factors: Mapping[str, Factors], record: Mapping[str, Any]
) -> tuple[int, tuple[str, ...]]:
    """Write a LoRA in float32, and return its rank and the names of its tensors.

    Args:
        path: The file, at which nothing is.
        layout: How it names its tensors.
        factors: Factors by the names of its layers.
        record: What it is made of.
    """
    tensors, rank = named_tensors(factors, layout.suffixes)
    shapes = {name: (int(tensor.shape[0]), int(tensor.shape[1])) for name, tensor in tensors.items()}
    data = b"".join(tensors[name].numpy().astype("<f4", copy=False).tobytes() for name in sorted(tensors))
    write_whole(path, encode_lora_header(record, shapes) + data)
    if layout.folder:
        layers = sorted(layer.removeprefix("base_model.model.") for layer in factors)
        config = {
            "base_model_name_or_path": record["base_model"] or None,
            "bias": "none",
            "lora_alpha": rank,  # the factors hold their scale, so that alpha / r has to be 1
            "lora_dropout": 0.0,
            "peft_type": "LORA",
            "r": rank,
            "target_modules": layers,
            "task_type": None,
        }
        write_whole(path.with_name(PEFT_CONFIG), (json.dumps(config, indent=2) + "\n").encode())
    return rank, tuple(tensors)
