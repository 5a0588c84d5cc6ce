"""Runs inside of sglang's or FastVideo's environment: their maps of names, and what they do with layers that they fuse.

    python served.py PACKAGE JOBS.json

Their pipelines need a GPU, so that the functions are taken out of their files; what these import besides is stood in
for. A key is read if it ends at a layer that the checkpoint of the model has, and that LoRAs are not kept from.
"""

import ast
import importlib.util
import json
import logging
import re
import sys
import sysconfig
import types
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

PACKAGE = sys.argv[1]
BASE = Path(sysconfig.get_paths()["purelib"]) / PACKAGE / ("multimodal_gen" if PACKAGE == "sglang" else "")
ROOT = "sglang.multimodal_gen" if PACKAGE == "sglang" else "fastvideo"
CONFIGS = {"wan": ("wanvideo", "WanVideoArchConfig"), "hunyuan-video": ("hunyuanvideo", "HunyuanVideoArchConfig"),
           "hunyuan-video-1.5": ("hunyuanvideo15", "HunyuanVideo15ArchConfig"),
           "kandinsky-5": ("kandinsky5", "Kandinsky5ArchConfig")}  # fmt: skip


@dataclass
class DiTArchConfig:
    param_names_mapping: dict = field(default_factory=dict)
    lora_param_names_mapping: dict = field(default_factory=dict)
    exclude_lora_layers: list = field(default_factory=list)

    def __post_init__(self) -> None:
        pass


class DiTConfig:
    pass


class Named(type):
    """A class whose attributes are their own names, for an enumeration that is not asked."""

    def __getattr__(cls, name: str) -> str:
        return name


def stand_in(name: str, **values: Any) -> None:
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
    sys.modules[name].__dict__.update(values)


def module(path: str, name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, BASE / path)
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


def functions(path: str, *names: str, **values: Any) -> dict[str, Any]:
    """Take functions out of a file of the package, without its imports."""
    tree = ast.parse((BASE / path).read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    space = {"re": re, "torch": torch, "Any": Any, "Callable": Callable, "Hashable": Hashable, "Iterator": Iterator,
             "Mapping": Mapping, **values}  # fmt: skip
    exec(compile(tree, path, "exec"), space)
    return space


for part in ("", ".configs", ".configs.models", ".configs.models.dits", ".runtime", ".runtime.pipelines_core",
             ".runtime.pipelines_core.lora", ".models", ".models.loader"):  # fmt: skip
    stand_in(f"{ROOT}{part}")
stand_in("sglang")
stand_in(f"{ROOT}.platforms", AttentionBackendEnum=Named("AttentionBackendEnum", (), {}))
stand_in(f"{ROOT}.logger", init_logger=logging.getLogger)
stand_in(f"{ROOT}.configs.models.dits.base", DiTArchConfig=DiTArchConfig, DiTConfig=DiTConfig)
LOADER = "runtime/loader/utils.py" if PACKAGE == "sglang" else "models/loader/utils.py"
mapping_of = functions(LOADER, "get_param_names_mapping")["get_param_names_mapping"]
if PACKAGE == "sglang":
    peft = module("runtime/pipelines_core/lora/peft_adapter.py", f"{ROOT}.runtime.pipelines_core.lora.peft_adapter")
    formats = module("runtime/pipelines_core/lora/format_adapter.py", f"{ROOT}.runtime.pipelines_core.lora.format")
    fused = functions(
        "runtime/pipelines_core/lora/pipeline.py", "stack_or_compose_fused_lora", "_store_fused_lora_groups",
        scale_fused_sections=peft.scale_fused_sections,
    )  # fmt: skip
else:
    patch = module("models/loader/lora_patch.py", "fastvideo.models.loader.lora_patch")


def targets(config: Any, state: dict[str, torch.Tensor]) -> dict[str, list[str]]:
    """Return what is kept for each layer, with the keys of the file that it came from, as their pipelines do it."""
    to_own, to_diffusers = mapping_of(config.param_names_mapping), mapping_of(config.lora_param_names_mapping)
    adapter: dict[str, torch.Tensor] = {}
    sources: dict[str, list[str]] = defaultdict(list)
    parts: dict[Hashable, dict[Any, Any]] = defaultdict(dict)
    if PACKAGE == "sglang":
        renamed = dict(zip(state, formats.normalize_lora_state_dict(dict(state)), strict=True))
    else:
        renamed = {key: patch.normalize_lora_key(key) for key in state}
    for key, name in renamed.items():
        if name is None:
            continue
        short = name.replace("diffusion_model.", "").replace(".weight", "")
        short = to_diffusers(short)[0]
        target, index, count = to_own(short)
        if index is not None:
            parts[target][index] = state[key]
            sources[target].append(key)
            continue
        adapter[target] = state[key]
        sources[target].append(key)
    if PACKAGE == "sglang":
        fused["_store_fused_lora_groups"](adapter, parts, None, "cpu")
    return {target: sources[target] for target in adapter}


def read(job: dict) -> dict:
    file, name = CONFIGS[job["family"]]
    config = getattr(module(f"configs/models/dits/{file}.py", f"{ROOT}.configs.models.dits.{file}"), name)()
    to_own = mapping_of(config.param_names_mapping)
    layers = {to_own(f"{path}.weight")[0].removesuffix(".weight") for path in job["layers"]}
    layers = {layer for layer in layers if not any(part in layer for part in config.exclude_lora_layers)}
    state = {name: torch.zeros(shape) for name, shape in job["keys"].items()}
    kept = targets(config, state)
    found: list[str] = []
    for layer in layers:
        both = [f"{layer}.lora_A", f"{layer}.lora_B"]
        if all(name in kept for name in both):
            found += [key for name in both for key in kept[name]]
    return {"read": sorted(found)}


results = [read(each) for each in json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))]
Path(sys.argv[2]).with_suffix(".result.json").write_text(json.dumps(results), encoding="utf-8")
