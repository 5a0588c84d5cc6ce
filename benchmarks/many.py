"""A hundred concepts on one pipeline: all in one call, against one of them."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

from unlearning_adapters.building.build_many import build_adapters
from unlearning_adapters.concepts.concept import Concept, Pair, shared_neutral
from unlearning_adapters.shapeworld.models.generate import GENERATION
from unlearning_adapters.shapeworld.models.load import load_shapeworld

from .measure import in_turn
from .planted import wan_pipeline
from .real_text import tokenizer, umt5
from .report import Row, compare
from .sizes import Sizes

AT_MOST = 10.0
LOOKS = ("red", "green", "blue", "yellow", "white", "black", "orange", "purple", "pink", "grey")
THINGS = ("circle", "square", "triangle", "cross", "star", "ring", "heart", "arrow", "diamond", "moon")
# They name none of LOOKS: its token would be on both sides of a pair.
PLACES = ("moves left", "moves right on a plain background", "slides down", "drifts up on bare ground", "stands still")


def concepts(count: int, neutral: str) -> list[Concept]:
    """Return concepts of two words, such as "red circle", with five pairs each and the same neutral prompts."""
    made = []
    for look, thing in list(product(LOOKS, THINGS))[:count]:
        other = LOOKS[LOOKS.index(look) - 1]
        pairs = tuple(Pair(f"a {look} {thing} {place}", f"a {other} {thing} {place}") for place in PLACES)
        made.append(Concept(f"{look} {thing}", pairs, neutral=shared_neutral(neutral)))
    return made


def benchmark_many(sizes: Sizes) -> Iterator[Row]:
    """Compare a build of many concepts with a build of one, on ShapeWorld and behind a text encoder of real width."""
    call = {"max_sequence_length": GENERATION["max_sequence_length"]}
    yield from _case(
        "shapeworld",
        "ShapeWorld",
        load_shapeworld(),
        concepts(sizes.concepts[0], "shapeworld-neutral"),
        call,
        sizes.concept_rounds,
        "each concept's pairs pass the pipeline in a call of their own, so that its adapter is the one of a single "
        "build bit for bit, and here a call costs more than the ten prompts in it",
    )
    chosen = concepts(sizes.concepts[1], "neutral")
    width, layers = sizes.encoder
    tokens = sizes.text[0]
    wan = wan_pipeline(replace(sizes, text=(tokens, width)), 1, feed_forward=sizes.feed_forward)
    pipe = WanPipeline(
        tokenizer=tokenizer([side for each in chosen for pair in each.pairs for side in (pair.unsafe, pair.safe)]),
        text_encoder=umt5(layers, width, feed_forward=5 * width // 2, vocabulary=4096),
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=wan.transformer,
    )
    yield from _case(
        "wide",
        f"a text encoder of {layers} layers {width} wide in front of a Wan denoiser {128 * sizes.heads} wide",
        pipe,
        chosen,
        {"max_sequence_length": tokens},
        1,
        "each concept takes ten prompts, and for direction and strength some ten solves",
    )


def _case(
    case: str,
    where: str,
    pipe: Any,
    chosen: Sequence[Concept],
    call: dict[str, Any],
    rounds: int,
    if_missed: str,
) -> Iterator[Row]:
    pipe.set_progress_bar_config(disable=True)

    def build(count: int) -> None:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            build_adapters(pipe, chosen[:count], progress=False, call_kwargs=call)

    arms = [[("one", lambda: build(1))], [("many", lambda: build(len(chosen)))]]
    times = in_turn(arms, rounds, f"many/{case}")
    yield compare(
        f"many/{case}/one",
        f"build_adapters of {len(chosen)} concepts of 5 pairs on {where}, {len(chosen[0].neutral)} neutral prompts "
        "that all share, against a build of the first of them",
        times["many"],
        times["one"],
        at_most=AT_MOST if len(chosen) >= 100 else None,
        if_missed=if_missed,
    )
