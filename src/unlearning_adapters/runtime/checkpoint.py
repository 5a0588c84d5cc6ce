"""A warning where an attached edit would be left out of a checkpoint without a word."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

SAVING = "save_pretrained"


class SaveWarning:
    """Warns when a denoiser is saved while adapters are attached; itself a hook of torch on its `state_dict`.

    Offloading and LoRA loading ask for a state dict too, and it is right for them; so only a `save_pretrained` among
    the callers counts.

    Args:
        denoiser: The network.
        names: Returns the names of the attached adapters that act.
    """

    def __init__(self, denoiser: nn.Module, names: Callable[[], list[str]]) -> None:
        self.names = names
        self._handle: Any = denoiser.register_state_dict_pre_hook(self)

    def remove(self) -> None:
        """Leave no trace on the denoiser."""
        self._handle.remove()

    def __call__(self, _module: nn.Module, _prefix: str, _keep_vars: bool) -> None:
        """Warn on behalf of the line that saves."""
        names, level = self.names(), _level_of_the_saving_line()
        if names and level is not None:
            one = len(names) == 1
            warnings.warn(
                f"The adapter{'' if one else 's'} {', '.join(map(repr, names))} {'is' if one else 'are'} attached, not "
                f"fused, and no part of the checkpoint that is saved here. Call fuse_unlearning_adapters() first for "
                f"an edited checkpoint, or save {'it' if one else 'them'} beside it with save_unlearning_adapter().",
                stacklevel=level,
            )


def _level_of_the_saving_line() -> int | None:
    """Return the `stacklevel`, as of the caller, of the line that called the outermost `save_pretrained`, or None."""
    frame, level, found = sys._getframe(1), 1, None
    while frame.f_back is not None:
        if frame.f_code.co_name == SAVING:
            found = level + 1
        frame, level = frame.f_back, level + 1
    return found
