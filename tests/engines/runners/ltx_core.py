"""Runs inside of ltx-core's environment: its loader, its map of names and its fusing, on a dictionary of weights.

python ltx_core.py "" JOBS.json
"""

import json
import sys
from pathlib import Path

import torch
from ltx_core.loader import LTXV_LORA_COMFY_RENAMING_MAP, LoraStateDictWithStrength, StateDict, apply_loras
from ltx_core.loader.sft_loader import SafetensorsStateDictLoader
from safetensors.torch import load_file, save_file

CPU = torch.device("cpu")


def apply(job: dict) -> dict:
    weights = {name: value.bfloat16() for name, value in load_file(job["weights"]).items()}
    model = StateDict(dict(weights), CPU, sum(value.nbytes for value in weights.values()), {torch.bfloat16})
    loader = SafetensorsStateDictLoader()
    loras = [
        LoraStateDictWithStrength(loader.load(file, sd_ops=LTXV_LORA_COMFY_RENAMING_MAP, device=CPU), strength)
        for file, strength in job["loras"]
    ]
    after = apply_loras(model, loras).sd
    save_file({name: value.contiguous() for name, value in after.items()}, job["out"])
    save_file(weights, job["out"] + ".before")
    return {"changed": sorted(name for name in weights if not torch.equal(after[name], weights[name]))}


results = [apply(each) for each in json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))]
Path(sys.argv[2]).with_suffix(".result.json").write_text(json.dumps(results), encoding="utf-8")
