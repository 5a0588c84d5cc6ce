"""Change the hooks and weights of a denoiser to match the adapters that it carries; `change` does so for several.

A change is planned first, for all denoisers of a pipeline, without touching anything, and what can be refused is
refused there. Then it is carried out, and carried back if it fails midway; weights come back bit for bit.

A fused edit is in the weight as long as nothing wraps the layer. While a LoRA does, the weight is the base's, bit for
bit, and the edit is on the input, where no LoRA verb reaches it; when the LoRA goes, the edit goes back into the
weight, with whatever `fuse_lora` left there.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from unlearning_adapters.errors import FuseError
from unlearning_adapters.pipelines.edits import EDITOR
from unlearning_adapters.pipelines.running.call_lock import changing
from unlearning_adapters.pipelines.sites import base_linear, check_not_empty
from unlearning_adapters.pipelines.weights import is_in_a_file, is_plain, kept_weight
from unlearning_adapters.runtime.joint.joint_edit import StackedEdit

from .fusing.copy_memory import CopyMemory
from .fusing.fuse import (
    Fused,
    changed_since_fused,
    check_fusable,
    check_unchanged,
    fuse_weights,
    fused_weight,
    is_whole,
    looks_fused,
    new_records,
    original_of,
    restore_weights,
)
from .fusing.lost_weight import is_intact, take_out
from .fusing.weight_copy import WeightCopy
from .fusing.weight_record import WeightRecord
from .hooks.bypass import is_strict, tell_of_bypass
from .hooks.denoiser import EditHooks
from .hooks.layer import LiveEdit
from .hooks.places import check_site, is_wrapped, module_at
from .hooks.saving import warn_of_saving
from .hooks.scope import Scope, current_scope
from .plan import Plan, plan_of
from .stack import Stack, same_edit


class Editor:
    """Edits one denoiser; kept on it as an attribute, so that pipelines that share the denoiser share it.

    Args:
        denoiser: The network that the paths of sites start from.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self.plan = Plan()
        self.hooks = EditHooks(denoiser, self.sync, self._weights_changed, self._tell_of_bypass, self._warn_of_saving)
        self.scopes: list[Scope] = []  # of all threads
        self.scoped: set[str] = set()  # layers that have a hook for scopes
        self.records: dict[str, tuple[StackedEdit, WeightRecord]] = {}
        self.memory = CopyMemory()
        self.changed: set[str] = set()  # layers whose original weight is lost, since it changed while it was fused
        self.told: set[str] = set()  # why layers were not called, as far as a user knows

    @property
    def stack(self) -> Stack:
        """The adapters that the denoiser carries now."""
        return self.plan.stack

    def original_weight(self, path: str) -> torch.Tensor | None:
        """Return a layer's weight as it was before adapters were fused into it, as a copy; None if none is.

        Raises:
            FuseError: If it changed since, so that it cannot be known.
        """
        if path in self.changed:
            raise FuseError(changed_since_fused(path))
        record = self.records.get(path)
        with editing():
            return None if record is None else original_of(self._linear(path), record[1], path)

    def acting_at(self) -> dict[str, str]:
        """Return the path of each layer that an adapter edits here and now, attached or fused, and a name of these."""
        scope = current_scope(self.hooks.state)
        stack = self.stack if scope is None else scope.plan.stack
        items = {name: stack.loaded[name] for name in stack.acting if stack.loaded[name].strength}
        return {path: name for name, item in reversed(items.items()) for path in item.directions}

    def weight_place(self, path: str) -> int:
        """Return the address of a layer's weight; 0 if it is nowhere in memory."""
        weight = self._weight(path)
        return int(weight.data_ptr()) if isinstance(weight, torch.Tensor) and is_plain(weight) else 0

    def make_plan(self, stack: Stack) -> Plan:
        """Return the plan of a stack, without changing anything; raise if the stack is impossible."""
        if self.hooks.moved():
            self.sync()
        plan = plan_of(stack)
        self._check(plan)
        return plan

    def carry_out(self, plan: Plan) -> None:
        """Change weights and hooks, from any state, to match a plan that was checked."""
        in_weight = self._in_weight(plan)
        self._restore(self._outdated(plan))
        self._fuse({path: edit for path, edit in in_weight.items() if path not in self.records}, plan)
        on_input = plan.on_input(in_weight)
        for path in self._kept_for_scopes(plan.stack) - on_input.keys():
            on_input[path] = self._nothing(path), False
        self._rewrite(self.hooks.sites, on_input)
        for scope in self.scopes:
            self._rewrite(scope.edits, scope.plan.on_input(in_weight))
        self.hooks.wrapped = {path: is_wrapped(module_at(self.denoiser, path)) for path in plan.fused}
        self.hooks.place()
        if plan.stack.loaded.keys() != self.stack.loaded.keys():
            self.told.clear()
        self.plan = plan
        if plan.stack.loaded or self.scopes:
            setattr(self.denoiser, EDITOR, self)
        elif hasattr(self.denoiser, EDITOR):
            delattr(self.denoiser, EDITOR)

    def _restore(self, paths: Sequence[str]) -> None:
        restore_weights([fused_weight(self._linear(path), self.records[path][1], path) for path in paths])
        for path in paths:
            del self.records[path]
        self.memory.give_back(
            [record.original for _, record in self.records.values() if isinstance(record, WeightCopy)]
        )

    def _fuse(self, edits: Mapping[str, StackedEdit], plan: Plan) -> None:
        weights = {path: check_fusable(self._linear(path), edit, path) for path, edit in edits.items()}
        copy = bool(edits) and plan.stack.choice.takes_copies(sum(weight.nbytes for weight in weights.values()))
        records = new_records([(weights[path], edit) for path, edit in edits.items()], self.memory if copy else None)
        new = [Fused(weights[path], record, path) for path, record in zip(edits, records, strict=True)]
        # Before anything is written: whatever interrupts this finds what it takes to restore it.
        self.records.update({item.name: (edits[item.name], item.record) for item in new})
        with_records.add(self)
        fuse_weights(new)

    def _warn_of_saving(self) -> None:
        stack = self.stack
        warn_of_saving([name for name in stack.attached if stack.enabled and stack.loaded[name].strength])

    def _tell_of_bypass(self, paths: list[str]) -> None:
        scope = current_scope(self.hooks.state)
        stack, edits = (self.stack, self.hooks.sites) if scope is None else (scope.plan.stack, scope.edits)
        sites = sum(live.on for live in edits.values())
        tell_of_bypass(self.denoiser, paths, sites, stack.acting, self.told, is_strict(stack.strict))

    def open_scope(self, stack: Stack) -> Scope:
        """Return a scope in which a stack acts; other calls see nothing of it.

        Raises:
            FuseError: If the stack is not the denoiser's own in what is fused, or cannot act beside that.
        """
        scope = Scope(self.make_plan(stack))
        self._rewrite(scope.edits, scope.plan.on_input(self.records))
        self.scopes.append(scope)
        self.hooks.state.open_scopes += 1
        self.scoped |= scope.edits.keys()
        setattr(self.denoiser, EDITOR, self)  # the next verb finds the scope
        if not scope.edits.keys() <= self.hooks.sites.keys():
            with changing([self.denoiser]):
                self.carry_out(self.plan)
        return scope

    def close_scope(self, scope: Scope) -> None:
        """Forget a scope; the hooks of loaded adapters stay for the next one."""
        self.scopes.remove(scope)
        self.hooks.state.open_scopes -= 1
        if not self.scopes and not self.stack.loaded:
            with changing([self.denoiser]), editing():
                self.carry_out(self.plan)

    def _kept_for_scopes(self, stack: Stack) -> set[str]:
        loaded = {path for item in stack.loaded.values() for path in item.directions}
        self.scoped = (self.scoped & loaded) | {path for scope in self.scopes for path in scope.edits}
        return self.scoped

    def _nothing(self, path: str) -> StackedEdit:
        rows = torch.zeros(0, self._linear(path).in_features, dtype=torch.float32, device="cpu")
        return StackedEdit(rows, rows.T)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def sync(self) -> None:
        """Adapt weights and hooks to changes by other code: LoRAs that were added, removed or fused.

        Raises:
            FuseError: If an edit can neither stay in a weight nor be taken out, since the weight is offloaded.
        """
        lost = []
        with changing([self.denoiser]), editing():
            for path, (_, record) in list(self.records.items()):
                linear, wrapped = self._linear(path), is_wrapped(module_at(self.denoiser, path))
                if is_intact(linear, record, path) if wrapped else self._looks_fused(path):
                    continue
                del self.records[path]
                if path in self.hooks.replaced:  # by another base, which holds no edit
                    self.changed.discard(path)
                    continue
                take_out(self._weight(path), record)
                self.changed.add(path)
                lost.append(path)
            self.carry_out(self.plan)
        for path in lost:  # last, since a warning may be an error
            warnings.warn(
                f"The weight of {path} changed after an unlearning adapter was fused into it (a fused LoRA, or "
                "training). The adapter was taken out and applied again, so that the concept stays erased, but the "
                "original weight cannot be restored any more.",
                stacklevel=2,
            )

    def _rewrite(self, edits: dict[str, LiveEdit], targets: Mapping[str, tuple[StackedEdit, bool]]) -> None:
        for path in edits.keys() - targets.keys():
            del edits[path]
        for path, (edit, on) in targets.items():
            if path in edits:
                edits[path].rewrite(edit, on)
            else:
                device = getattr(self._weight(path), "device", edit.read.device)
                edits[path] = LiveEdit(edit if device.type == "meta" else edit.to(device), on)

    def _check(self, plan: Plan) -> None:
        for path in {**plan.attached, **plan.fused}:
            check_site(self.denoiser, path)
            check_not_empty(self.denoiser, path)
        changes = self._outdated(plan)
        for path in changes:
            check_not_empty(self.denoiser, path)
            self._check_in_memory(path)
        fused = [fused_weight(self._linear(path), self.records[path][1], path) for path in changes]
        check_unchanged([item for item in fused if is_whole(item.record)])
        if self.scopes and not self._same_weights(plan):
            raise FuseError(
                f"{len(self.scopes)} `with pipe.unlearning_adapters(...)` of this denoiser are open, and rely on its "
                "weights as they are. Fuse and unfuse outside of all of them."
            )
        for path in self.changed:
            if not same_edit(plan.fused.get(path), self.plan.fused.get(path)):
                raise FuseError(changed_since_fused(path))
        owners: dict[int, str] = {}
        for path, edit in plan.fused.items():
            if path in self.records and path not in changes:
                weight = self._weight(path)
            else:
                self._check_in_memory(path)
                weight = check_fusable(self._linear(path), edit, path)
            other = owners.setdefault(weight.data_ptr() or id(weight), path)  # 0 on the meta device
            if other != path:
                raise FuseError(f"{path} and {other} share one weight, which holds one edit only. Attach the adapter.")

    def _in_weight(self, plan: Plan) -> dict[str, StackedEdit]:
        """Return the fused edits that weights can hold now: not while something wraps a layer, or it is offloaded."""
        return {
            path: edit
            for path, edit in plan.fused.items()
            if not is_wrapped(module_at(self.denoiser, path))
            and (path in self.records or not getattr(self._weight(path), "is_meta", False))
        }

    def _check_in_memory(self, path: str) -> None:
        if is_in_a_file(self.denoiser, path):
            raise FuseError(
                f"The weight of {path} is offloaded to a file, from which every call reads it anew, so that it cannot "
                "be fused or restored. Load the model again and fuse before offloading, or attach the adapter."
            )

    def _outdated(self, plan: Plan) -> list[str]:
        in_weight = self._in_weight(plan)
        return [
            path
            for path, (edit, record) in self.records.items()
            if not (is_whole(record) and same_edit(in_weight.get(path), edit))
        ]

    def _same_weights(self, plan: Plan) -> bool:
        now = self.plan.fused
        return plan.fused.keys() == now.keys() and all(same_edit(plan.fused[path], now[path]) for path in now)

    def _weights_changed(self) -> bool:
        if self.records.keys() != self._in_weight(self.plan).keys():  # syncing was interrupted
            return True
        return not all(is_whole(self.records[path][1]) and self._looks_fused(path) for path in self.records)

    def _looks_fused(self, path: str) -> bool:
        # What stands in memory for a weight in a file means nothing.
        return looks_fused(self._linear(path), self.records[path][1].sample) or is_in_a_file(self.denoiser, path)

    def _linear(self, path: str) -> Any:
        module = module_at(self.denoiser, path)
        return module if module is None else base_linear(module)

    def _weight(self, path: str) -> Any:
        return kept_weight(self._linear(path))


with_records: "WeakSet[Editor]" = WeakSet()  # those that have fused adapters, and some that had


@contextmanager
def editing() -> Iterator[None]:
    """Track no gradients, and make tensors that later calls may track."""
    with torch.inference_mode(False), torch.no_grad():  # in this order: the first resets the second
        yield


def editor_of(denoiser: nn.Module) -> Editor:
    """Return the editor of a denoiser; a new one leaves no trace until something is loaded."""
    editor = denoiser.__dict__.get(EDITOR)
    return editor if isinstance(editor, Editor) else Editor(denoiser)
