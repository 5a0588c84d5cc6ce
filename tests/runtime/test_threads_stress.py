"""Random interleavings of verbs, calls and builds over 2 to 8 threads: each output is that of a state that existed."""

import itertools

import interleavings
import torch


def test_hundreds_of_interleavings_leave_the_base_and_show_only_states_that_existed() -> None:
    outputs = interleavings.outputs_by_state()
    for one, other in itertools.combinations(outputs.values(), 2):
        assert (one - other).abs().max() > 1e-3, "states that look alike would hide a mixture"
    built = interleavings.build(interleavings.pipelines(1)[0])
    world = interleavings.World(interleavings.pipelines(3), outputs, built)
    for seed in range(500):
        interleavings.interleave(world, seed)
        assert not world.faults, f"seed {seed}: {world.faults[:5]}"
    for operation in interleavings.OPERATIONS:
        assert world.seen[operation.__name__] > 50, f"{operation.__name__} hardly ever succeeded: {world.seen}"


def test_the_check_sees_a_mixture_of_two_states() -> None:
    """Otherwise the test above could not fail: a call whose adapter changes between its steps is that of no state."""
    outputs = interleavings.outputs_by_state()
    (pipe,) = interleavings.pipelines(1)
    world = interleavings.World([pipe], outputs, interleavings.build(pipe))
    module, steps = pipe.components["transformer"], []

    def load_midway(*_: object) -> None:
        steps.append(0)
        if len(steps) == 2:
            pipe.load_unlearning_adapter(interleavings.adapters()["a"], "a", 1.3)

    handle = module.register_forward_pre_hook(load_midway)
    world.check(interleavings.call(pipe), list(outputs), "mixed")
    handle.remove()
    assert world.faults and "mixed" in world.faults[0]
    pipe.unload_unlearning_adapters()
    assert torch.equal(interleavings.call(pipe), outputs[frozenset()])
