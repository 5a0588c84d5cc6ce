"""Attack concept-scope adapters with the medium budget: python -m benchmarks.concept_attacks [--only MODEL/VALUE ...].

Writes benchmarks/concept-attacks.json and .md; what is known is not run again. One concept per factor and model, with
default settings and the adapter fused. Other guidance and stacks are in benchmarks.concept_settings. There is one gold
model, of red: how a model that never saw the other concepts withstands the attacks is not known.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import unlearning_adapters as ua
from unlearning_adapters.attacks.run import cell, run_attacks
from unlearning_adapters.attacks.target import world_target
from unlearning_adapters.evaluation.detectors.shapes import shapes
from unlearning_adapters.shapeworld.models.generate import generation_of

from .models import open_model
from .worlds import markdown_table, write_results

FILE = Path(__file__).parent / "concept-attacks.json"
PROMPTS = 24  # of each kind, as the medium budget takes
GOLD = {"shapeworld/red": "shapeworld-without-red"}
ATTACKS = ("paraphrase", "seeds", "soft-prompt", "resurrection", "video", "together")
CASES = (
    "shapeworld/red",
    "shapeworld/square",
    "shapeworld-cogvideox/green",
    "shapeworld/right",
    "shapeworld-cogvideox/square",
    "shapeworld-cogvideox/right",
    "shapeworld-unet/green",
    "shapeworld-unet/square",
    "shapeworld-unet/right",
)


def attack_case(case: str) -> dict[str, Any]:
    """Return the report of all attacks on one concept of one model."""
    model, value = case.split("/")
    pipe = open_model(model)
    call = generation_of(pipe)

    concept, config = ua.load_concept(f"shapeworld-{value}"), ua.BuildConfig(scope="concept")
    adapter = ua.build_adapter(pipe, concept, config, progress=False, call_kwargs=call)
    gold, target = open_model(GOLD[case]) if case in GOLD else None, world_target(value, PROMPTS)
    names = [name for name in ATTACKS if name != "together" or target.together]  # one of two bodies moves with both
    return run_attacks(pipe, adapter, target, (shapes(),), names, "medium", gold=gold, call=call, batch=8)


def table(results: dict[str, Any]) -> str:
    """Return the Markdown table: a row per attack and setting, a column per case, "edited / base (gold)"."""
    cases = list(results)
    keys = list(dict.fromkeys(key for data in results.values() for key in _points(data)))
    rows = []
    for attack, setting in keys:
        cells = [_points(data).get((attack, setting), "") for data in results.values()]
        rows.append([attack, setting, *cells])
    head = ["attack", "setting", *cases]
    before = ["none", "prompts that name it", *(_before(data) for data in results.values())]
    text = "Share of clips that are valid and show the concept [95 % Wilson interval] (counts): edited / base / gold."
    return markdown_table(head, [before, *rows]) + f"\n{text}\n"


def _points(data: dict[str, Any]) -> dict[tuple[str, str], str]:
    """Return the cells of one case by attack and setting, noise levels without their last digit."""
    found = {}
    for entry in data["attacks"].values():
        for index, point in enumerate(entry["edited"].get("points", ())):
            others = [entry[arm]["points"][index] for arm in ("base", "gold") if entry[arm]]
            found[entry["title"], point["setting"]] = " / ".join(map(cell, [point, *others]))
    return found


def _before(data: dict[str, Any]) -> str:
    return cell(data["attacks"]["paraphrase"]["edited"]["points"][0]["before"])


def main() -> None:
    """Run what is missing, and write both files after each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--file", type=Path, default=FILE)
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.file.read_text()) if options.file.exists() else {}
    for case in options.only:
        if case not in results:
            results[case] = attack_case(case)
            write_results(options.file, results, table(results))


if __name__ == "__main__":
    main()
