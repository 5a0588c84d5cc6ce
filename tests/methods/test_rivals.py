"""Edits of other works: each equals its paper's dense formula, and what it is for holds."""

import numpy as np
import pytest
import reference
import torch
from torch import Tensor

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.errors import ConceptError
from unlearning_adapters.methods.cure import cure_direction, prompt_means
from unlearning_adapters.methods.uce import rece_direction, uce_direction
from unlearning_adapters.runtime.joint.joint_edit import apply_edit, stack_directions

FEATURES = [(24, 60), (80, 30)]  # features, preserved rows: more rows than features, and fewer


def rows_of(seed: int, count: int, features: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, features, generator=draw) * torch.linspace(2.0, 0.2, features) + 0.3


def edit_of(direction: Direction) -> np.ndarray:
    """The matrix that multiplies what a site reads."""
    features = direction.in_features
    return np.eye(features) - direction.write.double().numpy().T @ direction.read.double().numpy()


@pytest.mark.parametrize(("features", "kept"), FEATURES)
def test_uce_equals_its_formula_on_a_weight(features: int, kept: int) -> None:
    concepts, guides, preserved = rows_of(0, 5, features), rows_of(1, 5, features), rows_of(2, kept, features)
    weight = rows_of(3, 7, features).double().numpy()
    found = weight @ edit_of(uce_direction(concepts, guides, preserved))
    ridge = 0.5 * float(concepts.square().sum(dim=1).mean()) / 768
    expected = reference.uce_weight(
        weight, *(rows.double().numpy() for rows in (concepts, guides, preserved)), ridge, 1.0, 1.0
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def planted_tokens(count: int, features: int, rank: int) -> tuple[Tensor, Tensor]:
    """Concept tokens, as of padding that heard of the concept, whose way to their guides spans `rank` directions."""
    concepts = rows_of(0, count, features)
    return concepts, concepts - rows_of(1, count, rank) @ rows_of(4, rank, features) / rank


def dense_uce(concepts: Tensor, guides: Tensor, preserved: Tensor) -> np.ndarray:
    """The matrix of UCE by the paper's formula."""
    ridge = 0.5 * float(concepts.double().square().sum(dim=1).mean()) / 768
    arrays = [rows.double().numpy() for rows in (concepts, guides, preserved)]
    return reference.uce_weight(np.eye(concepts.shape[1]), *arrays, ridge, 1.0, 1.0)


@pytest.mark.parametrize(
    ("count", "features", "rank"),
    [(150, 48, 48), (150, 200, 20), (70, 200, 64), (250, 100, 64)],
    ids=["narrow", "low rank", "at the limit", "more tokens than features"],
)
def test_uce_of_more_tokens_than_a_file_holds_is_exact_if_their_rank_is_not(
    count: int, features: int, rank: int
) -> None:
    (concepts, guides), preserved = planted_tokens(count, features, rank), rows_of(2, 30, features)
    direction = uce_direction(concepts, guides, preserved)
    # guides are float32, so that their distance has a rank of `rank` up to the rounding of single numbers
    assert direction.rank <= 64 and direction.left_out < 1e-5
    expected = dense_uce(concepts, guides, preserved)
    change = np.linalg.norm(expected - np.eye(features))
    assert change > 0.1
    assert np.linalg.norm(edit_of(direction) - expected) < 1e-5 * change


def test_uce_of_exactly_low_rank_is_written_with_no_more_rows_than_that() -> None:
    concepts, guides = rows_of(0, 9, 200), rows_of(1, 9, 200)
    many = uce_direction(concepts.repeat(10, 1), guides.repeat(10, 1), rows_of(2, 30, 200))
    assert many.rank == 9 and many.left_out < 1e-12


def test_uce_of_a_higher_rank_is_the_best_of_64_rows_and_says_what_they_leave_out() -> None:
    concepts, guides, preserved = rows_of(0, 100, 200), rows_of(1, 100, 200), rows_of(2, 30, 200)
    direction = uce_direction(concepts, guides, preserved)
    edit = np.eye(200) - dense_uce(concepts, guides, preserved)
    error = np.linalg.norm((np.eye(200) - edit_of(direction)) - edit) / np.linalg.norm(edit)
    singular = np.linalg.svd(edit, compute_uv=False)
    assert direction.rank == 64
    assert error > 0.01
    np.testing.assert_allclose(direction.left_out, error, rtol=1e-5)
    np.testing.assert_allclose(error, np.sqrt((singular[64:] ** 2).sum() / (singular**2).sum()), rtol=1e-5)


def test_rece_of_more_rows_than_a_file_holds_is_its_loop_up_to_what_it_leaves_out() -> None:
    features, eye = 120, np.eye(120)
    spread = 1 / torch.linspace(2.0, 0.2, features)  # all directions alike, so that many rows are needed
    concepts, guides, preserved = (rows_of(seed, n, features) * spread for seed, n in enumerate((80, 80, 20)))
    arrays = [rows.double().numpy() for rows in (concepts, guides, preserved)]
    direction = rece_direction(concepts, guides, preserved, torch.eye(features), rounds=2)
    (expected,) = reference.rece_weights([eye], *arrays, rounds=2)
    error = np.linalg.norm(edit_of(direction) - expected) / np.linalg.norm(expected - eye)
    assert direction.rank == 64 and error > 1e-5**0.5  # more than the share that is left out of every edit
    np.testing.assert_allclose(direction.left_out, error, rtol=1e-3)


def test_cure_of_more_prompts_than_a_file_holds_rows() -> None:
    forget, retain = rows_of(0, 80, 40), rows_of(1, 9, 40)
    direction = cure_direction(forget, retain)
    expected = reference.cure_eraser(forget.double().numpy(), retain.double().numpy(), 2.0)
    assert direction.rank <= 40
    np.testing.assert_allclose(edit_of(direction), expected, atol=1e-5)
    wide = cure_direction(rows_of(0, 80, 100), rows_of(1, 9, 100))
    assert wide.rank == 64 and 0 < wide.left_out < 0.5


def test_uce_puts_the_guide_in_place_of_the_concept_and_keeps_what_is_preserved() -> None:
    concepts, guides, preserved = rows_of(0, 3, 80), rows_of(1, 3, 80), rows_of(2, 20, 80)
    edit = torch.from_numpy(edit_of(uce_direction(concepts, guides, preserved, ridge=1e-3))).float()
    gap = (concepts - guides).norm()
    assert (concepts @ edit.T - guides).norm() < 0.01 * gap
    assert (preserved @ edit.T - preserved).norm() < 0.01 * preserved.norm()
    assert gap > 0.5 * concepts.norm()  # there was something to do


@pytest.mark.parametrize(("features", "kept"), FEATURES)
def test_rece_equals_its_loop_over_the_weights(features: int, kept: int) -> None:
    concepts, guides, preserved = rows_of(0, 2, features), rows_of(1, 2, features), rows_of(2, kept, features)
    weights = [rows_of(seed, 2 * features, features).double().numpy() for seed in (5, 6)]
    gram = torch.from_numpy(sum(weight.T @ weight for weight in weights))
    found = edit_of(rece_direction(concepts, guides, preserved, gram, rounds=2))
    arrays = [rows.double().numpy() for rows in (concepts, guides, preserved)]
    for weight, expected in zip(weights, reference.rece_weights(weights, *arrays, rounds=2), strict=True):
        scale = np.abs(expected - weight).max()
        assert scale > 0.01 * np.abs(weight).max()
        np.testing.assert_allclose(weight @ found, expected, atol=0.02 * scale)


def test_rece_leaves_less_for_the_strongest_attack_than_uce() -> None:
    concepts, guides, preserved = rows_of(0, 2, 40), rows_of(1, 2, 40), rows_of(2, 100, 40)
    weight = rows_of(5, 80, 40).double()
    gram = weight.T @ weight

    def attacked(edit: np.ndarray) -> float:
        inside = edit.T @ gram.numpy()
        penalty = 0.1 * float(gram.trace()) / 40
        best = np.linalg.solve(penalty * np.eye(40) + inside @ edit, inside @ concepts.double().numpy().T)
        return float(np.linalg.norm(weight.numpy() @ (edit @ best - concepts.double().numpy().T)))

    uce = attacked(edit_of(uce_direction(concepts, guides, preserved, ridge=0.1, keep=0.1)))
    rece = attacked(edit_of(rece_direction(concepts, guides, preserved, gram)))
    assert rece > 1.1 * uce  # the attack comes less near to what the model showed before


def test_every_round_of_rece_has_the_ridge_of_the_first() -> None:
    """Found tokens are shorter than the concept's under a large m; a ridge that went by them would erase harder."""
    concepts, guides, preserved = rows_of(0, 2, 24), rows_of(1, 2, 24), rows_of(2, 60, 24)
    weight = rows_of(5, 48, 24).double().numpy()
    arrays = [rows.double().numpy() for rows in (concepts, guides, preserved)]
    gram = torch.from_numpy(weight.T @ weight)
    found = weight @ edit_of(rece_direction(concepts, guides, preserved, gram, rounds=1, ridge=1000.0, search=10.0))
    (expected,) = reference.rece_weights([weight], *arrays, rounds=1, ridge=1000.0, search=10.0)
    change = np.abs(expected - weight).max()
    assert change > 0.001 * np.abs(weight).max()
    np.testing.assert_allclose(found, expected, atol=0.01 * change)


@pytest.mark.parametrize("slant", [0.0, 0.5, 1.0, 3.0], ids=lambda slant: f"slant {slant}")
def test_a_round_of_rece_gives_back_what_its_read_cannot_see(slant: float) -> None:
    """docs/maths.md 6: with exact edits and Q = I the first round leaves `g + (c - g - a / |a|^2) / (1 - t)` of c."""
    e = torch.eye(6, dtype=torch.float64)
    guide = 2 * e[0] + e[1]
    concept = guide + e[2] + slant * e[3]  # e[3] is preserved, so that the read of the first edit is e[2] alone
    preserved = torch.stack([guide, e[3], e[4]])
    settings = {"ridge": 1e-6, "keep": 1.0, "search": 1e-4}

    def left(rounds: int) -> np.ndarray:
        rows = [row.float() for row in (concept[None], guide[None], preserved)]
        return edit_of(rece_direction(*rows, e, rounds=rounds, **settings)) @ concept.numpy()

    gap, read = (concept - guide).numpy(), e[2].numpy()
    start = guide.numpy() - read
    t = -(start @ gap) / (gap @ gap)
    expected = (gap - read) / (1 - t) if slant else 0 * gap
    assert np.linalg.norm(left(0) - guide.numpy()) < 0.01 * np.linalg.norm(gap)  # UCE alone has it all
    np.testing.assert_allclose(left(1) - guide.numpy(), expected, atol=0.02 * np.linalg.norm(gap))
    assert (np.linalg.norm(left(1) - guide.numpy()) > 0.3 * np.linalg.norm(gap)) == (slant > 0)


@pytest.mark.parametrize("sharpness", [1.0, 2.0, 5.0])
def test_cure_equals_its_projectors(sharpness: float) -> None:
    forget, retain = rows_of(0, 6, 40), rows_of(1, 9, 40)
    expected = reference.cure_eraser(forget.double().numpy(), retain.double().numpy(), sharpness)
    np.testing.assert_allclose(edit_of(cure_direction(forget, retain, sharpness=sharpness)), expected, atol=1e-5)


def test_cure_without_prompts_to_retain_is_refused() -> None:
    with pytest.raises(ConceptError, match="CURE needs prompts to forget and prompts to retain, but got 6 and 0"):
        cure_direction(rows_of(0, 6, 8), torch.zeros(0, 8))
    with pytest.raises(ConceptError, match="UCE needs at least one token"):
        uce_direction(torch.zeros(0, 8), torch.zeros(0, 8), rows_of(0, 6, 8))


def test_padding_counts_once_in_a_prompt_s_mean() -> None:
    word, pad = rows_of(0, 1, 8), rows_of(1, 1, 8)
    means = prompt_means([torch.cat([word, pad]), torch.cat([word, pad, pad, pad])])
    assert torch.allclose(means[0], means[1])
    assert torch.allclose(means[0], (word + pad)[0] / 2)


def test_additive_directions_stack_by_adding_beside_the_joint_edit() -> None:
    e = torch.eye(6)
    joint = Direction(e[:1], e[:1])
    other = uce_direction(rows_of(0, 2, 6), rows_of(1, 2, 6), rows_of(2, 4, 6))
    x = rows_of(3, 5, 6)
    both = apply_edit(x, stack_directions([other, joint, other], [0.5, 1.0, 0.25]))
    alone = apply_edit(x, stack_directions([joint], [1.0]))
    expected = alone - 0.75 * (x @ other.read.T) @ other.write
    assert torch.allclose(both, expected, atol=1e-5)
    assert not torch.allclose(both, alone, atol=0.01)
    assert torch.equal(both, apply_edit(x, stack_directions([joint, other, other], [1.0, 0.25, 0.5])))
    assert torch.equal(apply_edit(x, stack_directions([joint, other], [1.0, 0.0])), alone)
