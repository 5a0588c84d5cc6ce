import accelerate
import pytest
import torch
from offloaded import CPU
from tiny import tiny_wan_pipeline
from torch import nn

from planted import lora_that_reads, planted
from unlearning_adapters.errors import FuseError
from unlearning_adapters.pipelines.sites import base_linear
from unlearning_adapters.pipelines.weights import is_in_a_file, is_plain, kept_weight, layer_response, weight_gram
from unlearning_adapters.runtime.fusing.fuse import fuse_edit
from unlearning_adapters.runtime.joint.joint_edit import stack_directions

PATH = "blocks.0.attn2.to_k"


@pytest.fixture
def denoiser():
    return tiny_wan_pipeline().transformer


def rows(features: int = 48) -> torch.Tensor:
    return torch.randn(3, features, generator=torch.Generator().manual_seed(0))


def test_the_weight_of_a_plain_layer_is_its_own(denoiser):
    layer = denoiser.get_submodule(PATH)
    assert kept_weight(layer) is layer.weight and is_plain(layer.weight)
    assert kept_weight(nn.SiLU()) is None
    assert not is_plain(layer.weight.to(torch.float8_e4m3fn))


def test_under_offloading_to_memory_it_is_what_the_next_call_computes_with(denoiser):
    accelerate.cpu_offload(denoiser, CPU)
    layer = denoiser.get_submodule(PATH)
    kept = kept_weight(layer)
    assert layer.weight.is_meta and not kept.is_meta
    answer = layer(rows()) - layer(0 * rows())
    kept.mul_(2.0)
    torch.testing.assert_close(layer(rows()) - layer(0 * rows()), 2 * answer)
    accelerate.hooks.remove_hook_from_module(denoiser, recurse=True)
    assert torch.equal(denoiser.get_parameter(f"{PATH}.weight"), kept)


def test_under_offloading_to_files_it_is_out_of_reach(denoiser, tmp_path):
    accelerate.disk_offload(denoiser, tmp_path, execution_device=CPU)
    assert kept_weight(denoiser.get_submodule(PATH)).is_meta


@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
@pytest.mark.parametrize("with_lora", [False, True])
def test_files_of_group_offloading_are_seen_beneath_a_lora_too(level, with_lora, tmp_path):
    pipe = tiny_wan_pipeline()
    red = planted(pipe)
    pipe.load_unlearning_adapter(red)
    if with_lora:
        pipe.load_lora_weights(lora_that_reads(red, pipe), adapter_name="style")
    assert not is_in_a_file(pipe.transformer, PATH)
    options = {"offload_device": CPU, "offload_type": level, "num_blocks_per_group": 1}
    pipe.transformer.enable_group_offload(CPU, **options, offload_to_disk_path=str(tmp_path))
    assert is_in_a_file(pipe.transformer, PATH)
    assert layer_response(pipe.transformer, PATH, rows()) is None
    with pytest.raises(FuseError, match="offloaded to a file"):
        pipe.fuse_unlearning_adapters()


@pytest.mark.parametrize("where", ["plain", "float8", "offloaded", "in files"])
def test_the_response_is_that_of_the_weight_alone(where, denoiser, tmp_path):
    layer = base_linear(denoiser.get_submodule(PATH))
    if where == "float8":
        layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn)
    expected = rows() @ layer.weight.detach().float().T
    if where == "offloaded":
        accelerate.cpu_offload(denoiser, CPU)
    elif where == "in files":
        accelerate.disk_offload(denoiser, tmp_path, execution_device=CPU)
    torch.testing.assert_close(layer_response(denoiser, PATH, rows()), expected)
    assert layer.weight.is_meta == (where in ("offloaded", "in files"))


class Coded(nn.Linear):
    """A layer whose weight is a code that only its own forward can read."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__(48, 5)
        self.compute_dtype, self.fails, self.scale = torch.bfloat16, fails, 0.25
        self.weight = nn.Parameter(torch.arange(240).reshape(5, 48).to(torch.int8), requires_grad=False)

    def forward(self, x):
        if self.fails or x.dtype != self.compute_dtype:
            raise RuntimeError("another dtype")
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias.to(x.dtype))


def test_a_weight_in_a_code_is_asked_through_the_layers_own_forward():
    denoiser = nn.Sequential(Coded(), Coded(fails=True))
    unit = torch.eye(48)[:7]
    found = layer_response(denoiser, "0", unit)
    torch.testing.assert_close(found, 0.25 * denoiser[0].weight[:, :7].T.float(), rtol=0.02, atol=0.1)
    assert found.dtype == torch.float32
    assert layer_response(denoiser, "1", unit) is None


def test_a_sparse_weight_is_out_of_reach_and_is_not_fused(denoiser):
    layer = denoiser.get_submodule(PATH)
    assert layer_response(denoiser, PATH, rows()) is not None
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse(), requires_grad=False)
    assert not is_plain(layer.weight) and layer_response(denoiser, PATH, rows()) is None
    edit = stack_directions(list(planted(tiny_wan_pipeline()).directions.values())[:1], [1.0])
    with pytest.raises(FuseError, match="is sparse .* Make it dense before you fuse, or attach the adapter"):
        fuse_edit(layer, edit)


@pytest.mark.parametrize("normed", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
def test_a_weight_that_is_computed_at_each_call_is_not_fused(normed, denoiser):
    layer = normed(denoiser.get_submodule(PATH))
    edit = stack_directions(list(planted(tiny_wan_pipeline()).directions.values())[:1], [1.0])
    with pytest.raises(FuseError, match=r"is computed anew at each call \(a parametrization.*Attach the adapter"):
        fuse_edit(layer, edit)


def test_a_weight_of_one_dimension_is_out_of_reach_and_is_not_fused(denoiser):
    layer = denoiser.get_submodule(PATH)
    layer.weight = nn.Parameter(layer.weight.detach()[0].clone(), requires_grad=False)
    assert layer_response(denoiser, PATH, rows()) is None and weight_gram(denoiser, PATH) is None
    edit = stack_directions(list(planted(tiny_wan_pipeline()).directions.values())[:1], [1.0])
    with pytest.raises(FuseError, match=r"has the shape \(48,\), but the edit is for 48 features\. Load the pipeline"):
        fuse_edit(layer, edit)
