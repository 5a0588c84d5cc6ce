import copy

import accelerate.hooks
import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

from planted import bits, direction
from unlearning_adapters.errors import DenoiserError
from unlearning_adapters.runtime.hooks.denoiser import EditHooks
from unlearning_adapters.runtime.hooks.layer import LiveEdit, attach_edit, detach_edit
from unlearning_adapters.runtime.hooks.places import is_wrapped, module_at
from unlearning_adapters.runtime.hooks.registry import HOOK
from unlearning_adapters.runtime.joint.joint_edit import StackedEdit, stack_directions

WIDTH = 12


def edit(strength=1.0, seed=0) -> StackedEdit:
    return stack_directions([direction(WIDTH, seed=seed)], [strength])


def tokens(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*(shape or (2, 5)), WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)


def trace(module: nn.Module) -> dict:
    state = {name: bits(value).tolist() for name, value in module.state_dict().items()}
    modules = {name: (id(child), sorted(child.__dict__)) for name, child in module.named_modules()}
    return {"state": state, "modules": modules, "hooks": (dict(module._forward_pre_hooks), dict(module._forward_hooks))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_module_reads_the_edited_input_in_its_dtype(dtype):
    linear, joint, x = nn.Linear(WIDTH, 7, dtype=dtype), edit(), tokens(dtype=dtype)
    base = linear(x)
    attach_edit(linear, joint)
    edited = (x.float() - (x.float() @ joint.read.T) @ joint.mix.T).to(dtype)
    assert torch.equal(linear(x), nn.functional.linear(edited, linear.weight, linear.bias))
    assert linear(x).dtype == dtype and not torch.equal(linear(x), base)


def test_the_read_out_is_scaled_by_one_minus_the_strength():
    seen, joint, x = nn.Identity(), edit(0.7), tokens()
    attach_edit(seen, joint)
    torch.testing.assert_close(seen(x) @ joint.read.T, 0.3 * x @ joint.read.T)


class Keywords(nn.Module):
    def forward(self, input=None, hidden_states=None, x=None, scale=1.0, other=None):
        return (input if input is not None else hidden_states if hidden_states is not None else x) * scale


@pytest.mark.parametrize("keyword", ["input", "hidden_states", "x"])
def test_the_input_may_come_by_keyword(keyword):
    module, joint, x = Keywords(), edit(), tokens()
    attach_edit(module, joint)
    expected = x - (x @ joint.read.T) @ joint.mix.T
    assert torch.equal(module(**{keyword: x, "scale": 2.0}), 2 * expected)
    assert torch.equal(module(x, scale=2.0) if keyword == "input" else 2 * expected, 2 * expected)


def test_an_input_that_is_not_found_is_an_error_and_not_an_unedited_result():
    module = Keywords()
    attach_edit(module, edit())
    with pytest.raises(
        DenoiserError, match="Keywords was called with the arguments other, .* one of input, hidden_states"
    ):
        module(other=tokens())


def test_detaching_leaves_no_trace():
    linear, x = nn.Linear(WIDTH, 7), tokens()
    before, base = trace(linear), bits(linear(x))
    attach_edit(linear, edit())
    assert trace(linear)["state"] == before["state"] and not torch.equal(bits(linear(x)), base)
    attach_edit(linear, edit(0.5, seed=1))  # in place of the first
    detach_edit(linear)
    assert trace(linear) == before and torch.equal(bits(linear(x)), base)
    detach_edit(linear)
    assert trace(linear) == before


def test_an_edit_replaces_the_one_before():
    linear, other, x = nn.Linear(WIDTH, 7), nn.Linear(WIDTH, 7), tokens()
    other.load_state_dict(linear.state_dict())
    attach_edit(linear, edit(seed=1))
    attach_edit(linear, edit(seed=2))
    attach_edit(other, edit(seed=2))
    assert torch.equal(linear(x), other(x))


class Add(ModelHook):
    """Another hook: adds to the input."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def pre_forward(self, module, x):
        return (x + self.value,), {}


@pytest.mark.parametrize("ours_first", [True, False])
def test_other_hooks_stay_when_ours_goes(ours_first):
    linear, x = nn.Linear(WIDTH, 7), tokens()
    with_other = linear(x + 1.0)
    if ours_first:
        attach_edit(linear, edit())
    HookRegistry.check_if_exists_or_initialize(linear).register_hook(Add(1.0), "other")
    if not ours_first:
        attach_edit(linear, edit())
    assert not torch.equal(linear(x), with_other)
    detach_edit(linear)
    assert torch.equal(linear(x), with_other)
    assert list(linear._diffusers_hook.hooks) == ["other"]


class Own(ModelHook):
    """A hook with a forward of its own, as some caches of diffusers have."""

    def new_forward(self, module, x):
        return self.fn_ref.original_forward(x) + 1.0


@pytest.mark.parametrize("between", [False, True])
def test_a_hook_above_with_a_forward_of_its_own_stays_when_ours_goes(between):
    """diffusers' `remove_hook` would switch it off."""
    linear, x = nn.Linear(WIDTH, 7), tokens()
    base = linear(x)
    attach_edit(linear, edit())
    registry = HookRegistry.check_if_exists_or_initialize(linear)
    if between:
        registry.register_hook(Add(1.0), "between")
    registry.register_hook(Own(), "own")
    assert not torch.equal(linear(x), base + 1.0)
    detach_edit(linear)
    expected = nn.functional.linear(x + 1.0 if between else x, linear.weight, linear.bias)
    assert torch.equal(linear(x), expected + 1.0)
    registry.remove_hook("own")
    assert torch.equal(linear(x), expected)


class Offload(accelerate.hooks.ModelHook):
    """As accelerate's offloading: what it does before a call must go on."""

    def __init__(self) -> None:
        self.calls = 0

    def pre_forward(self, module, *args, **kwargs):
        self.calls += 1
        return args, kwargs


def test_offloading_that_is_taken_off_and_on_does_not_take_the_edit_along():
    """diffusers' model offloading does so after every call of the pipeline."""
    linear, x, offload = nn.Linear(WIDTH, 7), tokens(), Offload()
    base = linear(x)
    accelerate.hooks.add_hook_to_module(linear, offload)
    attach_edit(linear, edit())
    edited = linear(x)
    assert not torch.equal(edited, base) and offload.calls == 1
    accelerate.hooks.remove_hook_from_module(linear)
    assert torch.equal(linear(x), edited)
    accelerate.hooks.add_hook_to_module(linear, offload)
    assert torch.equal(linear(x), edited) and offload.calls == 2


@pytest.mark.parametrize("ours_first", [True, False])
def test_detaching_leaves_offloading_on(ours_first):
    linear, x, offload = nn.Linear(WIDTH, 7), tokens(), Offload()
    before, base = trace(linear), linear(x)
    if ours_first:
        attach_edit(linear, edit())
    accelerate.hooks.add_hook_to_module(linear, offload)
    if not ours_first:
        attach_edit(linear, edit())
    assert not torch.equal(linear(x), base)
    detach_edit(linear)
    assert torch.equal(linear(x), base) and offload.calls == 2
    accelerate.hooks.remove_hook_from_module(linear)
    assert torch.equal(linear(x), base) and offload.calls == 2
    assert trace(linear)["state"] == before["state"] and "_diffusers_hook" not in linear.__dict__


def test_new_strengths_are_written_into_the_same_tensors():
    live = LiveEdit(edit(1.0))
    read, mix = live.edit.read, live.edit.mix
    places = read.data_ptr(), mix.data_ptr()
    live.rewrite(edit(0.25))
    assert (live.edit.read.data_ptr(), live.edit.mix.data_ptr()) == places
    assert torch.equal(live.edit.mix, edit(0.25).mix)
    live.rewrite(stack_directions([direction(WIDTH, rank=2, seed=4)], [1.0]))
    assert live.edit.rank == 2


def test_an_edit_does_not_share_tensors_with_what_it_was_made_from():
    given = edit(1.0)
    live = LiveEdit(given)
    live.rewrite(edit(0.25))
    assert torch.equal(given.mix, edit(1.0).mix)


def test_tensors_of_inference_mode_are_replaced_and_not_written():
    with torch.inference_mode():
        live = LiveEdit(edit(1.0))
        attached = nn.Linear(WIDTH, 7)
        attach_edit(attached, live)
        attached(tokens())
    live.rewrite(edit(0.25))
    assert torch.equal(live.edit.mix, edit(0.25).mix)


def test_off_is_the_base_bit_for_bit_also_for_negative_zeros():
    seen, x = nn.Identity(), tokens()
    x[0] = -0.0
    live = LiveEdit(edit(), on=False)
    attach_edit(seen, live)
    assert torch.equal(bits(seen(x)), bits(x))
    live.rewrite(edit(), on=True)
    assert not torch.equal(bits(seen(x)), bits(x))


def test_autocast_does_not_coarsen_the_edit():
    seen, x, joint = nn.Identity(), tokens(), edit()
    attach_edit(seen, joint)
    expected = seen(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(seen(x), expected)


def test_gradients_flow_through_the_edit():
    linear, x = nn.Linear(WIDTH, 7), tokens().requires_grad_(True)
    attach_edit(linear, edit())
    linear(x).sum().backward()
    joint = edit()
    plain = linear.weight.sum(0).expand_as(x)
    torch.testing.assert_close(x.grad, plain - (plain @ joint.mix) @ joint.read)


class Layer(nn.Linear):
    """A Linear that remembers what it read."""

    def __init__(self, out_features: int = WIDTH) -> None:
        super().__init__(WIDTH, out_features, bias=False)
        self.read = torch.zeros(0)

    def forward(self, x):
        self.read = x
        return super().forward(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_k, self.to_v = Layer(), Layer()

    def forward(self, x):
        if getattr(self, "fused_projections", False):
            return x
        return self.to_k(x) * self.to_v(x)


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


class Lora(nn.Module):
    """As PEFT's: what it wraps and its own branch read one input."""

    def __init__(self, base: nn.Module, gain: float = 3.0) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"style": Layer(2)})
        self.gain = gain

    def forward(self, x):
        return self.base_layer(x) + self.gain * self.lora_A["style"](x).sum(-1, keepdim=True)


PATHS = ("blocks.0.to_k", "blocks.1.to_k", "blocks.1.to_v")


def hooks_on(denoiser: nn.Module) -> EditHooks:
    hooks = EditHooks(denoiser)
    for number, path in enumerate(PATHS):
        hooks.sites[path] = LiveEdit(edit(seed=number))
    hooks.place()
    return hooks


def test_the_hooks_are_one_hook_per_site_and_one_on_the_denoiser():
    denoiser = Denoiser()
    before = trace(denoiser)
    hooks = hooks_on(denoiser)
    hooked = [name for name, module in denoiser.named_modules() if "_diffusers_hook" in module.__dict__]
    assert hooked == ["", *PATHS]
    assert list(denoiser._diffusers_hook.hooks) == [HOOK]
    hooks.sites.clear()
    hooks.place()
    assert trace(denoiser) == before


def test_a_lora_that_wraps_a_site_later_reads_the_edited_input():
    denoiser, x = Denoiser(), tokens()
    hooks = hooks_on(denoiser)
    denoiser(x)
    wrapper = Lora(denoiser.blocks[1].to_k)
    denoiser.blocks[1].to_k = wrapper
    denoiser(x)
    joint, raw = hooks.sites["blocks.1.to_k"].edit, x + denoiser.blocks[0](x)
    edited = raw - (raw @ joint.read.T) @ joint.mix.T
    assert torch.equal(wrapper.base_layer.read, edited) and torch.equal(wrapper.lora_A["style"].read, edited)
    assert (edited @ joint.read.T).abs().max() < 1e-5 < (raw @ joint.read.T).abs().max()


def test_a_lora_that_goes_leaves_the_edit_on_the_layer():
    denoiser, x = Denoiser(), tokens()
    hooks_on(denoiser)
    expected, layer = denoiser(x), denoiser.blocks[1].to_k
    denoiser.blocks[1].to_k = Lora(layer)
    assert not torch.equal(denoiser(x), expected)
    denoiser.blocks[1].to_k = layer
    assert torch.equal(denoiser(x), expected)


@pytest.mark.parametrize("event", ["call", "save", "load"])
def test_what_comes_or_goes_around_a_layer_with_a_fused_edit_is_told_before_it_matters(event):
    denoiser, x, told, changed = Denoiser(), tokens(), [], []
    before = trace(denoiser)
    hooks = EditHooks(denoiser, lambda: told.append(is_wrapped(denoiser.blocks[0].to_k)), lambda: bool(changed))
    hooks.wrapped = {PATHS[0]: False}
    hooks.place()

    def happen():
        told.clear()
        state = denoiser.state_dict() if event == "save" else {}
        denoiser(x) if event == "call" else denoiser.load_state_dict(state, strict=False)
        return list(told)

    assert happen() == [], "nothing is new"
    layer = denoiser.blocks[0].to_k
    denoiser.blocks[0].to_k = Lora(layer)
    assert set(happen()) == {True}
    hooks.wrapped = {PATHS[0]: True}
    assert happen() == []
    denoiser.blocks[0].to_k = layer
    assert set(happen()) == {False}
    hooks.wrapped = {PATHS[0]: False}
    changed.append("a weight")
    assert set(happen()) == {False}
    hooks.wrapped = {}
    hooks.place()
    assert happen() == [] and trace(denoiser) == before and not hooks._handles


def test_a_copy_of_an_edited_denoiser_is_refused():
    """diffusers' hooks of a copy run the original's weights."""
    denoiser, x = Denoiser(), tokens()
    hooks_on(denoiser)
    with pytest.raises(DenoiserError, match="Denoiser is a copy of a denoiser with unlearning adapters"):
        copy.deepcopy(denoiser)(x)


def test_projections_that_are_fused_later_are_an_error_and_not_a_bypass():
    denoiser, x = Denoiser(), tokens()
    hooks_on(denoiser)
    denoiser(x)
    denoiser.blocks[1].fused_projections = True
    with pytest.raises(DenoiserError, match=r"projections of Denoiser are fused, so that 'blocks.1.to_k' is not used"):
        denoiser(x)
    denoiser.blocks[1].fused_projections = False
    denoiser(x)


def test_a_layer_that_is_gone_is_an_error():
    denoiser, x = Denoiser(), tokens()
    hooks_on(denoiser)
    denoiser.blocks[1].to_k = None
    with pytest.raises(DenoiserError, match=r"no longer has the layer 'blocks.1.to_k'"):
        denoiser(x)


def test_sites_are_seen_through_torch_compile():
    denoiser = Denoiser()
    inner = denoiser.blocks[0]
    denoiser.blocks[0] = torch.compile(inner, backend="eager")
    assert module_at(denoiser, "blocks.0.to_k") is inner.to_k
    assert module_at(denoiser, "blocks.7.to_k") is None


@pytest.fixture
def graphs():
    """A compiler that only counts."""
    torch.compiler.reset()
    count = []

    def backend(module, _inputs):
        count.append(module)
        return module.forward

    yield backend, count
    torch.compiler.reset()


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_denoiser_obeys_and_new_strengths_compile_nothing(graphs, in_place):
    backend, count = graphs
    denoiser, x = Denoiser(), tokens()
    plain = Denoiser()
    plain.load_state_dict(denoiser.state_dict())
    call = denoiser if in_place else torch.compile(denoiser, backend=backend, fullgraph=True)
    if in_place:
        denoiser.compile(backend=backend, fullgraph=True)
    base = call(x)
    hooks, eager = hooks_on(denoiser), hooks_on(plain)
    assert torch.equal(call(x), plain(x)) and not torch.equal(call(x), base)
    compiled = len(count)
    for strength in (0.3, 1.7, 1.0):
        for number, path in enumerate(PATHS):
            for each in (hooks, eager):
                each.sites[path].rewrite(edit(strength, seed=number))
        before = call(x)
        assert torch.equal(before, plain(x))
    assert len(count) == compiled
    for path in PATHS:
        hooks.sites[path].on = False
    assert torch.equal(call(x), base)


def test_a_compiled_denoiser_follows_a_lora_that_comes_later(graphs):
    backend, _ = graphs
    denoiser, x = Denoiser(), tokens()
    hooks_on(denoiser)
    call = torch.compile(denoiser, backend=backend)
    call(x)
    denoiser.blocks[1].to_k = Lora(denoiser.blocks[1].to_k)
    compiled = call(x)
    assert HOOK in denoiser.blocks[1].to_k._diffusers_hook.hooks
    assert torch.equal(compiled, denoiser(x))
