"""Calls that measure: evaluations, reports that are computed anew, and whole pipelines with the edit in them."""

import copy
import shutil
import tempfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch

import unlearning_adapters as ua
from unlearning_adapters.evaluation.arms.arm import reworded_arm
from unlearning_adapters.evaluation.suites.suite import PromptSet

from .calls import Call, api, mostly, some_source, some_strength
from .world import CALL, CONCEPT, World, adapters, odd, template

SUITE = ua.Suite(
    "no-red",
    (PromptSet.of("forget", "forget", ["a red car"]), PromptSet.of("unrelated", "unrelated", ["two trees"])),
    generation={**CALL, "num_inference_steps": 1},
)


def bright(frames: Any) -> float:
    """A detector of a user's own."""
    return float(frames.mean()) / 255


def fails(frames: Any) -> float:
    """A detector that cannot look at a clip."""
    raise ValueError(f"no clip: {len(frames)} frames")


def inside(world: World, place: Any) -> Any:
    """Return a place in the sequence's folder for a text or a path, and anything else as it is."""
    if not isinstance(place, (str, Path)) or place == "":
        return place
    return f"{world.folder}/{str(place).lstrip('/')}"


def _taken(world: World) -> str:
    """Return the name of a file, where a folder cannot be made."""
    (world.folder / "taken").touch()
    return "taken"


@api
def evaluate(world: World, random: Random) -> Call:
    """Measure an adapter."""
    share = 0.97  # of so many arguments most must be right, or no run is ever made
    adapter = mostly(random, lambda: random.choice([adapters()["red"], some_source(world, random)]), share)
    suite = mostly(random, lambda: random.choice([SUITE, SUITE, CONCEPT]), share)
    options: dict[str, Any] = {
        "detectors": mostly(random, lambda: random.choice([[bright], {"light": bright}, ["motion", fails]]), share),
        "controls": random.random() < 0.1,
        "gate": mostly(random, lambda: random.choice([0, 0, 0, None]), share),
    }
    further = {
        "seeds": lambda: random.choice([None, [3], [0, 1]]),
        "arms": lambda: {random.choice(["edited", "rival"]): reworded_arm(("red",))},
        "strengths": lambda: [some_strength(random)],
        "features": lambda: "random",
        "output": lambda: world.folder / random.choice(["run", _taken(world)]),
        "batch_size": lambda: random.choice([1, 2]),
        "fused": lambda: True,
        "process": lambda: None,
    }
    for name in random.sample(list(further), random.choice([0, 1, 1, 2])):
        options[name] = mostly(random, further[name], 0.7)
    output = options.get("output")
    if isinstance(output, str) or (isinstance(output, Path) and output == Path()):
        options["output"] = inside(world, output)
    return lambda: ua.evaluate(world.pipe, adapter, suite, progress=False, **options)


@cache
def _finished() -> Path:
    folder = Path(tempfile.mkdtemp()) / "run"
    with torch.random.fork_rng(devices=[]):  # it is made between two pictures of another pipeline
        ua.evaluate(
            template(False), adapters()["red"], SUITE, [bright], gate=0, controls=False, output=folder, progress=False
        )
    return folder


@api
def rescore(world: World, random: Random) -> Call:
    """Compute the report of a run anew, of one that is whole, and of one that is not."""
    folder = world.folder / f"finished-{random.randrange(10**9)}"
    shutil.copytree(_finished(), folder)
    if random.random() < 0.4:
        file = random.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        data = file.read_bytes()
        random.choice([
            file.unlink, lambda: file.write_bytes(data[: random.randrange(len(data))]), lambda: file.write_bytes(b""),
            lambda: file.write_bytes(b"[]"), lambda: file.write_bytes(b"{}\n"), lambda: file.write_bytes(b"\xff" * 99),
            lambda: (file.unlink(), file.mkdir()),
            lambda: file.write_bytes(data.replace(b'"', b"", 1)), lambda: file.write_bytes(data.replace(b"0", b"x")),
        ])()  # fmt: skip
    options: dict[str, Any] = {}
    further = {
        "detectors": lambda: random.choice([None, [bright], ["motion", bright], [fails]]),
        "thresholds": lambda: {random.choice(["bright", "validity", "none"]): mostly(random, lambda: 0.3, 0.6)},
        "gate": lambda: random.choice([None, 0, 0.5, 1]),
        "features": lambda: random.choice([None, "random"]),
    }
    for name in random.sample(list(further), random.randint(0, 2)):
        options[name] = mostly(random, further[name], 0.7)
    place = folder if random.random() < 0.9 else inside(world, odd(random))
    return lambda: ua.rescore(place, progress=False, **options)


@cache
def _base() -> Path:
    folder = Path(tempfile.mkdtemp()) / "base"
    copy.copy(template(False)).save_pretrained(folder)
    return folder


@api
def export_fused(world: World, random: Random) -> Call:
    """Write a pipeline with the edit in its weights."""
    chosen = mostly(random, lambda: random.choice([adapters()["red"], [adapters()["red"], adapters()["blue"]]]), 0.8)
    if random.random() < 0.3:
        chosen = some_source(world, random)
    base = mostly(random, lambda: random.choice([world.pipe, _base(), str(_base())]), 0.9)
    place = inside(world, mostly(random, lambda: random.choice(["edited", _taken(world), "a/b"]), 0.9))
    options: dict[str, Any] = {}
    if random.random() < 0.3:
        right = lambda: random.choice([some_strength(random), {"transformer": 0.5}, {"transformer_2": 1}])  # noqa: E731
        options["strengths"] = mostly(random, right)
    if random.random() < 0.2:
        options["push_to"] = mostly(random, lambda: random.choice(["org/fused", "org/read-only"]), 0.6)
        options["token"] = random.choice(["hf_write", "hf_read", None])
    return lambda: ua.export_fused(chosen, place, base=base, **options)
