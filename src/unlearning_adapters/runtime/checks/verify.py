"""The verb that answers, without a call of the pipeline, whether each edit acts."""

from typing import Any

import torch
from torch import nn

from unlearning_adapters.errors import FuseError
from unlearning_adapters.pipelines.sites import base_linear
from unlearning_adapters.pipelines.weights import FLOATING, is_in_a_file
from unlearning_adapters.runtime.coverage import uncovered
from unlearning_adapters.runtime.editor import Editor
from unlearning_adapters.runtime.fusing.fuse import check_fused, is_whole
from unlearning_adapters.runtime.hooks.bypass import cause_at, foreign_processor
from unlearning_adapters.runtime.hooks.layer import EditHook, LiveEdit
from unlearning_adapters.runtime.hooks.places import is_bypassed, is_wrapped, module_at
from unlearning_adapters.runtime.hooks.registry import is_covered, registered
from unlearning_adapters.runtime.hooks.scope import current_scope
from unlearning_adapters.runtime.pipeline_editors import locked_editors
from unlearning_adapters.runtime.plan import Plan
from unlearning_adapters.runtime.stack import same_edit
from unlearning_adapters.runtime.status import status_by_name

from .verification import SiteCheck, Verification

CALL = "call the pipeline once, and verify again"


def verify_unlearning_adapters(pipe: Any) -> Verification:
    """Return whether each edit acts: at any time, without generating, and without changing anything.

    For each site: whether the last call reached it, whether its input is edited (our hook is on the outermost module
    and holds the edit of the adapters that act now), and whether a fused weight is bit for bit what fusing made of it.
    For the pipeline: denoisers that were replaced, or that came later. Inside of `with pipe.unlearning_adapters(...)`
    it answers for the calls of that block.

    Args:
        pipe: A diffusers pipeline.

    Returns:
        The answer; its `ok` is False if anything is known to be wrong, `print` shows a table, `to_dict()` is JSON.

    Raises:
        DenoiserError: If the pipeline has no denoiser.

    Example:
        >>> answer = pipe.verify_unlearning_adapters()
        >>> answer.ok
        True
        >>> print(answer)
    """
    with locked_editors(pipe) as editors, torch.no_grad():
        sites: list[SiteCheck] = []
        problems = list(uncovered(pipe))
        for component, editor in editors.items():
            if not editor.stack.loaded:
                continue
            in_line, problem = _keeps_edits(editor)
            problems += [f"{component}: {problem}"] if problem else []
            sites += _Checked(component, editor, in_line).sites()
        return Verification(status_by_name(editors), tuple(sites), tuple(problems))


def _keeps_edits(editor: Editor) -> tuple[bool, str]:
    """Return whether the hook of a denoiser is there, which keeps edits where they belong, and what is wrong if not."""
    denoiser, hooks = editor.denoiser, editor.hooks
    kind = type(denoiser).__name__
    if hooks.made_for != id(denoiser):
        return False, f"this {kind} is a copy of an edited one, and its hooks run the original. Load the adapter again."
    if registered(denoiser) is not hooks and (hooks.sites or hooks.wrapped):
        return False, (
            f"the hook was taken off the {kind}, so that nothing looks after its edits. Unload the adapters, and load "
            "them again."
        )
    return True, ""


class _Checked:
    """The sites of one denoiser.

    Args:
        component: Its name.
        editor: Its editor, which is locked.
        in_line: Whether the next call brings edits in line with wrappers that came or went, before it begins.
    """

    def __init__(self, component: str, editor: Editor, in_line: bool) -> None:
        self.component, self.editor, self.in_line = component, editor, in_line
        scope = current_scope(editor.hooks.state)
        self.plan: Plan = editor.plan if scope is None else scope.plan
        self.edits: dict[str, LiveEdit] = editor.hooks.sites if scope is None else scope.edits

    def sites(self) -> list[SiteCheck]:
        stack = self.plan.stack
        active = {name: stack.loaded[name] for name in stack.acting if stack.loaded[name].strength}
        paths = dict.fromkeys(path for item in active.values() for path in item.directions)
        return [self._site(path, tuple(name for name in active if path in active[name].directions)) for path in paths]

    def _site(self, path: str, names: tuple[str, ...]) -> SiteCheck:
        editor = self.editor
        reached = None if editor.hooks.last_reached is None else path in editor.hooks.last_reached
        target = self.plan.on_input(editor.records).get(path)
        on_input, in_weight = target is not None and target[1], path in editor.records
        weight, cause = self._weight(path) if in_weight else (None, "")
        edited: bool | None = None if in_weight and weight is None else True
        if on_input:
            on_it, why = self._input(path, reached)
            edited, cause = on_it if edited or on_it is False else edited, cause or why
        elif not in_weight:
            edited = path in self.plan.fused or not any(self._strength(name, path) for name in names)
            cause = "" if edited else "the edit is in no weight and on no input. Load the adapter again"
        if weight is False:
            edited = None if edited else edited
        place = "both" if on_input and in_weight else "weight" if in_weight else "input"
        if path in editor.changed and not cause:
            cause = "edited, but its weight changed while it was fused, so that the original cannot be restored"
        return SiteCheck(f"{self.component}.{path}", names, place, reached, edited, weight, cause)

    def _strength(self, name: str, path: str) -> float:
        return self.plan.stack.loaded[name].strength_at(path)

    def _weight(self, path: str) -> tuple[bool | None, str]:
        module, record = module_at(self.editor.denoiser, path), self.editor.records[path][1]
        if module is None:
            return False, "the layer is gone"
        if is_in_a_file(self.editor.denoiser, path):
            return None, "offloading keeps its weight in a file, which is not read here"
        try:
            check_fused(base_linear(module), record, path)
        except FuseError as error:
            return False, str(error)
        return is_whole(record), "" if is_whole(record) else "fusing was interrupted. Call a verb, which ends it"

    def _input(self, path: str, reached: bool | None) -> tuple[bool | None, str]:
        """Return whether what a layer reads is edited, and why not, or why that is not known."""
        denoiser, live, module = self.editor.denoiser, self.edits.get(path), module_at(self.editor.denoiser, path)
        if module is None or is_bypassed(denoiser, path):
            return False, cause_at(denoiser, path)
        hook = registered(module)
        if not isinstance(hook, EditHook):
            if self.in_line and (is_wrapped(module) or self.editor.hooks.moved()):
                return True, ""  # the next call moves the edit to where it belongs, before it begins
            return False, "the hook was taken off the layer. Load the adapter again"
        if live is None or not self._holds(path, live) or self.editor.hooks.sites.get(path) is not hook.live:
            return False, "the hook holds another edit than the adapters make together. Load the adapter again"
        if reached is False:
            return False, cause_at(denoiser, path)
        if reached is None:
            return self._before_any_call(path, module)
        return True, ""

    def _before_any_call(self, path: str, module: nn.Module) -> tuple[bool | None, str]:
        if is_covered(module) and not self._calls_hook(module, path):
            return False, cause_at(self.editor.denoiser, path)
        if name := foreign_processor(self.editor.denoiser, path):
            return None, f"the attention processor {name} may not call the layer; {CALL}"
        return True, ""

    def _holds(self, path: str, live: LiveEdit) -> bool:
        target = self.plan.on_input(self.editor.records).get(path)
        edit = live.edit.to("cpu") if live.edit.read.device.type != "meta" else live.edit
        return target is not None and live.on == target[1] and same_edit(edit, target[0].to("cpu"))

    def _calls_hook(self, module: Any, path: str) -> bool:
        """Whether a call of the layer alone comes to our hook, past what others put in front of it."""
        state = self.editor.hooks.state
        layer: Any = base_linear(module)
        before, state.call.reached = state.call.reached, set()
        weight: Any = getattr(layer, "weight", None)
        dtype = getattr(weight, "dtype", torch.float32)
        x = torch.zeros(
            1, int(layer.in_features), dtype=dtype if dtype in FLOATING else torch.float32,
            device="cpu" if getattr(weight, "is_meta", True) else weight.device,
        )  # fmt: skip
        try:
            module(x)
        except Exception:  # a layer that wants its input otherwise; whether the hook was called is still known
            pass
        finally:
            reached_now, state.call.reached = path in state.call.reached, before
        return reached_now
