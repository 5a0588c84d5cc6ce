"""Load many changed adapter files, each next to a live pipeline, and report what came of them.

python -m fuzz --inputs 200000 --seed 0 --output fuzz.json
python -m fuzz api --sequences 20000 --seed 0 --output api.json  # the API in place of the file

The worker is a process of its own with a limit on its memory, so that a crash of it is seen, and the file kept.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

ENGINES = ("random", "hypothesis", "atheris")


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; 1 if there was a defect."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["api"]:
        from .api.run import main as run_api

        return run_api(given[1:])
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=2000, help="number of files (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the changes (default: 0)")
    parser.add_argument("--seconds", type=float, default=86_400, help="stop after this time (default: a day)")
    parser.add_argument(
        "--engine", choices=ENGINES, default="random", help="what chooses the changes (default: random)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the report to a file, as JSON")
    parser.add_argument(
        "--defects", type=Path, metavar="DIR", default=Path("fuzz-defects"), help="where such files are kept"
    )
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.in_process:
        return work(options)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "fuzz", *(arguments or sys.argv[1:]), "--in-process", "--output", str(report)]
        code = subprocess.run(command, check=False).returncode
        if not report.is_file():
            print(f"The worker ended with {code}, and wrote no report", file=sys.stderr)
            return 1
        text = report.read_text(encoding="utf-8")
    code = int(bool(json.loads(text)["defects"]))
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    print(text)
    return code


def work(options: argparse.Namespace) -> int:
    """Run the inputs in this process, and write the report."""
    from .engines import run_atheris, run_hypothesis, run_random
    from .session import Session

    folder = tempfile.mkdtemp()
    session = Session(Path(folder), options.defects, seconds=options.seconds)

    def report() -> None:
        text = json.dumps(summary(session, options), indent=1, ensure_ascii=False)
        options.output.write_text(text + "\n", encoding="utf-8")

    session.report = report
    engine = {"random": run_random, "hypothesis": run_hypothesis, "atheris": run_atheris}[options.engine]
    engine(session, options.inputs, Random(options.seed))
    report()
    shutil.rmtree(folder)
    return int(bool(session.defects))


def summary(session: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Return the report of a run."""
    outcomes: Counter[str] = session.outcomes
    return {
        "engine": options.engine,
        "seed": options.seed,
        "inputs": session.count,
        "seconds": round(time.perf_counter() - session.start, 1),
        "largest_memory_of_python": session.watch.peak,
        "defects": session.defects,
        "outcomes": dict(outcomes.most_common()),
    }


if __name__ == "__main__":
    sys.exit(main())
