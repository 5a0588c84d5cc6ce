"""Runs inside of vLLM-Omni's environment: its loader of start-up LoRAs, on linear layers with the names of its Wan.

    python vllm_omni.py "" JOBS.json

What the loader's file imports of vLLM and of the rest of vLLM-Omni is stood in for; the loader is its own.
"""

import importlib.util
import json
import logging
import sys
import sysconfig
import types
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

STAND_INS = {
    "vllm": {}, "vllm.logger": {"init_logger": logging.getLogger}, "vllm_omni": {}, "vllm_omni.diffusion": {},
    "vllm_omni.diffusion.distributed": {},
    "vllm_omni.diffusion.distributed.utils": {"get_local_device": lambda: torch.device("cpu")},
    "vllm_omni.diffusion.utils": {},
    "vllm_omni.diffusion.utils.tf_utils": {
        "get_transformer_from_pipeline": lambda pipe, transformer_name="transformer": getattr(pipe, transformer_name)
    },
    "vllm_omni.transformers_utils": {}, "vllm_omni.transformers_utils.repo_utils": {"hf_api": None},
}  # fmt: skip
for name, values in STAND_INS.items():
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__dict__.update(values)
path = Path(sysconfig.get_paths()["purelib"]) / "vllm_omni" / "diffusion" / "lora" / "loader.py"
spec = importlib.util.spec_from_file_location("vllm_omni.diffusion.lora.loader", path)
loader = importlib.util.module_from_spec(spec)
spec.loader.exec_module(loader)


class Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


# As `WanTransformer3DModel.load_weights` of vLLM-Omni has it.
STACKED = [(".attn1.to_qkv", f".attn1.to_{leaf}", leaf) for leaf in "qkv"]
RENAMED = ((".ffn.net.0.", ".ffn.net_0."), (".ffn.net.2.", ".ffn.net_2."), (".to_out.0.", ".to_out."))


class Layers(torch.nn.Module):
    """Linear layers under the names that they have in vLLM-Omni's Wan, from weights by the names of diffusers."""

    def __init__(self, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.stacked_params_mapping = STACKED
        self.names: dict[str, list[str]] = {}
        for name in weights:
            if name.startswith("blocks.") and name.endswith(".weight") and weights[name].ndim == 2:
                own = name
                for ours, theirs in RENAMED:
                    own = own.replace(ours, theirs)
                for packed, part, _ in STACKED:
                    own = own.replace(f"{part}.", f"{packed}.")
                self.names.setdefault(own.removesuffix(".weight"), []).append(name)
        for own, names in self.names.items():
            value = torch.cat([weights[name] for name in sorted(names, key=_leaf)])
            module: torch.nn.Module = self
            *parents, last = own.split(".")
            for part in parents:
                if part not in module._modules:
                    module.add_module(part, torch.nn.Module())
                module = module._modules[part]
            layer = torch.nn.Linear(value.shape[1], value.shape[0], bias=False, dtype=dtype)
            layer.weight.data = value.to(dtype)
            module.add_module(last, layer)

    def by_diffusers_names(self) -> dict[str, torch.Tensor]:
        found = {}
        for own, names in self.names.items():
            ordered = sorted(names, key=_leaf)
            for name, value in zip(ordered, self.get_submodule(own).weight.data.chunk(len(names)), strict=True):
                found[name] = value.clone()
        return found


def _leaf(name: str) -> int:
    return "qkv".find(name.split(".to_")[-1][0])


class Wan22Pipeline(loader.WanLoraLoaderMixin):
    def __init__(self, **models: torch.nn.Module) -> None:
        self.__dict__.update(models)
        self.has_transformer_2 = "transformer_2" in models


def apply(job: dict) -> dict:
    dtype = getattr(torch, job.get("dtype", "float32"))
    files = job["weights"] if isinstance(job["weights"], list) else [job["weights"]]
    names = ["transformer", "transformer_2"][: len(files)]
    pipe = Wan22Pipeline(**{name: Layers(load_file(file), dtype) for name, file in zip(names, files, strict=True)})
    before = {name: getattr(pipe, name).by_diffusers_names() for name in names}
    handler = Messages()
    loader.logger.addHandler(handler)
    loras = [file for file, _ in job["loras"]]
    pipe.load_lora_weights(loras if len(files) > 1 else loras[0], adapter_name="unlearn")
    loader.logger.removeHandler(handler)
    for name in names:
        out = job["out"] + ("" if name == "transformer" else ".second")
        save_file(getattr(pipe, name).by_diffusers_names(), out)
        save_file(before[name], out + ".before")
    pipe.unload_lora_weights("unlearn")
    off = sum(
        int((value != after).sum())
        for name in names
        for value, after in zip(before[name].values(), getattr(pipe, name).by_diffusers_names().values(), strict=True)
    )  # fmt: skip
    return {"messages": handler.lines, "not_restored": off}


results = [apply(each) for each in json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))]
Path(sys.argv[2]).with_suffix(".result.json").write_text(json.dumps(results), encoding="utf-8")
