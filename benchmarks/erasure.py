"""Measure erasure and preservation on ShapeWorld, all methods on the same prompts and seeds.

    python -m benchmarks.erasure --clips 102 --output benchmarks/erasure

Writes `erasure.json` (every rate with its counts and interval) and `erasure.md` (the table of the README), and the
accuracy of the base model on held-out captions, which is the gate of all other numbers.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unlearning_adapters import BuildConfig, build_adapter, load_concept, load_shapeworld
from unlearning_adapters.evaluation.arms.observe import measure
from unlearning_adapters.evaluation.detectors.shapes import shapes
from unlearning_adapters.evaluation.metrics import FORGET, RATES
from unlearning_adapters.evaluation.rates import Rate
from unlearning_adapters.evaluation.suites.shapeworld import shapeworld_suite
from unlearning_adapters.evaluation.suites.suite import Suite
from unlearning_adapters.evaluation.suites.world import prompt_set
from unlearning_adapters.runtime.verbs import load_unlearning_adapter, unload_unlearning_adapters
from unlearning_adapters.shapeworld.models.generate import GENERATION
from unlearning_adapters.shapeworld.world.prompts import LabelledPrompt, draw_prompts
from unlearning_adapters.shapeworld.world.scenes import FACTORS

from .worlds import markdown_table

PAIRS = 5
SEED = 417  # of the prompts and the noise; no other file uses it
COLUMNS = (*RATES, "motion_ratio")


def config_of(method: str) -> BuildConfig:
    """Return the settings of one arm; "cpca" takes as many components as five pairs support."""
    return BuildConfig(method=method, pairs=PAIRS)


def measure_concept(pipe: Any, name: str, methods: list[str], clips: int, synonyms: bool) -> dict[str, Any]:
    """Return the rates of the base and of each method for one concept."""
    concept = load_concept(name)
    value = next(iter(concept.target.values()))
    suite = shapeworld_suite(value, clips, SEED, paraphrases=False, synonyms=synonyms)
    base = measure(pipe, suite, [shapes()], progress=f"{name} base").rates
    arms: dict[str, Any] = {"base": base.to_dict(base)}
    for method in methods:
        adapter = build_adapter(pipe, concept, config_of(method), progress=False)
        load_unlearning_adapter(pipe, adapter)
        arm = measure(pipe, suite, [shapes()], progress=f"{name} {method}").rates
        unload_unlearning_adapters(pipe)
        arms[method] = {"strength": adapter.strength, **arm.to_dict(base)}
    return {"clips": clips, "synonyms": synonyms, "arms": arms}


def cell(value: float | None) -> str:
    """Return a rate as text; "-" is "not applicable", which is not zero."""
    return "-" if value is None else f"{value:.2f}"


def to_markdown(results: dict[str, Any]) -> str:
    """Return one table row per concept and arm."""
    rows = []
    for name, result in results["concepts"].items():
        for arm, values in result["arms"].items():
            label = f"{arm}, strength {values['strength']:.2f}" if arm == "ridge" else arm
            rows.append([name, label, *(cell(values[column]) for column in COLUMNS)])
    return markdown_table(["concept", "arm", *(column.replace("_", " ") for column in COLUMNS)], rows)


def accuracy(pipe: Any, prompts: Sequence[LabelledPrompt], label: str) -> dict[str, Rate]:
    """Return, for prompts that name all factors, the share of clips with each factor right, and of valid clips."""
    suite = Suite("gate", (prompt_set("gate", FORGET, prompts),), generation=GENERATION)
    samples = measure(pipe, suite, [shapes()], progress=label).samples
    rates = {"valid": Rate.of(sample.valid for sample in samples)}
    for name in FACTORS:
        rates[name] = Rate.of(sample.labels.get(name) == sample.truth[name] for sample in samples)
    return rates


def gate(pipe: Any, count: int) -> dict[str, Any]:
    """Return the share of held-out captions whose factors the base model gets right."""
    rates = {}
    for label, options in (("plain words", {}), ("synonyms", {"synonyms": True})):
        found = accuracy(pipe, draw_prompts(count, SEED, **options), f"gate, {label}")
        rates[label] = {name: {"rate": rate.value, "interval": rate.interval} for name, rate in found.items()}
    return rates


def main() -> None:
    """Parse the command line, measure, and write both files after every concept."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--concepts", nargs="+", default=["red", "circle", "left"])
    parser.add_argument("--methods", nargs="+", default=["ridge", "mean", "cpca", "random"])
    parser.add_argument("--clips", type=int, default=102, help="prompts of the concept, and as many of its neighbours")
    parser.add_argument("--gate", type=int, default=240, help="held-out captions of the base gate, 0 for none")
    parser.add_argument("--synonyms", action="store_true", help="let prompts use words such as 'crimson' for 'red'")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/erasure"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pipe = load_shapeworld()
    results: dict[str, Any] = {"generation": GENERATION, "seed": SEED, "pairs": PAIRS, "concepts": {}}
    if arguments.gate:
        results["gate"] = gate(pipe, arguments.gate)
    for name in arguments.concepts:
        results["concepts"][name] = measure_concept(pipe, name, arguments.methods, arguments.clips, arguments.synonyms)
        arguments.output.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")
        arguments.output.with_suffix(".md").write_text(to_markdown(results))
    print(to_markdown(results))


if __name__ == "__main__":
    main()
