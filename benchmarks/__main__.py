"""Run the benchmarks: a table or, with --json, one JSON object on stdout; progress on stderr."""

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .arithmetic import benchmark_arithmetic
from .calls import benchmark_calls
from .many import benchmark_many
from .pipelines import benchmark_build, benchmark_load
from .report import Row, environment, from_json, to_json, to_table
from .sizes import FULL, QUICK, Sizes
from .solve import benchmark_solve
from .stacks import benchmark_stacks
from .true_sizes import benchmark_true_sizes
from .weights import benchmark_weights

Benchmark = Callable[[Sizes], Iterator[Row]]
BENCHMARKS: Mapping[str, Benchmark] = {
    "solve": benchmark_solve,
    **{f"weights-{case}": partial(benchmark_weights, cases=(case,)) for case in FULL.layers},
    "calls": benchmark_calls,
    "build": benchmark_build,
    "load": benchmark_load,
    "stacks": benchmark_stacks,
    "many": benchmark_many,
    "arithmetic": benchmark_arithmetic,
}
# Run only if it is named: an hour, and 20 GB of memory.
LONG: Mapping[str, Benchmark] = {
    "true-sizes": benchmark_true_sizes,
    "true-sizes-two-experts": partial(benchmark_true_sizes, experts=2),
}
# What the parts of one file have in common.
ALIKE = ("cpu", "quick", "threads", "torch")


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Ratios measured side by side in one run, each round in turn: medians with the smallest and "
        "largest. benchmarks/README.md says how long each part takes, and how much memory it needs.",
    )
    names = ", ".join((*BENCHMARKS, *LONG))
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"parts, or the first word of several: {names}")
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that all rows run, not to compare")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the table")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON object to a file, part by part")
    parser.add_argument("--again", action="store_true", help="measure parts again that the file has")
    parser.add_argument("--anew", action="store_true", help="replace the file, whatever it holds")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch (default: all cores)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    conditions = {**environment(), "quick": options.quick}
    report = _begun(None if options.anew else options.output, conditions)
    gc.freeze()  # each round collects what the one before left; what the imports made is no part of that
    try:
        for name, benchmark in _chosen(parser, options.only).items():
            if name in report["parts"] and not options.again:
                print(f"{name}: in the file; --again measures it again", file=sys.stderr)
                continue
            gc.collect()  # pipelines of an earlier part
            start, rows = time.perf_counter(), []
            for row in benchmark(QUICK if options.quick else FULL):
                print(f"{row.name}: {row.formula} = {row.ratio.median:.3g}", file=sys.stderr)
                rows.append(row)
            torch.set_num_threads(options.threads)
            _take(report, name, rows, {**environment(), "seconds": round(time.perf_counter() - start)})
            if options.output:
                options.output.write_text(f"{json.dumps(report, indent=2)}\n", encoding="utf-8")
    finally:
        gc.unfreeze()
    print(json.dumps(report, indent=2) if options.json else to_table(from_json(report), conditions))


def _chosen(parser: argparse.ArgumentParser, only: list[str] | None) -> Mapping[str, Benchmark]:
    every = {**BENCHMARKS, **LONG}
    if not only:
        return BENCHMARKS
    chosen = {}
    for word in only:
        named = {word} & every.keys() or {name for name in every if name.startswith(f"{word}-")}
        if not named:
            parser.error(f"there is no part {word!r}; the parts: {', '.join(every)}")
        chosen.update({name: every[name] for name in every if name in named})
    return chosen


def _begun(file: Path | None, conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report that a file holds, or a new one; end if it was measured otherwise, or is no report."""
    if file is None or not file.exists():
        return {**to_json([], dict(conditions)), "parts": {}}
    cure = "Give another --output, or --anew to replace it."
    try:
        held: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        earlier = held["environment"]
        if not all(isinstance(item, dict) for item in (earlier, held["parts"])):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError):
        sys.exit(f"{file} is no report of the benchmarks. {cure}")
    changes = [
        f"{key} {earlier.get(key)}, and not {conditions[key]}" for key in ALIKE if earlier.get(key) != conditions[key]
    ]
    if changes:
        sys.exit(f"{file} was measured with {'; '.join(changes)}. {cure}")
    return held


def _take(report: dict[str, Any], name: str, rows: list[Row], conditions: dict[str, Any]) -> None:
    """Put the rows of a part into a report, in place of those of an earlier run."""
    before = set(report["parts"].get(name, {}).get("rows", ()))
    kept = [row for row in report["rows"] if row["name"] not in before]
    report["rows"] = [*kept, *to_json(rows, {})["rows"]]
    report["parts"][name] = {**conditions, "rows": [row.name for row in rows]}


if __name__ == "__main__":
    main()
