"""Runs inside of mlx-video's environment: its loader and its merging, on a dictionary of weights, on a CPU.

python mlx_video.py "" JOBS.json
"""

import json
import sys
import sysconfig
import types
from pathlib import Path

# The package's own `__init__` imports its models and all that they need; its folder `lora` needs MLX alone.
PACKAGE = types.ModuleType("mlx_video")
PACKAGE.__path__ = [str(Path(sysconfig.get_paths()["purelib"]) / "mlx_video")]
sys.modules["mlx_video"] = PACKAGE

import mlx.core as mx  # noqa: E402
from mlx_video.lora import LoRAConfig, apply_loras_to_weights, load_multiple_loras  # noqa: E402

# Its model names the feed-forward so; `_normalize_wan_lora_key` does the same to the names of a file.
OWN = {".ffn.0.": ".ffn.fc1.", ".ffn.2.": ".ffn.fc2."}


def renamed(weights: dict, names: dict) -> dict:
    """Return weights with parts of their names replaced."""
    made = {}
    for name, value in weights.items():
        for old, new in names.items():
            name = name.replace(old, new)
        made[name] = value
    return made


def apply(job: dict) -> dict:
    dtype = getattr(mx, job.get("dtype", "float32"))
    weights = {name: value.astype(dtype) for name, value in renamed(mx.load(job["weights"]), OWN).items()}
    files = load_multiple_loras([LoRAConfig(path=Path(file), strength=strength) for file, strength in job["loras"]])
    after = apply_loras_to_weights(weights, files)
    for end, values in (("", after), (".before", weights)):
        mx.save_safetensors(job["out"] + end + ".safetensors", renamed(values, {new: old for old, new in OWN.items()}))
        Path(job["out"] + end + ".safetensors").rename(job["out"] + end)
    return {}


results = [apply(each) for each in json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))]
Path(sys.argv[2]).with_suffix(".result.json").write_text(json.dumps(results), encoding="utf-8")
