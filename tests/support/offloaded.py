"""Ways to keep a denoiser's weights elsewhere between its calls, all of which run without an accelerator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import accelerate
import torch
from diffusers import WanPipeline

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Offloading:
    """A way to offload.

    Args:
        name: Name for the tests.
        enable: Offloads a pipeline's denoiser; the folder is for files.
        on_meta: Whether the layer's own weights are on the meta device between calls.
        in_file: Whether they are kept in a file, where they cannot be edited.
        removable: Whether `pipe.remove_all_hooks()` ends it.
    """

    name: str
    enable: Callable[[WanPipeline, Path], None]
    on_meta: bool = False
    in_file: bool = False
    removable: bool = True


def _sequential(pipe: WanPipeline, _folder: Path) -> None:
    """As `pipe.enable_sequential_cpu_offload()` does, which insists on an accelerator."""
    accelerate.cpu_offload(pipe.transformer, CPU)


def _model(pipe: WanPipeline, _folder: Path) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def _disk(pipe: WanPipeline, folder: Path) -> None:
    accelerate.disk_offload(pipe.transformer, folder, execution_device=CPU)


def _mapped(pipe: WanPipeline, folder: Path) -> None:
    """Half of the blocks in memory, half on disk, as with `device_map` for a model that does not fit."""
    places = {name: "cpu" for name, _ in pipe.transformer.named_children() if name != "blocks"}
    places.update({"scale_shift_table": "cpu", "blocks.0": "cpu", "blocks.1": "disk"})
    accelerate.dispatch_model(pipe.transformer, places, main_device="cpu", offload_dir=folder, force_hooks=True)


def _group(pipe: WanPipeline, folder: Path, level: str, in_file: bool = False, **options: object) -> None:
    if level == "block_level":
        options["num_blocks_per_group"] = 1
    if in_file:
        options["offload_to_disk_path"] = str(folder)
    pipe.transformer.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type=level, **options)


OFFLOADINGS = [
    Offloading("sequential", _sequential, on_meta=True),
    Offloading("model", _model),
    Offloading("disk", _disk, on_meta=True, in_file=True),
    Offloading("device-map", _mapped, on_meta=True, in_file=True),
    Offloading("group-block", partial(_group, level="block_level"), removable=False),
    Offloading("group-leaf", partial(_group, level="leaf_level"), removable=False),
    Offloading("group-low-memory", partial(_group, level="leaf_level", low_cpu_mem_usage=True), removable=False),
    Offloading("group-block-file", partial(_group, level="block_level", in_file=True), in_file=True, removable=False),
    Offloading("group-leaf-file", partial(_group, level="leaf_level", in_file=True), in_file=True, removable=False),
]
