"""Generate full clips for the front of a search: judged on embedded worlds, written as files for other pipelines."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from unlearning_adapters.clips import save_clip, to_clip
from unlearning_adapters.evaluation.arms.generate import ClipRequest, generate
from unlearning_adapters.evaluation.arms.observe import measure
from unlearning_adapters.evaluation.detectors.detector import load_detector
from unlearning_adapters.evaluation.metrics import FORGET, NEIGHBOUR, ArmRates
from unlearning_adapters.evaluation.suites.suite import Suite
from unlearning_adapters.evaluation.suites.world import World
from unlearning_adapters.evaluation.suites.worlds import suite_for
from unlearning_adapters.pipelines.spacing import evenly_spaced

from .search import Search, SearchResult, acting
from .space import Trial, rank_correlation

SHOWN = 6  # settings of the front that are generated
JUDGED_CLIPS = 12  # prompts that name the concept, and as many of its neighbours
SEED = 5107  # of the judged prompts; no search sees them


def shown_front(result: SearchResult, count: int = SHOWN) -> list[Trial]:
    """Return the chosen trial and others of the front, evenly spaced, in the order of the front."""
    front = result.front
    places = set(evenly_spaced(len(front), count))
    if front.index(result.best) not in places:
        nearest = min(places, key=lambda index: abs(index - front.index(result.best)))
        places = places - {nearest} | {front.index(result.best)}
    return [front[index] for index in sorted(places)]


def judge_front(search: Search, result: SearchResult, world: World, clips: int = JUDGED_CLIPS) -> dict[str, Any]:
    """Generate and judge clips of the base and of settings of the front, on prompts that the search has not seen.

    Args:
        search: A search on the model of an embedded world, for a concept with a target.
        result: What it found.
        world: The world.
        clips: Number of prompts that name the concept, and of prompts that name its neighbours.

    Returns:
        "base" and "front" with the judge's rates (the latter with the number of the trial), "clips", and
        "rank_correlation" of what is left with the concept's rate, and of the drift with the neighbours that are lost.
    """
    suite = judged_suite(search, world, clips)
    trials, judge, rows = shown_front(result), [load_detector(world.detectors[0])], []
    base = measure(search.pipe, suite, judge).rates
    for trial in tqdm(trials, desc="Generation", unit="setting", disable=not search.progress):
        with acting(search.pipe, search.adapter(trial.config)):
            rows.append({"number": trial.number, **_rates(measure(search.pipe, suite, judge).rates)})
    lost = [1 - row["preservation"] for row in rows]
    return {
        "clips": clips,
        "base": _rates(base),
        "front": rows,
        "rank_correlation": {
            "leftover": rank_correlation([t.leftover for t in trials], [row["concept_rate"] for row in rows]),
            "drift": rank_correlation([t.drift for t in trials], lost),
        },
    }


def judged_suite(search: Search, world: World, clips: int) -> Suite:
    """Return the prompts that name the concept of a search and those that name its neighbours."""
    suite = suite_for(world.suite(world.value_of(search.split.concept), clips, SEED), search.pipe)
    return replace(suite, sets=tuple(part for part in suite.sets if part.role in (FORGET, NEIGHBOUR)))


def show_front(search: Search, result: SearchResult, folder: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Write a clip of the base and of each shown setting, for one prompt of the concept and one that must not change.

    Args:
        search: A search on any pipeline.
        result: What it found.
        folder: Where the clips go, in `clips`.
        arguments: Further arguments of the pipeline's call.

    Returns:
        "prompts", and the names of the files of the "base" and of the "front".

    Raises:
        EvaluationError: If the pipeline makes no clips.
    """
    held_out = search.split.test if search.split.test.forget else search.split.validation
    prompts = [held_out.forget[0].prompt, held_out.retain[0]]
    requests = [ClipRequest(prompt, search.seed) for prompt in prompts]

    def write(label: str) -> list[str]:
        files = []
        for number, frames in enumerate(generate(search.pipe, requests, arguments), start=1):
            files.append(f"clips/{label}-{number}.mp4")
            save_clip(to_clip(frames), folder / files[-1])
        return files

    record: dict[str, Any] = {"prompts": prompts, "base": write("base"), "front": []}
    for trial in tqdm(shown_front(result), desc="Generation", unit="setting", disable=not search.progress):
        with acting(search.pipe, search.adapter(trial.config)):
            record["front"].append({"number": trial.number, "files": write(f"trial-{trial.number}")})
    return record


def _rates(arm: ArmRates) -> dict[str, Any]:
    """Return the rates of an arm; without a valid clip nothing counts as erased."""
    return {
        "concept_rate": 1.0 if arm.concept_rate.value is None else arm.concept_rate.value,
        "preservation": arm.preservation.value or 0.0,
        "valid_rate": arm.valid_rate.value or 0.0,
    }
