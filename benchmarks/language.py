"""Measure erasure in real language: python -m benchmarks.language [--clips N] [--concepts red ...]; resumes.

Writes benchmarks/language.json and benchmarks/language.md: nine concepts on ShapeWorld with a frozen text encoder, five
pairs each, default settings; prompts with the pairs' own phrases, with other words, with paraphrases, and with phrases
that the denoiser was not trained on; prompts of the neighbours; the same seeds for base and edited.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import unlearning_adapters as ua
from unlearning_adapters.evaluation.arms.observe import measure
from unlearning_adapters.evaluation.detectors.shapes import shapes
from unlearning_adapters.shapeworld.models.generate import GENERATION
from unlearning_adapters.shapeworld.world.phrases import TRAINED
from unlearning_adapters.shapeworld.world.prompts import LabelledPrompt, find_factor
from unlearning_adapters.shapeworld.world.scenes import FACTORS

from .language_concepts import language_concept
from .language_prompts import phrase_prompts, phrases_of
from .worlds import NEIGHBOURS, markdown_table, pooled, rates_of, suite_of

FOLDER = Path(__file__).parent
FILE = FOLDER / "language.json"
CONCEPTS = ("red", "green", "blue", "circle", "square", "cross", "left", "up", "down")
ARMS: dict[str, ua.BuildConfig | None] = {
    "base": None,
    "ridge": ua.BuildConfig(),
    "cpca": ua.BuildConfig(method="cpca"),
}
SEED = 2026
KINDS = ("pairs' phrases", "synonyms", "paraphrases", "unseen")


def draw_sets(value: str, known: Sequence[str], clips: int) -> dict[str, list[LabelledPrompt]]:
    """Return the prompts: those of the concept by kind of phrase, and those of its neighbours."""
    sets = {"pairs' phrases": phrase_prompts(value, known, clips, SEED)}
    for kind in ("synonyms", "paraphrases", "unseen"):
        if phrases := phrases_of(value, kind, known):
            sets[kind] = phrase_prompts(value, phrases, clips, SEED + 1)
    sets[NEIGHBOURS] = neighbour_prompts(value, clips // 2, SEED + 2)
    return sets


def neighbour_prompts(value: str, count: int, seed: int) -> list[LabelledPrompt]:
    """Return `count` prompts of each other value of the factor, by all phrases that the denoiser was trained on."""
    factor = find_factor(value)
    others = [other for other in FACTORS[factor] if other != value]
    return [prompt for other in others for prompt in phrase_prompts(other, TRAINED[factor][other], count, seed)]


def measure_concept(pipe: Any, value: str, clips: int, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rates of all arms for one concept, those that are known as they are."""
    concept = language_concept(value)
    sets = draw_sets(value, concept.words, clips)
    arms: dict[str, Any] = {}
    for name, config in ARMS.items():
        if name in known:
            arms[name] = known[name]
            continue
        strength = None
        if config is not None:
            # The text encoder runs on as many tokens as prompts are padded to.
            length = GENERATION["max_sequence_length"]
            adapter = ua.build_adapter(pipe, concept, config, call_kwargs={"max_sequence_length": length})
            strength = adapter.strength
            pipe.load_unlearning_adapter(adapter)
        try:
            found = measure(pipe, suite_of(pipe, value, sets), [shapes()], batch=32, progress=f"{value}: {name}")
        finally:
            if config is not None:
                pipe.unload_unlearning_adapters()
        arms[name] = {"strength": strength, **rates_of(sets, found, value)}
    return {"phrases": list(concept.words), "arms": arms}


def table(results: dict[str, Any]) -> str:
    """Return the Markdown table: one row per concept and arm."""
    heads = ["concept", "arm", "strength", *KINDS, "valid", "context kept", "preservation", "worst neighbour"]
    rows = []
    for value, found in results.items():
        for name, arm in found["arms"].items():
            strength = "" if arm["strength"] is None else f"{arm['strength']:.2f}"
            rates = [*(arm["shown"].get(kind) for kind in KINDS), *(arm[key] for key in heads[-4:])]
            rows.append(
                [value, name, strength, *(f"{rate['hits']}/{rate['count']}" if rate else "-" for rate in rates)]
            )
    return markdown_table(heads, rows)


def summary(results: dict[str, Any]) -> str:
    """Return the Markdown table of all concepts together: one row per arm, with 95 % Wilson intervals."""
    keys = ("valid", "context kept", "preservation")
    rows = []
    for name in ARMS:
        arms = [found["arms"][name] for found in results.values() if name in found["arms"]]
        columns = [[arm["shown"][kind] for arm in arms if kind in arm["shown"]] for kind in KINDS]
        columns += [[arm[key] for arm in arms] for key in keys]
        rows.append([name, *(pooled(column) for column in columns)])
    return markdown_table(["arm", *KINDS, *keys], rows)


def page(results: dict[str, Any]) -> str:
    """Return what language.md holds."""
    return f"{summary(results)}\n{table(results)}"


def main() -> None:
    """Measure what is not in the file yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=20, help="prompts per kind of phrase (default: 20)")
    parser.add_argument("--concepts", nargs="+", default=CONCEPTS)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--file", type=Path, default=FILE)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    old = json.loads(options.file.read_text()) if options.file.is_file() else {}
    results = old.get("concepts", {}) if old.get("clips") == options.clips else {}
    pipe = ua.load_shapeworld_language()
    for value in options.concepts:
        known = results.get(value, {}).get("arms", {})
        if set(ARMS) - set(known):
            results[value] = measure_concept(pipe, value, options.clips, known)
            options.file.write_text(
                json.dumps({"clips": options.clips, "seed": SEED, "concepts": results}, indent=1) + "\n"
            )
            options.file.with_suffix(".md").write_text(page(results))
    print(page(results))


if __name__ == "__main__":
    main()
