"""Measure nine concepts on every ShapeWorld model: python -m benchmarks.models [--clips N] [--models NAME]; resumes.

Writes benchmarks/models.json and benchmarks/models.md. For each model and concept: five pairs, default settings,
held-out prompts with the concept's own word and with other words, prompts of its neighbours, and neutral ones, which
leave its factor open, the same seeds for all arms; rivals, the best of them also at strengths up to the one at which
it erases as much; three concepts stacked; and how long a build takes, in generations of one clip. The pairs are the
shipped ones; for the model that reads real language, those of `language_concept`, whose five phrases stand for the own
word, and all phrases that no pair holds for other words.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

import unlearning_adapters as ua
from unlearning_adapters.clips import to_clip
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.errors import ConceptError
from unlearning_adapters.evaluation.arms.generate import ClipRequest, generate
from unlearning_adapters.evaluation.arms.observe import BATCH, measure, request_of
from unlearning_adapters.evaluation.detectors.shapes import shapes
from unlearning_adapters.evaluation.suites.shapeworld import shapeworld_suite, synonym_prompts
from unlearning_adapters.shapeworld.models.generate import generation_of, prompt_length
from unlearning_adapters.shapeworld.world.prompts import LabelledPrompt, draw_prompts, find_factor, neighbour_prompts
from unlearning_adapters.shapeworld.world.scenes import FACTORS

from .language import CONCEPTS
from .language import neighbour_prompts as language_neighbours
from .language_concepts import language_concept
from .language_prompts import KINDS, phrase_prompts, phrases_of
from .worlds import NEIGHBOURS, Sets, markdown_table, pooled, rates_of, suite_of

FOLDER = Path(__file__).parent
FILE = FOLDER / "models.json"
LANGUAGE = "shapeworld-language"
MODELS = ("shapeworld", "shapeworld-unet", "shapeworld-cogvideox", LANGUAGE)
METHODS = {
    "ridge": ua.BuildConfig(),
    "uce": ua.BuildConfig(method="uce"),
    "cpca": ua.BuildConfig(method="cpca"),
}
# A rival that leaves more than `ridge` is raised until it does not, so that drifts are compared where both erase.
STRENGTHS = (1.2, 1.4, 1.7, 2.0, 2.5, 3.0, 4.0)
RAISED = {f"uce {strength:g}": ua.BuildConfig(method="uce", strength=strength) for strength in STRENGTHS}
ENOUGH = {"own word": 0.02, "synonyms": 0.10}  # what the project aims at
STACK = ("red", "circle", "left")
SEED = 631  # of the prompts and the noise; no other file uses it
SHOWN = ("own word", "synonyms")
KEPT = ("valid", "context kept", "preservation")
DRIFTS = ("drift", "neutral drift")  # of the neighbours' clips, and of those whose prompts leave the factor open
DRIFT_COLUMNS = ("drift of neighbours, parts of the rival's", "drift of neutral clips")


@dataclass(frozen=True)
class World:
    """A model with what is measured on it.

    Args:
        name: One of `MODELS`.
        pipe: Its pipeline.
        clips: Number of prompts of each kind.
        bases: The base's clips and rates by concept, kept for all arms.
    """

    name: str
    pipe: Any
    clips: int
    bases: dict[str, Any] = field(default_factory=dict)


def open_model(name: str) -> Any:
    """Return a model: the embedded one, or one of the folder `models`."""
    if name == "shapeworld":
        return ua.load_shapeworld()
    if name == LANGUAGE:
        return ua.load_shapeworld_language()
    return DiffusionPipeline.from_pretrained(f"models/{name}", dtype=torch.float32)


def find_concept(model: str, value: str) -> Concept:
    """Return the concept of a value in the words that a model reads."""
    return language_concept(value) if model == LANGUAGE else ua.load_concept(f"shapeworld-{value}")


def draw_sets(value: str, clips: int, model: str = MODELS[0]) -> dict[str, list[LabelledPrompt]]:
    """Return held-out prompts: the concept by its own word, by other words, and its neighbours."""
    factor = find_factor(value)
    if model == LANGUAGE:
        known = language_concept(value).words
        others = [phrase for kind in KINDS for phrase in phrases_of(value, kind, known)]
        return {
            SHOWN[0]: phrase_prompts(value, known, clips, SEED),
            SHOWN[1]: phrase_prompts(value, others, clips, SEED + 1),
            NEIGHBOURS: language_neighbours(value, clips // (len(FACTORS[factor]) - 1), SEED + 2),
        }
    sets = {
        SHOWN[0]: draw_prompts(clips, SEED, **{factor: value}),
        SHOWN[1]: synonym_prompts(value, clips, SEED + 2),
    }
    return {
        **{kind: found for kind, found in sets.items() if found},
        NEIGHBOURS: neighbour_prompts(clips, SEED, value),
    }


def arm(pipe: Any, value: str, sets: Sets, base: Sequence[Any] | None, label: str) -> Any:
    """Return the clips of an arm and its rates; with the base's clips also the drift of the neighbours' ones."""
    found = measure(pipe, suite_of(pipe, value, sets), [shapes()], progress=label)
    rates = rates_of(sets, found, value)
    if base is not None:
        kept = len(sets[NEIGHBOURS])
        rates["drift"] = drift(found.clips[-kept:], base[-kept:])
    return found.clips, rates


def drift(clips: Sequence[Any], base: Sequence[Any]) -> float:
    """Return the mean difference of clips from the base's, in parts of the range of a pixel."""
    pairs = zip(clips, base, strict=True)
    return float(np.mean([np.abs(one.astype(float) - other).mean() / 255 for one, other in pairs]))


def measure_neutral(world: World, value: str, arms: dict[str, dict[str, Any]]) -> None:
    """Add to each arm that lacks it the drift of neutral clips: their prompts leave the concept's factor open."""
    missing = [method for method in arms if method != "base" and "neutral drift" not in arms[method]]
    if not missing:
        return
    cases = [case for case in shapeworld_suite(value, 2 * world.clips, SEED + 3).cases() if case.set == "generic"]
    requests = [request_of(case) for case in cases]

    def clips() -> list[Any]:
        return [to_clip(frames) for frames in generate(world.pipe, requests, generation_of(world.pipe), BATCH)]

    base = clips()
    for method in missing:
        ua.load_unlearning_adapter(world.pipe, build(world, value, method)[0])
        try:
            arms[method]["neutral drift"] = drift(clips(), base)
        finally:
            ua.unload_unlearning_adapters(world.pipe)


def build(world: World, value: str, method: str) -> tuple[ua.UnlearningAdapter, float]:
    """Return an adapter and the seconds that its build took."""
    concept, length = find_concept(world.name, value), prompt_length(generation_of(world.pipe))
    start = time.perf_counter()
    adapter = ua.build_adapter(
        world.pipe,
        concept,
        {**METHODS, **RAISED}[method],
        progress=False,
        call_kwargs=length,
    )
    return adapter, time.perf_counter() - start


def measure_concept(world: World, value: str, methods: Iterable[str], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rates of the base and of each method for one concept, those that are known as they are."""
    missing = [method for method in methods if method not in known]
    if not missing and known:
        return dict(known)
    sets = draw_sets(value, world.clips, world.name)
    if value not in world.bases:
        world.bases[value] = arm(world.pipe, value, sets, None, f"{value}: base")
    base, found = world.bases[value]
    arms = {**known, "base": found}
    for method in missing:
        try:
            adapter, seconds = build(world, value, method)
        except ConceptError as error:  # UCE where each of too many tokens differs
            print(f"{value}: {error}")
            continue
        ua.load_unlearning_adapter(world.pipe, adapter)
        try:
            _, found = arm(world.pipe, value, sets, base, f"{value}: {method}")
        finally:
            ua.unload_unlearning_adapters(world.pipe)
        arms[method] = {"strength": adapter.strength, "build seconds": seconds, **found}
    return arms


def leaves(found: Mapping[str, Any], method: str) -> dict[str, float]:
    """Return how often a method shows all concepts together, by their own word and by others."""
    left = {}
    for kind in SHOWN:
        rates = [arms[method]["shown"][kind] for arms in found["concepts"].values() if kind in arms[method]["shown"]]
        left[kind] = sum(rate["hits"] for rate in rates) / max(1, sum(rate["count"] for rate in rates))
    return left


def meets_aims(found: Mapping[str, Any], method: str) -> bool:
    """Tell whether a method leaves no more of all concepts together than the project aims at."""
    return all(left <= ENOUGH[kind] for kind, left in leaves(found, method).items())


def erases_as_ridge(found: Mapping[str, Any], method: str) -> bool:
    """Tell whether a method shows all concepts together, by whatever word, no more often than `ridge`."""
    return sum(leaves(found, method).values()) <= sum(leaves(found, "ridge").values())


def measure_stack(world: World, stack: Sequence[str]) -> dict[str, Any]:
    """Return, for each concept of the stack, its rates with all of them loaded, and with it alone."""
    adapters = {value: build(world, value, "ridge")[0] for value in stack}
    found: dict[str, Any] = {}
    for value in stack:
        drawn = draw_sets(value, 2 * world.clips, world.name)
        sets = {
            kind: [item for item in items if free(item, value, stack)][: world.clips] for kind, items in drawn.items()
        }
        for label, names in (("alone", (value,)), ("stacked", tuple(stack))):
            for name in names:
                ua.load_unlearning_adapter(world.pipe, adapters[name], adapter_name=name)
            try:
                found.setdefault(value, {})[label] = arm(world.pipe, value, sets, None, f"{value}: {label}")[1]
            finally:
                ua.unload_unlearning_adapters(world.pipe)
    return found


def free(prompt: LabelledPrompt, value: str, stack: Sequence[str]) -> bool:
    """Tell whether a prompt names none of the other stacked concepts."""
    return not set(prompt.factors.values()) & (set(stack) - {value})


def raise_rival(world: World, found: dict[str, Any], keep: Callable[[], None]) -> None:
    """Measure the rival at one strength after the other, up to the first at which it leaves no more than `ridge`."""
    done = "uce"
    for method in RAISED:
        if erases_as_ridge(found, done):
            return
        for value, arms in found["concepts"].items():
            found["concepts"][value] = measure_concept(world, value, [method], arms)
            keep()
        done = method


def clip_seconds(world: World) -> float:
    """Return the seconds of one generation, the middle of three."""
    taken = []
    for prompt in draw_prompts(3, SEED):
        start = time.perf_counter()
        generate(world.pipe, [ClipRequest(prompt.prompt, prompt.seed)], generation_of(world.pipe))
        taken.append(time.perf_counter() - start)
    return sorted(taken)[1]


def time_builds(world: World, found: dict[str, Any]) -> None:
    """Measure the builds and generations again, in turn: other work on the machine spoils times, and no rate."""
    taken = []
    for value, arms in found["concepts"].items():
        taken.append(clip_seconds(world))
        for method, item in arms.items():
            if "build seconds" in item:
                item["build seconds"] = build(world, value, method)[1]
    found["clip seconds"] = float(np.median(taken))


def row(model: str, name: str, arms: list[dict[str, Any]], generation: float) -> list[str]:
    """Return one row of the table: all concepts together, and the worst one."""
    cells = []
    for kind in SHOWN:
        found = [item["shown"][kind] for item in arms if kind in item["shown"]]
        cells.append(pooled(found))
    worst = max(item["shown"][SHOWN[0]]["hits"] / max(1, item["shown"][SHOWN[0]]["count"]) for item in arms)
    cells.insert(1, f"{worst:.2f}")
    cells += [pooled([item[key] for item in arms]) for key in KEPT]
    cells.append(f"{min(item['worst neighbour']['hits'] / item['worst neighbour']['count'] for item in arms):.2f}")
    for key in DRIFTS:
        moved = [item[key] for item in arms if key in item]
        cells.append(f"{np.mean(moved):.5f}" if moved else "")
    built = [item["build seconds"] for item in arms if "build seconds" in item]
    cells.append(f"{np.median(built) / generation:.2f}" if built else "")
    return [model, name, *cells]


def table(results: dict[str, Any]) -> str:
    """Return the Markdown table."""
    head = ["model", "arm", "concept shown", "worst concept", "other words", *KEPT, "worst neighbour"]
    head += ["drift, neighbours", "drift, neutral", "build"]
    rows = []
    for model, found in results.items():
        concepts = found["concepts"].values()
        for name in ("base", *METHODS, *RAISED):
            if arms := [item[name] for item in concepts if name in item]:
                rows.append(row(model, name, arms, found["clip seconds"]))
        for label in ("alone", "stacked"):
            if arms := [item[label] for item in found.get("stack", {}).values()]:
                rows.append(row(model, f"{', '.join(found['stack'])}: {label}", arms, found["clip seconds"]))
    return markdown_table(head, rows)


def drifts(results: dict[str, Any]) -> str:
    """Return a table of the drift beside the rival's that moves least of those that erase enough.

    Enough is what the project aims at, or as much as `ridge`. Models are left out until all is measured.
    """
    head = ["model", "the rival leaves no more than", "rival", "left, own word", "left, other words", *DRIFT_COLUMNS]
    rows = []
    for model, found in results.items():
        moved = mean_drifts(found)
        if "ridge" not in moved:
            continue
        for label, enough in (("0.02, 0.10", meets_aims), ("ridge", erases_as_ridge)):
            rivals = [name for name in moved if name != "ridge" and enough(found, name)]
            if not rivals:
                rows.append([model, label, "none", *[""] * 4])
                continue
            best = min(rivals, key=lambda name: moved[name][0])
            ratios = [f"{one / other:.2f}" for one, other in zip(moved["ridge"], moved[best], strict=True)]
            left = [f"{value:.3f}" for value in leaves(found, best).values()]
            rows.append([model, label, best, *left, *ratios])
    return markdown_table(head, rows)


def mean_drifts(found: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the mean drifts of each arm that was measured on all concepts, in the order of `DRIFTS`."""
    moved = {}
    for name in (*METHODS, *RAISED):
        arms = [arms.get(name, {}) for arms in found["concepts"].values()]
        if all(key in item for item in arms for key in DRIFTS):
            moved[name] = [float(np.mean([item[key] for item in arms])) for key in DRIFTS]
    return moved


def main() -> None:
    """Measure what is not in the file yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=40, help="prompts of each kind (default: 40)")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--concepts", nargs="+", default=CONCEPTS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--builds", action="store_true", help="time the builds of what is in the file again, and end")
    parser.add_argument("--file", type=Path, default=FILE)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    old = json.loads(options.file.read_text()) if options.file.is_file() else {}
    results = old.get("models", {}) if old.get("clips") == options.clips else {}

    def keep() -> None:
        options.file.write_text(json.dumps({"clips": options.clips, "seed": SEED, "models": results}, indent=1) + "\n")
        options.file.with_suffix(".md").write_text(table(results) + "\n" + drifts(results))

    for model in options.models:
        world = World(model, open_model(model), options.clips)
        if options.builds:
            time_builds(world, results[model])
            keep()
            continue
        found = results.setdefault(model, {"concepts": {}})
        found.setdefault("clip seconds", clip_seconds(world))
        for value in options.concepts:
            known = found["concepts"].get(value, {})
            found["concepts"][value] = measure_concept(world, value, options.methods, known)
            keep()
        if set(CONCEPTS) <= set(found["concepts"]) and "uce" in options.methods:
            raise_rival(world, found, keep)
        for value, arms in found["concepts"].items():
            measure_neutral(world, value, arms)
            keep()
        if "stack" not in found:
            found["stack"] = measure_stack(world, STACK)
            keep()
    print(table(results) + "\n" + drifts(results))


if __name__ == "__main__":
    main()
