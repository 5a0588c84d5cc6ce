"""What of the API a sequence calls, and with which arguments: right ones, wrong ones, and odd ones."""

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from tiny import CALL

import unlearning_adapters as ua

from .world import CONCEPT, World, adapters, files, odd

Call = Callable[[], Any]
NAMES = ("red", "blue", "added", "built", "no-red")
CALLS: dict[str, Callable[[World, Random], Call]] = {}
CHANGING = {"load", "load_from_hub", "set", "enable", "disable", "delete", "unload", "fuse", "unfuse"}


def api(function: Callable[[World, Random], Call]) -> Callable[[World, Random], Call]:
    """Register what draws a call."""
    CALLS[function.__name__] = function
    return function


def mostly(random: Random, right: Callable[[], Any], share: float = 0.85) -> Any:
    """Return a right value, or now and then an odd one."""
    return right() if random.random() < share else odd(random)


def some_names(random: Random) -> Any:
    """Return one name or several."""
    return random.choice([random.choice(NAMES), random.sample(NAMES, random.randint(0, 3)), "red", ["red", "blue"]])


def some_strength(random: Random) -> Any:
    """Return a strength, or None."""
    return random.choice([None, 0, 1, 0.5, 1.3, 4, 2.0])


def some_source(world: World, random: Random) -> Any:
    """Return an adapter, or where one may be."""
    place = random.choice(list(files()(world.folder).values()))
    return random.choice(
        [
            *(adapters()[name] for name in ("red", "blue", "added", "built")),
            random.choice(list(adapters().values())),
            place,
        ]
    )


@api
def load(world: World, random: Random) -> Call:
    """Load an adapter."""
    source = mostly(random, lambda: some_source(world, random), 0.9)
    if isinstance(source, str) and "/" in source:
        source = "red"
    options = {}
    if random.random() < 0.5:
        options["adapter_name"] = mostly(random, lambda: random.choice(NAMES))
    if random.random() < 0.4:
        options["strength"] = mostly(random, lambda: some_strength(random))
    if random.random() < 0.1:
        options["subfolder"] = odd(random)
    return lambda: ua.load_unlearning_adapter(world.pipe, source, local_files_only=True, **options)


@api
def set(world: World, random: Random) -> Call:  # noqa: A001
    """Choose which adapters act."""
    names, strengths = (
        mostly(random, lambda: some_names(random)),
        mostly(
            random,
            lambda: random.choice(
                [some_strength(random), [some_strength(random) for _ in range(random.randint(1, 3))]]
            ),
        ),
    )
    return lambda: ua.set_unlearning_adapters(world.pipe, names, strengths)


@api
def delete(world: World, random: Random) -> Call:
    """Take adapters off."""
    names = mostly(random, lambda: some_names(random))
    return lambda: ua.delete_unlearning_adapters(world.pipe, names)


@api
def fuse(world: World, random: Random) -> Call:
    """Write adapters into weights."""
    names = None if random.random() < 0.6 else mostly(random, lambda: some_names(random))
    return lambda: ua.fuse_unlearning_adapters(world.pipe, names)


@api
def unfuse(world: World, random: Random) -> Call:
    """Take them out again."""
    names = None if random.random() < 0.6 else mostly(random, lambda: some_names(random))
    return lambda: ua.unfuse_unlearning_adapters(world.pipe, names)


@api
def enable(world: World, _random: Random) -> Call:
    """Let adapters act."""
    return lambda: ua.enable_unlearning_adapters(world.pipe)


@api
def disable(world: World, _random: Random) -> Call:
    """Let none act."""
    return lambda: ua.disable_unlearning_adapters(world.pipe)


@api
def unload(world: World, _random: Random) -> Call:
    """Take all off."""
    return lambda: ua.unload_unlearning_adapters(world.pipe)


@api
def lists(world: World, _random: Random) -> Call:
    """Ask what is loaded, and what acts."""
    return lambda: (ua.get_list_unlearning_adapters(world.pipe), ua.get_active_unlearning_adapters(world.pipe))


@api
def save(world: World, random: Random) -> Call:
    """Save a loaded adapter."""
    place = mostly(random, lambda: world.folder / random.choice(["saved", "saved.safetensors", "saved.bin"]))
    name = mostly(random, lambda: random.choice([None, *NAMES]))
    if isinstance(place, str) and not place.strip():
        place = None
    if isinstance(place, str) and not place.startswith("/"):
        place = f"{world.folder}/{place}"
    return lambda: ua.save_unlearning_adapter(world.pipe, place, name)


@api
def save_adapter(world: World, random: Random) -> Call:
    """Save an adapter."""
    adapter = mostly(random, lambda: random.choice(list(adapters().values())))
    return lambda: ua.save_adapter(adapter, world.folder / "alone")


@api
def read(world: World, random: Random) -> Call:
    """Read an adapter, or its header."""
    source = mostly(random, lambda: random.choice(list(files()(world.folder).values())))
    return lambda: random.choice([ua.load_adapter, ua.inspect_adapter])(source, local_files_only=True)


@api
def build(world: World, random: Random) -> Call:
    """Build an adapter."""
    concept = mostly(random, lambda: CONCEPT, 0.95)
    config = mostly(random, lambda: ua.BuildConfig(pairs=2, steps=1, **some_settings(random)), 0.95)
    call = dict(CALL)
    if random.random() < 0.3:
        name = random.choice(
            [
                "height",
                "prompt",
                "negative_prompt",
                "num_videos_per_prompt",
                "prompt_embeds",
                "latents",
                "generator",
                "output_type",
                "nonsense",
                "guidance_scale",
                "num_inference_steps",
                "sigmas",
            ]
        )
        call[name] = odd(random)
    given = mostly(random, lambda: call, 0.95)
    return lambda: ua.build_adapter(world.pipe, concept, config, progress=False, call_kwargs=given)


def some_settings(random: Random) -> dict[str, Any]:
    """Return settings of a build that can be."""
    return random.choice([
        {}, {}, {"method": "mean"}, {"method": "rece", "rounds": 1}, {"method": "cpca"}, {"method": "leace"},
        {"rank": 2},
        {"sites": "hidden"}, {"sites": "image"}, {"sites": "*.attn2.to_k"}, {"sites": "nothing"}, {"blocks": (0,)},
        {"blocks": (7,)}, {"block_strengths": {0: 0.5}}, {"strength": 1.0}, {"batch_size": 1},
    ])  # fmt: skip


@api
def export(world: World, random: Random) -> Call:
    """Write a plain LoRA."""
    chosen = mostly(
        random,
        lambda: [adapters()[name] for name in random.sample(("red", "blue", "both", "built"), random.randint(1, 2))],
    )
    base = random.choice([None, world.pipe, mostly(random, lambda: world.pipe)])
    component = random.choice([None, None, "transformer", "transformer_2", odd(random)])
    place = world.folder / f"lora-{random.randrange(10**9)}.safetensors"
    strengths = mostly(random, lambda: some_strength(random))
    return lambda: ua.export_lora(chosen, place, component=component, strengths=strengths, base=base)


@api
def sites(world: World, random: Random) -> Call:
    """Find sites."""
    selection = mostly(random, lambda: random.choice(["text", "image", "hidden", "*", ["text", "hidden"]]), 0.6)
    blocks = mostly(random, lambda: random.choice([None, [0], (0, 1)]), 0.7)
    return lambda: ua.find_sites(world.pipe, selection, blocks)


@api
def settings(_world: World, random: Random) -> Call:
    """Make settings, pairs and concepts of odd values."""
    kind = random.choice([ua.BuildConfig, ua.Pair, ua.Concept])
    names = {
        ua.BuildConfig: list(ua.BuildConfig.__dataclass_fields__),
        ua.Pair: list(ua.Pair.__dataclass_fields__),
        ua.Concept: list(ua.Concept.__dataclass_fields__),
    }[kind]
    base: dict[str, Any] = {} if kind is ua.BuildConfig else {"unsafe": "a red car", "safe": "a car"}
    if kind is ua.Concept:
        base = {"name": "no-red", "pairs": [ua.Pair("a red car", "a car")]}
    values = {**base, **{name: odd(random) for name in random.sample(names, random.randint(1, 2))}}
    return lambda: kind(**values)


@api
def load_concept(_world: World, random: Random) -> Call:
    """Find a concept."""
    source = odd(random)
    return lambda: ua.load_concept(source)


@api
def wrap(_world: World, random: Random) -> Call:
    """Make a pipeline of any module."""
    module = mostly(random, lambda: torch.nn.Linear(2, 2), 0.5)
    run = mostly(random, lambda: lambda module, prompts, generators: None, 0.5)
    options = {} if random.random() < 0.6 else {"component": odd(random)}
    return lambda: ua.wrap_denoiser(module, run, **options)


@api
def not_a_pipeline(_world: World, random: Random) -> Call:
    """Call a verb on something that is no pipeline."""
    verb = random.choice(
        [
            ua.load_unlearning_adapter,
            ua.set_unlearning_adapters,
            ua.fuse_unlearning_adapters,
            ua.unload_unlearning_adapters,
            ua.get_list_unlearning_adapters,
            ua.find_sites,
            ua.build_adapter,
        ]
    )
    thing = odd(random)
    more = {
        ua.load_unlearning_adapter: [adapters()["red"]],
        ua.set_unlearning_adapters: ["red"],
        ua.build_adapter: [CONCEPT],
    }
    return lambda: verb(thing, *more.get(verb, []))


@api
def build_many(world: World, random: Random) -> Call:
    """Build the adapters of several concepts."""
    concepts = mostly(random, lambda: random.choice([[], [CONCEPT], [CONCEPT, odd(random)]]), 0.6)
    config = mostly(random, lambda: ua.BuildConfig(pairs=2, steps=1))
    return lambda: ua.build_adapters(world.pipe, concepts, config, progress=False, call_kwargs=CALL)


@api
def status(world: World, _random: Random) -> Call:
    """Ask for all that is known of the adapters."""
    return lambda: ua.get_unlearning_adapters_info(world.pipe)


@api
def scope(world: World, random: Random) -> Call:
    """Let adapters act for a moment."""
    names = mostly(random, lambda: some_names(random))
    strength = mostly(random, lambda: some_strength(random))

    def enter() -> None:
        with ua.unlearning_adapters(world.pipe, names, strength=strength):
            pass

    return enter


@api
def engine(world: World, random: Random) -> Call:
    """Write, or check, a LoRA for an engine."""
    name = mostly(random, lambda: random.choice(["comfyui", "diffusers", "sglang", "vllm-omni"]), 0.7)
    place = mostly(random, lambda: random.choice(list(files()(world.folder).values())), 0.7)
    chosen = mostly(random, lambda: adapters()["built"], 0.7)
    if random.random() < 0.5:
        return lambda: ua.check_lora(place, engine=name)
    return lambda: ua.export_for_engine(chosen, world.folder / f"engine-{random.randrange(10**9)}", engine=name)


@api
def suite(world: World, random: Random) -> Call:
    """Read a suite."""
    source = mostly(random, lambda: random.choice([*files()(world.folder).values(), "red", "shapeworld-red"]), 0.4)
    return lambda: ua.read_suite(source)
