"""Build an adapter from five pairs of prompts: no training, a few seconds on a CPU.

python examples/01_build.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

from unlearning_adapters import Concept, Pair, build_adapter, load_shapeworld
from unlearning_adapters.concepts.concept import shared_neutral

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())

# Two prompts that differ in the concept alone; the safe side says what shall appear instead.
pairs = [
    Pair("a red circle moves left on a black background", "a blue circle moves left on a black background"),
    Pair("a crimson square drifts up", "a green square drifts up"),
    Pair("there is a red triangle sliding down", "there is a yellow triangle sliding down"),
    Pair("on a white background, a scarlet cross goes right", "on a white background, a blue cross goes right"),
    Pair("a video of a red cross gliding left", "a video of a green cross gliding left"),
]
# Prompts that have nothing to do with it, and must not change.
neutral = shared_neutral("shapeworld-neutral", words=["red", "crimson", "scarlet"])
concept = Concept("no-red", pairs, neutral, description="The colour red.")

pipe = load_shapeworld()  # any other video pipeline: WanPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
adapter = build_adapter(pipe, concept)
file = adapter.save_pretrained(folder / "no-red")

print(adapter)
print(f"edits {', '.join(adapter.sites[:2])} and {len(adapter.sites) - 2} more")
print(f"wrote {file} ({file.stat().st_size:,} bytes)")
