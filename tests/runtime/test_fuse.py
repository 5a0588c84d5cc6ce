import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from planted import bits, direction
from unlearning_adapters.errors import FuseError
from unlearning_adapters.runtime import fuse
from unlearning_adapters.runtime.fuse import fuse_edit, unfuse_edit
from unlearning_adapters.runtime.joint_edit import StackedEdit, stack_directions

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
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


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(fuse, "BLOCK_ELEMENTS", 5 * 40)  # 5 blocks of 24 rows, the last one not full


@pytest.fixture
def three_parts(monkeypatch, small_blocks):
    """Parts of 2, 2 and 1 blocks, each on a thread of its own."""
    monkeypatch.setattr(fuse, "PART_ELEMENTS", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3, "the number of threads is changed"
    torch.set_num_threads(threads)


@pytest.mark.parametrize("cycles", [1, 20])
@pytest.mark.parametrize("strengths", [(1.0,), (1.3, 0.5, 0.8)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_unfuse_restores_every_bit(dtype, strengths, cycles):
    linear, joint = layer(dtype=dtype), edit(strengths=strengths)
    before = bits(linear.weight)
    for _ in range(cycles):
        record = fuse_edit(linear, joint)
        assert not torch.equal(bits(linear.weight), before)
        unfuse_edit(linear, record)
        assert torch.equal(bits(linear.weight), before)


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_weight_is_the_edited_one_rounded_once(dtype, rank, small_blocks):
    linear, joint = layer(dtype=dtype), edit(rank=rank)
    expected = exact(linear.weight.detach(), joint)
    fuse_edit(linear, joint)
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
    assert len(record.value) == pytest.approx(float(missed) * before.numel(), rel=0.2)


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.tuples(st.integers(1, 9), st.integers(2, 17)),
    strength=st.floats(0.01, 4.0),
    scale=st.sampled_from([1e-9, 1e-6, 1e-3, 1.0, 100.0]),
    seed=st.integers(0, 10_000),
)
@example(dtype=torch.float64, shape=(1, 5), strength=1.0, scale=1e-9, seed=597)  # two zeros change their signs
def test_unfuse_restores_every_bit_of_any_weight(dtype, shape, strength, scale, seed):
    linear = layer(*shape, dtype=dtype, seed=seed)
    with torch.no_grad():
        linear.weight.mul_(scale)
        linear.weight.view(-1)[:: seed % 3 + 1].mul_(-0.0 if seed % 2 else 1.0)
    before = bits(linear.weight)
    record = fuse_edit(linear, stack_directions([direction(shape[1], seed=seed)], [strength]))
    unfuse_edit(linear, record)
    assert torch.equal(bits(linear.weight), before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_negative_zeros_subnormals_and_extremes_come_back(dtype):
    linear, info = layer(dtype=dtype), torch.finfo(dtype)
    with torch.no_grad():
        linear.weight[0] = 0.0
        linear.weight[1] = -0.0
        linear.weight[2] = info.smallest_normal / 4  # subnormal
        linear.weight[3] = -info.smallest_normal
        linear.weight[4, 0], linear.weight[4, 1:] = info.max / 4, 0.0
    before = bits(linear.weight)
    record = fuse_edit(linear, edit())
    assert not torch.equal(bits(linear.weight), before)
    unfuse_edit(linear, record)
    assert torch.equal(bits(linear.weight), before)


def test_restoring_does_not_depend_on_threads_or_blocks(monkeypatch):
    """What one thread count and block size fused, others restore."""
    linear, joint = layer(300, 400, torch.bfloat16), edit(400, strengths=(1.0, 0.7))
    before, threads = bits(linear.weight), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        record = fuse_edit(linear, joint)
        torch.set_num_threads(1)
        monkeypatch.setattr(fuse, "BLOCK_ELEMENTS", 7 * 400)
        unfuse_edit(linear, record)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(bits(linear.weight), before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_that_are_fused_side_by_side_make_up_the_whole(dtype, three_parts):
    linear, joint = layer(dtype=dtype), edit(strengths=(1.0, 0.7))
    before, expected = bits(linear.weight), exact(linear.weight.detach(), joint)
    assert fuse._parts(linear.weight) == [slice(0, 10), slice(10, 20), slice(20, 24)]
    record = fuse_edit(linear, joint)
    error = (linear.weight.detach().double() - expected).abs()
    assert torch.all(error <= HALF_ULP[dtype] * expected.abs() + 2e-7)
    unfuse_edit(linear, record)
    assert torch.equal(bits(linear.weight), before)


def test_a_part_that_cannot_be_fused_undoes_the_others(three_parts):
    linear = layer(dtype=torch.bfloat16)
    with torch.no_grad():
        linear.weight[23, 5] = float("nan")
    before, taken = bits(linear.weight), []
    add = fuse._Block.add
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fuse._Block, "add", lambda block, *args: (taken.append(args[2]), add(block, *args)))
        with pytest.raises(FuseError, match="not finite, so that it cannot be fused. Nothing was changed"):
            fuse_edit(linear, edit())
    assert taken.count(1) == 4, "four blocks were written, and then restored"
    assert torch.equal(bits(linear.weight), before)


def test_a_part_that_cannot_be_restored_fuses_the_others_again(three_parts, monkeypatch):
    linear = layer(dtype=torch.bfloat16)
    record = fuse_edit(linear, edit())
    fused, add = bits(linear.weight), fuse._Block.add

    def add_otherwise(block, left, right, sign):
        add(block, left, right, sign)
        if sign == 1 and torch.equal(left, record.left[10:15]):
            block.result[0, 0] += 1.0

    monkeypatch.setattr(fuse._Block, "add", add_otherwise)
    with pytest.raises(FuseError, match="rounds otherwise"):
        unfuse_edit(linear, record)
    assert torch.equal(bits(linear.weight), fused)


def test_the_missed_elements_of_all_pages_are_found_again():
    """The pages are of 65,536 elements, and begin within rows."""
    linear = layer(500, 333, torch.bfloat16)
    before = linear.weight.detach().clone()
    record = fuse_edit(linear, edit(333))
    trial = (linear.weight.detach().float() + record.left * record.right).bfloat16()
    missed = (bits(trial) != bits(before)).view(-1).nonzero().view(-1)
    assert len(record.pages) == 4 and len(missed) > 1000
    index, value = record.missed(slice(0, 500))
    assert torch.equal(index, missed) and torch.equal(value, before.view(-1)[missed])
    for rows in (slice(0, 1), slice(190, 210), slice(499, 500)):
        index, value = record.missed(rows)
        inside = missed[(missed >= rows.start * 333) & (missed < rows.stop * 333)]
        assert torch.equal(index + rows.start * 333, inside) and torch.equal(value, before.view(-1)[inside])


@pytest.mark.parametrize(("width", "strength"), [(1024, 1.0), (1024, 2.0), (5120, 1.0)])
def test_the_record_is_small(width, strength):
    linear = layer(512, width, torch.bfloat16)
    share = fuse_edit(linear, edit(width, strengths=(strength,))).nbytes / linear.weight.nbytes
    assert 0.01 < share <= 0.15


def test_the_parameter_stays_the_same_object_and_keeps_its_storage():
    linear, tied = layer(), layer()
    tied.weight = linear.weight
    parameter, place = linear.weight, linear.weight.data_ptr()
    parameter.requires_grad_(True)
    before = bits(parameter)
    record = fuse_edit(linear, edit())
    assert linear.weight is parameter and tied.weight is parameter and parameter.data_ptr() == place
    assert parameter.requires_grad and parameter.grad_fn is None
    assert not torch.equal(bits(tied.weight), before)
    unfuse_edit(tied, record)
    assert torch.equal(bits(linear.weight), before)


def test_any_layout_of_the_weight_will_do(small_blocks):
    plain, strided = layer(), layer()
    strided.weight.data = plain.weight.data.T.contiguous().T
    shifted = layer()
    shifted.weight.data = torch.cat([torch.zeros(1), plain.weight.data.view(-1)])[1:].view(24, 40)
    records = [fuse_edit(linear, edit()) for linear in (plain, strided, shifted)]
    for linear, record in zip((plain, strided, shifted), records, strict=True):
        assert torch.equal(linear.weight, plain.weight) and torch.equal(record.place, records[0].place)
    unfuse_edit(strided, records[1])
    assert torch.equal(bits(strided.weight), bits(layer().weight))


def test_weights_made_in_inference_mode_can_be_fused():
    with torch.inference_mode():
        linear = layer()
    before = bits(linear.weight)
    record = fuse_edit(linear, edit())
    assert not torch.equal(bits(linear.weight), before)
    with torch.inference_mode():
        unfuse_edit(linear, record)
    assert torch.equal(bits(linear.weight), before)


def test_nothing_to_remove_changes_nothing():
    linear = layer()
    before = bits(linear.weight)
    record = fuse_edit(linear, edit(strengths=(0.0,)))
    assert torch.equal(bits(linear.weight), before) and len(record.value) == 0
    unfuse_edit(linear, record)
    assert torch.equal(bits(linear.weight), before)


def change_one(weight):
    weight[3, 7] += 0.5


def swap_two(weight):
    weight[3, [7, 30]] = weight[3, [30, 7]]


def swap_rows(weight):
    weight[[3, 5]] = weight[[5, 3]]


@pytest.mark.parametrize("change", [change_one, swap_two, swap_rows])
def test_a_changed_weight_is_not_restored(change):
    linear = layer(dtype=torch.bfloat16)
    record = fuse_edit(linear, edit())
    with torch.no_grad():
        change(linear.weight)
    now = bits(linear.weight)
    with pytest.raises(FuseError, match=r"weight of blocks\.0 changed after it was fused .* Nothing was changed"):
        unfuse_edit(linear, record, "blocks.0")
    assert torch.equal(bits(linear.weight), now)


def test_a_cast_weight_is_not_restored_and_both_dtypes_are_named():
    linear = layer(dtype=torch.bfloat16)
    record = fuse_edit(linear, edit())
    linear.float()
    now = bits(linear.weight)
    with pytest.raises(FuseError, match=r"was \(24, 40\) torch.bfloat16 when it was fused, and now .*torch.float32"):
        unfuse_edit(linear, record)
    assert torch.equal(bits(linear.weight), now)


def test_what_was_restored_is_not_restored_again():
    linear = layer()
    record = fuse_edit(linear, edit())
    unfuse_edit(linear, record)
    with pytest.raises(FuseError, match="changed after it was fused"):
        unfuse_edit(linear, record)


def test_other_arithmetic_is_noticed_and_nothing_is_changed(small_blocks, monkeypatch):
    """As if the machine rounded otherwise from the third block on."""
    linear = layer(dtype=torch.bfloat16)
    record = fuse_edit(linear, edit())
    fused, add, calls = bits(linear.weight), fuse._Block.add, []

    def add_otherwise(block, left, right, sign):
        add(block, left, right, sign)
        calls.append(sign)
        if len(calls) == 3:
            block.result[0, 0] += 1.0

    monkeypatch.setattr(fuse._Block, "add", add_otherwise)
    with pytest.raises(FuseError, match="rounds otherwise .* Nothing was changed"):
        unfuse_edit(linear, record)
    assert calls[:3] == [1, 1, 1] and -1 in calls
    assert torch.equal(bits(linear.weight), fused)


@pytest.mark.parametrize("step", ["load", "add", "try_back"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_fusing_that_is_interrupted_leaves_the_weight_as_it_was(step, error, small_blocks, monkeypatch):
    linear = layer(dtype=torch.float16)
    before, original, calls = bits(linear.weight), getattr(fuse._Block, step), []

    def fail_at_the_third(*args, **kwargs):
        calls.append(bits(linear.weight))
        if len(calls) == 3:
            raise error("pulled the plug")
        return original(*args, **kwargs)

    monkeypatch.setattr(fuse._Block, step, fail_at_the_third)
    with pytest.raises(error, match="pulled the plug"):
        fuse_edit(linear, edit())
    assert not torch.equal(calls[2], before), "the third block comes after two that were written"
    assert torch.equal(bits(linear.weight), before)


def test_unfusing_that_is_interrupted_leaves_the_weight_fused(small_blocks, monkeypatch):
    linear = layer(dtype=torch.float16)
    before = bits(linear.weight)
    record = fuse_edit(linear, edit())
    fused, add, calls = bits(linear.weight), fuse._Block.add, []

    def fail_at_the_third(*args):
        calls.append(bits(linear.weight))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return add(*args)

    monkeypatch.setattr(fuse._Block, "add", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        unfuse_edit(linear, record)
    assert not torch.equal(calls[2], fused)
    assert torch.equal(bits(linear.weight), fused)
    monkeypatch.undo()
    unfuse_edit(linear, record)
    assert torch.equal(bits(linear.weight), before)


def test_what_would_overflow_is_not_fused(small_blocks):
    linear = layer(dtype=torch.float16)
    read = torch.zeros(1, 40)
    read[0, 0] = 1.0
    mix = torch.full((40, 1), -0.9)
    with torch.no_grad():
        linear.weight[20] = 60000.0  # in the last block but one
    before = bits(linear.weight)
    with pytest.raises(FuseError, match=r"weight of blocks\.0 beyond 65504, .* Attach the adapter"):
        fuse_edit(linear, StackedEdit(read, mix), "blocks.0")
    assert torch.equal(bits(linear.weight), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_not_fused(value):
    linear = layer(dtype=torch.bfloat16)
    with torch.no_grad():
        linear.weight[2, 3] = value
    before = bits(linear.weight)
    with pytest.raises(FuseError, match="holds numbers that are not finite"):
        fuse_edit(linear, edit())
    assert torch.equal(bits(linear.weight), before)


def test_large_weights_are_fused_though_their_sum_overflows():
    linear = layer()
    with torch.no_grad():
        linear.weight.copy_(torch.full((24, 40), 1e38))
    before = bits(linear.weight)
    record = fuse_edit(linear, edit(strengths=(0.01,)))
    unfuse_edit(linear, record)
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
        ("width", r"reads 40 features, but the edit is for 32"),
        ("edit", r"not finite\. Load the adapter again"),
    ],
)
def test_what_cannot_be_fused_is_named(kind, text):
    linear, joint = refused(kind)
    with pytest.raises(FuseError, match=text):
        fuse_edit(linear, joint, "blocks.0")
