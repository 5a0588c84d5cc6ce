import itertools

import numpy as np
import pytest
import torch
from reference import dense_edit

from planted import direction
from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.adapter.direction import AdapterInfo, Direction
from unlearning_adapters.errors import FuseError
from unlearning_adapters.runtime.stack import Loaded, Stack, edit_in_weight, edit_on_input, near_duplicates

WIDTH = 24
PATH = "blocks.0.to_k"


def mixed(seed: int, share: float, rank: int = 1) -> Direction:
    """A direction that has much in common with the others of its kind."""
    common, own = direction(WIDTH, rank, seed=100, oblique=False).read, direction(WIDTH, rank, seed=seed).read
    read = torch.nn.functional.normalize(share * common + (1 - share) * own, dim=1)
    write = torch.linalg.pinv(read.double()).T.float()
    return Direction(read, write)


def stack_of(directions, strengths, fused=()) -> Stack:
    stack = Stack()
    for number, (each, strength) in enumerate(zip(directions, strengths, strict=True)):
        adapter = UnlearningAdapter(AdapterInfo(concept="c", method="ridge"), {f"transformer.{PATH}": each})
        stack = stack.with_adapter(f"n{number}", Loaded(adapter, {PATH: each}, strength, strength))
    return stack.with_fused([f"n{number}" for number in fused])


def dense(edit) -> np.ndarray:
    if edit is None:
        return np.eye(WIDTH)
    return np.eye(WIDTH) - edit.mix.double().numpy() @ edit.read.double().numpy()


def total(stack: Stack) -> np.ndarray:
    """What weight and input do together, as a matrix."""
    on_input = edit_on_input(stack, PATH)
    return dense(edit_in_weight(stack, PATH)) @ dense(on_input[0] if on_input and on_input[1] else None)


SUBSETS = [part for size in range(4) for part in itertools.combinations(range(3), size)]


@pytest.mark.parametrize("fused", SUBSETS)
@pytest.mark.parametrize("strengths", [(1.0, 1.0, 1.0), (1.3, 0.5, 1.0), (2.0, 0.0, 0.7)])
def test_the_joint_edit_is_the_same_whatever_is_fused(strengths, fused):
    directions = [mixed(1, 0.4), mixed(2, 0.4, rank=2), mixed(3, 0.3)]
    expected = dense_edit(
        [d.read.double().numpy() for d, s in zip(directions, strengths, strict=True) if s],
        [d.write.double().numpy() for d, s in zip(directions, strengths, strict=True) if s],
        [s for s in strengths if s],
    )
    found = total(stack_of(directions, strengths, fused))
    assert np.abs(found - expected).max() < 2e-6
    for each, strength in zip(directions, strengths, strict=True):
        if strength:  # read-outs of those that act scale by one minus their strength
            read = each.read.double().numpy()
            np.testing.assert_allclose(read @ found, (1 - strength) * read, atol=2e-6)


def test_the_edits_interact_so_that_the_order_could_matter():
    """Else the test above would pass without a joint edit."""
    directions = [mixed(1, 0.4), mixed(2, 0.4)]
    one, two = (total(stack_of([each], [1.0])) for each in directions)
    assert np.abs(one @ two - total(stack_of(directions, [1.0, 1.0]))).max() > 0.01


def test_a_strength_does_not_change_the_shape():
    directions, shapes = [mixed(1, 0.4), mixed(2, 0.4, rank=2)], set()
    for strengths in ((1.0, 1.0), (0.0, 1.0), (0.5, 0.0), (0.0, 0.0)):
        edit, on = edit_on_input(stack_of(directions, strengths), PATH)
        shapes.add((edit.read.shape, edit.mix.shape))
        assert on == any(strengths)
    assert shapes == {((3, WIDTH), (WIDTH, 3))}


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_what_is_fused_loaded_again_adds_nothing(strength):
    one = mixed(1, 0.4)
    stack = stack_of([one, one], [1.0, strength], fused=[0])
    assert edit_on_input(stack, PATH)[1] is False
    assert near_duplicates(stack, PATH) == [("n0", "n1")]


def test_what_is_fused_cannot_be_outdone_by_an_input():
    one, near = mixed(1, 0.4), mixed(1, 0.42)
    for stronger in (one, near):
        with pytest.raises(
            FuseError,
            match="'n1' at strength 1.5 on the input and 'n0' at strength 1 in the weight .* Fuse them together",
        ):
            edit_on_input(stack_of([one, stronger], [1.0, 1.5], fused=[0]), PATH)
    assert edit_on_input(stack_of([one, near], [1.0, 1.5]), PATH)[1]


def test_what_is_fused_in_part_can_be_outdone_by_an_input():
    stack = stack_of([mixed(1, 0.4)] * 2, [0.5, 1.5], fused=[0])
    np.testing.assert_allclose(total(stack), total(stack_of([mixed(1, 0.4)], [1.5])), atol=2e-6)


def test_disabled_adapters_do_nothing_on_the_input():
    stack = stack_of([mixed(1, 0.4)], [1.0])
    off = Stack(stack.loaded, stack.active, enabled=False)
    assert edit_on_input(off, PATH)[1] is False and off.acting == () and stack.acting == ("n0",)


def test_loading_enables():
    stack = stack_of([mixed(1, 0.4)], [1.0])
    off = Stack(stack.loaded, stack.active, enabled=False)
    assert off.with_adapter("more", stack.loaded["n0"]).acting == ("n0", "more")


def test_active_ones_get_their_strength_or_that_of_loading():
    stack = stack_of([mixed(1, 0.4), mixed(2, 0.4)], [1.2, 0.8]).with_active({"n0": 0.5, "n1": 0.1})
    assert [item.strength for item in stack.loaded.values()] == [0.5, 0.1]
    again = stack.with_active({"n1": None, "elsewhere": 1.0})
    assert again.active == ("n1",) and again.loaded["n1"].strength == 0.8
    assert list(again.loaded) == ["n0", "n1"]


@pytest.mark.parametrize("wanted", [{"n0": 0.5}, {"n1": 1.0}, {}])
def test_fused_ones_are_not_changed(wanted):
    stack = stack_of([mixed(1, 0.4), mixed(2, 0.4)], [1.2, 0.8], fused=[0])
    with pytest.raises(FuseError, match=r"'n0' is fused at strength 1.2 and cannot be set to 0(.5)?\. Call unfuse_"):
        stack.with_active(wanted)
    assert stack.with_active({"n0": None, "n1": 0.3}).loaded["n0"].strength == 1.2
    assert stack.with_active({"n0": 1.2}).acting == ("n0",)
