"""Fused first, then quantised or sharded in place: the edit stays, and taking it out is refused by name."""

import warnings

import pytest
import torch
from tiny import generate, tiny_wan_pipeline
from torch import distributed

from planted import close, lora_that_reads, planted
from unlearning_adapters.errors import FuseError


def torchao(pipe):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(
        pipe.transformer,
        Int8WeightOnlyConfig(),
        filter_fn=lambda m, name: isinstance(m, torch.nn.Linear) and "attn2" in name,
    )


def quanto(pipe):
    from optimum.quanto import freeze, qint8, quantize

    quantize(pipe.transformer, weights=qint8, include="*attn2*")
    freeze(pipe.transformer)


def shard(pipe):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    for block in pipe.transformer.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(pipe.transformer, mesh=mesh)


@pytest.fixture
def one_process(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


CHANGES = {
    torchao: "was quantised after it was fused",
    quanto: "was quantised after it was fused",
    shard: "was sharded after it was fused",
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_edit_stays_and_taking_it_out_is_refused_by_name(change, one_process):
    base = generate(tiny_wan_pipeline())
    pipe = tiny_wan_pipeline()
    pipe.load_unlearning_adapter(planted(pipe, strength=2.0))
    pipe.fuse_unlearning_adapters()
    before = generate(pipe)
    change(pipe)
    now = generate(pipe)
    assert (now - before).norm() < 0.1 * (before - base).norm()
    with pytest.raises(FuseError, match=f"^The weight of blocks.0.attn2.to_k {CHANGES[change]}"):
        pipe.unfuse_unlearning_adapters()
    assert torch.equal(generate(pipe), now) and pipe.get_active_unlearning_adapters() == ["red"]
    answer = pipe.verify_unlearning_adapters()
    assert not answer.ok and len(answer.wrong) == 4 and all(check.weight is False for check in answer.wrong)


def test_a_sharded_denoiser_is_edited_attached_and_not_fused(one_process):
    pipe = tiny_wan_pipeline()
    adapter = planted(pipe)
    pipe.load_unlearning_adapter(adapter)
    before = generate(pipe)
    shard(pipe)
    assert close(generate(pipe), before) and pipe.verify_unlearning_adapters().ok
    with pytest.raises(
        FuseError, match=r"to_k is sharded \(DTensor\), and each process holds a part of it. Fuse before"
    ):
        pipe.fuse_unlearning_adapters()
    assert close(generate(pipe), before)


def test_a_lora_on_a_weight_that_was_quantised_after_fusing_is_refused_by_name():
    pipe = tiny_wan_pipeline()
    factors = lora_that_reads(planted(pipe), pipe)
    pipe.load_unlearning_adapter(planted(pipe))
    pipe.fuse_unlearning_adapters()
    torchao(pipe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FuseError, match="was quantised after it was fused"):
            pipe.load_lora_weights(factors)
            generate(pipe)
