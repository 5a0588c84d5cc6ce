"""What a sequence starts from: a tiny pipeline, adapters for it and not for it, a concept, and odd values."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from copies import copier
from diffusers import WanModularPipeline, WanPipeline
from stdit import STDiT, run
from tiny import CALL, tiny_wan_pipeline

from planted import lora_that_reads, planted
from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.concepts.pair import Pair
from unlearning_adapters.runtime.any_module import wrap_denoiser
from unlearning_adapters.runtime.verbs import load_unlearning_adapter

PROMPT = "the red dog runs"
SCENES = ("a {} car", "the {} cat", "a {} dog sits")
CONCEPT = Concept(
    "no-red", [Pair(scene.format("red"), scene.format("blue")) for scene in SCENES], neutral=["a dog runs", "the car"]
)
KINDS = ("one denoiser",) * 4 + (
    "two denoisers",
    "two denoisers",
    "shared denoiser",
    "wrapped module",
    "not loaded",
    "bare",
)


@dataclass
class World:
    """One sequence's pipeline, and where it may write.

    Args:
        pipe: The pipeline.
        folder: A folder for files.
        kind: What kind of pipeline it is, one of `KINDS`.
        seen: The picture after the last call, as long as nothing else was done; None if one has to be taken.
    """

    pipe: Any
    folder: Path
    kind: str
    seen: dict[str, Any] | None = None


def new_world(random: Random, folder: Path) -> World:
    """Return a world with a pipeline of a random kind."""
    kind = random.choice(KINDS)
    adapters(), lora(), files()  # made once, and before any picture is taken
    return World(_pipeline(kind), folder, kind)


def _pipeline(kind: str) -> Any:
    if kind == "not loaded":
        return WanModularPipeline()
    if kind == "bare":  # as a pipeline of which only the denoiser was loaded
        pipe = copied(False)
        return WanPipeline(None, None, None, pipe.scheduler, pipe.transformer)
    if kind == "wrapped module":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return wrap_denoiser(STDiT().eval(), run)
    pipe = copied(kind == "two denoisers")
    if kind == "shared denoiser":
        pipe.register_modules(transformer_2=pipe.transformer)
        pipe.register_to_config(boundary_ratio=0.875)
    return pipe


@cache
def template(two: bool) -> WanPipeline:
    """Return the pipeline, of one denoiser or two, of which sequences get copies."""
    pipe = tiny_wan_pipeline(two)
    with torch.no_grad():
        pipe(PROMPT, **CALL)  # leaves registries and attributes of diffusers behind, which are no trace of ours
    return pipe


@cache
def _copier(two: bool) -> Callable[[], dict[str, Any]]:
    return copier(template(two).components)


def copied(two: bool) -> WanPipeline:
    """Return a pipeline with copies of all parts of the template."""
    pipe = WanPipeline(**_copier(two)(), boundary_ratio=template(two).config.boundary_ratio)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def adapters() -> dict[str, UnlearningAdapter]:
    """Return adapters by name: such as fit the tiny pipelines, and such as do not."""
    pipe, two = template(False), template(True)
    red = planted(pipe, "red", rank=2, strength=1.3)
    site = red.sites[0]
    narrow = Direction(torch.eye(1, 7), torch.eye(1, 7))
    nan = Direction(torch.full((1, 48), torch.nan), torch.full((1, 48), torch.nan))
    added = {
        name: replace(direction, additive=True) for name, direction in planted(pipe, "green", seed=5).directions.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        real = build_adapter(template(False), CONCEPT, progress=False, call_kwargs=CALL)
    return {
        "red": red,
        "blue": planted(pipe, "blue", seed=1),
        "both": planted(two, "both", seed=2),
        "near red": replace(red, info=replace(red.info, concept="near-red", strength=0.4)),
        "added": UnlearningAdapter(replace(red.info, concept="green", method="uce"), added),
        "built": real,
        "hidden": planted(pipe, "hidden", seed=3, sites="transformer.blocks.*.attn1.to_out.0"),
        "without factors": replace(red, lora_B={}),
        "gains": replace(red, directions={name: replace(each, gain=0.5) for name, each in red.directions.items()}),
        "other sites": UnlearningAdapter(red.info, {"transformer.blocks.9.attn2.to_k": red.directions[site]}),
        "other component": UnlearningAdapter(red.info, {"unet.blocks.0.attn2.to_k": red.directions[site]}),
        "other width": UnlearningAdapter(red.info, {site: narrow}),
        "not finite": UnlearningAdapter(red.info, {site: nan}),
    }


@cache
def red_bytes() -> bytes:
    """Return the file of the adapter "red"."""
    return adapters()["red"].save_pretrained(_folder() / "red.safetensors").read_bytes()


@cache
def lora() -> dict[str, torch.Tensor]:
    """Return a LoRA that reads what the adapter "red" removes."""
    return lora_that_reads(adapters()["red"], template(False), ("transformer.blocks.0.attn1.to_q",))


@cache
def files() -> Callable[[Path], dict[str, Path]]:
    """Return what writes files that adapters can, and cannot, be read from."""
    blob = red_bytes()

    def write(folder: Path) -> dict[str, Path]:
        contents = {"red": blob, "cut": blob[:200], "empty": b"", "pointer": POINTER, "noise": bytes(range(256)) * 4}
        paths = {name: folder / f"{name}.safetensors" for name in contents}
        for name, path in paths.items():
            path.write_bytes(contents[name])
        paths["link to nowhere"] = folder / "link.safetensors"
        if not paths["link to nowhere"].is_symlink():
            paths["link to nowhere"].symlink_to(folder / "nowhere")
        paths["folder"] = folder / "folder.safetensors"
        paths["folder"].mkdir(exist_ok=True)
        return paths

    return write


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


@cache
def _folder() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp())


def odd(random: Random) -> Any:
    """Return a value of any type, of which few make sense anywhere."""
    return random.choice(ODD)()


ODD: tuple[Callable[[], Any], ...] = (
    lambda: None, lambda: True, lambda: False, lambda: 0, lambda: -1, lambda: 3, lambda: 10**30, lambda: 0.5,
    lambda: -0.5, lambda: float("nan"), lambda: float("inf"), lambda: "", lambda: " ", lambda: "red", lambda: "1.0",
    lambda: "no such name", lambda: "a.b", lambda: "x" * 5000, lambda: "two\nlines", lambda: "\x00", lambda: "\ud800",
    lambda: b"red", lambda: [], lambda: [None], lambda: ["red"], lambda: ["red", "red"], lambda: ["red", 3], lambda: (),
    lambda: {}, lambda: {"red": 1.0}, lambda: {"transformer": 0.5}, lambda: {1: 2}, lambda: {"red"}, lambda: object(),
    lambda: np.float32(0.5), lambda: np.float64(0.5), lambda: np.int64(1), lambda: np.ones(3), lambda: torch.ones(3),
    lambda: torch.tensor(0.5), lambda: Path(), lambda: Path("/nowhere/at/all"), lambda: int, lambda: len,
    lambda: range(2),
    lambda: iter(["red"]), lambda: 1j, lambda: [[["red"]]], lambda: np.array(["red"]), lambda: slice(1), lambda: ...,
)  # fmt: skip


def load_in(pipe: Any, name: str, **arguments: Any) -> str:
    """Load one of `adapters()`, without warnings."""
    return load_unlearning_adapter(pipe, adapters()[name], **arguments)
