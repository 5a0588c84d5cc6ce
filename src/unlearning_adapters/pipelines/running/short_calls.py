"""End the calls of denoisers early: two experts are read without running the first to its end for each batch."""

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

# Of each denoiser that was run to its end: shape of its output by that of its input, without the batch.
_FORMS: WeakKeyDictionary[nn.Module, dict[torch.Size, torch.Size]] = WeakKeyDictionary()


class EndCall(BaseException):
    """Raised in a hook to end the call of a denoiser, whose output is zeros then; the pipeline goes on."""


class ShortCalls:
    """Calls that end when nothing more is wanted of them; what the denoiser would predict must not matter.

    A call of a new form runs to its end, which shows the form of the output. One denoiser alone is left as it is, for
    a run ends with it, and so are those whose `forward` is wrapped: offloading expects each forward to end.

    Args:
        networks: The denoisers by name.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        several = len(set(networks.values())) > 1
        self.networks = {name: network for name, network in networks.items() if several and _is_plain(network)}
        self.can_end: dict[str, bool] = {}  # the running call of each

    @contextmanager
    def placed(self, is_wanted: Callable[[str], bool]) -> Iterator[None]:
        """Shorten the calls of this thread within the block.

        Args:
            is_wanted: Tells whether the call of a denoiser, by name, that has begun is still to be read.
        """
        replaced = []
        try:
            for name, network in self.networks.items():
                replaced.append(network)
                vars(network)["forward"] = self._shortened(name, network, is_wanted)
            yield
        finally:
            for network in replaced:
                vars(network).pop("forward", None)

    def end_call(self, component: str) -> None:
        """End the running call of a denoiser, if the form of its output is known."""
        if self.can_end.get(component):
            raise EndCall

    def _shortened(self, name: str, network: nn.Module, is_wanted: Callable[[str], bool]) -> Callable[..., Any]:
        thread, forward = threading.get_ident(), network.forward

        @functools.wraps(forward)  # modular pipelines look at its arguments
        def call(*args: Any, **kwargs: Any) -> Any:
            latents = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            if threading.get_ident() != thread or latents is None or kwargs.get("return_dict", True):
                return forward(*args, **kwargs)
            forms = _FORMS.setdefault(network, {})
            form = forms.get(latents.shape[1:])
            self.can_end[name] = form is not None
            try:
                if form is None or is_wanted(name):
                    output = forward(*args, **kwargs)
                    if isinstance(output, tuple) and len(output) == 1 and len(output[0]) == len(latents):
                        forms[latents.shape[1:]] = output[0].shape[1:]
                    return output
            except EndCall:
                pass
            finally:
                self.can_end[name] = False
            assert form is not None  # else no call ends early
            return (latents.new_zeros(len(latents), *form),)

        return call


def _is_plain(network: nn.Module) -> bool:
    """Tell whether nothing wraps the forward of a denoiser or of one of its modules."""
    return not any("forward" in vars(module) or "_hf_hook" in vars(module) for module in network.modules())
