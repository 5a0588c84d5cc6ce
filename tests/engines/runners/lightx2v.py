"""Runs inside of LightX2V's environment: its loader on a dictionary of weights, as `LoraAdapter` calls it.

python lightx2v.py SOURCE JOBS.json
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SOURCE = Path(sys.argv[1])
spec = importlib.util.spec_from_file_location("lora_loader", SOURCE / "lightx2v" / "utils" / "lora_loader.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)


def apply(job: dict) -> dict:
    dtype = getattr(torch, job.get("dtype", "float32"))
    weights = {name: value.to(dtype) for name, value in load_file(job["weights"]).items()}
    save_file({name: value.clone() for name, value in weights.items()}, job["out"] + ".before")
    applied = 0
    for file, strength in job["loras"]:
        lora = {name: value.to(dtype) for name, value in load_file(file).items()}  # as `_load_lora_file` does
        applied += module.LoRALoader().apply_lora(weight_dict=weights, lora_weights=lora, strength=strength)
    save_file(weights, job["out"])
    return {"applied": applied}


results = [apply(each) for each in json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))]
Path(sys.argv[2]).with_suffix(".result.json").write_text(json.dumps(results), encoding="utf-8")
