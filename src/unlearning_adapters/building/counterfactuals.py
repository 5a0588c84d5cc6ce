"""Directions at video tokens: clips of both sides of the pairs, noised, and what the denoiser reads of them."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.concepts.pair import Pair
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import ConceptError, DenoiserError
from unlearning_adapters.methods.moments import counterfactual_direction, protective_weight
from unlearning_adapters.pipelines.edits import edited_modules
from unlearning_adapters.pipelines.running.call_arguments import SCHEDULE
from unlearning_adapters.pipelines.running.clean_latents import clean_latents, run_noised
from unlearning_adapters.pipelines.running.partial_run import PartialRun
from unlearning_adapters.pipelines.sites import denoisers

from .gains import with_block_strengths
from .video_moments import VideoMoments
from .video_sites import find_video_sites

PAIR_SEEDS = 2  # clips of each side of a pair
NEUTRAL_CLIPS = 16
ROUGH = 3  # clips take a third of the user's steps: they show what they are to, and 36 cost as much as 12
FEWEST = 4  # steps of a rough clip, unless the user takes fewer
LEVELS = 7  # calls of the denoiser per pass, at most
# Part of the difference that each site takes away. What passes a site is read again by the next ones, so that a quarter
# at each leaves little; more of it moves other clips, and less leaves more shapes (docs/maths.md 7).
SHARE = 0.25
WEIGHED_SITES = 9  # that the weight of what must stay is found at
DEFAULT_STEPS = 50
VIDEO_RANK = 16


@dataclass(frozen=True)
class Scenes:
    """Clean latents of clips, and the prompts with which the denoiser is to read them.

    Args:
        latents: Shape (scenes, copies, parts, ...): both sides of a pair with one seed, or one copy of a neutral clip.
        prompts: Of each scene what both sides of its pair say, or what it was made with, and for every second scene
            the empty prompt, with which guidance reads all clips.
        images: Picture of each scene, or None.
    """

    latents: Tensor
    prompts: tuple[str, ...]
    images: tuple[Any, ...]


def video_directions(
    pipe: Any,
    concept: Concept,
    pairs: Sequence[Pair],
    config: BuildConfig,
    strength: float,
    *,
    progress: bool = True,
    call_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Direction]:
    """Return a direction per site that reads video tokens, by name: what leads the concept to its counterfactual.

    1. Make clips of both sides of each pair with one seed, and of some neutral prompts, by the pipeline's own call with
       a third of its steps.
    2. Noise them to the levels of the pipeline's own schedule, both sides alike, and run the denoiser on them with what
       both sides say, and with the empty prompt.
    3. Per site: sum the moments of what it reads, and solve (`counterfactual_direction`).

    Args:
        pipe: A diffusers pipeline.
        concept: What is to be forgotten.
        pairs: Those of its pairs that are used.
        config: Blocks, strengths, seed, batch size, epsilon.
        strength: Strength of the adapter, which was calibrated for text sites, and does not apply here.
        progress: Whether to show a progress bar.
        call_kwargs: Arguments of the pipeline's call, such as the size of the clips.

    Raises:
        ConceptError: If the clips of both sides are the same for all pairs.
        DenoiserError: If the pipeline has no scheduler with steps.
        SiteError: If the denoiser has no layer that reads video tokens.
    """
    sites = find_video_sites(pipe, config.blocks)
    moments = VideoMoments(pipe, sites)
    with tqdm(total=0, desc="Counterfactuals", unit="clip", disable=not progress) as bar:
        twins = _twins(pipe, pairs, config, call_kwargs, bar)
        neutral = _neutral(pipe, concept, pairs, config, call_kwargs, bar)
        if torch.equal(twins.latents[:, 0], twins.latents[:, 1]):
            raise ConceptError(
                f"The clips of both sides of all {len(pairs)} pairs are the same, so that nothing shows the concept. "
                "Check that the pipeline reads the prompts or the pictures in which the pairs differ."
            )
        for scenes in (twins,) if neutral is None else (twins, neutral):
            _read(pipe, scenes, config, call_kwargs, moments, bar)
    directions = _solved(moments, config)
    edit_sites = [site for site in sites if site.name in directions]
    present = {site.block for site in edit_sites}
    factors = {block: factor for block, factor in (config.block_strengths or {}).items() if block in present}
    scaled = with_block_strengths(directions, edit_sites, factors)
    divisor = strength if config.strength is None else 1.0
    return {name: replace(direction, gain=direction.gain / divisor) for name, direction in scaled.items()}


def _solved(moments: VideoMoments, config: BuildConfig) -> dict[str, Direction]:
    """Return a direction for each site at which the two sides of the pairs differ."""
    differing = [each for each in moments.sums.values() if each.differs]
    sample = _spread(differing, min(WEIGHED_SITES, len(differing)))
    weight = protective_weight(sample, SHARE, config.epsilon) if sample else 1.0
    leaders = dict(moments.leaders)
    by_leader = {
        name: counterfactual_direction(each, weight, config.epsilon, VIDEO_RANK) for name, each in moments.taken()
    }
    by_site = {name: by_leader[leader] for name, leader in leaders.items()}
    return {name: direction for name, direction in by_site.items() if direction is not None}


def scope_warnings(pipe: Any, concept: str) -> Iterator[str]:
    """Yield a warning if much of what a denoiser draws is made by layers that no adapter edits."""
    if "unet" in denoisers(pipe):
        yield (
            f"The clips of {type(pipe).__name__} are drawn by convolutions, which no adapter edits: a UNet still "
            "showed a concept in 0.15 of the clips of prompts that leave it open (0.25 before), and lost 2 of 16 "
            f'neighbours. Measure {concept!r}, or build with scope="word".'
        )


def check_makes_base_clips(pipe: Any) -> None:
    """Raise `DenoiserError` if an adapter or a LoRA changes what a pipeline's clips show."""
    for _, path, edit in edited_modules(pipe):
        raise DenoiserError(
            f'Clips for scope="concept" are made by the base, but {edit} edits {path}. Call '
            "pipe.disable_unlearning_adapters() or pipe.disable_lora() first, and unfuse what is fused."
        )


def shared_words(unsafe: str, safe: str) -> str:
    """Return the words that both sides of a pair say, in order: the scene without the concept."""
    one, other = unsafe.split(), safe.split()
    blocks = SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()
    return " ".join(word for block in blocks for word in one[block.a : block.a + block.size])


def _twins(
    pipe: Any, pairs: Sequence[Pair], config: BuildConfig, call_kwargs: Mapping[str, Any] | None, bar: "tqdm[Any]"
) -> Scenes:
    """Make clips of both sides of each pair, with some seeds."""
    scenes = [pair for pair in pairs for _ in range(PAIR_SEEDS)]
    sides = [(side, config.seed + index) for index, pair in enumerate(scenes) for side in (pair.unsafe, pair.safe)]
    pictures = [picture for pair in scenes for picture in (pair.unsafe_image, pair.safe_image)]
    latents = _make(pipe, sides, pictures, config.batch_size, call_kwargs, bar)
    return Scenes(
        latents.unflatten(0, (len(scenes), 2)),
        _every_second(shared_words(pair.unsafe, pair.safe) for pair in scenes),
        tuple(pair.safe_image for pair in scenes),
    )


def _neutral(
    pipe: Any,
    concept: Concept,
    pairs: Sequence[Pair],
    config: BuildConfig,
    call_kwargs: Mapping[str, Any] | None,
    bar: "tqdm[Any]",
) -> Scenes | None:
    """Make clips of neutral prompts and pictures, spread over all of them; None without such.

    Where there are no neutral pictures, those of the pairs' safe sides stand in.
    """
    count = min(NEUTRAL_CLIPS, max(len(concept.neutral), len(concept.neutral_images)))
    if not count:
        return None
    texts = [text or "" for text in _spread(concept.neutral, count)]
    pictures = _spread(concept.neutral_images or [pair.safe_image for pair in pairs], count)
    sides = [(text, config.seed + 500 + index) for index, text in enumerate(texts)]
    latents = _make(pipe, sides, pictures, config.batch_size, call_kwargs, bar)
    return Scenes(latents[:, None], _every_second(texts), tuple(pictures))


def _every_second(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(text if index % 2 == 0 else "" for index, text in enumerate(texts))


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return `count` items, spread evenly over all; None in place of each if there is none."""
    return [items[index * len(items) // count] for index in range(count)] if items else [None] * count


def _make(
    pipe: Any,
    sides: Sequence[tuple[str, int]],
    pictures: Sequence[Any],
    batch: int,
    call_kwargs: Mapping[str, Any] | None,
    bar: "tqdm[Any]",
) -> Tensor:
    """Return the clean latents of a rough clip per prompt and seed."""
    run = PartialRun(pipe, rough(pipe, call_kwargs), any_video=False, own_guidance=True)
    _more(bar, len(sides))
    size = 1 if run.one_by_one or any(picture is not None for picture in pictures) else batch
    latents = []
    for start in range(0, len(sides), size):
        texts, seeds = zip(*sides[start : start + size], strict=True)
        latents.append(clean_latents(run, texts, seeds, pictures[start]))
        bar.update(len(texts))
    return torch.cat(latents)


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
    _more(bar, count)
    for start in range(0, count, size):
        part, texts = scenes.latents[start : start + size], scenes.prompts[start : start + size]
        with moments.placed(len(part), copies, 1 / count):
            run_noised(run, part, texts, config.seed + 1000 + start, scenes.images[start])
        bar.update(len(part))


def _more(bar: "tqdm[Any]", count: int) -> None:
    bar.total = int(bar.total or 0) + count
    bar.refresh()


def rough(pipe: Any, call_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the arguments of a call with a third of its steps, unless they hold a schedule of their own."""
    steps = _steps(pipe, call_kwargs)
    return _with_steps(call_kwargs, min(steps, max(FEWEST, steps // ROUGH)))


def few_levels(pipe: Any, call_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the arguments of a call with few steps, unless they hold a schedule of their own."""
    return _with_steps(call_kwargs, min(LEVELS, _steps(pipe, call_kwargs)))


def _steps(pipe: Any, call_kwargs: Mapping[str, Any] | None) -> int:
    parameter = inspect.signature(type(pipe).__call__).parameters.get("num_inference_steps")
    default = DEFAULT_STEPS if parameter is None or not isinstance(parameter.default, int) else parameter.default
    return int((call_kwargs or {}).get("num_inference_steps", default))


def _with_steps(call_kwargs: Mapping[str, Any] | None, steps: int) -> dict[str, Any]:
    arguments = dict(call_kwargs or {})
    return arguments if SCHEDULE & set(arguments) else {**arguments, "num_inference_steps": steps}
