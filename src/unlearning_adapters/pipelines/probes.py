"""Probes: short runs that measure which sites read the prompt or the picture alone, and which share an input."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from unlearning_adapters.errors import DenoiserError, PipelineError
from unlearning_adapters.pipelines.running.call_arguments import FEW_STEPS, SCHEDULE, STEPS
from unlearning_adapters.pipelines.running.partial_run import PartialRun, StopRun
from unlearning_adapters.pipelines.running.short_calls import ShortCalls

from .hooks import count_calls, is_finite, on_input, place_of, some_values
from .not_finite import explain_not_finite
from .sites import Site, denoisers, find_sites, site_module
from .spacing import evenly_spaced
from .text_padding import padding_once, without_padding

PROBES = ("a red bird on a branch", "two people walk along a street at night")  # unlike each other
MOVING_CALLS = 3  # calls that are recorded at such a site, spread from the first to the last


def measure_sites(pipe: Any, kind: str, *, call_kwargs: Mapping[str, Any] | None = None) -> tuple[Site, ...]:
    """Find by measurement the sites whose input depends on the prompt alone, or on the picture alone.

    An input that differs between two prompts, and not between two seeds of the noise, is text-only. One that differs
    between two pictures, and not between two prompts or two seeds, is image-only. It takes three runs, or four, which
    are stopped after the first call of each denoiser, and knows nothing of how the denoiser is built.

    Args:
        pipe: A diffusers pipeline.
        kind: "text" or "image".
        call_kwargs: Further arguments of its call.

    Returns:
        The sites of that kind, in the order of the modules; none if the pipeline takes no prompt, or no picture.

    Raises:
        DenoiserError: If the pipeline has no denoiser, or its projections are fused.
    """
    sites = find_sites(pipe, "*")
    run = PartialRun(pipe, call_kwargs, any_video=True)
    if not (run.image if kind == "image" else run.takes_prompt):
        return ()
    pictures = _probe_pictures() if kind == "image" else (None, None)
    base = _probe(pipe, run, sites, PROBES[0], 0, pictures[0])
    for name, values in base.items():
        if not is_finite(values):
            raise DenoiserError(explain_not_finite(run, name, PROBES[0], 0, pictures[0]))
    variants = {"seed": (PROBES[0], 1, pictures[0]), "text": (PROBES[1], 0, pictures[0])}
    if kind == "image":
        variants["image"] = (PROBES[0], 0, pictures[1])
    probes = {name: _probe(pipe, run, sites, *inputs) for name, inputs in variants.items()}
    return tuple(
        Site(site.component, site.module, site.in_features, site.out_features, kind)
        for site in sites
        if site.name in base
        and all(_alike(base[site.name], probes[name].get(site.name)) == (name != kind) for name in probes)
    )


def _probe_pictures() -> tuple[Image.Image, Image.Image]:
    """Return two pictures that are unlike each other."""
    return Image.linear_gradient("L").convert("RGB"), Image.radial_gradient("L").convert("RGB")


def _probe(
    pipe: Any, run: PartialRun, sites: Sequence[Site], prompt: str, seed: int, image: Image.Image | None
) -> dict[str, Tensor]:
    """Return some values of each site's input in the first call of each denoiser."""
    networks = denoisers(pipe)
    open_calls = set(networks)
    values: dict[str, Tensor] = {}

    def end(component: str, _calls: int) -> None:
        open_calls.discard(component)
        if not open_calls:
            raise StopRun

    def reader(site: Site) -> Callable[[Tensor], None]:
        def read(tensor: Tensor) -> None:
            if calls[site.component] and site.component in open_calls and site.name not in values:
                values[site.name] = some_values(tensor)

        return read

    with ExitStack() as stack:
        calls = count_calls(stack, pipe, networks, end)
        for site in sites:
            on_input(stack, site_module(pipe, site.name), reader(site))
        run([prompt], [seed], image)
    return values


def _alike(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@dataclass(frozen=True)
class SharedInputs:
    """How sites are fed.

    Args:
        moving: Sites whose input depends on the timestep: by name, the calls in which to record them.
        leaders: By site, the first one that is fed the same tensor; sites that were not seen are missing.
    """

    moving: Mapping[str, tuple[int, ...]]
    leaders: Mapping[str, str]


def find_shared_inputs(
    pipe: Any,
    sites: Sequence[Site],
    prompt: str,
    image: Any = None,
    *,
    seed: int = 0,
    call_kwargs: Mapping[str, Any] | None = None,
) -> SharedInputs:
    """Find the text and image sites that share an input, and those whose input depends on the timestep.

    It takes one run over one prompt, which is stopped when all sites were seen in two calls of their denoiser if none
    has changed by then, and goes on to the VAE otherwise, to count the calls. An input whose shape changes counts as
    unchanged.

    Where hidden sites are recorded too, or a denoiser has a cache that skips blocks, nothing is measured: their runs
    are of full length, or cannot be recorded in more than one step.

    Args:
        pipe: A diffusers pipeline.
        sites: Sites as `find_sites` returns them.
        prompt: A prompt.
        image: A picture, for image-to-video pipelines.
        seed: Seed of the noise.
        call_kwargs: Further arguments of the pipeline's call.

    Returns:
        At most three calls of each moving site, and of sites that have at least two calls.
    """
    networks = denoisers(pipe)
    has_cache = any(getattr(network, "is_cache_enabled", False) for network in networks.values())
    if has_cache or any(site.kind == "hidden" for site in sites):
        return SharedInputs({}, {})
    run = PartialRun(pipe, few_steps(call_kwargs), any_video=True)
    networks_read = {name: networks[name] for name in dict.fromkeys(site.component for site in sites)}
    for padded in (False, True):
        with ExitStack() as stack:
            cut = [] if padded else stack.enter_context(without_padding(pipe))
            probe = _Probe(networks_read, cut)
            calls = count_calls(stack, pipe, probe.networks, probe.end)
            _stop_at_vae(stack, pipe, calls)
            for site in sites:
                on_input(stack, site_module(pipe, site.name), probe.reader(site, calls))
            stack.enter_context(padding_once(networks_read.values()))
            stack.enter_context(ShortCalls(networks_read).placed(lambda _name: True))  # notes the forms of calls
            try:
                run([prompt], [seed], image if run.image else None)
            except PipelineError:
                if not cut:
                    raise
                continue  # it is fed padding, which was cut off
        if not probe.not_finite:
            break
    spread = {name: _spread(count) for name, count in calls.items()}
    moving = {site.name: spread[site.component] for site in sites if site.name in probe.moved}
    return SharedInputs(moving, {name: leader for leader, names in probe.members.items() for name in names})


def few_steps(call_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return arguments of a call with at most four steps, which reach from the first timestep to nearly the last.

    Args:
        call_kwargs: Arguments; a schedule among them is left as it is.
    """
    arguments = dict(call_kwargs or {})
    if isinstance(arguments.get(STEPS), int) and not SCHEDULE & set(arguments):
        arguments[STEPS] = min(arguments[STEPS], FEW_STEPS)
    return arguments


def _stop_at_vae(stack: ExitStack, pipe: Any, calls: Counter[str]) -> None:
    """Stop the run when its VAE is used after a denoiser: nothing is decoded, which modular pipelines would do."""

    def stop(_tensor: Tensor) -> None:
        if calls:
            raise StopRun

    vae = getattr(pipe, "vae", None)
    for module in vae.modules() if isinstance(vae, torch.nn.Module) else ():
        on_input(stack, module, stop)


class _Probe:
    """What sites read in the first two calls of their denoiser; of sites that are fed the same tensor, one is read."""

    def __init__(self, networks: Mapping[str, Any], cut: Sequence[int]) -> None:
        self.networks, self.cut = networks, cut
        self.open = set(networks)
        self.fed: dict[str, dict[tuple[Any, ...], tuple[Tensor, str]]] = {name: {} for name in networks}
        self.members: dict[str, list[str]] = {}  # the site that is read -> all of its group
        self.first: dict[str, tuple[torch.Size, Tensor]] = {}
        self.moved: set[str] = set()
        self.not_finite = False

    def reader(self, site: Site, calls: Counter[str]) -> Callable[[Tensor], None]:
        seen: set[int] = set()

        def read(tensor: Tensor) -> None:
            call = calls[site.component]
            if call not in seen and call in (1, 2):
                seen.add(call)
                (self._meet if call == 1 else self._compare)(site, tensor)

        return read

    def _meet(self, site: Site, tensor: Tensor) -> None:
        # Kept alive until the end of the call, so that an equal address means the same tensor.
        leader = self.fed[site.component].setdefault((site.kind, *place_of(tensor)), (tensor, site.name))[1]
        self.members.setdefault(leader, []).append(site.name)
        if leader == site.name:
            self.first[site.name] = tensor.shape, some_values(tensor)
            if self.cut and not is_finite(tensor):
                self.not_finite = True
                raise StopRun

    def _compare(self, site: Site, tensor: Tensor) -> None:
        if site.name not in self.first:
            return
        shape, before = self.first.pop(site.name)
        if shape == tensor.shape and not torch.allclose(before, some_values(tensor), rtol=1e-4, atol=1e-6):
            self.moved.update(self.members[site.name])
        if not any(name.startswith(f"{site.component}.") for name in self.first):
            self.end(site.component, 2)

    def end(self, component: str, calls: int) -> None:
        """Stop when all denoisers were seen twice, unless a site has moved: then all calls are counted."""
        self.fed[component].clear()
        if calls >= 2:
            self.open.discard(component)
        if not self.open and not self.moved:
            raise StopRun


def _spread(calls: int) -> tuple[int, ...]:
    return evenly_spaced(calls, MOVING_CALLS)
