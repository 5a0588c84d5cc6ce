"""What a pipeline calls its denoisers with: recorded in a run of its own, and repeated with another prompt.

No sampling loop is re-implemented, so that this holds for denoisers of any kind. The calls are made again outside of
the pipeline, edited or not, with gradients or without.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unlearning_adapters.errors import DenoiserError
from unlearning_adapters.pipelines.hooks import on_call

from .partial_run import PartialRun, StopRun


@dataclass
class Call:
    """One call of a denoiser for a batch of prompts.

    Args:
        component: Name of the denoiser.
        args: Its positional arguments, copied.
        kwargs: Its other arguments, copied.
    """

    component: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def record_calls(
    run: PartialRun,
    networks: Mapping[str, nn.Module],
    prompts: Sequence[str],
    seeds: Sequence[int],
    count: int,
    image: Any = None,
) -> list[Call]:
    """Return the first calls of the denoisers in a run of the pipeline, which is then stopped.

    Args:
        run: Runs the pipeline.
        networks: Its denoisers.
        prompts: Prompts of one batch.
        seeds: Seed of the noise of each.
        count: Number of calls; fewer are returned if the run makes fewer.
        image: Picture for an image-to-video pipeline.

    Raises:
        DenoiserError: If the run called none of the denoisers.
    """
    calls: list[Call] = []

    def read(component: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(Call(component, _copy(args), _copy(kwargs)))
        if len(calls) == count:
            raise StopRun

    with ExitStack() as stack:
        on_call(stack, run.pipe, networks, read)
        run(prompts, seeds, image)
    if not calls:
        raise DenoiserError(f"A run of {type(run.pipe).__name__} called none of its denoisers.")
    return calls


def text_of(
    run: PartialRun,
    networks: Mapping[str, nn.Module],
    prompts: Sequence[str],
    seeds: Sequence[int],
    first: Call,
    image: Any = None,
) -> Call:
    """Return the arguments that other prompts change.

    Args:
        run: Runs the pipeline.
        networks: Its denoisers.
        prompts: The other prompts.
        seeds: The seeds of `first`.
        first: The first call of a run, in which all but the prompts is the same.
        image: The picture of `first`.
    """
    (other,) = record_calls(run, networks, prompts, seeds, 1, image)
    args = tuple(
        new if index < len(first.args) and not _same(new, first.args[index]) else _KEPT
        for index, new in enumerate(other.args)
    )
    changes = {key: new for key, new in other.kwargs.items() if not _same(new, first.kwargs.get(key))}
    return Call(other.component, args, changes)


def with_text(call: Call, text: Call) -> Call:
    """Return a call with the arguments that other prompts change, as `text_of` returns them."""
    args = tuple(
        text.args[index] if index < len(text.args) and text.args[index] is not _KEPT else old
        for index, old in enumerate(call.args)
    )
    return Call(call.component, args, {**call.kwargs, **text.kwargs})


def predictions(networks: Mapping[str, nn.Module], call: Call) -> list[Tensor]:
    """Return all tensors that a denoiser predicts for a call."""
    return _tensors(networks[call.component](*call.args, **call.kwargs))


_KEPT = object()  # an argument that the prompt does not change


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, (list, tuple)) else []


def _copy(value: Any) -> Any:
    """Return arguments that a pipeline cannot change any more."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (list, tuple):
        return type(value)(_copy(item) for item in value)
    return {key: _copy(item) for key, item in value.items()} if type(value) is dict else value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return type(one) is type(other) and one.shape == other.shape and torch.equal(one, other)
    if type(one) in (list, tuple) and type(one) is type(other):
        return len(one) == len(other) and all(map(_same, one, other))
    if type(one) is dict and type(other) is dict:
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return one is other or bool(one == other)
