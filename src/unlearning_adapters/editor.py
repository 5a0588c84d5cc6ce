"""Brings the hooks and weights of denoisers in line with the adapters that they carry: all of them, or none.

A change is planned first, for all denoisers of a pipeline, without touching anything, and what can be refused is
refused there. Then it is carried out, and carried back if it fails midway; weights come back bit for bit.
"""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .attach import LiveEdit, Seats, check_site, module_at
from .checkpoint import SaveWarning
from .errors import FuseError
from .fuse import FusedWeight, check_fusable, check_fused, fuse_edit, restore_weight
from .sites import base_linear
from .stack import Stack, edit_in_weight, edit_on_input, same_edit, twins
from .stacking import StackedEdit
from .weights import is_in_a_file, kept_weight

ATTRIBUTE = "_unlearning_adapters"


@dataclass(frozen=True)
class Plan:
    """What a stack means for hooks and weights.

    Args:
        stack: The stack.
        fused: Joint edit per path that goes into the weight.
        attached: Edit per path that goes onto the input, and whether it acts.
        twins: Pairs of adapters that remove nearly the same direction, and at how many layers.
    """

    stack: Stack = field(default_factory=Stack)
    fused: Mapping[str, StackedEdit] = field(default_factory=dict)
    attached: Mapping[str, tuple[StackedEdit, bool]] = field(default_factory=dict)
    twins: Mapping[tuple[str, str], int] = field(default_factory=dict)


class Editor:
    """Edits one denoiser; kept on it as an attribute, so that pipelines that share the denoiser share it.

    Args:
        denoiser: The network that the paths of sites start from.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self.plan = Plan()
        self.seats = Seats(denoiser)
        self.records: dict[str, tuple[StackedEdit, FusedWeight]] = {}
        self.save_warning: SaveWarning | None = None

    @property
    def stack(self) -> Stack:
        """The adapters that the denoiser carries now."""
        return self.plan.stack

    def make_plan(self, stack: Stack) -> Plan:
        """Return what a stack would mean; raise if it cannot be, and change nothing."""
        in_weight = {path: edit_in_weight(stack, path) for path in stack.paths}
        on_input = {path: edit_on_input(stack, path) for path in stack.paths}
        plan = Plan(
            stack=stack,
            fused={path: edit for path, edit in in_weight.items() if edit is not None},
            attached={path: edit for path, edit in on_input.items() if edit is not None},
            twins=Counter(pair for path in stack.paths for pair in twins(stack, path)),
        )
        self._check(plan)
        return plan

    def carry_out(self, plan: Plan) -> None:
        """Bring weights and hooks in line with a plan that was checked, from whatever state they are in."""
        for path in self._outdated(plan):
            restore_weight(self._weight(path), self.records[path][1], path)
            del self.records[path]
        for path, edit in plan.fused.items():
            if path not in self.records:
                self.records[path] = edit, fuse_edit(self._linear(path), edit, path)
        self._rewrite(self.seats.sites, plan.attached)
        self._rewrite(self.seats.branches, {path: (edit, True) for path, edit in plan.fused.items()})
        self.seats.seat()
        self.plan = plan
        if plan.stack.loaded:
            setattr(self.denoiser, ATTRIBUTE, self)
            self.save_warning = self.save_warning or SaveWarning(self.denoiser, self._acting_attached)
        elif hasattr(self.denoiser, ATTRIBUTE):
            delattr(self.denoiser, ATTRIBUTE)
            if self.save_warning is not None:
                self.save_warning.remove()
                self.save_warning = None

    def _acting_attached(self) -> list[str]:
        stack = self.stack
        return [name for name in stack.attached if stack.enabled and stack.loaded[name].strength]

    def _rewrite(self, held: dict[str, LiveEdit], wanted: Mapping[str, tuple[StackedEdit, bool]]) -> None:
        for path in held.keys() - wanted.keys():
            del held[path]
        for path, (edit, on) in wanted.items():
            if path in held:
                held[path].rewrite(edit, on)
            else:
                device = getattr(self._weight(path), "device", edit.read.device)
                held[path] = LiveEdit(edit if device.type == "meta" else edit.to(device), on)

    def _check(self, plan: Plan) -> None:
        for path in {**plan.attached, **plan.fused}:
            check_site(self.denoiser, path)
        outdated = self._outdated(plan)
        for path in outdated:
            self._check_in_memory(path)
            check_fused(self._linear(path), self.records[path][1], path)
        owners: dict[int, str] = {}
        for path, edit in plan.fused.items():
            if path in self.records and path not in outdated:
                weight = self._weight(path)
            else:
                self._check_in_memory(path)
                weight = check_fusable(self._linear(path), edit, path)
            other = owners.setdefault(weight.data_ptr() or id(weight), path)  # 0 on the meta device
            if other != path:
                raise FuseError(f"{path} and {other} share one weight, which holds one edit only. Attach the adapter.")

    def _check_in_memory(self, path: str) -> None:
        if is_in_a_file(self.denoiser, path):
            raise FuseError(
                f"The weight of {path} is offloaded to a file, from which every call reads it anew, so that it cannot "
                "be fused or restored. Load the model again and fuse before offloading, or attach the adapter."
            )

    def _outdated(self, plan: Plan) -> list[str]:
        return [path for path, (edit, _) in self.records.items() if not same_edit(plan.fused.get(path), edit)]

    def _linear(self, path: str) -> Any:
        module = module_at(self.denoiser, path)
        return module if module is None else base_linear(module)

    def _weight(self, path: str) -> Any:
        return kept_weight(self._linear(path))


def editor_of(denoiser: nn.Module) -> Editor:
    """Return the editor of a denoiser; a new one leaves no trace until something is loaded."""
    editor = denoiser.__dict__.get(ATTRIBUTE)
    return editor if isinstance(editor, Editor) else Editor(denoiser)


def change_stacks(changes: Sequence[tuple[Editor, Stack]]) -> None:
    """Give denoisers new stacks: all of them, or, if anything fails, none.

    Args:
        changes: Editors, and what their denoisers are to carry.

    Raises:
        UnlearningError: If one cannot be carried; then every weight and hook is as it was.
    """
    with torch.inference_mode(False), torch.no_grad():  # in this order: the first resets the second
        plans = [(editor, editor.make_plan(stack)) for editor, stack in changes]
        for editor, plan in plans:
            _warn_of_twins(editor.plan, plan)
        before = [(editor, editor.plan) for editor, _ in plans]
        try:
            for editor, plan in plans:
                editor.carry_out(plan)
        except BaseException:  # Ctrl-C too: no edit may stay half on
            for editor, plan in before:
                editor.carry_out(plan)
            raise


def _warn_of_twins(before: Plan, plan: Plan) -> None:
    known = {frozenset(pair) for pair in before.twins}
    for (strong, weak), layers in plan.twins.items():
        if frozenset((strong, weak)) not in known:
            warnings.warn(
                f"The adapters {strong!r} and {weak!r} remove nearly the same direction at {layers} of "
                f"{len(plan.stack.paths)} sites; they act there as one, at the larger strength "
                f"({plan.stack.loaded[strong].strength:g}).",
                stacklevel=4,
            )
