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

import numpy as np
import torch

import unlearning_adapters as ua
from unlearning_adapters.evaluation.rates import Rate
from unlearning_adapters.shapeworld.models.generate import GENERATION, generate_clips
from unlearning_adapters.shapeworld.world.judge import Verdict, judge_clips
from unlearning_adapters.shapeworld.world.language_concepts import language_concept
from unlearning_adapters.shapeworld.world.language_prompts import phrase_prompts, phrases_of
from unlearning_adapters.shapeworld.world.phrases import TRAINED
from unlearning_adapters.shapeworld.world.prompts import LabelledPrompt, find_factor
from unlearning_adapters.shapeworld.world.scenes import FACTORS

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
    sets["neighbours"] = neighbour_prompts(value, clips // 2, SEED + 2)
    return sets


def neighbour_prompts(value: str, count: int, seed: int) -> list[LabelledPrompt]:
    """Return `count` prompts of each other value of the factor, by all phrases that the denoiser was trained on."""
    factor = find_factor(value)
    others = [other for other in FACTORS[factor] if other != value]
    return [prompt for other in others for prompt in phrase_prompts(other, TRAINED[factor][other], count, seed)]


def rates(value: str, sets: dict[str, list[LabelledPrompt]], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return hits and counts: concept shown in valid clips by kind, valid clips, the other factors, the neighbours."""
    factor, left = find_factor(value), list(verdicts)
    found: dict[str, Any] = {"shown": {}}
    valid = Rate(sum(verdict.valid for verdict in verdicts), len(verdicts))
    context, worst = [], {}
    for kind, prompts in sets.items():
        seen, left = left[: len(prompts)], left[len(prompts) :]
        pairs = list(zip(prompts, seen, strict=True))
        if kind == "neighbours":
            for prompt, verdict in pairs:
                hits = worst.setdefault(prompt.factors[factor], [])
                hits.append(verdict.valid and verdict.factors[factor] == prompt.factors[factor])
        else:
            shown = [verdict.factors[factor] == value for _, verdict in pairs if verdict.valid]
            found["shown"][kind] = Rate(sum(shown), len(shown))
            context += [
                verdict.factors[name] == prompt.factors[name]
                for prompt, verdict in pairs
                if verdict.valid
                for name in FACTORS
                if name != factor
            ]
    kept = [hit for hits in worst.values() for hit in hits]
    by_neighbour = [Rate(sum(hits), len(hits)) for hits in worst.values()]
    return {
        **found,
        "valid": valid,
        "context kept": Rate(int(np.sum(context)), len(context)),
        "preservation": Rate(sum(kept), len(kept)),
        "worst neighbour": min(by_neighbour, key=lambda rate: rate.hits / rate.count),
    }


def measure_concept(pipe: Any, value: str, clips: int, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rates of all arms for one concept, those that are known as they are."""
    concept = language_concept(value)
    sets = draw_sets(value, concept.words, clips)
    prompts = [prompt for members in sets.values() for prompt in members]
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
            verdicts = judge_clips(generate_clips(pipe, prompts, batch_size=32, progress=f"{value}: {name}"))
        finally:
            if config is not None:
                pipe.unload_unlearning_adapters()
        arms[name] = {"strength": strength, **plain(rates(value, sets, verdicts))}
    return {"phrases": list(concept.words), "arms": arms}


def plain(value: Any) -> Any:
    """Return rates as plain JSON types: hits, count and interval."""
    if isinstance(value, Rate):
        return {"hits": value.hits, "count": value.count, "interval": [round(end, 4) for end in value.interval]}
    return {name: plain(item) for name, item in value.items()}


def table(results: dict[str, Any]) -> str:
    """Return the Markdown table: one row per concept and arm."""
    head = ["concept", "arm", "strength", *KINDS, "valid", "context kept", "preservation", "worst neighbour"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]

    def cell(item: dict[str, Any] | None) -> str:
        return f"{item['hits']}/{item['count']}" if item else "-"

    for value, found in results.items():
        for name, arm in found["arms"].items():
            strength = "" if arm["strength"] is None else f"{arm['strength']:.2f}"
            shown = [cell(arm["shown"].get(kind)) for kind in KINDS]
            rest = [cell(arm[key]) for key in head[-4:]]
            lines.append("| " + " | ".join([value, name, strength, *shown, *rest]) + " |")
    return "\n".join(lines) + "\n"


def summary(results: dict[str, Any]) -> str:
    """Return the Markdown table of all concepts together: one row per arm, with 95 % Wilson intervals."""
    keys = ("valid", "context kept", "preservation")
    lines = ["| arm | " + " | ".join([*KINDS, *keys]) + " |", "|" + "---|" * (1 + len(KINDS) + len(keys))]
    for name in ARMS:
        arms = [found["arms"][name] for found in results.values() if name in found["arms"]]
        columns = [[arm["shown"][kind] for arm in arms if kind in arm["shown"]] for kind in KINDS]
        columns += [[arm[key] for arm in arms] for key in keys]
        lines.append(f"| {name} | " + " | ".join(pooled(column) for column in columns) + " |")
    return "\n".join(lines) + "\n"


def pooled(rates_found: Sequence[dict[str, Any]]) -> str:
    """Return the rate of all together with its 95 % Wilson interval, as text."""
    rate = Rate(sum(item["hits"] for item in rates_found), sum(item["count"] for item in rates_found))
    return f"{rate.value:.3f} ({rate.interval[0]:.3f} to {rate.interval[1]:.3f})"


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
