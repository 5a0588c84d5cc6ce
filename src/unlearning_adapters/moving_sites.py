"""Sites of text and pictures whose input changes from step to step all the same: found by measurement."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from .input_hooks import count_calls, on_input
from .partial_run import FEW_STEPS, SCHEDULE, PartialRun, StopRun
from .sites import Site, denoisers, site_module

MOVING_CALLS = 3  # calls that are recorded at such a site, spread from the first to the last
PROBE_VALUES = 4096
STEPS = "num_inference_steps"


def find_moving(
    pipe: Any,
    sites: Sequence[Site],
    prompt: str,
    image: Any = None,
    *,
    seed: int = 0,
    call_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, tuple[int, ...]]:
    """Return the text and image sites whose input depends on the timestep, and the calls in which to record them.

    It takes one run over one prompt, which is stopped after the second call of each denoiser if nothing has changed by
    then, and goes on to the VAE otherwise, to count the calls. An input whose shape changes counts as unchanged.

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
        Numbers of calls by the site's name, at most three, of sites that have at least two.
    """
    networks = denoisers(pipe)
    cached = any(getattr(network, "is_cache_enabled", False) for network in networks.values())
    if cached or any(site.kind == "hidden" for site in sites):
        return {}
    run = PartialRun(pipe, few_steps(call_kwargs), any_video=True)
    probe = _Probe({name: networks[name] for name in dict.fromkeys(site.component for site in sites)})
    with ExitStack() as stack:
        calls = count_calls(stack, pipe, probe.networks, probe.end)
        _stop_at_vae(stack, pipe, calls)
        for site in sites:
            on_input(stack, site_module(pipe, site.name), probe.reader(site, calls))
        run([prompt], [seed], image if run.image else None)
    spread = {name: _spread(count) for name, count in calls.items()}
    return {site.name: spread[site.component] for site in sites if site.name in probe.moved}


def few_steps(call_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return arguments of a call with at most four steps, which reach from the first timestep to nearly the last.

    Args:
        call_kwargs: Arguments; a schedule among them is left as it is.
    """
    given = dict(call_kwargs or {})
    if STEPS in given and not SCHEDULE & set(given):
        given[STEPS] = min(given[STEPS], FEW_STEPS)
    return given


def _stop_at_vae(stack: ExitStack, pipe: Any, calls: Counter[str]) -> None:
    """Stop the run when its VAE is used after a denoiser: nothing is decoded, which modular pipelines would do."""

    def stop(_tensor: Tensor) -> None:
        if calls:
            raise StopRun

    vae = getattr(pipe, "vae", None)
    for module in vae.modules() if isinstance(vae, torch.nn.Module) else ():
        on_input(stack, module, stop)


class _Probe:
    """What sites read in the first two calls of their denoiser."""

    def __init__(self, networks: Mapping[str, Any]) -> None:
        self.networks = networks
        self.open = set(networks)
        self.first: dict[str, tuple[torch.Size, Tensor]] = {}
        self.moved: set[str] = set()

    def reader(self, site: Site, calls: Counter[str]) -> Callable[[Tensor], None]:
        def read(tensor: Tensor) -> None:
            call = calls[site.component]
            if call == 1 and site.name not in self.first:
                self.first[site.name] = tensor.shape, _some_values(tensor)
            elif call == 2 and site.name in self.first:
                shape, before = self.first.pop(site.name)
                if shape == tensor.shape and not torch.allclose(before, _some_values(tensor), rtol=1e-4, atol=1e-6):
                    self.moved.add(site.name)

        return read

    def end(self, component: str, calls: int) -> None:
        """Stop after the second call of the last denoiser, unless a site has moved: then all calls are counted."""
        if calls >= 2:
            self.open.discard(component)
        if not self.open and not self.moved:
            raise StopRun


def _some_values(tensor: Tensor) -> Tensor:
    """Return values that are spread over all of a tensor, as one vector."""
    flat = tensor.detach().flatten()
    chosen = torch.linspace(0, len(flat) - 1, min(len(flat), PROBE_VALUES)).round().long().to(flat.device)
    return flat[chosen].to("cpu", torch.float32)


def _spread(calls: int) -> tuple[int, ...]:
    count = min(calls, MOVING_CALLS)
    return tuple(round(place * (calls - 1) / max(count - 1, 1)) for place in range(count))
