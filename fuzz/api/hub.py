"""Calls that ask the Hub: a server on this machine answers, and at times refuses."""

from collections.abc import Callable
from random import Random
from typing import Any

from loopback_hub import READ, WRITE, served

import unlearning_adapters as ua
from unlearning_adapters.adapter.file import FILE_NAME
from unlearning_adapters.hub.hub import pull_adapter, push_adapter

from .calls import Call, api, mostly
from .measuring import inside
from .world import World, adapters, red_bytes

REPOSITORIES = ("org/red", "org/red", "org/private", "org/gated", "org/empty", "org/pickle", "org/cut", "org/none")


def prepare() -> None:
    """Make the repositories of a sequence, the same for each."""
    hub, blob = served(), red_bytes()
    hub.forget()
    hub.create("org/red", **{FILE_NAME: blob})
    hub.create("org/private", private=True, **{FILE_NAME: blob})
    hub.create("org/gated", gated=True, **{FILE_NAME: blob})
    hub.create("org/empty")
    hub.create("org/pickle", **{"pytorch_lora_weights.bin": b"pickle"})
    hub.create("org/cut", **{FILE_NAME: blob[:300], "README.md": b"---\nlicense: [\n---\n"})


def contents() -> dict[str, Any]:
    """Return the commit of each branch, which a call that is refused must leave alone."""
    repositories = served().repositories.items()
    return {f"hub {name} {ref}": commit for name, each in repositories for ref, commit in each.refs.items()}


def _options(world: World, random: Random) -> dict[str, Any]:
    """Return how the Hub is asked."""
    options: dict[str, Any] = {"cache_dir": world.folder / "cache"}
    further: dict[str, Callable[[], Any]] = {
        "token": lambda: random.choice([WRITE, READ, None, False]),
        "revision": lambda: random.choice(["main", "none", None]),
        "local_files_only": lambda: random.random() < 0.5,
    }
    for name in random.sample(list(further), random.choice([0, 1, 1, 2])):
        options[name] = mostly(random, further[name], 0.8)
    if random.random() < 0.15:  # one answer is a refusal
        method, part = random.choice([("GET", "/api/"), ("HEAD", "/resolve/"), ("GET", "/cdn/"), ("POST", "/commit/")])
        served().failures.append((method, part, random.choice([400, 401, 403, 404, 409, 412, 418])))
    return options


def _repository(random: Random) -> Any:
    return mostly(random, lambda: random.choice(REPOSITORIES), 0.85)


@api
def pull(world: World, random: Random) -> Call:
    """Load an adapter from the Hub: onto the pipeline, alone, its header, or as a folder."""
    repository, options = _repository(random), _options(world, random)
    kinds: list[Callable[[], Any]] = [
        lambda: ua.load_adapter(repository, **options),
        lambda: ua.inspect_adapter(repository, **options),
        lambda: pull_adapter(repository, world.folder / "pulled", **options),
    ]
    return random.choice(kinds)


@api
def load_from_hub(world: World, random: Random) -> Call:
    """Load an adapter of the Hub onto the pipeline."""
    repository, options = _repository(random), _options(world, random)
    if random.random() < 0.3:
        options["components"] = mostly(random, lambda: random.choice([None, ["transformer"]]))
    return lambda: ua.load_unlearning_adapter(world.pipe, repository, **options)


@api
def push(world: World, random: Random) -> Call:
    """Push an adapter, or one that is loaded."""
    repository = mostly(random, lambda: random.choice([*REPOSITORIES, "org/new", "org/new"]), 0.85)
    options: dict[str, Any] = {"token": mostly(random, lambda: random.choice([WRITE, WRITE, WRITE, READ]), 0.9)}
    _options(world, random)  # a refusal on the way
    further: dict[str, Callable[[], Any]] = {
        "private": lambda: random.choice([None, True, False]),
        "revision": lambda: random.choice([None, "main", "draft"]),
        "create_pr": lambda: True,
        "commit_message": lambda: random.choice([None, "A text"]),
        "license": lambda: random.choice([None, "apache-2.0"]),
        "result": lambda: None,
        "clips": lambda: random.choice([(), [("a red car", world.folder / "none.mp4")]]),
    }
    for name in random.sample(list(further), random.choice([0, 1, 1, 2])):
        options[name] = mostly(random, further[name], 0.6)
    if random.random() < 0.5:
        name = mostly(random, lambda: random.choice([None, "red"]))
        return lambda: ua.push_unlearning_adapter(world.pipe, repository, name, **options)
    adapter = mostly(random, lambda: random.choice([adapters()["red"], adapters()["without factors"]]))
    if not isinstance(adapter, ua.UnlearningAdapter):
        adapter = inside(world, adapter)
        return lambda: push_adapter(adapter, repository, **options)
    return lambda: adapter.push_to_hub(repository, **options)
