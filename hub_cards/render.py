"""Render the card of every shipped concept, with the numbers of benchmarks/erasure.json where it was measured.

python hub_cards/render.py [FOLDER]
"""

import json
import sys
from pathlib import Path
from typing import Any

from unlearning_adapters import AdapterInfo, Concept, load_concept
from unlearning_adapters.concepts.concept import list_concepts
from unlearning_adapters.hub.card import render_card

HERE = Path(__file__).resolve().parent
MEASURED = HERE.parent / "benchmarks" / "erasure.json"
BASE = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"  # a real base for the real-world concepts; none of them was measured on it


def measured_results() -> dict[str, Any]:
    """Return the measured results by concept; none if the benchmark has not been run."""
    results = json.loads(MEASURED.read_text(encoding="utf-8"))["concepts"] if MEASURED.is_file() else {}
    return {load_concept(name).name: result for name, result in results.items()}


def card_of(concept: Concept, result: dict[str, Any] | None) -> str:
    """Return the card of a concept whose adapter everybody builds on their own."""
    info = AdapterInfo(
        concept=concept.name,
        method="ridge",
        base_model="shapeworld" if concept.target else BASE,
        pipeline="WanPipeline",
        denoisers={"transformer": "WanTransformer3DModel"},
        pairs_hash=concept.pairs_hash,
        description=concept.description,
    )
    repository = f"your-name/no-{concept.name}"
    return render_card(info, repository, result=result, concept=concept, license="apache-2.0")


def main(folder: Path) -> None:
    """Write a card per concept."""
    results = measured_results()
    for name in list_concepts():
        (folder / f"{name}.md").write_text(card_of(load_concept(name), results.get(name)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
