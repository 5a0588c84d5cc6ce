"""Conformance of tiny denoisers: one run for each, planted adapters, and the state that must be kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from reference import dense_added, dense_edit
from tiny_denoisers import TINY, Tiny, TinyPipeline
from torch import Tensor, nn

from planted import bits, planted
from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.pipelines.sites import linear_layers, site_module

ROUNDING = {"rtol": 1e-3, "atol": 1e-4}  # float32, outputs near 1


each = pytest.mark.parametrize("tiny", TINY, ids=lambda tiny: tiny.name)


def shape(path: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".N", path)


def expand(paths: str) -> set[str]:
    """Expand `a.{b,c}` to a.b and a.c."""
    found = set(paths.split())
    while choice := next((path for path in found if "{" in path), None):
        head, choices, tail = re.match(r"(.*?){(.*?)}(.*)", choice).groups()
        found = found - {choice} | {head + item + tail for item in choices.split(",")}
    return found


def some_adapter(pipe: TinyPipeline, seed: int = 0, sites: str = "text", scope: str = "word") -> UnlearningAdapter:
    """An oblique random direction at each site; of a model that reads no text, at the hidden ones."""
    return planted(pipe, f"concept-{seed}", seed=seed, sites=sites if pipe.tiny.sites else "hidden", scope=scope)


@contextmanager
def on_inputs(model: nn.Module, change: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Show the input of each Linear to a function, and replace it by what that returns."""

    def hook(path: str) -> Callable[..., object]:
        def run(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            if args:
                return (change(path, args[0]), *args[1:]), kwargs
            key, *rest = kwargs
            return args, {key: change(path, kwargs[key]), **{name: kwargs[name] for name in rest}}

        return run

    handles = [layer.register_forward_pre_hook(hook(path), with_kwargs=True) for path, layer in linear_layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def state(pipe: TinyPipeline) -> dict[str, object]:
    """All that could be left behind: modules, hooks, attributes and the bits of all weights."""
    modules = dict(pipe.model.named_modules())
    return {
        "modules": [(name, id(module), type(module)) for name, module in modules.items()],
        "attributes": [(name, sorted(vars(module))) for name, module in modules.items()],
        "hooks": [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in modules.values()],
        "forwards": [module.__dict__.get("forward") for module in modules.values()],
    }


def weights(pipe: TinyPipeline) -> dict[str, Tensor]:
    return {name: bits(value) for name, value in pipe.model.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def densely_edited(tiny: Tiny, adapter: UnlearningAdapter) -> Tensor:
    """The output of a fresh model with `W (I - w a^T)` for each weight, by dense matrices in float64."""
    pipe = tiny.pipe()
    for site, direction in adapter.directions.items():
        reads, writes = direction.read.double().numpy(), direction.write.double().numpy()
        weight, dense = site_module(pipe, site).weight, dense_added if direction.additive else dense_edit
        weight.copy_(weight.double() @ torch.from_numpy(dense([reads], [writes], [adapter.strength_at(site)])))
    return tiny.run(pipe.model)
