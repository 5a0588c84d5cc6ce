"""The fuzzer of the API finds nothing in 500 sequences, and finds each kind of defect that is planted in its way."""

import time
from random import Random
from typing import Any

import pytest
import torch
from fuzz.api import run as fuzz_run
from fuzz.api.calls import CALLS
from fuzz.api.run import Session
from fuzz.api.states import STATES
from fuzz.api.world import World

SEQUENCES = 500
SECONDS = 240  # a limit that a slow machine keeps, too; on one free core it takes about 50


@pytest.mark.slow
def test_five_hundred_sequences_show_no_defect() -> None:
    session, start = Session(7), time.perf_counter()
    for number in range(SEQUENCES):
        session.run(number)
        assert time.perf_counter() - start < SECONDS, f"{number} sequences took too long"
    assert session.defects == []
    called = {kind.split(":")[0] for kind in session.outcomes}
    assert called == set(CALLS), "each call is drawn"
    done = {kind.split(":")[0] for kind in session.outcomes if kind.endswith(": done")}
    succeed = {"load", "set", "fuse", "unfuse", "unload", "save_adapter", "build", "read", "export"}
    assert done >= succeed | {"rescore", "export_fused", "evaluate", "pull", "load_from_hub"}, "and succeeds"
    assert len(session.outcomes) > 150, "the states and arguments reach too little"


def foreign(world: World, random: Random) -> Any:
    def call() -> None:
        raise AttributeError("no attribute")

    return call


def leaves_a_hook(world: World, random: Random) -> Any:
    return lambda: world.pipe.components["transformer"].register_forward_pre_hook(lambda *_: None)


def changes_a_weight(world: World, random: Random) -> Any:
    def call() -> None:
        with torch.no_grad():
            next(world.pipe.components["transformer"].parameters()).add_(1)

    return call


def refuses_in_two_lines(world: World, random: Random) -> Any:
    from unlearning_adapters.errors import ConfigError

    def call() -> None:
        raise ConfigError("no")

    return call


@pytest.mark.parametrize(
    ("planted", "wrong"),
    [
        (foreign, "AttributeError escaped: no attribute"),
        (leaves_a_hook, "after done these differ: transformer hooks"),
        (changes_a_weight, "after done these differ: transformer"),
        (refuses_in_two_lines, "ConfigError is not one line that says what to do"),
    ],
)
def test_a_planted_defect_is_found(planted: Any, wrong: str, monkeypatch, tmp_path) -> None:
    from fuzz.api.world import new_world

    monkeypatch.setitem(CALLS, "planted", planted)
    worlds = (new_world(Random(number), tmp_path) for number in range(99))
    world = next(world for world in worlds if world.kind == "one denoiser")
    assert Session(0).call(world, "planted", Random(0)).startswith(wrong)
    assert fuzz_run.CALLS is CALLS and len(STATES) > 20
