"""Run the benchmarks: a table or, with --json, one JSON object on stdout; progress on stderr."""

import argparse
import json
import os
import sys
from pathlib import Path

import torch

from .calls import benchmark_calls
from .pipelines import benchmark_build, benchmark_load
from .report import environment, to_json, to_table
from .sizes import FULL, QUICK
from .solve import benchmark_solve
from .weights import benchmark_weights

BENCHMARKS = {
    "solve": benchmark_solve,
    "weights": benchmark_weights,
    "calls": benchmark_calls,
    "build": benchmark_build,
    "load": benchmark_load,
}


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Ratios measured side by side in one run, each round in turn: medians with the smallest and "
        "largest. A full run takes about 15 minutes on two cores and needs 6 GB of memory.",
    )
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that all rows run, not to compare")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the table")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the JSON object to a file")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch (default: all cores)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    conditions = {**environment(), "quick": options.quick}
    sizes = QUICK if options.quick else FULL
    rows = []
    for name in options.only or BENCHMARKS:
        for row in BENCHMARKS[name](sizes):
            print(f"{row.name}: {row.formula} = {row.ratio.median:.3g}", file=sys.stderr)
            rows.append(row)
    report = json.dumps(to_json(rows, conditions), indent=2)
    if options.output:
        options.output.write_text(f"{report}\n", encoding="utf-8")
    print(report if options.json else to_table(rows, conditions))


if __name__ == "__main__":
    main()
