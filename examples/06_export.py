"""Give a stack to programs that know no adapters: one LoRA of both concepts, in the names of diffusers or ComfyUI.

python examples/06_export.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open

from unlearning_adapters import BuildConfig, build_adapter, export_lora, load_concept, load_shapeworld

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
prompt = "a red circle moves left on a black background"


def latents(pipe: DiffusionPipeline) -> torch.Tensor:
    return pipe(prompt, generator=torch.Generator().manual_seed(7), output_type="latent").frames


pipe = load_shapeworld()
adapters = [build_adapter(pipe, load_concept(name), BuildConfig(pairs=5)) for name in ("red", "left")]
for adapter in adapters:
    pipe.load_unlearning_adapter(adapter)
expected = latents(pipe)

lora = export_lora(adapters, folder / "lora")  # solved jointly: loading both files as LoRAs would add them up
print(f"wrote {lora.file} of rank {lora.rank} for {lora.layers} layers: {lora.component} of {lora.base_model}")

stock = load_shapeworld()
before = latents(stock)
stock.load_lora_weights(lora.file.parent)  # diffusers' own verb; in a script without this package it is the same
after = latents(stock)
print(f"the LoRA changes the latents by up to {(after - before).abs().max():.1f}")
print(f"and they differ from those of the adapters by at most {(after - expected).abs().max():.1e}")

comfyui = export_lora(adapters, folder / "no-red-no-left.safetensors", layout="native", strengths=[1.0, 1.5])
with safe_open(comfyui.file, framework="pt") as file:
    print(f"wrote {comfyui.file} with {next(iter(file.keys()))}, ...")
