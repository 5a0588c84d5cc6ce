"""Erase characters, emblems, motions, styles and implied things of CastWorld, and count what is shown and kept.

    python -m benchmarks.cast [--part reads|mass|single|implied|standins ...] [--model DIR] [--count N] [--draws N]
                              [--sizes N ...] [--arms ARM ...] [--output FILE] [--label TEXT] [--fresh]
                              [--join FILE ...]

Writes FILE (`benchmarks/cast.json`) and a page of tables beside it, cell by cell: a run that stops goes on where it
was. A file of another model or of other settings is refused, unless `--fresh` starts anew in its place.

`--count` clips of each kind stand in a cell of the parts mass, single (over all concepts of a kind) and implied, and a
quarter of it in one of the stand-ins. A clip takes about 0.06 s of one core, its judgement included.

Seeds: 5301 of pairs and neutral prompts, which are sentences that training may have read; 5302 of tuning prompts, half
of which the base must show of a character before it is asked for; 5303 of the reported prompts, which are held out
from training; 5304 of who is erased. Training has the seeds 11 and 12, the gate 1900.
"""

import argparse
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from unlearning_adapters.adapter.draft import write_whole
from unlearning_adapters.shapeworld.cast.roster import roster
from unlearning_adapters.shapeworld.models.cast import WEIGHTS, load_castworld
from unlearning_adapters.shapeworld.models.generate import CAST_GENERATION

from . import asked, concepts, counting
from .arms import ARMS
from .asked import character_prompts
from .implied import run_implied
from .mass import SIZES, run_mass
from .reads import run_reads
from .single import run_single
from .standins import run_standins
from .store import Cell, Store, digest_of
from .tables import page
from .watch import World

FILE = Path(__file__).parents[1] / "cast.json"
EVERYTHING: Mapping[str, Any] = MappingProxyType({})  # all sizes and arms
PARTS = ("reads", "single", "implied", "mass", "standins")
SEEDS = {
    "pairs and neutral prompts": concepts.SEED,
    "tuning prompts": asked.TUNE,
    "reported prompts": asked.REPORT,
    "who is erased": asked.WHO,
}
LEAST_ABLE = 32  # characters whom the base must show, or nothing is measured
TUNING = 2  # prompts of each character that tell whether the base shows it


def main(arguments: list[str] | None = None) -> None:
    """Measure what is missing, and write both files after each cell's part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--part", nargs="*", choices=PARTS, default=PARTS, help="default all; none writes the page only"
    )
    parser.add_argument("--join", nargs="+", type=Path, default=[], metavar="FILE", help="results of runs beside this")
    parser.add_argument("--model", type=Path, default=WEIGHTS, help="folder of a trained model")
    parser.add_argument("--count", type=int, default=200, help="clips of each kind in a cell")
    parser.add_argument("--draws", type=int, default=5, help="draws of who is erased, in the part mass")
    parser.add_argument("--sizes", nargs="+", type=int, choices=SIZES, default=SIZES, help="of the part mass")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help="of the part mass")
    parser.add_argument("--output", type=Path, default=FILE, metavar="FILE")
    parser.add_argument("--label", default="", help="what the page says of the model, such as its step and its gate")
    parser.add_argument("--fresh", action="store_true", help="start anew where the file has other settings")
    options = parser.parse_args(arguments)
    settings = {
        "model": digest_of(options.model),
        "guidance": CAST_GENERATION["guidance_scale"],
        "count": options.count,
        "draws": options.draws,
        "seeds": SEEDS,
        "label": options.label,
    }
    store = Store(options.output, settings, options.fresh)
    for path in options.join:
        store.join(path)
    write_page(store)
    mass = {"sizes": options.sizes, "arms": options.arms}
    run(World(load_castworld(model=options.model)), store, options.part, options.count, options.draws, mass)


def run(
    world: World, store: Store, parts: tuple[str, ...], count: int, draws: int, mass: Mapping[str, Any] = EVERYTHING
) -> None:
    """Measure the parts, with the characters whom the base shows unless the world says who they are."""
    work: dict[str, Callable[[], None]] = {
        "reads": lambda: run_reads(world, store),
        "single": lambda: run_single(world, store, count),
        "implied": lambda: run_implied(world, store, count),
        "mass": lambda: run_mass(world, store, count, draws, **mass),
        "standins": lambda: run_standins(world, store, count),
    }
    for part in parts:
        if part != "reads" and not world.able:  # reads make no clip
            world = replace(world, able=able_characters(world, store))
        try:
            work[part]()
        finally:
            world.base.clear()  # its clips; other parts ask for others
            write_page(store)


def able_characters(world: World, store: Store) -> frozenset[int]:
    """Return the characters whom the base shows in at least half of their tuning prompts."""
    known = store.part("base")
    if len(known) < len(roster()):
        by_character = {index: character_prompts(index, TUNING, seed=asked.TUNE) for index in range(len(roster()))}
        clips = world.look([one for prompts in by_character.values() for one in prompts], "tuning prompts")
        for index, prompts in by_character.items():
            known[roster()[index].name] = counting.right(prompts, clips, "character")
        store.write()
    able = frozenset(index for index, one in enumerate(roster()) if is_able(known[one.name]))
    if len(able) < LEAST_ABLE:
        raise SystemExit(
            f"The base shows only {len(able)} of {len(roster())} characters in at least half of their prompts. With "
            f"fewer than {LEAST_ABLE} nothing can be said of what an edit does: train the model further."
        )
    return able


def is_able(cell: Cell) -> bool:
    """Tell whether the base shows a character in at least half of its prompts."""
    return bool(2 * cell["hits"] >= cell["count"])


def write_page(store: Store) -> None:
    """Write the page of tables beside the file."""
    if store.path is not None:
        write_whole(store.path.with_suffix(".md"), page(store.data).encode())


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="torch")
    main()
