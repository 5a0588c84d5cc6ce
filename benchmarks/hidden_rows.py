"""What a small denoiser reads of counterfactual clips, token by token, for methods that need more than moments."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from tqdm import tqdm

import unlearning_adapters as ua
from unlearning_adapters.building.video.scenes import Scenes, few_levels, find_scenes
from unlearning_adapters.building.video.sites import find_video_sites
from unlearning_adapters.config import DEFAULT_PAIRS
from unlearning_adapters.methods.rows import GroupRows, NeutralRows, Sides
from unlearning_adapters.pipelines.hooks import after_calls, on_input
from unlearning_adapters.pipelines.running.clean_latents import run_noised
from unlearning_adapters.pipelines.running.partial_run import PartialRun
from unlearning_adapters.pipelines.sites import denoisers, site_module
from unlearning_adapters.shapeworld.models.generate import generation_of

CONFIG = ua.BuildConfig(scope="concept")
MIDDLE = "middle block"
Read = dict[str, list[list[Tensor]]]  # by layer: of each scene, at each noise level, rows (copies, tokens, features)


@dataclass(frozen=True)
class HiddenRows:
    """Rows of the clips from which `scope="concept"` builds: the same prompts, seeds and noise levels.

    Args:
        sites: What each layer that reads video tokens reads, by its name.
        middle: What the middle block writes.
        neutral_prompts: Prompts of the neutral clips.
    """

    sites: dict[str, GroupRows]
    middle: GroupRows
    neutral_prompts: tuple[str, ...]


def middle_block(pipe: Any) -> Any:
    """Return the block at half of the denoiser's depth."""
    blocks: Any = next(iter(denoisers(pipe).values())).blocks
    return blocks[len(blocks) // 2]


def read_hidden_rows(pipe: Any, concept: ua.Concept) -> HiddenRows:
    """Return what the layers read of the clips from which `scope="concept"` builds by default."""
    call, pairs = generation_of(pipe), concept.pairs[:DEFAULT_PAIRS]
    with tqdm(total=0, disable=True) as bar:
        twins, neutral = find_scenes(pipe, concept, pairs, CONFIG, call, None, bar)
    if neutral is None:
        raise ValueError(f"{concept.name} has no neutral prompts, and this benchmark needs some.")
    read, kept = _read(pipe, twins), _read(pipe, neutral)
    groups = {name: _group(read[name], kept[name]) for name in read}
    return HiddenRows({n: rows for n, rows in groups.items() if n != MIDDLE}, groups[MIDDLE], neutral.prompts)


def _read(pipe: Any, scenes: Scenes) -> Read:
    """Run the denoiser on each scene at the levels of a build; the first call, of noise alone, is left out."""
    names = [site.name for site in find_video_sites(pipe)]
    run = PartialRun(pipe, few_levels(pipe, generation_of(pipe)), any_video=False)
    found: Read = {name: [] for name in (*names, MIDDLE)}
    with ExitStack() as stack:
        for name in names:
            on_input(stack, site_module(pipe, name), lambda rows, name=name: found[name][-1].append(rows.clone()))
        after_calls(stack, middle_block(pipe), lambda _m, _a, _k, out: found[MIDDLE][-1].append(out.clone()))
        for index, latents in enumerate(scenes.latents):
            for read in found.values():
                read.append([])
            run_noised(run, latents[None], [scenes.prompts[index]], CONFIG.seed + 1000 + index)
    return {name: [levels[1:] for levels in read] for name, read in found.items()}


def _group(pairs: Sequence[Sequence[Tensor]], neutral: Sequence[Sequence[Tensor]]) -> GroupRows:
    """Return rows as methods take them: what must stay are the further safe clips and the neutral ones."""
    sides = tuple(tuple(Sides(copies[0], copies[1]) for copies in levels) for levels in pairs)
    kept = tuple(copies[2:].flatten(0, 1) for levels in pairs for copies in levels if len(copies) > 2)
    return GroupRows(sides, NeutralRows((*kept, *(level[0] for levels in neutral for level in levels))), "hidden")
