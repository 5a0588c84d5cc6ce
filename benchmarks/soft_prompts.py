"""Measure rounds against soft prompts: python -m benchmarks.soft_prompts [--values V ...] [--counts N ...]; resumes.

Writes benchmarks/soft-prompts.json and .md. Concept-scope adapters of the embedded model, built with
`BuildConfig(soft_prompts=N)`, and the gold model of red: how often a soft prompt of 8 vectors and 300 steps, learned
three times from other seeds and clips than those of the build, brings the concept back in 24 open prompts, and what
prompts of a seed that no other file uses show without it.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import unlearning_adapters as ua
from unlearning_adapters.attacks.budget import MEDIUM
from unlearning_adapters.attacks.kinds.soft_prompt import soft_prompt
from unlearning_adapters.attacks.run import examples_of
from unlearning_adapters.attacks.subject import Subject
from unlearning_adapters.attacks.target import world_target
from unlearning_adapters.evaluation.detectors.shapes import shapes
from unlearning_adapters.evaluation.rates import Rate
from unlearning_adapters.shapeworld.models.generate import generation_of

from .concept import cell, draw_sets, look, open_rates, other_rates
from .models import open_model
from .worlds import NEIGHBOURS, markdown_table, write_results

FILE = Path(__file__).parent / "soft-prompts.json"
SEED = 9420  # of all prompts; no other file uses it
CLIPS = 96
PROMPTS = 24
ATTACKS = (100, 101, 102)  # seeds of the soft prompts that attack
KINDS = ("open", "named", NEIGHBOURS)
GOLD = "shapeworld-without-red"


def attacked(pipe: Any, base: Any, value: str) -> list[dict[str, int]]:
    """Return, for each soft prompt that is learned through a pipeline, how many clips show the value and are valid."""
    target, subject = world_target(value, PROMPTS, SEED), Subject(pipe, (shapes(),), generation_of(pipe), 16)
    examples = examples_of(subject.on(base), target)
    points = [soft_prompt(subject, target, examples, replace(MEDIUM, seed=seed))[0] for seed in ATTACKS]
    return [{"shown": point.rate.hits, "valid": point.valid.hits, "count": point.rate.count} for point in points]


def measure_value(value: str, counts: list[int], known: dict[str, Any], save: Any) -> None:
    """Measure what is missing for one value."""
    pipe, sets = ua.load_shapeworld(), draw_sets(value, CLIPS, SEED)
    call, seen = generation_of(pipe), None
    for count in counts:
        if str(count) in known:
            continue
        seen = seen or look(pipe, value, sets, KINDS, f"{value}: base")
        start = time.perf_counter()
        config = ua.BuildConfig(scope="concept", soft_prompts=count)
        concept = ua.load_concept(f"shapeworld-{value}")
        adapter = ua.build_adapter(pipe, concept, config, progress=False, call_kwargs=call)
        seconds = time.perf_counter() - start
        ua.load_unlearning_adapter(pipe, adapter)
        try:
            found = look(pipe, value, sets, KINDS, f"{value}: {count} soft prompts")
            attacks = attacked(pipe, ua.load_shapeworld(), value)
        finally:
            ua.unload_unlearning_adapters(pipe)
        rates = open_rates(value, found["samples"]["open"], found["clips"]["open"], seen)
        others = other_rates(value, {"other words": (), **found["samples"]})
        known[str(count)] = {**rates, **others, "attacks": attacks, "seconds": seconds}
        save()
    if value == "red" and "gold" not in known:
        known["gold"] = {"attacks": attacked(open_model(GOLD), pipe, value)}
        save()


def table(results: dict[str, Any]) -> str:
    """Return the Markdown table."""
    head = ["concept", "soft prompts erased", "shown, three attacks (valid)", "all attacks", "open", "named",
            "spared keep their value", "neighbours", "drift of spared", "build, s"]  # fmt: skip
    rows = []
    for value, known in results.items():
        for count, item in known.items():
            each = ", ".join(f"{attack['shown']} ({attack['valid']})" for attack in item["attacks"])
            total = Rate(*(sum(attack[key] for attack in item["attacks"]) for key in ("shown", "count")))
            rates = [
                cell(Rate(**item[key])) if key in item else ""
                for key in ("open", "named", "spared keep their value", "neighbours")
            ]
            numbers = [f"{item['drift of spared']:.4f}", f"{item['seconds']:.0f}"] if "seconds" in item else ["", ""]
            rows.append([value, count, each, cell(total), *rates, *numbers])
    return markdown_table(head, rows)


def main() -> None:
    """Measure what is missing, and write both files after each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", nargs="+", default=["red", "square", "right"])
    parser.add_argument("--counts", nargs="+", type=int, default=[0, 2, 4])
    parser.add_argument("--file", type=Path, default=FILE)
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.file.read_text()) if options.file.exists() else {}

    def save() -> None:
        write_results(options.file, results, table(results))

    for value in options.values:
        measure_value(value, options.counts, results.setdefault(value, {}), save)


if __name__ == "__main__":
    main()
