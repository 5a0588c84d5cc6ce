#!/usr/bin/env bash
# A component that was deleted from a diffusers pipeline to free memory is still there for whoever asks, as a tuple.
#
# Versions: diffusers 0.42.1, torch 2.13.0, transformers 5.23.0.
# Expected: after `del pipe.transformer`, AttributeError or None; `save_pretrained` refuses, or warns, since the pipeline
#           lacks its denoiser.
# Seen: `pipe.transformer` and `pipe.components["transformer"]` are ('diffusers', 'WanTransformer3DModel'), which the
#       config lends, so that a check for None passes; `save_pretrained` writes a folder without the denoiser, and its
#       model_index.json says [null, null].
# What helps: set the component to None in place of deleting it, and ask for its type.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check 'torch==2.13.0' 'diffusers==0.42.1' 'transformers==5.23.0' 'accelerate==1.15.0' 'ftfy' 2>/dev/null
cat > "$folder/run.py" <<'P'
import json
import tempfile
from importlib.metadata import version
from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

model = WanTransformer3DModel(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
    freq_dim=16, ffn_dim=32, num_layers=1, rope_max_seq_len=16,
)
pipe = WanPipeline(
    tokenizer=None, text_encoder=None, vae=None, transformer=model, scheduler=FlowMatchEulerDiscreteScheduler()
)
del pipe.transformer
found = {"attribute": pipe.transformer, "component": pipe.components["transformer"]}
with tempfile.TemporaryDirectory() as place:
    pipe.save_pretrained(place)
    found["saved"] = sorted(path.name for path in Path(place).iterdir())
    found["index"] = json.loads((Path(place) / "model_index.json").read_text())["transformer"]
print(f"diffusers {version('diffusers')}: {found}")
lent = ("diffusers", "WanTransformer3DModel")
assert found == {
    "attribute": lent, "component": lent, "saved": ["model_index.json", "scheduler"], "index": [None, None],
}
P
"$folder/venv/bin/python" "$folder/run.py" 2>/dev/null | tail -n 1
