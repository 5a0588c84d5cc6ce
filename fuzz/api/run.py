"""Run random sequences of states and verbs: only errors of this package, and after one all is as it was.

python -m fuzz api --sequences 20000 --seed 0 --output api.json
"""

import argparse
import json
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch

from unlearning_adapters.errors import UnlearningError

from . import hub, measuring  # noqa: F401 - they add calls
from .calls import CALLS, CHANGING
from .picture import changed, picture
from .states import disturb
from .world import World, new_world

STEPS = 7  # at most, in one sequence
DISTURBED = 0.25  # share of steps that are no call of ours
LONGEST = 1000  # characters of an error
CALLING = ("evaluate", "export_fused")  # they call or save the pipeline, which leaves these behind
LEFT_BY_CALLS = ("pipeline", "scheduler:")
HOOK = "unlearning_adapters"  # name of our hooks


@dataclass
class Session:
    """What came of all sequences so far.

    Args:
        seed: Seed of the run; sequence n is drawn from `seed/n` alone, so that it can be run again by itself.
        outcomes: How often a call ended how.
        defects: What was wrong, with the sequence and its steps.
    """

    seed: int
    outcomes: Counter[str] = field(default_factory=Counter)
    defects: list[dict[str, Any]] = field(default_factory=list)

    def run(self, number: int) -> None:
        """Run one sequence."""
        random = Random(f"{self.seed}/{number}")
        steps: list[str] = []
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            world = new_world(random, Path(folder))
            hub.prepare()
            steps.append(world.kind)
            for _ in range(random.randint(1, STEPS)):
                if random.random() < DISTURBED:
                    world.seen = None
                    steps.append(disturb(world, random))
                    continue
                name = random.choice(list(CALLS))
                steps.append(name)
                wrong = self.call(world, name, random)
                if wrong:
                    self.defects.append({"sequence": f"{self.seed}/{number}", "steps": steps, "wrong": wrong})
                    return

    def call(self, world: World, name: str, random: Random) -> str:
        """Call the API once, and return what was wrong, or nothing."""
        with torch.random.fork_rng(devices=[]):  # what is made for a call is no change of the random state by it
            call = CALLS[name](world, random)
        before, world.seen = world.seen or picture(world.pipe), None
        stored = hub.contents()
        error: BaseException | None = None
        try:
            call()
        except UnlearningError as refused:
            error = refused
            text = str(refused)
            if (
                not text.isprintable()
                or not 20 <= len(text) <= LONGEST
                or not text.rstrip().endswith((".", "`", ")", "?"))
            ):
                return f"{type(refused).__name__} is not one line that says what to do: {text!r:.400}"
        except Exception as foreign:  # noqa: BLE001
            return f"{type(foreign).__name__} escaped: {foreign!s:.300} | {_place(foreign)}"
        self.outcomes[f"{name}: {_kind(error)}"] += 1
        left: list[str] = []
        if error is not None or name not in CHANGING:
            world.seen = picture(world.pipe)
            left = [part for part in changed(before, world.seen) if name not in CALLING or part not in LEFT_BY_CALLS]
            late = _edited_late(before, world.seen)
            left = [part for part in left if part.removesuffix(" forward").removesuffix(" registry") not in late]
        if error is not None:
            now = hub.contents()
            left += [name for name, commit in stored.items() if now.get(name) != commit]
        return f"after {_kind(error)} these differ: {', '.join(left[:4])}" if left else ""


def _edited_late(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    """Return layers that another library put in place of edited ones; the next call, in a build too, edits them."""
    ending = " registry"
    if not any(key == HOOK for part, found in before.items() if part.endswith(ending) for key, _ in found):
        return set()
    return {
        part.removesuffix(ending)
        for part, found in after.items()
        if part.endswith(ending) and part not in before and part.removesuffix(ending) in before
        if [key for key, _ in found] == [HOOK]
    }


def _place(error: BaseException) -> str:
    """Return the last line of this package that an error went through, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame for frame in frames if "unlearning_adapters" in frame.filename and "site-packages" not in frame.filename
    ]
    return " <- ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in (frames[-1], *own[-1:]))


def _kind(error: BaseException | None) -> str:
    if error is None:
        return "done"
    text = re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", "'...'", str(error))
    return f"{type(error).__name__}: {re.sub(r'-?[0-9][0-9,.e+]*', 'N', text)[:60]}"


def main(arguments: list[str]) -> int:
    """Run what the command line asks for; 1 if there was a defect."""
    parser = argparse.ArgumentParser(prog="python -m fuzz api", description=__doc__.split("\n")[0])
    parser.add_argument("--sequences", type=int, default=500, help="number of sequences (default: 500)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run (default: 0)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the report to a file, as JSON")
    options = parser.parse_args(arguments)
    session, start = Session(options.seed), time.perf_counter()
    for number in range(options.first, options.first + options.sequences):
        session.run(number)
        if options.output and (number + 1) % 500 == 0:
            options.output.write_text(_report(session, number + 1 - options.first, start), encoding="utf-8")
    text = _report(session, options.sequences, start)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    print(text)
    return int(bool(session.defects))


def _report(session: Session, count: int, start: float) -> str:
    values = {
        "seed": session.seed,
        "sequences": count,
        "calls": sum(session.outcomes.values()) + len(session.defects),
        "seconds": round(time.perf_counter() - start, 1),
        "defects": session.defects,
        "outcomes": dict(session.outcomes.most_common()),
    }
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
