"""What a model's adapters do, as text for people; knows no ComfyUI."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from unlearning_adapters.runtime.joint.joint_edit import apply_edit

from .edits import LayerEdit, Loaded
from .layers import OTHER_BASE


def describe(
    loaded: Sequence[Loaded], edits: Mapping[str, LayerEdit], model: str, patched: Collection[str] = ()
) -> str:
    """Return which layers are edited, by what, and what is left of each concept's direction there.

    Args:
        loaded: The adapters on the model.
        edits: Their joint edits, as `solve` returns them.
        model: What the model is called.
        patched: Modules whose weights LoRAs change.

    Returns:
        Lines of text.
    """
    if not loaded:
        return f"{model}: no unlearning adapter. No layer is edited."
    lines = [f"{model}: {len(loaded)} {'adapter' if len(loaded) == 1 else 'adapters, solved jointly'}"]
    for number, each in enumerate(loaded):
        info = each.adapter.info
        layers = sum(number in edit.adapters for edit in edits.values())
        lines.append(
            f"- {info.concept}: strength {each.strength:g}, {info.method}, {layers} layers ({each.component}); "
            f"{_base(each)}"
        )
    both = sorted(set(edits) & set(patched))
    if patched:
        lines.append(
            f"LoRAs change {len(patched)} layers, {len(both)} of them edited: what they add reads the edited input."
        )
    lines.append(f"{len(edits)} layers are edited; left of the directions there:")
    for path, edit in edits.items():
        share = ", ".join(f"{loaded[number].adapter.info.concept} {left}" for number, left in _left(loaded, path, edit))
        lines.append(f"  {path.removeprefix('diffusion_model.')}  {share}")
    return "\n".join(lines)


def _base(each: Loaded) -> str:
    if each.deviation is None:
        return "its base is not checked"
    if each.deviation < OTHER_BASE:
        return f"the weights are those it was built on (deviation {each.deviation:.1%})"
    return f"NOT THE WEIGHTS IT WAS BUILT ON (deviation {each.deviation:.0%}): check what it removes"


def _left(loaded: Sequence[Loaded], path: str, edit: LayerEdit) -> list[tuple[int, str]]:
    """Return the largest share of each adapter's own read-outs that is left in a layer; additive edits have none."""
    found = []
    for number in edit.adapters:
        each = loaded[number]
        shares = []
        for site, place in each.places.items():
            if place.module == path and place in edit.edits:
                direction = each.adapter.directions[site]
                after = apply_edit(direction.write, edit.edits[place])
                if not direction.additive:
                    shares.append(float((direction.read * after).sum(1).abs().max()))
        found.append((number, f"{max(shares):.0%}" if shares else "(additive)"))
    return found
