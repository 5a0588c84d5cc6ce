"""Write the result tables of README.md and docs/results.md from the JSON files of the benchmarks.

    python -m benchmarks.tables

Each table stands between the comments `<!-- table: NAME -->` and `<!-- end of table -->`. A test compares both files
with the JSON, so that no number is written by hand.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlearning_adapters.evaluation.rates import Rate

from . import erasure, language, models

FOLDER = Path(__file__).parent
PAGES = (FOLDER.parent / "README.md", FOLDER.parent / "docs" / "results.md")
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
EMBEDDED = models.MODELS[0]
README_ARMS = {"base": "base model", "cpca": "the paper's cPCA", "uce": "UCE", "ridge": "**ours (`ridge`)**"}
MENTIONS = {"own word": "concept shown", "synonyms": "by other words"}
OPEN_ARMS = {"base": "base", "ridge": "word"}  # whose clips of prompts that leave the concept open were counted
RIVALS = ("cpca", "ridge", "uce", "rece", "esd")  # of the table of three factors
MODEL_ARMS = {  # beside the base, ridge, UCE and cPCA: UCE at the aims' strength, and at the one that erases as ridge
    "shapeworld": ("uce 1.4",),
    "shapeworld-unet": ("uce 1.7", "uce 2"),
    "shapeworld-cogvideox": ("uce 1.2", "uce 2"),
    "shapeworld-language": ("uce 1.7", "uce 4"),
}


def read(name: str) -> Any:
    """Return the content of a JSON file of this folder."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def rate(item: Mapping[str, Any]) -> str:
    """Return a rate with its 95 % interval."""
    if item["value"] is None:
        return "n/a"
    low, high = item["interval"]
    return f"{item['value']:.2f} [{low:.2f}, {high:.2f}]"


def together(rates: Sequence[Mapping[str, Any]]) -> str:
    """Return the rate of several concepts together with its 95 % Wilson interval."""
    both = Rate(sum(item["hits"] for item in rates), sum(item["count"] for item in rates))
    return rate({"value": both.value, "interval": both.interval})


def readme_table() -> str:
    """Return the table of the README: nine concepts of the embedded model together."""
    concepts = read("models")["models"][EMBEDDED]["concepts"].values()
    arms = {name: [found[name] for found in concepts] for name in README_ARMS}
    opened = read("concept")[EMBEDDED].values()
    rows = []
    for name, label in README_ARMS.items():
        cells = [together([item["shown"][kind] for item in arms[name]]) for kind in MENTIONS]
        known = name in OPEN_ARMS
        cells.append(together([found[OPEN_ARMS[name]]["open"] for found in opened]) if known else "n/a")
        cells.append(together([item["preservation"] for item in arms[name]]))
        measured = name != "base"
        cells.append(f"{np.mean([item['drift'] for item in arms[name]]):.5f}" if measured else "")
        cells.append(f"{np.median([item['build seconds'] for item in arms[name]]):.2f} s" if measured else "")
        rows.append([label, *cells])
    return grid(["", *MENTIONS.values(), "not named", "neighbours kept", "their drift", "build"], rows)


def model_table() -> str:
    """Return the table of all ShapeWorld models: nine concepts each, and three concepts alone and stacked."""
    rows = []
    for model, found in read("models")["models"].items():
        names = ("base", "ridge", "uce", "cpca", *MODEL_ARMS[model])
        groups = {name: [arms[name] for arms in found["concepts"].values() if name in arms] for name in names}
        for label in ("alone", "stacked"):
            groups[f"{', '.join(found['stack'])}: {label}"] = [arms[label] for arms in found["stack"].values()]
        rows += [[model, name, *model_cells(arms)] for name, arms in groups.items()]
    head = ["model", "arm", "concept shown", "other words", "valid", "preservation"]
    return grid([*head, "drift, neighbours", "drift, neutral"], rows)


def model_cells(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the rates and the drifts of several concepts together."""
    cells = [models.pooled([arm["shown"][kind] for arm in arms if kind in arm["shown"]]) for kind in models.SHOWN]
    cells += [models.pooled([arm[key] for arm in arms]) for key in ("valid", "preservation")]
    for key in models.DRIFTS:
        moved = [arm[key] for arm in arms if key in arm]
        cells.append(f"{np.mean(moved):.5f}" if moved else "")
    return cells


def method_table() -> str:
    """Return the table of all methods side by side on red."""
    keys = ("concept", "erased", "paraphrases", "context", "preservation", "drift")
    rows = []
    for row in read("compare")["rows"].values():
        rank, seconds = row["rank"], row["build_seconds"]
        ends = ["n/a" if rank is None else str(rank), "n/a" if seconds is None else f"{seconds:.2f}"]
        rows.append([row["title"], *(drift(row[key]) if key == "drift" else rate(row[key]) for key in keys), *ends])
    head = ["arm", "concept shown", "erased", "erased, other words", "rest of the scene", "neighbours", "drift"]
    return grid([*head, "rank", "build s"], rows)


def drift(item: Mapping[str, Any] | None) -> str:
    """Return a drift with its 95 % interval."""
    if item is None or item["value"] is None:
        return "n/a"
    low, high = item["interval"]
    return f"{item['value']:.3f} [{low:.3f}, {high:.3f}]"


def factor_table() -> str:
    """Return the rivals that erase anything, on one concept of each factor."""
    rows = []
    for concept, name in (("red", "compare"), ("circle", "compare-circle"), ("left", "compare-left")):
        found = read(name)["rows"]
        for row in (found[rival] for rival in RIVALS):
            rates = [rate(row[key]) for key in ("concept", "erased", "paraphrases", "preservation")]
            rows.append([concept, row["title"], *rates, drift(row["drift"])])
    return grid(["concept", "arm", "concept shown", "erased", "erased, other words", "neighbours", "drift"], rows)


TABLES = {
    "readme": readme_table,
    "erasure": lambda: erasure.to_markdown(read("erasure")),
    "language": lambda: language.summary(read("language")["concepts"]),
    "models": model_table,
    "drifts": lambda: models.drifts(read("models")["models"]),
    "methods": method_table,
    "factors": factor_table,
}


def written(text: str) -> str:
    """Return the text of a page with every table made from the JSON files."""
    return BLOCK.sub(lambda block: block[1] + TABLES[block[2]]() + block[3], text)


def main() -> None:
    """Write the tables of all pages."""
    for page in PAGES:
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
