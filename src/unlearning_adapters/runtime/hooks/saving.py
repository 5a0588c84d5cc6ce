"""A warning where an attached edit would be left out of a checkpoint without a word."""

import sys
import warnings
from collections.abc import Sequence

SAVING = "save_pretrained"


def warn_of_saving(names: Sequence[str]) -> None:
    """Warn, at the line of the caller that saves, that a checkpoint does not contain attached adapters.

    Offloading and LoRA loading ask for a state dict too, and it is right for them; so only a `save_pretrained` among
    the callers counts.

    Args:
        names: Names of the attached adapters that act.
    """
    level = _level_of_the_saving_line()
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
    frame, level, result = sys._getframe(1), 1, None
    while frame.f_back is not None:
        if frame.f_code.co_name == SAVING:
            result = level + 1
        frame, level = frame.f_back, level + 1
    return result
