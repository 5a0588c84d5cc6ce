"""Rows of their own for pairs that the others do not know: what one takes at any strength of the edit."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearning_adapters.building.outlier_pairs import _written_once
from unlearning_adapters.methods.ridge import ridge_direction


@settings(max_examples=25, deadline=None)
@given(strength=st.floats(1.0, 2.0), own=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_further_row_takes_what_it_reads_once_at_any_strength(strength: float, own: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    r, further, rows = (torch.randn(*shape, 24, generator=generator) for shape in ((), (own,), (40,)))
    joint = ridge_direction(r, rows, 0.05, further=further)
    direction = _written_once(joint, strength)
    assert torch.equal(direction.read, joint.read) and torch.equal(direction.write[0], joint.write[0])
    torch.testing.assert_close(direction.read @ direction.write.T, torch.eye(1 + own), atol=1e-3, rtol=0)

    read, write = direction.read.double(), direction.write.double()
    edited = further.double() - strength * (further.double() @ read.T) @ write
    # What is left is no part of what was shown: the shortest vector that the row reads, by how far it goes past 0.
    past = strength - 1
    torch.testing.assert_close(edited @ read.T[:, 1:], -past * torch.eye(own).double(), atol=2e-3, rtol=0)
    shortest = read.T @ torch.linalg.inv(read @ read.T)
    torch.testing.assert_close(edited, -past * shortest.T[1:], atol=5e-3, rtol=0)
    # The first row works as ever.
    torch.testing.assert_close(
        r - strength * (r @ direction.read.T) @ direction.write, (1 - strength) * r, atol=2e-3, rtol=0
    )


def test_at_strength_1_nothing_changes() -> None:
    generator = torch.Generator().manual_seed(0)
    joint = ridge_direction(
        torch.randn(24, generator=generator),
        torch.randn(40, 24, generator=generator),
        further=torch.randn(2, 24, generator=generator),
    )
    torch.testing.assert_close(_written_once(joint, 1.0).write, joint.write)
