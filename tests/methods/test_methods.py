"""Which rows a method takes, and what each weighs: what a guided generation reads most is protected most."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from unlearning_adapters.config import METHODS as ENTRIES
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.methods.registry import METHODS, find_direction, find_strength
from unlearning_adapters.methods.ridge import protected_rows
from unlearning_adapters.methods.rows import GroupRows, NeutralRows, Sides
from unlearning_adapters.methods.strength import pair_shares

FEATURES = 24


def rows_of(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, FEATURES, generator=torch.Generator().manual_seed(seed))


def group(neutral: tuple[Tensor, ...], guidance: tuple[Tensor, ...] = (), kind: str = "text") -> GroupRows:
    """Five pairs of four tokens, of which the first holds the concept."""
    safe = [rows_of(seed, 4) for seed in range(5)]
    unsafe = [rows.clone() for rows in safe]
    for rows in unsafe:
        rows[0] += 6 * rows_of(99, 1)[0]
    return GroupRows.of_sides(unsafe, safe, NeutralRows(neutral, guidance), kind)


def read_of(rows: GroupRows, on: Tensor) -> float:
    direction = find_direction(rows, BuildConfig(landing="mean"), torch.Generator())
    return float((on @ direction.read.T).norm())


def test_a_row_weighs_as_many_prompts_as_read_it() -> None:
    padding = rows_of(7, 1)
    neutral = tuple(torch.cat([rows_of(10 + index, 5), padding]) for index in range(8))
    rows, weights = protected_rows(group(neutral))
    found = weights[[torch.equal(row, padding[0]) for row in rows]]
    assert found.tolist() == [8] and weights.sum() == 8 * 6 + 5 * 4
    # The moment is that of all rows, where equal ones add up.
    whole = torch.cat([*neutral, *group(neutral).safe]).double()
    assert len(whole) == 8 * 6 + 5 * 4 > len(rows)
    torch.testing.assert_close(torch.einsum("n,ni,nj->ij", weights, rows.double(), rows.double()), whole.T @ whole)


def test_padding_that_all_prompts_read_is_moved_less_than_if_it_counted_once() -> None:
    padding = rows_of(7, 1)
    words = tuple(rows_of(10 + index, 5) for index in range(8))
    shared = read_of(group(tuple(torch.cat([rows, padding]) for rows in words)), padding)
    once = read_of(group((torch.cat([words[0], padding]), *words[1:])), padding)
    assert 0 < shared < once / 2


def test_what_guidance_steers_away_from_weighs_as_much_as_all_else() -> None:
    neutral, guidance = tuple(rows_of(10 + index, 5) for index in range(8)), (rows_of(50, 3), rows_of(51, 2))
    rows, weights = protected_rows(group(neutral, guidance))
    assert torch.equal(rows[-5:], torch.cat(guidance))
    assert float(weights[-5:].sum()) == pytest.approx(float(weights[:-5].sum()))
    assert len(set(weights[-5:].tolist())) == 1
    negative = guidance[0][:1]
    assert read_of(group(neutral, (negative,)), negative) < read_of(group((*neutral, negative)), negative) / 4


@pytest.mark.parametrize("kind", ["image", "hidden"])
def test_of_what_is_not_text_equal_rows_count_once(kind: str) -> None:
    neutral = tuple(rows_of(10 + index, 5) for index in range(3))
    rows, weights = protected_rows(group((*neutral, neutral[0]), (rows_of(50, 3),), kind))
    assert len(rows) == 3 * 5 + 3 + 5 * 4 and weights.unique().tolist() == [1]


@pytest.mark.parametrize("kind", ["text", "hidden"])
def test_without_neutral_prompts_the_safe_sides_are_kept(kind: str) -> None:
    rows, weights = protected_rows(group((rows_of(0, 4)[:0],), kind=kind))
    assert len(rows) == len(weights) == 5 * 4


def test_some_of_the_pairs_keep_what_was_computed_for_all() -> None:
    rows = group((rows_of(10, 5),))
    concepts, counted = [sides.concept for sides in rows.sides], rows.neutral.counted
    some = rows.only([3, 1])
    assert [sides.concept for sides in some.sides] == [concepts[3], concepts[1]]
    assert some.neutral.counted is counted
    alone = GroupRows.of_sides([rows.unsafe[3], rows.unsafe[1]], [rows.safe[3], rows.safe[1]], rows.neutral)
    for method in ("ridge", "cpca", "uce"):
        first, second = (
            find_direction(group_rows, BuildConfig(method), torch.Generator()) for group_rows in (some, alone)
        )
        assert torch.equal(first.read, second.read) and torch.equal(first.write, second.write)
        assert not torch.equal(first.read, find_direction(rows, BuildConfig(method), torch.Generator()).read)


def test_rivals_keep_what_guidance_steers_away_from_as_well() -> None:
    neutral, guidance = tuple(rows_of(10 + index, 5) for index in range(4)), (rows_of(50, 2),)
    for method in ("uce", "cpca", "cure"):
        apart, together = (
            find_direction(rows, BuildConfig(method=method), torch.Generator())
            for rows in (group(neutral, guidance), group((*neutral, *guidance)))
        )
        assert torch.equal(apart.read, together.read)


def test_what_a_contextual_encoder_leaves_beside_a_word_does_not_raise_the_strength_of_text() -> None:
    rows = group(tuple(rows_of(10 + index, 40) for index in range(8)))
    # In two pairs the token beside the concept's own holds seven tenths of it, enough to be counted with it.
    beside = [side.clone() for side in rows.unsafe]
    for pair in (2, 4):
        beside[pair][1] += 0.7 * 6 * rows_of(99, 1)[0]
    blurred = GroupRows.of_sides(beside, rows.safe, rows.neutral)
    assert [len(sides.concept.unsafe_index) for sides in blurred.sides] == [1, 1, 2, 1, 2]

    def strength(group_rows: GroupRows) -> float:
        return find_strength(group_rows, BuildConfig(landing="mean"), torch.Generator())

    assert strength(blurred) <= strength(rows)
    assert strength(replace(blurred, kind="hidden")) > strength(replace(rows, kind="hidden")) + 0.05


@pytest.mark.parametrize("steps", [1, 2])
def test_a_row_of_its_own_takes_what_one_pair_shows_and_leaves_the_others_as_they_were(steps: int) -> None:
    """Five pairs at one or two steps, of which the fourth shows another vector than the others."""
    one, other = rows_of(99, 1)[0], rows_of(98, 1)[0]
    safe = [2 * rows_of(seed, 4) for seed in range(5 * steps)]
    unsafe = [rows.clone() for rows in safe]
    for index, rows in enumerate(unsafe):
        rows[0] += other if index // steps == 3 else one
    neutral = tuple(rows_of(20 + seed, 6) for seed in range(30))
    sides = [Sides(*both) for both in zip(unsafe, safe, strict=True)]
    pairs = tuple(tuple(sides[first : first + steps]) for first in range(0, len(sides), steps))
    rows = GroupRows(pairs, NeutralRows(neutral))
    plain = find_direction(rows, BuildConfig(), torch.Generator())
    find = METHODS["ridge"].find_with_extra_rows
    assert find is not None
    direction = find(rows, BuildConfig(), (3,))
    torch.testing.assert_close(direction.write[1], other, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(direction.read @ direction.write.T, torch.eye(2), atol=1e-4, rtol=0)
    parts, before = pair_shares(rows, direction), pair_shares(rows, plain)
    assert before[3] < 0.75 < min(before[:3] + before[4:])
    assert parts == pytest.approx([1.0] * 5, abs=0.05)


def test_every_method_has_a_record_and_its_settings() -> None:
    settings = {name for entry in ENTRIES.values() for name in entry.settings}
    assert list(METHODS) == list(ENTRIES)
    assert settings <= {item.name for item in fields(BuildConfig)}
    for name, method in METHODS.items():
        assert set(method.searched or ()) <= set(ENTRIES[name].settings)
