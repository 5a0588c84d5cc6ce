"""Compare the adapters that a build makes today with the published ones: python -m benchmarks.adapters.

`adapters.safetensors` holds the reads, writes and strengths of the adapters that the tables of results measured: all
shipped concepts of ShapeWorld, built with the defaults on one thread. For each concept the command prints whether the
bits are the same, and otherwise the largest difference relative to the largest number. Another CPU may round
differently.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unlearning_adapters import UnlearningAdapter, build_adapter, load_concept, load_shapeworld
from unlearning_adapters.concepts.concept import list_concepts

FILE = Path(__file__).parent / "adapters.safetensors"
TOLERANCE = 1e-4  # rounding of another CPU; another method or pair changes the first digits


def concepts() -> list[str]:
    """Return the names of the concepts of ShapeWorld."""
    return [name for name in list_concepts() if load_concept(name).target]


def tensors_of(name: str, adapter: UnlearningAdapter) -> dict[str, Tensor]:
    """Return what an adapter consists of, by name."""
    tensors = {f"{name}/strength": torch.tensor([adapter.strength], dtype=torch.float64)}
    for site, direction in adapter.directions.items():
        tensors |= {f"{name}/{site}/read": direction.read.clone(), f"{name}/{site}/write": direction.write.clone()}
    return tensors


def built(names: Sequence[str]) -> dict[str, Tensor]:
    """Build adapters with the defaults and return their tensors."""
    pipe, tensors = load_shapeworld(), dict[str, Tensor]()
    for name in names:
        tensors |= tensors_of(name, build_adapter(pipe, load_concept(name), progress=False))
    return tensors


def differences(names: Sequence[str], today: dict[str, Tensor], published: dict[str, Tensor]) -> dict[str, float]:
    """Return the largest relative difference of each adapter: 0 if all bits are the same, infinite if a part lacks."""
    largest = {}
    for name in names:
        ours, theirs = (
            {key: t for key, t in part.items() if key.startswith(f"{name}/")} for part in (today, published)
        )
        same_parts = ours.keys() == theirs.keys() and all(ours[key].shape == theirs[key].shape for key in ours)
        largest[name] = max(
            (float((ours[key] - theirs[key]).abs().max() / theirs[key].abs().max()) for key in ours if same_parts),
            default=float("inf"),
        )
    return largest


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare all adapters, or write them; about ten seconds. Return 1 if one differs by more than rounding."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapters", description=__doc__.split("\n")[0])
    parser.add_argument("--concepts", nargs="+", default=concepts(), metavar="NAME", help="default: all of ShapeWorld")
    parser.add_argument("--write", action="store_true", help="write the file, in place of a comparison")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    today = built(options.concepts)
    if options.write:
        save_file(today, FILE)
        return 0
    largest = differences(options.concepts, today, load_file(FILE))
    for name, value in largest.items():
        print(f"{name}: {'the same bits' if value == 0 else f'differs by at most {value:.1e} of the largest number'}")
    return int(max(largest.values()) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
