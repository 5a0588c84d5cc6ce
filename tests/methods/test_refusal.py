"""Which tokens carry the concept, and the mean difference there, on prompts with a planted concept."""

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from unlearning_adapters.errors import ConceptError
from unlearning_adapters.methods.refusal import (
    AT_ONCE,
    agreeing_pairs,
    concept_rows,
    counted_rows,
    distinct_rows,
    exact_rows,
    landing_vector,
    pooled_refusal_vector,
    refusal_vector,
    ridge_solve,
    token_differences,
)

FEATURES = 32
WORDS = "a the red blue square circle moves on grey ground very slowly . </s>".split()
TABLE = {
    word: row
    for word, row in zip(
        [*WORDS, "<pad>"],
        torch.randn(len(WORDS) + 1, FEATURES, generator=torch.Generator().manual_seed(0)),
        strict=True,
    )
}


def encode(text: str, length: int = 0, context: float = 0.15) -> Tensor:
    """Rows of a contextual encoder: a vector per word, moved a little by all other words and by its place; padding."""
    words = [*text.split(), "</s>"]
    rows = torch.stack([TABLE[word] for word in words])
    place = torch.sin(torch.arange(len(words))[:, None] * torch.linspace(0.1, 1, FEATURES))
    rows = rows + context * (rows.mean(dim=0) + place)
    padding = TABLE["<pad>"].expand(max(0, length - len(words)), FEATURES)
    return torch.cat([rows, padding])


def cosine(one: Tensor, other: Tensor) -> float:
    return float(functional.cosine_similarity(one, other, dim=0))


@pytest.mark.parametrize("length", [0, 64])
@pytest.mark.parametrize("context", [0.0, 0.15, 0.3])
def test_a_replaced_word_is_found(length: int, context: float) -> None:
    unsafe = encode("a red square moves on the grey ground", length, context)
    safe = encode("a blue square moves on the grey ground", length, context)
    found = concept_rows(unsafe, safe)
    assert found.unsafe_index.tolist() == [1] and found.safe_index.tolist() == [1]
    assert torch.equal(found.concept, unsafe[1]) and torch.equal(found.counterpart, safe[1])


def test_tokens_that_only_moved_do_not_carry_the_concept() -> None:
    unsafe = encode("a red square moves on the grey ground", 20)
    safe = encode("a very slowly blue square moves on the grey ground", 40)  # words inserted, another length
    found = concept_rows(unsafe, safe)
    assert found.unsafe_index.tolist() == [1]
    assert 3 in found.safe_index.tolist()


def test_a_deleted_word_is_replaced_by_what_is_around_it() -> None:
    unsafe, safe = encode("a red square moves", 16), encode("a square moves", 16)
    found = concept_rows(unsafe, safe)
    assert found.unsafe_index.tolist() == [1]
    assert found.safe_index.tolist() == [0, 1]  # "a" and "square"
    torch.testing.assert_close(found.counterpart, safe[:2].mean(dim=0))


def test_a_deleted_first_and_last_word_have_one_neighbour() -> None:
    found = concept_rows(encode("red square moves"), encode("square moves"))
    assert (found.unsafe_index.tolist(), found.safe_index.tolist()) == ([0], [0])
    unsafe = torch.stack([TABLE["a"], TABLE["square"], TABLE["red"]])
    found = concept_rows(unsafe, unsafe[:2])
    assert (found.unsafe_index.tolist(), found.safe_index.tolist()) == ([2], [1])


def test_where_every_token_stands_out_all_others_are_the_counterpart() -> None:
    found = concept_rows(TABLE["red"][None], torch.stack([TABLE["red"] * 0.4, TABLE["red"] * 0.41]))
    assert found.unsafe_index.tolist() == [0] and found.safe_index.tolist() == [0, 1]


def test_a_concept_of_several_tokens_is_their_mean_and_repetitions_count_once() -> None:
    rows = [TABLE[word] for word in ("a", "red", "square")]
    unsafe = torch.stack([rows[0], rows[1], rows[1], rows[2], rows[1]])
    found = concept_rows(unsafe, TABLE["a"][None])
    assert found.unsafe_index.tolist() == [1, 2, 3, 4]
    torch.testing.assert_close(found.concept, (rows[1] + rows[2]) / 2)


@given(st.integers(0, 1000), st.integers(0, 200), st.integers(0, 200))
@settings(max_examples=25, deadline=None)
def test_padding_changes_nothing(seed: int, unsafe_padding: int, safe_padding: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    pad = torch.randn(1, FEATURES, generator=draw)
    unsafe = torch.cat([torch.randn(6, FEATURES, generator=draw), pad])
    safe = torch.cat([unsafe[:2], torch.randn(1, FEATURES, generator=draw), unsafe[3:]])
    plain = concept_rows(unsafe, safe)
    padded = concept_rows(
        torch.cat([unsafe, pad.expand(unsafe_padding, FEATURES)]), torch.cat([safe, pad.expand(safe_padding, FEATURES)])
    )
    assert plain.unsafe_index.tolist() == padded.unsafe_index.tolist() == [2]
    assert torch.equal(plain.concept, padded.concept) and torch.equal(plain.counterpart, padded.counterpart)


@given(st.integers(0, 1000), st.integers(2, 9), st.integers(2, 9))
@settings(max_examples=25, deadline=None)
def test_the_rows_that_stand_out_are_those_of_the_reference(seed: int, unsafe_count: int, safe_count: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    unsafe, safe = torch.randn(unsafe_count, 5, generator=draw), torch.randn(safe_count, 5, generator=draw)
    far = reference.nearest_distances(unsafe.double().numpy(), safe.double().numpy())
    assert concept_rows(unsafe, safe).unsafe_index.tolist() == np.flatnonzero(far >= far.max() / 2).tolist()


def test_equal_rows_of_great_size_are_told_from_a_concept() -> None:
    """In float32 the distance of equal rows of size 3000 comes out above that of the concept's rows."""
    sink = 3000 * torch.nn.functional.normalize(torch.randn(1, FEATURES, generator=torch.Generator().manual_seed(5)))
    unsafe, safe = torch.cat([sink, encode("a red square")]), torch.cat([sink, encode("a blue square")])
    assert concept_rows(unsafe, safe).unsafe_index.tolist() == [2]


def test_identical_sides_are_refused() -> None:
    rows = encode("a red square", 32)
    for other in (rows, rows.flip(0), rows * (1 + 1e-7)):
        with pytest.raises(ConceptError, match=r"both sides of a pair are the same .*check that the pairs differ"):
            concept_rows(rows, other)


def test_an_unsafe_side_that_lacks_nothing_is_refused() -> None:
    with pytest.raises(ConceptError, match="no token that the safe side lacks .*name the concept on the unsafe side"):
        concept_rows(encode("a square", context=0), encode("a blue square", context=0))


def test_token_differences_hold_the_concept_and_leave_out_what_is_the_same() -> None:
    unsafe, safe = encode("a red square", 32, context=0), encode("a blue square", 32, context=0)
    differences = token_differences(unsafe, safe)
    torch.testing.assert_close(differences, (TABLE["red"] - TABLE["blue"])[None])
    contextual = token_differences(encode("a red square", 32), encode("a blue square", 32))
    # This encoder moves "a", "square" and "</s>" alike, so they are one row; padding is the same on both sides.
    assert contextual.shape == (2, FEATURES)
    assert contextual.norm(dim=1).argmax() == 1


def test_the_refusal_vector_recovers_a_planted_direction() -> None:
    planted = torch.randn(FEATURES, generator=torch.Generator().manual_seed(9))
    pairs = []
    for seed in range(5):
        safe = torch.randn(8, FEATURES, generator=torch.Generator().manual_seed(seed))
        noise = 0.1 * torch.randn(8, FEATURES, generator=torch.Generator().manual_seed(100 + seed))
        unsafe = safe + noise
        unsafe[3] += planted
        found = concept_rows(unsafe, safe)
        pairs.append((found.concept, found.counterpart))
    r = refusal_vector(pairs)
    assert r.dtype == torch.float32 and r.shape == (FEATURES,)
    assert cosine(r, planted) > 0.99
    assert 0.95 < float(r.norm() / planted.norm()) < 1.05


def test_pooled_and_token_level_refusal_vectors_differ_as_documented() -> None:
    texts = [("a red square", "a square"), ("the red circle moves", "the circle moves"), ("a red ground", "a ground")]
    sides = [(encode(unsafe), encode(safe)) for unsafe, safe in texts]
    pooled = pooled_refusal_vector([unsafe for unsafe, _ in sides], [safe for _, safe in sides])
    expected = torch.stack([unsafe.mean(dim=0) - safe.mean(dim=0) for unsafe, safe in sides]).mean(dim=0)
    torch.testing.assert_close(pooled, expected)
    assert torch.equal(pooled, refusal_vector(sides))
    found = [concept_rows(*side) for side in sides]
    at_tokens = refusal_vector([(rows.concept, rows.counterpart) for rows in found])
    assert cosine(at_tokens, TABLE["red"]) > 0.8
    assert cosine(pooled, at_tokens) < 0.99 and pooled.norm() < at_tokens.norm() / 2


def test_pairs_that_do_not_differ_on_average_have_no_refusal_vector() -> None:
    rows = encode("a red square")
    with pytest.raises(ConceptError, match="same on average .*check that the pairs differ"):
        refusal_vector([(rows, rows)])
    with pytest.raises(ConceptError, match="same on average"):
        refusal_vector([(rows[0], rows[1]), (rows[1], rows[0])])
    with pytest.raises(ConceptError, match="at least one pair .*got none"):
        refusal_vector([])


def test_distinct_rows_keep_the_first_of_each_in_order() -> None:
    rows = torch.randn(5, 2000, generator=torch.Generator().manual_seed(3)).double()
    pads = rows[1:2] * (1 + 3e-7 * torch.randn(40, 2000, generator=torch.Generator().manual_seed(4)))
    kept = distinct_rows(torch.cat([rows[:3], pads, rows[[0]], rows[3:]]))
    assert torch.equal(kept[:3], rows[:3]) and torch.equal(kept[-2:], rows[3:])
    assert len(kept) <= 7  # rounding may split a few copies off, never most
    assert len(distinct_rows(torch.zeros(9, 4))) == 1
    assert len(distinct_rows(torch.zeros(0, 4))) == 0
    close = rows[:1].repeat(2, 1)
    close[1] *= 1.01
    assert len(distinct_rows(close)) == 2


def test_counted_rows_say_how_often_each_of_them_came() -> None:
    first, second = torch.randn(2, FEATURES, generator=torch.Generator().manual_seed(0))
    rows, counts = counted_rows(torch.stack([first, second, first, first]))
    assert torch.equal(rows, torch.stack([first, second])) and counts.tolist() == [3, 1]
    assert counted_rows(torch.zeros(4, FEATURES))[1].tolist() == [4]
    assert [len(part) for part in counted_rows(torch.zeros(0, FEATURES))] == [0, 0]


def test_rows_far_larger_than_most_are_told_apart() -> None:
    """A cell's number is beyond an integer of 32 bits: all such rows would fall into one cell."""
    small = 1e-6 * torch.eye(FEATURES)
    large = 1e4 * torch.randn(3, FEATURES, generator=torch.Generator().manual_seed(6))
    rows, counts = counted_rows(torch.cat([small, large, -large, large]))
    assert torch.equal(rows, torch.cat([small, large, -large]))
    assert counts.tolist() == [1] * FEATURES + [2, 2, 2, 1, 1, 1]


def test_the_sign_of_a_zero_makes_no_row_another() -> None:
    row = torch.tensor([1.0, 0.0, 1e-9])
    assert counted_rows(torch.stack([row, row * torch.tensor([1.0, -1.0, -1.0])]))[1].tolist() == [2]


def test_rows_of_more_than_two_to_the_24_numbers_are_counted_in_parts() -> None:
    """The rows are two rows that are repeated, which takes no memory (2^31 numbers were counted so by hand)."""
    count, features = 2**12 + 8, 2**11
    two = torch.randn(2, 1, features, generator=torch.Generator().manual_seed(7))
    rows = two.expand(2, count, features).reshape(-1, features)
    assert rows.numel() > AT_ONCE == 2**24
    kept, counts = counted_rows(rows)
    assert torch.equal(kept, two[:, 0]) and counts.tolist() == [count, count]


def test_exact_rows_are_float64_without_a_gradient() -> None:
    rows = exact_rows(torch.ones(2, 2, dtype=torch.bfloat16, requires_grad=True))
    assert rows.dtype == torch.float64 and not rows.requires_grad


@pytest.mark.parametrize(("count", "features"), [(7, 40), (39, 40), (40, 40), (90, 40)])
@pytest.mark.parametrize("ridge", [1e-3, 10.0])
def test_the_ridge_solve_is_the_dense_one_however_many_rows_there_are(count: int, features: int, ridge: float) -> None:
    draw = torch.Generator().manual_seed(count)
    rows, targets = (torch.randn(number, features, generator=draw, dtype=torch.float64) for number in (count, 3))
    moment = sum(np.outer(row, row) for row in rows.numpy())
    dense = targets.numpy() @ np.linalg.inv(moment + ridge * np.eye(features))
    np.testing.assert_allclose(ridge_solve(rows, targets, ridge).numpy(), dense, atol=1e-9 * np.abs(dense).max())


def test_most_pairs_decide_where_the_concept_lands() -> None:
    red, blue, green, grey = (TABLE[word] for word in ("red", "blue", "square", "grey"))
    nearly = 0.05 * torch.randn(3, FEATURES, generator=torch.Generator().manual_seed(1))
    sides = [green, blue + nearly[0], grey, blue + nearly[1], blue + nearly[2]]
    assert agreeing_pairs(sides) == (1, 3, 4)
    assert agreeing_pairs([side + red for side in sides]) == (1, 3, 4)  # wherever the origin is
    assert agreeing_pairs([10 * side for side in sides]) == (1, 3, 4)
    assert agreeing_pairs([blue, blue, blue]) == (0, 1, 2)
    assert agreeing_pairs([blue]) == (0,)


@given(seed=st.integers(0, 10_000), count=st.integers(2, 7))
@settings(max_examples=40, deadline=None)
def test_agreeing_pairs_are_near_one_of_them_and_none_has_more_near_it(seed: int, count: int) -> None:
    rows = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    distances = torch.cdist(rows.double(), rows.double())
    near = [set((line <= distances.max() / 2).nonzero().flatten().tolist()) for line in distances]
    found = set(agreeing_pairs(list(rows)))
    assert found in near
    assert len(found) == max(map(len, near))


def test_the_pairs_that_agree_have_most_of_the_weight() -> None:
    blue, green, grey = (TABLE[word] for word in ("blue", "square", "grey"))
    torch.testing.assert_close(landing_vector([green, blue, grey, blue, blue]), 0.85 * blue + 0.075 * (green + grey))
    torch.testing.assert_close(landing_vector([green, *[blue] * 9]), 0.9 * blue + 0.1 * green)
    assert torch.equal(landing_vector([blue, blue]), blue)
