"""Measure what models draw of themselves: python -m benchmarks.concept [--clips N] [--models NAME]; resumes.

Writes benchmarks/concept.json and benchmarks/concept.md. For each model and concept, with default settings, word-scope
and concept-scope adapters beside the base: prompts that leave the concept's factor open, prompts that name the concept
by its own word and by others, and prompts of its neighbours, with the same seeds for all arms. `red`, `circle` and
`left` were looked at while the method was made, with other prompts and seeds (7001); all other concepts, and both
further models, were not.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import unlearning_adapters as ua
from unlearning_adapters.attacks.shapeworld_target import shapeworld_target
from unlearning_adapters.evaluation.rates import Rate
from unlearning_adapters.shapeworld.models.generate import generate_clips, generation_of
from unlearning_adapters.shapeworld.world.judge import Verdict, judge_clips
from unlearning_adapters.shapeworld.world.prompts import LabelledPrompt, find_factor, neighbour_prompts

from .models import open_model

FOLDER = Path(__file__).parent
FILE = FOLDER / "concept.json"
MODELS = ("shapeworld", "shapeworld-unet", "shapeworld-cogvideox")
TUNED = ("red", "circle", "left")
VALUES = ("green", "square", "right", "red", "circle", "left", "blue", "triangle", "up")
SEED = 9417  # of the open prompts; no other file uses it
ARMS: dict[str, ua.BuildConfig | None] = {
    "base": None,
    "word": ua.BuildConfig(),
    "concept": ua.BuildConfig(scope="concept"),
}


def draw_sets(value: str, clips: int) -> dict[str, list[LabelledPrompt]]:
    """Return prompts that leave the value's factor open, that name the value, by other words, and of its neighbours."""
    target, factor = shapeworld_target(value, clips, SEED), find_factor(value)
    kinds = {
        "open": target.opened,
        "named": target.named[: clips // 6],
        "other words": target.paraphrases[: clips // 6],
    }
    sets = {kind: [LabelledPrompt(ask.text, {factor: value}, ask.seed) for ask in asks] for kind, asks in kinds.items()}
    return {**sets, "neighbours": neighbour_prompts(clips // 3, SEED + 1, value)}


def open_rates(value: str, seen: Sequence[Verdict], clips: Sequence[Any], base: dict[str, Any]) -> dict[str, Any]:
    """Return how often open prompts show a value, and how the clips are changed that did not show it before."""
    factor, before = find_factor(value), base["verdicts"]["open"]
    spared = [index for index, verdict in enumerate(before) if verdict.valid and verdict.factors[factor] != value]
    others = [name for name in before[0].factors if name != factor]
    return {
        "open": plain([verdict.factors[factor] == value for verdict in seen]),
        "valid": plain([verdict.valid for verdict in seen]),
        "instead": dict(Counter(verdict.factors[factor] for verdict in seen)),
        "spared keep their value": plain([seen[i].factors[factor] == before[i].factors[factor] for i in spared]),
        "rest of the scene": plain(
            [now.factors[name] == then.factors[name] for now, then in zip(seen, before, strict=True) for name in others]
        ),
        "drift of spared": drift([clips[i] for i in spared], [base["clips"]["open"][i] for i in spared]),
    }


def other_rates(value: str, sets: dict[str, list[LabelledPrompt]], verdicts: dict[str, Any]) -> dict[str, Any]:
    """Return how often prompts that name a value show it, and how many neighbours are kept, with the worst one."""
    factor = find_factor(value)
    kept = Counter[str]()
    for prompt, verdict in zip(sets["neighbours"], verdicts["neighbours"], strict=True):
        kept[prompt.factors[factor]] += verdict.factors[factor] == prompt.factors[factor]
    asked = Counter(prompt.factors[factor] for prompt in sets["neighbours"])
    shown = {
        kind: plain([verdict.factors[factor] == value for verdict in verdicts[kind]])
        for kind in ("named", "other words")
        if verdicts[kind]
    }
    return {
        **shown,
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


def look(pipe: Any, sets: dict[str, list[LabelledPrompt]], kinds: Sequence[str], label: str) -> dict[str, Any]:
    """Return the clips of some kinds of prompts, and the judge's verdicts."""
    clips = {kind: generate_clips(pipe, sets[kind], progress=f"{label}, {kind}") for kind in kinds if sets[kind]}
    return {"clips": clips, "verdicts": {kind: judge_clips(clips.get(kind, [])) for kind in kinds}}


def measure(pipe: Any, value: str, clips: int) -> dict[str, Any]:
    """Return the rates of all arms for one concept."""
    sets = draw_sets(value, clips)
    base = look(pipe, sets, ("open", "neighbours"), f"{value}: base")
    arms = {"base": open_rates(value, base["verdicts"]["open"], base["clips"]["open"], base)}
    for name, config in ARMS.items():
        if config is None:
            continue
        start = time.perf_counter()
        adapter = ua.build_adapter(
            pipe, ua.load_concept(f"shapeworld-{value}"), config, progress=False, call_kwargs=generation_of(pipe)
        )
        seconds = time.perf_counter() - start
        kinds = ("open", "named", "other words", "neighbours") if config.scope == "concept" else ("open",)
        ua.load_unlearning_adapter(pipe, adapter)
        try:
            seen = look(pipe, sets, kinds, f"{value}: {name}")
        finally:
            ua.unload_unlearning_adapters(pipe)
        arms[name] = open_rates(value, seen["verdicts"]["open"], seen["clips"]["open"], base)
        arms[name]["build"] = seconds / clip_seconds(pipe, sets["open"][0])
        if "neighbours" in kinds:
            arms[name] |= other_rates(value, sets, seen["verdicts"])
            arms[name]["drift of neighbours"] = drift(seen["clips"]["neighbours"], base["clips"]["neighbours"])
    return arms


def clip_seconds(pipe: Any, prompt: LabelledPrompt) -> float:
    """Return the seconds of one generation, the middle of three."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        generate_clips(pipe, [prompt])
        taken.append(time.perf_counter() - start)
    return sorted(taken)[1]


COLUMNS = ("open", "valid", "spared keep their value", "rest of the scene", "named", "other words", "neighbours")
NUMBERS = ("worst neighbour", "drift of spared", "drift of neighbours", "build")


def table(results: dict[str, Any]) -> str:
    """Return the Markdown table: all concepts of a model together, then each."""
    head = ["model", "concept", "arm", *COLUMNS, *NUMBERS, "open clips show"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for model, concepts in results.items():
        groups = {"all": list(concepts)} | {value: [value] for value in concepts}
        for label, values in groups.items():
            for arm in ARMS:
                lines.append(row(model, label, arm, [concepts[value][arm] for value in values]))
    return "\n".join(lines) + "\n"


def row(model: str, label: str, arm: str, items: Sequence[dict[str, Any]]) -> str:
    """Return one row: rates with 95 % Wilson intervals over all clips, means of the numbers."""
    cells = [model, f"{label} (tuned on)" if label in TUNED else label, arm]
    for key in COLUMNS:
        found = [item[key] for item in items if key in item]
        pooled = Rate(sum(item["hits"] for item in found), sum(item["count"] for item in found)) if found else None
        cells.append("" if pooled is None else cell(pooled))
    for key in NUMBERS:
        numbers = [item[key] for item in items if key in item]
        worst = min(numbers) if key == "worst neighbour" and numbers else None
        cells.append("" if not numbers else f"{np.mean(numbers) if worst is None else worst:.4f}")
    shown = Counter[str]()
    for item in items:
        shown.update(item["instead"])
    cells.append(", ".join(f"{name} {count}" for name, count in shown.most_common()) if len(items) == 1 else "")
    return "| " + " | ".join(cells) + " |"


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
                known[value] = measure(open_model(model), value, options.clips)
                write(results)
    write(results)


def write(results: dict[str, Any]) -> None:
    """Write results and table, whole or not at all."""
    for path, text in ((FILE, json.dumps(results, indent=1) + "\n"), (FILE.with_suffix(".md"), table(results))):
        part = path.with_suffix(".part")
        part.write_text(text)
        part.replace(path)


if __name__ == "__main__":
    main()
