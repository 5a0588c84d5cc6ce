import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from planted import bits, direction
from unlearning_adapters.errors import FuseError
from unlearning_adapters.runtime.fusing import blocks, compact_record
from unlearning_adapters.runtime.fusing.compact_record import CompactRecord
from unlearning_adapters.runtime.fusing.copy_memory import CopyMemory
from unlearning_adapters.runtime.fusing.fuse import Fused, fuse_edit, fuse_weights, is_whole, new_records, unfuse_edit
from unlearning_adapters.runtime.fusing.weight_copy import WeightCopy
from unlearning_adapters.runtime.joint.joint_edit import StackedEdit, stack_directions

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
RECORDS = {"compact": CompactRecord, "copy": WeightCopy}
HALF_ULP = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float64: 2**-53}


def layer(out_features=24, in_features=40, dtype=torch.float32, seed=0) -> nn.Linear:
    linear = nn.Linear(in_features, out_features, dtype=dtype)
    maker = torch.Generator().manual_seed(seed)
    linear.weight.data = (torch.randn(out_features, in_features, generator=maker) * 0.1).to(dtype)
    return linear


def edit(in_features=40, rank=1, strengths=(1.0,), seed=0) -> StackedEdit:
    directions = [direction(in_features, rank, seed=seed + number) for number in range(len(strengths))]
    return stack_directions(directions, strengths)


def exact(weight: torch.Tensor, joint: StackedEdit) -> torch.Tensor:
    return weight.double() - (weight.double() @ joint.mix.double()) @ joint.read.double()


def fuse(linear, joint, record="compact", name="the layer"):
    return fuse_edit(linear, joint, name, copy=record == "copy")


either_record = pytest.mark.parametrize("record", RECORDS)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 5 * 40)  # 5 blocks of 24 rows, the last one not full


@pytest.fixture
def three_threads(monkeypatch, small_blocks):
    monkeypatch.setattr(blocks, "ELEMENTS_PER_THREAD", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3, "the number of threads is changed"
    torch.set_num_threads(threads)


@pytest.mark.parametrize("strengths", [(1.0,), (1.3, 0.5, 0.8)])
@pytest.mark.parametrize("dtype", DTYPES)
@either_record
def test_unfuse_restores_every_bit(record, dtype, strengths):
    linear, joint = layer(dtype=dtype), edit(strengths=strengths)
    before = bits(linear.weight)
    for _ in range(20):
        kept = fuse(linear, joint, record)
        assert isinstance(kept, RECORDS[record]) and not torch.equal(bits(linear.weight), before)
        unfuse_edit(linear, kept)
        assert torch.equal(bits(linear.weight), before)


@pytest.mark.parametrize("count", [1, 10, 100])
@pytest.mark.parametrize("dtype", DTYPES)
@either_record
def test_unfuse_restores_every_bit_of_a_hundred_adapters(record, dtype, count):
    linear = layer(37, 211, dtype)
    joint = edit(211, strengths=[1.3 - 0.005 * number for number in range(count)])
    before = bits(linear.weight)
    kept = fuse(linear, joint, record)
    assert joint.rank == count and not torch.equal(bits(linear.weight), before)
    unfuse_edit(linear, kept)
    assert torch.equal(bits(linear.weight), before)


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@either_record
def test_fused_weight_is_the_edited_one_rounded_once(record, dtype, rank, small_blocks):
    linear, joint = layer(dtype=dtype), edit(rank=rank)
    expected = exact(linear.weight.detach(), joint)
    fuse(linear, joint, record)
    error = (linear.weight.detach().double() - expected).abs()
    assert torch.all(error <= HALF_ULP[dtype] * expected.abs() + 2e-7)
    # Nothing of the direction is left but rounding.
    assert (linear.weight.detach().double() @ joint.mix.double()).norm() < 8 * HALF_ULP[dtype] + 1e-5


def test_a_plain_difference_would_not_restore_it():
    """The reason for the record: without it bfloat16 comes back wrong."""
    linear, joint = layer(200, 40, torch.bfloat16), edit()
    before = linear.weight.detach().clone()
    record = fuse_edit(linear, joint)
    back = (linear.weight.detach().float() + record.left @ record.right).bfloat16()
    missed = (back != before).float().mean()
    assert 0.001 < missed < 0.1
    assert len(record.missed[0].value) == pytest.approx(float(missed) * before.numel(), rel=0.2)


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.tuples(st.integers(1, 9), st.integers(2, 17)),
    strength=st.floats(0.01, 4.0),
    scale=st.sampled_from([1e-9, 1e-6, 1e-3, 1.0, 100.0]),
    seed=st.integers(0, 10_000),
    record=st.sampled_from(sorted(RECORDS)),
)
@example(dtype=torch.float64, shape=(1, 5), strength=1.0, scale=1e-9, seed=597, record="compact")  # zeros change signs
def test_unfuse_restores_every_bit_of_any_weight(dtype, shape, strength, scale, seed, record):
    linear = layer(*shape, dtype=dtype, seed=seed)
    with torch.no_grad():
        linear.weight.mul_(scale)
        linear.weight.view(-1)[:: seed % 3 + 1].mul_(-0.0 if seed % 2 else 1.0)
    before = bits(linear.weight)
    kept = fuse(linear, stack_directions([direction(shape[1], seed=seed)], [strength]), record)
    unfuse_edit(linear, kept)
    assert torch.equal(bits(linear.weight), before)


@pytest.mark.parametrize("dtype", DTYPES)
@either_record
def test_negative_zeros_subnormals_and_extremes_come_back(record, dtype):
    linear, info = layer(dtype=dtype), torch.finfo(dtype)
    with torch.no_grad():
        linear.weight[0] = 0.0
        linear.weight[1] = -0.0
        linear.weight[2] = info.smallest_normal / 4  # subnormal
        linear.weight[3] = -info.smallest_normal
        linear.weight[4, 0], linear.weight[4, 1:] = info.max / 4, 0.0
    before = bits(linear.weight)
    kept = fuse(linear, edit(), record)
    assert not torch.equal(bits(linear.weight), before)
    unfuse_edit(linear, kept)
    assert torch.equal(bits(linear.weight), before)


@either_record
def test_restoring_does_not_depend_on_threads_or_blocks(record, monkeypatch):
    """What one thread count and block size fused, others restore."""
    linear, joint = layer(300, 400, torch.bfloat16), edit(400, strengths=(1.0, 0.7))
    before, threads = bits(linear.weight), torch.get_num_threads()
    monkeypatch.setattr(blocks, "ELEMENTS_PER_THREAD", 1)
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 20 * 400)
    try:
        torch.set_num_threads(2)
        kept = fuse(linear, joint, record)
        torch.set_num_threads(1)
        monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 7 * 400)
        unfuse_edit(linear, kept)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(bits(linear.weight), before)


@pytest.mark.parametrize("dtype", DTYPES)
@either_record
def test_blocks_that_are_fused_side_by_side_make_up_the_whole(record, dtype, three_threads):
    linear, joint = layer(dtype=dtype), edit(strengths=(1.0, 0.7))
    before, expected = bits(linear.weight), exact(linear.weight.detach(), joint)
    kept = fuse(linear, joint, record)
    assert kept.rows == [slice(0, 5), slice(5, 10), slice(10, 15), slice(15, 20), slice(20, 24)]
    error = (linear.weight.detach().double() - expected).abs()
    assert torch.all(error <= HALF_ULP[dtype] * expected.abs() + 2e-7)
    unfuse_edit(linear, kept)
    assert torch.equal(bits(linear.weight), before)


@either_record
def test_a_block_that_cannot_be_fused_undoes_the_others(record, three_threads, monkeypatch):
    linear = layer(dtype=torch.bfloat16)
    with torch.no_grad():
        linear.weight[23, 5] = float("nan")
    before, restored = bits(linear.weight), []
    restore_block = RECORDS[record].restore_block

    def watched(kept, weight, index, *args):
        restored.append(kept.state[index])
        restore_block(kept, weight, index, *args)

    monkeypatch.setattr(RECORDS[record], "restore_block", watched)
    with pytest.raises(FuseError, match="not finite, so that it cannot be fused. Nothing was changed"):
        fuse(linear, edit(), record)
    # A copy is checked when it is written, a compact record before.
    assert restored.count(True) == (5 if record == "copy" else 4), "blocks were written, and then restored"
    assert torch.equal(bits(linear.weight), before)


def test_all_of_several_weights_are_fused_or_none(small_blocks):
    layers = [layer(dtype=torch.bfloat16, seed=seed) for seed in range(3)]
    with torch.no_grad():
        layers[2].weight[23, 5] = float("inf")
    before = [bits(linear.weight) for linear in layers]
    for memory in (None, CopyMemory()):
        kept = new_records([(linear.weight, edit()) for linear in layers], memory)
        with pytest.raises(FuseError, match="weight of number 2 holds numbers that are not finite"):
            fuse_weights([Fused(linear.weight, kept[n], f"number {n}") for n, linear in enumerate(layers)])
        assert all(map(torch.equal, [bits(linear.weight) for linear in layers], before))
        assert not any(map(is_whole, kept))


def rounding_otherwise(monkeypatch, applies):
    """As if the machine rounded otherwise when `applies` says so, of the sign and rows of a sum of terms."""
    add_terms = compact_record.add_terms

    def add_otherwise(start, left, right, sign, out):
        add_terms(start, left, right, sign, out)
        if applies(sign, left):
            out[0, 0] += 1.0
        return out

    monkeypatch.setattr(compact_record, "add_terms", add_otherwise)


def test_a_block_that_cannot_be_restored_fuses_the_others_again(three_threads, monkeypatch):
    linear = layer(dtype=torch.bfloat16)
    record = fuse_edit(linear, edit())
    fused = bits(linear.weight)
    rounding_otherwise(monkeypatch, lambda sign, left: sign == 1 and torch.equal(left, record.left[10:15]))
    with pytest.raises(FuseError, match="rounds otherwise"):
        unfuse_edit(linear, record)
    assert torch.equal(bits(linear.weight), fused)


def test_the_missed_elements_of_all_pages_are_found_again():
    """The pages are of 65,536 elements, and begin within rows."""
    linear = layer(500, 333, torch.bfloat16)
    before = linear.weight.detach().clone()
    (found,) = fuse_edit(linear, edit(333)).missed
    back = torch.addcmul(linear.weight.detach().float(), before.float() @ edit(333).mix, edit(333).read).bfloat16()
    missed = (bits(back) != bits(before)).view(-1).nonzero().view(-1)
    assert len(found.pages) == 4 and len(missed) > 1000
    assert torch.equal(torch.from_numpy(found.index), missed)
    assert torch.equal(torch.from_numpy(found.value), bits(before).view(-1)[missed])


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 70), share=st.sampled_from([0.0, 0.02, 0.3, 1.0]), seed=st.integers(0, 1000))
def test_the_places_of_true_values_are_all_found(count, share, seed):
    different = np.random.default_rng(seed).random(count) < share
    assert np.array_equal(compact_record._places(different), np.flatnonzero(different))


@pytest.mark.parametrize(("width", "strength"), [(1024, 1.0), (1024, 2.0), (5120, 1.0)])
def test_the_record_is_small(width, strength):
    linear = layer(512, width, torch.bfloat16)
    share = fuse_edit(linear, edit(width, strengths=(strength,))).nbytes / linear.weight.nbytes
    assert 0.01 < share <= 0.15


@either_record
def test_the_parameter_stays_the_same_object_and_keeps_its_storage(record):
    linear, tied = layer(), layer()
    tied.weight = linear.weight
    parameter, place = linear.weight, linear.weight.data_ptr()
    parameter.requires_grad_(True)
    before = bits(parameter)
    kept = fuse(linear, edit(), record)
    assert linear.weight is parameter and tied.weight is parameter and parameter.data_ptr() == place
    assert parameter.requires_grad and parameter.grad_fn is None
    assert not torch.equal(bits(tied.weight), before)
    unfuse_edit(tied, kept)
    assert torch.equal(bits(linear.weight), before)


@either_record
def test_any_layout_of_the_weight_will_do(record, small_blocks):
    plain, strided = layer(), layer()
    strided.weight.data = plain.weight.data.T.contiguous().T
    shifted = layer()
    shifted.weight.data = torch.cat([torch.zeros(1), plain.weight.data.view(-1)])[1:].view(24, 40)
    records = [fuse(linear, edit(), record) for linear in (plain, strided, shifted)]
    for linear in (strided, shifted):
        torch.testing.assert_close(linear.weight, plain.weight, rtol=0, atol=1e-7)
    for linear, kept in zip((plain, strided, shifted), records, strict=True):
        assert not torch.equal(bits(linear.weight), bits(layer().weight))
        unfuse_edit(linear, kept)
        assert torch.equal(bits(linear.weight), bits(layer().weight))


@either_record
def test_weights_made_in_inference_mode_can_be_fused(record):
    with torch.inference_mode():
        linear = layer()
    before = bits(linear.weight)
    kept = fuse(linear, edit(), record)
    assert not torch.equal(bits(linear.weight), before)
    with torch.inference_mode():
        unfuse_edit(linear, kept)
    assert torch.equal(bits(linear.weight), before)


@either_record
def test_nothing_to_remove_changes_nothing(record):
    linear = layer()
    before = bits(linear.weight)
    kept = fuse(linear, edit(strengths=(0.0,)), record)
    assert torch.equal(bits(linear.weight), before)
    unfuse_edit(linear, kept)
    assert torch.equal(bits(linear.weight), before)


def change_one(weight):
    weight[3, 7] += 0.5


def swap_two(weight):
    weight[3, [7, 30]] = weight[3, [30, 7]]


def swap_rows(weight):
    weight[[3, 5]] = weight[[5, 3]]


@pytest.mark.parametrize("change", [change_one, swap_two, swap_rows])
@either_record
def test_a_changed_weight_is_not_restored(record, change):
    linear = layer(dtype=torch.bfloat16)
    kept = fuse(linear, edit(), record)
    with torch.no_grad():
        change(linear.weight)
    now = bits(linear.weight)
    with pytest.raises(FuseError, match=r"weight of blocks\.0 changed after it was fused .* Nothing was changed"):
        unfuse_edit(linear, kept, "blocks.0")
    assert torch.equal(bits(linear.weight), now)


def test_a_cast_weight_is_not_restored_and_both_dtypes_are_named():
    linear = layer(dtype=torch.bfloat16)
    record = fuse_edit(linear, edit())
    linear.float()
    now = bits(linear.weight)
    with pytest.raises(FuseError, match=r"was \(24, 40\) torch.bfloat16 when it was fused, and now .*torch.float32"):
        unfuse_edit(linear, record)
    assert torch.equal(bits(linear.weight), now)


@either_record
def test_what_was_restored_is_not_restored_again(record):
    linear = layer()
    kept = fuse(linear, edit(), record)
    unfuse_edit(linear, kept)
    with pytest.raises(FuseError, match="changed after it was fused"):
        unfuse_edit(linear, kept)


def test_other_arithmetic_is_noticed_and_nothing_is_changed(small_blocks, monkeypatch):
    """As if the machine rounded otherwise from the third block on."""
    linear = layer(dtype=torch.bfloat16)
    record = fuse_edit(linear, edit())
    fused, signs = bits(linear.weight), []

    def at_the_third(sign, _left):
        signs.append(sign)
        return len(signs) == 3

    rounding_otherwise(monkeypatch, at_the_third)
    with pytest.raises(FuseError, match="rounds otherwise .* Nothing was changed"):
        unfuse_edit(linear, record)
    assert signs[:3] == [1, 1, 1] and -1 in signs
    assert torch.equal(bits(linear.weight), fused)


@either_record
def test_what_would_overflow_is_not_fused(record, small_blocks):
    linear = layer(dtype=torch.float16)
    read = torch.zeros(1, 40)
    read[0, 0] = 1.0
    mix = torch.full((40, 1), -0.9)
    with torch.no_grad():
        linear.weight[20] = 60000.0  # in the last block but one
    before = bits(linear.weight)
    with pytest.raises(FuseError, match=r"weight of blocks\.0 beyond 65504, .* Attach the adapter"):
        fuse(linear, StackedEdit(read, mix), record, "blocks.0")
    assert torch.equal(bits(linear.weight), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@either_record
def test_a_weight_that_is_not_finite_is_not_fused(record, value):
    linear = layer(dtype=torch.bfloat16)
    with torch.no_grad():
        linear.weight[2, 3] = value
    before = bits(linear.weight)
    with pytest.raises(FuseError, match="holds numbers that are not finite"):
        fuse(linear, edit(), record)
    assert torch.equal(bits(linear.weight), before)


@either_record
def test_large_weights_are_fused_though_their_sum_overflows(record):
    linear = layer()
    with torch.no_grad():
        linear.weight.copy_(torch.full((24, 40), 1e38))
    before = bits(linear.weight)
    kept = fuse(linear, edit(strengths=(0.01,)), record)
    unfuse_edit(linear, kept)
    assert torch.equal(bits(linear.weight), before)


class Quantised(torch.Tensor):
    """As of torchao: says that it is bfloat16, and holds something else."""


def refused(kind: str) -> tuple[nn.Module, StackedEdit]:
    linear, joint = layer(), edit()
    if kind == "subclass":
        linear.weight = nn.Parameter(layer().weight.data.as_subclass(Quantised))
    elif kind == "float8":
        linear.weight.data = linear.weight.data.to(torch.float8_e4m3fn)
    elif kind == "integers":
        linear.weight = nn.Parameter(torch.zeros(24, 40, dtype=torch.int8), requires_grad=False)
    elif kind == "meta":
        linear = linear.to("meta")
    elif kind == "other layer":
        linear = nn.Conv1d(40, 24, 1)
    elif kind == "width":
        joint = edit(32)
    else:
        joint = StackedEdit(joint.read, torch.full_like(joint.mix, float("nan")))
    return linear, joint


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("subclass", r"blocks\.0 is quantised \(Quantised, torch.float32\).* Attach the adapter"),
        ("float8", r"quantised \(Parameter, torch.float8_e4m3fn\)"),
        ("integers", r"quantised \(Parameter, torch.int8\)"),
        ("meta", r"offloaded\. Fuse before offloading is enabled"),
        ("other layer", r"blocks\.0 is a Conv1d, not a plain Linear\. Attach"),
        ("width", r"has the shape \(\d+, 40\), but the edit is for 32 features"),
        ("edit", r"not finite\. Load the adapter again"),
    ],
)
def test_what_cannot_be_fused_is_named(kind, text):
    linear, joint = refused(kind)
    with pytest.raises(FuseError, match=text):
        fuse_edit(linear, joint, "blocks.0")
