"""Compiled denoisers: right outputs, no recompile for a new strength, and the bits of the base after unloading."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import planted as planting
from planted import lora_that_reads, output, planted
from test_verbs import close
from tiny import tiny_wan_pipeline


@pytest.fixture
def graphs():
    """A compiler that counts what it compiles, and runs it without a code generator."""
    torch.compiler.reset()
    yield CompileCounterWithBackend("eager")
    torch.compiler.reset()


@pytest.fixture
def pipe():
    return tiny_wan_pipeline(layers=1)


def in_place(pipe, backend) -> None:
    pipe.transformer.compile(backend=backend)


def wrapped(pipe, backend) -> None:
    pipe.transformer = torch.compile(pipe.transformer, backend=backend)


def regional(pipe, backend) -> None:
    pipe.transformer.compile_repeated_blocks(backend=backend)


def reference_output(*adapters, **options) -> torch.Tensor:
    return planting.reference_output(*adapters, layers=1, **options)


COMPILE = pytest.mark.parametrize("compile_it", [in_place, wrapped, regional])


@COMPILE
def test_compiled_before_loading(compile_it, graphs, pipe):
    """In the order of a session: base, attached, two strengths, a second adapter, fused, unfused, unloaded."""
    red, blue = planted(pipe), planted(pipe, "blue", seed=1)
    compile_it(pipe, graphs)
    base = output(pipe)
    assert graphs.frame_count and close(base, reference_output())

    pipe.load_unlearning_adapter(red)
    assert close(output(pipe), reference_output((red, 1.0)))
    compiled = graphs.frame_count
    for strength in (0.4, 1.7, 1.0):
        pipe.set_unlearning_adapters("red", strength)
        assert close(output(pipe), reference_output((red, strength)))
    assert graphs.frame_count == compiled, "a new strength compiles nothing"

    pipe.load_unlearning_adapter(blue)
    assert close(output(pipe), reference_output((red, 1.0), (blue, 1.0)))
    compiled = graphs.frame_count
    pipe.set_unlearning_adapters(["red", "blue"], [0.3, 0.9])
    assert close(output(pipe), reference_output((red, 0.3), (blue, 0.9)))
    assert graphs.frame_count == compiled

    attached = output(pipe)
    pipe.fuse_unlearning_adapters()
    assert close(output(pipe), reference_output((red, 0.3), (blue, 0.9)))
    pipe.unfuse_unlearning_adapters()
    assert torch.equal(output(pipe), attached)
    pipe.unload_unlearning_adapters()
    assert torch.equal(output(pipe), base)


@COMPILE
@pytest.mark.parametrize("fused", [False, True])
def test_compiled_after_loading(compile_it, fused, graphs, pipe):
    red = planted(pipe)
    pipe.load_unlearning_adapter(red)
    if fused:
        pipe.fuse_unlearning_adapters()
    compile_it(pipe, graphs)
    assert close(output(pipe), reference_output((red, 1.0)))
    compiled = graphs.frame_count
    assert compiled
    if fused:
        pipe.unfuse_unlearning_adapters()
        assert close(output(pipe), reference_output((red, 1.0)))
        compiled = graphs.frame_count
    pipe.set_unlearning_adapters("red", 0.4)
    assert close(output(pipe), reference_output((red, 0.4)))
    assert graphs.frame_count == compiled
    pipe.unload_unlearning_adapters()
    fresh = tiny_wan_pipeline(layers=1)
    compile_it(fresh, graphs)
    assert torch.equal(output(pipe), output(fresh))


def test_a_fused_weight_that_changes_compiles_nothing(graphs, pipe):
    """Fusing again at another strength rewrites the same storage."""
    red = planted(pipe)
    pipe.load_unlearning_adapter(red)
    pipe.fuse_unlearning_adapters()
    in_place(pipe, graphs)
    output(pipe)
    pipe.unfuse_unlearning_adapters()
    output(pipe)
    compiled = graphs.frame_count
    for strength in (0.5, 1.5):
        pipe.set_unlearning_adapters("red", strength)
        pipe.fuse_unlearning_adapters()
        assert close(output(pipe), reference_output((red, strength)))
        pipe.unfuse_unlearning_adapters()
        assert close(output(pipe), reference_output((red, strength)))
    assert graphs.frame_count == compiled


def test_regional_compilation_follows_a_lora_that_comes_later(graphs, pipe):
    red = planted(pipe)
    style = lora_that_reads(red, pipe)
    pipe.load_unlearning_adapter(red)
    regional(pipe, graphs)
    output(pipe)
    pipe.load_lora_weights(style, adapter_name="style")
    assert close(output(pipe), reference_output((red, 1.0), lora=style))
    pipe.unload_lora_weights()
    assert close(output(pipe), reference_output((red, 1.0)))


def test_generated_code_obeys_and_is_not_generated_anew(pipe):
    """Once with the default backend."""
    red = planted(pipe)
    torch.compiler.reset()
    pipe.transformer.compile_repeated_blocks()
    base = output(pipe)
    pipe.load_unlearning_adapter(red)
    assert close(output(pipe), reference_output((red, 1.0)))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for strength in (0.4, 1.7):
            pipe.set_unlearning_adapters("red", strength)
            assert close(output(pipe), reference_output((red, strength)))
    pipe.unload_unlearning_adapters()
    assert torch.equal(output(pipe), base)
    torch.compiler.reset()
