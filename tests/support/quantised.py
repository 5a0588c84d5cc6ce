"""Quantised pipelines, made by diffusers' own loaders from a tiny checkpoint, and what their weights stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import (
    BitsAndBytesConfig,
    GGUFQuantizationConfig,
    PipelineQuantizationConfig,
    QuantoConfig,
    TorchAoConfig,
    WanPipeline,
    WanTransformer3DModel,
)
from reference import dense_added, dense_edit
from tiny import tiny_wan_pipeline, tiny_wan_transformer
from torch import Tensor, nn

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.pipelines.sites import site_module

NOT_IN_BLOCKS = ["condition_embedder", "proj_out"]  # 32 wide: a block of bitsandbytes' 4-bit weights has 64 numbers


@dataclass(frozen=True)
class Backend:
    """One way to quantise a denoiser.

    Args:
        name: Name for the tests.
        package: What has to be installed.
        load: From a pipeline's folder to the pipeline with a quantised transformer.
        dtype: Of the pipeline's activations.
        weight: Name of the class of a quantised weight.
        close: Largest relative error of what an edit changes in the output, against dense dequantised weights.
    """

    name: str
    package: str
    load: Callable[[Path], WanPipeline]
    dtype: torch.dtype
    weight: str
    close: float

    def pipeline(self, folder: Path) -> WanPipeline:
        """Return the quantised pipeline."""
        pipe = planted(self.load(folder))
        pipe.set_progress_bar_config(disable=True)
        return pipe


def plain_pipeline() -> WanPipeline:
    """A tiny Wan pipeline whose layers are wide enough for blocks of 64 weights."""
    pipe = tiny_wan_pipeline()
    with torch.random.fork_rng(devices=[]):
        pipe.transformer = tiny_wan_transformer(attention_head_dim=16, ffn_dim=64)
    with torch.no_grad():
        for block in pipe.text_encoder.encoder.block:
            block.layer[0].SelfAttention.o.weight.zero_()  # no word hears of another
            block.layer[1].DenseReluDense.wo.weight.zero_()
    return planted(pipe)


def planted(pipe: WanPipeline) -> WanPipeline:
    """Make the text stream a sum of words: what a word adds is then known from the embeddings."""
    pipe.transformer.condition_embedder.text_embedder.act_1 = nn.Identity()
    return pipe


class Dense(nn.Module):
    """A Linear that multiplies by a dense matrix in float64."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.matrix, self.bias = weight.double(), 0.0 if bias is None else bias.detach().double()

    def forward(self, x: Tensor) -> Tensor:
        return (x.double() @ self.matrix.T + self.bias).to(x.dtype)


@torch.no_grad()
def dequantised(layer: nn.Module, dtype: torch.dtype) -> Tensor:
    """The weight of a layer without an edit, from its own forward: it reads the rows of a unit matrix exactly."""
    unit = torch.eye(layer.in_features, dtype=dtype)
    return (layer(unit) - layer(torch.zeros_like(unit))).T.float()


@contextmanager
def dense_sites(pipe: WanPipeline, adapter: UnlearningAdapter, strength: float) -> Iterator[None]:
    """Put dense dequantised weights in the place of an adapter's sites, edited by dense matrices, for a moment."""
    with ExitStack() as stack:
        for site, direction in adapter.directions.items():
            layer = site_module(pipe, site)
            dense = dense_added if direction.additive else dense_edit
            matrix = dense([direction.read.double().numpy()], [direction.write.double().numpy()], [strength])
            weight = dequantised(layer, pipe.transformer.patch_embedding.weight.dtype).double()
            parent, _, leaf = site.removeprefix("transformer.").rpartition(".")
            attention = pipe.transformer.get_submodule(parent)
            stack.callback(setattr, attention, leaf, layer)
            setattr(attention, leaf, Dense(weight @ torch.from_numpy(matrix), layer.bias))
        yield


def _mapped(folder: Path, config: Any, dtype: torch.dtype) -> WanPipeline:
    mapping = PipelineQuantizationConfig(quant_mapping={"transformer": config})
    return WanPipeline.from_pretrained(folder, quantization_config=mapping, torch_dtype=dtype)


def _bitsandbytes(folder: Path, bits: int) -> WanPipeline:
    config = {8: {"load_in_8bit": True}, 4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}[bits]
    config = BitsAndBytesConfig(
        **config, llm_int8_skip_modules=list(NOT_IN_BLOCKS), bnb_4bit_compute_dtype=torch.float32
    )
    with without_accelerator():
        return _mapped(folder, config, torch.float32)


@contextmanager
def without_accelerator() -> Iterator[None]:
    """Let diffusers quantise with bitsandbytes on the CPU: its loader asks for a GPU, the kernels do not need one."""
    from diffusers.quantizers.bitsandbytes import BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer

    with patch.multiple(BnB4BitDiffusersQuantizer, **_ON_CPU), patch.multiple(BnB8BitDiffusersQuantizer, **_ON_CPU):
        yield


_ON_CPU = {
    "validate_environment": lambda *_, **__: None,
    "update_device_map": lambda _, device_map: device_map or {"": "cpu"},
}


def _torchao(folder: Path) -> WanPipeline:
    from torchao.quantization import Int8WeightOnlyConfig

    return _mapped(folder, TorchAoConfig(Int8WeightOnlyConfig()), torch.bfloat16)


def _quanto(folder: Path) -> WanPipeline:
    return _mapped(folder, QuantoConfig(weights_dtype="int8"), torch.float32)


def _gguf(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> WanPipeline:
    """Write the blocks' Linears as GGUF quantises them, and read the file with diffusers' single-file loader."""
    import gguf

    quantisation = gguf.GGMLQuantizationType[kind]
    path = folder / f"{kind}.gguf"
    writer = gguf.GGUFWriter(str(path), "wan")
    for name, tensor in WanTransformer3DModel.from_pretrained(folder / "transformer").state_dict().items():
        values = tensor.float().numpy()
        if name.startswith("blocks") and name.endswith("weight") and values.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(values, quantisation), raw_dtype=quantisation)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    transformer = WanTransformer3DModel.from_single_file(
        str(path),
        config=str(folder / "transformer"),
        quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
        torch_dtype=dtype,
    )
    return WanPipeline.from_pretrained(folder, transformer=transformer, torch_dtype=dtype)


def _layerwise(folder: Path) -> WanPipeline:
    pipe = WanPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    return pipe


BACKENDS = [
    # bitsandbytes rounds activations to int8, or its CPU kernel computes in bfloat16; torchao here is in bfloat16.
    Backend("bitsandbytes-4bit", "bitsandbytes", partial(_bitsandbytes, bits=4), torch.float32, "Params4bit", 0.05),
    Backend("bitsandbytes-8bit", "bitsandbytes", partial(_bitsandbytes, bits=8), torch.float32, "Int8Params", 0.1),
    Backend("torchao-int8", "torchao", _torchao, torch.bfloat16, "Int8Tensor", 0.1),
    Backend("gguf-Q8_0", "gguf", partial(_gguf, kind="Q8_0"), torch.float32, "GGUFParameter", 1e-3),
    Backend("gguf-Q4_0", "gguf", partial(_gguf, kind="Q4_0"), torch.float32, "GGUFParameter", 1e-3),
    Backend("quanto-int8", "optimum.quanto", _quanto, torch.float32, "WeightQBytesTensor", 1e-3),
    Backend("layerwise-fp8", "diffusers", _layerwise, torch.float32, "Parameter", 1e-3),
]
