"""Write the edit into the weights, save an ordinary checkpoint without the concept, and take the edit out again.

python examples/04_fuse_and_save.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from unlearning_adapters import BuildConfig, build_adapter, load_concept, load_shapeworld

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
pipe = load_shapeworld()
base = {name: weight.clone() for name, weight in pipe.transformer.state_dict().items()}
prompt = "a red circle moves left on a black background"


def latents(pipe: DiffusionPipeline) -> torch.Tensor:
    return pipe(prompt, generator=torch.Generator().manual_seed(7), output_type="latent").frames


pipe.load_unlearning_adapter(build_adapter(pipe, load_concept("red"), BuildConfig(pairs=5)))
attached = latents(pipe)

pipe.fuse_unlearning_adapters()
fused = latents(pipe)
changed = [name for name, weight in pipe.transformer.state_dict().items() if not torch.equal(weight, base[name])]
print(f"fused: {len(changed)} of {len(base)} tensors changed")
print(f"attached and fused latents differ by at most {(attached - fused).abs().max():.1e}")

pipe.save_pretrained(folder / "shapeworld-without-red")  # `DiffusionPipeline.from_pretrained` loads it anywhere
saved = load_shapeworld(model=folder / "shapeworld-without-red")  # the same, with short clips as default
kept = pipe.transformer.state_dict()
same = all(torch.equal(weight, kept[name]) for name, weight in saved.transformer.state_dict().items())
difference = (latents(saved) - fused).abs().max()
print(f"saved checkpoint has the fused weights: {same}; its latents differ by {difference:.1e}")

pipe.unfuse_unlearning_adapters()
pipe.unload_unlearning_adapters()
restored = all(torch.equal(weight, base[name]) for name, weight in pipe.transformer.state_dict().items())
print("unfused, bit for bit the base:", restored)
