"""Measure the concept scope at other guidance and steps, and stacked: python -m benchmarks.concept_settings; resumes.

Writes benchmarks/concept-settings.json and .md, on the embedded model. The adapters are built once, with default
settings, guidance 3 and 12 steps; base and edited clips have the same prompts and seeds. No prompt of it was looked at
while the method was made, nor were these concepts.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import unlearning_adapters as ua
from unlearning_adapters.attacks.target import world_target
from unlearning_adapters.evaluation.arms.observe import measure
from unlearning_adapters.evaluation.detectors.shapes import shapes
from unlearning_adapters.evaluation.metrics import Sample
from unlearning_adapters.evaluation.rates import Rate
from unlearning_adapters.shapeworld.models.generate import generation_of
from unlearning_adapters.shapeworld.world.prompts import LabelledPrompt, find_factor

from .concept import cell, drift, plain, shown
from .models import open_model
from .worlds import markdown_table, suite_of, write_results

FILE = Path(__file__).parent / "concept-settings.json"
MODEL = "shapeworld"
VALUES = ("green", "square", "right")
SEED = 9418  # of the prompts; no other file uses it
SETTINGS: dict[str, dict[str, Any]] = {
    **{f"guidance {value:g}": {"guidance_scale": value} for value in (1.0, 3.0, 5.0, 7.5, 10.0)},
    **{f"{steps} steps": {"num_inference_steps": steps} for steps in (4, 25, 50)},
}
Adapters = Mapping[str, ua.UnlearningAdapter]
ALL = "word of red beside all three"


@contextmanager
def loaded(pipe: Any, adapters: Sequence[ua.UnlearningAdapter]) -> Iterator[None]:
    """Load adapters, and take them off behind the block."""
    for number, adapter in enumerate(adapters):
        ua.load_unlearning_adapter(pipe, adapter, adapter_name=f"adapter-{number}")
    try:
        yield
    finally:
        ua.unload_unlearning_adapters(pipe)


def look(pipe: Any, value: str, kind: str, count: int, changes: Mapping[str, Any]) -> tuple[list[Any], list[Sample]]:
    """Return clips of open or named prompts of a concept at some settings, and what each shows."""
    target, factor = world_target(value, count, SEED), find_factor(value)
    items = target.open_prompts if kind == "open" else target.named
    prompts = [LabelledPrompt(one.text, {factor: value}, one.seed) for one in items]
    suite = suite_of(pipe, value, {kind: prompts})
    suite = replace(suite, generation={**generation_of(pipe), **changes})
    found = measure(pipe, suite, [shapes()], progress=f"{value}, {kind} {dict(changes)}")
    return list(found.clips), list(found.samples)


def counts(value: str, clips: Sequence[Any], samples: Sequence[Sample], base: tuple[Any, Any] | None) -> dict[str, Any]:
    """Return how often a concept is shown, and how far the clips drift that the base does not show it in."""
    factor = find_factor(value)
    found: dict[str, Any] = {
        "shown": plain([shown(sample, factor) == value for sample in samples]),
        "valid": plain([sample.valid for sample in samples]),
    }
    if base is not None:
        spared = [i for i, one in enumerate(base[1]) if one.valid and shown(one, factor) != value]
        found["kept"] = plain([shown(samples[i], factor) == shown(base[1][i], factor) for i in spared])
        found["drift"] = drift([clips[i] for i in spared], [base[0][i] for i in spared])
    return found


def measure_settings(
    pipe: Any, adapters: Mapping[str, ua.UnlearningAdapter], known: dict[str, Any], count: int
) -> None:
    """Measure open prompts of each concept at each setting, base and edited."""
    for setting, changes in SETTINGS.items():
        for value in VALUES:
            if value in known.setdefault(setting, {}):
                continue
            base = look(pipe, value, "open", count, changes)
            with loaded(pipe, [adapters[value]]):
                edited = look(pipe, value, "open", count, changes)
            known[setting][value] = {"base": counts(value, *base, None), "concept": counts(value, *edited, base)}
            write_results(FILE, RESULTS, page(RESULTS))


def measure_stacks(pipe: Any, adapters: Adapters, known: dict[str, Any], count: int) -> None:
    """Measure open and named prompts of each concept: alone, three stacked, and those beside a word-scope adapter."""
    word = ua.build_adapter(pipe, ua.load_concept("shapeworld-red"), progress=False)
    three = [adapters[value] for value in VALUES]
    for value in VALUES:
        if value in known:
            continue
        known[value] = {}
        for kind in ("open", "named"):
            base = look(pipe, value, kind, count, {})
            arms = {"alone": [adapters[value]], "three stacked": three, ALL: [word, *three]}
            known[value][kind] = {"base": counts(value, *base, None)}
            for arm, stack in arms.items():
                with loaded(pipe, stack):
                    known[value][kind][arm] = counts(value, *look(pipe, value, kind, count, {}), base)
        write_results(FILE, RESULTS, page(RESULTS))


RESULTS: dict[str, Any] = {}


def pooled(items: Sequence[Mapping[str, Any]], key: str) -> str:
    """Return the rate of all concepts together with its 95 % interval (Wilson), or the mean of numbers."""
    if key == "drift":
        return f"{sum(item[key] for item in items) / len(items):.4f}"
    return cell(Rate(sum(item[key]["hits"] for item in items), sum(item[key]["count"] for item in items)))


def page(results: Mapping[str, Any]) -> str:
    """Return both tables: all concepts together."""
    heads = ["setting", "base shows", "shown", "valid, base", "valid", "others keep their value", "their drift"]
    rows = []
    for setting, values in results["settings"].items():
        base, edited = ([found[arm] for found in values.values()] for arm in ("base", "concept"))
        cells = [pooled(base, "shown"), pooled(edited, "shown"), pooled(base, "valid"), pooled(edited, "valid")]
        rows.append([setting, *cells, pooled(edited, "kept"), pooled(edited, "drift")])
    stacks = results["stacks"].values()
    second = []
    for kind in ("open", "named"):
        for arm in ("base", "alone", "three stacked", ALL):
            items = [found[kind][arm] for found in stacks if kind in found]
            if items:
                second.append([kind, arm, *(pooled(items, key) for key in ("shown", "valid"))])
    return (
        f'{", ".join(VALUES)} together, embedded model, scope="concept".\n\n{markdown_table(heads, rows)}\n'
        f"{markdown_table(['prompts', 'adapters', 'shown', 'valid'], second)}"
    )


def main() -> None:
    """Measure what is missing, and write both files as it goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=32, help="prompts of each kind and concept")
    parser.add_argument("--fresh", action="store_true", help="measure again what is known")
    options = parser.parse_args()
    RESULTS.update(json.loads(FILE.read_text()) if FILE.exists() and not options.fresh else {})
    known = {part: RESULTS.setdefault(part, {}) for part in ("settings", "stacks")}
    pipe = open_model(MODEL)
    adapters = {
        value: ua.build_adapter(
            pipe,
            ua.load_concept(f"shapeworld-{value}"),
            ua.BuildConfig(scope="concept"),
            progress=False,
            call_kwargs=generation_of(pipe),
        )
        for value in VALUES
    }
    measure_settings(pipe, adapters, known["settings"], options.clips)
    measure_stacks(pipe, adapters, known["stacks"], options.clips)
    write_results(FILE, RESULTS, page(RESULTS))


if __name__ == "__main__":
    main()
