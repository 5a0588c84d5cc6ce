#!/usr/bin/env bash
# `enable_parallelism` of diffusers on a machine without an accelerator: ZeroDivisionError.
#
# Versions: diffusers 0.42.1, torch 2.13.0 (any build, run without a GPU).
# Expected: context parallelism over gloo, which runs on CPUs, or an error that says that an accelerator is needed.
# Seen: ZeroDivisionError: integer modulo by zero, since the rank is taken modulo torch.accelerator.device_count(), 0.
#       It is raised before the mesh is made; with the count patched to 1 the rest of the call runs.
# What helps: nothing that is public; a machine with an accelerator.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check 'torch==2.13.0' 'diffusers==0.42.1' 'transformers==5.23.0' 'accelerate==1.15.0' 2>/dev/null
cat > "$folder/run.py" <<'E'
import sys

import diffusers
import torch
from diffusers import ContextParallelConfig, WanTransformer3DModel

assert torch.accelerator.device_count() == 0, "this finding is about machines without an accelerator"
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/rendezvous", rank=0, world_size=1)
model = WanTransformer3DModel(num_attention_heads=2, attention_head_dim=12, text_dim=16, ffn_dim=32, num_layers=1)
try:
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    error = "none"
except Exception as raised:
    error = f"{type(raised).__name__}: {raised}"
torch.distributed.destroy_process_group()
print(f"diffusers {diffusers.__version__}, torch {torch.__version__}: {error}")
assert error == "ZeroDivisionError: integer modulo by zero"
E
CUDA_VISIBLE_DEVICES="" "$folder/venv/bin/python" "$folder/run.py" "$folder" 2>/dev/null
