#!/usr/bin/env bash
# cache-dit on a denoiser with group offloading: it goes on, and cannot be taken off again.
#
# Versions: cache-dit 1.5.3, diffusers 0.42.1, torch 2.13.0.
# Expected: `disable_cache` puts back the forward that was there, as it does without offloading.
# Seen: AttributeError: 'functools.partial' object has no attribute '__get__'. Hooks of diffusers replace `forward` of a
#       module by a partial, which cache-dit keeps and wants to bind like a function.
# What helps: enable the cache first and the offloading afterwards; then disabling works.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check 'torch==2.13.0' 'diffusers==0.42.1' 'transformers==5.23.0' 'accelerate==1.15.0' 'cache-dit==1.5.3' 'ftfy' 2>/dev/null
cat > "$folder/run.py" <<'E'
from importlib.metadata import version

import cache_dit
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

found = {}
for order in ("cache", "offload cache", "cache offload"):
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=4, rope_max_seq_len=16,
    )
    pipe = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=model, scheduler=FlowMatchEulerDiscreteScheduler()
    )
    for step in order.split():
        if step == "cache":
            cache_dit.enable_cache(pipe)
        else:
            model.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    try:
        cache_dit.disable_cache(pipe)
        found[order] = "disabled"
    except Exception as error:
        found[order] = f"{type(error).__name__}: {error}"
print(f"cache-dit {version('cache-dit')}, diffusers {version('diffusers')}: {found}")
error = "AttributeError: 'functools.partial' object has no attribute '__get__'"
assert found == {"cache": "disabled", "offload cache": error, "cache offload": "disabled"}
E
"$folder/venv/bin/python" "$folder/run.py" 2>/dev/null | tail -n 1
