"""Attached edits: hooks that change what layers read, `x' = x - mix (read x)`, and leave the weights alone.

diffusers' `HookRegistry` carries them: a compiled denoiser obeys it, while it ignores a torch pre-hook that comes late
(pytorch#117758). Being no LoRA, they are out of reach of the LoRA verbs, which switch off whatever they do not name.
"""

from typing import Any

import torch
from torch import Tensor, nn

from unlearning_adapters.errors import DenoiserError
from unlearning_adapters.runtime.joint.joint_edit import StackedEdit, apply_edit

from .reach import HookState
from .registry import OwnHook, register, unregister
from .scope import current_scope

INPUT_KEYWORDS = ("input", "hidden_states", "x")


class LiveEdit:
    """A joint edit that hooks share; new strengths are written into its tensors, so that nothing is recompiled.

    Args:
        edit: The joint edit; its tensors are copied.
        on: Whether the edit acts. Off is the base bit for bit, which a product with zeros is not for inputs of -0.0.
    """

    def __init__(self, edit: StackedEdit, on: bool = True) -> None:
        self.edit = StackedEdit(edit.read.clone(), edit.mix.clone())
        self.on = on

    def rewrite(self, edit: StackedEdit, on: bool = True) -> None:
        """Take over another edit, in place where the shapes allow it."""
        current = self.edit
        if current.read.shape == edit.read.shape and not current.read.is_inference():
            current.read.copy_(edit.read)
            current.mix.copy_(edit.mix)
        else:
            self.edit = StackedEdit(edit.read.clone(), edit.mix.clone()).to(current.read.device)
        self.on = on

    def __call__(self, x: Tensor) -> Tensor:
        """Return the edited input."""
        # Nobody else moves these tensors: they are not parameters, and offloading moves the sites at any time.
        if self.edit.read.device != x.device:
            self.edit = self.edit.to(x.device)
        return apply_edit(x, self.edit)


class EditHook(OwnHook):
    """Edits the input of the layer that it is registered on.

    Args:
        live: The edit.
        path: Path of the layer in its denoiser.
        state: What the hooks of the denoiser share; None for a layer alone.
    """

    def __init__(self, live: LiveEdit, path: str = "", state: HookState | None = None) -> None:
        super().__init__()
        self.live = live
        self.path = path
        self.state = state
        self.in_graph = False  # set by each call of a compiled graph that holds this hook

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the call with the edited input."""
        live: LiveEdit | None = self.live
        if torch.compiler.is_compiling():
            self.in_graph = True
        elif self.state is not None:
            self.state.call.reached.add(self.path)
            scope = current_scope(self.state)
            live = self.live if scope is None else scope.edits.get(self.path)
        if live is None or not live.on:
            return args, kwargs
        if args:
            return (live(args[0]), *args[1:]), kwargs
        for key in INPUT_KEYWORDS:
            if key in kwargs:
                return args, {**kwargs, key: live(kwargs[key])}
        raise DenoiserError(
            f"{type(module).__name__} was called with the arguments {', '.join(kwargs) or '(none)'}, none of which is "
            f"known as its input. Expected a positional argument or one of {', '.join(INPUT_KEYWORDS)}."
        )


def attach_edit(
    module: nn.Module, edit: StackedEdit | LiveEdit, path: str = "", state: HookState | None = None
) -> None:
    """Edit what a module reads from now on, `x' = x - mix (read x)`, in place of an edit that is attached already.

    Args:
        module: A Linear, or a LoRA layer around one.
        edit: The joint edit, or one that several modules share.
        path: Path of the module in its denoiser.
        state: What the hooks of the denoiser share; None for a module alone.

    Example:
        >>> attach_edit(linear, edit)
        >>> detach_edit(linear)  # as if nothing had been
    """
    detach_edit(module)
    register(module, EditHook(edit if isinstance(edit, LiveEdit) else LiveEdit(edit), path, state))


def detach_edit(module: nn.Module) -> None:
    """Take the edit off a module and leave no trace; a module without an edit stays as it is."""
    unregister(module)
