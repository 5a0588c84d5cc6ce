"""Some adapters fused and others attached: together exactly the joint edit of all, or the call is refused."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import unlearning_adapters as ua
from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.adapter.direction import AdapterInfo, Direction
from unlearning_adapters.errors import FuseError
from unlearning_adapters.runtime.joint.joint_edit import StackedEdit, apply_edit, edited_weight, stack_directions
from unlearning_adapters.runtime.joint.remainder import LARGEST, remaining_edit

WIDTH = 8
CLOSE = 2e-5  # float32 rounding of edits whose norm is 8 at most, of |edit| |x|


def random_rows(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def oblique(seed: int, rank: int, share: float, gain: float = 1.0) -> Direction:
    """A direction of the kind that `ridge` finds; `share` of its writes are common to all of them."""
    write = share * random_rows(4_242, rank, WIDTH).double() + random_rows(seed, rank, WIDTH).double()
    read = write + 0.7 * random_rows(seed + 77_777, rank, WIDTH).double()
    return Direction(torch.linalg.solve(read @ write.T, read).float(), write.float(), gain=gain)


def additive(seed: int, rank: int, size: float) -> Direction:
    """A direction of the kind that `uce`, `rece` and `cure` find: reads and writes are independent."""
    read, write = random_rows(seed, rank, WIDTH), size * random_rows(seed + 9, rank, WIDTH) / WIDTH
    return Direction(read, write, additive=True)


def dense(edit: StackedEdit | None) -> np.ndarray:
    if edit is None:
        return np.eye(WIDTH)
    return np.eye(edit.in_features) - edit.mix.double().numpy() @ edit.read.double().numpy()


def adapter(direction: Direction, site: str = "transformer.0") -> UnlearningAdapter:
    method = "uce" if direction.additive else "ridge"
    return UnlearningAdapter(AdapterInfo(concept="c", method=method), {site: direction})


def one_layer(seed: int = 0) -> ua.DenoiserPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    return ua.wrap_denoiser(module, lambda module, prompts, generators: module(random_rows(5, 6, WIDTH)))


DIRECTIONS = st.one_of(
    st.builds(
        oblique,
        st.integers(0, 10_000),
        st.integers(1, 2),
        st.sampled_from([0.0, 0.5, 2.0]),
        st.sampled_from([1.0, 1.0, 0.5, 0.0]),
    ),
    st.builds(additive, st.integers(0, 10_000), st.integers(1, 3), st.sampled_from([0.1, 0.6])),
)
EXACT = st.lists(
    st.tuples(DIRECTIONS, st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.0, 1.2, 1.5, 2.0]), st.booleans()),
    min_size=2,
    max_size=5,
)
SHRUNK = EXACT.map(lambda stack: [(replace(direction, shrinkage=0.3), *rest) for direction, *rest in stack])
STACKS = st.one_of(EXACT, EXACT, SHRUNK)


@given(STACKS)
@settings(max_examples=300, deadline=None)
def test_whatever_is_fused_the_whole_is_the_joint_edit_or_refused(stack: list[tuple[Direction, float, bool]]) -> None:
    directions, strengths = [item[0] for item in stack], [item[1] for item in stack]
    fused = [number for number, item in enumerate(stack) if item[2]]
    whole = stack_directions(directions, strengths)
    parts = [directions[number] for number in fused], [strengths[number] for number in fused]
    in_weight = stack_directions(*parts) if fused else StackedEdit(torch.zeros(0, WIDTH), torch.zeros(WIDTH, 0))
    rest = remaining_edit(whole, in_weight)
    E, F = np.eye(WIDTH) - dense(whole), np.eye(WIDTH) - dense(in_weight)
    event("refused" if rest is None else "solved")
    if rest is None:
        best = np.linalg.pinv(np.eye(WIDTH) - F, rcond=1e-6) @ (E - F)
        missed = np.linalg.norm((np.eye(WIDTH) - F) @ best - (E - F), 2)
        assert missed > 1e-6 or np.linalg.norm(best, 2) > LARGEST, "refused without need"
        return
    assert rest.rank <= whole.rank + in_weight.rank
    size = 1 + np.linalg.norm(E, 2) + np.linalg.norm(F, 2)
    assert np.abs(dense(in_weight) @ dense(rest) - dense(whole)).max() < CLOSE * size


@given(STACKS)
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore:The adapters .* remove nearly the same direction")
def test_every_split_by_the_verbs_computes_what_all_fused_computes(stack: list[tuple[Direction, float, bool]]) -> None:
    pipe, base = one_layer(), one_layer()()
    together = one_layer()
    directions = [item[0] for item in stack]
    for number, (direction, strength, _) in enumerate(stack):
        for each in (pipe, together):
            each.load_unlearning_adapter(adapter(direction), f"n{number}", strength)
    attached, joint = together(), stack_directions(directions, [item[1] for item in stack])
    together.fuse_unlearning_adapters()
    wanted = together()
    size = float((1 + joint.mix.norm() * joint.read.norm()) * base.detach().abs().max())
    torch.testing.assert_close(attached, wanted, atol=CLOSE * size, rtol=0)
    names = [f"n{number}" for number, item in enumerate(stack) if item[2]]
    if not names:
        return
    try:
        pipe.fuse_unlearning_adapters(names)
    except FuseError as error:
        assert "Fuse them together" in str(error)
        assert torch.equal(pipe(), attached), "a refused call changes nothing"
        return
    torch.testing.assert_close(pipe(), wanted, atol=CLOSE * size, rtol=0)
    pipe.unfuse_unlearning_adapters()
    assert torch.equal(pipe(), attached)


def test_the_case_that_was_silently_wrong_by_a_fifth() -> None:
    e = torch.eye(WIDTH)
    b_read = 0.7 * e[0] + 0.7 * e[1] + 0.28 * e[2]
    two_rows = Direction(e[:2], e[:2])
    one_row = Direction(b_read[None] / b_read.norm() ** 2, b_read[None])
    outputs = {}
    for fused in ((), ("a",), ("b",), ("a", "b")):
        pipe = one_layer()
        pipe.load_unlearning_adapter(adapter(two_rows), "a", 2.0)
        pipe.load_unlearning_adapter(adapter(one_row), "b", 1.5)
        if fused:
            pipe.fuse_unlearning_adapters(fused)
        outputs[fused] = pipe()
    assert (outputs[()] - one_layer()()).abs().max() > 0.5
    for output in outputs.values():
        torch.testing.assert_close(output, outputs[()], atol=2e-6, rtol=0)


@pytest.mark.parametrize("share", [0.0, 0.5, 2.0])
def test_independent_directions_are_never_refused_at_the_usual_strengths(share: float) -> None:
    """Directions that have dials of their own; those that are nearly the span of others are another test."""
    solved = 0
    for seed in range(0, 60, 3):
        directions = [oblique(seed + number, 1, share) for number in range(3)]
        reads, writes = ([getattr(d, part).double().numpy() for d in directions] for part in ("read", "write"))
        for strengths in ((1.0, 1.0, 1.0), (1.2, 1.0, 0.7), (1.0, 2.0, 1.5)):
            wanted = reference.dense_edit(reads, writes, list(strengths))
            whole = stack_directions(directions, strengths)
            if np.abs(dense(whole) - wanted).max() > 1e-3:
                continue  # rows that share most of themselves with stronger ones
            for size in (1, 2):
                for fused in itertools.combinations(range(3), size):
                    in_weight = stack_directions([directions[n] for n in fused], [strengths[n] for n in fused])
                    rest = remaining_edit(whole, in_weight)
                    assert rest is not None
                    scale = 1 + np.linalg.norm(wanted, 2) ** 2
                    assert np.abs(dense(in_weight) @ dense(rest) - wanted).max() < CLOSE * scale
                    solved += 1
    assert solved > 60


def test_what_a_weight_has_lost_no_input_brings_back() -> None:
    e = torch.eye(WIDTH)
    gone, more = StackedEdit(e[:1], e[:1].T), StackedEdit(e[:1], 1.5 * e[:1].T)
    assert remaining_edit(more, gone) is None
    nearly = StackedEdit(e[:1], 0.999 * e[:1].T)
    assert remaining_edit(more, nearly) is None, "1 / 0.001 times the rounding of the weight"
    half = StackedEdit(e[:1], 0.5 * e[:1].T)
    rest = remaining_edit(more, half)
    np.testing.assert_allclose(dense(half) @ dense(rest), dense(more), atol=1e-6)


def test_the_same_edit_leaves_nothing() -> None:
    for direction, strength in ((oblique(3, 2, 0.5), 1.0), (oblique(3, 2, 0.5), 1.3), (additive(4, 3, 0.6), 1.0)):
        edit = stack_directions([direction], [strength])
        rest = remaining_edit(edit, edit)
        assert rest is not None and rest.rank == 0


def test_wide_sites_are_solved_in_the_few_dimensions_that_matter() -> None:
    maker = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(4096, 4, generator=maker)).Q.T
    one, two = (Direction(rows, rows) for rows in (basis[:1], (basis[:1] + basis[1:2]) / 2**0.5))
    whole, fused = stack_directions([one, two], [1.0, 1.3]), stack_directions([one], [1.0])
    rest = remaining_edit(whole, fused)
    x = torch.randn(5, 4096, generator=maker)
    weight = torch.randn(16, 4096, generator=maker)
    found = apply_edit(x, rest) @ edited_weight(weight, fused).T
    torch.testing.assert_close(found, x @ edited_weight(weight, whole).T, atol=2e-3, rtol=1e-5)


def test_shrunk_adapters_are_fused_together_or_not_at_all() -> None:
    pipe = one_layer()
    for number in range(3):
        pipe.load_unlearning_adapter(adapter(replace(oblique(number, 1, 1.0), shrinkage=0.3)), f"n{number}")
    attached = pipe()
    with pytest.raises(FuseError, match="Fuse them together"):
        pipe.fuse_unlearning_adapters(["n0"])
    assert torch.equal(pipe(), attached)
    pipe.fuse_unlearning_adapters()
    torch.testing.assert_close(pipe(), attached, atol=1e-5, rtol=0)
    pipe.unfuse_unlearning_adapters()
    assert torch.equal(pipe(), attached)
