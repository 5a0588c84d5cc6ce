"""Measure what models draw of themselves: python -m benchmarks.concept [--clips N] [--models NAME]; resumes.

Writes benchmarks/concept.json and benchmarks/concept.md. For each model and concept, with default settings, word-scope
and concept-scope adapters beside the base: prompts that leave the concept's factor open, prompts that name the concept
by its own word and by others, and prompts of its neighbours, with the same seeds for all arms. `red`, `circle`,
`left` and `up` were looked at while the method was made, with other prompts and seeds (7001).
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

import unlearning_adapters as ua
from unlearning_adapters.attacks.target import world_target
from unlearning_adapters.evaluation.arms.generate import ClipRequest, generate
from unlearning_adapters.evaluation.arms.observe import measure
from unlearning_adapters.evaluation.detectors.shapes import shapes
from unlearning_adapters.evaluation.metrics import UNKNOWN, Sample
from unlearning_adapters.evaluation.rates import Rate
from unlearning_adapters.shapeworld.models.generate import generation_of
from unlearning_adapters.shapeworld.world.prompts import LabelledPrompt, find_factor, neighbour_prompts
from unlearning_adapters.shapeworld.world.scenes import FACTORS

from .models import open_model
from .worlds import NEIGHBOURS, Sets, markdown_table, suite_of, write_results

FOLDER = Path(__file__).parent
FILE = FOLDER / "concept.json"
MODELS = ("shapeworld", "shapeworld-unet", "shapeworld-cogvideox")
TUNED = ("red", "circle", "left", "up")
VALUES = ("green", "square", "right", "red", "circle", "left", "blue", "triangle", "up")
SEED = 9417  # of the open prompts; no other file uses it
ARMS: dict[str, ua.BuildConfig | None] = {
    "base": None,
    "word": ua.BuildConfig(),
    "concept": ua.BuildConfig(scope="concept"),
}


def draw_sets(value: str, clips: int, seed: int = SEED) -> dict[str, list[LabelledPrompt]]:
    """Return prompts that leave the value's factor open, that name the value, by other words, and of its neighbours."""
    target, factor = world_target(value, clips, seed), find_factor(value)
    kinds = {
        "open": target.open_prompts,
        "named": target.named[: clips // 6],
        "other words": target.paraphrases[: clips // 6],
    }
    sets = {
        kind: [LabelledPrompt(one.text, {factor: value}, one.seed) for one in items] for kind, items in kinds.items()
    }
    return {**sets, NEIGHBOURS: neighbour_prompts(clips // 3, seed + 1, value)}


def open_rates(value: str, seen: Sequence[Sample], clips: Sequence[Any], base: dict[str, Any]) -> dict[str, Any]:
    """Return how often open prompts show a value, and how the clips are changed that did not show it before."""
    factor, before = find_factor(value), base["samples"]["open"]
    spared = [index for index, sample in enumerate(before) if sample.valid and shown(sample, factor) != value]
    others = [name for name in FACTORS if name != factor]
    return {
        "open": plain([shown(sample, factor) == value for sample in seen]),
        "valid": plain([sample.valid for sample in seen]),
        "instead": dict(Counter(shown(sample, factor) for sample in seen)),
        "spared keep their value": plain([shown(seen[i], factor) == shown(before[i], factor) for i in spared]),
        "rest of the scene": plain(
            [shown(now, name) == shown(then, name) for now, then in zip(seen, before, strict=True) for name in others]
        ),
        "drift of spared": drift([clips[i] for i in spared], [base["clips"]["open"][i] for i in spared]),
    }


def shown(sample: Sample, factor: str) -> str:
    """Return what a clip shows of a factor; "unknown" if it is not valid."""
    return sample.labels.get(factor, UNKNOWN)


def other_rates(value: str, samples: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """Return how often prompts that name a value show it, and how many neighbours are kept, with the worst one."""
    factor = find_factor(value)
    kept, asked = Counter[str](), Counter[str]()
    for sample in samples[NEIGHBOURS]:
        asked[sample.truth[factor]] += 1
        kept[sample.truth[factor]] += shown(sample, factor) == sample.truth[factor]
    named = {
        kind: plain([shown(sample, factor) == value for sample in samples[kind]])
        for kind in ("named", "other words")
        if samples[kind]
    }
    return {
        **named,
        "neighbours": {"hits": kept.total(), "count": asked.total()},
        "worst neighbour": min(kept[name] / count for name, count in asked.items()),
    }


def plain(flags: Sequence[bool]) -> dict[str, int]:
    """Return hits and count."""
    return {"hits": sum(map(bool, flags)), "count": len(flags)}


def drift(clips: Sequence[Any], base: Sequence[Any]) -> float:
    """Return the mean squared difference of clips from the base's, of pixels from 0 to 1."""
    if not clips:
        return 0.0
    pairs = zip(clips, base, strict=True)
    return float(np.mean([np.square((one.astype(float) - other) / 255).mean() for one, other in pairs]))


def look(
    pipe: Any, value: str, sets: Sets, kinds: Sequence[str], label: str, call: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the clips of some kinds of prompts, and what each shows; `call` has further arguments of the pipeline."""
    asked = {kind: sets[kind] for kind in kinds if sets[kind]}
    suite = suite_of(pipe, value, asked)
    suite = replace(suite, generation={**suite.generation, **(call or {})})
    found = measure(pipe, suite, [shapes()], progress=label)
    ends = list(accumulate(len(prompts) for prompts in asked.values()))
    places = {kind: slice(end - len(asked[kind]), end) for kind, end in zip(asked, ends, strict=True)}
    return {
        "clips": {kind: found.clips[places[kind]] for kind in asked},
        "samples": {kind: found.samples[places[kind]] if kind in asked else () for kind in kinds},
    }


def measure_concept(pipe: Any, value: str, clips: int) -> dict[str, Any]:
    """Return the rates of all arms for one concept."""
    sets = draw_sets(value, clips)
    base = look(pipe, value, sets, ("open", NEIGHBOURS), f"{value}: base")
    arms = {"base": open_rates(value, base["samples"]["open"], base["clips"]["open"], base)}
    for name, config in ARMS.items():
        if config is None:
            continue
        start = time.process_time()
        adapter = ua.build_adapter(
            pipe, ua.load_concept(f"shapeworld-{value}"), config, progress=False, call_kwargs=generation_of(pipe)
        )
        seconds = time.process_time() - start
        kinds = ("open", "named", "other words", NEIGHBOURS) if config.scope == "concept" else ("open",)
        ua.load_unlearning_adapter(pipe, adapter)
        try:
            seen = look(pipe, value, sets, kinds, f"{value}: {name}")
        finally:
            ua.unload_unlearning_adapters(pipe)
        arms[name] = open_rates(value, seen["samples"]["open"], seen["clips"]["open"], base)
        arms[name]["build"] = seconds / clip_seconds(pipe, sets["open"][0])
        if NEIGHBOURS in kinds:
            arms[name] |= other_rates(value, seen["samples"])
            arms[name]["drift of neighbours"] = drift(seen["clips"][NEIGHBOURS], base["clips"][NEIGHBOURS])
    return arms


def clip_seconds(pipe: Any, prompt: LabelledPrompt) -> float:
    """Return the seconds of processor time of one generation, the middle of three."""
    taken = []
    for _ in range(3):
        start = time.process_time()
        generate(pipe, [ClipRequest(prompt.prompt, prompt.seed)], generation_of(pipe))
        taken.append(time.process_time() - start)
    return sorted(taken)[1]


COLUMNS = ("open", "valid", "spared keep their value", "rest of the scene", "named", "other words", "neighbours")
NUMBERS = ("worst neighbour", "drift of spared", "drift of neighbours", "build")


def table(results: dict[str, Any]) -> str:
    """Return the Markdown table: all concepts of a model together, then each."""
    head = ["model", "concept", "arm", *COLUMNS, *NUMBERS, "open clips show"]
    rows = []
    for model, concepts in results.items():
        groups = {"all": list(concepts)} | {value: [value] for value in concepts}
        for label, values in groups.items():
            for arm in ARMS:
                name = f"{label} (tuned on)" if label in TUNED else label
                rows.append(row((model, name, arm), [concepts[value][arm] for value in values]))
    return markdown_table(head, rows)


def row(
    labels: Sequence[str],
    items: Sequence[dict[str, Any]],
    columns: Sequence[str] = COLUMNS,
    numbers: Sequence[str] = NUMBERS,
) -> list[str]:
    """Return one row: rates with 95 % Wilson intervals over all clips, means of the numbers."""
    cells = list(labels)
    for key in columns:
        found = [item[key] for item in items if key in item]
        pooled = Rate(sum(item["hits"] for item in found), sum(item["count"] for item in found)) if found else None
        cells.append("" if pooled is None else cell(pooled))
    for key in numbers:
        values = [item[key] for item in items if key in item]
        worst = min(values) if key == "worst neighbour" and values else None
        cells.append("" if not values else f"{np.mean(values) if worst is None else worst:.4f}")
    instead = Counter[str]()
    for item in items:
        instead.update(item["instead"])
    cells.append(", ".join(f"{name} {count}" for name, count in instead.most_common()) if len(items) == 1 else "")
    return cells


def cell(rate: Rate) -> str:
    """Return a rate with its 95 % interval (Wilson)."""
    low, high = rate.interval
    return f"{rate.value:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    """Measure what is missing, and write both files after each concept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--values", nargs="+", default=VALUES)
    parser.add_argument("--fresh", action="store_true", help="measure again what is known")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() and not options.fresh else {}
    for value in options.values:
        for model in options.models:
            known = results.setdefault(model, {})
            if value not in known:
                known[value] = measure_concept(open_model(model), value, options.clips)
                write_results(FILE, results, table(results))
    write_results(FILE, results, table(results))


if __name__ == "__main__":
    main()
