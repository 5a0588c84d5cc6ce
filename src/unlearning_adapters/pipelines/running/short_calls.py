"""End the calls of denoisers early: two experts are read without running the first to its end for each batch."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class EndCall(BaseException):
    """Raised in a hook to end the call of a denoiser, whose output is zeros then; the pipeline goes on."""


class ShortCalls:
    """Calls that end when nothing more is wanted of them; what the denoiser would predict must not matter.

    The first call of each denoiser runs to its end, which shows the form of the output. One denoiser alone is left as
    it is, for a run ends with it, and so are offloaded ones and those whose `forward` somebody else has replaced.

    Args:
        networks: The denoisers by name.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        several = len(set(networks.values())) > 1
        self.networks = {name: network for name, network in networks.items() if several and _is_plain(network)}
        self.whole: dict[str, tuple[int, torch.Size]] = {}  # prompts of a whole call, shape of its output

    @contextmanager
    def placed(self, prompts: int, is_wanted: Callable[[str], bool]) -> Iterator[None]:
        """Shorten the calls of this thread within the block.

        Args:
            prompts: Prompts of the batch.
            is_wanted: Tells whether the call of a denoiser, by name, that has begun is still to be read.
        """
        replaced = []
        try:
            for name, network in self.networks.items():
                setattr(network, "forward", self._shortened(name, network.forward, prompts, is_wanted))  # noqa: B010
                replaced.append(network)
            yield
        finally:
            for network in replaced:
                del network.forward

    def end_call(self, component: str) -> None:
        """End the call of a denoiser, if the form of its output is known."""
        if component in self.whole:
            raise EndCall

    def _shortened(
        self, name: str, forward: Callable[..., Any], prompts: int, is_wanted: Callable[[str], bool]
    ) -> Callable[..., Any]:
        thread = threading.get_ident()

        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread or kwargs.get("return_dict", True):
                return forward(*args, **kwargs)
            if name in self.whole and not is_wanted(name):
                return self._zeros(name, prompts, args, kwargs)
            try:
                output = forward(*args, **kwargs)
            except EndCall:
                return self._zeros(name, prompts, args, kwargs)
            if isinstance(output, tuple) and len(output) == 1 and isinstance(output[0], Tensor):
                self.whole.setdefault(name, (prompts, output[0].shape))
            return output

        return call

    def _zeros(self, name: str, prompts: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor]:
        before, shape = self.whole[name]
        latents = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        return (latents.new_zeros(shape[0] * prompts // before, *shape[1:]),)


def _is_plain(network: nn.Module) -> bool:
    """Tell whether nothing wraps a forward: offloading by accelerate or diffusers expects each one to end."""
    return not any("forward" in vars(module) or "_hf_hook" in vars(module) for module in network.modules())
