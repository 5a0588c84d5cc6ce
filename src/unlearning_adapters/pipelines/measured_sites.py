"""Which sites read the prompt alone, or the picture alone: found by measurement, for denoisers of any structure."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from unlearning_adapters.errors import DenoiserError
from unlearning_adapters.pipelines.running.partial_run import PartialRun, StopRun

from .hooks import count_calls, is_finite, on_input, some_values
from .not_finite import explain_not_finite
from .sites import Site, denoisers, find_sites, site_module

PROBES = ("a red bird on a branch", "two people walk along a street at night")  # unlike each other


def measure_text_only(pipe: Any, *, call_kwargs: Mapping[str, Any] | None = None) -> tuple[Site, ...]:
    """Find by measurement the sites whose input depends on the prompt alone.

    An input that differs between two prompts, and does not between two seeds of the noise, is text-only. It takes
    three runs that are stopped after the first call of each denoiser, and knows nothing of how the denoiser is built.

    Args:
        pipe: A diffusers pipeline.
        call_kwargs: Further arguments of its call.

    Returns:
        The sites of kind "text", in the order of the modules; none if the pipeline takes no prompt.

    Raises:
        DenoiserError: If the pipeline has no denoiser, or its projections are fused.
    """
    return _measure(pipe, call_kwargs, "text")


def measure_image_only(pipe: Any, *, call_kwargs: Mapping[str, Any] | None = None) -> tuple[Site, ...]:
    """Find by measurement the sites whose input depends on the picture alone.

    An input that differs between two pictures, and between neither two prompts nor two seeds of the noise, is
    image-only. It takes four runs that are stopped after the first call of each denoiser.

    Args:
        pipe: A diffusers pipeline.
        call_kwargs: Further arguments of its call.

    Returns:
        The sites of kind "image", in the order of the modules; none if the pipeline takes no picture.

    Raises:
        DenoiserError: If the pipeline has no denoiser, or its projections are fused.
    """
    return _measure(pipe, call_kwargs, "image")


def _measure(pipe: Any, call_kwargs: Mapping[str, Any] | None, kind: str) -> tuple[Site, ...]:
    """Return the sites whose input changes with the prompt, or the picture, and with nothing else that is varied."""
    sites = find_sites(pipe, "*")
    run = PartialRun(pipe, call_kwargs, any_video=True)
    if not (run.image if kind == "image" else run.takes_prompt):
        return ()
    pictures = _probe_pictures() if kind == "image" else (None, None)
    base = _probe(pipe, run, sites, PROBES[0], 0, pictures[0])
    for name, values in base.items():
        if not is_finite(values):
            raise DenoiserError(explain_not_finite(run, name, PROBES[0], 0, pictures[0]))
    changed = {"seed": (PROBES[0], 1, pictures[0]), "text": (PROBES[1], 0, pictures[0])}
    if kind == "image":
        changed["image"] = (PROBES[0], 0, pictures[1])
    probes = {name: _probe(pipe, run, sites, *inputs) for name, inputs in changed.items()}
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
