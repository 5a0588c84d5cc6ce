"""Runs inside of mmgp's environment: `load_loras_into_model`, which Wan2GP calls, on layers with the release's names.

python wan2gp.py "" JOBS.json
"""

import json
import sys
from pathlib import Path

import torch
from mmgp import offload
from safetensors.torch import load_file, save_file


class Layers(torch.nn.Module):
    """The linear layers of a checkpoint under its names."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self._loras_model_data, self._loras_model_shortcuts = {}, {}
        for name, value in weights.items():
            if name.startswith("blocks.") and name.endswith(".weight") and value.ndim == 2:
                module: torch.nn.Module = self
                *parents, last = name.removesuffix(".weight").split(".")
                for part in parents:
                    if part not in module._modules:
                        module.add_module(part, torch.nn.Module())
                    module = module._modules[part]
                layer = torch.nn.Linear(value.shape[1], value.shape[0], bias=False)
                layer.weight.data = value
                module.add_module(last, layer)
                self._loras_model_data[layer] = {}


def apply(job: dict) -> dict:
    model = Layers(load_file(job["weights"]))
    names = {module: name for name, module in model.named_modules()}
    offload.load_loras_into_model(model, [file for file, _ in job["loras"]], [1.0 for _ in job["loras"]])
    errors = [str(error) for error in getattr(model, "_loras_errors", None) or []]
    after = {}
    for module, data in () if errors else model._loras_model_data.items():
        for entry in data.values():
            lora_A, lora_B = entry[0], entry[1]
            after[f"{names[module]}.weight"] = module.weight.data + lora_B @ lora_A
    save_file({**load_file(job["weights"]), **after}, job["out"])
    return {"layers": len(after), "errors": errors}


results = [apply(each) for each in json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))]
Path(sys.argv[2]).with_suffix(".result.json").write_text(json.dumps(results), encoding="utf-8")
