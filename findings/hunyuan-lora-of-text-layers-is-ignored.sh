#!/usr/bin/env bash
# A LoRA of HunyuanVideo's text layers, in the names of the first release: diffusers loads none of it, without an error.
#
# Versions: diffusers 0.42.1, peft 0.21.2, torch 2.13.0.
# Expected: `diffusion_model.double_blocks.0.txt_attn_qkv`, a name that the converter of diffusers knows, is loaded
#           whether or not the file has a layer of the picture too; or the file is refused.
# Seen: the file is taken as one of the first release only if some name has `img_attn_qkv` in it. Without such a layer
#       nothing is converted and nothing loaded; a warning says "This is safe to ignore if ...". With a layer of zeros
#       named `img_attn_qkv` the same text layer loads.
# What helps: add `double_blocks.0.img_attn_qkv` with zeros, or write the names of diffusers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check 'torch==2.13.0' 'diffusers==0.42.1' 'transformers==5.23.0' 'accelerate==1.15.0' 'peft==0.21.2' 2>/dev/null
cat > "$folder/run.py" <<'E'
import sys

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from safetensors.torch import save_file

model = HunyuanVideoTransformer3DModel(
    in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=1,
    num_refiner_layers=1, patch_size=1, patch_size_t=1, text_embed_dim=16, pooled_projection_dim=8,
    rope_axes_dim=(2, 4, 4),
)
pipe = HunyuanVideoPipeline(
    text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, vae=None, transformer=model,
    scheduler=FlowMatchEulerDiscreteScheduler(),
)
text = {f"diffusion_model.double_blocks.0.txt_attn_qkv.lora_{part}.weight": torch.ones(shape)
        for part, shape in (("A", (1, 20)), ("B", (60, 1)))}
zeros = {name.replace("txt", "img"): torch.zeros_like(value) for name, value in text.items()}
found = {}
for name, tensors in (("text", text), ("text and zeros", text | zeros)):
    file = f"{sys.argv[1]}/lora.safetensors"
    save_file(tensors, file)
    pipe.load_lora_weights(file, adapter_name=name.replace(" ", "_"))
    found[name] = sum("lora_A" in key for key in model.state_dict())
    if found[name]:
        pipe.unload_lora_weights()
print(f"diffusers {diffusers.__version__}: LoRA layers after loading: {found}")
assert found == {"text": 0, "text and zeros": 6}
E
"$folder/venv/bin/python" "$folder/run.py" "$folder" 2>/dev/null
