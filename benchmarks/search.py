"""Does the proxy of `unlearn search` rank settings as full generation does, and does its choice hold on other prompts?

    python -m benchmarks.search --concepts red circle --clips 32 --output benchmarks/search

For some settings of each concept, and for the one that a search chooses: what the proxy says on validation and on test
prompts, and what the judge sees in clips of held-out prompts. Writes `search.json`.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from unlearning_adapters import BuildConfig, load_concept, load_shapeworld
from unlearning_adapters.evaluation.arms.observe import Measurement, measure
from unlearning_adapters.evaluation.detectors.shapes import shapes
from unlearning_adapters.evaluation.metrics import NEIGHBOUR
from unlearning_adapters.evaluation.suites.shapeworld import shapeworld_suite
from unlearning_adapters.evaluation.suites.suite import Suite
from unlearning_adapters.search.search import Search, acting, run_search
from unlearning_adapters.search.space import rank_correlation
from unlearning_adapters.shapeworld.models.generate import GENERATION

SEED = 731  # of the prompts and the noise; no other file uses it
SETTINGS: tuple[dict[str, Any], ...] = (
    {"method": "random", "strength": 1.0},
    {"method": "ridge", "strength": 0.4},
    {"method": "ridge", "strength": 0.7},
    {"method": "ridge", "strength": 1.0},
    {"method": "ridge", "strength": 1.4},
    {"method": "ridge", "strength": 1.2, "rank": 3},
    {"method": "ridge", "strength": 1.2, "epsilon": 0.3},
    {"method": "ridge", "strength": 1.4, "blocks": (0, 1, 2)},
    {"method": "ridge", "strength": 1.4, "blocks": (2, 3, 4)},
    {"method": "mean", "strength": 0.7},
    {"method": "mean", "strength": 1.0},
    {"method": "cpca", "strength": 1.0},
    {"method": "cpca", "strength": 1.6},
    {"method": "leace", "strength": 1.0},
)
PAIRS_OF_COLUMNS = (
    ("leftover", "concept_rate"),
    ("mean_leftover", "concept_rate"),
    ("drift", "lost_neighbours"),
    ("drift", "changed_neighbours"),
    ("leftover", "test_leftover"),
    ("drift", "test_drift"),
)


def measure_setting(search: Search, config: BuildConfig, suite: Suite, base: Measurement) -> dict[str, Any]:
    """Return what the proxy and full generation say of one setting."""
    start = time.perf_counter()
    score = search.score(config)
    seconds = time.perf_counter() - start
    test = search.score(config, test=True)
    start = time.perf_counter()
    with acting(search.pipe, search.adapter(config)):
        found = measure(search.pipe, suite, [shapes()], latents=True)
    changed, arm = _changed_neighbours(suite, base, found), found.rates
    told = {key: value for key, value in config.to_dict().items() if key in ("method", "strength", "rank", "epsilon")}
    return {
        **told,
        "blocks": config.blocks and list(config.blocks),
        "block_strengths": config.block_strengths and dict(config.block_strengths),
        "leftover": score.most_leftover,
        "mean_leftover": score.mean_leftover,
        "drift": score.mean_drift,
        "test_leftover": test.most_leftover,
        "test_drift": test.mean_drift,
        "concept_rate": arm.concept_rate.value,
        "lost_neighbours": 1 - (arm.preservation.value or 0.0),
        "changed_neighbours": changed,
        "valid_rate": arm.valid_rate.value,
        "proxy_seconds": seconds,
        "generation_seconds": time.perf_counter() - start,
    }


def _changed_neighbours(suite: Suite, base: Measurement, found: Measurement) -> float:
    """Return the mean relative change of the latents of neighbours' clips."""
    assert base.latents is not None and found.latents is not None
    places = [place for place, case in enumerate(suite.cases()) if case.role == NEIGHBOUR]
    before, after = (item[places].flatten(1) for item in (base.latents, found.latents))
    return float(((after - before).norm(dim=1) / before.norm(dim=1)).mean())


def measure_concept(pipe: Any, name: str, clips: int, trials: int) -> dict[str, Any]:
    """Return all settings of a concept, the search's choice, and the rank correlations."""
    concept = load_concept(name)
    few = {name: value for name, value in GENERATION.items() if name != "num_inference_steps"}
    search = Search(pipe, concept, call_kwargs=few, progress=False)
    suite = shapeworld_suite(next(iter(concept.target.values())), clips, SEED, paraphrases=False)
    pairs = len(search.split.concept.pairs)
    base = measure(pipe, suite, [shapes()], latents=True)
    rows = [measure_setting(search, BuildConfig(**setting, pairs=pairs), suite, base) for setting in SETTINGS]
    correlations = {
        f"{one} ~ {other}": rank_correlation([row[one] for row in rows], [row[other] for row in rows])
        for one, other in PAIRS_OF_COLUMNS
    }
    default = measure_setting(search, BuildConfig(pairs=pairs, strength=search.calibrated()), suite, base)
    one = Search(pipe, concept, one_strength=True, call_kwargs=few, progress=False)
    return {
        "clips": clips,
        "rank_correlation": correlations,
        "settings": rows,
        "default": default,
        "search": measure_search(search, trials, suite, base),
        "search, one strength": measure_search(one, trials, suite, base),
    }


def measure_search(search: Search, trials: int, suite: Suite, base: Measurement) -> dict[str, Any]:
    """Return what a search finds: its choice, as `measure_setting` sees it, and its front."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = run_search(search, folder, trials)
    seconds = time.perf_counter() - start
    front = [
        {"leftover": t.leftover, "drift": t.drift, "test_leftover": s.most_leftover, "test_drift": s.mean_drift}
        for t, s in zip(found.front, found.tests, strict=True)
    ]
    chosen = measure_setting(search, found.best.config, suite, base)
    return {"trials": trials, "seconds": seconds, "chosen": chosen, "front": front}


def main() -> None:
    """Parse the command line, measure, and write the file after every concept."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--concepts", nargs="+", default=["red", "circle"])
    parser.add_argument("--clips", type=int, default=32, help="prompts of the concept, and as many of its neighbours")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/search"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pipe = load_shapeworld()
    results: dict[str, Any] = {"generation": GENERATION, "seed": SEED, "concepts": {}}
    for name in arguments.concepts:
        results["concepts"][name] = measure_concept(pipe, name, arguments.clips, arguments.trials)
        arguments.output.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        print(name, json.dumps(results["concepts"][name]["rank_correlation"], indent=2), flush=True)


if __name__ == "__main__":
    main()
