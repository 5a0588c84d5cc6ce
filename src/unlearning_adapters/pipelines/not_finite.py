"""`explain_not_finite`: where NaN and infinite numbers come from: an argument, a weight, or a layer."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from unlearning_adapters.errors import PipelineError
from unlearning_adapters.pipelines.running.partial_run import PartialRun, StopRun

from .hooks import is_finite


def explain_not_finite(run: PartialRun, site: str, prompt: str, seed: int, image: Any = None) -> str:
    """Return in one line why a site reads NaN or infinite numbers, found by another run over the same prompt.

    Args:
        run: Runs the pipeline.
        site: Name of the site.
        prompt: The prompt.
        seed: Seed of the noise.
        image: Picture of the prompt, or None.
    """
    reads = f"What {site} reads for {prompt!r:.60} is not finite:"
    for name, value in run.arguments.items():
        if any(not is_finite(tensor) for tensor in _tensors(value)):
            return f"{reads} `{name}` in call_kwargs holds {_kind(value)}. Give finite numbers."
    parts = {name: part for name, part in run.pipe.components.items() if isinstance(part, nn.Module)}
    for component, part in parts.items():
        for name, value in part.named_parameters():
            if not value.is_meta and value.is_floating_point() and not is_finite(value.detach()):
                return f"{reads} the weight {component}.{name} holds {_kind(value)}. Load the pipeline again."
    first = _first_module(run, parts, prompt, seed, image)
    if first is None:
        return f"{reads} they come from no layer of the pipeline. Run the pipeline by itself to see it."
    name, kind, dtype = first
    cure = "Run the pipeline by itself to see it"
    if dtype == torch.float16:
        cure = "float16 ends at 65,504: load the pipeline in bfloat16 or float32"
    return f"{reads} {name} is the first layer that gives {kind} ({str(dtype).removeprefix('torch.')}). {cure}."


def _first_module(
    run: PartialRun, parts: Mapping[str, nn.Module], prompt: str, seed: int, image: Any
) -> tuple[str, str, torch.dtype] | None:
    """Return name, kind of numbers and dtype of the first layer whose output is not finite, while its input is."""
    layers: list[tuple[str, str, torch.dtype]] = []

    def check(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            wrong = [tensor for tensor in _tensors(output) if not is_finite(tensor)]
            if wrong:
                layers.append((name, _kind(wrong), wrong[0].dtype))
                raise StopRun

        return hook

    with ExitStack() as stack:
        for component, part in parts.items():
            for path, module in part.named_modules():
                if not module._modules:  # what holds others only hands on what they give
                    stack.callback(module.register_forward_hook(check(f"{component}.{path}")).remove)
        try:
            run([prompt], [seed], image)
        except PipelineError:
            return layers[0] if layers else None
    return layers[0] if layers else None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point() and not value.is_meta:
            yield value.detach()
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _kind(value: Any) -> str:
    nan = any(bool(tensor.isnan().any()) for tensor in _tensors(value))
    return "NaN" if nan else "infinite numbers"
