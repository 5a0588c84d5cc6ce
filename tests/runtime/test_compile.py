"""Compiled denoisers: outputs as without compiling, no recompile for a new strength, and the base after unloading."""

import pytest
import torch
import torch._inductor.config
from tiny import tiny_wan_pipeline
from torch._dynamo.testing import CompileCounterWithBackend

from planted import close, lora_that_reads, output, planted

# Code without vector instructions: half a minute goes by until the compiler has tried which of them there are.
SCALAR = {"cpp.vec_isa_ok": False, "cpp_cache_precompile_headers": False, "compile_threads": 1}


@pytest.fixture
def graphs():
    """A compiler that counts what it compiles, and generates no code, so that the bits are those of eager calls."""
    torch.compiler.reset()
    yield CompileCounterWithBackend("eager")
    torch.compiler.reset()


@pytest.fixture
def pipe():
    return tiny_wan_pipeline(layers=1)


@pytest.fixture
def twin():
    """The same pipeline, which is not compiled; what it should do is tested elsewhere."""
    return tiny_wan_pipeline(layers=1)


def in_place(pipe, backend) -> None:
    pipe.transformer.compile(backend=backend)


def wrapped(pipe, backend) -> None:
    pipe.transformer = torch.compile(pipe.transformer, backend=backend)


def regional(pipe, backend) -> None:
    pipe.transformer.compile_repeated_blocks(backend=backend)


@pytest.mark.slow
@pytest.mark.parametrize("compile_it", [in_place, wrapped, regional])
def test_compiled_before_loading(compile_it, graphs, pipe, twin):
    """As in a session: base, attached, two strengths, a second adapter, fused, unfused, unloaded."""
    red, blue = planted(pipe), planted(pipe, "blue", seed=1)
    compile_it(pipe, graphs)
    seen = [output(pipe)]

    def both(verb: str, *arguments: object) -> None:
        for each in (pipe, twin):
            getattr(each, verb)(*arguments)
        found = output(pipe)
        assert torch.equal(found, output(twin))
        assert not torch.equal(found, seen[-1]), "the verb did something"
        seen.append(found)

    assert graphs.frame_count and torch.equal(seen[0], output(twin))
    both("load_unlearning_adapter", red)
    compiled = graphs.frame_count
    for strength in (0.4, 1.7):
        both("set_unlearning_adapters", "red", strength)
    assert graphs.frame_count == compiled, "a new strength compiles nothing"
    both("load_unlearning_adapter", blue)
    compiled = graphs.frame_count
    both("set_unlearning_adapters", ["red", "blue"], [0.3, 0.9])
    assert graphs.frame_count == compiled
    both("fuse_unlearning_adapters")
    both("unfuse_unlearning_adapters")
    assert torch.equal(seen[-1], seen[-3])
    both("unload_unlearning_adapters")
    assert torch.equal(seen[-1], seen[0])


@pytest.mark.parametrize(("compile_it", "fused"), [(in_place, True), (wrapped, False), (regional, True)])
def test_compiled_after_loading(compile_it, fused, graphs, pipe, twin):
    base, red = output(twin), planted(pipe)
    for each in (pipe, twin):
        each.load_unlearning_adapter(red)
        if fused:
            each.fuse_unlearning_adapters()
    compile_it(pipe, graphs)
    assert torch.equal(output(pipe), output(twin)) and not torch.equal(output(pipe), base)
    if fused:
        pipe.unfuse_unlearning_adapters()
        twin.unfuse_unlearning_adapters()
        assert torch.equal(output(pipe), output(twin))
    compiled = graphs.frame_count
    for strength in (0.4, 1.7):
        for each in (pipe, twin):
            each.set_unlearning_adapters("red", strength)
        assert torch.equal(output(pipe), output(twin))
    assert graphs.frame_count == compiled > 0
    pipe.unload_unlearning_adapters()
    assert torch.equal(output(pipe), base)


def test_a_lora_that_comes_after_regional_compilation_reads_the_edited_input(graphs, pipe, twin):
    red = planted(pipe)
    style = lora_that_reads(red, pipe)
    for each in (pipe, twin):
        each.load_unlearning_adapter(red)
    regional(pipe, graphs)
    attached = output(pipe)
    for each in (pipe, twin):
        each.load_lora_weights(style, adapter_name="style")
    with_style = output(pipe)
    assert torch.equal(with_style, output(twin)) and not torch.equal(with_style, attached)
    pipe.unload_lora_weights()
    assert torch.equal(output(pipe), attached)


@torch._inductor.config.patch(SCALAR)
def test_generated_code_obeys_and_is_not_generated_anew(pipe, twin):
    """The default backend, on a cross-attention: its code rounds otherwise, so outputs are close and not equal."""
    red = planted(pipe)
    torch.compiler.reset()
    pipe.transformer.blocks[0].attn2.compile()
    base = output(pipe)
    for each in (pipe, twin):
        each.load_unlearning_adapter(red)
    assert close(output(pipe), output(twin)) and not close(output(pipe), base)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for strength in (0.4, 1.7):
            for each in (pipe, twin):
                each.set_unlearning_adapters("red", strength)
            assert close(output(pipe), output(twin))
    pipe.unload_unlearning_adapters()
    assert torch.equal(output(pipe), base)
    torch.compiler.reset()
