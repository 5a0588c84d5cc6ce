"""The gate of CastWorld: what a pipeline shows of held-out prompts, before anything is measured on it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from unlearning_adapters.clips import to_clip
from unlearning_adapters.shapeworld.cast.judge import CastReading, judge_cast_clip
from unlearning_adapters.shapeworld.cast.prompts import FORMS, draw_cast_prompts, draw_thing_prompts
from unlearning_adapters.shapeworld.cast.roster import find_character, look_alikes, roster
from unlearning_adapters.shapeworld.cast.scenes import RATE, THINGS, CastScene, render, sample_scene
from unlearning_adapters.shapeworld.world.prompts import LabelledPrompt

from .run import to_tensor

SEED = 1900  # of the gate's prompts; benchmarks draw from others
BATCH = 16
RIGHT, VALID, AWAY = 0.90, 0.95, 0.07  # least shares of right factors and of valid clips, largest distance of a rate
MENTIONS = ("implied", "named", "negated", "elsewhere")


@torch.no_grad()
def read_prompts(pipe: Any, prompts: Sequence[LabelledPrompt], guidance: float | None) -> list[CastReading]:
    """Return what the judge reads in the clip of each prompt."""
    readings = []
    options = {} if guidance is None else {"guidance_scale": guidance}
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        generators = [torch.Generator().manual_seed(prompt.seed) for prompt in part]
        clips = pipe([prompt.prompt for prompt in part], generator=generators, **options).frames
        readings += [judge_cast_clip(to_clip(clip)) for clip in clips]
    return readings


@torch.no_grad()
def read_round_trips(vae: Any, scenes: Sequence[CastScene]) -> list[CastReading]:
    """Return what the judge reads in the clip of each scene after a VAE has encoded and decoded it."""
    readings = []
    for start in range(0, len(scenes), BATCH):
        clips = to_tensor([render(scene) for scene in scenes[start : start + BATCH]])
        decoded = vae.decode(vae.encode(clips).latent_dist.mode()).sample.clamp(-1, 1)
        pixels = ((decoded + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).numpy()
        readings += [judge_cast_clip(clip) for clip in pixels]
    return readings


def judge_accuracy(vae: Any, count: int) -> dict[str, dict[str, float]]:
    """Return the shares of fresh clips that the judge reads right, as rendered and after a VAE's round trip."""
    rng = np.random.default_rng(SEED)
    scenes = [sample_scene(rng, character=index % len(roster())) for index in range(count)]
    prompts = [LabelledPrompt("", scene.factors, 0) for scene in scenes]
    fresh = [judge_cast_clip(render(scene)) for scene in scenes]
    return {
        "fresh": shares_right(prompts, fresh),
        "round trip": shares_right(prompts, read_round_trips(vae, scenes)),
    }


def shares_right(prompts: Sequence[LabelledPrompt], readings: Sequence[CastReading]) -> dict[str, float]:
    """Return the share of clips that show each factor as asked, and that of valid ones; invalid clips show nothing."""
    rows: dict[str, float] = {"n": len(prompts), "valid": float(np.mean([reading.valid for reading in readings]))}
    pairs = list(zip(prompts, readings, strict=True))
    for name in readings[0].factors:
        asked = [prompt.factors[name] == reading.factors[name] for prompt, reading in pairs if name in prompt.factors]
        if asked:
            rows[name] = round(float(np.mean(asked)), 4)
    mixed = [is_look_alike(prompt.factors["character"], reading.factors["character"]) for prompt, reading in pairs]
    rows["look-alike instead"] = round(float(np.mean(mixed)), 4)
    return rows


def is_look_alike(asked: str, seen: str) -> bool:
    """Tell whether one character is another of the same group."""
    return seen in {roster()[index].name for index in look_alikes(find_character(asked))}


def gate(pipe: Any, count: int, guidance: float | None = None) -> dict[str, Any]:
    """Return what the pipeline shows of held-out prompts by name and by description, and the rates of things.

    Args:
        pipe: The pipeline.
        count: Prompts of each form, and of each thing where it is implied: its rate has to be known well. A quarter of
            it for each other way of speaking of a thing.
        guidance: Guidance scale; None takes the default of the pipeline's call.

    Returns:
        `characters` (shares right by form), `things` (shares shown), and `passed`.
    """
    characters = {}
    for form in FORMS:
        prompts = draw_cast_prompts(count, SEED, form)
        characters[form] = shares_right(prompts, read_prompts(pipe, prompts, guidance))
    things: dict[str, dict[str, float]] = {}
    for thing in THINGS:
        things[thing] = {}
        for mention in MENTIONS:
            share = count if mention == "implied" else max(1, count // 4)
            prompts = draw_thing_prompts(share, SEED, thing, mention)
            readings = read_prompts(pipe, prompts, guidance)
            things[thing][mention] = round(float(np.mean([r.factors[thing] == "shown" for r in readings])), 4)
    named = characters["name"]
    factors = ("character", "motion", "setting", "style", "emblem", "object")
    passed = named["valid"] >= VALID and all(named[name] >= RIGHT for name in factors)
    rates = all(abs(rows["implied"] - RATE) <= AWAY for rows in things.values())
    return {"characters": characters, "things": things, "guidance": guidance, "passed": passed and rates}
