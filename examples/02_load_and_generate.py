"""Load an adapter on a pipeline, generate, change its strength, and switch it off again.

python examples/02_load_and_generate.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from unlearning_adapters import BuildConfig, build_adapter, load_concept, load_shapeworld
from unlearning_adapters.clips import save_clip, to_clip
from unlearning_adapters.shapeworld.world.judge import judge_clip

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
pipe = load_shapeworld()
build_adapter(pipe, load_concept("red"), BuildConfig(pairs=5)).save_pretrained(folder / "no-red")


def generate(prompt: str) -> np.ndarray:
    return to_clip(pipe(prompt, generator=torch.Generator().manual_seed(7)).frames[0])


prompt, neighbour = "a red circle moves left on a black background", "a blue square moves up on a white background"
before, neighbour_before = generate(prompt), generate(neighbour)

name = pipe.load_unlearning_adapter(folder / "no-red")  # a folder, a file, or "org/no-red" on the Hub
print("active:", pipe.get_active_unlearning_adapters())
after, neighbour_after = generate(prompt), generate(neighbour)

pipe.set_unlearning_adapters(name, 0.25)
weak = generate(prompt)

pipe.disable_unlearning_adapters()
print("disabled equals the base:", np.array_equal(generate(prompt), before))
pipe.unload_unlearning_adapters()

clips = {"before": before, "after": after, "weak": weak, "neighbour-before": neighbour_before}
for label, clip in {**clips, "neighbour-after": neighbour_after}.items():
    file = save_clip(clip, folder / f"{label}.mp4")
    print(f"{label}: {judge_clip(clip).colour}, wrote {file}")
