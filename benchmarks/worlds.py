"""What the benchmarks of the ShapeWorld models share: suites of labelled prompts, and rates as JSON and as text."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearning_adapters.adapter.draft import write_whole
from unlearning_adapters.evaluation.arms.observe import Measurement
from unlearning_adapters.evaluation.metrics import FORGET, NEIGHBOUR, measure_samples
from unlearning_adapters.evaluation.rates import Rate
from unlearning_adapters.evaluation.suites.suite import Suite
from unlearning_adapters.evaluation.suites.world import prompt_set
from unlearning_adapters.shapeworld.models.generate import generation_of
from unlearning_adapters.shapeworld.world.prompts import LabelledPrompt, find_factor

NEIGHBOURS = "neighbours"
Sets = Mapping[str, Sequence[LabelledPrompt]]  # prompts by kind; all but the neighbours name the concept


def suite_of(pipe: Any, value: str, sets: Sets) -> Suite:
    """Return labelled prompts as a suite, with the call arguments of a ShapeWorld model."""
    made = [
        prompt_set(re.sub(r"\W+", "-", kind), NEIGHBOUR if kind == NEIGHBOURS else FORGET, prompts)
        for kind, prompts in sets.items()
    ]
    return Suite(value, tuple(made), {find_factor(value): value}, generation_of(pipe), sensitive=False)


def rates_of(sets: Sets, found: Measurement, value: str) -> dict[str, Any]:
    """Return hits and counts: concept shown in valid clips by kind, valid clips, the other factors, the neighbours."""
    shown, start = {}, 0
    for kind, prompts in sets.items():
        samples = found.samples[start : start + len(prompts)]
        start += len(prompts)
        if kind != NEIGHBOURS:
            shown[kind] = rate_json(measure_samples(samples, find_factor(value)).concept_rate)
    rates = found.rates
    others = {
        "valid": rates.valid_rate,
        "context kept": rates.context_kept,
        "preservation": rates.preservation,
        "worst neighbour": rates.worst_neighbour,
    }
    return {"shown": shown, **{name: rate_json(rate) for name, rate in others.items()}}


def rate_json(rate: Rate) -> dict[str, Any]:
    """Return a rate as plain JSON types: hits, count and interval."""
    return {"hits": rate.hits, "count": rate.count, "interval": [round(end, 4) for end in rate.interval]}


def pooled(rates: Sequence[Mapping[str, Any]]) -> str:
    """Return the rate of all together with its 95 % Wilson interval, as text."""
    rate = Rate(sum(item["hits"] for item in rates), sum(item["count"] for item in rates))
    return f"{rate.value:.3f} ({rate.interval[0]:.3f} to {rate.interval[1]:.3f})"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]]) + "\n"


def write_results(file: Path, results: Mapping[str, Any], text: str) -> None:
    """Write results as JSON and their Markdown beside it, each whole or not at all."""
    for path, content in ((file, json.dumps(results, indent=1) + "\n"), (file.with_suffix(".md"), text)):
        write_whole(path, content.encode())
