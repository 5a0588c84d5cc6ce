"""Random threads that load, set, fuse, call and build on pipelines of one denoiser, and what each call computed."""

from __future__ import annotations

import random
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from denoiser_inputs import Words
from torch import Tensor, nn

import unlearning_adapters as ua
from planted import bits, direction
from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.adapter.direction import AdapterInfo

WIDTH, TOKENS, STEPS = 12, 4, 2
NAMES, STRENGTHS = ("a", "b"), (0.5, 1.3)
PROMPT = "a red car"
State = frozenset[tuple[str, float]]
CONCEPT = ua.Concept(
    "no-red",
    pairs=[ua.Pair(unsafe=f"a red {noun}", safe=f"a blue {noun}") for noun in ("car", "cat", "dog")],
    neutral=["the dog", "a house"],
)


class Small(nn.Module):
    """A denoiser of two layers that read the prompt."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.key, self.value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        weights = torch.softmax(x @ self.key(text).transpose(1, 2), -1)
        time.sleep(0)  # another thread may go on here
        return x + torch.tanh(weights @ self.value(text))


def run(module: Small, prompts: Sequence[str], generators: Sequence[torch.Generator]) -> Tensor:
    """Call the denoiser several times, as a sampling loop does."""
    text = torch.cat([Words(prompt)(1, TOKENS, WIDTH) for prompt in prompts])
    x = torch.cat([torch.randn(1, 3, WIDTH, generator=generator) for generator in generators])
    for _ in range(STEPS):
        x = module(x, text)
        time.sleep(0)
    return x


def pipelines(count: int) -> list[ua.DenoiserPipeline]:
    """Return pipelines that share one denoiser."""
    module = Small()
    return [ua.wrap_denoiser(module, run) for _ in range(count)]


@cache
def adapters() -> dict[str, UnlearningAdapter]:
    """Return two adapters with directions of their own, which are exact in any part that is fused.

    All threads load these same ones: they are frozen, and to make them took a fifth of the time.
    """
    made = {}
    for number, name in enumerate(NAMES):
        rows = {
            f"transformer.{layer}": direction(WIDTH, seed=10 * number + place)
            for place, layer in enumerate(("key", "value"))
        }
        made[name] = UnlearningAdapter(AdapterInfo(concept=name, method="ridge"), rows)
    return made


def call(pipe: Any) -> Tensor:
    """Return what a pipeline makes of the prompt."""
    return pipe(PROMPT, torch.Generator().manual_seed(0))


def build(pipe: Any) -> UnlearningAdapter:
    """Build an adapter on a pipeline."""
    config = ua.BuildConfig(sites="transformer.*", strength=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ua.build_adapter(pipe, CONCEPT, config, progress=False)


def outputs_by_state() -> dict[State, Tensor]:
    """Return the output of every state that threads can bring about, each made alone."""
    choices = [None, *STRENGTHS]
    outputs = {}
    for one in choices:
        for two in choices:
            (pipe,), known = pipelines(1), adapters()
            state = frozenset((name, s) for name, s in zip(NAMES, (one, two), strict=True) if s is not None)
            for name, strength in state:
                pipe.load_unlearning_adapter(known[name], name, strength)
            outputs[state] = call(pipe)
    return outputs


@dataclass
class World:
    """What the threads of one interleaving share, and what they saw.

    Args:
        pipes: One pipeline per thread, all of one denoiser.
        outputs: The output of each state.
        built: The adapter that a build on the untouched pipeline makes.
        seen: How often each operation succeeded, or which named error it raised.
        faults: What must not happen.
    """

    pipes: list[Any]
    outputs: dict[State, Tensor]
    built: UnlearningAdapter
    seen: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def check(self, output: Tensor, states: Sequence[State], what: str) -> None:
        """Note a fault if an output is that of none of these states."""
        nearest = min(float((output - self.outputs[state]).abs().max()) for state in states)
        if nearest > 1e-5:
            self.faults.append(f"{what}: off the nearest state by {nearest:.3g}")


def _load(world: World, pipe: Any, rng: random.Random) -> None:
    name = rng.choice(NAMES)
    pipe.load_unlearning_adapter(adapters()[name], name, rng.choice(STRENGTHS))


def _set(world: World, pipe: Any, rng: random.Random) -> None:
    names = rng.sample(NAMES, rng.randint(0, len(NAMES)))
    pipe.set_unlearning_adapters(names, [rng.choice(STRENGTHS) for _ in names])


def _fuse(world: World, pipe: Any, rng: random.Random) -> None:
    pipe.fuse_unlearning_adapters(rng.choice([None, *NAMES]))


def _unfuse(world: World, pipe: Any, rng: random.Random) -> None:
    pipe.unfuse_unlearning_adapters()


def _unload(world: World, pipe: Any, rng: random.Random) -> None:
    pipe.unload_unlearning_adapters()


def _delete(world: World, pipe: Any, rng: random.Random) -> None:
    pipe.delete_unlearning_adapters(rng.choice(NAMES))


def _disable(world: World, pipe: Any, rng: random.Random) -> None:
    (pipe.disable_unlearning_adapters if rng.random() < 0.5 else pipe.enable_unlearning_adapters)()


def _call(world: World, pipe: Any, rng: random.Random) -> None:
    world.check(call(pipe), list(world.outputs), "call")


def _scoped(world: World, pipe: Any, rng: random.Random) -> None:
    names = rng.sample(NAMES, rng.randint(0, len(NAMES)))
    strengths = [rng.choice(STRENGTHS) for _ in names]
    with pipe.unlearning_adapters(names, strengths):
        state = frozenset(zip(names, strengths, strict=True))
        for _ in range(2):
            world.check(call(pipe), [state], f"call in the scope {sorted(state)}")


def _build(world: World, pipe: Any, rng: random.Random) -> None:
    made = build(pipe)
    same = made.sites == world.built.sites and all(
        torch.equal(getattr(made.directions[site], part), getattr(world.built.directions[site], part))
        for site in made.sites
        for part in ("read", "write")
    )
    if not same:
        world.faults.append("a build made other directions")


def _save_state(world: World, pipe: Any, rng: random.Random) -> None:
    next(iter(pipe.components.values())).state_dict()


OPERATIONS: dict[Callable[[World, Any, random.Random], None], int] = {
    _load: 6,
    _set: 3,
    _fuse: 4,
    _unfuse: 4,
    _unload: 3,
    _delete: 1,
    _disable: 1,
    _call: 8,
    _scoped: 3,
    _build: 1,
    _save_state: 1,
}


@contextmanager
def _switching_often() -> Any:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def interleave(world: World, seed: int, operations: int = 6, timeout: float = 60.0) -> None:
    """Let 2 to 8 threads run random operations at once, then take everything off and compare the base, bit for bit."""
    rng = random.Random(seed)
    threads = rng.randint(2, 8)
    chosen = [
        (random.Random(rng.random()), rng.choices(list(OPERATIONS), list(OPERATIONS.values()), k=operations))
        for _ in range(threads)
    ]
    module = next(iter(world.pipes[0].components.values()))
    before = {name: bits(value) for name, value in module.state_dict().items()}
    traces = sorted(vars(module)), [sorted(vars(child)) for child in module.modules()]
    start = threading.Barrier(threads)

    def work(pipe: Any, own: random.Random, steps: Sequence[Callable[..., None]]) -> None:
        start.wait()
        for step in steps:
            try:
                step(world, pipe, own)
                world.seen[step.__name__] += 1
            except ua.UnlearningError as error:
                world.seen[f"{step.__name__}: {type(error).__name__}"] += 1
            except BaseException as error:
                world.faults.append(f"{step.__name__}: {type(error).__name__}: {error}")

    with _switching_often():
        workers = [
            threading.Thread(target=work, args=(world.pipes[number % len(world.pipes)], *part), daemon=True)
            for number, part in enumerate(chosen)
        ]
        for worker in workers:
            worker.start()
        end = time.monotonic() + timeout
        for worker in workers:
            worker.join(max(0.0, end - time.monotonic()))
    if any(worker.is_alive() for worker in workers):
        raise TimeoutError(f"seed {seed}: threads wait for each other")
    pipe = world.pipes[0]
    if any("fused" in info.state for info in pipe.get_unlearning_adapters_info().values()):
        pipe.unfuse_unlearning_adapters()
    pipe.unload_unlearning_adapters()
    after = {name: bits(value) for name, value in module.state_dict().items()}
    if any(not torch.equal(after[name], value) for name, value in before.items()):
        world.faults.append(f"seed {seed}: the base is not what it was")
    if (sorted(vars(module)), [sorted(vars(child)) for child in module.modules()]) != traces:
        world.faults.append(f"seed {seed}: traces are left")
    world.check(call(pipe), [frozenset()], f"seed {seed}: the end")
