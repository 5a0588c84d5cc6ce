"""Clips of both sides of the pairs, and of what must stay, as latents: made by the pipeline, or given by the user."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from unlearning_adapters.clips import Clip
from unlearning_adapters.concepts.clips import NEUTRAL, SAFE, UNSAFE, fitted, read_clips
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.concepts.pair import Pair, place_of_concept
from unlearning_adapters.config import DEFAULT_PAIRS, BuildConfig
from unlearning_adapters.errors import ConfigError
from unlearning_adapters.pipelines.running.call_arguments import SCHEDULE
from unlearning_adapters.pipelines.running.clean_latents import clean_latents
from unlearning_adapters.pipelines.running.encoding import LatentLayout, latent_layout
from unlearning_adapters.pipelines.running.partial_run import PartialRun

COUNTERPARTS = 3  # safe clips of a scene: its pair's own, and those with what other pairs show in the concept's place
PAIR_SEEDS = 2  # of each scene with fewer of them
NEUTRAL_CLIPS = 8
ROUGH = 3  # clips take a third of the user's steps: they show what they are to, and 28 cost as much as 10
FEWEST = 4  # steps of a rough clip, unless the user takes fewer
LEVELS = 7  # calls of the denoiser per pass, at most
PROBE_STEPS = 2  # of a run that only finds out where latents go
DEFAULT_STEPS = 50


@dataclass(frozen=True)
class Scenes:
    """Clean latents of clips, and the prompts with which the denoiser is to read them.

    Args:
        latents: Shape (scenes, copies, parts, ...): with one seed the unsafe side of a pair, its counterpart, and other
            safe clips that must stay, if there are any; or one copy of a neutral clip.
        prompts: Of each scene what both sides of its pair say, or what it was made with, and for every second scene
            the empty prompt, with which guidance reads all clips; or text embeddings of each copy, of shape
            (scenes, copies, tokens, width).
        images: Picture of each scene, or None.
        words: What both sides of the pair of each scene say; empty for others.
    """

    latents: Tensor
    prompts: tuple[str, ...] | Tensor
    images: tuple[Any, ...]
    words: tuple[str, ...] = ()


def given_clips(source: Any, concept: Concept, config: BuildConfig) -> dict[str, list[Clip]]:
    """Return the clips that the user gives a build, or raise `ConfigError` if it would not use them."""
    if config.scope != "concept":
        raise ConfigError(
            f'Clips are read for scope="concept" alone, but the scope is {config.scope!r}. Leave them out.'
        )
    return read_clips(source, len(concept.pairs[: config.pairs or DEFAULT_PAIRS]))


def find_scenes(
    pipe: Any,
    concept: Concept,
    pairs: Sequence[Pair],
    config: BuildConfig,
    call_kwargs: Mapping[str, Any] | None,
    clips: Mapping[str, Sequence[Clip]] | None,
    bar: "tqdm[Any]",
) -> tuple[Scenes, Scenes | None]:
    """Return clips of both sides of the pairs, and neutral ones, if there are any: given, or made by the pipeline.

    Args:
        pipe: A diffusers pipeline.
        concept: For its neutral prompts and pictures.
        pairs: The pairs that are used.
        config: Seed and batch size.
        call_kwargs: Arguments of the pipeline's call.
        clips: Clips of the user, by "unsafe", "safe" and, if given, "neutral"; None lets the pipeline make all.
        bar: Progress bar, which counts clips.
    """
    if clips is None:
        twins = _twins(pipe, pairs, config, call_kwargs, bar)
        return twins, _neutral(pipe, concept, pairs, config, call_kwargs, bar)
    run = PartialRun(pipe, _with_steps(call_kwargs, min(PROBE_STEPS, _steps(pipe, call_kwargs))), any_video=False)
    layout = latent_layout(run, pairs[0].safe, pairs[0].safe_image)
    scenes = [pair for pair in pairs for _ in range(len(clips[SAFE]) // len(pairs))]
    sides = [clip for both in zip(clips[UNSAFE], clips[SAFE], strict=True) for clip in both]
    words = tuple(shared_words(pair.unsafe, pair.safe) for pair in scenes)
    twins = Scenes(
        _encoded(layout, sides, bar).unflatten(0, (len(scenes), 2)),
        _every_second(words),
        tuple(pair.safe_image for pair in scenes),
        words,
    )
    if not (kept := clips.get(NEUTRAL)):
        return twins, _neutral(pipe, concept, pairs, config, call_kwargs, bar)
    pictures = spread(concept.neutral_images or [pair.safe_image for pair in pairs], len(kept))
    return twins, Scenes(_encoded(layout, kept, bar)[:, None], ("",) * len(kept), tuple(pictures))


def _encoded(layout: LatentLayout, clips: Sequence[Clip], bar: "tqdm[Any]") -> Tensor:
    """Return the clean latents of given clips, as `clean_latents` returns those of a pipeline's own."""
    more(bar, len(clips))
    latents = []
    for clip in clips:
        latents.append(layout.encoded(fitted(clip, layout.size)))
        bar.update(1)
    return torch.stack(latents)


def shared_words(unsafe: str, safe: str) -> str:
    """Return the words that both sides of a pair say, in order: the scene without the concept."""
    one, other = unsafe.split(), safe.split()
    blocks = SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()
    return " ".join(word for block in blocks for word in one[block.a : block.a + block.size])


def safe_prompts(pairs: Sequence[Pair]) -> list[list[str]]:
    """Return of each pair its safe prompt, and up to two more with what other pairs show in the concept's place.

    Beside the pair of "a red cat" and "a green cat" that of "a red dog runs" and "a blue dog runs" has the safe prompts
    "a blue dog runs" and "a green dog runs". All pairs get as many as the one that has fewest. Where the pictures of a
    pair differ, each pair has its own alone.
    """
    found = []
    for index, pair in enumerate(pairs):
        prompts = [pair.safe]
        for other in (*pairs[index + 1 :], *pairs[:index]):
            exchanged = with_words_of(pair, other)
            if exchanged is not None and exchanged not in prompts:
                prompts.append(exchanged)
        found.append(prompts)
    count = min(COUNTERPARTS, *map(len, found), *(1 for pair in pairs if pair.unsafe_image is not pair.safe_image))
    return [prompts[:count] for prompts in found]


def with_words_of(pair: Pair, other: Pair) -> str | None:
    """Return the unsafe prompt of a pair with what another pair shows in the concept's place.

    None if either pair differs in more than one place, or its safe side only leaves words out: then what stands there
    belongs to the scene.
    """
    exchange = place_of_concept(other)
    return exchange and pair.unsafe_with(exchange[1])


def _twins(
    pipe: Any, pairs: Sequence[Pair], config: BuildConfig, call_kwargs: Mapping[str, Any] | None, bar: "tqdm[Any]"
) -> Scenes:
    """Make clips of the unsafe side of each pair and of its safe prompts, the nearest of which is its counterpart."""
    prompts = safe_prompts(pairs)
    copies = 1 + len(prompts[0])
    seeds = 1 if len(prompts[0]) == COUNTERPARTS else PAIR_SEEDS
    scenes = [(pair, safe) for pair, safe in zip(pairs, prompts, strict=True) for _ in range(seeds)]
    sides = [(text, config.seed + index) for index, (pair, safe) in enumerate(scenes) for text in (pair.unsafe, *safe)]
    pictures = [picture for pair, safe in scenes for picture in (pair.unsafe_image, *[pair.safe_image] * len(safe))]
    latents = _make(pipe, sides, pictures, config.batch_size, call_kwargs, bar)
    ordered = torch.stack([nearest_first(clips) for clips in latents.unflatten(0, (len(scenes), copies))])
    words = tuple(shared_words(pair.unsafe, pair.safe) for pair, _ in scenes)
    return Scenes(ordered, _every_second(words), tuple(pair.safe_image for pair, _ in scenes), words)


def nearest_first(clips: Tensor) -> Tensor:
    """Return the clips of a scene with the safe one that is nearest to the unsafe one, the first, in second place.

    The nearest one is what the model draws in the concept's place with the least change to all else. One that is nearer
    than half of the median distance may show the concept still, and is passed over.

    Args:
        clips: Clean latents of shape (1 + safe clips, parts, ...).
    """
    unsafe, safe = clips[0], clips[1:]
    distances = (safe - unsafe).flatten(1).float().norm(dim=1)
    distances[distances < distances.median() / 2] = torch.inf
    nearest = int(distances.argmin())
    others = [index for index in range(len(safe)) if index != nearest]
    return torch.cat([clips[:1], safe[nearest : nearest + 1], safe[others]])


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
    texts = [text or "" for text in spread(concept.neutral, count)]
    pictures = spread(concept.neutral_images or [pair.safe_image for pair in pairs], count)
    sides = [(text, config.seed + 500 + index) for index, text in enumerate(texts)]
    latents = _make(pipe, sides, pictures, config.batch_size, call_kwargs, bar)
    return Scenes(latents[:, None], _every_second(texts), tuple(pictures))


def _every_second(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(text if index % 2 == 0 else "" for index, text in enumerate(texts))


def spread(items: Sequence[Any], count: int) -> list[Any]:
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
    more(bar, len(sides))
    size = 1 if run.one_by_one or any(picture is not None for picture in pictures) else batch
    latents = []
    for start in range(0, len(sides), size):
        texts, seeds = zip(*sides[start : start + size], strict=True)
        latents.append(clean_latents(run, texts, seeds, pictures[start]))
        bar.update(len(texts))
    return torch.cat(latents)


def more(bar: "tqdm[Any]", count: int) -> None:
    """Add to the total of a progress bar."""
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
