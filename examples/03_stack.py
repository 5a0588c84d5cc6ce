"""Forget two concepts at once: each has its own strength, and their order does not matter.

python examples/03_stack.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import torch

from unlearning_adapters import BuildConfig, build_adapter, load_concept, load_shapeworld
from unlearning_adapters.clips import save_clip, to_clip
from unlearning_adapters.shapeworld.world.judge import judge_clip

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
pipe = load_shapeworld()
for value in ("red", "left"):
    build_adapter(pipe, load_concept(value), BuildConfig(pairs=5)).save_pretrained(folder / f"no-{value}")

prompt = "a red circle moves left on a black background"


def generate(label: str) -> torch.Tensor:
    clip = to_clip(pipe(prompt, generator=torch.Generator().manual_seed(7)).frames[0])
    seen = judge_clip(clip)
    file = save_clip(clip, folder / f"{label}.mp4")
    print(f"{label}: {seen.colour}, {seen.motion}, wrote {file}")
    return torch.from_numpy(clip)


generate("base")
pipe.load_unlearning_adapter(folder / "no-red", adapter_name="no-red")
generate("no-red")
pipe.load_unlearning_adapter(folder / "no-left", adapter_name="no-left")
both = generate("both")

pipe.unload_unlearning_adapters()
pipe.load_unlearning_adapter(folder / "no-left", adapter_name="no-left")
pipe.load_unlearning_adapter(folder / "no-red", adapter_name="no-red")
print("order does not matter:", torch.equal(generate("other-order"), both))

pipe.set_unlearning_adapters(["no-red", "no-left"], [0.0, 1.0])
pipe.delete_unlearning_adapters("no-red")
print("active:", pipe.get_active_unlearning_adapters())
