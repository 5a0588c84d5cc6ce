"""Check that a pipeline runs the denoisers that were edited, and no unedited denoiser that an adapter was made for."""

import threading
import warnings
from dataclasses import dataclass, field
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

from torch import nn

from unlearning_adapters.adapter.record import COMPONENTS
from unlearning_adapters.errors import DenoiserError
from unlearning_adapters.pipelines.sites import bare_denoiser

from .editor import Editor, editor_of
from .hooks.bypass import is_strict, level_of_user


@dataclass
class Edited:
    """A denoiser that a pipeline ran while it was edited.

    Args:
        denoiser: The denoiser.
        names: The adapters that acted.
        strict: Whether the next one in its place has to be edited too.
    """

    denoiser: "ReferenceType[nn.Module]"
    names: tuple[str, ...]
    strict: bool


@dataclass
class Memory:
    """What is known of a pipeline: its edited denoisers, and the causes of the warnings so far."""

    edited: dict[str, Edited] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)


_guard = threading.Lock()
_memories: "WeakKeyDictionary[Any, Memory]" = WeakKeyDictionary()


def check_coverage(pipe: Any) -> None:
    """Warn once, or raise if `strict` is set, if this pipeline runs a denoiser that should be edited and is not.

    It should be if the one in its place was edited, when the pipeline was called last or an adapter was loaded, or if
    an adapter on another denoiser of the pipeline was made for it too.

    Raises:
        DenoiserError: If an adapter is strict, or the environment is.
    """
    editors = _editors(pipe)
    with _guard:
        memory = _memories.get(pipe)
        if memory is None and not any(editor.stack.loaded for editor in editors.values()):
            return
        if memory is None:
            memory = _memories[pipe] = Memory()
        problems = [_uncovered(component, editor, editors, memory) for component, editor in editors.items()]
        fresh = [(text, strict) for text, strict in problems if text and (strict or text not in memory.told)]
        memory.told |= {text for text, _ in fresh}
    for text, strict in fresh:
        if strict:
            raise DenoiserError(text)
        warnings.warn(text, stacklevel=level_of_user())


def uncovered(pipe: Any) -> list[str]:
    """Return what is wrong with the denoisers that a pipeline would run now, in the words of `check_coverage`."""
    editors = _editors(pipe)
    with _guard:
        try:
            memory = _memories.get(pipe) or Memory()
        except TypeError:  # an object that cannot be a key
            memory = Memory()
        return [text for name, editor in editors.items() if (text := _uncovered(name, editor, editors, memory)[0])]


def remember_edited(pipe: Any) -> None:
    """Remember the edited denoisers of a pipeline, so that an unedited one in their place causes a warning."""
    with _guard:
        try:
            memory = _memories.setdefault(pipe, Memory())
        except TypeError:  # an object that cannot be a key; its calls are not known either
            return
        for component, editor in _editors(pipe).items():
            if editor.stack.loaded:
                _uncovered(component, editor, {}, memory)


def _uncovered(component: str, editor: Editor, editors: dict[str, Editor], memory: Memory) -> tuple[str, bool]:
    """Return the error text for a denoiser, if anything, and whether that is an error."""
    stack, before = editor.stack, memory.edited.get(component)
    if stack.loaded:
        memory.edited[component] = Edited(ref(editor.denoiser), tuple(stack.loaded), stack.strict)
        return "", False
    kind = type(editor.denoiser).__name__
    if before is not None:
        old = before.denoiser()
        if old is editor.denoiser or (old is not None and not editor_of(old).stack.loaded):
            del memory.edited[component]  # unloaded
        else:
            return (
                f"The {component} of this pipeline is not the one that {', '.join(map(repr, before.names))} edited, so "
                f"that the concept is not removed. Load the adapter again, onto this {kind}.",
                is_strict(before.strict),
            )
    for other in editors.values():
        for name, item in other.stack.loaded.items():
            if component in item.adapter.components:
                return (
                    f"The adapter {name!r} was made for the {component} too, which came to this pipeline later and is "
                    f"not edited, so that the concept is not removed by it. Load the adapter again.",
                    is_strict(other.stack.strict),
                )
    return "", False


def _editors(pipe: Any) -> dict[str, Editor]:
    """Return the editors of the denoisers that a pipeline has now; none of the pipeline's own code runs."""
    values = getattr(pipe, "__dict__", {})
    components = values.get("components")
    values = {**values, **(components if isinstance(components, dict) else {})}
    modules = {name: values.get(name) for name in COMPONENTS}
    return {name: editor_of(bare_denoiser(part)) for name, part in modules.items() if isinstance(part, nn.Module)}
