"""Build and load on whole pipelines: against one generation, and against stock `load_lora_weights`."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import load_concept
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.runtime.verbs import load_unlearning_adapter, unload_unlearning_adapters
from unlearning_adapters.shapeworld.models.generate import GENERATION
from unlearning_adapters.shapeworld.models.load import load_shapeworld

from .measure import in_turn
from .planted import save_planted, wan_pipeline, with_shared_weights
from .report import Row, compare
from .sizes import Sizes

CONCEPT = "shapeworld-red"
PROMPT = "a red circle moves left on a black background"


def benchmark_build(sizes: Sizes) -> Iterator[Row]:
    """Compare a build for text sites with one full generation, at ShapeWorld's size and for a larger video."""
    pipe, concept = load_shapeworld(), load_concept(CONCEPT)
    config = BuildConfig(pairs=len(concept.pairs))
    pipe.set_progress_bar_config(disable=True)
    recording = {"max_sequence_length": GENERATION["max_sequence_length"]}
    for case, settings in (("shapeworld", GENERATION), ("larger-video", {**GENERATION, **sizes.large_video})):

        def build() -> None:
            build_adapter(pipe, concept, config, progress=False, call_kwargs=recording)

        def generate(settings: dict[str, Any] = settings) -> None:
            pipe(PROMPT, generator=torch.Generator().manual_seed(0), **settings)

        arms = [[("build", build)], [("generate", generate)]]
        times = in_turn(arms, sizes.rounds if case == "shapeworld" else min(2, sizes.rounds), f"build/{case}")
        yield compare(
            f"build/{case}/generation",
            f"build_adapter for text sites, {len(concept.pairs)} pairs and {len(concept.neutral)} neutral prompts, "
            f"against one generation of {settings['num_frames']} x {settings['height']} x {settings['width']} pixels "
            f"in {settings['num_inference_steps']} steps",
            times["build"],
            times["generate"],
            at_most=0.1,
            if_missed=(
                f"the prompts pass the text encoder and the first cross-attention once, whatever the size of the "
                f"video, and this one has so few tokens that a whole generation costs little more than "
                f"{2 * len(concept.pairs) + len(concept.neutral)} prompts"
            ),
        )


def benchmark_load(sizes: Sizes) -> Iterator[Row]:
    """Compare loading an adapter with stock loading of the same file."""
    yield from _load_case("shapeworld", "ShapeWorld", load_shapeworld(), sizes)
    width = 128 * sizes.heads
    wan = wan_pipeline(sizes, sizes.load_blocks, feed_forward=width)
    yield from _load_case("wan", f"a Wan denoiser {width} wide with {sizes.load_blocks} blocks", wan, sizes)


def _load_case(case: str, where: str, pipe: Any, sizes: Sizes) -> Iterator[Row]:
    stock = with_shared_weights(pipe)
    with TemporaryDirectory() as folder:
        count = save_planted(pipe, Path(folder))
        arms = [
            [("load", lambda: load_unlearning_adapter(pipe, folder)), (None, lambda: unload_unlearning_adapters(pipe))],
            [("stock", lambda: stock.load_lora_weights(folder)), (None, stock.unload_lora_weights)],
        ]
        times = in_turn(arms, sizes.rounds, f"load/{case}")
    yield compare(
        f"load/{case}/load_lora_weights",
        f"load_unlearning_adapter(folder), {count} sites on {where}, against load_lora_weights of the same file",
        times["load"],
        times["stock"],
        at_most=1,
        if_missed="every value of the file is checked, and some factors are compared with the weights at hand",
    )
