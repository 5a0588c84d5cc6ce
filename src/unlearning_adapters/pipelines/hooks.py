"""Hooks that show what a denoiser's layers are fed, and count its calls; all of them end with an `ExitStack`.

They act in calls of the thread that sets them: other threads may call the same networks meanwhile.
"""

import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from diffusers import ModularPipeline
from torch import Tensor, nn

from .spacing import evenly_spaced

PROBE_VALUES = 4096
SUMMED = 2**20  # values at once


def count_calls(
    stack: ExitStack, pipe: Any, networks: Mapping[str, nn.Module], end: Callable[[str, int], None]
) -> Counter[str]:
    """Count the calls in which a pipeline's denoisers denoise, from their begin on, and tell the end of each."""
    calls: Counter[str] = Counter()
    for name, network in networks.items():

        def begin(_module: nn.Module, _args: Any, kwargs: dict[str, Any], name: str = name) -> None:
            calls.update([name] if _denoises(pipe, kwargs) else [])

        def finish(_module: nn.Module, _args: Any, kwargs: dict[str, Any], _out: Any, name: str = name) -> None:
            if _denoises(pipe, kwargs):
                end(name, calls[name])

        before_calls(stack, network, begin)
        after_calls(stack, network, finish)
    return calls


def before_calls(stack: ExitStack, module: nn.Module, hook: Callable[..., Any]) -> None:
    """Call `hook(module, args, kwargs)` before each call of a module by this thread; it may return other arguments."""
    stack.callback(module.register_forward_pre_hook(_in_this_thread(hook), with_kwargs=True).remove)


def after_calls(stack: ExitStack, module: nn.Module, hook: Callable[..., Any]) -> None:
    """Call `hook(module, args, kwargs, output)` after each call of a module by this thread."""
    stack.callback(module.register_forward_hook(_in_this_thread(hook), with_kwargs=True).remove)


def _in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    thread = threading.get_ident()

    # torch notes that a hook takes keywords after it has added it: another thread may call it without them.
    def guarded(module: nn.Module, args: Any, *rest: Any) -> Any:
        return hook(module, args, *rest) if threading.get_ident() == thread else None

    return guarded


def on_input(stack: ExitStack, module: nn.Module, read: Callable[[Tensor], None]) -> None:
    """Show a module's input to a function, however it is passed: some blocks call `proj(input=x)`."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read(args[0] if args else next(iter(kwargs.values())))

    before_calls(stack, module, hook)


def place_of(tensor: Tensor) -> tuple[Any, ...]:
    """Return what tells a tensor from all others that are alive: where its numbers are, how they lie, which state."""
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, version


def some_values(tensor: Tensor) -> Tensor:
    """Return values that are spread over all of a tensor, as one vector; the tensor is not copied, however it lies."""
    places = evenly_spaced(tensor.numel(), PROBE_VALUES)
    return rows_at(tensor.detach()[..., None], places)[:, 0].to("cpu", torch.float32)


def rows_at(tensor: Tensor, places: Sequence[int]) -> Tensor:
    """Return some rows of `tensor.flatten(0, -2)`, shape (places, features); the tensor is not copied for it."""
    tensor = tensor[None] if tensor.ndim == 1 else tensor
    flat = torch.tensor(places, dtype=torch.int64, device="cpu")
    return tensor[tuple(part.to(tensor.device) for part in torch.unravel_index(flat, tensor.shape[:-1]))]


def is_finite(tensor: Tensor) -> bool:
    """Whether all of a tensor's numbers are finite; it takes no memory of the tensor's size if they are."""
    # A sum is finite only if all of its terms are. In parts: torch widens what it sums, 100 MB for a batch of prompts.
    for part in tensor.split(max(1, len(tensor) * SUMMED // max(1, tensor.numel()))) if tensor.ndim else (tensor,):
        if not (math.isfinite(part.sum(dtype=torch.float64)) or bool(torch.isfinite(part).all())):
            return False
    return True


def on_call(
    stack: ExitStack,
    pipe: Any,
    networks: Mapping[str, nn.Module],
    read: Callable[[str, tuple[Any, ...], dict[str, Any]], None],
) -> None:
    """Show the arguments of each denoising call to a function, with the name of the denoiser, when the call ends."""
    for name, network in networks.items():

        def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any], _out: Any, name: str = name) -> None:
            if _denoises(pipe, kwargs):
                read(name, args, kwargs)

        after_calls(stack, network, hook)


def _denoises(pipe: Any, kwargs: Mapping[str, Any]) -> bool:
    # The pipelines of Wan-Animate 2 first call their denoiser on the reference, with a prompt of its own.
    return not (isinstance(pipe, ModularPipeline) and kwargs.get("kv_cache_mode") == "extract")
