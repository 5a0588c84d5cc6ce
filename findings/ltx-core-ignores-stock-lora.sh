#!/usr/bin/env bash
# Lightricks' ltx-core and a LoRA as diffusers saves it: nothing is applied, and nothing says so.
#
# Versions: ltx-core 1.0.0, torch 2.13.0.
# Expected: `transformer.transformer_blocks.0.attn2.to_k`, as diffusers writes LoRAs of LTX-2, is applied, or refused,
#           or at least named in a warning.
# Seen: the map of names takes `diffusion_model.` off alone. The weights come back as they were, bit for bit; no error,
#       no warning, no line of a log.
# What helps: write the names with `diffusion_model.` in place of `transformer.`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check 'torch==2.13.0' 'numpy==2.4.6' 'safetensors==0.8.0' 'einops' 'transformers==5.23.0' 'scipy' 2>/dev/null
"$folder/venv/bin/pip" install -q --disable-pip-version-check --no-deps 'ltx-core==1.0.0' 2>/dev/null
cat > "$folder/run.py" <<'E'
import logging
import sys
import warnings
from importlib.metadata import version

import torch
from ltx_core.loader import LTXV_LORA_COMFY_RENAMING_MAP, LoraStateDictWithStrength, StateDict, apply_loras
from ltx_core.loader.sft_loader import SafetensorsStateDictLoader
from safetensors.torch import save_file

said = []
logging.getLogger().addHandler(type("Lines", (logging.Handler,), {"emit": lambda _, record: said.append(record)})())
warnings.simplefilter("always")
name = "transformer_blocks.0.attn2.to_k"
cpu, changed = torch.device("cpu"), {}
with warnings.catch_warnings(record=True) as warned:
    for prefix in ("transformer.", "diffusion_model."):
        file = f"{sys.argv[1]}/lora.safetensors"
        save_file({f"{prefix}{name}.lora_A.weight": torch.ones(1, 4), f"{prefix}{name}.lora_B.weight": torch.ones(4, 1)}, file)
        lora = SafetensorsStateDictLoader().load(file, sd_ops=LTXV_LORA_COMFY_RENAMING_MAP, device=cpu)
        weight = torch.randn(4, 4).bfloat16()
        model = StateDict({f"{name}.weight": weight.clone()}, cpu, weight.nbytes, {torch.bfloat16})
        after = apply_loras(model, [LoraStateDictWithStrength(lora, 1.0)]).sd[f"{name}.weight"]
        changed[prefix] = not torch.equal(after, weight)
print(f"ltx-core {version('ltx-core')}: weight changed {changed}, warnings {len(warned)}, lines of a log {len(said)}")
assert changed == {"transformer.": False, "diffusion_model.": True} and not warned and not said
E
"$folder/venv/bin/python" "$folder/run.py" "$folder"
