import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unlearning_adapters.pipelines.hooks import is_finite, rows_at, some_values
from unlearning_adapters.pipelines.spacing import evenly_spaced

LARGE = [2**24 - 1, 2**24, 2**24 + 1, 2**24 + 4096, 2**31 - 1, 2**31, 2**31 + 1, 2**53 + 1]


@given(st.integers(0, 2**60), st.integers(0, 200))
def test_places_ascend_from_the_first_to_the_last(length, count):
    places = evenly_spaced(length, count)
    assert len(places) == min(length, count)
    assert all(0 <= one < other < length for one, other in zip(places, places[1:], strict=False))
    if len(places) > 1:
        assert (places[0], places[-1]) == (0, length - 1)
        steps = {other - one for one, other in zip(places, places[1:], strict=False)}
        assert max(steps) - min(steps) <= 1


@given(st.integers(1, 2**20), st.integers(2, 100))
def test_small_lengths_give_what_rounding_in_double_precision_gives(length, count):
    count = min(length, count)
    expected = np.linspace(0, length - 1, count).round().astype(int).tolist() if count > 1 else [0]
    differs = [one - other for one, other in zip(evenly_spaced(length, count), expected, strict=True)]
    # Where a place lies exactly in the middle, double precision may miss the half.
    assert all(abs(value) <= 1 for value in differs)


@pytest.mark.parametrize("length", LARGE)
def test_no_place_lies_beyond_the_end_of_a_real_video(length):
    assert max(evenly_spaced(length, 4096)) == length - 1


@pytest.mark.parametrize("default", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("length", LARGE[:-1])
def test_values_of_an_activation_of_any_size_under_any_default(length, default):
    activation = torch.arange(2).to(torch.bfloat16).expand(-(-length // 2), 2)  # of two numbers in memory
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        with torch.device("meta"):
            values = some_values(activation)
            rows = rows_at(activation, evenly_spaced(len(activation), 7))
    finally:
        torch.set_default_dtype(before)
    assert values.shape == (4096,) and values.dtype == torch.float32
    assert (values[0], values[-1]) == (0, 1)
    assert torch.equal(rows, torch.tensor([[0, 1]] * 7, dtype=torch.bfloat16))


def test_values_are_those_of_the_flat_tensor_however_it_lies():
    tensor = torch.randn(5, 7, 300).transpose(0, 1)
    places = list(evenly_spaced(tensor.numel(), 4096))
    assert torch.equal(some_values(tensor), tensor.flatten()[places])
    assert torch.equal(rows_at(tensor, [0, 3, 34]), tensor.flatten(0, -2)[[0, 3, 34]])
    assert some_values(torch.empty(0, 3)).shape == (0,)
    assert torch.equal(some_values(torch.tensor(2.0)), torch.tensor([2.0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_is_what_is_finite_and_not_what_sums_to_less_than_the_largest_number(dtype):
    largest = torch.full((3, 3), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(largest)
    for wrong in (float("nan"), float("inf"), -float("inf")):
        assert not is_finite(torch.cat([largest, torch.full((1, 3), wrong, dtype=dtype)]))
