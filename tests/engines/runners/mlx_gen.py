"""Runs inside of mlx-gen's environment: its map of names of Wan, and its loader's matching, on a CPU.

python mlx_gen.py "" JOBS.json

A key is read if it matches a pattern of a layer whose other factor matches too.
"""

import json
import sys
import sysconfig
import types
from collections import defaultdict
from pathlib import Path

# The packages' own `__init__` import all models; these modules need MLX alone.
FOLDER = Path(sysconfig.get_paths()["purelib"])
for name in ("mflux", "mflux.models", "mflux.models.common", "mflux.models.common.lora", "mflux.models.wan",
             "mflux.models.common.lora.mapping", "mflux.models.wan.weights", "mflux.models.common.resolution",
             "mflux.models.common.lora.layer"):  # fmt: skip
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(FOLDER / name.replace(".", "/"))]
resolution = types.ModuleType("mflux.models.common.resolution.lora_resolution")
resolution.LoraResolution = object  # it finds files on the Hub
sys.modules[resolution.__name__] = resolution

from mflux.models.common.lora.mapping.lora_loader import LoRALoader  # noqa: E402
from mflux.models.wan.weights.wan_lora_mapping import WanLoRAMapping  # noqa: E402

PATTERNS = LoRALoader._build_pattern_mappings(WanLoRAMapping.get_mapping())


def read(job: dict) -> dict:
    factors: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    names = {LoRALoader._normalize_state_dict_key(key): key for key in job["keys"]}
    names = LoRALoader._normalize_peft_adapter_infix(names)
    for name, key in names.items():
        for pattern in PATTERNS:
            block = LoRALoader._match_pattern(name, pattern.source_pattern)
            if block is not None:
                factors[pattern.target_path.replace("{block}", str(block))][pattern.matrix_name].append(key)
    whole = [parts for parts in factors.values() if {"lora_A", "lora_B"} <= parts.keys()]
    return {"read": sorted(key for parts in whole for keys in parts.values() for key in keys)}


results = [read(each) for each in json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))]
Path(sys.argv[2]).with_suffix(".result.json").write_text(json.dumps(results), encoding="utf-8")
