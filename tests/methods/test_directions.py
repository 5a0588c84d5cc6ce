"""How each method finds a direction: planted concepts, the dense reference, and what must stay as it was."""

from collections.abc import Callable

import numpy as np
import pytest
import reference
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.errors import ConceptError, ConfigError
from unlearning_adapters.methods.control import random_direction
from unlearning_adapters.methods.leace import leace_direction
from unlearning_adapters.methods.paper import cpca_direction, mean_direction, pca_direction
from unlearning_adapters.methods.ridge import ridge_direction
from unlearning_adapters.methods.strength import calibrate_strength
from unlearning_adapters.runtime.joint.joint_edit import apply_edit, stack_directions

SIZES = [(40, 12, 30), (40, 60, 50), (300, 20, 100), (64, 30, 34)]  # features, difference rows, neutral rows


def rows_of(seed: int, count: int, features: int, scale: float = 1.0) -> Tensor:
    """Rows with a mean and a falling spectrum, as activations have, not white noise."""
    draw = torch.Generator().manual_seed(seed)
    spectrum = torch.linspace(2.0, 0.1, features)
    return scale * (torch.randn(count, features, generator=draw) * spectrum + 0.5)


def planted(seed: int, features: int, count: int = 20, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Return a concept vector and token differences that hold it in noise."""
    draw = torch.Generator().manual_seed(seed)
    concept = torch.randn(features, generator=draw)
    return concept, concept + noise * torch.randn(count, features, generator=draw)


def cosine(one: Tensor, other: Tensor) -> float:
    return float(functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))


def erase(x: Tensor, direction: Direction, strength: float = 1.0) -> Tensor:
    return apply_edit(x, stack_directions([direction], [strength]))


def moved(x: Tensor, direction: Direction) -> float:
    """Relative change of the rows, root mean square."""
    return float((erase(x, direction) - x).norm() / x.norm())


def build(method: str, features: int = 48) -> tuple[Tensor, Direction]:
    concept, differences = planted(3, features)
    neutral, r = rows_of(4, 80, features), differences.mean(dim=0)
    if method == "mean":
        return concept, mean_direction(r)
    if method == "pca":
        return concept, pca_direction(differences, r, 10)
    if method == "cpca":
        return concept, cpca_direction(differences, neutral, r, 10, 0.5)
    if method == "ridge":
        return concept, ridge_direction(r, neutral)
    return concept, leace_direction(neutral[:40] + differences.repeat(2, 1), neutral[40:])


@pytest.mark.parametrize("method", ["mean", "pca", "cpca", "ridge", "leace"])
def test_every_method_recovers_a_planted_concept_and_removes_it(method: str) -> None:
    concept, direction = build(method)
    assert direction.rank == 1 and direction.read.dtype == direction.write.dtype == torch.float32
    assert float((direction.read * direction.write).sum()) == pytest.approx(1, abs=1e-5)
    assert direction.orthogonal == (method in ("mean", "pca", "cpca"))
    if method == "leace":  # its write is the difference of the means of different prompts, so it holds their noise
        assert cosine(direction.write, concept) > 0.9
        return
    assert cosine(direction.write, concept) > 0.99
    assert erase(concept[None], direction).norm() < 0.2 * concept.norm()
    assert cosine(erase(concept[None], direction, strength=0.5), concept) > 0.9  # half of it is still there


def test_a_random_direction_does_not_remove_the_concept() -> None:
    concept, _ = build("mean")
    like = Direction(torch.ones(3, 48), torch.ones(3, 48))
    drawn = [random_direction(48, torch.Generator().manual_seed(7), like) for _ in range(2)]
    assert torch.equal(drawn[0].read, drawn[1].read)
    assert drawn[0].orthogonal and drawn[0].rank == 3
    torch.testing.assert_close(drawn[0].read @ drawn[0].read.T, torch.eye(3), atol=1e-6, rtol=0)
    single = random_direction(48, torch.Generator().manual_seed(8))
    assert single.rank == 1 and abs(cosine(single.read, concept)) < 0.5
    assert erase(concept[None], single).norm() > 0.85 * concept.norm()


def test_mean_is_the_refusal_vector_of_length_one() -> None:
    r = torch.tensor([3.0, 0.0, 4.0])
    direction = mean_direction(r)
    torch.testing.assert_close(direction.read, torch.tensor([[0.6, 0.0, 0.8]]))
    assert torch.equal(direction.read, direction.write)


@pytest.mark.parametrize(("features", "count", "neutral_count"), SIZES)
@pytest.mark.parametrize(("components", "contrast"), [(100, 1.0), (5, 1.0), (3, 0.1), (100, 0.0)])
def test_thin_cpca_equals_the_dense_solve(
    features: int, count: int, neutral_count: int, components: int, contrast: float
) -> None:
    _, differences = planted(1, features, count, noise=1.0)
    neutral, r = rows_of(2, neutral_count, features), differences.mean(dim=0)
    direction = cpca_direction(differences, neutral, r, components, contrast)
    dense = reference.contrastive_vector(
        *(t.double().numpy() for t in (differences, neutral, r)), components=components, contrast=contrast
    )
    np.testing.assert_allclose(direction.read[0].numpy(), dense, atol=1e-5)
    assert float(direction.read.norm()) == pytest.approx(1, abs=1e-6)


@given(st.integers(0, 500), st.integers(1, 30), st.integers(0, 30), st.integers(2, 40), st.floats(0, 0.5))
@example(0, 1, 27, 27, 2.2250738585072014e-308)  # the squares of rows scaled by it are no numbers
@settings(max_examples=25, deadline=None)
def test_thin_cpca_equals_the_dense_solve_for_any_shape(
    seed: int, count: int, neutral_count: int, features: int, contrast: float
) -> None:
    _, differences = planted(seed, features, count)
    neutral, r = rows_of(seed + 1, max(1, neutral_count), features, scale=0.1), differences.mean(dim=0)
    direction = cpca_direction(differences, neutral, r, 100, contrast)
    dense = reference.contrastive_vector(*(t.double().numpy() for t in (differences, neutral, r)), 100, contrast)
    np.testing.assert_allclose(direction.read[0].numpy(), dense, atol=1e-5)


@pytest.mark.parametrize("components", [2, 100])
def test_cpca_of_few_of_many_components_equals_the_dense_solve(components: int) -> None:
    _, differences = planted(3, 200, count=9, noise=0.5)
    neutral, r = rows_of(4, 150, 200, scale=0.3), differences.mean(dim=0)
    direction = cpca_direction(differences, neutral, r, components, 1.0)
    dense = reference.contrastive_vector(*(t.double().numpy() for t in (differences, neutral, r)), components, 1.0)
    np.testing.assert_allclose(direction.read[0].numpy(), dense, atol=1e-6)


def test_cpca_orders_eigenvalues_by_sign_and_not_by_size() -> None:
    """Ordered by size, as an SVD does, the strongly neutral direction comes first and is what would be erased."""
    e = torch.eye(12)
    concept, common = e[0], e[1]
    draw = torch.Generator().manual_seed(0)
    # The pairs differ in the concept and, since they are few, a little in something that all prompts have.
    differences = concept + 0.5 * common + 0.05 * torch.randn(10, 12, generator=draw)
    neutral = 6 * torch.randn(200, 1, generator=draw) * common + 0.05 * torch.randn(200, 12, generator=draw)
    r = differences.mean(dim=0)
    direction = cpca_direction(differences, neutral, r, components=1)
    assert cosine(direction.read, concept) > 0.99
    by_size = reference.contrastive_vector_by_size(*(t.double().numpy() for t in (differences, neutral, r)), 1)
    assert abs(float(by_size @ common.double().numpy())) > 0.99
    assert moved(neutral, direction) < 0.1
    assert moved(neutral, mean_direction(r)) > 0.3  # the raw refusal vector takes the common part along


def test_centring_the_differences_would_lose_the_refusal_vector() -> None:
    concept, differences = planted(5, 200, count=12, noise=0.2)
    r = differences.mean(dim=0)
    assert cosine(pca_direction(differences, r, components=1).read, concept) > 0.99
    centred = differences - r
    kept = torch.linalg.svd(centred, full_matrices=False)[2][:11]
    # With every one of its 11 components a centred second moment holds next to nothing of r.
    assert (kept @ r).norm() < 0.35 * r.norm()
    assert cosine(pca_direction(centred, r, components=1).read, concept) < 0.35


def test_pca_is_cpca_without_contrast() -> None:
    _, differences = planted(6, 30, noise=1.0)
    r = differences.mean(dim=0)
    for components in (1, 4, 100):
        one, other = (
            pca_direction(differences, r, components),
            cpca_direction(differences, torch.zeros(0, 30), r, components, 0.0),
        )
        torch.testing.assert_close(one.read, other.read, atol=1e-6, rtol=0)


def test_pca_of_higher_rank_is_orthonormal_and_starts_with_rank_one() -> None:
    _, differences = planted(6, 30, count=4, noise=1.0)
    r = differences.mean(dim=0)
    direction = pca_direction(differences, r, rank=3)
    torch.testing.assert_close(direction.read @ direction.read.T, torch.eye(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(direction.read[:1], pca_direction(differences, r).read)
    every = pca_direction(differences, r, rank=64)
    assert every.rank == 4  # as many as the rows span
    assert erase(differences, every).norm() < 1e-5 * differences.norm()


def test_what_cannot_be_found_by_components_is_an_error() -> None:
    differences, e = torch.eye(6)[:2], torch.eye(6)
    with pytest.raises(ConceptError, match="Nothing of the refusal vector lies in the 2 difference components"):
        pca_direction(differences, e[5])
    with pytest.raises(ConceptError, match="Nothing of the refusal vector lies in the 2 contrastive components"):
        cpca_direction(differences, torch.zeros(0, 6), e[5])
    neutral = torch.cat([10 * e, -10 * e])
    with pytest.raises(ConceptError, match=r"No component of 2 token differences exceeds .* times 5: lower `contrast`"):
        cpca_direction(differences, neutral, e[0], contrast=5.0)
    with pytest.raises(ConceptError, match="No component of 0 token differences"):
        cpca_direction(torch.zeros(0, 6), neutral, e[0])


@pytest.mark.parametrize(("features", "count"), [(300, 60), (40, 39), (40, 40), (40, 200)])
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("epsilon", [1e-3, 0.01, 1.0])
def test_thin_ridge_equals_the_dense_solve(features: int, count: int, rank: int, epsilon: float) -> None:
    _, differences = planted(1, features, noise=1.0)
    r, rows = differences.mean(dim=0), rows_of(2, count, features)
    direction = ridge_direction(r, rows, epsilon, rank=rank, difference_rows=differences)
    assert direction.rank == rank
    torch.testing.assert_close(direction.write[0], r)
    torch.testing.assert_close(direction.read @ direction.write.T, torch.eye(rank), atol=1e-4, rtol=0)
    dense = reference.ridge_reads(
        direction.write.double().numpy(), reference.second_moment(rows.double().numpy()), epsilon
    )
    np.testing.assert_allclose(direction.read.numpy(), dense, atol=1e-5 * np.abs(dense).max())


@pytest.mark.parametrize("rank", [1, 2])
def test_further_writes_are_solved_jointly_and_come_last(rank: int) -> None:
    _, differences = planted(1, 40, noise=1.0)
    r, rows, further = differences.mean(dim=0), rows_of(2, 60, 40), rows_of(3, 2, 40)
    direction = ridge_direction(r, rows, 0.05, rank=rank, difference_rows=differences, further=further)
    assert direction.rank == rank + 2
    torch.testing.assert_close(direction.write[0], r)
    torch.testing.assert_close(direction.write[-2:], further)
    dense = reference.ridge_reads(
        direction.write.double().numpy(), reference.second_moment(rows.double().numpy()), 0.05
    )
    np.testing.assert_allclose(direction.read.numpy(), dense, atol=1e-5 * np.abs(dense).max())


@pytest.mark.parametrize("features", [48, 300])
def test_ridge_removes_the_concept_and_leaves_neutral_rows(features: int) -> None:
    draw = torch.Generator().manual_seed(11)
    # Neutral prompts live in a third of the space, and the concept overlaps with what they have in common.
    basis = torch.randn(features // 3, features, generator=draw)
    neutral = torch.randn(200, features // 3, generator=draw) @ basis
    held_out = torch.randn(100, features // 3, generator=draw) @ basis
    concept = functional.normalize(basis[0], dim=0) + functional.normalize(torch.randn(features, generator=draw), dim=0)
    concept = concept * neutral.norm(dim=1).mean() / concept.norm()
    ridge, mean = ridge_direction(concept, neutral), mean_direction(concept)
    assert erase(concept[None], ridge).norm() < 1e-4 * concept.norm()
    assert erase(concept[None], mean).norm() < 1e-4 * concept.norm()
    # The concept goes, whatever neutral row it stands on ...
    shown = held_out + concept
    before = functional.cosine_similarity(shown - held_out, concept[None]).mean()
    after = (erase(shown, ridge) - held_out).norm(dim=1).mean() / concept.norm()
    assert before > 0.999 and after < 0.05
    # ... and rows without it stay, which the orthogonal edit with the same write does not manage.
    assert moved(neutral, ridge) < 0.02 and moved(held_out, ridge) < 0.05
    assert moved(neutral, mean) > 0.08 and moved(held_out, mean) > 3 * moved(held_out, ridge)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_landing_is_written_and_the_read_is_that_of_the_refusal_vector(rank: int) -> None:
    r, landing, differences = rows_of(1, 1, 40)[0], rows_of(2, 1, 40)[0], rows_of(3, 5, 40)
    rows = rows_of(4, 30, 40)
    plain = ridge_direction(r, rows, 0.05, rank=rank, difference_rows=differences)
    found = ridge_direction(r, rows, 0.05, rank=rank, difference_rows=differences, landing=landing)
    torch.testing.assert_close(found.write, torch.cat([landing[None], plain.write[1:]]))
    torch.testing.assert_close(found.read @ found.write.T, torch.eye(rank), atol=1e-5, rtol=0)
    # The same features are read: each read is a mixture of those without a landing.
    mixture = torch.linalg.lstsq(plain.read.T, found.read.T).solution
    torch.testing.assert_close(plain.read.T @ mixture, found.read.T, atol=1e-4, rtol=1e-4)
    moment = reference.second_moment(rows.double().numpy())
    dense = np.linalg.inv(moment + 0.05 * np.trace(moment) / 40 * np.eye(40)) @ plain.write.double().numpy().T
    expected = np.linalg.inv(dense.T @ found.write.double().numpy().T) @ dense.T
    np.testing.assert_allclose(found.read.numpy(), expected, rtol=1e-3, atol=1e-5)


def test_the_ridge_read_moves_the_rows_least_of_all_reads() -> None:
    """First-order optimality: no other read with a . r = 1 has a smaller a^T (S + e I) a."""
    _, differences = planted(1, 30)
    r, rows = differences.mean(dim=0).double(), rows_of(2, 50, 30).double()
    read = ridge_direction(r, rows, 0.05).read[0].double()
    moment = rows.T @ rows / len(rows)
    moment = moment + 0.05 * moment.trace() / 30 * torch.eye(30)
    best = read @ moment @ read
    for seed in range(20):
        step = 0.1 * read.norm() * torch.randn(30, generator=torch.Generator().manual_seed(seed)).double()
        step -= (step @ r) / (r @ r) * r
        assert (read + step) @ moment @ (read + step) > best


def test_more_epsilon_brings_the_ridge_read_to_the_mean_direction() -> None:
    _, differences = planted(1, 30)
    r, rows = differences.mean(dim=0), rows_of(2, 50, 30)
    towards = [cosine(ridge_direction(r, rows, epsilon).read, r) for epsilon in (1e-3, 0.1, 10.0, 1e4)]
    assert towards == sorted(towards) and towards[0] < 0.9 and towards[-1] > 0.9999


def test_padding_does_not_drown_the_other_rows() -> None:
    _, differences = planted(1, 64)
    r, rows = differences.mean(dim=0), rows_of(2, 40, 64)
    plain = ridge_direction(r, rows)
    padded = torch.cat([rows, rows[:1].expand(500, 64)])
    torch.testing.assert_close(ridge_direction(r, padded).read, plain.read)
    weighted = ridge_direction(r, padded, weights=torch.ones(540))
    assert moved(rows[1:], weighted) > moved(rows[1:], plain)  # what would happen, and can be asked for
    expected = reference.ridge_reads(
        r[None].double().numpy(), reference.second_moment(padded.double().numpy(), weights=np.ones(540)), 0.001
    )
    np.testing.assert_allclose(weighted.read.numpy(), expected, atol=1e-5 * np.abs(expected).max())
    torch.testing.assert_close(
        leace_direction(torch.cat([rows + r, (rows[:1] + r).expand(200, 64)]), padded).read,
        leace_direction(rows + r, rows).read,
    )


def test_uce_with_one_preserved_word_list_is_a_ridge() -> None:
    """One edited word c with guide g and preserved words P: W' = W - W (c - g) c^T M^-1, M = lam I + c c^T + P^T P."""
    draw = torch.Generator().manual_seed(2)
    features = 20
    c, g = torch.randn(2, features, generator=draw).double()
    preserved, weight = (
        torch.randn(8, features, generator=draw).double(),
        torch.randn(5, features, generator=draw).double(),
    )
    lam = 0.5
    moment = preserved.T @ preserved
    M = lam * torch.eye(features) + torch.outer(c, c) + moment
    target = lam * weight + torch.outer(weight @ g, c) + weight @ moment
    closed = target @ torch.linalg.inv(M)  # UCE's closed form, its equation 7
    read = torch.linalg.solve(M, c)
    torch.testing.assert_close(closed, weight - torch.outer(weight @ (c - g), read))
    # The read is, up to its scale, the ridge read of the word itself over the preserved words.
    epsilon = lam / float(moment.trace()) * features
    ridge = ridge_direction(c, preserved, epsilon, weights=torch.ones(8)).read[0].double()
    assert cosine(ridge, read) > 0.999999


@pytest.mark.parametrize(("features", "count"), [(30, 80), (30, 20), (60, 60)])
def test_leace_equals_the_dense_eraser(features: int, count: int) -> None:
    concept, _ = planted(1, features)
    safe, unsafe = rows_of(2, count, features), rows_of(3, count // 2, features) + concept
    direction = leace_direction(unsafe, safe)
    eraser = reference.leace_eraser(unsafe.double().numpy(), safe.double().numpy())
    thin = np.eye(features) - direction.write.double().numpy().T @ direction.read.double().numpy()
    np.testing.assert_allclose(thin, eraser, atol=1e-4 * np.abs(eraser).max())
    before = (unsafe.mean(dim=0) - safe.mean(dim=0)).norm()
    after = (erase(unsafe, direction).mean(dim=0) - erase(safe, direction).mean(dim=0)).norm()
    assert before > 1 and after < 1e-4 * before  # the class means coincide: no linear reader tells the sides apart
    with pytest.raises(ConceptError, match="same on average"):
        leace_direction(safe, safe)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 0.0}, "got epsilon 0.0, rank 1 and no difference rows"),
        ({"rank": 0}, "rank 0"),
        ({"rank": 2}, "rank 2 and no difference rows"),
    ],
)
def test_bad_ridge_settings_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ridge_direction(torch.ones(4), torch.eye(4), **changes)  # type: ignore[arg-type]


def test_a_ridge_without_rows_is_refused() -> None:
    for rows in (torch.zeros(3, 4), torch.zeros(0, 4)):
        with pytest.raises(ConceptError, match="not all zero, but got . distinct rows: .*neutral prompts"):
            ridge_direction(torch.ones(4), rows)


def test_ridge_of_higher_rank_than_the_differences_returns_what_there_is() -> None:
    r = torch.ones(8)
    same_everywhere = r.repeat(5, 1)
    assert ridge_direction(r, torch.eye(8), rank=4, difference_rows=same_everywhere).rank == 1
    assert pca_direction(same_everywhere, r, rank=4).rank == 1


def pairs_with_shares(shares: list[float], features: int = 40) -> list[tuple[Tensor, Tensor]]:
    """Pairs that hold a planted concept to a different extent, each on its own safe row."""
    concept, _ = planted(2, features)
    rows = rows_of(9, len(shares), features)
    return [(row + share * concept, row) for share, row in zip(shares, rows, strict=True)]


def differences_of(pairs: list[tuple[Tensor, Tensor]]) -> list[list[Tensor]]:
    return [[(concept - safe)[None]] for concept, safe in pairs]


def by(
    method: Callable[[Tensor], Direction], pairs: list[tuple[Tensor, Tensor]]
) -> Callable[[tuple[int, ...]], Direction]:
    return lambda kept: method(torch.stack([pairs[i][0] - pairs[i][1] for i in kept]).mean(dim=0))


def whole(r: Tensor) -> Direction:
    """The mean direction in units of the concept: it writes all of r where it reads 1."""
    return Direction(r[None] / (r @ r), r[None])


@pytest.mark.parametrize("method", [whole, lambda r: ridge_direction(r, rows_of(4, 30, 40))])
def test_the_calibrated_strength_covers_a_weak_pair(method: Callable[[Tensor], Direction]) -> None:
    equal, weak = pairs_with_shares([1.0] * 5), pairs_with_shares([1.0, 1.0, 1.0, 1.0, 0.7])
    assert calibrate_strength(differences_of(equal), by(method, equal)) == pytest.approx(1, abs=1e-4)
    strength = calibrate_strength(differences_of(weak), by(method, weak))
    # 1 / 0.7 is wanted by the worst of five pairs; the 0.9 quantile lies between it and the next.
    assert 1.1 < strength < 1 / 0.7
    doubled = [(2 * concept, 2 * safe) for concept, safe in weak]
    assert calibrate_strength(differences_of(doubled), by(method, doubled)) == pytest.approx(strength, abs=1e-3)


def test_the_calibrated_strength_stays_from_one_to_two() -> None:
    unreadable = pairs_with_shares([1.0, -0.2, 1.0, 0.1])
    assert calibrate_strength(differences_of(unreadable), by(whole, unreadable)) == 2.0
    strong = pairs_with_shares([2.0, 1.0])
    assert 1.0 <= calibrate_strength(differences_of(strong), by(whole, strong)) <= 2.0
    assert calibrate_strength(differences_of(strong[:1]), by(whole, strong[:1])) == 1.0


def test_a_token_beside_the_concepts_own_asks_for_no_more_strength() -> None:
    pairs = pairs_with_shares([1.0, 1.0, 1.0, 0.8])
    alone = differences_of(pairs)
    beside = [[torch.cat([rows, 0.5 * rows]) for rows in steps] for steps in alone]
    method = by(whole, pairs)
    strength = calibrate_strength(alone, method)
    assert strength > 1.05
    assert calibrate_strength(beside, method) == pytest.approx(strength)


def test_the_share_of_a_pair_is_the_mean_over_its_steps() -> None:
    pairs = pairs_with_shares([1.0, 1.0])
    steps = [[0.6 * rows, rows] for (rows,) in differences_of(pairs)]
    assert calibrate_strength(steps, by(whole, pairs)) == pytest.approx(1 / 0.8, abs=1e-4)


def test_calibration_leaves_each_pair_out_of_its_own_direction() -> None:
    pairs, asked = pairs_with_shares([1.0, 0.9, 0.8]), []

    def build(kept: tuple[int, ...]) -> Direction:
        asked.append(kept)
        return by(whole, pairs)(kept)

    calibrate_strength(differences_of(pairs), build)
    assert asked == [(1, 2), (0, 2), (0, 1)]


def test_rows_are_left_as_they_are() -> None:
    _, differences = planted(1, 30)
    neutral, r = rows_of(2, 40, 30), differences.mean(dim=0)
    before = [tensor.clone() for tensor in (differences, neutral, r)]
    for method in ("mean", "pca", "cpca", "ridge", "leace"):
        build(method)
    cpca_direction(differences, neutral, r)
    pca_direction(differences, r, rank=2)
    ridge_direction(r, neutral, rank=2, difference_rows=differences)
    leace_direction(differences, neutral)
    assert all(torch.equal(*both) for both in zip(before, (differences, neutral, r), strict=True))
