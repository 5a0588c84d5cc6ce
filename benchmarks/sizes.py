"""Sizes of the benchmarks: those of real models, and small ones to see that everything runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Args:
        rounds: Number of rounds for steps of seconds.
        weight_rounds: Number of rounds in "weights".
        solve_features: Width of the activations in "solve".
        solve_rows: Numbers of token differences and neutral tokens, by case.
        layers: Number of layers in "weights", by case, with their in_features and out_features.
        heads: Number of attention heads, 128 wide each, of the Wan denoiser in "calls" and "load".
        feed_forward: Width of its feed-forward layers.
        blocks: Number of its blocks.
        load_blocks: Number of blocks in "load".
        text: Number of text tokens and their width.
        latents: Frames, height and width of its latents.
        call_rounds: Number of rounds for calls of the Wan denoiser and of ShapeWorld's.
        large_video: Arguments of the larger video in "build".
        stacks: Numbers of adapters in "stacks", the largest last.
        stack_rounds: Number of rounds of its verbs.
        concepts: Number of concepts in "many", on ShapeWorld and behind a wide text encoder.
        concept_rounds: Number of its rounds on ShapeWorld.
        encoder: Width and number of layers of that text encoder.
        true_layers: Layers of the text encoder in "true-sizes"; UMT5-XXL has 24.
        true_neutral: Number of its neutral prompts; None takes all.
    """

    rounds: int = 7
    weight_rounds: int = 5
    solve_features: int = 5120
    solve_rows: Mapping[str, tuple[int, int]] = field(
        default_factory=lambda: {"few-tokens": (160, 512), "shipped-prompts": (100, 2160)}
    )
    layers: Mapping[str, tuple[int, int, int]] = field(
        default_factory=lambda: {
            "narrow": (60, 1536, 1536),
            "wide": (48, 3072, 3072),
            "widest": (20, 5120, 5120),
            "feed-forward": (20, 1536, 8960),
        }
    )
    heads: int = 12
    feed_forward: int = 8960
    blocks: int = 2
    load_blocks: int = 30
    text: tuple[int, int] = (512, 4096)
    latents: tuple[int, int, int] = (3, 30, 52)
    call_rounds: tuple[int, int] = (15, 101)
    large_video: Mapping[str, Any] = field(default_factory=lambda: {"height": 256, "width": 256, "num_frames": 33})
    stacks: tuple[int, ...] = (1, 3, 10, 30, 100)
    stack_rounds: int = 3
    concepts: tuple[int, int] = (100, 100)
    concept_rounds: int = 3
    encoder: tuple[int, int] = (2048, 1)
    true_layers: int = 24
    true_neutral: int | None = None


FULL = Sizes()
QUICK = Sizes(
    rounds=1,
    weight_rounds=1,
    solve_features=512,
    solve_rows={"few-tokens": (16, 48), "shipped-prompts": (10, 200)},
    layers={"narrow": (2, 128, 128), "wide": (2, 192, 192), "widest": (2, 256, 256), "feed-forward": (2, 96, 560)},
    heads=1,
    feed_forward=256,
    blocks=2,
    load_blocks=2,
    text=(16, 64),
    latents=(2, 8, 8),
    call_rounds=(1, 1),
    large_video={"height": 80, "width": 80, "num_frames": 9},
    stacks=(1, 3),
    stack_rounds=1,
    concepts=(3, 2),
    concept_rounds=1,
    encoder=(64, 1),
    true_layers=1,
    true_neutral=32,
)
