"""Runs inside of DiffSynth-Studio's environment: its WanModel, and its loader as `pipe.load_lora` calls it.

python diffsynth.py "" JOBS.json
"""

import contextlib
import io
import json
import sys
from pathlib import Path

import torch
from diffsynth.models.wan_video_dit import WanModel
from diffsynth.utils.lora.general import GeneralLoRALoader
from safetensors.torch import load_file, save_file

CONFIG = {
    "dim": 256, "in_dim": 16, "ffn_dim": 320, "out_dim": 16, "text_dim": 4096, "freq_dim": 256, "eps": 1e-6,
    "patch_size": (1, 2, 2), "num_heads": 2, "num_layers": 2, "has_image_input": False,
}  # fmt: skip


def load(model: WanModel, job: dict, sign: float) -> str:
    said = io.StringIO()
    loader = GeneralLoRALoader(device="cpu", torch_dtype=getattr(torch, job.get("dtype", "float32")))
    with contextlib.redirect_stdout(said):
        for file, alpha in job["loras"]:
            loader.fuse_lora_to_base_model(model, load_file(file), alpha=sign * alpha)
    return said.getvalue()


def apply(job: dict) -> dict:
    model = WanModel(**CONFIG)
    unknown = model.load_state_dict(load_file(job["weights"]), strict=False)
    model = model.to(getattr(torch, job.get("dtype", "float32")))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    said = load(model, job, 1.0)
    save_file({name: value.contiguous().clone() for name, value in model.state_dict().items()}, job["out"])
    save_file({name: value.contiguous() for name, value in before.items()}, job["out"] + ".before")
    load(model, job, -1.0)
    back = model.state_dict()
    off = sum(int((before[name] != back[name]).sum()) for name in before)
    return {"said": said, "unknown": list(unknown.unexpected_keys), "not_restored": off}


results = []
for each in json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")):
    results.append(apply(each))
Path(sys.argv[2]).with_suffix(".result.json").write_text(json.dumps(results), encoding="utf-8")
