"""Directions at video tokens: what the denoiser reads of noised clips of both sides of the pairs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.building.gains import with_block_strengths
from unlearning_adapters.clips import Clip
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.concepts.pair import Pair
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import ConceptError, DenoiserError
from unlearning_adapters.methods.moments import counterfactual_direction, protective_weight
from unlearning_adapters.pipelines.edits import edited_modules
from unlearning_adapters.pipelines.running.clean_latents import run_noised
from unlearning_adapters.pipelines.running.partial_run import PartialRun
from unlearning_adapters.pipelines.sites import Site, denoisers

from .moments import VideoMoments
from .scenes import Scenes, few_levels, find_scenes, more, shared_words, spread
from .sites import find_video_sites
from .soft_prompts import check_learns, soft_scenes

# Part of the difference that each site reads, at most. What passes a site is read again by the next ones, so that a
# quarter at each leaves little (docs/maths.md 7).
SHARE = 0.25
# Part of what must stay that a site reads, at most, in squares. Colours and motions meet it first, shapes SHARE.
MOVED = 0.0004
# The same beside soft prompts, which show much that differs and must stay.
SOFT_MOVED = 0.001
# What is read is written so many times: a careful read and a strong write move other clips less than a full read.
GAIN = 2.0
WEIGHED_SITES = 9  # that the weight of what must stay is found at
VIDEO_RANK = 16


def video_directions(
    pipe: Any,
    concept: Concept,
    pairs: Sequence[Pair],
    config: BuildConfig,
    strength: float,
    text: Mapping[str, Direction],
    *,
    progress: bool = True,
    call_kwargs: Mapping[str, Any] | None = None,
    clips: Mapping[str, Sequence[Clip]] | None = None,
) -> dict[str, Direction]:
    """Return a direction per site that reads video tokens, by name: what leads the concept to its counterfactual.

    1. Make clips of both sides of each pair with one seed, of what other pairs show in the concept's place, and of some
       neutral prompts, by the pipeline's own call with a third of its steps, or take those of the user. The safe clip
       that is nearest is the counterfactual, and the others must stay.
    2. Noise them to the levels of the pipeline's own schedule, both sides alike, and run the denoiser on them with what
       both sides say, and with the empty prompt.
    3. Per site: sum the moments of what it reads, and solve (`counterfactual_direction`).
    4. As often as `config.soft_prompts` says: learn a soft prompt against the edit, add the moments of what it makes
       the sites read, and solve anew (`soft_scenes`).

    Args:
        pipe: A diffusers pipeline.
        concept: What is to be forgotten.
        pairs: Those of its pairs that are used.
        config: Blocks, strengths, seed, batch size, epsilon.
        strength: Strength of the adapter, which was calibrated for text sites, and does not apply here.
        text: Directions of the other sites, which act while soft prompts are learned.
        progress: Whether to show a progress bar.
        call_kwargs: Arguments of the pipeline's call, such as the size of the clips.
        clips: Clips in place of those that the pipeline would make, as `read_clips` returns them.

    Raises:
        ConceptError: If the clips of both sides are the same for all pairs, or no layer reads them differently, or
            given clips have another size.
        DenoiserError: If the pipeline has no scheduler with steps, if given clips cannot be encoded by its VAE, or if
            no soft prompt can be learned through its denoiser.
        SiteError: If the denoiser has no layer that reads video tokens.
    """
    sites = find_video_sites(pipe, config.blocks)
    if config.soft_prompts:
        check_learns(pipe, [shared_words(pair.unsafe, pair.safe) for pair in pairs], call_kwargs)
    moments = VideoMoments(pipe, sites)
    with tqdm(total=0, desc="Counterfactuals", unit="clip", disable=not progress) as bar:
        twins, neutral = find_scenes(pipe, concept, pairs, config, call_kwargs, clips, bar)
        if torch.equal(twins.latents[:, 0], twins.latents[:, 1]):
            raise ConceptError(
                f"The clips of both sides of all {len(pairs)} pairs are the same, so that nothing shows the concept. "
                "Check that the pipeline reads the prompts or the pictures in which the pairs differ."
            )
        for scenes in (twins,) if neutral is None else (twins, neutral):
            _read(pipe, scenes, config, call_kwargs, moments, bar)
        for index in range(config.soft_prompts):
            bar.set_postfix_str(f"soft prompt {index + 1} of {config.soft_prompts}")
            acting = {**_final(_solved(moments, config), sites, config, strength), **text}
            edit = {name: replace(one, write=strength * one.gain * one.write) for name, one in acting.items()}
            seed = config.seed + 100 * (index + 1)
            found = soft_scenes(
                pipe, twins.latents[:, 0], twins.words, edit, seed, call_kwargs, config.batch_size, progress
            )
            _read(pipe, found, config, call_kwargs, moments, bar)
    directions = _solved(moments, config)
    if not directions:
        raise ConceptError(
            "No layer reads anything else where the clips of both sides of the pairs differ, as with one step, whose "
            'input is noise alone. Pass a larger num_inference_steps in call_kwargs, or build with scope="word".'
        )
    return _final(directions, sites, config, strength)


def _final(
    directions: Mapping[str, Direction], sites: Sequence[Site], config: BuildConfig, strength: float
) -> dict[str, Direction]:
    """Return directions with the gains that make their strength 1 in an adapter, times the factors of blocks."""
    edited = [site for site in sites if site.name in directions]
    present = {site.block for site in edited}
    factors = {block: factor for block, factor in (config.block_strengths or {}).items() if block in present}
    scaled = with_block_strengths(directions, edited, factors)
    divisor = strength if config.strength is None else 1.0
    return {name: replace(direction, gain=direction.gain / divisor) for name, direction in scaled.items()}


def _solved(moments: VideoMoments, config: BuildConfig) -> dict[str, Direction]:
    """Return a direction for each site at which the two sides of the pairs differ."""
    differing = [each for each in moments.sums.values() if each.differs]
    sample = spread(differing, min(WEIGHED_SITES, len(differing)))
    moved = SOFT_MOVED if config.soft_prompts else MOVED
    weight = protective_weight(sample, SHARE, moved, config.epsilon) if sample else 1.0
    leaders = dict(moments.leaders)
    by_leader = {
        name: counterfactual_direction(each, weight, config.epsilon, VIDEO_RANK) for name, each in moments.sums.items()
    }
    by_site = {name: by_leader[leader] for name, leader in leaders.items()}
    return {
        name: replace(direction, write=GAIN * direction.write)
        for name, direction in by_site.items()
        if direction is not None
    }


def scope_warnings(pipe: Any, concept: str) -> Iterator[str]:
    """Yield a warning if much of what a denoiser draws is made by layers that no adapter edits."""
    if "unet" in denoisers(pipe):
        yield (
            f"The clips of {type(pipe).__name__} are drawn by convolutions, which no adapter edits: a UNet still "
            "showed four concepts in 0.13 of the clips of prompts that leave them open (0.20 before). "
            f'Measure {concept!r}, or build with scope="word".'
        )


def check_makes_base_clips(pipe: Any) -> None:
    """Raise `DenoiserError` if an adapter or a LoRA changes what a pipeline's clips show."""
    for _, path, edit in edited_modules(pipe):
        raise DenoiserError(
            f'Clips for scope="concept" are made by the base, but {edit} edits {path}. Call '
            "pipe.disable_unlearning_adapters() or pipe.disable_lora() first, and unfuse what is fused."
        )


def _read(
    pipe: Any,
    scenes: Scenes,
    config: BuildConfig,
    call_kwargs: Mapping[str, Any] | None,
    moments: VideoMoments,
    bar: "tqdm[Any]",
) -> None:
    """Run the denoiser on noised clips, and add up what sites read."""
    run = PartialRun(pipe, few_levels(pipe, call_kwargs), any_video=False)
    count, copies = scenes.latents.shape[:2]
    alone = run.one_by_one or any(picture is not None for picture in scenes.images)
    size = 1 if alone else max(1, config.batch_size // copies)
    more(bar, count)
    for start in range(0, count, size):
        part, texts = scenes.latents[start : start + size], scenes.prompts[start : start + size]
        if isinstance(texts, Tensor):
            texts = texts.flatten(0, 1)
        with moments.placed(len(part), copies, 1 / count):
            run_noised(run, part, texts, config.seed + 1000 + start, scenes.images[start])
        bar.update(len(part))
