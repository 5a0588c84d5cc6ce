"""Check that a pipeline runs the denoisers that were edited, and no unedited denoiser that an adapter was made for."""

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

from torch import nn

from unlearning_adapters.adapter.record import COMPONENTS
from unlearning_adapters.errors import DenoiserError
from unlearning_adapters.pipelines.edits import note_lora_that_a_call_takes_out
from unlearning_adapters.pipelines.running.compiling import any_compiled
from unlearning_adapters.pipelines.sites import bare_denoiser

from .editor import Editor, editor_of
from .hooks.bypass import is_strict, level_of_user
from .hooks.denoiser import EditHooks
from .hooks.scope import current_scope


@dataclass
class Edited:
    """A denoiser that a pipeline ran while it was edited.

    Args:
        denoiser: The denoiser.
        names: The adapters on it.
        strict: Whether the next one in its place has to be edited too.
        fused: Whether all of them were in its weights, of which the next one may be made.
    """

    denoiser: "ReferenceType[nn.Module]"
    names: tuple[str, ...]
    strict: bool
    fused: bool


@dataclass
class Memory:
    """What is known of a pipeline: its edited denoisers, the causes of the warnings so far, and what its last call ran.

    Args:
        edited: Its denoisers that were edited, by component.
        told: The texts of all warnings.
        unused: What to say of its last call, if that ran none of the denoisers.
    """

    edited: dict[str, Edited] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    unused: str = ""


_guard = threading.Lock()
_memories: "WeakKeyDictionary[Any, Memory]" = WeakKeyDictionary()


@contextmanager
def covered(pipe: Any) -> Iterator[None]:
    """Warn once, or raise if `strict` is set, if a call runs a denoiser that should be edited and is not.

    It should be if the one in its place was edited, when the pipeline was called last or an adapter was loaded, or if
    an adapter on another denoiser of the pipeline was made for it too. A call that runs none of the edited denoisers
    runs something else in their place.

    Raises:
        DenoiserError: If an adapter is strict, or the environment is.
    """
    note_lora_that_a_call_takes_out(editor.denoiser for editor in _editors(pipe).values())
    memory = _check(pipe)
    if memory is None:
        yield
        return
    calls = _calls(pipe)
    yield
    _check(pipe)  # a callback may have replaced a denoiser
    idle = bool(calls) and calls == _calls(pipe) and not any_compiled(_parts(pipe).values())  # graphs do not count
    problem = _unused(pipe) if idle else ("", False)
    memory.unused = problem[0]
    _tell(memory, [problem])


def _check(pipe: Any) -> Memory | None:
    """Return what is known of a pipeline, if anything is, after a look at what its next call would run."""
    editors = _editors(pipe)
    with _guard:
        memory = _memories.get(pipe)
        if memory is None and not any(editor.stack.loaded for editor in editors.values()):
            return None
        if memory is None:
            memory = _memories[pipe] = Memory()
        problems = _problems(pipe, editors, memory)
    _tell(memory, problems)
    return memory


def _tell(memory: Memory, problems: Sequence[tuple[str, bool]]) -> None:
    with _guard:
        fresh = [(text, strict) for text, strict in problems if text and (strict or text not in memory.told)]
        memory.told |= {text for text, _ in fresh}
    for text, strict in fresh:
        if strict:
            raise DenoiserError(text)
        warnings.warn(text, stacklevel=level_of_user())


def _calls(pipe: Any) -> dict[EditHooks, int]:
    """Return how often each denoiser of a pipeline was called on which an adapter acts."""
    return {editor.hooks: editor.hooks.calls for editor in _editors(pipe).values() if _acting(editor)}


def _acting(editor: Editor) -> list[str]:
    scope = current_scope(editor.hooks.state)
    stack = editor.stack if scope is None else scope.plan.stack
    return [name for name in stack.acting if stack.loaded[name].strength]


def _unused(pipe: Any) -> tuple[str, bool]:
    """Return what to say of a call that ran none of its edited denoisers, and whether that is an error."""
    editors = {component: editor for component, editor in _editors(pipe).items() if _acting(editor)}
    names = dict.fromkeys(repr(name) for editor in editors.values() for name in _acting(editor))
    text = (
        f"A call of {type(pipe).__name__} did not run its {' or its '.join(editors)} with the hooks of "
        f"{', '.join(names)}: it ran another denoiser, from which the concept is not removed, or the hooks were taken "
        "off. Load the adapter again, onto the denoiser that it runs."
    )
    return text, any(is_strict(editor.stack.strict) for editor in editors.values())


def uncovered(pipe: Any) -> list[str]:
    """Return what is wrong with the denoisers that a pipeline would run now, in the words of `covered`."""
    editors = _editors(pipe)
    with _guard:
        try:
            memory = _memories.get(pipe) or Memory()
        except TypeError:  # an object that cannot be a key
            memory = Memory()
        texts = [*(text for text, _ in _problems(pipe, editors, memory)), memory.unused]
        texts += [
            f"The {component} of this pipeline is a {type(editor.denoiser).__name__} around the one that "
            f"{', '.join(map(repr, memory.edited[component].names))} edited: the verbs do not reach that one. Put it "
            "back for them."
            for component, editor in editors.items()
            if component in memory.edited and not editor.stack.loaded
            if _is_inside(memory.edited[component].denoiser(), editor.denoiser)
        ]
        return [text for text in texts if text]


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


def _problems(pipe: Any, editors: dict[str, Editor], memory: Memory) -> list[tuple[str, bool]]:
    """Return what is wrong with the denoisers of a pipeline, and whether that is an error."""
    found = [_uncovered(component, editor, editors, memory) for component, editor in editors.items()]
    return found + [_no_module(*item) for item in _engines(pipe, memory)]


def _uncovered(component: str, editor: Editor, editors: dict[str, Editor], memory: Memory) -> tuple[str, bool]:
    """Return the error text for a denoiser, if anything, and whether that is an error."""
    stack, before = editor.stack, memory.edited.get(component)
    if stack.loaded:
        fused = bool(stack.fused) and set(stack.acting) <= set(stack.fused)
        memory.edited[component] = Edited(ref(editor.denoiser), tuple(stack.loaded), stack.strict, fused)
        return "", False
    kind = type(editor.denoiser).__name__
    if before is not None:
        old = before.denoiser()
        if old is editor.denoiser or (old is not None and not editor_of(old).stack.loaded):
            del memory.edited[component]  # unloaded
        elif _is_inside(old, editor.denoiser):  # of a wrapper, which calls it
            return "", False
        else:
            text = f"The {component} of this pipeline is not the one that {', '.join(map(repr, before.names))}"
            return (
                f"{text} was fused into. If it has not the weights of that one, the concept is not removed: load the "
                f"adapter again, onto this {kind}."
                if before.fused
                else f"{text} edited, so that the concept is not removed. Load the adapter again, onto this {kind}.",
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


def _is_inside(part: nn.Module | None, whole: nn.Module) -> bool:
    return part is not None and any(module is part for module in whole.modules())


def _engines(pipe: Any, memory: Memory) -> Iterator[tuple[str, Any, Edited]]:
    """Yield what stands in the place of an edited denoiser and is no module, such as an engine of TensorRT."""
    for component, before in memory.edited.items():
        part = _parts(pipe).get(component)
        if part is not None and not isinstance(part, nn.Module):
            yield component, part, before


def _no_module(component: str, part: Any, before: Edited) -> tuple[str, bool]:
    names, kind = ", ".join(map(repr, before.names)), type(part).__name__
    text = f"The {component} of this pipeline is not the one that {names} edited, but an object of class {kind}"
    if before.fused:
        return (
            f"{text}. The concept is removed only if that was made of the weights that {names} was fused into.",
            False,
        )
    return (
        f"{text}, so that the concept is not removed. Fuse the adapter, and make the {kind} of the fused weights.",
        is_strict(before.strict),
    )


def _editors(pipe: Any) -> dict[str, Editor]:
    """Return the editors of the denoisers that a pipeline has now."""
    parts = _parts(pipe).items()
    return {name: editor_of(bare_denoiser(part)) for name, part in parts if isinstance(part, nn.Module)}


def _parts(pipe: Any) -> dict[str, Any]:
    """Return what a pipeline has now in the places of denoisers; none of the pipeline's own code runs."""
    values = getattr(pipe, "__dict__", {})
    components = values.get("components")
    values = {**values, **(components if isinstance(components, dict) else {})}
    return {name: values.get(name) for name in COMPONENTS}
