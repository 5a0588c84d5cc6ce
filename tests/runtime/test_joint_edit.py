"""The joint edit of several directions: each read-out by its own dial, in any order, and nothing else."""

import itertools
import math

import numpy as np
import pytest
import reference
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.errors import ConfigError
from unlearning_adapters.runtime.joint.joint_edit import (
    StackedEdit,
    StackReport,
    apply_edit,
    edited_weight,
    lora_factors,
    stack_directions,
    stack_report,
    stacked_factors,
    weight_factor,
)
from unlearning_adapters.runtime.joint.joint_solve import ABSORBED_BELOW, active_rows, plan_rows

STRENGTHS = st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.3, 2.0])
SEEDS = st.integers(0, 10_000)


def random_rows(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def oblique(seed: int, features: int = 24, rank: int = 1) -> Direction:
    """Return a random direction whose reads are not its writes."""
    write = random_rows(seed, rank, features).double()
    read = write + random_rows(seed + 77_777, rank, features).double()
    return Direction(torch.linalg.solve(read @ write.T, read).float(), write.float())


def orthogonal(*rows: Tensor) -> Direction:
    unit = functional.normalize(torch.stack(rows), dim=1)
    return Direction(unit, unit)


def at_cosine(cosine: float, features: int = 16) -> tuple[Direction, Direction]:
    """Return two orthogonal directions at a given cosine."""
    e = torch.eye(features)
    return orthogonal(e[0]), orthogonal(cosine * e[0] + math.sqrt(1 - cosine**2) * e[1])


def same(one: StackedEdit, other: StackedEdit) -> bool:
    return torch.equal(one.read, other.read) and torch.equal(one.mix, other.mix)


def dense(edit: StackedEdit) -> Tensor:
    """Return the matrix `I - mix read`; x' = x @ dense.T."""
    return torch.eye(edit.in_features, dtype=torch.float64) - edit.mix.double() @ edit.read.double()


@given(st.lists(st.tuples(SEEDS, STRENGTHS, st.integers(1, 2)), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_each_read_out_is_scaled_by_its_own_dial(parts: list[tuple[int, float, int]]) -> None:
    assume(len({seed for seed, _, _ in parts}) == len(parts))
    directions = [oblique(seed, features=64, rank=rank) for seed, _, rank in parts]
    strengths = [strength for _, strength, _ in parts]
    assume(stack_report(directions, [1.0] * len(parts)) == StackReport())
    # Where adapters are ill-conditioned float32 inputs set the precision, not the solve.
    reads, writes = (torch.cat([getattr(d, name) for d in directions]).double() for name in ("read", "write"))
    assume(torch.linalg.cond(reads @ writes.T) < 100)
    x = random_rows(1, 5, 64)
    after = apply_edit(x, stack_directions(directions, strengths))
    for direction, strength in zip(directions, strengths, strict=True):
        if strength > 0:
            expected = (1 - strength) * (x @ direction.read.T)
            torch.testing.assert_close(after @ direction.read.T, expected, atol=2e-4, rtol=1e-4)


@given(st.lists(SEEDS, min_size=1, max_size=4, unique=True), st.lists(STRENGTHS, min_size=4, max_size=4))
@settings(max_examples=25, deadline=None)
def test_the_edit_equals_the_dense_reference(seeds: list[int], strengths: list[float]) -> None:
    directions, dials = [oblique(seed) for seed in seeds], strengths[: len(seeds)]
    assume(stack_report(directions, dials) == StackReport())
    active = [(d, s) for d, s in zip(directions, dials, strict=True) if s > 0]
    assume(active)
    # A row that shares most of itself with stronger ones has another L (docs/maths.md 5, rule 3); no report says so.
    L = plan_rows(active_rows(directions, dials)).dials
    assume(np.array_equal(L, np.diag(np.diag(L))))
    matrix = reference.dense_edit(
        [d.read.double().numpy() for d, _ in active],
        [d.write.double().numpy() for d, _ in active],
        [s for _, s in active],
    )
    edit = stack_directions(directions, dials)
    np.testing.assert_allclose(dense(edit).numpy(), matrix, atol=1e-4 * np.abs(matrix).max())
    x = random_rows(3, 7, 24)
    expected = torch.from_numpy(reference.edit_rows(x.double().numpy(), matrix)).float()
    torch.testing.assert_close(apply_edit(x, edit), expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-4)


def test_one_direction_is_the_plain_edit() -> None:
    direction, x = oblique(4), random_rows(5, 9, 24)
    after = apply_edit(x, stack_directions([direction], [0.7]))
    torch.testing.assert_close(after, x - 0.7 * (x @ direction.read.T) @ direction.write, atol=1e-5, rtol=1e-5)
    assert (after - x).abs().max() > 0.1


def test_one_adapter_keeps_the_order_of_its_rows_and_loses_its_padding() -> None:
    direction = oblique(6, rank=3)
    padded = Direction(
        torch.cat([direction.read, torch.zeros(2, 24)]), torch.cat([direction.write, torch.zeros(2, 24)])
    )
    edit = stack_directions([padded], [1.0])
    assert torch.equal(edit.read, direction.read)
    torch.testing.assert_close(edit.mix.T, direction.write, atol=1e-5, rtol=1e-5)


@given(st.lists(st.tuples(SEEDS, STRENGTHS), min_size=2, max_size=4), st.booleans())
@settings(max_examples=15, deadline=None)
def test_order_does_not_matter_bit_for_bit(parts: list[tuple[int, float]], twice: bool) -> None:
    parts = [*parts, parts[0]] if twice else parts
    edits = [
        stack_directions([oblique(seed, rank=2) for seed, _ in order], [strength for _, strength in order])
        for order in itertools.islice(itertools.permutations(parts), 12)
    ]
    assert all(same(edits[0], edit) for edit in edits)


@given(STRENGTHS, STRENGTHS, SEEDS, st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_loading_a_concept_twice_equals_loading_it_once(one: float, two: float, seed: int, rank: int) -> None:
    concept, beside = oblique(seed, rank=rank), oblique(seed + 1)
    twice = stack_directions([concept, beside, concept], [one, 0.5, two])
    assert same(twice, stack_directions([concept, beside], [max(one, two), 0.5]))
    assert same(stack_directions([concept] * 3, [1.5] * 3), stack_directions([concept], [1.5]))


def test_adding_deltas_instead_would_flip_the_shared_direction() -> None:
    direction = orthogonal(torch.ones(8))
    x = torch.ones(1, 8)
    added = x - 2 * (x @ direction.read.T) @ direction.write  # what stock LoRA stacking does
    torch.testing.assert_close(added, -x)
    torch.testing.assert_close(
        apply_edit(x, stack_directions([direction, direction], [1.0, 1.0])), torch.zeros(1, 8), atol=1e-6, rtol=0
    )


def test_strength_zero_is_the_base_bit_for_bit() -> None:
    x = random_rows(8, 4, 24).to(torch.bfloat16)
    x[0, 0] = -0.0
    edit = stack_directions([oblique(1), oblique(2, rank=2)], [0.0, 0.0])
    assert edit.rank == 0 and edit.in_features == 24
    assert apply_edit(x, edit) is x
    weight = random_rows(9, 6, 24)
    assert torch.equal(edited_weight(weight, edit), weight)
    assert weight_factor(weight, edit).shape == (6, 0)


def test_an_adapter_at_strength_zero_does_not_touch_the_one_beside_it() -> None:
    one = oblique(1)
    near = Direction(one.read, one.write)  # the same concept, switched off
    for other in (oblique(2), near):
        assert same(stack_directions([one, other], [1.0, 0.0]), stack_directions([one], [1.0]))


@pytest.mark.parametrize("cosine", [0.905, 0.95, 0.99, 0.999, 0.999999])
@pytest.mark.parametrize("strengths", [(1.0, 0.3), (1.0, 1.0), (0.3, 1.5)])
def test_near_duplicates_share_the_larger_strength(cosine: float, strengths: tuple[float, float]) -> None:
    directions = at_cosine(cosine)
    report = stack_report(directions, strengths)
    assert [set(pair) for pair in report.merged] == [{0, 1}] and not report.absorbed
    strong, weak = report.merged[0]  # where both are as strong, their content decides
    assert strengths[strong] >= strengths[weak]
    edit = stack_directions(directions, strengths)
    left = torch.cat([apply_edit(d.write, edit) @ d.read.T for d in directions]).flatten()  # of each one's own token
    expected = torch.full((2,), 1 - max(strengths))
    # Within the share below which a row is left out of the solve; both exact while it is in.
    torch.testing.assert_close(left, expected, atol=max(strengths) * ABSORBED_BELOW + 1e-5, rtol=0)
    assert abs(float(left[strong] - expected[strong])) < 1e-5
    assert torch.linalg.matrix_norm(dense(edit), 2) <= max(1.0, max(strengths) - 1) + 1e-5


def test_minus_a_direction_is_the_same_direction() -> None:
    one = oblique(11)
    minus = Direction(-one.read, -one.write)
    assert stack_report([one, minus], [1.0, 0.5]).merged == ((0, 1),)
    x = random_rows(12, 3, 24)
    torch.testing.assert_close(
        apply_edit(x, stack_directions([minus, one], [0.5, 1.0])), apply_edit(x, stack_directions([one], [1.0]))
    )


def test_at_cosines_below_the_limit_both_dials_hold_and_the_norm_is_bounded() -> None:
    for cosine in (0.0, 0.5, 0.89, -0.89):
        directions = at_cosine(cosine)
        assert stack_report(directions, [1.0, 0.2]) == StackReport()
        edit = stack_directions(directions, [1.0, 0.2])
        assert edit.rank == 2
        assert torch.linalg.matrix_norm(dense(edit), 2) < 2.3  # 1 / sqrt(1 - 0.9^2)


@pytest.mark.parametrize("reads_or_writes", ["read", "write"])
def test_dependent_reads_or_writes_alone_do_not_blow_up(reads_or_writes: str) -> None:
    """Two rows read (or write) nearly the same and do not write (read) the same: G is singular, neither A nor V is."""
    e = torch.eye(16)
    shared = [e[0], functional.normalize(e[0] + 1e-3 * e[3], dim=0)]
    own = [e[0] + 0.8 * e[1], e[0] + 0.8 * e[2]]
    directions = []
    for near, far in zip(shared, own, strict=True):
        read, write = (near, far) if reads_or_writes == "read" else (far, near)
        directions.append(Direction((read / (read @ write))[None], write[None]))
    gram = torch.cat([d.read for d in directions]) @ torch.cat([d.write for d in directions]).T
    assert torch.linalg.cond(gram) > 1e3  # the exact solve would amplify rounding a thousandfold
    for strengths in ([1.0, 1.0], [1.0, 0.4], [0.4, 1.0]):
        assert stack_report(directions, strengths).merged == ()
        assert len(stack_report(directions, strengths).absorbed) == 1
        edit = stack_directions(directions, strengths)
        assert edit.rank == 1
        assert torch.linalg.matrix_norm(dense(edit), 2) < 2
        for direction in directions:  # the concept's own token is gone all the same
            own_read_out = apply_edit(direction.write, edit) @ direction.read.T
            assert abs(float(own_read_out)) < ABSORBED_BELOW


@given(SEEDS, st.integers(2, 6), st.floats(0.0, 0.3))
@settings(max_examples=25, deadline=None)
def test_no_stack_of_orthogonal_directions_amplifies_much(seed: int, count: int, spread: float) -> None:
    """Concepts crowded around one direction, all strengths different, up to exact duplicates."""
    rows = torch.ones(count, 16) + spread * 4 * random_rows(seed, count, 16)
    directions = [orthogonal(row) for row in rows]
    strengths = [1.0 - 0.15 * index for index in range(count)]
    edit = stack_directions(directions, strengths)
    # Exact dials alone reached 31 over 140,000 such stacks (without a limit on cosines, any number); this rule 3.6
    # over 27,000.
    assert torch.linalg.matrix_norm(dense(edit), 2) < 4.5
    left = [float(apply_edit(d.write, edit) @ d.read.T) for d in directions]
    assert max(abs(value) for value in left) <= 1.0  # nobody's own token grows


def test_what_a_weak_row_shares_with_stronger_ones_goes_with_them() -> None:
    e = torch.eye(8)
    shared = orthogonal(math.sqrt(0.9) * (e[0] + e[1]) / math.sqrt(2) + math.sqrt(0.1) * e[2])
    directions = [orthogonal(e[0]), orthogonal(e[1]), shared]  # cosines 0 and 0.67, and 10 % of the third is its own
    strengths = [1.0, 0.8, 0.2]
    assert stack_report(directions, strengths) == StackReport()
    edit = stack_directions(directions, strengths)
    assert edit.rank == 3
    expected = torch.diag(torch.tensor([0.0, 0.2, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(dense(edit).float(), expected, atol=1e-6, rtol=0)
    exact = reference.dense_edit([d.read.numpy() for d in directions], [d.write.numpy() for d in directions], strengths)
    assert np.linalg.norm(exact, 2) > 1.5  # with three independent dials


def test_three_adapters_in_one_plane_leave_the_weakest_out() -> None:
    e = torch.eye(8)
    angles = [0.0, 0.8, 1.6]
    plane = [orthogonal(math.cos(angle) * e[0] + math.sin(angle) * e[1]) for angle in angles]
    report = stack_report(plane, [0.9, 1.0, 0.8])
    assert report == StackReport(merged=(), absorbed=(2,))
    edit = stack_directions(plane, [0.9, 1.0, 0.8])
    assert same(edit, stack_directions(plane[:2], [0.9, 1.0]))


def test_independent_directions_are_not_reported() -> None:
    assert stack_report([oblique(1), oblique(2)], [1.0, 1.0]) == StackReport()
    assert stack_report([oblique(1), oblique(1)], [1.0, 0.0]) == StackReport()  # switched off is not there
    assert stack_report([oblique(1), oblique(1)], [0.0, 0.0]) == StackReport()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_apply_edit_computes_in_float32_and_rounds_once(dtype: torch.dtype) -> None:
    edit = stack_directions([oblique(1), oblique(2)], [1.0, 0.5])
    x = (10 * random_rows(3, 2, 5, 24)).to(dtype)
    after = apply_edit(x, edit)
    assert after.dtype == dtype and after.shape == x.shape
    exact = x.double() @ dense(edit).T
    rounding = max(torch.finfo(dtype).eps, 1e-6)
    assert (after.double() - exact).abs().max() <= rounding * exact.abs().max()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(apply_edit(x, edit), after)


def test_the_edited_weight_is_the_weight_of_the_edited_input() -> None:
    weight, x = random_rows(5, 7, 24), random_rows(6, 3, 24)
    edit = stack_directions([oblique(1, rank=2), oblique(2)], [1.0, 1.4])
    after = apply_edit(x, edit) @ weight.T
    torch.testing.assert_close(x @ edited_weight(weight, edit).T, after, atol=1e-4, rtol=1e-4)
    lora_A, lora_B = lora_factors(weight, edit)
    assert lora_A.shape == (3, 24) and lora_B.shape == (7, 3)
    torch.testing.assert_close(x @ (weight + lora_B @ lora_A).T, after, atol=1e-4, rtol=1e-4)
    assert (after - x @ weight.T).abs().max() > 0.1


def test_factors_come_from_the_outputs_of_the_writes_as_from_the_weight() -> None:
    weight, one, two = random_rows(5, 7, 24), oblique(1, rank=2), oblique(2)
    twin = Direction(two.read.clone(), two.write.clone())
    gap = Direction(*(torch.cat([rows[:1], torch.zeros(1, 24), rows[1:]]) for rows in (one.read, one.write)))
    cases = ([one, two], [1.0, 1.4]), ([two, gap, twin], [0.5, 1.0, 0.9]), ([two], [1.3]), ([one, two], [0.0, 1.0])
    for directions, strengths in cases:
        edit = stack_directions(directions, strengths)
        outputs = [weight @ direction.write.T for direction in directions]
        lora_A, lora_B = stacked_factors(directions, strengths, outputs)
        expected_A, expected_B = lora_factors(weight, edit)
        assert torch.equal(lora_A, expected_A) and lora_B.dtype == torch.float32
        torch.testing.assert_close(lora_B, expected_B)
        A, V = (torch.cat([getattr(direction, part) for direction in directions]) for part in ("read", "write"))
        if directions == [one, two] and all(strengths):
            matrix = reference.dense_edit([A[:2].numpy(), A[2:].numpy()], [V[:2].numpy(), V[2:].numpy()], strengths)
            delta = weight.double() @ torch.from_numpy(matrix) - weight.double()
            torch.testing.assert_close((lora_B @ lora_A).double(), delta, atol=1e-4, rtol=1e-4)
            assert delta.abs().max() > 0.1
    assert [tuple(part.shape) for part in stacked_factors([one], [0.0], [weight @ one.write.T])] == [(0, 24), (7, 0)]


def test_outputs_that_do_not_fit_are_refused() -> None:
    one, two = oblique(1, rank=2), oblique(2)
    for outputs in ([torch.zeros(7, 2), torch.zeros(6, 1)], [torch.zeros(7, 1), torch.zeros(7, 1)]):
        with pytest.raises(ConfigError, match=r"outputs of one height and of the ranks \[2, 1\], but got the shapes"):
            stacked_factors([one, two], [1.0, 1.0], outputs)


def test_a_weight_is_read_in_blocks_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, edit = random_rows(5, 7, 24).to(torch.bfloat16), stack_directions([oblique(1)], [1.0])
    whole = weight_factor(weight, edit)
    assert whole.dtype == torch.float32
    monkeypatch.setattr("unlearning_adapters.runtime.joint.joint_edit.BLOCK_ELEMENTS", 2 * 24)
    torch.testing.assert_close(weight_factor(weight, edit), whole)


def test_gradients_flow_through_the_edited_input() -> None:
    x = random_rows(2, 3, 24).requires_grad_()
    apply_edit(x, stack_directions([orthogonal(torch.ones(24))], [1.0])).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.zeros(3, 24), atol=1e-5, rtol=0)  # the sum is what was removed


def test_directions_in_half_precision_are_solved_in_full() -> None:
    direction = oblique(3)
    half = Direction(direction.read.half(), direction.write.half())
    edit = stack_directions([half], [1.0])
    assert edit.read.dtype == edit.mix.dtype == torch.float32
    left = apply_edit(half.write.float(), edit) @ half.read.float().T
    assert abs(float(left)) < 1e-5  # though read . write is 1 to 1e-3 only


@pytest.mark.parametrize(
    ("directions", "strengths", "message"),
    [
        ([], [], "at least one direction and as many strengths, but got 0 and 0"),
        ([oblique(1)], [1.0, 1.0], "but got 1 and 2"),
        ([oblique(1), oblique(1, features=8)], [1.0, 1.0], "one width, but got in_features 8, 24"),
        ([oblique(1)], [5.0], "from 0 .off. to 4, but got 5"),
        ([oblique(1)], [float("nan")], "but got nan"),
        ([Direction(torch.ones(1, 4), torch.ones(1, 4))], [1.0], "read . write = 1 .*but got 4"),
        ([Direction(torch.full((1, 4), float("nan")), torch.ones(1, 4))], [1.0], "but got nan"),
    ],
)
def test_what_is_not_a_stack_is_refused(directions: list[Direction], strengths: list[float], message: str) -> None:
    for function in (stack_directions, stack_report):
        with pytest.raises(ConfigError, match=message):
            function(directions, strengths)


def test_an_edit_of_shapes_that_do_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"but got \(2, 8\) and \(2, 8\)"):
        StackedEdit(torch.zeros(2, 8), torch.zeros(2, 8))


def test_an_edit_moves_between_devices() -> None:
    edit = stack_directions([oblique(1)], [1.0]).to("meta")
    assert edit.read.device.type == edit.mix.device.type == "meta"
