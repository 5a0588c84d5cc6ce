"""What each adapter on a pipeline does now, and what its record of the original weights takes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .editor import Editor

State = Literal["attached", "fused", "disabled", "inactive"]


@dataclass(frozen=True)
class AdapterStatus:
    """What an adapter on a pipeline does now.

    Args:
        state: "attached" or "fused" if it acts, "disabled" if `disable_unlearning_adapters` switched it off,
            "inactive" if `set_unlearning_adapters` left it out.
        strength: Its strength now; the largest one, where it differs by component.
        components: Names of the denoisers that it edits.
        records: Bytes that are kept to restore the weights that it is fused into, by kind of record: "copy" or
            "compact". Adapters that are fused into the same weights share these records. Empty if it is not fused.
        strengths: Its strength on each of the denoisers.
    """

    state: State
    strength: float
    components: tuple[str, ...]
    records: Mapping[str, int] = field(default_factory=dict)
    strengths: Mapping[str, float] = field(default_factory=dict)


def status_by_name(editors: Mapping[str, Editor]) -> dict[str, AdapterStatus]:
    """Return the status of all adapters of a pipeline.

    Args:
        editors: The editors of its denoisers, by component.
    """
    names = dict.fromkeys(name for editor in editors.values() for name in editor.stack.loaded)
    return {name: _status(name, editors) for name in names}


def _status(name: str, editors: Mapping[str, Editor]) -> AdapterStatus:
    carriers = {component: editor for component, editor in editors.items() if name in editor.stack.loaded}
    records: Counter[str] = Counter()
    for editor in carriers.values():
        if name in editor.stack.fused:
            for path, (_, record) in editor.records.items():
                if path in editor.stack.loaded[name].directions:
                    records[record.kind] += record.nbytes
    strengths = {component: editor.stack.loaded[name].strength for component, editor in carriers.items()}
    return AdapterStatus(_state(name, carriers), max(strengths.values()), tuple(carriers), dict(records), strengths)


def _state(name: str, carriers: Mapping[str, Editor]) -> State:
    stacks = [editor.stack for editor in carriers.values()]
    if any(name in stack.fused for stack in stacks):
        return "fused"
    if not any(name in stack.active for stack in stacks):
        return "inactive"
    return "attached" if any(stack.enabled for stack in stacks) else "disabled"
