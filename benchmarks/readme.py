"""Write benchmarks/README.md and its plots from results.json; no number in it is typed.

python -m benchmarks.readme
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .curves import write_curves
from .report import Row, from_json, grid
from .sizes import FULL

FOLDER = Path(__file__).parent
RESULTS, PAGE = FOLDER / "results.json", FOLDER / "README.md"
HEAD = """# Benchmarks

```bash
python -m benchmarks --output FILE          # all parts but the long ones, each written when it is done; resumes
python -m benchmarks --only weights stacks  # parts, or the first word of several
python -m benchmarks --only true-sizes      # a pipeline of true size: 16 GB of memory; two experts: 20 GB
python -m benchmarks.readme                 # this page and its plots, from results.json
python -m benchmarks.erasure                # what is forgotten and what is kept, about 6 minutes
python -m benchmarks.concept                # what models draw where prompts leave the concept open
python -m benchmarks.concept_settings       # the same at other guidance and steps, and stacked
python -m benchmarks.concept_rivals         # other edits, steering and prompts in its place
python -m benchmarks.concept_attacks        # attacks on it; some ten minutes per concept
python -m benchmarks.soft_prompts           # rounds against soft prompts, three attacks each
python -m benchmarks.models                 # nine concepts on each ShapeWorld model, three stacked, beside UCE
python -m benchmarks.language               # nine concepts in real language
python -m benchmarks.packs                  # what a text encoder's reads make of the shipped concepts, about a minute
python -m benchmarks.search                 # whether the proxy of a search ranks settings as full generation does
python -m benchmarks.cast                   # a hundred names, implied things, stand-ins of packs; two hours
```

Every row compares two sides that were measured in turn in one run; the ratio is the median over the rounds, with the
least and the largest. No test asserts a time. All numbers are in [results.json](results.json), those of the erasure in
[erasure.json](erasure.json), those of the attacks (`unlearn attack`) in [attacks.json](attacks.json).
"""
NOT_RUN = """## Not run

On a GPU: fuse, unfuse, an attached call and a build. The rows above are those of a CPU.
"""
BESIDE = (
    " Parts with 1 thread were kept to one core; other work ran on the other one, and, where the load is above 2, on "
    "theirs too."
)
MATRIX = """Fuse and unfuse: the median time of ours over that of the stock verb, which is not exact, and over that
of one bare copy of the edited weights. Bold is a promise that is missed; the heads give the promises.
"""
VERBS, PARTS_OF_A_NAME = ("fuse", "unfuse"), 5  # verb/record/layers/dtype/threads/against
CURVES = {
    "adapters.svg": "A denoiser call over the number of attached adapters",
    "width.svg": "Fuse and unfuse over the width of the layers",
}


def page(report: Mapping[str, Any], curves: Sequence[str]) -> str:
    """Return the page of a report.

    Args:
        report: Rows, and how they were measured.
        curves: Names of the plots beside it.
    """
    rows = from_json(report)
    verbs = [row for row in rows if row.name.split("/")[0] in VERBS and row.name.count("/") == PARTS_OF_A_NAME]
    others = [row for row in rows if row not in verbs]
    lost = [row for row in rows if row.met is False]
    won = [row for row in others if row.met]
    plain = [row for row in others if row.met is None]
    parts = [HEAD, f"{_conditions(report)}\n"]
    if lost:
        promises = sum(row.met is not None for row in rows)
        parts.append(f"## Where we lose\n\n{len(lost)} of {promises} promises are missed.\n")
    if verbs:
        parts.append(_matrix(verbs))
    if lost:
        if missed := [row for row in lost if row not in verbs]:
            parts.append(grid(missed))
        parts.append("Why:\n\n" + "".join(f"- {reason}: {', '.join(names)}.\n" for reason, names in _reasons(lost)))
    parts += [f"![{CURVES[name]}]({name})\n" for name in curves]
    if won:
        parts.append(f"## Where we keep the promise\n\n{grid(won)}")
    if plain:
        parts.append(f"## Without a promise\n\n{grid(plain)}")
    parts.append(NOT_RUN)
    explained = {_pattern(row): row for row in reversed(rows)}
    lines = [f"- `{name}`: {row.what}.\n" for name, row in reversed(explained.items())]
    parts.append(
        "## What the rows are\n\nA `*` stands for layers, dtype and threads; the text is that of one of them.\n\n"
        + "".join(lines)
    )
    if verbs:
        parts.append(f"## All rows of fuse and unfuse\n\n{grid(verbs)}")
    return "\n".join(parts)


def _matrix(rows: Sequence[Row]) -> str:
    """Return the median ratios of fuse and unfuse as a table: cases down, comparisons across."""
    ratios: dict[str, dict[tuple[str, str, str], str]] = {}
    promises: dict[tuple[str, str, str], str] = {}
    for row in rows:
        verb, record, layers, dtype, threads, against = row.name.split("/")
        key = (verb, record, "stock" if against.endswith("_lora") else "a bare copy")
        shown = f"{row.ratio.median:.2f}"
        count, in_features, out_features = FULL.layers[layers]
        case = f"{count} of {in_features} x {out_features}, {dtype}, {threads.replace('-', ' ')}"
        ratios.setdefault(case, {})[key] = shown if row.met else f"**{shown}**"
        promises[key] = row.target or ""
    columns = sorted(promises, key=lambda key: (key[2] != "stock", key[0], key[1] != "copy"))
    heads = " | ".join(
        f"{verb}, {record}, of {against}, {promises[verb, record, against]}" for verb, record, against in columns
    )
    lines = [f"| time of ours over | {heads} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {case} | {' | '.join(found.get(key, '') for key in columns)} |" for case, found in ratios.items()]
    return "\n".join([MATRIX, *lines, ""])


def _conditions(report: Mapping[str, Any]) -> str:
    known = report["environment"]
    libraries = ", ".join(f"{name} {known[name]}" for name in ("torch", "diffusers", "peft") if name in known)
    text = f"Measured on {known['cpu']}, {known['cores']} cores, {known['threads']} threads, {libraries}."
    took = [f"{name} {part['seconds']} s{_otherwise(part, known)}" for name, part in report.get("parts", {}).items()]
    if not took:
        return text
    busy = any(part["load_average"] > part["threads"] for part in report["parts"].values() if _otherwise(part, known))
    return f"{text} The parts took: {', '.join(took)}.{BESIDE if busy else ''}"


def _otherwise(part: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """Return in brackets how a part was measured, if otherwise than the rest."""
    names = [name for name in ("cpu", "threads") if part.get(name, known[name]) != known[name]]
    shown = [f"{name}: {part[name]}" for name in (*names, "load_average")] if names else []
    return f" ({', '.join(shown)})".replace("load_average", "load of the machine") if shown else ""


def _reasons(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        by_reason.setdefault(row.reason, []).append(_pattern(row))
    return [
        (reason, [f"`{name}`" + (f" ({count} rows)" if count > 1 else "") for name, count in Counter(names).items()])
        for reason, names in by_reason.items()
    ]


def _pattern(row: Row) -> str:
    """Return a row's name, with a star in place of the layers, dtype and threads of fuse and unfuse."""
    parts = row.name.split("/")
    return "/".join([*parts[:2], "*", parts[-1]]) if len(parts) > PARTS_OF_A_NAME else row.name


def main() -> None:
    """Write the page."""
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    curves = write_curves(from_json(report), FOLDER)
    PAGE.write_text(page(report, curves), encoding="utf-8")


if __name__ == "__main__":
    main()
