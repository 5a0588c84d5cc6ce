"""Conformance of whole pipelines: a table of tiny ones, and one check that runs them through their own call.

The folder `cases` holds the cases, and tests/whole/test_whole.py runs them. The support table is written from them, so
that docs/pipelines.md cannot say more than the tests do.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_denoisers import TINY
from torch import Tensor, nn

from planted import bits, planted
from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import Concept, Pair
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.pipelines.probes import measure_sites
from unlearning_adapters.pipelines.sites import denoisers, site_module
from unlearning_adapters.runtime.verbs import (
    fuse_unlearning_adapters,
    get_list_unlearning_adapters,
    load_unlearning_adapter,
    unfuse_unlearning_adapters,
    unload_unlearning_adapters,
)

ROUNDING = 0.02  # largest part of an edit's effect by which equal edits may differ in float32
# Few words, for a tiny model has no room to tell many apart; the prompts that are tested are none of the pairs.
UNSAFE, SAFE, UNRELATED = "the red dog runs", "the blue dog runs", "the cat runs"
SCENES = ("a {} car", "the {} cat", "a {} dog sits", "the {} house", "a {} cat runs")
NEUTRAL = ("a dog runs", "the car", "a cat sits", "the dog", "a house", "the cat runs")
GUIDANCE_OFF = {
    "guidance_scale": 1.0, "true_cfg_scale": 1.0, "audio_guidance_scale": 1.0, "min_guidance_scale": 1.0,
    "max_guidance_scale": 1.0, "pag_scale": 0.0,
}  # fmt: skip
PICTURE_SIDE = 16
# Last layers of the attentions and feed-forwards of text encoders, and of LTX-2's connectors.
ENCODER_OUT = re.compile(r"(^|\.)(o|wo|out_proj|o_proj|fc2|down_proj|to_out\.0|net\.2)$")


@dataclass(frozen=True)
class Whole:
    """A pipeline class in one configuration, which `check_whole` runs through its own call.

    Args:
        pipeline: Class name, such as "WanPipeline".
        family: Name of its family, such as "Wan".
        make: Makes the tiny pipeline, in memory, seeded.
        call: Arguments of its call besides prompt, generator and pictures; the builder gets them too.
        run: Further arguments of full runs alone, such as {"output": "latents"} of a modular pipeline.
        variant: What the configuration shows, beside the class.
        takes: What the call needs besides a prompt, for people: "image", "video and mask".
        pictures: Whether its argument `image` is a picture, so that pairs carry pictures.
        reads_text: False for a pipeline without a prompt: pairs differ in their pictures; hidden sites.
        skip: Number of calls of a site before the first one that denoises: the reference of Wan-Animate 2.
        batch_size: Number of prompts per call of the builder; 1 for a pipeline that takes a single prompt.
        left: Largest part of the difference that the concept's word makes in the output and that an adapter may leave;
            more where the prompt has other doors to the video.
        spared: Largest change of a neutral prompt's output, as a part of that difference.
        remarks: What people should know, such as an upstream defect that the case works around.
    """

    pipeline: str
    family: str
    make: Callable[[], Any]
    call: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""
    takes: str = ""
    pictures: bool = False
    reads_text: bool = True
    skip: int = 0
    batch_size: int = 8
    left: float = 0.5
    spared: float = 0.25
    remarks: str = ""

    def __str__(self) -> str:
        return f"{self.pipeline} ({self.variant})" if self.variant else self.pipeline


@dataclass(frozen=True)
class Broken:
    """A pipeline class that no arguments run, by a defect of diffusers: `check_broken` sees that it still fails so."""

    pipeline: str
    family: str
    make: Callable[[], Any]
    call: Mapping[str, Any]
    error: type[Exception]
    text: str
    remarks: str

    def __str__(self) -> str:
        return self.pipeline


@dataclass(frozen=True)
class NotRun:
    """A pipeline class that no test runs as a whole, and why."""

    pipeline: str
    family: str
    remarks: str

    def __str__(self) -> str:
        return self.pipeline


def each(cases: Sequence[Any], kind: type = Whole) -> pytest.MarkDecorator:
    """Run a test for each case of a kind."""
    return pytest.mark.parametrize("case", [case for case in cases if isinstance(case, kind)], ids=str)


def check_whole(case: Whole, folder: Path) -> None:
    """Run one pipeline through its own call: build, attach, fuse, unfuse, unload, file and stack."""
    pipe = case.make()
    assert type(pipe).__name__ == case.pipeline
    plant_words(pipe)
    base, safe, neutral = (output(case, pipe, prompt) for prompt in (UNSAFE, SAFE, UNRELATED))
    word = (base - safe).norm()
    assert torch.isfinite(base).all()
    assert word > 3e-4 * base.norm(), "the output hardly depends on the concept: this case could not fail"
    before = state(pipe)

    adapter = build(case, pipe)
    assert changed(before, state(pipe)) == set(), "the builder left something behind"
    check_found(case, pipe, adapter)
    check_measured(case, pipe, adapter)
    name = load_unlearning_adapter(pipe, adapter)
    attached = output(case, pipe, UNSAFE)
    assert (attached - base).norm() > 0.1 * word, "the adapter hardly acts"
    left, spared = (attached - safe).norm() / word, (output(case, pipe, UNRELATED) - neutral).norm() / word
    assert left < case.left and spared < case.spared, f"left {left:.3f}, neutral prompt moved {spared:.3f}"

    check_fuse_and_unfuse(case, pipe, adapter, base, attached, before)
    assert get_list_unlearning_adapters(pipe) == {part: [name] for part in adapter.info.denoisers}
    unload_unlearning_adapters(pipe)
    assert changed(before, state(pipe)) == set(), "something of the adapter is left"

    check_file_and_stack(case, pipe, adapter, attached, word, folder)
    assert changed(before, state(pipe)) == set(), "something of two adapters is left"
    assert torch.equal(output(case, pipe, UNSAFE), base)


def plant_words(pipe: Any) -> None:
    """Let no word hear of another in the text encoders, so that "red" differs from "blue" by one vector, everywhere."""
    for name, component in pipe.components.items():
        if name.startswith(("text_encoder", "connectors")) and isinstance(component, nn.Module):
            for path, module in component.named_modules():
                if ENCODER_OUT.search(path) and isinstance(module, nn.Linear):
                    nn.init.zeros_(module.weight)


def check_broken(case: Broken) -> None:
    """See that a pipeline still fails by the defect of diffusers that the table names."""
    pipe = case.make()
    assert type(pipe).__name__ == case.pipeline
    with pytest.raises(case.error, match=re.escape(case.text)):
        pipe(prompt=UNSAFE, **case.call)


def picture(number: int) -> Image.Image:
    """A picture with a gradient, another one for each number."""
    rows, columns = np.mgrid[:PICTURE_SIDE, :PICTURE_SIDE] * 15
    channels = (rows, columns, np.full_like(rows, 60 * number % 256))
    return Image.fromarray(np.stack(np.roll(channels, number, axis=0), axis=-1).astype(np.uint8))


def concept(case: Whole, neutral: tuple[str, ...] = NEUTRAL) -> Concept:
    """Pairs that differ in one word, with a picture each if the pipeline takes one."""
    pairs = []
    for number, scene in enumerate(SCENES):
        images = (None, None)
        if case.pictures:
            images = (picture(number), picture(number if case.reads_text else number + 1))
        pairs.append(Pair(scene.format("red"), scene.format("blue"), *images))
    return Concept(name="red", pairs=tuple(pairs), neutral=neutral)


def build(case: Whole, pipe: Any, **settings: Any) -> UnlearningAdapter:
    """An adapter by the default method, or as the settings say; torch's random state is left as it was."""
    random_state = torch.get_rng_state()
    config = BuildConfig(
        **{"batch_size": case.batch_size, "sites": "text" if case.reads_text else "hidden", "steps": 1, **settings}
    )
    wanted = concept(case, NEUTRAL if config.method == "ridge" else ())
    adapter = build_adapter(pipe, wanted, config, progress=False, call_kwargs=case.call)
    assert torch.equal(torch.get_rng_state(), random_state)
    return adapter


@torch.no_grad()
def output(case: Whole, pipe: Any, prompt: str, **changes: Any) -> Tensor:
    """All tensors that a call returns, as one vector."""
    accepted = accepts(pipe)
    own: dict[str, Any] = {"generator": torch.Generator().manual_seed(0), "output_type": "latent"}
    own["prompt"] = prompt
    if case.pictures:
        own["image"] = picture(0 if case.reads_text or prompt == UNSAFE else 1)
    own = {name: value for name, value in own.items() if name in accepted}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for pipelines that draw noise beside their generator
        result = pipe(**{**own, **case.call, **case.run, **changes})
    parts = [part.detach().flatten().float() for part in tensors(result)]
    assert parts, f"{case} returned no tensor"
    return torch.cat(parts)


def accepts(pipe: Any) -> set[str]:
    """Names of the arguments of a pipeline's call."""
    blocks = getattr(pipe, "blocks", None)
    if blocks is not None:
        return {item.name for item in blocks.inputs if item.name}
    return set(inspect.signature(type(pipe).__call__).parameters)


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors, arrays and pictures in what a pipeline returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (np.ndarray, Image.Image)):
        yield torch.from_numpy(np.array(value))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))


def state(pipe: Any) -> dict[str, Any]:
    """All that could be left behind on any component: modules, hooks, attributes, and the bits of all weights."""
    taken: dict[str, Any] = {"pipeline": sorted(vars(pipe))}
    for component, module in pipe.components.items():
        if not isinstance(module, nn.Module):
            continue
        for path, part in module.named_modules(prefix=component):
            hooks = len(part._forward_pre_hooks), len(part._forward_hooks)
            held = part.__dict__.get("forward"), id(part.__dict__.get("processor"))
            taken[f"{path}:"] = id(part), type(part), sorted(vars(part)), hooks, held
        taken |= {f"{component}.{path}": bits(tensor) for path, tensor in module.state_dict().items()}
    return taken


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    """Names of what differs between two states."""

    def same(one: Any, other: Any) -> bool:
        return torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other

    return {name for name in before.keys() | after.keys() if not same(before.get(name), after.get(name))}


def check_found(case: Whole, pipe: Any, adapter: UnlearningAdapter) -> None:
    """The builder's short runs see what whole runs show: the direction is the mean difference that the word makes."""
    found = build(case, pipe, method="mean", strength=1.0, pairs=2)
    assert set(found.sites) == set(adapter.sites)
    expected: dict[str, list[Tensor]] = {}
    for number, pair in enumerate(concept(case).pairs[:2]):
        unsafe, safe = (
            inputs_of(case, pipe, found.sites, prompt, image, number)
            for prompt, image in ((pair.unsafe, pair.unsafe_image), (pair.safe, pair.safe_image))
        )
        for site in found.sites:
            expected.setdefault(site, []).append(pooled(unsafe[site]) - pooled(safe[site]))
    for site, differences in expected.items():
        cosine = torch.cosine_similarity(found.directions[site].read[0], torch.stack(differences).mean(dim=0), dim=0)
        assert cosine > 0.99, f"{site}: {cosine:.3f}"


def check_measured(case: Whole, pipe: Any, adapter: UnlearningAdapter) -> None:
    """Measurement agrees with the finder: sites read the prompt alone, but for those that have seen the video."""
    call = {**case.call, "image": picture(0)} if case.pictures else case.call
    measured = {site.name for site in measure_sites(pipe, "text", call_kwargs=call)} if case.reads_text else set()
    kinds = {type(network).__name__ for network in denoisers(pipe).values()}
    mixed = [tiny.mixed for tiny in TINY if tiny.model in kinds and tiny.mixed]
    alone = {site for site in adapter.sites if case.reads_text and not any(re.search(part, site) for part in mixed)}
    assert alone <= measured, sorted(alone - measured)


def inputs_of(case: Whole, pipe: Any, sites: Sequence[str], prompt: str, image: Any, seed: int) -> dict[str, Tensor]:
    """What sites read first, when they denoise, in a whole run without guidance."""
    seen: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def keep(site: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[site] += 1
            if calls[site] > case.skip:
                seen.setdefault(site, (args[0] if args else next(iter(kwargs.values()))).detach().float().clone())

        return hook

    accepted = accepts(pipe)
    changes = {name: value for name, value in GUIDANCE_OFF.items() if name in accepted - set(case.call)}
    if "true_cfg_scale" in changes:
        changes = {"true_cfg_scale": 1.0}  # there `guidance_scale` is an embedding
    if image is not None:
        changes["image"] = image
    with ExitStack() as stack:
        for site in sites:
            handle = site_module(pipe, site).register_forward_pre_hook(keep(site), with_kwargs=True)
            stack.callback(handle.remove)
        output(case, pipe, prompt, **changes, generator=torch.Generator().manual_seed(seed))
    return seen


def pooled(rows: Tensor) -> Tensor:
    """Mean of the distinct rows: padding counts once."""
    return rows.flatten(0, -2).round(decimals=4).unique(dim=0).mean(dim=0)


def check_fuse_and_unfuse(
    case: Whole, pipe: Any, adapter: UnlearningAdapter, base: Tensor, attached: Tensor, before: Mapping[str, Any]
) -> None:
    """Fused is attached within rounding, and changes the weights of the sites alone; unfused, every bit is back."""
    fuse_unlearning_adapters(pipe)
    assert (output(case, pipe, UNSAFE) - attached).norm() < ROUNDING * (attached - base).norm()
    weights = {name for name, value in before.items() if isinstance(value, Tensor)}
    assert changed(before, state(pipe)) & weights == {f"{site}.weight" for site in adapter.sites}
    unfuse_unlearning_adapters(pipe)
    assert changed(before, state(pipe)) & weights == set()
    assert torch.equal(output(case, pipe, UNSAFE), attached)


def check_file_and_stack(
    case: Whole, pipe: Any, adapter: UnlearningAdapter, attached: Tensor, word: Tensor, folder: Path
) -> None:
    """A file gives the same bits; a second adapter acts beside it, the same in either order."""
    second = planted(pipe, "second", seed=7, strength=4.0, sites="text" if case.reads_text else "hidden")
    load_unlearning_adapter(pipe, adapter.save_pretrained(folder))
    assert torch.equal(output(case, pipe, UNSAFE), attached)
    load_unlearning_adapter(pipe, second)
    both = output(case, pipe, UNSAFE)
    unload_unlearning_adapters(pipe)
    load_unlearning_adapter(pipe, second)
    alone = output(case, pipe, UNSAFE)
    load_unlearning_adapter(pipe, adapter)
    assert torch.equal(output(case, pipe, UNSAFE), both)
    second_acts, first_acts = (both - attached).norm() / word, (both - alone).norm() / word
    assert min(second_acts, first_acts) > 0.02, f"first acts {first_acts:.3f}, second {second_acts:.3f}"
    unload_unlearning_adapters(pipe)
