"""The arms: our default, the paper's method and three rivals, built for one concept or for many; and what they cost."""

import contextlib
import copy
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

import unlearning_adapters as ua
from benchmarks.measure import in_turn
from benchmarks.planted import with_shared_weights
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.config import MAX_RANK
from unlearning_adapters.methods import factors

from .concepts import joint_concept
from .watch import World, edited, timed


@dataclass(frozen=True)
class Arm:
    """How characters are erased.

    Args:
        method: Of `BuildConfig`, with its default settings.
        stack: Whether each concept has a file of its own. The paper's method has rank 1, so that one file cannot hold
            many concepts; the rivals solve all of them together, as their papers do.
        described: Whether descriptions are erased as well as names.
        sites: Of `BuildConfig`.
        common: Word that takes the place of all in the safe sides; without one each has a stand-in, who is kept.
        retained: Whether neutral prompts name everybody who is kept, twice as many prompts for twice as many names.
        strength: Of `BuildConfig`; None is what the build finds.
        shrinkage: Of `BuildConfig`.
    """

    method: str
    stack: bool = False
    described: bool = False
    sites: str | None = None
    common: str = ""
    retained: bool = False
    strength: float | None = None
    shrinkage: float = 0.0


PROJECTION, COMMON, SHRINKAGE = "text-projection", "an animal", 0.3
ARMS = {
    "ridge, stack": Arm("ridge", stack=True),
    "ridge, one file": Arm("ridge"),
    "cpca, stack": Arm("cpca", stack=True),
    "uce": Arm("uce"),
    "rece": Arm("rece"),
    "cure": Arm("cure"),
    "ridge, stack, described too": Arm("ridge", stack=True, described=True),
    "uce, described too": Arm("uce", described=True),
    "ridge, stack, text projection, a common word": Arm("ridge", True, sites=PROJECTION, common=COMMON),
    "uce, text projection, a common word": Arm("uce", sites=PROJECTION, common=COMMON),
    "ridge, stack, text projection, a common word, all kept named": Arm(
        "ridge", True, sites=PROJECTION, common=COMMON, retained=True
    ),
    "ridge, stack, text projection, a common word, all kept named, strength 1.6": Arm(
        "ridge", True, sites=PROJECTION, common=COMMON, retained=True, strength=1.6
    ),
    "ridge, stack, text projection, a common word, all kept named, shrunk": Arm(
        "ridge", True, sites=PROJECTION, common=COMMON, retained=True, shrinkage=SHRINKAGE
    ),
    "ridge, stack, text projection, a common word, all kept named, shrunk, strength 1.4": Arm(
        "ridge", True, sites=PROJECTION, common=COMMON, retained=True, strength=1.4, shrinkage=SHRINKAGE
    ),
    "ridge, stack, shrunk": Arm("ridge", stack=True, shrinkage=SHRINKAGE),
    "uce, text projection, a common word, all kept named": Arm("uce", sites=PROJECTION, common=COMMON, retained=True),
    "uce, all kept named": Arm("uce", retained=True),
}
ROUNDS = 7  # of the timing of calls


@contextlib.contextmanager
def any_rank() -> Iterator[None]:
    """Let additive edits have the rank that they need, not the 64 of a file: no rival is cut for our format."""
    limit, factors.MAX_RANK = factors.MAX_RANK, 1_000_000
    try:
        yield
    finally:
        factors.MAX_RANK = limit


def build_arm(world: World, arm: str, concepts: Sequence[Concept]) -> tuple[list[ua.UnlearningAdapter], float]:
    """Return the adapters of an arm, one file for one concept, and the seconds of processor time of their build."""
    method, sites, strength = ARMS[arm].method, ARMS[arm].sites, ARMS[arm].strength
    times: dict[str, float] = {}
    given: dict[str, Any] = {"progress": False, "call_kwargs": world.build_arguments()}
    with timed(times, "build"), any_rank():
        if ARMS[arm].stack or len(concepts) == 1:
            config = ua.BuildConfig(method=method, sites=sites, strength=strength, shrinkage=ARMS[arm].shrinkage)
            adapters = ua.build_adapters(world.pipe, concepts, config, **given)
        else:
            joint = joint_concept(concepts)
            rank = min(MAX_RANK, len(concepts)) if method == "ridge" else 1
            config = ua.BuildConfig(method=method, pairs=len(joint.pairs), rank=rank, sites=sites)
            adapters = [ua.build_adapter(world.pipe, joint, config, **given)]
    return adapters, times["build"]


def file_bytes(adapters: Sequence[ua.UnlearningAdapter]) -> int | None:
    """Return the bytes of all files together; None if an edit has more rows than a file may hold."""
    if any(direction.rank > MAX_RANK for adapter in adapters for direction in adapter.directions.values()):
        return None
    with TemporaryDirectory() as folder:
        for number, adapter in enumerate(adapters):
            adapter.save_pretrained(Path(folder) / f"{number}.safetensors")
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def time_of_processor(step: Callable[[], Any]) -> float:
    """Return the seconds of processor time of a step, which other work on the machine hardly changes."""
    start = time.process_time()
    step()
    return time.process_time() - start


def call_costs(world: World, adapters: Sequence[ua.UnlearningAdapter]) -> dict[str, float]:
    """Return the processor time of a call of the denoiser, adapters attached and fused, as parts of the base's."""
    base = world.pipe
    settings = base.transformer.config
    maker = torch.Generator().manual_seed(0)
    frames = 1 + (world.call["num_frames"] - 1) // base.vae_scale_factor_temporal
    size = world.call["height"] // base.vae_scale_factor_spatial
    inputs = (
        torch.randn(1, settings.in_channels, frames, size, size, generator=maker),
        torch.tensor([500]),
        torch.randn(1, world.call["max_sequence_length"], settings.text_dim, generator=maker),
    )
    attached = with_shared_weights(base)
    fused = type(base)(**{**base.components, "transformer": copy.deepcopy(base.transformer)})
    with edited(attached, adapters), edited(fused, adapters):
        ua.fuse_unlearning_adapters(fused)
        try:

            def call(pipe: Any) -> None:
                with torch.no_grad():
                    pipe.transformer(*inputs, return_dict=False)

            pipes = {"base": base, "attached": attached, "fused": fused}
            arms = [[(name, lambda pipe=pipe: call(pipe))] for name, pipe in pipes.items()]
            gc.freeze()  # each round collects what the one before left; what the imports made is no part of that
            times = in_turn(arms, ROUNDS, "calls", time_of_processor)
        finally:
            gc.unfreeze()
            ua.unfuse_unlearning_adapters(fused)
    return {name: median(times[name]) / median(times["base"]) for name in ("attached", "fused")}
